//! zstd:chunked as containers/storage (podman, buildah, skopeo) writes and reads it.
//!
//! ```text
//! frame: headers of everything before the first content, and the first file's
//! frames: the file's chunks, a frame each
//! frame: its padding, and headers up to the next content
//! ...
//! skippable frame: TOC, compact JSON
//! skippable frame: tar-split data
//! skippable frame: footer
//! ```
//!
//! The tar is kept byte for byte: the layer has the diffID that it had, and there are no landmarks. The TOC
//! says of each entry what Go's tar reader says of its headers, times with their fractions included, for a
//! client compares it with the headers in the tar-split data and refuses the layer if anything differs. What
//! would make it refuse is refused here.
//!
//! [`chunker`] decides where a file is cut, [`index`] writes TOC and tar-split data.

use std::collections::HashSet;
use std::io::{Read, Write};

use content::Digest;

use super::codec::Codec;
use super::cut::{HEADER_RUN, clean, failure};
use super::finish::{check_ratio, put, skippable};
use super::pipeline::{self, Feeder, Written};
use super::recorder::Recorder;
use super::room::Room;
use super::{BuildError, Built, BuiltToc, DescribeProblem, Options, tar_split};
use crate::TOC_NAME;
use crate::archive::{ArchiveError, BLOCK, Entry, EntryKind, Reader, padding};
use crate::footer::{Footer, HiddenFrame, SKIPPABLE_HEADER};
use crate::toc::{Toc, TocError, TocLimits};

mod chunker;
mod head;
mod index;

use chunker::Chunker;
use index::{Mark, PodmanIndex};

/// The kind of TOC that annotation and footer name: there is one.
const MANIFEST_TYPE: u64 = 1;

/// Why containers/storage would not take an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PodmanProblem {
    /// It finds files by their path when it puts the tar together.
    #[error("another entry has this path, which the zstd:chunked format of podman cannot hold")]
    Duplicate,
    /// It takes a global PAX header for an entry.
    #[error("it has a global PAX header, which the zstd:chunked format of podman cannot hold")]
    GlobalHeader,
    /// It would look for content where there is none.
    #[error("it has a size but no content, which the zstd:chunked format of podman cannot hold")]
    SizeWithoutContent,
    /// RFC 3339 ends with year 9999.
    #[error("one of its times is before year 0 or after 9999, which a table of contents cannot hold")]
    Time,
    /// The tar ends within its padding, or is followed by bytes that are no padding.
    #[error(
        "what stands behind this last entry is no end of a tar, which the zstd:chunked format of podman cannot hold"
    )]
    Trailer,
}

/// Builds a layer.
pub(super) fn build<W: Write + Send>(tar: impl Read, out: W, options: &Options) -> Result<Built, BuildError> {
    let codec = options.codec()?;
    let (written, ()) = pipeline::run(out, PodmanIndex::new(codec), options.plan(codec), |feeder| {
        Cutter {
            feeder,
            chunker: Chunker::new(options.chunk_len()),
            paths: HashSet::new(),
            behind_payload: false,
            room: Room::default(),
            split_len: 0,
        }
        .cut(tar)
    })?;
    finish(written, codec)
}

struct Cutter<'a> {
    feeder: &'a mut Feeder<Mark>,
    chunker: Chunker,
    /// Clean paths so far.
    paths: HashSet<Vec<u8>>,
    /// The section holds a chunk: what follows must not share its frame.
    behind_payload: bool,
    room: Room,
    /// Bytes that the segments so far take in the tar-split data.
    split_len: u64,
}

impl Cutter<'_> {
    /// Sends everything in `tar` on its way.
    fn cut(&mut self, tar: impl Read) -> Result<(), BuildError> {
        let recorder = Recorder::new(tar);
        let mut archive = Reader::new(&recorder);
        let mut last = None;
        while let Some(entry) = archive.next_entry()? {
            let problem = |problem| failure(&entry, problem);
            self.check(&entry)?;
            let head = head::render(&entry).map_err(problem)?;
            self.segment(recorder.take())?;
            recorder.pause(|| self.content(&entry, head, &mut archive.data()))?;
            last = Some(entry);
        }
        drop(archive);
        self.trailer(&recorder, last.as_ref())
    }

    /// Refuses what containers/storage would refuse.
    fn check(&mut self, entry: &Entry) -> Result<(), BuildError> {
        let path = clean(entry)?;
        let is_global = entry.raw.get(GLOBAL_AT) == Some(&b'g');
        let problem = if entry.rewritten {
            DescribeProblem::Sparse
        } else if path == TOC_NAME.as_bytes() {
            DescribeProblem::HasToc
        } else if !self.paths.insert(path) {
            PodmanProblem::Duplicate.into()
        } else if is_global {
            PodmanProblem::GlobalHeader.into()
        } else if entry.kind != EntryKind::Regular && entry.header_size > 0 {
            PodmanProblem::SizeWithoutContent.into()
        } else {
            return Ok(());
        };
        Err(failure(entry, problem))
    }

    /// Bytes between contents.
    fn segment(&mut self, bytes: Vec<u8>) -> Result<(), BuildError> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.split_len = self.split_len.saturating_add(bytes.len().saturating_mul(4) as u64 / 3);
        if self.split_len > tar_split::MAX_LEN {
            return Err(TocError::TooLarge { what: "bytes of headers", limit: tar_split::MAX_LEN }.into());
        }
        if self.behind_payload || self.feeder.beyond_payload() > HEADER_RUN {
            self.feeder.begin(false)?;
            self.behind_payload = false;
        }
        self.feeder.append(&bytes)?;
        self.feeder.mark(Mark::Segment(bytes))
    }

    /// An entry's content, or that it has none.
    fn content(&mut self, entry: &Entry, head: head::Head, data: &mut impl Read) -> Result<(), BuildError> {
        self.room.take_bytes(head.json.len())?;
        if entry.size == 0 {
            return self.feeder.mark(Mark::Entry(head));
        }
        let mut head = Some(head);
        let mut left = entry.size;
        self.chunker.reset();
        while let Some(piece) = self.chunker.next(data).map_err(ArchiveError::from)? {
            let len = piece.bytes.len();
            left = left.saturating_sub(len as u64);
            if head.is_none() {
                self.room.take_bytes(entry.path.len())?;
            }
            self.feeder.payload(&mut &*piece.bytes, len, false)?;
            self.feeder.mark(Mark::Chunk {
                head: head.take(),
                is_hole: piece.is_hole,
                is_last: left == 0,
            })?;
        }
        self.behind_payload = true;
        Ok(())
    }

    /// What stands behind the last entry. The first part of it is one segment, in which a client skips the
    /// padding and looks for the end marker; it must find nothing else there, nor in any segment behind it.
    fn trailer<R: Read>(&mut self, recorder: &Recorder<R>, last: Option<&Entry>) -> Result<(), BuildError> {
        let refuse = || match last {
            Some(entry) => failure(entry, PodmanProblem::Trailer.into()),
            None => ArchiveError::EndMarker(String::new()).into(),
        };
        let mut expected = last.map_or(0, |entry| usize::try_from(padding(entry.size)).unwrap_or(0));
        loop {
            let more = recorder.read_on(HEADER_RUN).map_err(ArchiveError::from)?;
            let bytes = recorder.take();
            if !bytes.is_empty() {
                let rest = bytes.get(expected..).ok_or_else(refuse)?;
                let marker = rest.iter().take(2 * BLOCK).all(|byte| *byte == 0);
                if !marker || !rest.len().is_multiple_of(BLOCK) {
                    return Err(refuse());
                }
                expected = 0;
                self.segment(bytes)?;
            }
            if more == 0 {
                return Ok(());
            }
        }
    }
}

/// Where the type of the first header block stands.
const GLOBAL_AT: usize = 156;

/// Writes TOC, tar-split data and footer.
fn finish<W: Write>(written: Written<W, PodmanIndex>, codec: Codec) -> Result<Built, BuildError> {
    let Written { mut out, index, diff } = written;
    let payload_end = out.position();
    let index = index.finish().map_err(BuildError::Output)?;
    // By the very code that readers use: what was built can be mounted.
    let toc_digest = Toc::parse(&index.json, payload_end, &TocLimits::default())?.digest();
    let mut compressed = super::buffer::Buffer::default();
    codec
        .compressor()
        .and_then(|mut compressor| compressor.compress(&index.json, &mut compressed))
        .map_err(BuildError::Output)?;
    check_ratio(&index.json, compressed.bytes())?;
    let hidden = |offset, frame: &[u8], len| HiddenFrame {
        offset: offset + SKIPPABLE_HEADER as u64,
        compressed_len: frame.len() as u64,
        len,
    };
    let manifest = hidden(payload_end, compressed.bytes(), index.json.len() as u64);
    skippable(&mut out, compressed.bytes())?;
    let tar_split = hidden(out.position(), &index.tar_split, index.tar_split_len);
    skippable(&mut out, &index.tar_split)?;
    put(&mut out, &[&Footer::ZstdChunkedPodman { manifest, tar_split }.to_bytes()])?;
    out.flush().map_err(BuildError::Output)?;
    let (digest, size) = out.finish();
    let (diff_id, uncompressed_size) = diff.finish();
    Ok(Built {
        digest,
        size,
        diff_id,
        toc_digest,
        uncompressed_size,
        entries: index.entries,
        chunks: index.chunks,
        payload_end,
        toc: BuiltToc::Zstd {
            manifest_checksum: Digest::of(compressed.bytes()),
            manifest_position: [manifest.offset, manifest.compressed_len, manifest.len, MANIFEST_TYPE],
            tar_split_position: Some([tar_split.offset, tar_split.compressed_len, tar_split.len]),
            tar_split_checksum: None,
        },
    })
}

#[cfg(test)]
mod tests;
