//! Reading at the origin: because the scheduler leased pieces to this node, or because nobody else helps.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use content::{ByteRange, Fault, Locator, Origin, RangeSet, ReadError, ReadErrorKind};
use proto::cluster::LeaseState;

use super::{Actor, Event, Jobs, Stop, runs_of};
use crate::origin::{self, Run};
use crate::policy::{BLOCKING, World};
use crate::wire::each;

/// Origins of readers that are remembered.
const ORIGINS: usize = 8;

/// Runs that nobody blocks on and no lease covers: as many at once, of so many pieces (4 MiB).
const ALONE: usize = 4;
const ALONE_PIECES: u64 = 64;

/// A piece is tried so often at the origin before its readers are told, unless trying cannot help.
const TRIES: u32 = 3;

/// Between two tries, times the number of failures.
const RETRY: Duration = Duration::from_millis(200);

/// A run that is being read.
pub(super) struct Job {
    pieces: ByteRange,
    /// Not for a lease: nobody else needs it if no reader here does.
    alone: bool,
    stop: Stop,
}

struct Lease {
    left: RangeSet,
    nearly: bool,
}

struct Failure {
    error: ReadError,
    count: u32,
    again: Instant,
}

/// Leases, runs and failures of one content.
#[derive(Default)]
pub(super) struct Origins {
    attached: Vec<Weak<dyn Origin>>,
    locator: Option<Locator>,
    jobs: Jobs,
    next_job: u64,
    leases: BTreeMap<u64, Lease>,
    /// Leased and not yet begun: leases that arrive together become one request.
    begin: RangeSet,
    failures: BTreeMap<u32, Failure>,
    /// The scheduler gave these up: to be tried here at once.
    now: RangeSet,
}

impl Origins {
    /// Remembers where a reader would get the content; the latest is asked first.
    pub(super) fn attach(&mut self, origin: Weak<dyn Origin>) {
        self.attached.retain(|have| have.strong_count() > 0 && !have.ptr_eq(&origin));
        self.attached.insert(0, origin);
        self.attached.truncate(ORIGINS);
    }

    pub(super) fn is_attached(&self) -> bool {
        self.attached.iter().any(|origin| origin.strong_count() > 0)
    }

    pub(super) fn is_busy(&self) -> bool {
        !self.jobs.is_empty() || !self.leases.is_empty() || !self.begin.is_empty()
    }

    pub(super) fn stop(&self) {
        for job in self.jobs.values() {
            job.stop.cancel();
        }
    }

    pub(super) fn failure(&self, piece: u32) -> Option<&ReadError> {
        self.failures.get(&piece).map(|failure| &failure.error)
    }

    pub(super) fn clear_failure(&mut self, piece: u32) {
        self.failures.remove(&piece);
        self.now.remove(ByteRange::at(piece.into(), 1));
    }

    /// Whether this node reads `piece` at the origin, or is about to.
    pub(super) fn is_reading(&self, piece: u64) -> bool {
        let one = ByteRange::at(piece, 1);
        self.begin.contains(one) || self.jobs.values().any(|job| job.pieces.contains(&one))
    }
}

impl Actor {
    pub(super) fn on_lease(&mut self, now: Instant, lease: u64, pieces: &RangeSet, locator: Option<Locator>) {
        self.wants.heard = Some(now);
        self.origins.locator = locator.or(self.origins.locator.take());
        let have = self.content.have();
        let left: RangeSet =
            pieces.iter().flat_map(|range| have.missing(range).iter().collect::<Vec<_>>()).collect();
        tracing::debug!(content = %self.content.id(), lease, ?left, "leased");
        if left.is_empty() {
            self.report_lease(lease, LeaseState::Done, "");
            return;
        }
        for piece in each(&left) {
            if !self.origins.is_reading(piece.into()) {
                self.origins.begin.insert(ByteRange::at(piece.into(), 1));
                self.child.at_origin(now, piece, true);
            }
        }
        self.origins.leases.insert(lease, Lease { left, nearly: false });
    }

    pub(super) fn report_lease(&self, lease: u64, state: LeaseState, error: &str) {
        self.node.lease_report(&self.content.id().to_string(), lease, state, error);
    }

    /// The scheduler that granted them is gone.
    pub(super) fn drop_leases(&mut self) {
        self.origins.leases.clear();
    }

    /// A piece is here: leases that wait for it come nearer to their end.
    pub(super) fn advance_leases(&mut self, piece: u32) {
        let one = ByteRange::at(piece.into(), 1);
        let mut reports = Vec::new();
        self.origins.leases.retain(|id, lease| {
            if !lease.left.contains(one) {
                return true;
            }
            lease.left.remove(one);
            let left = lease.left.len();
            if left == 0 {
                reports.push((*id, LeaseState::Done));
            } else if left == 1 && !lease.nearly {
                lease.nearly = true;
                reports.push((*id, LeaseState::NearlyDone));
            }
            left > 0
        });
        for (lease, state) in reports {
            self.report_lease(lease, state, "");
        }
    }

    /// The scheduler gave up: three others failed at the origin. This node tries once with what its readers
    /// have, then they are told.
    pub(super) fn on_want_failed(&mut self, now: Instant, pieces: &RangeSet, error: &str) {
        self.wants.heard = Some(now);
        for piece in each(pieces) {
            if self.child.class_of(piece).is_none() || self.child.is_held(piece) {
                continue;
            }
            match self.origins.failure(piece).cloned() {
                Some(own) => self.fail_reads(piece, &own),
                None if self.origins.is_attached() => {
                    self.origins.now.insert(ByteRange::at(piece.into(), 1));
                }
                None => {
                    let error = ReadError::origin(ReadErrorKind::Unavailable, error);
                    self.fail_reads(piece, &error);
                }
            }
        }
    }

    /// Begins what was leased, then what has to be read without a lease.
    pub(super) fn start_origin_reads(&mut self, now: Instant) {
        self.stop_unwanted();
        let begin = std::mem::take(&mut self.origins.begin);
        let have = self.content.have();
        for range in begin.iter().flat_map(|range| have.missing(range).iter().collect::<Vec<_>>()) {
            self.read_origin(range, false);
        }
        if !self.origins.is_attached() {
            if self.reads.is_empty() && self.distrust {
                // Nobody holds it open any more: what was to be read again is read when somebody does.
                let wanted: Vec<u32> = self.child.wanted().map(|(piece, _)| piece).collect();
                for piece in wanted {
                    self.child.relax(piece, None);
                }
            }
            return;
        }
        let world = World {
            scheduler: self.node.has_scheduler(),
            heard: self.wants.heard,
            asked: !self.node.has_scheduler() && self.is_asking(),
        };
        let mut patience = self.node.config.limits.patience.clone();
        if self.distrust {
            // Only what this node reads itself counts now.
            for wait in [&mut patience.blocking_held, &mut patience.held, &mut patience.other] {
                *wait = Duration::ZERO;
            }
            (patience.blocking, patience.blocking_heard) = (Duration::ZERO, Duration::ZERO);
        }
        let mut list: Vec<(u32, bool)> = self
            .child
            .fallback(now, &world, &patience)
            .into_iter()
            .map(|fallback| (fallback.piece, fallback.class == BLOCKING))
            .collect();
        for piece in each(&self.origins.now) {
            if let Some(class) = self.child.class_of(piece).filter(|_| !self.child.is_at_origin(piece)) {
                list.push((piece, class == BLOCKING));
            }
        }
        self.origins.now = RangeSet::new();
        list.retain(|(piece, _)| self.origins.failures.get(piece).is_none_or(|failure| failure.again <= now));
        list.sort_unstable();
        list.dedup();
        let blocking = list.iter().filter(|(_, blocking)| *blocking).map(|(piece, _)| *piece);
        for run in runs_of(blocking, u64::MAX) {
            self.read_alone(now, run);
        }
        let running = self.origins.jobs.values().filter(|job| job.alone).count();
        let others = list.iter().filter(|(_, blocking)| !*blocking).map(|(piece, _)| *piece);
        let mut runs = runs_of(others, ALONE_PIECES);
        if !self.neighbours.is_empty() && runs.len() > 1 {
            // Neighbours that are alone too begin elsewhere, and all can share.
            let turn = rand::RngExt::random_range(&mut rand::rng(), 0..runs.len());
            runs.rotate_left(turn);
        }
        for run in runs.into_iter().take(ALONE.saturating_sub(running)) {
            self.read_alone(now, run);
        }
    }

    /// Whether neighbours have not told yet what they have, or are being dialled.
    fn is_asking(&self) -> bool {
        let moment = self.node.config.limits.patience.neighbours;
        self.neighbours.values().any(|neighbour| !neighbour.answered)
            || crate::node::lock(&self.node.dialled).values().any(|at| at.elapsed() < moment)
    }

    fn read_alone(&mut self, now: Instant, run: ByteRange) {
        for piece in each(&[run].into_iter().collect()) {
            self.child.at_origin(now, piece, true);
        }
        self.read_origin(run, true);
    }

    fn read_origin(&mut self, pieces: ByteRange, alone: bool) {
        let one: RangeSet = [pieces].into_iter().collect();
        let class = each(&one).filter_map(|piece| self.child.class_of(piece)).min().unwrap_or(1);
        let job = self.origins.next_job;
        self.origins.next_job += 1;
        let stop = self.node.cancel.child_token();
        let run = Run {
            content: Arc::clone(&self.content),
            pieces,
            class,
            origins: self.origins.attached.iter().filter_map(Weak::upgrade).collect(),
            locator: self.origins.locator.clone().or_else(|| self.content.head().locator),
            inbox: self.inbox.clone(),
        };
        self.origins.jobs.insert(job, Job { pieces, alone, stop: stop.clone() });
        let (node, inbox) = (Arc::clone(&self.node), self.inbox.clone());
        self.node.tracker.spawn(async move {
            let result = tokio::select! {
                () = stop.cancelled() => Err(ReadError::local(ReadErrorKind::Cancelled, "no longer needed")),
                result = origin::read(&node, run) => result,
            };
            let _ = inbox.send(Event::OriginDone { job, result }).await;
        });
    }

    /// Runs without a lease end when no reader wants any of their pieces.
    fn stop_unwanted(&self) {
        for job in self.origins.jobs.values().filter(|job| job.alone) {
            let pieces: RangeSet = [job.pieces].into_iter().collect();
            if each(&pieces).all(|piece| self.child.class_of(piece).is_none()) {
                job.stop.cancel();
            }
        }
    }

    pub(super) fn on_origin_done(&mut self, now: Instant, job: u64, result: Result<(), ReadError>) {
        let Some(job) = self.origins.jobs.remove(&job) else { return };
        let missing = self.content.have().missing(job.pieces);
        for piece in each(&missing) {
            self.child.at_origin(now, piece, false);
        }
        let Err(error) = result else { return };
        if error.kind() != ReadErrorKind::Cancelled {
            tracing::debug!(content = %self.content.id(), pieces = %job.pieces, %error, "an origin read failed");
        }
        let failed: Vec<u64> = self
            .origins
            .leases
            .iter()
            .filter(|(_, lease)| !lease.left.intersect(job.pieces).is_empty())
            .map(|(id, _)| *id)
            .collect();
        for lease in failed {
            self.origins.leases.remove(&lease);
            self.report_lease(lease, LeaseState::Failed, &error.to_string());
        }
        if error.kind() == ReadErrorKind::Cancelled {
            return;
        }
        let local = error.fault() == Fault::Local && error.kind() == ReadErrorKind::NoSpace;
        for piece in each(&missing) {
            let failure = self.origins.failures.entry(piece).or_insert(Failure {
                error: error.clone(),
                count: 0,
                again: now,
            });
            failure.error = error.clone();
            failure.count += 1;
            failure.again = now + RETRY * failure.count;
            let hopeless = local || !error.is_transient() || failure.count >= TRIES;
            // After a failed lease others may have more luck; the scheduler tells if not.
            let last_word = local || job.alone || !self.node.has_scheduler();
            if hopeless && last_word && (local || !self.child.is_held(piece)) {
                self.fail_reads(piece, &error);
            }
        }
    }
}
