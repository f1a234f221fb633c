//! The end of a blob: any bytes are a footer, a TOC, or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|tail: &[u8]| {
    let _ = estargz::open_tail(tail, tail.len() as u64);
    // As a tail of something larger.
    let _ = estargz::open_tail(tail, (tail.len() as u64) << 8);
    // With a true footer behind it, so that the bytes are taken for a TOC's member.
    let footer = estargz::footer::Footer { toc_offset: 0 }.to_bytes();
    let whole = [tail, &footer].concat();
    let _ = estargz::open_tail(&whole, whole.len() as u64);
});
