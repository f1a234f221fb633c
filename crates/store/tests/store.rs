//! Promises of the store: nothing unwritten, torn or rotten is ever read; a restart loses nothing; the
//! budget is kept by what nobody uses.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking, and its numbers are small"
)]

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use content::{ByteRange, ContentId, Digest, Locator, RangeSet};
use proptest::prelude::*;
use store::{Content, PIECE, Proof, Store, StoreError, StoreOptions};

const PIECE_LEN: u64 = PIECE as u64;

fn sample(len: u64, salt: u64) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    blake3::Hasher::new().update(&salt.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn proof_of(bytes: &[u8]) -> Proof {
    Proof { digest: *blake3::hash(bytes).as_bytes(), signer: [3; 32], signature: [4; 64] }
}

fn open(dir: &Path, budget: u64) -> Store {
    Store::open(dir, &StoreOptions { budget }).unwrap()
}

fn id(name: &str) -> ContentId {
    ContentId::claimed("registry.example", &Digest::of(name.as_bytes()))
}

fn put(content: &Content, whole: &[u8], piece: u32) -> Result<bool, StoreError> {
    let range = content.piece_range(piece);
    let bytes = &whole[range.start as usize..range.end as usize];
    content.put(piece, bytes, &proof_of(bytes))
}

#[test]
fn what_was_put_is_read_back_with_its_proof_and_nothing_else_is() {
    let dir = tempfile::tempdir().unwrap();
    let whole = sample(3 * PIECE_LEN + 100, 1);
    let store = open(dir.path(), u64::MAX);
    let content = store.content(&id("a"), whole.len() as u64).unwrap();
    assert_eq!(content.pieces(), 4);
    assert!(put(&content, &whole, 3).unwrap());
    assert!(!put(&content, &whole, 3).unwrap(), "the second time it is not new");
    assert!(put(&content, &whole, 1).unwrap());

    let (bytes, proof) = content.read_piece(3).unwrap();
    assert_eq!(bytes, &whole[3 * PIECE as usize..]);
    assert_eq!(proof, proof_of(&bytes));
    let inside = ByteRange::new(PIECE_LEN + 5, PIECE_LEN + 50);
    assert_eq!(content.read(inside).unwrap(), &whole[inside.start as usize..inside.end as usize]);
    assert_eq!(content.have_bytes(), PIECE_LEN + 100);

    let absent = content.read(ByteRange::new(PIECE_LEN, 2 * PIECE_LEN + 1)).unwrap_err();
    assert!(matches!(absent, StoreError::Absent { piece: 2, .. }), "{absent}");
    let beyond = content.read(ByteRange::new(0, content.len() + 1)).unwrap_err();
    assert!(matches!(beyond, StoreError::OutOfRange { .. }), "{beyond}");
    assert_eq!(content.read(ByteRange::new(7, 7)).unwrap(), Bytes::new());
}

#[test]
fn bytes_that_are_not_what_their_proof_says_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let whole = sample(2 * PIECE_LEN, 2);
    let content = open(dir.path(), u64::MAX).content(&id("a"), whole.len() as u64).unwrap();
    let good = &whole[..PIECE as usize];
    let mut flipped = good.to_vec();
    flipped[77] ^= 1;
    for (bytes, proof) in
        [(&flipped[..], proof_of(good)), (&good[1..], proof_of(&good[1..])), (&[], proof_of(&[]))]
    {
        let refused = content.put(0, bytes, &proof).unwrap_err();
        assert!(matches!(refused, StoreError::Mismatch { piece: 0, .. }), "{refused}");
    }
    assert!(content.put(2, good, &proof_of(good)).is_err(), "there is no third piece");
    assert!(!content.has(0));
}

#[test]
fn a_rotten_or_torn_piece_is_dropped_and_never_read() {
    let dir = tempfile::tempdir().unwrap();
    let whole = sample(4 * PIECE_LEN, 3);
    let store = open(dir.path(), u64::MAX);
    let content = store.content(&id("a"), whole.len() as u64).unwrap();
    for piece in 0..4 {
        put(&content, &whole, piece).unwrap();
    }
    let folder = dir.path().join(id("a").to_string());
    let edit = |name: &str| std::fs::OpenOptions::new().write(true).open(folder.join(name)).unwrap();
    edit("data").write_all_at(&[!whole[10]], 10).unwrap();
    edit("map").write_all_at(&[0xff; 8], 136 + 60).unwrap();
    for rotten in [0, 1] {
        assert!(matches!(content.read_piece(rotten), Err(StoreError::Absent { .. })));
        assert!(!content.has(rotten));
    }
    assert!(content.read(ByteRange::new(0, 4 * PIECE_LEN)).is_err());
    assert_eq!(content.read_piece(2).unwrap().0, &whole[2 * PIECE as usize..3 * PIECE as usize]);
    // It can be fetched again, and then it is right.
    assert!(put(&content, &whole, 0).unwrap());
    assert!(put(&content, &whole, 1).unwrap());
    assert_eq!(content.hash_whole().unwrap(), Digest::of(&whole));
}

#[test]
fn a_restart_finds_what_was_there_and_drops_half_made_folders() {
    let dir = tempfile::tempdir().unwrap();
    let whole = sample(2 * PIECE_LEN + 1, 4);
    let locator = Locator {
        registry: "https://registry.example".into(),
        repository: "library/a".into(),
        digest: Digest::of(&whole),
    };
    {
        let store = open(dir.path(), u64::MAX);
        let content = store.content(&id("a"), whole.len() as u64).unwrap();
        content.describe(Some(locator.clone()), Some(locator.digest)).unwrap();
        put(&content, &whole, 0).unwrap();
        put(&content, &whole, 2).unwrap();
        content.mark_whole_verified().unwrap();
        let busy = Store::open(dir.path(), &StoreOptions::default()).unwrap_err();
        assert!(matches!(busy, StoreError::InUse(_)), "{busy}");
    }
    std::fs::create_dir(dir.path().join(id("half").to_string())).unwrap();
    std::fs::create_dir(dir.path().join("trash.1.0")).unwrap();
    std::fs::create_dir(dir.path().join("of somebody else")).unwrap();

    let store = open(dir.path(), u64::MAX);
    let content = store.find(&id("a")).unwrap();
    let expected: RangeSet = [ByteRange::at(0, 1), ByteRange::at(2, 1)].into_iter().collect();
    assert_eq!(content.have(), expected);
    assert_eq!((content.head().locator, content.head().verified), (Some(locator), true));
    assert_eq!(content.read_piece(2).unwrap().0, &whole[2 * PIECE as usize..]);
    assert_eq!(store.bytes(), PIECE_LEN + 1);
    assert!(store.find(&id("half")).is_none());
    assert!(!dir.path().join("trash.1.0").exists());
    assert!(dir.path().join("of somebody else").exists());
    assert!(matches!(store.content(&id("a"), 5), Err(StoreError::Length { .. })));
}

#[test]
fn the_budget_evicts_what_was_used_longest_ago_and_nothing_that_is_open() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), 2 * PIECE_LEN);
    let whole = sample(PIECE_LEN, 5);
    let make = |name: &str| {
        let content = store.content(&id(name), PIECE_LEN).unwrap();
        put(&content, &whole, 0).unwrap();
        content
    };
    let first = make("first");
    drop(make("second"));
    // Within one millisecond the order is by name: make it a later one.
    let before = std::time::SystemTime::now();
    while before.elapsed().unwrap().as_millis() < 2 {
        std::thread::yield_now();
    }
    drop(make("third"));
    assert_eq!(store.take_evicted(), [id("second")]);
    assert!(store.find(&id("first")).is_some() && store.find(&id("third")).is_some());
    assert!(first.has(0), "an open content stays");
    let fourth = make("fourth");
    assert_eq!(store.take_evicted(), [id("third")]);
    // Two are open: a third one goes beyond the budget rather than fail.
    let fifth = make("fifth");
    assert!(first.has(0) && fourth.has(0) && fifth.has(0));
    assert!(!store.remove(&id("first")));
    drop(first);
    assert!(store.remove(&id("first")));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3, "two contents and the lock");
}

#[test]
fn writers_of_the_same_piece_agree() {
    let dir = tempfile::tempdir().unwrap();
    let whole: Arc<[u8]> = sample(8 * PIECE_LEN, 6).into();
    let store = open(dir.path(), u64::MAX);
    let content = store.content(&id("a"), whole.len() as u64).unwrap();
    let fresh: usize = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| (0..8).filter(|&piece| put(&content, &whole, piece).unwrap()).count()))
            .collect();
        writers.into_iter().map(|writer| writer.join().unwrap()).sum()
    });
    assert_eq!(fresh, 8);
    assert_eq!(store.bytes(), whole.len() as u64);
    assert_eq!(content.read(ByteRange::new(0, whole.len() as u64)).unwrap(), &whole[..]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    /// Any read is exactly the bytes if its pieces are here and an error if not, across a restart too.
    #[test]
    fn reads_are_right_or_errors(
        len in 1..6 * PIECE_LEN, pieces in proptest::collection::vec(0..6_u32, 0..8),
        from in 0..6 * PIECE_LEN, span in 0..3 * PIECE_LEN,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let whole = sample(len, len);
        let range = ByteRange::at(from.min(len), span).intersect(&ByteRange::new(0, len));
        let mut have = RangeSet::new();
        {
            let content = open(dir.path(), u64::MAX).content(&id("p"), len).unwrap();
            for piece in pieces.into_iter().filter(|&piece| piece < content.pieces()) {
                put(&content, &whole, piece).unwrap();
                have.insert(content.piece_range(piece));
            }
        }
        let store = open(dir.path(), u64::MAX);
        let content = store.find(&id("p")).unwrap();
        match content.read(range) {
            Ok(bytes) => {
                prop_assert!(have.contains(range));
                prop_assert_eq!(&bytes[..], &whole[range.start as usize..range.end as usize]);
            }
            Err(error) => prop_assert!(!have.contains(range), "{}", error),
        }
        prop_assert_eq!(store.bytes(), have.len());
    }
}

/// Unmounts, also when the test fails.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// A disk of 1 MiB; `None` where this user may not mount.
    fn new() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let flags = rustix::mount::MountFlags::empty();
        match rustix::mount::mount("tmpfs", dir.path(), "tmpfs", flags, Some(c"size=1m")) {
            Ok(()) => Some(Self(dir)),
            Err(rustix::io::Errno::PERM) => None,
            Err(error) => panic!("cannot mount a small disk: {error}"),
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn a_full_disk_evicts_what_nobody_uses_then_says_so_and_loses_nothing() {
    let Some(disk) = SmallDisk::new() else {
        eprintln!("not shown: mounting a small disk needs root");
        return;
    };
    let whole = sample(40 * PIECE_LEN, 7);
    let store = open(disk.0.path(), u64::MAX);
    {
        let unused = store.content(&id("unused"), whole.len() as u64).unwrap();
        for piece in 0..6 {
            put(&unused, &whole, piece).unwrap();
        }
    }
    let content = store.content(&id("open"), whole.len() as u64).unwrap();
    let mut kept = 0;
    let error = loop {
        match put(&content, &whole, kept) {
            Ok(_) => kept += 1,
            Err(error) => break error,
        }
    };
    assert!(error.is_full(), "{error}");
    assert_eq!(content::ReadError::from(error).kind(), content::ReadErrorKind::NoSpace);
    assert!(store.find(&id("unused")).is_none(), "what nobody uses made room");
    assert!(kept >= 10, "only {kept} pieces found room");
    for piece in 0..kept {
        let range = content.piece_range(piece);
        assert_eq!(content.read_piece(piece).unwrap().0, &whole[range.start as usize..range.end as usize]);
    }
    assert!(!content.has(kept));
}
