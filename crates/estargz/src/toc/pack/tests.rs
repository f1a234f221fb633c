use content::Digest;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::toc::TocLimits;

const PAYLOAD_END: u64 = 1 << 40;

fn entries() -> impl Strategy<Value = Vec<Value>> {
    let times = prop::sample::select(vec![
        "",
        "1970-01-01T00:00:00Z",
        "1901-01-01T00:00:00Z",
        "1969-12-31T23:59:59.5Z",
        "2300-01-01T00:00:00.000000001Z",
    ]);
    let one = (0..9_u8, 0..6_u8, prop::collection::vec(1..9_000_u64, 0..4), any::<u32>(), times, 0..3_u8);
    prop::collection::vec(one, 0..40).prop_map(|choices| {
        let mut entries = Vec::new();
        let (mut at, mut directories, mut files) = (100, vec![String::new()], Vec::new());
        for (number, (what, parent, sizes, owner, time, xattrs)) in choices.into_iter().enumerate() {
            let path = format!("{}{number}", directories[usize::from(parent) % directories.len()]);
            let xattrs: serde_json::Map<_, _> =
                (0..xattrs).map(|n| (format!("user.{n}"), json!("AAAA"))).collect();
            let mut entry = json!({
                "name": path, "modtime": time, "uid": owner / 2, "gid": owner % 7, "mode": owner % 0o10000,
                "xattrs": xattrs,
            });
            match what {
                0 | 1 => {
                    entry["type"] = json!("dir");
                    directories.push(format!("{path}/"));
                }
                2 => (entry["type"], entry["linkName"]) = (json!("symlink"), json!("over/there")),
                3 => {
                    (entry["type"], entry["devMajor"]) = (json!("char"), json!(owner % 4096));
                }
                4 if !files.is_empty() => {
                    let target: &String = &files[owner as usize % files.len()];
                    (entry["type"], entry["linkName"]) = (json!("hardlink"), json!(target));
                }
                _ => {
                    entry["type"] = json!("reg");
                    entry["size"] = json!(sizes.iter().sum::<u64>());
                    files.push(path.clone());
                    let mut offset = 0;
                    for size in sizes {
                        entry["offset"] = json!(at);
                        entry["chunkOffset"] = json!(offset);
                        entry["chunkSize"] = json!(size);
                        entry["chunkDigest"] = json!(Digest::of(path.as_bytes()));
                        if size % 5 == 0 {
                            entry["chunkType"] = json!("zeros");
                        }
                        at += size / 3 + 1;
                        offset += size;
                        entries.push(entry);
                        entry = json!({"name": path, "type": "chunk"});
                    }
                    if offset > 0 {
                        continue;
                    }
                }
            }
            entries.push(entry);
        }
        entries
    })
}

fn toc(entries: &[Value]) -> Toc {
    let json = serde_json::to_vec(&json!({"version": 1, "entries": entries})).unwrap();
    Toc::parse(&json, PAYLOAD_END, &TocLimits::default()).unwrap()
}

/// All that can be asked of an inode, but for its chunks.
fn told(toc: &Toc) -> Vec<String> {
    let inode = |inode: crate::Inode<'_>| {
        let children: Vec<_> = inode.children().collect();
        let xattrs: Vec<_> = inode.xattrs().collect();
        format!(
            "{} {:?} {:o} {}:{} {} {} {} {} {:?} {} {:?} {children:?} {xattrs:?} {:?}",
            inode.number(),
            inode.kind(),
            inode.mode(),
            inode.uid(),
            inode.gid(),
            inode.mtime(),
            inode.mtime_nanos(),
            inode.size(),
            inode.nlink(),
            inode.device(),
            inode.parent(),
            inode.link_target(),
            inode.chunk_numbers(),
        )
    };
    toc.inodes().map(inode).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_was_packed_is_unpacked(entries in entries(), group in 1..20_usize) {
        let toc = toc(&entries);
        let tree = Toc::unpack_tree(&toc.pack_tree(), &toc.facts()).unwrap();
        prop_assert_eq!(told(&tree), told(&toc));
        prop_assert_eq!(
            (tree.digest(), tree.payload_end(), tree.landmark(), tree.file_bytes()),
            (toc.digest(), toc.payload_end(), toc.landmark(), toc.file_bytes())
        );
        let chunks: Vec<Chunk> = toc.chunks().collect();
        let mut again = Vec::new();
        for group in chunks.chunks(group) {
            again.extend(unpack_chunks(&pack_chunks(group), group.len()).unwrap());
        }
        let without: Vec<_> = chunks.iter().map(|chunk| Chunk { digest: NO_DIGEST, ..*chunk }).collect();
        prop_assert_eq!(again, without);
    }

    #[test]
    fn nothing_that_is_unpacked_points_beyond(bytes in prop::collection::vec(any::<u8>(), 0..300), at: usize) {
        let facts = toc(&[]).facts();
        if let Ok(tree) = Toc::unpack_tree(&bytes, &facts) {
            told(&tree);
        }
        let _ = unpack_chunks(&bytes, at % 400);
        // And what is nearly right.
        let mut near = toc(&[json!({"name": "a/b", "type": "symlink", "linkName": "x"})]).pack_tree();
        let at = at % near.len();
        near[at] ^= bytes.first().copied().unwrap_or(1);
        if let Ok(tree) = Toc::unpack_tree(&near, &facts) {
            told(&tree);
        }
    }
}

#[test]
fn numbers_of_every_size_come_back() {
    for value in (0..64).map(|bit| 1_u64 << bit).flat_map(|value| [value - 1, value, !value]) {
        let mut out = Vec::new();
        put(&mut out, value);
        let mut input = Input(&out);
        assert_eq!((input.raw(), input.0.len()), (Ok(value), 0));
        assert_eq!(zigzag(unzigzag(value)), value);
    }
    let too_large = [&[0xff; 9][..], &[2]].concat();
    assert_eq!(Input(&too_large).raw(), Err(Malformed));
    assert_eq!(Input(&[0x80; 20]).raw(), Err(Malformed));
    assert_eq!(Input(&[0x80]).raw(), Err(Malformed));
}
