use estargz::NO_DIGEST;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::layout::Layout;

/// A layer's folder, with the files of the given sizes in chunks of `chunk` bytes.
struct Store {
    folder: tempfile::TempDir,
    toc: Toc,
    about: About,
}

impl Store {
    fn new(sizes: &[u64], chunk: u64, landmark: bool) -> Self {
        let mut entries = Vec::new();
        let mut at = 100;
        let mut sizes = sizes.to_vec();
        if landmark {
            sizes.push(1);
        }
        for (number, size) in sizes.iter().enumerate() {
            let name = match number {
                _ if landmark && number + 1 == sizes.len() => ".prefetch.landmark".into(),
                _ => format!("d{}/file {number}", number % 7),
            };
            let mut offset = 0;
            while offset == 0 || offset < *size {
                let mut entry =
                    json!({"name": name, "type": if offset == 0 { "reg" } else { "chunk" }, "size": size});
                if *size > 0 {
                    entry["offset"] = json!(at);
                    entry["chunkOffset"] = json!(offset);
                    entry["chunkSize"] = json!(chunk.min(size - offset));
                    entry["chunkDigest"] = json!(Digest::of(format!("{number} {offset}").as_bytes()));
                    if number % 11 == 5 {
                        entry["chunkType"] = json!("zeros");
                    }
                    at += 37;
                }
                entries.push(entry);
                offset += chunk;
            }
        }
        let json = serde_json::to_vec(&json!({"version": 1, "entries": entries})).unwrap();
        let about = About { layer: Digest::of(b"layer"), blob_len: 2 << 40, toc_offset: 1 << 40 };
        let toc = Toc::parse(&json, about.toc_offset, &TocLimits::default()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("toc.json"), &json).unwrap();
        Self { folder, toc, about }
    }

    fn make(&self) -> Index {
        Index::make(self.folder.path(), &self.toc, &self.about).unwrap()
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join(NAME)
    }

    fn open(&self) -> io::Result<Option<Index>> {
        Index::open(self.folder.path(), &self.toc.digest())
    }
}

/// All that an index can be asked, held against the table.
fn assert_same(index: &Index, toc: &Toc) {
    let layout = Layout::new(toc.chunks());
    let chunks: Vec<Chunk> = toc.chunks().collect();
    assert_eq!(index.chunks().collect::<Vec<_>>(), chunks);
    assert_eq!(
        (index.chunk_count(), index.landmark(), index.file_bytes(), index.data_len()),
        (toc.chunk_count(), toc.landmark(), toc.file_bytes(), layout.len())
    );
    let zeros = (0..).zip(&chunks).filter(|(_, chunk)| chunk.is_zeros()).map(|(number, _)| number);
    assert!(index.zeros().eq(zeros));
    for (number, chunk) in (0..).zip(&chunks) {
        let start = layout.start(number).unwrap();
        assert_eq!(index.start(number), Some(start));
        let end = start + u64::from(chunk.len);
        assert_eq!((index.chunk_at(start), index.chunk_at(end - 1)), (Some(number), Some(number)));
        let file = toc.inode(chunk.inode).unwrap();
        assert_eq!(index.file_end(number), Some(start - chunk.file_offset + file.size()));
        // Behind the last byte of a file is nothing.
        let is_last = chunk.file_offset + u64::from(chunk.len) == file.size();
        if is_last && !end.is_multiple_of(4096) {
            assert_eq!(index.chunk_at(end), None);
        }
        // Ranges, by what they are: each costs a look at all chunks.
        if number % (1 + toc.chunk_count() / 50) != 0 {
            continue;
        }
        for range in [ByteRange::new(start, end), ByteRange::new(start + 1, end + 5000)] {
            let starts = (0..).zip(&chunks).map(|(number, _)| (number, layout.start(number).unwrap()));
            let begin: Vec<u32> = starts
                .clone()
                .filter(|(_, at)| range.start <= *at && *at < range.end)
                .map(|(n, _)| n)
                .collect();
            assert!(index.chunks_in(range).eq(begin));
            let touch: Vec<u32> = starts
                .filter(|(n, at)| *at < range.end && at + u64::from(chunks[*n as usize].len) > range.start)
                .map(|(n, _)| n)
                .collect();
            assert!(index.chunks_touching(range).eq(touch), "{range} of {number}");
        }
    }
    assert_eq!(index.chunk(toc.chunk_count()), None);
    assert_eq!(index.start(u32::MAX), None);
    assert_eq!(index.chunk_at(index.data_len()), None);
    // Kept for who asks again in a moment, and then not any more.
    drop(index.tree_for_now().unwrap());
    assert!(!index.give_up_idle() && index.tree_in_memory().is_some());
    assert!(index.give_up_idle() && index.tree_in_memory().is_none());
    assert!(!index.give_up_idle());
    let tree = index.tree().unwrap();
    assert_eq!(tree.inode_count(), toc.inode_count());
    for (ours, theirs) in tree.inodes().zip(toc.inodes()) {
        assert_eq!(ours.chunk_numbers(), theirs.chunk_numbers());
        assert!(ours.children().eq(theirs.children()));
        assert_eq!(
            (ours.size(), ours.mtime(), ours.parent()),
            (theirs.size(), theirs.mtime(), theirs.parent())
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_index_says_what_the_table_says(
        sizes in prop::collection::vec(prop_oneof![0..20_000_u64, 100_000..150_000_u64], 0..25),
        chunk in prop::sample::select(vec![1000_u64, 4096, 100_000]),
        landmark: bool,
        seed in 0..3_usize,
    ) {
        let store = Store::new(&sizes, chunk, landmark);
        assert_same(&store.make(), &store.toc);
        let index = store.open().unwrap().unwrap();
        assert_same(&index, &store.toc);
        prop_assert_eq!(index.about(), &store.about);
        // Bytes of any set of chunks.
        let bits = Bitmap::new(store.toc.chunk_count() as usize);
        let mut bytes = 0;
        for (number, chunk) in store.toc.chunks().enumerate() {
            // Groups that are full, empty and neither.
            let is_in = match (number / 64 + seed) % 3 { 0 => true, 1 => false, _ => number % 5 == 0 };
            if is_in {
                bits.set(number);
                bytes += u64::from(chunk.len);
            }
        }
        prop_assert_eq!(index.bytes_of(&bits), bytes);
    }
}

/// Whether all of an index is believed as it is.
fn is_believed(all: &[u8]) -> bool {
    let bytes = Bytes::Memory(all.to_vec());
    let read = |at, len| bytes.read(at, len);
    let Ok(head) = Head::read(read, all.len() as u64) else { return false };
    (0..head.group_count()).all(|group| head.group(group, read).is_ok() && head.digests(group, read).is_ok())
        && head.tree(read).is_ok()
}

#[test]
fn every_bit_that_flips_is_noticed() {
    let store = Store::new(&[5000, 0, 300, 70_000, 1], 1000, true);
    store.make();
    let good = std::fs::read(store.path()).unwrap();
    assert!(is_believed(&good));
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(!is_believed(&bad), "bit {bit} went unseen");
    }
    for cut in 0..good.len() {
        assert!(!is_believed(&good[..cut]), "an index cut at {cut} was believed");
    }
}

#[test]
fn what_is_damaged_is_made_again_while_it_is_used() {
    let store = Store::new(&[5000, 0, 300, 70_000, 1], 1000, true);
    store.make();
    let good = std::fs::read(store.path()).unwrap();
    let head_len = u32::from_le_bytes(good[12..16].try_into().unwrap()) as usize;
    for byte in (head_len..good.len()).step_by(211) {
        let mut bad = good.clone();
        bad[byte] ^= 1;
        std::fs::write(store.path(), &bad).unwrap();
        assert_same(&store.open().unwrap().unwrap(), &store.toc);
        assert!(std::fs::read(store.path()).unwrap() == good, "byte {byte} went unseen");
    }
}

#[test]
fn an_index_of_another_layer_or_version_is_not_used() {
    let store = Store::new(&[5000], 1000, false);
    assert!(store.open().unwrap().is_none());
    store.make();
    assert!(Index::open(store.folder.path(), &Digest::of(b"other")).is_err());
    let mut other = std::fs::read(store.path()).unwrap();
    other[8] += 1;
    std::fs::write(store.path(), other).unwrap();
    assert_eq!(store.open().err().unwrap().to_string(), "it is of another version");
}

#[test]
fn what_is_damaged_with_its_table_is_missing_and_not_wrong() {
    let store = Store::new(&[5000, 60], 1000, false);
    store.make();
    let mut bad = std::fs::read(store.path()).unwrap();
    let head_len = u32::from_le_bytes(bad[12..16].try_into().unwrap()) as usize;
    for byte in &mut bad[head_len..] {
        *byte ^= 0x55;
    }
    std::fs::write(store.path(), &bad).unwrap();
    std::fs::write(store.folder.path().join("toc.json"), b"{}").unwrap();
    let index = store.open().unwrap().unwrap();
    assert_eq!((index.chunk(0), index.start(0), index.chunk_at(0)), (None, None, None));
    assert!(index.tree().is_none());
    assert_eq!(index.chunks().count(), 0);
    // What lies in a range is not known to be nothing.
    assert_eq!(index.chunks_in(ByteRange::new(0, 4096)), 0..6);
    assert_eq!(index.chunks_touching(ByteRange::new(0, 4096)), 0..6);
}

#[test]
fn a_full_disk_leaves_the_index_in_memory() {
    let store = Store::new(&[5000, 60], 1000, false);
    // Nothing can be written to a folder that is not there.
    let index = Index::make(&store.folder.path().join("gone"), &store.toc, &store.about).unwrap();
    assert_same(&index, &store.toc);
}

#[test]
fn chunks_of_the_same_place_are_told_apart_by_their_digests() {
    let store = Store::new(&[10, 10, 10], 1000, false);
    let index = store.make();
    let digests: std::collections::HashSet<_> = index.chunks().map(|chunk| chunk.digest).collect();
    assert_eq!((digests.len(), digests.contains(&NO_DIGEST)), (3, false));
}
