//! Footers that point anywhere, tables that hide or that are no tables, bombs in their place.

use std::io::Read as _;

use content::Digest;
use estargz::footer::{Footer, HiddenFrame};
use estargz::{TailError, TailState, open_tail, read_toc_layer};

use crate::make::{JSON, blob, end, entry, gzip, header, octal, skippable, toc_member, zstd_blob, zstd_bomb};

fn open(bytes: &[u8]) -> Result<(), TailError> {
    open_tail(bytes, bytes.len() as u64).map(drop)
}

fn open_toc_layer(bytes: &[u8]) -> Result<(), TailError> {
    read_toc_layer(bytes).map(drop)
}

fn pointing_to(toc_offset: u64) -> Vec<u8> {
    [toc_member(JSON), Footer::Estargz { toc_offset }.to_bytes()].concat()
}

/// A TOC's member that holds this tar.
fn tar_toc(tar: &[u8]) -> Vec<u8> {
    blob(&[b"payload", &gzip(tar)], 1)
}

fn zstd_toc(change: impl FnOnce(&mut HiddenFrame)) -> Vec<u8> {
    zstd_blob(&zstd::encode_all(JSON, 3).unwrap(), JSON.len() as u64, change)
}

fn podman(manifest: HiddenFrame, tar_split: HiddenFrame, parts: &[&[u8]]) -> Vec<u8> {
    [parts.concat(), Footer::ZstdChunkedPodman { manifest, tar_split }.to_bytes()].concat()
}

fn toc_entry() -> Vec<u8> {
    entry("stargz.index.json", b'0', JSON)
}

fn between(len: usize) -> String {
    format!("{len} bytes that belong to nothing stand between the table of contents and the footer")
}

/// A frame of containers/storage at `offset`, made of `frame`.
fn at(offset: u64, frame: &[u8], len: u64) -> HiddenFrame {
    HiddenFrame { offset, compressed_len: frame.len() as u64, len }
}

refused! { open;
    no_bytes_at_all: Vec::new() => "a blob of 0 bytes is too short for an estargz footer";
    footer_points_beyond_the_blob: pointing_to(u64::MAX) =>
        "the footer says that the table of contents begins at 18446744073709551615…";
    footer_points_to_itself: pointing_to(toc_member(JSON).len() as u64) =>
        "the footer says that the table of contents begins at…";
    a_footer_is_all_there_is: Footer::Estargz { toc_offset: 0 }.to_bytes() =>
        "the footer says that the table of contents begins at 0, in a blob of 51 bytes";
    footer_points_to_noise: blob(&[b"payload", &[0x55; 3000]], 1) =>
        "reading the table of contents: reading the tar stream: …";
    footer_points_into_a_member: pointing_to(5) =>
        "reading the table of contents: reading the tar stream: …";
    /// Another reader, that looks for the last member, would find the second.
    two_tables_in_a_row: blob(&[b"payload", &toc_member(JSON), &toc_member(b"{}")], 1) =>
        &between(toc_member(b"{}").len());
    table_is_inside_the_payload: blob(&[b"payload", &toc_member(JSON), &gzip(b"file".as_slice())], 1) =>
        &between(gzip(b"file".as_slice()).len());
    noise_behind_the_table: blob(&[b"payload", &toc_member(JSON), b"noise"], 1) =>
        "5 bytes that belong to nothing stand between the table of contents and the footer";
    table_is_a_directory: tar_toc(&[header("stargz.index.json", b'5', b"0"), end()].concat()) =>
        "the table of contents is not alone in its place: found \"stargz.index.json\"";
    table_is_a_symbolic_link: tar_toc(&[header("stargz.index.json", b'2', b"0"), end()].concat()) =>
        "the table of contents is not alone in its place: found \"stargz.index.json\"";
    table_has_another_name: tar_toc(&entry("etc/passwd", b'0', JSON)) =>
        "the table of contents is not alone in its place: found \"etc/passwd\"";
    two_tables_in_one_member:
        tar_toc(&[entry("stargz.index.json", b'0', JSON), entry("stargz.index.json", b'0', JSON)].concat()) =>
        "the table of contents is not alone in its place: found \"stargz.index.json\"";
    table_is_an_empty_tar: tar_toc(&end()) =>
        "the table of contents is not alone in its place: found \"nothing\"";
    table_is_cut_short: tar_toc(&entry("stargz.index.json", b'0', &[b' '; 2000])[..1000]) =>
        "reading the table of contents: …";
    table_claims_8_exbibytes:
        tar_toc(&header("stargz.index.json", b'0', b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff")) =>
        "the table of contents is larger than the limit of 16777216 bytes";
    table_has_a_negative_size: tar_toc(&header("stargz.index.json", b'0', &[0xff; 12])) =>
        "reading the table of contents: tar entry \"stargz.index.json\": size is not a number that fits";
    /// 10⁸ entries of 26 bytes: the size alone says enough.
    table_of_a_hundred_million_entries: tar_toc(&header("stargz.index.json", b'0', &octal(2_600_000_000))) =>
        "the table of contents is larger than the limit of 16777216 bytes";
    gzip_bomb_as_a_table: tar_toc(&entry("stargz.index.json", b'0', &vec![b' '; 32 << 20])) =>
        "the table of contents is larger than the limit of …";
    gzip_bomb_behind_a_table: {
        let tar = entry("stargz.index.json", b'0', JSON);
        blob(&[b"payload", &gzip(tar.as_slice().chain(std::io::repeat(0).take(256 << 20)))], 1)
    } => "the table of contents is not alone in its place: found \"more behind its end\"";
    /// What a PAX header says of the table is bounded by itself.
    huge_extended_header_before_the_table:
        tar_toc(&[header("x", b'x', &octal(2 << 20)), vec![b' '; 2 << 20], toc_entry()].concat()) =>
        "reading the table of contents: tar entry \"x\": extended headers are larger than 1 MiB";

    zstd_footer_points_before_the_blob: zstd_toc(|frame| frame.offset = 7) =>
        "the footer says that the table of contents begins at 7, in a blob of…";
    zstd_footer_points_beyond_the_blob: zstd_toc(|frame| frame.offset = u64::MAX) =>
        "the footer says that the table of contents begins at 18446744073709551615, in a blob of…";
    zstd_table_reaches_into_the_footer: zstd_toc(|frame| frame.compressed_len += 1) =>
        "the footer says that the table of contents begins at 18, in a blob of…";
    zstd_table_of_16_exbibytes: zstd_toc(|frame| frame.compressed_len = u64::MAX) =>
        "the footer says that the table of contents begins at 18, in a blob of…";
    zstd_table_ends_before_the_footer: zstd_toc(|frame| frame.compressed_len -= 1) =>
        "1 bytes that belong to nothing stand between the table of contents and the footer";
    zstd_table_begins_inside_its_frame: zstd_toc(|frame| { frame.offset += 1; frame.compressed_len -= 1; }) =>
        "the footer names a table of contents at 11, where no skippable frame of its length begins";
    zstd_table_has_no_frame: zstd_blob(b"", 1, |_| ()) =>
        "inflating the table of contents: incomplete frame";
    zstd_table_is_empty: zstd_blob(&zstd::encode_all(b"".as_slice(), 3).unwrap(), 1, |_| ()) =>
        "the table of contents inflates to 0 bytes, the footer says 1";
    zstd_table_is_shorter_than_promised: zstd_toc(|frame| frame.len += 1) =>
        "the table of contents inflates to 26 bytes, the footer says 27";
    zstd_table_is_longer_than_promised: zstd_toc(|frame| frame.len = 3) =>
        "the table of contents inflates to 4 bytes, the footer says 3";
    zstd_table_promises_too_much: zstd_toc(|frame| frame.len = u64::MAX) =>
        "the table of contents is larger than the limit of 16777216 bytes";
    zstd_table_is_noise: zstd_blob(&[0x55; 100], 100, |_| ()) => "inflating the table of contents: …";
    zstd_bomb_as_a_table: zstd_blob(&zstd_bomb(), 1000, |_| ()) =>
        "the table of contents inflates to 1001 bytes, the footer says 1000";
    /// A window of 2 GiB for a table of a few bytes.
    zstd_window_bomb_as_a_table: zstd_blob(b"\x28\xb5\x2f\xfd\x00\xa8\x01\x00\x00", 26, |_| ()) =>
        "inflating the table of contents: Frame requires too much memory for decoding";
    zstd_footer_of_another_type: {
        let mut bytes = zstd_toc(|_| ());
        let type_at = bytes.len() - 16;
        bytes[type_at] = 9;
        bytes
    } => "the zstd:chunked footer names a table of contents of type 9, only 1 is known";
    podman_table_and_tar_split_overlap: {
        let frame = zstd::encode_all(JSON, 3).unwrap();
        let hidden = at(18, &frame, 26);
        podman(hidden, hidden, &[&[7; 10], &skippable(&frame)])
    } => "the footer says that the table of contents begins at 18, in a blob of…";
    podman_has_a_second_table_behind_the_first: {
        let (frame, other) = (zstd::encode_all(JSON, 3).unwrap(), skippable(b"other"));
        let split_at = 18 + frame.len() as u64 + other.len() as u64 + 8;
        let parts: [&[u8]; 4] = [&[7; 10], &skippable(&frame), &other, &skippable(b"split")];
        podman(at(18, &frame, 26), at(split_at, b"split", 9), &parts)
    } => "13 bytes that belong to nothing stand between the table of contents and the footer";
    podman_tar_split_lies_beyond_the_blob: {
        let frame = zstd::encode_all(JSON, 3).unwrap();
        podman(at(18, &frame, 26), at(u64::MAX, b"", 9), &[&[7; 10], &skippable(&frame)])
    } => "the footer says that the table of contents begins at 18446744073709551615, in a blob of…";
}

refused! { open_toc_layer;
    gzip_bomb_as_a_toc_layer: gzip(entry("stargz.index.json", b'0', &vec![b' '; 32 << 20]).as_slice()) =>
        "the table of contents is larger than the limit of …";
    zstd_window_bomb_as_a_toc_layer: b"\x28\xb5\x2f\xfd\x00\xa8\x01\x00\x00".to_vec() =>
        "reading the table of contents: reading the tar stream: Frame requires too much memory for decoding";
    image_of_another_kind_as_a_toc_layer: gzip([entry("etc/passwd", b'0', b"root"), end()].concat().as_slice()) =>
        "the table of contents is not alone in its place: found \"etc/passwd\"";
    json_without_a_tar_as_a_toc_layer: JSON.to_vec() =>
        "reading the table of contents: the tar stream ends…";
}

/// The blob's length comes from elsewhere: it may contradict what was read.
#[test]
fn the_tail_is_longer_than_the_blob() {
    let bytes = pointing_to(0);
    let error = open_tail(&bytes, 10).unwrap_err().to_string();
    assert_eq!(error, format!("a tail of {} bytes cannot belong to a blob of 10 bytes", bytes.len()));
}

/// A footer may ask for no more than the limit.
#[test]
fn the_table_begins_further_away_than_any_table_is_long() {
    let far = 1 << 40;
    for footer in [
        Footer::Estargz { toc_offset: 5 },
        Footer::ZstdChunked(HiddenFrame { offset: 8, compressed_len: far - 48 - 8, len: 1 << 30 }),
    ] {
        let error = open_tail(&footer.to_bytes(), far).unwrap_err().to_string();
        assert_eq!(error, "the table of contents is larger than the limit of 536870912 bytes");
    }
}

/// Every cut and every flipped bit of a blob's end has an answer. gzip has a check sum; where a zstd frame has
/// none, the digest in the manifest decides.
#[test]
fn damaged_ends_never_give_another_table() {
    let frame = zstd::encode_all(JSON, 3).unwrap();
    let split_at = 18 + frame.len() as u64 + 8;
    for good in [
        blob(&[b"payload", &toc_member(JSON)], 1),
        zstd_toc(|_| ()),
        podman(
            at(18, &frame, 26),
            at(split_at, b"split", 9),
            &[&[7; 10], &skippable(&frame), &skippable(b"split")],
        ),
    ] {
        assert!(matches!(open_tail(&good, good.len() as u64), Ok(TailState::Toc { .. })));
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            if let Ok(TailState::Toc { digest, .. }) = open_tail(&bad, bad.len() as u64) {
                assert!(digest == Digest::of(JSON) || good.starts_with(&[7; 10]), "bit {bit}");
            }
        }
        for len in 0..good.len() {
            let _ = open_tail(&good[..len], len as u64);
            let _ = open_tail(&good[good.len() - len..], good.len() as u64);
        }
    }
}
