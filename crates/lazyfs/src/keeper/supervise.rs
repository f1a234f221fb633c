//! The supervisor: the process that a service manager or a pod sees. It starts the worker, again and again if it has
//! to, and has a copy of everything that the keeper has, so that no two deaths at once lose anything but its own.
//!
//! It does nothing else, so that there is nothing for which it could die. One thread, one loop.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, WaitOptions};

use super::WORKER;
use super::listen::{self, is_listening};
use super::store::{Manager, given_back};
use super::sys;
use super::talk::{Launch, Talk};
use super::wire::{Name, Reply, Role};

/// How long a worker may take to hand over.
const HAND_OVER: Duration = Duration::from_secs(3);
/// The least time between two starts of the worker. Containers wait for it, and one that dies again and again shall leave
/// the machine to others: four starts a second take a quarter of a processor.
const APART: Duration = Duration::from_millis(250);
/// Between two tries to start a worker that the system does not let us start.
const NO_START: Duration = Duration::from_secs(5);
/// Between two looks for a keeper: the first, and the longest.
const LOOK: (Duration, Duration) = (Duration::from_millis(25), Duration::from_secs(2));

/// What a supervisor is told.
#[derive(Debug, Clone)]
pub struct SuperviseOptions {
    /// Where the keeper's socket is.
    pub root: PathBuf,
    /// The program: where it will be found after an upgrade.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Set in the worker's environment, where nothing is set yet.
    pub environment: Vec<(&'static str, &'static str)>,
    /// How a keeper is started.
    pub launch: Launch,
}

/// The path under which this program was called: a package replaces what lies there. Where it really lies, if that
/// cannot be told.
///
/// # Errors
/// What the system said.
pub fn called_as() -> io::Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    let runs = |path: &Path| {
        std::fs::metadata(path).is_ok_and(|stat| stat.is_file() && stat.permissions().mode() & 0o111 != 0)
    };
    let first = std::env::args_os().next().map(PathBuf::from).unwrap_or_default();
    if first.components().count() > 1 {
        let path = std::path::absolute(&first)?;
        if runs(&path) {
            return Ok(path);
        }
    } else if let Some(path) = std::env::var_os("PATH") {
        let found = std::env::split_paths(&path).map(|dir| dir.join(&first)).find(|path| runs(path));
        if let Some(found) = found.filter(|_| !first.as_os_str().is_empty()) {
            return Ok(found);
        }
    }
    std::env::current_exe()
}

/// How the keeper is seen from here.
#[derive(Default)]
struct Mirror {
    talk: Option<Talk>,
    kept: BTreeMap<Name, OwnedFd>,
    /// Whether a keeper was ever seen: then there must be one.
    seen: bool,
    look: Option<(Instant, Duration)>,
}

impl Mirror {
    /// Learns what is new; looks for a keeper if there is none.
    fn follow(&mut self, options: &SuperviseOptions) {
        if let Some(talk) = &mut self.talk {
            let gone = loop {
                match talk.receive() {
                    Ok(Some((Reply::Kept(name), fd))) => talk.news.push((name, fd)),
                    Ok(Some((Reply::Forgotten(name), _))) => talk.news.push((name, None)),
                    Ok(Some(_)) => {}
                    Ok(None) => break false,
                    Err(_) => break true,
                }
            };
            self.learn();
            if gone {
                tracing::warn!(kept = self.kept.len(), "the keeper is gone");
                self.talk = None;
                self.look = None;
            }
        }
        if self.talk.is_none() && self.look.is_none_or(|(at, _)| at <= Instant::now()) {
            self.connect(options);
        }
    }

    fn learn(&mut self) {
        for (name, fd) in self.talk.iter_mut().flat_map(|talk| talk.news.drain(..)) {
            match fd {
                Some(fd) => drop(self.kept.insert(name, fd)),
                None => drop(self.kept.remove(&name)),
            }
        }
    }

    /// Finds a keeper, and starts one if something must be kept. Gives it what it does not have.
    fn connect(&mut self, options: &SuperviseOptions) {
        let found = if self.kept.is_empty() {
            Talk::connect(&options.root, Role::Mirror)
        } else {
            Talk::open(&options.root, Role::Mirror, &options.launch)
        };
        let given = found.and_then(|mut talk| talk.give(&self.kept, true).map(|()| talk));
        match given {
            Ok(talk) => {
                self.seen = true;
                self.talk = Some(talk);
                self.look = None;
                self.learn();
            }
            Err(error) => {
                if !self.kept.is_empty() {
                    tracing::error!(%error, "there is no keeper, and none can be started");
                }
                let pause = self.look.map_or(LOOK.0, |(_, pause)| (pause * 2).min(LOOK.1));
                self.look = Some((Instant::now() + pause, pause));
            }
        }
    }

    /// Tells the keeper that nobody comes any more.
    fn end(&mut self, options: &SuperviseOptions) {
        if self.talk.is_none() {
            self.talk = Talk::connect(&options.root, Role::Visitor).ok();
        }
        let Some(talk) = &mut self.talk else { return };
        match talk.end() {
            Ok(true) => {}
            Ok(false) => {
                tracing::info!("the keeper stays: containers still read layers that are not complete");
            }
            Err(error) => tracing::debug!(%error, "the keeper cannot be told to end"),
        }
    }
}

struct Worker {
    pid: Pid,
    since: Instant,
}

/// What is going on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Going {
    On,
    /// It was told to stop.
    Down,
    /// It was told to hand over; until when.
    Over(Instant),
}

/// Runs the worker until it ends by itself, and answers its exit code. Must be called while the process has one
/// thread. On SIGHUP the program is started anew in this process, and does not return.
///
/// # Errors
/// That signals cannot be had, or the worker not be started.
pub fn supervise(options: &SuperviseOptions) -> io::Result<u8> {
    let mut mirror = Mirror::default();
    // Before anything is opened: what was passed is known by its numbers.
    let (passed, kept): (Vec<_>, Vec<_>) = given_back().into_iter().partition(|(_, fd)| is_listening(fd));
    mirror.kept.extend(kept);
    // Not for the keeper: the service manager has them too, and they keep nobody's bytes.
    let mut sockets = listen::of_predecessor();
    sockets.extend(passed);
    let signals = sys::signals(&[libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGCHLD])?;
    let manager = Manager::of_environment();
    if !mirror.kept.is_empty() {
        tracing::info!(kept = mirror.kept.len(), "the service manager gave back what was kept");
    }
    manager.tell(&format!("MAINPID={}", std::process::id()));
    // Before the worker: it asks the keeper once.
    mirror.follow(options);
    let mut worker = Some(start(options, &sockets)?);
    let mut going = Going::On;
    let mut start_at = None;
    loop {
        wait(&signals, &mirror, [start_at, deadline(going)]);
        mirror.follow(options);
        for signal in sys::read_signals(&signals) {
            match (signal, &worker) {
                (libc::SIGTERM | libc::SIGINT, Some(worker)) => {
                    going = Going::Down;
                    let signal = if signal == libc::SIGINT { Signal::INT } else { Signal::TERM };
                    sys::kill(worker.pid, signal);
                }
                // Between two workers.
                (libc::SIGTERM | libc::SIGINT, None) => {
                    mirror.end(options);
                    return Ok(0);
                }
                (libc::SIGHUP, _) if going == Going::On && is_sound(&options.program) => {
                    tracing::info!("upgrading in place");
                    let now = sys::monotonic_micros();
                    manager.tell(&format!("RELOADING=1\nMONOTONIC_USEC={now}"));
                    if let Some(worker) = &worker {
                        sys::kill(worker.pid, Signal::USR2);
                    }
                    going = Going::Over(Instant::now() + HAND_OVER);
                }
                _ => {}
            }
        }
        if let (Going::Over(until), Some(worker)) = (going, &worker)
            && until <= Instant::now()
        {
            tracing::warn!("the worker does not hand over: it is killed");
            sys::kill(worker.pid, Signal::KILL);
        }
        if let Some(ended) = reap(worker.as_ref().map(|worker| worker.pid)) {
            let lived = worker.take().map_or(Duration::ZERO, |worker| worker.since.elapsed());
            match (going, ended) {
                (Going::Over(_), _) => {}
                (_, Ended::Exited(code)) => {
                    mirror.end(options);
                    return Ok(code);
                }
                (Going::Down, Ended::Killed(signal)) => {
                    mirror.end(options);
                    return Ok(128_u8.saturating_add(u8::try_from(signal).unwrap_or(0)));
                }
                (Going::On, Ended::Killed(signal)) => {
                    let pause = APART.saturating_sub(lived);
                    tracing::error!(signal, after = ?lived, in_ms = pause.as_millis(), "the worker died: it is started again");
                    start_at = Some(Instant::now() + pause);
                }
            }
        }
        if matches!(going, Going::Over(_)) && worker.is_none() {
            again(options, &sockets);
            // That failed: on with what we have.
            going = Going::On;
            start_at = Some(Instant::now());
        }
        if worker.is_none() && start_at.is_some_and(|at| at <= Instant::now()) {
            start_at = None;
            match start(options, &sockets) {
                Ok(started) => worker = Some(started),
                Err(error) => {
                    tracing::error!(%error, "the worker cannot be started");
                    start_at = Some(Instant::now() + NO_START);
                }
            }
        }
    }
}

fn deadline(going: Going) -> Option<Instant> {
    match going {
        Going::Over(until) => Some(until),
        _ => None,
    }
}

/// Waits for a signal, for news of the keeper, or for the first of some times.
fn wait(signals: &OwnedFd, mirror: &Mirror, times: [Option<Instant>; 2]) {
    let look = mirror.look.filter(|_| mirror.talk.is_none()).map(|(at, _)| at);
    let first = times.into_iter().chain([look]).flatten().min();
    let timeout = first.map(|at| {
        // Rounded up, or the last millisecond is spent turning.
        let left = at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        }
    });
    let mut fds = vec![PollFd::new(signals, PollFlags::IN)];
    fds.extend(mirror.talk.as_ref().map(|talk| PollFd::new(talk.socket(), PollFlags::IN)));
    let _ = poll(&mut fds, timeout.as_ref());
}

fn start(options: &SuperviseOptions, sockets: &[(Name, OwnedFd)]) -> io::Result<Worker> {
    // Ourselves, whatever lies at our path by now: supervisor and worker are of one version.
    let mut command = Command::new("/proc/self/exe");
    command.arg0(&options.program).args(&options.arguments);
    command.env(WORKER, std::process::id().to_string());
    command.envs(options.environment.iter().filter(|(name, _)| std::env::var_os(name).is_none()).copied());
    without_passed(&mut command);
    sys::dies_with_us(&mut command);
    let child = listen::pass(sockets, &mut command, Command::spawn)?;
    let pid = Pid::from_child(&child);
    // It is waited for with all others: as the first process of a container this one buries everybody.
    drop(child);
    Ok(Worker { pid, since: Instant::now() })
}

/// What was passed to this process is not passed on: other descriptors have those numbers by now.
fn without_passed(command: &mut Command) {
    for name in ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"] {
        command.env_remove(name);
    }
}

/// How a process ended.
enum Ended {
    Exited(u8),
    Killed(i32),
}

/// Buries whoever is dead; says how `worker` ended, if it did.
fn reap(worker: Option<Pid>) -> Option<Ended> {
    let mut ended = None;
    while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
        if Some(pid) == worker {
            let killed = status.terminating_signal().map(Ended::Killed);
            let exited = || status.exit_status().map(|code| Ended::Exited(u8::try_from(code).unwrap_or(1)));
            ended = killed.or_else(exited);
        }
    }
    ended
}

/// Whether what lies at our path can be run: a package that is half unpacked must not end a service.
fn is_sound(program: &Path) -> bool {
    let mut command = Command::new(program);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let ran = command.status();
    let sound = ran.as_ref().is_ok_and(std::process::ExitStatus::success);
    if !sound {
        tracing::error!(program = %program.display(), ?ran, "no upgrade: the program does not run");
    }
    sound
}

/// Becomes the program that lies at our path now. Returns if that fails.
fn again(options: &SuperviseOptions, sockets: &[(Name, OwnedFd)]) {
    let mut command = Command::new(&options.program);
    without_passed(&mut command);
    let error = listen::pass(sockets, command.args(&options.arguments), CommandExt::exec);
    tracing::error!(program = %options.program.display(), %error, "no upgrade: the program cannot be run");
}
