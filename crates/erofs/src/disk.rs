//! Records of the format and where they stand. All integers are little-endian.
//!
//! Field numbers and offsets are those of Linux, `fs/erofs/erofs_fs.h`. Each record can be made from its fields and
//! taken apart again; taking apart is strict: what the fields do not say must be as the writer makes it.

mod inode;
mod superblock;

pub(crate) use inode::{FileType, Layout, RawInode, SECOND, decode_device, encode_device};
pub(crate) use superblock::{Superblock, seal, sealed};

/// Bytes of a block, of the image and of the data file.
pub const BLOCK: u64 = 4096;
/// The longest data file that can be addressed: its last block has the number `0xFFFF_FFFE`, the next number means
/// a hole.
pub const MAX_DATA: u64 = 0xFFFF_FFFF * BLOCK;

/// A block as a length.
pub(crate) const BLOCK_LEN: usize = 4096;
/// The unit of inode numbers: an inode at byte 32 × n of the image has number n.
pub(crate) const SLOT: u64 = 32;
/// Bytes of an extended inode.
pub(crate) const INODE: u64 = 64;
/// Bytes of a chunk index.
pub(crate) const INDEX: u64 = 8;
/// The first inode's place, after superblock (128 bytes) and device slot (128).
pub(crate) const FIRST_INODE: u64 = 1280;
/// The device in which file data lies.
pub(crate) const DATA_DEVICE: u16 = 1;
/// The longest name in a directory, and of an extended attribute.
pub(crate) const NAME_MAX: usize = 255;
/// The longest target of a symbolic link: the kernel cuts off longer ones.
pub(crate) const LINK_MAX: usize = 4095;

/// In a file's `i_u`: it has chunk indexes; the lower five bits are the chunk's size.
const CHUNK_INDEXES: u32 = 0x20;
/// The largest chunk is 4096 << 31 bytes.
const CHUNK_BITS_MAX: u32 = 31;

/// A number of bytes as a position. What is too large for this machine is beyond every slice.
pub(crate) fn position(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// Writes `bytes` at `at`. False if there is no room.
#[must_use]
pub(crate) fn put(record: &mut [u8], at: usize, bytes: &[u8]) -> bool {
    let place = at.checked_add(bytes.len()).and_then(|end| record.get_mut(at..end));
    place.map(|place| place.copy_from_slice(bytes)).is_some()
}

/// The `N` bytes at `at`.
pub(crate) fn array<const N: usize>(record: &[u8], at: usize) -> Option<[u8; N]> {
    record.get(at..)?.first_chunk().copied()
}

/// How the content of a file is cut into chunks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Chunks {
    bits: u32,
    /// How many there are.
    pub(crate) count: u64,
}

impl Chunks {
    /// As few as possible, and no larger than they need be. One suffices up to 8 TiB, because a chunk's place needs
    /// only the alignment of a block, and blocks beyond the file's end are never read.
    pub(crate) fn of(size: u64) -> Self {
        let blocks = size.div_ceil(BLOCK).max(1);
        let bits = blocks.next_power_of_two().trailing_zeros().min(CHUNK_BITS_MAX);
        Self { bits, count: blocks.div_ceil(1 << bits) }
    }

    /// The file's `i_u`.
    pub(crate) const fn format(self) -> u32 {
        CHUNK_INDEXES | self.bits
    }

    /// The block where chunk `n` of a file begins that begins at `first_block`.
    pub(crate) const fn block(self, first_block: u64, n: u64) -> u64 {
        first_block + (n << self.bits)
    }

    /// The index that says so: u16 0, u16 device, u32 block.
    pub(crate) fn index(block: u32) -> [u8; 8] {
        (u64::from(DATA_DEVICE) << 16 | u64::from(block) << 32).to_le_bytes()
    }

    /// What an index says: its device and block. `None` if it has bits of 48-bit images.
    pub(crate) fn decode_index(bytes: [u8; 8]) -> Option<(u16, u32)> {
        let [0, 0, device @ .., b0, b1, b2, b3] = bytes else { return None };
        Some((u16::from_le_bytes(device), u32::from_le_bytes([b0, b1, b2, b3])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_chunk_as_small_as_it_can_be() {
        let cases: &[(u64, u32, u64)] = &[
            (1, 0, 1),
            (4095, 0, 1),
            (4096, 0, 1),
            (4097, 1, 1),
            (8192, 1, 1),
            (8193, 2, 1),
            (1 << 32, 20, 1),
            ((1 << 32) + 1, 21, 1),
            (8 << 40, 31, 1),
            ((8 << 40) + 1, 31, 2),
            (MAX_DATA, 31, 2),
        ];
        for &(size, bits, count) in cases {
            assert_eq!(Chunks::of(size), Chunks { bits, count }, "{size}");
        }
        assert_eq!(Chunks::of(5000).format(), 0x21);
        assert_eq!(Chunks::of(MAX_DATA).block(3, 1), (1 << 31) + 3);
    }

    #[test]
    fn an_index_names_the_data_device() {
        assert_eq!(Chunks::index(0x0403_0201), [0, 0, 1, 0, 1, 2, 3, 4]);
        assert_eq!(Chunks::decode_index(Chunks::index(7)), Some((1, 7)));
        assert_eq!(Chunks::decode_index([1, 0, 1, 0, 7, 0, 0, 0]), None);
    }

    #[test]
    fn nothing_is_written_beyond_a_record() {
        let mut record = [0u8; 4];
        assert!(put(&mut record, 2, &[1, 2]));
        assert!(!put(&mut record, 3, &[1, 2]));
        assert!(!put(&mut record, usize::MAX, &[1]));
        assert_eq!(record, [0, 0, 1, 2]);
    }
}
