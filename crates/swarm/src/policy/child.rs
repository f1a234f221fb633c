//! A child: which neighbour to ask for which piece of one content.
//!
//! *Parent first, then piece.* Neighbours with room are sorted by when an answer may be expected; the
//! first that has anything needed is asked for the piece that the fewest neighbours have. Piece first
//! (the classic) sends everybody to the same holder: 0.949. A Blocking piece goes to the best holder at
//! once, whatever is in flight.
//!
//! What nobody has is for the scheduler to lease, and in the end for [`Child::fallback`]: every wait has a
//! way on to the origin.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::{BLOCKING, Bits, CLASSES, Class, HEDGE};
use crate::config::Patience;

/// Smoothing of the time between completions of a parent.
const SMOOTH: f64 = 0.3;

/// Round trips above this want two requests on the way (0.918 instead of 0.890 at 20 ms).
const FAR: f64 = 0.005;

/// What to say to whom.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Ask `peer` for `piece`.
    Get {
        /// Whom.
        peer: u32,
        /// For which piece.
        piece: u32,
        /// How urgently.
        class: Class,
    },
    /// Tell `peer` that `piece` is no longer needed.
    Cancel {
        /// Whom.
        peer: u32,
        /// Which piece.
        piece: u32,
    },
}

/// What a child knows of the world when it considers going to the origin itself.
#[derive(Clone, Copy, Debug)]
pub struct World {
    /// Whether the scheduler's stream stands.
    pub scheduler: bool,
    /// When the scheduler last said anything about this content.
    pub heard: Option<Instant>,
    /// Neighbours that were asked what they have and did not answer yet.
    pub asked: bool,
}

/// A piece that should be read straight from the origin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fallback {
    /// Which piece.
    pub piece: u32,
    /// How urgently.
    pub class: Class,
}

#[derive(Clone, Copy, Debug)]
struct InFlight {
    piece: u32,
    peer: u32,
    since: Instant,
    class: Class,
    hedge: bool,
}

#[derive(Clone, Copy, Debug)]
struct Wanted {
    class: Class,
    since: Instant,
    /// Being read at the origin by this node.
    origin: bool,
}

#[derive(Clone, Debug)]
struct Neighbour {
    has: Bits,
    usable: bool,
    outstanding: usize,
    queue: u32,
    /// Smoothed seconds between completions; 0 = unknown.
    time: f64,
    /// Shortest answer so far, in seconds: an upper bound of the round trip.
    quickest: f64,
    completed: Option<Instant>,
    busy_until: Option<Instant>,
}

/// The state of one content at one node.
#[derive(Clone, Debug)]
pub struct Child {
    have: Bits,
    wanted: BTreeMap<u32, Wanted>,
    /// Wanted and neither in flight nor at the origin, per class.
    need: [Bits; CLASSES],
    /// How many usable neighbours have a piece.
    holders: Vec<u8>,
    neighbours: BTreeMap<u32, Neighbour>,
    in_flight: Vec<InFlight>,
    pieces: u32,
}

impl Child {
    /// A content of `pieces` pieces, of which nothing is here, known or wanted.
    pub fn new(pieces: u32) -> Self {
        Self {
            have: Bits::new(pieces),
            wanted: BTreeMap::new(),
            need: std::array::from_fn(|_| Bits::new(pieces)),
            holders: vec![0; pieces as usize],
            neighbours: BTreeMap::new(),
            in_flight: Vec::new(),
            pieces,
        }
    }

    /// `piece` is here: whoever else was asked for it is told.
    pub fn on_stored(&mut self, piece: u32) -> Vec<Action> {
        self.have.set(piece);
        self.wanted.remove(&piece);
        for need in &mut self.need {
            need.clear(piece);
        }
        let losers: Vec<u32> =
            self.in_flight.iter().filter(|get| get.piece == piece).map(|get| get.peer).collect();
        for peer in &losers {
            self.take(*peer, piece);
        }
        losers.into_iter().map(|peer| Action::Cancel { peer, piece }).collect()
    }

    /// `piece` is no longer here.
    pub fn on_dropped(&mut self, piece: u32) {
        self.have.clear(piece);
    }

    /// Somebody needs `piece`. Asked again, only a more urgent class changes anything.
    pub fn want(&mut self, now: Instant, piece: u32, class: Class) {
        if piece >= self.pieces || self.have.has(piece) {
            return;
        }
        let wanted = self.wanted.entry(piece).or_insert(Wanted { class, since: now, origin: false });
        if class < wanted.class {
            // More urgent from now on: what it waited for as a lesser one does not count.
            *wanted = Wanted { class, since: now, ..*wanted };
        }
        self.settle(piece);
    }

    /// Nobody needs `piece` any more, or only as `class`.
    pub fn relax(&mut self, piece: u32, class: Option<Class>) {
        match class {
            Some(class) => {
                if let Some(wanted) = self.wanted.get_mut(&piece) {
                    wanted.class = class;
                }
            }
            None => {
                self.wanted.remove(&piece);
            }
        }
        self.settle(piece);
    }

    /// This node begins or ends to read `piece` at the origin.
    pub fn at_origin(&mut self, now: Instant, piece: u32, reading: bool) {
        if let Some(wanted) = self.wanted.get_mut(&piece) {
            wanted.origin = reading;
            if !reading {
                wanted.since = now;
            }
        }
        self.settle(piece);
    }

    /// Puts `piece` into the need of its class, or into none.
    fn settle(&mut self, piece: u32) {
        let open = self.wanted.get(&piece).filter(|wanted| !wanted.origin).map(|wanted| wanted.class);
        let open = open.filter(|_| !self.is_in_flight(piece));
        for (class, need) in self.need.iter_mut().enumerate() {
            if open == Some(class) {
                need.set(piece);
            } else {
                need.clear(piece);
            }
        }
    }

    /// A neighbour for this content. Nothing is known of it yet.
    pub fn on_neighbour(&mut self, peer: u32) {
        let fresh = Neighbour {
            has: Bits::new(self.pieces),
            usable: true,
            outstanding: 0,
            queue: 0,
            time: 0.0,
            quickest: 0.0,
            completed: None,
            busy_until: None,
        };
        self.on_lost(peer);
        self.neighbours.insert(peer, fresh);
    }

    /// The neighbour has `piece`; its queue is `queue` long.
    pub fn on_have(&mut self, peer: u32, pieces: impl Iterator<Item = u32>, queue: u32) {
        let Some(neighbour) = self.neighbours.get_mut(&peer) else { return };
        neighbour.queue = queue;
        for piece in pieces {
            if neighbour.has.set(piece)
                && let Some(count) = self.holders.get_mut(piece as usize)
            {
                *count = count.saturating_add(1);
            }
        }
    }

    /// The neighbour does not have `piece` after all, or what it sent was not it.
    pub fn on_lacks(&mut self, peer: u32, piece: u32) {
        if let Some(neighbour) = self.neighbours.get_mut(&peer)
            && neighbour.has.clear(piece)
            && let Some(count) = self.holders.get_mut(piece as usize)
        {
            *count = count.saturating_sub(1);
        }
        self.on_failed(peer, piece);
    }

    /// The request of `piece` at `peer` came to nothing: it is needed again.
    pub fn on_failed(&mut self, peer: u32, piece: u32) {
        self.take(peer, piece);
        self.settle(piece);
    }

    /// `peer` sent `piece`, and its queue is `queue` long. Only measures; [`Child::on_stored`] tells the rest.
    pub fn on_piece(&mut self, now: Instant, peer: u32, piece: u32, queue: u32) {
        let sent =
            self.in_flight.iter().find(|get| (get.peer, get.piece) == (peer, piece)).map(|get| get.since);
        self.take(peer, piece);
        let Some(neighbour) = self.neighbours.get_mut(&peer) else { return };
        neighbour.queue = queue;
        if let Some(sent) = sent {
            let answer = now.saturating_duration_since(sent).as_secs_f64();
            let since = neighbour.completed.map_or(sent, |completed| completed.max(sent));
            let sample = now.saturating_duration_since(since).as_secs_f64();
            let first = neighbour.time == 0.0;
            neighbour.time = if first { sample } else { neighbour.time + SMOOTH * (sample - neighbour.time) };
            neighbour.quickest = if first { answer } else { neighbour.quickest.min(answer) };
        }
        neighbour.completed = Some(now);
    }

    /// `peer` sends us away for `retry`.
    pub fn on_busy(&mut self, now: Instant, peer: u32, piece: u32, retry: Duration) {
        if let Some(neighbour) = self.neighbours.get_mut(&peer) {
            neighbour.busy_until = Some(now + retry);
            neighbour.queue = neighbour.queue.max(1);
        }
        self.on_failed(peer, piece);
    }

    /// `peer` is gone, or banned: what it was asked for is needed again.
    pub fn on_lost(&mut self, peer: u32) {
        let Some(neighbour) = self.neighbours.remove(&peer) else { return };
        for piece in neighbour.has.iter() {
            if let Some(count) = self.holders.get_mut(piece as usize) {
                *count = count.saturating_sub(1);
            }
        }
        let lost: Vec<u32> =
            self.in_flight.iter().filter(|get| get.peer == peer).map(|get| get.piece).collect();
        self.in_flight.retain(|get| get.peer != peer);
        for piece in lost {
            self.settle(piece);
        }
    }

    fn take(&mut self, peer: u32, piece: u32) {
        let before = self.in_flight.len();
        self.in_flight.retain(|get| (get.peer, get.piece) != (peer, piece));
        let gone = before - self.in_flight.len();
        if let Some(neighbour) = self.neighbours.get_mut(&peer) {
            neighbour.outstanding = neighbour.outstanding.saturating_sub(gone);
        }
    }

    /// What to ask for now. `room` is how many more pieces may be in flight, Blocking ones apart;
    /// `own` the seconds that a piece takes on this node's link; `random` any number below its argument.
    pub fn pump(
        &mut self,
        now: Instant,
        room: usize,
        own: f64,
        random: &mut dyn FnMut(u32) -> u32,
    ) -> Vec<Action> {
        let mut actions = Vec::new();
        let blocking: Vec<u32> = self.need.first().map(|need| need.iter().collect()).unwrap_or_default();
        // In random order: nodes that start the same image want the same list, and halve its time by
        // not all beginning with the same piece.
        let turn =
            if blocking.is_empty() { 0 } else { random(u32::try_from(blocking.len()).unwrap_or(1)) as usize };
        for piece in blocking.iter().cycle().skip(turn).take(blocking.len()) {
            if let Some(peer) = self.best_holder(now, *piece, own, None) {
                actions.push(self.ask(now, peer, *piece, BLOCKING, false));
            }
        }
        for _ in 0..room {
            let Some((peer, piece, class)) = self.choose(now, own, random) else { break };
            actions.push(self.ask(now, peer, piece, class, false));
        }
        actions
    }

    /// Second requests for what waits too long. A Blocking piece, and the last ones, sooner.
    pub fn hedge(&mut self, now: Instant, budget: usize, own: f64) -> Vec<Action> {
        let slow = Duration::from_secs_f64((3.0 * budget as f64 * own).min(10.0));
        let endgame = self.need.iter().all(Bits::is_empty);
        let mut actions = Vec::new();
        for get in self.in_flight.clone() {
            let patience = if endgame { (HEDGE / 4).max(slow / 3) } else { HEDGE.max(slow) };
            let alone = self.in_flight.iter().filter(|other| other.piece == get.piece).count() == 1;
            if !alone || get.hedge || now.saturating_duration_since(get.since) < patience {
                continue;
            }
            let Some(peer) = self.best_holder(now, get.piece, own, Some(get.peer)) else { continue };
            let slower = |other: u32| self.neighbours.get(&other).map_or(f64::MAX, |n| n.expected(own));
            let room = self.neighbours.get(&peer).is_some_and(|n| n.outstanding < n.limit(own).max(2));
            if room && slower(peer) < slower(get.peer) {
                actions.push(self.ask(now, peer, get.piece, get.class, true));
            }
        }
        actions
    }

    fn ask(&mut self, now: Instant, peer: u32, piece: u32, class: Class, hedge: bool) -> Action {
        self.in_flight.push(InFlight { piece, peer, since: now, class, hedge });
        if let Some(neighbour) = self.neighbours.get_mut(&peer) {
            neighbour.outstanding += 1;
        }
        self.settle(piece);
        Action::Get { peer, piece, class }
    }

    /// Rule 1: the neighbour that answers soonest of those that have anything needed, and of that the
    /// piece that the fewest have.
    fn choose(
        &self,
        now: Instant,
        own: f64,
        random: &mut dyn FnMut(u32) -> u32,
    ) -> Option<(u32, u32, Class)> {
        let mut order: Vec<(f64, u32, u32)> = self
            .neighbours
            .iter()
            .filter(|(_, neighbour)| neighbour.is_free(now) && neighbour.outstanding < neighbour.limit(own))
            .map(|(peer, neighbour)| (neighbour.expected(own), random(u32::MAX), *peer))
            .collect();
        order.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        for (class, need) in self.need.iter().enumerate().skip(1) {
            for (_, _, peer) in &order {
                let Some(neighbour) = self.neighbours.get(peer) else { continue };
                if let Some(piece) = self.rarest(need, &neighbour.has, random) {
                    return Some((*peer, piece, class));
                }
            }
        }
        None
    }

    fn rarest(&self, need: &Bits, has: &Bits, random: &mut dyn FnMut(u32) -> u32) -> Option<u32> {
        let (mut best, mut fewest, mut ties) = (None, u8::MAX, 0);
        for piece in need.both(has) {
            let holders = self.holders.get(piece as usize).copied().unwrap_or(u8::MAX);
            if best.is_none() || holders < fewest {
                (best, fewest, ties) = (Some(piece), holders, 1);
            } else if holders == fewest {
                ties += 1;
                if random(ties) == 0 {
                    best = Some(piece);
                }
            }
        }
        best
    }

    fn best_holder(&self, now: Instant, piece: u32, own: f64, except: Option<u32>) -> Option<u32> {
        self.neighbours
            .iter()
            .filter(|(peer, n)| Some(**peer) != except && n.is_free(now) && n.has.has(piece))
            .map(|(peer, n)| (n.expected(own), *peer))
            .min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)))
            .map(|(_, peer)| peer)
    }

    /// The pieces that should now be read straight from the origin: nobody has them and nobody who could
    /// have them read answers in time; or a container waits and the neighbour that was asked is too slow.
    pub fn fallback(&self, now: Instant, world: &World, patience: &Patience) -> Vec<Fallback> {
        let mut list = Vec::new();
        for (piece, wanted) in &self.wanted {
            if wanted.origin {
                continue;
            }
            let age = now.saturating_duration_since(wanted.since);
            let held =
                self.is_in_flight(*piece) || self.neighbours.values().any(|n| n.usable && n.has.has(*piece));
            let heard = world.heard.is_some_and(|heard| heard >= wanted.since);
            let wait = match (held, world.scheduler) {
                (true, _) if wanted.class == BLOCKING => patience.blocking_held,
                (true, _) => patience.held,
                (false, false) if world.asked => patience.neighbours,
                (false, false) => Duration::ZERO,
                (false, true) if wanted.class == BLOCKING && heard => patience.blocking_heard,
                (false, true) if wanted.class == BLOCKING => patience.blocking,
                (false, true) => patience.other,
            };
            if age >= wait {
                list.push(Fallback { piece: *piece, class: wanted.class });
            }
        }
        list
    }

    /// Whether `piece` is asked for at a neighbour.
    pub fn is_in_flight(&self, piece: u32) -> bool {
        self.in_flight.iter().any(|get| get.piece == piece)
    }

    /// Neighbours whose oldest unanswered request is older than `silence` and that completed nothing since.
    pub fn silent(&self, now: Instant, silence: Duration) -> Vec<u32> {
        let mut peers: Vec<u32> = self
            .in_flight
            .iter()
            .filter(|get| {
                let completed = self.neighbours.get(&get.peer).and_then(|n| n.completed);
                let since = completed.map_or(get.since, |completed| completed.max(get.since));
                now.saturating_duration_since(since) >= silence
            })
            .map(|get| get.peer)
            .collect();
        peers.sort_unstable();
        peers.dedup();
        peers
    }

    /// Requests in flight that are not Blocking.
    pub fn bulk_in_flight(&self) -> usize {
        self.in_flight.iter().filter(|get| get.class != BLOCKING).count()
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Whether nothing is wanted.
    pub fn is_idle(&self) -> bool {
        self.wanted.is_empty() && self.in_flight.is_empty()
    }

    /// Everything wanted and its class.
    pub fn wanted(&self) -> impl Iterator<Item = (u32, Class)> + '_ {
        self.wanted.iter().map(|(piece, wanted)| (*piece, wanted.class))
    }

    /// Whether `piece` is wanted, and how urgently.
    pub fn class_of(&self, piece: u32) -> Option<Class> {
        self.wanted.get(&piece).map(|wanted| wanted.class)
    }

    /// Whether this node reads `piece` at the origin.
    pub fn is_at_origin(&self, piece: u32) -> bool {
        self.wanted.get(&piece).is_some_and(|wanted| wanted.origin)
    }

    /// Whether any neighbour has `piece`.
    pub fn is_held(&self, piece: u32) -> bool {
        self.holders.get(piece as usize).is_some_and(|count| *count > 0)
    }

    /// Neighbours of this content.
    pub fn neighbours(&self) -> impl Iterator<Item = u32> + '_ {
        self.neighbours.keys().copied()
    }
}

impl Neighbour {
    fn is_free(&self, now: Instant) -> bool {
        self.usable && self.busy_until.is_none_or(|until| until <= now)
    }

    /// Seconds until an answer may be expected.
    fn expected(&self, own: f64) -> f64 {
        let time = if self.time == 0.0 { own } else { self.time.max(own / 4.0) };
        time * (1 + self.outstanding) as f64 + own * f64::from(self.queue)
    }

    /// Requests that may be out at this neighbour: one; two when it is far; up to four when a piece takes
    /// so little time on this link that waiting for each answer would leave it idle.
    fn limit(&self, own: f64) -> usize {
        if own < FAR {
            4
        } else if self.quickest > FAR + own {
            2
        } else {
            1
        }
    }
}
