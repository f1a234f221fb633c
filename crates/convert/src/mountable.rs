//! An image as something to mount: its config, and for every layer where to read it.

use std::sync::Arc;

use bytes::Bytes;
use content::{BlobSource, Digest};

use crate::error::ConvertError;
use crate::layer::mountable_toc;
use crate::place::ImageSource;
use crate::platform::PlatformSpec;
use crate::pull::Wanted;

/// An image all of whose layers can be mounted lazily.
pub struct Mountable {
    /// Digest of its manifest.
    pub manifest: Digest,
    /// Its config.
    pub config: Bytes,
    /// Its layers, lowest first.
    pub layers: Vec<MountableLayer>,
}

/// A layer that can be mounted lazily.
pub struct MountableLayer {
    /// sha256 of its table of contents, as the manifest pins it.
    pub toc_digest: Digest,
    /// Digest of its blob.
    pub layer_digest: Digest,
    /// Reads it.
    pub source: Arc<dyn BlobSource>,
}

/// Opens the image for `platform`; for this machine if none is named. `None` if one of its layers has no table of
/// contents in itself.
///
/// # Errors
/// [`ConvertError`]: that there is no such image, or that it cannot be read.
pub async fn mountable(
    source: &dyn ImageSource,
    platform: Option<&PlatformSpec>,
) -> Result<Option<Mountable>, ConvertError> {
    let wanted = Wanted::read(source, platform).await?;
    let mut layers = Vec::with_capacity(wanted.image.manifest.layers.len());
    for layer in &wanted.image.manifest.layers {
        let Some(toc_digest) = mountable_toc(source, layer).await? else { return Ok(None) };
        let blob = source.ranges(layer).await?;
        layers.push(MountableLayer { toc_digest, layer_digest: layer.digest, source: blob });
    }
    let (manifest, config) = (wanted.image.descriptor.digest, wanted.image.config_bytes.clone());
    Ok(Some(Mountable { manifest, config, layers }))
}
