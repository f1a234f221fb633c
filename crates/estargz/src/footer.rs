//! The last bytes of a blob: an empty gzip member whose extra field says where the TOC begins.
//!
//! ```text
//! 1f 8b 08 04 00000000 00 ff   gzip header with FEXTRA
//! 1a 00                        26 bytes of extra field
//! 53 47 16 00                  subfield "SG" of 22 bytes
//! 16 hex digits, "STARGZ"      offset of the member that holds the TOC
//! 01 00 00 ff ff               an empty stored block
//! 00000000 00000000            CRC32 and length of nothing
//! ```

/// Length of an eStargz footer in bytes.
pub const LEN: usize = 51;

/// Length of a legacy stargz (CRFS) footer in bytes: no `SG` header around the offset.
const LEGACY_LEN: usize = 47;

/// Length of the footer of a blob whose TOC is kept elsewhere.
const EXTERNAL_LEN: usize = 46;

/// Lengths of the two zstd:chunked footers, which end in a magic number.
const ZSTD_MAGIC_LEN: usize = 8;

const GZIP_HEADER: [u8; 10] = [0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff];
const EMPTY_BLOCK_AND_TRAILER: [u8; 13] = [1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0];
const MAGIC: &[u8] = b"STARGZ";

/// Where the TOC of a blob begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Footer {
    /// Offset in the blob of the gzip member that holds the TOC.
    pub toc_offset: u64,
}

/// Why the end of a blob is not an eStargz footer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FooterError {
    /// Fewer bytes than a footer has.
    #[error("a blob of {0} bytes is too short for an estargz footer")]
    Short(usize),
    /// A stargz (CRFS) blob: it has no chunk digests, so its files cannot be verified.
    #[error("this is a legacy stargz blob, whose files cannot be verified; convert the image again")]
    Legacy,
    /// The TOC is kept in another image.
    #[error("the table of contents of this blob is kept in a separate image, which is not supported")]
    External,
    /// A zstd:chunked blob.
    #[error("this is a zstd:chunked blob, not an estargz one")]
    ZstdChunked,
    /// Anything else: an ordinary layer.
    #[error("the blob does not end in an estargz footer")]
    Absent,
}

impl Footer {
    /// Reads the footer at the end of `tail`, the last bytes of a blob.
    ///
    /// # Errors
    /// What else it is, if it is recognised.
    pub fn parse(tail: &[u8]) -> Result<Self, FooterError> {
        if let Some(toc_offset) = last(tail, LEN).and_then(parse_estargz) {
            return Ok(Self { toc_offset });
        }
        if last(tail, LEGACY_LEN).is_some_and(is_legacy) {
            return Err(FooterError::Legacy);
        }
        if last(tail, EXTERNAL_LEN).is_some_and(is_external) {
            return Err(FooterError::External);
        }
        if last(tail, ZSTD_MAGIC_LEN).is_some_and(|magic| magic == b"GnUlInUx" || magic == b"GNUlInUx") {
            return Err(FooterError::ZstdChunked);
        }
        if tail.len() < LEN {
            return Err(FooterError::Short(tail.len()));
        }
        Err(FooterError::Absent)
    }

    /// The footer as it stands in a blob.
    pub fn to_bytes(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(LEN);
        bytes.extend_from_slice(&GZIP_HEADER);
        bytes.extend_from_slice(&[26, 0, b'S', b'G', 22, 0]);
        bytes.extend_from_slice(format!("{:016x}", self.toc_offset).as_bytes());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&EMPTY_BLOCK_AND_TRAILER);
        bytes
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

fn is_legacy(footer: &[u8]) -> bool {
    extra(footer, 22).and_then(|extra| extra.strip_suffix(MAGIC)).and_then(parse_offset).is_some()
}

fn is_external(footer: &[u8]) -> bool {
    extra(footer, 21)
        .and_then(|extra| extra.strip_prefix(&[b'S', b'G', 17, 0]))
        .is_some_and(|payload| payload == b"STARGZEXTERNALTOC")
}

/// `from_str_radix` would take a sign as well.
fn parse_offset(digits: &[u8]) -> Option<u64> {
    if digits.len() != 16 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_footer_is_an_empty_gzip_member_of_51_bytes() {
        let bytes = Footer { toc_offset: 0x1234_5678_9abc }.to_bytes();
        assert_eq!(bytes.len(), LEN);
        let mut inflated = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(bytes.as_slice()), &mut inflated)
            .unwrap();
        assert!(inflated.is_empty());
        let mut tail = b"payload".to_vec();
        tail.extend_from_slice(&bytes);
        assert_eq!(Footer::parse(&tail), Ok(Footer { toc_offset: 0x1234_5678_9abc }));
    }

    #[test]
    fn relatives_are_recognised_by_name() {
        let mut legacy = GZIP_HEADER.to_vec();
        legacy.extend_from_slice(&[22, 0]);
        legacy.extend_from_slice(b"00000000000000ffSTARGZ");
        legacy.extend_from_slice(&EMPTY_BLOCK_AND_TRAILER);
        assert_eq!(legacy.len(), LEGACY_LEN);
        assert_eq!(Footer::parse(&legacy), Err(FooterError::Legacy));

        let mut external = GZIP_HEADER.to_vec();
        external.extend_from_slice(&[21, 0, b'S', b'G', 17, 0]);
        external.extend_from_slice(b"STARGZEXTERNALTOC");
        external.extend_from_slice(&EMPTY_BLOCK_AND_TRAILER);
        assert_eq!(external.len(), EXTERNAL_LEN);
        assert_eq!(Footer::parse(&external), Err(FooterError::External));

        assert_eq!(Footer::parse(&[[0; 56].as_slice(), b"GNUlInUx"].concat()), Err(FooterError::ZstdChunked));
        assert_eq!(Footer::parse(&[0; 64]), Err(FooterError::Absent));
        assert_eq!(Footer::parse(b""), Err(FooterError::Short(0)));
    }

    #[test]
    fn one_wrong_byte_anywhere_is_not_a_footer() {
        let good = Footer { toc_offset: 77 }.to_bytes();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] = b'+';
            assert!(Footer::parse(&bad).is_err(), "byte {at} was not looked at");
        }
    }
}
