//! From the compressed bytes of a chunk to its verified content.
//!
//! A chunk's extent begins with a gzip member whose first inflated bytes are the chunk; behind them come
//! padding and tar headers that belong to nobody here. libdeflate is the fastest inflater but wants to know
//! the inflated size; the member's trailer claims one. If that claim is plausible it is tried; a streaming
//! inflater, which can stop after the last byte wanted, does the rest. No CRC is needed: the digest decides.

use std::io::Read;

use content::Digest;

use crate::toc::Chunk;

/// How much more than the chunk a member may claim to hold before the streaming inflater is the better
/// choice: room for the padding and a good many tar headers.
const TRAILING_SLACK: u64 = 256 * 1024;

/// Why a chunk could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum ChunkError {
    /// The bytes are no gzip member, or it ends too early.
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
}

/// Inflates `chunk` from `compressed`, the bytes of its extent [`Chunk::blob`], and checks its digest.
///
/// # Errors
/// [`ChunkError`]; nothing of a chunk that fails is given out.
pub fn inflate_chunk(compressed: &[u8], chunk: &Chunk) -> Result<Vec<u8>, ChunkError> {
    if let Some(data) = inflate_at_once(compressed, chunk)
        && Digest::of(&data) == chunk.digest
    {
        return Ok(data);
    }
    let data = inflate_streaming(compressed, chunk)
        .map_err(|source| ChunkError::Inflate { offset: chunk.blob.start, source })?;
    let found = Digest::of(&data);
    if found != chunk.digest {
        return Err(ChunkError::Digest { offset: chunk.blob.start, expected: chunk.digest, found });
    }
    Ok(data)
}

/// Inflates with the size that the last four bytes claim. `None` if that does not work out.
fn inflate_at_once(compressed: &[u8], chunk: &Chunk) -> Option<Vec<u8>> {
    let claimed = u64::from(u32::from_le_bytes(*compressed.last_chunk::<4>()?));
    let inner = u64::from(chunk.inner_offset);
    let wanted = inner + u64::from(chunk.len);
    if claimed < wanted || claimed > wanted + TRAILING_SLACK {
        return None;
    }
    let mut data = vec![0; usize::try_from(claimed).ok()?];
    let written = libdeflater::Decompressor::new().gzip_decompress(compressed, &mut data).ok()?;
    let wanted = usize::try_from(wanted).ok()?;
    if written < wanted {
        return None;
    }
    data.truncate(wanted);
    data.drain(..usize::try_from(inner).ok()?);
    Some(data)
}

fn inflate_streaming(compressed: &[u8], chunk: &Chunk) -> std::io::Result<Vec<u8>> {
    let mut inflater = flate2::bufread::GzDecoder::new(compressed);
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
