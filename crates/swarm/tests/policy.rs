//! Invariants of the policy under random events. Numbers are those of the design page.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking, and its numbers are small"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use swarm::Patience;
use swarm::policy::{Action, BLOCKING, Child, Parent, QUEUE, Request, Verdict, World};

const PIECES: u32 = 70;
const PEERS: u32 = 6;
const BUDGET: usize = 5;
/// Seconds that a piece takes: slow enough that a parent gets one request at a time.
const OWN: f64 = 0.01;

#[derive(Clone, Debug)]
enum Op {
    Want { piece: u32, class: usize },
    Relax { piece: u32 },
    Have { peer: u32, piece: u32 },
    Answer { which: usize },
    Busy { which: usize, ms: u64 },
    Absent { which: usize },
    Lost { peer: u32 },
    Origin { piece: u32 },
    Wait { ms: u64 },
    Hedge,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0..PIECES, 0..3_usize).prop_map(|(piece, class)| Op::Want { piece, class }),
        1 => (0..PIECES).prop_map(|piece| Op::Relax { piece }),
        6 => (0..PEERS, 0..PIECES).prop_map(|(peer, piece)| Op::Have { peer, piece }),
        5 => (0..64_usize).prop_map(|which| Op::Answer { which }),
        2 => (0..64_usize, 1..100_u64).prop_map(|(which, ms)| Op::Busy { which, ms }),
        1 => (0..64_usize).prop_map(|which| Op::Absent { which }),
        1 => (0..PEERS).prop_map(|peer| Op::Lost { peer }),
        1 => (0..PIECES).prop_map(|piece| Op::Origin { piece }),
        3 => (1..200_u64).prop_map(|ms| Op::Wait { ms }),
        1 => Just(Op::Hedge),
    ]
}

/// A small generator, so that the same seed gives the same decisions.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((u64::from(limit) * (self.0 >> 33)) >> 31) as u32
    }
}

/// Plays the events and checks each decision; returns all of them.
fn play(ops: &[Op], seed: u64) -> Vec<Action> {
    let start = Instant::now();
    let mut now = start;
    let mut random = Random(seed);
    let mut child = Child::new(PIECES);
    for peer in 0..PEERS {
        child.on_neighbour(peer);
    }
    let mut out: Vec<(u32, u32)> = Vec::new();
    let mut has: BTreeSet<(u32, u32)> = BTreeSet::new();
    let mut lost: BTreeSet<u32> = BTreeSet::new();
    let mut busy: BTreeMap<u32, Instant> = BTreeMap::new();
    let mut here: BTreeSet<u32> = BTreeSet::new();
    let mut decisions = Vec::new();
    for op in ops {
        let mut actions = Vec::new();
        let mut hedging = false;
        match *op {
            Op::Want { piece, class } => child.want(now, piece, class),
            Op::Relax { piece } => child.relax(piece, None),
            Op::Have { peer, piece } => {
                if !lost.contains(&peer) {
                    has.insert((peer, piece));
                }
                child.on_have(peer, std::iter::once(piece), 1);
            }
            Op::Answer { which } if !out.is_empty() => {
                let (peer, piece) = out[which % out.len()];
                child.on_piece(now, peer, piece, 0);
                out.retain(|get| *get != (peer, piece));
                actions = child.on_stored(piece);
                here.insert(piece);
            }
            Op::Busy { which, ms } if !out.is_empty() => {
                let (peer, piece) = out.swap_remove(which % out.len());
                busy.insert(peer, now + Duration::from_millis(ms));
                child.on_busy(now, peer, piece, Duration::from_millis(ms));
            }
            Op::Absent { which } if !out.is_empty() => {
                let (peer, piece) = out.swap_remove(which % out.len());
                has.remove(&(peer, piece));
                child.on_lacks(peer, piece);
            }
            Op::Lost { peer } => {
                lost.insert(peer);
                out.retain(|(from, _)| *from != peer);
                has.retain(|(from, _)| *from != peer);
                child.on_lost(peer);
            }
            Op::Origin { piece } => {
                actions = child.on_stored(piece);
                here.insert(piece);
            }
            Op::Wait { ms } => now += Duration::from_millis(ms),
            Op::Hedge => {
                hedging = true;
                actions = child.hedge(now, BUDGET, OWN);
            }
            Op::Answer { .. } | Op::Busy { .. } | Op::Absent { .. } => {}
        }
        if !hedging {
            let room = BUDGET.saturating_sub(child.bulk_in_flight());
            actions.extend(child.pump(now, room, OWN, &mut |below| random.below(below)));
        }
        for action in &actions {
            match *action {
                Action::Get { peer, piece, class } => {
                    assert!(!here.contains(&piece), "a piece that is here is asked for");
                    assert!(has.contains(&(peer, piece)), "a piece is asked of who does not have it");
                    assert!(!lost.contains(&peer), "12: a banned or dead peer is asked");
                    assert!(busy.get(&peer).is_none_or(|until| *until <= now), "8: a busy parent is asked");
                    let twice = out.iter().any(|(_, other)| *other == piece);
                    assert!(!twice || hedging, "7: a piece is asked for twice without a hedge");
                    assert!(!out.contains(&(peer, piece)), "the same is asked of the same");
                    assert!(hedging || child.class_of(piece) == Some(class));
                    out.push((peer, piece));
                    assert!(out.iter().filter(|(_, other)| *other == piece).count() <= 2, "7: hedged twice");
                }
                Action::Cancel { peer, piece } => {
                    let before = out.len();
                    out.retain(|get| *get != (peer, piece));
                    assert!(out.len() < before, "6: a request that does not exist is cancelled");
                }
            }
        }
        assert_eq!(child.in_flight(), out.len(), "6: requests end, and only once");
        if !hedging && !ops.iter().any(|op| matches!(op, Op::Hedge)) {
            assert!(child.bulk_in_flight() <= BUDGET, "5: more in flight than the budget");
        }
        decisions.extend(actions);
    }
    decisions
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// 5, 6, 7, 8, 12 for a child, and 14: the same seed and events give the same decisions.
    #[test]
    fn a_child_keeps_its_promises(ops in proptest::collection::vec(op(), 1..200), seed: u64) {
        prop_assert_eq!(play(&ops, seed), play(&ops, seed));
    }

    /// 6: whatever is wanted and held by somebody who answers arrives, and nothing stays in flight.
    #[test]
    fn everything_wanted_arrives(
        wants in proptest::collection::btree_map(0..PIECES, 0..3_usize, 1..40),
        holders in proptest::collection::vec(0..PEERS, PIECES as usize), seed: u64,
    ) {
        let mut now = Instant::now();
        let mut random = Random(seed);
        let mut child = Child::new(PIECES);
        for peer in 0..PEERS {
            child.on_neighbour(peer);
            let has = (0..PIECES).filter(|piece| holders[*piece as usize] == peer);
            child.on_have(peer, has, 0);
        }
        for (piece, class) in &wants {
            child.want(now, *piece, *class);
        }
        let mut arrived = BTreeSet::new();
        for _ in 0..1000 {
            let room = BUDGET.saturating_sub(child.bulk_in_flight());
            let gets = child.pump(now, room, OWN, &mut |below| random.below(below));
            if gets.is_empty() && child.is_idle() {
                break;
            }
            for get in gets {
                let Action::Get { peer, piece, .. } = get else { continue };
                now += Duration::from_millis(3);
                if random.below(3) == 0 {
                    child.on_busy(now, peer, piece, Duration::from_millis(20));
                    now += Duration::from_millis(20);
                } else {
                    child.on_piece(now, peer, piece, 0);
                    prop_assert!(child.on_stored(piece).is_empty());
                    prop_assert!(arrived.insert(piece), "a piece arrived twice");
                }
            }
        }
        prop_assert_eq!(arrived.into_iter().collect::<Vec<_>>(), wants.keys().copied().collect::<Vec<_>>());
        prop_assert!(child.is_idle());
    }

    /// 5, 6, 9, 10 for a parent.
    #[test]
    fn a_parent_keeps_its_promises(
        gets in proptest::collection::vec((0..40_u64, 0..3_usize, 0..2000_u16, 0..3_u32), 1..300),
        serve_every in 1..6_usize,
    ) {
        let mut now = Instant::now();
        let mut parent: Parent<u8> = Parent::new();
        let mut waiting: Vec<Request<u8>> = Vec::new();
        for (number, (child, class, satisfaction, step)) in gets.into_iter().enumerate() {
            now += Duration::from_millis(step.into());
            let request = Request { child, content: 0, piece: number as u32, class, satisfaction };
            let (before, first) = (waiting.len(), waiting.clone());
            waiting.push(request);
            match parent.on_get(now, request, 0.5, OWN) {
                Verdict::Queued => {}
                Verdict::Busy(sent_away, retry) => {
                    prop_assert!(retry > Duration::ZERO);
                    waiting.retain(|other| *other != sent_away);
                    prop_assert_eq!(waiting.len(), before, "6: one is sent away, and it did wait");
                    if sent_away != request {
                        let worse = (sent_away.class, sent_away.satisfaction) > (request.class, request.satisfaction);
                        prop_assert!(worse && first.contains(&sent_away), "somebody better off took a place");
                        prop_assert!(sent_away.class != BLOCKING, "a Blocking request was displaced");
                    }
                }
            }
            prop_assert!(parent.bulk() <= QUEUE, "5: the queue is longer than it may be");
            prop_assert_eq!(parent.len(), waiting.len());
            if number % serve_every == 0
                && let Some(served) = parent.next(now, |_| true)
            {
                waiting.retain(|other| *other != served);
                let first = waiting.iter().map(|other| other.class).min().unwrap_or(2);
                prop_assert!(served.class <= first, "9: a more urgent request waits behind another");
                // All younger than a second here: the worst off of the class is next.
                let worse = |o: &Request<u8>| o.class == served.class && o.satisfaction < served.satisfaction;
                prop_assert!(!waiting.iter().any(worse), "10: a child that is better off was served first");
            }
        }
        while let Some(served) = parent.next(now, |_| true) {
            waiting.retain(|other| *other != served);
        }
        prop_assert!(waiting.is_empty(), "6: every get ends");
    }
}

#[test]
fn nobody_waits_for_ever_while_a_parent_sends() {
    let mut now = Instant::now();
    let mut parent: Parent<u8> = Parent::new();
    let request = |child, piece, satisfaction| Request { child, content: 0, piece, class: 2, satisfaction };
    assert_eq!(parent.on_get(now, request(1, 0, 900), 0.0, OWN), Verdict::Queued);
    // Somebody worse off asks again and again; after a second the first is old, and is served.
    for piece in 1..1000 {
        parent.on_get(now, request(2, piece, 1), 0.0, OWN);
        let served = parent.next(now, |_| true).unwrap();
        if served.child == 1 {
            return;
        }
        now += Duration::from_millis(10);
    }
    panic!("the child that is well off was never served");
}

#[test]
fn a_child_that_cannot_take_a_piece_does_not_hold_up_the_others() {
    let now = Instant::now();
    let mut parent: Parent<u8> = Parent::new();
    for child in [1, 2] {
        parent.on_get(now, Request { child, content: 0, piece: 0, class: 0, satisfaction: 0 }, 0.0, OWN);
    }
    assert_eq!(parent.next(now, |child| child != 1).unwrap().child, 2);
    assert_eq!(parent.next(now, |child| child != 1), None);
    parent.on_gone(1);
    assert!(parent.is_empty());
}

#[test]
fn every_wait_has_a_way_on_to_the_origin() {
    let start = Instant::now();
    let patience = Patience::default();
    let mut child = Child::new(4);
    child.want(start, 0, 0);
    child.want(start, 1, 2);
    let gone = World { scheduler: false, heard: None, asked: false };
    let pieces = |child: &Child, now, world: &World| -> Vec<u32> {
        child.fallback(now, world, &patience).iter().map(|fallback| fallback.piece).collect()
    };
    assert_eq!(pieces(&child, start, &gone), [0, 1], "no scheduler: at once");
    let asked = World { asked: true, ..gone };
    assert_eq!(pieces(&child, start, &asked), [] as [u32; 0], "neighbours have a moment to answer");
    assert_eq!(pieces(&child, start + patience.neighbours, &asked), [0, 1]);
    let silent = World { scheduler: true, heard: None, asked: false };
    assert_eq!(pieces(&child, start, &silent), [] as [u32; 0]);
    assert_eq!(pieces(&child, start + patience.blocking, &silent), [0]);
    let heard = World { heard: Some(start), ..silent };
    assert_eq!(pieces(&child, start + patience.blocking, &heard), [] as [u32; 0]);
    assert_eq!(pieces(&child, start + patience.blocking_heard, &heard), [0]);
    assert_eq!(pieces(&child, start + patience.other, &heard), [0, 1]);
    child.at_origin(start, 0, true);
    assert_eq!(pieces(&child, start + patience.other, &heard), [1], "it is being read already");
    child.on_neighbour(0);
    child.on_have(0, std::iter::once(1), 0);
    assert_eq!(pieces(&child, start + patience.other, &gone), [] as [u32; 0], "a neighbour has it");
    assert_eq!(pieces(&child, start + patience.held, &gone), [1], "but does not give it");
}
