//! A layer, compressed in any way: it is refused, or it becomes a blob that can be read back.
#![no_main]

use std::io::Read;
use std::num::NonZeroUsize;

use estargz::{Options, TailState, Toc, TocLimits};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|layer: &[u8]| {
    let Ok(inflated) = estargz::decompress(layer) else { return };
    let options = Options { chunk_size: 700, level: 1, workers: NonZeroUsize::new(1) };
    let mut blob = Vec::new();
    let Ok(built) = estargz::build(inflated.take(1 << 20), &mut blob, &options) else { return };
    let Ok(TailState::Toc { json, toc_offset, digest }) = estargz::open_tail(&blob, built.size) else {
        panic!("a built blob cannot be opened");
    };
    assert_eq!((toc_offset, digest), (built.toc_offset, built.toc_digest));
    let toc =
        Toc::parse(&json, toc_offset, &TocLimits::default()).expect("it was read back when it was built");
    for chunk in toc.chunks() {
        let (start, end) = (chunk.blob.start as usize, chunk.blob.end as usize);
        estargz::inflate_chunk(&blob[start..end], &chunk).expect("a built chunk verifies");
    }
});
