//! systemd's descriptor store, the second belt: what is kept is also with the service manager, and comes back when
//! the whole service is started again. (`FileDescriptorStoreMax=`, `sd_notify(3)`, `sd_listen_fds(3)`.)
//!
//! systemd listens to processes of the service's control group alone, and with `NotifyAccess=main` to the first of them
//! alone. The keeper leaves that group, so everything is said in the supervisor's name, as `sd_pid_notify(3)` does it: root
//! may.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::Pid;

use super::socket;
use super::sys;
use super::wire::Name;

/// How long the service manager may take to look at a message.
const LOOKED: Timespec = Timespec { tv_sec: 3, tv_nsec: 0 };

/// Says something to the service manager, if there is one that listens.
#[derive(Debug)]
pub struct Manager {
    at: Option<(OwnedFd, SocketAddrUnix)>,
    /// In whose name.
    speaker: Option<Pid>,
}

impl Manager {
    /// The one of `$NOTIFY_SOCKET`. A worker speaks in the name of its supervisor.
    pub fn of_environment() -> Self {
        let supervisor = std::env::var(super::WORKER).ok().and_then(|text| Pid::from_raw(text.parse().ok()?));
        Self { at: std::env::var_os("NOTIFY_SOCKET").and_then(Self::find), speaker: supervisor }
    }

    fn find(path: OsString) -> Option<(OwnedFd, SocketAddrUnix)> {
        let address = match path.as_encoded_bytes() {
            [] => return None,
            [b'@', name @ ..] => SocketAddrUnix::new_abstract_name(name).ok()?,
            _ => SocketAddrUnix::new(path).ok()?,
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let made = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None);
        Some((made.ok()?, address))
    }

    /// Speaks in the name of another process of the service from now on.
    pub fn speak_for(&mut self, process: Option<Pid>) {
        self.speaker = process.or(self.speaker);
    }

    /// Says `text`, lines of `KEY=value`.
    pub fn tell(&self, text: &str) {
        self.say(text, None);
    }

    /// Gives it a copy.
    pub fn store(&self, name: &Name, descriptor: BorrowedFd<'_>) {
        self.say(&format!("FDSTORE=1\nFDNAME={name}"), Some(descriptor));
    }

    /// Takes the copy back.
    pub fn remove(&self, name: &Name) {
        self.say(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), None);
    }

    /// Whether it really stores what it is given: it never says so, but what it does not store it closes, and it can be asked
    /// to show when it has looked (`BARRIER=1`). Waits for that, three seconds at most.
    ///
    /// # Errors
    /// Why not, in words.
    pub fn stores(&self) -> Result<(), String> {
        if self.at.is_none() {
            return Err("there is no service manager that stores descriptors".into());
        }
        let pipe =
            || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|error| error.to_string());
        let ((tried, stored), (looked, barrier)) = (pipe()?, pipe()?);
        self.say("FDSTORE=1\nFDNAME=pantala-trial", Some(stored.as_fd()));
        self.say("BARRIER=1", Some(barrier.as_fd()));
        drop((stored, barrier));
        let is_closed = |end: &OwnedFd, time: &Timespec| {
            let mut fds = [PollFd::new(end, PollFlags::empty())];
            matches!(rustix::io::retry_on_intr(|| poll(&mut fds, Some(time))), Ok(count) if count > 0)
        };
        if !is_closed(&looked, &LOOKED) {
            return Err("the service manager does not say whether it stores descriptors".into());
        }
        let kept = !is_closed(&tried, &Timespec { tv_sec: 0, tv_nsec: 0 });
        self.say("FDSTOREREMOVE=1\nFDNAME=pantala-trial", None);
        if kept {
            Ok(())
        } else {
            Err("the service manager stores no descriptors (FileDescriptorStoreMax=)".into())
        }
    }

    fn say(&self, text: &str, descriptor: Option<BorrowedFd<'_>>) {
        let Some((socket, address)) = &self.at else { return };
        // It may have been started again since: connected anew each time.
        let said = rustix::net::connect(socket, address).map_err(io::Error::from).and_then(|()| {
            let in_the_name_of =
                |process| socket::send_as(socket.as_fd(), text.as_bytes(), descriptor, process);
            match self.speaker.map(|speaker| in_the_name_of(Some(speaker))) {
                Some(Ok(())) => Ok(()),
                // It is gone, or we may not.
                _ => in_the_name_of(None),
            }
        });
        if let Err(error) = said {
            tracing::warn!(%error, "the service manager cannot be told: {}", text.replace('\n', " "));
        }
    }
}

/// Says `text`, lines of `KEY=value`, to the service manager, if there is one; in the name of the supervisor, if there is
/// one.
pub fn tell_manager(text: &str) {
    Manager::of_environment().tell(text);
}

/// What the service manager had stored, if it started this process anew. To be called once, before anything is opened.
pub fn given_back() -> Vec<(Name, OwnedFd)> {
    let number = |key| std::env::var(key).ok().and_then(|text| text.parse::<usize>().ok());
    let ours = number("LISTEN_PID") == usize::try_from(rustix::process::getpid().as_raw_pid()).ok();
    let Some(count) = number("LISTEN_FDS").filter(|_| ours) else { return Vec::new() };
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let given = sys::passed(count.min(super::MOST_KEPT)).into_iter().zip(names.split(':'));
    given.filter_map(|(descriptor, name)| Some((Name::parse(name.as_bytes()).ok()?, descriptor))).collect()
}
