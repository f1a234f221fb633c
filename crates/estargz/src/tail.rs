//! From the last bytes of a blob to the JSON of its table of contents.
//!
//! One request for a generous tail usually brings footer and TOC together; if not, the footer tells how much
//! more is needed. The TOC of a gzip blob is a member of its own that holds a tar of one entry; that of a
//! zstd:chunked blob is a zstd frame hidden in a skippable one. Between TOC and footer stands nothing, but
//! for the tar-split frame of containers/storage: a blob with other bytes there is refused, so that no
//! second TOC hides in it.

use std::io::{self, Read};

use content::Digest;

use crate::archive::{ArchiveError, EntryKind, Reader};
use crate::decompress::{Compression, decompress, zstd_reader};
use crate::footer::{Footer, FooterError, HiddenFrame, SKIPPABLE_HEADER, SKIPPABLE_MAGIC};
use crate::{TOC_NAME, toc::TocLimits};

/// How far an honest TOC can be compressed: 5 to 20 times if its files have content, whose digests are noise.
/// Of empty files, links and directories in a row it is 70 times by gzip and 130 by zstd. Below 16 MiB nobody
/// counts.
const MAX_GZIP_RATIO: u64 = 100;
const MAX_ZSTD_RATIO: u64 = 200;
const UNCOUNTED: u64 = 16 << 20;

/// Zeros that may follow the one entry of a TOC's tar: two blocks end it, some tools fill up to 10 KiB.
const MAX_TRAILER: u64 = 64 << 10;

/// What a blob with a TOC is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BlobKind {
    /// gzip members and a TOC with digests.
    Estargz,
    /// gzip members and a TOC without digests of chunks: it can be looked at and not be mounted.
    Legacy,
    /// gzip members, and the TOC in another image.
    External,
    /// zstd frames, as stargz-snapshotter writes them.
    ZstdChunked,
    /// zstd frames, as containers/storage writes them.
    ZstdChunkedPodman,
}

impl BlobKind {
    /// Its name, for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Estargz => "estargz",
            Self::Legacy => "legacy stargz",
            Self::External => "estargz (external TOC)",
            Self::ZstdChunked => "zstd:chunked",
            Self::ZstdChunkedPodman => "zstd:chunked (podman)",
        }
    }

    /// Whether the chunks of such a blob can be verified, and so mounted.
    pub const fn is_verifiable(self) -> bool {
        !matches!(self, Self::Legacy)
    }
}

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
        /// Offset in the blob of the gzip member, or of the skippable frame, that holds the TOC: the payload
        /// ends here.
        toc_offset: u64,
        /// sha256 of `json`.
        digest: Digest,
        /// sha256 of the TOC's zstd frame: what the annotation `manifest-checksum` pins. `None` for gzip.
        compressed_digest: Option<Digest>,
        /// What the blob is. Never [`BlobKind::External`].
        kind: BlobKind,
    },
    /// The TOC is kept in another image: see [`read_toc_layer`].
    External {
        /// Offset in the blob of the footer: the payload ends here.
        payload_end: u64,
    },
}

/// Why no TOC could be read.
#[derive(Debug, thiserror::Error)]
pub enum TailError {
    /// The blob does not end in a footer.
    #[error(transparent)]
    Footer(#[from] FooterError),
    /// The footer points beyond the blob, or behind itself.
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
    /// Bytes that belong to nothing stand behind the TOC: another one, perhaps.
    #[error("{0} bytes that belong to nothing stand between the table of contents and the footer")]
    Between(u64),
    /// What the footer calls the TOC's frame is not hidden in a skippable frame of its size.
    #[error("the footer names a table of contents at {0}, where no skippable frame of its length begins")]
    NoFrame(u64),
    /// The TOC's frame cannot be inflated.
    #[error("inflating the table of contents: {0}")]
    Inflate(io::Error),
    /// The TOC's frame inflates to another length than the footer says.
    #[error("the table of contents inflates to {found} bytes, the footer says {expected}")]
    Length {
        /// What the footer says.
        expected: u64,
        /// What was found; one more than expected stands for anything longer.
        found: u64,
    },
}

/// Looks for the TOC in `tail`, the last bytes of a blob of `blob_len` bytes.
///
/// # Errors
/// [`TailError`]: most often [`FooterError::Absent`], an ordinary layer.
pub fn open_tail(tail: &[u8], blob_len: u64) -> Result<TailState, TailError> {
    let tail_len = tail.len() as u64;
    let tail_start = blob_len.checked_sub(tail_len).ok_or(TailError::Tail { tail: tail_len, blob_len })?;
    let footer = Footer::parse(tail)?;
    let window = Window { tail, tail_start, end: blob_len.saturating_sub(footer.len() as u64), blob_len };
    match footer {
        Footer::Estargz { toc_offset } => window.gzip(toc_offset, BlobKind::Estargz),
        Footer::Legacy { toc_offset } => window.gzip(toc_offset, BlobKind::Legacy),
        Footer::External => Ok(TailState::External { payload_end: window.end }),
        Footer::ZstdChunked(manifest) => window.zstd(manifest, window.end, BlobKind::ZstdChunked),
        Footer::ZstdChunkedPodman { manifest, tar_split } => {
            let (start, end) = window.hidden(tar_split)?;
            // It stands between TOC and footer, and comes with them.
            let limit = TocLimits::default().json_bytes;
            if tar_split.compressed_len > limit {
                return Err(TailError::TooLarge(limit));
            }
            if end != window.end {
                return Err(TailError::Between(window.end - end));
            }
            window.zstd(manifest, start, BlobKind::ZstdChunkedPodman)
        }
    }
}

/// The JSON of a TOC image's layer: a compressed tar of the one entry `stargz.index.json`.
///
/// # Errors
/// [`TailError`], if it is anything else, or too large.
pub fn read_toc_layer(blob: &[u8]) -> Result<Vec<u8>, TailError> {
    let reader = decompress(blob).map_err(ArchiveError::from)?;
    let limit = json_limit(blob.len() as u64, reader.compression());
    let (json, _) = read_archive(reader, blob.len() as u64, limit)?;
    Ok(json)
}

/// The end of a blob, and where in it things may lie.
struct Window<'a> {
    tail: &'a [u8],
    /// Offset of `tail` in the blob.
    tail_start: u64,
    /// Offset of the footer.
    end: u64,
    blob_len: u64,
}

impl<'a> Window<'a> {
    /// The bytes from `start` to `end` of the blob; `None` if they begin before the tail.
    fn bytes(&self, start: u64, end: u64) -> Option<&'a [u8]> {
        let at = |offset: u64| usize::try_from(offset.checked_sub(self.tail_start)?).ok();
        self.tail.get(at(start)?..at(end)?)
    }

    fn outside(&self, toc_offset: u64) -> TailError {
        TailError::Offset { toc_offset, blob_len: self.blob_len }
    }

    /// Where the skippable frame around `frame` begins and ends.
    fn hidden(&self, frame: HiddenFrame) -> Result<(u64, u64), TailError> {
        let start = frame.offset.checked_sub(SKIPPABLE_HEADER as u64);
        let end = frame.offset.checked_add(frame.compressed_len).filter(|end| *end <= self.end);
        start.zip(end).ok_or_else(|| self.outside(frame.offset))
    }

    fn gzip(&self, toc_offset: u64, kind: BlobKind) -> Result<TailState, TailError> {
        let json_bytes = TocLimits::default().json_bytes;
        let len = self.end.checked_sub(toc_offset).filter(|len| *len > 0);
        let len = len.ok_or_else(|| self.outside(toc_offset))?;
        if len > json_bytes {
            return Err(TailError::TooLarge(json_bytes));
        }
        let Some(member) = self.bytes(toc_offset, self.end) else {
            return Ok(TailState::NeedMore { from: toc_offset });
        };
        let (json, reader) =
            read_archive(flate2::bufread::GzDecoder::new(member), len, json_limit(len, Compression::Gzip))?;
        match reader.into_inner().len() as u64 {
            0 => {}
            left => return Err(TailError::Between(left)),
        }
        let digest = Digest::of(&json);
        Ok(TailState::Toc { json, toc_offset, digest, compressed_digest: None, kind })
    }

    /// `end` is where the TOC's skippable frame must end.
    fn zstd(&self, manifest: HiddenFrame, end: u64, kind: BlobKind) -> Result<TailState, TailError> {
        let (toc_offset, manifest_end) = self.hidden(manifest)?;
        if manifest_end > end {
            return Err(self.outside(manifest.offset));
        }
        if manifest_end != end {
            return Err(TailError::Between(end - manifest_end));
        }
        let limit = json_limit(manifest.compressed_len, Compression::Zstd);
        if manifest.len > limit || manifest.compressed_len > limit {
            return Err(TailError::TooLarge(limit));
        }
        let Some(skippable) = self.bytes(toc_offset, end) else {
            return Ok(TailState::NeedMore { from: toc_offset });
        };
        let compressed = skippable
            .strip_prefix(&SKIPPABLE_MAGIC)
            .and_then(|rest| rest.split_first_chunk::<4>())
            .filter(|(len, _)| u64::from(u32::from_le_bytes(**len)) == manifest.compressed_len)
            .map(|(_, frame)| frame)
            .ok_or(TailError::NoFrame(toc_offset))?;
        let mut json = Vec::new();
        zstd_reader(compressed)
            .and_then(|reader| reader.take(manifest.len.saturating_add(1)).read_to_end(&mut json))
            .map_err(TailError::Inflate)?;
        if json.len() as u64 != manifest.len {
            return Err(TailError::Length { expected: manifest.len, found: json.len() as u64 });
        }
        let digest = Digest::of(&json);
        Ok(TailState::Toc { json, toc_offset, digest, compressed_digest: Some(Digest::of(compressed)), kind })
    }
}

/// How many bytes of JSON are let through if they take so many compressed.
pub(crate) fn json_limit(compressed: u64, compression: Compression) -> u64 {
    let ratio = if compression == Compression::Zstd { MAX_ZSTD_RATIO } else { MAX_GZIP_RATIO };
    TocLimits::default().json_bytes.min(compressed.saturating_mul(ratio).max(UNCOUNTED))
}

/// The JSON, of `limit` bytes at most, in a tar of one entry that takes `compressed` bytes, and the reader at
/// its end.
fn read_archive<R: Read>(reader: R, compressed: u64, limit: u64) -> Result<(Vec<u8>, R), TailError> {
    let mut archive = Reader::new(reader);
    let unexpected = |entry: Option<crate::archive::Entry>| {
        TailError::Unexpected(entry.map_or_else(|| "nothing".into(), |entry| entry.display_path()))
    };
    let entry = match archive.next_entry()? {
        Some(entry) if is_toc(&entry.path) && entry.kind == EntryKind::Regular => entry,
        other => return Err(unexpected(other)),
    };
    if entry.size > limit {
        return Err(TailError::TooLarge(limit));
    }
    let mut json =
        Vec::with_capacity(usize::try_from(entry.size.min(compressed.saturating_mul(8))).unwrap_or(0));
    archive.data().read_to_end(&mut json).map_err(ArchiveError::from)?;
    match archive.next_entry()? {
        None => {}
        second => return Err(unexpected(second)),
    }
    // To the end of the stream, whose check sum stands there.
    let mut reader = archive.into_inner();
    let trailer = io::copy(&mut (&mut reader).take(MAX_TRAILER + 1), &mut io::sink());
    if trailer.map_err(ArchiveError::from)? > MAX_TRAILER {
        return Err(TailError::Unexpected("more behind its end".into()));
    }
    Ok((json, reader))
}

fn is_toc(path: &[u8]) -> bool {
    path.strip_prefix(b"./").unwrap_or(path) == TOC_NAME.as_bytes()
}

#[cfg(test)]
mod tests;
