//! The end of a blob: any bytes are a TOC, a wish for more, or an error.
#![no_main]

use content::Digest;
use estargz::footer::{Footer, HiddenFrame, SKIPPABLE_MAGIC};
use estargz::{BlobKind, TailState, Toc, TocLimits, open_tail};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    check(bytes, bytes.len() as u64);
    // As the tail of something larger.
    check(bytes, (bytes.len() as u64) << 8);
    // With a true footer behind them, so that they are taken for what it promises.
    let Some((first, rest)) = bytes.split_first() else { return };
    let toc_offset = u64::from(*first).min(rest.len() as u64);
    for footer in [Footer::Estargz { toc_offset }, Footer::Legacy { toc_offset }, Footer::External] {
        let whole = [rest, &footer.to_bytes()].concat();
        check(&whole, whole.len() as u64);
    }
    let frame_len = u32::try_from(rest.len()).unwrap();
    let hidden = [SKIPPABLE_MAGIC.as_slice(), &frame_len.to_le_bytes(), rest].concat();
    // What the frame inflates to, if the fuzzer has found one; else something wrong.
    let len =
        zstd::stream::decode_all(rest.get(..64 << 10).unwrap_or(rest)).map_or(1, |json| json.len() as u64);
    let manifest = HiddenFrame { offset: 8, compressed_len: rest.len() as u64, len };
    let split = [SKIPPABLE_MAGIC.as_slice(), &2_u32.to_le_bytes(), b"xy"].concat();
    let tar_split = HiddenFrame { offset: hidden.len() as u64 + 8, compressed_len: 2, len: 9 };
    let whole = [hidden.clone(), Footer::ZstdChunked(manifest).to_bytes()].concat();
    check(&whole, whole.len() as u64);
    let whole = [hidden, split, Footer::ZstdChunkedPodman { manifest, tar_split }.to_bytes()].concat();
    check(&whole, whole.len() as u64);
});

fn check(tail: &[u8], blob_len: u64) {
    match open_tail(tail, blob_len) {
        Ok(TailState::NeedMore { from }) => assert!(from < blob_len - tail.len() as u64),
        Ok(TailState::External { payload_end }) => assert!(payload_end < blob_len),
        Ok(TailState::Toc { json, toc_offset, digest, compressed_digest, kind }) => {
            assert!(toc_offset < blob_len && digest == Digest::of(&json) && kind != BlobKind::External);
            assert_eq!(compressed_digest.is_some(), kind != BlobKind::Estargz && kind != BlobKind::Legacy);
            let _ = Toc::parse(&json, toc_offset, &TocLimits::default());
        }
        Err(_) => {}
    }
}
