//! Tables in the schema of containers/storage: chunks of one file as rows of their own, holes without bytes,
//! the end of a file's last frame.

use super::*;

fn piece(name: &str, at: u64, len: u64, offset: u64) -> Value {
    json!({"type": "chunk", "name": name, "chunkOffset": at, "chunkSize": len, "offset": offset,
           "chunkDigest": Digest::of(&at.to_le_bytes()).to_string()})
}

/// A file of three chunks whose second is a hole, and one of a single chunk.
fn table() -> Vec<Value> {
    let whole = Digest::of(b"whole").to_string();
    vec![
        json!({"type": "dir", "name": "d", "mode": 0o755, "modtime": "2024-01-02T03:04:05.678Z",
               "accesstime": "2024-01-02T03:04:05Z", "changetime": "2024-01-02T03:04:05Z"}),
        json!({"type": "reg", "name": "d/f", "size": 3000, "digest": whole, "offset": 100, "endOffset": 400,
               "chunkSize": 1000, "chunkDigest": digest()}),
        with(piece("d/f", 1000, 1500, 200), &json!({"chunkType": "zeros"})),
        with(piece("d/f", 2500, 500, 300), &json!({"chunkType": "data"})),
        json!({"type": "reg", "name": "g", "size": 7, "digest": digest(), "offset": 500, "endOffset": 600}),
        json!({"type": "reg", "name": "empty"}),
    ]
}

#[test]
fn holes_take_no_bytes_and_frames_end_where_the_table_says() {
    let toc = parse(&table()).unwrap();
    let chunks: Vec<Chunk> = toc.chunks().collect();
    let found: Vec<_> = chunks.iter().map(|chunk| (chunk.file_offset, chunk.len, chunk.blob)).collect();
    assert_eq!(
        found,
        [
            (0, 1000, ByteRange::new(100, 200)),
            (1000, 1500, ByteRange::new(200, 200)),
            (2500, 500, ByteRange::new(300, 400)),
            (0, 7, ByteRange::new(500, 600)),
        ]
    );
    assert_eq!(chunks.iter().map(Chunk::is_zeros).collect::<Vec<_>>(), [false, true, false, false]);
    assert_eq!(crate::inflate_chunk(b"", &chunks[1]).unwrap(), [0; 1500]);
    let directory = toc.inode(toc.find(b"d").unwrap()).unwrap();
    assert_eq!(
        (directory.mtime(), directory.mtime_nanos()),
        (1_704_164_645, 678_000_000),
        "as the table has it"
    );
}

#[test]
fn the_digest_of_a_file_is_known_wherever_it_stands() {
    let toc = parse(&table()).unwrap();
    let digest_of = |path: &str| toc.inode(toc.find(path.as_bytes()).unwrap()).unwrap().digest();
    assert_eq!(digest_of("d/f"), Some(Digest::of(b"whole")));
    assert_eq!(digest_of("g"), Some(Digest::of(b"")), "that of its only chunk");
    assert_eq!(digest_of("empty"), Some(Digest::of(b"")));
    assert_eq!(digest_of("d"), None);
    let chunk = json!({"type": "chunk", "chunkOffset": 4, "offset": 200, "chunkDigest": digest()});
    let toc = parse(&[with(reg("f", 10, 100), &json!({"chunkSize": 4})), chunk]).unwrap();
    assert_eq!(toc.inode(toc.find(b"f").unwrap()).unwrap().digest(), None, "two chunks, and nobody says");
}

#[test]
fn a_file_that_is_one_hole_needs_no_offset_and_no_digest() {
    let hole = |changes: Value| {
        with(json!({"type": "reg", "name": "hole", "size": 5000, "chunkType": "zeros"}), &changes)
    };
    let toc = parse(&[hole(json!({}))]).unwrap();
    let chunk = toc.chunk(0).unwrap();
    assert_eq!((chunk.len, chunk.is_zeros(), chunk.digest), (5000, true, NO_DIGEST));
    assert_eq!(toc.inode(toc.find(b"hole").unwrap()).unwrap().digest(), None);
    let zeros = Digest::of(&[0; 5000]);
    let toc = parse(&[hole(json!({"digest": zeros.to_string()}))]).unwrap();
    assert_eq!(toc.inode(toc.find(b"hole").unwrap()).unwrap().digest(), Some(zeros));
    assert_eq!(problem_of(&[hole(json!({"offset": PAYLOAD_END}))]), EntryProblem::OutsidePayload);
}

#[test]
fn a_hole_of_any_size_is_cut_into_chunks_that_are_not_too_large() {
    let limits = TocLimits { chunk_bytes: 4096, entries: 20, ..TocLimits::default() };
    let hole = |size: u64| json!({"type": "reg", "name": "hole", "size": size, "chunkType": "zeros"});
    let toc = parse_with(&[hole(10_000), reg("f", 3, 10)], &limits).unwrap();
    let lens: Vec<_> = toc.chunks().map(|chunk| (chunk.file_offset, chunk.len, chunk.is_zeros())).collect();
    assert_eq!(lens, [(0, 4096, true), (4096, 4096, true), (8192, 1808, true), (0, 3, false)]);
    // As many as the limit on entries allows, and then no more.
    let error = parse_with(&[hole(1 << 62)], &limits).unwrap_err();
    assert!(matches!(error, TocError::TooLarge { what: "entries", limit: 20 }), "{error}");
}

#[test]
fn ends_and_types_that_cannot_be_are_refused() {
    let file = |changes: Value| vec![with(reg("f", 10, 100), &changes)];
    for (entries, problem) in [
        (file(json!({"endOffset": 100})), EntryProblem::OutsidePayload),
        (file(json!({"endOffset": 99})), EntryProblem::OutsidePayload),
        (file(json!({"endOffset": PAYLOAD_END + 1})), EntryProblem::OutsidePayload),
        (file(json!({"endOffset": -1})), EntryProblem::Range("endOffset")),
        (file(json!({"chunkType": "holes"})), EntryProblem::ChunkType("holes".into())),
        (
            file(json!({"digest": Digest::of(b"other").to_string(), "chunkDigest": digest()})),
            EntryProblem::DigestsDiffer,
        ),
        (
            vec![json!({"name": "e", "type": "reg", "digest": Digest::of(b"x").to_string()})],
            EntryProblem::DigestsDiffer,
        ),
        // The second chunk lies behind the end of the first one's file.
        (
            vec![
                with(reg("f", 10, 100), &json!({"chunkSize": 4, "endOffset": 150})),
                json!({"type": "chunk", "chunkOffset": 4, "offset": 200, "chunkDigest": digest()}),
            ],
            EntryProblem::OutsidePayload,
        ),
    ] {
        assert_eq!(problem_of(&entries), problem, "{entries:?}");
    }
    assert!(parse(&file(json!({"endOffset": PAYLOAD_END}))).is_ok());
}
