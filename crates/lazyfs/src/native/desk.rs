//! Where events are answered.
//!
//! An answer names its event by number alone. Two events can have the same number only if one of them was read by a
//! process that died: the number was free then. So at the start the numbers of all that is unanswered are taken
//! ([`sys::reserve`]), and where that cannot be, because something else of this process has the number already, the
//! order helps: the kernel finds the older event first, so the younger is answered after it.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError, RwLock};
use std::time::Duration;

use super::event::{EVENT, Events};
use super::journal::{Journal, Noted, SLOTS};
use super::sys::{self, Verdict};
use crate::limits::open_files;

/// The group, its journal, and what is unanswered.
#[derive(Debug)]
pub(crate) struct Desk {
    group: OwnedFd,
    journal: Journal,
    /// Slots without an event.
    free: Mutex<Vec<u32>>,
    freed: Condvar,
    /// Answers are given while it is held for reading, and while this is true.
    open: RwLock<bool>,
    /// Numbers that may stand for two events.
    shared: Mutex<HashMap<RawFd, Shared>>,
    has_shared: AtomicUsize,
    /// Numbers of the process before that this one took, and closes.
    reserved: Mutex<BTreeMap<u32, RawFd>>,
    pub(crate) stopping: AtomicBool,
    pub(crate) events: AtomicU64,
}

/// A number with several events: their slots from old to new, and the answers that wait for older ones.
#[derive(Debug, Default)]
struct Shared {
    slots: Vec<u32>,
    ready: HashMap<u32, Verdict>,
}

impl Desk {
    /// Opens the desk over a group and its journal. Returns what the process before left unanswered, oldest first.
    /// Before anything else reads from the group.
    pub(crate) fn new(group: OwnedFd, mut journal: Journal) -> (Self, Vec<(u32, Noted)>) {
        let slots = u32::try_from(SLOTS.min(room())).unwrap_or(0);
        let left = journal.recover();
        let mut shared: HashMap<RawFd, Shared> = HashMap::new();
        let mut reserved = BTreeMap::new();
        for (slot, noted) in &left {
            if shared.contains_key(&noted.fd) || !sys::reserve(group.as_fd(), noted.fd) {
                shared.entry(noted.fd).or_default().slots.push(*slot);
            } else {
                reserved.insert(*slot, noted.fd);
            }
        }
        // Two that the process before had under one number already: the reserved one is the first of them.
        for (slot, number) in &reserved {
            if let Some(shared) = shared.get_mut(number) {
                shared.slots.insert(0, *slot);
            }
        }
        let taken: std::collections::HashSet<u32> = left.iter().map(|(slot, _)| *slot).collect();
        let free = (0..slots).rev().filter(|slot| !taken.contains(slot)).collect();
        let desk = Self {
            group,
            journal,
            free: Mutex::new(free),
            freed: Condvar::new(),
            open: RwLock::new(true),
            has_shared: AtomicUsize::new(shared.len()),
            shared: Mutex::new(shared),
            reserved: Mutex::new(reserved),
            stopping: AtomicBool::new(false),
            events: AtomicU64::new(0),
        };
        (desk, left)
    }

    pub(crate) fn group(&self) -> &OwnedFd {
        &self.group
    }

    pub(crate) fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Moves free slots to `stash` until it has `wanted`; waits a moment if there is none at all.
    pub(crate) fn take_slots(&self, stash: &mut Vec<u32>, wanted: usize) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.is_empty() && stash.is_empty() {
            let waited = self.freed.wait_timeout(free, Duration::from_millis(50));
            free = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let from = free.len().saturating_sub(wanted.saturating_sub(stash.len()));
        stash.extend(free.drain(from..));
    }

    /// Puts a new event down.
    pub(crate) fn note(&self, slot: u32, event: Noted) -> Noted {
        let event = self.journal.note(slot, event);
        if self.has_shared.load(Ordering::Acquire) > 0 {
            let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(shared) = shared.get_mut(&event.fd) {
                shared.slots.push(slot);
            }
        }
        event
    }

    /// Answers the event in `slot`. After [`Desk::close`] nothing is answered: that is the next process's.
    pub(crate) fn answer(&self, slot: u32, verdict: Verdict) {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        if !*open {
            return;
        }
        let Some(event) = self.journal.noted(slot) else { return };
        if self.has_shared.load(Ordering::Acquire) > 0 && self.answer_in_turn(slot, &event, verdict) {
            return;
        }
        self.give(slot, &event, verdict);
    }

    /// Answers an event whose number others have too, when all older ones are answered. `false` if no other has it.
    fn answer_in_turn(&self, slot: u32, event: &Noted, verdict: Verdict) -> bool {
        let mut all = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(shared) = all.get_mut(&event.fd).filter(|shared| shared.slots.contains(&slot)) else {
            return false;
        };
        shared.ready.insert(slot, verdict);
        while let Some(first) = shared.slots.first().copied() {
            let Some(verdict) = shared.ready.remove(&first) else { break };
            shared.slots.remove(0);
            if let Some(event) = self.journal.noted(first) {
                self.give(first, &event, verdict);
            }
        }
        if shared.slots.is_empty() {
            all.remove(&event.fd);
            self.has_shared.store(all.len(), Ordering::Release);
        }
        true
    }

    /// Answer, slot, number: in this order.
    fn give(&self, slot: u32, event: &Noted, verdict: Verdict) {
        if let Err(error) = sys::respond(self.group.as_raw_fd(), event.fd, verdict) {
            // It stays noted: the next process tries again.
            tracing::error!(number = event.fd, %error, "an event cannot be answered");
            return;
        }
        let ours = self.ours(slot, event);
        self.journal.answered(slot);
        if ours {
            sys::close(event.fd);
        }
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(slot);
        self.freed.notify_one();
    }

    /// Whether the number is a descriptor of this process: it came with an event that was read here, or was reserved.
    fn ours(&self, slot: u32, event: &Noted) -> bool {
        if event.sequence >= self.journal.first() {
            return true;
        }
        self.reserved.lock().unwrap_or_else(PoisonError::into_inner).remove(&slot).is_some()
    }

    /// From when this returns nothing is answered any more.
    pub(crate) fn close(&self) {
        *self.open.write().unwrap_or_else(PoisonError::into_inner) = false;
    }
}

/// Events whose descriptors this process has room for, after raising its limit as far as it may.
fn room() -> usize {
    let (limit, raised) = open_files((4 * SLOTS) as u64);
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files cannot be raised");
    }
    // Half of it is for everything else.
    limit.and_then(|limit| usize::try_from(limit / 2).ok()).unwrap_or(usize::MAX).max(64)
}

/// Refuses everything that is noted in the journal, so that no reader hangs as long as nobody serves. For the keeper,
/// before [`refuse_new`].
///
/// # Errors
/// That an answer is not accepted, or the journal is none.
pub(crate) fn refuse_unanswered(group: BorrowedFd<'_>, journal: BorrowedFd<'_>) -> io::Result<()> {
    let mut journal = Journal::open(journal)?;
    for (slot, event) in journal.recover() {
        sys::respond(group.as_raw_fd(), event.fd, Verdict::Refuse)?;
        journal.answered(slot);
    }
    Ok(())
}

/// Refuses everything that waits in the group. Returns how many events it were.
///
/// # Errors
/// That the group cannot be read, or an answer is not accepted.
pub(crate) fn refuse_new(group: BorrowedFd<'_>) -> io::Result<usize> {
    let mut refused = 0;
    let mut buffer = [0; 16 * EVENT];
    loop {
        let read = match sys::read(group.as_raw_fd(), &mut buffer) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(refused),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        for event in Events::new(buffer.get(..read).unwrap_or_default()).filter(|event| event.fd >= 0) {
            let answered = sys::respond(group.as_raw_fd(), event.fd, Verdict::Refuse);
            sys::close(event.fd);
            answered?;
            refused += 1;
        }
    }
}
