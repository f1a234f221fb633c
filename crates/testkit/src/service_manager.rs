//! What systemd does for a service that it looks after: it hears what the service says, stores descriptors for it, and gives
//! them back when it starts the service again.
//!
//! The protocol is that of `sd_notify(3)` and `sd_listen_fds(3)`: datagrams at `$NOTIFY_SOCKET` with lines of
//! `KEY=value`, descriptors beside them; and descriptors from 3 on, told by `$LISTEN_FDS`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::io::FdFlags;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType,
};

/// Ends the thread.
const END: &[u8] = b"X_END=1";
/// Descriptors that are passed on lie from here on until they have their numbers.
const HIGH: i32 = 500;

/// What was said, and by whom.
#[derive(Debug, Clone)]
pub struct Message {
    /// Lines of `KEY=value`.
    pub text: String,
    /// The process in whose name it was said.
    pub sender: Option<i32>,
}

#[derive(Debug, Default)]
struct State {
    stored: BTreeMap<String, OwnedFd>,
    messages: Vec<Message>,
}

/// A service manager with one service. Ends when dropped, and gives up what it stored.
#[derive(Debug)]
pub struct ServiceManager {
    path: PathBuf,
    state: Arc<(Mutex<State>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl ServiceManager {
    /// Listens at `notify` in `dir`; stores as many descriptors as there are.
    pub fn start(dir: &Path) -> Result<Self> {
        Self::storing(dir, usize::MAX)
    }

    /// As [`ServiceManager::start`]; stores `most` descriptors at most, as `FileDescriptorStoreMax=` says it.
    pub fn storing(dir: &Path, most: usize) -> Result<Self> {
        let path = dir.join("notify");
        let flags = SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
        rustix::net::sockopt::set_socket_passcred(&socket, true)?;
        let _ = std::fs::remove_file(&path);
        rustix::net::bind(&socket, &SocketAddrUnix::new(&path)?).context("binding the notify socket")?;
        let state = Arc::<(Mutex<State>, Condvar)>::default();
        let shared = Arc::clone(&state);
        let thread = std::thread::Builder::new()
            .name("manager".into())
            .spawn(move || while receive(&socket, &shared, most).unwrap_or(false) {})?;
        Ok(Self { path, state, thread: Some(thread) })
    }

    /// The socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of what it stores.
    pub fn stored(&self) -> Vec<String> {
        self.state.0.lock().unwrap().stored.keys().cloned().collect()
    }

    /// All that was said.
    pub fn messages(&self) -> Vec<Message> {
        self.state.0.lock().unwrap().messages.clone()
    }

    /// Waits for a message with `line`, after the first `skip` messages; answers how many messages there were up to it.
    pub fn wait_for(&self, line: &str, skip: usize, limit: Duration) -> Result<usize> {
        let until = Instant::now() + limit;
        let mut state = self.state.0.lock().unwrap();
        loop {
            let mut heard = state.messages.iter().enumerate().skip(skip);
            if let Some((at, _)) = heard.find(|(_, message)| message.text.lines().any(|one| one == line)) {
                return Ok(at + 1);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("nobody said {line:?}, only {:?}", state.messages);
            }
            state = self.state.1.wait_timeout(state, left).unwrap().0;
        }
    }

    /// `command` as a service: it hears where to talk to, and has what is stored. What comes with it lives until the service
    /// was started; nothing else may be started meanwhile, or it would have the descriptors too.
    pub fn service(&self, command: &Command) -> Result<(Command, Vec<OwnedFd>)> {
        let mut given = Vec::new();
        let mut names = Vec::new();
        for (name, fd) in &self.state.0.lock().unwrap().stored {
            let fd = rustix::io::fcntl_dupfd_cloexec(fd, HIGH)?;
            rustix::io::fcntl_setfd(&fd, FdFlags::empty())?;
            given.push(fd);
            names.push(name.clone());
        }
        // They get their numbers in the process that becomes the service.
        let moves = given.iter().zip(3..).map(|(fd, number)| {
            let high = fd.as_raw_fd();
            format!("exec {number}<&{high} {high}<&-\n")
        });
        let mut script = moves.collect::<String>();
        if !given.is_empty() {
            let (count, names) = (given.len(), names.join(":"));
            writeln!(script, "export LISTEN_PID=$$ LISTEN_FDS={count} LISTEN_FDNAMES={names}")?;
        }
        script += "exec \"$@\"";
        let mut service = Command::new("bash");
        service.arg("-c").arg(script).arg("bash").arg(command.get_program()).args(command.get_args());
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => service.env(key, value),
                None => service.env_remove(key),
            };
        }
        service.env("NOTIFY_SOCKET", &self.path).env_remove("JOURNAL_STREAM");
        Ok((service, given))
    }
}

impl Drop for ServiceManager {
    fn drop(&mut self) {
        let end = || -> rustix::io::Result<()> {
            let (kind, flags) = (SocketType::DGRAM, SocketFlags::CLOEXEC);
            let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?;
            let address = SocketAddrUnix::new(&self.path)?;
            rustix::net::sendto(&socket, END, SendFlags::empty(), &address).map(drop)
        };
        if let (Ok(()), Some(thread)) = (end(), self.thread.take()) {
            let _ = thread.join();
        }
    }
}

/// Takes one message; `false` if it was the last.
fn receive(socket: &OwnedFd, state: &(Mutex<State>, Condvar), most: usize) -> rustix::io::Result<bool> {
    let mut bytes = [0; 8192];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8), ScmCredentials(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let got = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    // Closed at the end of this function, if it is not stored: that is how a service sees that it was looked at.
    let (mut fds, mut sender) = (Vec::new(), None);
    for part in control.drain() {
        match part {
            RecvAncillaryMessage::ScmRights(rights) => fds.extend(rights),
            RecvAncillaryMessage::ScmCredentials(who) => sender = Some(who.pid.as_raw_pid()),
            _ => {}
        }
    }
    let text = bytes.get(..got.bytes).unwrap_or_default();
    if text == END {
        return Ok(false);
    }
    let text = String::from_utf8_lossy(text).into_owned();
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key));
    let name = value("FDNAME=").unwrap_or("stored").to_owned();
    let mut state_now = state.0.lock().unwrap();
    if value("FDSTOREREMOVE=") == Some("1") {
        state_now.stored.remove(&name);
    } else if value("FDSTORE=") == Some("1")
        && (state_now.stored.len() < most || state_now.stored.contains_key(&name))
        && let Some(fd) = fds.pop()
    {
        state_now.stored.insert(name, fd);
    }
    state_now.messages.push(Message { text, sender });
    state.1.notify_all();
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_service_stores_it_is_given_at_its_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let manager = ServiceManager::storing(dir.path(), 1).unwrap();
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        manager.state.0.lock().unwrap().stored.insert("hello".into(), writer);
        let mut command = Command::new("sh");
        command.args(["-c", "echo $LISTEN_FDS $LISTEN_FDNAMES >&3; test $LISTEN_PID = $$"]);
        {
            let (mut service, _given) = manager.service(&command).unwrap();
            assert!(service.status().unwrap().success());
        }
        let mut told = [0; 64];
        let len = rustix::io::read(&reader, &mut told).unwrap();
        assert_eq!(&told[..len], b"1 hello\n");
        assert_eq!(manager.stored(), ["hello"]);
        drop(manager);
        assert_eq!(rustix::io::read(&reader, &mut told), Ok(0), "nobody holds it");
    }
}
