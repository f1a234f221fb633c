//! The image beside an image, which holds the TOCs of its layers when those do not hold them themselves.
//!
//! It has the name of the image with `-esgztoc` added, and is one manifest for all platforms: a layer per
//! TOC, a tar.gz with the one entry `stargz.index.json`. An annotation says whose TOC it is. Layers are
//! sorted by the digests of their owners, so that the same image has the same TOC image.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use content::Digest;
use estargz::{TOC_DIGEST_ANNOTATION, read_toc_layer};
use registry::{Descriptor, Manifest, media_type};
use serde_json::json;

use crate::engine::Engine;
use crate::error::ConvertError;
use crate::place::{ImageSource, ImageTarget};
use crate::plan::{document, to_bytes};

/// What is added to the name of an image to name its TOC image.
pub(crate) const SUFFIX: &str = "-esgztoc";

/// Annotation with the digest of the layer that a TOC describes.
pub(crate) const LAYER_ANNOTATION: &str = "containerd.io/snapshot/stargz/layer.digest";

/// Largest layer of a TOC image that is read, in bytes: a TOC for millions of files.
const MAX_LAYER: u64 = 256 << 20;

/// Gzip level of TOCs: one for all, so that a TOC packed again has the same bytes.
const LEVEL: u8 = 9;

/// A layer of a TOC image that is at the target.
#[derive(Clone, Debug)]
pub(crate) struct TocPart {
    descriptor: Descriptor,
    diff_id: Digest,
    /// Whose TOC it is.
    owner: Digest,
}

/// A TOC image to read from.
pub(crate) struct TocImage {
    source: Arc<dyn ImageSource>,
    layers: HashMap<Digest, Descriptor>,
}

impl TocImage {
    /// The TOC image of `image`, if there is one.
    pub(crate) async fn beside(image: &dyn ImageSource) -> Result<Option<Self>, ConvertError> {
        let Some(source) = image.sibling(SUFFIX).await? else { return Ok(None) };
        let (root, bytes) = source.root().await?;
        if !media_type::is_manifest(&root.media_type) {
            return Ok(None);
        }
        let manifest: Manifest = document("manifest", root.digest, &bytes)?;
        let owned = |layer: Descriptor| Some((layer.annotation(LAYER_ANNOTATION)?.parse().ok()?, layer));
        let layers = manifest.layers.into_iter().filter_map(owned).collect();
        Ok(Some(Self { source, layers }))
    }

    /// The TOC of `layer`, if the image has the one that the layer's annotation pins.
    pub(crate) async fn json(&self, layer: &Descriptor) -> Result<Option<Vec<u8>>, ConvertError> {
        let Some(held) = self.layers.get(&layer.digest) else { return Ok(None) };
        let blob = self.source.document(held, MAX_LAYER).await?;
        // TOCs of large layers take a while.
        let read =
            tokio::task::spawn_blocking(move || read_toc_layer(&blob).map(|json| (Digest::of(&json), json)));
        match read.await.map_err(|_| ConvertError::Interrupted)? {
            Ok((digest, json)) if layer.annotation(TOC_DIGEST_ANNOTATION) == Some(&digest.to_string()) => {
                Ok(Some(json))
            }
            Ok((digest, _)) => {
                tracing::debug!(layer = %layer.digest, toc = %digest, "the TOC image holds another TOC than is pinned");
                Ok(None)
            }
            Err(error) => {
                tracing::debug!(layer = %layer.digest, %error, "the TOC image holds no TOC");
                Ok(None)
            }
        }
    }
}

impl Engine<'_> {
    /// The TOC of a layer of the source from the image beside it.
    pub(crate) async fn source_toc(&self, layer: &Descriptor) -> Result<Option<Vec<u8>>, ConvertError> {
        let tocs = self.source_tocs.get_or_try_init(|| TocImage::beside(&*self.source)).await?;
        match tocs {
            Some(tocs) => tocs.json(layer).await,
            None => Ok(None),
        }
    }

    /// Brings the TOC of the layer `owner` to the target's TOC image.
    pub(crate) async fn put_toc(&self, owner: Digest, json: &[u8]) -> Result<TocPart, ConvertError> {
        let json = json.to_vec();
        let packed = self.tasks.spawn_blocking(move || estargz::toc_layer(&json, LEVEL));
        let packed = packed.await.map_err(|_| ConvertError::Interrupted)?;
        let packed = packed.map_err(|reason| ConvertError::Build { digest: owner, reason })?;
        let bytes = Bytes::from(packed.bytes);
        let mut descriptor =
            Descriptor::new(media_type::OCI_LAYER_GZIP, Digest::of(&bytes), bytes.len() as u64);
        descriptor.annotations = Some([(LAYER_ANNOTATION.to_owned(), owner.to_string())].into());
        self.put_blob(self.toc_target().await?, &descriptor, bytes).await?;
        Ok(TocPart { descriptor, diff_id: packed.diff_id, owner })
    }

    /// Where the TOC image goes.
    pub(crate) async fn toc_target(&self) -> Result<&Arc<dyn ImageTarget>, ConvertError> {
        let open = || async { Ok::<_, ConvertError>(self.target.sibling(SUFFIX).await?) };
        self.toc_target.get_or_try_init(open).await
    }

    /// Gives the TOC image of all `parts` its name; without parts there is none.
    pub(crate) async fn name_toc_image(&self, parts: Vec<TocPart>) -> Result<Option<Digest>, ConvertError> {
        let parts: BTreeMap<[u8; 32], TocPart> =
            parts.into_iter().map(|part| (*part.owner.as_bytes(), part)).collect();
        if parts.is_empty() {
            return Ok(None);
        }
        let target = self.toc_target().await?;
        let diff_ids: Vec<Digest> = parts.values().map(|part| part.diff_id).collect();
        // No machine runs it.
        let config = json!({
            "architecture": "unknown", "os": "unknown", "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = to_bytes("config", &config)?;
        let config_descriptor =
            Descriptor::new(media_type::OCI_CONFIG, Digest::of(&config), config.len() as u64);
        self.put_blob(target, &config_descriptor, config).await?;
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(media_type::OCI_MANIFEST.to_owned()),
            config: config_descriptor,
            layers: parts.into_values().map(|part| part.descriptor).collect(),
            annotations: None,
            rest: serde_json::Map::new(),
        };
        let bytes = to_bytes("manifest", &manifest)?;
        let root = Descriptor::new(media_type::OCI_MANIFEST, Digest::of(&bytes), bytes.len() as u64);
        let digest = root.digest;
        target.name(&root, bytes).await?;
        Ok(Some(digest))
    }
}
