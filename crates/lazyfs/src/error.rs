//! Why a layer cannot be had.

use std::path::PathBuf;
use std::sync::Arc;

use content::{Digest, ReadError};
use estargz::toc::TocError;

/// Why a layer cannot be opened, or described.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LayerError {
    /// The blob could not be read.
    #[error("reading the table of contents of layer {layer}: {source}")]
    Read {
        /// The layer.
        layer: Digest,
        /// What failed.
        source: ReadError,
    },
    /// The blob has no eStargz footer, or one that cannot be right.
    #[error("layer {layer} is not an eStargz blob: {reason}")]
    NotLazy {
        /// The layer.
        layer: Digest,
        /// What is wrong with it.
        reason: String,
    },
    /// The blob's table of contents is not the one that the manifest pins.
    #[error("layer {layer} has table of contents {found}, its manifest says {expected}")]
    TocDigest {
        /// The layer.
        layer: Digest,
        /// What the manifest says.
        expected: Digest,
        /// What the blob has.
        found: Digest,
    },
    /// The table of contents cannot be right.
    #[error("layer {layer}: {source}")]
    Toc {
        /// The layer.
        layer: Digest,
        /// What is wrong with it.
        source: Arc<TocError>,
    },
    /// The layer has something that EROFS cannot describe.
    #[error("layer {layer}: {source}")]
    Metadata {
        /// The layer.
        layer: Digest,
        /// What cannot be described.
        source: erofs::WriteError,
    },
    /// The layer store cannot be used.
    #[error("layer store, {doing} {}: {source}", path.display())]
    Disk {
        /// What was being done.
        doing: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: Arc<std::io::Error>,
    },
    /// What the store knew about the layer was damaged while it was in use.
    #[error(
        "the stored table of contents of layer {layer} is damaged: it is fetched again when the layer is next opened"
    )]
    Damaged {
        /// The layer.
        layer: Digest,
    },
    /// The node is shutting down.
    #[error("the layer store is shutting down")]
    Stopped,
}

impl LayerError {
    pub(crate) fn disk(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Disk { doing, path: path.into(), source: Arc::new(source) }
    }
}
