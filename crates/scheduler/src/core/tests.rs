//! The core against a model of a cluster: nodes that read, fetch from each other, die, fail and lie at
//! random. What must never happen is checked with every decision; what must happen in the end, at the end.

mod rules;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ::content::{ByteRange, RangeSet};
use identity::NodeId;
use proptest::prelude::*;
use proto::cluster::scheduler_message::Kind;
use proto::cluster::{Locator, PieceRange};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

const PIECES: u64 = 40;
const CONTENT: &str = "claimed-test";

fn name() -> Arc<str> {
    CONTENT.into()
}

fn shape() -> Shape {
    let locator =
        Locator { registry: "http://registry".into(), repository: "r".into(), digest: "sha256:00".into() };
    Shape { length: PIECES * u64::from(PIECE_SIZE) - 100, piece_size: PIECE_SIZE, locator: Some(locator) }
}

fn set(ranges: &[(u64, u64)]) -> RangeSet {
    ranges.iter().map(|(start, end)| ByteRange::new(*start, *end)).collect()
}

fn range(pieces: Option<PieceRange>) -> ByteRange {
    let pieces = pieces.unwrap();
    ByteRange::new(pieces.start.into(), pieces.end.into())
}

fn node_id(number: u32) -> NodeId {
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    NodeId::from_bytes(bytes)
}

fn info(number: u32, seed: bool) -> NodeInfo {
    NodeInfo {
        node: node_id(number),
        public_key: [0; 32],
        hostname: format!("node-{number}"),
        address: (std::net::Ipv4Addr::from(0x0a00_0000 + number), 65_001).into(),
        seed,
        idc: String::new(),
        returning: false,
    }
}

#[derive(Default)]
struct Node {
    seed: bool,
    /// The origin refuses this node.
    refused: bool,
    opened: bool,
    wants: Wants,
    /// What it has, and who read it at the origin.
    have: BTreeMap<u64, NodeId>,
    failed: RangeSet,
    leases: BTreeMap<u64, ByteRange>,
    neighbours: BTreeSet<Peer>,
    readers: BTreeSet<NodeId>,
    looking: bool,
    waits_for_length: bool,
    messages: u64,
    granted: u64,
    said: u64,
}

impl Node {
    fn have_set(&self) -> RangeSet {
        self.have.keys().map(|piece| ByteRange::at(*piece, 1)).collect()
    }

    fn unmet(&self) -> RangeSet {
        let mut unmet = self.wants.blocking.clone();
        unmet.extend(&self.wants.prefetch);
        unmet.extend(&self.wants.background);
        for range in self.have_set().iter().chain(self.failed.iter()) {
            unmet.remove(range);
        }
        unmet
    }
}

struct World {
    core: Core,
    rng: StdRng,
    core_rng: StdRng,
    now: Millis,
    nodes: BTreeMap<Peer, Node>,
    next: u32,
    banned: BTreeSet<NodeId>,
    /// How often each piece was leased.
    reads: BTreeMap<u64, u32>,
    log: Vec<String>,
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            core: Core::new(seed),
            rng: StdRng::seed_from_u64(seed),
            core_rng: StdRng::seed_from_u64(!seed),
            now: 0,
            nodes: BTreeMap::new(),
            next: 0,
            banned: BTreeSet::new(),
            reads: BTreeMap::new(),
            log: Vec::new(),
        }
    }

    fn id(peer: Peer) -> NodeId {
        node_id(peer.0)
    }

    fn event(&mut self, event: Event) {
        let decisions = self.core.handle(self.now, event, &mut self.core_rng);
        for decision in decisions {
            self.log.push(format!("{} {decision:?}", self.now));
            self.check_and_take(decision);
        }
    }

    fn say(&mut self, peer: Peer, say: Say) {
        self.nodes.get_mut(&peer).unwrap().said += 1;
        self.event(Event::Said { peer, content: name(), say });
    }

    fn check_and_take(&mut self, Decision { to, message }: Decision) {
        match &message {
            Kind::Lease(lease) => {
                let pieces = range(lease.pieces);
                assert!(!self.banned.contains(&Self::id(to)), "a liar was granted a lease");
                for (peer, node) in &self.nodes {
                    for other in node.leases.values() {
                        assert!(
                            other.intersect(&pieces).is_empty(),
                            "{pieces:?} is leased twice, to {peer:?}"
                        );
                    }
                    if !self.banned.contains(&Self::id(*peer)) {
                        let has = node.have_set().intersect(pieces);
                        assert!(has.is_empty(), "{has:?} is leased although {peer:?} has it");
                    }
                }
                let wanted = self.nodes.values().any(|node| !node.unmet().intersect(pieces).is_empty());
                assert!(wanted, "{pieces:?} is leased and nobody wants it");
                for piece in pieces.start..pieces.end {
                    *self.reads.entry(piece).or_default() += 1;
                }
            }
            Kind::Neighbours(neighbours) => {
                for neighbour in &neighbours.nodes {
                    let id = NodeId::try_from(neighbour.node.as_slice()).unwrap();
                    assert!(!self.banned.contains(&id), "a liar was named as neighbour");
                    assert_ne!(id, Self::id(to), "a node was named to itself");
                }
            }
            _ => {}
        }
        let peers: BTreeMap<NodeId, Peer> = self.nodes.keys().map(|peer| (Self::id(*peer), *peer)).collect();
        // Messages to a node that has just left are lost.
        let Some(node) = self.nodes.get_mut(&to) else { return };
        node.messages += 1;
        match message {
            Kind::Lease(lease) => {
                node.granted += 1;
                node.leases.insert(lease.lease, range(lease.pieces));
            }
            Kind::LookUp(_) => {
                node.waits_for_length = false;
                node.looking = true;
            }
            Kind::Length(_) => node.waits_for_length = false,
            Kind::Failed(failed) => node.failed.insert(range(failed.pieces)),
            Kind::Neighbours(neighbours) => {
                node.readers =
                    neighbours.readers.iter().map(|id| NodeId::try_from(id.as_slice()).unwrap()).collect();
                for neighbour in neighbours.nodes {
                    let id = NodeId::try_from(neighbour.node.as_slice()).unwrap();
                    let other = peers[&id];
                    self.nodes.get_mut(&to).unwrap().neighbours.insert(other);
                    self.nodes.get_mut(&other).unwrap().neighbours.insert(to);
                }
            }
            Kind::Gone(_) | Kind::Welcome(_) => {}
        }
    }

    fn join(&mut self, seed: bool) -> Peer {
        let peer = Peer(self.next);
        self.next += 1;
        self.nodes.insert(peer, Node { seed, ..Node::default() });
        self.event(Event::Join { peer, info: info(peer.0, seed) });
        peer
    }

    fn leave(&mut self, peer: Peer) {
        self.nodes.remove(&peer);
        for node in self.nodes.values_mut() {
            node.neighbours.remove(&peer);
        }
        self.event(Event::Leave { peer });
    }

    fn open(&mut self, peer: Peer) {
        let node = self.nodes.get_mut(&peer).unwrap();
        node.opened = true;
        node.waits_for_length = true;
        self.say(peer, Say::Open { locator: shape().locator });
    }

    fn want(&mut self, peer: Peer, wants: Wants) {
        let node = self.nodes.get_mut(&peer).unwrap();
        node.wants = wants.clone();
        node.failed = RangeSet::new();
        self.say(peer, Say::Want { shape: shape(), wants });
    }

    fn want_random(&mut self, peer: Peer) {
        let mut wants = Wants::default();
        if self.rng.random_bool(0.7) {
            wants.background.insert(ByteRange::new(0, PIECES));
        }
        if self.rng.random_bool(0.5) {
            let start = self.rng.random_range(0..PIECES);
            wants.prefetch.insert(ByteRange::new(start, self.rng.random_range(start..=PIECES)));
        }
        for _ in 0..self.rng.random_range(0..3) {
            let start = self.rng.random_range(0..PIECES);
            wants.blocking.insert(ByteRange::new(start, (start + self.rng.random_range(1..6)).min(PIECES)));
        }
        // What it has it does not want.
        for range in self.nodes[&peer].have_set().iter() {
            for set in [&mut wants.blocking, &mut wants.prefetch, &mut wants.background] {
                set.remove(range);
            }
        }
        self.want(peer, wants);
    }

    fn tell_have(&mut self, peer: Peer) {
        let node = &self.nodes[&peer];
        let pieces = node.have_set();
        let signers = node.have.values().copied().collect::<BTreeSet<_>>().into_iter().collect();
        self.say(peer, Say::Have { shape: shape(), pieces, signers });
    }

    fn answer_look(&mut self, peer: Peer) {
        let node = self.nodes.get_mut(&peer).unwrap();
        node.looking = false;
        let length = if node.refused { Err("401".to_owned()) } else { Ok(shape().length) };
        self.say(peer, Say::Opened { length });
    }

    /// Ends one lease: done, or refused.
    fn end_lease(&mut self, peer: Peer) {
        let node = self.nodes.get_mut(&peer).unwrap();
        let Some((lease, pieces)) = node.leases.pop_first() else { return };
        if node.refused {
            self.say(peer, Say::LeaseFailed { lease, error: "401 unauthorized".to_owned() });
            return;
        }
        for piece in pieces.start..pieces.end {
            node.have.insert(piece, Self::id(peer));
        }
        if self.rng.random_bool(0.5) {
            self.say(peer, Say::LeaseNearlyDone { lease });
        }
        self.say(peer, Say::LeaseDone { lease });
    }

    /// Fetches up to `count` pieces from neighbours, as far as their signatures are known to be good.
    fn fetch(&mut self, peer: Peer, count: usize) {
        let node = &self.nodes[&peer];
        let mut got = Vec::new();
        for piece in node.unmet().iter().flat_map(|range| range.start..range.end) {
            if got.len() == count {
                break;
            }
            let mut offers = node.neighbours.iter().filter(|other| !self.banned.contains(&Self::id(**other)));
            let signer = offers.find_map(|other| self.nodes[other].have.get(&piece));
            let Some(signer) = signer else { continue };
            let good = node.readers.contains(signer) || *signer == Self::id(peer);
            let crowd = self.nodes.len() > lease::CROWD;
            assert!(good || crowd, "{peer:?} does not know the reader {signer:?} of {piece}");
            if !good {
                continue;
            }
            got.push((piece, *signer));
        }
        if got.is_empty() {
            return;
        }
        self.nodes.get_mut(&peer).unwrap().have.extend(got);
        self.tell_have(peer);
    }

    fn accuse(&mut self, accuser: Peer, liar: Peer) {
        let node = self.nodes.get_mut(&liar).unwrap();
        // A liar's leases are nobody's, and it says nothing more about them.
        node.leases.clear();
        self.banned.insert(Self::id(liar));
        self.say(accuser, Say::Liar { node: Self::id(liar) });
    }

    fn tick(&mut self) {
        self.now += 250;
        self.event(Event::Tick);
    }

    fn some(&mut self, wanted: impl Fn(&Node) -> bool) -> Option<Peer> {
        let peers: Vec<Peer> =
            self.nodes.iter().filter(|(_, node)| wanted(node)).map(|(peer, _)| *peer).collect();
        if peers.is_empty() { None } else { Some(peers[self.rng.random_range(0..peers.len())]) }
    }

    /// One random thing happens. Trouble (deaths, refusals, liars) only if asked for.
    fn step(&mut self, trouble: bool) {
        match self.rng.random_range(0..12) {
            0 if self.nodes.len() < 40 => {
                let seed = self.rng.random_bool(0.1);
                let peer = self.join(seed);
                if trouble && self.rng.random_bool(0.3) {
                    self.nodes.get_mut(&peer).unwrap().refused = true;
                }
            }
            1 => {
                if let Some(peer) = self.some(|node| !node.opened && !node.seed) {
                    self.open(peer);
                }
            }
            2 => {
                let ready = |node: &Node| node.opened && !node.waits_for_length && !node.looking;
                // The length must be known to whoever wants.
                if let Some(peer) = self
                    .some(ready)
                    .filter(|_| self.core.contents.get(CONTENT).is_some_and(|c| c.shape.is_some()))
                {
                    self.want_random(peer);
                }
            }
            3 => {
                if let Some(peer) = self.some(|node| node.looking) {
                    self.answer_look(peer);
                }
            }
            4 if trouble => {
                if let Some(peer) = self.some(|_| true) {
                    self.leave(peer);
                }
            }
            5 if trouble && self.banned.len() < 2 && self.rng.random_bool(0.2) => {
                let accuser = self.some(|node| !node.have.is_empty());
                let liar = self.some(|_| true);
                if let (Some(accuser), Some(liar)) = (accuser, liar)
                    && accuser != liar
                    && !self.banned.contains(&Self::id(accuser))
                {
                    self.accuse(accuser, liar);
                }
            }
            6 => self.tick(),
            7 | 8 => {
                if let Some(peer) = self.some(|node| !node.leases.is_empty()) {
                    self.end_lease(peer);
                }
            }
            _ => {
                if let Some(peer) = self.some(|node| !node.unmet().is_empty()) {
                    self.fetch(peer, 4);
                }
            }
        }
    }

    /// Everybody does what it can, until nothing is left to wait for.
    fn settle(&mut self) {
        for _ in 0..2_000 {
            let waiting = self.nodes.values().any(|node| {
                node.waits_for_length || node.looking || !node.leases.is_empty() || !node.unmet().is_empty()
            });
            if !waiting {
                return;
            }
            self.tick();
            let peers: Vec<Peer> = self.nodes.keys().copied().collect();
            for peer in peers {
                if self.nodes[&peer].looking {
                    self.answer_look(peer);
                }
                self.end_lease(peer);
                self.fetch(peer, 8);
            }
        }
        let stuck: Vec<_> = self
            .nodes
            .iter()
            .filter(|(_, node)| node.waits_for_length || !node.unmet().is_empty())
            .map(|(peer, node)| (*peer, node.unmet(), node.neighbours.clone()))
            .collect();
        panic!("never answered: {stuck:?}");
    }
}

fn run(seed: u64, steps: usize, trouble: bool) -> World {
    let mut world = World::new(seed);
    for _ in 0..3 {
        world.join(false);
    }
    for _ in 0..steps {
        world.step(trouble);
    }
    world.settle();
    world
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// Without deaths, liars and origin errors every piece is read once, and every want is met.
    #[test]
    fn in_good_weather_every_piece_is_read_once(seed: u64, steps in 50usize..400) {
        let world = run(seed, steps, false);
        for (piece, reads) in &world.reads {
            prop_assert_eq!(*reads, 1, "piece {}", piece);
        }
        for node in world.nodes.values() {
            prop_assert!(node.failed.is_empty());
        }
    }

    /// With trouble of every kind: never two holders of a piece, nothing for liars, nothing re-read that a
    /// living node has (all checked with each decision), and every want ends.
    #[test]
    fn in_bad_weather_every_want_ends(seed: u64, steps in 50usize..400) {
        run(seed, steps, true);
    }

    /// The same seed and events give the same decisions.
    #[test]
    fn the_core_is_deterministic(seed: u64) {
        prop_assert_eq!(run(seed, 150, true).log, run(seed, 150, true).log);
    }

    /// Messages to a node: its leases and what it says itself, the readers that appear, and one a second.
    #[test]
    fn messages_are_bounded(seed: u64, steps in 50usize..400) {
        let world = run(seed, steps, false);
        let readers = world.nodes.values().map(|node| node.readers.len()).max().unwrap_or_default() as u64;
        let seconds = world.now / 1000 + 1;
        for (peer, node) in &world.nodes {
            let bound = 2 + 2 * node.granted + 2 * node.said + 2 * readers + 2 * seconds;
            prop_assert!(node.messages <= bound, "{:?}: {} messages, bound {}", peer, node.messages, bound);
        }
    }
}
