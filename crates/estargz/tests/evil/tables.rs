//! Tables of contents whose entries cannot be: names, links, attributes, and documents that are bombs.

use estargz::{ROOT, Toc, TocError, TocLimits};
use serde_json::{Value, json};

use crate::make::{PAYLOAD_END, digest, dir, document, hardlink, many, reg, with};
use crate::{CEILING, measured};

fn entries(entries: &[Value]) -> Result<(), TocError> {
    Toc::parse(&document(entries), PAYLOAD_END, &TocLimits::default()).map(drop)
}

fn text(json: &str) -> Result<(), TocError> {
    Toc::parse(json.as_bytes(), PAYLOAD_END, &TocLimits::default()).map(drop)
}

/// With a limit that a test can reach within its ceiling.
fn small(json: &[u8]) -> Result<(), TocError> {
    let limits = TocLimits { entries: 100_000, json_bytes: 32 << 20, ..TocLimits::default() };
    Toc::parse(json, PAYLOAD_END, &limits).map(drop)
}

fn one(changes: Value) -> Vec<Value> {
    vec![with(dir("d"), changes)]
}

/// `d` is an entry of which one thing is wrong.
fn of(entry: &str, problem: &str) -> String {
    format!("table of contents, entry {entry:?}: {problem}")
}

refused! { entries;
    name_climbs_out: vec![dir("../etc")] => &of("../etc", "the path has a .. part");
    name_climbs_in_the_middle: vec![dir("a/b/../../../etc")] =>
        &of("a/b/../../../etc", "the path has a .. part");
    name_ends_in_a_climb: vec![dir("a/..")] => &of("a/..", "the path has a .. part");
    name_has_a_nul: vec![dir("a\0b")] => &of("a\0b", "the path has a NUL byte");
    name_is_too_long: vec![dir(&"x".repeat(256))] =>
        &of(&"x".repeat(200), "a part of the path is longer than 255 bytes");
    path_is_too_long: vec![dir(&"xy/".repeat(2000))] => "table of contents, entry \"xy/xy/…";
    file_in_the_place_of_the_root: vec![reg("/", 1, 10)] =>
        &of("", "it is not a directory, but other entries lie below it");
    symbolic_link_in_the_place_of_the_root: vec![json!({"name": "./", "type": "symlink", "linkName": "/etc"})] =>
        &of("", "it is not a directory, but other entries lie below it");
    entries_below_a_file: vec![reg("f", 1, 10), reg("f/x", 1, 20)] =>
        &of("f", "it is not a directory, but other entries lie below it");
    /// Unpacking would follow the link, out of the layer.
    entries_below_a_symbolic_link:
        vec![json!({"name": "etc", "type": "symlink", "linkName": "/etc"}), reg("etc/passwd", 1, 20)] =>
        &of("etc", "it is not a directory, but other entries lie below it");

    hard_link_to_nothing: vec![hardlink("a", "b")] =>
        &of("a", "it is a hard link to \"b\", which is not in the layer");
    hard_link_to_itself: vec![hardlink("a", "a")] =>
        &of("a", "it is a hard link to \"a\", which does not come before it");
    hard_links_in_a_circle: vec![hardlink("a", "b"), hardlink("b", "c"), hardlink("c", "a")] =>
        &of("a", "it is a hard link to \"b\", which does not come before it");
    hard_link_to_a_directory: vec![dir("d"), hardlink("a", "d")] =>
        &of("a", "it is a hard link to the directory \"d\"");
    hard_link_to_an_implied_directory: vec![reg("d/f", 1, 10), hardlink("a", "d")] =>
        &of("a", "it is a hard link to the directory \"d\"");
    hard_link_to_its_own_directory: vec![hardlink("d/a", "d")] =>
        &of("d/a", "it is a hard link to the directory \"d\"");
    hard_link_to_the_root: vec![hardlink("a", "/")] =>
        &of("a", "it is a hard link to the directory \"\"");
    hard_link_climbs_out: vec![hardlink("a", "../../etc/shadow")] => &of("a", "the path has a .. part");
    /// Unpacking would keep the content of the first `a` under `b`.
    hard_link_target_is_replaced_later: vec![reg("a", 1, 1), hardlink("b", "a"), reg("a", 2, 2)] =>
        &of("b", "it is a hard link to \"a\", which does not come before it");
    entries_below_a_hard_link: vec![reg("f", 1, 10), hardlink("l", "f"), reg("l/x", 1, 20)] =>
        &of("l", "it is not a directory, but other entries lie below it");

    symbolic_link_to_nowhere: one(json!({"type": "symlink"})) =>
        &of("d", "the link target is empty, too long, or has a NUL byte");
    symbolic_link_with_a_nul: one(json!({"type": "symlink", "linkName": "a\0b"})) =>
        &of("d", "the link target is empty, too long, or has a NUL byte");
    symbolic_link_of_a_page: one(json!({"type": "symlink", "linkName": "x".repeat(4096)})) =>
        &of("d", "the link target is empty, too long, or has a NUL byte");

    type_is_unknown: one(json!({"type": "socket"})) => &of("d", "unknown type \"socket\"");
    type_is_missing: vec![json!({"name": "d"})] => &of("d", "unknown type \"\"");
    type_is_a_megabyte: one(json!({"type": "x".repeat(1 << 20)})) =>
        &of("d", &format!("unknown type \"{}\"", "x".repeat(40)));
    major_number_is_too_large: one(json!({"type": "char", "devMajor": 4096})) =>
        &of("d", "devMajor is out of range");
    minor_number_is_too_large: one(json!({"type": "block", "devMinor": 1 << 20})) =>
        &of("d", "devMinor is out of range");
    device_number_is_negative: one(json!({"type": "char", "devMinor": -1})) =>
        &of("d", "devMinor is out of range");
    owner_is_negative: one(json!({"uid": -1})) => &of("d", "uid is out of range");
    /// Linux takes this number for "no owner".
    owner_is_nobody_at_all: one(json!({"uid": u32::MAX})) => &of("d", "uid is out of range");
    group_is_too_large: one(json!({"gid": 1_u64 << 32})) => &of("d", "gid is out of range");
    size_is_negative: vec![with(reg("f", 1, 10), json!({"size": -1}))] =>
        &of("f", "size is out of range");
    size_of_a_directory_is_negative: one(json!({"size": -1})) => &of("d", "size is out of range");
    mode_is_negative: one(json!({"mode": -1})) => &of("d", "mode is out of range");
    /// Go's own bit for setuid: a reader that knows it, and one that takes tar's bits, would see two files.
    setuid_in_bits_that_tar_has_not: vec![with(reg("su", 1, 10), json!({"mode": 0o755 | 1 << 23}))] =>
        &of("su", "mode is out of range");
    time_is_no_time: one(json!({"modtime": "yesterday"})) =>
        &of("d", "the modification time is malformed");
    time_is_in_month_13: one(json!({"modtime": "2020-13-01T00:00:00Z"})) =>
        &of("d", "the modification time is malformed");
    time_is_beyond_the_calendar: one(json!({"modtime": "99999-01-01T00:00:00Z"})) =>
        &of("d", "the modification time is malformed");

    attribute_without_a_name: one(json!({"xattrs": {"": "AQ=="}})) =>
        &of("d", "the extended attribute \"\" is malformed or too large");
    attribute_with_a_nul: one(json!({"xattrs": {"user.\0": "AQ=="}})) =>
        &of("d", "the extended attribute \"user.\\0\" is malformed or too large");
    attribute_with_a_long_name: one(json!({"xattrs": {"x".repeat(256): "AQ=="}})) =>
        &of("d", &format!("the extended attribute {:?} is malformed or too large", "x".repeat(80)));
    attribute_of_a_megabyte: one(json!({"xattrs": {"user.x": "A".repeat(1 << 20)}})) =>
        &of("d", "the extended attribute \"user.x\" is malformed or too large");
    attribute_that_is_not_base64: one(json!({"xattrs": {"user.x": "***"}})) =>
        &of("d", "the extended attribute \"user.x\" is malformed or too large");
    attributes_without_number: {
        let many = (0..10_000).map(|n| (format!("user.attribute{n:05}"), json!("AQ==")));
        one(json!({"xattrs": many.collect::<serde_json::Map<_, _>>()}))
    } =>
        "table of contents, entry \"d\": the extended attribute \"user.attribute0…";
}

refused! { text;
    not_json_at_all: "\u{0}".to_owned() => "the table of contents is malformed: …";
    version_is_missing: r#"{"entries":[]}"#.to_owned() =>
        "the table of contents has version 0, only 1 is known";
    version_is_unknown: r#"{"version":2,"entries":[]}"#.to_owned() =>
        "the table of contents has version 2, only 1 is known";
    version_stands_twice: r#"{"version":2,"entries":[],"version":1}"#.to_owned() =>
        "the table of contents is malformed: duplicate field `version`…";
    entries_stand_twice: r#"{"version":1,"entries":[],"entries":[]}"#.to_owned() =>
        "the table of contents is malformed: duplicate field `entries`…";
    key_stands_twice: r#"{"version":1,"entries":[{"name":"su","type":"dir","mode":493,"mode":2541}]}"#.to_owned() =>
        "the table of contents is malformed: duplicate field `mode`…";
    /// Go takes `Mode` for `mode`, and the last of the two: setuid for some readers alone.
    key_is_folded: r#"{"version":1,"entries":[{"name":"su","type":"dir","mode":493,"Mode":2541}]}"#.to_owned() =>
        "the table of contents is malformed: \"Mode\" is \"mode\" to some readers alone…";
    entries_are_folded:
        r#"{"version":1,"entries":[],"Entries":[{"name":"su","type":"dir","mode":2541}]}"#.to_owned() =>
        "the table of contents is malformed: \"Entries\" is \"entries\" to some readers alone…";
    key_is_folded_beyond_ascii:
        "{\"version\":1,\"entries\":[{\"name\":\"su\",\"type\":\"reg\",\"\u{17f}ize\":1}]}".to_owned() =>
        "the table of contents is malformed: \"\u{17f}ize\" is \"size\" to some readers alone…";
    number_is_no_integer: r#"{"version":1,"entries":[{"name":"f","size":1.5}]}"#.to_owned() =>
        "the table of contents is malformed: invalid type: floating point…";
    number_has_no_end: format!(r#"{{"version":1,"entries":[{{"name":"f","size":{}}}]}}"#, "9".repeat(1 << 20)) =>
        "the table of contents is malformed: …";
    number_is_2_to_the_63: r#"{"version":1,"entries":[{"name":"f","size":9223372036854775808}]}"#.to_owned() =>
        "the table of contents is malformed: invalid value: …";
    name_is_half_a_surrogate_pair: r#"{"version":1,"entries":[{"name":"\ud800","type":"dir"}]}"#.to_owned() =>
        "the table of contents is malformed: …";
    document_ends_in_the_middle: r#"{"version":1,"entries":[{"name":"d","type":"dir"}"#.to_owned() =>
        "the table of contents is malformed: EOF while parsing a list…";
    something_stands_behind_the_document: r#"{"version":1,"entries":[]}{"version":1}"#.to_owned() =>
        "the table of contents is malformed: trailing characters…";
    entries_are_nested_a_million_deep: format!(r#"{{"version":1,"entries":{}"#, "[".repeat(1 << 20)) =>
        "the table of contents is malformed: …";
    unknown_key_is_nested_a_million_deep: format!(r#"{{"version":1,"x":{}"#, "[{\"x\":".repeat(1 << 20)) =>
        "the table of contents is malformed: EOF while parsing a value…";
    name_of_16_mebibytes:
        format!(r#"{{"version":1,"entries":[{{"type":"dir","name":"{}"}}]}}"#, "x".repeat(16 << 20)) =>
        &of(&"x".repeat(200), "a part of the path is longer than 255 bytes");
    escaped_name_of_16_mebibytes:
        format!(r#"{{"version":1,"entries":[{{"type":"dir","name":"{}"}}]}}"#, "\\u0041".repeat(16 << 20 >> 2)) =>
        &of(&"A".repeat(200), "a part of the path is longer than 255 bytes");
}

refused! { small;
    document_of_40_mebibytes: vec![b' '; 40 << 20] =>
        "the table of contents has more bytes than the limit of 33554432";
    a_million_entries: many(1_000_000, |_| r#"{"type":"fifo","name":"a"}"#.into()) =>
        "the table of contents has more entries than the limit of 100000";
    chunks_without_number: many(300_000, |at| if at == 0 {
        r#"{"type":"reg","name":"f","size":300000,"chunkSize":1,"chunkType":"zeros"}"#.into()
    } else {
        format!(r#"{{"type":"chunk","chunkOffset":{at},"chunkSize":1,"chunkType":"zeros"}}"#)
    }) => "the table of contents has more entries than the limit of 100000";
    /// 100 names that imply 200,000 directories.
    directories_that_names_imply: many(100, |at| format!(r#"{{"type":"dir","name":"{at}{}"}}"#, "/a".repeat(2000))) =>
        "the table of contents has more entries than the limit of 100000";
    names_of_owners_without_number:
        many(70_000, |at| format!(r#"{{"type":"dir","name":"d","uid":{at},"userName":"{at}"}}"#)) =>
        &of("d", "number of owner names is out of range");
    /// 2⁶² bytes of nothing are as many chunks.
    hole_of_4_exbibytes:
        document(&[json!({"type": "reg", "name": "f", "size": 1_u64 << 62, "chunkType": "zeros"})]) =>
        "the table of contents has more entries than the limit of 100000";
}

/// What cannot be told from honest tables is at least harmless.
#[test]
fn overlays_own_attributes_are_dropped() {
    let entries = [
        with(
            dir("d"),
            json!({"xattrs": {"trusted.overlay.opaque": "eQ==", "user.overlay.redirect": "Lw=="}}),
        ),
        with(dir("e"), json!({"xattrs": {"trusted.overlay.opaque": "***", "user.x": ""}})),
    ];
    let toc = Toc::parse(&document(&entries), PAYLOAD_END, &TocLimits::default()).unwrap();
    let names = |path: &[u8]| {
        toc.inode(toc.find(path).unwrap())
            .unwrap()
            .xattrs()
            .map(|(name, _)| name.to_vec())
            .collect::<Vec<_>>()
    };
    assert_eq!(names(b"d"), Vec::<Vec<u8>>::new());
    assert_eq!(names(b"e"), [b"user.x".to_vec()]);
}

#[test]
fn names_that_look_like_a_way_out_stay_inside() {
    let toc = Toc::parse(
        &document(&[reg("//etc//./passwd", 1, 10), dir("...")]),
        PAYLOAD_END,
        &TocLimits::default(),
    )
    .unwrap();
    assert_eq!(toc.lookup(ROOT, b"etc").and_then(|etc| toc.lookup(etc, b"passwd")), toc.find(b"etc/passwd"));
    assert!(toc.find(b"etc/passwd").is_some() && toc.find(b"...").is_some());
}

#[test]
fn the_last_of_a_name_wins_whatever_it_was() {
    let su = |mode: u32| with(reg("su", 1, 10 + u64::from(mode) / 10), json!({"mode": mode}));
    let toc = Toc::parse(&document(&[su(0o4755), su(0o755)]), PAYLOAD_END, &TocLimits::default()).unwrap();
    assert_eq!(toc.inode(toc.find(b"su").unwrap()).unwrap().mode(), 0o755);
    assert_eq!((toc.inode_count(), toc.chunk_count()), (2, 1));
}

#[test]
fn modes_are_tars_bits_and_nothing_else() {
    // The type of a symbolic link in the mode of a directory: the entry's type counts.
    let toc = Toc::parse(
        &document(&[with(dir("d"), json!({"mode": 0o124_755}))]),
        PAYLOAD_END,
        &TocLimits::default(),
    )
    .unwrap();
    assert_eq!(toc.inode(toc.find(b"d").unwrap()).unwrap().mode(), 0o4755);
}

/// Names that begin alike for 4 KiB, so that every comparison is as long as it can be; and a chain of links
/// as long as the table.
#[test]
fn tables_that_are_slow_to_sort_are_sorted() {
    let alike = "x".repeat(250) + "/";
    let deep = alike.repeat(15);
    let json = many(2000, |at| {
        if at == 0 {
            format!(r#"{{"type":"reg","name":"{deep}0","size":1,"offset":10,"chunkDigest":"{}"}}"#, digest())
        } else {
            format!(r#"{{"type":"hardlink","name":"{deep}{at}","linkName":"{deep}{}"}}"#, at - 1)
        }
    });
    let toc =
        measured(CEILING, || json, |json| Toc::parse(json, PAYLOAD_END, &TocLimits::default())).unwrap();
    assert_eq!(toc.inode(toc.find(format!("{deep}1999").as_bytes()).unwrap()).unwrap().nlink(), 2000);
}
