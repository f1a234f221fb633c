//! Names, entries, and what is shared.

use super::*;

#[test]
fn names_are_split_at_the_prefixes_that_the_kernel_knows() {
    let cases: &[(&[u8], u8, &[u8])] = &[
        (b"user.a", 1, b"a"),
        (b"user.overlay.opaque", 1, b"overlay.opaque"),
        (b"trusted.overlay.opaque", 4, b"overlay.opaque"),
        (b"security.capability", 6, b"capability"),
        (b"system.posix_acl_access", 2, b""),
        (b"system.posix_acl_default", 3, b""),
    ];
    for (name, prefix, suffix) in cases {
        let xattr = Xattr::new(name, b"v").unwrap();
        assert_eq!((xattr.prefix, xattr.suffix), (*prefix, *suffix));
        assert_eq!(xattr.name(), *name);
    }
}

#[test]
fn what_linux_could_not_read_is_refused() {
    let long = [b"user.".as_slice(), &[b'x'; 250]].concat();
    assert!(Xattr::new(&long, b"").is_ok());
    let longer = [b"user.".as_slice(), &[b'x'; 251]].concat();
    assert_eq!(Xattr::new(&longer, b""), Err(XattrProblem::NameTooLong));
    for name in [&b"user."[..], b"trusted.", b"user.a\0b", b"system.posix_acl_access.x"] {
        assert_eq!(Xattr::new(name, b""), Err(XattrProblem::Name));
    }
    for name in [&b""[..], b"user", b"system.nfs4_acl", b"btrfs.compression", b"User.a"] {
        assert_eq!(Xattr::new(name, b""), Err(XattrProblem::Prefix));
    }
    assert!(Xattr::new(b"user.a", &vec![0; 65_535]).is_ok());
    assert_eq!(Xattr::new(b"user.a", &vec![0; 65_536]), Err(XattrProblem::ValueTooLong));
}

#[test]
fn an_inode_has_each_name_once_and_no_more_than_can_be_listed() {
    let mut found = Vec::new();
    let twice = [(&b"user.b"[..], &b"1"[..]), (b"user.a", b"2"), (b"user.b", b"3")];
    let problem = Problem::Xattr { name: "user.b".into(), problem: XattrProblem::Twice };
    assert_eq!(collect(twice.into_iter(), &mut found), Err(problem));
    assert_eq!(collect(twice.into_iter().skip(1), &mut found), Ok(()));
    assert_eq!(found.iter().map(Xattr::name).collect::<Vec<_>>(), [b"user.a", b"user.b"]);

    // Names of 15 bytes and a NUL: 4096 of them can be listed.
    let names: Vec<_> = (0..4097).map(|n| format!("user.{n:010}").into_bytes()).collect();
    let all = || names.iter().map(|name| (name.as_slice(), &b""[..]));
    assert_eq!(collect(all().take(4096), &mut found), Ok(()));
    assert_eq!(collect(all(), &mut found), Err(Problem::XattrListTooLong(65_552)));
}

#[test]
fn an_entry_is_padded() {
    let mut out = Vec::new();
    Xattr::new(b"user.abc", b"de").unwrap().encode(&mut out);
    assert_eq!(out, *b"\x03\x01\x02\x00abcde\0\0\0");
    assert_eq!(Xattr::new(b"user.abcd", b"").unwrap().encoded_len(), 8);
}

#[test]
fn bodies_are_counted_in_units_after_the_header() {
    assert_eq!(units(0), Some(0));
    assert_eq!(units(20), Some(3));
    assert_eq!(units(262_148), Some(65_535));
    assert_eq!(units(262_152), None);
    for units in [0, 3, 65_535] {
        assert_eq!(super::units(body_len(units)), Some(units));
    }
}

#[test]
fn what_saves_room_is_shared() {
    let label = Xattr::new(b"security.selinux", b"system_u:object_r:lib_t:s0").unwrap();
    let alone = Xattr::new(b"user.alone", b"1").unwrap();
    // 8 bytes: two of them take as much room shared as not.
    let tiny = Xattr::new(b"user.a", b"123").unwrap();
    let mut pool = Pool::default();
    pool.count(&[label, alone, tiny]);
    pool.count(&[label, tiny]);
    pool.settle();
    let mut area = Vec::new();
    pool.encode(&mut area);
    assert_eq!(pool.len(), label.encoded_len() as u64);
    assert_eq!(area.len(), label.encoded_len());

    let mut body = Vec::new();
    pool.encode_body(&[label, tiny], &mut body);
    assert_eq!(body, *b"\0\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\x01\x01\x03\0a123");
    assert_eq!(pool.body_len(&[label, tiny]), body.len() as u64);

    // The third makes it worth while.
    let mut pool = Pool::default();
    for _ in 0..3 {
        pool.count(&[tiny]);
    }
    pool.settle();
    assert_eq!(pool.len(), 8);
}

#[test]
fn an_inode_shares_no_more_than_it_can_count() {
    let names: Vec<_> = (0..256).map(|n| format!("user.some-name-{n}").into_bytes()).collect();
    let xattrs: Vec<_> = names.iter().map(|name| Xattr::new(name, b"value").unwrap()).collect();
    let body = |xattrs: &[Xattr<'_>]| {
        let mut pool = Pool::default();
        pool.count(xattrs);
        pool.count(xattrs);
        pool.settle();
        let mut body = Vec::new();
        pool.encode_body(xattrs, &mut body);
        (body[4], body.len(), pool.len())
    };
    let len = |xattrs: &[Xattr<'_>]| xattrs.iter().map(Xattr::encoded_len).sum::<usize>();
    assert_eq!(body(&xattrs[..255]), (255, 12 + 4 * 255, len(&xattrs[..255]) as u64));
    // Else some would stand in the shared area that nobody has there.
    assert_eq!(body(&xattrs), (0, 12 + len(&xattrs), 0));
}
