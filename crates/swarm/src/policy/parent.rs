//! A parent: one ordered queue for all its children and contents.
//!
//! One piece is sent at a time (all at once: the last node falls from 0.975 to 0.886). Next is Blocking
//! before Prefetch before Background, then the child that is worst off, first come first served among
//! equals. Beyond eight waiting the answer is "busy, come back in x ms", never a wait without an answer;
//! a newcomer that is worse off than the last in the queue takes its place.

use std::time::{Duration, Instant};

use super::{BLOCKING, Class, QUEUE};

/// Blocking requests come on top of the queue, but not without end.
const BLOCKING_LIMIT: usize = 256;

/// A request that waits so long is next whatever its satisfaction: nobody waits for ever.
const OLD: Duration = Duration::from_secs(1);

/// A newcomer must be worse off by 0.01 to take a place (satisfaction is in 1/1000).
const BETTER: u16 = 10;

/// Names a child: a link of this node.
pub type ChildKey = u64;

/// A child asks for a piece.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request<C> {
    /// Who asks.
    pub child: ChildKey,
    /// Of which content.
    pub content: C,
    /// Which piece.
    pub piece: u32,
    /// How urgently.
    pub class: Class,
    /// Thousandths of its own download rate that it got so far: lower is served first.
    pub satisfaction: u16,
}

/// What becomes of a request.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Verdict<C> {
    /// It waits for its turn.
    Queued,
    /// Sent away: this one (the newcomer, or one that it displaced) comes back after so long.
    Busy(Request<C>, Duration),
}

#[derive(Clone, Copy, Debug)]
struct Waiting<C> {
    request: Request<C>,
    since: Instant,
    number: u64,
}

/// The queue of a parent. `C` names a content.
#[derive(Debug)]
pub struct Parent<C> {
    queue: Vec<Waiting<C>>,
    number: u64,
}

impl<C: Copy + Eq> Default for Parent<C> {
    fn default() -> Self {
        Self::new()
    }
}

impl<C: Copy + Eq> Parent<C> {
    /// Nobody waits.
    pub const fn new() -> Self {
        Self { queue: Vec::new(), number: 0 }
    }

    /// A request arrives. `random` is in `0..1`, `piece_seconds` what one piece takes to send.
    pub fn on_get(
        &mut self,
        now: Instant,
        request: Request<C>,
        random: f64,
        piece_seconds: f64,
    ) -> Verdict<C> {
        let same = |waiting: &Waiting<C>| {
            let have = &waiting.request;
            (have.child, have.content, have.piece) == (request.child, request.content, request.piece)
        };
        if let Some(waiting) = self.queue.iter_mut().find(|waiting| same(waiting)) {
            // Asked again, more urgently perhaps: one answer is enough.
            waiting.request.class = waiting.request.class.min(request.class);
            return Verdict::Queued;
        }
        let blocking = self.queue.iter().filter(|waiting| waiting.request.class == BLOCKING).count();
        let others = self.queue.len() - blocking;
        let full = if request.class == BLOCKING { blocking >= BLOCKING_LIMIT } else { others >= QUEUE };
        if !full {
            self.push(now, request);
            return Verdict::Queued;
        }
        #[expect(clippy::cast_precision_loss, reason = "a queue is short")]
        let pieces = (self.queue.len() + 1).saturating_sub(QUEUE) as f64 + random;
        let retry = Duration::from_secs_f64((pieces * piece_seconds).clamp(0.001, 5.0));
        match self.displaced_by(now, &request) {
            Some(at) => {
                let last = self.queue.swap_remove(at).request;
                self.push(now, request);
                Verdict::Busy(last, retry)
            }
            None => Verdict::Busy(request, retry),
        }
    }

    /// The last in the queue, if `newcomer` is enough worse off (or more urgent) to take its place.
    fn displaced_by(&self, now: Instant, newcomer: &Request<C>) -> Option<usize> {
        if newcomer.class == BLOCKING {
            return None;
        }
        let last = (0..self.queue.len()).max_by_key(|&at| self.order(now, at))?;
        let waiting = self.queue.get(last)?;
        let have = &waiting.request;
        let displaced = newcomer.class < have.class
            || newcomer.class == have.class
                && have.satisfaction > newcomer.satisfaction.saturating_add(BETTER)
                && !is_old(now, waiting);
        displaced.then_some(last)
    }

    fn push(&mut self, now: Instant, request: Request<C>) {
        self.queue.push(Waiting { request, since: now, number: self.number });
        self.number += 1;
    }

    /// Lower is served first.
    fn order(&self, now: Instant, at: usize) -> (Class, u16, u64) {
        self.queue.get(at).map_or((Class::MAX, 0, 0), |waiting| {
            let s = if is_old(now, waiting) { 0 } else { waiting.request.satisfaction };
            (waiting.request.class, s, waiting.number)
        })
    }

    /// Takes out the request to serve now, among children that `can_take` a piece.
    pub fn next(&mut self, now: Instant, can_take: impl Fn(ChildKey) -> bool) -> Option<Request<C>> {
        let best = (0..self.queue.len())
            .filter(|&at| self.queue.get(at).is_some_and(|waiting| can_take(waiting.request.child)))
            .min_by_key(|&at| self.order(now, at))?;
        Some(self.queue.swap_remove(best).request)
    }

    /// The child no longer needs the piece. `true` if it was waiting.
    pub fn on_cancel(&mut self, child: ChildKey, content: C, piece: u32) -> bool {
        let before = self.queue.len();
        self.queue.retain(|waiting| {
            let have = &waiting.request;
            (have.child, have.content, have.piece) != (child, content, piece)
        });
        self.queue.len() < before
    }

    /// The child is gone.
    pub fn on_gone(&mut self, child: ChildKey) {
        self.queue.retain(|waiting| waiting.request.child != child);
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// How many of the waiting are not Blocking.
    pub fn bulk(&self) -> usize {
        self.queue.iter().filter(|waiting| waiting.request.class != BLOCKING).count()
    }
}

fn is_old<C>(now: Instant, waiting: &Waiting<C>) -> bool {
    now.saturating_duration_since(waiting.since) >= OLD
}
