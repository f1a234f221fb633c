//! The power fails after every single file operation, and the disk keeps what it likes of everything that was not
//! synced: whatever the map calls present afterwards must be right.
//!
//! What a disk may do here, more than any file system does: of the bytes that were not synced each sector is old,
//! new, or zeros; a length is old or new; every single change of a name that was not synced is kept or lost by itself.

#![allow(clippy::cast_possible_truncation)] // small numbers all

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use content::Digest;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::*;

const SECTOR: usize = 512;
const CHUNK: usize = 3000;
const CHUNKS: usize = 12;

#[derive(Clone, Debug)]
enum Op {
    Create { inode: u64, name: String },
    Len { inode: u64, len: u64 },
    Write { inode: u64, at: u64, bytes: Vec<u8> },
    Sync { inode: u64 },
    SyncFolder,
    Rename { from: String, to: String },
    Unlink { name: String },
}

/// The real disk, which notes what it does, and fails on demand.
#[derive(Default)]
struct Recorder {
    ops: Mutex<Vec<Op>>,
    /// Inodes are numbered as they come: the file system uses its numbers again.
    numbers: Mutex<HashMap<u64, u64>>,
    next: AtomicUsize,
    fail_syncs: AtomicUsize,
    /// The number of the file that was there before anything was noted.
    first: Option<u64>,
    /// All inodes have one number: as bad as a file system that gives a number to the next file at once.
    is_blind: bool,
}

impl Recorder {
    fn note(&self, op: Op) {
        self.ops.lock().unwrap().push(op);
    }

    fn number(&self, file: &File) -> u64 {
        let real = file.metadata().unwrap().ino();
        if let Some(number) = self.numbers.lock().unwrap().get(&real) {
            return *number;
        }
        self.first.expect("a file that nobody made")
    }
}

impl Disk for Recorder {
    fn create(&self, folder: &OwnedFd, name: &str) -> io::Result<File> {
        // Every file an inode of its own, so that numbers are not used again.
        Os.unlink(folder, name)?;
        let file = Os.create(folder, name)?;
        let inode = 1000 + self.next.fetch_add(1, Ordering::Relaxed) as u64;
        self.numbers.lock().unwrap().insert(file.metadata()?.ino(), inode);
        self.note(Op::Create { inode, name: name.into() });
        Ok(file)
    }

    fn set_len(&self, file: &File, len: u64) -> io::Result<()> {
        self.note(Op::Len { inode: self.number(file), len });
        Os.set_len(file, len)
    }

    fn write_at(&self, file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
        self.note(Op::Write { inode: self.number(file), at, bytes: bytes.to_vec() });
        Os.write_at(file, bytes, at)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        if self
            .fail_syncs
            .try_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
            .is_ok()
        {
            return Err(io::Error::other("the disk is broken"));
        }
        self.note(Op::Sync { inode: self.number(file) });
        Ok(())
    }

    fn sync_folder(&self, _: &OwnedFd) -> io::Result<()> {
        self.note(Op::SyncFolder);
        Ok(())
    }

    fn rename(&self, folder: &OwnedFd, from: &str, to: &str) -> io::Result<()> {
        self.note(Op::Rename { from: from.into(), to: to.into() });
        Os.rename(folder, from, to)
    }

    fn unlink(&self, folder: &OwnedFd, name: &str) -> io::Result<bool> {
        let was_there = Os.unlink(folder, name)?;
        if was_there {
            self.note(Op::Unlink { name: name.into() });
        }
        Ok(was_there)
    }

    fn inode(&self, file: &File) -> io::Result<u64> {
        Ok(if self.is_blind { 1 } else { self.number(file) })
    }
}

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }

    fn coin(&mut self) -> bool {
        self.below(2) == 0
    }
}

/// A file as the disk has it.
#[derive(Clone, Default, Debug)]
struct Inode {
    synced: Vec<u8>,
    /// What was done since.
    later: Vec<Op>,
}

/// A disk after a power cut: what its files and names may be.
#[derive(Clone, Default, Debug)]
struct Platter {
    inodes: BTreeMap<u64, Inode>,
    names: BTreeMap<String, u64>,
    /// Changes of names since the folder was synced: a name, and what it stands for then.
    renames: Vec<(String, Option<u64>)>,
    /// Names as the running system sees them.
    live: BTreeMap<String, u64>,
}

impl Platter {
    fn apply(&mut self, op: &Op) {
        match op {
            Op::Create { inode, name } => {
                self.inodes.insert(*inode, Inode::default());
                self.rename(name, Some(*inode));
            }
            Op::Len { inode, .. } | Op::Write { inode, .. } => {
                self.inodes.get_mut(inode).unwrap().later.push(op.clone());
            }
            Op::Sync { inode } => {
                let inode = self.inodes.get_mut(inode).unwrap();
                for op in std::mem::take(&mut inode.later) {
                    match op {
                        Op::Len { len, .. } => inode.synced.resize(len as usize, 0),
                        Op::Write { at, bytes, .. } => write(&mut inode.synced, at as usize, &bytes),
                        _ => {}
                    }
                }
            }
            Op::SyncFolder => {
                for (name, inode) in self.renames.drain(..) {
                    set(&mut self.names, name, inode);
                }
            }
            Op::Rename { from, to } => {
                let inode = self.live.get(from).copied();
                self.rename(from, None);
                self.rename(to, inode);
            }
            Op::Unlink { name } => self.rename(name, None),
        }
    }

    fn rename(&mut self, name: &str, inode: Option<u64>) {
        set(&mut self.live, name.to_owned(), inode);
        self.renames.push((name.to_owned(), inode));
    }

    /// What is found after a cut, as the dice fall: files by name, with the number of their inode.
    fn after_cut(&self, dice: &mut Dice) -> BTreeMap<String, (u64, Vec<u8>)> {
        let mut names = self.names.clone();
        // All, none, or any of them: the extremes are likely in the world and unlikely by dice.
        let keep = dice.below(4);
        for (name, inode) in &self.renames {
            if keep == 0 || keep > 1 && dice.coin() {
                set(&mut names, name.clone(), *inode);
            }
        }
        names.into_iter().map(|(name, inode)| (name, (inode, self.inodes[&inode].after_cut(dice)))).collect()
    }
}

impl Inode {
    fn after_cut(&self, dice: &mut Dice) -> Vec<u8> {
        let mut bytes = self.synced.clone();
        let keep = dice.below(4);
        for op in &self.later {
            match op {
                Op::Len { len, .. } if keep == 0 || dice.coin() => bytes.resize(*len as usize, 0),
                Op::Write { at, bytes: new, .. } => {
                    let (at, end) = (*at as usize, *at as usize + new.len());
                    if keep == 0 || dice.coin() {
                        bytes.resize(bytes.len().max(end), 0);
                    }
                    for sector in at / SECTOR..end.div_ceil(SECTOR) {
                        let from = (sector * SECTOR).max(at);
                        let to = ((sector + 1) * SECTOR).min(end).min(bytes.len());
                        if from >= to {
                            continue;
                        }
                        let was_synced = self.synced.len() > sector * SECTOR
                            && self.synced[sector * SECTOR..].iter().take(SECTOR).any(|byte| *byte != 0);
                        match if keep == 0 { 0 } else { dice.below(3) } {
                            0 => bytes[from..to].copy_from_slice(&new[from - at..to - at]),
                            // A sector that was written before is never lost by being written again.
                            1 if !was_synced => bytes[from..to].fill(0),
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        bytes
    }
}

fn set(names: &mut BTreeMap<String, u64>, name: String, inode: Option<u64>) {
    match inode {
        Some(inode) => names.insert(name, inode),
        None => names.remove(&name),
    };
}

fn write(file: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    file.resize(file.len().max(at + bytes.len()), 0);
    file[at..at + bytes.len()].copy_from_slice(bytes);
}

/// What stands in a chunk: nothing that occurs anywhere else.
fn bytes_of(chunk: usize) -> Vec<u8> {
    (0..CHUNK).map(|at| (chunk * 31 + at * 7 % 251 + 1) as u8 | 1).collect()
}

/// Chunks that are all zeros by their table of contents.
const ZEROS: [usize; 2] = [2, 7];

fn place(chunk: usize) -> u64 {
    (chunk * CHUNK) as u64
}

fn shape() -> (Digest, usize, u64) {
    (Digest::of(b"toc"), CHUNKS, ((CHUNKS * CHUNK) as u64).next_multiple_of(4096))
}

fn open_on(disk: Arc<dyn Disk>, folder: &Path) -> Fill {
    Fill::open(means(disk, &KeepHere::default()), folder, shape(), ZEROS).unwrap()
}

fn check(fill: &Fill, when: &str) {
    for chunk in fill.present().ones() {
        let mut bytes = vec![0; CHUNK];
        fill.read(place(chunk), &mut bytes).unwrap();
        let right = if ZEROS.contains(&chunk) { vec![0; CHUNK] } else { bytes_of(chunk) };
        assert!(bytes == right, "{when}: chunk {chunk} is called present and is not right");
    }
}

/// What a node does with a layer.
#[derive(Clone, Debug)]
enum Deed {
    Store(usize),
    Forget(usize),
    Flush,
    FlushFails,
    Reopen,
    /// Somebody damages the map, or the data file's length, and the layer is opened again.
    DamageMap,
    Shorten,
}

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let chunk = (0..CHUNKS).prop_filter("zeros are never fetched", |chunk| !ZEROS.contains(chunk));
    let deed = prop_oneof![
        8 => chunk.clone().prop_map(Deed::Store),
        1 => chunk.prop_map(Deed::Forget),
        4 => Just(Deed::Flush),
        1 => Just(Deed::FlushFails),
        1 => Just(Deed::Reopen),
        1 => Just(Deed::DamageMap),
        1 => Just(Deed::Shorten),
    ];
    proptest::collection::vec(deed, 1..24)
}

/// Does all of it, and returns the operations, and how many were done when each flush had succeeded with these bits.
fn run(deeds: &[Deed], is_blind: bool) -> (Vec<Op>, Vec<(usize, Vec<usize>)>) {
    let folder = tempfile::tempdir().unwrap();
    let disk = Arc::new(Recorder { is_blind, ..Recorder::default() });
    let mut flushed = Vec::new();
    let mut fill = open_on(disk.clone(), folder.path());
    for deed in deeds {
        match deed {
            Deed::Store(chunk) => {
                fill.store(*chunk, place(*chunk), &bytes_of(*chunk)).unwrap();
            }
            Deed::Forget(chunk) => {
                fill.forget(*chunk);
                flushed.push((disk.ops.lock().unwrap().len(), Vec::new()));
            }
            Deed::Flush => {
                let bits = fill.present().ones().collect();
                fill.flush().unwrap();
                assert_eq!(fill.is_durable(), fill.present().is_full());
                flushed.push((disk.ops.lock().unwrap().len(), bits));
            }
            Deed::FlushFails => {
                let durable = fill.durable.ones().collect::<Vec<_>>();
                disk.fail_syncs.store(1, Ordering::Relaxed);
                if fill.is_dirty() {
                    assert!(fill.flush().is_err());
                    assert!(fill.present().ones().eq(durable), "what may be lost was called present");
                    // The disk has dropped what it could not write.
                    let mut ops = disk.ops.lock().unwrap();
                    let inode = disk.number(&fill.data);
                    let start =
                        ops.iter().rposition(|op| matches!(op, Op::Sync { inode: of } if *of == inode));
                    let mut at = 0;
                    ops.retain(|op| {
                        at += 1;
                        let lost = matches!(op, Op::Write { inode: of, .. } if *of == inode);
                        !(lost && start.is_none_or(|start| at > start + 1))
                    });
                    let len = ops.len();
                    flushed.retain(|(at, _)| *at <= len);
                }
                disk.fail_syncs.store(0, Ordering::Relaxed);
            }
            Deed::Reopen | Deed::DamageMap | Deed::Shorten => {
                drop(fill);
                match deed {
                    Deed::DamageMap => {
                        // As a bit that the disk turned: on the platter too.
                        let map = File::options().write(true).open(folder.path().join("map")).unwrap();
                        map.write_all_at(b"?", 60).unwrap();
                        let inode = disk.number(&map);
                        disk.note(Op::Write { inode, at: 60, bytes: b"?".to_vec() });
                        disk.note(Op::Sync { inode });
                    }
                    Deed::Shorten => {
                        let data = File::options().write(true).open(folder.path().join("data")).unwrap();
                        data.set_len(100).unwrap();
                        let inode = disk.number(&data);
                        disk.note(Op::Len { inode, len: 100 });
                    }
                    _ => {}
                }
                fill = open_on(disk.clone(), folder.path());
                check(&fill, "opened again");
                flushed.push((disk.ops.lock().unwrap().len(), Vec::new()));
            }
        }
    }
    drop(fill);
    let ops = disk.ops.lock().unwrap().clone();
    (ops, flushed)
}

/// Opens what a power cut left, and looks at every chunk that is called present. Returns how many.
fn reopen(files: &BTreeMap<String, (u64, Vec<u8>)>, is_blind: bool, when: &str) -> Vec<usize> {
    let folder = tempfile::tempdir().unwrap();
    let numbers = Mutex::new(HashMap::new());
    for (name, (inode, bytes)) in files {
        let file = File::create(folder.path().join(name)).unwrap();
        file.write_all_at(bytes, 0).unwrap();
        numbers.lock().unwrap().insert(file.metadata().unwrap().ino(), *inode);
    }
    let first = files.get("data").map(|(inode, _)| *inode);
    let fill = open_on(Arc::new(Recorder { numbers, first, is_blind, ..Recorder::default() }), folder.path());
    check(&fill, when);
    fill.present().ones().collect()
}

#[test]
fn after_a_power_cut_at_any_point_every_present_chunk_is_right() {
    let mut runner = TestRunner::new(Config { cases: 40, ..Config::default() });
    let survived = AtomicUsize::new(0);
    runner
        .run(&(deeds(), any::<bool>(), any::<u64>()), |(deeds, is_blind, seed)| {
            let (ops, flushed) = run(&deeds, is_blind);
            let mut dice = Dice(seed);
            let mut platter = Platter::default();
            for cut in 0..=ops.len() {
                if cut > 0 {
                    platter.apply(&ops[cut - 1]);
                }
                for _ in 0..2 {
                    let files = platter.after_cut(&mut dice);
                    let present = reopen(&files, is_blind, &format!("cut after {cut} of {ops:?}"));
                    // And what a flush has promised is there.
                    if let Some((_, bits)) = flushed.iter().rev().find(|(at, _)| *at <= cut)
                        && flushed.iter().all(|(at, _)| *at <= cut)
                    {
                        assert!(bits.iter().all(|bit| present.contains(bit)), "flushed chunks are gone");
                    }
                    survived.fetch_add(present.len(), Ordering::Relaxed);
                }
            }
            Ok(())
        })
        .unwrap();
    assert!(survived.into_inner() > 1000, "nothing ever survived");
}

#[test]
fn a_chunk_that_is_written_while_a_flush_fails_is_not_believed() {
    /// Fails the sync, and meanwhile somebody has written and not yet set his bit.
    struct Slow(std::sync::Barrier, std::sync::Barrier);
    impl Disk for Slow {
        fn write_at(&self, file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
            Os.write_at(file, bytes, at)?;
            if bytes.len() == CHUNK {
                self.0.wait();
                self.1.wait();
            }
            Ok(())
        }

        fn sync(&self, file: &File) -> io::Result<()> {
            if file.metadata()?.len() != shape().2 {
                return Ok(());
            }
            self.0.wait();
            self.1.wait();
            Err(io::Error::other("the disk is broken"))
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let fill = open_on(Arc::new(Slow(std::sync::Barrier::new(2), std::sync::Barrier::new(2))), folder.path());
    fill.forget(0);
    std::thread::scope(|scope| {
        scope.spawn(|| fill.store(4, place(4), &bytes_of(4)).unwrap());
        assert!(fill.flush().is_err());
    });
    assert!(!fill.has(4), "its bytes may be lost");
}

proptest! {
    #[test]
    fn a_map_says_what_was_written_or_nothing(
        bits in proptest::collection::vec(any::<u8>(), 0..200),
        chunks in 0usize..1600,
        inode in any::<u64>(),
        noise in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let subject = Subject { toc: Digest::of(b"toc"), chunks, inode };
        let mut bits = bits;
        bits.resize(chunks.div_ceil(8), 0);
        let good = subject.encode(&bits);
        prop_assert_eq!(good.len(), subject.map_len());
        prop_assert_eq!(subject.decode(&good), Found::Bits(bits));
        for other in [Subject { inode: inode ^ 1, ..subject }, Subject { chunks: chunks + 1, ..subject }, Subject { toc: Digest::of(b"x"), ..subject }] {
            prop_assert_eq!(other.decode(&good), Found::Other);
        }
        let mut bad = good.clone();
        for (at, byte) in noise {
            let at = at.index(bad.len());
            bad[at] = byte;
        }
        if let Some(cut) = cut {
            bad.truncate(cut.index(good.len()));
        }
        if bad != good {
            prop_assert_eq!(subject.decode(&bad), Found::Nothing);
        }
    }
}
