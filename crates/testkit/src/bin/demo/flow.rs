//! What the demo does, in order.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use testkit::cage::Cage;
use testkit::cluster::{Cluster, ClusterOptions, Machine};
use testkit::containerd::{Containerd, Snapshotter};
use testkit::image::{Image, python};
use testkit::meter::Counts;
use testkit::net::Shape;
use testkit::node::{Pantala, Sources};

use crate::report::{Eager, Origin, Report, Start};

/// Every link of the lab, both ways.
const LINK_MBIT: u32 = 200;
/// The way to the registry and back.
const ROUND_TRIP: Duration = Duration::from_millis(20);
/// Nodes that run containers.
const NODES: usize = 3;
/// The whole image over the link takes seconds; a lab that needs minutes hangs.
const COMPLETE_LIMIT: Duration = Duration::from_mins(2);

/// The program that every container runs first, and the larger one.
const VERSION: &[&str] = &["python3", "-V"];
const PROGRAM: &[&str] = &["python3", python::PROGRAM];

/// Prints a line of progress with the seconds since `start`.
pub fn say(start: Instant, line: &str) {
    println!("[{:>5.1} s] {line}", start.elapsed().as_secs_f64());
}

/// Runs everything inside the cage.
pub fn run(cage: &Cage, pantala: &Pantala, image: &Image) -> Result<Report> {
    let start = Instant::now();
    let options = ClusterOptions { nodes: NODES, round_trip: ROUND_TRIP, ..ClusterOptions::default() };
    let mut cluster = Cluster::registry_only(cage, pantala, options)?;

    say(
        start,
        &format!(
            "a registry at {} with a Python image of {}",
            cluster.registry.name(),
            mb(image.layer_bytes())
        ),
    );
    let back = cluster.registry.back();
    image.push(back, "python", "3.11")?;
    convert(&cluster, "3.11", start)?;
    let image_bytes = layer_bytes(&cluster, "3.11-esgz")?;

    cluster.start_nodes()?;
    let eager_host = cluster.network.host("eager")?;
    let eager_dir = cage.dir().join("eager");
    let eager_containerd = Containerd::start(&eager_host, &eager_dir, &cage.tag(), &eager_dir.join("none"))?;
    cluster.shape(Shape::mbit(LINK_MBIT))?;
    eager_host.shape(Shape::mbit(LINK_MBIT))?;
    say(
        start,
        &format!(
            "scheduler, seed and {NODES} hosts, each with containerd and a node; links of {LINK_MBIT} Mbit/s"
        ),
    );

    let eager = run_eager(&cluster, &eager_containerd)?;
    drop(eager_containerd);
    say(start, &format!("ordinary pull: {} after {} ms, {}", eager.stdout, eager.ready_ms, mb(eager.bytes)));

    cluster.registry.meter.reset();
    let lazy = cluster.reference("python:3.11-esgz");
    let mut nodes = Vec::new();
    let mut first_node_bytes = 0;
    for machine in &cluster.machines {
        let begun = run_lazy(&cluster, machine, &lazy)?;
        say(
            start,
            &format!(
                "{}: {} after {} ms, {} fetched",
                begun.name,
                begun.stdout,
                begun.ready_ms,
                mb(begun.bytes.fetched())
            ),
        );
        // The next node is to find everything in the cluster, as one that comes an hour later would. The first time is long
        // enough to make the other image meanwhile.
        std::thread::scope(|scope| {
            let conversion = nodes.is_empty().then(|| {
                scope.spawn(|| {
                    python::another(image, "fresh")?.push(back, "python", "fresh")?;
                    convert(&cluster, "fresh", start)
                })
            });
            // Hundreds of megabytes in small files take a while to go.
            scope.spawn(|| std::fs::remove_dir_all(&eager_dir));
            machine.node.wait_until_complete(COMPLETE_LIMIT)?;
            conversion.map_or(Ok(()), |thread| thread.join().expect("a conversion does not panic"))
        })?;
        if nodes.is_empty() {
            first_node_bytes = cluster.registry.meter.counts().blob_bytes();
        }
        nodes.push(begun);
    }
    let origin = Origin::from(cluster.registry.meter.reset());

    let fresh = run_at_once(&cluster, &cluster.reference("python:fresh-esgz"))?;
    for begun in &fresh {
        say(
            start,
            &format!(
                "fresh image on all at once, {}: {} after {} ms",
                begun.name, begun.stdout, begun.ready_ms
            ),
        );
    }
    for machine in &cluster.machines {
        machine.node.wait_until_complete(COMPLETE_LIMIT)?;
    }
    let fresh_origin = Origin::from(cluster.registry.meter.reset());
    let fresh_bytes = layer_bytes(&cluster, "fresh-esgz")?;

    for machine in &mut cluster.machines {
        for tag in ["3.11-esgz", "fresh-esgz"] {
            machine.containerd.remove_image(&format!("{}/python:{tag}", cluster.registry.name()))?;
        }
        machine.containerd.daemon().stop()?;
        machine.node.stop()?;
    }
    say(start, "everything stopped, nothing is left mounted");
    Ok(Report {
        image_bytes,
        original_bytes: image.layer_bytes(),
        nodes,
        origin,
        first_node_bytes,
        eager,
        fresh,
        fresh_origin,
        fresh_bytes,
    })
}

/// `pantala image convert`, and how long it took.
fn convert(cluster: &Cluster, tag: &str, start: Instant) -> Result<()> {
    let begun = Instant::now();
    let (from, to) = (format!("python:{tag}"), format!("python:{tag}-esgz"));
    cluster.convert(&from, &to)?;
    say(start, &format!("pantala image convert {from} {to}: {:.1} s", begun.elapsed().as_secs_f64()));
    Ok(())
}

/// The ordinary way on the same link: everything is fetched and unpacked, then the container starts.
fn run_eager(cluster: &Cluster, containerd: &Containerd) -> Result<Eager> {
    let reference = cluster.reference("python:3.11");
    cluster.registry.meter.reset();
    let begun = Instant::now();
    containerd.pull(&reference, Snapshotter::Overlayfs)?;
    let printed = containerd.run(&reference, Snapshotter::Overlayfs, VERSION)?;
    let ready_ms = millis(printed.first_line - begun);
    let bytes = cluster.registry.meter.counts().blob_bytes();
    let begun = Instant::now();
    let program = containerd.run(&reference, Snapshotter::Overlayfs, PROGRAM)?;
    Ok(Eager {
        ready_ms,
        bytes,
        stdout: printed.stdout.trim().into(),
        program_ms: millis(program.first_line - begun),
    })
}

/// Starts the image lazily on one machine: time and bytes until the first output, then the larger program.
fn run_lazy(cluster: &Cluster, machine: &Machine, reference: &str) -> Result<Start> {
    let meter = &cluster.registry.meter;
    let name = machine.host.name().to_owned();
    let (before, registry_before) = (machine.node.sources()?, meter.counts());
    let link_before = machine.host.link_bytes()?.0;
    let begun = Instant::now();
    machine.containerd.rpull(reference).with_context(|| format!("lazy pull on {name}"))?;
    let pulled = begun.elapsed();
    let printed = machine.containerd.run(reference, Snapshotter::Stargz, VERSION)?;
    let registry = meter.counts();
    let link_bytes = machine.host.link_bytes()?.0 - link_before;
    let bytes: Sources = machine.node.sources()?.since(&before);
    let program_begun = Instant::now();
    let program = machine.containerd.run(reference, Snapshotter::Stargz, PROGRAM)?;
    Ok(Start {
        name,
        ready_ms: millis(printed.first_line - begun),
        pull_ms: millis(pulled),
        stdout: printed.stdout.trim().into(),
        bytes,
        link_bytes,
        registry_bytes: registry.blob_bytes() - registry_before.blob_bytes(),
        registry_requests: registry.blob_requests() - registry_before.blob_requests(),
        program_ms: millis(program.first_line - program_begun),
        program_stdout: program.stdout.trim().into(),
    })
}

/// Starts an image on all machines in the same moment.
fn run_at_once(cluster: &Cluster, reference: &str) -> Result<Vec<Start>> {
    let barrier = Barrier::new(cluster.machines.len());
    std::thread::scope(|scope| {
        let runs: Vec<_> = cluster
            .machines
            .iter()
            .map(|machine| {
                scope.spawn(|| {
                    barrier.wait();
                    run_lazy(cluster, machine, reference)
                })
            })
            .collect();
        runs.into_iter().map(|run| run.join().expect("a run does not panic")).collect()
    })
}

/// Bytes of all layers of a converted image, as its manifest says.
fn layer_bytes(cluster: &Cluster, tag: &str) -> Result<u64> {
    Ok(cluster.layers("python", tag)?.iter().map(|layer| layer.size).sum())
}

impl From<Counts> for Origin {
    fn from(counts: Counts) -> Self {
        Self {
            bytes: counts.blob_bytes(),
            blob_requests: counts.blob_requests(),
            unique_bytes: counts.unique_bytes(),
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Bytes for a person.
pub fn mb(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}
