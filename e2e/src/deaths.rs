//! Processes that are killed, and who sees whether that costs anybody anything.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use rustix::process::{Pid, Signal, kill_process};
use testkit::process::wait_until;

/// What a death may cost a reader of what is here. A debug build on a busy machine starts slowly.
pub const LONGEST: Duration =
    if cfg!(debug_assertions) { Duration::from_millis(2500) } else { Duration::from_secs(1) };

/// Processes of `pantala` in this cage by number, with the parent's number.
pub fn processes() -> BTreeMap<u32, u32> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(process) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // Not `stat`, nor `cmdline`: they wait for a process that waits for its memory.
        let Ok(status) = fs::read_to_string(entry.path().join("status")) else { continue };
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        // A worker was started through its own executable's link.
        let is_ours = matches!(field("Name:"), Some("pantala" | "exe"));
        if !is_ours || field("State:").is_some_and(|state| state.starts_with('Z')) {
            continue;
        }
        let parent = field("PPid:").and_then(|parent| parent.parse().ok()).unwrap_or(0);
        found.insert(process, parent);
    }
    found
}

/// Kills a process (SIGKILL); it may be gone already.
pub fn kill(process: u32) {
    let process = i32::try_from(process).ok().and_then(Pid::from_raw).expect("a process number");
    let _ = kill_process(process, Signal::KILL);
}

/// The keeper of a root.
pub fn keeper(root: &Path) -> Option<u32> {
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        let words: Vec<_> = line.split(|byte| *byte == 0).collect();
        let root = root.as_os_str().as_encoded_bytes();
        let is_it = words.get(1) == Some(&&b"keeper"[..]) && words.get(3) == Some(&root);
        is_it.then(|| entry.file_name().to_str()?.parse().ok())?
    })
}

/// The program under test, where it lies.
pub fn original() -> Result<PathBuf> {
    match std::env::var_os("PANTALA_BIN") {
        Some(path) => Ok(path.into()),
        None => Ok(std::env::current_exe()?.ancestors().nth(2).context("no directory")?.join("pantala")),
    }
}

/// Reads pages of a file that are on this machine, but in no cache, until it is stopped.
#[derive(Debug)]
pub struct Probe {
    stop: Arc<AtomicBool>,
    /// The longest wait since it was last asked, in microseconds.
    longest: Arc<AtomicU64>,
    reads: Arc<AtomicU64>,
    failure: Arc<OnceLock<String>>,
    thread: std::thread::JoinHandle<Result<()>>,
}

impl Probe {
    /// Reads `file`, whose content must be `expected`, from now on.
    pub fn start(file: &Path, expected: Vec<u8>) -> Result<Self> {
        let file = fs::File::open(file)?;
        let mut all = vec![0; expected.len()];
        file.read_exact_at(&mut all, 0)?;
        ensure!(all == expected, "the probe is wrong before anything happened");
        let (stop, longest, reads) =
            (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let failure = Arc::<OnceLock<String>>::default();
        let told = (Arc::clone(&stop), Arc::clone(&longest), Arc::clone(&reads));
        let complain = Arc::clone(&failure);
        let read = move || -> Result<()> {
            let mut chance = SmallRng::seed_from_u64(7);
            while !told.0.load(Ordering::Relaxed) {
                let at = chance.random_range(0..expected.len() - 4096);
                let mut page = [0; 4096];
                rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
                let began = Instant::now();
                file.read_exact_at(&mut page, at as u64).context("a page that is here cannot be read")?;
                let took = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
                told.1.fetch_max(took, Ordering::Relaxed);
                ensure!(page == expected[at..at + 4096], "wrong bytes at {at} of the probe");
                told.2.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok(())
        };
        let thread =
            std::thread::spawn(move || read().inspect_err(|error| drop(complain.set(format!("{error:?}")))));
        Ok(Self { stop, longest, reads, failure, thread })
    }

    /// Waits until some more reads were answered; the longest wait until then.
    pub fn longest(&self) -> Result<Duration> {
        let goal = self.reads.load(Ordering::Relaxed) + 20;
        wait_until("answers after a death", Duration::from_secs(40), || {
            (self.reads.load(Ordering::Relaxed) >= goal || self.thread.is_finished()).then_some(())
        })?;
        ensure!(!self.thread.is_finished(), "the probe failed: {:?}", self.failure.get());
        Ok(Duration::from_micros(self.longest.swap(0, Ordering::Relaxed)))
    }

    /// Forgets what was measured until now.
    pub fn reset(&self) {
        self.longest.store(0, Ordering::Relaxed);
    }

    /// Whether it goes on: it ends at the first wrong byte, and the first error.
    pub fn goes_on(&self) -> bool {
        !self.thread.is_finished()
    }

    /// Ends it.
    ///
    /// # Errors
    /// That a byte was wrong, or could not be read.
    pub fn end(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("the probe panicked"))?
    }
}
