//! What stands behind the tar entries: TOC and footer, by format.

use std::io::{self, Write};

use content::Digest;

use super::buffer::Buffer;
use super::codec::Codec;
use super::index::StargzIndex;
use super::pipeline::Written;
use super::{BuildError, Built, BuiltToc, Format, Options, TocPlace};
use crate::decompress::Compression;
use crate::footer::{Footer, HiddenFrame, SKIPPABLE_HEADER, SKIPPABLE_MAGIC};
use crate::tail::json_limit;
use crate::toc::{Toc, TocError, TocLimits};

/// The kind of TOC that a zstd:chunked footer names: there is one.
const MANIFEST_TYPE: u64 = 1;

/// Ends a blob in stargz-snapshotter's formats.
pub(super) fn finish<W: Write>(
    written: Written<W, StargzIndex>,
    codec: Codec,
    options: &Options,
) -> Result<Built, BuildError> {
    let Written { mut out, index, mut diff } = written;
    let payload_end = out.position();
    let (entries, chunks) = (index.entries, index.chunks);
    let tar = index.finish();
    let json = tar.json();
    // By the very code that readers use: what was built can be mounted.
    let toc_digest = Toc::parse(json, payload_end, &TocLimits::default())?.digest();
    let mut compressed = Buffer::default();
    let mut compress = |data: &[u8]| {
        codec
            .compressor()
            .and_then(|mut compressor| compressor.compress(data, &mut compressed))
            .map_err(BuildError::Output)
    };
    let toc = match (options.format, options.toc) {
        (Format::Estargz, TocPlace::Inside) => {
            compress(tar.bytes())?;
            check_ratio(json, compressed.bytes())?;
            diff.update(tar.bytes());
            put(&mut out, &[compressed.bytes(), &Footer::Estargz { toc_offset: payload_end }.to_bytes()])?;
            BuiltToc::Inside
        }
        (Format::Estargz, TocPlace::External) => {
            put(&mut out, &[&Footer::External.to_bytes()])?;
            BuiltToc::External { json: tar.into_json() }
        }
        (Format::ZstdChunked | Format::ZstdChunkedPodman, _) => {
            compress(json)?;
            let manifest = compressed.bytes();
            check_ratio(json, manifest)?;
            let frame = HiddenFrame {
                offset: payload_end + SKIPPABLE_HEADER as u64,
                compressed_len: manifest.len() as u64,
                len: json.len() as u64,
            };
            skippable(&mut out, manifest)?;
            put(&mut out, &[&Footer::ZstdChunked(frame).to_bytes()])?;
            BuiltToc::Zstd {
                manifest_checksum: Digest::of(manifest),
                manifest_position: [frame.offset, frame.compressed_len, frame.len, MANIFEST_TYPE],
                tar_split_position: None,
                tar_split_checksum: None,
            }
        }
    };
    out.flush().map_err(BuildError::Output)?;
    let (digest, size) = out.finish();
    let (diff_id, uncompressed_size) = diff.finish();
    Ok(Built { digest, size, diff_id, toc_digest, uncompressed_size, entries, chunks, payload_end, toc })
}

/// Refuses a TOC that readers would take for a bomb.
pub(super) fn check_ratio(json: &[u8], compressed: &[u8]) -> Result<(), BuildError> {
    let limit = json_limit(compressed.len() as u64, Compression::sniff(compressed));
    if json.len() as u64 <= limit { Ok(()) } else { Err(TocError::TooLarge { what: "bytes", limit }.into()) }
}

/// Writes `frame` inside a frame that zstd skips.
pub(super) fn skippable(out: &mut impl Write, frame: &[u8]) -> Result<(), BuildError> {
    let len = u32::try_from(frame.len())
        .map_err(|_| BuildError::Output(io::Error::other("the table of contents is larger than 4 GiB")))?;
    put(out, &[&SKIPPABLE_MAGIC, &len.to_le_bytes(), frame])
}

pub(super) fn put(out: &mut impl Write, parts: &[&[u8]]) -> Result<(), BuildError> {
    parts.iter().try_for_each(|part| out.write_all(part)).map_err(BuildError::Output)
}
