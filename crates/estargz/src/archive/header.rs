//! One 512-byte tar header, and the entry that it and its extensions describe.

use std::collections::BTreeMap;
use std::ops::Range;

use super::{ArchiveError, BLOCK, display, pax::Pax};

const NAME: Range<usize> = 0..100;
const MODE: Range<usize> = 100..108;
const UID: Range<usize> = 108..116;
const GID: Range<usize> = 116..124;
const SIZE: Range<usize> = 124..136;
const MTIME: Range<usize> = 136..148;
const CHECKSUM: Range<usize> = 148..156;
const TYPE: usize = 156;
const LINK: Range<usize> = 157..257;
const MAGIC: Range<usize> = 257..263;
const USER: Range<usize> = 265..297;
const GROUP: Range<usize> = 297..329;
const MAJOR: Range<usize> = 329..337;
const MINOR: Range<usize> = 337..345;
const PREFIX: Range<usize> = 345..500;

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
    /// Modification time in whole seconds since 1970, rounded down.
    pub mtime: i64,
    /// Bytes of data that follow; 0 for everything but regular files.
    pub size: u64,
    /// Name of the owner.
    pub user: Vec<u8>,
    /// Name of the group.
    pub group: Vec<u8>,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Extended attributes.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The header blocks, extensions first, as they stood in the stream.
    pub raw: Vec<u8>,
}

impl Entry {
    /// The path for a message.
    pub fn display_path(&self) -> String {
        display(&self.path)
    }
}

/// A header whose checksum was right.
pub(super) struct Header([u8; BLOCK]);

impl Header {
    /// `after` is the entry before, for the message.
    pub(super) fn new(block: &[u8; BLOCK], after: &str) -> Result<Self, ArchiveError> {
        let header = Self(*block);
        let claimed = octal(header.field(CHECKSUM));
        let with_blank = |at: usize, byte: u8| if CHECKSUM.contains(&at) { b' ' } else { byte };
        let unsigned: i64 = (0..).zip(block).map(|(at, byte)| i64::from(with_blank(at, *byte))).sum();
        // Some old tools added signed characters.
        let signed: i64 =
            (0..).zip(block).map(|(at, byte)| i64::from(with_blank(at, *byte).cast_signed())).sum();
        if claimed == Some(unsigned) || claimed == Some(signed) {
            Ok(header)
        } else {
            Err(ArchiveError::Checksum(after.to_owned()))
        }
    }

    pub(super) fn type_flag(&self) -> u8 {
        self.0.get(TYPE).copied().unwrap_or(0)
    }

    pub(super) fn size(&self) -> Result<u64, ArchiveError> {
        self.number(SIZE, "size", &self.raw_path())
    }

    /// The path in this header alone, for messages.
    pub(super) fn raw_path(&self) -> String {
        display(&self.path())
    }

    fn field(&self, range: Range<usize>) -> &[u8] {
        self.0.get(range).unwrap_or_default()
    }

    /// A field up to its first NUL.
    fn text(&self, range: Range<usize>) -> Vec<u8> {
        super::until_nul(self.field(range).to_vec())
    }

    fn path(&self) -> Vec<u8> {
        let name = self.text(NAME);
        // GNU headers ("ustar  ") use the room of the prefix for other things.
        let prefix = if self.field(MAGIC) == b"ustar\0" { self.text(PREFIX) } else { Vec::new() };
        if prefix.is_empty() { name } else { [prefix.as_slice(), b"/", &name].concat() }
    }

    fn number<T: TryFrom<i64>>(
        &self,
        range: Range<usize>,
        field: &'static str,
        name: &str,
    ) -> Result<T, ArchiveError> {
        number(self.field(range))
            .and_then(|number| T::try_from(number).ok())
            .ok_or_else(|| ArchiveError::Number { name: name.to_owned(), field })
    }

    /// The entry that this header describes, with what stood in extension headers before it.
    pub(super) fn into_entry(
        self,
        raw: Vec<u8>,
        pax: Pax,
        long_path: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Entry, ArchiveError> {
        let path = pax.path.or(long_path).unwrap_or_else(|| self.path());
        let name = display(&path);
        let kind = match self.type_flag() {
            b'0' | 0 | b'7' if path.ends_with(b"/") && self.type_flag() == 0 => EntryKind::Directory,
            b'0' | 0 | b'7' => EntryKind::Regular,
            b'1' => EntryKind::Hardlink,
            b'2' => EntryKind::Symlink,
            b'3' => EntryKind::CharDevice,
            b'4' => EntryKind::BlockDevice,
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            b'S' => return Err(ArchiveError::Sparse(name)),
            other => return Err(ArchiveError::Unsupported { name, kind: char::from(other) }),
        };
        if pax.sparse {
            return Err(ArchiveError::Sparse(name));
        }
        let size = match kind {
            EntryKind::Regular => match pax.size {
                Some(size) => u64::try_from(size).unwrap_or(0),
                None => self.number(SIZE, "size", &name)?,
            },
            // Some tools write the target's size into a link's header; no data follows all the same.
            _ => 0,
        };
        let device = match kind {
            EntryKind::CharDevice | EntryKind::BlockDevice => {
                (self.number(MAJOR, "major number", &name)?, self.number(MINOR, "minor number", &name)?)
            }
            _ => (0, 0),
        };
        let mode: i64 = self.number(MODE, "mode", &name)?;
        Ok(Entry {
            kind,
            link: pax.link.or(long_link).unwrap_or_else(|| self.text(LINK)),
            mode: u16::try_from(mode & 0o7777).unwrap_or(0),
            uid: pax.uid.map_or_else(|| self.number(UID, "uid", &name), Ok)?,
            gid: pax.gid.map_or_else(|| self.number(GID, "gid", &name), Ok)?,
            mtime: pax.mtime.map_or_else(|| self.number(MTIME, "mtime", &name), Ok)?,
            size,
            user: pax.user.unwrap_or_else(|| self.text(USER)),
            group: pax.group.unwrap_or_else(|| self.text(GROUP)),
            device,
            xattrs: pax.xattrs,
            path,
            raw,
        })
    }
}

/// A numeric field: octal digits, or (first bit set) a big-endian two's complement number.
fn number(field: &[u8]) -> Option<i64> {
    let (first, rest) = field.split_first()?;
    if first & 0x80 == 0 {
        return octal(field);
    }
    // Bit 6 is the sign.
    let start = if first & 0x40 == 0 { i64::from(first & 0x3f) } else { i64::from(first | 0x80) - 256 };
    rest.iter().try_fold(start, |value, byte| value.checked_mul(256)?.checked_add(i64::from(*byte)))
}

/// Octal digits between blanks and NULs; an empty field is 0.
fn octal(field: &[u8]) -> Option<i64> {
    let digits = std::str::from_utf8(field).ok()?.trim_matches(|c| c == ' ' || c == '\0');
    if digits.is_empty() {
        return Some(0);
    }
    let digits = digits.split('\0').next().unwrap_or_default().trim_end();
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    i64::from_str_radix(digits, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn numbers_are_octal_or_base_256() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0"), Some(0));
        assert_eq!(number(b"0000008\0"), None);
        assert_eq!(number(b"-000001\0"), None);
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0x2d, 0xc6, 0xc0]), Some(3_000_000));
        assert_eq!(number(&[0xff; 12]), Some(-1));
        assert_eq!(number(&[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]), None);
        assert_eq!(number(&[]), None);
    }
}
