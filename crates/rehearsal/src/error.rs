//! Why a container could not be run to learn from it, and what to do about it.

use std::io;
use std::path::PathBuf;

use crate::user::UserError;

/// A rehearsal that failed.
#[derive(Debug, thiserror::Error)]
pub enum RehearsalError {
    /// The image's config is none.
    #[error("the image's config is malformed: {0}")]
    Config(serde_json::Error),
    /// Nobody says what to run.
    #[error("the image does not say which program to run: name one with --args '[\"/bin/program\"]'")]
    NoProgram,
    /// The user that it shall run as is not known.
    #[error(transparent)]
    User(UserError),
    /// A layer cannot be opened.
    #[error("opening layer {number} of the image: {source}")]
    Layer {
        /// Counted from 1, the lowest.
        number: usize,
        /// Why.
        source: lazyfs::LayerError,
    },
    /// A layer cannot be mounted.
    #[error("mounting layer {number} of the image: {source}")]
    Mount {
        /// Counted from 1, the lowest.
        number: usize,
        /// Why.
        source: lazyfs::MountError,
    },
    /// The layers cannot be put on top of each other.
    #[error("mounting the image as an overlay at {}: {source}; does TMPDIR name a disk, and do you run this as root?", .path.display())]
    Overlay {
        /// Where.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// There are more layers than one overlay takes.
    #[error("the image has {0} layers, more than one overlay takes: squash some of them")]
    TooManyLayers(usize),
    /// Something could not be written or read.
    #[error("{doing} {}: {source}", .path.display())]
    File {
        /// What was being done.
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// There is no runc.
    #[error("cannot start {program}: {source}; install runc, or name its path with --runc")]
    NoRunc {
        /// What was to be started.
        program: String,
        /// What the system says.
        source: io::Error,
    },
    /// runc could not start the container.
    #[error("the container could not be started: {0}")]
    Start(String),
    /// The process is shutting down.
    #[error("interrupted")]
    Interrupted,
}

impl RehearsalError {
    /// What the system said about `path`.
    pub(crate) fn file(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { doing, path, source }
    }
}
