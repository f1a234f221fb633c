//! Random trees.

use std::collections::HashSet;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::model::{Model, ROOT, What};

/// How a node is made: what it is, where it hangs, how it is called.
#[derive(Debug, Clone)]
struct Seed {
    what: Shape,
    parent: Index,
    name: Vec<u8>,
    mode: u16,
    owner: (u32, u32),
    mtime: i64,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

#[derive(Debug, Clone)]
enum Shape {
    Directory,
    /// A directory with many names in it.
    Crowd(usize, usize),
    Regular(u64),
    Symlink(Vec<u8>),
    Special(What),
    Link(Index),
}

fn names() -> impl Strategy<Value = Vec<u8>> {
    let byte = any::<u8>().prop_filter("no byte of a name", |byte| !matches!(byte, 0 | b'/'));
    prop_oneof![
        8 => vec(select(b"ab-.!".as_slice()), 1..4),
        4 => vec(byte.clone(), 1..20),
        1 => vec(byte, 250..=255),
    ]
}

fn xattrs() -> impl Strategy<Value = Vec<(Vec<u8>, Vec<u8>)>> {
    let name = select(
        &[
            "user.a",
            "user.longer.name",
            "trusted.overlay.opaque",
            "user.overlay.opaque",
            "security.test",
            "trusted.x",
            "user.\u{fc}",
        ][..],
    );
    let value = prop_oneof![
        6 => select(vec![b"y".to_vec(), Vec::new(), b"the same value".to_vec()]),
        2 => vec(any::<u8>(), 0..100),
        1 => vec(any::<u8>(), 3000..5000),
    ];
    let all = vec((name.prop_map(|name| name.as_bytes().to_vec()), value), 0..5);
    prop_oneof![3 => Just(Vec::new()), 1 => all]
}

fn shapes() -> impl Strategy<Value = Shape> {
    let size = prop_oneof![
        select(&[0, 1, 4095, 4096, 4097, 8192, 100_000][..]),
        0..20_000u64,
        select(&[(1 << 32) + 1, 5 << 40, (8 << 40) + 5][..]),
    ];
    let target = prop_oneof![4 => 1..100usize, 1 => 3900..=4095usize];
    let device = (0..4096u32, 0..1_048_576u32);
    let special = prop_oneof![
        Just(What::Char(0, 0)),
        device.clone().prop_map(|(major, minor)| What::Char(major, minor)),
        device.prop_map(|(major, minor)| What::Block(major, minor)),
        Just(What::Fifo),
        Just(What::Socket),
    ];
    prop_oneof![
        4 => Just(Shape::Directory),
        1 => (1..60usize, 1..240usize).prop_map(|(count, len)| Shape::Crowd(count, len)),
        6 => size.prop_map(Shape::Regular),
        2 => (target, 1..=255u8).prop_map(|(len, byte)| Shape::Symlink(vec![byte; len])),
        2 => special.prop_map(Shape::Special),
        2 => any::<Index>().prop_map(Shape::Link),
    ]
}

/// A tree of up to about `nodes` nodes, and more where directories are crowded. All of its files end below 16 TiB.
pub fn trees(nodes: usize) -> impl Strategy<Value = Model> {
    let owner = prop_oneof![Just((0, 0)), Just((4_294_967_294, 65_535)), (0..5000u32, 0..5000u32)];
    let mtime = prop_oneof![Just(0), Just(-5), Just(10_413_792_000), 0..2_000_000_000i64];
    let seed = (shapes(), any::<Index>(), names(), 0..=0o7777u16, owner, mtime, xattrs());
    let seeds = vec(seed, 0..nodes).prop_map(|seeds| {
        let make = |(what, parent, name, mode, owner, mtime, xattrs)| Seed {
            what,
            parent,
            name,
            mode,
            owner,
            mtime,
            xattrs,
        };
        seeds.into_iter().map(make).collect::<Vec<_>>()
    });
    seeds.prop_map(|seeds| grow(&seeds))
}

fn grow(seeds: &[Seed]) -> Model {
    let mut model = Model::new();
    let (mut directories, mut others) = (vec![ROOT], Vec::new());
    let mut taken = HashSet::new();
    for seed in seeds {
        let parent = *seed.parent.get(&directories);
        if matches!(seed.name.as_slice(), b"." | b"..") || !taken.insert((parent, seed.name.clone())) {
            continue;
        }
        let what = match &seed.what {
            Shape::Link(_) if others.is_empty() => continue,
            Shape::Link(target) => {
                model.link(parent, &seed.name, *target.get(&others));
                continue;
            }
            Shape::Directory | Shape::Crowd(..) => What::Directory(Vec::new()),
            // The sum of sizes is what the data file has; one of the largest is enough.
            Shape::Regular(size) => {
                let is_large = *size > 1 << 33;
                let size = if is_large && model.data_len + size > 15 << 40 { 0 } else { *size };
                let address = model.data_len;
                model.data_len += size.next_multiple_of(4096);
                What::Regular { size, address }
            }
            Shape::Symlink(target) => What::Symlink(target.clone()),
            Shape::Special(what) => what.clone(),
        };
        let is_directory = matches!(what, What::Directory(_));
        let number = model.add(parent, &seed.name, what);
        let node = model.at(number);
        (node.mode, node.mtime) = (seed.mode, seed.mtime);
        node.nanos = (seed.mtime.unsigned_abs() % 3) as u32 * 499_999_999;
        (node.uid, node.gid) = seed.owner;
        let mut names = HashSet::new();
        node.xattrs.clone_from(&seed.xattrs);
        node.xattrs.retain(|(name, _)| names.insert(name.clone()));
        if is_directory {
            directories.push(number);
        } else {
            others.push(number);
        }
        if let Shape::Crowd(count, len) = seed.what {
            for n in 0..count {
                let name = format!("{n:0len$}");
                taken.insert((number, name.clone().into_bytes()));
                model.add(number, name, What::Fifo);
            }
        }
    }
    model
}
