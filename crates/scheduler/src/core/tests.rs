//! The core against a model of a cluster: nodes that read, fetch from each other, die, fail and lie at
//! random. What must never happen is checked with every decision; what must happen in the end, at the end.

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

// ---- rules, one by one ----

fn leases_of(world: &World, peer: Peer) -> Vec<ByteRange> {
    world.nodes[&peer].leases.values().copied().collect()
}

fn blocking(ranges: &[(u64, u64)]) -> Wants {
    Wants { blocking: set(ranges), ..Wants::default() }
}

fn background(ranges: &[(u64, u64)]) -> Wants {
    Wants { background: set(ranges), ..Wants::default() }
}

#[test]
fn one_node_looks_and_all_are_told() {
    let mut world = World::new(1);
    let peers: Vec<Peer> = (0..5).map(|_| world.join(false)).collect();
    for peer in &peers {
        world.open(*peer);
    }
    assert_eq!(world.nodes.values().filter(|node| node.looking).count(), 1);
    assert_eq!(world.nodes.values().filter(|node| node.waits_for_length).count(), 4);
    world.answer_look(peers[0]);
    assert!(world.nodes.values().all(|node| !node.waits_for_length));
    // The length stays known although nobody wants anything yet.
    let late = world.join(false);
    world.open(late);
    assert!(!world.nodes[&late].waits_for_length && !world.nodes[&late].looking);
}

#[test]
fn a_look_moves_on_when_its_node_leaves_fails_or_is_silent() {
    let mut world = World::new(1);
    let peers: Vec<Peer> = (0..4).map(|_| world.join(false)).collect();
    for peer in &peers {
        world.open(*peer);
    }
    world.leave(peers[0]);
    assert!(world.nodes[&peers[1]].looking);
    world.nodes.get_mut(&peers[1]).unwrap().refused = true;
    world.answer_look(peers[1]);
    assert!(world.nodes[&peers[2]].looking);
    for _ in 0..40 {
        world.tick();
    }
    assert!(world.nodes[&peers[3]].looking);
    world.answer_look(peers[3]);
    assert!(!world.nodes[&peers[3]].waits_for_length);
}

#[test]
fn after_three_failed_looks_everybody_hears_the_error() {
    let mut world = World::new(1);
    let peers: Vec<Peer> = (0..5).map(|_| world.join(false)).collect();
    for peer in &peers {
        world.nodes.get_mut(peer).unwrap().refused = true;
        world.open(*peer);
    }
    for peer in &peers[..3] {
        world.answer_look(*peer);
    }
    assert!(world.nodes.values().all(|node| !node.waits_for_length && !node.looking));
    assert!(world.log.iter().any(|line| line.contains("401")));
}

#[test]
fn what_a_container_waits_for_is_leased_to_the_asker_at_once_and_whole() {
    let mut world = World::new(1);
    world.join(true);
    let a = world.join(false);
    world.want(a, blocking(&[(3, 9), (20, 21)]));
    assert_eq!(leases_of(&world, a), [ByteRange::new(3, 9), ByteRange::new(20, 21)]);
}

#[test]
fn what_another_reads_is_not_leased_again_and_the_reader_is_named() {
    let mut world = World::new(1);
    let (a, b) = (world.join(false), world.join(false));
    world.want(a, blocking(&[(3, 9)]));
    world.want(b, blocking(&[(5, 12)]));
    assert_eq!(leases_of(&world, b), [ByteRange::new(9, 12)]);
    assert!(world.nodes[&b].neighbours.contains(&a));
    world.end_lease(a);
    world.fetch(b, 100);
    world.end_lease(b);
    assert!(world.nodes[&b].unmet().is_empty());
}

#[test]
fn leases_begin_small_and_four_are_at_work() {
    let mut world = World::new(1);
    let peers: Vec<Peer> = (0..6).map(|_| world.join(false)).collect();
    for peer in &peers {
        world.want(*peer, background(&[(0, PIECES)]));
    }
    let all: Vec<ByteRange> = peers.iter().flat_map(|peer| leases_of(&world, *peer)).collect();
    assert_eq!(all.len(), 4);
    assert!(all.iter().all(|lease| lease.len() == 1));
    world.settle();
    let sizes: BTreeSet<u64> = world.reads.keys().copied().collect();
    assert_eq!(sizes.len() as u64, PIECES);
}

#[test]
fn a_seed_reads_for_others_and_is_named_to_them() {
    let mut world = World::new(1);
    let seed = world.join(true);
    let a = world.join(false);
    world.want(a, background(&[(0, PIECES)]));
    assert!(!leases_of(&world, seed).is_empty());
    assert!(world.nodes[&a].neighbours.contains(&seed));
}

#[test]
fn a_seed_without_credentials_leaves_the_reading_to_the_asker() {
    let mut world = World::new(1);
    let seed = world.join(true);
    world.nodes.get_mut(&seed).unwrap().refused = true;
    let a = world.join(false);
    world.want(a, background(&[(0, PIECES)]));
    world.settle();
    assert!(world.nodes[&a].failed.is_empty());
    assert_eq!(world.nodes[&a].have.len() as u64, PIECES);
}

#[test]
fn when_all_fail_the_wants_fail_with_the_origins_error() {
    let mut world = World::new(1);
    let peers: Vec<Peer> = (0..6).map(|_| world.join(false)).collect();
    for peer in &peers {
        world.nodes.get_mut(peer).unwrap().refused = true;
        world.want(*peer, blocking(&[(0, 2)]));
    }
    world.settle();
    assert!(world.nodes.values().all(|node| node.failed.contains(ByteRange::new(0, 2))));
    assert!(world.log.iter().any(|line| line.contains("401 unauthorized")));
    assert_eq!(world.reads[&0], 3, "three holders try");
}

#[test]
fn a_silent_holder_loses_its_lease() {
    let mut world = World::new(1);
    let (a, b) = (world.join(false), world.join(false));
    world.want(a, blocking(&[(0, 4)]));
    world.want(b, blocking(&[(0, 4)]));
    world.nodes.get_mut(&a).unwrap().leases.clear();
    for _ in 0..130 {
        world.tick();
    }
    assert_eq!(leases_of(&world, b), [ByteRange::new(0, 4)]);
}

#[test]
fn of_a_dead_holder_only_what_nobody_has_is_read_again() {
    let mut world = World::new(1);
    let (a, b) = (world.join(false), world.join(false));
    world.want(a, blocking(&[(0, 8)]));
    world.want(b, blocking(&[(0, 8)]));
    // Half of the lease is there, and told.
    let node = world.nodes.get_mut(&a).unwrap();
    for piece in 0..4 {
        node.have.insert(piece, World::id(a));
    }
    node.leases.clear();
    world.tell_have(a);
    world.fetch(b, 4);
    world.leave(a);
    assert_eq!(leases_of(&world, b), [ByteRange::new(4, 8)]);
}

#[test]
fn a_liar_reads_nothing_and_is_nobodys_neighbour() {
    let mut world = World::new(1);
    let (a, b, c) = (world.join(false), world.join(false), world.join(false));
    world.want(a, blocking(&[(0, 4)]));
    world.end_lease(a);
    world.want(b, background(&[(0, 4)]));
    world.accuse(b, a);
    // What only the liar had is read again.
    assert!(!leases_of(&world, b).is_empty());
    world.want(c, background(&[(0, PIECES)]));
    assert!(!world.nodes[&c].neighbours.contains(&a));
    world.want(a, blocking(&[(30, 31)]));
    assert!(leases_of(&world, a).is_empty());
}

#[test]
fn one_accuser_cannot_empty_a_content() {
    let mut world = World::new(1);
    let accuser = world.join(false);
    world.want(accuser, background(&[(0, PIECES)]));
    let others: Vec<Peer> = (0..8).map(|_| world.join(false)).collect();
    for other in others {
        world.want(other, background(&[(0, PIECES)]));
        world.say(accuser, Say::Liar { node: World::id(other) });
    }
    assert_eq!(world.core.contents[CONTENT].banned_count(), 4);
}

#[test]
fn a_scheduler_that_restarted_waits_for_the_others_and_reads_nothing_again() {
    let mut world = World::new(1);
    let returning = |number| NodeInfo { returning: true, ..info(number, false) };
    let (wanter, holder) = (Peer(0), Peer(1));
    for peer in [wanter, holder] {
        world.nodes.insert(peer, Node { opened: true, ..Node::default() });
    }
    world.event(Event::Join { peer: wanter, info: returning(0) });
    world.want(
        wanter,
        Wants { blocking: set(&[(0, 4)]), background: set(&[(0, PIECES)]), ..Wants::default() },
    );
    world.tick();
    world.event(Event::Join { peer: holder, info: returning(1) });
    // It was read by a node that has not come back.
    world.nodes.get_mut(&holder).unwrap().have = (0..PIECES).map(|piece| (piece, node_id(77))).collect();
    world.tell_have(holder);
    world.settle();
    assert!(world.reads.is_empty(), "{:?}", world.reads);
}

#[test]
fn a_fresh_scheduler_does_not_wait() {
    let mut world = World::new(1);
    let a = world.join(false);
    world.want(a, blocking(&[(0, 4)]));
    assert_eq!(leases_of(&world, a), [ByteRange::new(0, 4)]);
}

#[test]
fn a_length_that_differs_is_an_error_and_poisons_nobody() {
    let mut world = World::new(1);
    let (a, b) = (world.join(false), world.join(false));
    world.want(a, background(&[(0, 4)]));
    let other = Shape { length: 7, ..shape() };
    world.say(b, Say::Want { shape: other, wants: blocking(&[(0, 1)]) });
    assert!(world.nodes[&b].failed.contains(ByteRange::new(0, 1)));
    world.settle();
    assert_eq!(world.nodes[&a].have.len(), 4);
}

#[test]
fn what_nobody_uses_is_forgotten_in_time() {
    let mut world = World::new(1);
    let a = world.join(false);
    world.want(a, background(&[(0, 4)]));
    world.settle();
    world.say(a, Say::Forget);
    assert_eq!(world.core.contents.len(), 1);
    world.now += FORGET_AFTER;
    world.tick();
    assert!(world.core.contents.is_empty());
    assert!(world.core.peers[&a].contents.is_empty());
}

/// Everybody wants the same at once; nobody has more neighbours than it can serve.
#[test]
fn a_crowd_gets_a_random_graph() {
    let mut world = World::new(7);
    let peers: Vec<Peer> = (0..300).map(|_| world.join(false)).collect();
    for peer in &peers {
        world.want(
            *peer,
            Wants { blocking: set(&[(0, 2)]), background: set(&[(2, PIECES)]), ..Wants::default() },
        );
    }
    let most = world.nodes.values().map(|node| node.neighbours.len()).max().unwrap();
    assert!(most <= 32, "a node has {most} neighbours");
    world.settle();
    assert!(world.reads.values().all(|reads| *reads == 1));
}
