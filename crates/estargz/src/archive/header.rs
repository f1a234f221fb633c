//! One 512-byte tar header, and the entry that it and its extensions describe.
//!
//! Four dialects differ in what stands behind byte 257. What is read of each is what Go's reader reads, so
//! that a layer is the same tree here and in every container engine.

use std::ops::Range;

use super::pax::Pax;
use super::{ArchiveError, BLOCK, Entry, EntryKind, Timestamp, display, rewrite, until_nul};

pub(super) const NAME: Range<usize> = 0..100;
pub(super) const MODE: Range<usize> = 100..108;
pub(super) const UID: Range<usize> = 108..116;
pub(super) const GID: Range<usize> = 116..124;
pub(super) const SIZE: Range<usize> = 124..136;
pub(super) const MTIME: Range<usize> = 136..148;
pub(super) const CHECKSUM: Range<usize> = 148..156;
pub(super) const TYPE: usize = 156;
const LINK: Range<usize> = 157..257;
pub(super) const MAGIC: Range<usize> = 257..263;
pub(super) const VERSION: Range<usize> = 263..265;
pub(super) const USER: Range<usize> = 265..297;
pub(super) const GROUP: Range<usize> = 297..329;
pub(super) const MAJOR: Range<usize> = 329..337;
pub(super) const MINOR: Range<usize> = 337..345;
const PREFIX: Range<usize> = 345..500;
/// In a header of star, whose prefix is shorter.
const STAR_PREFIX: Range<usize> = 345..476;
const STAR_TIMES: [Range<usize>; 2] = [476..488, 488..500];
const STAR_TRAILER: Range<usize> = 508..512;
/// In a GNU header, which has no prefix.
const GNU_TIMES: [Range<usize>; 2] = [345..357, 357..369];

/// Whose header it is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// Before POSIX: nothing behind the link's target.
    V7,
    Ustar,
    Gnu,
    Star,
}

/// A header whose checksum was right.
pub(super) struct Header {
    pub(super) block: [u8; BLOCK],
}

/// What stood before a header and belongs to it.
#[derive(Default)]
pub(super) struct Extensions {
    /// All header blocks so far.
    pub(super) raw: Vec<u8>,
    /// How many of `raw`, from the first, are global headers.
    pub(super) global: usize,
    pub(super) pax: Option<Pax>,
    pub(super) long_path: Option<Vec<u8>>,
    pub(super) long_link: Option<Vec<u8>>,
}

impl Extensions {
    /// Whether something stood there that describes one entry.
    pub(super) const fn any(&self) -> bool {
        self.pax.is_some() || self.long_path.is_some() || self.long_link.is_some()
    }
}

impl Header {
    /// `after` is the entry before, for the message.
    pub(super) fn new(block: &[u8; BLOCK], after: &str) -> Result<Self, ArchiveError> {
        let header = Self { block: *block };
        let claimed = octal(header.field(CHECKSUM));
        let with_blank = |at: usize, byte: u8| if CHECKSUM.contains(&at) { b' ' } else { byte };
        let unsigned: i64 = (0..).zip(block).map(|(at, byte)| i64::from(with_blank(at, *byte))).sum();
        // Some old tools added signed characters.
        let signed: i64 =
            (0..).zip(block).map(|(at, byte)| i64::from(with_blank(at, *byte).cast_signed())).sum();
        if claimed == Some(unsigned) || claimed == Some(signed) {
            header.check_numbers()?;
            Ok(header)
        } else {
            Err(ArchiveError::Checksum(after.to_owned()))
        }
    }

    /// Every numeric field must hold a number, also where none is asked for: as Go's reader has it.
    fn check_numbers(&self) -> Result<(), ArchiveError> {
        let common = [(MODE, "mode"), (UID, "uid"), (GID, "gid"), (SIZE, "size"), (MTIME, "mtime")];
        let device = [(MAJOR, "major number"), (MINOR, "minor number")];
        let star = STAR_TIMES.map(|range| (range, "time"));
        let dialect = self.dialect();
        let bad = (common.into_iter())
            .chain(device.into_iter().filter(|_| dialect != Dialect::V7))
            .chain(star.into_iter().filter(|_| dialect == Dialect::Star))
            .find(|(range, _)| number(self.field(range.clone())).is_none());
        match bad {
            Some((_, field)) => Err(ArchiveError::Number { name: self.raw_path(), field }),
            None => Ok(()),
        }
    }

    pub(super) fn type_flag(&self) -> u8 {
        self.block.get(TYPE).copied().unwrap_or(0)
    }

    pub(super) fn dialect(&self) -> Dialect {
        match self.field(MAGIC) {
            b"ustar\0" if self.field(STAR_TRAILER) == b"tar\0" => Dialect::Star,
            b"ustar\0" => Dialect::Ustar,
            b"ustar " if self.field(VERSION) == b" \0" => Dialect::Gnu,
            _ => Dialect::V7,
        }
    }

    pub(super) fn size(&self) -> Result<u64, ArchiveError> {
        self.number(SIZE, "size", &self.raw_path())
    }

    /// The path in this header alone, for messages.
    pub(super) fn raw_path(&self) -> String {
        display(&self.path())
    }

    fn field(&self, range: Range<usize>) -> &[u8] {
        self.block.get(range).unwrap_or_default()
    }

    /// A field up to its first NUL.
    fn text(&self, range: Range<usize>) -> Vec<u8> {
        until_nul(self.field(range).to_vec())
    }

    fn path(&self) -> Vec<u8> {
        let name = self.text(NAME);
        let prefix = match self.dialect() {
            Dialect::Ustar => self.text(PREFIX),
            Dialect::Star => self.text(STAR_PREFIX),
            // Go before 1.8 wrote a prefix where the GNU header has times. If those are no times, it is one.
            Dialect::Gnu if self.gnu_times().is_none() => {
                Some(self.text(PREFIX)).filter(|prefix| prefix.is_ascii()).unwrap_or_default()
            }
            Dialect::V7 | Dialect::Gnu => Vec::new(),
        };
        if prefix.is_empty() { name } else { [prefix.as_slice(), b"/", &name].concat() }
    }

    /// Times of access and change of a GNU header; `None` if a field that is set is no number.
    fn gnu_times(&self) -> Option<[Option<i64>; 2]> {
        let [accessed, changed] = GNU_TIMES.map(|range| {
            let field = self.field(range);
            if field.first() == Some(&0) { Some(None) } else { number(field).map(Some) }
        });
        Some([accessed?, changed?])
    }

    /// Times of access and change that the header itself has.
    fn times(&self) -> [Option<Timestamp>; 2] {
        let times = match self.dialect() {
            Dialect::Gnu => self.gnu_times().unwrap_or_default(),
            Dialect::Star => STAR_TIMES.map(|range| number(self.field(range))),
            Dialect::V7 | Dialect::Ustar => [None, None],
        };
        times.map(|time| time.map(|seconds| Timestamp { seconds, nanos: 0 }))
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

    /// The entry that this header describes, with what stood in extension headers before it, and how many
    /// bytes of data follow. Of a sparse file, size and header are not right yet.
    pub(super) fn into_entry(
        self,
        mut extensions: Extensions,
        position: u64,
    ) -> Result<(Entry, Pax, u64), ArchiveError> {
        let mut pax = extensions.pax.take().unwrap_or_default();
        let pax_path = pax.sparse.name.take().or_else(|| pax.path.take());
        let own = display(pax_path.as_deref().or(extensions.long_path.as_deref()).unwrap_or(&self.path()));
        let path = one_of(pax_path, extensions.long_path, &own)?.unwrap_or_else(|| self.path());
        let link = one_of(pax.link.take(), extensions.long_link, &own)?.unwrap_or_else(|| self.text(LINK));
        let name = display(&path);
        let kind = self.kind(&path)?;
        // The header's own must be possible even if a record overrules it.
        let own_size = self.number(SIZE, "size", &name)?;
        let header_size = pax.size.unwrap_or(own_size);
        // Some tools write the target's size into a link's header; no data follows all the same.
        let data = if kind == EntryKind::Regular { header_size } else { 0 };
        let device = match kind {
            EntryKind::CharDevice | EntryKind::BlockDevice if self.dialect() != Dialect::V7 => {
                (self.number(MAJOR, "major number", &name)?, self.number(MINOR, "minor number", &name)?)
            }
            _ => (0, 0),
        };
        let header_mode: i64 = self.number(MODE, "mode", &name)?;
        let mtime = match pax.mtime {
            Some(mtime) => mtime,
            None => Timestamp { seconds: self.number(MTIME, "mtime", &name)?, nanos: 0 },
        };
        let [atime, ctime] = self.times();
        let owner = |text: Option<Vec<u8>>, range| match (text, self.dialect()) {
            (Some(text), _) => text,
            (None, Dialect::V7) => Vec::new(),
            (None, _) => self.text(range),
        };
        let mut raw = extensions.raw;
        let rewritten = self.type_flag() == b'7';
        if rewritten {
            let start = raw.len().saturating_sub(BLOCK);
            rewrite::retype(raw.get_mut(start..).unwrap_or_default());
        }
        let entry = Entry {
            kind,
            link,
            mode: u16::try_from(header_mode & 0o7777).unwrap_or(0),
            uid: pax.uid.map_or_else(|| self.number(UID, "uid", &name), Ok)?,
            gid: pax.gid.map_or_else(|| self.number(GID, "gid", &name), Ok)?,
            mtime: mtime.seconds,
            mtime_nanos: mtime.nanos,
            atime: pax.atime.or(atime),
            ctime: pax.ctime.or(ctime),
            size: data,
            user: owner(pax.user.take(), USER),
            group: owner(pax.group.take(), GROUP),
            device,
            xattrs: std::mem::take(&mut pax.xattrs),
            path,
            raw,
            rewritten,
            header_mode,
            header_device: self.raw_device(),
            header_size,
            position,
        };
        Ok((entry, pax, data))
    }

    /// What stands in the fields for a device.
    fn raw_device(&self) -> (i64, i64) {
        let field = |range| number(self.field(range)).unwrap_or(0);
        if self.dialect() == Dialect::V7 { (0, 0) } else { (field(MAJOR), field(MINOR)) }
    }

    fn kind(&self, path: &[u8]) -> Result<EntryKind, ArchiveError> {
        Ok(match self.type_flag() {
            // Before POSIX a directory was a name with a slash at its end.
            0 if path.ends_with(b"/") => EntryKind::Directory,
            b'0' | 0 | b'7' | b'S' => EntryKind::Regular,
            b'1' => EntryKind::Hardlink,
            b'2' => EntryKind::Symlink,
            b'3' => EntryKind::CharDevice,
            b'4' => EntryKind::BlockDevice,
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            other => {
                return Err(ArchiveError::Unsupported { name: display(path), kind: char::from(other) });
            }
        })
    }
}

/// A name that two kinds of extension can give. Readers do not agree on which counts.
fn one_of(pax: Option<Vec<u8>>, gnu: Option<Vec<u8>>, name: &str) -> Result<Option<Vec<u8>>, ArchiveError> {
    match (pax, gnu) {
        (Some(pax), Some(gnu)) if pax != gnu => Err(ArchiveError::Ambiguous {
            name: name.to_owned(),
            problem: "a PAX record and a GNU long name give different names",
        }),
        (pax, gnu) => Ok(pax.or(gnu)),
    }
}

/// A numeric field: octal digits, or (first bit set) a big-endian two's complement number.
pub(super) fn number(field: &[u8]) -> Option<i64> {
    let (first, rest) = field.split_first()?;
    if first & 0x80 == 0 {
        return octal(field);
    }
    // Bit 6 is the sign.
    let start = if first & 0x40 == 0 { i64::from(first & 0x3f) } else { i64::from(first | 0x80) - 256 };
    rest.iter().try_fold(start, |value, byte| value.checked_mul(256)?.checked_add(i64::from(*byte)))
}

/// Octal digits behind blanks and NULs, up to the next NUL; an empty field is 0.
fn octal(field: &[u8]) -> Option<i64> {
    let is_blank = |byte: &u8| matches!(byte, b' ' | 0);
    let Some(start) = field.iter().position(|byte| !is_blank(byte)) else { return Some(0) };
    let end = field.iter().rposition(|byte| !is_blank(byte))?;
    let digits = field.get(start..=end)?.split(|byte| *byte == 0).next()?;
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    i64::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
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
        assert_eq!(number(b"64 4\0"), None);
        assert_eq!(number(b"644\x004\xff"), Some(0o644), "as Go reads it: up to the first NUL");
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0x2d, 0xc6, 0xc0]), Some(3_000_000));
        assert_eq!(number(&[0xff; 12]), Some(-1));
        assert_eq!(
            number(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe, 0xae, 0x80]),
            Some(-86400)
        );
        assert_eq!(number(&[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]), None);
        assert_eq!(number(&[]), None);
    }
}
