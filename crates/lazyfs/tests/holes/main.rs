//! A thousand attempts to read a hole as data.
//!
//! Layers are served by a *worker*, a process of its own, whose sources fail, lie and dawdle. It is killed with -9
//! every now and then and another one takes over; in between mounts are replaced, layers evicted, caches dropped. All
//! the while other processes read, in every way that there is, through overlays and without. The claim: each byte that
//! they get is right, or they got an error. Afterwards everything can be read.
//!
//! The keeper is this test: a descriptor is handed over by its number (`keep.rs`), so that nothing is shown here but
//! what the drivers themselves do.

// Clippy exempts test functions from these lints, and not their helpers.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, clippy::cast_possible_truncation)]

#[path = "../common/mod.rs"]
mod common;
mod keep;
#[path = "../conformance/shown.rs"]
mod shown;
mod worker;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::noise;
use keep::Kept;
use lazyfs::mounter::DriverChoice;
use rustix::mount::MountFlags;
use shown::{At, drivers, drop_caches, parent, reader};
use worker::{FILES, LAYERS, Worker, content};

const READERS: u64 = 4;
/// Of each reader.
const ATTEMPTS: u64 = 260;

/// What happens to the layers while they are read. Numbers of layers are of the [`LAYERS`].
#[derive(Clone, Copy, Debug)]
enum Event {
    Kill,
    Remount(u64),
    Evict(u64),
    DropCaches,
    Rest,
}

/// The same in every run of a seed.
fn events(seed: u64) -> Vec<Event> {
    let dice = noise(seed, 32);
    let event = |at: usize| match dice[at] % 8 {
        0 | 1 => Event::Kill,
        2 => Event::Remount(u64::from(dice[at + 1]) % LAYERS),
        3 => Event::Evict(u64::from(dice[at + 1]) % LAYERS),
        4 | 5 => Event::DropCaches,
        _ => Event::Rest,
    };
    let mut events: Vec<_> = (0..15).map(|at| event(at * 2)).collect();
    // Whatever the dice say.
    events.extend([Event::Kill, Event::Evict(0), Event::DropCaches, Event::Kill]);
    events
}

struct Lab {
    folder: tempfile::TempDir,
    driver: DriverChoice,
    kept: Kept,
}

impl Lab {
    fn new(driver: DriverChoice) -> Self {
        let folder = tempfile::tempdir_in(parent()).unwrap();
        let kept = Kept::listen(&folder.path().join("keeper.sock"));
        let lab = Self { folder, driver, kept };
        for layer in 0..LAYERS {
            std::fs::create_dir_all(lab.path("root").join(layer.to_string())).unwrap();
            let originals = lab.path("originals").join(layer.to_string());
            std::fs::create_dir_all(&originals).unwrap();
            for file in 0..FILES {
                std::fs::write(originals.join(file.to_string()), content(layer, file)).unwrap();
            }
        }
        lab
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn worker(&self, honest: bool) -> Worker {
        Worker::start(self.folder.path(), self.driver, honest)
    }

    /// An overlay above each layer: it holds what it was mounted on, whatever becomes of the directory.
    fn overlays(&self) -> Vec<At> {
        let below = self.path("below");
        std::fs::create_dir(&below).unwrap();
        let overlay = |layer: u64| {
            let at = self.path(&format!("merged/{layer}"));
            std::fs::create_dir_all(&at).unwrap();
            let options =
                format!("lowerdir={}:{}", self.path(&format!("root/{layer}")).display(), below.display());
            let options = std::ffi::CString::new(options).unwrap();
            rustix::mount::mount("overlay", &at, "overlay", MountFlags::RDONLY, options.as_c_str()).unwrap();
            At(at)
        };
        (0..LAYERS).map(overlay).collect()
    }

    fn reader(&self, seed: u64, attempts: u64, strict: bool) -> Child {
        let script = reader("../holes/holes.py");
        Command::new("timeout")
            .args(["-s", "KILL", "100"])
            .arg(script.get_program())
            .args(script.get_args())
            .arg(self.folder.path())
            .args([seed.to_string(), attempts.to_string(), u8::from(strict).to_string()])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }
}

/// What a reader saw: attempts that gave bytes, and that gave an error.
fn counts(child: Child) -> (u64, u64) {
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout.as_slice(), output.stderr.as_slice()].map(String::from_utf8_lossy).concat();
    assert!(output.status.success(), "{}: {said}", output.status);
    let mut words = said.split_whitespace().map(|word| word.parse().unwrap());
    (words.next().unwrap(), words.next().unwrap())
}

fn attempts(driver: DriverChoice, seed: u64) {
    let lab = Lab::new(driver);
    let mut worker = lab.worker(false);
    let overlays = lab.overlays();
    let mut readers: Vec<_> =
        (0..READERS).map(|reader| lab.reader(seed * 100 + reader, ATTEMPTS, false)).collect();
    let events = events(seed);
    let mut happened = 0;
    while readers.iter_mut().any(|reader| reader.try_wait().unwrap().is_none()) {
        let event = events[happened % events.len()];
        happened += 1;
        if happened == events.len() {
            std::fs::write(lab.path("enough"), "").unwrap();
        }
        match event {
            Event::Kill => {
                worker.kill();
                worker = lab.worker(false);
            }
            Event::Remount(layer) => worker.tell(&format!("remount {layer}")),
            Event::Evict(layer) => worker.tell(&format!("evict {layer}")),
            Event::DropCaches => drop_caches(),
            Event::Rest => {}
        }
        std::thread::sleep(Duration::from_millis(u64::from(noise(seed + happened as u64, 1)[0]) * 2));
    }
    let (mut good, mut failed) = (0, 0);
    for reader in readers {
        let (bytes, errors) = counts(reader);
        good += bytes;
        failed += errors;
    }
    eprintln!("{driver:?}, seed {seed}: {good} reads right, {failed} failed, {happened} events");
    assert!(good * 4 > good + failed, "hardly anything could be read");

    // With honest sources everything can be had: nothing wrong stayed in any cache, and nothing hangs.
    worker.kill();
    let worker = lab.worker(true);
    let (good, failed) = counts(lab.reader(seed, 60, true));
    assert_eq!(failed, 0, "{good} reads were right");
    drop(overlays);
    worker.stop();
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!table.contains(lab.folder.path().to_str().unwrap()), "something is still mounted");
    lab.kept.check();
}

/// `LAZYFS_TEST_SEED` for other ones than the usual.
#[test]
fn no_hole_is_ever_read_as_data() {
    let seed = std::env::var("LAZYFS_TEST_SEED").map_or(1, |seed| seed.parse().unwrap());
    for driver in drivers() {
        attempts(driver, seed);
    }
}

/// Unmounts whatever a failed test left below a folder.
fn unmount_all(folder: &Path) {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    for point in points.filter(|point| Path::new(point).starts_with(folder)) {
        let _ = rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH);
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        unmount_all(self.folder.path());
    }
}
