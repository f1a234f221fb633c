//! Plain headers for what layers cannot hold as it is: sparse files, and files of the type "contiguous".
//!
//! The new header says all that the old one said, but for how the data lay: every PAX record is kept as it
//! was, save `GNU.sparse.*`; what ustar has no room for becomes a record.

use std::collections::BTreeSet;
use std::ops::Range;

use super::header::{
    CHECKSUM, GID, GROUP, MAGIC, MAJOR, MINOR, MODE, MTIME, NAME, SIZE, TYPE, UID, USER, VERSION,
};
use super::pax::{SPARSE, decimal_time, each_record, push_record};
use super::{BLOCK, Entry, Timestamp, padding};

/// Header blocks of the regular file `entry`: an extended header if there must be one, and a ustar header.
/// `records` are the PAX records that it had.
pub(super) fn plain(entry: &Entry, records: &[u8]) -> Vec<u8> {
    let extended = extended_records(entry, records);
    let mut out = Vec::with_capacity(2 * BLOCK + extended.len().next_multiple_of(BLOCK));
    if !extended.is_empty() {
        let size = extended.len() as u64;
        let base = entry.path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let name = [b"PaxHeaders.0/".as_slice(), base].concat();
        out.extend_from_slice(&header(b'x', &name, 0o644, size).0);
        out.extend_from_slice(&extended);
        out.resize(out.len() + usize::try_from(padding(size)).unwrap_or(0), 0);
    }
    let mut block = header(b'0', &entry.path, (entry.header_mode & 0o777_7777).unsigned_abs(), entry.size);
    block.number(UID, entry.uid.into());
    block.number(GID, entry.gid.into());
    block.number(MTIME, u64::try_from(entry.mtime).unwrap_or(0));
    block.put(USER, &entry.user);
    block.put(GROUP, &entry.group);
    block.seal();
    out.extend_from_slice(&block.0);
    out
}

/// Makes the header of a contiguous file one of a regular file.
pub(super) fn retype(block: &mut [u8]) {
    if let Ok(copy) = <[u8; BLOCK]>::try_from(&*block) {
        let mut copy = Block(copy);
        copy.put(TYPE..TYPE + 1, b"0");
        copy.seal();
        block.copy_from_slice(&copy.0);
    }
}

/// The records that the plain header needs: the old ones, and what does not fit into ustar fields.
fn extended_records(entry: &Entry, records: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut has = BTreeSet::new();
    // They were read without an error before.
    let _ = each_record(records, |key, value| {
        if !key.starts_with(SPARSE) && key != b"size" && key != b"path" {
            push_record(&mut out, key, value);
            // An empty value leaves the field to the header.
            if value.is_empty() {
                has.remove(key);
            } else {
                has.insert(key.to_vec());
            }
        }
        Ok(())
    });
    let mut need = |key: &str, needed: bool, value: &[u8]| {
        if needed && !has.contains(key.as_bytes()) {
            push_record(&mut out, key.as_bytes(), value);
        }
    };
    let long = |text: &[u8], field: Range<usize>| text.len() > field.len() || !text.is_ascii();
    need("path", long(&entry.path, NAME), &entry.path);
    need("size", !fits(SIZE, entry.size), entry.size.to_string().as_bytes());
    need("uid", !fits(UID, entry.uid.into()), entry.uid.to_string().as_bytes());
    need("gid", !fits(GID, entry.gid.into()), entry.gid.to_string().as_bytes());
    need("uname", long(&entry.user, USER), &entry.user);
    need("gname", long(&entry.group, GROUP), &entry.group);
    let plain_time = entry.mtime_nanos == 0 && u64::try_from(entry.mtime).is_ok_and(|time| fits(MTIME, time));
    let mtime = Timestamp { seconds: entry.mtime, nanos: entry.mtime_nanos };
    need("mtime", !plain_time, decimal_time(mtime).as_bytes());
    for (key, time) in [("atime", entry.atime), ("ctime", entry.ctime)] {
        need(key, time.is_some(), decimal_time(time.unwrap_or_default()).as_bytes());
    }
    out
}

/// Whether a number fits a field in octal digits, with a NUL behind them.
fn fits(field: Range<usize>, number: u64) -> bool {
    number.checked_shr(u32::try_from(3 * (field.len() - 1)).unwrap_or(u32::MAX)).unwrap_or(0) == 0
}

/// A ustar header under construction.
struct Block([u8; BLOCK]);

fn header(kind: u8, name: &[u8], mode: u64, size: u64) -> Block {
    let mut block = Block([0; BLOCK]);
    block.put(NAME, name);
    block.number(MODE, mode);
    for field in [UID, GID, MTIME, MAJOR, MINOR] {
        block.number(field, 0);
    }
    block.number(SIZE, size);
    block.put(TYPE..TYPE + 1, &[kind]);
    block.put(MAGIC, b"ustar\0");
    block.put(VERSION, b"00");
    block.seal();
    block
}

impl Block {
    /// As much of `text` as fits.
    fn put(&mut self, field: Range<usize>, text: &[u8]) {
        for (slot, byte) in self.0.get_mut(field).unwrap_or_default().iter_mut().zip(text) {
            *slot = *byte;
        }
    }

    /// Octal digits; 0 for what does not fit, which a record then says.
    fn number(&mut self, field: Range<usize>, number: u64) {
        let number = if fits(field.clone(), number) { number } else { 0 };
        let digits = format!("{number:0width$o}\0", width = field.len() - 1);
        self.put(field, digits.as_bytes());
    }

    fn seal(&mut self) {
        self.put(CHECKSUM, b"        ");
        let sum: u64 = self.0.iter().map(|byte| u64::from(*byte)).sum();
        self.put(CHECKSUM, format!("{sum:06o}\0 ").as_bytes());
    }
}
