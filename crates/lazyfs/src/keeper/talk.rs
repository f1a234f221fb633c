//! One connection to a keeper, and how a keeper is started.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::socket;
use super::sys;
use super::wire::{Name, Reply, Request, Role, Status};

/// How long a keeper may take to answer one message. It does nothing that takes time.
const ANSWER: Duration = Duration::from_secs(5);
/// How long a keeper may take until it listens, on a busy machine.
const STARTED: Duration = Duration::from_secs(10);
/// How long the worker before may take to be gone.
const GONE: Duration = Duration::from_secs(5);
/// Between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// How a keeper process is started.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
}

impl Launch {
    /// This program's own command `keeper`.
    pub fn this_program(root: &Path) -> Self {
        let arguments = vec!["keeper".into(), "--root".into(), root.into()];
        // Also if the file was replaced since.
        Self { program: "/proc/self/exe".into(), arguments }
    }

    /// Starts it, detached from this process and its terminal. What it has to say goes to systemd's journal if that
    /// is where we are heard, else to a file beside its socket.
    pub(super) fn start(&self, root: &Path) -> io::Result<()> {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).current_dir("/").stdin(Stdio::null()).stdout(Stdio::null());
        for name in ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"] {
            command.env_remove(name);
        }
        if std::env::var_os(super::WORKER).is_none() {
            // In whose name it talks to the service manager.
            command.env(super::WORKER, std::process::id().to_string());
        }
        if std::env::var_os("JOURNAL_STREAM").is_none() || std::env::var_os("NOTIFY_SOCKET").is_none() {
            let log = File::options().create(true).append(true).open(root.join("keeper.log"))?;
            if log.metadata()?.len() > 1 << 20 {
                log.set_len(0)?;
            }
            command.stderr(log);
        }
        sys::stands_alone(&mut command);
        let mut child = command.spawn()?;
        // It forks once more and ends at once, so that it is nobody's child.
        child.wait()?;
        Ok(())
    }
}

/// A connection that said what it is.
#[derive(Debug)]
pub(super) struct Talk {
    socket: OwnedFd,
    /// What a mirror was told in between.
    pub(super) news: Vec<(Name, Option<OwnedFd>)>,
}

impl Talk {
    /// To the keeper that is there.
    pub(super) fn connect(root: &Path, role: Role) -> io::Result<Self> {
        let until = Instant::now() + GONE;
        loop {
            let mut talk = Self { socket: socket::connect(root)?, news: Vec::new() };
            match talk.ask(&Request::Hello(role), None)?.0 {
                Reply::Done => return Ok(talk),
                // The worker before is dying: its sockets and its database are still open.
                Reply::Refused(libc::EBUSY) if Instant::now() < until => std::thread::sleep(LOOK_AGAIN),
                Reply::Refused(libc::EBUSY) => {
                    return Err(io::Error::new(
                        io::ErrorKind::ResourceBusy,
                        format!("another process serves {}: stop it, or choose another root", root.display()),
                    ));
                }
                reply => return Err(unexpected(&reply)),
            }
        }
    }

    /// To the keeper that is there, or to one that is started now.
    pub(super) fn open(root: &Path, role: Role, launch: &Launch) -> io::Result<Self> {
        match Self::connect(root, role) {
            Err(error) if nobody_listens(&error) => {}
            other => return other,
        }
        launch.start(root)?;
        let until = Instant::now() + STARTED;
        loop {
            match Self::connect(root, role) {
                Err(error) if nobody_listens(&error) && Instant::now() < until => {
                    std::thread::sleep(LOOK_AGAIN);
                }
                Err(error) if nobody_listens(&error) => {
                    let log = root.join("keeper.log");
                    let text = format!("the keeper does not start, see {}: {error}", log.display());
                    return Err(io::Error::new(error.kind(), text));
                }
                other => return other,
            }
        }
    }

    /// The descriptor, to wait for.
    pub(super) fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// Asks, and waits for the answer.
    pub(super) fn ask(
        &mut self,
        request: &Request,
        with: Option<BorrowedFd<'_>>,
    ) -> io::Result<(Reply, Option<OwnedFd>)> {
        socket::send(&self.socket, &request.encode(), with, true)?;
        let until = Instant::now() + ANSWER;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if !wait_for(&self.socket, left)? {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the keeper does not answer"));
            }
            match self.receive()? {
                Some((Reply::Kept(name), with)) => self.news.push((name, with)),
                Some((Reply::Forgotten(name), _)) => self.news.push((name, None)),
                Some(answer) => return Ok(answer),
                None => {}
            }
        }
    }

    /// One message, if there is one. That the keeper is gone is an error.
    pub(super) fn receive(&self) -> io::Result<Option<(Reply, Option<OwnedFd>)>> {
        match socket::receive(&self.socket, false) {
            Ok(Some(received)) => {
                let reply = Reply::decode(&received.bytes).map_err(io::Error::other)?;
                Ok(Some((reply, received.descriptor)))
            }
            Ok(None) => Err(io::ErrorKind::BrokenPipe.into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Keeps one; with `if_absent`, only if there is none of that name.
    pub(super) fn keep(&mut self, name: &Name, fd: BorrowedFd<'_>, if_absent: bool) -> io::Result<()> {
        let name = name.clone();
        let request = if if_absent { Request::KeepIfAbsent(name) } else { Request::Keep(name) };
        done(&self.ask(&request, Some(fd))?.0)
    }

    pub(super) fn forget(&mut self, name: &Name) -> io::Result<()> {
        done(&self.ask(&Request::Forget(name.clone()), None)?.0)
    }

    /// Duplicates of everything.
    pub(super) fn everything(&mut self) -> io::Result<BTreeMap<Name, OwnedFd>> {
        let mut all = BTreeMap::new();
        let mut after = None;
        loop {
            let (names, more) = match self.ask(&Request::Names(after.take()), None)?.0 {
                Reply::Names { names, more } => (names, more),
                reply => return Err(unexpected(&reply)),
            };
            after = names.last().cloned();
            for name in names {
                match self.ask(&Request::Get(name.clone()), None)? {
                    (Reply::Descriptor, Some(fd)) => drop(all.insert(name, fd)),
                    (Reply::Nothing, _) => {}
                    (reply, _) => return Err(unexpected(&reply)),
                }
            }
            if !more {
                return Ok(all);
            }
        }
    }

    /// Tells it to end. Answers whether it does so at once.
    pub(super) fn end(&mut self) -> io::Result<bool> {
        match self.ask(&Request::End, None)?.0 {
            Reply::Done => {
                // It closes when its socket's file is gone.
                let _ = wait_for(&self.socket, ANSWER);
                Ok(true)
            }
            Reply::Refused(_) => Ok(false),
            reply => Err(unexpected(&reply)),
        }
    }

    pub(super) fn status(&mut self) -> io::Result<Status> {
        match self.ask(&Request::Status, None)?.0 {
            Reply::Status(status) => Ok(status),
            reply => Err(unexpected(&reply)),
        }
    }

    /// Gives it everything of `kept`.
    pub(super) fn give(&mut self, kept: &BTreeMap<Name, OwnedFd>, if_absent: bool) -> io::Result<()> {
        kept.iter().try_for_each(|(name, fd)| self.keep(name, fd.as_fd(), if_absent))
    }
}

/// Nobody answers there, and somebody could be started.
pub(super) fn nobody_listens(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, NotFound};
    matches!(error.kind(), NotFound | ConnectionRefused | ConnectionReset | BrokenPipe)
}

fn wait_for(socket: &OwnedFd, time: Duration) -> io::Result<bool> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let timeout = Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(time.subsec_nanos()),
    };
    let mut fds = [PollFd::new(socket, PollFlags::IN)];
    Ok(rustix::io::retry_on_intr(|| poll(&mut fds, Some(&timeout)))? > 0)
}

fn done(reply: &Reply) -> io::Result<()> {
    match reply {
        Reply::Done => Ok(()),
        Reply::Refused(errno) => Err(io::Error::from_raw_os_error(*errno)),
        reply => Err(unexpected(reply)),
    }
}

fn unexpected(reply: &Reply) -> io::Error {
    match reply {
        Reply::Refused(errno) => io::Error::from_raw_os_error(*errno),
        reply => io::Error::other(format!("the keeper answers {reply:?}")),
    }
}
