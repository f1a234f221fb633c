//! A layer, compressed in any way: it is refused, or it becomes a blob of any format that can be read back.
#![no_main]

use std::io::{self, Read, Write};
use std::num::NonZeroUsize;

use estargz::{BlobKind, Format, Options, TailState, Toc, TocLimits, TocPlace};
use libfuzzer_sys::fuzz_target;

/// Holes of sparse files are expanded: this ends it.
const LARGEST_BLOB: usize = 256 << 10;

/// A blob in memory that may not become large.
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > LARGEST_BLOB {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fuzz_target!(|layer: &[u8]| {
    let base =
        Options { chunk_size: 700, level: Some(1), workers: NonZeroUsize::new(1), ..Options::default() };
    for (kind, options) in [
        (BlobKind::Estargz, base.clone()),
        (BlobKind::Estargz, Options { min_chunk_size: 1000, ..base.clone() }),
        (BlobKind::External, Options { toc: TocPlace::External, keep_diff_id: true, ..base.clone() }),
        (BlobKind::ZstdChunked, Options { format: Format::ZstdChunked, ..base.clone() }),
        (BlobKind::ZstdChunkedPodman, Options { format: Format::ZstdChunkedPodman, ..base }),
    ] {
        check(layer, kind, &options);
    }
});

fn check(layer: &[u8], expected: BlobKind, options: &Options) {
    let Ok(inflated) = estargz::decompress(layer) else { return };
    let mut blob = Bounded(Vec::new());
    let Ok(built) = estargz::build(inflated.take(1 << 20), &mut blob, options) else { return };
    let blob = blob.0;
    assert_eq!(built.size, blob.len() as u64);
    let json = match estargz::open_tail(&blob, built.size).expect("a built blob can be opened") {
        TailState::NeedMore { .. } => panic!("the whole blob is there"),
        TailState::External { payload_end } => {
            assert_eq!((expected, payload_end), (BlobKind::External, built.payload_end));
            let estargz::BuiltToc::External { json } = built.toc else { panic!("where is its TOC?") };
            json
        }
        TailState::Toc { json, toc_offset, digest, kind, .. } => {
            assert_eq!((kind, toc_offset, digest), (expected, built.payload_end, built.toc_digest));
            json
        }
    };
    let toc = Toc::parse(&json, built.payload_end, &TocLimits::default())
        .expect("it was read back when it was built");
    assert_eq!(u64::from(toc.chunk_count()).min(built.chunks), u64::from(toc.chunk_count()));
    for chunk in toc.chunks() {
        let (start, end) = (chunk.blob.start as usize, chunk.blob.end as usize);
        estargz::inflate_chunk(&blob[start..end], &chunk).expect("a built chunk verifies");
    }
}
