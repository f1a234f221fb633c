//! `make bench`: lazily mounted layers beside the real stargz-snapshotter and beside overlayfs, in one run.
//!
//! One image at one loopback registry that counts; each contender with a containerd and a root of its own. What nobody has
//! read is measured once per round, in turns, from an empty root each time; what is on the machine already in turns, on the
//! mounts of the last round, after every contender has shown the same bytes. [`image`] is what is read, [`side`] a
//! contender, [`read`] the watch, [`table`] the promises.

// A measuring program: what cannot go on is told and ends it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod image;
mod read;
mod side;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;
use testkit::cage::{self, Cage};
use testkit::image::python;
use testkit::net::Network;
use testkit::node::Pantala;
use testkit::peers;
use testkit::process::wait_until;
use testkit::shelf::Shelf;

use crate::image::{BIG, BIG_BYTES, Chunks, RANDOM};
use crate::side::{Lab, Side, Who};
use crate::table::{Measure, Report};

/// Measures lazily mounted layers beside others.
#[derive(Debug, Parser)]
struct Arguments {
    /// The binary to measure [default: `pantala` beside this program]
    #[arg(long, value_name = "FILE")]
    pantala: Option<PathBuf>,
    /// How often everything cold is measured; the median counts
    #[arg(long, value_name = "N", default_value_t = 5)]
    rounds: usize,
    /// How often everything warm is measured; with 0 the bytes are not compared either
    #[arg(long, value_name = "N", default_value_t = 9)]
    warm: usize,
    /// How often everything is measured after the caches were dropped
    #[arg(long, value_name = "N", default_value_t = 5)]
    dropped: usize,
    /// Leave out what a contender's name is given for: overlayfs, stargz, fuse, native
    #[arg(long, value_name = "WHO")]
    without: Vec<String>,
    /// Leave out the many layers of many files
    #[arg(long)]
    no_crowd: bool,
    /// Where the figures are written as well, as Markdown
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// The registry's.
const PORT: u16 = 5000;
/// Small files that are read.
const SMALL: usize = 200;
/// A file up to so long is small.
const SMALL_BYTES: u64 = 32 << 10;
/// Paths that are asked for their attributes.
const STATS: usize = 2000;
/// Reads here and there.
const READS: u64 = 50;
/// The large file is read so often each time that it is measured warm.
const AGAIN: usize = 5;
/// How long after a pull, or a walk, memory is looked at.
const AT_REST: Duration = Duration::from_secs(4);
/// Upstream's attributes and names are good for a second.
const TIMEOUT: Duration = Duration::from_millis(1100);

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    cage::main("bench-lazy", python::prepare, |cage| inside(cage, &arguments))
}

fn inside(cage: &Cage, arguments: &Arguments) -> Result<ExitCode> {
    let pantala = match &arguments.pantala {
        Some(binary) => Pantala::at(binary)?,
        None => Pantala::locate()?,
    };
    let host = Network::new(cage)?.host("bench")?;
    let shelf = Shelf::start(&host, PORT)?;
    eprintln!("the images");
    let reference = image::push(&shelf, &pantala, &host)?;
    let chunks = Chunks::of(&shelf, &reference)?;
    let stargz = peers::find("stargz-snapshotter");
    let wanted = |who: &Who| {
        !arguments.without.iter().any(|name| name == who.name()) && (*who != Who::Stargz || stargz.is_some())
    };
    let contenders: Vec<_> =
        [Who::Stargz, Who::Fuse, Who::Native].into_iter().filter(|who| wanted(who)).collect();
    let lab = Lab {
        stargz: stargz.clone().unwrap_or_default(),
        registry: shelf.name(),
        tag: cage.tag(),
        dir: cage.dir().join("sides"),
        pantala,
        host,
    };
    let mut bench = Bench::new(lab, shelf, reference, chunks)?;
    let mut last = Vec::new();
    for round in 1..=arguments.rounds {
        for who in &contenders {
            eprintln!("round {round}: {}, cold", who.name());
            let side = bench.cold(*who, &format!("{}-{round}", who.name()))?;
            if round < arguments.rounds {
                side.end()?;
            } else {
                last.push(side);
            }
        }
    }
    if arguments.warm > 0 {
        bench.complete(&last)?;
    }
    let reference_side = std::mem::take(&mut bench.unpacked).filter(|_| wanted(&Who::Overlayfs));
    let all: Vec<_> = reference_side.iter().chain(&last).collect();
    bench.warm(&all, arguments.warm)?;
    bench.dropped(&all, arguments.dropped)?;
    for side in last {
        side.end()?;
    }
    if !arguments.no_crowd {
        eprintln!("many layers of many files");
        let crowd = image::push_crowd(&bench.shelf, &bench.lab.pantala, &bench.lab.host)?;
        for who in contenders {
            bench.crowd(who, &crowd)?;
        }
    }
    print!("{}", bench.report.text());
    if let Some(file) = &arguments.report {
        std::fs::write(file, bench.report.markdown())
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    let broken = bench.report.broken();
    if broken.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    bail!("not kept:\n  {}", broken.join("\n  "))
}

/// What is read, where, and what came of it.
#[derive(Debug)]
struct Bench {
    lab: Lab,
    shelf: Shelf,
    reference: String,
    chunks: Chunks,
    /// The image unpacked: what is right.
    unpacked: Option<Side>,
    files: Vec<(PathBuf, u64)>,
    small: Vec<PathBuf>,
    stats: Vec<PathBuf>,
    places: Vec<u64>,
    report: Report,
}

impl Bench {
    /// Unpacks the image, and chooses from it what is read.
    fn new(lab: Lab, shelf: Shelf, reference: String, chunks: Chunks) -> Result<Self> {
        let mut unpacked = lab.start(Who::Overlayfs, "overlayfs")?;
        unpacked.pull(&reference)?;
        let files = read::files(unpacked.root())?;
        let system = || files.iter().filter(|(file, _)| !file.starts_with("data"));
        let mut small: Vec<_> = system()
            .filter(|(_, len)| (1..=SMALL_BYTES).contains(len))
            .map(|(file, _)| file.clone())
            .collect();
        read::shuffle(&mut small, 0x5eed);
        small.truncate(SMALL);
        let mut stats: Vec<_> = system().map(|(file, _)| file.clone()).collect();
        read::shuffle(&mut stats, 0x57a7);
        stats.truncate(STATS);
        let len = files.iter().find(|(file, _)| file.as_os_str() == RANDOM).context("no such file")?.1;
        let mut state = 0x4a4d;
        let places = (0..READS).map(|_| read::random(&mut state) % (len / 4096 - 1) * 4096).collect();
        let report = Report::default();
        Ok(Self {
            lab,
            shelf,
            reference,
            chunks,
            unpacked: Some(unpacked),
            files,
            small,
            stats,
            places,
            report,
        })
    }

    /// Everything that nobody has read, from an empty root on.
    fn cold(&mut self, who: Who, name: &str) -> Result<Side> {
        let mut side = self.lab.start(who, name)?;
        rustix::fs::sync();
        self.shelf.reset();
        let start = Instant::now();
        side.pull(&self.reference)?;
        let mut add = |measure, figure| self.report.add(measure, who, figure);
        add(Measure::Pull, millis(start.elapsed()));
        // The config's is one of them, and asked for by containerd.
        add(Measure::PullRequests, (self.shelf.reset().requests as f64 - 1.0) / 2.0);

        side.forget_peak();
        add(Measure::SmallCold, micros(read::median(&read::small(side.root(), &self.small)?)));

        let touched = self.chunks.touched(RANDOM, &self.places);
        let disk = side.disk()?;
        self.shelf.reset();
        let times = read::here_and_there(&side.root().join(RANDOM), &self.places)?;
        add(Measure::RandomCold, millis(times.iter().sum()));
        let bytes = self.shelf.reset().bytes;
        add(Measure::RandomBytes, bytes as f64 / 1e6);
        add(Measure::RandomOver, bytes as f64 / touched.compressed as f64);
        add(Measure::RandomDisk, side.disk()?.saturating_sub(disk) as f64 / touched.inflated as f64);

        let cpu = side.cpu();
        let (first, all) = read::whole(&side.root().join(BIG), BIG_BYTES as u64)?;
        add(Measure::FirstCold, millis(first));
        add(Measure::SequentialCold, BIG_BYTES as f64 / 1e6 / all.as_secs_f64());
        let used = side.cpu();
        add(Measure::SequentialCpu, used.0.saturating_sub(cpu.0).as_secs_f64());
        add(Measure::SequentialKernel, used.1.saturating_sub(cpu.1).as_secs_f64());
        add(Measure::ColdPeak, side.memory().peak as f64 / 1e6);
        Ok(side)
    }

    /// Reads everything everywhere: it must be the same, and it is on the machine then.
    fn complete(&mut self, sides: &[Side]) -> Result<()> {
        eprintln!("every byte, everywhere");
        let unpacked = self.unpacked.as_ref().context("no unpacked image")?;
        let right = read::digest(unpacked.root(), &self.files)?;
        for side in sides {
            let other = read::files(side.root())?;
            let differs = other.iter().zip(&self.files).find(|(one, other)| one != other);
            anyhow::ensure!(
                differs.is_none() && other.len() == self.files.len(),
                "{} shows other files: {} of {}, {differs:?}",
                side.who.name(),
                other.len(),
                self.files.len()
            );
            let seen = read::digest(side.root(), &self.files)?;
            anyhow::ensure!(
                seen == right,
                "{} shows other bytes than the unpacked image has",
                side.who.name()
            );
            if side.who == Who::Native {
                // What came is flushed first, then nobody needs to ask any more.
                let done = wait_until("complete layers", Duration::from_secs(15), || {
                    (side.marks() == 0).then_some(())
                });
                if let Err(error) = done {
                    eprintln!("{error:#}");
                }
                self.report.add(Measure::Marks, side.who, side.marks() as f64);
            }
        }
        Ok(())
    }

    /// What is in the page cache: no contender's disk is asked.
    fn warm(&mut self, sides: &[&Side], times: usize) -> Result<()> {
        if times == 0 {
            return Ok(());
        }
        eprintln!("warm");
        rustix::fs::sync();
        let before: Vec<_> = sides.iter().map(|side| side.cpu().0).collect();
        let mut order: Vec<_> = sides.to_vec();
        for time in 0..=times {
            // Nobody is always the first after a pause, or the one after whoever takes all memory bandwidth.
            order.rotate_left(time.min(1));
            std::thread::sleep(TIMEOUT);
            for side in &order {
                let (root, who) = (side.root(), side.who);
                let stat = read::median(&read::stat(root, &self.stats)?);
                // Once without a watch: somebody else may have made the kernel forget.
                read::small(root, &self.small)?;
                let small = read::median(&read::small(root, &self.small)?);
                read::whole(&root.join(BIG), BIG_BYTES as u64)?;
                let whole: Vec<_> = (0..AGAIN)
                    .map(|_| Ok(read::whole(&root.join(BIG), BIG_BYTES as u64)?.1))
                    .collect::<Result<_>>()?;
                let whole = read::median(&whole);
                // The first time is for the kernel to learn the names.
                if time > 0 {
                    self.report.add(Measure::Stat, who, micros(stat));
                    self.report.add(Measure::SmallWarm, who, micros(small));
                    self.report.add(
                        Measure::SequentialWarm,
                        who,
                        BIG_BYTES as f64 / 1e6 / whole.as_secs_f64(),
                    );
                }
            }
            std::thread::sleep(TIMEOUT);
            for side in &order {
                let (walk, seen) = read::walk(side.root())?;
                anyhow::ensure!(seen >= self.files.len(), "a walk saw {seen} names");
                if time > 0 {
                    self.report.add(Measure::Walk, side.who, millis(walk));
                }
            }
        }
        for (side, before) in sides.iter().zip(before) {
            if side.who != Who::Overlayfs {
                self.report.add(
                    Measure::WarmCpu,
                    side.who,
                    side.cpu().0.saturating_sub(before).as_secs_f64(),
                );
            }
        }
        Ok(())
    }

    /// What is on disk alone.
    fn dropped(&mut self, sides: &[&Side], times: usize) -> Result<()> {
        eprintln!("caches dropped");
        for _ in 0..times {
            for side in sides {
                read::drop_caches()?;
                let (_, whole) = read::whole(&side.root().join(BIG), BIG_BYTES as u64)?;
                let small = read::median(&read::small(side.root(), &self.small)?);
                self.report.add(
                    Measure::SequentialDropped,
                    side.who,
                    BIG_BYTES as f64 / 1e6 / whole.as_secs_f64(),
                );
                self.report.add(Measure::SmallDropped, side.who, micros(small));
            }
        }
        Ok(())
    }

    /// Memory with many layers of many files.
    fn crowd(&mut self, who: Who, reference: &str) -> Result<()> {
        let mut side = self.lab.start(who, &format!("crowd-{}", who.name()))?;
        side.pull(reference)?;
        // What was needed for the pull alone is given back after a moment.
        std::thread::sleep(AT_REST);
        self.report.add(Measure::Crowd, who, side.memory().now as f64 / 1e6);
        eprintln!("{}:\n{}", who.name(), side.memory_by_process());
        let (layers, files) = image::CROWD;
        let (_, seen) = read::walk(side.root())?;
        anyhow::ensure!(seen > layers * files, "a walk saw {seen} names");
        std::thread::sleep(AT_REST);
        self.report.add(Measure::CrowdWalked, who, side.memory().now as f64 / 1e6);
        side.end()
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
