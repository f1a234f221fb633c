//! CRC-32C as EROFS uses it: of 3 KiB, once per image, so without a table.

/// The polynomial of Castagnoli, bits reversed.
const POLYNOMIAL: u32 = 0x82F6_3B78;

/// Checksum of `bytes`: starts with all ones and, other than everywhere else, is not inverted at the end.
pub(crate) fn checksum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| (sum >> 1) ^ if sum & 1 == 1 { POLYNOMIAL } else { 0 })
    })
}

#[cfg(test)]
mod tests {
    use super::checksum;

    /// The check value of the CRC catalogues and the examples of RFC 3720, appendix B.4.
    #[test]
    fn known_values() {
        assert_eq!(!checksum(b"123456789"), 0xE306_9283);
        assert_eq!(!checksum(&[0; 32]), 0x8A91_36AA);
        assert_eq!(!checksum(&[0xFF; 32]), 0x62A8_AB43);
        let ascending: Vec<u8> = (0..32).collect();
        assert_eq!(!checksum(&ascending), 0x46DD_794E);
    }
}
