//! The keeper process: one thread, one loop.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::Bound;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};

use super::refuse::{Refusing, needless};
use super::socket::{self, LOCK, SOCKET};
use super::store::Manager;
use super::sys;
use super::wire::{Name, Reply, Request, Role, Status};
use crate::limits::open_files;

/// How many descriptors are kept at most.
pub const MOST_KEPT: usize = 65_536;
/// Clients at once. There are three: worker, supervisor, and somebody who looks.
const MOST_CLIENTS: usize = 32;
/// Descriptors that are not for keeping: sockets, events that are refused.
const SPARE: usize = 256;
/// Between two looks whether what is kept is still needed.
const SWEEP: Duration = Duration::from_secs(2);
/// How long a worker may be away before readers are told that there is none.
pub const GRACE: Duration = Duration::from_secs(30);

/// What a keeper is told.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// The directory of the socket.
    pub root: PathBuf,
    /// How long a worker may be away before the kernel is answered with errors.
    pub grace: Duration,
}

/// A change that mirrors are told of.
#[derive(Clone, Debug)]
enum Change {
    Kept(Name),
    Forgotten(Name),
}

struct Client {
    socket: OwnedFd,
    pid: Option<Pid>,
    role: Option<Role>,
    /// What a mirror was not told yet.
    untold: VecDeque<Change>,
    closed: bool,
}

/// Who answers the kernel.
struct Worker {
    pid: Option<Pid>,
    /// Readable when the process is gone.
    process: Option<OwnedFd>,
    connected: bool,
}

impl Worker {
    fn is_gone(&self) -> bool {
        match &self.process {
            Some(process) => ready(process, PollFlags::IN),
            None => !self.connected,
        }
    }
}

fn ready(fd: &OwnedFd, flags: PollFlags) -> bool {
    let mut fds = [PollFd::new(fd, flags)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|count| count > 0)
}

struct Server {
    options: ServeOptions,
    manager: Manager,
    kept: BTreeMap<Name, OwnedFd>,
    most: usize,
    clients: Vec<Client>,
    worker: Option<Worker>,
    /// Since when there is no worker.
    alone: Option<Instant>,
    refusing: Option<Refusing>,
    /// When it was last looked whether what is kept is needed.
    swept: Option<Instant>,
    /// It was told to end.
    ending: bool,
    done: bool,
}

/// Runs a keeper until it has nothing to keep and was told to end, or nobody has come for the grace. Answers at once if
/// another keeper serves that directory. Must be called while the process has one thread.
///
/// # Errors
/// That it cannot listen.
pub fn serve(options: ServeOptions) -> io::Result<()> {
    let signals = sys::signals(&[libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT])?;
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
    let lock = rustix::fs::open(options.root.join(LOCK), flags, Mode::RUSR | Mode::WUSR)?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => return Ok(()),
        locked => locked?,
    }
    // The lock is ours: a socket that lies there is that of a keeper which was killed.
    match std::fs::remove_file(options.root.join(SOCKET)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let most = room();
    let listener = socket::listen(&options.root)?;
    tracing::info!(root = %options.root.display(), most, "the keeper is ready");
    let mut server = Server {
        options,
        manager: Manager::of_environment(),
        kept: BTreeMap::new(),
        most,
        clients: Vec::new(),
        worker: None,
        alone: Some(Instant::now()),
        refusing: None,
        swept: None,
        ending: false,
        done: false,
    };
    while !server.done {
        server.turn(&listener, &signals)?;
    }
    // Before the lock: whoever takes it next removes what lies there, and must not lose its own.
    let _ = std::fs::remove_file(server.options.root.join(SOCKET));
    tracing::info!("the keeper ends: nothing is kept");
    Ok(())
}

/// How many descriptors can be kept: as many as the system lets us have.
fn room() -> usize {
    let (current, _) = open_files(MOST_KEPT.saturating_add(SPARE) as u64);
    let most = current.map_or(MOST_KEPT, |most| usize::try_from(most).unwrap_or(MOST_KEPT));
    most.saturating_sub(SPARE).min(MOST_KEPT)
}

impl Server {
    /// Waits for something, and does it.
    fn turn(&mut self, listener: &OwnedFd, signals: &OwnedFd) -> io::Result<()> {
        let timeout = self.timeout().map(|time| Timespec {
            tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(time.subsec_nanos()),
        });
        let process = self.worker.as_ref().and_then(|worker| worker.process.as_ref());
        let mut fds = vec![PollFd::new(signals, PollFlags::IN)];
        // A crowd waits outside.
        let listening = self.clients.len() < MOST_CLIENTS;
        fds.extend(listening.then(|| PollFd::new(listener, PollFlags::IN)));
        fds.extend(process.map(|process| PollFd::new(process, PollFlags::IN)));
        for client in &self.clients {
            let mut wanted = PollFlags::IN;
            wanted.set(PollFlags::OUT, !client.untold.is_empty());
            fds.push(PollFd::new(&client.socket, wanted));
        }
        if let Some(refusing) = &self.refusing {
            fds.extend(refusing.descriptors());
        }
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        drop(fds);
        for signal in sys::read_signals(signals) {
            tracing::info!(signal, kept = self.kept.len(), "told to end");
            self.ending = true;
        }
        if listening {
            self.accept(listener);
        }
        for number in 0..self.clients.len() {
            self.listen_to(number);
            self.tell(number);
        }
        self.clients.retain(|client| !client.closed);
        self.look_after_worker();
        Ok(())
    }

    fn timeout(&self) -> Option<Duration> {
        let alone = self.alone?;
        let grace = self.options.grace.saturating_sub(alone.elapsed());
        if self.ending {
            return Some(grace.clamp(Duration::from_millis(1), SWEEP));
        }
        Some(if grace.is_zero() { SWEEP } else { grace })
    }

    fn accept(&mut self, listener: &OwnedFd) {
        use rustix::net::SocketFlags;
        while self.clients.len() < MOST_CLIENTS {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let Ok(socket) = rustix::net::accept_with(listener, flags) else { return };
            match socket::check_peer(&socket) {
                Ok(pid) => self.clients.push(Client {
                    socket,
                    pid,
                    role: None,
                    untold: VecDeque::new(),
                    closed: false,
                }),
                Err(error) => tracing::warn!(%error, "somebody was sent away"),
            }
        }
    }

    /// Takes what a client says, as long as it says something.
    fn listen_to(&mut self, number: usize) {
        // Others want to be heard too.
        for _ in 0..64 {
            let Some(client) = self.clients.get_mut(number).filter(|client| !client.closed) else { return };
            let received = match socket::receive(&client.socket, false) {
                Ok(Some(received)) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Ok(None) => return self.close(number, None),
                Err(error) => return self.close(number, Some(error)),
            };
            let (reply, descriptor) = match Request::decode(&received.bytes) {
                Ok(request) => self.answer(number, request, received.descriptor),
                Err(super::wire::Malformed::Code(_)) => (refused(Errno::OPNOTSUPP), None),
                Err(super::wire::Malformed::Version(_)) => (refused(Errno::PROTONOSUPPORT), None),
                Err(_) => (refused(Errno::INVAL), None),
            };
            // What others must know goes out before the one who changed it is told that it is done.
            for other in 0..self.clients.len() {
                self.tell(other);
            }
            let Some(client) = self.clients.get(number) else { return };
            let descriptor = descriptor.as_ref().and_then(|name| self.kept.get(name)).map(|fd| fd.as_fd());
            if let Err(error) = socket::send(&client.socket, &reply.encode(), descriptor, false) {
                return self.close(number, Some(error));
            }
        }
    }

    fn close(&mut self, number: usize, error: Option<io::Error>) {
        let Some(client) = self.clients.get_mut(number) else { return };
        client.closed = true;
        if let Some(error) = error {
            tracing::warn!(%error, role = ?client.role, "a client was cut off");
        }
        let (role, pid) = (client.role, client.pid);
        if role == Some(Role::Worker)
            && let Some(worker) = self.worker.as_mut().filter(|worker| worker.pid == pid)
        {
            worker.connected = false;
        }
    }

    /// Tells a mirror what changed, as far as it listens.
    fn tell(&mut self, number: usize) {
        let Some(client) = self.clients.get_mut(number).filter(|client| !client.closed) else { return };
        while let Some(change) = client.untold.pop_front() {
            let sent = match &change {
                Change::Forgotten(name) => {
                    let message = Reply::Forgotten(name.clone()).encode();
                    socket::send(&client.socket, &message, None, false)
                }
                Change::Kept(name) => match self.kept.get(name) {
                    Some(fd) => {
                        let message = Reply::Kept(name.clone()).encode();
                        socket::send(&client.socket, &message, Some(fd.as_fd()), false)
                    }
                    // Given up since.
                    None => Ok(()),
                },
            };
            match sent {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    client.untold.push_front(change);
                    if client.untold.len() > MOST_KEPT.saturating_mul(4) {
                        return self.close(number, Some(error));
                    }
                    return;
                }
                Err(error) => return self.close(number, Some(error)),
            }
        }
    }

    fn changed(&mut self, change: &Change) {
        for client in self.clients.iter_mut().filter(|client| client.role == Some(Role::Mirror)) {
            client.untold.push_back(change.clone());
        }
    }

    /// Does what is asked. Answers with what to say, and what goes with it.
    fn answer(&mut self, number: usize, request: Request, with: Option<OwnedFd>) -> (Reply, Option<Name>) {
        let known = self.clients.get(number).is_some_and(|client| client.role.is_some());
        let reply = match request {
            Request::Hello(role) => self.welcome(number, role),
            Request::Status => Reply::Status(self.status()),
            _ if !known => refused(Errno::PERM),
            Request::KeepIfAbsent(name) if self.kept.contains_key(&name) => Reply::Done,
            Request::Keep(name) | Request::KeepIfAbsent(name) => self.keep(name, with),
            Request::Get(name) if self.kept.contains_key(&name) => return (Reply::Descriptor, Some(name)),
            Request::Get(_) => Reply::Nothing,
            Request::Forget(name) => {
                self.forget(&name);
                Reply::Done
            }
            Request::Names(after) => {
                let from = after.map_or(Bound::Unbounded, Bound::Excluded);
                Reply::names(self.kept.range((from, Bound::Unbounded)).map(|(name, _)| name))
            }
            Request::End => self.end(),
            Request::Leave => {
                let client = self.clients.get_mut(number).filter(|client| client.role == Some(Role::Worker));
                if let Some(client) = client {
                    client.role = Some(Role::Visitor);
                    let pid = client.pid;
                    if self.worker.as_ref().is_some_and(|worker| worker.pid == pid) {
                        self.worker = None;
                        self.alone = Some(Instant::now());
                    }
                }
                Reply::Done
            }
        };
        (reply, None)
    }

    fn welcome(&mut self, number: usize, role: Role) -> Reply {
        let Some(client) = self.clients.get_mut(number) else { return refused(Errno::INVAL) };
        if client.role.is_some() {
            return refused(Errno::ALREADY);
        }
        if role == Role::Worker {
            let pid = client.pid;
            let other = self.worker.as_ref().filter(|worker| worker.pid.is_none() || worker.pid != pid);
            if other.is_some_and(|worker| !worker.is_gone()) {
                return refused(Errno::BUSY);
            }
            let process = pid.and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok());
            self.worker = Some(Worker { pid, process, connected: true });
            self.alone = None;
            self.ending = false;
            if self.refusing.take().is_some() {
                tracing::info!("a worker has come: it answers from now on");
            }
        }
        if role == Role::Mirror {
            client.untold = self.kept.keys().cloned().map(Change::Kept).collect();
            self.manager.speak_for(client.pid);
            // A service manager may have given up what it had when the service was stopped; what it has it knows.
            for (name, descriptor) in &self.kept {
                self.manager.store(name, descriptor.as_fd());
            }
        }
        client.role = Some(role);
        Reply::Done
    }

    fn keep(&mut self, name: Name, with: Option<OwnedFd>) -> Reply {
        let Some(descriptor) = with else { return refused(Errno::BADF) };
        let new = !self.kept.contains_key(&name);
        if new && self.kept.len() >= self.most {
            return refused(Errno::NOSPC);
        }
        if !new {
            self.manager.remove(&name);
        }
        self.manager.store(&name, descriptor.as_fd());
        self.kept.insert(name.clone(), descriptor);
        self.changed(&Change::Kept(name));
        if self.refusing.is_some() {
            self.refusing = Some(Refusing::begin(&self.kept));
        }
        Reply::Done
    }

    fn forget(&mut self, name: &Name) {
        // Also if we do not have it: the service manager may, from before.
        self.manager.remove(name);
        if self.kept.remove(name).is_some() {
            self.changed(&Change::Forgotten(name.clone()));
        }
    }

    fn end(&mut self) -> Reply {
        if self.worker.as_ref().is_some_and(|worker| !worker.is_gone()) {
            return refused(Errno::BUSY);
        }
        self.ending = true;
        self.swept = None;
        self.sweep();
        if self.kept.is_empty() {
            self.done = true;
            return Reply::Done;
        }
        refused(Errno::AGAIN)
    }

    fn status(&self) -> Status {
        Status {
            pid: std::process::id(),
            kept: u32::try_from(self.kept.len()).unwrap_or(u32::MAX),
            worker: self.worker.as_ref().is_some_and(|worker| !worker.is_gone()),
            refusing: self.refusing.is_some(),
        }
    }

    /// Sees when the worker is gone, and does its work badly if it stays away.
    fn look_after_worker(&mut self) {
        if self.worker.as_ref().is_some_and(Worker::is_gone) {
            self.worker = None;
            self.alone = Some(Instant::now());
        }
        let Some(alone) = self.alone else { return };
        let over = alone.elapsed() >= self.options.grace;
        if self.ending || over {
            self.sweep();
            if self.kept.is_empty() && (self.ending || self.clients.is_empty()) {
                self.done = true;
                return;
            }
        }
        if !over || self.kept.is_empty() {
            return;
        }
        if self.refusing.is_none() {
            tracing::error!(
                kept = self.kept.len(),
                "no worker has come for {:?}: what containers read and is not there is an error from now on",
                self.options.grace
            );
            self.refusing = Some(Refusing::begin(&self.kept));
        }
        if let Some(refusing) = &self.refusing {
            refusing.refuse();
        }
    }

    /// Gives up what nothing needs. Only while there is no worker.
    fn sweep(&mut self) {
        let recently = self.swept.is_some_and(|swept| swept.elapsed() < SWEEP / 2);
        if self.worker.is_some() || recently {
            return;
        }
        self.swept = Some(Instant::now());
        let gone = needless(&self.kept);
        for name in &gone {
            self.forget(name);
        }
        if !gone.is_empty() && self.refusing.is_some() {
            self.refusing = Some(Refusing::begin(&self.kept));
        }
    }
}

fn refused(errno: Errno) -> Reply {
    Reply::Refused(errno.raw_os_error())
}
