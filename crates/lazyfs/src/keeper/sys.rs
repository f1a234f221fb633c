//! The calls that no safe crate has: signals as a descriptor, a child that dies with its parent, descriptors that a
//! service manager passed. All `unsafe` of the keeper is in this file.

#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use rustix::process::{Pid, Signal};

/// `FUSE_DEV_IOC_CLONE`, `_IOR(229, 0, uint32_t)` of linux/fuse.h.
const FUSE_DEV_IOC_CLONE: libc::c_ulong = 0x8004_e500;

fn signal_set(signals: &[libc::c_int]) -> libc::sigset_t {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `sigemptyset` initialises the set that it is given, which is ours.
    let mut set = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        set.assume_init()
    };
    for signal in signals {
        // SAFETY: the set is initialised; a number that is no signal is refused.
        unsafe { libc::sigaddset(&raw mut set, *signal) };
    }
    set
}

/// Holds signals back and makes them readable. To be called before there is a second thread.
pub fn signals(signals: &[libc::c_int]) -> io::Result<OwnedFd> {
    let set = signal_set(signals);
    // SAFETY: the set is initialised, and nothing is asked back.
    let blocked = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
    if blocked != 0 {
        return Err(io::Error::from_raw_os_error(blocked));
    }
    // SAFETY: the set is initialised; -1 asks for a new descriptor.
    let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave us this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Lets every signal through again, as a program expects it that was not started by a supervisor.
fn unblock_all() -> io::Result<()> {
    let set = signal_set(&[]);
    // SAFETY: the set is initialised, and nothing is asked back.
    match unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut()) } {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// The signals that came, in order. Does not wait.
pub fn read_signals(descriptor: &OwnedFd) -> Vec<i32> {
    const LEN: usize = size_of::<libc::signalfd_siginfo>();
    let mut found = Vec::new();
    let mut buffer = [0_u8; LEN];
    // The kernel writes whole structures; `ssi_signo` is the first number of each.
    while let Ok(LEN) = rustix::io::read(descriptor, &mut buffer) {
        if let Some(number) = buffer.first_chunk::<4>() {
            found.push(u32::from_ne_bytes(*number).cast_signed());
        }
    }
    found
}

/// Makes the child of `command` one that dies as soon as this thread's process does, and hears every signal.
pub fn dies_with_us(command: &mut Command) {
    let parent = rustix::process::getpid();
    let prepare = move || {
        unblock_all()?;
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        // The parent may have died before that.
        if rustix::process::getppid() == Some(parent) { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
    };
    // SAFETY: the closure runs between fork and exec, and only makes system calls: it allocates nothing and takes no
    // lock.
    unsafe { command.pre_exec(prepare) };
}

/// Makes the child of `command` one that hears every signal, in a session of its own.
pub fn stands_alone(command: &mut Command) {
    let prepare = || {
        unblock_all()?;
        rustix::process::setsid()?;
        Ok(())
    };
    // SAFETY: as above, system calls alone.
    unsafe { command.pre_exec(prepare) };
}

/// A second descriptor of a FUSE connection, which can wait by itself.
pub fn fuse_clone(kept: BorrowedFd<'_>, fresh: &OwnedFd) -> io::Result<()> {
    let number: u32 = kept.as_raw_fd().cast_unsigned();
    // SAFETY: both descriptors are open; the call reads one number, which outlives it.
    match unsafe { libc::ioctl(fresh.as_raw_fd(), FUSE_DEV_IOC_CLONE, &raw const number) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Takes the descriptors 3, 4, … that a service manager passed to this process: systemd's protocol of `LISTEN_FDS`.
/// To be called once, at the start, before anything else is opened.
pub fn passed(count: usize) -> Vec<OwnedFd> {
    let first: RawFd = 3;
    let numbers = (first..).take(count);
    numbers
        .filter_map(|number| {
            // SAFETY: `fcntl` looks at any number; an open one is marked to be closed on exec.
            let open = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } == 0;
            // SAFETY: it is open, and by the protocol it belongs to nobody but us.
            open.then(|| unsafe { OwnedFd::from_raw_fd(number) })
        })
        .collect()
}

/// Takes a descriptor that this process inherited under `number`. To be called once for each, with numbers that whoever
/// started this process told it.
pub fn inherited(number: RawFd) -> Option<OwnedFd> {
    // Not the three that belong to everybody.
    if number < 3 {
        return None;
    }
    // SAFETY: `fcntl` looks at any number; an open one is marked to be closed on exec.
    let open = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } == 0;
    // SAFETY: it is open, and it was opened for us before this program began, so nobody else here owns it.
    open.then(|| unsafe { OwnedFd::from_raw_fd(number) })
}

/// Ends a process.
pub fn kill(pid: Pid, signal: Signal) {
    // It may be gone already.
    let _ = rustix::process::kill_process(pid, signal);
}

/// Microseconds of the monotonic clock, as systemd wants them.
pub fn monotonic_micros() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure is ours.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    let number = |value: i64| u64::try_from(value).unwrap_or(0);
    number(now.tv_sec).saturating_mul(1_000_000).saturating_add(number(now.tv_nsec) / 1000)
}

/// Goes on in a child of this process, which ends: whoever started it waits for nobody. To be called while there is
/// one thread.
///
/// # Errors
/// That there can be no further process.
pub fn detach() -> io::Result<()> {
    // SAFETY: there is one thread, so no lock is held that the child would find locked for ever.
    match unsafe { libc::fork() } {
        0 => Ok(()),
        child if child > 0 => {
            // SAFETY: ends the process without running what other code registered; the child goes on with all of it.
            unsafe { libc::_exit(0) }
        }
        _ => Err(io::Error::last_os_error()),
    }
}
