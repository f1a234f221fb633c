//! Entries that agree one by one, and make two trees.

use super::*;

/// TOC and tar agree, and yet a mount shows other privileges than an unpacked layer has.
#[test]
fn a_hard_link_gives_no_privileges() {
    let lie_of = |own: u32, link: u32, uid: u64, capability: &[u8]| {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_mode(own);
        header.set_uid(1000);
        header.set_size(2);
        tar.append_data(&mut header, "sh", b"sh".as_slice()).unwrap();
        if !capability.is_empty() {
            tar.append_pax_extensions([("SCHILY.xattr.security.capability", capability)]).unwrap();
        }
        header.set_entry_type(tar::EntryType::Link);
        header.set_mode(link);
        header.set_uid(uid);
        header.set_size(0);
        tar.append_link(&mut header, "root-sh", "sh").unwrap();
        let blob = built(&tar.into_inner().unwrap(), &Options::default()).0;
        run(&blob, &Claims::default(), None).lie.map(|lie| lie.to_string())
    };
    assert_eq!(lie_of(0o644, 0o755, 0, b""), None, "that bits differ otherwise happens");
    assert_eq!(lie_of(0o4755, 0o4755, 1000, b""), None);
    for (lie, what) in [
        (lie_of(0o755, 0o4755, 1000, b""), "set-id bits"),
        (lie_of(0o4755, 0o4755, 0, b""), "owners, and it has set-id bits,"),
        (lie_of(0o755, 0o755, 1000, b"all"), "capabilities"),
    ] {
        assert_eq!(lie.unwrap(), format!("\"root-sh\" is a hard link to \"sh\": their {what} differ"));
    }
}

/// The same entries, and another tree: the link is a name of whichever "a" came before it.
#[test]
fn the_order_of_entries_counts() {
    use tar::EntryType::{Link, Regular};
    let mut tar = tar::Builder::new(Vec::new());
    append(&mut tar, "a", Regular, "", b"one");
    append(&mut tar, "l", Link, "a", b"");
    append(&mut tar, "b", Regular, "", b"two");
    let (payload, mut toc) = open_blob(&built(&tar.into_inner().unwrap(), &Options::default()).0);
    let mut tar = gunzip(&payload);
    // The second file becomes another "a".
    let at = tar.chunks(512).position(|block| block[..2] == *b"b\0").unwrap() * 512;
    let mut header = tar::Header::from_byte_slice(&tar[at..at + 512]).clone();
    header.set_path("a").unwrap();
    header.set_cksum();
    tar[at..at + 512].copy_from_slice(header.as_bytes());
    // One member for each header and each content.
    let mut payload = Vec::new();
    let mut offsets = Vec::new();
    for block in tar.chunks(512) {
        offsets.push(payload.len());
        payload.extend(gzip(block));
    }
    let entries = toc["entries"].as_array_mut().unwrap();
    // Landmark, its content, "a", its content, the link, "a", its content.
    for (entry, block) in [(0, 1), (1, 3), (3, 6)] {
        entries[entry]["offset"] = json!(offsets[block]);
    }
    entries[3]["name"] = json!("a");
    let honest = close_blob(payload.clone(), &toc);
    let error = lie(&honest).0;
    assert!(error.contains("does not come before it"), "a link to what is replaced is refused: {error}");
    let entries = toc["entries"].as_array_mut().unwrap();
    entries.swap(2, 3);
    let blob = close_blob(payload, &toc);
    assert_eq!(lie(&blob).0, "the tar goes on with \"l\", the table of contents with \"a\"");
}
