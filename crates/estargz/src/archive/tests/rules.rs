//! What counts where formats leave room, and what is refused because readers would not agree.

use super::*;

#[test]
fn global_records_describe_no_entry() {
    let global = extension(b'g', b"52 comment=0123456789012345678901234567890123456789\n11 uid=555\n");
    let (entry, _) = read_one(&[&global, header("f", 0).as_bytes()]).unwrap();
    assert_eq!((entry.path.as_slice(), entry.uid), (b"f".as_slice(), 0), "as containerd has it");
    assert_eq!(entry.raw.len(), 3 * BLOCK, "but it is passed on");
    // An archive of nothing else, as git makes it of an empty tree.
    assert!(read_all(&global).unwrap().is_empty());

    let sized = extension(b'g', b"11 size=10\n");
    let error = refusal(&[&sized, header("f", 0).as_bytes()]);
    assert!(error.contains("a global header names or measures the entries behind it"), "{error}");
}

#[test]
fn what_readers_do_not_agree_on_is_refused() {
    let file = header("f", 0);
    let path = records(&[("path", b"a")]);
    let long = extension(b'L', b"b\0");
    let link = extension(b'K', b"c\0");
    let global = extension(b'g', b"13 comment=x\n");
    for (parts, problem) in [
        ([&path[..], &path, file.as_bytes()].concat(), "two PAX headers"),
        ([&long[..], &long, file.as_bytes()].concat(), "two GNU long names"),
        ([&link[..], &link, file.as_bytes()].concat(), "two GNU long link targets"),
        ([&path[..], &long, file.as_bytes()].concat(), "give different names"),
        ([&path[..], &global, file.as_bytes()].concat(), "a global header between"),
        ([file.as_bytes(), [0; BLOCK].as_slice(), file.as_bytes()].concat(), "end marker behind \"f\""),
    ] {
        let error = read_all(&parts).unwrap_err().to_string();
        assert!(error.contains(problem), "{problem}: {error}");
    }
    // Names that agree do no harm: some writers give both.
    let (entry, _) = read_one(&[&path, &extension(b'L', b"a\0"), file.as_bytes()]).unwrap();
    assert_eq!(entry.path, b"a");
    assert!(matches!(read_all(&path), Err(ArchiveError::Truncated(_))), "extensions of nothing");
}

#[test]
fn the_size_of_the_record_counts_and_only_for_files() {
    // The header's own size would hide the second file.
    let hidden = header("hidden", 0);
    let small = records(&[("size", b"0")]);
    let tar = [&small[..], header("f", 512).as_bytes(), hidden.as_bytes()].concat();
    let names: Vec<_> = read_all(&tar).unwrap().into_iter().map(|(entry, _)| entry.path).collect();
    assert_eq!(names, [b"f".to_vec(), b"hidden".to_vec()]);
    // And the other way round.
    let large = records(&[("size", b"512")]);
    let tar = [&large[..], header("f", 0).as_bytes(), hidden.as_bytes()].concat();
    let entries = read_all(&tar).unwrap();
    assert_eq!((entries.len(), entries[0].1.len()), (1, 512));
    // Links, directories and devices have no data, whatever is said of their size.
    for flag in *b"123456" {
        let mut sized = header("l", 4096);
        sized.set_entry_type(tar::EntryType::new(flag));
        sized.set_cksum();
        let entries = read_all(&[sized.as_bytes().as_slice(), hidden.as_bytes()].concat()).unwrap();
        assert_eq!((entries.len(), entries[0].0.size, entries[0].0.header_size), (2, 0, 4096));
    }
}

#[test]
fn types_that_layers_cannot_hold_are_refused_by_name() {
    for flag in *b"DMVNXAZ" {
        let mut odd = header("dir/odd", 0);
        odd.set_entry_type(tar::EntryType::new(flag));
        odd.set_cksum();
        let error = refusal(&[odd.as_bytes()]);
        let start = format!("tar entry \"dir/odd\" has type '{}'", char::from(flag));
        assert!(error.starts_with(&start) && error.ends_with("which layers cannot hold"), "{error}");
    }
}

#[test]
fn a_contiguous_file_becomes_a_regular_one() {
    let mut contiguous = header("f", 3);
    contiguous.set_entry_type(tar::EntryType::Continuous);
    contiguous.set_cksum();
    let extended = records(&[("uid", b"70000")]);
    let (entry, data) = read_one(&[&extended, contiguous.as_bytes(), b"abc"]).unwrap();
    assert_eq!((entry.kind, entry.rewritten, data.as_slice()), (EntryKind::Regular, true, b"abc".as_slice()));
    let (again, _) = read_one(&[&entry.raw, b"abc"]).unwrap();
    assert_eq!(again, Entry { rewritten: false, ..entry });
}

#[test]
fn an_entry_knows_where_its_headers_begin() {
    let parts = [
        [header("a", 3).as_bytes().as_slice(), b"abc", &[7; 509]].concat(),
        [&records(&[("path", b"b")]), header("b", 512).as_bytes().as_slice(), &[1; 512]].concat(),
        header("c", 0).as_bytes().to_vec(),
    ];
    let tar = parts.concat();
    let mut reader = Reader::new(tar.as_slice());
    let mut positions = Vec::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        positions.push(entry.position);
    }
    assert_eq!(positions, [0, 1024, 1024 + 2048]);
    // A reader that begins there reads the same.
    let mut again = Reader::new(&tar[1024..]);
    assert_eq!(again.next_entry().unwrap().unwrap().path, b"b");
}

#[test]
fn extensions_cost_no_more_memory_than_a_mebibyte_or_two() {
    let comment = format!("500 comment={}\n", "x".repeat(487));
    let endless = extension(b'g', comment.as_bytes()).repeat(3000);
    assert!(matches!(read_all(&endless), Err(ArchiveError::LongExtension(_))));
    let mut large = header("extension", (1 << 20) + 1);
    large.set_entry_type(tar::EntryType::XHeader);
    large.set_cksum();
    assert!(matches!(read_all(large.as_bytes()), Err(ArchiveError::LongExtension(_))));
}

#[test]
fn a_malformed_pax_header_is_never_skipped() {
    for bad in [b"9 path=ab\n".as_slice(), b"path=a\n", b"10 path=ab\n\n", b"11 size=-5\n"] {
        let error = refusal(&[&extension(b'x', bad), header("f", 0).as_bytes()]);
        assert!(error.starts_with("tar entry \"extension\": malformed PAX header: "), "{error}");
        let error = refusal(&[&extension(b'g', b"9 path=ab\n"), header("f", 0).as_bytes()]);
        assert!(error.starts_with("tar entry \"extension\": malformed PAX header: "), "{error}");
    }
}
