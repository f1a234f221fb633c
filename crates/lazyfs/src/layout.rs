//! Where each chunk lies in the data file.
//!
//! Files stand one after another in the order of the TOC, which is that of the blob, each at a multiple of
//! 4 KiB, so that a page of a file is a page of the data file. Nothing is ever written into the rest of a file's last
//! page, nor is the data file shorter than that page: EROFS shows the whole of it to whoever maps it into memory.

use content::ByteRange;
use estargz::Chunk;

/// Where files begin, at multiples of it.
pub(crate) const ALIGNMENT: u64 = 4096;

/// Where a chunk begins if the one before it ends at `end`.
pub(crate) fn next_start(chunk: &Chunk, end: u64) -> u64 {
    if chunk.file_offset == 0 { end.checked_next_multiple_of(ALIGNMENT).unwrap_or(u64::MAX) } else { end }
}

/// Places of all chunks, for whoever needs many of them: the index has them one at a time.
pub(crate) struct Layout {
    /// Where chunk `n` begins; ascending.
    starts: Vec<u64>,
    len: u64,
}

impl Layout {
    pub(crate) fn new(chunks: impl Iterator<Item = Chunk>) -> Self {
        let mut starts = Vec::with_capacity(chunks.size_hint().0);
        let mut end = 0u64;
        for chunk in chunks {
            let start = next_start(&chunk, end);
            starts.push(start);
            end = start.saturating_add(u64::from(chunk.len));
        }
        Self { starts, len: end.next_multiple_of(ALIGNMENT) }
    }

    /// Length of the data file.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Where a chunk begins.
    pub(crate) fn start(&self, chunk: u32) -> Option<u64> {
        self.starts.get(chunk as usize).copied()
    }
}

/// The part of `chunk` that lies in `range` of its file, as a range of the chunk's bytes.
pub(crate) fn part_of(chunk: &Chunk, range: ByteRange) -> ByteRange {
    let whole = ByteRange::at(chunk.file_offset, u64::from(chunk.len));
    let part = whole.intersect(&range);
    ByteRange::new(part.start.saturating_sub(whole.start), part.end.saturating_sub(whole.start))
}
