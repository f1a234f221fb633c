//! The superblock, the slot of the data device behind it, and the checksum over both.
//!
//! | offset | field | |
//! |---|---|---|
//! | 0, 4 | magic, checksum | |
//! | 8 | compatible features | 1 checksum, 2 times are modification times |
//! | 12 | log2 of the block's size | 12 |
//! | 14 | number of the root's inode, 16 bit | |
//! | 16, 36 | inodes, blocks | for `statfs` |
//! | 40 | block that inode numbers count from | 0 |
//! | 44 | block of the shared extended attributes | 0: none |
//! | 48 | UUID | |
//! | 80 | incompatible features | 4 chunks, 8 devices |
//! | 86, 88 | number of devices, first slot's offset / 128 | 1, 9 |
//! | 128 + 64 | blocks of the data file | |
//! | 128 + 68 | its address in the flat space of all devices | after the image |
//!
//! Addresses of ours name their device, so the flat address is never used. It stands after the image, so that a mount
//! without `device=` ends in an error and not in the image's own bytes shown as a file's.

use super::{BLOCK_LEN, array, put};
use crate::crc32c::checksum;

const AT: usize = 1024;
const LEN: usize = 256;
const MAGIC: u32 = 0xE0F5_E1E2;
const CHECKSUM: usize = 4;
const COMPATIBLE: u32 = 3;
const INCOMPATIBLE: u32 = 0xC;
const BLOCK_BITS: u8 = 12;
const DEVICES: u16 = 1;
const DEVICE_SLOT: u16 = 9;

/// Superblock and device slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Superblock {
    pub(crate) root: u16,
    pub(crate) inodes: u64,
    /// Blocks of the image.
    pub(crate) blocks: u32,
    /// First block of the shared extended attributes, 0 if there are none.
    pub(crate) xattr_block: u32,
    pub(crate) uuid: [u8; 16],
    /// Blocks of the data file.
    pub(crate) data_blocks: u32,
}

impl Superblock {
    fn encode(&self) -> [u8; LEN] {
        let mut record = [0; LEN];
        let fields: [(usize, &[u8]); 13] = [
            (0, &MAGIC.to_le_bytes()),
            (8, &COMPATIBLE.to_le_bytes()),
            (12, &[BLOCK_BITS]),
            (14, &self.root.to_le_bytes()),
            (16, &self.inodes.to_le_bytes()),
            (36, &self.blocks.to_le_bytes()),
            (44, &self.xattr_block.to_le_bytes()),
            (48, &self.uuid),
            (80, &INCOMPATIBLE.to_le_bytes()),
            (86, &DEVICES.to_le_bytes()),
            (88, &DEVICE_SLOT.to_le_bytes()),
            (192, &self.data_blocks.to_le_bytes()),
            (196, &self.blocks.to_le_bytes()),
        ];
        for (at, bytes) in fields {
            let fits = put(&mut record, at, bytes);
            debug_assert!(fits);
        }
        record
    }

    /// Reads the superblock of an image. The error is the offset in the image of the first byte that this crate
    /// does not write.
    pub(crate) fn decode(image: &[u8]) -> Result<Self, usize> {
        let record: [u8; LEN] = array(image, AT).ok_or(image.len())?;
        let field = |at| array(&record, at).map_or(0, u32::from_le_bytes);
        let found = Self {
            root: array(&record, 14).map_or(0, u16::from_le_bytes),
            inodes: array(&record, 16).map_or(0, u64::from_le_bytes),
            blocks: field(36),
            xattr_block: field(44),
            uuid: array(&record, 48).unwrap_or_default(),
            data_blocks: field(192),
        };
        let mut ours = found.encode();
        let sum = array::<4>(&record, CHECKSUM).unwrap_or_default();
        let _ = put(&mut ours, CHECKSUM, &sum);
        let difference = ours.iter().zip(&record).position(|(ours, theirs)| ours != theirs);
        difference.map_or(Ok(found), |at| Err(AT + at))
    }
}

/// Checksum of block 0 as it is, if its field were zero.
fn sum(image: &[u8]) -> Option<u32> {
    let mut block: [u8; BLOCK_LEN - AT] = array(image, AT)?;
    let _ = put(&mut block, CHECKSUM, &[0; 4]);
    Some(checksum(&block))
}

/// Puts superblock, slot and checksum into an image whose block 0 is complete besides. False if there is no block 0.
#[must_use]
pub(crate) fn seal(image: &mut [u8], superblock: &Superblock) -> bool {
    put(image, AT, &superblock.encode())
        && sum(image).is_some_and(|sum| put(image, AT + CHECKSUM, &sum.to_le_bytes()))
}

/// Whether the checksum is right.
pub(crate) fn sealed(image: &[u8]) -> bool {
    array(image, AT + CHECKSUM).map(u32::from_le_bytes).is_some_and(|have| Some(have) == sum(image))
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: Superblock = Superblock {
        root: 40,
        inodes: 3,
        blocks: 2,
        xattr_block: 1,
        uuid: *b"0123456789abcdef",
        data_blocks: u32::MAX,
    };

    #[test]
    fn fields_stand_where_the_kernel_reads_them() {
        let record = EXAMPLE.encode();
        assert_eq!(record[0..4], [0xE2, 0xE1, 0xF5, 0xE0]);
        assert_eq!(record[8..16], [3, 0, 0, 0, 12, 0, 40, 0]);
        assert_eq!(record[16..24], [3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(record[24..48], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(record[48..64], EXAMPLE.uuid);
        assert_eq!(record[80..92], [12, 0, 0, 0, 0, 0, 1, 0, 9, 0, 0, 0]);
        assert_eq!(record[192..204], [255, 255, 255, 255, 2, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn it_is_read_back_and_every_other_byte_is_refused() {
        let mut image = vec![0; BLOCK_LEN];
        assert!(seal(&mut image, &EXAMPLE));
        assert_eq!(Superblock::decode(&image), Ok(EXAMPLE));
        assert!(sealed(&image));
        let is_field = |at: usize| matches!(at, 4..8 | 14..24 | 44..64 | 192..196);
        for at in 0..LEN {
            image[AT + at] ^= 0x80;
            assert!(!sealed(&image), "byte {at}");
            let refused = Superblock::decode(&image) == Err(AT + at);
            // The number of blocks stands in two places that must agree.
            assert!(refused != is_field(at) || (36..40).contains(&at), "byte {at}");
            image[AT + at] ^= 0x80;
        }
        assert_eq!(Superblock::decode(&image[..AT + LEN - 1]), Err(AT + LEN - 1));
        assert!(!sealed(&image[..BLOCK_LEN - 1]) && !seal(&mut image[..BLOCK_LEN - 1], &EXAMPLE));
    }

    #[test]
    fn the_rest_of_the_block_is_under_the_checksum() {
        let mut image = vec![0; 2 * BLOCK_LEN];
        assert!(seal(&mut image, &EXAMPLE));
        for (at, under) in [(0, false), (1023, false), (1024, true), (4095, true), (4096, false)] {
            image[at] ^= 1;
            assert_eq!(sealed(&image), !under, "byte {at}");
            image[at] ^= 1;
        }
    }
}
