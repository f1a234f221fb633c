//! What is known of one content, and how that changes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ::content::{ByteRange, RangeSet};
use identity::NodeId;
use proto::cluster::scheduler_message::Kind;
use proto::cluster::{Locator, WantFailed};

use super::event::{Millis, Peer, Shape, Wants, to_wire};
use super::lease::Lease;
use super::lookup::Lookup;
use super::{Context, PIECE_SIZE};

/// Readers named at most. About 20 read a content; more come only from lazy starts and from restarts.
const MAX_READERS: usize = 256;
/// Liars that one node can have banned from a content: a liar must not empty it by accusing the others.
const MAX_ACCUSATIONS: usize = 4;

/// One content.
pub(crate) struct Content {
    pub(super) name: Arc<str>,
    /// Known once somebody has told it.
    pub(super) shape: Option<Shape>,
    /// Where to read it, even before its length is known.
    pub(super) locator: Option<Locator>,
    pub(super) members: BTreeMap<Peer, Member>,
    /// Who waits for the length, and who looks.
    pub(super) lookup: Option<Lookup>,
    pub(super) leases: BTreeMap<u64, Lease>,
    /// Leases granted for pieces that nobody waits for: decides the size of the next.
    pub(super) granted: u32,
    /// Pieces that a living member who is no liar has.
    pub(super) held: RangeSet,
    /// Those, and the ones that are being read.
    pub(super) covered: RangeSet,
    /// Askers whose containers may wait for a piece that is not covered.
    pub(super) unserved: BTreeSet<Peer>,
    /// Nothing that is wanted is uncovered: true until somebody wants more or something is lost.
    pub(super) nothing_absent: bool,
    /// Pieces that at least one holder, or two, failed to read.
    pub(super) failed: [RangeSet; 2],
    /// The origin's last error.
    pub(super) error: String,
    /// Who failed at the origin, until when it is not sent there again.
    pub(super) resting: BTreeMap<Peer, Millis>,
    pub(super) readers: BTreeSet<NodeId>,
    /// Members with wants that have not been told of the newest readers.
    pub(super) readers_untold: BTreeSet<Peer>,
    banned: BTreeSet<NodeId>,
    accusations: BTreeMap<NodeId, BTreeSet<NodeId>>,
    /// Where the round of members by ticks has come to, and when it looks again.
    pub(super) round: (Option<Peer>, Millis),
    /// When it was last of use to somebody.
    pub(super) used_at: Millis,
}

/// A node that has or wants something of a content.
#[derive(Default)]
pub(crate) struct Member {
    /// What it still misses of what it wants.
    pub(super) wants: Wants,
    pub(super) have: RangeSet,
    /// Neighbours: those it was told of, and those who were told of it.
    pub(super) links: BTreeSet<Peer>,
    /// When it was last told of neighbours.
    pub(super) told_at: Millis,
    /// Leases granted to it.
    pub(super) granted: u32,
}

impl Member {
    pub(super) fn wants_anything(&self) -> bool {
        !(self.wants.blocking.is_empty()
            && self.wants.prefetch.is_empty()
            && self.wants.background.is_empty())
    }

    pub(super) fn wants(&self, piece: ByteRange) -> bool {
        [&self.wants.blocking, &self.wants.prefetch, &self.wants.background]
            .iter()
            .any(|wants| wants.contains(piece))
    }

    /// All that it misses.
    pub(super) fn unmet(&self) -> RangeSet {
        let mut unmet = self.wants.background.clone();
        unmet.extend(&self.wants.prefetch);
        unmet.extend(&self.wants.blocking);
        unmet
    }

    /// It has these pieces now, and so wants them no longer.
    pub(super) fn no_longer_wants(&mut self, pieces: &RangeSet) {
        for wants in [&mut self.wants.blocking, &mut self.wants.prefetch, &mut self.wants.background] {
            subtract(wants, pieces);
        }
    }
}

/// Takes `other` away from `set`.
pub(super) fn subtract(set: &mut RangeSet, other: &RangeSet) {
    for range in other.iter() {
        set.remove(range);
    }
}

impl Content {
    pub(super) fn new(name: Arc<str>, now: Millis) -> Self {
        Self {
            name,
            shape: None,
            locator: None,
            members: BTreeMap::new(),
            lookup: None,
            leases: BTreeMap::new(),
            granted: 0,
            held: RangeSet::new(),
            covered: RangeSet::new(),
            unserved: BTreeSet::new(),
            nothing_absent: false,
            failed: [RangeSet::new(), RangeSet::new()],
            error: String::new(),
            resting: BTreeMap::new(),
            readers: BTreeSet::new(),
            readers_untold: BTreeSet::new(),
            banned: BTreeSet::new(),
            accusations: BTreeMap::new(),
            round: (None, 0),
            used_at: now,
        }
    }

    /// Whether nobody has, wants, reads or looks at it.
    pub(super) fn is_unused(&self) -> bool {
        self.members.is_empty() && self.lookup.is_none() && self.leases.is_empty()
    }

    /// Whether `peer` must be remembered with this content.
    pub(super) fn knows(&self, peer: Peer) -> bool {
        self.members.contains_key(&peer)
            || self.lookup.as_ref().is_some_and(|lookup| lookup.involves(peer))
            || self.leases.values().any(|lease| lease.holder == peer)
    }

    /// Whether time alone can change anything here.
    pub(super) fn needs_tick(&self) -> bool {
        self.lookup.is_some() || !self.leases.is_empty() || self.members.values().any(Member::wants_anything)
    }

    pub(super) fn bytes_held(&self) -> impl Iterator<Item = (Peer, u64)> + '_ {
        let shape = self.shape.as_ref();
        self.members.iter().filter(|(_, member)| !member.have.is_empty()).map(move |(peer, member)| {
            let bytes = shape.map_or(0, |s| (member.have.len() * u64::from(s.piece_size)).min(s.length));
            (*peer, bytes)
        })
    }

    pub(super) fn links_of(&self, peer: Peer) -> BTreeSet<Peer> {
        self.members.get(&peer).map(|member| member.links.clone()).unwrap_or_default()
    }

    pub(super) fn is_banned(&self, peer: Peer, context: &Context<'_>) -> bool {
        !self.banned.is_empty() && context.node(peer).is_none_or(|node| self.banned.contains(&node))
    }

    #[cfg(test)]
    pub(super) fn banned_count(&self) -> usize {
        self.banned.len()
    }

    /// Takes `shape` for true if nothing else is known. Returns whether it agrees with what is known.
    fn agree(&mut self, shape: &Shape) -> bool {
        if self.locator.is_none() {
            self.locator.clone_from(&shape.locator);
        }
        match &self.shape {
            None => {
                self.shape = Some(shape.clone());
                true
            }
            Some(known) => known.length == shape.length && known.piece_size == shape.piece_size,
        }
    }

    pub(super) fn want(&mut self, peer: Peer, shape: &Shape, wants: Wants, context: &mut Context<'_>) {
        if !self.agree(shape) {
            self.disagree(peer, &wants, context);
            return;
        }
        // Whoever wants it may be told the length that way, too.
        self.length_is_known(context);
        let member = self.members.entry(peer).or_default();
        let anew = !member.wants_anything();
        member.wants = wants;
        let have = std::mem::take(&mut member.have);
        member.no_longer_wants(&have);
        member.have = have;
        self.nothing_absent = false;
        self.unserved.insert(peer);
        let member = self.members.entry(peer).or_default();
        if anew && member.wants_anything() {
            self.introduce_anew(peer, context);
        }
        self.introduce_sources(peer, true, context);
        self.drop_if_empty(peer);
        self.schedule(context);
    }

    /// Another length than the others say: one of them is wrong, and only the origin can tell.
    fn disagree(&self, peer: Peer, wants: &Wants, context: &mut Context<'_>) {
        let known = self.shape.as_ref().map_or(0, |shape| shape.length);
        let error = format!("other nodes say that the content has {known} bytes");
        for range in
            [&wants.blocking, &wants.prefetch, &wants.background].into_iter().flat_map(RangeSet::iter)
        {
            let failed =
                WantFailed { content: self.name.to_string(), pieces: to_wire(range), error: error.clone() };
            context.send(peer, Kind::Failed(failed));
        }
    }

    pub(super) fn have(
        &mut self,
        peer: Peer,
        shape: &Shape,
        pieces: RangeSet,
        signers: &[NodeId],
        context: &mut Context<'_>,
    ) {
        if !self.agree(shape) {
            tracing::debug!(content = %self.name, node = ?context.node(peer), "node has another length of it");
            return;
        }
        self.length_is_known(context);
        let banned = self.is_banned(peer, context);
        let member = self.members.entry(peer).or_default();
        let shrunk = !member.have.iter().all(|range| pieces.contains(range));
        let mut news = pieces.clone();
        subtract(&mut news, &member.have);
        member.have = pieces;
        member.no_longer_wants(&news);
        if !banned {
            if shrunk {
                self.recount(context);
            }
            let first = self.now_held(&news);
            for signer in signers {
                self.add_reader(*signer, Some(peer), context);
            }
            self.progress(peer, &news, context.now);
            self.offer(peer, &first, context);
        }
        self.drop_if_empty(peer);
        self.schedule(context);
    }

    /// These pieces exist in the cluster now; says which of them did not before.
    pub(super) fn now_held(&mut self, pieces: &RangeSet) -> RangeSet {
        let mut first = RangeSet::new();
        for range in pieces.iter() {
            if !self.held.contains(range) {
                first.extend(&self.held.missing(range));
                self.held.insert(range);
                self.covered.insert(range);
            }
            for failed in &mut self.failed {
                failed.remove(range);
            }
        }
        first
    }

    /// Counts again what the living have, after somebody has less.
    pub(super) fn recount(&mut self, context: &Context<'_>) {
        let mut held = RangeSet::new();
        for (peer, member) in &self.members {
            if !self.is_banned(*peer, context) {
                held.extend(&member.have);
            }
        }
        self.covered = held.clone();
        for lease in self.leases.values() {
            self.covered.insert(lease.pieces);
        }
        self.held = held;
        self.nothing_absent = false;
        self.unserved = self.blocking();
    }

    /// `peer` has nothing to do with this content any more.
    pub(super) fn remove(&mut self, peer: Peer, why: &str, context: &mut Context<'_>) {
        if let Some(member) = self.members.remove(&peer) {
            for link in &member.links {
                if let Some(other) = self.members.get_mut(link) {
                    other.links.remove(&peer);
                }
            }
        }
        self.readers_untold.remove(&peer);
        self.resting.remove(&peer);
        self.leases.retain(|_, lease| lease.holder != peer);
        self.recount(context);
        self.look_without(peer, why, context);
        self.schedule(context);
    }

    pub(super) fn drop_if_empty(&mut self, peer: Peer) {
        let empty = self.members.get(&peer).is_some_and(|m| !m.wants_anything() && m.have.is_empty());
        // A holder that wants nothing (a seed) stays while it reads.
        if !empty || self.leases.values().any(|lease| lease.holder == peer) {
            return;
        }
        if let Some(member) = self.members.remove(&peer) {
            for link in &member.links {
                if let Some(other) = self.members.get_mut(link) {
                    other.links.remove(&peer);
                }
            }
        }
        self.readers_untold.remove(&peer);
    }

    pub(super) fn liar(&mut self, peer: Peer, accused: NodeId, context: &mut Context<'_>) {
        let Some(accuser) = context.node(peer) else { return };
        if self.banned.contains(&accuser) || accuser == accused || !self.members.contains_key(&peer) {
            return;
        }
        let accusations = self.accusations.entry(accuser).or_default();
        if accusations.len() >= MAX_ACCUSATIONS && !accusations.contains(&accused) {
            tracing::warn!(content = %self.name, node = ?accuser, "node accuses too many others");
            return;
        }
        accusations.insert(accused);
        if !self.banned.insert(accused) {
            return;
        }
        tracing::warn!(content = %self.name, liar = ?accused, by = ?accuser, "node is banned from a content");
        // It stays a reader: others hold pieces that it signed in better days, and whoever refused those
        // would wait for ever. Chunks and blobs are checked against their digests all the same.
        let liar = self.members.keys().find(|member| context.node(**member) == Some(accused)).copied();
        self.leases.retain(|_, lease| Some(lease.holder) != liar);
        if let Some(liar) = liar {
            self.unlink(liar);
        }
        self.recount(context);
        self.schedule(context);
    }

    /// Nobody's neighbour any more: the round of ticks gives those who need one another.
    fn unlink(&mut self, peer: Peer) {
        for link in self.links_of(peer) {
            if let Some(other) = self.members.get_mut(&link) {
                other.links.remove(&peer);
            }
        }
        if let Some(member) = self.members.get_mut(&peer) {
            member.links.clear();
        }
    }

    /// `node` may sign pieces from now on; those who may meet its signature are told, except `teller`.
    pub(super) fn add_reader(&mut self, node: NodeId, teller: Option<Peer>, context: &mut Context<'_>) {
        if self.readers.len() >= MAX_READERS || !self.readers.insert(node) {
            return;
        }
        let wanting = self.members.iter().filter(|(_, member)| member.wants_anything());
        let told: BTreeSet<Peer> = wanting
            .map(|(peer, _)| *peer)
            .filter(|peer| Some(*peer) != teller && context.node(*peer) != Some(node))
            .collect();
        self.readers_untold.extend(told);
    }

    pub(super) fn piece_size(&self) -> u32 {
        self.shape.as_ref().map_or(PIECE_SIZE, |shape| shape.piece_size)
    }

    /// What depends on time alone.
    pub(super) fn tick(&mut self, context: &mut Context<'_>) {
        self.look_again(context);
        self.expire_leases(context);
        self.schedule(context);
        self.look_round(context);
        self.tell_readers(context);
    }
}
