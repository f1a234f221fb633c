//! How much room the store has, and what may still be fetched.
//!
//! Two limits, each with marks that lie apart so that nothing flips to and fro. A *budget* says how many bytes the
//! store may take on disk. *Keep free* says how much of the file system the store leaves to others, whoever
//! fills it: without it a node that fetches in the background would be what drives the kubelet to evict its pods.
//!
//! | level | from | what is fetched |
//! |---|---|---|
//! | ample | ≤ 80 % of the budget, ≥ 110 % of what is kept free | everything |
//! | tight | ≥ 90 % of the budget, < 100 % of what is kept free | what somebody waits for; unused layers are evicted |
//! | full | the whole budget, < 10 % of what is kept free | the same, and nothing new is kept |
//!
//! What the store takes is measured by allocated blocks (see `layers/evict.rs`), about once a second while
//! something is written. Between two measures the bytes written are added, so that the budget is never passed by more
//! than what is under way.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};

/// Bytes written after which it is time to measure, whatever the clock says.
const MEASURE_AFTER: u64 = 16 << 20;

/// How much room there is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Level {
    /// Everything may be fetched.
    Ample,
    /// Only what somebody waits for.
    Tight,
    /// Nothing more is kept.
    Full,
}

/// What a store may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Bytes of the store.
    pub(crate) budget: Option<u64>,
    /// Percent of the file system that are left to others.
    pub(crate) keep_free: u8,
}

/// Bytes, seen at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    /// Taken by the store.
    pub(crate) used: u64,
    /// Size of the file system.
    pub(crate) total: u64,
    /// What is free on it for us.
    pub(crate) free: u64,
}

impl Limits {
    /// Bytes to leave to others.
    fn kept_free(&self, total: u64) -> u64 {
        (u128::from(total) * u128::from(self.keep_free.min(100)) / 100).try_into().unwrap_or(u64::MAX)
    }

    /// The level after `now`.
    pub(crate) fn judge(&self, now: Level, seen: &Seen) -> Level {
        let keep = self.kept_free(seen.total);
        let over = |percent: u64| {
            self.budget
                .is_some_and(|budget| u128::from(seen.used) * 100 >= u128::from(budget) * u128::from(percent))
        };
        let scarce = |percent: u64| u128::from(seen.free) * 100 < u128::from(keep) * u128::from(percent);
        if over(100) || scarce(10) {
            Level::Full
        } else if over(90) || scarce(100) {
            Level::Tight
        } else if over(80) || scarce(110) {
            now.min(Level::Tight)
        } else {
            Level::Ample
        }
    }

    /// Bytes that must go until there is ample room.
    pub(crate) fn excess(&self, seen: &Seen) -> u64 {
        let low = self.budget.map_or(u64::MAX, |budget| budget / 100 * 80);
        let keep = self.kept_free(seen.total);
        let wanted = keep.saturating_add(keep / 10);
        seen.used.saturating_sub(low).max(wanted.saturating_sub(seen.free))
    }
}

/// The room of a store.
pub(crate) struct Space {
    folder: OwnedFd,
    pub(crate) limits: Limits,
    level: watch::Sender<Level>,
    /// At the last measure.
    seen: Mutex<Seen>,
    /// Since the last measure.
    written: AtomicU64,
    /// The disk is full, and what room the store has is lent in turn.
    is_lending: AtomicBool,
    /// It is time to measure.
    pub(crate) stale: Notify,
}

impl Space {
    /// The room of the store in `folder`; nobody has measured it yet.
    pub(crate) fn new(folder: OwnedFd, limits: Limits) -> Self {
        Self {
            folder,
            limits,
            level: watch::Sender::new(Level::Ample),
            seen: Mutex::default(),
            written: AtomicU64::new(0),
            is_lending: AtomicBool::new(false),
            stale: Notify::new(),
        }
    }

    /// Whether nothing is limited.
    pub(crate) fn is_unlimited(&self) -> bool {
        self.limits.budget.is_none() && self.limits.keep_free == 0
    }

    /// The level.
    pub(crate) fn level(&self) -> Level {
        *self.level.borrow()
    }

    /// Whether bytes may be fetched that nobody waits for.
    pub(crate) fn is_ample(&self) -> bool {
        self.level() == Level::Ample
    }

    /// Waits until they may.
    pub(crate) async fn ample(&self) {
        // The sender lives as long as `self`.
        let _ = self.level.subscribe().wait_for(|level| *level == Level::Ample).await;
    }

    /// The store's last room is lent in turn from now on, or is whole again.
    pub(crate) fn lend(&self, is_lending: bool) {
        if self.is_lending.swap(is_lending, Ordering::AcqRel) != is_lending {
            self.stale.notify_one();
        }
    }

    /// Bytes are about to be written: says whether they may.
    pub(crate) fn admit(&self, bytes: u64) -> bool {
        if self.is_lending.load(Ordering::Acquire) {
            return false;
        }
        if self.is_unlimited() {
            return true;
        }
        if self.level() == Level::Full {
            return false;
        }
        let bytes = bytes.next_multiple_of(4096);
        let before = self.written.fetch_add(bytes, Ordering::Relaxed);
        let after = before.saturating_add(bytes);
        if before == 0 || before / MEASURE_AFTER != after / MEASURE_AFTER {
            self.stale.notify_one();
        }
        // Nothing may be known yet, or too much be counted that was written twice: the next measure tells.
        let mut seen = *self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let spent = seen.used.saturating_add(after) > self.limits.budget.unwrap_or(u64::MAX);
        seen.used = seen.used.saturating_add(before);
        seen.free = seen.free.saturating_sub(before);
        let level = self.limits.judge(self.level(), &seen);
        if level > self.level() {
            self.set(level, &seen);
        }
        if spent {
            self.stale.notify_one();
        }
        !spent && level < Level::Full
    }

    /// Notes what the store takes, and looks at the file system.
    pub(crate) fn measured(&self, used: u64) -> std::io::Result<Seen> {
        let fs = rustix::fs::fstatvfs(&self.folder)?;
        let seen = Seen {
            used,
            // As df counts: what is set aside for root belongs to nobody.
            total: fs
                .f_blocks
                .saturating_sub(fs.f_bfree)
                .saturating_add(fs.f_bavail)
                .saturating_mul(fs.f_frsize),
            free: fs.f_bavail.saturating_mul(fs.f_frsize),
        };
        self.written.store(0, Ordering::Relaxed);
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = seen;
        self.set(self.limits.judge(self.level(), &seen), &seen);
        Ok(seen)
    }

    fn set(&self, level: Level, seen: &Seen) {
        if self.level.send_if_modified(|now| std::mem::replace(now, level) != level) {
            self.tell(level, seen);
        }
    }

    /// One line per change.
    fn tell(&self, level: Level, seen: &Seen) {
        let (used, free, budget) = (seen.used, seen.free, self.limits.budget.unwrap_or_default());
        let keep_free = self.limits.kept_free(seen.total);
        match level {
            Level::Ample => {
                tracing::info!(
                    used,
                    budget,
                    free,
                    keep_free,
                    "the layer store has room again: background fetch and prefetch go on"
                );
            }
            Level::Tight => {
                tracing::warn!(
                    used,
                    budget,
                    free,
                    keep_free,
                    "the layer store has little room: background fetch and prefetch wait"
                );
            }
            Level::Full => {
                tracing::warn!(
                    used,
                    budget,
                    free,
                    keep_free,
                    "the layer store has no room: chunks are served without being kept"
                );
            }
        }
    }

    /// How long a measure is good if nothing is written.
    pub(crate) fn pause(&self) -> Duration {
        // Others fill the disk too, and make room on it.
        let is_short = !self.is_ample() || self.is_lending.load(Ordering::Acquire);
        if is_short { Duration::from_secs(5) } else { Duration::from_mins(1) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn seen(used: u64, free: u64) -> Seen {
        Seen { used, free, total: 100 * GIB }
    }

    #[test]
    fn a_budget_has_marks_that_lie_apart() {
        let limits = Limits { budget: Some(10 * GIB), keep_free: 0 };
        let judge = |now, used| limits.judge(now, &seen(used * GIB / 10, 50 * GIB));
        for (now, used, then) in [
            (Level::Ample, 0, Level::Ample),
            (Level::Ample, 89, Level::Ample),
            (Level::Ample, 90, Level::Tight),
            (Level::Tight, 81, Level::Tight),
            (Level::Full, 81, Level::Tight),
            (Level::Full, 99, Level::Tight),
            (Level::Tight, 100, Level::Full),
            (Level::Tight, 79, Level::Ample),
            (Level::Full, 79, Level::Ample),
        ] {
            assert_eq!(judge(now, used), then, "{now:?} at {used} %");
        }
        assert_eq!(limits.excess(&seen(9 * GIB, 0)).div_ceil(1000), GIB.div_ceil(1000));
        assert_eq!(limits.excess(&seen(GIB, 0)), 0);
    }

    #[test]
    fn room_is_left_to_others_whoever_fills_the_disk() {
        let limits = Limits { budget: None, keep_free: 20 };
        let judge = |now, free| limits.judge(now, &seen(0, free * GIB));
        for (now, free, then) in [
            (Level::Ample, 21, Level::Ample),
            (Level::Ample, 19, Level::Tight),
            (Level::Tight, 21, Level::Tight),
            (Level::Tight, 22, Level::Ample),
            (Level::Tight, 1, Level::Full),
            (Level::Full, 2, Level::Tight),
        ] {
            assert_eq!(judge(now, free), then, "{now:?} with {free} % free");
        }
        assert_eq!(limits.excess(&seen(0, 19 * GIB)), 3 * GIB);
        let none = Limits { budget: None, keep_free: 0 };
        assert_eq!(none.judge(Level::Full, &seen(u64::MAX, 0)), Level::Ample);
    }

    #[test]
    fn a_budget_is_not_passed_between_two_measures() {
        let folder = tempfile::tempdir().unwrap();
        let open = std::fs::File::open(folder.path()).unwrap().into();
        let space = Space::new(open, Limits { budget: Some(1 << 20), keep_free: 0 });
        let kept = (0..1000).filter(|_| space.admit(100)).count();
        assert_eq!(kept, 256, "each takes a page");
        space.measured(0).unwrap();
        assert!(space.admit(100));
        space.measured(1 << 20).unwrap();
        assert!(space.level() == Level::Full && !space.admit(1));
    }
}
