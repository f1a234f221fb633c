//! Why an image could not be looked at.

use std::path::{Path, PathBuf};

use content::{Digest, ReadError};

use crate::error::list;
use crate::place::PlaceError;

/// A failed look at an image. What is wrong with a layer itself is no failure but part of the report.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    /// The image could not be read; the message says how to go on.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// A blob could not be read.
    #[error("reading layer {digest}: {reason}")]
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
    /// The name stands for something that is no image.
    #[error("{reference} is not an image: its media type is {media_type:?}")]
    NotAnImage {
        /// The name.
        reference: String,
        /// What it has.
        media_type: String,
    },
    /// The image has no such platform.
    #[error("{reference} has nothing for {wanted}; it has {}", list(.available))]
    Platform {
        /// The name.
        reference: String,
        /// The platform asked for.
        wanted: String,
        /// Those that there are.
        available: Vec<String>,
    },
    /// The image has several platforms, and only one can be compared.
    #[error("{reference} has several platforms: name one of them by --platform, {}", list(.available))]
    Ambiguous {
        /// The name.
        reference: String,
        /// Those that there are.
        available: Vec<String>,
    },
    /// There is no such layer.
    #[error("there is no layer {wanted}: {reference} has {layers}")]
    NoLayer {
        /// The name.
        reference: String,
        /// The number asked for.
        wanted: usize,
        /// How many there are.
        layers: usize,
    },
    /// A layer is no tar, or a damaged one.
    #[error("layer {digest}: {reason}")]
    Layer {
        /// The layer.
        digest: Digest,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no room for a layer.
    #[error("no room for a layer in {}: free some space, or name another directory by TMPDIR", .dir.display())]
    DiskFull {
        /// The directory.
        dir: PathBuf,
    },
    /// The temporary directory cannot be used.
    #[error("cannot use a temporary file in {}: {reason}; name another directory by TMPDIR", .dir.display())]
    Temporary {
        /// The directory.
        dir: PathBuf,
        /// What the system says.
        reason: std::io::Error,
    },
    /// The process is shutting down.
    #[error("interrupted")]
    Interrupted,
}

impl LookError {
    /// What the system said about a temporary file in `dir`.
    pub(crate) fn temporary(dir: &Path, reason: std::io::Error) -> Self {
        let dir = dir.to_owned();
        match reason.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Self::DiskFull { dir },
            _ => Self::Temporary { dir, reason },
        }
    }
}
