//! What could not be had in time is not waited for again at once.
//!
//! The kernel asks a second time for a page that it could not read ahead, and a reader who waits for the deadline twice has
//! waited for too long. So a range that took very long to fail fails again at once, for a moment: much longer than the
//! kernel needs to ask again, and much shorter than a person.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::{Duration, Instant};

use super::{Core, PoisonError};

/// How long it is remembered.
const AGAIN: Duration = Duration::from_millis(500);
/// How many ranges are remembered.
const MOST: usize = 16;

/// Chunks that could not be had, and when that was known.
pub(super) type Late = VecDeque<(Instant, Range<u32>)>;

impl Core {
    /// Notes that somebody waited for these chunks since `began`, in vain.
    pub(super) fn note_late(&self, chunks: Range<u32>, began: Instant) {
        if began.elapsed() < self.engine.options.read_deadline / 2 {
            return;
        }
        let mut late = self.late.lock().unwrap_or_else(PoisonError::into_inner);
        late.truncate(MOST - 1);
        late.push_front((Instant::now(), chunks));
    }

    /// Whether somebody has just waited for one of these chunks in vain.
    pub(super) fn is_late(&self, chunks: &Range<u32>) -> bool {
        let mut late = self.late.lock().unwrap_or_else(PoisonError::into_inner);
        late.retain(|(at, _)| at.elapsed() < AGAIN);
        let absent = |number: u32| !self.fill.has(number as usize);
        late.iter().any(|(_, late)| (chunks.start.max(late.start)..chunks.end.min(late.end)).any(absent))
    }
}
