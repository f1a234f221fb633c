//! `pantala image pull`: lazy where the snapshotter can, whole where it cannot, and nothing left behind where it fails.

// Helpers of tests may fail as tests do.
#![allow(clippy::indexing_slicing)]

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::conversions::{Answer, answer};
use e2e::{base_layer, cluster_with, layer_bytes_sent, noise};
use serde_json::Value;
use testkit::cage::{self, Cage, Needs};
use testkit::cluster::{Cluster, ClusterOptions};
use testkit::containerd::Snapshotter;
use testkit::image::{Entry, Image, Layer, layer};
use testkit::meter::Guard;
use testkit::net::Shape;
use testkit::node::Pantala;
use testkit::process::{run, wait_until};

/// Nothing here takes longer, on a busy machine.
const LIMIT: Duration = Duration::from_mins(1);
const LEN: usize = 20_000_000;

fn options() -> ClusterOptions {
    ClusterOptions {
        seed: false,
        // Nothing is fetched behind the reader's back, so that what is counted was asked for.
        snapshotter_extra: "no_background_fetch = true".into(),
        ..ClusterOptions::default()
    }
}

/// A shell, a large file, and a small one on top.
fn tars() -> Result<Vec<Vec<u8>>> {
    let big = layer(&[Entry::file("big", noise(1, LEN))])?;
    Ok(vec![base_layer()?, big, layer(&[Entry::file("greeting", "good day\n")])?])
}

/// `pantala image pull` on the first machine.
fn pull(cluster: &Cluster, flags: &[&str], reference: &str) -> Result<Command> {
    let machine = &cluster.machines[0];
    let mut command = Pantala::locate()?.on(&machine.host);
    command.args(["image", "pull", "--plain-http", &cluster.registry.name()]);
    // As variables: the flags of a test stand above them.
    command.env("CONTAINERD_NAMESPACE", machine.containerd.namespace());
    command.env("CONTAINERD_ADDRESS", machine.containerd.socket());
    command.args(flags).arg(reference);
    Ok(command)
}

fn report(cluster: &Cluster, flags: &[&str], reference: &str) -> Result<Value> {
    let text = run(pull(cluster, flags, reference)?.args(["--output", "json"]))?;
    serde_json::from_str(&text).with_context(|| text)
}

/// How each layer came to be there, lowest first.
fn outcomes(report: &Value) -> Vec<&str> {
    report["layers"].as_array().into_iter().flatten().filter_map(|layer| layer["outcome"].as_str()).collect()
}

/// A second pull of one image under way somewhere.
fn begin(command: &mut Command) -> Result<std::process::Child> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().context("cannot start pantala")
}

fn finish(child: std::process::Child) -> Result<Answer> {
    let output = child.wait_with_output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Answer {
        success: output.status.success(),
        status: output.status.to_string(),
        stdout: text(&output.stdout),
        stderr: text(&output.stderr),
    })
}

/// Whatever somebody began at containerd and left: leases, snapshots, writes.
fn left(cluster: &Cluster) -> Result<Vec<String>> {
    let containerd = &cluster.machines[0].containerd;
    let mut left = Vec::new();
    for what in [&["leases", "ls", "-q"][..], &["content", "active"], &["images", "ls", "-q"]] {
        let text = run(containerd.ctr().args(what))?;
        left.extend(text.lines().filter(|line| !line.starts_with("REF")).map(str::to_owned));
    }
    left.extend(containerd.snapshots(Snapshotter::Stargz)?);
    left.extend(containerd.snapshots(Snapshotter::Overlayfs)?);
    Ok(left)
}

fn cat(cluster: &Cluster, reference: &str, snapshotter: Snapshotter) -> Result<String> {
    let program = ["/bin/cat", "/greeting"];
    Ok(cluster.machines[0].containerd.run(reference, snapshotter, &program)?.stdout)
}

#[test]
fn a_converted_image_is_there_before_its_bytes() {
    cage::test(Needs::Containers, |cage| {
        let cluster = cluster_with(cage, &Image::new(&tars()?), options())?;
        let containerd = &cluster.machines[0].containerd;
        let lazy = cluster.reference("lab:esgz");
        let first = report(&cluster, &[], &lazy)?;
        assert_eq!(outcomes(&first), ["lazy", "lazy", "lazy"]);
        assert_eq!((&first["fetched_bytes"], &first["existed"]), (&Value::from(0), &Value::from(false)));
        assert_eq!(cat(&cluster, &lazy, Snapshotter::Stargz)?, "good day\n");
        let sent = layer_bytes_sent(&cluster, "esgz")?;
        ensure!(sent < LEN as u64 / 4, "{sent} bytes of layers were sent to print a greeting");
        // What holds the image is its name alone.
        assert_eq!(run(containerd.ctr().args(["leases", "ls", "-q"]))?, "");
        let info = run(containerd.ctr().args(["images", "ls"]))?;
        ensure!(info.contains(&lazy), "ctr does not see the image: {info}");

        // Once more, twice at once and in another namespace: nothing new travels.
        assert_eq!(outcomes(&report(&cluster, &[], &lazy)?), ["present", "present", "present"]);
        let other = ["-n", "another"];
        let mut pulls = Vec::new();
        for _ in 0..2 {
            pulls.push(begin(&mut pull(&cluster, &other, &lazy)?)?);
        }
        for pull in pulls {
            let answer = finish(pull)?;
            ensure!(answer.success, "{answer:?}");
        }
        assert_eq!(outcomes(&report(&cluster, &other, &lazy)?), ["present", "present", "present"]);
        let after = layer_bytes_sent(&cluster, "esgz")?;
        ensure!(after < LEN as u64 / 4, "{after} bytes of layers were sent in the end");

        // The upstream client finds the same, and all of it goes when the name goes.
        containerd.rpull(&lazy)?;
        containerd.remove_image(&lazy)?;
        run(containerd.seen_from("another").ctr().args(["images", "rm", "--sync", &lazy]))?;
        assert_eq!(left(&cluster)?, Vec::<String>::new());
        Ok(())
    });
}

/// An image whose middle layer is an ordinary one.
fn mixed(cage: &Cage) -> Result<Cluster> {
    let cluster = cluster_with(cage, &Image::new(&tars()?), options())?;
    let converted = cluster.layers("lab", "esgz")?;
    let manifest = cluster.manifest("lab", "esgz")?;
    let config = blob(&cluster, manifest["config"]["digest"].as_str().context("no config")?)?;
    let config: Value = serde_json::from_slice(&config)?;
    let diff_ids: Vec<content::Digest> = serde_json::from_value(config["rootfs"]["diff_ids"].clone())?;
    let mut layers = Vec::new();
    for (at, (layer, diff_id)) in converted.iter().zip(diff_ids).enumerate() {
        layers.push(if at == 1 {
            Layer::gzip(&tars()?[1])?
        } else {
            let mut made = Layer::from_parts(blob(&cluster, &layer.digest)?, diff_id);
            made.annotations = layer.annotations.clone().into_iter().collect();
            made
        });
    }
    let image = Image::from_layers(layers, &config["config"]);
    image.push(cluster.registry.back(), "lab", "mixed")?;
    cluster.registry.meter.reset();
    Ok(cluster)
}

fn blob(cluster: &Cluster, digest: &str) -> Result<Vec<u8>> {
    let path = format!("/v2/lab/blobs/{digest}");
    Ok(testkit::http::get(cluster.registry.back(), &path, &[])?.success()?.body)
}

#[test]
fn of_a_mixed_image_the_ordinary_layer_alone_is_fetched() {
    cage::test(Needs::Containers, |cage| {
        let cluster = mixed(cage)?;
        let mixed = cluster.reference("lab:mixed");
        let plain = cluster.layers("lab", "mixed")?[1].clone();
        for namespace in [cluster.machines[0].containerd.namespace(), "another"] {
            cluster.registry.meter.reset();
            let pulled = report(&cluster, &["-n", namespace], &mixed)?;
            assert_eq!(outcomes(&pulled), ["lazy", "unpacked", "lazy"], "{namespace}");
            let sent = |digest: &str| cluster.registry.meter.counts().bytes_of(|it| it == digest);
            // The second namespace finds the blob at containerd, which keeps it for the first.
            ensure!(sent(&plain.digest) <= plain.size, "{} bytes of {}", sent(&plain.digest), plain.size);
            let top = &cluster.layers("lab", "mixed")?[2];
            ensure!(sent(&top.digest) < 1_000_000, "the layer above came too");
        }
        assert_eq!(cat(&cluster, &mixed, Snapshotter::Stargz)?, "good day\n");
        let big = ["/bin/sha256sum", "/big"];
        let printed = cluster.machines[0].containerd.run(&mixed, Snapshotter::Stargz, &big)?.stdout;
        assert_eq!(printed, e2e::sum_line(&content::Digest::of(&noise(1, LEN)).hex()));

        // The same name stands for another image now; it is an ordinary one, for a snapshotter that knows no other.
        let whole = report(&cluster, &["--snapshotter", "overlayfs"], &cluster.reference("lab:plain"))?;
        assert_eq!(outcomes(&whole), ["unpacked", "unpacked", "unpacked"]);
        assert_eq!(cat(&cluster, &cluster.reference("lab:plain"), Snapshotter::Overlayfs)?, "good day\n");
        Ok(())
    });
}

#[test]
fn what_fails_or_is_stopped_says_so_and_leaves_nothing() {
    cage::test(Needs::Containers, |cage| {
        let cluster = cluster_with(cage, &Image::new(&tars()?), options())?;
        let plain = cluster.reference("lab:plain");
        let ask = |flags: &[&str], reference: &str| -> Result<Answer> {
            answer(&mut pull(&cluster, flags, reference)?)
        };
        ask(&[], &cluster.reference("lab:none"))?.assert_failed(&["lab:none"]);
        ask(&["--platform", "linux/s390x"], &plain)?.assert_failed(&["linux/s390x", "it has linux/"]);
        ask(&["--snapshotter", "nobody"], &plain)?.assert_failed(&["nobody", "proxy_plugins"]);
        let nowhere = cage.dir().join("none.sock").display().to_string();
        ask(&["-a", &nowhere], &plain)?.assert_failed(&["none.sock", "--address"]);
        assert_eq!(left(&cluster)?, Vec::<String>::new());

        // Ctrl-C in the middle of a blob.
        let host = &cluster.machines[0].host;
        host.shape(Shape::mbit(50))?;
        cluster.registry.meter.reset();
        let child = begin(&mut pull(&cluster, &[], &plain)?)?;
        wait_until("the layer to be on its way", LIMIT, || {
            (cluster.registry.meter.counts().blob_bytes() > 3_000_000).then_some(())
        })?;
        rustix::process::kill_process(
            rustix::process::Pid::from_child(&child),
            rustix::process::Signal::INT,
        )?;
        let stopped = finish(child)?;
        ensure!(stopped.status.contains("130"), "{stopped:?}");
        host.unshape()?;
        // containerd collects in its own time what no lease holds any more.
        wait_until("nothing to be left", LIMIT, || left(&cluster).ok().filter(Vec::is_empty))?;

        // A name and password are needed, wrong at first.
        let config = cage.dir().join("docker");
        fs::create_dir_all(&config)?;
        let write = |auth: &str| {
            let text = format!(r#"{{"auths": {{"{}": {{"auth": "{auth}"}}}}}}"#, cluster.registry.name());
            fs::write(config.join("config.json"), text)
        };
        cluster.registry.meter.guard(Guard::new("me", "secret", 1000));
        // me:wrong, then me:secret
        write("bWU6d3Jvbmc=")?;
        let flags = ["--docker-config", &config.join("config.json").display().to_string()];
        ask(&flags, &plain)?.assert_failed(&["lab"]);
        wait_until("nothing to be left", LIMIT, || left(&cluster).ok().filter(Vec::is_empty))?;
        write("bWU6c2VjcmV0")?;
        assert_eq!(outcomes(&report(&cluster, &flags, &plain)?), ["unpacked"; 3]);
        assert_eq!(cat(&cluster, &plain, Snapshotter::Stargz)?, "good day\n");
        Ok(())
    });
}
