//! What a conversion did.

use content::Digest;
use serde::{Deserialize, Serialize};

/// What became of a layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It was converted.
    Converted,
    /// It was eStargz already and was copied.
    Kept,
    /// Its blob is kept at another place, which the manifest names; nothing was done.
    Foreign,
}

impl Outcome {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Converted => "converted",
            Self::Kept => "kept",
            Self::Foreign => "foreign",
        }
    }
}

/// A layer before and after.
#[derive(Clone, Debug, Serialize)]
pub struct ConvertedLayer {
    /// What became of it.
    pub outcome: Outcome,
    /// Digest of the blob at the source.
    pub source_digest: Digest,
    /// Its bytes.
    pub source_size: u64,
    /// Digest of the blob at the destination.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
    /// Digest of its TOC, if it is known.
    pub toc_digest: Option<Digest>,
    /// Bytes of the inflated blob, if it was converted.
    pub uncompressed_size: Option<u64>,
    /// Entries of the layer, if it was converted.
    pub entries: Option<u64>,
    /// Time that reading, converting and pushing took, in seconds.
    pub seconds: f64,
}

/// The image of one platform.
#[derive(Clone, Debug, Serialize)]
pub struct ConvertedImage {
    /// `linux/amd64`.
    pub platform: String,
    /// Digest of its manifest at the source.
    pub source_digest: Digest,
    /// Digest of its manifest at the destination.
    pub digest: Digest,
    /// Its layers, lowest first.
    pub layers: Vec<ConvertedLayer>,
}

/// What a conversion did.
#[derive(Clone, Debug, Serialize)]
pub struct ConvertReport {
    /// The source's reference.
    pub source: String,
    /// The destination's reference.
    pub destination: String,
    /// Digest of what the destination's name stands for now: a manifest or an index.
    pub digest: Digest,
    /// The images.
    pub images: Vec<ConvertedImage>,
    /// Manifests of the index that are no images and were copied as they are.
    pub copied: usize,
    /// Bytes of all different layers at the source.
    pub source_bytes: u64,
    /// Bytes of all different layers at the destination.
    pub bytes: u64,
    /// Time from beginning to end, in seconds.
    pub seconds: f64,
}
