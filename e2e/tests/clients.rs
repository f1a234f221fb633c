//! Every client that pulls lazily, on every containerd that is here: a real Python image prints its version while most of it
//! is still at the registry. Acceptance rows 1 and 3.

// Helpers of tests may fail as tests do.
#![allow(clippy::indexing_slicing)]

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use testkit::cage::{self, Needs};
use testkit::cluster::{Cluster, ClusterOptions, Machine};
use testkit::containerd::{Snapshotter, Version};
use testkit::image::{self, python};
use testkit::node::Pantala;
use testkit::process::{READY_LIMIT, run, wait_until};

/// What containers run, and the beginning of what it prints.
const PROGRAM: &[&str] = &["/usr/bin/python3", "-V"];
const SAYS: &str = "Python 3.";

/// Of all bytes of the image's files, how many parts of a hundred may be here when it has said its version.
const MOST_PERCENT: u64 = 20;

/// Who pulls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Client {
    /// `ctr-remote images rpull`.
    Rpull,
    /// `pantala image pull`.
    Pantala,
    /// The transfer service: `ctr images pull` of 2.x.
    Transfer,
    /// The kubelet's way.
    Cri,
}

#[test]
fn every_client_starts_a_python_image_while_most_of_it_is_absent() {
    cage::test(Needs::Python, |cage| {
        let begun = Instant::now();
        let versions = Version::all();
        let options = ClusterOptions {
            nodes: versions.len(),
            seed: false,
            cri: true,
            versions,
            // Nothing is fetched behind the reader's back, so that what is here was asked for.
            snapshotter_extra: "no_background_fetch = true".into(),
            ..ClusterOptions::default()
        };
        let mut cluster = Cluster::registry_only(cage, &Pantala::locate()?, options)?;
        python::image(&image::cache(), &|_| ())?.push(cluster.registry.back(), "lab", "plain")?;
        println!("{:?}: the image is there", begun.elapsed());
        cluster.convert("lab:plain", "lab:esgz")?;
        println!("{:?}: it is converted", begun.elapsed());
        cluster.start_nodes()?;
        println!("{:?}: the nodes are up", begun.elapsed());
        for node in 0..cluster.machines.len() {
            let version = cluster.machines[node].containerd.version();
            plugin_is_ok(&cluster.machines[node])?;
            for client in [Client::Rpull, Client::Pantala, Client::Transfer, Client::Cri] {
                if client == Client::Transfer && !version.is_2() {
                    continue;
                }
                starts_while_absent(&mut cluster, node, client)
                    .with_context(|| format!("{client:?} on containerd {}", version.name()))?;
                println!("{:?}: {client:?} on containerd {}", begun.elapsed(), version.name());
            }
        }
        Ok(())
    });
}

/// Acceptance row 1: the plugin is `ok`, and its snapshots can be made with `ctr`.
fn plugin_is_ok(machine: &Machine) -> Result<()> {
    let plugins = run(machine.containerd.ctr().args(["plugins", "ls"]))?;
    let line = plugins.lines().find(|line| line.contains("stargz")).context("no plugin")?;
    ensure!(line.trim().ends_with("ok"), "{line}");
    let ctr = |arguments: &[&str]| {
        run(machine.containerd.ctr().args(["snapshots", "--snapshotter", "stargz"]).args(arguments))
    };
    // A collection may be due: nothing refers to the snapshot yet.
    ctr(&["prepare", "k", ""])?;
    let _ = ctr(&["rm", "k"]);
    Ok(())
}

fn starts_while_absent(cluster: &mut Cluster, node: usize, client: Client) -> Result<()> {
    let reference = cluster.reference("lab:esgz");
    let layers = cluster.layers("lab", "esgz")?;
    let registry = cluster.registry.name();
    cluster.registry.meter.reset();
    let machine = &mut cluster.machines[node];
    let logged = machine.node.daemon().log().len();
    let (namespace, printed) = match client {
        Client::Rpull | Client::Pantala | Client::Transfer => {
            match client {
                Client::Rpull => machine.containerd.rpull(&reference)?,
                Client::Pantala => {
                    let mut command = Pantala::locate()?.on(&machine.host);
                    command.args(["image", "pull", "--plain-http", &registry, "-a"]);
                    command.arg(machine.containerd.socket());
                    run(command.args(["-n", machine.containerd.namespace(), &reference]))?;
                }
                _ => machine.containerd.pull(&reference, Snapshotter::Stargz)?,
            }
            let printed = machine.containerd.run(&reference, Snapshotter::Stargz, PROGRAM)?;
            (machine.containerd.namespace().to_owned(), printed.stdout)
        }
        Client::Cri => {
            let cri = machine.containerd.cri()?;
            let image = cri.pull(&reference)?;
            ensure!(cri.list()?.contains(&reference), "it is not listed");
            let (pod, container) = cri.run_detached("python", &image, &["/usr/bin/sleep", "1000"])?;
            let executed = cri.exec(&container, PROGRAM)?;
            ensure!(executed.code == 0, "{executed:?}");
            cri.remove_pod(&pod)?;
            (testkit::cri::NAMESPACE.to_owned(), executed.stdout)
        }
    };
    ensure!(printed.starts_with(SAYS), "it says {printed:?}");

    // What the node has, and what the registry gave.
    let status = machine.node.status()?;
    let (size, fetched) = sums(&status["layers"])?;
    ensure!(fetched * 100 <= size * MOST_PERCENT, "{fetched} of {size} bytes are here");
    let whole: u64 = layers.iter().map(|layer| layer.size).sum();
    let sent =
        cluster.registry.meter.counts().bytes_of(|digest| layers.iter().any(|layer| layer.digest == digest));
    ensure!(sent * 2 < whole, "the registry sent {sent} of {whole} bytes of layers");
    println!(
        "{client:?}: {fetched} of {size} bytes of files are here, {sent} of {whole} of layers were sent"
    );

    // The record that people and tests count.
    let machine = &mut cluster.machines[node];
    let log = machine.node.daemon().log().split_off(logged);
    let records: Vec<Value> = log.iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let told = |word: &'static str| {
        records.iter().filter(move |record| record["remote-snapshot-prepared"].as_str() == Some(word))
    };
    let prefix = format!("{namespace}/");
    let lazily: Vec<_> = told("true").filter(|record| key(record).starts_with(&prefix)).collect();
    ensure!(lazily.len() == layers.len(), "{} of {} layers: {lazily:?}", lazily.len(), layers.len());
    for (number, record) in lazily.iter().enumerate() {
        ensure!(record["msg"] == "prepared remote snapshot", "{record}");
        ensure!(key(record).contains("/extract-") && key(record).contains(" sha256:"), "{record}");
        ensure!((record["parent"] == "") == (number == 0), "{record}");
    }
    // CRI's pause image is an ordinary one: nothing is wrong with that.
    ensure!(
        told("false").all(|record| record["msg"] == "prepared ordinary snapshot"),
        "a layer fell back: {log:?}"
    );

    match client {
        Client::Cri => machine.containerd.cri()?.remove_image(&reference)?,
        _ => machine.containerd.remove_image(&reference)?,
    }
    wait_until("the snapshots to go", READY_LIMIT, || {
        let layers = machine.node.status().ok()?["layers"].as_array()?.len();
        (layers == 0).then_some(())
    })
}

fn key(record: &Value) -> &str {
    record["key"].as_str().unwrap_or_default()
}

/// Bytes of all files, and of those that are here.
fn sums(layers: &Value) -> Result<(u64, u64)> {
    let layers = layers.as_array().context("no layers")?;
    let sum = |name: &str| layers.iter().filter_map(|layer| layer[name].as_u64()).sum();
    Ok((sum("size"), sum("fetched")))
}
