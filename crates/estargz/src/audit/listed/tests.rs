use super::*;

#[test]
fn entries_stand_as_they_were_written() {
    let digest = Digest::of(b"x");
    let json = format!(
        r#"{{"version":1,"x":[1],"entries":[
          {{"name":"./","type":"dir","mode":493,"userName":"root"}},
          {{"name":"./a","type":"reg","size":9,"mode":33188,"offset":77,"chunkSize":4,"digest":"{digest}",
            "chunkDigest":"{digest}","xattrs":{{"user.x":"AQI=","trusted.overlay.opaque":"eQ=="}}}},
          {{"name":"a","type":"chunk","offset":99,"chunkOffset":4,"chunkType":"zeros"}},
          {{"name":"a","type":"reg","modtime":"1970-01-01T00:00:09Z"}},
          {{"name":"b","type":"hardlink","linkName":"/a","uid":5}}]}}"#
    );
    let listing = list_toc(json.as_bytes()).unwrap();
    let [root, file, twin, link] = listing.entries.as_slice() else { panic!("{listing:?}") };
    assert_eq!((root.path.as_slice(), root.mode), (b"".as_slice(), 0o755));
    assert_eq!((file.mode, file.pieces.len(), file.digest), (0o644, 2, Some(digest)));
    assert_eq!((file.pieces[1].file_offset, file.pieces[1].len, file.pieces[1].zeros), (4, 5, true));
    assert_eq!(file.xattrs.len(), 1, "an image does not steer the overlay");
    assert_eq!((twin.mtime, twin.content_digest()), (9, Some(Digest::of(b""))));
    assert_eq!((link.kind, link.link.as_slice()), (EntryKind::Hardlink, b"a".as_slice()));
    assert_eq!(listing.users[&0], "root");
}

#[test]
fn what_cannot_be_is_named() {
    for (entry, expected) in [
        (r#"{"name":"../x","type":"reg"}"#, "entry \"../x\": the path has a .. part"),
        (r#"{"name":"x","type":"door"}"#, "entry \"x\": unknown type \"door\""),
        (r#"{"name":"x","type":"chunk"}"#, "entry \"x\": a chunk does not follow its file"),
        (r#"{"name":"x","type":"reg","uid":-1}"#, "entry \"x\": uid is out of range"),
    ] {
        let json = format!(r#"{{"version":1,"entries":[{entry}]}}"#);
        assert_eq!(list_toc(json.as_bytes()).unwrap_err().to_string(), expected);
    }
    assert!(list_toc(b"{\"entries\":3}").is_err());
    assert_eq!(list_toc(b"{\"entries\":null}").unwrap(), Listing::default());
}
