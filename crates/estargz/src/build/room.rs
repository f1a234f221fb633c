//! How much a TOC may still grow.
//!
//! The TOC is the one thing that grows in memory with the layer. A reader would refuse one that is too large,
//! so a writer stops as soon as it is: neither a layer of nothing but names nor chunks of a few bytes can
//! make it eat the machine.

use super::BuildError;
use crate::toc::json::{JsonEntry, quote};
use crate::toc::{TocError, TocLimits};

/// Bytes that every entry takes: braces, the keys of name and type.
const ENTRY: usize = 40;

/// Bytes that a digest takes.
const DIGEST: usize = 80;

/// What is left of the limits of a TOC.
#[derive(Debug)]
pub(super) struct Room {
    limits: TocLimits,
    entries: u32,
    bytes: u64,
    /// Where texts are quoted, to see how long they become.
    quoted: Vec<u8>,
}

impl Default for Room {
    fn default() -> Self {
        Self::new(TocLimits::default())
    }
}

impl Room {
    pub(super) const fn new(limits: TocLimits) -> Self {
        Self { limits, entries: 0, bytes: 0, quoted: Vec::new() }
    }

    /// Takes the room of `entry`.
    pub(super) fn take(&mut self, entry: &JsonEntry) -> Result<(), BuildError> {
        self.quoted.clear();
        let texts = [&entry.name, &entry.link].into_iter().chain(&entry.user).chain(&entry.group);
        for text in texts.chain(entry.xattrs.keys()) {
            quote(&mut self.quoted, text);
        }
        let values: usize = entry.xattrs.values().map(|value| value.len() / 3 * 4).sum();
        let digest = if entry.has_digest { DIGEST } else { 0 };
        self.take_bytes(ENTRY + self.quoted.len() + values + digest)
    }

    /// Takes the room of an entry of at least `bytes` bytes.
    pub(super) fn take_bytes(&mut self, bytes: usize) -> Result<(), BuildError> {
        let TocLimits { entries, json_bytes, .. } = self.limits;
        self.entries = self.entries.saturating_add(1);
        self.bytes = self.bytes.saturating_add(bytes as u64);
        if self.entries > entries {
            return Err(TocError::TooLarge { what: "entries", limit: u64::from(entries) }.into());
        }
        if self.bytes > json_bytes {
            return Err(TocError::TooLarge { what: "bytes", limit: json_bytes }.into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_readers_would_refuse_is_not_collected() {
        let limits = TocLimits { entries: 3, json_bytes: 200, ..TocLimits::default() };
        let entry = |name: &str| JsonEntry { name: name.to_owned(), ..JsonEntry::default() };
        let mut room = Room::new(limits);
        for _ in 0..3 {
            room.take(&entry("x")).unwrap();
        }
        let error = room.take(&entry("x")).unwrap_err();
        assert!(error.is_unconvertible());
        assert!(error.to_string().contains("more entries than the limit of 3"), "{error}");
        let mut room = Room::new(limits);
        room.take(&entry(&"x".repeat(115))).unwrap();
        let error = room.take(&JsonEntry { link: "y".to_owned(), ..entry("") }).unwrap_err();
        assert!(error.to_string().contains("more bytes than the limit of 200"), "{error}");
        let xattrs = [("user.x".to_owned(), vec![0; 120])].into();
        assert!(Room::new(limits).take(&JsonEntry { xattrs, ..entry("") }).is_err());
        // What becomes longer when it is written counts as it is written.
        assert!(Room::new(limits).take(&entry(&"\u{1}".repeat(30))).is_err());
        assert!(Room::new(limits).take(&JsonEntry { user: Some("u".repeat(160)), ..entry("") }).is_err());
    }
}
