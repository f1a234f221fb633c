//! What a table answers: chunks of a range, names that are carried from entry to entry, tables without
//! digests.

use super::*;

/// `f` has chunks of 4, 4 and 2 bytes, `g` one of 5.
fn two_files() -> Toc {
    let chunk = |at: u64, offset: u64| {
        json!({"type": "chunk", "offset": offset, "chunkOffset": at, "chunkSize": 4.min(10 - at),
               "chunkDigest": digest()})
    };
    parse(&[
        with(reg("f", 10, 100), &json!({"chunkSize": 4})),
        chunk(4, 200),
        chunk(8, 300),
        reg("g", 5, 400),
        dir("d"),
    ])
    .unwrap()
}

#[test]
fn a_range_of_a_file_is_a_range_of_chunks() {
    let toc = two_files();
    let f = toc.find(b"f").unwrap();
    for (start, end, chunks) in [
        (0, 1, 0..1),
        (0, 4, 0..1),
        (3, 5, 0..2),
        (4, 8, 1..2),
        (0, 10, 0..3),
        (9, 10, 2..3),
        (9, u64::MAX, 2..3),
        (0, 0, 0..0),
        (5, 5, 0..0),
        (10, 20, 0..0),
        (u64::MAX, u64::MAX, 0..0),
    ] {
        assert_eq!(toc.chunks_of(f, ByteRange::new(start, end)), chunks, "{start}..{end}");
    }
    let g = toc.find(b"g").unwrap();
    assert_eq!(toc.chunks_of(g, ByteRange::new(2, 3)), 3..4, "of another file, by the numbers of all");
    for other in [toc.find(b"d").unwrap(), 0, 99] {
        assert_eq!(toc.chunks_of(other, ByteRange::new(0, 10)), 0..0);
    }
    // Each of them to its extent: up to where the next one begins.
    let extents: Vec<ByteRange> =
        toc.chunks_of(f, ByteRange::new(0, 10)).filter_map(|n| toc.chunk(n)).map(|c| c.blob).collect();
    assert_eq!(extents, [ByteRange::new(100, 200), ByteRange::new(200, 300), ByteRange::new(300, 400)]);
}

#[test]
fn names_of_owners_are_carried_by_number() {
    let owned = |name: &str, uid: u32, gid: u32, changes: Value| {
        with(with(dir(name), &json!({"uid": uid, "gid": gid})), &changes)
    };
    let toc = parse(&[
        owned("a", 1000, 100, json!({"userName": "me", "groupName": "us"})),
        owned("b", 1000, 100, json!({})),
        owned("c", 7, 100, json!({"userName": "other"})),
        owned("d", 1000, 7, json!({"userName": "renamed"})),
        owned("e", 1000, 100, json!({})),
        owned("f", 100, 1000, json!({})),
        // The link's names count for what follows it, though the link is another name of `x` itself.
        reg("x", 1, 10),
        with(link("g", "x"), &json!({"uid": 9, "userName": "by link"})),
        owned("h", 9, 9, json!({})),
    ])
    .unwrap();
    let owner = |path: &str| {
        let inode = toc.inode(toc.find(path.as_bytes()).unwrap()).unwrap();
        let text = |name: Option<&[u8]>| name.map(|name| String::from_utf8(name.to_vec()).unwrap());
        (text(inode.user()), text(inode.group()))
    };
    let names = |user: &str, group: &str| {
        let name = |name: &str| (!name.is_empty()).then(|| name.to_owned());
        (name(user), name(group))
    };
    assert_eq!(owner("a"), names("me", "us"));
    assert_eq!(owner("b"), names("me", "us"));
    assert_eq!(owner("c"), names("other", "us"));
    assert_eq!(owner("d"), names("renamed", ""));
    assert_eq!(owner("e"), names("renamed", "us"));
    assert_eq!(owner("f"), names("", ""), "a user's number is no group's");
    assert_eq!(owner("x"), names("", ""));
    assert_eq!(owner("h"), names("by link", ""));
}

#[test]
fn a_table_without_digests_can_be_looked_at_and_nothing_of_it_is_given_out() {
    let legacy = [json!({"name": "f", "type": "reg", "size": 3, "offset": 10})];
    assert_eq!(problem_of(&legacy), EntryProblem::NoDigest);
    let toc = parse_with(&legacy, &TocLimits { unverified: true, ..TocLimits::default() }).unwrap();
    let file = toc.inode(toc.find(b"f").unwrap()).unwrap();
    assert_eq!((file.size(), file.digest(), file.chunks().len()), (3, None, 1));
    let chunk = toc.chunk(0).unwrap();
    let member = libdeflate(b"abc");
    assert!(matches!(
        crate::inflate_chunk(&member, &chunk),
        Err(crate::ChunkError::Unverifiable { offset: 10 })
    ));
}

fn libdeflate(data: &[u8]) -> Vec<u8> {
    let mut compressor = libdeflater::Compressor::new(libdeflater::CompressionLvl::fastest());
    let mut member = vec![0; compressor.gzip_compress_bound(data.len())];
    let len = compressor.gzip_compress(data, &mut member).unwrap();
    member.truncate(len);
    member
}

#[test]
fn hard_links_in_either_order_of_names_are_one_inode() {
    let toc = parse(&[
        with(reg("m/file", 10, 100), &json!({"mode": 0o4755, "uid": 7})),
        with(link("a/first", "m/file"), &json!({"mode": 0o600, "uid": 9})),
        link("z/last", "a/first"),
    ])
    .unwrap();
    let inode = toc.find(b"m/file").unwrap();
    assert_eq!([toc.find(b"a/first"), toc.find(b"z/last")], [Some(inode); 2]);
    let file = toc.inode(inode).unwrap();
    assert_eq!(
        (file.nlink(), file.mode(), file.uid()),
        (3, 0o4755, 7),
        "a link's own attributes are nothing"
    );
    assert_eq!(toc.chunk_count(), 1);
    assert_eq!(toc.inodes().filter(|inode| inode.kind() == Kind::Regular).count(), 1);
}
