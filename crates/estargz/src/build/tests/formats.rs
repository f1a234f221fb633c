//! Every format with every option: the same tree, and the same bytes however they come and go.

use super::*;

/// Gives a few bytes at a time, `sizes` in turn.
struct Trickle<'a> {
    bytes: &'a [u8],
    sizes: std::iter::Cycle<std::slice::Iter<'a, usize>>,
}

impl Read for Trickle<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let size = *self.sizes.next().unwrap();
        if size == 0 {
            return Err(io::ErrorKind::Interrupted.into());
        }
        (&mut self.bytes).take(size as u64).read(buffer)
    }
}

/// All options that fit together, and influence the bytes.
fn layouts() -> impl Strategy<Value = Options> {
    let external = Options { toc: TocPlace::External, ..Options::default() };
    let zstd = Options { format: Format::ZstdChunked, ..Options::default() };
    let bases = [
        Options::default(),
        external.clone(),
        Options { keep_diff_id: true, ..external },
        zstd.clone(),
        Options { keep_diff_id: true, ..zstd },
    ];
    (prop::sample::select(bases.to_vec()), 1u32..2000, prop_oneof![Just(0u32), 1u32..4000], 1u8..=12)
        .prop_map(|(base, chunk_size, least, level)| {
            let min_chunk_size = if base.format == Format::Estargz { least } else { 0 };
            Options { chunk_size, min_chunk_size, level: Some(level), ..base }
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn whatever_the_layout_the_tree_is_the_same(items in items(), options in layouts()) {
        let tar = tar_of(&items);
        let (built, blob) = build_by(tar.as_slice(), &options).unwrap();
        let toc = toc_of_built(&built, &blob);
        compare(&items, &blob, &toc);
        let plain = gunzip(&blob);
        prop_assert_eq!(built.diff_id, Digest::of(&plain));
        prop_assert_eq!(built.uncompressed_size, plain.len() as u64);
        let landmark = !options.is_raw();
        prop_assert_eq!(toc.landmark() == Landmark::NoPrefetch, landmark);
        prop_assert_eq!(built.entries, (items.len() + usize::from(landmark)) as u64);
        let files = listing(&plain).len() - usize::from(options.has_toc_entry());
        prop_assert_eq!(built.entries, files as u64);
        if options.is_raw() {
            prop_assert!(plain == tar, "the bytes of the tar are not kept");
        }
    }

    #[test]
    fn neither_cores_nor_the_way_the_tar_arrives_change_a_byte(
        items in items(),
        options in layouts(),
        sizes in prop::collection::vec(0usize..3000, 1..8),
    ) {
        let tar = tar_of(&items);
        let expected = build_by(tar.as_slice(), &Options { workers: NonZeroUsize::new(1), ..options.clone() });
        let expected = expected.unwrap();
        let mut sizes = sizes;
        sizes.push(7);
        for (workers, sizes) in [(2, sizes.as_slice()), (5, &[1]), (5, &[usize::MAX])] {
            let trickle = Trickle { bytes: &tar, sizes: sizes.iter().cycle() };
            let options = Options { workers: NonZeroUsize::new(workers), ..options.clone() };
            let found = build_by(trickle, &options).unwrap();
            prop_assert_eq!(&found.0, &expected.0);
            prop_assert!(found.1 == expected.1, "the blob depends on {} workers or the reads", workers);
        }
    }
}

/// A layer of many batches, so that workers really overtake each other.
#[test]
fn a_large_layer_is_the_same_on_any_number_of_cores() {
    let noise = |seed: u32, len: u32| -> Vec<u8> {
        (0..len)
            .map(|n| (n.wrapping_mul(2_654_435_761) ^ seed).rotate_left(7).to_le_bytes()[n as usize % 3])
            .collect()
    };
    let items: Vec<Item> = (0..300)
        .map(|n| file(&format!("f{n}"), &noise(n, if n % 50 == 0 { 400_000 } else { n * 97 })))
        .collect();
    let tar = tar_of(&items);
    let estargz = Options { chunk_size: 100_000, ..Options::default() };
    for options in [
        Options { min_chunk_size: 30_000, ..estargz.clone() },
        Options { format: Format::ZstdChunked, ..estargz.clone() },
        // A strategy of zstd whose tables could remember what was compressed before.
        Options { format: Format::ZstdChunked, level: Some(7), ..estargz.clone() },
        estargz,
    ] {
        let with = |workers| {
            build_by(tar.as_slice(), &Options { workers: NonZeroUsize::new(workers), ..options.clone() })
        };
        let (built, blob) = with(1).unwrap();
        for workers in [2, 5] {
            assert_eq!(with(workers).unwrap().0, built, "{workers} workers, {options:?}");
        }
        compare(&items, &blob, &toc_of_built(&built, &blob));
    }
}

/// A compressor that has seen other data makes the same of `data` as a new one.
#[test]
fn a_compressor_remembers_nothing() {
    let pieces: Vec<Vec<u8>> = (1..30u32)
        .map(|n| {
            let byte =
                |k: u32| (k.wrapping_mul(n.wrapping_mul(2_654_435_761) | 1) >> 27).to_le_bytes()[0] | b'@';
            (0..n * n * 150).map(byte).collect()
        })
        .collect();
    let gzip = (1..=12).map(|level| codec::Codec::Gzip { level });
    let zstd = (1..=19).map(|level| codec::Codec::Zstd { level });
    for codec in gzip.chain(zstd) {
        let mut old = codec.compressor().unwrap();
        let is_slow =
            matches!(codec, codec::Codec::Zstd { level: 13.. } | codec::Codec::Gzip { level: 11.. });
        for piece in pieces.iter().step_by(if is_slow { 7 } else { 1 }) {
            let (mut by_old, mut by_new) = (buffer::Buffer::default(), buffer::Buffer::default());
            old.compress(piece, &mut by_old).unwrap();
            codec.compressor().unwrap().compress(piece, &mut by_new).unwrap();
            assert!(by_old.bytes() == by_new.bytes(), "{codec:?} with {} bytes", piece.len());
        }
    }
}

#[test]
fn a_zstd_blob_has_the_annotations_of_its_footer() {
    let options = Options { format: Format::ZstdChunked, ..Options::default() };
    let (built, blob) = build_by(tar_of(&[file("a0", b"pantala")]).as_slice(), &options).unwrap();
    let BuiltToc::Zstd { manifest_checksum, manifest_position: [offset, len, inflated, kind], .. } =
        built.toc
    else {
        panic!("{:?}", built.toc)
    };
    assert_eq!((offset, kind), (built.payload_end + 8, 1));
    let manifest = &blob[at(offset)..at(offset + len)];
    assert_eq!(manifest_checksum, Digest::of(manifest));
    let json = zstd::decode_all(manifest).unwrap();
    assert_eq!((json.len() as u64, Digest::of(&json)), (inflated, built.toc_digest));
    let TailState::Toc { compressed_digest, json: found, .. } = open_tail(&blob, built.size).unwrap() else {
        panic!()
    };
    assert_eq!((compressed_digest, found), (Some(manifest_checksum), json));
    let footer: Vec<u8> = [offset, len, inflated, 1].iter().flat_map(|number| number.to_le_bytes()).collect();
    assert_eq!(blob[blob.len() - 40..], [footer.as_slice(), b"GnUlInUx"].concat());
    assert_eq!(at(offset + len) + 8 + 40, blob.len());
}

/// The tools of the command line take the blobs for what they are.
#[test]
fn ordinary_tools_read_every_format() {
    use std::process::{Command, Stdio};

    let items = [file("d/a0", &[7; 5000]), file("b0", b""), file("c0", b"pantala")];
    let tar = tar_of(&items);
    let external = Options { toc: TocPlace::External, ..Options::default() };
    for (tool, options, extra) in [
        ("gzip", Options { chunk_size: 999, ..Options::default() }, vec![TOC_NAME, NO_PREFETCH_LANDMARK]),
        ("gzip", Options { min_chunk_size: 100, ..Options::default() }, vec![TOC_NAME, NO_PREFETCH_LANDMARK]),
        ("gzip", external.clone(), vec![NO_PREFETCH_LANDMARK]),
        ("gzip", Options { keep_diff_id: true, ..external }, vec![]),
        ("zstd", Options { format: Format::ZstdChunked, ..Options::default() }, vec![NO_PREFETCH_LANDMARK]),
    ] {
        let (_, blob) = build_by(tar.as_slice(), &options).unwrap();
        let mut path = tempfile::NamedTempFile::new().unwrap();
        path.write_all(&blob).unwrap();
        let inflated = Command::new(tool).arg("-dc").stdin(path.reopen().unwrap()).output();
        let Ok(inflated) = inflated else {
            eprintln!("skipped: there is no {tool}");
            continue;
        };
        assert!(inflated.status.success(), "{tool}: {}", String::from_utf8_lossy(&inflated.stderr));
        assert!(inflated.stdout == gunzip(&blob), "{tool} inflates something else");
        let mut plain = tempfile::NamedTempFile::new().unwrap();
        plain.write_all(&inflated.stdout).unwrap();
        let listed = Command::new("tar")
            .arg("-t")
            .stdin(plain.reopen().unwrap())
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        assert!(listed.status.success());
        let mut names: Vec<&str> = std::str::from_utf8(&listed.stdout).unwrap().lines().collect();
        names.sort_unstable();
        let mut expected = [extra, vec!["d/a0", "b0", "c0"]].concat();
        expected.sort_unstable();
        assert_eq!(names, expected);
    }
}
