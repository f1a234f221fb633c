//! Room for readers when the disk is full.
//!
//! The `native` driver can give a reader nothing but what lies in the data file. So that it can go on when the disk
//! is full, the store holds a file of allocated blocks, the *reserve*. A chunk that could not be kept is *lent*
//! a place: the reserve gives up as many blocks, and the chunk is written into its hole with them. Its bit is
//! not set, neither in memory nor on disk: it goes again when others need the room, the longest unused first.
//!
//! **When a lent chunk may go.** A hole punched before the kernel has copied the bytes would be zeros to a reader,
//! so it is punched only if nobody holds its [`Lease`] (taken before an event is answered, given back after)
//! and none was held for [`AFTER_ANSWER`]. After its answer a reader has nothing left to wait for but the
//! processor: it runs in the kernel, where neither a signal nor SIGSTOP nor the (v2) freezer of its control group stops it
//! until the read is done, and its next read of pages that are not cached asks again. What is left is a
//! machine that gives a runnable task no processor for ten seconds; the clock stands still while the machine sleeps.
//!
//! **And when it may not.** A chunk that was meanwhile kept for good is left alone (the check and the punch exclude
//! whoever keeps it). As long as anything is lent no chunk is kept for good: it would
//! take the blocks that go from hand to hand. When the disk has room again the reserve is filled up first, and then everything that is lent is
//! kept for good: its bytes are verified and in their place.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use content::{ByteRange, Digest};
use rustix::fs::{FallocateFlags, Mode, OFlags};

use crate::fill::Fill;
use crate::space::Space;

/// How long a chunk stays after the last answer that needed it.
pub(crate) const AFTER_ANSWER: Duration = Duration::from_secs(10);
/// The reserve takes at most one part in so many of what is free.
const SHARE_OF_FREE: u64 = 10;
/// It is a multiple of this.
const BLOCK: u64 = 4096;
/// Given up beyond the chunk itself, if it takes more.
const SLACK: u64 = 64 << 10;

/// A chunk of a layer.
pub(crate) type Key = (Digest, u32);

/// The reserve, and what is lent.
pub(crate) struct Reserve {
    folder: OwnedFd,
    space: Arc<Space>,
    after_answer: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Bytes that it should have; 0 until somebody needs one.
    wanted: u64,
    file: Option<File>,
    /// Bytes that it has.
    len: u64,
    lent: HashMap<Key, Lent>,
}

struct Lent {
    fill: Arc<Fill>,
    /// Where its bytes are.
    bytes: ByteRange,
    /// The same, and the rest of the last page if it is nobody's.
    place: ByteRange,
    leases: usize,
    last: Instant,
}

/// Keeps a lent chunk where it is.
#[derive(Debug)]
pub(crate) struct Lease {
    reserve: Weak<Reserve>,
    key: Key,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(reserve) = self.reserve.upgrade() else { return };
        let mut state = reserve.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lent) = state.lent.get_mut(&self.key) {
            lent.leases = lent.leases.saturating_sub(1);
            lent.last = Instant::now();
        }
    }
}

/// Why nothing is lent.
#[derive(Debug)]
pub(crate) enum Refused {
    /// All of it is lent; some will be free after this time.
    Wait(Duration),
    /// It does not help to wait.
    Never(io::Error),
}

impl Reserve {
    /// The reserve of the store in `folder`, which holds nothing yet.
    pub(crate) fn new(folder: OwnedFd, space: Arc<Space>, after_answer: Duration) -> Arc<Self> {
        Arc::new(Self { folder, space, after_answer, state: Mutex::default() })
    }

    /// Sees to it that there are `wanted` bytes, or a tenth of what is free if that is less: the reserve must not be
    /// what fills a small disk. May take as long as the file system needs to allocate them.
    pub(crate) fn hold(&self, wanted: u64) -> io::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.wanted >= wanted {
            return Ok(());
        }
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = File::from(rustix::fs::openat(&self.folder, "reserve", flags, Mode::RUSR | Mode::WUSR)?);
        // Also what the process before left of it. It never has holes.
        let has = file.metadata()?.len().min(wanted);
        let disk = rustix::fs::fstatvfs(&self.folder)?;
        let share = disk.f_bavail.saturating_mul(disk.f_frsize) / SHARE_OF_FREE / BLOCK * BLOCK;
        state.wanted = wanted.min(share).max(has);
        state.len = has;
        file.set_len(state.len)?;
        state.file = Some(file);
        let wanted = state.wanted;
        state.grow(wanted)
    }

    /// Bytes that it takes on disk.
    pub(crate) fn len(&self) -> u64 {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).len
    }

    /// Writes a chunk into its hole and lends it the place. `place` is where it lies, to the end of its last
    /// page if nothing else lies there.
    pub(crate) fn lend(
        self: &Arc<Self>,
        fill: &Arc<Fill>,
        key: Key,
        place: ByteRange,
        bytes: &[u8],
    ) -> Result<Lease, Refused> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lease) = self.lease_of(&mut state, key) {
            return Ok(lease);
        }
        let page = |at: u64| at.next_multiple_of(4096);
        let needed = page(place.len());
        // What is given up is for the chunk, not for others of ours that would keep theirs with it.
        self.space.lend(true);
        // Again: if somebody else took the blocks that we gave up for ourselves, or the tree of the data file's
        // extents needed one.
        for extra in [0, SLACK, needed.saturating_add(SLACK)] {
            let given_up = needed.saturating_add(extra);
            self.make_room(&mut state, given_up)?;
            let before = state.len;
            state.shrink(given_up).map_err(Refused::Never)?;
            match fill.lend(place.start, bytes) {
                Ok(()) => {
                    let _ = state.grow(before.saturating_sub(needed));
                    let bytes = ByteRange::at(place.start, bytes.len() as u64);
                    let lent = Lent { fill: Arc::clone(fill), bytes, place, leases: 1, last: Instant::now() };
                    state.lent.insert(key, lent);
                    return Ok(Lease { reserve: Arc::downgrade(self), key });
                }
                Err(error) => {
                    // What was written of it is no more than a reserve that is spent.
                    let _ = fill.punch_absent(key.1 as usize, place);
                    let _ = state.grow(before);
                    if !is_full(&error) {
                        return Err(Refused::Never(error));
                    }
                }
            }
        }
        Err(Refused::Never(io::Error::new(io::ErrorKind::StorageFull, "others took the reserve's room")))
    }

    /// The chunk, if it is lent: a reader needs it again.
    pub(crate) fn lease(self: &Arc<Self>, key: Key) -> Option<Lease> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.lent.is_empty() { None } else { self.lease_of(&mut state, key) }
    }

    fn lease_of(self: &Arc<Self>, state: &mut State, key: Key) -> Option<Lease> {
        let lent = state.lent.get_mut(&key)?;
        lent.leases += 1;
        Some(Lease { reserve: Arc::downgrade(self), key })
    }

    /// Takes chunks back until the reserve has `needed` bytes.
    fn make_room(&self, state: &mut State, needed: u64) -> Result<(), Refused> {
        if needed > state.wanted {
            let message = format!("a chunk of {needed} bytes is larger than the reserve for a full disk");
            return Err(Refused::Never(io::Error::new(io::ErrorKind::StorageFull, message)));
        }
        while state.len < needed {
            let oldest = state.lent.iter().filter(|(_, lent)| lent.leases == 0);
            let Some((key, since)) =
                oldest.map(|(key, lent)| (*key, lent.last.elapsed())).max_by_key(|(_, since)| *since)
            else {
                // Held by events that are about to be answered.
                return Err(if state.lent.is_empty() {
                    Refused::Never(io::Error::new(io::ErrorKind::StorageFull, "the reserve is used up"))
                } else {
                    Refused::Wait(Duration::from_millis(100))
                });
            };
            if let Some(rest) = self.after_answer.checked_sub(since).filter(|rest| !rest.is_zero()) {
                return Err(Refused::Wait(rest));
            }
            let Some(lent) = state.lent.remove(&key) else { continue };
            match lent.fill.punch_absent(key.1 as usize, lent.place) {
                Ok(true) => {
                    let grown = state.len.saturating_add(lent.place.len().next_multiple_of(4096));
                    // If somebody else was faster, the next chunk pays for it.
                    let _ = state.grow(grown.min(state.wanted));
                }
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, "a lent chunk cannot be taken back"),
            }
        }
        Ok(())
    }

    /// Fills the reserve up if there is room on the disk. Returns the chunks that can be kept for good then.
    pub(crate) fn recover(&self) -> Vec<(Key, Arc<Fill>, ByteRange)> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = state.wanted;
        if state.len >= wanted && state.lent.is_empty() || state.grow(wanted).is_err() {
            return Vec::new();
        }
        self.space.lend(false);
        state.lent.drain().map(|(key, lent)| (key, lent.fill, lent.bytes)).collect()
    }

    /// Whether anything is lent, or less is held than should be.
    pub(crate) fn is_short(&self) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.len < state.wanted || !state.lent.is_empty()
    }
}

impl State {
    fn grow(&mut self, len: u64) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        if len > self.len {
            let allocated = rustix::fs::fallocate(file, FallocateFlags::empty(), self.len, len - self.len);
            if let Err(error) = allocated {
                // What it got before it failed it would keep.
                file.set_len(self.len)?;
                return Err(error.into());
            }
            self.len = len;
        }
        Ok(())
    }

    fn shrink(&mut self, by: u64) -> io::Result<()> {
        let len = self.len.saturating_sub(by);
        if let Some(file) = &self.file {
            file.set_len(len)?;
        }
        self.len = len;
        Ok(())
    }
}

/// Whether a write failed for want of room.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests;
