//! Where containers/storage cuts a file: at places that the content itself chooses, and around long runs of
//! zeros.
//!
//! A rolling checksum over the last 64 bytes ends a chunk wherever its low 16 bits are all ones, on average
//! every 64 KiB. Two versions of a file then have most chunks in common, though bytes were inserted before
//! them, and a machine that has one version fetches only what differs. That works among images of all tools
//! only if all cut alike; so the checksum is the one of rsync's kind that containers/storage took from bup, and
//! 1024 zeros make a hole there as well.
//!
//! A chunk has a greatest length here, to bound memory; content reaches it almost never, holes do.

use std::io::{self, Read};

/// Zeros in a row that make a hole.
const HOLE: usize = 1024;

/// Bytes that the checksum sees.
const WINDOW: u32 = 64;

/// Added to every byte, so that zeros count as well.
const OFFSET: u32 = 31;

/// What the low bits of the checksum are at a chunk's end.
const MASK: u32 = 0xffff;

/// Bytes that are read at a time.
const READ: usize = 256 * 1024;

/// A rolling checksum of two sums.
struct RollingSum {
    first: u32,
    second: u32,
    window: [u8; WINDOW as usize],
    at: usize,
}

impl RollingSum {
    const fn new() -> Self {
        // As if 64 zeros had been seen.
        Self {
            first: WINDOW * OFFSET,
            second: WINDOW * (WINDOW - 1) * OFFSET,
            window: [0; WINDOW as usize],
            at: 0,
        }
    }

    /// Takes a byte. Whether a chunk ends behind it.
    fn roll(&mut self, byte: u8) -> bool {
        let oldest = match self.window.get_mut(self.at) {
            Some(slot) => std::mem::replace(slot, byte),
            None => 0,
        };
        self.at = (self.at + 1) % self.window.len();
        self.first = self.first.wrapping_add(byte.into()).wrapping_sub(oldest.into());
        let leaving = WINDOW * (u32::from(oldest) + OFFSET);
        self.second = self.second.wrapping_add(self.first).wrapping_sub(leaving);
        self.second & MASK == MASK
    }
}

/// Cuts one file after another.
pub(super) struct Chunker {
    buffer: Vec<u8>,
    /// Where the chunk begins that is being looked for.
    start: usize,
    /// The longest chunk.
    most: usize,
    sum: RollingSum,
    /// The chunk before was a part of a hole that may go on.
    in_hole: bool,
    ended: bool,
}

/// A part of a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Piece<'a> {
    pub(super) bytes: &'a [u8],
    /// It is a part of a hole: all zeros.
    pub(super) is_hole: bool,
}

impl Chunker {
    /// No chunk shall have more than `most` bytes, unless that is less than a hole has.
    pub(super) fn new(most: usize) -> Self {
        Self {
            buffer: Vec::new(),
            start: 0,
            most: most.max(HOLE),
            sum: RollingSum::new(),
            in_hole: false,
            ended: false,
        }
    }

    /// Begins another file.
    pub(super) fn reset(&mut self) {
        self.buffer.clear();
        self.start = 0;
        self.sum = RollingSum::new();
        self.in_hole = false;
        self.ended = false;
    }

    /// The next chunk of the file whose content is `data`; `None` at its end.
    pub(super) fn next(&mut self, data: &mut impl Read) -> io::Result<Option<Piece<'_>>> {
        let zeros = self.zeros(data, 0, self.most)?;
        if zeros >= HOLE || (self.in_hole && zeros > 0) {
            if !self.in_hole {
                // More zeros than the window has room for change nothing.
                for _ in 0..WINDOW {
                    self.sum.roll(0);
                }
            }
            self.in_hole = true;
            return Ok(Some(self.take(zeros, true)));
        }
        self.in_hole = false;
        let len = self.content(data, zeros)?;
        Ok((len > 0).then(|| self.take(len, false)))
    }

    /// How long the chunk of content is that begins here. The first `few` zeros are no hole.
    fn content(&mut self, data: &mut impl Read, few: usize) -> io::Result<usize> {
        let mut at = 0;
        let mut no_hole_before = few;
        loop {
            let here = self.buffer.get(self.start + at..).unwrap_or_default();
            let room = self.most - at;
            let mut zero = None;
            for (offset, byte) in here.iter().take(room).enumerate() {
                if *byte == 0 && at + offset >= no_hole_before {
                    zero = Some(at + offset);
                    break;
                }
                if self.sum.roll(*byte) {
                    return Ok(at + offset + 1);
                }
            }
            if let Some(zero) = zero {
                let run = self.zeros(data, zero, HOLE)?;
                if run == HOLE {
                    return Ok(zero);
                }
                at = zero;
                no_hole_before = zero + run;
                continue;
            }
            at += here.len().min(room);
            if at == self.most || !self.fill(data)? {
                return Ok(at);
            }
        }
    }

    /// How many zeros stand `at` bytes into the chunk, counting up to `most`.
    fn zeros(&mut self, data: &mut impl Read, at: usize, most: usize) -> io::Result<usize> {
        let mut run = 0;
        loop {
            let here = self.buffer.get(self.start + at + run..).unwrap_or_default();
            let zeros = here.iter().take(most - run).take_while(|byte| **byte == 0).count();
            let is_end = zeros == here.len();
            run += zeros;
            if run == most || !is_end || !self.fill(data)? {
                return Ok(run);
            }
        }
    }

    /// Reads more behind what is there. `false` at the end of the file.
    fn fill(&mut self, data: &mut impl Read) -> io::Result<bool> {
        if self.ended {
            return Ok(false);
        }
        self.buffer.drain(..self.start);
        self.start = 0;
        let count = data.take(READ as u64).read_to_end(&mut self.buffer)?;
        self.ended = count < READ;
        Ok(count > 0)
    }

    fn take(&mut self, len: usize, is_hole: bool) -> Piece<'_> {
        let start = self.start;
        self.start += len;
        Piece { bytes: self.buffer.get(start..self.start).unwrap_or_default(), is_hole }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: usize = 1 << 20;

    /// Lengths of the pieces of `data`, holes negative.
    fn cut(data: &[u8], most: usize) -> Vec<i64> {
        let mut chunker = Chunker::new(most);
        // What another file left behind has no influence.
        assert!(chunker.next(&mut [1; 100].as_slice()).unwrap().is_some());
        chunker.reset();
        let mut rest = data;
        let mut lens = Vec::new();
        let mut whole = Vec::new();
        while let Some(piece) = chunker.next(&mut rest).unwrap() {
            let len = i64::try_from(piece.bytes.len()).unwrap();
            assert!(len > 0 && piece.bytes.len() <= most);
            whole.extend_from_slice(piece.bytes);
            if piece.is_hole {
                assert!(piece.bytes.iter().all(|byte| *byte == 0));
            }
            lens.push(if piece.is_hole { -len } else { len });
        }
        assert!(whole == data);
        lens
    }

    /// Bytes that look random, none of them 0.
    fn noise(len: usize, seed: u64) -> Vec<u8> {
        let mut state = seed;
        let mut next = || {
            // A step of xorshift.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            u8::try_from(state % 255).unwrap() + 1
        };
        (0..len).map(|_| next()).collect()
    }

    #[test]
    fn the_checksum_is_that_of_the_window_alone() {
        let data = noise(5000, 1);
        let mut rolled = RollingSum::new();
        for byte in &data {
            rolled.roll(*byte);
        }
        // The sums of the definition: of the bytes, and of the bytes weighted by their age.
        let window = || data.iter().rev().take(WINDOW as usize).map(|byte| u32::from(*byte) + OFFSET);
        assert_eq!(rolled.first, window().sum::<u32>());
        let second: u32 = (1..=64).zip(window()).map(|(age, byte)| age * byte).sum();
        let start = RollingSum::new();
        let constant = start.second.wrapping_sub((1..=64).map(|age: u32| age * OFFSET).sum());
        assert_eq!(rolled.second, second.wrapping_add(constant));
    }

    #[test]
    fn cuts_move_with_the_content() {
        let data = noise(3_000_000, 7);
        let before = cut(&data, MOST);
        assert!((20..100).contains(&before.len()), "{} chunks", before.len());
        let shifted = cut(&[b"inserted", data.as_slice()].concat(), MOST);
        assert_eq!(before[1..], shifted[1..]);
        assert_eq!(before[0] + 8, shifted[0]);
    }

    #[test]
    fn long_runs_of_zeros_are_holes() {
        let zeros = |len| vec![0; len];
        assert_eq!(cut(&zeros(1023), MOST), [1023]);
        assert_eq!(cut(&zeros(1024), MOST), [-1024]);
        assert_eq!(cut(&[], MOST), [0; 0]);
        let (a, b) = (noise(300, 3), noise(200, 4));
        assert_eq!(cut(&[&a[..], &zeros(1023), &b].concat(), MOST), [300 + 1023 + 200]);
        assert_eq!(cut(&[&a[..], &zeros(1024), &b].concat(), MOST), [300, -1024, 200]);
        assert_eq!(cut(&[&zeros(5000)[..], &b, &zeros(2000)].concat(), MOST), [-5000, 200, -2000]);
        // Over what is read at a time.
        assert_eq!(cut(&[&a[..], &zeros(3 * READ), &b].concat(), MOST), [300, -(3 * 262_144), 200]);
    }

    #[test]
    fn nothing_is_longer_than_it_may_be() {
        // The checksum of one byte repeated does not change, and never ends a chunk.
        assert_eq!(cut(&[5; 10_000], 4096), [4096, 4096, 1808]);
        let hole = cut(&[&[5; 10][..], &[0; 10_000], &[5; 10]].concat(), 4096);
        assert_eq!(hole, [10, -4096, -4096, -1808, 10], "the rest of a hole is a hole, however short");
        assert_eq!(cut(&[0; 8192], 4096), [-4096, -4096]);
    }
}
