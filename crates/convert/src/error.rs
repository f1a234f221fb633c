//! Why an image could not be converted, and what to do about it.

use std::path::PathBuf;

use content::{Digest, ReadError};
use estargz::BuildError;

use crate::place::PlaceError;

/// A failed conversion.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// A place could not be read or written.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The options do not fit together.
    #[error("{0}")]
    Options(&'static str),
    /// A blob of the source could not be read.
    #[error("reading layer or config {digest}: {reason}")]
    Read {
        /// The blob.
        digest: Digest,
        /// What happened.
        reason: ReadError,
    },
    /// A document of the image is no JSON, or not of the form that its media type promises.
    #[error("{what} {digest} is malformed: {reason}")]
    Document {
        /// What it should be.
        what: &'static str,
        /// Its digest.
        digest: Digest,
        /// What is wrong.
        reason: serde_json::Error,
    },
    /// The reference names something that is no image.
    #[error("{reference} is not an image: its media type is {media_type:?}")]
    NotAnImage {
        /// The reference.
        reference: String,
        /// What it has.
        media_type: String,
    },
    /// The image has no such platform.
    #[error("{reference} has nothing for {wanted}; it has {}", list(.available))]
    Platform {
        /// The reference.
        reference: String,
        /// The platform asked for.
        wanted: String,
        /// Those that there are.
        available: Vec<String>,
    },
    /// The destination is a digest, which cannot be known before.
    #[error("the destination {0} has a digest: give it a tag instead")]
    DigestDestination(String),
    /// A type of layer that is no tar.
    #[error(
        "layer {digest} has media type {media_type:?}: only tar layers (plain, gzip, zstd) can be converted"
    )]
    LayerType {
        /// The layer.
        digest: Digest,
        /// Its media type.
        media_type: String,
    },
    /// The config has another number of layers than the manifest.
    #[error("the config of {manifest} names {diff_ids} layers, the manifest {layers}")]
    LayerCount {
        /// The manifest.
        manifest: Digest,
        /// Layers of the config.
        diff_ids: usize,
        /// Layers of the manifest.
        layers: usize,
    },
    /// A layer is not what the config claims.
    #[error(
        "layer {digest} inflates to {found}, the image's config claims {claimed}: the image is damaged or lies"
    )]
    DiffId {
        /// The layer.
        digest: Digest,
        /// What the config claims.
        claimed: Digest,
        /// What it is.
        found: Digest,
    },
    /// The layer cannot be converted.
    #[error("converting layer {digest}: {reason}")]
    Build {
        /// The layer.
        digest: Digest,
        /// Why.
        reason: BuildError,
    },
    /// There is no room for an inflated layer.
    #[error("no room for an inflated layer in {}: free some space, or name another directory by TMPDIR", .dir.display())]
    DiskFull {
        /// The directory.
        dir: PathBuf,
    },
    /// The temporary directory cannot be used.
    #[error("cannot write a temporary file in {}: {reason}; name another directory by TMPDIR", .dir.display())]
    Temporary {
        /// The directory.
        dir: PathBuf,
        /// What the system says.
        reason: std::io::Error,
    },
    /// The conversion is not wanted any more.
    #[error("the conversion was interrupted")]
    Interrupted,
}

/// Platforms, for a message.
pub(crate) fn list(available: &[String]) -> String {
    if available.is_empty() { "none that is told".to_owned() } else { available.join(", ") }
}
