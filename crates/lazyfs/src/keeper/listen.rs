//! Sockets that a service manager listens on for this service (systemd's `.socket` units): they exist before the service
//! does, and while it is started again.
//!
//! The supervisor gets them (`LISTEN_FDS`) and holds them. A worker inherits them under the same numbers and learns those,
//! with the names that the manager gave them, from a variable of our own: `LISTEN_PID` would have to name a process that
//! does not exist yet. The program that follows in the supervisor's place learns them in the same way.

use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::process::Command;

use rustix::io::FdFlags;
use rustix::net::{AddressFamily, SocketType, sockopt};

use super::store;
use super::sys;
use super::wire::Name;

/// `number=name`, separated by colons, which no name has.
const SOCKETS: &str = "PANTALA_SOCKETS";
/// More are not passed on: a service has one, or two.
const MOST: usize = 8;

/// The sockets that are listened on for this process, with their names, from whoever started it. To be called once.
pub fn sockets() -> Vec<(String, OwnedFd)> {
    let passed = match std::env::var(SOCKETS) {
        Ok(text) => inherited(&text),
        Err(_) => {
            store::given_back().into_iter().filter(|(_, descriptor)| is_listening(descriptor)).collect()
        }
    };
    passed.into_iter().map(|(name, descriptor)| (name.to_string(), descriptor)).collect()
}

/// What a supervisor inherited from the program before it.
pub(super) fn of_predecessor() -> Vec<(Name, OwnedFd)> {
    std::env::var(SOCKETS).map(|text| inherited(&text)).unwrap_or_default()
}

fn inherited(text: &str) -> Vec<(Name, OwnedFd)> {
    let parts = text.split(':').take(MOST).filter_map(|part| {
        let (number, name) = part.split_once('=')?;
        Some((Name::parse(name.as_bytes()).ok()?, sys::inherited(number.parse().ok()?)?))
    });
    parts.filter(|(_, descriptor)| is_listening(descriptor)).collect()
}

/// Whether it is a Unix socket that accepts connections.
pub(super) fn is_listening(descriptor: &OwnedFd) -> bool {
    sockopt::socket_domain(descriptor).is_ok_and(|domain| domain == AddressFamily::UNIX)
        && sockopt::socket_type(descriptor).is_ok_and(|kind| kind == SocketType::STREAM)
        && sockopt::socket_acceptconn(descriptor).unwrap_or(false)
}

/// Lets `run` start `command`, or become it, with these sockets.
pub(super) fn pass<T>(
    sockets: &[(Name, OwnedFd)],
    command: &mut Command,
    run: impl FnOnce(&mut Command) -> T,
) -> T {
    if sockets.is_empty() {
        command.env_remove(SOCKETS);
        return run(command);
    }
    let numbers = sockets.iter().map(|(name, descriptor)| format!("{}={name}", descriptor.as_raw_fd()));
    command.env(SOCKETS, numbers.collect::<Vec<_>>().join(":"));
    let inherit = |flags: FdFlags| {
        for (_, descriptor) in sockets {
            if let Err(error) = rustix::io::fcntl_setfd(descriptor.as_fd(), flags) {
                tracing::warn!(%error, "a socket of the service manager cannot be passed on");
            }
        }
    };
    // There is one thread, so nothing else is started meanwhile.
    inherit(FdFlags::empty());
    let ran = run(command);
    inherit(FdFlags::CLOEXEC);
    ran
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

    use super::*;

    #[test]
    fn only_what_listens_is_passed_on() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("s")).unwrap();
        assert!(is_listening(&listener.into()));
        assert!(!is_listening(&UnixStream::pair().unwrap().0.into()));
        assert!(!is_listening(&UnixDatagram::unbound().unwrap().into()));
        assert!(!is_listening(&std::net::TcpListener::bind("127.0.0.1:0").unwrap().into()));
    }

    #[test]
    fn a_child_finds_them_under_the_numbers_that_it_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener: OwnedFd = UnixListener::bind(&path).unwrap().into();
        let sockets = [(Name::parse(b"pantala.socket").unwrap(), listener)];
        let mut command = Command::new("sh");
        command
            .args(["-c", "n=${PANTALA_SOCKETS%%=*}; echo ${PANTALA_SOCKETS#*=}; readlink /proc/self/fd/$n"]);
        let said = pass(&sockets, &mut command, |command| command.output().unwrap());
        let said = String::from_utf8(said.stdout).unwrap();
        assert!(said.starts_with("pantala.socket\nsocket:["), "{said}");
        let flags = rustix::io::fcntl_getfd(&sockets[0].1).unwrap();
        assert!(flags.contains(FdFlags::CLOEXEC));
    }
}
