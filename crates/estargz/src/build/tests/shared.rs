//! Members that small files share.

use super::*;

/// Where members begin, and how many bytes each has.
fn members(toc: &Toc, from: u64) -> Vec<u64> {
    let mut starts: Vec<u64> = toc
        .inodes()
        .filter(|inode| inode.kind() == Kind::Regular)
        .flat_map(|inode| inode.chunks().map(|chunk| chunk.blob.start).collect::<Vec<_>>())
        .filter(|start| *start >= from)
        .chain([toc.payload_end()])
        .collect();
    starts.sort_unstable();
    starts.dedup();
    starts.windows(2).map(|pair| pair[1] - pair[0]).collect()
}

/// Text of `len` bytes that shrinks to about a third.
fn text(seed: u32, len: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    };
    (0..len).map(|_| b"etaoinshr dlu\n cm"[(next() % 3 * (next() % 8)) as usize % 17]).collect()
}

#[test]
fn members_have_the_size_that_was_asked_for() {
    let items: Vec<Item> =
        (0..2000).map(|n| file(&format!("d{}/f{n}", n % 7), &text(n, n * 7 % 9000))).collect();
    let tar = tar_of(&items);
    let (one_each, _) = build_with(&tar, 0, 2).unwrap();
    for least in [1, 1000, 50_000, 200_000] {
        let options = Options { min_chunk_size: least, ..options(0, 2) };
        let (built, blob) = build_by(tar.as_slice(), &options).unwrap();
        let toc = toc_of_built(&built, &blob);
        compare(&items, &blob, &toc);
        let sizes = members(&toc, 0);
        let small = sizes.iter().filter(|size| **size < u64::from(least)).count();
        // The one with the landmark begins before the files that share it, and the last may be smaller.
        assert!(small <= 1, "least {least}: {sizes:?}");
        assert!(sizes.iter().all(|size| *size < u64::from(least) * 3 + 20_000), "least {least}: {sizes:?}");
        assert!(least < 1000 || built.size < one_each.size, "least {least}: {} bytes", built.size);
    }
}

#[test]
fn files_that_share_a_member_say_where_in_it_they_begin() {
    let items = [file("a0", &text(1, 3000)), file("b0", b"22"), file("c0", &text(2, 100))];
    let options = Options { min_chunk_size: 50_000, ..options(1000, 1) };
    let (built, blob) = build_by(tar_of(&items).as_slice(), &options).unwrap();
    let toc = toc_of_built(&built, &blob);
    let places: Vec<(u64, u32)> = (0..5)
        .map(|number| toc.chunk(number).unwrap())
        .map(|chunk| (chunk.blob.start, chunk.inner_offset))
        .collect();
    let start = places[0].0;
    // The landmark's byte, its padding and the header of a0 come first; then chunks without a gap.
    let inner = [1024, 2024, 3024, 4024 + 72 + 512, 4024 + 72 + 512 + 512 + 512];
    assert_eq!(places, inner.map(|inner| (start, inner)));
}

/// What shrinks to nothing does not make members of any size: a reader would have to inflate them.
#[test]
fn a_member_is_bounded_in_what_it_inflates_to() {
    let items: Vec<Item> = (0..12).map(|n| file(&format!("f{n}"), &vec![0; 1 << 20])).collect();
    let options = Options { min_chunk_size: 1 << 16, ..options(0, 2) };
    let (built, blob) = build_by(tar_of(&items).as_slice(), &options).unwrap();
    let toc = toc_of_built(&built, &blob);
    compare(&items, &blob, &toc);
    assert!(members(&toc, 0).len() >= 2);
    assert!(
        toc.inodes()
            .flat_map(|inode| inode.chunks().collect::<Vec<_>>())
            .all(|chunk| chunk.inner_offset < 6 << 20)
    );
}
