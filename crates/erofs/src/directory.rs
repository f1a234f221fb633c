//! The content of a directory.
//!
//! Blocks of 4 KiB, each for itself: the entries (12 bytes each: inode, offset of the name, type), followed by their
//! names without anything between. Names are sorted over all blocks, `.` and `..` among them, so that the kernel
//! finds one by bisection. A block is filled as far as whole entries go.
//!
//! ```text
//! │ 42 │ 48 │ dir │   │ 40 │ 49 │ dir │   │ 71 │ 51 │ file │   . .. hello   │
//!   nid  name at         (12 × entries is where the first name is)
//! ```

use crate::disk::{BLOCK, BLOCK_LEN, FileType, NAME_MAX, array};
use crate::error::Problem;

/// Bytes of an entry, without its name.
const ENTRY: usize = 12;

/// An entry, as written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Entry<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) inode: u64,
    pub(crate) file_type: FileType,
}

/// Whether a file can have this name.
pub(crate) fn check_name(name: &[u8]) -> Result<(), Problem> {
    if matches!(name, b"" | b"." | b"..") {
        Err(Problem::Name)
    } else if name.len() > NAME_MAX {
        Err(Problem::NameTooLong)
    } else if name.iter().any(|byte| matches!(byte, 0 | b'/')) {
        Err(Problem::NameByte)
    } else {
        Ok(())
    }
}

/// Bytes of a directory with these names, which are in order and have `.` and `..` among them.
pub(crate) fn size<'a>(names: impl Iterator<Item = &'a [u8]>) -> u64 {
    let (full, used) = names.fold((0, 0), |(full, used), name| {
        let len = ENTRY + name.len();
        if used + len > BLOCK_LEN { (full + 1, len) } else { (full, used + len) }
    });
    full * BLOCK + used as u64
}

/// Appends the content of a directory. Its names are checked and in order.
pub(crate) fn encode(entries: &[Entry<'_>], out: &mut Vec<u8>) {
    let mut rest = entries;
    while !rest.is_empty() {
        let mut used = 0;
        let fitting = rest.iter().take_while(|entry| {
            used += ENTRY + entry.name.len();
            used <= BLOCK_LEN
        });
        // A name has at most 255 bytes, so at least one entry always fits.
        let (block, after) = rest.split_at_checked(fitting.count().max(1)).unwrap_or((rest, &[]));
        let start = out.len();
        let mut name_at = ENTRY * block.len();
        for entry in block {
            out.extend(entry.inode.to_le_bytes());
            out.extend(u16::try_from(name_at).unwrap_or(u16::MAX).to_le_bytes());
            out.extend([entry.file_type as u8, 0]);
            name_at += entry.name.len();
        }
        for entry in block {
            out.extend(entry.name);
        }
        if !after.is_empty() {
            out.resize(start + BLOCK_LEN, 0);
        }
        rest = after;
    }
}

/// The entries of one block of a directory: the bytes of a whole block, or those of the last one. `None` where they
/// are not as [`encode`] makes them: an entry or a name outside the block, a name that is none, a type that is none,
/// anything but zeros after the last name.
pub(crate) fn decode(block: &[u8], is_last: bool) -> Option<Vec<Entry<'_>>> {
    let name_at = |n: usize| array(block, n * ENTRY + 8).map(|bytes| usize::from(u16::from_le_bytes(bytes)));
    let first = name_at(0)?;
    let count = first / ENTRY;
    if first == 0 || first % ENTRY != 0 || first > block.len() {
        return None;
    }
    (0..count)
        .map(|n| {
            let record = block.get(n * ENTRY..)?;
            let &[file_type, 0] = record.get(10..ENTRY)? else { return None };
            let start = name_at(n)?;
            let name = if n + 1 < count {
                block.get(start..name_at(n + 1)?)?
            } else {
                let rest = block.get(start..)?;
                let len = rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len());
                let (name, padding) = rest.split_at_checked(len)?;
                if is_last && !padding.is_empty() || padding.iter().any(|byte| *byte != 0) {
                    return None;
                }
                name
            };
            let is_name = matches!(name, b"." | b"..") || check_name(name).is_ok();
            let file_type = FileType::ALL.into_iter().find(|known| *known as u8 == file_type)?;
            let inode = array(record, 0).map(u64::from_le_bytes)?;
            is_name.then_some(Entry { name, inode, file_type })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(names: &[Vec<u8>]) -> Vec<Entry<'_>> {
        let entry = |(name, inode): (_, u64)| Entry { name, inode, file_type: FileType::Regular };
        names.iter().map(Vec::as_slice).zip(100..).map(entry).collect()
    }

    fn encoded(names: &[Vec<u8>]) -> Vec<u8> {
        let mut out = Vec::new();
        encode(&entries(names), &mut out);
        assert_eq!(out.len() as u64, size(names.iter().map(Vec::as_slice)));
        out
    }

    #[test]
    fn an_empty_directory() {
        let names = [b".".to_vec(), b"..".to_vec()];
        let mut expected = vec![100, 0, 0, 0, 0, 0, 0, 0, 24, 0, 1, 0, 101, 0, 0, 0, 0, 0, 0, 0, 25, 0, 1, 0];
        expected.extend(b"...");
        assert_eq!(encoded(&names), expected);
        assert_eq!(decode(&expected, true), Some(entries(&names)));
    }

    #[test]
    fn blocks_are_filled_to_the_last_byte_and_not_beyond() {
        // 16 entries of 256 bytes are one block exactly.
        let name = |n: u8, len: usize| [vec![n], vec![b'x'; len - 1]].concat();
        let full: Vec<_> = (1..=16).map(|n| name(n, 244)).collect();
        let bytes = encoded(&full);
        assert_eq!(bytes.len(), BLOCK_LEN);
        assert_eq!(decode(&bytes, true), Some(entries(&full)));
        assert_eq!(decode(&bytes, false), Some(entries(&full)));

        // One byte more, and the last entry stands in a second block.
        let more: Vec<_> = (1..=16).map(|n| name(n, if n == 16 { 245 } else { 244 })).collect();
        let bytes = encoded(&more);
        assert_eq!(bytes.len(), BLOCK_LEN + 12 + 245);
        assert_eq!(decode(&bytes[..BLOCK_LEN], false).unwrap(), entries(&more)[..15]);
        assert_eq!(decode(&bytes[BLOCK_LEN..], true).unwrap(), entries(&more)[15..]);
    }

    #[test]
    fn blocks_that_the_writer_does_not_make() {
        let good = encoded(&[b".".to_vec(), b"..".to_vec(), b"file".to_vec()]);
        assert!(decode(&good, true).is_some());
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            bytes
        };
        for (bytes, why) in [
            (Vec::new(), "nothing"),
            (good[..11].to_vec(), "half an entry"),
            (with(8, 0), "no entry"),
            (with(8, 35), "names at no entry's end"),
            (with(9, 255), "names after the block"),
            (with(20, 36), "an empty name"),
            (with(20, 40), "names that run backwards"),
            (with(10, 0), "no type"),
            (with(10, 8), "an unknown type"),
            (with(11, 1), "a bit without meaning"),
            (with(40, b'/'), "a slash"),
            (with(40, 0), "a NUL"),
            ([&good[..], &[0]].concat(), "a longer block"),
        ] {
            assert_eq!(decode(&bytes, true), None, "{why}");
        }
        assert!(decode(&[&good[..], &[0, 0]].concat(), false).is_some());
        assert_eq!(decode(&[&good[..], &[0, 1]].concat(), false), None);
    }

    #[test]
    fn names_that_no_file_has() {
        assert_eq!(check_name(b""), Err(Problem::Name));
        assert_eq!(check_name(b"."), Err(Problem::Name));
        assert_eq!(check_name(b".."), Err(Problem::Name));
        assert_eq!(check_name(&[b'x'; 256]), Err(Problem::NameTooLong));
        assert_eq!(check_name(b"a/b"), Err(Problem::NameByte));
        assert_eq!(check_name(b"a\0"), Err(Problem::NameByte));
        for name in [&[b'x'; 255][..], b"...", b"\n", &[1], &[255]] {
            assert_eq!(check_name(name), Ok(()));
        }
    }
}
