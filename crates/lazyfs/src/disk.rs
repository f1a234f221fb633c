//! The few file operations on which the safety of a layer's data hangs.
//!
//! They stand behind a trait so that a test can note the order in which they happen, cut the power after each of them,
//! and let any of them fail. Outside of tests there is one implementation: the operating system.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};

use rustix::fs::{AtFlags, Mode, OFlags};

/// Files are named relative to the descriptor of their folder.
pub(crate) trait Disk: Send + Sync {
    /// Makes an empty file. One that is there is emptied: only for names that nobody else opens.
    fn create(&self, folder: &OwnedFd, name: &str) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        Ok(rustix::fs::openat(folder, name, flags, Mode::RUSR | Mode::WUSR)?.into())
    }

    /// Sets the length of a file that is shorter, without writing anything.
    fn set_len(&self, file: &File, len: u64) -> io::Result<()> {
        file.set_len(len)
    }

    /// Writes all of `bytes`.
    fn write_at(&self, file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
        file.write_all_at(bytes, at)
    }

    /// Makes the bytes of a file, and its length, durable.
    fn sync(&self, file: &File) -> io::Result<()> {
        Ok(rustix::fs::fdatasync(file)?)
    }

    /// Makes the names in a folder durable.
    fn sync_folder(&self, folder: &OwnedFd) -> io::Result<()> {
        Ok(rustix::fs::fsync(folder)?)
    }

    /// Gives a file another name; what had it is gone.
    fn rename(&self, folder: &OwnedFd, from: &str, to: &str) -> io::Result<()> {
        Ok(rustix::fs::renameat(folder, from, folder, to)?)
    }

    /// Takes a name away, and says whether it was there.
    fn unlink(&self, folder: &OwnedFd, name: &str) -> io::Result<bool> {
        match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::NOENT) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Gives the blocks of a part of a file back; it reads as zeros then.
    fn punch(&self, file: &File, at: u64, len: u64) -> io::Result<()> {
        let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(file, flags, at, len)?)
    }

    /// The number by which the file system knows a file.
    fn inode(&self, file: &File) -> io::Result<u64> {
        Ok(file.metadata()?.ino())
    }
}

/// The operating system.
pub(crate) struct Os;

impl Disk for Os {}

/// Replaces `name` in `folder` so that a crash leaves the old or the new content.
pub(crate) fn replace(folder: &OwnedFd, name: &str, content: &[u8]) -> io::Result<()> {
    replace_on(&Os, folder, name, content)
}

/// As [`replace`].
pub(crate) fn replace_on(disk: &dyn Disk, folder: &OwnedFd, name: &str, content: &[u8]) -> io::Result<()> {
    put(disk, folder, name, content, true)?;
    disk.sync_folder(folder)
}

/// Puts `content` under `name`. Without `durable` a killed process leaves the old or the new content, and a
/// power cut may leave anything: only for what is checked when it is read.
pub(crate) fn put(
    disk: &dyn Disk,
    folder: &OwnedFd,
    name: &str,
    content: &[u8],
    durable: bool,
) -> io::Result<()> {
    let temporary = format!("{name}.tmp");
    let file = disk.create(folder, &temporary)?;
    disk.write_at(&file, content, 0)?;
    if durable {
        disk.sync(&file)?;
    }
    disk.rename(folder, &temporary, name)
}
