//! systemd's descriptor store, the second belt: what is kept is also with the service manager, and comes back when
//! the whole service is started again. (`FileDescriptorStoreMax=`, `sd_notify(3)`, `sd_listen_fds(3)`.)

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::socket;
use super::sys;
use super::wire::Name;

/// Says something to the service manager, if there is one that listens.
#[derive(Debug)]
pub struct Manager(Option<(OwnedFd, SocketAddrUnix)>);

impl Manager {
    /// The one of `$NOTIFY_SOCKET`.
    pub fn of_environment() -> Self {
        Self(std::env::var_os("NOTIFY_SOCKET").and_then(Self::at))
    }

    fn at(path: OsString) -> Option<(OwnedFd, SocketAddrUnix)> {
        let address = match path.as_encoded_bytes() {
            [] => return None,
            [b'@', name @ ..] => SocketAddrUnix::new_abstract_name(name).ok()?,
            _ => SocketAddrUnix::new(path).ok()?,
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let made = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None);
        Some((made.ok()?, address))
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

    fn say(&self, text: &str, descriptor: Option<BorrowedFd<'_>>) {
        let Some((socket, address)) = &self.0 else { return };
        // It may have been started again since: connected anew each time.
        let said = rustix::net::connect(socket, address)
            .map_err(io::Error::from)
            .and_then(|()| socket::send(socket.as_fd(), text.as_bytes(), descriptor, true));
        if let Err(error) = said {
            tracing::warn!(%error, "the service manager cannot be told: {}", text.replace('\n', " "));
        }
    }
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
