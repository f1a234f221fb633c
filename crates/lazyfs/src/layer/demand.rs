//! What the kernel asks for when it shows the data file by itself: ranges of that file, which must be there when it is
//! told that they are.

use std::collections::HashSet;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use content::{ByteRange, ReadError, ReadErrorKind, Urgency};

use super::fetch::late_by;
use super::{Core, PoisonError};
use crate::reserve::Lease;

/// What is fetched at once for a range that is longer: the kernel's own are 1 MiB and shorter, but whoever maps the
/// data file itself asks for all of it.
const STEP: u64 = 16 << 20;
const PAGE: u64 = 4096;

impl Core {
    /// The descriptor through which the data file is filled.
    pub(crate) fn data(&self) -> BorrowedFd<'_> {
        self.fill.descriptor()
    }

    /// Whether the data file is whole and will be after any crash: nobody needs to ask before reading it.
    pub(crate) fn is_settled(&self) -> bool {
        self.is_complete() && self.fill.is_durable()
    }

    /// The chunks that have bytes in `range` of the data file; `None` if the index does not account for every page of it.
    fn chunks_of(&self, range: ByteRange) -> Option<Range<u32>> {
        let range = range.intersect(&ByteRange::new(0, self.index.data_len()));
        let chunks = self.index.chunks_touching(range);
        // An index that cannot be read has no chunks, and a hole must not pass for that.
        let mut covered = range.start;
        for number in chunks.clone() {
            let (chunk, start) = (self.index.chunk(number)?, self.index.start(number)?);
            if start >= covered.saturating_add(PAGE) {
                return None;
            }
            covered = covered.max(start.saturating_add(u64::from(chunk.len)));
        }
        // Behind the end of a file its last page goes on, and is zeros.
        (range.end < covered.saturating_add(PAGE) || range.is_empty()).then_some(chunks)
    }

    /// Whether all bytes in `range` of the data file are there.
    pub(crate) fn holds(&self, range: ByteRange) -> bool {
        let has = |number: u32| self.fill.has(number as usize);
        self.is_complete() || self.chunks_of(range).is_some_and(|mut chunks| chunks.all(has))
    }

    /// Notes that a reader wants `range` of the data file: for the numbers, and for the readahead. Inside a runtime.
    pub(crate) fn touch_range(self: &Arc<Self>, range: ByteRange) {
        let Some(chunks) = self.chunks_of(range) else { return };
        self.record(chunks.clone());
        for number in chunks.clone() {
            if self.touched.set(number as usize)
                && let Some(chunk) = self.index.chunk(number)
            {
                self.touched_bytes.fetch_add(u64::from(chunk.len), Ordering::Relaxed);
            }
        }
        if self.is_complete() || range.len() > STEP {
            return;
        }
        let last = chunks.end.checked_sub(1).and_then(|last| self.index.file_end(last));
        let file_end = last.unwrap_or_else(|| self.index.data_len());
        let next = self.ahead.lock().unwrap_or_else(PoisonError::into_inner).observe(
            range,
            file_end,
            self.may_guess(),
        );
        if let Some(next) = next {
            self.read_ahead(next);
        }
    }

    /// Sees to it that all bytes in `range` of the data file are there, within the deadline, and as long as the result is
    /// held: what a full disk cannot keep is there for a while only.
    ///
    /// # Errors
    /// Why they could not be had.
    pub(crate) async fn fill_range(
        self: &Arc<Self>,
        range: ByteRange,
        urgency: Urgency,
    ) -> Result<Vec<Lease>, ReadError> {
        let deadline = self.engine.options.read_deadline;
        let range = range.intersect(&ByteRange::new(0, self.index.data_len()));
        let (chunks, began) = (self.chunks_of(range).unwrap_or(0..0), Instant::now());
        if urgency == Urgency::Blocking && self.is_late(&chunks) {
            return Err(late_by(deadline));
        }
        let waiting = (urgency == Urgency::Blocking).then(|| self.engine.reader_waits());
        let filled = match tokio::time::timeout(deadline, self.fill_in_steps(range, urgency)).await {
            Ok(filled) => filled,
            Err(_) => Err(late_by(deadline)),
        };
        drop(waiting);
        let leases = filled.inspect_err(|error| {
            self.note_late(chunks, began);
            let file = self.path_at(range.start).unwrap_or_default();
            self.complain(
                &format!("bytes {range} of the data file, in {file}"),
                error,
                urgency == Urgency::Blocking,
            );
        })?;
        self.content_again();
        Ok(leases)
    }

    async fn fill_in_steps(
        self: &Arc<Self>,
        range: ByteRange,
        urgency: Urgency,
    ) -> Result<Vec<Lease>, ReadError> {
        let mut leases = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let step = ByteRange::new(at, range.end.min(at.saturating_add(STEP)));
            let unreadable = || ReadError::local(ReadErrorKind::Other, "the layer's index cannot be read");
            let chunks = self.chunks_of(step).ok_or_else(unreadable)?;
            self.fill_chunks(&chunks, urgency, &mut leases).await?;
            at = step.end;
        }
        Ok(leases)
    }

    async fn fill_chunks(
        self: &Arc<Self>,
        chunks: &Range<u32>,
        urgency: Urgency,
        leases: &mut Vec<Lease>,
    ) -> Result<(), ReadError> {
        let mut lent = HashSet::new();
        let mut absent = chunks.end..chunks.end;
        for number in chunks.clone() {
            if self.fill.has(number as usize) {
                continue;
            }
            if let Some(lease) = self.lease(number) {
                leases.push(lease);
                lent.insert(number);
                continue;
            }
            absent = absent.start.min(number)..number + 1;
        }
        if !absent.is_empty() {
            for (number, bytes) in self.fetch(&absent, urgency).await? {
                if !self.fill.has(number as usize) {
                    leases.push(self.lend(number, bytes).await?);
                    lent.insert(number);
                }
            }
        }
        if chunks.clone().all(|number| self.fill.has(number as usize) || lent.contains(&number)) {
            return Ok(());
        }
        Err(ReadError::local(ReadErrorKind::Other, "the layer store lost a chunk that was just fetched"))
    }
}
