//! The chunk map on disk.
//!
//! ```text
//! "PANTMAP\0"  u32 version  u32 chunks  u64 inode of the data file  [32] TOC digest  bits  [32] BLAKE3 of all before
//! ```
//!
//! It names the very file that it speaks of. A copy of the folder made while bytes arrived may have a map that
//! promises more than the data beside it holds: it is another file, so the map is not believed.

use content::Digest;

const MAGIC: &[u8; 8] = b"PANTMAP\0";
/// Changes whenever the place of a chunk in the data file does.
const VERSION: u32 = 2;
const HEADER: usize = 8 + 4 + 4 + 8 + 32;
const CHECKSUM: usize = 32;

/// What a map must be about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Subject {
    /// The layer's table of contents.
    pub toc: Digest,
    /// Chunks in it.
    pub chunks: usize,
    /// Inode of the data file.
    pub inode: u64,
}

/// What was found in place of a map.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Found {
    /// The bits, lowest first.
    Bits(Vec<u8>),
    /// Nothing that could be told from noise.
    Nothing,
    /// A whole map about something else.
    Other,
}

impl Subject {
    /// Bytes of a map about this.
    pub fn map_len(&self) -> usize {
        HEADER + self.chunks.div_ceil(8) + CHECKSUM
    }

    fn header(&self) -> Vec<u8> {
        let mut header = Vec::with_capacity(self.map_len());
        header.extend_from_slice(MAGIC);
        header.extend_from_slice(&VERSION.to_le_bytes());
        header.extend_from_slice(&u32::try_from(self.chunks).unwrap_or(u32::MAX).to_le_bytes());
        header.extend_from_slice(&self.inode.to_le_bytes());
        header.extend_from_slice(self.toc.as_bytes());
        header
    }

    /// The map.
    pub fn encode(&self, bits: &[u8]) -> Vec<u8> {
        let mut map = self.header();
        map.extend_from_slice(bits);
        let checksum = blake3::hash(&map);
        map.extend_from_slice(checksum.as_bytes());
        map
    }

    /// Reads a map; `map` may be anything.
    pub fn decode(&self, map: &[u8]) -> Found {
        let whole = map
            .split_last_chunk::<CHECKSUM>()
            .filter(|(body, checksum)| blake3::hash(body).as_bytes() == *checksum);
        let Some((body, _)) = whole else { return Found::Nothing };
        match body.split_at_checked(HEADER) {
            Some((header, bits)) if header == self.header() && map.len() == self.map_len() => {
                Found::Bits(bits.to_vec())
            }
            _ => Found::Other,
        }
    }
}
