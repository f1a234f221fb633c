//! Whom a node talks to about a content.
//!
//! A random graph of about 16 edges a node spreads pieces as well as any plan, and needs no upkeep but
//! this: replace neighbours that are gone, and see that whoever misses a piece which exists has a
//! neighbour that has it or reads it.

use std::collections::BTreeSet;

use ::content::{ByteRange, RangeSet};
use proto::cluster::Neighbours;
use proto::cluster::scheduler_message::Kind;
use rand::RngExt;

use super::Context;
use super::content::{Content, Member, subtract};
use super::event::{Millis, Peer};
use super::lease::{CROWD, shuffle_first};

/// Neighbours that a node is given.
const CHOSEN: usize = 8;
/// Of them, at most so many from other data centres, if its own has enough.
const FAR: usize = 2;
/// With no more members than this, everybody is everybody's neighbour.
const FEW: usize = 16;
/// Neighbours of a node at most: it may be chosen by others, too.
const CAP: usize = 24;
/// Sources that one message adds for pieces that are missed.
const SOURCES: usize = 4;
/// A node that begins to want again after this time is told of its neighbours again.
const REMIND: Millis = 30_000;
/// Of those who offer a missed piece, the one with the fewest neighbours among so many is named.
const LOOKED_AT: usize = 8;
/// Every member is looked after so often.
const ROUND: Millis = 1_000;
/// Members looked after by one tick.
const ROUND_STEP: usize = 256;
/// Neighbours beyond the cap that one tick may give.
const BEYOND_CAP: usize = 16;

impl Content {
    /// Gives a member that begins to want something its neighbours.
    pub(super) fn introduce_anew(&mut self, peer: Peer, context: &mut Context<'_>) {
        let Some(member) = self.members.get(&peer) else { return };
        let wanted = if self.members.len() <= FEW { FEW } else { CHOSEN };
        let mut chosen = self.choose_neighbours(peer, wanted.saturating_sub(member.links.len()), context);
        if context.now >= member.told_at + REMIND {
            // After a pause it may have let go of those that it was told of.
            chosen.extend(member.links.iter().take(CHOSEN));
        }
        if !chosen.is_empty() || !self.readers.is_empty() {
            self.tell(peer, &chosen, context);
        }
    }

    fn choose_neighbours(&self, peer: Peer, count: usize, context: &mut Context<'_>) -> Vec<Peer> {
        let Some(member) = self.members.get(&peer) else { return Vec::new() };
        let mut others: Vec<Peer> = self
            .members
            .iter()
            .filter(|(other, state)| {
                **other != peer && !member.links.contains(other) && state.links.len() < CAP
            })
            .map(|(other, _)| *other)
            .filter(|other| !self.is_banned(*other, context))
            .collect();
        let all = others.len();
        shuffle_first(&mut others, all, context);
        let idc = |peer: &Peer| context.peers.get(peer).map(|state| state.info.idc.as_str());
        let home = idc(&peer).unwrap_or_default();
        let (near, far): (Vec<Peer>, Vec<Peer>) =
            others.into_iter().partition(|other| home.is_empty() || idc(other) == Some(home));
        let near_count = near.len().min(count.saturating_sub(FAR.min(far.len())));
        let far_count = count - near_count;
        near.into_iter().take(near_count).chain(far.into_iter().take(far_count)).collect()
    }

    /// A node asks for more.
    pub(super) fn more(&mut self, peer: Peer, context: &mut Context<'_>) {
        let Some(member) = self.members.get(&peer) else { return };
        // Nobody new: perhaps it could not reach those that it knows, and now can.
        let known: Vec<Peer> = member.links.iter().copied().take(CHOSEN).collect();
        let fresh = self.choose_neighbours(peer, CHOSEN, context);
        self.tell(peer, if fresh.is_empty() { &known } else { &fresh }, context);
    }

    /// Somebody who wants nothing for itself (a seed) begins to read: some wanters hear of it at once.
    pub(super) fn introduce_reader(&mut self, reader: Peer, context: &mut Context<'_>) {
        let mut wanters: Vec<Peer> = self
            .members
            .iter()
            .filter(|(peer, member)| **peer != reader && member.wants_anything())
            .map(|(peer, _)| *peer)
            .collect();
        let count = if wanters.len() <= FEW { FEW } else { CHOSEN };
        shuffle_first(&mut wanters, count, context);
        for wanter in wanters.into_iter().take(count) {
            self.tell(wanter, &[reader], context);
        }
    }

    /// Sees that `peer` knows somebody who has or reads what it misses: of what a container waits for, or
    /// of everything.
    pub(super) fn introduce_sources(&mut self, peer: Peer, blocking: bool, context: &mut Context<'_>) {
        let sources = self.missing_sources(peer, blocking, CAP, context);
        if !sources.is_empty() {
            self.tell(peer, &sources, context);
        }
    }

    fn missing_sources(
        &self,
        peer: Peer,
        blocking: bool,
        cap: usize,
        context: &mut Context<'_>,
    ) -> Vec<Peer> {
        let Some(member) = self.members.get(&peer) else { return Vec::new() };
        let mut missed = if blocking { member.wants.blocking.clone() } else { member.unmet() };
        for known in member.links.iter().chain(std::iter::once(&peer)) {
            if missed.is_empty() {
                return Vec::new();
            }
            self.take_away_offer(*known, &mut missed, context);
        }
        let mut sources = Vec::new();
        while sources.len() < SOURCES {
            let exists = missed.iter().find_map(|range| self.covered.intersect(range).iter().next());
            let Some(exists) = exists else { break };
            let piece = ByteRange::at(exists.start, 1);
            // The first that offer it, from a random place on: nobody looks at a whole crowd for one piece.
            let best = self
                .members_from_somewhere(context)
                .filter(|(other, state)| {
                    *other != peer && state.links.len() < cap && self.offers(*other, piece, context)
                })
                .take(LOOKED_AT)
                .min_by_key(|(_, state)| state.links.len())
                .map(|(other, _)| other);
            let Some(source) = best else {
                // Everybody who offers it has enough neighbours: it comes by way of them.
                missed.remove(exists);
                continue;
            };
            self.take_away_offer(source, &mut missed, context);
            sources.push(source);
        }
        sources
    }

    /// All members, in order, beginning at a random one.
    fn members_from_somewhere<'a>(
        &'a self,
        context: &mut Context<'_>,
    ) -> impl Iterator<Item = (Peer, &'a Member)> + use<'a> {
        let ends = (self.members.keys().next(), self.members.keys().next_back());
        let pivot = match ends {
            (Some(Peer(first)), Some(Peer(last))) => Peer(context.rng.random_range(*first..=*last)),
            _ => Peer(0),
        };
        self.members.range(pivot..).chain(self.members.range(..pivot)).map(|(peer, member)| (*peer, member))
    }

    fn offers(&self, peer: Peer, piece: ByteRange, context: &Context<'_>) -> bool {
        !self.is_banned(peer, context)
            && (self.members.get(&peer).is_some_and(|member| member.have.contains(piece))
                || self.leases.values().any(|l| l.holder == peer && l.pieces.contains(&piece)))
    }

    fn take_away_offer(&self, peer: Peer, missed: &mut RangeSet, context: &Context<'_>) {
        if self.is_banned(peer, context) {
            return;
        }
        if let Some(member) = self.members.get(&peer) {
            subtract(missed, &member.have);
        }
        for lease in self.leases.values().filter(|lease| lease.holder == peer) {
            missed.remove(lease.pieces);
        }
    }

    /// `peer` is the first to have, or to read, `news`: containers that wait for them hear of it at once. Not
    /// beyond the cap; in a crowd the rest comes by way of neighbours.
    pub(super) fn offer(&mut self, peer: Peer, news: &RangeSet, context: &mut Context<'_>) {
        if news.is_empty() || self.is_banned(peer, context) {
            return;
        }
        let Some(room) = self.members.get(&peer).map(|member| CAP.saturating_sub(member.links.len())) else {
            return;
        };
        let waits = |member: &Member| {
            !member.links.contains(&peer)
                && news.iter().any(|range| !member.wants.blocking.intersect(range).is_empty())
        };
        let waiting: Vec<Peer> = self
            .members
            .iter()
            .filter(|(other, member)| **other != peer && waits(member))
            .map(|(other, _)| *other)
            .take(room)
            .collect();
        for waiting in waiting {
            self.tell(waiting, &[peer], context);
        }
    }

    /// Looks after the next members: those who miss something need neighbours, and a source.
    pub(super) fn look_round(&mut self, context: &mut Context<'_>) {
        let (after, due) = self.round;
        if context.now < due {
            return;
        }
        let step: Vec<Peer> = match after {
            None => self.members.keys().copied().take(ROUND_STEP).collect(),
            Some(after) => {
                let rest = (std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded);
                self.members.range(rest).map(|(peer, _)| *peer).take(ROUND_STEP).collect()
            }
        };
        self.round = match step.last().filter(|_| step.len() == ROUND_STEP) {
            Some(last) => (Some(*last), due),
            None => (None, context.now + ROUND),
        };
        let mut beyond = 0;
        for peer in step {
            let Some(member) = self.members.get(&peer) else { continue };
            if !member.wants_anything() {
                continue;
            }
            let others = self.members.len() - 1;
            let mut nodes = Vec::new();
            if member.links.len() < CHOSEN.min(others) {
                let missing = CHOSEN - member.links.len();
                nodes = self.choose_neighbours(peer, missing, context);
            }
            let cap = if beyond < BEYOND_CAP { usize::MAX } else { CAP };
            let sources = self.missing_sources(peer, false, cap, context);
            beyond += sources.len();
            nodes.extend(sources);
            if !nodes.is_empty() {
                self.tell(peer, &nodes, context);
            }
        }
    }

    /// Tells of new readers: at once if there are few to tell, in a crowd with the next tick. A node that
    /// meets a signature before it has heard of its reader can only wait.
    pub(super) fn tell_readers_soon(&mut self, context: &mut Context<'_>) {
        if self.readers_untold.len() <= CROWD {
            self.tell_readers(context);
        }
    }

    pub(super) fn tell_readers(&mut self, context: &mut Context<'_>) {
        for peer in std::mem::take(&mut self.readers_untold) {
            if self.members.contains_key(&peer) {
                self.tell(peer, &[], context);
            }
        }
    }

    /// Tells `peer` of `nodes`, and of all readers.
    fn tell(&mut self, peer: Peer, nodes: &[Peer], context: &mut Context<'_>) {
        let nodes: BTreeSet<Peer> = nodes.iter().copied().collect();
        let mut told = Vec::new();
        for node in &nodes {
            let (Some(state), Some(member)) = (context.peers.get(node), self.members.get_mut(node)) else {
                continue;
            };
            member.links.insert(peer);
            told.push(state.info.neighbour(&member.have));
            if let Some(member) = self.members.get_mut(&peer) {
                member.links.insert(*node);
                member.told_at = context.now;
            }
        }
        self.readers_untold.remove(&peer);
        let readers = self.readers.iter().map(|reader| reader.as_bytes().to_vec()).collect();
        let message = Neighbours { content: self.name.to_string(), nodes: told, readers };
        context.send(peer, Kind::Neighbours(message));
    }
}
