//! The layer of a TOC image, and the TOC in it.
#![no_main]

use std::io::Write as _;

use estargz::{Toc, TocLimits, read_toc_layer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    let wrapped = encoder.finish().unwrap();
    for layer in [bytes, &wrapped] {
        let Ok(json) = read_toc_layer(layer) else { continue };
        let _ = Toc::parse(&json, 1 << 40, &TocLimits::default());
        // What we write of it is read as the same.
        let written = estargz::toc_layer(&json, 1).expect("any bytes can be stored");
        assert_eq!(read_toc_layer(&written.bytes).expect("it was just written"), json);
    }
});
