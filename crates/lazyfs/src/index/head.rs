//! The head of an index: all that is in memory of a layer that nobody reads.
//!
//! ```text
//! "PANTIDX\0"  u32 version  u32 bytes of the head
//! [32] TOC digest  [32] layer digest  u64 blob_len  u64 toc_offset  u64 data_len  u64 file_bytes
//! u32 chunks  u32 kind of landmark  u64 landmark
//! u64 tree_at  u64 tree_len  [32] BLAKE3 of the tree
//! u32 runs of zeros  u32 lines  { u32 first chunk of zeros  u32 after the last }…
//! { u64 data_start  u64 file_end  u64 bytes  u32 at  [8] hash of chunks  [8] hash of digests }…   one for each 64 chunks
//! [32] BLAKE3 of the head so far
//! ```
//!
//! A hash of 8 bytes is the beginning of the BLAKE3. It stands against accidents: whoever can write here can write the
//! data as well.

use std::io;
use std::ops::Range;

use content::Digest;
use estargz::{Landmark, Toc, toc::pack::Facts};

use super::group::{GROUP, Group};
use super::{About, malformed};

pub(super) const MAGIC: &[u8; 8] = b"PANTIDX\0";
/// Changes whenever this file does, or what [`estargz::toc::pack`] packs, or the place of a chunk in the data file, or
/// what the parser makes of a table.
pub(super) const VERSION: u32 = 1;
/// What stands before the runs and lines.
const FIXED: usize = 8 + 4 + 4 + 32 + 32 + 4 * 8 + 4 + 4 + 8 + 8 + 8 + 32 + 4 + 4;
const LINE: usize = 8 + 8 + 8 + 4 + 8 + 8;
const HASH: usize = 32;
/// Read at once: the head of a layer of 90,000 chunks.
const FIRST: usize = 64 * 1024;
pub(super) const DIGEST: usize = 32;

/// The beginning of a BLAKE3.
pub(super) type Short = [u8; 8];

pub(super) fn short(bytes: &[u8]) -> Short {
    blake3::hash(bytes).as_bytes().first_chunk().copied().unwrap_or_default()
}

/// What is in memory of each 64 chunks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Line {
    /// Where in the data file the first of them begins.
    pub(super) data_start: u64,
    /// Where in the data file the file of the last of them ends.
    pub(super) file_end: u64,
    /// Bytes of all chunks before them.
    pub(super) bytes: u64,
    /// Where in the index they stand.
    pub(super) at: u32,
    pub(super) chunks: Short,
    pub(super) digests: Short,
}

/// The head.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Head {
    pub(super) about: About,
    pub(super) facts: Facts,
    pub(super) data_len: u64,
    pub(super) tree: Range<u64>,
    pub(super) tree_hash: [u8; HASH],
    pub(super) zeros: Box<[Range<u32>]>,
    pub(super) lines: Box<[Line]>,
}

impl Head {
    /// Bytes that it takes.
    pub(super) const fn len(zeros: usize, lines: usize) -> usize {
        FIXED + zeros * 8 + lines * LINE + HASH
    }

    pub(super) fn to_bytes(&self) -> io::Result<Vec<u8>> {
        let len = Self::len(self.zeros.len(), self.lines.len());
        let small = |number: usize| u32::try_from(number).map_err(|_| malformed("the layer is too large"));
        let mut out = Vec::with_capacity(len);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&small(len)?.to_le_bytes());
        out.extend_from_slice(self.facts.digest.as_bytes());
        out.extend_from_slice(self.about.layer.as_bytes());
        for number in [self.about.blob_len, self.about.toc_offset, self.data_len, self.facts.file_bytes] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        let (kind, landmark) = match self.facts.landmark {
            Landmark::Absent => (0_u32, 0),
            Landmark::NoPrefetch => (1, 0),
            Landmark::Prefetch(end) => (2, end),
        };
        out.extend_from_slice(&self.facts.chunk_count.to_le_bytes());
        out.extend_from_slice(&kind.to_le_bytes());
        for number in [landmark, self.tree.start, self.tree.end.saturating_sub(self.tree.start)] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&self.tree_hash);
        out.extend_from_slice(&small(self.zeros.len())?.to_le_bytes());
        out.extend_from_slice(&small(self.lines.len())?.to_le_bytes());
        for run in &self.zeros {
            out.extend_from_slice(&run.start.to_le_bytes());
            out.extend_from_slice(&run.end.to_le_bytes());
        }
        for line in &self.lines {
            for number in [line.data_start, line.file_end, line.bytes] {
                out.extend_from_slice(&number.to_le_bytes());
            }
            out.extend_from_slice(&line.at.to_le_bytes());
            out.extend_from_slice(&line.chunks);
            out.extend_from_slice(&line.digests);
        }
        let hash = blake3::hash(&out);
        out.extend_from_slice(hash.as_bytes());
        Ok(out)
    }

    /// Reads the head of an index of `file_len` bytes.
    pub(super) fn read(read: impl Fn(u64, usize) -> io::Result<Vec<u8>>, file_len: u64) -> io::Result<Self> {
        let all = usize::try_from(file_len).unwrap_or(usize::MAX);
        let mut bytes = read(0, FIRST.min(all))?;
        let mut input = Input(&bytes);
        if input.array()? != *MAGIC {
            return Err(malformed("it is no index"));
        }
        if input.u32()? != VERSION {
            return Err(malformed("it is of another version"));
        }
        let len = input.u32()? as usize;
        if len > all || len < FIXED + HASH {
            return Err(malformed("its head is cut off"));
        }
        if len > bytes.len() {
            bytes = read(0, len)?;
        }
        let (body, hash) = bytes
            .get(..len)
            .and_then(<[u8]>::split_last_chunk::<HASH>)
            .ok_or_else(|| malformed("its head is cut off"))?;
        if blake3::hash(body).as_bytes() != hash {
            return Err(malformed("the checksum of its head is wrong"));
        }
        let head = Self::parse(Input(body.get(16..).unwrap_or_default()))?;
        if Self::len(head.zeros.len(), head.lines.len()) != len || head.tree.end != file_len {
            return Err(malformed("its length is wrong"));
        }
        Ok(head)
    }

    fn parse(mut input: Input<'_>) -> io::Result<Self> {
        let (digest, layer) = (input.digest()?, input.digest()?);
        let (blob_len, toc_offset) = (input.u64()?, input.u64()?);
        let (data_len, file_bytes) = (input.u64()?, input.u64()?);
        let (chunk_count, kind, end) = (input.u32()?, input.u32()?, input.u64()?);
        let landmark = match kind {
            0 => Landmark::Absent,
            1 => Landmark::NoPrefetch,
            2 => Landmark::Prefetch(end),
            _ => return Err(malformed("its landmark is unknown")),
        };
        let (tree_at, tree_len, tree_hash) = (input.u64()?, input.u64()?, input.array()?);
        let tree = tree_at..tree_at.checked_add(tree_len).ok_or_else(|| malformed("its tree is nowhere"))?;
        let (zeros, lines) = (input.u32()? as usize, input.u32()? as usize);
        if input.0.len() != zeros.saturating_mul(8).saturating_add(lines.saturating_mul(LINE))
            || lines != chunk_count.div_ceil(GROUP) as usize
        {
            return Err(malformed("its head has another length"));
        }
        let zeros = (0..zeros).map(|_| Ok(input.u32()?..input.u32()?)).collect::<io::Result<_>>()?;
        let mut line = || {
            Ok(Line {
                data_start: input.u64()?,
                file_end: input.u64()?,
                bytes: input.u64()?,
                at: input.u32()?,
                chunks: input.array()?,
                digests: input.array()?,
            })
        };
        let lines = (0..lines).map(|_| line()).collect::<io::Result<_>>()?;
        Ok(Self {
            about: About { layer, blob_len, toc_offset },
            facts: Facts { digest, payload_end: toc_offset, landmark, file_bytes, chunk_count },
            data_len,
            tree,
            tree_hash,
            zeros,
            lines,
        })
    }

    pub(super) fn group_count(&self) -> u32 {
        self.facts.chunk_count.div_ceil(GROUP)
    }

    /// Bytes of files in the chunks of a group.
    pub(super) fn bytes_of_group(&self, number: u32) -> u64 {
        let line = |number: u32| self.lines.get(number as usize).map(|line| line.bytes);
        let next = number.checked_add(1).and_then(line).unwrap_or(self.facts.file_bytes);
        line(number).map_or(0, |bytes| next.saturating_sub(bytes))
    }

    /// Chunks in a group: 64, but in the last.
    fn chunks_of_group(&self, number: u32) -> u32 {
        self.facts.chunk_count.saturating_sub(number.saturating_mul(GROUP)).min(GROUP)
    }

    /// Where the digests begin: before the tree, behind the chunks.
    fn digests_at(&self) -> u64 {
        self.tree.start.saturating_sub(u64::from(self.facts.chunk_count) * DIGEST as u64)
    }

    /// Reads the chunks of a group.
    pub(super) fn group(
        &self,
        number: u32,
        read: impl Fn(u64, usize) -> io::Result<Vec<u8>>,
    ) -> io::Result<Group> {
        let line = self.lines.get(number as usize).ok_or_else(|| malformed("there is no such group"))?;
        let next = number.checked_add(1).and_then(|next| self.lines.get(next as usize));
        let end = next.map_or(self.digests_at(), |next| u64::from(next.at));
        let len = end.checked_sub(u64::from(line.at)).and_then(|len| usize::try_from(len).ok());
        // Six numbers of ten bytes each for a chunk, at the most.
        let len =
            len.filter(|len| *len <= GROUP as usize * 60).ok_or_else(|| malformed("a group is too long"))?;
        let packed = read(u64::from(line.at), len)?;
        if short(&packed) != line.chunks {
            return Err(malformed("the checksum of chunks is wrong"));
        }
        Group::unpack(number, self.chunks_of_group(number), line.data_start, &packed)
    }

    /// Reads the digests of the chunks of a group.
    pub(super) fn digests(
        &self,
        number: u32,
        read: impl Fn(u64, usize) -> io::Result<Vec<u8>>,
    ) -> io::Result<Box<[u8]>> {
        let line = self.lines.get(number as usize).ok_or_else(|| malformed("there is no such group"))?;
        let at = self.digests_at() + u64::from(number) * u64::from(GROUP) * DIGEST as u64;
        let digests = read(at, self.chunks_of_group(number) as usize * DIGEST)?;
        if short(&digests) != line.digests {
            return Err(malformed("the checksum of digests is wrong"));
        }
        Ok(digests.into())
    }

    /// Reads the tree.
    pub(super) fn tree(&self, read: impl Fn(u64, usize) -> io::Result<Vec<u8>>) -> io::Result<Toc> {
        let len = usize::try_from(self.tree.end.saturating_sub(self.tree.start)).unwrap_or(usize::MAX);
        let packed = read(self.tree.start, len)?;
        if *blake3::hash(&packed).as_bytes() != self.tree_hash {
            return Err(malformed("the checksum of the tree is wrong"));
        }
        Toc::unpack_tree(&packed, &self.facts).map_err(io::Error::other)
    }
}

/// The same bytes with a head whose own checksum is right, as far as they are a head.
pub(super) fn reseal(all: &[u8]) -> Vec<u8> {
    let mut all = all.to_vec();
    let len =
        all.get(12..16).and_then(|len| len.first_chunk()).map_or(0, |len| u32::from_le_bytes(*len) as usize);
    if let Some((body, hash)) = all.get_mut(..len).and_then(<[u8]>::split_last_chunk_mut::<HASH>) {
        *hash = *blake3::hash(body).as_bytes();
    }
    all
}

/// Bytes of the head that are not read yet.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk().ok_or_else(|| malformed("its head is cut off"))?;
        self.0 = rest;
        Ok(*array)
    }

    fn u32(&mut self) -> io::Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> io::Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn digest(&mut self) -> io::Result<Digest> {
        self.array().map(Digest::from_bytes)
    }
}
