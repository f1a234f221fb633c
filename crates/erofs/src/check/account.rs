//! Which bytes of the image, and which blocks of the data file, are whose.

use super::{CheckError, Fault};
use crate::disk::{FIRST_INODE, position};

/// A run of bytes of the image, or of blocks of the data file.
#[derive(Clone, Copy)]
struct Run {
    start: u64,
    len: u64,
    /// Inode that has the blocks.
    nid: u64,
}

/// What was claimed so far.
pub(super) struct Account<'a> {
    image: &'a [u8],
    bytes: Vec<Run>,
    blocks: Vec<Run>,
}

impl<'a> Account<'a> {
    pub(super) fn new(image: &'a [u8]) -> Self {
        // Superblock and device slot stand before the first inode. What is before the superblock is nobody's.
        let superblock = Run { start: 1024, len: FIRST_INODE - 1024, nid: 0 };
        Self { image, bytes: vec![superblock], blocks: Vec::new() }
    }

    /// Claims bytes of the image.
    pub(super) fn claim(&mut self, start: u64, len: u64) {
        if len > 0 {
            self.bytes.push(Run { start, len, nid: 0 });
        }
    }

    /// Claims blocks of the data file.
    pub(super) fn claim_data(&mut self, start: u64, len: u64, nid: u64) {
        self.blocks.push(Run { start, len, nid });
    }

    /// Nothing may be claimed twice, and what is left must be zeros.
    pub(super) fn settle(self) -> Result<(), CheckError> {
        let Self { image, mut bytes, mut blocks } = self;
        blocks.sort_unstable_by_key(|run| run.start);
        if let Some((_, second)) = overlap(&blocks) {
            return Err(CheckError::Inode { nid: second.nid, fault: Fault::DataTwice });
        }
        bytes.sort_unstable_by_key(|run| run.start);
        if let Some((_, second)) = overlap(&bytes) {
            return Err(CheckError::Twice(second.start));
        }
        let mut free = 0;
        for run in bytes.into_iter().chain([Run { start: image.len() as u64, len: 0, nid: 0 }]) {
            let gap = image.get(position(free)..position(run.start)).unwrap_or_default();
            if let Some(at) = gap.iter().position(|byte| *byte != 0) {
                return Err(CheckError::Stray(free + at as u64));
            }
            free = run.start + run.len;
        }
        Ok(())
    }
}

/// The first two of sorted runs that share something.
fn overlap(runs: &[Run]) -> Option<(Run, Run)> {
    let pair = runs.array_windows().find(|[one, next]| one.start.saturating_add(one.len) > next.start);
    pair.map(|[one, next]| (*one, *next))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_one_owner_or_is_zero() {
        let mut image = vec![0; 4096];
        image[2000] = 1;
        let settle = |claims: &[(u64, u64)]| {
            let mut account = Account::new(&image);
            for (start, len) in claims {
                account.claim(*start, *len);
            }
            account.settle()
        };
        assert_eq!(settle(&[]), Err(CheckError::Stray(2000)));
        assert_eq!(settle(&[(1280, 64), (2000, 1)]), Ok(()));
        assert_eq!(settle(&[(2000, 64), (1280, 64)]), Ok(()));
        assert_eq!(settle(&[(2000, 64), (2063, 1)]), Err(CheckError::Twice(2063)));
        assert_eq!(settle(&[(1279, 8), (2000, 1)]), Err(CheckError::Twice(1279)));
        assert_eq!(settle(&[(2001, 2095)]), Err(CheckError::Stray(2000)));
    }

    #[test]
    fn every_block_has_one_file() {
        let image = vec![0; 4096];
        let settle = |claims: &[(u64, u64)]| {
            let mut account = Account::new(&image);
            for ((start, len), nid) in claims.iter().zip(50..) {
                account.claim_data(*start, *len, nid);
            }
            account.settle()
        };
        assert_eq!(settle(&[(5, 5), (0, 5)]), Ok(()));
        let fault = Fault::DataTwice;
        assert_eq!(settle(&[(0, 6), (5, 5)]), Err(CheckError::Inode { nid: 51, fault }));
        assert_eq!(settle(&[(5, u64::MAX), (7, 1)]), Err(CheckError::Inode { nid: 51, fault }));
    }
}
