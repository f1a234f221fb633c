//! What the tests of this crate share.

#![allow(dead_code, reason = "each test binary uses a part")]

pub mod model;
pub mod mounted;
pub mod random;

use erofs::{Checked, Options, check, write};
use model::Model;

/// The image of a model that can be written, checked.
pub fn image(model: &Model) -> Vec<u8> {
    let image = write(model, &options(model)).unwrap();
    if let Err(error) = check(&image, model.data_len) {
        panic!("the writer's own image is refused: {error}");
    }
    image
}

pub fn options(model: &Model) -> Options {
    Options { data_len: model.data_len, uuid: *b"sixteen bytes id" }
}

/// The inode at a path of an image.
pub fn find(image: &Checked<'_>, path: &str) -> u64 {
    path.split('/').filter(|part| !part.is_empty()).fold(image.root(), |nid, part| {
        let children = image.children(nid);
        children.iter().find(|(name, _)| *name == part.as_bytes()).unwrap_or_else(|| panic!("{path}")).1
    })
}

/// Makes the checksum right again, so that a lie in block 0 is found for what it is. Written a second time, with a
/// table, on purpose: the crate's own cannot vouch for itself.
pub fn reseal(image: &mut [u8]) {
    let table: Vec<u32> = (0..256u32)
        .map(|byte| (0..8).fold(byte, |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82F6_3B78 } else { crc >> 1 }))
        .collect();
    image[1028..1032].fill(0);
    let step = |crc: u32, byte: &u8| table[usize::from(crc.to_le_bytes()[0] ^ byte)] ^ crc >> 8;
    let sum = image[1024..4096].iter().fold(u32::MAX, step);
    image[1028..1032].copy_from_slice(&sum.to_le_bytes());
}
