//! Arbitrary tars are built, read back in both ways (lazily by the TOC, eagerly as a tar.gz), and compared.

use std::collections::BTreeMap;

use std::io;
use std::num::NonZeroUsize;

use content::Digest;
use proptest::prelude::*;

use super::ustar::ustar_header;
use super::*;
use crate::toc::{Inode, Kind, Landmark, ROOT, Toc, TocLimits};
use crate::{Chunk, TailState, inflate_chunk, open_tail};

mod formats;
mod limits;
mod ordered;
mod raw;

mod shared;
mod unpacked;

/// An entry of a test layer.
#[derive(Clone, Debug)]
struct Item {
    path: String,
    what: What,
    mode: u16,
    uid: u32,
    mtime: u64,
    xattr: Option<Vec<u8>>,
}

#[derive(Clone, Debug)]
enum What {
    Dir,
    File(Vec<u8>),
    Symlink(String),
    Hardlink(usize),
    Device(u32, u32),
    Fifo,
}

fn tar_of(items: &[Item]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for item in items {
        let mut header = tar::Header::new_gnu();
        header.set_mode(item.mode.into());
        header.set_uid(item.uid.into());
        header.set_gid(u64::from(item.uid) + 1);
        header.set_mtime(item.mtime);
        header.set_username("someone").unwrap();
        header.set_size(0);
        if let Some(value) = &item.xattr {
            builder
                .append_pax_extensions([
                    ("SCHILY.xattr.user.test", value.as_slice()),
                    ("SCHILY.xattr.trusted.overlay.opaque", b"y".as_slice()),
                ])
                .unwrap();
        }
        match &item.what {
            What::Dir => {
                header.set_entry_type(tar::EntryType::Directory);
                builder.append_data(&mut header, format!("{}/", item.path), std::io::empty()).unwrap();
            }
            What::File(data) => {
                header.set_size(data.len() as u64);
                builder.append_data(&mut header, &item.path, data.as_slice()).unwrap();
            }
            What::Symlink(target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_link_name_literal(target).unwrap();
                builder.append_data(&mut header, &item.path, std::io::empty()).unwrap();
            }
            What::Hardlink(target) => {
                header.set_entry_type(tar::EntryType::Link);
                builder.append_link(&mut header, &item.path, &items[*target].path).unwrap();
            }
            What::Device(major, minor) => {
                header.set_entry_type(tar::EntryType::Char);
                header.set_device_major(*major).unwrap();
                header.set_device_minor(*minor).unwrap();
                builder.append_data(&mut header, &item.path, std::io::empty()).unwrap();
            }
            What::Fifo => {
                header.set_entry_type(tar::EntryType::Fifo);
                builder.append_data(&mut header, &item.path, std::io::empty()).unwrap();
            }
        }
    }
    builder.into_inner().unwrap()
}

fn options(chunk_size: u32, workers: usize) -> Options {
    Options { chunk_size, level: Some(6), workers: NonZeroUsize::new(workers), ..Options::default() }
}

fn build_by(tar: impl Read, options: &Options) -> Result<(Built, Vec<u8>), BuildError> {
    let mut blob = Vec::new();
    let built = build(tar, &mut blob, options)?;
    Ok((built, blob))
}

fn build_with(tar: &[u8], chunk_size: u32, workers: usize) -> Result<(Built, Vec<u8>), BuildError> {
    build_by(tar, &options(chunk_size, workers))
}

fn toc_of(blob: &[u8]) -> Toc {
    match open_tail(blob, blob.len() as u64).unwrap() {
        TailState::Toc { json, toc_offset, digest, .. } => {
            let toc = Toc::parse(&json, toc_offset, &TocLimits::default()).unwrap();
            assert_eq!(toc.digest(), digest);
            toc
        }
        other => panic!("no TOC: {other:?}"),
    }
}

/// The TOC, wherever it is, as what was built says.
fn toc_of_built(built: &Built, blob: &[u8]) -> Toc {
    assert_eq!(built.digest, Digest::of(blob));
    assert_eq!(built.size, blob.len() as u64);
    let toc = match &built.toc {
        BuiltToc::External { json } => {
            let payload_end = built.payload_end;
            assert_eq!(open_tail(blob, built.size).unwrap(), TailState::External { payload_end });
            Toc::parse(json, payload_end, &TocLimits::default()).unwrap()
        }
        _ => toc_of(blob),
    };
    assert_eq!((toc.digest(), toc.payload_end()), (built.toc_digest, built.payload_end));
    toc
}

fn extent<'a>(blob: &'a [u8], chunk: &Chunk) -> &'a [u8] {
    &blob[at(chunk.blob.start)..at(chunk.blob.end)]
}

fn at(offset: u64) -> usize {
    usize::try_from(offset).unwrap()
}

/// The file's content, chunk by chunk from the blob.
fn content_of(blob: &[u8], inode: &Inode<'_>) -> Vec<u8> {
    let mut content = Vec::new();
    for chunk in inode.chunks() {
        assert_eq!(chunk.file_offset, content.len() as u64);
        content.extend(inflate_chunk(extent(blob, &chunk), &chunk).unwrap());
    }
    content
}

fn gunzip(blob: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    std::io::Read::read_to_end(&mut crate::decompress(blob).unwrap(), &mut plain).unwrap();
    plain
}

/// Paths and contents as an ordinary tool sees them.
fn listing(tar: &[u8]) -> Vec<(String, u8, Vec<u8>)> {
    let mut archive = tar::Archive::new(tar);
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let path = String::from_utf8(entry.path_bytes().to_vec()).unwrap();
        let kind = entry.header().entry_type().as_byte();
        let mut data = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut data).unwrap();
        (path, kind, data)
    });
    entries.collect()
}

fn what() -> impl Strategy<Value = What> {
    prop_oneof![
        2 => Just(What::Dir),
        6 => (0usize..3000, any::<u8>(), any::<bool>()).prop_map(|(len, seed, noisy)| {
            let byte = |at: usize| if noisy { (at * 31 + usize::from(seed)).wrapping_mul(at).to_le_bytes()[0] } else { seed };
            What::File((0..len).map(byte).collect())
        }),
        1 => "[a-z./]{1,100}".prop_map(What::Symlink),
        1 => any::<prop::sample::Index>().prop_map(|index| What::Hardlink(index.index(1 << 16))),
        1 => (0u32..256, 0u32..256).prop_map(|(major, minor)| What::Device(major, minor)),
        1 => Just(What::Fifo),
    ]
}

fn items() -> impl Strategy<Value = Vec<Item>> {
    let item = (
        // Leaves end in a digit and directories do not, so no path is both.
        prop::collection::vec("[a-zA-Z é<&]{1,3}d|[a-z]{90,99}d", 0..4),
        "[a-z]{1,4}[0-9]|[a-z]{120,140}[0-9]",
        what(),
        (0u16..0o10000, prop_oneof![Just(0u32), 1u32..5, Just(3_000_000u32)], 0u64..2_000_000_000),
        prop::option::weighted(0.2, prop::collection::vec(any::<u8>(), 0..40)),
    );
    prop::collection::vec(item, 0..25).prop_map(|raw| {
        let mut items: Vec<Item> = Vec::new();
        for (dirs, leaf, what, (mode, uid, mtime), xattr) in raw {
            let what = match what {
                What::Hardlink(at) => {
                    let files: Vec<usize> =
                        (0..items.len()).filter(|i| matches!(items[*i].what, What::File(_))).collect();
                    match files.get(at % files.len().max(1)) {
                        Some(target) => What::Hardlink(*target),
                        None => What::Fifo,
                    }
                }
                other => other,
            };
            let mut path = dirs.join("/");
            if !matches!(what, What::Dir) {
                path = [path.as_str(), &leaf].join("/").trim_start_matches('/').to_owned();
            }
            if !path.is_empty() && items.iter().all(|item| item.path != path) {
                items.push(Item { path, what, mode, uid, mtime, xattr });
            }
        }
        items
    })
}

/// Every entry of the input is in the TOC as it was, and what it implies, and nothing else.
fn compare(items: &[Item], blob: &[u8], toc: &Toc) {
    let mut names = 0;
    let mut directories = std::collections::BTreeSet::new();
    for item in items {
        let number = toc.find(item.path.as_bytes()).unwrap_or_else(|| panic!("{} is missing", item.path));
        let inode = toc.inode(number).unwrap();
        let mut source = item;
        while let What::Hardlink(target) = source.what {
            source = &items[target];
            assert!(inode.nlink() >= 2);
        }
        let attributes = (inode.mode(), inode.uid(), inode.gid(), inode.mtime());
        let expected = (source.mode, source.uid, source.uid + 1, source.mtime.cast_signed());
        assert_eq!(attributes, expected, "{}", item.path);
        let xattrs: BTreeMap<_, _> = inode.xattrs().collect();
        assert_eq!(xattrs.get(b"user.test".as_slice()).copied(), source.xattr.as_deref());
        assert_eq!(xattrs.len(), usize::from(source.xattr.is_some()));
        match &source.what {
            What::Dir => assert_eq!(inode.kind(), Kind::Directory),
            What::File(data) => {
                assert_eq!((inode.kind(), inode.size()), (Kind::Regular, data.len() as u64));
                assert_eq!(&content_of(blob, &inode), data);
            }
            What::Symlink(target) => assert_eq!(inode.link_target(), Some(target.as_bytes())),
            What::Device(major, minor) => assert_eq!(inode.device(), Some((*major, *minor))),
            What::Fifo => assert_eq!(inode.kind(), Kind::Fifo),
            What::Hardlink(_) => unreachable!("hard links point to files"),
        }
        let mut parts: Vec<&str> = item.path.split('/').collect();
        if !matches!(item.what, What::Dir) {
            names += 1;
            parts.pop();
        }
        for len in 1..=parts.len() {
            directories.insert(parts[..len].join("/"));
        }
    }
    let listed: usize = toc.inodes().map(|inode| inode.child_count()).sum();
    assert_eq!(listed, names + directories.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_layer_reads_the_same_lazily_and_eagerly(items in items(), chunk_size in 1u32..2000) {
        let tar = tar_of(&items);
        let (built, blob) = build_with(&tar, chunk_size, 1).unwrap();
        let plain = gunzip(&blob);
        prop_assert_eq!(built.diff_id, Digest::of(&plain));
        prop_assert_eq!(built.uncompressed_size, plain.len() as u64);

        let toc = toc_of_built(&built, &blob);
        prop_assert_eq!(toc.landmark(), Landmark::NoPrefetch);
        prop_assert_eq!(built.entries, items.len() as u64 + 1);
        compare(&items, &blob, &toc);

        let mut seen = listing(&plain);
        let toc_entry = seen.pop().unwrap();
        prop_assert_eq!(toc_entry.0, TOC_NAME);
        let landmark = seen.remove(0);
        prop_assert_eq!(landmark, (NO_PREFETCH_LANDMARK.to_owned(), b'0', vec![0x0f]));
        prop_assert_eq!(seen, listing(&tar));

        // A layer that is converted again loses its old TOC and landmark and gets the same ones.
        let (twice, _) = build_with(&plain, chunk_size, 2).unwrap();
        prop_assert_eq!(twice, built);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// A layer that stops behind the data of its last file is the same layer; one that stops in it is none.
    #[test]
    fn a_layer_without_its_end_is_whole_if_its_data_is(
        mut items in items(),
        last in prop::collection::vec(any::<u8>(), 1..1500),
        keep in any::<prop::sample::Index>(),
        lose in any::<prop::sample::Index>(),
    ) {
        items.push(file("zz/last0", &last));
        let tar = tar_of(&items);
        let (whole, _) = build_with(&tar, 700, 1).unwrap();
        let padding = at(crate::archive::padding(last.len() as u64));
        let data_end = tar.len() - 2 * crate::archive::BLOCK - padding;
        let (cut, blob) = build_with(&tar[..data_end + keep.index(padding + 1)], 700, 1).unwrap();
        prop_assert_eq!(&cut, &whole);
        prop_assert_eq!(cut.diff_id, Digest::of(&gunzip(&blob)));
        let short = build_with(&tar[..data_end - 1 - lose.index(last.len() - 1)], 700, 1);
        prop_assert!(matches!(short, Err(BuildError::Archive(_))), "{:?}", short.map(|(built, _)| built));
    }
}

fn file(path: &str, data: &[u8]) -> Item {
    Item { path: path.into(), what: What::File(data.to_vec()), mode: 0o644, uid: 0, mtime: 0, xattr: None }
}

#[test]
fn chunks_are_cut_where_other_tools_cut_them() {
    let (_, blob) = build_with(&tar_of(&[file("a0", &[7; 8]), file("b0", &[8; 9])]), 4, 2).unwrap();
    let TailState::Toc { json, .. } = open_tail(&blob, blob.len() as u64).unwrap() else { panic!() };
    let toc: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let rows: Vec<(&str, &str, u64, u64)> = toc["entries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| {
            let number = |key: &str| entry.get(key).and_then(serde_json::Value::as_u64).unwrap_or(0);
            let text = |key: &str| entry[key].as_str().unwrap();
            (text("name"), text("type"), number("chunkOffset"), number("chunkSize"))
        })
        .collect();
    assert_eq!(
        rows,
        [
            (NO_PREFETCH_LANDMARK, "reg", 0, 0),
            ("a0", "reg", 0, 4),
            ("a0", "chunk", 4, 4),
            ("b0", "reg", 0, 4),
            ("b0", "chunk", 4, 4),
            ("b0", "chunk", 8, 0),
        ]
    );
    let digest = toc["entries"][3]["digest"].as_str().unwrap();
    assert_eq!(digest, Digest::of(&[8; 9]).to_string());
}

#[test]
fn a_tail_that_is_too_short_asks_for_the_rest() {
    let (built, blob) = build_with(&tar_of(&[file("a0", b"x")]), 0, 1).unwrap();
    let len = blob.len() as u64;
    assert_eq!(
        open_tail(&blob[blob.len() - 60..], len).unwrap(),
        TailState::NeedMore { from: built.payload_end }
    );
    let exact = &blob[at(built.payload_end)..];
    assert!(matches!(open_tail(exact, len).unwrap(), TailState::Toc { .. }));
    assert!(open_tail(&blob, len - 1).is_err(), "a tail cannot be longer than its blob");
}

#[test]
fn a_flipped_byte_in_a_chunk_is_found() {
    let data: Vec<u8> = (0..40_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let (_, mut blob) = build_with(&tar_of(&[file("a0", &data)]), 0, 1).unwrap();
    let toc = toc_of(&blob);
    let chunk = toc.chunk(0).unwrap();
    assert_eq!(toc.inode(chunk.inode).unwrap().size(), data.len() as u64);
    let middle = at(chunk.blob.start + chunk.blob.len() / 2);
    blob[middle] ^= 1;
    assert!(inflate_chunk(extent(&blob, &chunk), &chunk).is_err());
    assert!(inflate_chunk(&[], &chunk).is_err());
}

#[test]
fn a_long_run_of_empty_files_does_not_grow_a_member() {
    let items: Vec<Item> =
        (0..2000).map(|n| file(&format!("f{n}"), b"")).chain([file("z0", b"end")]).collect();
    let (_, blob) = build_with(&tar_of(&items), 0, 2).unwrap();
    let toc = toc_of(&blob);
    assert_eq!(toc.inode(ROOT).unwrap().child_count(), 2001);
    let last = toc.inode(toc.find(b"z0").unwrap()).unwrap();
    assert_eq!(content_of(&blob, &last), b"end");
}
