//! What can go wrong with content on disk.

use std::io;
use std::path::{Path, PathBuf};

use content::{ContentId, Fault, ReadError, ReadErrorKind};

/// A failure of the store, always of this machine unless a caller asked for what does not exist.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The operating system refused. A full disk is one of the reasons.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process keeps its content in the same folder.
    #[error("the store {} is in use by another process; give each node its own data directory", .0.display())]
    InUse(PathBuf),
    /// The content is already here with another length.
    #[error("{id} has {have} bytes here and is now said to have {want}")]
    Length {
        /// Which content.
        id: ContentId,
        /// The length on disk.
        have: u64,
        /// The length that was asked for.
        want: u64,
    },
    /// The piece is not here, or was found rotten and dropped just now.
    #[error("piece {piece} of {id} is not here")]
    Absent {
        /// Which content.
        id: ContentId,
        /// Which piece.
        piece: u32,
    },
    /// The bytes are not what their proof says, or not as many as the piece has.
    #[error("piece {piece} of {id} does not match its digest or its length")]
    Mismatch {
        /// Which content.
        id: ContentId,
        /// Which piece.
        piece: u32,
    },
    /// The range ends beyond the content.
    #[error("a range of {id} ends at {end}, beyond its {len} bytes")]
    OutOfRange {
        /// Which content.
        id: ContentId,
        /// Where the range ends.
        end: u64,
        /// How long the content is.
        len: u64,
    },
    /// The content has more pieces than can be numbered.
    #[error("{id} is said to have {len} bytes, more than a content can have")]
    TooLong {
        /// Which content.
        id: ContentId,
        /// The length.
        len: u64,
    },
}

impl StoreError {
    /// Adds what was being done to an error of the system.
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_path_buf();
        move |source| Self::Io { doing, path, source }
    }

    /// Whether the disk, or a quota on it, is full.
    pub fn is_full(&self) -> bool {
        let Self::Io { source, .. } = self else { return false };
        matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }
}

impl From<StoreError> for ReadError {
    fn from(error: StoreError) -> Self {
        let (fault, kind) = match &error {
            StoreError::Io { .. } if error.is_full() => (Fault::Local, ReadErrorKind::NoSpace),
            StoreError::Io { .. } | StoreError::InUse(_) => (Fault::Local, ReadErrorKind::Other),
            StoreError::Length { .. } | StoreError::TooLong { .. } => (Fault::Origin, ReadErrorKind::Corrupt),
            StoreError::Absent { .. } => (Fault::Local, ReadErrorKind::Unavailable),
            StoreError::Mismatch { .. } => (Fault::Peer, ReadErrorKind::Corrupt),
            StoreError::OutOfRange { .. } => (Fault::Caller, ReadErrorKind::OutOfRange),
        };
        let hint =
            if error.is_full() { " (free some space, or give the store a smaller budget)" } else { "" };
        Self::new(fault, kind, format!("{error}{hint}"))
    }
}
