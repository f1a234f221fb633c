//! What is fetched though nobody waits for it: readahead, the prefetch of a start, and at last everything.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use content::{ByteRange, Urgency};
use estargz::Landmark;
use futures::StreamExt as _;
use tokio_util::sync::CancellationToken;

use super::Core;
use super::flight::{Bounds, Run};
use crate::layers::Prefetch;

/// Readahead goes out in requests of about this size, several at once: a single stream rarely fills a link.
const READAHEAD: Bounds = Bounds { bytes: 2 << 20, gap: 16 << 10 };
/// Prefetched bytes are usable as they stream in, so its requests may be long.
const PREFETCH: Bounds = Bounds { bytes: 8 << 20, gap: 16 << 10 };
/// Steps of the background fetch: at 200 Mbit/s a reader waits 170 ms for one to end, at worst.
const BACKGROUND: Bounds = Bounds { bytes: 4 << 20, gap: 16 << 10 };

/// What a step of the background fetch did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    /// It fetched something.
    Fetched,
    /// It could not; try later.
    Failed,
    /// There is nothing left.
    Complete,
}

impl Core {
    /// Fetches what `range` of the data file needs.
    pub(super) fn read_ahead(self: &Arc<Self>, range: ByteRange) {
        // It could not be kept until somebody reads it.
        if self.engine.is_disk_full() {
            return;
        }
        let mut candidates = self.index.chunks_in(range);
        // A file that nobody opened is guessed at as a whole or not at all: its chunk may be much longer than the guess.
        let is_too_long = |number: u32| {
            self.index.chunk(number).zip(self.index.start(number)).is_none_or(|(chunk, start)| {
                chunk.file_offset == 0 && start.saturating_add(u64::from(chunk.len)) > range.end
            })
        };
        while let Some(last) = candidates.end.checked_sub(1).filter(|last| candidates.contains(last)) {
            if !is_too_long(last) {
                break;
            }
            candidates.end = last;
        }
        let unused = self.unused();
        while let Some(run) = self.claim(&mut candidates, Urgency::Prefetch, READAHEAD, &unused) {
            self.depart(run, 0..0);
        }
    }

    /// How many bytes may be fetched for readers who said nothing about them, so that no more than one byte in sixteen is
    /// fetched in vain: whoever pays for each byte of a registry shall not pay for guesses.
    pub(super) fn may_guess(&self) -> u64 {
        // Two pieces of the cluster may be guessed at in any case.
        let unit = self.sources.unit();
        let least = if unit > 1 { unit.saturating_mul(2) } else { 0 };
        let touched = self.touched_bytes.load(Ordering::Relaxed);
        let in_vain = self.fetched_bytes.load(Ordering::Relaxed).saturating_sub(touched);
        (touched / 16).saturating_sub(in_vain).max(least)
    }

    /// Starts to fetch what a start will need: everything before the landmark, or as much as `prefetch`
    /// says if the image has none.
    pub(crate) fn start_prefetch(self: &Arc<Self>, prefetch: Prefetch) {
        let end = match self.index.landmark() {
            Landmark::Prefetch(end) => end,
            Landmark::NoPrefetch => 0,
            Landmark::Absent => prefetch.size,
        };
        let candidates = self.chunks_before(end);
        if !prefetch.enabled || candidates.is_empty() || self.is_complete() {
            self.prefetched.send_replace(true);
            return;
        }
        // Another one may have ended with those who used the layer before.
        self.prefetched.send_replace(false);
        let (layer, unused) = (Arc::clone(self), self.unused());
        self.engine.tasks.spawn(async move {
            tokio::select! {
                () = layer.engine.stop.cancelled() => {}
                // Nobody waits for it: whoever could has gone.
                () = unused.cancelled() => return,
                () = layer.prefetch(candidates, &unused) => {}
            }
            layer.prefetched.send_replace(true);
        });
    }

    async fn prefetch(self: &Arc<Self>, candidates: Range<u32>, unused: &CancellationToken) {
        let started = Instant::now();
        let runs = futures::stream::unfold(candidates, |mut candidates| async {
            if !self.engine.space.is_ample() {
                return None;
            }
            let run = self.claim(&mut candidates, Urgency::Prefetch, PREFETCH, unused)?;
            Some((run, candidates))
        });
        runs.for_each_concurrent(2, |run: Run| async move {
            self.fly(&run, &(0..0)).await;
            let here = run.passengers.iter().filter(|passenger| self.fill.has(passenger.number as usize));
            self.numbers.prefetched.add(here.map(|passenger| u64::from(passenger.chunk.len)).sum());
        })
        .await;
        self.numbers.prefetch_ended(self.digest, started);
    }

    /// The chunks whose bytes begin before `end` of the blob. The table of contents is nearly always in the
    /// order of the blob; where it is not, the prefetch is a few chunks short or long.
    fn chunks_before(&self, end: u64) -> Range<u32> {
        let before = self.index.chunks().take_while(|chunk| chunk.blob.start < end).count();
        0..u32::try_from(before).unwrap_or(u32::MAX)
    }

    /// How long the background fetch leaves the layer alone after a failure, which was tried at every
    /// source already: from 10 seconds, doubled with each failure, to 5 minutes.
    pub(crate) fn rest(&self) -> Duration {
        let doublings = self.failures.load(Ordering::Relaxed).saturating_sub(1).min(5);
        Duration::from_secs(10 << doublings).min(Duration::from_mins(5))
    }

    /// Fetches a little of what is absent. Is dropped when `unused` is cancelled.
    pub(crate) async fn background_step(self: &Arc<Self>, unused: &CancellationToken) -> Step {
        let all = u64::from(self.index.chunk_count());
        let from = self.cursor.load(Ordering::Relaxed).min(all);
        let mut candidates = u32::try_from(from).unwrap_or(0)..self.index.chunk_count();
        let Some(run) = self.claim(&mut candidates, Urgency::Background, BACKGROUND, unused) else {
            self.cursor.store(0, Ordering::Relaxed);
            return if self.is_complete() {
                Step::Complete
            } else if from > 0 {
                // Something before the cursor failed, was taken back, or is under way.
                Step::Fetched
            } else {
                Step::Failed
            };
        };
        self.cursor.store(u64::from(candidates.start), Ordering::Relaxed);
        self.numbers.background_begins();
        let numbers: Vec<u32> = run.passengers.iter().map(|passenger| passenger.number).collect();
        self.fly(&run, &(0..0)).await;
        let fetched = numbers.iter().any(|number| self.fill.has(*number as usize));
        if fetched {
            self.failures.store(0, Ordering::Relaxed);
            return Step::Fetched;
        }
        self.failures.fetch_add(1, Ordering::Relaxed);
        Step::Failed
    }
}
