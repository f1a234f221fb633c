//! A layer's index: bytes from our own disk, which may be anything after a disk's failure. Whatever is in them, nothing
//! panics, no memory is given that they do not account for, and what is read is consistent in itself.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    lazyfs::fuzzing::read_index(data);
    let count = data.first().copied().unwrap_or(0);
    if let Ok(chunks) = estargz::toc::pack::unpack_chunks(data, usize::from(count)) {
        let again = estargz::toc::pack::pack_chunks(&chunks);
        assert_eq!(estargz::toc::pack::unpack_chunks(&again, chunks.len()).as_ref(), Ok(&chunks));
    }
});
