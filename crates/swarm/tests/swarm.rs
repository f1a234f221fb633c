//! Nodes on loopback: every byte is read at the origin once, every failure has a way on, no wrong byte is seen.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking, and its numbers are small"
)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use common::{Known, Memory, Options, PIECE_LEN, TestNode, TestScheduler, check};
use content::{ByteRange, ContentOpener, Fault, Origin, Provenance, ReadErrorKind, Urgency};
use futures::StreamExt;
use futures::future::join_all;
use swarm::Limits;

/// Runs a test on more than one thread, as the program does.
macro_rules! cluster_test {
    ($(#[$meta:meta])* async fn $name:ident() $body:block) => {
        $(#[$meta])*
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            tokio::time::timeout(std::time::Duration::from_mins(2), async $body).await.expect("the test hangs");
        }
    };
}

async fn nodes(count: usize, scheduler: &TestScheduler) -> Vec<TestNode> {
    join_all((0..count).map(|_| Options::new(&[scheduler.address]).start())).await
}

cluster_test! {
    async fn without_a_scheduler_everything_comes_from_the_origin() {
        let origin = Memory::new(10 * PIECE_LEN + 77, 1, false);
        let node = Options::new(&[]).start().await;
        let blob = node.open(&origin, 1000).await;
        assert_eq!(blob.tail.unwrap(), origin.bytes().slice(10 * PIECE_LEN as usize + 77 - 1000..));
        assert_eq!(origin.requests(), 1, "length and tail by one request");

        let range = ByteRange::new(3, 5 * PIECE_LEN);
        let (bytes, from) = blob.source.read_traced(range, Urgency::Blocking).await.unwrap();
        assert!(bytes == origin.bytes().slice(3..5 * PIECE_LEN as usize));
        assert_eq!(from, Provenance::Origin);
        assert_eq!(origin.requests(), 2, "neighbouring pieces are one request");
        let again = blob.source.read_traced(range, Urgency::Blocking).await.unwrap();
        assert_eq!((again.0, again.1), (bytes, Provenance::Store));
        assert_eq!(origin.requests(), 2);
        check(&*blob.source, &origin, ByteRange::new(0, origin.bytes().len() as u64), Urgency::Background).await;
        // The piece that the tail began in was not whole.
        assert_eq!(origin.twice(), [9]);
        let status = node.swarm.status();
        assert_eq!((status.bytes.peer, status.bytes.seed, status.scheduler), (0, 0, false));
        assert_eq!(status.bytes.origin, origin.served());
        assert_eq!(status.bytes.store, range.len() + 5 * PIECE_LEN + 77);
        node.stop().await;
    }
}

cluster_test! {
    async fn a_whole_content_that_was_read_is_proven() {
        let origin = Memory::new(3 * PIECE_LEN, 2, true);
        let node = Options::new(&[]).start().await;
        node.check_all(&origin, Urgency::Prefetch).await;
        assert_eq!(origin.requests(), 1);
        while !node.swarm.status().contents[0].verified {
            tokio::task::yield_now().await;
        }
        node.stop().await;
    }
}

cluster_test! {
    async fn errors_of_the_origin_reach_the_reader_with_their_status() {
        let origin = Memory::new(3 * PIECE_LEN, 3, true);
        let scheduler = TestScheduler::insecure().await;
        for schedulers in [vec![], vec![scheduler.address]] {
            let node = Options { limits: Limits::default(), ..Options::new(&schedulers) }.start().await;
            let blob = node.open(&origin, 0).await;
            origin.break_it(true);
            let error = blob.source.read(ByteRange::new(0, 10), Urgency::Blocking).await.unwrap_err();
            assert_eq!((error.fault(), error.kind(), error.status()), (Fault::Origin, ReadErrorKind::NotFound, Some(404)));
            let beyond = blob.source.read(ByteRange::new(0, 3 * PIECE_LEN + 1), Urgency::Blocking).await.unwrap_err();
            assert_eq!(beyond.kind(), ReadErrorKind::OutOfRange);
            // A failure is not remembered against a later reader.
            origin.break_it(false);
            node.check_all(&origin, Urgency::Blocking).await;
            node.stop().await;
        }
        scheduler.stop().await;
    }
}

cluster_test! {
    async fn nodes_that_read_the_same_at_once_cost_the_origin_each_piece_once() {
        let origin = Memory::new(40 * PIECE_LEN + 5, 4, true);
        let scheduler = TestScheduler::insecure().await;
        let nodes = nodes(4, &scheduler).await;
        let ranges = [ByteRange::new(100, 5000), ByteRange::new(7 * PIECE_LEN, 12 * PIECE_LEN), ByteRange::new(39 * PIECE_LEN, 40 * PIECE_LEN + 5)];
        join_all(nodes.iter().flat_map(|node| ranges.iter().map(|range| node.check(&origin, *range, Urgency::Blocking)))).await;
        assert_eq!(origin.twice(), [] as [u64; 0]);
        assert_eq!(origin.served(), 7 * PIECE_LEN + 5, "each piece once and nothing else");
        for node in nodes {
            node.stop().await;
        }
        scheduler.stop().await;
    }
}

cluster_test! {
    async fn whole_contents_are_shared_and_a_seed_helps() {
        let origin = Memory::new(150 * PIECE_LEN + 1, 5, false);
        let scheduler = TestScheduler::insecure().await;
        let finder = Arc::new(Known(vec![Arc::clone(&origin)]));
        let seed = Options { seed: true, finder: Some(finder), ..Options::new(&[scheduler.address]) }.start().await;
        let nodes = nodes(3, &scheduler).await;
        // All open at once: one of them looks, the others are told.
        let blobs = join_all(nodes.iter().map(|node| node.open(&origin, 0))).await;
        assert_eq!(origin.requests(), 1);
        let all = ByteRange::new(0, origin.bytes().len() as u64);
        join_all(blobs.iter().map(|blob| check(&*blob.source, &origin, all, Urgency::Prefetch))).await;
        assert!(origin.served() <= all.len() + 1, "{} bytes left the origin, of {}", origin.served(), all.len());
        assert!(seed.swarm.status().uploaded > 0, "the seed read for others");
        let from_seed: u64 = nodes.iter().map(|node| node.swarm.status().bytes.seed).sum();
        assert!(from_seed > 0);
        for node in nodes.into_iter().chain([seed]) {
            node.stop().await;
        }
        scheduler.stop().await;
    }
}

cluster_test! {
    async fn a_stream_is_the_content_in_order() {
        let origin = Memory::new(60 * PIECE_LEN + 9, 6, true);
        let scheduler = TestScheduler::insecure().await;
        let nodes = nodes(2, &scheduler).await;
        join_all(nodes.iter().map(|node| async {
            let blob = node.open(&origin, 0).await;
            let range = ByteRange::new(17, 60 * PIECE_LEN);
            let parts: Vec<_> = blob.source.stream(range, Urgency::Blocking).collect().await;
            let bytes = parts.into_iter().map(Result::unwrap).collect::<Vec<_>>().concat();
            assert!(bytes == origin.bytes()[17..60 * PIECE_LEN as usize]);
        })).await;
        assert_eq!(origin.twice(), [] as [u64; 0]);
        for node in nodes {
            node.stop().await;
        }
        scheduler.stop().await;
    }
}

cluster_test! {
    async fn a_scheduler_that_restarts_empty_costs_no_origin_byte() {
        let origin = Memory::new(30 * PIECE_LEN, 7, false);
        let scheduler = TestScheduler::insecure().await;
        let address = scheduler.address;
        let holder = Options::new(&[address]).start().await;
        holder.check_all(&origin, Urgency::Blocking).await;
        let (served, requests) = (origin.served(), origin.requests());
        scheduler.stop().await;
        holder.swarm.scheduler_watch().wait_for(|connected| !*connected).await.unwrap();

        let scheduler = TestScheduler::start_at(address, scheduler::SchedulerSecurity::Insecure).await;
        holder.connected().await;
        let newcomer = Options::new(&[address]).start().await;
        newcomer.check_all(&origin, Urgency::Blocking).await;
        assert_eq!((origin.served(), origin.requests()), (served, requests));
        assert_eq!(newcomer.swarm.status().bytes.peer, origin.bytes().len() as u64);
        newcomer.stop().await;
        holder.stop().await;
        scheduler.stop().await;
    }
}

cluster_test! {
    async fn without_the_scheduler_neighbours_go_on() {
        let origin = Memory::new(30 * PIECE_LEN, 8, true);
        let scheduler = TestScheduler::insecure().await;
        let nodes = nodes(2, &scheduler).await;
        nodes[0].check_all(&origin, Urgency::Blocking).await;
        // The second knows the first as a neighbour from a small read.
        nodes[1].check(&origin, ByteRange::new(0, 5), Urgency::Blocking).await;
        let served = origin.served();
        scheduler.stop().await;
        nodes[1].swarm.scheduler_watch().wait_for(|connected| !*connected).await.unwrap();
        nodes[1].check_all(&origin, Urgency::Blocking).await;
        assert_eq!(origin.served(), served);
        // And what nobody has comes from the origin.
        let other = Memory::new(2 * PIECE_LEN, 9, false);
        nodes[1].check_all(&other, Urgency::Blocking).await;
        for node in nodes {
            node.stop().await;
        }
    }
}

cluster_test! {
    async fn a_seed_that_dies_in_the_middle_costs_nobody_a_read() {
        let origin = Memory::new(100 * PIECE_LEN, 10, true);
        let scheduler = TestScheduler::insecure().await;
        let finder = Arc::new(Known(vec![Arc::clone(&origin)]));
        let seed = Options { seed: true, finder: Some(finder), ..Options::new(&[scheduler.address]) }.start().await;
        let nodes = nodes(3, &scheduler).await;
        let reading = join_all(nodes.iter().map(|node| node.check_all(&origin, Urgency::Prefetch)));
        let killing = async {
            // As soon as the seed has given anything away.
            while seed.swarm.status().uploaded == 0 && origin.served() < 100 * PIECE_LEN {
                tokio::task::yield_now().await;
            }
            seed.swarm.shutdown().await;
        };
        tokio::join!(reading, killing);
        for node in nodes {
            node.stop().await;
        }
        scheduler.stop().await;
    }
}

cluster_test! {
    async fn a_liar_is_out_after_two_pieces_and_nobody_sees_a_wrong_byte() {
        let origin = Memory::new(40 * PIECE_LEN, 11, true);
        let scheduler = TestScheduler::insecure().await;
        let lies = Arc::new(AtomicU64::new(0));
        let told = Arc::clone(&lies);
        let tamper: swarm::Tamper = Arc::new(move |_, piece, bytes: &mut Vec<u8>| {
            told.fetch_add(1, Ordering::SeqCst);
            bytes[piece as usize] ^= 1;
        });
        let liar = Options { tamper: Some(tamper), ..Options::new(&[scheduler.address]) }.start().await;
        liar.check_all(&origin, Urgency::Blocking).await;
        let victim = Options::new(&[scheduler.address]).start().await;
        victim.check_all(&origin, Urgency::Prefetch).await;
        // Requests that were on their way when the second lie was found out are answered with lies too.
        assert!(lies.load(Ordering::SeqCst) >= 2);
        let bytes = victim.swarm.status().bytes;
        assert!(bytes.peer <= 8 * PIECE_LEN, "{} bytes were taken from the liar", bytes.peer);
        assert_eq!(bytes.origin, origin.bytes().len() as u64);
        assert_eq!(victim.swarm.status().neighbours, 0);
        // It is out for another content as well.
        let other = Memory::new(5 * PIECE_LEN, 12, true);
        let before = lies.load(Ordering::SeqCst);
        liar.check_all(&other, Urgency::Blocking).await;
        let victim_limits = victim.open(&other, 0).await;
        check(&*victim_limits.source, &other, ByteRange::new(0, 5 * PIECE_LEN), Urgency::Blocking).await;
        assert_eq!(lies.load(Ordering::SeqCst), before);
        victim.stop().await;
        liar.stop().await;
        scheduler.stop().await;
    }
}

cluster_test! {
    async fn a_cancelled_reader_takes_only_its_own_interest_along() {
        let origin = Memory::new(4 * PIECE_LEN, 13, true);
        let node = Options::new(&[]).start().await;
        let blob = node.open(&origin, 0).await;
        origin.set_open(false);
        let all = ByteRange::new(0, 4 * PIECE_LEN);
        let leaving = tokio::spawn({
            let source = Arc::clone(&blob.source);
            async move { source.read(all, Urgency::Blocking).await }
        });
        let staying = tokio::spawn({
            let (source, origin) = (Arc::clone(&blob.source), Arc::clone(&origin));
            async move { check(&*source, &origin, all, Urgency::Blocking).await }
        });
        while origin.requests() == 0 {
            tokio::task::yield_now().await;
        }
        leaving.abort();
        origin.set_open(true);
        staying.await.unwrap();
        assert_eq!(origin.twice(), [] as [u64; 0], "one fetch, however many readers");
        node.stop().await;
    }
}

cluster_test! {
    async fn open_reads_end_with_the_node() {
        let origin = Memory::new(4 * PIECE_LEN, 14, true);
        let node = Options::new(&[]).start().await;
        let blob = node.open(&origin, 0).await;
        origin.set_open(false);
        let read = tokio::spawn({
            let source = Arc::clone(&blob.source);
            async move { source.read(ByteRange::new(0, 10), Urgency::Blocking).await }
        });
        while origin.requests() == 0 {
            tokio::task::yield_now().await;
        }
        node.swarm.shutdown().await;
        assert_eq!(read.await.unwrap().unwrap_err().kind(), ReadErrorKind::Cancelled);
    }
}

cluster_test! {
    async fn a_restarted_node_serves_what_it_had() {
        let origin = Memory::new(20 * PIECE_LEN, 15, true);
        let scheduler = TestScheduler::insecure().await;
        let first = Options::new(&[scheduler.address]).start().await;
        first.check_all(&origin, Urgency::Blocking).await;
        let served = origin.served();
        first.swarm.shutdown().await;
        let dir = first.dir;
        drop((first.swarm, first.store));
        let again = Options::new(&[scheduler.address]).start_in(dir).await;
        again.connected().await;
        let second = Options::new(&[scheduler.address]).start().await;
        second.check_all(&origin, Urgency::Blocking).await;
        again.check_all(&origin, Urgency::Blocking).await;
        assert_eq!(origin.served(), served);
        second.stop().await;
        again.stop().await;
        scheduler.stop().await;
    }
}

cluster_test! {
    async fn rot_in_the_store_is_read_again_and_not_served() {
        use std::os::unix::fs::FileExt;
        let origin = Memory::new(6 * PIECE_LEN, 16, true);
        let scheduler = TestScheduler::insecure().await;
        let nodes = nodes(2, &scheduler).await;
        nodes[0].check_all(&origin, Urgency::Blocking).await;
        let data = nodes[0].dir.path().join("store").join(origin.id().to_string()).join("data");
        std::fs::OpenOptions::new().write(true).open(data).unwrap().write_all_at(&[0; 10], 3 * PIECE_LEN).unwrap();
        // Whoever meets the rot first, both see right bytes.
        nodes[1].check_all(&origin, Urgency::Blocking).await;
        nodes[0].check_all(&origin, Urgency::Blocking).await;
        assert!(origin.served() <= 7 * PIECE_LEN);
        for node in nodes {
            node.stop().await;
        }
        scheduler.stop().await;
    }
}

cluster_test! {
    async fn many_readers_of_one_node_are_one_fetch() {
        let origin = Memory::new(12 * PIECE_LEN, 17, false);
        let scheduler = TestScheduler::insecure().await;
        let node = Options::new(&[scheduler.address]).start().await;
        let opened = join_all((0..8).map(|_| node.swarm.open(Arc::clone(&origin) as Arc<dyn Origin>, 10))).await;
        assert_eq!(origin.requests(), 1);
        join_all(opened.iter().map(|blob| {
            let source = &blob.as_ref().unwrap().source;
            check(&**source, &origin, ByteRange::new(5, 11 * PIECE_LEN + 3), Urgency::Blocking)
        })).await;
        // The tail alone is read a second time, for it was no whole piece.
        assert!(origin.served() <= 12 * PIECE_LEN + 10);
        node.stop().await;
        scheduler.stop().await;
    }
}

cluster_test! {
    async fn a_cluster_with_a_token_shares_and_lets_no_stranger_in() {
        let token: identity::JoinToken = "a token of enough letters".parse().unwrap();
        let origin = Memory::new(20 * PIECE_LEN, 18, true);
        let scheduler = TestScheduler::start(scheduler::SchedulerSecurity::Token(token.clone())).await;
        let at = scheduler.address.to_string();
        let mut nodes = Vec::new();
        for _ in 0..3 {
            let dir = tempfile::tempdir().unwrap();
            let mut options = Options::new(&[scheduler.address]);
            let enrolled = identity::enroll(
                &at, &token, &options.key, common::LOCALHOST, dir.path(),
            );
            options.security = identity::Security::Mutual(Arc::new(enrolled.await.unwrap()));
            nodes.push(options.start_in(dir).await);
        }
        let stranger = Options { limits: Limits::default(), ..Options::new(&[scheduler.address]) }.start().await;
        join_all(nodes.iter().map(|node| node.check_all(&origin, Urgency::Blocking))).await;
        assert_eq!(origin.served(), origin.bytes().len() as u64);
        assert!(nodes.iter().all(|node| node.swarm.status().neighbours == 2));
        let cluster = nodes[0].swarm.cluster().await.unwrap();
        assert_eq!(cluster.nodes.len(), 3);

        // Without a certificate there is no cluster, only the origin.
        assert!(!stranger.swarm.status().scheduler);
        stranger.check_all(&origin, Urgency::Blocking).await;
        assert_eq!((stranger.swarm.status().bytes.peer, stranger.swarm.status().neighbours), (0, 0));
        for node in nodes.into_iter().chain([stranger]) {
            node.stop().await;
        }
        scheduler.stop().await;
    }
}

cluster_test! {
    async fn a_node_that_signs_what_its_origin_never_sent_is_found_out_by_the_whole() {
        let honest = Memory::new(5 * PIECE_LEN, 19, true);
        let evil = Memory::evil(&honest);
        let scheduler = TestScheduler::insecure().await;
        let liar = Options::new(&[scheduler.address]).start().await;
        liar.check_all(&evil, Urgency::Blocking).await;
        let victim = Options::new(&[scheduler.address]).start().await;
        let blob = victim.open(&honest, 0).await;
        let all = ByteRange::new(0, 5 * PIECE_LEN);
        blob.source.read(all, Urgency::Blocking).await.unwrap();
        assert_eq!(victim.swarm.status().bytes.peer, all.len());
        while !victim.swarm.status().contents[0].verified {
            tokio::task::yield_now().await;
        }
        check(&*blob.source, &honest, all, Urgency::Blocking).await;
        assert_eq!(honest.served(), all.len());
        assert!(!liar.swarm.status().contents[0].verified);
        victim.stop().await;
        liar.stop().await;
        scheduler.stop().await;
    }
}

cluster_test! {
    async fn a_scheduler_that_takes_connections_and_says_nothing_only_costs_time() {
        let silent = tokio::net::TcpListener::bind((common::LOCALHOST, 0)).await.unwrap();
        let origin = Memory::new(3 * PIECE_LEN, 20, true);
        let node = Options { limits: Limits::default(), ..Options::new(&[silent.local_addr().unwrap()]) }.start().await;
        node.check_all(&origin, Urgency::Blocking).await;
        assert_eq!(origin.served(), 3 * PIECE_LEN);
        node.stop().await;
    }
}

cluster_test! {
    async fn a_neighbour_that_freezes_only_costs_time() {
        let origin = Memory::new(6 * PIECE_LEN, 21, true);
        let scheduler = TestScheduler::insecure().await;
        let (frozen, thaw) = (Arc::new(AtomicU64::new(0)), Arc::new(std::sync::Barrier::new(2)));
        let tamper: swarm::Tamper = Arc::new({
            let (frozen, thaw) = (Arc::clone(&frozen), Arc::clone(&thaw));
            move |_, _, _: &mut Vec<u8>| {
                if frozen.fetch_add(1, Ordering::SeqCst) == 0 {
                    thaw.wait();
                }
            }
        });
        let holder = Options { tamper: Some(tamper), ..Options::new(&[scheduler.address]) }.start().await;
        holder.check_all(&origin, Urgency::Blocking).await;
        let mut options = Options::new(&[scheduler.address]);
        options.limits.patience.blocking_held = std::time::Duration::from_millis(100);
        let reader = options.start().await;
        reader.check_all(&origin, Urgency::Blocking).await;
        assert_eq!(frozen.load(Ordering::SeqCst), 1, "the neighbour was asked, and froze");
        assert_eq!(reader.swarm.status().bytes.origin, origin.bytes().len() as u64);
        thaw.wait();
        reader.stop().await;
        holder.stop().await;
        scheduler.stop().await;
    }
}

cluster_test! {
    /// The chunk check above the swarm sees what no piece digest can: that the origin itself lied, here to
    /// this very node, which therefore vouches for the wrong bytes.
    async fn what_a_reader_rejects_is_read_again_even_if_this_node_vouched_for_it() {
        let honest = Memory::new(5 * PIECE_LEN, 23, true);
        let evil = Memory::evil(&honest);
        let scheduler = TestScheduler::insecure().await;
        let node = Options::new(&[scheduler.address]).start().await;
        let range = ByteRange::new(PIECE_LEN, 3 * PIECE_LEN);
        let blob = node.open(&evil, 0).await;
        check(&*blob.source, &evil, range, Urgency::Blocking).await;
        drop(blob);
        drop(evil);
        let blob = node.open(&honest, 0).await;
        blob.source.reject(range).await;
        check(&*blob.source, &honest, range, Urgency::Blocking).await;
        assert_eq!(honest.served(), range.len());
        // A reader that is never content does not make the node fetch for ever.
        blob.source.reject(range).await;
        check(&*blob.source, &honest, range, Urgency::Blocking).await;
        assert_eq!(honest.served(), range.len());
        node.stop().await;
        scheduler.stop().await;
    }
}
