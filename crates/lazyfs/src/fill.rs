//! The one copy of a layer on disk: a sparse data file and the map of the chunks in it.
//!
//! **Invariant: a hole is never readable as data.** Bytes are read only where the map has a bit, a bit is
//! set only after the verified bytes were written, and a bit reaches the disk only after those bytes did
//! (`fdatasync` of the data, then the map by write, `fdatasync`, rename, `fsync` of the folder). Where the table of
//! contents itself says that a chunk is zeros, the hole is that chunk, and its bit is set from the beginning. A crash
//! loses bits and never bytes that a bit promises. If `fdatasync` fails, the kernel may have dropped pages
//! silently, so every bit that is not on disk yet is taken back.
//!
//! **A data file is never emptied.** The kernel may show it to readers at this moment (the `native` driver), and a
//! hole that they read would be zeros to them. A file whose map is not believed is left to them, and a new
//! file takes its name: an own inode. Its map must not be read with the old one's data, nor the other way
//! round, whatever a power cut keeps of the renames: so an old map is taken away durably first, the new name is
//! durable before its first map, a map names the inode that it speaks of, and who holds a replaced file writes no
//! map any more.
//!
//! **The descriptor is older than any mark.** Writing through one that was opened while fanotify guards the file would
//! wait for ourselves. So what the process before this one kept is used again, if it is the file that has the
//! name. It may be filled without a map, from nothing: verified bytes are put where they belong, and nothing else
//! was ever put there.
//!
//! Files are opened relative to the folder's descriptor: when the folder is deleted while somebody still
//! flushes, the map of the dead folder cannot land in a new one of the same name.

pub(crate) mod map;

use std::fs::File;
use std::io::{self, Read as _};
use std::num::NonZeroU64;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use content::{ByteRange, Digest, RangeSet};
use rustix::fs::{Advice, AtFlags, Mode, OFlags};

use crate::bitmap::Bitmap;
pub(crate) use crate::disk::replace;
use crate::disk::{self, Disk};
use crate::keeper::Keep;
use crate::keeper::names::DATA;
use crate::space::Space;
use map::{Found, Subject};

/// The name under which the descriptor of a layer's data file is kept.
pub(crate) fn kept_name(toc: &Digest) -> String {
    format!("{DATA}{}", toc.hex())
}

/// Ranges that are noted as given between two flushes: more would cost more memory than they free.
const MOST_GIVEN: usize = 4096;

/// What a layer's files are handled with.
pub(crate) struct Means<'a> {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) keep: &'a dyn Keep,
    pub(crate) space: Arc<Space>,
}

/// Data file and chunk map of one layer.
pub(crate) struct Fill {
    disk: Arc<dyn Disk>,
    folder: OwnedFd,
    data: File,
    subject: Subject,
    is_kept: bool,
    /// Whether the name of the data file is durable: a map must not be before it.
    is_named: AtomicBool,
    present: Bitmap,
    /// Bits that are on disk, and whose bytes nobody touched since.
    durable: Bitmap,
    /// Chunks that were taken back since the last flush began.
    forgotten: Mutex<Vec<usize>>,
    /// One flush at a time.
    flushing: Mutex<()>,
    /// Held for reading from before a chunk is written until its bit is set.
    storing: RwLock<()>,
    dirty: AtomicBool,
    /// Bytes that the kernel has its own copy of.
    given: Mutex<RangeSet>,
    space: Arc<Space>,
}

impl Fill {
    /// Opens, or makes, the data file and map in `folder` for a layer of `chunks` chunks that take
    /// `data_len` bytes. A map that does not fit is forgotten, and with it all data: nothing of another layer
    /// may stand where `zeros`, the chunks that are nothing else, are read as holes.
    pub(crate) fn open(
        Means { disk, keep, space }: Means<'_>,
        folder: &Path,
        (toc, chunks, data_len): (Digest, usize, u64),
        zeros: impl IntoIterator<Item = usize>,
    ) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(folder, flags, Mode::empty())?;
        let found = find_data(&folder, &toc, keep)?.filter(|(data, _)| is_whole(data, data_len));
        let known = found.and_then(|(data, is_kept)| {
            let subject = Subject { toc, chunks, inode: disk.inode(&data).ok()? };
            match read_map(&folder, &subject) {
                Found::Bits(bits) => Some((data, subject, is_kept, bits)),
                // Somebody may be reading it: it must go on as the file that it is.
                Found::Nothing if is_kept => Some((data, subject, is_kept, Vec::new())),
                Found::Nothing | Found::Other => None,
            }
        });
        let (data, subject, is_kept, bits) = if let Some(known) = known {
            known
        } else {
            let (data, inode) = make_data(&*disk, &folder, data_len)?;
            (data, Subject { toc, chunks, inode }, false, Vec::new())
        };
        let fill = Self {
            present: Bitmap::from_bytes(chunks, &bits),
            durable: Bitmap::from_bytes(chunks, &bits),
            disk,
            folder,
            data,
            subject,
            is_kept,
            is_named: AtomicBool::new(false),
            forgotten: Mutex::default(),
            flushing: Mutex::default(),
            storing: RwLock::default(),
            dirty: AtomicBool::new(false),
            given: Mutex::default(),
            space,
        };
        fill.note_use();
        for chunk in zeros {
            fill.present.set(chunk);
            fill.durable.set(chunk);
        }
        if fill.is_kept() {
            tracing::debug!(%toc, "the layer's data file is filled through the descriptor of the process before");
        }
        if bits.is_empty() {
            fill.write_first_map();
        }
        Ok(fill)
    }

    /// Says of which version the data file is, for the process after this one. A power cut may lose it, and with it
    /// nothing.
    fn write_first_map(&self) {
        let map = self.subject.encode(&self.durable.to_bytes());
        if let Err(error) = disk::put(&*self.disk, &self.folder, "map", &map, false) {
            tracing::debug!(%error, "the first map of a layer was not written");
        }
    }

    /// Whether the chunk's bytes may be read.
    pub(crate) fn has(&self, chunk: usize) -> bool {
        self.present.get(chunk)
    }

    /// The chunks that are here.
    pub(crate) fn present(&self) -> &Bitmap {
        &self.present
    }

    /// The descriptor through which the data file is filled. Whoever marks the file gives it to the keeper first,
    /// as [`kept_name`].
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.data.as_fd()
    }

    /// Whether the descriptor came from the keeper: the file may be mounted and marked already.
    pub(crate) fn is_kept(&self) -> bool {
        self.is_kept
    }

    /// Whether every chunk is on disk, whatever happens now: the file needs no guard any more.
    pub(crate) fn is_durable(&self) -> bool {
        self.durable.is_full()
    }

    /// The folder's time of change is when the layer was last used: by it the store chooses whom to evict.
    fn note_use(&self) {
        let now = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
        let times = rustix::fs::Timestamps { last_access: now, last_modification: now };
        if let Err(error) = rustix::fs::futimens(&self.folder, &times) {
            tracing::debug!(%error, "the use of a layer was not noted");
        }
    }

    /// Bytes that the data file takes on disk.
    pub(crate) fn allocated(&self) -> u64 {
        self.data.metadata().map_or(0, |data| data.blocks().saturating_mul(512))
    }

    /// Keeps the verified bytes of a chunk, and says whether they are new.
    ///
    /// # Errors
    /// [`io::ErrorKind::StorageFull`], also if the store may not take more.
    pub(crate) fn store(&self, chunk: usize, at: u64, bytes: &[u8]) -> io::Result<bool> {
        if !self.has(chunk) && !self.space.admit(bytes.len() as u64) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let storing = self.storing.read().unwrap_or_else(PoisonError::into_inner);
        self.disk.write_at(&self.data, bytes, at)?;
        let new = self.present.set(chunk);
        drop(storing);
        self.dirty.store(true, Ordering::Release);
        Ok(new)
    }

    /// Reads bytes whose chunks are all here.
    pub(crate) fn read(&self, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.data.read_exact_at(buffer, at)
    }

    /// Takes back a chunk whose bytes turned out to be unreadable.
    pub(crate) fn forget(&self, chunk: usize) -> bool {
        let mut forgotten = self.forgotten.lock().unwrap_or_else(PoisonError::into_inner);
        forgotten.push(chunk);
        self.durable.clear(chunk);
        let was_here = self.present.clear(chunk);
        self.dirty.store(true, Ordering::Release);
        was_here
    }

    /// Writes the verified bytes of a chunk without keeping it.
    pub(crate) fn lend(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.disk.write_at(&self.data, bytes, at)
    }

    /// Gives the blocks at `place` back, unless the chunk that lies there is kept; says whether it did.
    pub(crate) fn punch_absent(&self, chunk: usize, place: ByteRange) -> io::Result<bool> {
        // Nobody keeps it between the look and the punch.
        let _nobody = self.storing.write().unwrap_or_else(PoisonError::into_inner);
        if self.has(chunk) {
            return Ok(false);
        }
        self.disk.punch(&self.data, place.start, place.len())?;
        Ok(true)
    }

    /// Keeps a chunk whose verified bytes are in their place; says whether it is new.
    pub(crate) fn adopt(&self, chunk: usize) -> bool {
        let new = self.present.set(chunk);
        self.dirty.store(true, Ordering::Release);
        new
    }

    /// Notes bytes that the kernel has, or is about to have, its own copy of.
    pub(crate) fn given(&self, range: ByteRange) {
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        if given.iter().len() >= MOST_GIVEN {
            *given = RangeSet::default();
        }
        given.insert(range);
    }

    /// Lets go of the second copy in memory of what the kernel was given. What is not on disk yet stays, and one
    /// that the kernel has not read yet it reads from disk.
    fn drop_given(&self) {
        let given = std::mem::take(&mut *self.given.lock().unwrap_or_else(PoisonError::into_inner));
        for range in given.iter() {
            let Some(len) = NonZeroU64::new(range.len()) else { continue };
            let _ = rustix::fs::fadvise(&self.data, range.start, Some(len), Advice::DontNeed);
        }
    }

    /// Whether a flush has something to do.
    pub(crate) fn is_dirty(&self) -> bool {
        self.dirty.load(Ordering::Acquire)
    }

    /// Makes every chunk that is here survive a crash.
    ///
    /// On an error the chunks since the last flush are taken back; they are returned.
    pub(crate) fn flush(&self) -> Result<(), (io::Error, Vec<usize>)> {
        let _alone = self.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.dirty.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        self.forgotten.lock().unwrap_or_else(PoisonError::into_inner).clear();
        // Bits first, then the data they stand for: a chunk that arrives in between waits for the next.
        let bits = self.present.to_bytes();
        if let Err(error) = self.disk.sync(&self.data) {
            // Bytes that were written before the failure may be lost though their bit is not set yet.
            let _nobody = self.storing.write().unwrap_or_else(PoisonError::into_inner);
            let lost: Vec<usize> = self.present.ones().filter(|bit| !self.durable.get(*bit)).collect();
            for bit in &lost {
                self.present.clear(*bit);
            }
            return Err((error, lost));
        }
        match self.write_map(&bits) {
            Ok(()) => {
                let mut forgotten = self.forgotten.lock().unwrap_or_else(PoisonError::into_inner);
                self.durable.merge(&bits);
                for chunk in forgotten.drain(..) {
                    self.durable.clear(chunk);
                }
                drop(forgotten);
                self.drop_given();
                Ok(())
            }
            Err(error) => {
                self.dirty.store(true, Ordering::Release);
                Err((error, Vec::new()))
            }
        }
    }

    fn write_map(&self, bits: &[u8]) -> io::Result<()> {
        if !is_named(&self.folder, &self.data)? {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the layer's data file was replaced"));
        }
        if !self.is_named.load(Ordering::Acquire) {
            self.disk.sync_folder(&self.folder)?;
            self.is_named.store(true, Ordering::Release);
        }
        disk::replace_on(&*self.disk, &self.folder, "map", &self.subject.encode(bits))
    }
}

impl Drop for Fill {
    fn drop(&mut self) {
        self.note_use();
    }
}

/// The file that has the name `data`, by the descriptor that was kept if it is this one; and whether it is.
fn find_data(folder: &OwnedFd, toc: &Digest, keep: &dyn Keep) -> io::Result<Option<(File, bool)>> {
    // If the keeper does not answer, the file may have a mark: better no layer than a wait for ourselves.
    if let Some(kept) = keep.get(&kept_name(toc))?.map(File::from)
        && is_named(folder, &kept).unwrap_or(false)
    {
        return Ok(Some((kept, true)));
    }
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    match rustix::fs::openat(folder, "data", flags, Mode::empty()) {
        Ok(data) => Ok(Some((data.into(), false))),
        Err(rustix::io::Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether `file` is the one that has the name `data`.
fn is_named(folder: &OwnedFd, file: &File) -> io::Result<bool> {
    let ours = rustix::fs::fstat(file)?;
    match rustix::fs::statat(folder, "data", AtFlags::SYMLINK_NOFOLLOW) {
        Ok(named) => Ok((named.st_dev, named.st_ino) == (ours.st_dev, ours.st_ino)),
        Err(rustix::io::Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn is_whole(data: &File, len: u64) -> bool {
    data.metadata().is_ok_and(|data| data.is_file() && data.len() == len)
}

/// Puts an empty data file in place of whatever is there, which lives on for who has it open.
fn make_data(disk: &dyn Disk, folder: &OwnedFd, len: u64) -> io::Result<(File, u64)> {
    if disk.unlink(folder, "map")? {
        disk.sync_folder(folder)?;
    }
    // Left by a process that was killed here: never shown to anybody, but another may have it open still.
    disk.unlink(folder, "data.tmp")?;
    let data = disk.create(folder, "data.tmp")?;
    disk.set_len(&data, len)?;
    disk.rename(folder, "data.tmp", "data")?;
    let inode = disk.inode(&data)?;
    Ok((data, inode))
}

/// What the map in `folder` says.
fn read_map(folder: &OwnedFd, subject: &Subject) -> Found {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let Ok(file) = rustix::fs::openat(folder, "map", flags, Mode::empty()) else { return Found::Nothing };
    let mut map = Vec::new();
    // A longer one is another's.
    match File::from(file).take(subject.map_len() as u64 + 1).read_to_end(&mut map) {
        Ok(_) => subject.decode(&map),
        Err(_) => Found::Nothing,
    }
}

#[cfg(test)]
mod tests;
