//! Which commands run as supervisor and worker, and the worker's way to its keeper.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::Context;
use lazyfs::keeper::{self, Keep, Keeper, Launch, SuperviseOptions};
use telemetry::LogFormat;
use tokio_util::sync::CancellationToken;

use crate::cli::Command;
use crate::failure::Exit;

/// A command whose mounts outlive its process.
pub struct Service {
    root: PathBuf,
    level: String,
    format: LogFormat,
}

/// The service that `command` is, if this process is to be its supervisor. A user who is not root can mount nothing,
/// and is told so by the command itself.
pub fn service(command: &Command) -> Option<Service> {
    let (root, alone, level, format) = match command {
        Command::Snapshotter(args) => {
            (args.root.clone(), args.no_keeper, args.log_level.clone(), LogFormat::Json)
        }
        Command::Node(args) => {
            args.snapshotter.as_ref()?;
            let level = args.log_level.clone().unwrap_or_else(|| "info".into());
            (args.snapshotter_root.clone(), args.no_keeper, level, LogFormat::Json)
        }
        Command::Up(args) => {
            (args.root.join("snapshotter"), args.no_keeper, args.log_level.clone(), LogFormat::detect())
        }
        _ => return None,
    };
    if is_worker() {
        after_predecessor(&root);
    }
    let alone = alone || is_worker() || !rustix::process::geteuid().is_root();
    (!alone).then_some(Service { root, level, format })
}

/// Freed memory goes back to the system after 10 ms, where the allocator would wait for a second: the bursts of a
/// pull and of a cold start are short, and what they leave would look like the service's size.
const ALLOCATOR: (&str, &str) = ("MIMALLOC_PURGE_DELAY", "10");

/// Whether a supervisor started this process.
fn is_worker() -> bool {
    std::env::var_os(keeper::WORKER).is_some()
}

/// How long the worker before may take to be gone, threads and sockets.
const GONE: Duration = Duration::from_secs(5);
/// Locked by the worker of a root as long as it lives.
const LOCK: &str = "worker.lock";
/// The lock's descriptor has this number, or the highest that there is: descriptors are closed one after another, and whoever
/// gets the lock must find the sockets of the process before closed.
const LAST: u64 = 16_383;

/// Waits until the worker before has let go of everything that only one can have. Whoever started us saw the end of its
/// supervisor, and that may come first. If it stays, so be it: whatever is taken is reported by whoever needs it.
fn after_predecessor(root: &Path) {
    use rustix::fs::{FlockOperation, Mode, OFlags};
    static HELD: OnceLock<OwnedFd> = OnceLock::new();
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
    // Where there is no root there was nobody.
    let Ok(lock) = rustix::fs::open(root.join(LOCK), flags, Mode::RUSR | Mode::WUSR) else { return };
    let until = Instant::now() + GONE;
    while rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        if Instant::now() >= until {
            return;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(LAST + 1);
    let number = i32::try_from(most.saturating_sub(1).min(LAST)).unwrap_or(i32::MAX);
    let _ = HELD.set(rustix::io::fcntl_dupfd_cloexec(&lock, number).unwrap_or(lock));
}

impl Service {
    /// Runs the command in a child of this process, for as long as it takes; ends as it ends.
    pub fn supervise(self) -> anyhow::Result<()> {
        telemetry::init_logs(&self.level, self.format).context("cannot set up the log")?;
        let options = SuperviseOptions {
            launch: Launch::this_program(&self.root),
            program: keeper::called_as().context("cannot tell where this program lies")?,
            arguments: std::env::args_os().skip(1).collect(),
            environment: vec![ALLOCATOR],
            root: self.root,
        };
        match keeper::supervise(&options).context("the supervisor")? {
            0 => Ok(()),
            // The worker has said why.
            code => Err(Exit::told(code).into()),
        }
    }
}

/// What a snapshotter needs to be followed by another one.
#[derive(Clone)]
pub struct Succession {
    /// Where descriptors outlive this process; nowhere, if it stands alone.
    pub keep: Option<Arc<dyn Keep>>,
    /// Cancelled before the end if another process goes on with everything.
    pub hand_over: CancellationToken,
}

impl Succession {
    /// Connects to the keeper of `root`, and starts one if there is none. SIGUSR2 hands over, and cancels `shutdown`.
    ///
    /// # Errors
    /// That no keeper can be had: without one, the next crash would break containers.
    pub async fn prepare(root: &Path, shutdown: &CancellationToken) -> anyhow::Result<Self> {
        let hand_over = CancellationToken::new();
        if !is_worker() {
            return Ok(Self { keep: None, hand_over });
        }
        crate::ports::hand_over_on_signal(hand_over.clone(), shutdown.clone())?;
        let root = root.to_owned();
        let keep = tokio::task::spawn_blocking(move || -> anyhow::Result<Option<Arc<dyn Keep>>> {
            if std::fs::create_dir_all(&root).is_err() {
                // The snapshotter finds that too, and says it better.
                return Ok(None);
            }
            let keeper = Keeper::start(&root).with_context(|| {
                format!("cannot reach the keeper of {} (--no-keeper does without)", root.display())
            })?;
            Ok(Some(keeper))
        });
        Ok(Self { keep: keep.await??, hand_over })
    }
}
