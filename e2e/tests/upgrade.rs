//! A restart, a death, an upgrade of the program below ten containers that read all the time, with the registry gone: they
//! notice nothing.

// Helpers of tests may fail as tests do.
#![allow(clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use content::Digest;
use e2e::deaths::{LONGEST, Probe, kill, original};
use e2e::{base_layer, noise};
use rustix::process::Signal;
use testkit::cage::{self, Cage, Needs};
use testkit::cluster::{Cluster, ClusterOptions};
use testkit::containerd::Snapshotter;
use testkit::image::{Entry, Image, layer};
use testkit::node::Pantala;
use testkit::process::{run, wait_until};

const CONTAINERS: u64 = 10;
/// Each container's file: a chunk of its own.
const FILE: usize = 300_000;
const PROBE: u64 = 99;
/// Nobody reads this one before the end: the layer is never complete, so that the native driver is asked, too.
const LAST: u64 = 98;
const LIMIT: Duration = Duration::from_secs(30);
/// What a container's own work may take on a busy machine, besides what it waits for.
const WORK: Duration = Duration::from_secs(1);

/// What is done to the service.
const DISASTERS: [&str; 8] =
    ["restart", "worker", "supervisor", "upgrade", "restart", "upgrade", "worker", "upgrade"];

struct Lab {
    cluster: Cluster,
    program: PathBuf,
    lazy: String,
    containers: Vec<String>,
}

impl Lab {
    fn start(cage: &Cage, driver: &str) -> Result<Self> {
        // A binary of our own, to be replaced.
        let program = cage.dir().join("pantala");
        fs::copy(original()?, &program)?;
        let mut entries = vec![Entry::dir("data")];
        for seed in (0..CONTAINERS).chain([PROBE, LAST]) {
            entries.push(Entry::file(&format!("data/{seed}"), noise(seed, FILE)));
        }
        let image = Image::new(&[base_layer()?, layer(&entries)?]);
        let options = ClusterOptions {
            seed: false,
            snapshotter_extra: format!("driver = {driver:?}\nno_background_fetch = true\nnoprefetch = true"),
            ..ClusterOptions::default()
        };
        let mut cluster = Cluster::registry_only(cage, &Pantala::at(&program)?, options)?;
        image.push(cluster.registry.back(), "lab", "plain")?;
        cluster.convert("lab:plain", "lab:esgz")?;
        cluster.start_nodes()?;
        let lazy = cluster.reference("lab:esgz");
        cluster.machines[0].containerd.rpull(&lazy)?;
        let mut containers = Vec::new();
        for number in 0..CONTAINERS {
            let program = format!(
                "while :; do /bin/sha256sum /data/{number} >> /out || echo failed >> /out; done 2>> /out"
            );
            let program = ["/bin/sh", "-c", &program];
            let containerd = &cluster.machines[0].containerd;
            containers.push(containerd.run_detached(&lazy, Snapshotter::Stargz, &program)?);
        }
        Ok(Self { cluster, program, lazy, containers })
    }

    /// What each container writes, as it is seen from outside.
    fn outputs(&self) -> Result<Vec<PathBuf>> {
        let list = run(self.cluster.machines[0].containerd.ctr().args(["tasks", "ls"]))?;
        let processes: BTreeMap<&str, &str> = list
            .lines()
            .filter_map(|line| {
                let mut words = line.split_whitespace();
                Some((words.next()?, words.next()?))
            })
            .collect();
        let of = |name: &String| {
            let process =
                processes.get(name.as_str()).with_context(|| format!("{name} does not run: {list}"));
            Ok(PathBuf::from(format!("/proc/{}/root/out", process?)))
        };
        self.containers.iter().map(of).collect()
    }

    fn strike(&mut self, disaster: &str, cage: &Cage) -> Result<()> {
        let node = &mut self.cluster.machines[0].node;
        match disaster {
            "restart" => {
                let ended = node.daemon().stop()?;
                ensure!(ended.success(), "it ended with {ended}");
                node.start_again()
            }
            "worker" => {
                let before = node.daemon().worker();
                kill(before);
                wait_until("the next worker", LIMIT, || {
                    let now = node.daemon().worker();
                    (now != before && now != node.daemon().pid()).then_some(())
                })
            }
            "supervisor" => {
                node.daemon().kill()?;
                node.start_again()
            }
            _ => {
                let fresh = cage.dir().join("pantala.new");
                fs::copy(original()?, &fresh)?;
                fs::rename(&fresh, &self.program)?;
                let wanted = fs::metadata(&self.program)?.ino();
                let running = format!("/proc/{}/exe", node.daemon().pid());
                ensure!(fs::metadata(&running)?.ino() != wanted, "it is the new program already");
                node.daemon().signal(Signal::HUP)?;
                wait_until("the new program", LIMIT, || {
                    fs::metadata(&running).ok().filter(|stat| stat.ino() == wanted).map(drop)
                })
            }
        }
    }
}

/// Watches how long each container writes nothing.
struct Watch {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Vec<Duration>>,
}

impl Watch {
    fn start(files: Vec<PathBuf>) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let told = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut seen = vec![(0, Instant::now(), Duration::ZERO); files.len()];
            let mut dropped = Instant::now();
            while !told.load(Ordering::Relaxed) {
                for (file, (len, since, longest)) in files.iter().zip(&mut seen) {
                    let now = fs::metadata(file).map_or(0, |data| data.len());
                    if now != *len {
                        (*len, *since) = (now, Instant::now());
                    }
                    *longest = (*longest).max(since.elapsed());
                }
                // Or nobody would ask the service for anything.
                if dropped.elapsed() > Duration::from_millis(300) {
                    let _ = fs::write("/proc/sys/vm/drop_caches", "1");
                    dropped = Instant::now();
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            seen.into_iter().map(|(_, _, longest)| longest).collect()
        });
        Self { stop, thread }
    }

    fn end(self) -> Vec<Duration> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// What the containers wrote, and what it must be.
struct Outputs(Vec<(PathBuf, String)>);

impl Outputs {
    fn of(files: Vec<PathBuf>) -> Self {
        let right = |seed| format!("{}  /data/{seed}", Digest::of(&noise(seed, FILE)).hex());
        Self(files.into_iter().zip((0..).map(right)).collect())
    }

    /// How many sums each container has written; every line must be right.
    fn sums(&self) -> Result<Vec<usize>> {
        let sums = |(file, right): &(PathBuf, String)| {
            // Nothing yet; or the last line is half written.
            let text = match fs::read_to_string(file) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
                read => read?,
            };
            let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
            let wrong = whole.lines().find(|line| line != right);
            ensure!(wrong.is_none(), "a container says {wrong:?} instead of {right:?}");
            Ok(whole.lines().count())
        };
        self.0.iter().map(sums).collect()
    }

    /// Waits until each has written that many.
    fn wait(&self, goal: usize) -> Result<()> {
        let until = Instant::now() + LIMIT;
        loop {
            let sums = self.sums()?;
            if sums.iter().all(|sums| *sums >= goal) {
                return Ok(());
            }
            ensure!(Instant::now() < until, "the containers do not get on: {sums:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn nobody_notices(cage: &Cage, driver: &str) -> Result<()> {
    let mut lab = Lab::start(cage, driver)?;
    let files = lab.outputs()?;
    let outputs = Outputs::of(files.clone());
    let view = lab.cluster.machines[0].containerd.view(&lab.lazy, Snapshotter::Stargz)?;
    let probe = Probe::start(&view.path().join(format!("data/{PROBE}")), noise(PROBE, FILE))?;
    outputs.wait(3)?;
    // What they read is on disk by then, too.
    std::thread::sleep(Duration::from_secs(2));
    lab.cluster.registry_host.plug(false)?;
    for disaster in DISASTERS {
        let before = outputs.sums()?.into_iter().max().unwrap_or(0);
        let watch = Watch::start(files.clone());
        probe.reset();
        let struck = lab.strike(disaster, cage);
        struck.with_context(|| format!("{driver}, {disaster}"))?;
        let stall = probe.longest().with_context(|| format!("{driver}, {disaster}"))?;
        outputs.wait(before + 5).with_context(|| format!("{driver}, {disaster}"))?;
        let silent = watch.end().into_iter().max().unwrap_or_default();
        println!(
            "{driver}, {disaster}: a page took {stall:?} at most, a container said nothing for {silent:?}"
        );
        ensure!(stall <= LONGEST, "{driver}, {disaster}: a page took {stall:?}");
        ensure!(silent <= LONGEST + WORK, "{driver}, {disaster}: a container said nothing for {silent:?}");
    }
    let machine = &mut lab.cluster.machines[0];
    machine.containerd.wait_for_plugin()?;
    let sources = machine.node.sources()?;
    ensure!(sources.fetched() == 0, "bytes came from somewhere: {sources:?}");
    // The registry is back: what nobody has read arrives.
    lab.cluster.registry_host.plug(true)?;
    let containerd = &lab.cluster.machines[0].containerd;
    let last = format!("/data/{LAST}");
    let read = || containerd.exec(&lab.containers[0], &["/bin/sha256sum", &last]).ok();
    let printed = wait_until("the registry to be found again", LIMIT, read)?.stdout;
    assert_eq!(printed, format!("{}  {last}\n", Digest::of(&noise(LAST, FILE)).hex()));
    probe.end()?;
    containerd.close(&view)?;
    for container in &lab.containers {
        containerd.remove(container)?;
    }
    lab.cluster.machines[0].node.stop()
}

#[test]
fn natively_ten_containers_notice_no_restart_death_or_upgrade() {
    cage::test(Needs::Containers, |cage| nobody_notices(cage, "native"));
}

#[test]
fn through_fuse_ten_containers_notice_no_restart_death_or_upgrade() {
    cage::test(Needs::Containers, |cage| nobody_notices(cage, "fuse"));
}
