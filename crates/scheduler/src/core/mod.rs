//! What the scheduler decides, as a pure function of events, time and random numbers.
//!
//! For each content it keeps who wants and who has which pieces (ranges, coarse and a little old), and
//! gives two kinds of answer:
//!
//! * **Leases** ([`lease`]): permission to read a run of pieces at the origin. A piece is leased to at most
//!   one living holder, and only while somebody wants it and nobody has it; that is how the registry serves
//!   every byte once. A piece that a container waits for goes to the node that asks, at once.
//! * **Neighbours** ([`neighbours`]): whom to ask. About eight at random, and whoever has or reads what a
//!   node waits for.
//!
//! The length of a content is learned by one node on behalf of all ([`lookup`]). Everything that can be
//! waited for ends: a holder that leaves, fails or is silent too long loses its lease to the next, and when
//! nobody is left the wants fail with the origin's own error.
//!
//! **Whose signatures are good.** Readers of a content are the nodes that were told to look at it or were
//! granted a lease, and those that a node names as signers of what it has: after a restart of the scheduler
//! that is all that is known. Believing such a word gives nobody new power, because whoever may say it could
//! as well ask for a lease and sign itself; that whole blobs and chunks match their digests is checked by
//! those who read them. A node reported as a liar gets no lease of that content and is nobody's neighbour.
//!
//! **After a restart** the nodes come back one by one, and the first may want what the second has. So while
//! the scheduler is young and nodes say that they are returning, it grants nothing for a moment.

mod content;
mod event;
mod lease;
mod lookup;
mod neighbours;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ::content::RangeSet;
use identity::NodeId;
use proto::cluster::scheduler_message::Kind;
use proto::cluster::{ClusterNode, ClusterResponse, Gone, Welcome};
use rand::Rng;

use self::content::Content;
pub use self::event::{Decision, Event, Millis, NodeInfo, Peer, Say, Shape, Wants};

/// The protocol that this scheduler speaks.
pub const PROTOCOL: u32 = 1;
/// Bytes of a piece: `Welcome` tells nodes.
pub const PIECE_SIZE: u32 = 64 * 1024;

/// Contents known at most; beyond it those that nobody wants go, then new ones are not taken.
const MAX_CONTENTS: usize = 100_000;
/// Contents that one node may speak of. A node's store of 100 GB holds some thousands.
const MAX_CONTENTS_PER_PEER: usize = 16_384;
/// A content that nobody has or wants is remembered so long for the sake of its length.
const FORGET_AFTER: Millis = 5 * 60 * 1000;
/// How long after its start a scheduler takes "returning" for news about its own restart.
const YOUNG: Millis = 10_000;
/// Every returning node delays the first lease by this; nodes come back within two seconds.
const SETTLE: Millis = 1_500;
/// But never longer than this after the first returning node.
const SETTLE_AT_MOST: Millis = 4_000;
/// Seeds that a node is told of.
const SEEDS_TOLD: usize = 16;

/// A node with a session.
pub(crate) struct PeerState {
    pub(crate) info: NodeInfo,
    /// The contents that it is a member of or holds something of.
    pub(crate) contents: BTreeSet<Arc<str>>,
}

pub(crate) type Peers = BTreeMap<Peer, PeerState>;

/// What every decision needs beside the content that it is about.
pub(crate) struct Context<'a> {
    pub(crate) now: Millis,
    pub(crate) rng: &'a mut dyn Rng,
    pub(crate) peers: &'a Peers,
    pub(crate) seeds: &'a BTreeSet<Peer>,
    pub(crate) next_lease: &'a mut u64,
    /// Whether leases may be granted now.
    pub(crate) settled: bool,
    pub(crate) out: &'a mut Vec<Decision>,
    /// Peers that became members of the content (a seed that was granted a lease).
    pub(crate) joined: Vec<Peer>,
}

impl Context<'_> {
    pub(crate) fn send(&mut self, to: Peer, message: Kind) {
        self.out.push(Decision { to, message });
    }

    pub(crate) fn node(&self, peer: Peer) -> Option<NodeId> {
        self.peers.get(&peer).map(|state| state.info.node)
    }
}

/// The state machine.
pub struct Core {
    peers: Peers,
    seeds: BTreeSet<Peer>,
    contents: BTreeMap<Arc<str>, Content>,
    next_lease: u64,
    /// Of the first returning node, and until when leases wait.
    settling: Option<(Millis, Millis)>,
}

impl Core {
    /// A core that knows nobody, at time 0. Leases are numbered from `first_lease`: a random number, so that
    /// a report about a lease of an earlier scheduler is not taken for one of this.
    pub const fn new(first_lease: u64) -> Self {
        Self {
            peers: BTreeMap::new(),
            seeds: BTreeSet::new(),
            contents: BTreeMap::new(),
            next_lease: first_lease,
            settling: None,
        }
    }

    /// Takes one event and says what follows from it. Time never runs backwards.
    pub fn handle(&mut self, now: Millis, event: Event, rng: &mut dyn Rng) -> Vec<Decision> {
        let mut out = Vec::new();
        match event {
            Event::Join { peer, info } => self.join(now, peer, info, &mut out),
            Event::Leave { peer } => self.leave(now, peer, rng, &mut out),
            Event::Said { peer, content, say } => self.said(now, peer, &content, say, rng, &mut out),
            Event::Tick => self.tick(now, rng, &mut out),
        }
        out
    }

    fn join(&mut self, now: Millis, peer: Peer, info: NodeInfo, out: &mut Vec<Decision>) {
        if info.returning && now < YOUNG {
            let first = self.settling.map_or(now, |(first, _)| first);
            self.settling = Some((first, (now + SETTLE).min(first + SETTLE_AT_MOST)));
        }
        let seeds = self
            .seeds
            .iter()
            .filter_map(|seed| self.peers.get(seed))
            .take(SEEDS_TOLD)
            .map(|seed| seed.info.neighbour(&RangeSet::new()))
            .collect();
        if info.seed {
            self.seeds.insert(peer);
        }
        self.peers.insert(peer, PeerState { info, contents: BTreeSet::new() });
        let welcome = Welcome { protocol: PROTOCOL, piece_size: PIECE_SIZE, seeds };
        out.push(Decision { to: peer, message: Kind::Welcome(welcome) });
    }

    fn leave(&mut self, now: Millis, peer: Peer, rng: &mut dyn Rng, out: &mut Vec<Decision>) {
        let Some(state) = self.peers.remove(&peer) else { return };
        self.seeds.remove(&peer);
        let mut told = BTreeSet::new();
        for name in state.contents {
            self.with(now, &name, rng, out, |content, context| {
                told.append(&mut content.links_of(peer));
                content.remove(peer, "the node has left", context);
            });
        }
        let gone = Gone { node: state.info.node.as_bytes().to_vec() };
        for to in told.into_iter().filter(|to| self.peers.contains_key(to)) {
            out.push(Decision { to, message: Kind::Gone(gone.clone()) });
        }
    }

    fn said(
        &mut self,
        now: Millis,
        peer: Peer,
        name: &Arc<str>,
        say: Say,
        rng: &mut dyn Rng,
        out: &mut Vec<Decision>,
    ) {
        let Some(state) = self.peers.get_mut(&peer) else { return };
        let founds = matches!(say, Say::Open { .. } | Say::Want { .. } | Say::Have { .. });
        if founds {
            // Beyond its limit a node is not heard; it goes on without the cluster for that content.
            if state.contents.len() >= MAX_CONTENTS_PER_PEER && !state.contents.contains(name) {
                tracing::debug!(node = ?state.info.node, "node speaks of too many contents");
                return;
            }
            if !self.contents.contains_key(name) {
                if self.contents.len() >= MAX_CONTENTS {
                    self.contents.retain(|_, content| !content.is_unused());
                }
                if self.contents.len() >= MAX_CONTENTS {
                    tracing::warn!(limit = MAX_CONTENTS, "too many contents, a new one is not shared");
                    return;
                }
                self.contents.insert(Arc::clone(name), Content::new(Arc::clone(name), now));
            }
            state.contents.insert(Arc::clone(name));
        }
        self.with(now, name, rng, out, |content, context| match say {
            Say::Open { locator } => content.open(peer, locator, context),
            Say::Opened { length } => content.opened(peer, length, context),
            Say::Want { shape, wants } => content.want(peer, &shape, wants, context),
            Say::Have { shape, pieces, signers } => content.have(peer, &shape, pieces, &signers, context),
            Say::Forget => content.remove(peer, "the node has forgotten it", context),
            Say::LeaseNearlyDone { lease } => content.lease_nearly_done(peer, lease, context),
            Say::LeaseDone { lease } => content.lease_done(peer, lease, context),
            Say::LeaseFailed { lease, error } => content.lease_failed(peer, lease, &error, context),
            Say::Liar { node } => content.liar(peer, node, context),
            Say::More => content.more(peer, context),
        });
        let still = self.contents.get(name).is_some_and(|content| content.knows(peer));
        if !still && let Some(state) = self.peers.get_mut(&peer) {
            state.contents.remove(name);
        }
    }

    fn tick(&mut self, now: Millis, rng: &mut dyn Rng, out: &mut Vec<Decision>) {
        let names: Vec<Arc<str>> = self
            .contents
            .iter()
            .filter(|(_, content)| content.needs_tick())
            .map(|(name, _)| Arc::clone(name))
            .collect();
        for name in names {
            self.with(now, &name, rng, out, Content::tick);
        }
        self.contents.retain(|_, content| !(content.is_unused() && now >= content.used_at + FORGET_AFTER));
    }

    /// Runs `act` on a content with all that it needs, if the content is known.
    fn with(
        &mut self,
        now: Millis,
        name: &Arc<str>,
        rng: &mut dyn Rng,
        out: &mut Vec<Decision>,
        act: impl FnOnce(&mut Content, &mut Context<'_>),
    ) {
        let Some(content) = self.contents.get_mut(name) else { return };
        let mut context = Context {
            now,
            rng,
            peers: &self.peers,
            seeds: &self.seeds,
            next_lease: &mut self.next_lease,
            settled: self.settling.is_none_or(|(_, until)| now >= until),
            out,
            joined: Vec::new(),
        };
        act(content, &mut context);
        content.tell_readers_soon(&mut context);
        if !content.is_unused() {
            content.used_at = now;
        }
        let joined = context.joined;
        for peer in joined {
            if let Some(state) = self.peers.get_mut(&peer) {
                state.contents.insert(Arc::clone(name));
            }
        }
    }

    /// Nodes and contents, for `pantala status`.
    pub fn cluster(&self) -> ClusterResponse {
        let mut nodes: BTreeMap<Peer, ClusterNode> =
            self.peers.iter().map(|(peer, state)| (*peer, state.info.cluster_node())).collect();
        let mut contents = 0;
        for content in self.contents.values().filter(|content| !content.is_unused()) {
            contents += 1;
            for (peer, bytes) in content.bytes_held() {
                if let Some(node) = nodes.get_mut(&peer) {
                    node.contents += 1;
                    node.bytes += bytes;
                }
            }
        }
        ClusterResponse { nodes: nodes.into_values().collect(), contents }
    }
}
