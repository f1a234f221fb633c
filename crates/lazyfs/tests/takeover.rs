//! A process that serves mounts dies or goes, and the next one goes on: readers never see a difference but time.

// Clippy exempts test functions from these lints, and not their helpers.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::expect_used
)]

mod common;

use std::io::{BufRead as _, BufReader, Lines, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, IntoRawFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{Blob, Source, Tar, blob, can_mount, noise, on_demand, quick};
use lazyfs::keeper::{Keep, KeepHere};
use lazyfs::mounter::{Driver, DriverChoice, Mounter, MounterOptions};
use lazyfs::{Layers, MountOptions, unmount_stale};
use rustix::fs::Advice;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

const CHUNK: usize = 16 * 1024;
const FILE: usize = 4 * CHUNK + 100;
const FILES: u64 = 40;

fn layer_blob() -> Blob {
    let mut tar = Tar::new();
    for number in 0..FILES {
        tar.file(&number.to_string(), 0o644, &noise(number + 1, FILE));
    }
    blob(&tar.finish(), CHUNK as u32)
}

/// The process that serves. What it is told: `ROOT`, a folder for its store, what the process before left.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by the other tests"]
async fn server() {
    let Some(root) = std::env::var_os("LAZYFS_TEST_ROOT") else { return };
    let store = PathBuf::from(std::env::var_os("LAZYFS_TEST_STORE").unwrap());
    let keep = Arc::new(KeepHere::default());
    let parent = rustix::process::getppid().unwrap();
    for entry in std::env::var("LAZYFS_TEST_KEPT").unwrap().split_whitespace() {
        let (name, number) = entry.split_once('=').unwrap();
        keep.keep(name, from(parent, number).as_fd()).unwrap();
    }
    let blob = layer_blob();
    let source = Source::new(&blob);
    // Slow enough that somebody waits at any moment.
    source.close_gate();
    let gate = Arc::clone(&source);
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_millis(3)).await;
            gate.gate.add_permits(1);
        }
    });
    let layers = Layers::open(&store, &quick()).unwrap();
    let options = MounterOptions {
        choice: DriverChoice::Fuse,
        keep: Arc::clone(&keep) as Arc<dyn Keep>,
        scratch: store.join("probe"),
    };
    let mounter = Mounter::start(options).await.unwrap();
    let layer = layers.layer(on_demand(&blob, &source)).await.unwrap();
    let orphans = mounter.orphans();
    for orphan in &orphans {
        assert_eq!(orphan.toc, layer.toc_digest());
        mounter.serve(&layer).unwrap();
    }
    let root = Path::new(&root);
    let options = MountOptions::default();
    let taken = mounter.take_over(Arc::clone(&layer), root, &options).await.unwrap();
    let word = if taken.is_some() { "taken" } else { "mounted" };
    let mount = match taken {
        Some(mount) => mount,
        None => mounter.mount(Arc::clone(&layer), root, &options).await.unwrap(),
    };
    assert_eq!(mount.driver(), Driver::Fuse);
    let kept = keep.names().unwrap().into_iter().map(|name| {
        let device = keep.get(&name).unwrap().unwrap();
        format!("{name}={}", device.into_raw_fd())
    });
    println!("\nready {word} {} {}", orphans.len(), kept.collect::<Vec<_>>().join(" "));
    std::io::stdout().flush().unwrap();
    let line = tokio::task::spawn_blocking(|| std::io::stdin().lines().next()).await.unwrap();
    match line.unwrap().unwrap().as_str() {
        "hand over" => {
            mounter.hand_over().await;
            drop(mount);
        }
        "stop" => {
            mount.unmount().await.unwrap();
            mounter.leave().await;
        }
        other => unreachable!("{other}"),
    }
    layers.shutdown().await;
    std::process::exit(0);
}

/// A descriptor of another process.
fn from(process: Pid, number: &str) -> OwnedFd {
    let process = pidfd_open(process, PidfdFlags::empty()).unwrap();
    pidfd_getfd(process, number.parse().unwrap(), PidfdGetfdFlags::empty()).unwrap()
}

/// What keeps the devices, and starts one server after the other.
struct Keeper {
    root: PathBuf,
    folder: tempfile::TempDir,
    kept: Vec<(String, OwnedFd)>,
    rounds: u32,
}

struct Server {
    child: Child,
    orders: ChildStdin,
    /// Whether it took over the mount; else it made one.
    took: bool,
    orphans: usize,
    _lines: Lines<BufReader<ChildStdout>>,
}

impl Keeper {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        std::fs::create_dir(&root).unwrap();
        Self { root, folder, kept: Vec::new(), rounds: 0 }
    }

    /// The next server, with an empty store: it must fetch everything that is read.
    fn start(&mut self) -> Server {
        self.rounds += 1;
        let kept: Vec<String> =
            self.kept.iter().map(|(name, device)| format!("{name}={}", device.as_raw_fd())).collect();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "server", "--nocapture"])
            .env("LAZYFS_TEST_ROOT", &self.root)
            .env("LAZYFS_TEST_STORE", self.folder.path().join(self.rounds.to_string()))
            .env("LAZYFS_TEST_KEPT", kept.join(" "))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let orders = child.stdin.take().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let ready = lines.find_map(|line| line.unwrap().strip_prefix("ready ").map(str::to_owned));
        let ready = ready.expect("the server did not start");
        let mut words = ready.split(' ');
        let took = words.next().unwrap() == "taken";
        let orphans = words.next().unwrap().parse().unwrap();
        let process = Pid::from_child(&child);
        self.kept = words
            .filter_map(|entry| entry.split_once('='))
            .map(|(name, number)| (name.to_owned(), from(process, number)))
            .collect();
        Server { child, orders, took, orphans, _lines: lines }
    }
}

impl Server {
    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn tell(mut self, order: &str) {
        writeln!(self.orders, "{order}").unwrap();
        assert!(self.child.wait().unwrap().success(), "the server did not end well");
    }
}

/// Threads that read all over a mount, and check every byte. A process of its own: this one keeps the devices, and
/// could not even end while it waits for itself.
struct Readers {
    child: Child,
    /// Whose end ends it.
    orders: Option<ChildStdin>,
    reads: Arc<AtomicU64>,
    lines: std::thread::JoinHandle<Option<u64>>,
}

impl Readers {
    fn start(root: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "reader", "--nocapture"])
            .env("LAZYFS_TEST_READ", root)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let reads = Arc::new(AtomicU64::new(0));
        let (orders, lines) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()).lines());
        let counted = Arc::clone(&reads);
        let lines = std::thread::spawn(move || {
            let mut longest = None;
            for line in lines.map_while(Result::ok) {
                counted.fetch_add(u64::from(line == "read"), Ordering::Relaxed);
                longest = line.strip_prefix("longest ").map(|number| number.parse().unwrap()).or(longest);
            }
            longest
        });
        Self { child, orders, reads, lines }
    }

    /// Waits until many more reads were answered.
    fn go_on(&self) {
        let goal = self.reads.load(Ordering::Relaxed) + 20;
        let began = Instant::now();
        while self.reads.load(Ordering::Relaxed) < goal {
            assert!(began.elapsed() < Duration::from_secs(30), "readers are not answered any more");
            assert!(!self.lines.is_finished(), "a reader failed");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The longest that one of them waited for an answer.
    fn end(mut self) -> Duration {
        drop(self.orders.take());
        let longest = self.lines.join().unwrap();
        assert!(self.child.wait().unwrap().success(), "a reader failed");
        Duration::from_millis(longest.expect("the readers did not end well"))
    }
}

#[test]
#[ignore = "run by the other tests"]
fn reader() {
    let Some(root) = std::env::var_os("LAZYFS_TEST_READ") else { return };
    let stop = Arc::new(AtomicBool::new(false));
    let threads: Vec<_> = (0..3)
        .map(|thread: u64| {
            let (root, stop) = (PathBuf::from(&root), Arc::clone(&stop));
            std::thread::spawn(move || {
                let open = |number: u64| std::fs::File::open(root.join(number.to_string())).unwrap();
                let files: Vec<_> =
                    (0..FILES).map(|number| (noise(number + 1, FILE), open(number))).collect();
                let mut longest = Duration::ZERO;
                for turn in (thread * 7919..).step_by(13) {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let (content, file) = &files[(turn % FILES) as usize];
                    // So that it is asked for.
                    rustix::fs::fadvise(file, 0, None, Advice::DontNeed).unwrap();
                    let at = (turn * 4096) as usize % FILE;
                    let mut bytes = vec![0; 8192.min(FILE - at)];
                    let began = Instant::now();
                    file.read_exact_at(&mut bytes, at as u64).unwrap();
                    longest = longest.max(began.elapsed());
                    assert!(
                        bytes == content[at..at + bytes.len()],
                        "wrong bytes of file {} at {at}",
                        turn % FILES
                    );
                    println!("\nread");
                }
                longest
            })
        })
        .collect();
    let watched = Arc::clone(&stop);
    std::thread::spawn(move || {
        let _ = std::io::stdin().lines().next();
        watched.store(true, Ordering::Relaxed);
    });
    let longest = threads.into_iter().map(|thread| thread.join().unwrap()).max().unwrap();
    println!("\nlongest {}", longest.as_millis());
}

#[test]
fn a_killed_server_is_followed_and_no_reader_notices() {
    if !can_mount() {
        return;
    }
    let mut keeper = Keeper::new();
    let mut server = keeper.start();
    assert!(!server.took);
    let readers = Readers::start(&keeper.root);
    for round in 0..20 {
        readers.go_on();
        // At another moment each time.
        std::thread::sleep(Duration::from_millis(round * 3 % 17));
        server.kill();
        server = keeper.start();
        assert!(server.took, "round {round}: the mount was not taken over");
        assert_eq!((server.orphans, keeper.kept.len()), (0, 1));
    }
    readers.go_on();
    let longest = readers.end();
    server.tell("stop");
    eprintln!("longest wait: {} ms", longest.as_millis());
    assert!(longest < Duration::from_secs(10), "{longest:?}");
    assert!(!unmount_stale(&keeper.root).unwrap());
    assert_eq!(std::fs::read_dir(&keeper.root).unwrap().count(), 0, "something is still mounted");
}

#[test]
fn a_server_hands_over_to_the_next_one() {
    if !can_mount() {
        return;
    }
    let mut keeper = Keeper::new();
    let mut server = keeper.start();
    let readers = Readers::start(&keeper.root);
    for _ in 0..5 {
        readers.go_on();
        server.tell("hand over");
        server = keeper.start();
        assert!(server.took);
    }
    readers.go_on();
    let longest = readers.end();
    eprintln!("longest wait: {} ms", longest.as_millis());
    server.tell("stop");
}

/// Stopping takes the mount out of the directory tree. Who has files open there waits for the next server.
#[test]
fn what_is_open_when_a_server_stops_is_served_by_the_next_one() {
    if !can_mount() {
        return;
    }
    let mut keeper = Keeper::new();
    let mut server = keeper.start();
    let mut readers = Vec::new();
    for round in 1..4 {
        readers.push(Readers::start(&keeper.root));
        readers.iter().for_each(Readers::go_on);
        server.tell("stop");
        assert_eq!(std::fs::read_dir(&keeper.root).unwrap().count(), 0, "it is still mounted");
        server = keeper.start();
        assert!(!server.took, "there was nothing to take over at the mountpoint");
        assert_eq!(server.orphans, 1, "one layer, however many mounts");
        assert_eq!(keeper.kept.len(), round + 1);
    }
    readers.iter().for_each(Readers::go_on);
    for readers in readers {
        readers.end();
    }
    server.tell("stop");
    // Nobody reads any of them: the next one has nothing to do.
    let server = keeper.start();
    assert_eq!((server.orphans, keeper.kept.len()), (0, 1));
    server.tell("stop");
}
