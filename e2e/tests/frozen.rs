//! A registry that is frozen in the middle of everything: a second host answers instead, and where nobody answers, a container
//! gets an error in time, and its bytes when somebody wakes up.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use content::Digest;
use e2e::alone::{Alone, mirrors};
use e2e::{base_layer, noise};
use rustix::process::Signal;
use testkit::cage::{self, Cage, Needs};
use testkit::containerd::Snapshotter;
use testkit::image::{Entry, Image, layer};
use testkit::meter::MeterOptions;
use testkit::net::Network;
use testkit::node::Pantala;
use testkit::process::wait_until;
use testkit::registry::Registry;

const FILE: usize = 400_000;
/// A file for each time that something is read.
const FILES: u64 = 9;
/// How soon the second host must have answered: two seconds, and the start of the program that reads.
const SOON: Duration = if cfg!(debug_assertions) { Duration::from_secs(3) } else { Duration::from_secs(2) };
/// What the configuration says about when a read must fail.
const DEADLINE: Duration = Duration::from_secs(5);
/// What else the error may take.
const SLACK: Duration = Duration::from_secs(2);
const LIMIT: Duration = Duration::from_secs(40);

/// A container of an image that two registries have.
struct Lab {
    alone: Alone,
    container: String,
    next: u64,
    first: Registry,
    second: Registry,
}

impl Lab {
    fn start(cage: &Cage, driver: &str) -> Result<Self> {
        let (network, pantala) = (Network::new(cage)?, Pantala::locate()?);
        let files: Vec<_> =
            (0..FILES).map(|seed| Entry::file(&format!("{seed}"), noise(seed, FILE))).collect();
        let image = Image::new(&[base_layer()?, layer(&files)?]);
        let registry = |name: &str| -> Result<Registry> {
            let host = network.host(name)?;
            let registry = Registry::start(&host, &cage.dir().join(name), MeterOptions::default())?;
            image.push(registry.back(), "lab", "plain")?;
            let back = registry.back().to_string();
            let (from, to) = (format!("{back}/lab:plain"), format!("{back}/lab:esgz"));
            // The same bytes under the same digests, both times.
            pantala.run(&host, &["image", "convert", "--plain-http", &back, &from, &to])?;
            Ok(registry)
        };
        let (first, second) = (registry("one")?, registry("two")?);
        let config = format!(
            "driver = \"{driver}\"\nno_background_fetch = true\nnoprefetch = true\n\
             [blob]\nfetching_timeout_sec = {}\n{}",
            DEADLINE.as_secs(),
            mirrors(&first.name(), &[&first.name(), &second.name()])
        );
        let (host, dir) = (network.host("node1")?, cage.dir().join("node1"));
        let alone = Alone::start(cage, &pantala, &host, &dir, &config)?;
        let containerd = &alone.containerd;
        let lazy = format!("{}/lab:esgz", first.name());
        containerd.rpull(&lazy)?;
        let container = containerd.run_detached(&lazy, Snapshotter::Stargz, &["/bin/sleep", "1000"])?;
        Ok(Self { alone, container, next: 0, first, second })
    }

    /// Sums a file that nobody has read yet. How long that took; an error is the container's.
    fn read(&mut self) -> (Result<()>, Duration) {
        let (seed, began) = (self.next, Instant::now());
        self.next += 1;
        let read = self.sum(seed);
        (read, began.elapsed())
    }

    fn sum(&self, seed: u64) -> Result<()> {
        let printed =
            self.alone.containerd.exec(&self.container, &["/bin/sha256sum", &format!("/{seed}")])?.stdout;
        let wanted = format!("{}  /{seed}\n", Digest::of(&noise(seed, FILE)).hex());
        ensure!(printed == wanted, "wrong bytes: {printed}");
        Ok(())
    }
}

fn frozen(cage: &Cage, driver: &str) -> Result<()> {
    let mut lab = Lab::start(cage, driver)?;
    // What `sha256sum` itself needs is here from now on.
    lab.read().0?;

    lab.first.daemon().signal(Signal::STOP)?;
    for turn in 0..3 {
        let (read, took) = lab.read();
        read.with_context(|| format!("{driver}: one registry is frozen, read {turn}"))?;
        println!("{driver}: one registry is frozen: read {turn} took {took:?}");
        ensure!(took <= SOON, "{driver}: with one registry frozen a read took {took:?}");
    }

    lab.second.daemon().signal(Signal::STOP)?;
    let failed = lab.next;
    let (read, took) = lab.read();
    let error = read.err().context("bytes came from frozen registries")?.to_string();
    println!("{driver}: both are frozen: an error after {took:?}");
    ensure!(error.contains("Input/output error"), "{driver}: {error}");
    ensure!(took <= DEADLINE + SLACK, "{driver}: the error came after {took:?}");

    // One thaws: what failed can be read, and so can everything else.
    lab.first.daemon().signal(Signal::CONT)?;
    let began = Instant::now();
    wait_until("the registry that thawed", LIMIT, || lab.sum(failed).ok())?;
    println!("{driver}: one thawed: read again after {:?}", began.elapsed());
    let (read, took) = lab.read();
    read?;
    ensure!(took <= SOON, "{driver}: after one thawed a read took {took:?}");
    lab.second.daemon().signal(Signal::CONT)?;
    lab.alone.containerd.remove(&lab.container)
}

#[test]
fn a_frozen_registry_costs_two_seconds_and_two_of_them_an_error_in_time_natively() {
    cage::test(Needs::Containers, |cage| frozen(cage, "native"));
}

#[test]
fn a_frozen_registry_costs_two_seconds_and_two_of_them_an_error_in_time_through_fuse() {
    cage::test(Needs::Containers, |cage| frozen(cage, "fuse"));
}
