//! What a conversion did.

use content::Digest;
use serde::{Deserialize, Serialize};

/// What became of a layer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It was converted.
    Converted,
    /// It was converted before, and found again.
    Reused,
    /// It could be mounted lazily already and was copied.
    Kept,
    /// It cannot be converted and was copied as it is.
    Unconvertible,
    /// Its blob is kept at another place, which the manifest names; nothing was done.
    Foreign,
}

impl Outcome {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Converted => "converted",
            Self::Reused => "reused",
            Self::Kept => "kept",
            Self::Unconvertible => "unchanged",
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
    /// Bytes of the inflated blob, if they are known.
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
    /// The source.
    pub source: String,
    /// The destination.
    pub destination: String,
    /// Digest of what the destination's name stands for now: a manifest or an index.
    pub digest: Digest,
    /// Digest of the manifest of the TOC image, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub toc_image: Option<Digest>,
    /// The images.
    pub images: Vec<ConvertedImage>,
    /// Manifests of the index that are no images and were copied as they are.
    pub copied: usize,
    /// Bytes of all different layers at the source.
    pub source_bytes: u64,
    /// Bytes of all different layers at the destination.
    pub bytes: u64,
    /// What the user should know: images left out, layers that stayed as they were.
    pub warnings: Vec<String>,
    /// Time from beginning to end, in seconds.
    pub seconds: f64,
}
