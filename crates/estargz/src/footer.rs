//! The last bytes of a blob: they say where its table of contents is.
//!
//! There are five footers. Those of gzip blobs are empty gzip members whose extra field speaks:
//!
//! ```text
//! 1f 8b 08 04 00000000 00 ff   gzip header with FEXTRA
//! 1a 00                        26 bytes of extra field
//! 53 47 16 00                  subfield "SG" of 22 bytes
//! 16 hex digits, "STARGZ"      offset of the member that holds the TOC
//! 01 00 00 ff ff               an empty stored block
//! 00000000 00000000            CRC32 and length of nothing
//! ```
//!
//! Legacy stargz (CRFS) has the 22 bytes without the subfield's header, and a blob whose TOC is kept in
//! another image has the words `STARGZEXTERNALTOC` in their place. Blobs of zstd:chunked end in a skippable
//! frame of little-endian numbers and a magic number, in one of two dialects: that of stargz-snapshotter
//! (40 bytes), and that of containers/storage (64 bytes), which also places a tar-split frame.
//!
//! ```text
//! 50 2a 4d 18  u32 length               header of the skippable frame
//! u64 offset, compressed length, length of the TOC's frame     u64 1, the type
//! u64 offset, compressed length, length of the tar-split frame (containers/storage alone)
//! "GnUlInUx" or "GNUlInUx"
//! ```

/// Length of an eStargz footer in bytes.
pub const LEN: usize = 51;

/// Length of a legacy stargz (CRFS) footer in bytes: no `SG` header around the offset.
pub const LEGACY_LEN: usize = 47;

/// Length in bytes of the footer of a blob whose TOC is kept elsewhere.
pub const EXTERNAL_LEN: usize = 46;

/// Length in bytes of what stargz-snapshotter's zstd:chunked has in its last skippable frame.
pub const ZSTD_LEN: usize = 40;

/// The same of containers/storage's dialect.
pub const PODMAN_LEN: usize = 64;

/// Header of a skippable zstd frame: its magic number and a 32-bit length.
pub const SKIPPABLE_HEADER: usize = 8;

/// No footer is longer: with so many bytes of a blob's end, [`Footer::parse`] knows.
pub const MAX_LEN: usize = SKIPPABLE_HEADER + PODMAN_LEN;

const GZIP_HEADER: [u8; 10] = [0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff];
const EMPTY_BLOCK_AND_TRAILER: [u8; 13] = [1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0];
const MAGIC: &[u8] = b"STARGZ";
const EXTERNAL_PAYLOAD: &[u8] = b"STARGZEXTERNALTOC";

/// First of the sixteen magic numbers of skippable frames; all writers of zstd:chunked use this one.
pub const SKIPPABLE_MAGIC: [u8; 4] = [0x50, 0x2a, 0x4d, 0x18];
const ZSTD_MAGIC: &[u8; 8] = b"GnUlInUx";
const PODMAN_MAGIC: &[u8; 8] = b"GNUlInUx";
/// The only type of TOC: a JSON like that of eStargz.
const MANIFEST_TYPE: u64 = 1;

/// A zstd frame that stands in a skippable frame, where decompressors do not see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HiddenFrame {
    /// Offset in the blob of the zstd frame itself: 8 bytes behind the beginning of the skippable frame.
    pub offset: u64,
    /// Its bytes in the blob.
    pub compressed_len: u64,
    /// Bytes that it inflates to.
    pub len: u64,
}

/// What the end of a blob says about its TOC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Footer {
    /// eStargz.
    Estargz {
        /// Offset in the blob of the gzip member that holds the TOC.
        toc_offset: u64,
    },
    /// Legacy stargz (CRFS): its files have no digests.
    Legacy {
        /// Offset in the blob of the gzip member that holds the TOC.
        toc_offset: u64,
    },
    /// eStargz whose TOC is kept in another image.
    External,
    /// zstd:chunked as stargz-snapshotter writes it.
    ZstdChunked(HiddenFrame),
    /// zstd:chunked as containers/storage writes it.
    ZstdChunkedPodman {
        /// The TOC.
        manifest: HiddenFrame,
        /// What the layer's tar has besides its files' content.
        tar_split: HiddenFrame,
    },
}

/// Why the end of a blob is no footer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FooterError {
    /// Fewer bytes than a footer has.
    #[error("a blob of {0} bytes is too short for an estargz footer")]
    Short(usize),
    /// A zstd:chunked blob whose TOC is of a type that is not known.
    #[error("the zstd:chunked footer names a table of contents of type {0}, only 1 is known")]
    ManifestType(u64),
    /// Anything else: an ordinary layer.
    #[error("the blob does not end in an estargz or zstd:chunked footer")]
    Absent,
}

impl Footer {
    /// Reads the footer at the end of `tail`, the last bytes of a blob. [`MAX_LEN`] bytes are enough.
    ///
    /// # Errors
    /// [`FooterError`]: most often [`FooterError::Absent`], an ordinary layer.
    pub fn parse(tail: &[u8]) -> Result<Self, FooterError> {
        if let Some(toc_offset) = last(tail, LEN).and_then(parse_estargz) {
            return Ok(Self::Estargz { toc_offset });
        }
        if let Some(toc_offset) = last(tail, LEGACY_LEN).and_then(parse_legacy) {
            return Ok(Self::Legacy { toc_offset });
        }
        if last(tail, EXTERNAL_LEN).is_some_and(is_external) {
            return Ok(Self::External);
        }
        if let Some((fields, _)) = zstd_fields::<4>(tail).filter(|(_, magic)| magic == ZSTD_MAGIC) {
            return Ok(Self::ZstdChunked(manifest(&fields)?));
        }
        if let Some((fields, _)) = zstd_fields::<7>(tail).filter(|(_, magic)| magic == PODMAN_MAGIC) {
            let [.., offset, compressed_len, len] = fields;
            let tar_split = HiddenFrame { offset, compressed_len, len };
            return Ok(Self::ZstdChunkedPodman { manifest: manifest(&fields)?, tar_split });
        }
        if tail.len() < EXTERNAL_LEN {
            return Err(FooterError::Short(tail.len()));
        }
        Err(FooterError::Absent)
    }

    /// The footer as it stands at the end of a blob: for zstd:chunked with the skippable frame around it.
    pub fn to_bytes(self) -> Vec<u8> {
        let offset = |toc_offset: u64| [format!("{toc_offset:016x}").as_bytes(), MAGIC].concat();
        let subfield = |payload: &[u8]| {
            // Both payloads are constants in size.
            let len = u8::try_from(payload.len()).unwrap_or(0);
            [&[b'S', b'G', len, 0], payload].concat()
        };
        match self {
            Self::Estargz { toc_offset } => gzip_footer(&subfield(&offset(toc_offset))),
            Self::Legacy { toc_offset } => gzip_footer(&offset(toc_offset)),
            Self::External => gzip_footer(&subfield(EXTERNAL_PAYLOAD)),
            Self::ZstdChunked(HiddenFrame { offset, compressed_len, len }) => {
                zstd_footer(&[offset, compressed_len, len, MANIFEST_TYPE], *ZSTD_MAGIC)
            }
            Self::ZstdChunkedPodman { manifest, tar_split } => zstd_footer(
                &[
                    manifest.offset,
                    manifest.compressed_len,
                    manifest.len,
                    MANIFEST_TYPE,
                    tar_split.offset,
                    tar_split.compressed_len,
                    tar_split.len,
                ],
                *PODMAN_MAGIC,
            ),
        }
    }

    /// Bytes that it takes at the end of a blob, as [`Self::to_bytes`] gives it.
    pub const fn len(self) -> usize {
        match self {
            Self::Estargz { .. } => LEN,
            Self::Legacy { .. } => LEGACY_LEN,
            Self::External => EXTERNAL_LEN,
            Self::ZstdChunked(_) => SKIPPABLE_HEADER + ZSTD_LEN,
            Self::ZstdChunkedPodman { .. } => SKIPPABLE_HEADER + PODMAN_LEN,
        }
    }

    /// Never: a footer has bytes.
    pub const fn is_empty(self) -> bool {
        false
    }
}

/// The last `len` bytes.
fn last(tail: &[u8], len: usize) -> Option<&[u8]> {
    tail.get(tail.len().checked_sub(len)?..)
}

/// The extra field of `footer`, if all around it is as it must be.
fn extra(footer: &[u8], extra_len: u8) -> Option<&[u8]> {
    footer
        .strip_prefix(&GZIP_HEADER)?
        .strip_prefix(&[extra_len, 0])?
        .strip_suffix(&EMPTY_BLOCK_AND_TRAILER)
        .filter(|extra| extra.len() == usize::from(extra_len))
}

fn parse_estargz(footer: &[u8]) -> Option<u64> {
    let digits = extra(footer, 26)?.strip_prefix(&[b'S', b'G', 22, 0])?.strip_suffix(MAGIC)?;
    parse_offset(digits)
}

fn parse_legacy(footer: &[u8]) -> Option<u64> {
    extra(footer, 22)?.strip_suffix(MAGIC).and_then(parse_offset)
}

fn is_external(footer: &[u8]) -> bool {
    extra(footer, 21)
        .and_then(|extra| extra.strip_prefix(&[b'S', b'G', 17, 0]))
        .is_some_and(|payload| payload == EXTERNAL_PAYLOAD)
}

/// `from_str_radix` would take a sign as well.
fn parse_offset(digits: &[u8]) -> Option<u64> {
    if digits.len() != 16 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// The `N` numbers and the magic number of a footer in a skippable frame of just their size.
fn zstd_fields<const N: usize>(tail: &[u8]) -> Option<([u64; N], [u8; 8])> {
    let body_len = (N + 1) * size_of::<u64>();
    let frame = last(tail, SKIPPABLE_HEADER + body_len)?;
    let (len, body) = frame.strip_prefix(&SKIPPABLE_MAGIC)?.split_first_chunk::<4>()?;
    if usize::try_from(u32::from_le_bytes(*len)).ok()? != body_len {
        return None;
    }
    let (body, magic) = body.split_last_chunk::<8>()?;
    let mut fields = [0; N];
    for (field, bytes) in fields.iter_mut().zip(body.as_chunks::<8>().0) {
        *field = u64::from_le_bytes(*bytes);
    }
    Some((fields, *magic))
}

fn manifest(fields: &[u64]) -> Result<HiddenFrame, FooterError> {
    match fields {
        [offset, compressed_len, len, MANIFEST_TYPE, ..] => {
            Ok(HiddenFrame { offset: *offset, compressed_len: *compressed_len, len: *len })
        }
        [_, _, _, other, ..] => Err(FooterError::ManifestType(*other)),
        _ => Err(FooterError::Absent),
    }
}

fn gzip_footer(extra: &[u8]) -> Vec<u8> {
    // No extra field here is longer than 26 bytes.
    let len = u16::try_from(extra.len()).unwrap_or(0).to_le_bytes();
    [&GZIP_HEADER, len.as_slice(), extra, &EMPTY_BLOCK_AND_TRAILER].concat()
}

fn zstd_footer(fields: &[u64], magic: [u8; 8]) -> Vec<u8> {
    let mut body: Vec<u8> = fields.iter().flat_map(|field| field.to_le_bytes()).collect();
    body.extend_from_slice(&magic);
    let len = u32::try_from(body.len()).unwrap_or(0).to_le_bytes();
    [SKIPPABLE_MAGIC.as_slice(), &len, &body].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: HiddenFrame = HiddenFrame { offset: 0x1234_5678_9abc, compressed_len: 77, len: 1 << 40 };

    fn all() -> [Footer; 5] {
        [
            Footer::Estargz { toc_offset: 0x1234_5678_9abc },
            Footer::Legacy { toc_offset: 0xff },
            Footer::External,
            Footer::ZstdChunked(FRAME),
            Footer::ZstdChunkedPodman {
                manifest: FRAME,
                tar_split: HiddenFrame { offset: 5, compressed_len: 6, len: 7 },
            },
        ]
    }

    #[test]
    fn every_footer_is_read_as_it_is_written() {
        for (footer, len) in all().into_iter().zip([51, 47, 46, 48, 72]) {
            let bytes = footer.to_bytes();
            assert_eq!((bytes.len(), footer.len()), (len, len), "{footer:?}");
            assert!(len <= MAX_LEN);
            assert_eq!(Footer::parse(&bytes), Ok(footer), "alone");
            assert_eq!(Footer::parse(&[b"payload", bytes.as_slice()].concat()), Ok(footer));
            for behind in [b"\0".as_slice(), &bytes[..len - 1]] {
                assert!(Footer::parse(&[&bytes, behind].concat()).is_err(), "not at the end: {footer:?}");
            }
        }
    }

    #[test]
    fn to_a_decompressor_a_footer_is_nothing() {
        for footer in all() {
            let bytes = footer.to_bytes();
            let mut inflated = Vec::new();
            let mut reader = crate::decompress(bytes.as_slice()).unwrap();
            std::io::Read::read_to_end(&mut reader, &mut inflated).unwrap();
            assert!(inflated.is_empty(), "{footer:?}");
        }
    }

    #[test]
    fn bytes_are_those_of_other_tools() {
        // Laid out by hand from the formats' descriptions.
        let zstd = [
            b"\x50\x2a\x4d\x18\x28\0\0\0".as_slice(),
            b"\xbc\x9a\x78\x56\x34\x12\0\0",
            b"\x4d\0\0\0\0\0\0\0",
            b"\0\0\0\0\0\x01\0\0",
            b"\x01\0\0\0\0\0\0\0",
            b"GnUlInUx",
        ]
        .concat();
        assert_eq!(Footer::ZstdChunked(FRAME).to_bytes(), zstd);
        let external =
            [&GZIP_HEADER, b"\x15\0SG\x11\0STARGZEXTERNALTOC".as_slice(), &EMPTY_BLOCK_AND_TRAILER];
        assert_eq!(Footer::External.to_bytes(), external.concat());
        let legacy = [&GZIP_HEADER, b"\x16\x0000000000000000ffSTARGZ".as_slice(), &EMPTY_BLOCK_AND_TRAILER];
        assert_eq!(Footer::Legacy { toc_offset: 0xff }.to_bytes(), legacy.concat());
    }

    #[test]
    fn one_wrong_byte_anywhere_is_not_that_footer() {
        for footer in all() {
            let good = footer.to_bytes();
            for at in 0..good.len() {
                let mut bad = good.clone();
                bad[at] ^= 0x40;
                assert_ne!(Footer::parse(&bad), Ok(footer), "byte {at} of {footer:?} was not looked at");
            }
        }
        assert_eq!(Footer::parse(&[0; 72]), Err(FooterError::Absent));
        assert_eq!(Footer::parse(b""), Err(FooterError::Short(0)));
        assert_eq!(Footer::parse(&[&[0; 64], b"GNUlInUx".as_slice()].concat()), Err(FooterError::Absent));
        let mut other = Footer::ZstdChunked(FRAME).to_bytes();
        other[32] = 2;
        assert_eq!(Footer::parse(&other), Err(FooterError::ManifestType(2)));
    }
}
