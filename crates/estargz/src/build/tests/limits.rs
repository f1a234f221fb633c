//! What cannot be built, and what building must not take.

use super::*;

#[test]
fn what_a_toc_cannot_hold_is_refused_by_name() {
    let entry = |path: &[u8], kind: tar::EntryType, link: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(0);
        header.set_mode(0o644);
        header.as_mut_bytes()[..path.len()].copy_from_slice(path);
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link);
        header.set_cksum();
        [header.as_bytes().as_slice(), &[0; 1024]].concat()
    };
    let regular = tar::EntryType::Regular;
    for (tar, expected) in [
        (entry(b"caf\xe9", regular, b""), "tar entry \"caf\\xe9\": its name is not UTF-8"),
        (entry(b"l", tar::EntryType::Symlink, b"\xff"), "tar entry \"l\": its link target is not UTF-8"),
        (entry(b"../../etc/passwd", regular, b""), "tar entry \"../../etc/passwd\": the path has a .. part"),
        (
            entry(b"h", tar::EntryType::Link, b"gone"),
            "entry \"h\": it is a hard link to \"gone\", which is not in the layer",
        ),
        (
            entry(b"h", tar::EntryType::Link, b"./h"),
            "entry \"h\": it is a hard link to \"h\", which does not come before it",
        ),
        (entry(b"v", tar::EntryType::new(b'V'), b""), "tar entry \"v\" has type 'V'"),
        (b"no tar at all, but longer than nothing".repeat(20), "this is not a tar stream"),
    ] {
        let error = build_with(&tar, 0, 2).unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
    }
}

/// What compresses like nothing honest is refused by the builder, since readers would refuse it.
#[test]
fn a_table_that_readers_take_for_a_bomb_is_not_built() {
    let items: Vec<Item> = (0..12_000)
        .map(|n| Item { what: What::Dir, xattr: Some(vec![b'x'; 1000]), ..file(&format!("d{n}"), b"") })
        .collect();
    let tar = tar_of(&items);
    for format in [Format::ZstdChunked, Format::ZstdChunkedPodman] {
        let error = build_by(tar.as_slice(), &Options { format, ..Options::default() }).unwrap_err();
        assert!(error.is_unconvertible(), "{error}");
        assert!(error.to_string().contains("has more bytes than the limit of"), "{error}");
    }
    // Empty files, links and directories in a row are what layers have.
    let items: Vec<Item> = (0..120_000).map(|n| file(&format!("f{n}"), b"")).collect();
    let options = Options { format: Format::ZstdChunked, ..Options::default() };
    let (built, blob) = build_by(tar_of(&items).as_slice(), &options).unwrap();
    let BuiltToc::Zstd { manifest_position: [_, len, inflated, _], .. } = built.toc else { panic!() };
    assert!(inflated > 16 << 20 && inflated / len > 50, "{inflated} bytes from {len}");
    assert_eq!(toc_of(&blob).inode_count(), 120_001);
}

#[test]
fn a_cut_off_input_is_an_error() {
    let tar = tar_of(&[file("a0", &[1; 5000])]);
    for len in [100, 512, 1000, 5000, 512 + 4999, 512 + 5120 + 1] {
        assert!(build_with(&tar[..len], 0, 2).is_err(), "{len} bytes were taken for a whole tar");
    }
    // Padding and the end marker may be missing, as in other readers.
    for len in [512 + 5000, 512 + 5001, 512 + 5120] {
        assert!(build_with(&tar[..len], 0, 2).is_ok(), "{len} bytes hold the whole file");
    }
}

#[test]
fn a_full_disk_is_told_as_such() {
    struct Full(usize);
    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.0 < bytes.len() {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.0 -= bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let items: Vec<Item> = (0..200u8).map(|n| file(&format!("f{n}"), &[n; 3000])).collect();
    for room in [0, 1000, 5000] {
        let error = build(tar_of(&items).as_slice(), Full(room), &Options::default()).unwrap_err();
        let BuildError::Output(error) = error else { panic!("{error}") };
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}

/// How a stream ends before its time.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Error,
    Panic,
}

/// Reads or writes `left` bytes, and no more.
struct Faulty<S> {
    inner: S,
    left: usize,
    fault: Fault,
}

impl<S> Faulty<S> {
    fn room(&mut self, wanted: usize) -> io::Result<usize> {
        match (self.left.min(wanted), self.fault) {
            (0, Fault::Error) if wanted > 0 => Err(io::ErrorKind::ConnectionReset.into()),
            (0, Fault::Panic) if wanted > 0 => panic!("a fault that was asked for"),
            (room, _) => {
                self.left -= room;
                Ok(room)
            }
        }
    }
}

impl<S: Read> Read for Faulty<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = self.room(buffer.len())?;
        self.inner.read(&mut buffer[..room])
    }
}

impl<S: Write> Write for Faulty<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = self.room(bytes.len())?;
        self.inner.write(&bytes[..room])
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Wherever reader or writer fails, all threads end and the cause is told.
#[test]
fn a_fault_anywhere_ends_the_building_and_is_told() {
    let noise = |n: u32| {
        (0..200_000u32).map(|at| (at * 31 + n).wrapping_mul(at).to_le_bytes()[1]).collect::<Vec<u8>>()
    };
    let items: Vec<Item> = (0..6).map(|n| file(&format!("f{n}"), &noise(n))).collect();
    let tar = tar_of(&items);
    let external = Options { toc: TocPlace::External, ..options(0, 2) };
    for base in [
        options(0, 2),
        Options { min_chunk_size: 100_000, ..options(0, 3) },
        Options { keep_diff_id: true, ..external },
        Options { format: Format::ZstdChunked, ..options(0, 1) },
        Options { format: Format::ZstdChunkedPodman, ..options(0, 2) },
    ] {
        let (_, blob) = build_by(tar.as_slice(), &base).unwrap();
        for fault in [Fault::Error, Fault::Panic] {
            for left in (0..blob.len()).step_by(blob.len() / 7).chain([blob.len() - 60, blob.len() - 1]) {
                let out = Faulty { inner: io::sink(), left, fault };
                let outcome = std::panic::catch_unwind(|| build(tar.as_slice(), out, &base));
                match (fault, outcome) {
                    (Fault::Error, Ok(Err(BuildError::Output(error)))) => {
                        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{left}: {error}");
                    }
                    (Fault::Panic, Err(_) | Ok(Err(BuildError::Output(_)))) => {}
                    (_, outcome) => panic!("{fault:?} of the writer at {left}: {outcome:?}"),
                }
            }
            // What ends the tar is read to its end where every byte counts, and else not behind the marker.
            for left in (0..tar.len() - 1024).step_by(tar.len() / 7).chain([tar.len() - 1025]) {
                let input = Faulty { inner: tar.as_slice(), left, fault };
                let outcome = std::panic::catch_unwind(|| build(input, io::sink(), &base));
                match (fault, outcome) {
                    (Fault::Error, Ok(Err(BuildError::Archive(crate::archive::ArchiveError::Io(error))))) => {
                        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{left}: {error}");
                    }
                    (Fault::Panic, Err(_)) => {}
                    (_, outcome) => panic!("{fault:?} of the reader at {left}: {outcome:?}"),
                }
            }
        }
    }
}

/// However slowly the blob is written, the reader is only a few batches ahead of the writer.
#[test]
fn memory_does_not_grow_with_the_layer() {
    use std::sync::atomic::{AtomicUsize, Ordering};

    const CHUNK: usize = 256 * 1024;
    const CHUNKS: usize = 100;

    struct Counted<'a>(&'a AtomicUsize, &'a AtomicUsize);
    impl Read for Counted<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            buffer.fill(7);
            self.0.fetch_add(buffer.len(), Ordering::SeqCst);
            Ok(buffer.len())
        }
    }
    impl Write for Counted<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // One call per batch: the first one has the landmark and a chunk, the others a chunk each.
            let written = self.1.fetch_add(1, Ordering::SeqCst);
            let ahead = self.0.load(Ordering::SeqCst).saturating_sub(written * CHUNK);
            // Two workers: six batches go round.
            assert!(ahead <= 7 * CHUNK, "{} chunks are in memory", ahead / CHUNK);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    let (read, written) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let size = CHUNK * CHUNKS;
    let header = ustar_header("big", size as u64);
    let tar = header.as_slice().chain(Counted(&read, &written).take(size as u64));
    let options = Options {
        chunk_size: u32::try_from(CHUNK).unwrap(),
        level: Some(1),
        workers: NonZeroUsize::new(2),
        ..Options::default()
    };
    let built = build(tar, Counted(&read, &written), &options).unwrap();
    assert_eq!((built.entries, built.chunks), (2, CHUNKS as u64 + 1));
    assert!(read.load(Ordering::SeqCst) >= size);
}
