//! The service is killed with -9 under load, and nobody reads a wrong byte.
//!
//! Five containers sum files that arrive slowly, and write down what they get. Beside them somebody reads pages that are
//! here already, over and over, and measures how long it takes: that is what a death costs. The worker alone is killed, or
//! supervisor, worker and keeper together, where a service manager stores what the keeper keeps. `PANTALA_CRASHES` says
//! how often under each driver; `PANTALA_SEED` when.

// Helpers of tests may fail as tests do.
#![allow(clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use content::Digest;
use e2e::deaths::{LONGEST, Probe, kill, processes};
use e2e::{base_layer, cluster_with, noise};
use rand::rngs::SmallRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use testkit::cage::{self, Cage, Needs};
use testkit::cluster::{Cluster, ClusterOptions};
use testkit::containerd::{Snapshotter, View};
use testkit::image::{Entry, Image, layer};
use testkit::net::Shape;
use testkit::process::{READY_LIMIT, wait_until};
use testkit::service_manager::ServiceManager;

const FILES: u64 = 10;
const FILE: usize = 3_000_000;
const CONTAINERS: u64 = 5;
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

fn worker(cluster: &mut Cluster) -> Result<u32> {
    let supervisor = cluster.machines[0].node.daemon().pid();
    wait_until("a worker", Duration::from_secs(10), || {
        processes().into_iter().find(|(_, parent)| *parent == supervisor).map(|(process, _)| process)
    })
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

/// A cluster with five containers that read all the time, and the probe.
struct Lab {
    cluster: Cluster,
    lazy: String,
    sums: BTreeMap<String, String>,
    view: View,
    probe: Probe,
    containers: Vec<String>,
    /// How often somebody dies.
    crashes: u64,
    chance: SmallRng,
    /// For people.
    title: String,
}

impl Lab {
    /// With a manager, it is its service from the beginning.
    fn start(cage: &Cage, driver: &str, manager: Option<&ServiceManager>) -> Result<Self> {
        let (crashes, seed) = (number("PANTALA_CRASHES", 6), number("PANTALA_SEED", 1));
        let (image, sums) = image()?;
        let options = ClusterOptions {
            seed: false,
            snapshotter_extra: format!("no_background_fetch = true\ndriver = \"{driver}\""),
            ..ClusterOptions::default()
        };
        let mut cluster = cluster_with(cage, &image, options)?;
        if let Some(manager) = manager {
            cluster.machines[0].node.stop()?;
            cluster.machines[0].node.start_under(manager)?;
        }
        let lazy = cluster.reference("lab:esgz");
        // containerd, which has nothing there yet, does not look at once whether its snapshotter is back.
        wait_until("a pull", READY_LIMIT, || cluster.machines[0].containerd.rpull(&lazy).ok())?;
        let view = cluster.machines[0].containerd.view(&lazy, Snapshotter::Stargz)?;
        let probe = Probe::start(&view.path().join("data/probe"), noise(99, FILE))?;
        let (chance, title) = (SmallRng::seed_from_u64(seed), format!("driver {driver}, seed {seed}"));
        let containers = Vec::new();
        Ok(Self { cluster, lazy, sums, view, probe, containers, crashes, chance, title })
    }

    /// From now on files arrive slowly, and are read.
    fn load(&mut self) -> Result<()> {
        self.cluster.shape(Shape::mbit(if self.crashes > 20 { 4 } else { 16 }))?;
        for container in 0..CONTAINERS {
            let program = reading(container * 2);
            let program = ["/bin/sh", "-c", &program];
            let containerd = &self.cluster.machines[0].containerd;
            self.containers.push(containerd.run_detached(&self.lazy, Snapshotter::Stargz, &program)?);
        }
        self.probe.longest().map(drop)
    }

    /// Lets `die` happen again and again; the longest wait of a reader for what is here.
    fn crash(&mut self, mut die: impl FnMut(&mut Cluster, &mut SmallRng) -> Result<()>) -> Result<Duration> {
        let mut stalls = Vec::new();
        for crash in 0..self.crashes {
            std::thread::sleep(Duration::from_millis(self.chance.random_range(0..900)));
            self.probe.reset();
            let crashed = die(&mut self.cluster, &mut self.chance).and_then(|()| self.probe.longest());
            stalls.push((crashed.with_context(|| format!("{}, crash {crash}", self.title))?, crash));
        }
        stalls.sort();
        let at = |part: usize| stalls.get(stalls.len() * part / 100).or(stalls.last()).copied();
        let longest = stalls.last().copied().unwrap_or_default();
        println!(
            "{}: {} deaths, stalls: half below {:?}, 9 of 10 below {:?}, the longest {:?} at {}",
            self.title,
            stalls.len(),
            at(50).unwrap_or_default().0,
            at(90).unwrap_or_default().0,
            longest.0,
            longest.1
        );
        Ok(longest.0)
    }

    /// All containers get on, and nobody has seen a wrong byte.
    fn goes_on(&mut self) -> Result<()> {
        self.cluster.registry_host.unshape()?;
        let all = |lab: &Self| -> Result<Vec<usize>> {
            lab.containers.iter().map(|name| summed(&lab.cluster, name, &lab.sums)).collect()
        };
        let before = all(self)?;
        wait_until("the containers to get on", Duration::from_mins(1), || {
            let now = all(self).ok()?;
            now.iter().zip(&before).all(|(now, before)| *now > before + 10).then_some(())
        })?;
        println!("{}: files summed by each container: {:?}", self.title, all(self)?);
        ensure!(self.probe.goes_on(), "the probe failed");
        Ok(())
    }
}

fn worker_killed(cage: &Cage, driver: &str) -> Result<()> {
    let mut lab = Lab::start(cage, driver, None)?;
    lab.load()?;
    let longest = lab.crash(|cluster, _| {
        kill(worker(cluster)?);
        Ok(())
    })?;
    lab.goes_on()?;
    ensure!(longest <= LONGEST, "a death cost {longest:?}");
    let Lab { mut cluster, lazy, sums, view, probe, containers, .. } = lab;
    probe.end()?;
    rebooted(&mut cluster, &view, &containers, &lazy, driver, &sums)
}

/// Supervisor, worker and keeper die, one quickly after the other in any order, and come back with what is stored.
fn all_killed(cage: &Cage, driver: &str) -> Result<()> {
    let manager = ServiceManager::start(cage.dir())?;
    let mut lab = Lab::start(cage, driver, Some(&manager))?;
    lab.load()?;
    let longest = lab.crash(|cluster, chance| {
        let others: Vec<_> = cluster.scheduler.iter().map(testkit::process::Daemon::pid).collect();
        let mut all: Vec<_> = processes().into_keys().filter(|process| !others.contains(process)).collect();
        all.shuffle(chance);
        all.into_iter().for_each(kill);
        let node = &mut cluster.machines[0].node;
        node.daemon().kill()?;
        // Whoever was being started just then.
        wait_until("the end of all", Duration::from_secs(10), || {
            let left: Vec<_> = processes().into_keys().filter(|process| !others.contains(process)).collect();
            left.iter().copied().for_each(kill);
            left.is_empty().then_some(())
        })?;
        node.start_under(&manager)
    })?;
    lab.goes_on()?;
    ensure!(longest <= LONGEST * 3, "the death of all cost {longest:?}");
    lab.probe.end()
}

/// Everything is killed at once and unmounted, as a machine's reset does. All files have been read by then, and what the
/// chunk maps call present is read without another look: it must be right. The registry is gone.
fn rebooted(
    cluster: &mut Cluster,
    view: &View,
    containers: &[String],
    lazy: &str,
    driver: &str,
    sums: &BTreeMap<String, String>,
) -> Result<()> {
    for container in containers {
        cluster.machines[0].containerd.remove(container)?;
    }
    cluster.machines[0].containerd.close(view)?;
    // What came last is on disk, too.
    std::thread::sleep(Duration::from_secs(3));
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
    cluster.registry_host.plug(false)?;
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
    let sources = machine.node.sources()?;
    // What a worker had not noted yet when it was killed comes from the store of pieces: the kernel had it all the time.
    ensure!(sources.fetched() == 0, "bytes came from somewhere: {sources:?}");
    Ok(())
}

#[test]
fn a_killed_worker_costs_a_moment_and_no_byte_with_fuse() {
    cage::test(Needs::Containers, |cage| worker_killed(cage, "fuse"));
}

#[test]
fn a_killed_worker_costs_a_moment_and_no_byte_with_native() {
    cage::test(Needs::Containers, |cage| worker_killed(cage, "native"));
}

#[test]
fn all_killed_together_they_come_back_and_nobody_reads_a_hole_with_fuse() {
    cage::test(Needs::Containers, |cage| all_killed(cage, "fuse"));
}

#[test]
fn all_killed_together_they_come_back_and_nobody_reads_a_hole_with_native() {
    cage::test(Needs::Containers, |cage| all_killed(cage, "native"));
}
