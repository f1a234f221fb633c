//! What a header and its extensions say.

use std::collections::BTreeMap;

use super::display;

/// What an entry is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EntryKind {
    /// A directory.
    Directory,
    /// A regular file.
    Regular,
    /// A symbolic link.
    Symlink,
    /// Another name of an earlier entry.
    Hardlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
}

/// A point of time as `stat` has it: seconds rounded down, so that the fraction is never negative.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub struct Timestamp {
    /// Whole seconds since 1970; negative before that.
    pub seconds: i64,
    /// Nanoseconds after that second, below 1 000 000 000.
    pub nanos: u32,
}

/// An entry of a tar stream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// What it is.
    pub kind: EntryKind,
    /// Its path as it stands in the archive.
    pub path: Vec<u8>,
    /// Target of a symbolic or hard link.
    pub link: Vec<u8>,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time in whole seconds since 1970, rounded down: -1.5 is second -2, as `stat` shows it.
    pub mtime: i64,
    /// Nanoseconds after `mtime`.
    pub mtime_nanos: u32,
    /// Time of last access, if the archive has it.
    pub atime: Option<Timestamp>,
    /// Time of last change of the inode, if the archive has it.
    pub ctime: Option<Timestamp>,
    /// Bytes of content; 0 for everything but regular files. Of a sparse file, holes included.
    pub size: u64,
    /// Name of the owner.
    pub user: Vec<u8>,
    /// Name of the group.
    pub group: Vec<u8>,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Extended attributes: the records `SCHILY.xattr.*`, values as they are.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The header blocks, extensions first, as they stood in the stream; but see `rewritten`.
    pub raw: Vec<u8>,
    /// `raw` is not what stood in the stream but a plain header that says the same: of a sparse file, or of
    /// one with the type "contiguous".
    pub rewritten: bool,
    /// The mode field as it stands: some tools add the bits of the file's type.
    pub header_mode: i64,
    /// The device numbers in the header, also of what is no device.
    pub header_device: (i64, i64),
    /// The size that header or PAX record name, also where it means nothing: some tools write the size of
    /// the target into a hard link.
    pub header_size: u64,
    /// Offset in the stream of the first header block, extensions included.
    pub position: u64,
}

impl Entry {
    /// The path for a message.
    pub fn display_path(&self) -> String {
        display(&self.path)
    }
}
