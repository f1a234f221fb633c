//! Origin leases: who reads what at the registry.
//!
//! A piece is leased while somebody wants it and no living node has or reads it. Two kinds:
//!
//! * Pieces that a container waits for go to the node that asks, at once and as long runs: it has the
//!   credentials, and nothing is quicker. At most [`BLOCKING_PIECES`] of them are on loan to one asker, so
//!   that a node which wants a whole blob that way does not take it from all the others.
//! * Everything else is read by several nodes at once, in disjoint segments, [`LEASES_AT_ONCE`] at work on a
//!   content. The holder is the one with the fewest leases among seeds and some random wanters. Segments
//!   are small at first, so that soon every node has something to give.
//!
//! A holder that fails rests from this content for a while, and the next one tries. A seed's failure counts
//! for nothing (it may lack the credentials); after [`FAILURES`] failures of others, or when nobody is left
//! to try, the wants fail with the origin's error.

use std::collections::BTreeSet;

use ::content::{ByteRange, RangeSet};
use proto::cluster::scheduler_message::Kind;
use proto::cluster::{self, WantFailed};
use rand::RngExt;

use super::Context;
use super::content::Content;
use super::event::{Millis, Peer, to_wire};

/// Leases at work on a content, for pieces that nobody waits for (simulated: 2 and 8 are both worse).
pub(super) const LEASES_AT_ONCE: usize = 4;
/// So many leases have one size; then it doubles.
const LEASES_OF_A_SIZE: u32 = 8;
/// Largest lease of that kind in bytes.
const LARGEST_LEASE: u64 = 1024 * 1024;
/// Pieces on loan to one asker because a container waits: 4 MiB, one chunk of an eStargz layer.
const BLOCKING_PIECES: u64 = 64;
/// Wanters that are considered as holders.
const CANDIDATES: usize = 16;
/// With more members than this a content has a crowd.
pub(super) const CROWD: usize = 64;
/// Failures of nodes (seeds do not count) after which a want fails.
const FAILURES: usize = 3;
/// A holder that says nothing and has nothing new for so long loses its lease.
const LEASE_TIME: Millis = 30_000;
/// So long is a node, or a seed, not sent to the origin again after a failure.
const REST: Millis = 10_000;
const SEED_REST: Millis = 60_000;

/// A permission to read at the origin.
pub(crate) struct Lease {
    pub(super) holder: Peer,
    pub(super) pieces: ByteRange,
    /// Who waits for it, if somebody does.
    asker: Option<Peer>,
    /// One piece is left: the next may begin.
    nearly_done: bool,
    deadline: Millis,
}

/// Who can read a piece.
enum Choice {
    Holder(Peer),
    /// Not now: everybody who could has enough to do.
    Later,
    Nobody,
}

impl Content {
    /// Grants whatever can be granted.
    pub(super) fn schedule(&mut self, context: &mut Context<'_>) {
        let Some(pieces) = self.shape.as_ref().map(super::Shape::pieces) else { return };
        if !context.settled || self.nothing_absent || self.covered.contains(ByteRange::new(0, pieces)) {
            return;
        }
        self.lease_blocking(context);
        self.lease_rest(context);
    }

    fn lease_blocking(&mut self, context: &mut Context<'_>) {
        for asker in std::mem::take(&mut self.unserved) {
            let on_loan: u64 =
                self.leases.values().filter(|l| l.asker == Some(asker)).map(|l| l.pieces.len()).sum();
            let mut budget = BLOCKING_PIECES.saturating_sub(on_loan);
            let Some(member) = self.members.get(&asker) else { continue };
            for absent in self.absent(&member.wants.blocking) {
                let pieces = ByteRange::at(absent.start, absent.len().min(budget));
                if pieces.len() < absent.len() {
                    self.unserved.insert(asker);
                }
                if pieces.is_empty() {
                    break;
                }
                let choice = if self.may_read(asker, context) {
                    Choice::Holder(asker)
                } else {
                    self.choose(pieces.start, true, context)
                };
                match choice {
                    Choice::Holder(holder) => {
                        budget -= pieces.len();
                        self.grant(holder, pieces, Some(asker), context);
                    }
                    Choice::Later => {
                        self.unserved.insert(asker);
                        break;
                    }
                    Choice::Nobody => self.fail(pieces, context),
                }
            }
        }
    }

    fn lease_rest(&mut self, context: &mut Context<'_>) {
        loop {
            let at_work = self.leases.values().filter(|l| l.asker.is_none() && !l.nearly_done).count();
            if at_work >= LEASES_AT_ONCE {
                return;
            }
            let Some(mut pieces) = self.next_segment() else {
                self.nothing_absent = true;
                return;
            };
            match self.choose(pieces.start, false, context) {
                Choice::Holder(holder) => {
                    let seed = context.seeds.contains(&holder);
                    if let Some(member) = self.members.get(&holder).filter(|_| !seed) {
                        // A node that is not a seed reads only what it wants itself.
                        let unmet = member.unmet().intersect(pieces);
                        pieces = unmet.iter().next().unwrap_or(pieces);
                    }
                    self.granted = self.granted.saturating_add(1);
                    self.grant(holder, pieces, None, context);
                }
                Choice::Later => return,
                Choice::Nobody => self.fail(pieces, context),
            }
        }
    }

    /// The parts of `wanted` that nobody has or reads, ascending.
    fn absent(&self, wanted: &RangeSet) -> Vec<ByteRange> {
        wanted.iter().flat_map(|range| self.covered.missing(range).iter().collect::<Vec<_>>()).collect()
    }

    /// The next pieces to lease: what is wanted soon before the rest, from the beginning on.
    fn next_segment(&self) -> Option<ByteRange> {
        let mut soon = RangeSet::new();
        let mut later = RangeSet::new();
        for member in self.members.values() {
            soon.extend(&member.wants.blocking);
            soon.extend(&member.wants.prefetch);
            later.extend(&member.wants.background);
        }
        let first =
            |wanted: &RangeSet| wanted.iter().find_map(|range| self.covered.missing(range).iter().next());
        let absent = first(&soon).or_else(|| first(&later))?;
        let largest = (LARGEST_LEASE / u64::from(self.piece_size().max(1))).max(1);
        let size = 1_u64.checked_shl(self.granted / LEASES_OF_A_SIZE).unwrap_or(largest).min(largest);
        Some(ByteRange::at(absent.start, absent.len().min(size)))
    }

    fn may_read(&self, peer: Peer, context: &Context<'_>) -> bool {
        !self.is_banned(peer, context) && self.resting.get(&peer).is_none_or(|until| context.now >= *until)
    }

    /// Who reads the piece `first`. Who waits does not mind a holder that has other leases.
    fn choose(&self, first: u64, waiting: bool, context: &mut Context<'_>) -> Choice {
        let piece = ByteRange::at(first, 1);
        let wanters = self.members.iter().filter(|(_, m)| m.wants(piece)).map(|(peer, _)| *peer);
        let mut wanters: Vec<Peer> =
            wanters.filter(|peer| !context.seeds.contains(peer) && self.may_read(*peer, context)).collect();
        if self.members.len() > CROWD {
            // In a crowd a new reader is news for many, so those who read already go on if they suffice.
            let reads = |peer: &Peer| context.node(*peer).is_some_and(|node| self.readers.contains(&node));
            let readers: Vec<Peer> = wanters.iter().copied().filter(reads).collect();
            if readers.len() >= CANDIDATES / 2 {
                wanters = readers;
            }
        }
        shuffle_first(&mut wanters, CANDIDATES, context);
        wanters.truncate(CANDIDATES);
        if self.locator.is_some() {
            wanters.extend(context.seeds.iter().filter(|seed| self.may_read(**seed, context)));
        }
        if wanters.is_empty() {
            return Choice::Nobody;
        }
        let best = wanters
            .into_iter()
            .map(|peer| {
                let busy = self.leases.values().filter(|l| l.holder == peer && !l.nearly_done).count();
                let granted = self.members.get(&peer).map_or(0, |member| member.granted);
                (busy, granted, context.rng.random::<u32>(), peer)
            })
            .min();
        match best {
            Some((busy, .., peer)) if waiting || busy < LEASES_AT_ONCE => Choice::Holder(peer),
            _ => Choice::Later,
        }
    }

    fn grant(&mut self, holder: Peer, pieces: ByteRange, asker: Option<Peer>, context: &mut Context<'_>) {
        let (Some(node), Some(shape)) = (context.node(holder), self.shape.clone()) else { return };
        let lease = *context.next_lease;
        *context.next_lease = lease.wrapping_add(1);
        let deadline = context.now + LEASE_TIME;
        self.leases.insert(lease, Lease { holder, pieces, asker, nearly_done: false, deadline });
        self.covered.insert(pieces);
        let newcomer = !self.members.contains_key(&holder);
        self.members.entry(holder).or_default().granted += 1;
        self.add_reader(node, None, context);
        context.send(
            holder,
            Kind::Lease(cluster::Lease {
                content: self.name.to_string(),
                lease,
                pieces: to_wire(pieces),
                length: shape.length,
                piece_size: shape.piece_size,
                locator: self.locator.clone(),
            }),
        );
        if newcomer {
            context.joined.push(holder);
            self.introduce_reader(holder, context);
        }
        self.offer(holder, &std::iter::once(pieces).collect(), context);
    }

    /// Members for whom a container waits.
    pub(super) fn blocking(&self) -> BTreeSet<Peer> {
        self.members.iter().filter(|(_, m)| !m.wants.blocking.is_empty()).map(|(peer, _)| *peer).collect()
    }

    /// The lease, if it is `peer`'s.
    fn lease_of(&mut self, peer: Peer, lease: u64) -> Option<&mut Lease> {
        self.leases.get_mut(&lease).filter(|lease| lease.holder == peer)
    }

    pub(super) fn lease_nearly_done(&mut self, peer: Peer, lease: u64, context: &mut Context<'_>) {
        let deadline = context.now + LEASE_TIME;
        if let Some(lease) = self.lease_of(peer, lease) {
            lease.nearly_done = true;
            lease.deadline = deadline;
            self.schedule(context);
        }
    }

    pub(super) fn lease_done(&mut self, peer: Peer, lease: u64, context: &mut Context<'_>) {
        if self.lease_of(peer, lease).is_none() {
            return;
        }
        let Some(lease) = self.leases.remove(&lease) else { return };
        let news: RangeSet = std::iter::once(lease.pieces).collect();
        let member = self.members.entry(peer).or_default();
        member.have.insert(lease.pieces);
        member.no_longer_wants(&news);
        let first = self.now_held(&news);
        self.offer(peer, &first, context);
        self.schedule(context);
    }

    /// A holder that has something new of its leases is alive.
    pub(super) fn progress(&mut self, peer: Peer, news: &RangeSet, now: Millis) {
        for lease in self.leases.values_mut().filter(|lease| lease.holder == peer) {
            if !news.intersect(lease.pieces).is_empty() {
                lease.deadline = now + LEASE_TIME;
            }
        }
    }

    pub(super) fn expire_leases(&mut self, context: &mut Context<'_>) {
        let late: Vec<(Peer, u64)> = self
            .leases
            .iter()
            .filter(|(_, lease)| context.now >= lease.deadline)
            .map(|(id, lease)| (lease.holder, *id))
            .collect();
        for (holder, lease) in late {
            self.lease_failed(holder, lease, "the node that was to read it at the origin is silent", context);
        }
        self.resting.retain(|_, until| context.now < *until);
    }

    pub(super) fn lease_failed(&mut self, peer: Peer, lease: u64, error: &str, context: &mut Context<'_>) {
        if self.lease_of(peer, lease).is_none() {
            return;
        }
        let Some(lease) = self.leases.remove(&lease) else { return };
        let seed = context.seeds.contains(&peer);
        self.resting.insert(peer, context.now + if seed { SEED_REST } else { REST });
        error.clone_into(&mut self.error);
        tracing::debug!(content = %self.name, node = ?context.node(peer), error, "a lease failed at the origin");
        if !seed {
            let twice = self.failed_before(FAILURES - 2).intersect(lease.pieces);
            let once = self.failed_before(0).intersect(lease.pieces);
            let [first, second] = &mut self.failed;
            first.insert(lease.pieces);
            second.extend(&once);
            for pieces in twice.iter() {
                self.fail(pieces, context);
            }
        }
        self.recount(context);
        self.drop_if_empty(peer);
        self.schedule(context);
    }

    fn failed_before(&self, times: usize) -> RangeSet {
        self.failed.get(times).cloned().unwrap_or_default()
    }

    /// Nobody can get these pieces: whoever wants them hears so, once.
    fn fail(&mut self, pieces: ByteRange, context: &mut Context<'_>) {
        let error = if self.error.is_empty() {
            "no node may read it at the origin".to_owned()
        } else {
            self.error.clone()
        };
        let mut emptied = Vec::new();
        for (peer, member) in &mut self.members {
            let unmet = member.unmet().intersect(pieces);
            for part in unmet.iter() {
                let failed = WantFailed {
                    content: self.name.to_string(),
                    pieces: to_wire(part),
                    error: error.clone(),
                };
                context.send(*peer, Kind::Failed(failed));
            }
            member.no_longer_wants(&std::iter::once(pieces).collect());
            emptied.push(*peer);
        }
        for failed in &mut self.failed {
            failed.remove(pieces);
        }
        for peer in emptied {
            self.drop_if_empty(peer);
        }
    }
}

/// Brings `count` random elements to the front.
pub(super) fn shuffle_first(peers: &mut [Peer], count: usize, context: &mut Context<'_>) {
    for at in 0..count.min(peers.len()) {
        let other = context.rng.random_range(at..peers.len());
        peers.swap(at, other);
    }
}
