//! What a pull did.

use std::fmt;

use content::Digest;
use serde::Serialize;

use crate::table::{bytes, short};

/// How a layer came to be there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PulledAs {
    /// Mounted; its bytes come when they are read.
    Lazy,
    /// It was there before.
    Present,
    /// Fetched and unpacked.
    Unpacked,
}

impl PulledAs {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Lazy => "lazy",
            Self::Present => "present",
            Self::Unpacked => "unpacked",
        }
    }
}

/// A layer that is there now.
#[derive(Clone, Debug, Serialize)]
pub struct PulledLayer {
    /// How it came to be there.
    pub outcome: PulledAs,
    /// Digest of its blob.
    pub digest: Digest,
    /// Bytes of its blob.
    pub size: u64,
    /// Digest of the inflated blob, as the image's config claims it.
    pub diff_id: Digest,
    /// Name of the snapshot.
    pub chain_id: Digest,
    /// Bytes of the blob that the pull itself fetched. What the snapshotter fetches is not counted.
    pub fetched: u64,
    /// Time that it took, in seconds.
    pub seconds: f64,
}

/// What a pull did.
#[derive(Clone, Debug, Serialize)]
pub struct PullReport {
    /// containerd's name of the image.
    pub name: String,
    /// Digest of what the name stands for: a manifest or an index.
    pub digest: Digest,
    /// Digest of the manifest of this platform.
    pub manifest: Digest,
    /// The platform.
    pub platform: String,
    /// containerd's namespace.
    pub namespace: String,
    /// containerd's name of the snapshotter.
    pub snapshotter: String,
    /// Whether the name stood for the same before.
    pub existed: bool,
    /// Bytes of all blobs of layers.
    pub bytes: u64,
    /// How many of these were fetched.
    pub fetched_bytes: u64,
    /// The layers, lowest first.
    pub layers: Vec<PulledLayer>,
    /// What the user should know.
    pub warnings: Vec<String>,
    /// Time from beginning to end, in seconds.
    pub seconds: f64,
}

impl fmt::Display for PullReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}  {}", self.platform, self.manifest)?;
        for layer in &self.layers {
            let (word, digest) = (layer.outcome.as_str(), short(&layer.digest));
            writeln!(f, "  {word:8}  {digest}  {:>9}  {:>7.2} s", bytes(layer.size), layer.seconds)?;
        }
        let count = |outcome| self.layers.iter().filter(|layer| layer.outcome == outcome).count();
        let (lazy, all) = (count(PulledAs::Lazy), self.layers.len());
        writeln!(f, "{}@{}", self.name, self.digest)?;
        if all > 0 && count(PulledAs::Present) == all {
            return writeln!(f, "all {all} layers are there already");
        }
        let (fetched, whole) = (bytes(self.fetched_bytes), bytes(self.bytes));
        writeln!(f, "{lazy} of {all} layers lazy, {fetched} of {whole} fetched in {:.1} s", self.seconds)
    }
}
