//! Flights: who fetches a chunk, who waits for it, and which chunks travel together.

use std::ops::Range;
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use content::{ByteRange, ReadError, ReadErrorKind, Urgency};
use estargz::Chunk;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Core;

/// How a flight ended.
#[derive(Clone, Debug)]
pub(super) enum Outcome {
    /// The chunk is in the data file.
    Stored,
    /// The chunk is right but could not be kept: here it is.
    Carried(Bytes),
    /// It could not be had.
    Failed(ReadError),
}

/// A chunk on its way.
pub(super) struct Flight {
    pub(super) urgency: Urgency,
    /// Cancelled when it is given up.
    unused: CancellationToken,
    outcome: watch::Sender<Option<Outcome>>,
}

impl Flight {
    fn new(urgency: Urgency, unused: &CancellationToken) -> Arc<Self> {
        Arc::new(Self { urgency, unused: unused.clone(), outcome: watch::Sender::new(None) })
    }

    /// Waits for its end.
    pub(super) async fn landed(&self) -> Outcome {
        let mut outcome = self.outcome.subscribe();
        match outcome.wait_for(Option::is_some).await.map(|outcome| outcome.clone()) {
            Ok(Some(outcome)) => outcome,
            // Cannot happen: the sender is `self`.
            _ => Outcome::Failed(ReadError::local(ReadErrorKind::Cancelled, "the fetch was given up")),
        }
    }
}

/// A chunk of a run.
pub(super) struct Passenger {
    pub(super) number: u32,
    pub(super) chunk: Chunk,
    pub(super) flight: Arc<Flight>,
}

/// Chunks that travel together, in the order of the blob. Whatever becomes of the run, each of its flights
/// ends: at the latest when it is dropped.
pub(super) struct Run {
    layer: Arc<Core>,
    pub(super) urgency: Urgency,
    /// Ends it when cancelled.
    pub(super) unused: CancellationToken,
    /// What is asked of the source.
    pub(super) range: ByteRange,
    pub(super) passengers: Vec<Passenger>,
}

impl Run {
    /// Ends the flight of a chunk.
    pub(super) fn land(&self, passenger: &Passenger, outcome: Outcome) {
        let mut flights = self.layer.flights.lock().unwrap_or_else(PoisonError::into_inner);
        // A more urgent flight may have taken the place; it is as glad of the chunk as we are.
        if let Some(current) = flights.get(&passenger.number) {
            let ours = Arc::ptr_eq(current, &passenger.flight);
            if !ours && !matches!(outcome, Outcome::Failed(_)) {
                current.outcome.send_replace(Some(outcome.clone()));
            }
            if ours || !matches!(outcome, Outcome::Failed(_)) {
                flights.remove(&passenger.number);
            }
        }
        drop(flights);
        passenger.flight.outcome.send_if_modified(|slot| {
            let first = slot.is_none();
            if first {
                *slot = Some(outcome);
            }
            first
        });
    }

    /// Ends all flights that are still under way.
    pub(super) fn fail(&self, error: &ReadError) {
        for passenger in &self.passengers {
            if passenger.flight.outcome.borrow().is_none() {
                self.land(passenger, Outcome::Failed(error.clone()));
            }
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.fail(&ReadError::local(ReadErrorKind::Cancelled, "the fetch was given up"));
    }
}

/// How chunks are put together.
#[derive(Clone, Copy)]
pub(super) struct Bounds {
    /// Compressed bytes after which a run is long enough.
    pub(super) bytes: u64,
    /// Bytes that may be fetched in vain to make one request of two.
    pub(super) gap: u64,
}

impl Core {
    /// Takes the next run of absent chunks out of `candidates` and puts `candidates` behind them. Nobody
    /// else will fetch them, until `unused` is cancelled. `None` if all candidates are here or under way.
    pub(super) fn claim(
        &self,
        candidates: &mut Range<u32>,
        urgency: Urgency,
        bounds: Bounds,
        unused: &CancellationToken,
    ) -> Option<Run> {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        let mut passengers: Vec<Passenger> = Vec::new();
        let mut range: Option<ByteRange> = None;
        while let Some(number) = candidates.clone().next() {
            // The order matters: a flight is taken off the list after its chunk was marked as present.
            // A flight that is given up may stay there until its task has noticed.
            let is_free = flights.get(&number).is_none_or(|flight| flight.unused.is_cancelled())
                && !self.fill.has(number as usize);
            if let Some(chunk) = self.index.chunk(number).filter(|_| is_free) {
                match &mut range {
                    None => range = Some(chunk.blob),
                    Some(range) => {
                        let joins = chunk.blob.start >= range.start
                            && chunk.blob.start <= range.end.saturating_add(bounds.gap)
                            && chunk.blob.end.saturating_sub(range.start) <= bounds.bytes.max(range.len());
                        if !joins {
                            break;
                        }
                        range.end = range.end.max(chunk.blob.end);
                    }
                }
                let flight = Flight::new(urgency, unused);
                flights.insert(number, Arc::clone(&flight));
                passengers.push(Passenger { number, chunk, flight });
            }
            candidates.start += 1;
        }
        self.run(passengers, range?, urgency, unused)
    }

    /// Takes a chunk that is on its way with less urgency, to fetch it at once.
    pub(super) fn take_over(&self, number: u32, urgency: Urgency) -> Option<Run> {
        let chunk = self.index.chunk(number)?;
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        if self.fill.has(number as usize)
            || flights.get(&number).is_some_and(|flight| flight.urgency <= urgency)
        {
            return None;
        }
        let unused = self.ends(urgency);
        let flight = Flight::new(urgency, &unused);
        flights.insert(number, Arc::clone(&flight));
        drop(flights);
        self.run(vec![Passenger { number, chunk, flight }], chunk.blob, urgency, &unused)
    }

    fn run(
        &self,
        passengers: Vec<Passenger>,
        range: ByteRange,
        urgency: Urgency,
        unused: &CancellationToken,
    ) -> Option<Run> {
        let layer = self.itself.upgrade()?;
        let unused = unused.clone();
        (!passengers.is_empty()).then_some(Run { layer, urgency, unused, range, passengers })
    }

    /// The flight of a chunk that is not here.
    pub(super) fn flight(&self, number: u32) -> Option<Arc<Flight>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner).get(&number).cloned()
    }

    /// The chunks around `wanted` that come for nothing: they lie in the same pieces of the blob, if the source
    /// moves bytes by pieces.
    pub(super) fn with_neighbours(&self, wanted: Range<u32>, piece: u64) -> Range<u32> {
        let absent = |number: u32| !self.fill.has(number as usize);
        let extent = |number: u32| self.index.chunk(number).map(|chunk| chunk.blob);
        let (Some(first), Some(last)) = (extent(wanted.start), wanted.end.checked_sub(1).and_then(extent))
        else {
            return wanted;
        };
        if piece <= 1 {
            return wanted;
        }
        let window = ByteRange::new(first.start / piece * piece, last.end.next_multiple_of(piece));
        let fits = |number: u32| absent(number) && extent(number).is_some_and(|blob| window.contains(&blob));
        let mut around = wanted;
        while around.start.checked_sub(1).is_some_and(fits) {
            around.start -= 1;
        }
        while fits(around.end) {
            around.end += 1;
        }
        around
    }
}
