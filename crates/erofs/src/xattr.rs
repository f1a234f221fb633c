//! Extended attributes: behind each inode that has some stand a header, the places of those that it shares with other
//! inodes, and those that it has alone.
//!
//! ```text
//! │ 0 u32 │ shared u8 │ 0 × 7 │ place u32 … │ entry … │
//!                                           └── │ name len u8 │ prefix u8 │ value len u16 │ name │ value │ pad to 4 │
//! ```
//!
//! Names are stored without their prefix, which is a number. An entry that several inodes have is stored once, in the
//! shared area, wherever that takes less room: each of them then has 4 bytes instead, the entry's place in the area
//! divided by 4. SELinux labels and `overlay.opaque` are such entries.

use std::collections::HashMap;

use crate::disk::NAME_MAX;
use crate::error::{Problem, XattrProblem};

/// Bytes of the header.
pub(crate) const HEADER: usize = 12;
/// Bytes of an entry before its name.
pub(crate) const ENTRY: usize = 4;
/// Entries and bodies are padded to this; places in the shared area count in it.
pub(crate) const UNIT: usize = 4;
/// Shared entries that an inode can have: their number is one byte. Inodes with more attributes share none.
pub(crate) const MAX_SHARED: usize = 255;
/// Linux lists no more bytes of names (`XATTR_LIST_MAX`).
const LIST_MAX: u64 = 65_536;

/// What may stand before the dot, and its number. Of the first two nothing follows.
const PREFIXES: [(&[u8], u8); 5] = [
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"user.", 1),
    (b"trusted.", 4),
    (b"security.", 6),
];

/// An extended attribute as it is stored. Ordered by prefix and name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Xattr<'a> {
    pub(crate) prefix: u8,
    pub(crate) suffix: &'a [u8],
    pub(crate) value: &'a [u8],
}

impl<'a> Xattr<'a> {
    pub(crate) fn new(name: &'a [u8], value: &'a [u8]) -> Result<Self, XattrProblem> {
        let split = |(prefix, number): (&[u8], u8)| Some((number, name.strip_prefix(prefix)?));
        let (prefix, suffix) = PREFIXES.into_iter().find_map(split).ok_or(XattrProblem::Prefix)?;
        Self { prefix, suffix, value }.check()
    }

    /// Whether Linux could read it.
    pub(crate) fn check(self) -> Result<Self, XattrProblem> {
        let prefix = self.prefix_name().ok_or(XattrProblem::Prefix)?;
        if prefix.ends_with(b".") == self.suffix.is_empty() || self.suffix.contains(&0) {
            Err(XattrProblem::Name)
        } else if prefix.len() + self.suffix.len() > NAME_MAX {
            Err(XattrProblem::NameTooLong)
        } else if self.value.len() > usize::from(u16::MAX) {
            Err(XattrProblem::ValueTooLong)
        } else {
            Ok(self)
        }
    }

    fn prefix_name(&self) -> Option<&'static [u8]> {
        PREFIXES.into_iter().find(|(_, number)| *number == self.prefix).map(|(name, _)| name)
    }

    /// The whole name.
    pub(crate) fn name(&self) -> Vec<u8> {
        [self.prefix_name().unwrap_or_default(), self.suffix].concat()
    }

    pub(crate) fn is_same_name(&self, other: &Self) -> bool {
        (self.prefix, self.suffix) == (other.prefix, other.suffix)
    }

    /// Bytes, with padding.
    pub(crate) fn encoded_len(&self) -> usize {
        (ENTRY + self.suffix.len() + self.value.len()).next_multiple_of(UNIT)
    }

    /// Appends it. It was checked, so its lengths fit.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let end = out.len() + self.encoded_len();
        out.extend([u8::try_from(self.suffix.len()).unwrap_or(u8::MAX), self.prefix]);
        out.extend(u16::try_from(self.value.len()).unwrap_or(u16::MAX).to_le_bytes());
        out.extend(self.suffix);
        out.extend(self.value);
        out.resize(end, 0);
    }
}

/// Whether an extended attribute can be written, for those who would rather leave one out than fail.
///
/// # Errors
/// [`XattrProblem`] says why it cannot.
pub fn check_xattr(name: &[u8], value: &[u8]) -> Result<(), XattrProblem> {
    Xattr::new(name, value).map(drop)
}

/// The extended attributes of a node, checked and in order, into `found`.
pub(crate) fn collect<'a>(
    xattrs: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    found: &mut Vec<Xattr<'a>>,
) -> Result<(), Problem> {
    let problem =
        |name: &[u8], problem| Problem::Xattr { name: String::from_utf8_lossy(name).into_owned(), problem };
    found.clear();
    let mut list = 0;
    for (name, value) in xattrs {
        list += name.len() as u64 + 1; // NUL
        found.push(Xattr::new(name, value).map_err(|why| problem(name, why))?);
    }
    if list > LIST_MAX {
        return Err(Problem::XattrListTooLong(list));
    }
    found.sort_unstable();
    let twice = found.array_windows().find(|[one, next]| one.is_same_name(next));
    twice.map_or(Ok(()), |[one, _]| Err(problem(&one.name(), XattrProblem::Twice)))
}

/// The shared area.
///
/// First everything is [counted](Self::count), then [settled](Self::settle), then the bodies are made.
#[derive(Default)]
pub(crate) struct Pool<'a> {
    /// How often each entry occurs; after settling, the places of those that are shared.
    numbers: HashMap<Xattr<'a>, u32>,
    /// In the order in which they were first seen, so that the same tree gives the same area.
    entries: Vec<Xattr<'a>>,
    len: usize,
}

impl<'a> Pool<'a> {
    pub(crate) fn count(&mut self, xattrs: &[Xattr<'a>]) {
        for xattr in xattrs.iter().filter(|_| xattrs.len() <= MAX_SHARED) {
            let times = self.numbers.entry(*xattr).or_insert(0);
            *times = times.saturating_add(1);
            if *times == 1 {
                self.entries.push(*xattr);
            }
        }
    }

    /// Chooses what is shared.
    pub(crate) fn settle(&mut self) {
        let Self { numbers, entries, len } = self;
        entries.retain(|xattr| {
            let times = numbers.get(xattr).map_or(0, |times| *times as usize);
            let saves = times * xattr.encoded_len() > xattr.encoded_len() + times * UNIT;
            match u32::try_from(*len / UNIT) {
                Ok(place) if saves => {
                    numbers.insert(*xattr, place);
                    *len += xattr.encoded_len();
                    true
                }
                _ => {
                    numbers.remove(xattr);
                    false
                }
            }
        });
    }

    /// Bytes of the area.
    pub(crate) fn len(&self) -> u64 {
        self.len as u64
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        for entry in &self.entries {
            entry.encode(out);
        }
    }

    /// Places of the shared ones among `xattrs`, and the others.
    fn split<'b>(&self, xattrs: &'b [Xattr<'a>]) -> (Vec<u32>, Vec<&'b Xattr<'a>>) {
        let (mut places, mut own) = (Vec::new(), Vec::new());
        for xattr in xattrs {
            match self.numbers.get(xattr) {
                Some(place) if xattrs.len() <= MAX_SHARED => places.push(*place),
                _ => own.push(xattr),
            }
        }
        (places, own)
    }

    /// Bytes behind an inode with these.
    pub(crate) fn body_len(&self, xattrs: &[Xattr<'a>]) -> u64 {
        if xattrs.is_empty() {
            return 0;
        }
        let (places, own) = self.split(xattrs);
        let own: usize = own.iter().map(|xattr| xattr.encoded_len()).sum();
        (HEADER + UNIT * places.len() + own) as u64
    }

    /// Appends what stands behind an inode with these.
    pub(crate) fn encode_body(&self, xattrs: &[Xattr<'a>], out: &mut Vec<u8>) {
        if xattrs.is_empty() {
            return;
        }
        let (places, own) = self.split(xattrs);
        out.extend([0; 4]);
        out.push(u8::try_from(places.len()).unwrap_or(u8::MAX));
        out.extend([0; 7]);
        out.extend(places.iter().flat_map(|place| place.to_le_bytes()));
        for xattr in own {
            xattr.encode(out);
        }
    }
}

/// What an inode says of `body` bytes of extended attributes; `None` if it cannot.
pub(crate) fn units(body: u64) -> Option<u16> {
    match body.checked_sub(HEADER as u64) {
        None => Some(0),
        Some(entries) => u16::try_from(1 + entries / UNIT as u64).ok(),
    }
}

/// The bytes that an inode means.
pub(crate) fn body_len(units: u16) -> u64 {
    units.checked_sub(1).map_or(0, |units| (HEADER + UNIT * usize::from(units)) as u64)
}

#[cfg(test)]
mod tests;
