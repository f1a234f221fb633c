//! The way of the bytes: from the source through inflating and verification to the data file.
//!
//! A chunk whose digest is wrong goes nowhere. It is asked for once more, from another place if there is
//! one (behind a single place there may be other holders too); then whoever waits gets an error.
//!
//! A run that nobody waits for is read as a stream, so that its first chunks are usable while the last are
//! still on their way; one that somebody waits for is short and read at once.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use content::{ByteRange, ByteStream, Fault, ReadError, ReadErrorKind, Urgency};
use estargz::Chunk;
use futures::StreamExt as _;
use tokio::sync::SemaphorePermit;
use tokio::task::JoinSet;

use super::Core;
use super::flight::{Outcome, Passenger, Run};
use crate::buffers::Buffers;
use crate::source::Opened;

/// Inflated bytes that one job on the pool takes on: small files are not worth a job each.
const JOB: u64 = 1 << 20;
/// From so many bytes on a chunk that cannot be kept stays in the buffer that it was inflated in.
const LARGE: usize = 512 << 10;

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
            // Who waits gets an error by then; who comes later begins anew.
            let is_awaited = run.urgency == Urgency::Blocking;
            let deadline = layer.engine.options.read_deadline;
            let late = async {
                if is_awaited {
                    tokio::time::sleep(deadline).await;
                } else {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                () = layer.engine.stop.cancelled() => {}
                () = run.unused.cancelled() => {}
                () = layer.fly(&run, &first) => {}
                () = late => run.fail(&late_by(deadline)),
            }
        });
    }

    /// Brings every chunk of a run home, or fails it.
    pub(super) async fn fly(self: &Arc<Self>, run: &Run, first: &Range<u32>) {
        let Some(permit) = self.engine.fetch_permit(run.urgency).await else { return };
        let mut permit = Some(permit);
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
            match self.attempt(run, first, &mut open, attempt, &mut permit).await {
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
        permit: &mut Option<SemaphorePermit<'_>>,
    ) -> Result<(), ReadError> {
        let jobs = jobs(run, first, open);
        let mut pool = JoinSet::new();
        let began = Instant::now();
        let read = if run.urgency == Urgency::Blocking {
            self.read_at_once(run, attempt, jobs, &mut pool).await
        } else {
            self.read_as_stream(run, attempt, jobs, &mut pool).await
        };
        let (source, read) = match read {
            Ok((source, read)) => (Some(source), read),
            Err(error) => (None, Err(error)),
        };
        if read.is_ok() {
            self.numbers.get.observe(began.elapsed());
            self.numbers.heard();
        }
        if run.urgency != Urgency::Blocking {
            self.numbers.arrived_for_nobody();
        }
        // Everything is with the inflaters, which have places of their own: the next may go to the source.
        drop(permit.take());
        let mut corrupt = None;
        while let Some(done) = pool.join_next().await {
            let results = done.map_err(|error| ReadError::local(ReadErrorKind::Other, error.to_string()))?;
            for (at, inflated) in results {
                match inflated {
                    Ok(outcome) => {
                        if let Some(passenger) = run.passengers.get(at) {
                            run.land(passenger, outcome);
                            if run.urgency == Urgency::Blocking {
                                self.numbers.arrived_for_reader(u64::from(passenger.chunk.len));
                            }
                        }
                        open.retain(|other| *other != at);
                    }
                    Err(message) => {
                        self.numbers.is_wrong();
                        if let (Some(passenger), Some(source)) = (run.passengers.get(at), &source) {
                            // Or a source with a memory would give the same bytes again.
                            source.source.reject(passenger.chunk.blob).await;
                            source.lied();
                        }
                        corrupt = Some(message);
                    }
                }
            }
        }
        if let Err(error) = read {
            if let Some(source) = &source {
                source.failed(&error);
            }
            return Err(error);
        }
        match corrupt {
            None => Ok(()),
            Some(message) => Err(ReadError::new(Fault::Origin, ReadErrorKind::Corrupt, message)),
        }
    }

    /// For somebody who waits: one request, of whichever place answers first.
    async fn read_at_once(
        self: &Arc<Self>,
        run: &Run,
        attempt: usize,
        jobs: Vec<Job>,
        pool: &mut JoinSet<Vec<(usize, Inflated)>>,
    ) -> Result<(Opened, Result<(), ReadError>), ReadError> {
        let range = jobs.iter().map(|job| job.range).reduce(cover).unwrap_or(run.range);
        let (bytes, source) = self.sources.read(attempt, range, run.urgency).await?;
        for job in jobs {
            self.inflate(run, job, &bytes, range.start, pool).await;
        }
        Ok((source, Ok(())))
    }

    /// For nobody who waits: jobs begin as their bytes arrive.
    async fn read_as_stream(
        self: &Arc<Self>,
        run: &Run,
        attempt: usize,
        jobs: Vec<Job>,
        pool: &mut JoinSet<Vec<(usize, Inflated)>>,
    ) -> Result<(Opened, Result<(), ReadError>), ReadError> {
        let deadline = self.engine.options.read_deadline;
        let late = |_| ReadError::origin(ReadErrorKind::Unavailable, "the source did not answer in time");
        let source = tokio::time::timeout(deadline, self.sources.get(attempt)).await.map_err(late)??;
        let range = jobs.iter().map(|job| job.range).reduce(cover).unwrap_or(run.range);
        let mut arriving = Arriving {
            stream: Arc::clone(&source.source).stream(range, run.urgency),
            parts: VecDeque::new(),
            start: range.start,
            len: 0,
            deadline,
        };
        let mut jobs = jobs.into_iter();
        while let Some(job) = jobs.next() {
            let is_last = jobs.len() == 0;
            match arriving.take(job.range, is_last, &self.engine.buffers).await {
                Ok(bytes) => {
                    let start = job.range.start;
                    self.inflate(run, job, &bytes, start, pool).await;
                }
                Err(error) => return Ok((source, Err(error))),
            }
        }
        Ok((source, Ok(())))
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
        let leave = self.engine.inflate_permit(urgency).await.map(SemaphorePermit::forget);
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
        let mut buffer = self.engine.buffers.take();
        let part =
            estargz::inflate_chunk_in(compressed, chunk, buffer.vec()).map_err(|error| error.to_string())?;
        self.inflated.fetch_add(1, Ordering::Relaxed);
        let data = buffer.as_ref().get(part.clone()).ok_or("the chunk is not where it was put")?;
        let at = self.index.start(number).ok_or("the chunk has no place in the data file")?;
        match self.fill.store(number as usize, at, data) {
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
                // A small chunk does not keep a large buffer.
                let is_large = data.len() >= LARGE;
                let bytes = if is_large {
                    Bytes::from_owner(buffer).slice(part)
                } else {
                    Bytes::copy_from_slice(data)
                };
                Ok(Outcome::Carried(bytes))
            }
        }
    }
}

/// What a reader is told after its deadline.
pub(super) fn late_by(deadline: Duration) -> ReadError {
    let message = format!("no source answered within {} s", deadline.as_secs_f32());
    ReadError::local(ReadErrorKind::Unavailable, message)
}

/// Bytes of a stream that jobs have not gone past.
struct Arriving {
    stream: ByteStream,
    parts: VecDeque<Bytes>,
    /// Where the first part begins, and how long all of them are.
    start: u64,
    len: u64,
    deadline: Duration,
}

impl Arriving {
    /// The bytes of `range`, which begins no sooner than those before: copied once, unless they came in one piece.
    /// Of the last range nothing is kept here.
    async fn take(&mut self, range: ByteRange, is_last: bool, buffers: &Buffers) -> Result<Bytes, ReadError> {
        self.skip_to(range.start);
        while self.start + self.len < range.end {
            let next = tokio::time::timeout(self.deadline, self.stream.next()).await;
            let short = || ReadError::origin(ReadErrorKind::Unavailable, "the source ended too early");
            let part = next.ok().flatten().ok_or_else(short)??;
            self.len += part.len() as u64;
            self.parts.push_back(part);
            self.skip_to(range.start);
        }
        let len = usize::try_from(range.len()).unwrap_or(usize::MAX);
        if let Some(first) = self.parts.front().filter(|first| first.len() >= len) {
            return Ok(first.slice(..len));
        }
        let mut buffer = buffers.take();
        let bytes = buffer.vec();
        bytes.clear();
        bytes.reserve_exact(len);
        for part in &mut self.parts {
            let rest = len - bytes.len();
            bytes.extend_from_slice(part.get(..rest.min(part.len())).unwrap_or_default());
            if is_last {
                *part = Bytes::new();
            }
        }
        Ok(Bytes::from_owner(buffer))
    }

    /// Lets go of what lies before `start`.
    fn skip_to(&mut self, start: u64) {
        while let Some(first) = self.parts.front_mut() {
            let skip =
                usize::try_from(start.saturating_sub(self.start)).unwrap_or(usize::MAX).min(first.len());
            if skip == 0 {
                break;
            }
            bytes::Buf::advance(first, skip);
            self.start += skip as u64;
            self.len -= skip as u64;
            if first.is_empty() {
                self.parts.pop_front();
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
