//! Compressed bytes of a chunk that are not what they should be, or far too much of it.

use content::{ByteRange, Digest};
use estargz::{Chunk, ChunkError, NO_DIGEST, inflate_chunk};
use std::io::{Read as _, Write as _};

use crate::make::{self, gzip, skippable, zstd_with_window};
use crate::{CEILING, measured};

const OFFSET: u64 = 77;

fn chunk(len: u32, inner_offset: u32, digest: Digest) -> Chunk {
    Chunk { inode: 2, file_offset: 0, len, blob: ByteRange::new(OFFSET, OFFSET + 1), inner_offset, digest }
}

/// Takes the bytes for a chunk of "pantala".
fn pantala(compressed: &[u8]) -> Result<(), ChunkError> {
    inflate_chunk(compressed, &chunk(7, 0, Digest::of(b"pantala"))).map(drop)
}

/// Takes the bytes for the largest chunk that a table may name, at the end of as much before it.
fn huge(compressed: &[u8]) -> Result<(), ChunkError> {
    inflate_chunk(compressed, &chunk(256 << 20, 256 << 20, Digest::of(b"pantala"))).map(drop)
}

fn zstd(data: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(data, 3).unwrap()
}

fn lie(found: &[u8]) -> String {
    let (found, expected) = (Digest::of(found), Digest::of(b"pantala"));
    format!("the chunk at 77 has digest {found}, the table of contents says {expected}")
}

/// A frame header that claims `size` bytes of content in one segment, and a block of them that is cut off.
fn frame_claiming(size: u64) -> Vec<u8> {
    [b"\x28\xb5\x2f\xfd\xe0".as_slice(), &size.to_le_bytes(), b"\x05\0\0x"].concat()
}

/// The member's last four bytes claim another length.
fn gzip_claiming(size: u32) -> Vec<u8> {
    let mut member = gzip(b"pantala".as_slice());
    let at = member.len() - 4;
    member[at..].copy_from_slice(&size.to_le_bytes());
    member
}

refused! { pantala;
    no_bytes: Vec::new() => "inflating the chunk at 77: unexpected end of file";
    noise: b"neither gzip nor zstd".to_vec() => "inflating the chunk at 77: invalid gzip header";
    another_members_bytes: gzip(b"pantalo".as_slice()) => &lie(b"pantalo");
    another_frames_bytes: zstd(b"pantalo") => &lie(b"pantalo");
    gzip_is_too_short: gzip(b"panta".as_slice()) => "inflating the chunk at 77: unexpected end of file";
    zstd_is_too_short: zstd(b"panta") => "inflating the chunk at 77: unexpected end of file";
    gzip_is_cut: gzip(b"pantala".as_slice())[..12].to_vec() =>
        "inflating the chunk at 77: incomplete deflate stream";
    zstd_is_cut: zstd(b"pantala")[..10].to_vec() => "inflating the chunk at 77: incomplete frame";
    only_a_skippable_frame: skippable(b"pantala") => "inflating the chunk at 77: unexpected end of file";
    skippable_frame_without_end: b"\x50\x2a\x4d\x18\xff\xff\xff\xffpantala".to_vec() =>
        "inflating the chunk at 77: incomplete frame";
    legacy_zstd_frame: b"\x25\xb5\x2f\xfdpantala".to_vec() =>
        "inflating the chunk at 77: invalid gzip header";
    zstd_with_a_dictionary: b"\x28\xb5\x2f\xfd\x23\x01\0\0\0\x07\x39\0\0pantala".to_vec() =>
        "inflating the chunk at 77: Dictionary mismatch";
    /// 2 GiB of window for a chunk of 7 bytes.
    zstd_window_bomb: b"\x28\xb5\x2f\xfd\x00\xa8\x39\0\0pantala".to_vec() =>
        "inflating the chunk at 77: Frame requires too much memory for decoding";
    /// The largest window that a header can ask for: 3.75 TiB.
    zstd_largest_window_bomb: b"\x28\xb5\x2f\xfd\x00\xff\x39\0\0pantala".to_vec() =>
        "inflating the chunk at 77: Frame requires too much memory for decoding";
    zstd_claims_16_exbibytes: frame_claiming(u64::MAX - 2) =>
        "inflating the chunk at 77: Frame requires too much memory for decoding";
    gzip_bomb: make::gzip_bomb() => &lie(&[0; 7]);
    zstd_bomb: make::zstd_bomb() => &lie(&[0; 7]);
    /// Each inflates to a part of the next.
    nested_bomb: gzip(gzip(std::io::repeat(0).take(1 << 26)).as_slice()) =>
        "the chunk at 77 has digest sha256:…";
}

refused! { huge;
    gzip_of_nothing_claims_a_huge_chunk: gzip_claiming(512 << 20) =>
        "inflating the chunk at 77: corrupt gzip stream does not have a matching checksum";
    zstd_of_nothing_claims_a_huge_chunk: frame_claiming(512 << 20) =>
        "inflating the chunk at 77: Frame requires too much memory for decoding";
    huge_chunk_of_nothing: zstd(b"pantala") => "inflating the chunk at 77: unexpected end of file";
    inner_offset_beyond_the_member: gzip(std::io::repeat(0).take(40 << 20)) =>
        "inflating the chunk at 77: unexpected end of file";
    inner_offset_beyond_the_frame: zstd_with_window(20, 40 << 20) =>
        "inflating the chunk at 77: unexpected end of file";
}

#[test]
fn a_chunk_without_a_digest_is_not_given_out() {
    let error = inflate_chunk(&gzip(b"pantala".as_slice()), &chunk(7, 0, NO_DIGEST)).unwrap_err().to_string();
    assert_eq!(error, "the chunk at 77 has no digest in the table of contents, so it cannot be verified");
}

/// Small input, large chunk, all of it honest: it costs the chunk, and while it grows half as much again (the
/// counting allocator has the old and the new memory for as long as both are there).
#[test]
fn a_large_chunk_of_zeros_costs_what_it_holds() {
    let len = 16 << 20;
    let digest = Digest::of(&vec![0; len]);
    let wanted = chunk(u32::try_from(len).unwrap(), 0, digest);
    for (name, compressed) in
        [("gzip", gzip(std::io::repeat(0).take(1 << 26))), ("zstd", zstd_with_window(20, 1 << 26))]
    {
        let data = measured(CEILING, || compressed, |compressed| inflate_chunk(compressed, &wanted)).unwrap();
        assert_eq!(data.len(), len, "{name}");
    }
}

/// Whatever bit is flipped, and wherever the bytes are cut: the chunk itself, or an error.
#[test]
fn damaged_chunks_never_give_other_bytes() {
    let data: Vec<u8> = (0..400_u32).flat_map(|n| (n * n).to_le_bytes()).collect();
    let (before, rest) = data.split_at(100);
    let wanted = chunk(u32::try_from(rest.len() - 50).unwrap(), 100, Digest::of(&rest[..rest.len() - 50]));
    assert_eq!(before.len(), 100);
    // A frame with a check sum, which is wrong in some of them while the bytes are right.
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(&data).unwrap();
    let summed = encoder.finish().unwrap();
    for good in
        [gzip(data.as_slice()), zstd(&data), summed, [skippable(b"x"), zstd(before), zstd(rest)].concat()]
    {
        assert!(inflate_chunk(&good, &wanted).is_ok());
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            if let Ok(found) = inflate_chunk(&bad, &wanted) {
                assert_eq!(found, rest[..rest.len() - 50], "bit {bit}");
            }
        }
        for len in 0..good.len() {
            let _ = inflate_chunk(&good[..len], &wanted);
        }
    }
}
