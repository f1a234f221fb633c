//! Tar headers of files that the format itself puts into a layer.

use crate::archive::BLOCK;

/// The tar header of a regular file that has nothing but a name and a size.
pub(super) fn ustar_header(name: &str, size: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, text: &[u8]| {
        for (slot, byte) in block.iter_mut().skip(at).zip(text) {
            *slot = *byte;
        }
    };
    put(0, name.as_bytes());
    for at in [100, 108, 116, 329, 337] {
        put(at, b"0000000\0");
    }
    put(124, format!("{size:011o}\0").as_bytes());
    put(136, b"00000000000\0");
    put(148, b"        0");
    put(257, b"ustar\x0000");
    let checksum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    let checksum = format!("{checksum:06o}\0 ");
    for (slot, byte) in block.iter_mut().skip(148).zip(checksum.as_bytes()) {
        *slot = *byte;
    }
    block
}
