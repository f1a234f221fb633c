//! From the last bytes of a blob to the JSON of its table of contents.
//!
//! One request for a generous tail usually brings footer and TOC together; if not, the footer tells how much
//! more is needed.

use std::io::Read;

use content::Digest;

use crate::archive::{ArchiveError, EntryKind, Reader};
use crate::footer::{self, Footer, FooterError};
use crate::{TOC_NAME, toc::TocLimits};

/// How far an honest TOC can be compressed: seen are 5 to 20 times. Below 16 MiB nobody counts.
const MAX_RATIO: u64 = 100;
const UNCOUNTED: u64 = 16 << 20;

/// What the last bytes of a blob hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TailState {
    /// The TOC begins before the bytes given: ask again with everything from `from` on.
    NeedMore {
        /// Offset in the blob where the needed bytes begin.
        from: u64,
    },
    /// The TOC.
    Toc {
        /// The JSON as stored.
        json: Vec<u8>,
        /// Offset in the blob of the gzip member that holds the TOC: the payload ends here.
        toc_offset: u64,
        /// sha256 of `json`.
        digest: Digest,
    },
}

/// Why no TOC could be read.
#[derive(Debug, thiserror::Error)]
pub enum TailError {
    /// The blob does not end in an eStargz footer.
    #[error(transparent)]
    Footer(#[from] FooterError),
    /// The footer points beyond the blob.
    #[error(
        "the footer says that the table of contents begins at {toc_offset}, in a blob of {blob_len} bytes"
    )]
    Offset {
        /// Where the footer points.
        toc_offset: u64,
        /// Length of the blob.
        blob_len: u64,
    },
    /// More tail was given than the blob has bytes.
    #[error("a tail of {tail} bytes cannot belong to a blob of {blob_len} bytes")]
    Tail {
        /// Bytes given.
        tail: u64,
        /// Length of the blob.
        blob_len: u64,
    },
    /// The TOC is larger than the limit, or inflates like nothing honest does.
    #[error("the table of contents is larger than the limit of {0} bytes")]
    TooLarge(u64),
    /// The member is not a tar of the one entry `stargz.index.json`.
    #[error("reading the table of contents: {0}")]
    Archive(#[from] ArchiveError),
    /// The member is a tar of something else.
    #[error("the table of contents is not alone in its place: found {0:?}")]
    Unexpected(String),
}

/// Looks for the TOC in `tail`, the last bytes of a blob of `blob_len` bytes.
///
/// # Errors
/// [`TailError`]: most often [`FooterError::Absent`], an ordinary layer.
pub fn open_tail(tail: &[u8], blob_len: u64) -> Result<TailState, TailError> {
    let limits = TocLimits::default();
    let tail_len = tail.len() as u64;
    let tail_start = blob_len.checked_sub(tail_len).ok_or(TailError::Tail { tail: tail_len, blob_len })?;
    let Footer { toc_offset } = Footer::parse(tail)?;
    let toc_end = blob_len.saturating_sub(footer::LEN as u64);
    if toc_offset >= toc_end {
        return Err(TailError::Offset { toc_offset, blob_len });
    }
    if toc_end - toc_offset > limits.json_bytes {
        return Err(TailError::TooLarge(limits.json_bytes));
    }
    let Some(start) = toc_offset.checked_sub(tail_start) else {
        return Ok(TailState::NeedMore { from: toc_offset });
    };
    let start = usize::try_from(start).unwrap_or(usize::MAX);
    let member = tail.get(start..tail.len() - footer::LEN).unwrap_or_default();
    let json = read_toc(member, &limits)?;
    let digest = Digest::of(&json);
    Ok(TailState::Toc { json, toc_offset, digest })
}

fn read_toc(member: &[u8], limits: &TocLimits) -> Result<Vec<u8>, TailError> {
    let plausible = (member.len() as u64).saturating_mul(MAX_RATIO).max(UNCOUNTED);
    let limit = limits.json_bytes.min(plausible);
    let mut archive = Reader::new(flate2::bufread::GzDecoder::new(member));
    let unexpected = |entry: Option<crate::archive::Entry>| {
        TailError::Unexpected(entry.map_or_else(|| "nothing".into(), |entry| entry.display_path()))
    };
    let entry = match archive.next_entry()? {
        Some(entry) if entry.path == TOC_NAME.as_bytes() && entry.kind == EntryKind::Regular => entry,
        other => return Err(unexpected(other)),
    };
    if entry.size > limit {
        return Err(TailError::TooLarge(limit));
    }
    let mut json = Vec::with_capacity(usize::try_from(entry.size).unwrap_or(0).min(member.len() * 16));
    archive.data().read_to_end(&mut json).map_err(ArchiveError::from)?;
    match archive.next_entry()? {
        None => Ok(json),
        second => Err(unexpected(second)),
    }
}
