//! The worker's side: [`Keep`] over a socket.
//!
//! The worker has a duplicate of everything that the keeper has for it. So when the keeper dies, nothing is lost: a
//! thread sees that, connects to the next one (and starts it, if nobody else has), and gives it everything again.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Pid;

use super::Keep;
use super::apart;
use super::store::Manager;
use super::talk::{Launch, Talk};
use super::wire::{Name, Request, Role, Status};

/// How long a call waits for the next keeper when this one has died.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two tries to reach the next keeper.
const TRY_AGAIN: Duration = Duration::from_millis(50);

/// Keeps descriptors in the keeper process.
#[derive(Debug)]
pub struct Keeper {
    inner: Arc<Inner>,
    /// Closed when this is dropped: the thread sees it.
    _alive: OwnedFd,
}

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    launch: Option<Launch>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    talk: Option<Talk>,
    /// All that the keeper has, or must have as soon as there is one.
    kept: BTreeMap<Name, OwnedFd>,
    /// What a keeper that died may have passed on, and nobody wants.
    forgotten: BTreeSet<Name>,
    /// It was dropped.
    left: bool,
}

impl Keeper {
    /// Connects to the keeper of `root`, as its worker, and learns what it has.
    ///
    /// # Errors
    /// That there is none, or that it has a worker ([`io::ErrorKind::ResourceBusy`]).
    pub fn connect(root: &Path) -> io::Result<Arc<Self>> {
        Self::begin(root, None)
    }

    /// As [`Keeper::connect`]; if there is no keeper, this program's command `keeper` is started.
    ///
    /// # Errors
    /// That it does not start, or that it has a worker ([`io::ErrorKind::ResourceBusy`]).
    pub fn start(root: &Path) -> io::Result<Arc<Self>> {
        Self::begin(root, Some(Launch::this_program(root)))
    }

    /// As [`Keeper::start`], with another program.
    ///
    /// # Errors
    /// As there.
    pub fn start_with(root: &Path, launch: Launch) -> io::Result<Arc<Self>> {
        Self::begin(root, Some(launch))
    }

    fn begin(root: &Path, launch: Option<Launch>) -> io::Result<Arc<Self>> {
        let mut talk = match &launch {
            Some(launch) => Talk::open(root, Role::Worker, launch)?,
            None => Talk::connect(root, Role::Worker)?,
        };
        let kept = talk.everything()?;
        let state = State { talk: Some(talk), kept, forgotten: BTreeSet::new(), left: false };
        let inner = Arc::new(Inner { root: root.to_owned(), launch, state: Mutex::new(state) });
        let (ended, alive) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let watched = Arc::clone(&inner);
        std::thread::Builder::new().name("keeper".into()).spawn(move || watched.watch(&ended))?;
        Ok(Arc::new(Self { inner, _alive: alive }))
    }

    /// How the keeper is.
    ///
    /// # Errors
    /// That it does not answer.
    pub fn status(&self) -> io::Result<Status> {
        self.inner.with(Talk::status)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let mut state = self.inner.state();
        state.left = true;
        if let Some(mut talk) = state.talk.take() {
            // If it is not heard, the end of this process is.
            let _ = talk.ask(&Request::Leave, None);
        }
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the keeper; the next one, if this one is gone. Whatever is to be kept must be in the state before.
    fn with<T>(&self, mut ask: impl FnMut(&mut Talk) -> io::Result<T>) -> io::Result<T> {
        let until = Instant::now() + PATIENCE;
        let mut state = self.state();
        loop {
            let failed = match self.reach(&mut state) {
                Ok(talk) => match ask(talk) {
                    // What it refuses it refuses again.
                    Err(error) if error.raw_os_error().is_none_or(is_of_connection) => error,
                    answered => return answered,
                },
                Err(error) => error,
            };
            state.talk = None;
            if Instant::now() >= until {
                return Err(failed);
            }
            std::thread::sleep(TRY_AGAIN);
        }
    }

    /// A keeper that has everything.
    fn reach<'a>(&self, state: &'a mut State) -> io::Result<&'a mut Talk> {
        if state.talk.is_none() {
            let mut talk = match &self.launch {
                Some(launch) => Talk::open(&self.root, Role::Worker, launch)?,
                None => Talk::connect(&self.root, Role::Worker)?,
            };
            talk.give(&state.kept, false)?;
            state.forgotten.iter().try_for_each(|name| talk.forget(name))?;
            state.forgotten.clear();
            tracing::warn!(kept = state.kept.len(), "the keeper was replaced, and has everything again");
            state.talk = Some(talk);
        }
        state.talk.as_mut().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Sees when the keeper dies, until `ended` is closed at its other end.
    fn watch(&self, ended: &OwnedFd) {
        let over = |timeout: Option<&Timespec>, socket: Option<&OwnedFd>| {
            let mut fds = vec![PollFd::new(ended, PollFlags::IN)];
            fds.extend(socket.map(|socket| PollFd::new(socket, PollFlags::empty())));
            let _ = poll(&mut fds, timeout);
            fds.first().is_some_and(|fd| !fd.revents().is_empty())
        };
        let pause = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
        loop {
            let socket = self.state().talk.as_ref().and_then(|talk| talk.socket().try_clone().ok());
            match socket {
                Some(socket) if over(None, Some(&socket)) => return,
                None if over(Some(&pause), None) => return,
                _ => {}
            }
            let mut state = self.state();
            // Dropped in between: it said goodbye.
            if over(Some(&Timespec { tv_sec: 0, tv_nsec: 0 }), None) || state.left {
                return;
            }
            if state.talk.as_ref().is_some_and(|talk| is_closed(talk.socket())) {
                state.talk = None;
            }
            if state.talk.is_none()
                && let Err(error) = self.reach(&mut state)
            {
                tracing::error!(%error, "there is no keeper, and none can be started");
            }
        }
    }
}

fn is_closed(socket: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(socket, PollFlags::empty())];
    let polled = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    polled.is_ok() && fds.iter().any(|fd| fd.revents().intersects(PollFlags::HUP | PollFlags::ERR))
}

/// Whether it is the connection that failed, not what was asked.
fn is_of_connection(errno: i32) -> bool {
    matches!(errno, libc::EPIPE | libc::ECONNRESET | libc::ENOTCONN | libc::ECONNREFUSED | libc::ENOENT)
}

fn checked(name: &str) -> io::Result<Name> {
    Name::parse(name.as_bytes()).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}

impl Keep for Keeper {
    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.inner.state().kept.keys().map(|name| name.as_str().to_owned()).collect())
    }

    fn get(&self, name: &str) -> io::Result<Option<OwnedFd>> {
        let name = checked(name)?;
        self.inner.state().kept.get(&name).map(OwnedFd::try_clone).transpose()
    }

    fn keep(&self, name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        let name = checked(name)?;
        let copy = descriptor.try_clone_to_owned()?;
        {
            // First, so that a keeper that comes in between has it too.
            let mut state = self.inner.state();
            state.forgotten.remove(&name);
            state.kept.insert(name.clone(), copy.try_clone()?);
        }
        let given = self.inner.with(|talk| talk.keep(&name, copy.as_fd(), false));
        if given.is_err() {
            self.inner.state().kept.remove(&name);
        }
        given
    }

    fn forget(&self, name: &str) -> io::Result<()> {
        let name = checked(name)?;
        {
            let mut state = self.inner.state();
            state.kept.remove(&name);
            state.forgotten.insert(name.clone());
        }
        self.inner.with(|talk| talk.forget(&name))?;
        self.inner.state().forgotten.remove(&name);
        Ok(())
    }

    fn outlives_all(&self) -> Result<(), String> {
        let keeper = self.status().map_err(|error| format!("the keeper does not answer: {error}"))?.pid;
        let supervisor = std::env::var(super::WORKER).ok().and_then(|text| Pid::from_raw(text.parse().ok()?));
        let apart = apart::stands_apart(keeper, supervisor.unwrap_or_else(rustix::process::getpid));
        let Err(shared) = apart else { return Ok(()) };
        Manager::of_environment().stores().map_err(|lacking| format!("{shared}, and {lacking}"))
    }
}
