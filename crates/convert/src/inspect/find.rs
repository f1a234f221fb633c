//! Finding the table of contents of a layer: in the blob's last bytes, or in the image beside it.

use std::sync::Arc;

use content::{BlobSource, ByteRange, Digest, Urgency};
use estargz::footer::FooterError;
use estargz::{BlobKind, TailError, TailState, open_tail, read_toc_layer};
use registry::{Descriptor, Index, Manifest, media_type};
use tokio::sync::OnceCell;

use super::error::LookError;
use super::image::document;
use crate::place::ImageSource;

/// How much of a layer's end is fetched at first: the TOC of some four thousand files.
pub(crate) const TAIL: u64 = 256 * 1024;

/// Largest blob of a TOC image that is read: as large as a TOC in a layer may be.
const MAX_TOC_LAYER: u64 = 512 << 20;

/// What the image beside `<name>` is called that has its external TOCs.
const TOC_IMAGE_SUFFIX: &str = "-esgztoc";

/// Annotation of a TOC image's layer: the digest of the layer that the TOC is of.
const LAYER_DIGEST_ANNOTATION: &str = "containerd.io/snapshot/stargz/layer.digest";

/// A table of contents, and what it cost to find it.
#[derive(Clone, Debug)]
pub(crate) struct FoundToc {
    pub(crate) json: Vec<u8>,
    pub(crate) digest: Digest,
    pub(crate) kind: BlobKind,
    /// Where in the blob the files end.
    pub(crate) payload_end: u64,
    /// sha256 of the TOC as it is compressed; zstd:chunked alone.
    pub(crate) compressed_digest: Option<Digest>,
    /// Bytes that were fetched for it.
    pub(crate) fetched: u64,
    /// Requests that brought those.
    pub(crate) requests: u64,
}

/// What a layer has.
#[derive(Debug)]
pub(crate) enum Found {
    /// A table of contents.
    Toc(Box<FoundToc>),
    /// None.
    Nothing,
    /// Something that looks like it and is not usable.
    Broken(String),
}

/// The image and its layers.
type TocImage = (Arc<dyn ImageSource>, Vec<Descriptor>);

/// The image that has the external TOCs, asked for once and only if a layer needs it.
pub(crate) struct ExternalTocs<'a> {
    source: &'a dyn ImageSource,
    found: OnceCell<Option<TocImage>>,
}

impl<'a> ExternalTocs<'a> {
    pub(crate) fn new(source: &'a dyn ImageSource) -> Self {
        Self { source, found: OnceCell::new() }
    }

    /// The TOC of the layer with this digest, and the bytes that it took. `None` if nobody has one.
    pub(crate) async fn json(
        &self,
        layer: &Digest,
    ) -> Result<Option<Result<(Vec<u8>, u64), TailError>>, LookError> {
        let Some((image, layers)) = self.found.get_or_try_init(|| self.open()).await? else {
            return Ok(None);
        };
        let wanted = layer.to_string();
        let is_it = |it: &&Descriptor| it.annotation(LAYER_DIGEST_ANNOTATION) == Some(wanted.as_str());
        let Some(descriptor) = layers.iter().find(is_it) else { return Ok(None) };
        let blob = image.document(descriptor, MAX_TOC_LAYER).await?;
        let json = read_toc_layer(&blob);
        Ok(Some(json.map(|json| (json, blob.len() as u64))))
    }

    async fn open(&self) -> Result<Option<TocImage>, LookError> {
        let Some(image) = self.source.sibling(TOC_IMAGE_SUFFIX).await? else { return Ok(None) };
        let (root, bytes) = image.root().await?;
        let mut layers = Vec::new();
        if media_type::is_index(&root.media_type) {
            let index: Index = document("index", root.digest, &bytes)?;
            for descriptor in &index.manifests {
                let bytes = image.manifest(descriptor).await?;
                let manifest: Manifest = document("manifest", descriptor.digest, &bytes)?;
                layers.extend(manifest.layers);
            }
        } else {
            let manifest: Manifest = document("manifest", root.digest, &bytes)?;
            layers = manifest.layers;
        }
        Ok(Some((image, layers)))
    }
}

/// Looks for the TOC of `layer`. Reads the end of the blob and nothing else of it.
pub(crate) async fn find_toc(
    source: &dyn ImageSource,
    layer: &Descriptor,
    external: &ExternalTocs<'_>,
) -> Result<Found, LookError> {
    let failed = |reason| LookError::Read { digest: layer.digest, reason };
    let blob: Arc<dyn BlobSource> = source.ranges(layer).await?;
    let len = blob.len();
    let (mut fetched, mut requests) = (len.min(TAIL), 1);
    let tail = ByteRange::new(len - fetched, len);
    let bytes = blob.read(tail, Urgency::Blocking).await.map_err(failed)?;
    let mut state = open_tail(&bytes, len);
    if let Ok(TailState::NeedMore { from }) = state {
        // What is here already is not fetched again.
        let more = blob.read(ByteRange::new(from, tail.start), Urgency::Blocking).await.map_err(failed)?;
        fetched += more.len() as u64;
        requests += 1;
        state = open_tail(&[more, bytes].concat(), len);
    }
    Ok(match state {
        Ok(TailState::Toc { json, toc_offset, digest, compressed_digest, kind }) => {
            let payload_end = toc_offset;
            let found = FoundToc { json, digest, kind, payload_end, compressed_digest, fetched, requests };
            Found::Toc(Box::new(found))
        }
        Ok(TailState::External { payload_end }) => match external.json(&layer.digest).await? {
            Some(Ok((json, toc_bytes))) => Found::Toc(Box::new(FoundToc {
                digest: Digest::of(&json),
                json,
                kind: BlobKind::External,
                payload_end,
                compressed_digest: None,
                fetched: fetched + toc_bytes,
                requests: requests + 1,
            })),
            Some(Err(problem)) => Found::Broken(format!("external {problem}")),
            None => Found::Broken(format!(
                "its table of contents is kept in an image with the suffix {TOC_IMAGE_SUFFIX:?}, which is not there or \
                 does not have it"
            )),
        },
        Ok(TailState::NeedMore { .. }) => Found::Broken("its table of contents cannot be found".to_owned()),
        Err(TailError::Footer(FooterError::Absent | FooterError::Short(_))) => Found::Nothing,
        Err(problem) => Found::Broken(problem.to_string()),
    })
}
