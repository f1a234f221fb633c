//! What a reader does.
//!
//! It reads what is here. For what is not here it waits for the flight that is under way, or starts one.
//! A flight of lesser urgency is given a moment and then overtaken; its failure is not the reader's. After
//! the deadline the reader gets an error: it never hangs.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use content::{ByteRange, Fault, ReadError, ReadErrorKind, Urgency};
use estargz::{Inode, Kind};

use super::fetch::late_by;
use super::flight::{Bounds, Flight, Outcome, Run};
use super::{Core, PoisonError};
use crate::layout::part_of;

/// How long a reader waits for a flight that nobody else is waiting for, before it sends its own. Sources
/// serve the urgent first, so that the overtaken one may be far behind; on the other hand its bytes may be
/// about to arrive.
const PATIENCE: Duration = Duration::from_millis(250);

/// The kernel reads up to 1 MiB at once, so what one reader waits for is one request; the bound is for
/// other callers.
const TOGETHER: Bounds = Bounds { bytes: 16 << 20, gap: 0 };

/// A read that lies inside its file.
pub(crate) struct Place {
    /// Inode of the file.
    inode: u32,
    /// Bytes of the file.
    range: ByteRange,
    /// Chunks that hold them.
    chunks: Range<u32>,
    /// Where the first byte lies in the data file.
    at: u64,
    /// Where the file ends in the data file.
    file_end: u64,
}

impl Place {
    /// Bytes that the read will answer.
    pub(crate) fn len(&self) -> usize {
        usize::try_from(self.range.len()).unwrap_or(0)
    }
}

impl Core {
    /// See [`Layer::read`](super::Layer::read).
    pub(super) async fn read(
        self: &Arc<Self>,
        inode: u32,
        offset: u64,
        len: u32,
        urgency: Urgency,
    ) -> Result<Bytes, ReadError> {
        let tree = self.tree_in_memory().await?;
        let file = tree.inode(inode).filter(|inode| inode.kind() == Kind::Regular).ok_or_else(|| {
            ReadError::new(
                Fault::Caller,
                ReadErrorKind::NotFound,
                format!("inode {inode} is not a regular file"),
            )
        })?;
        let Some(place) = self.place(&file, offset, len) else {
            return Ok(Bytes::new());
        };
        self.touch(&place, urgency);
        self.read_place(place, urgency).await
    }

    /// The inodes; off the runtime's threads if they must be read.
    async fn tree_in_memory(self: &Arc<Self>) -> Result<Arc<estargz::Toc>, ReadError> {
        if let Some(tree) = self.index.tree_in_memory() {
            return Ok(tree);
        }
        let layer = Arc::clone(self);
        let failed = |message: String| ReadError::local(ReadErrorKind::Other, message);
        let tree = tokio::task::spawn_blocking(move || layer.tree()).await;
        tree.map_err(|error| failed(error.to_string()))?.map_err(|error| failed(error.to_string()))
    }

    /// Where a read lies; `None` if it is empty or lies beyond the end.
    pub(crate) fn place(&self, file: &Inode<'_>, offset: u64, len: u32) -> Option<Place> {
        let range = ByteRange::at(offset, u64::from(len)).intersect(&ByteRange::new(0, file.size()));
        // Its chunks lie in the data file one after another.
        let begin = self.index.start(file.chunk_numbers().next().filter(|_| !range.is_empty())?)?;
        let at = begin.checked_add(range.start)?;
        let first = self.index.chunk_at(at)?;
        let last = self.index.chunk_at(begin.checked_add(range.end)?.checked_sub(1)?)?;
        let file_end = at.checked_add(file.size().checked_sub(range.start)?)?;
        Some(Place { inode: file.number(), range, chunks: first..last + 1, at, file_end })
    }

    /// Notes that a reader wants these bytes: for the numbers, and for the readahead.
    pub(crate) fn touch(self: &Arc<Self>, place: &Place, urgency: Urgency) {
        if urgency != Urgency::Blocking {
            return;
        }
        self.record(place.chunks.clone());
        for number in place.chunks.clone() {
            if self.touched.set(number as usize)
                && let Some(chunk) = self.index.chunk(number)
            {
                self.touched_bytes.fetch_add(u64::from(chunk.len), Ordering::Relaxed);
            }
        }
        if !self.is_complete() {
            let read = ByteRange::at(place.at, place.range.len());
            let next = self.ahead.lock().unwrap_or_else(PoisonError::into_inner).observe(
                read,
                place.file_end,
                self.may_guess(),
            );
            if let Some(next) = next {
                self.read_ahead(next);
            }
        }
    }

    /// Fills `buffer` if all bytes are here, without waiting for anything but the disk. `buffer` has the
    /// length of the place.
    pub(crate) fn read_present(&self, place: &Place, buffer: &mut [u8]) -> bool {
        if !place.chunks.clone().all(|number| self.fill.has(number as usize)) {
            return false;
        }
        match self.fill.read(place.at, buffer) {
            Ok(()) => true,
            Err(error) => {
                // The disk lost what it promised: forget the chunks, they will be fetched again.
                tracing::warn!(layer = %self.digest, %error, "reading the layer store failed, fetching again");
                for number in place.chunks.clone() {
                    self.forget(number);
                }
                false
            }
        }
    }

    /// Reads a place, fetching what is absent.
    pub(crate) async fn read_place(
        self: &Arc<Self>,
        place: Place,
        urgency: Urgency,
    ) -> Result<Bytes, ReadError> {
        let (deadline, began) = (self.engine.options.read_deadline, Instant::now());
        if urgency == Urgency::Blocking && self.is_late(&place.chunks) {
            return Err(late_by(deadline));
        }
        let waiting = (urgency == Urgency::Blocking).then(|| self.engine.reader_waits());
        let carried = match tokio::time::timeout(deadline, self.fetch(&place.chunks, urgency)).await {
            Ok(carried) => carried,
            Err(_) => Err(late_by(deadline)),
        };
        drop(waiting);
        let carried = carried.inspect_err(|error| {
            self.note_late(place.chunks.clone(), began);
            self.complain(
                &format!("{} bytes {}", self.path_of(place.inode), place.range),
                error,
                urgency == Urgency::Blocking,
            );
        })?;
        self.content_again();
        if place.chunks.clone().all(|number| carried.contains_key(&number)) {
            // Nothing to read from disk.
            return self.gather(&place, &carried);
        }
        let layer = Arc::clone(self);
        tokio::task::spawn_blocking(move || layer.gather(&place, &carried))
            .await
            .map_err(|error| ReadError::local(ReadErrorKind::Other, error.to_string()))?
    }

    /// Puts the answer together from the data file and from chunks that could not be kept.
    fn gather(&self, place: &Place, carried: &HashMap<u32, Bytes>) -> Result<Bytes, ReadError> {
        let mut buffer = vec![0; place.len()];
        let mut filled = 0;
        for number in place.chunks.clone() {
            let (Some(chunk), Some(start)) = (self.index.chunk(number), self.index.start(number)) else {
                break;
            };
            let part = part_of(&chunk, place.range);
            let len = usize::try_from(part.len()).unwrap_or(0);
            let Some(target) = buffer.get_mut(filled..filled + len) else { break };
            match carried.get(&number) {
                Some(bytes) => {
                    let from = usize::try_from(part.start).unwrap_or(usize::MAX);
                    if let Some(bytes) = bytes.get(from..from.saturating_add(len)) {
                        target.copy_from_slice(bytes);
                        filled += len;
                    }
                }
                None if self.fill.has(number as usize) => {
                    self.fill.read(start + part.start, target)?;
                    filled += len;
                }
                None => break,
            }
        }
        if filled != buffer.len() {
            return Err(ReadError::local(
                ReadErrorKind::Other,
                "the layer store lost a chunk that was just fetched",
            ));
        }
        Ok(buffer.into())
    }

    /// Sees to it that every chunk is here, and returns those that could not be kept.
    pub(super) async fn fetch(
        self: &Arc<Self>,
        chunks: &Range<u32>,
        urgency: Urgency,
    ) -> Result<HashMap<u32, Bytes>, ReadError> {
        let mut ours = self.send_for(chunks, urgency);
        let mut carried = HashMap::new();
        // All chunks are on their way at once; the order of waiting does not matter.
        for number in chunks.clone() {
            let flight = ours.remove(&number);
            if let Some(bytes) = self.await_chunk(number, flight, urgency).await? {
                carried.insert(number, bytes);
            }
        }
        Ok(carried)
    }

    /// Starts the flights that the place needs and nobody started before.
    fn send_for(self: &Arc<Self>, chunks: &Range<u32>, urgency: Urgency) -> HashMap<u32, Arc<Flight>> {
        let mut ours = HashMap::new();
        let absent = |number: &u32| !self.fill.has(*number as usize) && self.flight(*number).is_none();
        let Some(first) = chunks.clone().find(absent) else { return ours };
        let last = chunks.clone().rev().find(absent).unwrap_or(first);
        let mut candidates = self.with_neighbours(first..last + 1, self.sources.unit());
        while let Some(run) = self.claim(&mut candidates, urgency, TOGETHER, &self.ends(urgency)) {
            ours.extend(
                run.passengers.iter().map(|passenger| (passenger.number, Arc::clone(&passenger.flight))),
            );
            self.depart(run, first..last + 1);
        }
        ours
    }

    /// Waits until a chunk is here: by `flight`, or by what is found. Returns its bytes if it could not be
    /// kept.
    async fn await_chunk(
        self: &Arc<Self>,
        number: u32,
        flight: Option<Arc<Flight>>,
        urgency: Urgency,
    ) -> Result<Option<Bytes>, ReadError> {
        let mut next = flight;
        let mut failed = None;
        // One turn for a lesser flight, one for our own, one more in case a chunk is taken back meanwhile.
        for _ in 0..3 {
            let is_ours = next.is_some();
            let flight = match next.take().or_else(|| self.flight(number)) {
                Some(flight) => flight,
                None if self.fill.has(number as usize) => return Ok(None),
                None => {
                    let mut alone = number..number + 1;
                    next = self
                        .claim(&mut alone, urgency, TOGETHER, &self.ends(urgency))
                        .and_then(|run| self.board(run));
                    continue;
                }
            };
            let outcome = if flight.urgency > urgency {
                match tokio::time::timeout(PATIENCE, flight.landed()).await {
                    Ok(Outcome::Failed(_)) | Err(_) => {
                        next = self.take_over(number, urgency).and_then(|run| self.board(run));
                        continue;
                    }
                    Ok(outcome) => outcome,
                }
            } else {
                flight.landed().await
            };
            return match outcome {
                Outcome::Stored => Ok(None),
                Outcome::Carried(bytes) => Ok(Some(bytes)),
                // It began before us and may have been at its end: what is left of our time is ours. Or it was given up for a
                // reason that is not the reader's.
                Outcome::Failed(error)
                    if error.kind() == ReadErrorKind::Cancelled || !is_ours && error.is_transient() =>
                {
                    failed = Some(error);
                    continue;
                }
                Outcome::Failed(error) => Err(error),
            };
        }
        if self.fill.has(number as usize) {
            return Ok(None);
        }
        Err(failed
            .unwrap_or_else(|| ReadError::local(ReadErrorKind::Other, "the chunk went away again and again")))
    }

    /// Starts a run of one chunk and returns its flight.
    fn board(self: &Arc<Self>, run: Run) -> Option<Arc<Flight>> {
        let passenger = run.passengers.first()?;
        let (number, flight) = (passenger.number, Arc::clone(&passenger.flight));
        self.depart(run, number..number + 1);
        Some(flight)
    }

    /// Takes back a chunk.
    fn forget(&self, number: u32) {
        if self.fill.forget(number as usize)
            && let Some(chunk) = self.index.chunk(number)
        {
            self.fetched_bytes.fetch_sub(u64::from(chunk.len), Ordering::Relaxed);
        }
    }
}
