//! What the kernel writes when somebody is about to read: a record per event, of a length of its own.
//!
//! ```text
//! u32 event_len  u8 vers  u8 0  u16 metadata_len  u64 mask  i32 fd  i32 pid
//! then, up to event_len, pieces: u8 type  u8 0  u16 len ...
//!     type 6, a range: u32 0  u64 offset  u64 count
//! ```
//!
//! (linux/fanotify.h; Linux 6.14 and later for the range.)

use std::os::fd::RawFd;

use content::ByteRange;

/// Length of an event with a range: what the kernel needs room for.
pub(crate) const EVENT: usize = METADATA + RANGE;
const METADATA: usize = 24;
const RANGE: usize = 24;
const VERSION: u8 = 3;
const INFO_RANGE: u8 = 6;

/// Somebody waits for bytes of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event {
    /// The number that the answer names; negative if there is none, and nobody waits.
    pub fd: RawFd,
    /// Who reads.
    pub pid: i32,
    /// Bytes of the file; all of them if the kernel did not say which.
    pub range: ByteRange,
}

/// Reads events one after another, and ends at the first that cannot be right.
#[derive(Clone, Debug)]
pub struct Events<'a>(&'a [u8]);

impl<'a> Events<'a> {
    /// The events in `bytes`.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }
}

impl Iterator for Events<'_> {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        let len = usize::try_from(u32_at(self.0, 0)?).ok()?;
        let (event, rest) = self.0.split_at_checked(len)?;
        let metadata_len = usize::from(u16_at(event, 6)?);
        if *event.get(4)? != VERSION || metadata_len < METADATA {
            return None;
        }
        let fd = i32_at(event, 16)?;
        let pid = i32_at(event, 20)?;
        let mut range = ByteRange::new(0, u64::MAX);
        let mut pieces = event.get(metadata_len..)?;
        while let (Some(kind), Some(len)) = (pieces.first(), u16_at(pieces, 2)) {
            let Some((piece, others)) = pieces.split_at_checked(usize::from(len)).filter(|_| len >= 4) else {
                break;
            };
            if *kind == INFO_RANGE
                && let (Some(offset), Some(count)) = (u64_at(piece, 8), u64_at(piece, 16))
            {
                range = ByteRange::at(offset, count);
            }
            pieces = others;
        }
        self.0 = rest;
        Some(Event { fd, pid, range })
    }
}

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes_at(bytes, at).map(u16::from_ne_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes_at(bytes, at).map(u32::from_ne_bytes)
}

fn i32_at(bytes: &[u8], at: usize) -> Option<i32> {
    bytes_at(bytes, at).map(i32::from_ne_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes_at(bytes, at).map(u64::from_ne_bytes)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn encoded(fd: i32, pid: i32, offset: u64, count: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&48u32.to_ne_bytes());
        bytes.extend_from_slice(&[3, 0]);
        bytes.extend_from_slice(&24u16.to_ne_bytes());
        bytes.extend_from_slice(&0x0010_0000u64.to_ne_bytes());
        bytes.extend_from_slice(&fd.to_ne_bytes());
        bytes.extend_from_slice(&pid.to_ne_bytes());
        bytes.extend_from_slice(&[6, 0, 24, 0, 0, 0, 0, 0]);
        bytes.extend_from_slice(&offset.to_ne_bytes());
        bytes.extend_from_slice(&count.to_ne_bytes());
        bytes
    }

    #[test]
    fn events_are_read_one_after_another() {
        let mut bytes = encoded(7, 100, 4096, 8192);
        bytes.extend(encoded(8, 101, 0, 4096));
        bytes.extend([0; 48]);
        let events: Vec<_> = Events::new(&bytes).collect();
        assert_eq!(
            events,
            [
                Event { fd: 7, pid: 100, range: ByteRange::new(4096, 12288) },
                Event { fd: 8, pid: 101, range: ByteRange::new(0, 4096) },
            ]
        );
        assert_eq!(encoded(7, 100, 1, 2).len(), EVENT);
    }

    #[test]
    fn an_event_without_a_range_is_about_the_whole_file() {
        let mut bytes = encoded(7, 1, 4096, 8192);
        bytes.truncate(24);
        bytes[0] = 24;
        let event = Events::new(&bytes).next().unwrap();
        assert_eq!(event.range, ByteRange::new(0, u64::MAX));
    }

    #[test]
    fn pieces_of_other_kinds_are_skipped() {
        let whole = encoded(7, 1, 4096, 8192);
        let mut bytes = whole[..24].to_vec();
        bytes.extend([4, 0, 8, 0, 1, 2, 3, 4]);
        bytes.extend(&whole[24..]);
        bytes[0] = 56;
        assert_eq!(Events::new(&bytes).next().unwrap().range, ByteRange::new(4096, 12288));
    }

    #[test]
    fn every_cut_and_every_flipped_byte_ends_well() {
        let mut bytes = encoded(7, 100, 4096, 8192);
        bytes.extend(encoded(8, 101, u64::MAX, u64::MAX));
        for cut in 0..bytes.len() {
            assert!(Events::new(&bytes[..cut]).count() <= 2);
        }
        for at in 0..bytes.len() {
            for value in [0, 1, 23, 47, 49, 255] {
                let mut bad = bytes.clone();
                bad[at] = value;
                assert!(Events::new(&bad).count() <= 4);
            }
        }
    }
}
