//! From the compressed bytes of a chunk to its verified content.
//!
//! A chunk's extent begins with a gzip member or a zstd frame (their magic numbers tell) whose first inflated
//! bytes are the chunk; behind them come padding and tar headers that belong to nobody here. The one-shot
//! inflaters are the fastest but want to know the inflated size: a gzip member's trailer claims one, a zstd
//! frame's header may. If that claim is plausible it is tried; a streaming inflater, which can stop after the
//! last byte wanted, does the rest. No checksum is needed: the digest decides.

use std::io::Read;
use std::ops::Range;

use content::Digest;

use crate::decompress::{Compression, zstd_reader};
use crate::toc::{Chunk, NO_DIGEST};

/// How much more than the chunk a member may claim to hold before the streaming inflater is the better
/// choice: room for the padding and a good many tar headers.
const TRAILING_SLACK: u64 = 256 * 1024;

/// Memory is given at once for so many bytes, or for so many times the compressed bytes. Whatever claims to
/// be more is inflated as a stream, into memory that grows with what arrives.
const UNSUSPECTED: u64 = 8 << 20;
const UNSUSPECTED_RATIO: u64 = 256;

/// Why a chunk could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum ChunkError {
    /// The bytes are no gzip member or zstd frame, or it ends too early.
    #[error("inflating the chunk at {offset}: {source}")]
    Inflate {
        /// Offset of the chunk's member in the blob.
        offset: u64,
        /// What the inflater says.
        source: std::io::Error,
    },
    /// The bytes are not those that the TOC promises.
    #[error("the chunk at {offset} has digest {found}, the table of contents says {expected}")]
    Digest {
        /// Offset of the chunk's member in the blob.
        offset: u64,
        /// What the TOC says.
        expected: Digest,
        /// What the bytes have.
        found: Digest,
    },
    /// The table has no digest for it.
    #[error("the chunk at {offset} has no digest in the table of contents, so it cannot be verified")]
    Unverifiable {
        /// Offset of the chunk's member in the blob.
        offset: u64,
    },
}

/// Inflates `chunk` from `compressed`, the bytes of its extent [`Chunk::blob`], and checks its digest. A chunk
/// of zeros needs no bytes: that it is zeros is what the table says of it.
///
/// # Errors
/// [`ChunkError`]; nothing of a chunk that fails is given out.
pub fn inflate_chunk(compressed: &[u8], chunk: &Chunk) -> Result<Vec<u8>, ChunkError> {
    let mut data = Vec::new();
    let part = inflate_chunk_in(compressed, chunk, &mut data)?;
    data.truncate(part.end);
    data.drain(..part.start);
    Ok(data)
}

/// As [`inflate_chunk`], into `room`, which is made longer if need be and never shorter: what stands in it does not
/// matter. Returns where in `room` the chunk is.
///
/// # Errors
/// [`ChunkError`]; what is in `room` then is worth nothing.
pub fn inflate_chunk_in(
    compressed: &[u8],
    chunk: &Chunk,
    room: &mut Vec<u8>,
) -> Result<Range<usize>, ChunkError> {
    let offset = chunk.blob.start;
    let len = usize::try_from(chunk.len).unwrap_or(0);
    if chunk.is_zeros() {
        *room = vec![0; len];
        return Ok(0..len);
    }
    if chunk.digest == NO_DIGEST {
        return Err(ChunkError::Unverifiable { offset });
    }
    let kind = Compression::sniff(compressed);
    if let Some(part) = inflate_at_once(kind, compressed, chunk, room)
        && room.get(part.clone()).is_some_and(|data| Digest::of(data) == chunk.digest)
    {
        return Ok(part);
    }
    let data = match kind {
        Compression::Zstd => {
            zstd_reader(compressed).and_then(|reader| inflate_streaming(reader, compressed, chunk))
        }
        Compression::Gzip | Compression::None => {
            inflate_streaming(flate2::bufread::GzDecoder::new(compressed), compressed, chunk)
        }
    };
    let data = data.map_err(|source| ChunkError::Inflate { offset, source })?;
    let found = Digest::of(&data);
    if found != chunk.digest {
        return Err(ChunkError::Digest { offset, expected: chunk.digest, found });
    }
    *room = data;
    Ok(0..room.len())
}

/// Inflates with the size that the member claims. `None` if that does not work out.
fn inflate_at_once(
    kind: Compression,
    compressed: &[u8],
    chunk: &Chunk,
    room: &mut Vec<u8>,
) -> Option<Range<usize>> {
    let inner = u64::from(chunk.inner_offset);
    let wanted = inner + u64::from(chunk.len);
    let plausible = UNSUSPECTED.max((compressed.len() as u64).saturating_mul(UNSUSPECTED_RATIO));
    let is_plausible =
        |claimed: &u64| (wanted..=wanted + TRAILING_SLACK).contains(claimed) && *claimed <= plausible;
    let written = match kind {
        Compression::Gzip => {
            let claimed =
                Some(u64::from(u32::from_le_bytes(*compressed.last_chunk::<4>()?))).filter(is_plausible)?;
            libdeflater::Decompressor::new().gzip_decompress(compressed, room_for(room, claimed)?).ok()?
        }
        Compression::Zstd => {
            let claimed = zstd::zstd_safe::get_frame_content_size(compressed).ok()?.filter(is_plausible)?;
            let frame_len = zstd::zstd_safe::find_frame_compressed_size(compressed).ok()?;
            let frame = compressed.get(..frame_len)?;
            zstd::bulk::decompress_to_buffer(frame, room_for(room, claimed)?).ok()?
        }
        Compression::None => return None,
    };
    let wanted = usize::try_from(wanted).ok().filter(|wanted| written >= *wanted)?;
    Some(usize::try_from(inner).ok()?..wanted)
}

fn room_for(room: &mut Vec<u8>, claimed: u64) -> Option<&mut [u8]> {
    let claimed = usize::try_from(claimed).ok()?;
    if room.len() < claimed {
        room.resize(claimed, 0);
    }
    room.get_mut(..claimed)
}

fn inflate_streaming(mut inflater: impl Read, compressed: &[u8], chunk: &Chunk) -> std::io::Result<Vec<u8>> {
    let skipped =
        std::io::copy(&mut (&mut inflater).take(u64::from(chunk.inner_offset)), &mut std::io::sink())?;
    let len = usize::try_from(chunk.len).map_err(std::io::Error::other)?;
    // Grown as bytes arrive: a lying length costs no memory.
    let mut data = Vec::with_capacity(len.min(compressed.len().saturating_mul(8)));
    inflater.take(u64::from(chunk.len)).read_to_end(&mut data)?;
    if skipped != u64::from(chunk.inner_offset) || data.len() != len {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(data)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use content::ByteRange;

    use super::*;

    fn member(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn chunk(data: &[u8], inner_offset: u32) -> Chunk {
        Chunk {
            inode: 2,
            file_offset: 0,
            len: u32::try_from(data.len()).unwrap(),
            blob: ByteRange::new(100, 200),
            inner_offset,
            digest: Digest::of(data),
        }
    }

    #[test]
    fn a_chunk_is_found_wherever_it_stands_in_its_member() {
        let whole = member(b"pantala and what follows");
        assert_eq!(inflate_chunk(&whole, &chunk(b"pantala", 0)).unwrap(), b"pantala");
        assert_eq!(inflate_chunk(&whole, &chunk(b"what", 12)).unwrap(), b"what");
        assert_eq!(inflate_chunk(&whole, &chunk(b"follows", 17)).unwrap(), b"follows");
    }

    #[test]
    fn what_stands_behind_the_chunk_does_not_matter() {
        // Headers that fill a member of their own, and an extent that is cut off behind what is needed.
        let two = [member(b"pantala"), member(&vec![7; 1 << 20])].concat();
        assert_eq!(inflate_chunk(&two, &chunk(b"pantala", 0)).unwrap(), b"pantala");
        let noise: Vec<u8> =
            (0..200_000u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
        let long = member(&noise);
        let start = chunk(&noise[..1000], 0);
        assert_eq!(inflate_chunk(&long[..long.len() / 2], &start).unwrap(), &noise[..1000]);
    }

    #[test]
    fn a_chunk_is_found_in_frames_as_in_members() {
        let whole = b"pantala and what follows";
        // With a content size in the header, and as a stream writes it: without.
        let sized = zstd::bulk::compress(whole, 3).unwrap();
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
        encoder.write_all(whole).unwrap();
        let streamed = encoder.finish().unwrap();
        assert_eq!(zstd::zstd_safe::get_frame_content_size(&sized).unwrap(), Some(24));
        assert_eq!(zstd::zstd_safe::get_frame_content_size(&streamed).unwrap(), None);
        let skippable = b"\x50\x2a\x4d\x18\x02\0\0\0xy".as_slice();
        let several: Vec<u8> = whole
            .chunks(5)
            .flat_map(|part| [zstd::bulk::compress(part, 3).unwrap(), skippable.to_vec()].concat())
            .collect();
        for frames in [
            sized.clone(),
            streamed.clone(),
            several.clone(),
            [skippable, &sized].concat(),
            [sized.as_slice(), &[0x28, 0xb5, 0x2f]].concat(),
            [streamed.as_slice(), b"noise"].concat(),
        ] {
            for (data, inner) in [(b"pantala".as_slice(), 0), (b"what", 12), (b"follows", 17), (whole, 0)] {
                assert_eq!(inflate_chunk(&frames, &chunk(data, inner)).unwrap(), data, "{frames:?}");
            }
            assert!(matches!(inflate_chunk(&frames, &chunk(b"pantalo", 0)), Err(ChunkError::Digest { .. })));
            assert!(matches!(inflate_chunk(&frames, &chunk(&[0; 30], 0)), Err(ChunkError::Inflate { .. })));
        }
        let cut = &several[..several.len() / 2];
        assert_eq!(inflate_chunk(cut, &chunk(b"pantala", 0)).unwrap(), b"pantala");
        assert!(matches!(inflate_chunk(cut, &chunk(whole, 0)), Err(ChunkError::Inflate { .. })));
    }

    #[test]
    fn zeros_need_no_bytes_and_what_has_no_digest_is_not_given_out() {
        let zeros = Chunk { blob: ByteRange::new(7, 7), digest: NO_DIGEST, ..chunk(&[0; 1000], 0) };
        assert_eq!(inflate_chunk(b"", &zeros).unwrap(), [0; 1000]);
        let unverifiable = Chunk { digest: NO_DIGEST, ..chunk(b"pantala", 0) };
        assert!(matches!(
            inflate_chunk(&member(b"pantala"), &unverifiable),
            Err(ChunkError::Unverifiable { offset: 100 })
        ));
    }

    #[test]
    fn lies_are_found_out() {
        let good = member(b"pantala");
        assert!(matches!(inflate_chunk(&good, &chunk(b"pantalo", 0)), Err(ChunkError::Digest { .. })));
        assert!(matches!(
            inflate_chunk(&good, &chunk(b"pantala and more", 0)),
            Err(ChunkError::Inflate { .. })
        ));
        assert!(matches!(inflate_chunk(&good, &chunk(b"x", 99)), Err(ChunkError::Inflate { .. })));
        assert!(matches!(
            inflate_chunk(b"not gzip at all", &chunk(b"x", 0)),
            Err(ChunkError::Inflate { .. })
        ));
        assert!(matches!(inflate_chunk(b"", &chunk(b"x", 0)), Err(ChunkError::Inflate { .. })));
        // A trailer that claims what a chunk could have, and a length that nothing holds.
        let huge = Chunk { len: 256 << 20, ..chunk(b"", 0) };
        assert!(matches!(inflate_chunk(&good, &huge), Err(ChunkError::Inflate { .. })));
    }
}
