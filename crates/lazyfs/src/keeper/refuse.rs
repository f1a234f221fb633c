//! What the keeper tells the kernel when no worker has come for a while: an error. A reader that waits for ever is
//! worse than one that is told; and neither may ever be shown a hole.
//!
//! Descriptors stay open all the time. What was asked and not answered is refused first, then whatever comes.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::names::{DATA, FUSE, GROUP, JOURNAL};
use super::sys;
use super::wire::Name;
use crate::fuse::abi;

/// Requests that are answered in one go, before others are looked at.
const AT_ONCE: usize = 256;
/// Larger than the largest request that the kernel sends to a file system that is never written to.
const REQUEST: usize = 64 << 10;

/// The refusing of what is kept. Dropped, it leaves everything to the worker.
#[derive(Debug, Default)]
pub struct Refusing {
    /// Own descriptors of FUSE connections: reading from the kept one would wait, and its flags are the worker's too.
    devices: Vec<OwnedFd>,
    group: Option<OwnedFd>,
}

impl Refusing {
    /// Begins with what was asked already.
    pub fn begin(kept: &BTreeMap<Name, OwnedFd>) -> Self {
        let find = |wanted: &str| kept.iter().find(|(name, _)| name.as_str() == wanted).map(|(_, fd)| fd);
        let mut refusing = Self::default();
        if let Some(group) = find(GROUP) {
            if let Some(journal) = find(JOURNAL)
                && let Err(error) = crate::native::refuse_unanswered(group.as_fd(), journal.as_fd())
            {
                tracing::error!(%error, "events that a worker left cannot be refused");
            }
            refusing.group = group.try_clone().ok();
        }
        for (name, device) in kept.iter().filter(|(name, _)| name.as_str().starts_with(FUSE)) {
            match fuse(device.as_fd()) {
                Ok(clone) => refusing.devices.push(clone),
                Err(error) => tracing::debug!(%name, %error, "requests of a mount cannot be refused"),
            }
        }
        refusing
    }

    /// What to wait for.
    pub fn descriptors(&self) -> impl Iterator<Item = PollFd<'_>> {
        self.devices.iter().chain(&self.group).map(|fd| PollFd::new(fd, PollFlags::IN))
    }

    /// Refuses what there is.
    pub fn refuse(&self) {
        if let Some(group) = &self.group
            && let Err(error) = crate::native::refuse_new(group.as_fd())
        {
            tracing::error!(%error, "events cannot be refused");
        }
        let mut buffer = vec![0; REQUEST];
        for device in &self.devices {
            for _ in 0..AT_ONCE {
                match rustix::io::read(device, &mut buffer) {
                    Ok(len) => answer(device, buffer.get(..len).unwrap_or_default()),
                    // Withdrawn while it was read, or a signal.
                    Err(Errno::NOENT | Errno::INTR) => {}
                    Err(_) => break,
                }
            }
        }
    }
}

/// A descriptor of its own for a kept FUSE connection, after all that was taken and not answered was asked for again.
fn fuse(kept: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let fresh = rustix::fs::open("/dev/fuse", flags, Mode::empty())?;
    sys::fuse_clone(kept, &fresh)?;
    if let Err(error) = rustix::io::write(kept, &abi::notification(abi::notify::RESEND)) {
        // Before Linux 6.9; who waits since then waits on.
        tracing::warn!(%error, "requests that a worker took cannot be had again");
    }
    Ok(fresh)
}

fn answer(device: &OwnedFd, request: &[u8]) {
    let number = |at: usize| Some(u32::from_ne_bytes(*request.get(at..)?.first_chunk::<4>()?));
    let unique =
        request.get(8..).and_then(|rest| rest.first_chunk::<8>()).map(|bytes| u64::from_ne_bytes(*bytes));
    let (Some(code), Some(unique)) = (number(4), unique) else { return };
    if matches!(code, abi::op::FORGET | abi::op::BATCH_FORGET | abi::op::INTERRUPT) {
        return;
    }
    let reply = abi::out_header(unique, Errno::IO.raw_os_error(), 0);
    if let Err(error) = rustix::io::write(device, &reply)
        && error != Errno::NOENT
    {
        tracing::debug!(%error, "a request of a mount cannot be refused");
    }
}

/// Which names nothing in the kernel needs any more. Only to be asked while no worker is there.
pub fn needless(kept: &BTreeMap<Name, OwnedFd>) -> Vec<Name> {
    let native = native_is_shown();
    let of_native = |name: &str| name == GROUP || name == JOURNAL || name.starts_with(DATA);
    kept.iter()
        .filter(|(name, fd)| match name.as_str() {
            name if name.starts_with(FUSE) => is_over(fd),
            name => of_native(name) && !native,
        })
        .map(|(name, _)| name.clone())
        .collect()
}

/// Whether the kernel is done with a FUSE connection: nothing is mounted, and nothing has a file open in it.
fn is_over(device: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(device, PollFlags::empty())];
    let polled = rustix::event::poll(&mut fds, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 }));
    polled.is_ok() && fds.iter().any(|fd| fd.revents().contains(PollFlags::ERR))
}

/// Whether any EROFS file system lives on this machine, mounted or only used still. Yes, if that cannot be known.
fn native_is_shown() -> bool {
    let Ok(entries) = std::fs::read_dir("/sys/class/bdi") else { return true };
    let mut any = false;
    for entry in entries {
        let Ok(entry) = entry else { return true };
        any = true;
        if entry.file_name().as_encoded_bytes().starts_with(b"erofs") {
            return true;
        }
    }
    !any
}
