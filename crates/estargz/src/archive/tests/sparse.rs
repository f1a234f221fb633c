//! Sparse files made by hand: all four forms, and maps that lie.

use super::*;

/// What the files below hold: two bytes at 3, three at 8, and a hole at the end up to 20.
const CONTENT: &[u8; 20] = b"\0\0\0ab\0\0\0xyz\0\0\0\0\0\0\0\0\0";
const STORED: &[u8] = b"abxyz";
const PARTS: &[(u64, u64)] = &[(3, 2), (8, 3), (20, 0)];

/// A header of type `S` with its extension blocks.
fn old(path: &str, parts: &[(u64, u64)], size: u64, stored: u64) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_path(path).unwrap();
    header.set_size(stored);
    header.set_mode(0o640);
    header.set_uid(11);
    header.set_gid(12);
    header.set_mtime(13);
    header.set_username("joe").unwrap();
    header.set_entry_type(tar::EntryType::GNUSparse);
    let slot = |&(offset, len): &(u64, u64)| format!("{offset:011o}\0{len:011o}\0").into_bytes();
    let (here, rest) = parts.split_at(parts.len().min(4));
    let bytes = header.as_mut_bytes();
    let table = here.iter().flat_map(slot).collect::<Vec<_>>();
    bytes[386..386 + table.len()].copy_from_slice(&table);
    bytes[482] = u8::from(!rest.is_empty());
    if size < 1 << 33 {
        bytes[483..495].copy_from_slice(format!("{size:011o}\0").as_bytes());
    } else {
        bytes[483] = 0x80;
        bytes[487..495].copy_from_slice(&size.to_be_bytes());
    }
    header.set_cksum();
    let mut blocks = header.as_bytes().to_vec();
    let mut chunks = rest.chunks(21).peekable();
    while let Some(chunk) = chunks.next() {
        let mut block = chunk.iter().flat_map(slot).collect::<Vec<_>>();
        block.resize(BLOCK, 0);
        block[504] = u8::from(chunks.peek().is_some());
        blocks.extend_from_slice(&block);
    }
    blocks
}

/// The text map of PAX 1.0, padded.
fn text_map(text: &str) -> Vec<u8> {
    let mut map = text.as_bytes().to_vec();
    map.resize(map.len().next_multiple_of(BLOCK), 0);
    map
}

fn pax_1_0(map: &[u8], size: &str, stored: &[u8]) -> Vec<u8> {
    let extended = records(&[
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"f"),
        ("GNU.sparse.realsize", size.as_bytes()),
        ("SCHILY.xattr.user.k", b"v\0\n"),
        ("VENDOR.key", b"kept"),
        ("mtime", b"13.5"),
    ]);
    let header = header("GNUSparseFile.0/f", (map.len() + stored.len()) as u64);
    [&extended, header.as_bytes().as_slice(), map, stored].concat()
}

fn pax_0(extra: &[(&str, &[u8])], stored: &[u8]) -> Vec<u8> {
    let common: [(&str, &[u8]); 2] = [("GNU.sparse.size", b"20"), ("GNU.sparse.numblocks", b"3")];
    let extended = records(&[&common, extra].concat());
    [&extended, header("f", stored.len() as u64).as_bytes().as_slice(), stored].concat()
}

#[test]
fn all_forms_expand_to_the_same_file() {
    let map = text_map("3\n3\n2\n8\n3\n20\n0\n");
    let pairs: Vec<(&str, &[u8])> = vec![
        ("GNU.sparse.offset", b"3"),
        ("GNU.sparse.numbytes", b"2"),
        ("GNU.sparse.offset", b"8"),
        ("GNU.sparse.numbytes", b"3"),
        ("GNU.sparse.offset", b"20"),
        ("GNU.sparse.numbytes", b"0"),
    ];
    let forms = [
        ("old", [old("f", PARTS, 20, 5), STORED.to_vec()].concat()),
        ("0.0", pax_0(&pairs, STORED)),
        ("0.1", pax_0(&[("GNU.sparse.name", b"f"), ("GNU.sparse.map", b"3,2,8,3,20,0")], STORED)),
        ("1.0", pax_1_0(&map, "20", STORED)),
    ];
    for (form, mut tar) in forms {
        tar.resize(tar.len().next_multiple_of(BLOCK), 0);
        tar.extend_from_slice(header("behind", 0).as_bytes());
        let entries = read_all(&tar).unwrap();
        assert_eq!(entries.len(), 2, "{form}");
        let (entry, data) = &entries[0];
        assert_eq!((entry.path.as_slice(), entry.size), (b"f".as_slice(), 20), "{form}");
        assert_eq!((data.as_slice(), entry.rewritten), (CONTENT.as_slice(), true), "{form}");
        assert_eq!(entries[1].0.path, b"behind", "{form}");
        // Unread data is skipped as it lies in the stream.
        let mut reader = Reader::new(tar.as_slice());
        reader.next_entry().unwrap();
        reader.data().read_exact(&mut [0; 4]).unwrap();
        assert_eq!(reader.next_entry().unwrap().unwrap().path, b"behind", "{form}");

        // What takes the header's place says the same, to any reader.
        let plain = [&entry.raw[..], data].concat();
        let (again, content) = read_one(&[&plain]).unwrap();
        let position = again.position;
        assert_eq!(content, CONTENT, "{form}");
        assert_eq!(again.header_size, 20, "{form}");
        let expected =
            Entry { rewritten: false, raw: again.raw.clone(), header_size: 20, position, ..entry.clone() };
        assert_eq!(again, expected, "{form}");
    }
}

#[test]
fn other_records_and_global_headers_outlive_the_rewriting() {
    let global = extension(b'g', b"13 comment=x\n");
    let tar = pax_1_0(&text_map("1\n0\n5\n"), "5", STORED);
    let (entry, _) = read_one(&[&global, &tar]).unwrap();
    assert!(entry.raw.starts_with(&global));
    let text = String::from_utf8_lossy(&entry.raw);
    for record in ["27 SCHILY.xattr.user.k=v\0\n\n", "19 VENDOR.key=kept\n", "14 mtime=13.5\n"] {
        assert!(text.contains(record), "{record:?}");
    }
    assert!(!text.contains("GNU.sparse") && !text.contains("GNUSparseFile"));
    assert_eq!(entry.xattrs[b"user.k".as_slice()], b"v\0\n");
}

#[test]
fn what_ustar_has_no_room_for_becomes_a_record() {
    let mut tar = old("f", &[(0, 5)], 1 << 33, 5);
    // Owner and time in base 256; the name in an extension.
    tar[108..116].copy_from_slice(&[0x80, 0, 0, 0, 0, 0x2d, 0xc6, 0xc0]);
    tar[136..148].copy_from_slice(&[0xff; 12]);
    let mut header = tar::Header::from_byte_slice(&tar[..BLOCK]).clone();
    header.set_cksum();
    tar[..BLOCK].copy_from_slice(header.as_bytes());
    let name = ["ü".repeat(60).into_bytes(), b"/x".repeat(60)].concat();
    let tar = [extension(b'L', &name), tar, STORED.to_vec()].concat();
    let mut reader = Reader::new(tar.as_slice());
    let entry = reader.next_entry().unwrap().unwrap();
    assert_eq!((entry.uid, entry.mtime, entry.size), (3_000_000, -1, 1 << 33));
    assert_eq!(entry.path, name);
    let again = Reader::new(entry.raw.as_slice()).next_entry().unwrap().unwrap();
    assert_eq!((again.uid, again.mtime, again.size), (3_000_000, -1, 1 << 33));
    assert_eq!((again.path, again.user), (name, b"joe".to_vec()));
    assert_eq!(again.raw, entry.raw);
}

#[test]
fn a_long_map_goes_on_in_further_blocks() {
    let parts: Vec<_> = (0..1000).map(|part| (part * 10, 1)).collect();
    let stored: Vec<u8> = (1..=250).cycle().take(1000).collect();
    let mut expected = vec![0; 10_000];
    for (part, byte) in stored.iter().enumerate() {
        expected[part * 10] = *byte;
    }
    let (_, data) = read_one(&[&old("f", &parts, 10_000, 1000), &stored]).unwrap();
    assert!(data == expected);
    let text = parts.iter().fold("1000\n".to_owned(), |text, (at, len)| format!("{text}{at}\n{len}\n"));
    let (_, data) = read_one(&[&pax_1_0(&text_map(&text), "10000", &stored)]).unwrap();
    assert!(data == expected);
}

#[test]
fn a_file_may_be_one_hole() {
    for tar in [
        old("f", &[(20, 0)], 20, 0),
        old("f", &[], 20, 0),
        pax_1_0(&text_map("1\n20\n0\n"), "20", b""),
        pax_1_0(&text_map("0\n"), "20", b""),
    ] {
        assert_eq!(read_one(&[&tar]).unwrap().1, [0; 20]);
    }
}

#[test]
fn a_map_that_lies_is_refused() {
    let old_error =
        |parts: &[(u64, u64)], size, stored| refusal(&[&old("f", parts, size, stored), &[1; 9000]]);
    for (error, problem) in [
        (old_error(&[(3, 4), (5, 1)], 20, 5), SparseProblem::Order),
        (old_error(&[(8, 3), (3, 2)], 20, 5), SparseProblem::Order),
        (old_error(&[(18, 5)], 20, 5), SparseProblem::Beyond),
        (old_error(&[(21, 0)], 20, 0), SparseProblem::Beyond),
        (old_error(&[(3, 2)], 20, 5), SparseProblem::Data),
        (old_error(&[(3, 9)], 20, 5), SparseProblem::Data),
        (old_error(&[(0, 5)], (16 << 30) + 6, 5), SparseProblem::Bomb),
        (refusal(&[&pax_1_0(&text_map("1\n18446744073709551615\n1\n"), "20", b"x")]), SparseProblem::Number),
        (refusal(&[&pax_1_0(&text_map("1\n0\n5\n"), "9223372036854775808", STORED)]), SparseProblem::Number),
        (refusal(&[&pax_1_0(&text_map("1\n0\n5\n"), "9223372036854775807", STORED)]), SparseProblem::Bomb),
        (refusal(&[&pax_1_0(&text_map("1\n+0\n5\n"), "20", STORED)]), SparseProblem::Number),
        (refusal(&[&pax_1_0(&text_map("x\n"), "20", b"")]), SparseProblem::Number),
        // The map swallows the data, and would go on in what follows.
        (refusal(&[&pax_1_0(&text_map("900\n0\n5\n"), "20", b"")]), SparseProblem::Data),
        (refusal(&[&pax_1_0(&text_map(&"1".repeat(2 << 20)), "20", b"")]), SparseProblem::Number),
        (
            refusal(&[&pax_1_0(&text_map(&format!("600000\n{}", "0\n".repeat(1_200_000))), "20", b"")]),
            SparseProblem::Long,
        ),
        (refusal(&[&pax_0(&[("GNU.sparse.map", b"3,2,8,3")], STORED)]), SparseProblem::Incomplete),
        (refusal(&[&pax_0(&[("GNU.sparse.map", b"3,2,8,3,4")], STORED)]), SparseProblem::Incomplete),
        (refusal(&[&pax_0(&[("GNU.sparse.realsize", b"21")], STORED)]), SparseProblem::Incomplete),
        (
            refusal(&[&pax_0(&[("GNU.sparse.major", b"2"), ("GNU.sparse.minor", b"0")], b"")]),
            SparseProblem::Unknown,
        ),
    ] {
        assert_eq!(error, format!("tar entry \"f\" is a sparse file that cannot be expanded: {problem}"));
    }
    // Records out of order or unknown are malformed in themselves.
    for bad in [
        records(&[("GNU.sparse.numbytes", b"1")]),
        records(&[("GNU.sparse.offset", b"1"), ("GNU.sparse.offset", b"1")]),
        records(&[("GNU.sparse.color", b"1")]),
        records(&[("GNU.sparse.map", b"1,,2")]),
    ] {
        let error = refusal(&[&bad, header("f", 0).as_bytes()]);
        assert!(error.contains("malformed PAX header"), "{error}");
    }
}

#[test]
fn holes_add_up_over_the_archive() {
    let six = old("f", &[(0, 0)], 6 << 30, 0);
    let mut reader = Reader::new(std::io::Cursor::new(six.repeat(3)));
    assert_eq!(reader.next_entry().unwrap().unwrap().size, 6 << 30);
    assert_eq!(reader.next_entry().unwrap().unwrap().size, 6 << 30);
    let error = reader.next_entry().unwrap_err();
    assert!(matches!(&error, ArchiveError::Sparse(error) if error.problem == SparseProblem::Bomb), "{error}");
}

#[test]
fn endless_extension_blocks_are_refused() {
    let mut header = tar::Header::from_byte_slice(&old("f", PARTS, 20, 5)).clone();
    header.as_mut_bytes()[482] = 1;
    header.set_cksum();
    let mut block = [0; BLOCK];
    block[504] = 1;
    let error = refusal(&[header.as_bytes(), &block.repeat(3000)]);
    assert!(error.ends_with(&SparseProblem::Long.to_string()), "{error}");
    // And ones that are missing.
    assert!(matches!(read_all(header.as_bytes()), Err(ArchiveError::Truncated(name)) if name == "f"));
}

#[test]
fn only_a_regular_file_of_gnu_tar_is_sparse() {
    let star = old("f", PARTS, 20, 5);
    let mut star = tar::Header::from_byte_slice(&star[..BLOCK]).clone();
    star.as_mut_bytes()[257..265].copy_from_slice(b"ustar\x0000");
    star.set_cksum();
    let error = refusal(&[star.as_bytes()]);
    assert!(error.ends_with(&SparseProblem::Unknown.to_string()), "{error}");

    let mut link = header("l", 0);
    link.set_entry_type(tar::EntryType::Symlink);
    link.set_cksum();
    let error = refusal(&[&records(&[("GNU.sparse.size", b"5")]), link.as_bytes()]);
    assert!(error.ends_with(&SparseProblem::Kind.to_string()), "{error}");
}

#[test]
fn sparse_data_that_is_cut_short_is_an_error() {
    let tar = [old("f", PARTS, 20, 5), b"abx".to_vec()].concat();
    assert!(read_all(&tar).unwrap_err().to_string().contains("the tar stream ends"));
    let mut reader = Reader::new(tar.as_slice());
    reader.next_entry().unwrap();
    assert!(matches!(reader.next_entry(), Err(ArchiveError::Truncated(_))));
}

/// As many records as fit, each with a key of its own: they are gone through once.
#[test]
fn many_records_take_no_time() {
    let mut data = Vec::new();
    for key in 0..80_000 {
        pax::push_record(&mut data, format!("{key:x}").as_bytes(), b"v");
    }
    pax::push_record(&mut data, b"GNU.sparse.size", b"7");
    pax::push_record(&mut data, b"GNU.sparse.numblocks", b"0");
    let (entry, content) = read_one(&[&extension(b'x', &data), header("f", 0).as_bytes()]).unwrap();
    assert_eq!((entry.size, content), (7, vec![0; 7]));
}
