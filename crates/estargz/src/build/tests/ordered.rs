//! Layers whose first files are those that a start needs.

use std::io::Cursor;

use super::*;

fn ordered(tar: &[u8], options: &Options, ranks: &[&str]) -> Result<(Built, Vec<u8>), BuildError> {
    let mut blob = Vec::new();
    let mut rank = |path: &[u8]| {
        assert!(!path.starts_with(b"/") && !path.ends_with(b"/"), "{path:?} is not clean");
        ranks.iter().position(|ranked| ranked.as_bytes() == path).map(|rank| u32::try_from(rank).unwrap() / 2)
    };
    let built = build_ordered(Cursor::new(tar), &mut blob, options, &mut rank)?;
    Ok((built, blob))
}

fn names(blob: &[u8]) -> Vec<String> {
    listing(&gunzip(blob)).into_iter().map(|(name, ..)| name).collect()
}

fn dir(path: &str) -> Item {
    Item { what: What::Dir, ..file(path, b"") }
}

fn link(path: &str, target: usize) -> Item {
    Item { what: What::Hardlink(target), ..file(path, b"") }
}

#[test]
fn what_is_needed_stands_first_and_after_what_it_needs_itself() {
    let items = [
        dir("x"),
        dir("a"),
        dir("a/b"),
        file("a/b/one", b"1"),
        file("x/two", b"22"),
        link("x/link", 3),
        link("again", 5),
        file("last", b"3"),
        dir("z"),
    ];
    let tar = tar_of(&items);
    // Two paths have one rank each: the archive's order counts among them. One is not there.
    let (built, blob) = ordered(&tar, &options(0, 2), &["last", "x/two", "again", "gone"]).unwrap();
    assert_eq!(
        names(&blob),
        [
            "x/",
            "x/two",
            "last",
            "a/",
            "a/b/",
            "a/b/one",
            "x/link",
            "again",
            PREFETCH_LANDMARK,
            "z/",
            TOC_NAME
        ]
    );
    let toc = toc_of_built(&built, &blob);
    compare(&items, &blob, &toc);
    assert_eq!(built.entries, items.len() as u64 + 1);
    let landmark = match toc.landmark() {
        Landmark::Prefetch(offset) => offset,
        other => panic!("{other:?}"),
    };
    // The landmark begins a member: all that a start needs lies before it.
    for inode in toc.inodes().filter(|inode| inode.kind() == Kind::Regular) {
        assert!(inode.chunks().all(|chunk| chunk.blob.end <= landmark));
    }
}

/// Whoever unpacks `.wh.a0` behind `a0` removes it.
#[test]
fn a_removal_stays_before_what_takes_its_place() {
    let items =
        [file(".wh.a0", b""), file("a0", b"1"), file("d/.wh.e", b""), file("d/e/f0", b"2"), file("g0", b"3")];
    let (_, blob) = ordered(&tar_of(&items), &options(0, 1), &["g0", "d/e/f0", "a0"]).unwrap();
    assert_eq!(names(&blob)[..6], ["d/.wh.e", "d/e/f0", "g0", ".wh.a0", "a0", PREFETCH_LANDMARK]);
    // What is removed later was removed on purpose.
    let items = [file("a0", b"1"), file(".wh.a0", b"")];
    let (_, blob) = ordered(&tar_of(&items), &options(0, 1), &["a0"]).unwrap();
    assert_eq!(names(&blob)[..3], ["a0", PREFETCH_LANDMARK, ".wh.a0"]);
}

/// A link to a link to a link…: each is looked at once.
#[test]
fn a_long_chain_of_links_takes_no_time() {
    let count = 30_000;
    let items: Vec<Item> =
        std::iter::once(file("a0", b"1")).chain((1..count).map(|n| link(&format!("l{n}"), n - 1))).collect();
    let mut blob = Vec::new();
    let built =
        build_ordered(Cursor::new(tar_of(&items)), &mut blob, &options(0, 1), &mut |_| Some(1)).unwrap();
    assert_eq!(built.entries, count as u64 + 1);
}

#[test]
fn without_a_rank_there_is_nothing_to_prefetch() {
    let items = [dir("a"), file("a/x0", b"1")];
    let tar = tar_of(&items);
    assert_eq!(ordered(&tar, &options(0, 1), &[]).unwrap(), build_with(&tar, 0, 1).unwrap());
}

#[test]
fn the_later_of_two_entries_with_one_path_counts() {
    let mut tar = tar_of(&[dir("a"), file("a/x0", b"old"), file("b0", b"b")]);
    tar.truncate(tar.len() - 1024);
    tar.extend(tar_of(&[file("a/x0", b"new"), dir("a")]));
    for ranks in [&["a/x0"][..], &[]] {
        let (built, blob) = ordered(&tar, &options(0, 1), ranks).unwrap();
        let toc = toc_of_built(&built, &blob);
        let inode = toc.inode(toc.find(b"a/x0").unwrap()).unwrap();
        assert_eq!(content_of(&blob, &inode), b"new");
        assert_eq!(built.entries, 4);
    }
    let (_, blob) = ordered(&tar, &options(0, 1), &["a/x0"]).unwrap();
    assert_eq!(names(&blob)[..3], ["a/", "a/x0", PREFETCH_LANDMARK]);
}

#[test]
fn what_unpacking_removes_does_not_come_back() {
    let mut tar = tar_of(&[dir("d"), file("d/x0", b"gone")]);
    for more in [file("d", b""), dir("d"), file("d/y0", b"y")] {
        tar.truncate(tar.len() - 1024);
        tar.extend(tar_of(&[more]));
    }
    for ranks in [&["d/y0"][..], &[], &["d/x0"]] {
        let (_, blob) = ordered(&tar, &options(0, 1), ranks).unwrap();
        assert_eq!(toc_of(&blob).find(b"d/x0"), None);
        assert!(toc_of(&blob).find(b"d/y0").is_some());
    }
    let (_, blob) = build_with(&tar, 0, 1).unwrap();
    assert_eq!(toc_of(&blob).find(b"d/x0"), None);
}

#[test]
fn a_link_to_a_file_that_is_replaced_is_no_link_to_the_new_one() {
    let mut tar = tar_of(&[file("x0", b"old"), link("l", 0)]);
    tar.truncate(tar.len() - 1024);
    tar.extend(tar_of(&[file("x0", b"new")]));
    let error = ordered(&tar, &options(0, 1), &[]).unwrap_err();
    assert_eq!(error.to_string(), "tar entry \"l\": it is a hard link to a file that a later entry replaces");
    assert!(error.is_unconvertible());
}

#[test]
fn old_landmarks_and_an_old_table_go() {
    let tar = tar_of(&[file("a0", b"1"), file("b0", b"2")]);
    let (first, blob) = ordered(&tar, &options(0, 1), &["b0"]).unwrap();
    let (second, _) = ordered(&gunzip(&blob), &options(0, 1), &["b0"]).unwrap();
    assert_eq!(first, second);
}

#[test]
fn a_tar_that_changes_in_between_is_an_error() {
    struct Changing(Cursor<Vec<u8>>, u32);
    impl Read for Changing {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0.read(buffer)
        }
    }
    impl Seek for Changing {
        fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
            if let io::SeekFrom::Start(_) = to {
                self.1 += 1;
            }
            if self.1 == 1 {
                *self.0.get_mut() = tar_of(&[file("c0", b"1")]);
            }
            self.0.seek(to)
        }
    }
    let tar = tar_of(&[file("a0", b"1"), file("b0", b"2")]);
    for ranked in [true, false] {
        let changing = Changing(Cursor::new(tar.clone()), 0);
        let error =
            build_ordered(changing, io::sink(), &options(0, 1), &mut |_| ranked.then_some(1)).unwrap_err();
        assert!(error.to_string().contains("changed while it was read"), "{error}");
    }
}

#[test]
fn what_must_stay_as_it_is_cannot_be_put_in_order() {
    let keeps = Options { toc: TocPlace::External, keep_diff_id: true, ..Options::default() };
    let podman = Options { format: Format::ZstdChunkedPodman, ..Options::default() };
    for options in [keeps, podman] {
        assert!(matches!(ordered(&tar_of(&[]), &options, &[]), Err(BuildError::Options(_))));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_order_has_the_same_tree(
        items in items(),
        ranked in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        least in prop_oneof![Just(0u32), 1u32..3000],
        workers in 1usize..4,
    ) {
        let tar = tar_of(&items);
        let ranks: Vec<&str> =
            ranked.iter().filter(|_| !items.is_empty()).map(|index| index.get(&items).path.as_str()).collect();
        let options = Options { min_chunk_size: least, ..options(700, workers) };
        let (built, blob) = ordered(&tar, &options, &ranks).unwrap();
        let toc = toc_of_built(&built, &blob);
        compare(&items, &blob, &toc);
        prop_assert_eq!(built.diff_id, Digest::of(&gunzip(&blob)));
        let landmark = match toc.landmark() {
            Landmark::Prefetch(offset) => offset,
            _ => 0,
        };
        prop_assert_eq!(landmark == 0, ranks.is_empty());
        for path in ranks {
            let inode = toc.inode(toc.find(path.as_bytes()).unwrap()).unwrap();
            if inode.kind() == Kind::Regular {
                prop_assert!(inode.chunks().all(|chunk| chunk.blob.end <= landmark));
            }
        }
        // An ordinary tool that unpacks from front to back meets every parent before its content.
        let mut seen = std::collections::BTreeSet::new();
        let explicit: Vec<String> =
            items.iter().filter(|item| matches!(item.what, What::Dir)).map(|item| item.path.clone()).collect();
        let before_landmark = names(&blob).into_iter().take_while(|name| name != PREFETCH_LANDMARK);
        for name in before_landmark.filter(|_| landmark > 0) {
            let name = name.trim_end_matches('/').to_owned();
            for (slash, _) in name.match_indices('/') {
                let parent = name[..slash].to_owned();
                prop_assert!(!explicit.contains(&parent) || seen.contains(&parent), "{} before {}", name, parent);
            }
            seen.insert(name);
        }
    }
}
