//! The service is killed with -9 under load, and nobody reads a wrong byte.
//!
//! Five containers sum files that arrive slowly, and write down what they get. Beside them somebody reads pages that are
//! here already, over and over, and measures how long it takes: that is what a death costs. `PANTALA_CRASHES` says how
//! often the worker dies under each driver; `PANTALA_SEED` when.

// Helpers of tests may fail as tests do.
#![allow(clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use content::Digest;
use e2e::{base_layer, cluster_with, noise};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use rustix::process::{Pid, Signal, kill_process};
use testkit::cage::{self, Cage, Needs};
use testkit::cluster::{Cluster, ClusterOptions};
use testkit::containerd::Snapshotter;
use testkit::image::{Entry, Image, layer};
use testkit::net::Shape;
use testkit::process::wait_until;

const FILES: u64 = 10;
const FILE: usize = 3_000_000;
const CONTAINERS: u64 = 5;
/// What a death may cost a reader of what is here. A debug build on a busy machine starts slowly.
const LONGEST: Duration =
    if cfg!(debug_assertions) { Duration::from_millis(2500) } else { Duration::from_secs(1) };

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).map_or(otherwise, |text| text.parse().expect("a number"))
}

/// Files that are read cold, and one that is here before anything happens.
fn image() -> Result<(Image, BTreeMap<String, String>)> {
    let mut entries = vec![Entry::dir("data")];
    let mut sums = BTreeMap::new();
    for file in 0..FILES {
        let content = noise(100 + file, FILE);
        sums.insert(format!("/data/{file}"), Digest::of(&content).hex());
        entries.push(Entry::file(&format!("data/{file}"), content));
    }
    entries.push(Entry::file("data/probe", noise(99, FILE)));
    Ok((Image::new(&[base_layer()?, layer(&entries)?]), sums))
}

/// Processes of `pantala` in this cage by number, with the parent's number.
fn processes() -> BTreeMap<u32, u32> {
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

fn kill(process: u32) {
    let process = i32::try_from(process).ok().and_then(Pid::from_raw).expect("a process number");
    let _ = kill_process(process, Signal::KILL);
}

fn worker(cluster: &mut Cluster) -> Result<u32> {
    let supervisor = cluster.machines[0].node.daemon().pid();
    wait_until("a worker", Duration::from_secs(10), || {
        processes().into_iter().find(|(_, parent)| *parent == supervisor).map(|(process, _)| process)
    })
}

/// Reads pages of a file that are on this machine, but in no cache, until it is stopped.
struct Probe {
    stop: Arc<AtomicBool>,
    /// The longest wait since it was last asked, in microseconds.
    longest: Arc<AtomicU64>,
    reads: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<Result<()>>,
}

impl Probe {
    fn start(file: &Path) -> Result<Self> {
        let (file, expected) = (fs::File::open(file)?, noise(99, FILE));
        let mut all = vec![0; FILE];
        file.read_exact_at(&mut all, 0)?;
        ensure!(all == expected, "the probe is wrong before anything happened");
        let (stop, longest, reads) =
            (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let told = (Arc::clone(&stop), Arc::clone(&longest), Arc::clone(&reads));
        let thread = std::thread::spawn(move || -> Result<()> {
            let mut chance = SmallRng::seed_from_u64(7);
            while !told.0.load(Ordering::Relaxed) {
                let at = chance.random_range(0..FILE - 4096);
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
        });
        Ok(Self { stop, longest, reads, thread })
    }

    /// Waits until some more reads were answered; the longest wait until then.
    fn longest(&self) -> Result<Duration> {
        let goal = self.reads.load(Ordering::Relaxed) + 20;
        wait_until("answers after a death", Duration::from_secs(40), || {
            (self.reads.load(Ordering::Relaxed) >= goal || self.thread.is_finished()).then_some(())
        })?;
        ensure!(!self.thread.is_finished(), "the probe failed");
        Ok(Duration::from_micros(self.longest.swap(0, Ordering::Relaxed)))
    }

    fn end(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("the probe panicked"))?
    }
}

/// Sums all files, beginning somewhere, again and again, and writes down what it sees.
fn reading(first: u64) -> String {
    let files: Vec<_> = (0..FILES).map(|file| format!("/data/{}", (first + file) % FILES)).collect();
    format!(
        "while :; do for f in {}; do /bin/sha256sum $f >> /out || echo failed $f >> /out; done; echo round >> /out; done",
        files.join(" ")
    )
}

/// What a container wrote: how many files it has summed. Every sum must be right.
fn summed(cluster: &Cluster, container: &str, sums: &BTreeMap<String, String>) -> Result<usize> {
    let text = cluster.machines[0].containerd.exec(container, &["/bin/cat", "/out"])?.stdout;
    let mut files = 0;
    for line in text.lines().filter(|line| *line != "round") {
        let (sum, file) = line.split_once("  ").with_context(|| format!("{container} says {line:?}"))?;
        ensure!(sums.get(file).is_some_and(|right| right == sum), "{container}: {file} is {sum}");
        files += 1;
    }
    Ok(files)
}

fn killed_at_any_instant(cage: &Cage, driver: &str) -> Result<()> {
    let (crashes, seed) = (number("PANTALA_CRASHES", 6), number("PANTALA_SEED", 1));
    let mut chance = SmallRng::seed_from_u64(seed);
    let (image, sums) = image()?;
    let options = ClusterOptions {
        seed: false,
        snapshotter_extra: format!("no_background_fetch = true\ndriver = \"{driver}\""),
        ..ClusterOptions::default()
    };
    let mut cluster = cluster_with(cage, &image, options)?;
    let lazy = cluster.reference("lab:esgz");
    cluster.machines[0].containerd.rpull(&lazy)?;
    let view = cluster.machines[0].containerd.view(&lazy, Snapshotter::Stargz)?;
    let probe = Probe::start(&view.path().join("data/probe"))?;
    // So slow that files arrive all the time.
    cluster.shape(Shape::mbit(if crashes > 20 { 4 } else { 16 }))?;
    let mut containers = Vec::new();
    for container in 0..CONTAINERS {
        let program = reading(container * 2);
        let program = ["/bin/sh", "-c", &program];
        containers.push(cluster.machines[0].containerd.run_detached(&lazy, Snapshotter::Stargz, &program)?);
    }
    probe.longest()?;
    let mut stalls = Vec::new();
    for crash in 0..crashes {
        std::thread::sleep(Duration::from_millis(chance.random_range(0..900)));
        let worker = worker(&mut cluster)?;
        probe.longest.store(0, Ordering::Relaxed);
        kill(worker);
        let stall =
            probe.longest().with_context(|| format!("driver {driver}, seed {seed}, crash {crash}"))?;
        stalls.push(stall);
    }
    stalls.sort();
    println!("driver {driver}, seed {seed}: {crashes} deaths of the worker, stalls {stalls:?}");
    cluster.registry_host.unshape()?;
    let before: Vec<_> =
        containers.iter().map(|name| summed(&cluster, name, &sums)).collect::<Result<_>>()?;
    wait_until("the containers to get on", Duration::from_mins(1), || {
        let now = containers.iter().map(|name| summed(&cluster, name, &sums).ok());
        now.zip(&before).all(|(now, before)| now.is_some_and(|now| now > before + 10)).then_some(())
    })?;
    for container in &containers {
        println!("{container}: {} files summed", summed(&cluster, container, &sums)?);
    }
    probe.end()?;
    let longest = stalls.last().copied().unwrap_or_default();
    ensure!(longest <= LONGEST, "a death cost {longest:?}");
    rebooted(&mut cluster, &view, &containers, &lazy, driver, &sums)
}

/// Everything is killed at once and unmounted, as a machine's reset does; what is there afterwards is right.
fn rebooted(
    cluster: &mut Cluster,
    view: &testkit::containerd::View,
    containers: &[String],
    lazy: &str,
    driver: &str,
    sums: &BTreeMap<String, String>,
) -> Result<()> {
    for container in containers {
        cluster.machines[0].containerd.remove(container)?;
    }
    cluster.machines[0].containerd.close(view)?;
    let others: Vec<_> = cluster.scheduler.iter().map(testkit::process::Daemon::pid).collect();
    for process in processes().into_keys().filter(|process| !others.contains(process)) {
        kill(process);
    }
    cluster.machines[0].node.daemon().kill()?;
    let data = cluster.machines[0].node.data_dir();
    let below = data.parent().context("the node's directory has a parent")?;
    let points = testkit::node::mounts_below(below)?;
    ensure!(!points.is_empty(), "{driver}: nothing was mounted below {}", below.display());
    for point in points {
        rustix::mount::unmount(&point, rustix::mount::UnmountFlags::DETACH)?;
    }
    ensure!(testkit::node::mounts_below(below)?.is_empty(), "something is still mounted");
    fs::write("/proc/sys/vm/drop_caches", "3")?;
    let machine = &mut cluster.machines[0];
    machine.node.start_again()?;
    machine.containerd.wait_for_plugin()?;
    let files: Vec<_> = sums.keys().map(String::as_str).collect();
    let printed = machine.containerd.run(
        lazy,
        Snapshotter::Stargz,
        &[&["/bin/sha256sum"], files.as_slice()].concat(),
    )?;
    let expected: Vec<_> = sums.iter().map(|(file, sum)| format!("{sum}  {file}")).collect();
    ensure!(printed.stdout.lines().eq(&expected), "after everything was killed: {}", printed.stdout);
    Ok(())
}

#[test]
fn a_killed_worker_costs_a_moment_and_no_byte_with_fuse() {
    cage::test(Needs::Containers, |cage| killed_at_any_instant(cage, "fuse"));
}

#[test]
fn a_killed_worker_costs_a_moment_and_no_byte_with_native() {
    cage::test(Needs::Containers, |cage| killed_at_any_instant(cage, "native"));
}
