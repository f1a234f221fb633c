//! From the tar to the blob on many threads: one cuts, some compress, one writes.
//!
//! ```text
//!            ┌──── empty batches ◄───────────────────────┐
//!            ▼                                           │
//!  tar ─► Feeder ─► filled batches ─► workers ─► writer: in order ─► blob, Index
//! ```
//!
//! A fixed number of batches goes round: whoever is slow makes the others wait, and memory stays the same
//! however large the layer is. What stands in a batch depends on the input and the options alone, and so do
//! the blob's bytes, whatever the number of workers.
//!
//! The feeder is told where sections begin (see [`batch`](super::batch)) and what the [`Index`] shall know of
//! each. The writer tells the index when the section's place in the blob is known. An index is what makes a
//! dialect: it collects the TOC.

use std::io::{self, Read, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;

use content::{Digest, Hasher};

use super::BuildError;
use super::batch::Batch;
use super::codec::Codec;
use crate::archive::ArchiveError;

/// Inflated bytes in a batch before another one is begun: enough to keep threads from waking each other for
/// every small file.
const BATCH: usize = 256 * 1024;

/// The same if members have a least size: a batch is as far as the search for small files that share one
/// goes, and the most that a reader has to inflate for one of them.
const SHARED_BATCH: usize = 4 << 20;

/// How the blob is made of the tar.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) codec: Codec,
    pub(super) workers: usize,
    /// Bytes that a member holds at least; 0: a member for every section.
    pub(super) least: usize,
}

/// Collects what a TOC says.
pub(super) trait Index: Send {
    /// What the cutter leaves in a section for the index.
    type Mark: Send;

    /// Takes `mark` when its section stands in the blob. Marks come in the order in which they were made.
    /// `chunk` is the section's payload, if it has one.
    fn mark(&mut self, mark: Self::Mark, chunk: Option<&Chunk<'_>>);
}

/// A section's payload, and where it stands.
pub(super) struct Chunk<'a> {
    /// Where in the blob its member begins.
    pub(super) offset: u64,
    /// Where that member ends.
    pub(super) end: u64,
    /// Where it begins in what that member inflates to.
    pub(super) inner: u64,
    /// sha256 of the payload.
    pub(super) digest: Digest,
    pub(super) payload: &'a [u8],
}

/// The blob when all sections are written.
pub(super) struct Written<W, I> {
    pub(super) out: Blob<W>,
    pub(super) index: I,
    pub(super) diff: Diff,
}

/// Runs `cut`, and compresses and writes to `out` what it gives to the feeder.
pub(super) fn run<W, I, T>(
    out: W,
    index: I,
    plan: Plan,
    cut: impl FnOnce(&mut Feeder<I::Mark>) -> Result<T, BuildError>,
) -> Result<(Written<W, I>, T), BuildError>
where
    W: Write + Send,
    I: Index,
{
    // One filled and one compressed for each worker, and those at the ends.
    let batches = plan.workers * 2 + 2;
    let (put_back, free) = sync_channel(batches);
    let (jobs, todo) = sync_channel(batches);
    let (finished, done) = sync_channel(batches + plan.workers);
    for _ in 0..batches {
        // There is room for all of them.
        let _ = put_back.try_send(Batch::new());
    }
    let todo = Mutex::new(todo);
    thread::scope(|scope| {
        let mut workers = Vec::with_capacity(plan.workers);
        for number in 0..plan.workers {
            let (todo, finished) = (&todo, finished.clone());
            let worker = thread::Builder::new()
                .name(format!("compress-{number}"))
                .spawn_scoped(scope, move || work(todo, &finished, plan))
                .map_err(BuildError::Output)?;
            workers.push(worker);
        }
        drop(finished);
        let writer = thread::Builder::new()
            .name("write-layer".to_owned())
            .spawn_scoped(scope, move || write_in_order(&done, &put_back, out, index))
            .map_err(BuildError::Output)?;
        let mut feeder =
            Feeder::new(free, jobs, if plan.least == 0 { BATCH } else { SHARED_BATCH.max(plan.least * 8) });
        let cut = cut(&mut feeder).and_then(|value| feeder.send().map(|()| value));
        drop(feeder);
        // The writer's failure is what made the cutter stop, if both failed.
        let written = writer.join().unwrap_or_else(|_| Err(io::Error::other("the writing thread died")));
        for worker in workers {
            // If it died, the writer knows: it waited for what the worker had.
            let _ = worker.join();
        }
        let written = written.map_err(BuildError::Output)?;
        Ok((written, cut?))
    })
}

/// Takes the tar in sections and fills batches.
pub(super) struct Feeder<M> {
    free: Receiver<Batch<M>>,
    jobs: SyncSender<Batch<M>>,
    batch: Option<Batch<M>>,
    number: u64,
    /// Inflated bytes after which a batch is full.
    full: usize,
}

impl<M> Feeder<M> {
    const fn new(free: Receiver<Batch<M>>, jobs: SyncSender<Batch<M>>, full: usize) -> Self {
        Self { free, jobs, batch: None, number: 0, full }
    }

    /// Begins a section. A `fresh` one does not share a member with anything before it.
    pub(super) fn begin(&mut self, fresh: bool) -> Result<(), BuildError> {
        if self.batch.as_ref().is_some_and(|batch| batch.data.len() >= self.full) {
            self.send()?;
        }
        self.batch()?.begin(fresh);
        Ok(())
    }

    /// Begins a section with a payload of `len` bytes from `data`.
    pub(super) fn payload(
        &mut self,
        data: &mut impl Read,
        len: usize,
        fresh: bool,
    ) -> Result<(), BuildError> {
        self.begin(fresh)?;
        let batch = self.batch()?;
        batch.data.read(data, len).map_err(ArchiveError::from)?;
        batch.set_payload();
        Ok(())
    }

    /// Adds bytes to the section.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), BuildError> {
        self.section()?.data.extend(bytes);
        Ok(())
    }

    /// Leaves `mark` in the section.
    pub(super) fn mark(&mut self, mark: M) -> Result<(), BuildError> {
        self.section()?.mark(mark);
        Ok(())
    }

    /// Bytes in the section beyond its payload.
    pub(super) fn beyond_payload(&self) -> usize {
        self.batch.as_ref().and_then(Batch::beyond_payload).unwrap_or(0)
    }

    /// The batch, with a section in it.
    fn section(&mut self) -> Result<&mut Batch<M>, BuildError> {
        let batch = self.batch()?;
        if batch.beyond_payload().is_none() {
            batch.begin(false);
        }
        Ok(batch)
    }

    fn batch(&mut self) -> Result<&mut Batch<M>, BuildError> {
        let batch = match self.batch.take() {
            Some(batch) => batch,
            None => self.free.recv().map_err(|_| stopped())?,
        };
        Ok(self.batch.insert(batch))
    }

    /// Hands the batch over.
    fn send(&mut self) -> Result<(), BuildError> {
        let Some(mut batch) = self.batch.take() else { return Ok(()) };
        batch.number = self.number;
        self.number += 1;
        self.jobs.send(batch).map_err(|_| stopped())
    }
}

/// The writer has failed; its own error is the one to tell.
fn stopped() -> BuildError {
    BuildError::Output(io::Error::other("the writing thread stopped"))
}

/// A batch on its way from a worker to the writer; `None` if it was lost.
type Finished<M> = Option<io::Result<Batch<M>>>;

fn work<M>(todo: &Mutex<Receiver<Batch<M>>>, finished: &SyncSender<Finished<M>>, plan: Plan) {
    let mut compressor = plan.codec.compressor();
    loop {
        let batch = todo.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(mut batch) = batch else { return };
        let promise = Promise(Some(finished));
        let outcome = match &mut compressor {
            Ok(compressor) => batch.compress(compressor, plan.least),
            Err(error) => Err(io::Error::other(format!("starting the compressor: {error}"))),
        };
        promise.keep(outcome.map(|()| batch));
    }
}

/// Tells the writer if a worker died with a batch, so that it does not wait for it.
struct Promise<'a, M>(Option<&'a SyncSender<Finished<M>>>);

impl<M> Promise<'_, M> {
    fn keep(mut self, outcome: io::Result<Batch<M>>) {
        if let Some(finished) = self.0.take() {
            // A writer that failed does not take it any more.
            let _ = finished.send(Some(outcome));
        }
    }
}

impl<M> Drop for Promise<'_, M> {
    fn drop(&mut self) {
        if let Some(finished) = self.0.take() {
            let _ = finished.send(None);
        }
    }
}

/// Writes batches, each in its turn, until there are no more.
fn write_in_order<W: Write, I: Index>(
    done: &Receiver<Finished<I::Mark>>,
    put_back: &SyncSender<Batch<I::Mark>>,
    out: W,
    index: I,
) -> io::Result<Written<W, I>> {
    let lost = || io::Error::other("a part of the layer was lost on its way through a worker");
    let mut written = Written { out: Blob::new(out), index, diff: Diff::default() };
    let mut early: Vec<Batch<I::Mark>> = Vec::new();
    let mut number = 0;
    for batch in done {
        early.push(batch.ok_or_else(lost)??);
        while let Some(at) = early.iter().position(|batch| batch.number == number) {
            let mut batch = early.swap_remove(at);
            written.batch(&mut batch)?;
            batch.clear();
            // A cutter that is done does not take it any more.
            let _ = put_back.send(batch);
            number += 1;
        }
    }
    if early.is_empty() { Ok(written) } else { Err(lost()) }
}

impl<W: Write, I: Index> Written<W, I> {
    fn batch(&mut self, batch: &mut Batch<I::Mark>) -> io::Result<()> {
        self.diff.update(batch.data.bytes());
        let base = self.out.position();
        for (section, mark) in std::mem::take(&mut batch.marks) {
            let chunk = batch.chunk(section).map(|(packed, payload)| Chunk {
                offset: base + packed.member.0 as u64,
                end: base + packed.member.1 as u64,
                inner: packed.inner as u64,
                digest: packed.digest,
                payload,
            });
            self.index.mark(mark, chunk.as_ref());
        }
        self.out.write_all(batch.compressed.bytes())
    }
}

/// The inflated stream so far.
#[derive(Default)]
pub(super) struct Diff {
    hasher: Hasher,
    size: u64,
}

impl Diff {
    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
    }

    /// Digest and size.
    pub(super) fn finish(self) -> (Digest, u64) {
        (self.hasher.finish(), self.size)
    }
}

/// Where the blob goes, with what must be known of it.
pub(super) struct Blob<W> {
    out: W,
    hasher: Hasher,
    position: u64,
}

impl<W> Blob<W> {
    fn new(out: W) -> Self {
        Self { out, hasher: Hasher::new(), position: 0 }
    }

    pub(super) const fn position(&self) -> u64 {
        self.position
    }

    /// Digest and size.
    pub(super) fn finish(self) -> (Digest, u64) {
        (self.hasher.finish(), self.position)
    }
}

impl<W: Write> Write for Blob<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.hasher.update(bytes.get(..count).unwrap_or_default());
        self.position += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
