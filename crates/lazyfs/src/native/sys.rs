//! The calls that no safe crate has: fanotify, and memory that two processes share.
//!
//! All `unsafe` of the driver is in this file.

#![allow(unsafe_code)]

use std::ffi::c_int;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

/// An event before bytes are read. linux/fanotify.h; Linux 6.14.
pub(crate) const FAN_PRE_ACCESS: u64 = 0x0010_0000;
/// Waits for an answer, and the answer is that the reader gets an error. linux/fanotify.h `FAN_DENY_ERRNO`.
const DENY_EIO: u32 = libc::FAN_DENY | ((libc::EIO as u32) << 24);

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A group for events before access. Its descriptor does not block; descriptors of events are read-only.
pub(crate) fn fanotify_init() -> io::Result<OwnedFd> {
    let flags = libc::FAN_CLASS_PRE_CONTENT
        | libc::FAN_CLOEXEC
        | libc::FAN_NONBLOCK
        | libc::FAN_UNLIMITED_QUEUE
        | libc::FAN_UNLIMITED_MARKS;
    let event_flags = libc::O_RDONLY | libc::O_LARGEFILE | libc::O_CLOEXEC;
    // SAFETY: the call takes two numbers.
    let fd = check(unsafe { libc::fanotify_init(flags, event_flags.cast_unsigned()) })?;
    // SAFETY: the kernel just gave us this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sets the mark on the file behind `file`, or takes it off. Both may be repeated.
pub(crate) fn fanotify_mark(group: BorrowedFd<'_>, file: BorrowedFd<'_>, set: bool) -> io::Result<()> {
    let flags = if set { libc::FAN_MARK_ADD } else { libc::FAN_MARK_REMOVE };
    // SAFETY: both descriptors are open; without a path the call is about the second of them.
    let result = unsafe {
        libc::fanotify_mark(group.as_raw_fd(), flags, FAN_PRE_ACCESS, file.as_raw_fd(), std::ptr::null())
    };
    match check(result) {
        Err(error) if !set && error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        result => result.map(drop),
    }
}

/// What a waiting reader is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// The bytes are there.
    Allow,
    /// They cannot be had: `EIO`.
    Refuse,
}

/// Answers the event that has the number `event` in the group. That there is no such event is no error.
pub(crate) fn respond(group: RawFd, event: RawFd, verdict: Verdict) -> io::Result<()> {
    let response = libc::fanotify_response {
        fd: event,
        response: match verdict {
            Verdict::Allow => libc::FAN_ALLOW,
            Verdict::Refuse => DENY_EIO,
        },
    };
    loop {
        // SAFETY: the response lives over the call, and its length is given.
        let wrote =
            unsafe { libc::write(group, (&raw const response).cast(), size_of::<libc::fanotify_response>()) };
        if wrote >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            // The reader was killed, or somebody answered before us.
            Some(libc::ENOENT) => return Ok(()),
            _ => return Err(error),
        }
    }
}

/// Device and inode behind the descriptor of an event.
pub(crate) fn identity(fd: RawFd) -> io::Result<(u64, u64)> {
    // SAFETY: `stat` is plain numbers, for which zeros are a value.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the buffer is ours and as large as the call wants; a number that is not open is an error.
    check(unsafe { libc::fstat(fd, &raw mut stat) })?;
    Ok((stat.st_dev, stat.st_ino))
}

/// Closes the descriptor of an event, or a [reserved](reserve) number.
pub(crate) fn close(fd: RawFd) {
    // SAFETY: the number came with an event or was reserved; nothing else in this process knows it.
    unsafe { libc::close(fd) };
}

/// A number that no descriptor of this process has, taken so that the kernel gives it to nothing else. Says whether
/// it could be had.
pub(crate) fn reserve(filler: BorrowedFd<'_>, number: RawFd) -> bool {
    // SAFETY: makes a new number for an open descriptor: the lowest that is free from `number` on.
    let Ok(got) = check(unsafe { libc::fcntl(filler.as_raw_fd(), libc::F_DUPFD_CLOEXEC, number) }) else {
        return false;
    };
    if got != number {
        close(got);
    }
    got == number
}

/// Waits until one of two descriptors can be read, or `milliseconds` have passed (-1: for ever). Says which.
pub(crate) fn wait(first: RawFd, second: RawFd, milliseconds: i32) -> io::Result<(bool, bool)> {
    let poll = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    let mut fds = [poll(first), poll(second)];
    // SAFETY: the array lives over the call, and its length is given.
    let result = unsafe { libc::poll(fds.as_mut_ptr(), 2, milliseconds) };
    match check(result) {
        Ok(_) => Ok((fds[0].revents != 0, fds[1].revents != 0)),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok((false, false)),
        Err(error) => Err(error),
    }
}

/// Reads from a descriptor.
pub(crate) fn read(fd: RawFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the buffer is ours, and its length is given.
    let read = unsafe { libc::read(fd, buffer.as_mut_ptr().cast(), buffer.len()) };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}

/// Memory that lives as long as somebody has its descriptor.
#[derive(Debug)]
pub(crate) struct Shared {
    memory: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: the memory is reached as atomics only, belongs to no thread, and is unmapped when the value is dropped.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// Makes the memory's descriptor: `words` words of zeros, of a size that nobody can change.
    pub(crate) fn create(words: usize) -> io::Result<OwnedFd> {
        // SAFETY: the name is a string that lives for ever.
        let fd = check(unsafe {
            libc::memfd_create(c"pantala-journal".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING)
        })?;
        // SAFETY: the kernel just gave us this descriptor, and nobody else knows it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        rustix::fs::ftruncate(&fd, words.saturating_mul(8) as u64)?;
        rustix::fs::fcntl_add_seals(
            &fd,
            rustix::fs::SealFlags::SHRINK | rustix::fs::SealFlags::GROW | rustix::fs::SealFlags::SEAL,
        )?;
        Ok(fd)
    }

    /// Maps it. It must have been made by [`Shared::create`] with as many words: of a size that cannot shrink.
    pub(crate) fn map(fd: BorrowedFd<'_>, words: usize) -> io::Result<Self> {
        let len = words.saturating_mul(8);
        let seals = rustix::fs::fcntl_get_seals(fd)?;
        let size = rustix::fs::fstat(fd)?.st_size;
        if !seals.contains(rustix::fs::SealFlags::SHRINK) || u64::try_from(size).ok() != Some(len as u64) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a journal of this version"));
        }
        // SAFETY: a new mapping at a place that the kernel chooses. The file cannot become shorter than the mapping.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        let memory = NonNull::new(memory).filter(|memory| memory.as_ptr() != libc::MAP_FAILED);
        let memory = memory.ok_or_else(io::Error::last_os_error)?.cast();
        Ok(Self { memory, words })
    }

    /// Keeps the first `words` words in memory. Best effort: they are few.
    pub(crate) fn pin(&self, words: usize) -> io::Result<()> {
        let len = words.min(self.words).saturating_mul(8);
        // SAFETY: the range lies inside the mapping.
        check(unsafe { libc::madvise(self.memory.as_ptr().cast(), len, libc::MADV_POPULATE_WRITE) })?;
        // SAFETY: as above.
        check(unsafe { libc::mlock(self.memory.as_ptr().cast(), len) }).map(drop)
    }

    /// All words.
    pub(crate) fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is that long, aligned to a page, and lives as long as `self`; atomics may be shared with
        // whoever else has it mapped.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr(), self.words) }
    }

    /// Lets the kernel write what it reads from `fd` into the words `from..from + len`. Returns bytes.
    pub(crate) fn read_into(&self, fd: RawFd, from: usize, len: usize) -> io::Result<usize> {
        let inside = from.checked_add(len).is_some_and(|end| end <= self.words);
        if !inside {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: the words lie inside the mapping. They are atomics to everybody here; nobody reads them before the
        // call has returned but who takes over after this process died.
        let read = unsafe { libc::read(fd, self.memory.as_ptr().add(from).cast(), len.saturating_mul(8)) };
        usize::try_from(read).map_err(|_| io::Error::last_os_error())
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nothing borrows it any more.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), self.words.saturating_mul(8)) };
    }
}
