//! Images: small ones made to measure, and a real one.
//!
//! A small image is a list of layers, a layer a list of [`Entry`]s written as a tar in the order given, so that a
//! test can say exactly what stands in it, whiteouts and strange entries included. [`python`] makes the real one.

mod archive;
mod debian;
mod everything;
mod programs;
mod push;
pub mod python;
mod rootfs;
mod tar;

use std::collections::BTreeMap;
use std::io::Write;

use anyhow::Result;
use content::Digest;
use serde_json::{Value, json};

pub use archive::tar_of_layout;
pub use debian::cache;
pub use everything::{often_mistaken, one_of_everything};
pub use programs::programs;
pub use push::push_blob;
pub use rootfs::tar_of_tree;
pub use tar::{Entry, layer};

/// A layer blob: gzip, as Docker and the like write it.
#[derive(Debug, Clone)]
pub struct Layer {
    /// The compressed bytes.
    pub bytes: Vec<u8>,
    /// Their digest.
    pub digest: Digest,
    /// The digest of the tar inside.
    pub diff_id: Digest,
    /// What made it, for the history.
    pub created_by: String,
    /// What else its descriptor says.
    pub annotations: BTreeMap<String, String>,
}

/// An image for this machine's platform, ready to be pushed.
#[derive(Debug, Clone)]
pub struct Image {
    /// From the bottom up.
    pub layers: Vec<Layer>,
    /// The image's configuration.
    pub config: Vec<u8>,
    /// The OCI manifest.
    pub manifest: Vec<u8>,
}

impl Layer {
    /// Compresses a tar at gzip's level 6.
    pub fn gzip(tar: &[u8]) -> Result<Self> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
        encoder.write_all(tar)?;
        Ok(Self::from_parts(encoder.finish()?, Digest::of(tar)))
    }

    /// Compresses a tar with zstd.
    pub fn zstd(tar: &[u8]) -> Result<Self> {
        Ok(Self::from_parts(zstd::encode_all(tar, 3)?, Digest::of(tar)))
    }

    /// A blob whose tar is known by its digest.
    pub fn from_parts(bytes: Vec<u8>, diff_id: Digest) -> Self {
        let digest = Digest::of(&bytes);
        Self { bytes, digest, diff_id, created_by: "pantala lab".into(), annotations: BTreeMap::new() }
    }

    /// Says what made it.
    #[must_use]
    pub fn created_by(mut self, what: &str) -> Self {
        self.created_by = what.into();
        self
    }

    fn media_type(&self) -> &'static str {
        // zstd's magic number; everything else here is gzip.
        if self.bytes.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            "application/vnd.oci.image.layer.v1.tar+zstd"
        } else {
            "application/vnd.oci.image.layer.v1.tar+gzip"
        }
    }
}

impl Image {
    /// An image of tars, gzipped.
    pub fn new(tars: &[Vec<u8>]) -> Self {
        let layers = tars.iter().map(|tar| Layer::gzip(tar).expect("compressing to memory")).collect();
        Self::from_layers(layers, &json!({"Cmd": ["/bin/sh"]}))
    }

    /// An image of finished layers. `run` is the `config` object of the image's configuration.
    pub fn from_layers(layers: Vec<Layer>, run: &Value) -> Self {
        let diff_ids: Vec<_> = layers.iter().map(|layer| layer.diff_id.to_string()).collect();
        let history: Vec<_> = layers
            .iter()
            .map(|layer| json!({"created": "2026-01-01T00:00:00Z", "created_by": layer.created_by}))
            .collect();
        let config = json!({
            "created": "2026-01-01T00:00:00Z",
            "architecture": architecture(),
            "os": "linux",
            "config": run,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": history,
        })
        .to_string()
        .into_bytes();
        let descriptors: Vec<_> = layers
            .iter()
            .map(|layer| {
                json!({
                    "mediaType": layer.media_type(),
                    "digest": layer.digest.to_string(),
                    "size": layer.bytes.len(),
                    "annotations": layer.annotations,
                })
            })
            .collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": Digest::of(&config).to_string(),
                "size": config.len(),
            },
            "layers": descriptors,
        })
        .to_string()
        .into_bytes();
        Self { layers, config, manifest }
    }

    /// The digest of the manifest: the image's own.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }

    /// Bytes of all layers as they are transferred.
    pub fn layer_bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.bytes.len() as u64).sum()
    }
}

/// What the first container of each pod runs: nothing, for ever.
pub fn pause() -> Result<Image> {
    let tar = layer(&programs(&["sleep"])?)?;
    Ok(Image::from_layers(vec![Layer::gzip(&tar)?], &json!({"Cmd": ["/bin/sleep", "infinity"]})))
}

/// This machine's architecture in the words of image configurations.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
