//! What the scheduler hears of this content.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use content::{ByteRange, RangeSet};
use proto::cluster::{self, node_message::Kind};
use store::PIECE;

use super::Actor;
use crate::node::locator_to_wire;
use crate::policy::{BLOCKING, Class};
use crate::wire::ranges_to_wire;

/// Wants that nobody blocks on are gathered for so long.
const GATHER: Duration = Duration::from_millis(100);

/// How often more neighbours may be asked for.
const MORE_EVERY: Duration = Duration::from_secs(1);

/// What was said and heard.
#[derive(Default)]
pub(super) struct Wants {
    /// Pieces that the scheduler was told of, and how urgent they were.
    told: BTreeMap<u32, Class>,
    last: Option<Instant>,
    /// When the scheduler last said anything about this content.
    pub(super) heard: Option<Instant>,
    pub(super) need_neighbours: bool,
    asked_more: Option<Instant>,
    complete: bool,
}

impl Wants {
    pub(super) fn forget(&mut self, piece: u32) {
        self.told.remove(&piece);
    }

    fn reset(&mut self) {
        self.told.clear();
        (self.last, self.heard) = (None, None);
    }
}

impl Actor {
    pub(super) fn on_scheduler(&mut self, connected: bool) {
        // A new scheduler knows no wants and no leases; what is being read goes on all the same.
        self.wants.reset();
        self.drop_leases();
        if connected {
            return;
        }
        self.meet_neighbours();
    }

    /// Tells the scheduler of pieces that no neighbour has and nobody here reads, if it does not know.
    pub(super) fn tell_wants(&mut self, now: Instant) {
        if !self.node.has_scheduler() {
            return;
        }
        self.tell_complete();
        self.ask_for_neighbours(now);
        let open: BTreeMap<u32, Class> = self
            .child
            .wanted()
            .filter(|(piece, _)| {
                !self.child.is_held(*piece)
                    && !self.child.is_in_flight(*piece)
                    && !self.child.is_at_origin(*piece)
            })
            .collect();
        let fresh =
            open.iter().filter(|(piece, class)| self.wants.told.get(piece).is_none_or(|told| *class < told));
        let most_urgent = fresh.map(|(_, class)| *class).min();
        let withdrawn = self.child.is_idle() && !self.wants.told.is_empty();
        let due = self.wants.last.is_none_or(|last| now.saturating_duration_since(last) >= GATHER);
        let tell = match most_urgent {
            Some(BLOCKING) => true,
            Some(_) => due,
            None => withdrawn,
        };
        if !tell {
            return;
        }
        let of = |class: Class| -> Vec<cluster::PieceRange> {
            let pieces = open.iter().filter(|(_, have)| **have == class);
            let set: RangeSet = pieces.map(|(piece, _)| ByteRange::at(u64::from(*piece), 1)).collect();
            ranges_to_wire(&set)
        };
        let want = cluster::Want {
            content: self.content.id().to_string(),
            length: self.content.len(),
            piece_size: PIECE,
            locator: self.content.head().locator.as_ref().map(locator_to_wire),
            blocking: of(0),
            prefetch: of(1),
            background: of(2),
        };
        if self.node.tell_scheduler(Kind::Want(want)) {
            tracing::debug!(content = %self.content.id(), pieces = open.len(), "wanted");
            self.wants.told = open;
            self.wants.last = Some(now);
        }
    }

    /// The scheduler hears at once of a content that is whole.
    fn tell_complete(&mut self) {
        let complete = self.content.is_complete();
        if complete
            && !self.wants.complete
            && self.wants.last.is_some()
            && let Some(have) = self.node.have_message(self.content.id(), &BTreeSet::new())
        {
            self.node.tell_scheduler(have);
        }
        self.wants.complete = complete;
    }

    fn ask_for_neighbours(&mut self, now: Instant) {
        let recently = self.wants.asked_more.is_some_and(|at| now.saturating_duration_since(at) < MORE_EVERY);
        if !self.wants.need_neighbours || recently || self.child.is_idle() {
            return;
        }
        let more = cluster::MoreNeighbours { content: self.content.id().to_string() };
        if self.node.tell_scheduler(Kind::More(more)) {
            self.wants.need_neighbours = false;
            self.wants.asked_more = Some(now);
        }
    }
}
