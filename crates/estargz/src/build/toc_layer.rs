//! The layer of a TOC image: a tar.gz of the one entry `stargz.index.json`.
//!
//! An image whose layers keep their TOCs elsewhere has a second image beside it, with one such layer for
//! each of its own.

use content::Digest;

use super::BuildError;
use super::buffer::Buffer;
use super::codec::Codec;
use super::finish::check_ratio;
use super::ustar::ustar_header;
use crate::TOC_NAME;
use crate::archive::{BLOCK, padding};

/// A layer that holds a TOC.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TocLayer {
    /// The compressed layer.
    pub bytes: Vec<u8>,
    /// sha256 of what it inflates to.
    pub diff_id: Digest,
}

/// Packs the TOC `json` as a layer, with gzip's level 1 to 12.
///
/// # Errors
/// [`BuildError::Output`] if the compressor fails, [`BuildError::Toc`] if readers would not take such a TOC.
pub fn toc_layer(json: &[u8], level: u8) -> Result<TocLayer, BuildError> {
    let tar = TocTar::around([[0; BLOCK].as_slice(), json].concat());
    let mut bytes = Buffer::default();
    Codec::Gzip { level: level.clamp(1, 12) }
        .compressor()
        .and_then(|mut compressor| compressor.compress(tar.bytes(), &mut bytes))
        .map_err(BuildError::Output)?;
    check_ratio(json, bytes.bytes())?;
    Ok(TocLayer { bytes: bytes.into_vec(), diff_id: Digest::of(tar.bytes()) })
}

/// A TOC between its tar header and the end of the tar: once in memory, whatever is done with it.
pub(super) struct TocTar {
    bytes: Vec<u8>,
    json_len: usize,
}

impl TocTar {
    /// Takes a TOC that has a block of room before it.
    pub(super) fn around(mut bytes: Vec<u8>) -> Self {
        let json_len = bytes.len().saturating_sub(BLOCK);
        let size = json_len as u64;
        if let Some(header) = bytes.first_chunk_mut::<BLOCK>() {
            *header = ustar_header(TOC_NAME, size);
        }
        let end = usize::try_from(padding(size)).unwrap_or(0) + 2 * BLOCK;
        bytes.resize(bytes.len() + end, 0);
        Self { bytes, json_len }
    }

    /// The whole tar.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The TOC.
    pub(super) fn json(&self) -> &[u8] {
        self.bytes.get(BLOCK..BLOCK + self.json_len).unwrap_or_default()
    }

    pub(super) fn into_json(mut self) -> Vec<u8> {
        self.bytes.truncate(BLOCK + self.json_len);
        self.bytes.drain(..BLOCK);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn the_layer_of_a_toc_is_a_tar_of_one_file() {
        let json = b"{\"version\":1}".repeat(100);
        let layer = toc_layer(&json, 9).unwrap();
        let mut tar = Vec::new();
        flate2::read::GzDecoder::new(layer.bytes.as_slice()).read_to_end(&mut tar).unwrap();
        assert_eq!(layer.diff_id, Digest::of(&tar));
        let mut archive = tar::Archive::new(tar.as_slice());
        let mut entries = archive.entries().unwrap();
        let mut entry = entries.next().unwrap().unwrap();
        assert_eq!(entry.path_bytes(), TOC_NAME.as_bytes());
        let mut found = Vec::new();
        entry.read_to_end(&mut found).unwrap();
        assert_eq!(found, json);
        assert!(entries.next().is_none());
    }
}
