//! Mounting an EROFS image from a file, and what the kernel calls the superblock that comes of it.
//!
//! A superblock lives longer than its mountpoint: as long as an overlay or an open file needs it. The kernel does not
//! say when it goes, but for as long as it is there it has a `/sys/class/bdi/erofs-N`, with an N that only grows.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::FlockOperation;
use rustix::mount::MountFlags;

const BDI: &str = "/sys/class/bdi";
const PREFIX: &str = "erofs-";
/// The kernel's window for a sequential reader. Each window is one event, and costs its reader one wait.
const READ_AHEAD_KB: &str = "1024";

/// One mount at a time in this process: what is new afterwards is what was mounted.
static MOUNTING: Mutex<()> = Mutex::new(());

/// Numbers of all EROFS superblocks.
pub(crate) fn all() -> Vec<u64> {
    let Ok(listing) = std::fs::read_dir(BDI) else { return Vec::new() };
    let number = |name: std::ffi::OsString| name.to_str()?.strip_prefix(PREFIX)?.parse().ok();
    listing.flatten().filter_map(|entry| number(entry.file_name())).collect()
}

/// In a number: the superblock is one of those that came after it.
const AFTER: u64 = 1 << 63;

/// Stands for a superblock that came after the one with this number.
pub(crate) const fn after(number: u64) -> u64 {
    number | AFTER
}

/// Whether the superblock is alive, or may be.
pub(crate) fn is_alive(number: u64) -> bool {
    if number & AFTER == 0 {
        return Path::new(BDI).join(format!("{PREFIX}{number}")).exists();
    }
    all().into_iter().any(|other| other > number & !AFTER)
}

/// Keeps other processes of ours from mounting at the same time. Anybody can hold this lock, so it is not waited for
/// long: without it no more is lost than to know which of several superblocks is ours.
fn lock_machine() -> Option<File> {
    let folder = File::open(BDI).ok()?;
    for _ in 0..20 {
        if rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive).is_ok() {
            return Some(folder);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    None
}

/// What was mounted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mounted {
    pub(crate) dev: u64,
    /// Its number, for [`is_alive`].
    pub(crate) number: u64,
}

/// Mounts `image` over `data` at `at`. `before` is called right before the mount, with a number that stands for what will
/// be mounted.
pub(crate) fn mount(
    image: &File,
    data: BorrowedFd<'_>,
    at: &Path,
    before: impl FnOnce(u64) -> io::Result<()>,
) -> io::Result<Mounted> {
    let _alone = MOUNTING.lock().unwrap_or_else(PoisonError::into_inner);
    let _alone_here = lock_machine();
    let old = all();
    let unknown = after(old.iter().copied().max().unwrap_or(0));
    before(unknown)?;
    let source = source_of(image);
    let options = CString::new(format!("device=/proc/self/fd/{}", data.as_raw_fd()))?;
    // Set-user-ID files, devices and programs keep their meaning, as in any container image: what shows a single layer
    // without an overlay on top is a bind mount, and that inherits these flags. The layers' directory is closed to all
    // but root.
    let flags = MountFlags::RDONLY | MountFlags::NOATIME;
    rustix::mount::mount(&source, at, "erofs", flags, options.as_c_str())?;
    let fresh: Vec<u64> = all().into_iter().filter(|number| !old.contains(number)).collect();
    for number in &fresh {
        let knob = Path::new(BDI).join(format!("{PREFIX}{number}/read_ahead_kb"));
        if let Err(error) = std::fs::write(&knob, READ_AHEAD_KB) {
            tracing::debug!(%error, "the kernel's window stays as it is");
        }
    }
    let number = match fresh.as_slice() {
        [number] => Ok(*number),
        // Without it nobody would know how long the data file is needed.
        [] => {
            Err(io::Error::new(io::ErrorKind::NotFound, "the superblock does not appear in /sys/class/bdi"))
        }
        // Somebody else mounts too.
        _ => Ok(unknown),
    };
    match std::fs::symlink_metadata(at).and_then(|data| Ok(Mounted { dev: data.dev(), number: number? })) {
        Ok(mounted) => Ok(mounted),
        Err(error) => {
            let _ = crate::mountpoint::detach(at);
            Err(error)
        }
    }
}

/// The path of the image, for `/proc/mounts`; by its descriptor if it is not there, or somewhere too deep.
fn source_of(image: &File) -> PathBuf {
    let descriptor = PathBuf::from(format!("/proc/self/fd/{}", image.as_raw_fd()));
    let named = std::fs::read_link(&descriptor).ok().filter(|path| {
        let same = |named: std::fs::Metadata, ours: std::fs::Metadata| {
            (named.dev(), named.ino()) == (ours.dev(), ours.ino())
        };
        std::fs::symlink_metadata(path).and_then(|named| Ok(same(named, image.metadata()?))).unwrap_or(false)
    });
    named.unwrap_or(descriptor)
}
