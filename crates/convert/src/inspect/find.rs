//! Finding the table of contents of a layer: in the blob's last bytes, or in the image beside it.

use std::sync::Arc;

use content::Digest;
use estargz::footer::FooterError;
use estargz::{BlobKind, TailError, TailState, read_toc_layer};
use registry::{Descriptor, Index, Manifest, media_type};
use tokio::sync::OnceCell;

use super::error::LookError;
use super::image::document;
use crate::place::ImageSource;
use crate::tail::{End, read_end};
use crate::toc_image::{LAYER_ANNOTATION, SUFFIX};

/// Largest blob of a TOC image that is read: as large as a TOC in a layer may be.
const MAX_TOC_LAYER: u64 = 512 << 20;

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
        let is_it = |it: &&Descriptor| it.annotation(LAYER_ANNOTATION) == Some(wanted.as_str());
        let Some(descriptor) = layers.iter().find(is_it) else { return Ok(None) };
        let blob = image.document(descriptor, MAX_TOC_LAYER).await?;
        let json = read_toc_layer(&blob);
        Ok(Some(json.map(|json| (json, blob.len() as u64))))
    }

    async fn open(&self) -> Result<Option<TocImage>, LookError> {
        let Some(image) = self.source.sibling(SUFFIX).await? else { return Ok(None) };
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
    let blob = source.ranges(layer).await?;
    let end = read_end(&*blob).await;
    let End { state, fetched, requests } =
        end.map_err(|reason| LookError::Read { digest: layer.digest, reason })?;
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
                "its table of contents is kept in an image with the suffix {SUFFIX:?}, which is not there or \
                 does not have it"
            )),
        },
        Ok(TailState::NeedMore { .. }) => Found::Broken("its table of contents cannot be found".to_owned()),
        Err(TailError::Footer(FooterError::Absent | FooterError::Short(_))) => Found::Nothing,
        Err(problem) => Found::Broken(problem.to_string()),
    })
}
