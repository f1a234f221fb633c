//! What is known of a blob while somebody reads it: shared by whoever inflates it and whoever asks.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;

/// Members that are remembered between two chunks. An honest blob has one or two there.
const MAX_MEMBERS: usize = 1 << 22;

/// Where a member begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Start {
    /// Offset in the blob.
    pub(super) blob: u64,
    /// Offset in what the blob inflates to.
    pub(super) inflated: u64,
}

/// What is known while somebody reads: shared with whoever holds the reader.
#[derive(Default)]
pub(super) struct Track {
    /// Bytes inflated so far.
    inflated: Cell<u64>,
    /// Where the member under way begins.
    member: Cell<u64>,
    /// Members that gave bytes, the oldest first.
    starts: RefCell<VecDeque<Start>>,
    /// The blob could not be read: nobody lied.
    unreadable: Cell<bool>,
    bomb: Cell<bool>,
}

impl Track {
    pub(super) fn inflated(&self) -> u64 {
        self.inflated.get()
    }

    /// Offset in the blob of the member that failed.
    pub(super) fn member(&self) -> u64 {
        self.member.get()
    }

    pub(super) fn gave(&self, count: u64) {
        self.inflated.set(self.inflated.get().saturating_add(count));
    }

    pub(super) fn set_member(&self, offset: u64) {
        self.member.set(offset);
    }

    pub(super) fn set_unreadable(&self) {
        self.unreadable.set(true);
    }

    pub(super) fn set_bomb(&self) {
        self.bomb.set(true);
    }

    pub(super) fn is_unreadable(&self) -> bool {
        self.unreadable.get()
    }

    pub(super) fn is_bomb(&self) -> bool {
        self.bomb.get()
    }

    /// The member that gave the inflated byte `at`.
    pub(super) fn locate(&self, at: u64) -> Option<Start> {
        let starts = self.starts.borrow();
        let after = starts.partition_point(|start| start.inflated <= at);
        starts.get(after.checked_sub(1)?).copied()
    }

    /// Nobody will ask for what lies before `at`.
    pub(super) fn forget_before(&self, at: u64) {
        let mut starts = self.starts.borrow_mut();
        while starts.get(1).is_some_and(|second| second.inflated <= at) {
            starts.pop_front();
        }
    }

    pub(super) fn begin(&self, start: Start) -> io::Result<()> {
        let mut starts = self.starts.borrow_mut();
        if starts.len() >= MAX_MEMBERS {
            return Err(io::Error::other("more compressed members than any tool writes"));
        }
        starts.push_back(start);
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn starts(&self) -> Vec<Start> {
        self.starts.borrow().iter().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_found_as_long_as_it_may_be_asked_for() {
        let track = Track::default();
        for (blob, inflated) in [(0, 0), (10, 100), (20, 200)] {
            track.begin(Start { blob, inflated }).unwrap();
        }
        assert_eq!(track.locate(150).unwrap().blob, 10);
        track.forget_before(100);
        assert_eq!(track.locate(100).unwrap().blob, 10);
        assert_eq!(track.locate(99), None);
    }
}
