//! Names, owners and times, in the fields of every dialect.

use super::*;

/// Puts `text` at `at` and makes the checksum right.
fn patched(header: &tar::Header, patches: &[(usize, &[u8])]) -> [u8; BLOCK] {
    let mut header = header.clone();
    for (at, text) in patches {
        header.as_mut_bytes()[*at..at + text.len()].copy_from_slice(text);
    }
    header.set_cksum();
    *header.as_bytes()
}

#[test]
fn a_v7_header_has_no_owner_names_and_marks_directories_by_a_slash() {
    let mut v7 = tar::Header::new_old();
    v7.set_path("dir/").unwrap();
    v7.set_mode(0o755);
    v7.set_uid(7);
    v7.set_gid(8);
    v7.set_mtime(9);
    v7.set_size(0);
    // Old tools left rubbish where later ones have names.
    let block = patched(&v7, &[(156, b"\0"), (265, b"rubbish"), (345, b"prefix")]);
    let (entry, _) = read_one(&[&block]).unwrap();
    assert_eq!((entry.kind, entry.path.as_slice()), (EntryKind::Directory, b"dir/".as_slice()));
    assert_eq!((entry.uid, entry.gid, entry.mtime, entry.user.as_slice()), (7, 8, 9, b"".as_slice()));
    // A slash makes no directory of what a later tool calls a file.
    let block = patched(&header("x", 0), &[(0, b"x/"), (156, b"0")]);
    assert_eq!(read_one(&[&block]).unwrap().0.kind, EntryKind::Regular);
}

#[test]
fn gnu_and_star_headers_have_times_where_ustar_has_a_prefix() {
    let mut gnu = tar::Header::new_gnu();
    gnu.set_path("f").unwrap();
    gnu.set_size(0);
    let block = patched(&gnu, &[(345, b"00000000017\0"), (357, &[0xff; 12])]);
    let (entry, _) = read_one(&[&block]).unwrap();
    assert_eq!(entry.path, b"f");
    assert_eq!(entry.atime, Some(Timestamp { seconds: 15, nanos: 0 }));
    assert_eq!(entry.ctime, Some(Timestamp { seconds: -1, nanos: 0 }));
    // Rubbish behind a number makes it no prefix.
    let block = patched(&gnu, &[(345, b"7\x009\x80")]);
    assert_eq!(read_one(&[&block]).unwrap().0.path, b"f");
    // Docker of 2015 put a prefix there.
    let block = patched(&gnu, &[(345, b"some/dir")]);
    let (entry, _) = read_one(&[&block]).unwrap();
    assert_eq!((entry.path.as_slice(), entry.atime), (b"some/dir/f".as_slice(), None));

    let block = patched(&header("f", 0), &[(345, b"p"), (476, b"00000000020\0"), (508, b"tar\0")]);
    let (entry, _) = read_one(&[&block]).unwrap();
    assert_eq!((entry.path.as_slice(), entry.atime.unwrap().seconds), (b"p/f".as_slice(), 16));
}

#[test]
fn times_before_1970_and_owners_beyond_octal_are_read() {
    let base256 = |number: i128, len: usize| {
        let mut bytes = number.to_be_bytes()[16 - len..].to_vec();
        bytes[0] = if number < 0 { 0xff } else { 0x80 };
        bytes
    };
    let fields = [(136, &base256(-86400, 12)[..]), (108, &base256(3_000_000, 8))];
    let (entry, _) = read_one(&[&patched(&header("f", 0), &fields)]).unwrap();
    assert_eq!((entry.mtime, entry.mtime_nanos, entry.uid), (-86400, 0, 3_000_000));

    let (entry, _) = read_one(&[&patched(&header("f", 0), &[(136, &base256(0, 12))])]).unwrap();
    assert_eq!(entry.mtime, 0);

    let fraction = records(&[("mtime", b"-1.25"), ("atime", b"5.5"), ("ctime", b"0")]);
    let (entry, _) = read_one(&[&fraction, header("f", 0).as_bytes()]).unwrap();
    assert_eq!((entry.mtime, entry.mtime_nanos), (-2, 750_000_000));
    assert_eq!(entry.atime, Some(Timestamp { seconds: 5, nanos: 500_000_000 }));
    assert_eq!(entry.ctime, Some(Timestamp::default()));
}

#[test]
fn every_number_is_one_also_where_none_is_asked_for() {
    for (at, field) in [(108, "uid"), (136, "mtime"), (329, "major number"), (337, "minor number")] {
        // Of the owner there is a record, and a file has no device numbers.
        let extended = records(&[("uid", b"5"), ("mtime", b"5")]);
        let error = refusal(&[&extended, &patched(&header("f", 0), &[(at, b"12x")])]);
        assert_eq!(error, format!("tar entry \"f\": {field} is not a number that fits"));
    }
    let negative = patched(&header("f", 0), &[(124, &[0xff; 12])]);
    let error = refusal(&[&records(&[("size", b"0")]), &negative]);
    assert!(error.contains("size is not a number"), "{error}");
}

#[test]
fn names_hold_anything_but_nul() {
    for name in ["new\nline", "back\\slash", "<>&\"'", "ü", "caf\u{301}"] {
        let path = records(&[("path", name.as_bytes())]);
        let (entry, _) = read_one(&[&path, header("f", 0).as_bytes()]).unwrap();
        assert_eq!(entry.path, name.as_bytes());
    }
    for len in [100, 101, 200, 255, 4000] {
        let name = vec![b'n'; len];
        let by_pax = records(&[("path", &name), ("linkpath", &name)]);
        let by_gnu = [extension(b'L', &[&name[..], b"\0"].concat()), extension(b'K', &name)].concat();
        for extensions in [by_pax, by_gnu] {
            let mut link = header("l", 0);
            link.set_entry_type(tar::EntryType::Symlink);
            link.set_cksum();
            let (entry, _) = read_one(&[&extensions, link.as_bytes()]).unwrap();
            assert_eq!((entry.path.len(), entry.link), (len, name.clone()));
        }
    }
}

#[test]
fn messages_show_names_that_are_no_text() {
    assert_eq!(display(b"caf\xe9"), "caf\\xe9");
    assert_eq!(display("ü\u{1b}[31m\n\"\\".as_bytes()), "ü\\u{1b}[31m\\n\\\"\\\\");
    assert_eq!(display(&[b'x'; 5000]).chars().count(), 200);
    assert_eq!(display(&[0xff; 5000]).chars().count(), 200);
    let odd = records(&[("path", b"caf\xe9"), ("GNU.sparse.major", b"9")]);
    let error = refusal(&[&odd, header("f", 0).as_bytes()]);
    assert!(error.starts_with("tar entry \"caf\\xe9\" is a sparse file that cannot be expanded"), "{error}");
}
