//! The extended inode: 64 bytes, followed by extended attributes, then by chunk indexes or inline data.
//!
//! | offset | field | |
//! |---|---|---|
//! | 0 | format | 1 + 2 × layout |
//! | 2 | size of the extended attributes, in units | |
//! | 4, 8 | mode with type, size | |
//! | 16 | block, device number or chunk format | by type |
//! | 20 | running number | for 32-bit programs |
//! | 24, 28 | owner, group | |
//! | 32, 40 | modification time, nanoseconds | less than a second: more would be carried over silently |
//! | 44 | number of names | |

use super::{array, put};
use crate::tree::Kind;

const LEN: usize = 64;
/// Nanoseconds.
pub(crate) const SECOND: u32 = 1_000_000_000;

/// Where the content is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Layout {
    /// In blocks of the image, or nowhere.
    Plain,
    /// The last, partial block behind the inode, whole ones before it in blocks of the image.
    Inline,
    /// In chunks of the data device.
    Chunks,
}

impl Layout {
    const fn format(self) -> u16 {
        1 | match self {
            Self::Plain => 0,
            Self::Inline => 2,
            Self::Chunks => 4,
        } << 1
    }
}

/// What an inode is, as directories and modes say it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum FileType {
    Regular = 1,
    Directory = 2,
    CharDevice = 3,
    BlockDevice = 4,
    Fifo = 5,
    Socket = 6,
    Symlink = 7,
}

impl FileType {
    pub(crate) const ALL: [Self; 7] = [
        Self::Regular,
        Self::Directory,
        Self::CharDevice,
        Self::BlockDevice,
        Self::Fifo,
        Self::Socket,
        Self::Symlink,
    ];

    pub(crate) const fn of(kind: &Kind<'_>) -> Self {
        match kind {
            Kind::Directory => Self::Directory,
            Kind::Regular { .. } => Self::Regular,
            Kind::Symlink(_) => Self::Symlink,
            Kind::CharDevice(..) => Self::CharDevice,
            Kind::BlockDevice(..) => Self::BlockDevice,
            Kind::Fifo => Self::Fifo,
            Kind::Socket => Self::Socket,
        }
    }

    /// The type's bits of `st_mode`.
    pub(crate) const fn mode(self) -> u16 {
        match self {
            Self::Fifo => 0o010_000,
            Self::CharDevice => 0o020_000,
            Self::Directory => 0o040_000,
            Self::BlockDevice => 0o060_000,
            Self::Regular => 0o100_000,
            Self::Symlink => 0o120_000,
            Self::Socket => 0o140_000,
        }
    }

    pub(crate) fn from_mode(mode: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.mode() == mode & 0o170_000)
    }
}

/// Linux's 32-bit form of a device number; `None` if it has none.
pub(crate) fn encode_device(major: u32, minor: u32) -> Option<u32> {
    (major < 1 << 12 && minor < 1 << 20).then_some((minor & 0xFF) | major << 8 | (minor & !0xFF) << 12)
}

/// Major and minor number.
pub(crate) const fn decode_device(device: u32) -> (u32, u32) {
    (device >> 8 & 0xFFF, device & 0xFF | device >> 12 & 0xF_FF00)
}

/// The fields of an inode that are not the same in all of ours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RawInode {
    pub(crate) layout: Layout,
    /// Units of extended attributes, see [`crate::xattr`].
    pub(crate) xattr_units: u16,
    /// Type and permissions.
    pub(crate) mode: u16,
    pub(crate) size: u64,
    /// Block, device or chunk format.
    pub(crate) union: u32,
    /// Running number.
    pub(crate) number: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: i64,
    pub(crate) mtime_nanos: u32,
    pub(crate) links: u32,
}

impl RawInode {
    pub(crate) fn encode(&self) -> [u8; LEN] {
        let mut record = [0; LEN];
        let fields: [(usize, &[u8]); 11] = [
            (0, &self.layout.format().to_le_bytes()),
            (2, &self.xattr_units.to_le_bytes()),
            (4, &self.mode.to_le_bytes()),
            (8, &self.size.to_le_bytes()),
            (16, &self.union.to_le_bytes()),
            (20, &self.number.to_le_bytes()),
            (24, &self.uid.to_le_bytes()),
            (28, &self.gid.to_le_bytes()),
            (32, &self.mtime.to_le_bytes()),
            (40, &self.mtime_nanos.to_le_bytes()),
            (44, &self.links.to_le_bytes()),
        ];
        for (at, bytes) in fields {
            let fits = put(&mut record, at, bytes);
            debug_assert!(fits);
        }
        record
    }

    /// `None` if a byte is not as this crate writes it.
    pub(crate) fn decode(record: &[u8; LEN]) -> Option<Self> {
        let word = |at| array(record, at).map(u16::from_le_bytes);
        let long = |at| array(record, at).map(u32::from_le_bytes);
        let layout = [Layout::Plain, Layout::Inline, Layout::Chunks]
            .into_iter()
            .find(|layout| Some(layout.format()) == word(0))?;
        let found = Self {
            layout,
            xattr_units: word(2)?,
            mode: word(4)?,
            size: array(record, 8).map(u64::from_le_bytes)?,
            union: long(16)?,
            number: long(20)?,
            uid: long(24)?,
            gid: long(28)?,
            mtime: array(record, 32).map(i64::from_le_bytes)?,
            mtime_nanos: long(40).filter(|nanos| *nanos < SECOND)?,
            links: long(44)?,
        };
        (found.encode() == *record).then_some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_stand_where_the_kernel_reads_them() {
        let inode = RawInode {
            layout: Layout::Chunks,
            xattr_units: 0x0102,
            mode: 0o104_755,
            size: 0x1122_3344_5566,
            union: 0x21,
            number: 5,
            uid: u32::MAX - 1,
            gid: 7,
            mtime: -5,
            mtime_nanos: 7,
            links: 2,
        };
        let record = inode.encode();
        let expected = [
            &[9, 0, 2, 1, 0xED, 0x89, 0, 0][..],
            &[0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0, 0],
            &[0x21, 0, 0, 0, 5, 0, 0, 0, 0xFE, 0xFF, 0xFF, 0xFF, 7, 0, 0, 0],
            &[0xFB, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 7, 0, 0, 0, 2, 0, 0, 0],
            &[0; 16],
        ];
        assert_eq!(record[..], expected.concat());
        assert_eq!(RawInode::decode(&record), Some(inode));
    }

    #[test]
    fn bytes_without_meaning_are_refused() {
        let inode = RawInode {
            layout: Layout::Plain,
            xattr_units: 0,
            mode: 0o010_000,
            size: 0,
            union: 0,
            number: 1,
            uid: 0,
            gid: 0,
            mtime: 0,
            mtime_nanos: 0,
            links: 1,
        };
        for at in (0..2).chain(6..8).chain(43..44).chain(48..64) {
            let mut record = inode.encode();
            record[at] ^= 0x80;
            assert_eq!(RawInode::decode(&record), None, "byte {at}");
        }
    }

    #[test]
    fn devices_and_types() {
        assert_eq!(encode_device(0, 0), Some(0));
        assert_eq!(encode_device(8, 1), Some(0x801));
        assert_eq!(encode_device(0xABC, 0xF_EDCB), Some(0xFEDA_BCCB));
        for device in [(0, 0), (1, 3), (4095, 1_048_575), (259, 256)] {
            assert_eq!(encode_device(device.0, device.1).map(decode_device), Some(device));
        }
        assert_eq!(encode_device(4096, 0), None);
        assert_eq!(encode_device(0, 1 << 20), None);
        for kind in FileType::ALL {
            assert_eq!(FileType::from_mode(kind.mode() | 0o7777), Some(kind));
        }
        assert_eq!(FileType::from_mode(0o7777), None);
        assert_eq!(FileType::from_mode(0o160_000), None);
    }
}
