//! Compressed bytes of a chunk, gzip or zstd: what is given out is what a plain decoder finds there. Only
//! where something is wrong behind the chunk (a check sum, say) may it be refused all the same.
//!
//! Input: length of the chunk and bytes before it (two little-endian 16-bit numbers), then the extent.
#![no_main]

use std::io::Read;

use content::{ByteRange, Digest};
use estargz::{Chunk, Compression, inflate_chunk};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((numbers, extent)) = input.split_at_checked(4) else { return };
    let number = |at: usize| u16::from_le_bytes([numbers[at], numbers[at + 1]]);
    let (len, inner_offset) = (u32::from(number(0)), u32::from(number(2)));
    let chunk =
        |digest| Chunk { inode: 2, file_offset: 0, len, blob: ByteRange::at(9, 1), inner_offset, digest };
    let wanted = u64::from(len) + u64::from(inner_offset);
    let plain = first(extent, wanted);
    let is_sound = plain.is_ok() && first(extent, u64::MAX).is_ok();
    match plain.map(|data| data.get(inner_offset as usize..wanted as usize).map(<[u8]>::to_vec)) {
        Ok(Some(data)) => {
            match inflate_chunk(extent, &chunk(Digest::of(&data))) {
                Ok(found) => assert_eq!(found, data),
                Err(error) => assert!(!is_sound, "{error}"),
            }
            let other = b"something else";
            assert!(data == other || inflate_chunk(extent, &chunk(Digest::of(other))).is_err());
        }
        _ => assert!(len == 0 || inflate_chunk(extent, &chunk(Digest::of(b""))).is_err()),
    }
});

/// The first `len` bytes of what a member, or frames, inflate to.
fn first(extent: &[u8], len: u64) -> std::io::Result<Vec<u8>> {
    let mut data = Vec::new();
    // Bombs end somewhere.
    let len = len.min(1 << 20);
    match Compression::sniff(extent) {
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(extent)?;
            decoder.window_log_max(27)?;
            decoder.take(len).read_to_end(&mut data)?;
        }
        Compression::Gzip | Compression::None => {
            flate2::bufread::GzDecoder::new(extent).take(len).read_to_end(&mut data)?;
        }
    }
    Ok(data)
}
