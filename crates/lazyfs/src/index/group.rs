//! 64 neighbouring chunks, as they are needed: where each begins in the data file follows from their lengths.

use std::io;

use content::Digest;
use estargz::{Chunk, toc::pack};

use super::head::DIGEST;
use crate::layout::next_start;

/// Chunks that are read together: 500 bytes, and 2 KiB of digests.
pub(super) const GROUP: u32 = 64;

/// Some neighbouring chunks.
#[derive(Clone)]
pub(super) struct Group {
    number: u32,
    /// Without their digests.
    chunks: Box<[Chunk]>,
    starts: Box<[u64]>,
    digests: Option<Box<[u8]>>,
}

impl Group {
    /// Unpacks the `count` chunks of group `number`, the first of which begins at `data_start`.
    pub(super) fn unpack(number: u32, count: u32, data_start: u64, packed: &[u8]) -> io::Result<Self> {
        let chunks = pack::unpack_chunks(packed, count as usize).map_err(io::Error::other)?;
        let mut starts = Vec::with_capacity(chunks.len());
        let mut end = data_start;
        for chunk in &chunks {
            let start = if starts.is_empty() { data_start } else { next_start(chunk, end) };
            starts.push(start);
            end = start.saturating_add(u64::from(chunk.len));
        }
        Ok(Self { number, chunks: chunks.into(), starts: starts.into(), digests: None })
    }

    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// The same with digests.
    pub(super) fn with(&self, digests: Box<[u8]>) -> Self {
        Self { digests: Some(digests), ..self.clone() }
    }

    fn place(&self, number: u32) -> Option<usize> {
        Some(number.checked_sub(self.number.checked_mul(GROUP)?)? as usize)
    }

    /// A chunk, without its digest.
    pub(super) fn chunk(&self, number: u32) -> Option<Chunk> {
        self.chunks.get(self.place(number)?).copied()
    }

    /// Digest of a chunk, if the digests are here.
    pub(super) fn digest(&self, number: u32) -> Option<Digest> {
        let (digests, _) = self.digests.as_ref()?.as_chunks::<DIGEST>();
        digests.get(self.place(number)?).map(|bytes| Digest::from_bytes(*bytes))
    }

    /// Where in the data file a chunk begins.
    pub(super) fn start(&self, number: u32) -> Option<u64> {
        self.starts.get(self.place(number)?).copied()
    }

    /// How many chunks of the layer begin at or before this byte, if it lies in the group or behind it.
    pub(super) fn begun(&self, at: u64) -> u32 {
        let here = self.starts.partition_point(|start| *start <= at);
        self.number.saturating_mul(GROUP).saturating_add(u32::try_from(here).unwrap_or(u32::MAX))
    }

    /// Where the file of a chunk ends, which is `behind` if it goes on to the end of the group.
    pub(super) fn file_end(&self, number: u32, behind: u64) -> Option<u64> {
        let place = self.place(number).filter(|place| *place < self.chunks.len())?;
        let mut end = None;
        for (chunk, start) in self.chunks.iter().zip(&self.starts).skip(place) {
            if chunk.file_offset == 0 && end.is_some() {
                return end;
            }
            end = Some(start.saturating_add(u64::from(chunk.len)));
        }
        Some(behind)
    }
}
