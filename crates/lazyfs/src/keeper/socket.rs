//! The socket between a keeper and its clients: whole messages, and at most one descriptor with each.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, UCred,
};
use rustix::process::Pid;

use super::wire::LONGEST;

/// The name of the socket in the root directory.
pub const SOCKET: &str = "keeper.sock";
/// The name of the file that a keeper locks as long as it lives.
pub const LOCK: &str = "keeper.lock";
/// Descriptors that one message may carry before it is cut off. More than one is an error.
const MOST_DESCRIPTORS: usize = 4;

/// A message as it came.
#[derive(Debug)]
pub struct Received {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// What came with it.
    pub descriptor: Option<OwnedFd>,
}

/// The root directory, and the address of the socket in it. The path of a socket may have 107 bytes only; through
/// the directory's descriptor it always fits. The address is good as long as the descriptor is open.
fn address(root: &Path) -> io::Result<(OwnedFd, SocketAddrUnix)> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(root, flags, Mode::empty())?;
    let path = format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd());
    Ok((directory, SocketAddrUnix::new(path)?))
}

/// A socket of the kind that is spoken through.
fn socket(flags: SocketFlags) -> io::Result<OwnedFd> {
    let flags = flags | SocketFlags::CLOEXEC;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// Listens in `root`; whoever may read the socket's file may connect, and that is its owner alone. A file of that name
/// must be gone before.
pub fn listen(root: &Path) -> io::Result<OwnedFd> {
    let (_directory, address) = address(root)?;
    let socket = socket(SocketFlags::NONBLOCK)?;
    // The mode of the file that `bind` makes is the socket's own, less the umask; so it is never wider.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, 16)?;
    Ok(socket)
}

/// Connects to the keeper of `root`. Whoever answers must be of our user, or root.
pub fn connect(root: &Path) -> io::Result<OwnedFd> {
    let (_directory, address) = address(root)?;
    let socket = socket(SocketFlags::empty())?;
    rustix::net::connect(&socket, &address)?;
    check_peer(&socket)?;
    Ok(socket)
}

/// Refuses a peer that is neither of our user nor root: what is kept is root's power over every container.
pub fn check_peer(socket: &OwnedFd) -> io::Result<Option<Pid>> {
    let peer = rustix::net::sockopt::socket_peercred(socket)?;
    if peer.uid.is_root() || peer.uid == rustix::process::geteuid() {
        // A process that cannot be seen from here has the number 0.
        Ok(Pid::from_raw(Pid::as_raw(Some(peer.pid))))
    } else {
        Err(io::Error::new(io::ErrorKind::PermissionDenied, "the peer belongs to another user"))
    }
}

/// Sends a message, with a descriptor or without.
pub fn send(
    socket: impl AsFd,
    bytes: &[u8],
    descriptor: Option<BorrowedFd<'_>>,
    wait: bool,
) -> io::Result<()> {
    let carried: Vec<_> = descriptor.into_iter().collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !carried.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&carried)) {
        return Err(Errno::NOBUFS.into());
    }
    let mut flags = SendFlags::NOSIGNAL;
    flags.set(SendFlags::DONTWAIT, !wait);
    let sent = rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(socket.as_fd(), &[IoSlice::new(bytes)], &mut control, flags)
    })?;
    if sent == bytes.len() { Ok(()) } else { Err(Errno::MSGSIZE.into()) }
}

/// Sends a message to a service manager, in the name of `process` if one is given: it must live, and the sender must be
/// root. Waits if the other side is busy.
pub fn send_as(
    socket: impl AsFd,
    bytes: &[u8],
    descriptor: Option<BorrowedFd<'_>>,
    process: Option<Pid>,
) -> io::Result<()> {
    let carried: Vec<_> = descriptor.into_iter().collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1), ScmCredentials(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let name = process.map(|pid| {
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        SendAncillaryMessage::ScmCredentials(UCred { pid, uid, gid })
    });
    let fits = (carried.is_empty() || control.push(SendAncillaryMessage::ScmRights(&carried)))
        && name.is_none_or(|name| control.push(name));
    if !fits {
        return Err(Errno::NOBUFS.into());
    }
    let sent = rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(socket.as_fd(), &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)
    })?;
    if sent == bytes.len() { Ok(()) } else { Err(Errno::MSGSIZE.into()) }
}

/// Receives a message; `None` if the other side has closed. With `wait`, it waits for one.
///
/// # Errors
/// What the system said; [`io::ErrorKind::InvalidData`] for a message that is too long or carries too much.
pub fn receive(socket: impl AsFd, wait: bool) -> io::Result<Option<Received>> {
    // One byte more than the longest: a longer one is noticed.
    let mut bytes = vec![0; LONGEST + 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut flags = RecvFlags::CMSG_CLOEXEC;
    flags.set(RecvFlags::DONTWAIT, !wait);
    let message = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(socket.as_fd(), &mut [IoSliceMut::new(&mut bytes)], &mut control, flags)
    })?;
    let mut descriptors = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            descriptors.extend(rights);
        }
    }
    let cut = message.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
    if cut || message.bytes > LONGEST || descriptors.len() > 1 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a message that is too long, or carries too much",
        ));
    }
    // No message is empty: this is the end.
    if message.bytes == 0 {
        return Ok(None);
    }
    bytes.truncate(message.bytes);
    Ok(Some(Received { bytes, descriptor: descriptors.pop() }))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        let kind = SocketType::SEQPACKET;
        rustix::net::socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap()
    }

    #[test]
    fn a_descriptor_comes_through() {
        let (here, there) = pair();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        send(&here, b"hello", Some(writer.as_fd()), true).unwrap();
        drop(writer);
        let got = receive(&there, true).unwrap().unwrap();
        assert_eq!(got.bytes, b"hello");
        rustix::io::write(got.descriptor.unwrap(), b"x").unwrap();
        assert_eq!(rustix::io::read(&reader, &mut [0; 4]).unwrap(), 1);
        drop(here);
        assert!(receive(&there, true).unwrap().is_none());
    }

    #[test]
    fn two_descriptors_or_too_many_bytes_are_refused_and_nothing_leaks() {
        let (here, there) = pair();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let carried = [writer.as_fd(), writer.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&carried)));
        rustix::net::sendmsg(&here, &[IoSlice::new(b"x")], &mut control, SendFlags::empty()).unwrap();
        assert_eq!(receive(&there, true).unwrap_err().kind(), io::ErrorKind::InvalidData);
        drop(writer);
        assert_eq!(rustix::io::read(&reader, &mut [0; 4]).unwrap(), 0, "somebody still holds the pipe");
        send(&here, &[1; LONGEST + 1], None, true).unwrap();
        assert_eq!(receive(&there, true).unwrap_err().kind(), io::ErrorKind::InvalidData);
        send(&here, &[1; LONGEST], None, true).unwrap();
        assert_eq!(receive(&there, true).unwrap().unwrap().bytes.len(), LONGEST);
        assert_eq!(receive(&there, false).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_long_root_has_a_socket_that_only_its_owner_reaches() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("x".repeat(200)).join("y".repeat(100));
        std::fs::create_dir_all(&root).unwrap();
        let listener = listen(&root).unwrap();
        let mode = std::fs::metadata(root.join(SOCKET)).unwrap().permissions().mode();
        assert_eq!(mode & 0o177, 0, "{mode:o}");
        let _client = connect(&root).unwrap();
        let accepted = rustix::net::accept(&listener).unwrap();
        assert_eq!(check_peer(&accepted).unwrap(), Some(rustix::process::getpid()));
    }
}
