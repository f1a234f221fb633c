//! What an upload has taken and the registry has not acknowledged, and the account of what goes out.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::transport::Counters;

/// Bytes given to the connection at once: progress is told in steps of this.
const PIECE: usize = 128 << 10;
/// A chunk of which no byte was taken for so long, or whose answer does not come, is broken off.
pub(super) const STALL: Duration = Duration::from_mins(1);

/// Is told the bytes that were sent for the first time since it was told last.
pub type Progress = Arc<dyn Fn(u64) + Send + Sync>;

/// Bytes in order that were taken and not yet acknowledged.
#[derive(Default)]
pub(super) struct Waiting {
    parts: VecDeque<Bytes>,
    pub(super) len: u64,
}

impl Waiting {
    pub(super) fn push(&mut self, bytes: Bytes) {
        self.len += bytes.len() as u64;
        self.parts.push_back(bytes);
    }

    /// The first `len` bytes, without taking them out, in pieces of at most [`PIECE`].
    pub(super) fn first(&self, len: u64) -> Vec<Bytes> {
        let mut left = usize::try_from(len).unwrap_or(usize::MAX);
        let mut first = Vec::new();
        for part in &self.parts {
            let mut part = part.clone();
            part.truncate(left);
            left -= part.len();
            while part.len() > PIECE {
                first.push(part.split_to(PIECE));
            }
            first.push(part);
            if left == 0 {
                break;
            }
        }
        first
    }

    /// Lets the first `len` bytes go.
    pub(super) fn release(&mut self, mut len: u64) {
        self.len = self.len.saturating_sub(len);
        while let Some(mut part) = self.parts.pop_front() {
            let size = part.len() as u64;
            if size > len {
                let _ = part.split_to(usize::try_from(len).unwrap_or(part.len()));
                self.parts.push_front(part);
                return;
            }
            len -= size;
        }
    }

    pub(super) fn clear(&mut self) {
        self.parts.clear();
        self.len = 0;
    }
}

/// Counts what goes out, and notices when nothing does.
pub(super) struct Meter {
    counters: Arc<Counters>,
    state: Mutex<MeterState>,
}

struct MeterState {
    /// The furthest byte of the blob that was ever sent: bytes that are sent again are no progress.
    furthest: u64,
    touched: Instant,
    progress: Option<Progress>,
}

impl Meter {
    pub(super) fn new(counters: Arc<Counters>, progress: Option<Progress>) -> Self {
        let state = MeterState { furthest: 0, touched: Instant::now(), progress };
        Self { counters, state: Mutex::new(state) }
    }

    pub(super) fn touch(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).touched = Instant::now();
    }

    pub(super) fn sent(&self, from: u64, len: usize) {
        self.counters.sent(len);
        let (fresh, progress) = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.touched = Instant::now();
            let end = from + len as u64;
            let fresh = end.saturating_sub(state.furthest);
            state.furthest = state.furthest.max(end);
            (fresh, state.progress.clone())
        };
        if let Some(progress) = progress.filter(|_| fresh > 0) {
            progress(fresh);
        }
    }

    /// Ends when nothing was sent for [`STALL`].
    pub(super) async fn stalled(&self) {
        loop {
            let until = self.state.lock().unwrap_or_else(PoisonError::into_inner).touched + STALL;
            if until <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_kept_until_they_are_released_wherever_the_borders_lie() {
        let mut waiting = Waiting::default();
        for part in ["pan", "ta", "", "la"] {
            waiting.push(Bytes::from_static(part.as_bytes()));
        }
        let first = |waiting: &Waiting, len| waiting.first(len).concat();
        assert_eq!(
            (waiting.len, first(&waiting, 4), first(&waiting, 7)),
            (7, b"pant".to_vec(), b"pantala".to_vec())
        );
        waiting.release(4);
        assert_eq!((waiting.len, first(&waiting, 3)), (3, b"ala".to_vec()));
        waiting.release(1);
        assert_eq!((waiting.len, first(&waiting, 99)), (2, b"la".to_vec()));
        waiting.clear();
        assert_eq!((waiting.len, first(&waiting, 1)), (0, Vec::new()));
    }

    #[test]
    fn large_parts_are_given_out_in_pieces() {
        let mut waiting = Waiting::default();
        waiting.push(Bytes::from(vec![7; 2 * PIECE + 1]));
        let sizes: Vec<usize> = waiting.first(2 * PIECE as u64 + 1).iter().map(Bytes::len).collect();
        assert_eq!(sizes, [PIECE, PIECE, 1]);
    }

    #[test]
    fn what_is_sent_again_is_no_progress() {
        let total = Arc::new(std::sync::atomic::AtomicU64::new(0));
        let told = Arc::clone(&total);
        let progress: Progress = Arc::new(move |bytes| {
            told.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed);
        });
        let meter = Meter::new(Arc::default(), Some(progress));
        for (from, len) in [(0, 10), (5, 10), (0, 15), (15, 1)] {
            meter.sent(from, len);
        }
        assert_eq!(total.load(std::sync::atomic::Ordering::Relaxed), 16);
        assert_eq!(meter.counters.usage().sent, 36);
    }
}
