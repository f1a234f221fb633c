//! Hostile tables of contents, one trick each, and what honest ones must give.

use serde_json::{Value, json};

use super::*;

mod lookup;
mod podman;

const PAYLOAD_END: u64 = 1000;

fn parse(entries: &[Value]) -> Result<Toc, TocError> {
    parse_with(entries, &TocLimits::default())
}

fn parse_with(entries: &[Value], limits: &TocLimits) -> Result<Toc, TocError> {
    let json = serde_json::to_vec(&json!({"version": 1, "entries": entries})).unwrap();
    Toc::parse(&json, PAYLOAD_END, limits)
}

fn digest() -> String {
    Digest::of(b"").to_string()
}

fn dir(name: &str) -> Value {
    json!({"name": name, "type": "dir", "mode": 0o755})
}

fn reg(name: &str, size: u64, offset: u64) -> Value {
    json!({"name": name, "type": "reg", "size": size, "offset": offset, "chunkDigest": digest()})
}

fn link(name: &str, target: &str) -> Value {
    json!({"name": name, "type": "hardlink", "linkName": target})
}

fn with(mut entry: Value, changes: &Value) -> Value {
    for (key, value) in changes.as_object().unwrap() {
        entry[key] = value.clone();
    }
    entry
}

fn problem_of(entries: &[Value]) -> EntryProblem {
    match parse(entries) {
        Err(TocError::Entry { problem, .. }) => problem,
        other => panic!("{entries:?}: {other:?}"),
    }
}

fn names(toc: &Toc, path: &str) -> Vec<String> {
    let inode = toc.inode(toc.find(path.as_bytes()).unwrap()).unwrap();
    inode.children().map(|(name, _)| String::from_utf8(name.to_vec()).unwrap()).collect()
}

#[test]
fn names_that_lead_out_or_cannot_be_are_refused() {
    for (name, problem) in [
        ("..", PathProblem::Parent),
        ("a/../../b", PathProblem::Parent),
        ("a\0b", PathProblem::Nul),
        (&*"x".repeat(256), PathProblem::LongName),
        (&*"x/".repeat(4000), PathProblem::LongPath),
    ] {
        assert_eq!(problem_of(&[dir(name)]), EntryProblem::Path(problem));
        assert_eq!(problem_of(&[link("l", name)]), EntryProblem::Path(problem));
    }
}

#[test]
fn chunks_must_cover_their_file_inside_the_payload() {
    let file = |changes: Value| vec![with(reg("f", 10, 100), &changes)];
    let chunk = |changes: Value| {
        with(json!({"name": "f", "type": "chunk", "offset": 200, "chunkDigest": digest()}), &changes)
    };
    let first = with(reg("f", 10, 100), &json!({"chunkSize": 4}));
    for (entries, problem) in [
        (file(json!({"offset": 0})), EntryProblem::OutsidePayload),
        (file(json!({"offset": PAYLOAD_END})), EntryProblem::OutsidePayload),
        (file(json!({"offset": i64::MAX})), EntryProblem::OutsidePayload),
        (file(json!({"offset": -1})), EntryProblem::Range("offset")),
        (file(json!({"size": -1})), EntryProblem::Range("size")),
        (file(json!({"innerOffset": -1})), EntryProblem::Range("innerOffset")),
        (file(json!({"innerOffset": i64::MAX})), EntryProblem::Range("innerOffset")),
        (file(json!({"innerOffset": 1u32 << 30})), EntryProblem::LargeChunk),
        (file(json!({"size": 1u64 << 31})), EntryProblem::LargeChunk),
        (file(json!({"size": i64::MAX})), EntryProblem::LargeChunk),
        (file(json!({"chunkDigest": ""})), EntryProblem::NoDigest),
        (file(json!({"chunkSize": 11})), EntryProblem::Tiling),
        (file(json!({"chunkSize": 9})), EntryProblem::Tiling),
        (file(json!({"chunkSize": -1})), EntryProblem::Range("chunkSize")),
        (file(json!({"chunkOffset": 1})), EntryProblem::Tiling),
        (vec![first.clone(), chunk(json!({"chunkOffset": 5}))], EntryProblem::Tiling),
        (vec![first.clone(), chunk(json!({"chunkOffset": 3}))], EntryProblem::Tiling),
        (vec![first.clone(), chunk(json!({"chunkOffset": 4, "chunkSize": 5}))], EntryProblem::Tiling),
        (vec![first.clone(), chunk(json!({"chunkOffset": 4, "chunkSize": 7}))], EntryProblem::Tiling),
        (
            vec![first.clone(), chunk(json!({"chunkOffset": 4})), chunk(json!({"chunkOffset": 10}))],
            EntryProblem::Tiling,
        ),
        (vec![first.clone(), chunk(json!({"chunkOffset": 4, "chunkDigest": ""}))], EntryProblem::NoDigest),
        (vec![first.clone(), chunk(json!({"chunkOffset": 4, "name": "g"}))], EntryProblem::StrayChunk),
        (vec![first.clone(), dir("d"), chunk(json!({"chunkOffset": 4}))], EntryProblem::Tiling),
        (vec![chunk(json!({}))], EntryProblem::StrayChunk),
        (vec![dir("f"), chunk(json!({}))], EntryProblem::StrayChunk),
        (vec![first], EntryProblem::Tiling),
    ] {
        assert_eq!(problem_of(&entries), problem, "{entries:?}");
    }
    assert!(matches!(problem_of(&file(json!({"chunkDigest": "sha256:xyz"}))), EntryProblem::Digest(_)));
    assert!(matches!(problem_of(&file(json!({"chunkDigest": "md5:00"}))), EntryProblem::Digest(_)));
}

#[test]
fn no_byte_belongs_to_two_files() {
    let inner = |name: &str, inner: u64| with(reg(name, 10, 100), &json!({"innerOffset": inner}));
    assert_eq!(problem_of(&[inner("a", 0), inner("b", 9)]), EntryProblem::Overlap);
    assert_eq!(problem_of(&[inner("a", 5), inner("b", 0)]), EntryProblem::Overlap);
    assert_eq!(problem_of(&[inner("a", 0), inner("b", 0)]), EntryProblem::Overlap);
    let toc = parse(&[inner("a", 0), inner("b", 512), reg("c", 1, 300)]).unwrap();
    let chunks: Vec<Chunk> = toc.chunks().collect();
    assert_eq!(chunks[1].inner_offset, 512);
    assert_eq!([chunks[0].blob, chunks[1].blob], [ByteRange::new(100, 300); 2]);
    assert_eq!(chunks[2].blob, ByteRange::new(300, PAYLOAD_END));
}

#[test]
fn hard_links_lead_to_files_of_the_layer() {
    assert_eq!(problem_of(&[link("a", "gone")]), EntryProblem::MissingTarget("gone".into()));
    assert_eq!(problem_of(&[link("a", "a")]), EntryProblem::LaterTarget("a".into()));
    let circle = [link("a", "b"), link("b", "c"), link("c", "a")];
    assert_eq!(problem_of(&circle), EntryProblem::LaterTarget("b".into()));
    // Unpacking would leave `b` with the content of the first `a`.
    let replaced = [reg("a", 1, 1), link("b", "a"), reg("a", 2, 2)];
    assert_eq!(problem_of(&replaced), EntryProblem::LaterTarget("a".into()));
    assert_eq!(problem_of(&[link("a", "d"), dir("d")]), EntryProblem::DirectoryTarget("d".into()));
    assert_eq!(problem_of(&[link("a", "d"), reg("d/x", 1, 1)]), EntryProblem::DirectoryTarget("d".into()));
    assert_eq!(problem_of(&[link("a", "/")]), EntryProblem::DirectoryTarget(String::new()));

    let toc = parse(&[reg("d/f", 3, 7), link("b", "/d/f"), link("a", "./b"), link("e/g", "a")]).unwrap();
    let file = toc.find(b"d/f").unwrap();
    for name in ["a", "b", "e/g"] {
        assert_eq!(toc.find(name.as_bytes()), Some(file));
    }
    assert_eq!(toc.inode(file).unwrap().nlink(), 4);
    assert_eq!(toc.inode_count(), 4, "root, d, d/f, e");
    assert_eq!(toc.file_bytes(), 3);
}

#[test]
fn a_long_chain_of_hard_links_costs_no_more_than_its_length() {
    let links = (1..20_000).map(|n| link(&format!("{n}"), &format!("{}", n - 1)));
    let entries: Vec<Value> = std::iter::once(reg("0", 1, 1)).chain(links).collect();
    let toc = parse(&entries).unwrap();
    assert_eq!(toc.inode(toc.find(b"19999").unwrap()).unwrap().nlink(), 20_000);
}

#[test]
fn the_last_of_a_name_counts() {
    let toc = parse(&[
        with(reg("./a", 3, 10), &json!({"mode": 0o600})),
        dir("/d/"),
        with(reg("a", 5, 20), &json!({"mode": 0o644})),
        with(dir("d"), &json!({"mode": 0o700})),
    ])
    .unwrap();
    let file = toc.inode(toc.find(b"a").unwrap()).unwrap();
    assert_eq!((file.size(), file.mode(), toc.chunk_count()), (5, 0o644, 1));
    assert_eq!(toc.chunk(0).unwrap().blob.start, 20);
    assert_eq!(toc.inode(toc.find(b"d").unwrap()).unwrap().mode(), 0o700);

    // A file in the place of a directory takes its content away; under a file nothing can follow.
    let toc = parse(&[dir("d"), reg("d/x/y", 1, 10), reg("d", 2, 20)]).unwrap();
    assert_eq!(toc.inode_count(), 2);
    assert_eq!(toc.chunk_count(), 1);
    assert_eq!(problem_of(&[reg("d", 2, 20), reg("d/x", 1, 30)]), EntryProblem::NotDirectory);
    let symlink = json!({"name": "lib", "type": "symlink", "linkName": "usr/lib"});
    assert_eq!(problem_of(&[symlink, reg("lib/x", 1, 30)]), EntryProblem::NotDirectory);
    assert_eq!(problem_of(&[reg("/", 1, 30)]), EntryProblem::NotDirectory);
}

/// As whoever unpacks the tar has it: what takes a directory's place for a while empties it.
#[test]
fn a_directory_that_was_something_else_in_between_is_empty() {
    let entries = [dir("d"), reg("d/x", 1, 1), dir("d/e"), reg("d", 1, 2), dir("d"), reg("d/e/y", 1, 3)];
    let toc = parse(&entries).unwrap();
    assert_eq!(names(&toc, "d"), ["e"]);
    assert_eq!(names(&toc, "d/e"), ["y"]);
    let before = [reg("d", 1, 2), dir("d"), reg("d/x", 1, 1)];
    assert_eq!(names(&parse(&before).unwrap(), "d"), ["x"]);
}

#[test]
fn what_is_missing_is_made_up_and_what_is_there_is_sorted() {
    let toc =
        parse(&[reg("a/b/c", 0, 0), dir("a-b"), dir("a.b"), json!({"name": "z", "type": "fifo"})]).unwrap();
    assert_eq!(names(&toc, ""), ["a", "a-b", "a.b", "z"]);
    assert_eq!(names(&toc, "a/b"), ["c"]);
    let made_up = toc.inode(toc.find(b"a").unwrap()).unwrap();
    assert_eq!((made_up.kind(), made_up.mode(), made_up.nlink()), (Kind::Directory, 0o755, 3));
    let root = toc.inode(ROOT).unwrap();
    assert_eq!((root.nlink(), root.parent(), root.mode()), (5, ROOT, 0o755));
    let below = toc.inode(toc.find(b"a/b").unwrap()).unwrap();
    assert_eq!(below.parent(), made_up.number());
    assert!(toc.lookup(ROOT, b"nothing").is_none());
    assert!(toc.lookup(99, b"a").is_none());
    let empty = parse(&[]).unwrap();
    assert_eq!((empty.inode_count(), empty.landmark()), (1, Landmark::Absent));
}

#[test]
fn attributes_are_those_of_the_entry() {
    let toc = parse(&[
        json!({"name": "dev", "type": "char", "devMajor": 1, "devMinor": 3, "mode": 0o20666,
               "modtime": "2020-09-13T12:26:40.9Z", "uid": 4_000_000_000u32, "NumLink": 7,
               "xattrs": {"user.b": "AQ==", "trusted.overlay.opaque": "eQ==", "user.a": "",
                          "user.overlay.opaque": "eQ==", "security.capability": "AQID"}}),
        json!({"name": "link", "type": "symlink", "linkName": "../../target"}),
    ])
    .unwrap();
    let device = toc.inode(toc.find(b"dev").unwrap()).unwrap();
    assert_eq!((device.kind(), device.device(), device.mode()), (Kind::CharDevice, Some((1, 3)), 0o666));
    assert_eq!((device.mtime(), device.uid(), device.nlink()), (1_600_000_000, 4_000_000_000, 1));
    let xattrs: Vec<_> = device.xattrs().collect();
    assert_eq!(
        xattrs,
        [(b"security.capability".as_slice(), [1, 2, 3].as_slice()), (b"user.a", b""), (b"user.b", &[1]),]
    );
    assert_eq!(device.xattr(b"user.b"), Some([1].as_slice()));
    let link = toc.inode(toc.find(b"link").unwrap()).unwrap();
    assert_eq!((link.link_target(), link.size()), (Some(b"../../target".as_slice()), 12));
    assert!(link.device().is_none() && link.chunks().len() == 0 && link.children().len() == 0);
}

#[test]
fn impossible_attributes_are_refused() {
    let d = |changes: Value| with(dir("d"), &changes);
    for (entry, problem) in [
        (d(json!({"uid": -1})), EntryProblem::Range("uid")),
        (d(json!({"gid": 1u64 << 32})), EntryProblem::Range("gid")),
        (d(json!({"modtime": "yesterday"})), EntryProblem::Time),
        (d(json!({"type": "socket"})), EntryProblem::Type("socket".into())),
        (d(json!({"type": ""})), EntryProblem::Type(String::new())),
        (d(json!({"type": "symlink"})), EntryProblem::Link),
        (d(json!({"type": "symlink", "linkName": "a\u{0}b"})), EntryProblem::Link),
        (d(json!({"type": "symlink", "linkName": "x".repeat(4096)})), EntryProblem::Link),
        (d(json!({"type": "char", "devMajor": -1})), EntryProblem::Range("devMajor")),
        (d(json!({"xattrs": {"": "AQ=="}})), EntryProblem::Xattr(String::new())),
        (d(json!({"xattrs": {"user.x": "not base64"}})), EntryProblem::Xattr("user.x".into())),
        (d(json!({"xattrs": {"user.x": "A".repeat(90_000)}})), EntryProblem::Xattr("user.x".into())),
    ] {
        assert_eq!(problem_of(std::slice::from_ref(&entry)), problem, "{entry}");
    }
}

#[test]
fn landmarks_are_read_and_hidden() {
    let landmark = |name: &str| reg(name, 1, 500);
    let toc = parse(&[reg("a", 1, 100), landmark(".prefetch.landmark"), reg("b", 1, 600)]).unwrap();
    assert_eq!(toc.landmark(), Landmark::Prefetch(500));
    assert_eq!(names(&toc, ""), ["a", "b"]);
    assert_eq!(toc.chunk_count(), 2);
    assert_eq!(toc.chunk(0).unwrap().blob, ByteRange::new(100, 500), "the landmark's member is a boundary");
    let toc = parse(&[landmark("./.no.prefetch.landmark"), reg("d/.no.prefetch.landmark", 1, 600)]).unwrap();
    assert_eq!(toc.landmark(), Landmark::NoPrefetch);
    assert_eq!(names(&toc, "d"), [".no.prefetch.landmark"], "only the root's are landmarks");
}

#[test]
fn the_chunk_of_a_byte_is_found() {
    let toc = parse(&[
        with(reg("f", 10, 100), &json!({"chunkSize": 4})),
        json!({"type": "chunk", "offset": 200, "chunkOffset": 4, "chunkSize": 4, "chunkDigest": digest()}),
        json!({"type": "chunk", "offset": 300, "chunkOffset": 8, "chunkDigest": digest()}),
        with(reg("g", 5, 400), &json!({"chunkDigest": "", "digest": digest()})),
    ])
    .unwrap();
    let file = toc.inode(toc.find(b"f").unwrap()).unwrap();
    let found: Vec<Option<u32>> = [0, 3, 4, 7, 8, 9, 10, u64::MAX].map(|at| file.chunk_at(at)).to_vec();
    assert_eq!(found, [Some(0), Some(0), Some(1), Some(1), Some(2), Some(2), None, None]);
    assert_eq!(file.chunk_numbers(), 0..3);
    assert_eq!(file.chunks().map(|chunk| chunk.len).collect::<Vec<_>>(), [4, 4, 2]);
    let other = toc.inode(toc.find(b"g").unwrap()).unwrap();
    assert_eq!(other.chunk_at(4), Some(3));
    assert_eq!(toc.chunk(3).unwrap().inode, other.number());
}

#[test]
fn a_small_chunk_does_not_make_a_reader_fetch_a_large_extent() {
    let entries = [reg("a", 10, 100), reg("b", 1, 10_000_000)];
    let json = serde_json::to_vec(&json!({"version": 1, "entries": entries})).unwrap();
    let toc = Toc::parse(&json, 20_000_000, &TocLimits::default()).unwrap();
    assert!(toc.chunks().all(|chunk| chunk.blob.len() < 100_000));
}

#[test]
fn limits_hold_and_directories_that_paths_imply_count() {
    let limits = TocLimits { entries: 5, ..TocLimits::default() };
    assert!(parse_with(&[dir("a/b/c/d")], &limits).is_ok());
    for entries in [vec![dir("a/b/c/d/e/f")], (0..6).map(|n| dir(&n.to_string())).collect()] {
        let error = parse_with(&entries, &limits).unwrap_err();
        assert!(matches!(error, TocError::TooLarge { what: "entries", limit: 5 }), "{error}");
    }
    let limits = TocLimits { json_bytes: 10, ..TocLimits::default() };
    assert!(matches!(parse_with(&[], &limits), Err(TocError::TooLarge { what: "bytes", .. })));
}

#[test]
fn other_documents_are_refused() {
    let parse = |json: &str| Toc::parse(json.as_bytes(), PAYLOAD_END, &TocLimits::default());
    assert!(matches!(parse(r#"{"version":2,"entries":[]}"#), Err(TocError::Version(2))));
    assert!(matches!(parse(r#"{"entries":[]}"#), Err(TocError::Version(0))));
    for json in [
        "",
        "[]",
        "{",
        r#"{"version":1,"entries":[]} trailing"#,
        r#"{"version":1,"entries":[],"entries":[]}"#,
        r#"{"version":1,"version":1,"entries":[]}"#,
        r#"{"version":1,"entries":[{"name":7}]}"#,
        r#"{"version":1,"entries":[{"name":"d","type":"dir","name":"e"}]}"#,
        // Go takes these for `mode`, `size` and `linkName`.
        r#"{"version":1,"entries":[{"name":"d","type":"dir","Mode":2541}]}"#,
        r#"{"version":1,"entries":[{"name":"d","type":"dir","\u017fize":1}]}"#,
        r#"{"version":1,"entries":[{"name":"d","type":"dir","lin\u212aname":"x"}]}"#,
        r#"{"version":1,"entries":{}}"#,
    ] {
        assert!(matches!(parse(json), Err(TocError::Json(_))), "{json}");
    }
    assert!(parse(r#"{"version":1,"entries":null,"other":{"x":[1]}}"#).is_ok());
}

#[test]
fn the_index_is_small() {
    let entries: Vec<Value> = (0..10_000)
        .map(|n| reg(&format!("usr/lib/python3/dist-packages/m{}/f{n}.py", n % 100), 1, n + 1))
        .collect();
    let json = serde_json::to_vec(&json!({"version": 1, "entries": entries})).unwrap();
    let toc = Toc::parse(&json, 1 << 20, &TocLimits::default()).unwrap();
    let per_file = toc.memory() / 10_000;
    assert!(per_file <= 160, "{per_file} bytes per file");
}
