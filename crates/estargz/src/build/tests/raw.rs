//! Layers that keep every byte of their tar.

use super::*;

fn keeping() -> Options {
    Options { toc: TocPlace::External, keep_diff_id: true, ..options(700, 2) }
}

fn built(tar: &[u8]) -> Result<(Built, Vec<u8>), BuildError> {
    build_by(tar, &keeping())
}

#[test]
fn every_byte_is_kept_to_the_end_of_the_stream() {
    let mut tar = tar_of(&[file("a0", &[1; 1000]), file("b0", b"x"), file("c0", b"")]);
    // Padding that is not zero, and zeros and other things behind the end marker.
    tar[512 + 1000..1536].fill(b'#');
    let data_end = tar.len() - 1024 - 512;
    let with_zeros = [tar.as_slice(), &vec![0; 300_000]].concat();
    let with_noise = [tar.as_slice(), &vec![5; 300_001]].concat();
    for (tar, entries) in [
        (tar.as_slice(), 3),
        (&with_zeros, 3),
        (&with_noise, 3),
        (&tar[..tar.len() - 512], 3),
        (&tar[..data_end], 2),
        (&tar[..data_end - 300], 2),
    ] {
        let (built, blob) = built(tar).unwrap();
        assert_eq!((built.diff_id, built.uncompressed_size), (Digest::of(tar), tar.len() as u64));
        assert!(gunzip(&blob) == *tar);
        let toc = toc_of_built(&built, &blob);
        // Of a0 two chunks, of b0 one; no landmark.
        assert_eq!((built.entries, built.chunks, toc.landmark()), (entries, 3, Landmark::Absent));
        let inode = toc.inode(toc.find(b"a0").unwrap()).unwrap();
        assert_eq!(content_of(&blob, &inode), [1; 1000]);
    }
    assert!(matches!(built(&tar[..1000]), Err(BuildError::Archive(_))));
}

#[test]
fn a_layer_that_has_a_table_is_refused() {
    let (_, blob) = build_with(&tar_of(&[file("a0", b"1")]), 0, 1).unwrap();
    let error = built(&gunzip(&blob)).unwrap_err();
    assert!(
        error.to_string().starts_with("tar entry \"stargz.index.json\": the layer holds a table of"),
        "{error}"
    );
    assert!(error.is_unconvertible());
}

#[test]
fn a_landmark_that_is_there_counts() {
    let tar = tar_of(&[file("a0", b"1"), file(PREFETCH_LANDMARK, &[15]), file("b0", b"2")]);
    let (built, blob) = built(&tar).unwrap();
    let toc = toc_of_built(&built, &blob);
    assert!(matches!(toc.landmark(), Landmark::Prefetch(offset) if offset > 0));
    assert_eq!(toc.find(PREFETCH_LANDMARK.as_bytes()), None);
}

#[test]
fn a_sparse_file_cannot_be_kept_as_it_is() {
    let mut header = tar::Header::new_gnu();
    header.set_path("s").unwrap();
    header.set_entry_type(tar::EntryType::GNUSparse);
    header.set_size(0);
    let gnu = header.as_gnu_mut().unwrap();
    gnu.set_real_size(4096);
    header.set_cksum();
    let tar = [header.as_bytes().as_slice(), &[0; 1024]].concat();
    let error = built(&tar).unwrap_err();
    assert!(error.to_string().starts_with("tar entry \"s\": it is a sparse"), "{error}");
    assert!(error.is_unconvertible());

    // Where the bytes need not stay, it is expanded.
    let (built, blob) = build_with(&tar, 1000, 2).unwrap();
    let toc = toc_of_built(&built, &blob);
    let inode = toc.inode(toc.find(b"s").unwrap()).unwrap();
    assert_eq!(content_of(&blob, &inode), [0; 4096]);
    assert_eq!(listing(&gunzip(&blob))[1], ("s".to_owned(), b'0', vec![0; 4096]));
}
