//! The one copy of a layer on disk: a sparse data file and the map of the chunks in it.
//!
//! **Invariant: a hole is never readable as data.** Bytes are read only where the map has a bit, a bit is
//! set only after the verified bytes were written, and a bit reaches the disk only after those bytes did
//! (`fdatasync` of the data, then the map by write, `fsync`, rename). Where the table of contents itself says
//! that a chunk is zeros, the hole is that chunk, and its bit is set from the beginning. A crash loses bits and never bytes
//! that a bit promises. If `fdatasync` fails, the kernel may have dropped pages silently, so every bit
//! that is not on disk yet is taken back.
//!
//! Files are opened relative to the folder's descriptor: when the folder is deleted while somebody still
//! flushes, the map of the dead folder cannot land in a new one of the same name.
//!
//! ```text
//! map: "PANTMAP\0"  u32 version  u32 chunks  [32] TOC digest  bits  [32] BLAKE3 of all before
//! ```

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use content::Digest;
use rustix::fs::{Mode, OFlags};

use crate::bitmap::Bitmap;

const MAGIC: &[u8; 8] = b"PANTMAP\0";
/// Changes whenever the place of a chunk in the data file does.
const VERSION: u32 = 1;
const HEADER: usize = 8 + 4 + 4 + 32;
const CHECKSUM: usize = 32;

/// Data file and chunk map of one layer.
pub(crate) struct Fill {
    folder: OwnedFd,
    data: File,
    toc: Digest,
    present: Bitmap,
    /// Bits that are on disk. Held while the map is written: one flush at a time.
    durable: Mutex<Vec<u8>>,
    dirty: AtomicBool,
}

impl Fill {
    /// Opens, or makes, the data file and map in `folder` for a layer of `chunks` chunks that take
    /// `data_len` bytes. A map that does not fit is forgotten, and with it all data: nothing of another layer
    /// may stand where `zeros`, the chunks that are nothing else, are read as holes.
    pub(crate) fn open(
        folder: &Path,
        toc: Digest,
        chunks: usize,
        data_len: u64,
        zeros: impl IntoIterator<Item = usize>,
    ) -> io::Result<Self> {
        let folder =
            rustix::fs::open(folder, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let data = File::from(rustix::fs::openat(&folder, "data", flags, Mode::RUSR | Mode::WUSR)?);
        let is_whole = data.metadata()?.len() == data_len;
        let bits = if let Some(bits) = read_map(&folder, &toc, chunks).filter(|_| is_whole) {
            bits
        } else {
            data.set_len(0)?;
            data.set_len(data_len)?;
            Vec::new()
        };
        let present = Bitmap::from_bytes(chunks, &bits);
        for chunk in zeros {
            present.set(chunk);
        }
        let durable = Mutex::new(present.to_bytes());
        Ok(Self { folder, data, toc, present, durable, dirty: AtomicBool::new(false) })
    }

    /// Whether the chunk's bytes may be read.
    pub(crate) fn has(&self, chunk: usize) -> bool {
        self.present.get(chunk)
    }

    /// The chunks that are here.
    pub(crate) fn present(&self) -> &Bitmap {
        &self.present
    }

    /// Keeps the verified bytes of a chunk, and says whether they are new.
    pub(crate) fn store(&self, chunk: usize, at: u64, bytes: &[u8]) -> io::Result<bool> {
        self.data.write_all_at(bytes, at)?;
        let new = self.present.set(chunk);
        self.dirty.store(true, Ordering::Release);
        Ok(new)
    }

    /// Reads bytes whose chunks are all here.
    pub(crate) fn read(&self, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.data.read_exact_at(buffer, at)
    }

    /// Takes back a chunk whose bytes turned out to be unreadable.
    pub(crate) fn forget(&self, chunk: usize) -> bool {
        self.dirty.store(true, Ordering::Release);
        self.present.clear(chunk)
    }

    /// Whether a flush has something to do.
    pub(crate) fn is_dirty(&self) -> bool {
        self.dirty.load(Ordering::Acquire)
    }

    /// Makes every chunk that is here survive a crash.
    ///
    /// On an error the chunks since the last flush are taken back; they are returned.
    pub(crate) fn flush(&self) -> Result<(), (io::Error, Vec<usize>)> {
        let mut durable = self.durable.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.dirty.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        // Bits first, then the data they stand for: a chunk that arrives in between waits for the next.
        let bits = self.present.to_bytes();
        if let Err(error) = rustix::fs::fdatasync(&self.data) {
            let kept = Bitmap::from_bytes(self.present.len(), &durable);
            let lost: Vec<usize> = self.present.ones().filter(|bit| !kept.get(*bit)).collect();
            for bit in &lost {
                self.present.clear(*bit);
            }
            return Err((error.into(), lost));
        }
        match write_map(&self.folder, &self.toc, self.present.len(), &bits) {
            Ok(()) => {
                *durable = bits;
                Ok(())
            }
            Err(error) => {
                self.dirty.store(true, Ordering::Release);
                Err((error, Vec::new()))
            }
        }
    }
}

/// Replaces `name` in `folder` so that a crash leaves the old or the new content.
pub(crate) fn replace(folder: &OwnedFd, name: &str, content: &[u8]) -> io::Result<()> {
    let temporary = format!("{name}.tmp");
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mut file =
        File::from(rustix::fs::openat(folder, temporary.as_str(), flags, Mode::RUSR | Mode::WUSR)?);
    file.write_all(content)?;
    rustix::fs::fsync(&file)?;
    rustix::fs::renameat(folder, temporary.as_str(), folder, name)?;
    rustix::fs::fsync(folder)?;
    Ok(())
}

fn write_map(folder: &OwnedFd, toc: &Digest, chunks: usize, bits: &[u8]) -> io::Result<()> {
    let mut map = Vec::with_capacity(HEADER + bits.len() + CHECKSUM);
    map.extend_from_slice(MAGIC);
    map.extend_from_slice(&VERSION.to_le_bytes());
    map.extend_from_slice(&u32::try_from(chunks).unwrap_or(u32::MAX).to_le_bytes());
    map.extend_from_slice(toc.as_bytes());
    map.extend_from_slice(bits);
    let checksum = blake3::hash(&map);
    map.extend_from_slice(checksum.as_bytes());
    replace(folder, "map", &map)
}

/// The bits of the map in `folder`; `None` if there is none or it is not exactly this layer's.
fn read_map(folder: &OwnedFd, toc: &Digest, chunks: usize) -> Option<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = File::from(rustix::fs::openat(folder, "map", flags, Mode::empty()).ok()?);
    let expected = HEADER + chunks.div_ceil(8) + CHECKSUM;
    let mut map = Vec::new();
    file.take(expected as u64 + 1).read_to_end(&mut map).ok()?;
    if map.len() != expected {
        return None;
    }
    let (body, checksum) = map.split_last_chunk::<CHECKSUM>()?;
    let (header, bits) = body.split_at_checked(HEADER)?;
    let mut ours = Vec::with_capacity(HEADER);
    ours.extend_from_slice(MAGIC);
    ours.extend_from_slice(&VERSION.to_le_bytes());
    ours.extend_from_slice(&u32::try_from(chunks).ok()?.to_le_bytes());
    ours.extend_from_slice(toc.as_bytes());
    (header == ours && blake3::hash(body).as_bytes() == checksum).then(|| bits.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(folder: &Path) -> Fill {
        Fill::open(folder, Digest::of(b"toc"), 10, 10 * 4096, []).unwrap()
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
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("map");
        let fill = open(folder.path());
        fill.store(0, 0, &[1; 4096]).unwrap();
        fill.flush().unwrap();
        let good = std::fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(&path, bad).unwrap();
            assert!(!open(folder.path()).has(0), "a flipped bit in byte {at} was believed");
        }
        for cut in [0, 1, good.len() - 1] {
            std::fs::write(&path, &good[..cut]).unwrap();
            assert!(!open(folder.path()).has(0), "a map cut at {cut} was believed");
        }
        std::fs::write(&path, &good).unwrap();
        assert!(open(folder.path()).has(0));
        let other = Fill::open(folder.path(), Digest::of(b"other"), 10, 10 * 4096, []).unwrap();
        assert!(!other.has(0), "the map of another TOC was believed");
    }

    #[test]
    fn chunks_of_zeros_are_here_from_the_beginning_and_are_zeros() {
        let folder = tempfile::tempdir().unwrap();
        let fill = open(folder.path());
        fill.store(5, 5 * 4096, &[7; 4096]).unwrap();
        fill.flush().unwrap();
        drop(fill);
        let other = Fill::open(folder.path(), Digest::of(b"other"), 10, 10 * 4096, [5]).unwrap();
        assert!(other.has(5) && !other.has(4));
        let mut buffer = [1; 4096];
        other.read(5 * 4096, &mut buffer).unwrap();
        assert_eq!(buffer, [0; 4096], "bytes of the layer that was here before");
        // They are durable without a flush: nothing that fails can take them back.
        other.store(4, 4 * 4096, &[9; 4096]).unwrap();
        drop(other);
        let again = Fill::open(folder.path(), Digest::of(b"other"), 10, 10 * 4096, [5]).unwrap();
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
}
