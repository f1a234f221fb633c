//! Tables of contents that lie about where the bytes of files are, how many, and whose.

use content::Digest;
use estargz::{Toc, TocError, TocLimits};
use serde_json::{Value, json};

use crate::make::{PAYLOAD_END, digest, dir, document, reg, with};

fn entries(entries: &[Value]) -> Result<(), TocError> {
    Toc::parse(&document(entries), PAYLOAD_END, &TocLimits::default()).map(drop)
}

fn file(changes: Value) -> Vec<Value> {
    vec![with(reg("f", 10, 100), changes)]
}

fn chunk(changes: Value) -> Value {
    with(json!({"name": "f", "type": "chunk", "offset": 200, "chunkDigest": digest()}), changes)
}

/// A file of 10 bytes whose first chunk has 4, and what follows.
fn chunks(rest: &[Value]) -> Vec<Value> {
    [&file(json!({"chunkSize": 4})), rest].concat()
}

/// `inner` bytes stand before the file's own in the member at 100.
fn shared(name: &str, inner: u64) -> Value {
    with(reg(name, 10, 100), json!({"innerOffset": inner}))
}

fn f(problem: &str) -> String {
    format!("table of contents, entry \"f\": {problem}")
}

const TILING: &str = "its chunks do not cover the file exactly";
const STRAY: &str = "a chunk does not follow its file";
const OUTSIDE: &str = "a chunk lies outside the payload";
const LARGE: &str = "a chunk is larger than the limit";
const NO_DIGEST: &str = "a chunk has no digest, so it could not be verified";
const DIFFER: &str = "the digest of the file contradicts that of its content";

refused! { entries;
    bytes_begin_in_the_table_itself: file(json!({"offset": PAYLOAD_END})) => &f(OUTSIDE);
    bytes_begin_beyond_the_blob: file(json!({"offset": i64::MAX})) => &f(OUTSIDE);
    bytes_begin_before_the_blob: file(json!({"offset": -1})) => &f("offset is out of range");
    bytes_begin_nowhere: file(json!({"offset": 0})) => &f(OUTSIDE);
    bytes_end_before_they_begin: file(json!({"endOffset": 100})) => &f(OUTSIDE);
    bytes_end_in_the_table: file(json!({"endOffset": PAYLOAD_END + 1})) => &f(OUTSIDE);
    bytes_end_before_the_blob: file(json!({"endOffset": -1})) => &f("endOffset is out of range");
    second_chunk_lies_behind_the_end_of_its_file: vec![
        with(reg("f", 10, 100), json!({"chunkSize": 4, "endOffset": 150})),
        chunk(json!({"chunkOffset": 4}))] => &f(OUTSIDE);
    size_is_8_exbibytes: file(json!({"size": i64::MAX})) => &f(LARGE);
    size_is_beyond_a_chunk: file(json!({"size": (256 << 20) + 1})) => &f(LARGE);
    /// Inflating the member up to there would cost more than any chunk may.
    inner_offset_is_beyond_a_chunk: file(json!({"innerOffset": (256 << 20) + 1})) => &f(LARGE);
    inner_offset_is_beyond_all: file(json!({"innerOffset": i64::MAX})) =>
        &f("innerOffset is out of range");
    inner_offset_is_negative: file(json!({"innerOffset": -1})) => &f("innerOffset is out of range");
    two_files_share_a_byte: vec![shared("e", 0), shared("f", 9)] =>
        &f("its bytes overlap those of another file");
    two_files_share_all_bytes: vec![shared("e", 0), shared("f", 0)] =>
        &f("its bytes overlap those of another file");
    /// The landmark is not shown, and its byte is nobody else's either.
    file_shares_the_landmarks_byte: vec![with(reg(".prefetch.landmark", 1, 100), json!({})), shared("f", 0)] =>
        &f("its bytes overlap those of another file");
    file_shares_a_replaced_files_bytes: vec![reg("f", 10, 100), with(reg("f", 10, 100), json!({"innerOffset": 5}))] =>
        &f("its bytes overlap those of another file");

    chunk_without_a_file: vec![chunk(json!({}))] => &f(STRAY);
    chunk_behind_a_directory: vec![dir("f"), chunk(json!({}))] => &f(STRAY);
    chunk_of_another_file: chunks(&[chunk(json!({"name": "g", "chunkOffset": 4}))]) =>
        "table of contents, entry \"g\": a chunk does not follow its file";
    chunk_of_a_file_above: chunks(&[chunk(json!({"name": "../f", "chunkOffset": 4}))]) =>
        "table of contents, entry \"../f\": the path has a .. part";
    chunks_are_interrupted: chunks(&[dir("d"), chunk(json!({"chunkOffset": 4}))]) => &f(TILING);
    chunks_are_missing: chunks(&[]) => &f(TILING);
    chunks_leave_a_gap: chunks(&[chunk(json!({"chunkOffset": 5}))]) => &f(TILING);
    chunks_overlap: chunks(&[chunk(json!({"chunkOffset": 3}))]) => &f(TILING);
    chunks_are_in_the_wrong_order: file(json!({"chunkOffset": 4, "chunkSize": 6})) => &f(TILING);
    chunks_are_fewer_than_the_file: chunks(&[chunk(json!({"chunkOffset": 4, "chunkSize": 5}))]) =>
        &f(TILING);
    chunks_are_more_than_the_file: chunks(&[chunk(json!({"chunkOffset": 4, "chunkSize": 7}))]) =>
        &f(TILING);
    chunk_behind_the_end_of_the_file:
        chunks(&[chunk(json!({"chunkOffset": 4})), chunk(json!({"chunkOffset": 10}))]) =>
        &f(TILING);
    chunk_of_an_empty_file: vec![json!({"name": "f", "type": "reg"}), chunk(json!({}))] => &f(TILING);
    chunk_size_is_negative: file(json!({"chunkSize": -1})) => &f("chunkSize is out of range");
    chunk_offset_is_negative: file(json!({"chunkOffset": -1})) => &f("chunkOffset is out of range");
    chunk_is_of_an_unknown_type: file(json!({"chunkType": "delta"})) =>
        &f("unknown type of chunk \"delta\"");

    digest_is_missing: file(json!({"chunkDigest": ""})) => &f(NO_DIGEST);
    digest_of_the_second_chunk_is_missing: chunks(&[chunk(json!({"chunkOffset": 4, "chunkDigest": ""}))]) =>
        &f(NO_DIGEST);
    /// The file's digest says nothing of one chunk of it.
    digest_of_the_file_alone: vec![
        with(reg("f", 10, 100), json!({"chunkSize": 4, "chunkDigest": "", "digest": digest()})),
        chunk(json!({"chunkOffset": 4}))] =>
        &f(NO_DIGEST);
    digest_is_md5: file(json!({"chunkDigest": "md5:d41d8cd98f00b204e9800998ecf8427e"})) =>
        "table of contents, entry \"f\": …";
    digest_is_short: file(json!({"chunkDigest": "sha256:00"})) => "table of contents, entry \"f\": …";
    digest_is_a_path: file(json!({"chunkDigest": "sha256:../../../../etc/passwd"})) =>
        "table of contents, entry \"f\": …";
    digests_of_file_and_only_chunk_differ: file(json!({"digest": Digest::of(b"other").to_string()})) =>
        &f(DIFFER);
    digest_of_an_empty_file_is_of_something:
        vec![json!({"name": "f", "type": "reg", "digest": Digest::of(b"x").to_string()})] =>
        &f(DIFFER);
}

/// What a reader must fetch for a chunk is bounded by the chunk, whatever the table says of the next one.
#[test]
fn small_files_do_not_make_a_reader_fetch_the_blob() {
    let json = document(&[reg("a", 1, 100), reg("b", 1, 1 << 40)]);
    let toc = Toc::parse(&json, 1 << 41, &TocLimits::default()).unwrap();
    assert!(toc.chunks().all(|chunk| chunk.blob.len() <= 100_000 && chunk.blob.end <= 1 << 41));
}

/// A file that is said to end late does not reach into the next one.
#[test]
fn extents_end_where_the_next_file_begins() {
    let json = document(&[with(reg("a", 10, 100), json!({"endOffset": 900})), reg("b", 10, 200)]);
    let toc = Toc::parse(&json, PAYLOAD_END, &TocLimits::default()).unwrap();
    assert_eq!(toc.chunk(0).unwrap().blob.end, 200);
}
