//! Whether a layer tells the truth: about its bytes, its table of contents and its tar.
//!
//! A lazy mount never looks at the tar headers in a blob, and whoever unpacks the blob never looks at the TOC.
//! So one image can show two different trees, and nobody who uses it would notice. [`audit`] reads a blob from
//! end to end, once as each of them would, and reports the first thing that is not as it is said to be:
//!
//! 1. The end of the blob: is there a TOC, can it be read, is it the one that the image pins
//!    (`audit/annotations.rs`)?
//! 2. The tar, entry by entry (`audit/members.rs`, `audit/walk.rs`): has the TOC the same entries with the
//!    same attributes; has every chunk, and every file, its digest; does every chunk lie where the TOC says,
//!    and not elsewhere where the same bytes happen to be? All is hashed on the way: the blob's digest, the
//!    diffID, the inflated size.
//! 3. Every chunk from its own offset, as a mount would get it, on all cores (`audit/chunks.rs`).
//! 4. In containers/storage's dialect, the tar-split data (`audit/split.rs`).
//!
//! Memory is bounded: what grows is what the TOC lists. Nothing is kept of what is inflated.
//!
//! [`list_toc`] gives the entries of a TOC as they stand, for whoever lays layers over each other.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::num::NonZeroUsize;

use content::Digest;

use crate::decompress::Compression;
use crate::footer::{self, Footer, FooterError};
use crate::tail::{BlobKind, TailError, TailState, open_tail};
use crate::toc::{Toc, TocLimits};

mod annotations;
mod chunks;
mod lie;
mod listed;
mod members;
mod split;
mod track;
mod walk;

pub use lie::{Lie, Spot};
pub use listed::{ListError, Listed, Listing, Piece, list_toc};

use members::Members;
use track::Track;
use walk::{Inside, Stop, Walk};

/// First part of a blob's end that is read.
const TAIL: u64 = 256 * 1024;

/// Bytes that can be read anywhere.
pub trait ReadAt: Sync {
    /// Fills `buffer` with the bytes from `offset` on.
    ///
    /// # Errors
    /// If they cannot be read, or there are not so many.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

impl ReadAt for &[u8] {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let end = start.checked_add(buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(self.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// What an image says about a layer.
#[derive(Clone, Debug, Default)]
pub struct Claims {
    /// Digest of the blob.
    pub digest: Option<Digest>,
    /// Bytes of the blob.
    pub size: Option<u64>,
    /// sha256 of what it inflates to, from the image's config.
    pub diff_id: Option<Digest>,
    /// Annotations of its descriptor.
    pub annotations: BTreeMap<String, String>,
}

/// How a layer is audited.
#[derive(Clone, Copy)]
pub struct AuditOptions<'a> {
    /// The TOC's JSON, where it is kept outside of the blob.
    pub external_toc: Option<&'a [u8]>,
    /// How large a TOC may be.
    pub limits: TocLimits,
    /// Threads that check chunks; `None` for one per core.
    pub workers: Option<NonZeroUsize>,
    /// Is told of every so many more bytes of the blob that were looked at. Those of chunks are looked at
    /// twice.
    pub progress: &'a (dyn Fn(u64) + Sync),
}

impl Default for AuditOptions<'_> {
    fn default() -> Self {
        Self { external_toc: None, limits: TocLimits::default(), workers: None, progress: &|_| () }
    }
}

impl fmt::Debug for AuditOptions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let has_toc = self.external_toc.is_some();
        f.debug_struct("AuditOptions")
            .field("external_toc", &has_toc)
            .field("workers", &self.workers)
            .finish()
    }
}

/// What a layer is, and the first thing in which it lies. After a lie the numbers are those found until then.
#[derive(Debug)]
pub struct Audit {
    /// What the end of the blob says it is; `None` for an ordinary layer.
    pub kind: Option<BlobKind>,
    /// How it is compressed, if it was read to its end.
    pub compression: Option<Compression>,
    /// sha256 of the blob, if it was read to its end.
    pub digest: Option<Digest>,
    /// sha256 of what it inflates to, likewise.
    pub diff_id: Option<Digest>,
    /// Bytes that it inflates to.
    pub inflated: u64,
    /// sha256 of its TOC.
    pub toc_digest: Option<Digest>,
    /// Entries of the tar, without the TOC.
    pub entries: u64,
    /// Regular files among them.
    pub files: u64,
    /// Bytes of those.
    pub file_bytes: u64,
    /// Chunks of the TOC.
    pub chunks: u64,
    /// The first lie.
    pub lie: Option<Lie>,
}

/// Why a layer could not be audited: no fault of the layer's.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// Its bytes could not be read.
    #[error("reading the blob: {0}")]
    Read(io::Error),
}

/// Audits `blob` of `len` bytes.
///
/// # Errors
/// [`AuditError`]. Whatever is wrong with the layer itself is told in [`Audit::lie`].
pub fn audit(
    blob: &dyn ReadAt,
    len: u64,
    claims: &Claims,
    options: &AuditOptions<'_>,
) -> Result<Audit, AuditError> {
    let mut audit = Audit {
        kind: None,
        compression: None,
        digest: None,
        diff_id: None,
        inflated: 0,
        toc_digest: None,
        entries: 0,
        files: 0,
        file_bytes: 0,
        chunks: 0,
        lie: None,
    };
    let lie_of = |outcome: Result<(), Stop>| match outcome {
        Ok(()) => Ok(None),
        Err(Stop::Lie(lie)) => Ok(Some(*lie)),
        Err(Stop::Error(error)) => Err(error),
    };
    let mut table = None;
    let opened = open(blob, len, claims, options, &mut audit).map(|found| table = found);
    let mut lie = lie_of(opened)?;
    // The whole is read whatever the end says: a blob with another digest is another blob, and that says
    // more than anything in it.
    let walked = walk(blob, len, claims, options, table.as_ref(), &mut audit);
    lie = match lie_of(walked)? {
        Some(whole @ (Lie::Size { .. } | Lie::Digest { .. })) => Some(whole),
        other => lie.or(other),
    };
    if let (None, Some(table)) = (&lie, &table) {
        let workers = options.workers.or_else(|| std::thread::available_parallelism().ok());
        let workers = workers.unwrap_or(NonZeroUsize::MIN);
        lie = lie_of(chunks::check(blob, &table.toc, workers, options.progress))?;
        if let (None, Some(Footer::ZstdChunkedPodman { tar_split, .. })) = (&lie, table.footer) {
            lie = lie_of(split::check(blob, len, tar_split, &table.listing))?;
        }
    }
    audit.lie = lie;
    Ok(audit)
}

/// The TOC of a blob.
struct Table {
    toc: Toc,
    listing: Listing,
    footer: Option<Footer>,
    inside: Option<Inside>,
}

/// Finds and reads the TOC, and holds it against the annotations.
fn open(
    blob: &dyn ReadAt,
    len: u64,
    claims: &Claims,
    options: &AuditOptions<'_>,
    audit: &mut Audit,
) -> Result<Option<Table>, Stop> {
    let read = |from: u64| {
        let mut tail = vec![0; usize::try_from(len - from).unwrap_or(0)];
        blob.read_exact_at(&mut tail, from).map_err(|error| Stop::Error(AuditError::Read(error)))?;
        Ok::<_, Stop>(tail)
    };
    let mut tail = read(len - len.min(TAIL))?;
    let mut state = open_tail(&tail, len);
    if let Ok(TailState::NeedMore { from }) = state {
        tail = read(from.min(len))?;
        state = open_tail(&tail, len);
    }
    let (json, payload_end, compressed_digest, kind) = match state {
        Ok(TailState::Toc { json, toc_offset, compressed_digest, kind, .. }) => {
            (json, toc_offset, compressed_digest, kind)
        }
        Ok(TailState::External { payload_end }) => {
            audit.kind = Some(BlobKind::External);
            let json = options.external_toc.ok_or(Lie::NoExternalToc)?;
            (json.to_vec(), payload_end, None, BlobKind::External)
        }
        Err(TailError::Footer(FooterError::Absent | FooterError::Short(_))) => {
            return match annotations::promise(&claims.annotations) {
                Some(key) => Err(Lie::NoToc { key }.into()),
                None => Ok(None),
            };
        }
        Ok(TailState::NeedMore { from: toc_offset }) => {
            return Err(Lie::Tail(TailError::Offset { toc_offset, blob_len: len }).into());
        }
        Err(error) => return Err(Lie::Tail(error).into()),
    };
    let end = tail.len().checked_sub(footer::MAX_LEN.min(tail.len())).and_then(|start| tail.get(start..));
    let footer = Footer::parse(end.unwrap_or_default()).ok();
    drop(tail);
    audit.kind = Some(kind);
    let limits = TocLimits { unverified: kind == BlobKind::Legacy, ..options.limits };
    let toc = Toc::parse(&json, payload_end, &limits).map_err(Lie::Toc)?;
    audit.toc_digest = Some(toc.digest());
    let found = annotations::Found {
        footer,
        toc_digest: Some(toc.digest()),
        compressed_digest,
        tar_split_digest: match footer {
            Some(Footer::ZstdChunkedPodman { tar_split, .. }) => {
                split::check_pin(&json, split::digest(blob, tar_split)?)?
            }
            _ => None,
        },
    };
    annotations::check(&claims.annotations, &found)?;
    let listing = list_toc(&json).map_err(Lie::List)?;
    audit.chunks = listing.entries.iter().map(|entry| entry.pieces.len() as u64).sum();
    let is_inside = matches!(kind, BlobKind::Estargz | BlobKind::Legacy);
    let inside = is_inside.then(|| Inside { digest: toc.digest(), offset: payload_end });
    Ok(Some(Table { toc, listing, footer, inside }))
}

/// Reads the whole blob, once.
fn walk(
    blob: &dyn ReadAt,
    len: u64,
    claims: &Claims,
    options: &AuditOptions<'_>,
    table: Option<&Table>,
    audit: &mut Audit,
) -> Result<(), Stop> {
    if let Some(claimed) = claims.size.filter(|claimed| *claimed != len) {
        return Err(Lie::Size { claimed, found: len }.into());
    }
    let track = Track::default();
    let progress = |count| (options.progress)(count);
    let mut members = Members::new(blob, len, &track, table.is_some(), &progress);
    let listing = table.map(|table| &table.listing);
    let mut walk = Walk::new(listing, table.and_then(|table| table.inside), &track);
    let outcome = walk.run(&mut members);
    let counts = walk.counts();
    audit.inflated = track.inflated();
    (audit.entries, audit.files, audit.file_bytes) = (counts.entries, counts.files, counts.file_bytes);
    let whole = if matches!(outcome, Ok(())) { members.finish() } else { None };
    let digest = match &whole {
        Some(whole) => whole.digest,
        None => members::hash(blob, len).map_err(|error| Stop::Error(AuditError::Read(error)))?,
    };
    audit.digest = Some(digest);
    if let Some(claimed) = claims.digest.filter(|claimed| *claimed != digest) {
        return Err(Lie::Digest { claimed, found: digest }.into());
    }
    outcome?;
    let Some(whole) = whole else { return Ok(()) };
    audit.compression = Some(whole.compression);
    audit.diff_id = Some(whole.diff_id);
    annotations::check_size(&claims.annotations, audit.inflated)?;
    match claims.diff_id {
        Some(claimed) if claimed != whole.diff_id => {
            Err(Lie::DiffId { claimed, found: whole.diff_id }.into())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
