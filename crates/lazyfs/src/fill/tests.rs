mod power;

use super::*;
use crate::disk::Os;
use crate::keeper::KeepHere;

/// Opens a layer of ten chunks of a page each.
fn open(folder: &Path) -> Fill {
    open_as(folder, b"toc", &KeepHere::default(), &[])
}

/// No limits.
fn means(disk: Arc<dyn Disk>, keep: &dyn Keep) -> Means<'_> {
    let folder = File::open("/").unwrap().into();
    let limits = crate::space::Limits { budget: None, keep_free: 0 };
    Means { disk, keep, space: Arc::new(Space::new(folder, limits)) }
}

fn open_as(folder: &Path, toc: &[u8], keep: &dyn Keep, zeros: &[usize]) -> Fill {
    let shape = (Digest::of(toc), 10, 10 * 4096);
    Fill::open(means(Arc::new(Os), keep), folder, shape, zeros.iter().copied()).unwrap()
}

#[test]
fn flushed_chunks_are_there_again_and_others_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let fill = open(folder.path());
    assert!(fill.store(3, 3 * 4096, &[7; 4096]).unwrap());
    fill.flush().unwrap();
    assert!(fill.store(4, 4 * 4096, &[8; 4096]).unwrap());
    drop(fill); // as a crash would: no flush
    let fill = open(folder.path());
    assert!(fill.has(3) && !fill.has(4));
    let mut buffer = [0; 4096];
    fill.read(3 * 4096, &mut buffer).unwrap();
    assert_eq!(buffer, [7; 4096]);
}

#[test]
fn a_map_that_is_not_exactly_ours_is_forgotten() {
    let filled = || {
        let folder = tempfile::tempdir().unwrap();
        let fill = open(folder.path());
        fill.store(0, 0, &[1; 4096]).unwrap();
        fill.flush().unwrap();
        let map = std::fs::read(folder.path().join("map")).unwrap();
        (folder, map)
    };
    let (folder, good) = filled();
    assert!(open(folder.path()).has(0));
    for at in 0..good.len() {
        let (folder, mut bad) = filled();
        bad[at] ^= 1;
        std::fs::write(folder.path().join("map"), bad).unwrap();
        assert!(!open(folder.path()).has(0), "a flipped bit in byte {at} was believed");
        assert!(!open(folder.path()).has(0), "and then it was");
    }
    for cut in [0, 1, good.len() - 1] {
        let (folder, good) = filled();
        std::fs::write(folder.path().join("map"), &good[..cut]).unwrap();
        assert!(!open(folder.path()).has(0), "a map cut at {cut} was believed");
    }
    let other = open_as(folder.path(), b"other", &KeepHere::default(), &[]);
    assert!(!other.has(0), "the map of another TOC was believed");
}

#[test]
fn a_map_is_not_believed_about_a_copy_of_its_data() {
    let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let fill = open(old.path());
    fill.store(0, 0, &[1; 4096]).unwrap();
    std::fs::copy(old.path().join("data"), new.path().join("data")).unwrap();
    fill.store(1, 4096, &[1; 4096]).unwrap();
    fill.flush().unwrap();
    std::fs::copy(old.path().join("map"), new.path().join("map")).unwrap();
    assert!(open(old.path()).has(1));
    assert!(!open(new.path()).has(1), "the copy has zeros there");
}

#[test]
fn who_reads_a_data_file_whose_map_is_lost_keeps_its_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let fill = open(folder.path());
    fill.store(0, 0, &[1; 4096]).unwrap();
    fill.flush().unwrap();
    std::fs::write(folder.path().join("map"), b"?").unwrap();
    let new = open(folder.path());
    assert!(!new.has(0) && !new.is_kept());
    new.store(1, 4096, &[2; 4096]).unwrap();
    let mut buffer = [0; 4096];
    fill.read(0, &mut buffer).unwrap();
    assert_eq!(buffer, [1; 4096], "who still shows the old file must not see holes");
    fill.read(4096, &mut buffer).unwrap();
    assert_eq!(buffer, [0; 4096], "and it is another file");
    // The old one's map would be read with the new one's data.
    fill.store(2, 2 * 4096, &[3; 4096]).unwrap();
    assert!(fill.flush().is_err());
    new.flush().unwrap();
    let again = open(folder.path());
    assert!(again.has(1) && !again.has(0) && !again.has(2));
}

#[test]
fn a_kept_descriptor_is_used_if_it_is_the_file_with_the_name() {
    let folder = tempfile::tempdir().unwrap();
    let keep = KeepHere::default();
    let kept = |fill: &Fill| keep.keep(&kept_name(&Digest::of(b"toc")), fill.descriptor()).unwrap();
    let fill = open(folder.path());
    fill.store(0, 0, &[1; 4096]).unwrap();
    fill.flush().unwrap();
    kept(&fill);
    fill.store(1, 4096, &[1; 4096]).unwrap();
    let inode = fill.subject.inode;
    drop(fill); // Killed: nothing more is flushed.

    let next = open_as(folder.path(), b"toc", &keep, &[]);
    assert!(next.is_kept() && next.has(0) && !next.has(1));
    drop(next);
    // Killed before the first flush: there is no map that tells anything, and the file is mounted.
    for damaged in [None, Some(b"?".as_slice())] {
        let map = folder.path().join("map");
        match damaged {
            None => std::fs::remove_file(map).unwrap(),
            Some(bytes) => std::fs::write(map, bytes).unwrap(),
        }
        let next = open_as(folder.path(), b"toc", &keep, &[]);
        assert!(next.is_kept() && !next.has(0), "from nothing, in the same file");
        assert_eq!(next.subject.inode, inode);
    }
    // A map of another layout of the same data: the file is not touched, whoever keeps it.
    let other = Subject { chunks: 11, ..Subject { toc: Digest::of(b"toc"), chunks: 10, inode } };
    std::fs::write(folder.path().join("map"), other.encode(&[255, 255])).unwrap();
    let next = open_as(folder.path(), b"toc", &keep, &[]);
    assert!(!next.is_kept() && !next.has(0) && next.subject.inode != inode);
    // What is kept is not the file with the name any more.
    let next = open_as(folder.path(), b"toc", &keep, &[]);
    assert!(!next.is_kept());
}

#[test]
fn durable_is_what_a_flush_has_seen_and_nobody_took_back() {
    let folder = tempfile::tempdir().unwrap();
    let fill = open(folder.path());
    for chunk in 0..10 {
        fill.store(chunk, chunk as u64 * 4096, &[1; 4096]).unwrap();
    }
    assert!(!fill.is_durable());
    fill.flush().unwrap();
    assert!(fill.is_durable());
    fill.forget(3);
    fill.store(3, 3 * 4096, &[1; 4096]).unwrap();
    assert!(!fill.is_durable());
    fill.flush().unwrap();
    assert!(fill.is_durable());
}

#[test]
fn chunks_of_zeros_are_here_from_the_beginning_and_are_zeros() {
    let folder = tempfile::tempdir().unwrap();
    let fill = open(folder.path());
    fill.store(5, 5 * 4096, &[7; 4096]).unwrap();
    fill.flush().unwrap();
    drop(fill);
    let other = open_as(folder.path(), b"other", &KeepHere::default(), &[5]);
    assert!(other.has(5) && !other.has(4));
    let mut buffer = [1; 4096];
    other.read(5 * 4096, &mut buffer).unwrap();
    assert_eq!(buffer, [0; 4096], "bytes of the layer that was here before");
    // They are durable without a flush: nothing that fails can take them back.
    other.store(4, 4 * 4096, &[9; 4096]).unwrap();
    drop(other);
    let again = open_as(folder.path(), b"other", &KeepHere::default(), &[5]);
    assert!(again.has(5) && !again.has(4));
}

#[test]
fn a_shortened_data_file_makes_its_map_worthless() {
    let folder = tempfile::tempdir().unwrap();
    let fill = open(folder.path());
    fill.store(0, 0, &[1; 4096]).unwrap();
    fill.flush().unwrap();
    File::options().write(true).open(folder.path().join("data")).unwrap().set_len(100).unwrap();
    assert!(!open(folder.path()).has(0));
}

#[test]
fn a_flush_after_the_folder_was_replaced_does_not_reach_the_new_one() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("layer");
    std::fs::create_dir(&folder).unwrap();
    let old = open(&folder);
    old.store(0, 0, &[1; 4096]).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    std::fs::create_dir(&folder).unwrap();
    let new = open(&folder);
    assert!(old.flush().is_err());
    drop(new);
    assert!(!open(&folder).has(0), "zeros would have been read as data");
}
