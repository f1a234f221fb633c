//! The rules, one by one, each in the smallest cluster that shows it.

use super::*;

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
