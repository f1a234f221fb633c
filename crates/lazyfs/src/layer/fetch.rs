//! The way of the bytes: from the source through inflating and verification to the data file.
//!
//! A chunk whose digest is wrong goes nowhere. It is asked for once more, from another place if there is
//! one (behind a single place there may be other holders too); then whoever waits gets an error.
//!
//! A run that nobody waits for is read as a stream, so that its first chunks are usable while the last are
//! still on their way; one that somebody waits for is short and read at once.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use content::{ByteRange, Fault, ReadError, ReadErrorKind, Urgency};
use estargz::Chunk;
use futures::StreamExt as _;
use tokio::task::JoinSet;

use super::Core;
use super::flight::{Outcome, Passenger, Run};
use crate::source::Opened;

/// Inflated bytes that one job on the pool takes on: small files are not worth a job each.
const JOB: u64 = 1 << 20;

/// Chunks of one run whose compressed bytes lie in one piece of memory.
struct Job {
    /// Indices into the run's passengers.
    members: Vec<usize>,
    /// The compressed bytes of all of them.
    range: ByteRange,
    inflated: u64,
}

/// What became of a chunk on the pool.
type Inflated = Result<Outcome, String>;

impl Core {
    /// Sends a run on its way. `first` are the chunks that somebody waits for, if anybody does.
    pub(super) fn depart(self: &Arc<Self>, run: Run, first: Range<u32>) {
        let layer = Arc::clone(self);
        // The task ends with its source's answer or the deadline, and is awaited at shutdown.
        self.engine.tasks.spawn(async move {
            tokio::select! {
                () = layer.engine.stop.cancelled() => {}
                () = run.unused.cancelled() => {}
                () = layer.fly(&run, &first) => {}
            }
        });
    }

    /// Brings every chunk of a run home, or fails it.
    pub(super) async fn fly(self: &Arc<Self>, run: &Run, first: &Range<u32>) {
        let Some(_permit) = self.engine.fetch_permit(run.urgency).await else { return };
        // Somebody may have brought them while we waited for leave.
        let mut open: Vec<usize> = Vec::new();
        for (at, passenger) in run.passengers.iter().enumerate() {
            if self.fill.has(passenger.number as usize) {
                run.land(passenger, Outcome::Stored);
            } else if passenger.chunk.is_zeros() {
                self.land_zeros(run, passenger).await;
            } else {
                open.push(at);
            }
        }
        let attempts = self.sources.attempts();
        let mut error = ReadError::local(ReadErrorKind::Cancelled, "the fetch was given up");
        for attempt in 0..attempts {
            if open.is_empty() {
                return;
            }
            match self.attempt(run, first, &mut open, attempt).await {
                Ok(()) => {}
                Err(failure) => {
                    let hopeless =
                        matches!(failure.kind(), ReadErrorKind::Cancelled | ReadErrorKind::OutOfRange);
                    tracing::debug!(layer = %self.digest, range = %run.range, attempt, error = %failure, "fetch failed");
                    error = failure;
                    if hopeless {
                        break;
                    }
                }
            }
        }
        if !open.is_empty() && run.urgency != Urgency::Blocking {
            // A reader's failure is logged by the reader, with the file's name.
            self.complain(&format!("bytes {} of the blob", run.range), &error, false);
        }
        run.fail(&error);
    }

    /// A chunk of zeros is here from the beginning; this is for one that the disk has lost since.
    async fn land_zeros(self: &Arc<Self>, run: &Run, passenger: &Passenger) {
        let (layer, number, chunk) = (Arc::clone(self), passenger.number, passenger.chunk);
        let stored =
            tokio::task::spawn_blocking(move || layer.take_in(number, &chunk, &[], chunk.blob.start));
        let failed = |message: String| ReadError::local(ReadErrorKind::Other, message);
        let outcome = match stored.await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(message)) => Outcome::Failed(failed(message)),
            Err(error) => Outcome::Failed(failed(error.to_string())),
        };
        run.land(passenger, outcome);
    }

    /// Tries once. Takes what it brought home out of `open`.
    async fn attempt(
        self: &Arc<Self>,
        run: &Run,
        first: &Range<u32>,
        open: &mut Vec<usize>,
        attempt: usize,
    ) -> Result<(), ReadError> {
        let deadline = self.engine.options.read_deadline;
        let late = |_| ReadError::origin(ReadErrorKind::Unavailable, "the source did not answer in time");
        let source = tokio::time::timeout(deadline, self.sources.get(attempt)).await.map_err(late)??;
        let jobs = jobs(run, first, open);
        let mut pool = JoinSet::new();
        let read = if run.urgency == Urgency::Blocking {
            self.read_at_once(run, &source, jobs, &mut pool).await
        } else {
            self.read_as_stream(run, &source, jobs, &mut pool).await
        };
        let mut corrupt = None;
        while let Some(done) = pool.join_next().await {
            let results = done.map_err(|error| ReadError::local(ReadErrorKind::Other, error.to_string()))?;
            for (at, inflated) in results {
                match inflated {
                    Ok(outcome) => {
                        if let Some(passenger) = run.passengers.get(at) {
                            run.land(passenger, outcome);
                        }
                        open.retain(|other| *other != at);
                    }
                    Err(message) => {
                        if let Some(passenger) = run.passengers.get(at) {
                            // Or a source with a memory would give the same bytes again.
                            source.source.reject(passenger.chunk.blob).await;
                        }
                        corrupt = Some(message);
                    }
                }
            }
        }
        if let Err(error) = read {
            source.failed();
            return Err(error);
        }
        match corrupt {
            None => Ok(()),
            Some(message) => {
                source.failed();
                Err(ReadError::new(Fault::Origin, ReadErrorKind::Corrupt, message))
            }
        }
    }

    async fn read_at_once(
        self: &Arc<Self>,
        run: &Run,
        source: &Opened,
        jobs: Vec<Job>,
        pool: &mut JoinSet<Vec<(usize, Inflated)>>,
    ) -> Result<(), ReadError> {
        let Some(range) = jobs.iter().map(|job| job.range).reduce(cover) else { return Ok(()) };
        let read = source.source.read(range, run.urgency);
        let late = |_| ReadError::origin(ReadErrorKind::Unavailable, "the source did not answer in time");
        let bytes = tokio::time::timeout(self.engine.options.read_deadline, read).await.map_err(late)??;
        for job in jobs {
            self.inflate(run, job, &bytes, range.start, pool).await;
        }
        Ok(())
    }

    async fn read_as_stream(
        self: &Arc<Self>,
        run: &Run,
        source: &Opened,
        jobs: Vec<Job>,
        pool: &mut JoinSet<Vec<(usize, Inflated)>>,
    ) -> Result<(), ReadError> {
        let Some(range) = jobs.iter().map(|job| job.range).reduce(cover) else { return Ok(()) };
        let mut stream = Arc::clone(&source.source).stream(range, run.urgency);
        let mut buffer = BytesMut::new();
        let mut start = range.start;
        for job in jobs {
            while start + (buffer.len() as u64) < job.range.end {
                let next = tokio::time::timeout(self.engine.options.read_deadline, stream.next()).await;
                let short = || ReadError::origin(ReadErrorKind::Unavailable, "the source ended too early");
                buffer.extend_from_slice(&next.ok().flatten().ok_or_else(short)??);
            }
            // Jobs ascend; what lies before this one is not needed any more.
            let skip = usize::try_from(job.range.start.saturating_sub(start)).unwrap_or(usize::MAX);
            let skip = skip.min(buffer.len());
            drop(buffer.split_to(skip));
            start += skip as u64;
            let len =
                usize::try_from(job.range.end.saturating_sub(start)).unwrap_or(usize::MAX).min(buffer.len());
            let bytes = Bytes::copy_from_slice(buffer.get(..len).unwrap_or_default());
            self.inflate(run, job, &bytes, start, pool).await;
        }
        Ok(())
    }

    /// Puts a job on the pool. Waits for a place there: so much and no more is held in memory.
    async fn inflate(
        self: &Arc<Self>,
        run: &Run,
        job: Job,
        bytes: &Bytes,
        start: u64,
        pool: &mut JoinSet<Vec<(usize, Inflated)>>,
    ) {
        let members: Vec<(usize, u32, Chunk)> = job
            .members
            .iter()
            .filter_map(|at| {
                run.passengers.get(*at).map(|passenger| (*at, passenger.number, passenger.chunk))
            })
            .collect();
        let layer = Arc::clone(self);
        let bytes = bytes.clone();
        let urgency = run.urgency;
        let leave = self.engine.inflate_permit(urgency).await.map(tokio::sync::SemaphorePermit::forget);
        if leave.is_none() {
            return;
        }
        pool.spawn_blocking(move || {
            let _leave = scope(|| layer.engine.inflated(urgency));
            members
                .into_iter()
                .map(|(at, number, chunk)| (at, layer.take_in(number, &chunk, &bytes, start)))
                .collect()
        });
    }

    /// Inflates, verifies and keeps one chunk.
    fn take_in(&self, number: u32, chunk: &Chunk, bytes: &[u8], start: u64) -> Inflated {
        let from = usize::try_from(chunk.blob.start.saturating_sub(start)).unwrap_or(usize::MAX);
        let to = usize::try_from(chunk.blob.end.saturating_sub(start)).unwrap_or(usize::MAX);
        let compressed = bytes.get(from..to).ok_or("the source answered fewer bytes than asked")?;
        let data = estargz::inflate_chunk(compressed, chunk).map_err(|error| error.to_string())?;
        let at = self.layout.start(number).ok_or("the chunk has no place in the data file")?;
        match self.fill.store(number as usize, at, &data) {
            Ok(new) => {
                if new {
                    self.fetched_bytes.fetch_add(u64::from(chunk.len), Ordering::Relaxed);
                }
                self.engine.disk(false);
                self.engine.wrote.notify_one();
                Ok(Outcome::Stored)
            }
            Err(error) => {
                // The reader gets its bytes whatever the disk says.
                let error = ReadError::from(error);
                if error.kind() == ReadErrorKind::NoSpace {
                    self.engine.disk(true);
                } else {
                    self.complain("writing the layer store", &error, true);
                }
                Ok(Outcome::Carried(data.into()))
            }
        }
    }
}

/// Runs `end` when dropped: a place on the pool is given back even if the job panics.
fn scope<F: FnOnce()>(end: F) -> impl Drop {
    struct Scope<F: FnOnce()>(Option<F>);
    impl<F: FnOnce()> Drop for Scope<F> {
        fn drop(&mut self) {
            if let Some(end) = self.0.take() {
                end();
            }
        }
    }
    Scope(Some(end))
}

fn cover(a: ByteRange, b: ByteRange) -> ByteRange {
    ByteRange::new(a.start.min(b.start), a.end.max(b.end))
}

/// Divides the open chunks of a run into jobs: what somebody waits for first and by itself, the rest in the
/// order of the blob.
fn jobs(run: &Run, first: &Range<u32>, open: &[usize]) -> Vec<Job> {
    let mut awaited: Vec<Job> = Vec::new();
    let mut others: Vec<Job> = Vec::new();
    for at in open {
        let Some(passenger) = run.passengers.get(*at) else { continue };
        let jobs = if first.contains(&passenger.number) { &mut awaited } else { &mut others };
        let (range, len) = (passenger.chunk.blob, u64::from(passenger.chunk.len));
        match jobs.last_mut().filter(|job| job.inflated + len <= JOB) {
            Some(job) => {
                job.members.push(*at);
                job.range = cover(job.range, range);
                job.inflated += len;
            }
            None => jobs.push(Job { members: vec![*at], range, inflated: len }),
        }
    }
    awaited.append(&mut others);
    awaited
}
