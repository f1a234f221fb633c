//! The acceptance criteria of stargz-snapshotter's own integration tests, row by row. What is not here: row 1 and the clients
//! are in `clients.rs`, row 4 (mirrors that are blocked) in `mirrors.rs`, row 5 (another namespace) with trap 1 in `traps.rs`.
//!
//! Of row 2, IPFS is not done: no such references are read; and the legacy format is not lazy, because nothing in it can be
//! verified: such an image is unpacked, and works.

// Helpers of tests may fail as tests do.
#![allow(clippy::indexing_slicing)]

use std::process::Command;

use anyhow::{Context, Result, ensure};
use e2e::conversions::{assert_same_files, ordinary};
use e2e::{big_file_image, cluster_with, layer_bytes_sent, sum_line};
use rustix::process::Signal;
use testkit::cage::{self, Cage, Needs};
use testkit::cluster::{Cluster, ClusterOptions};
use testkit::containerd::Snapshotter;
use testkit::image::Image;
use testkit::node::{Pantala, mounts_below};
use testkit::plugin::Plugin;
use testkit::process::{Daemon, READY_LIMIT, run_any, wait_until};
use testkit::{peers, tree};

/// Row 2's formats, with what makes them of the original, and whether their layers are lazy.
const FORMATS: &[(&str, &[&str], bool)] = &[
    ("plain", &[], false),
    ("esgz", &["--estargz"], true),
    ("zstdchunked", &["--zstdchunked"], true),
    ("minchunk", &["--estargz", "--min-chunk-size", "50000"], true),
    ("external", &["--estargz", "--external-toc"], true),
    ("keepdiffid", &["--estargz", "--external-toc", "--keep-diff-id"], true),
];

/// Rows 2 and 3: whatever the format, the files are those of the unpacked original; all layers were mounted lazily, and none
/// fell back.
#[test]
fn rows_2_and_3_every_format_shows_the_same_files_and_none_falls_back() {
    cage::test(Needs::Containers, |cage| {
        let options = ClusterOptions { seed: false, ..ClusterOptions::default() };
        let pantala = Pantala::locate()?;
        let mut cluster = Cluster::registry_only(cage, &pantala, options)?;
        Image::new(&ordinary()?).push(cluster.registry.back(), "lab", "plain")?;
        for (tag, flags, _) in FORMATS.iter().filter(|(_, flags, _)| !flags.is_empty()) {
            let back = cluster.registry.back().to_string();
            let (from, to) = (format!("{back}/lab:plain"), format!("{back}/lab:{tag}"));
            let words = [&["image", "convert", "--plain-http", &back], *flags, &[&from, &to]].concat();
            pantala.run(&cluster.registry_host, &words)?;
        }
        cluster.start_nodes()?;
        let plain = cluster.reference("lab:plain");
        cluster.machines[0].containerd.pull(&plain, Snapshotter::Overlayfs)?;
        let expected =
            cluster.machines[0].containerd.with_image(&plain, Snapshotter::Overlayfs, tree::read)?;
        for (tag, _, lazy) in FORMATS {
            let reference = cluster.reference(&format!("lab:{tag}"));
            let layers = cluster.layers("lab", tag)?.len();
            let machine = &mut cluster.machines[0];
            let lines = machine.node.daemon().log().len();
            machine.containerd.rpull(&reference)?;
            let seen = machine.containerd.with_image(&reference, Snapshotter::Stargz, tree::read)?;
            assert_same_files(&expected, &seen, tag);
            let log = machine.node.daemon().log().split_off(lines);
            let count = |words: &str| log.iter().filter(|line| line.contains(words)).count();
            let prepared = count(r#""remote-snapshot-prepared":"true""#);
            ensure!(prepared == if *lazy { layers } else { 0 }, "{tag}: {prepared} of {layers}: {log:#?}");
            ensure!(count("failed to prepare remote snapshot") == 0, "{tag} fell back: {log:#?}");
            machine.containerd.remove_image(&reference)?;
        }
        Ok(())
    });
}

/// Row 6: no configuration at all.
#[test]
fn row_6_it_starts_without_a_configuration() {
    cage::test(Needs::Containers, |cage| {
        let (mut daemon, plugin) = alone(cage, None)?;
        ensure!(plugin.prepare("k", "", &[].into())?.len() == 1, "one mount");
        ensure!(daemon.stop()?.success(), "it did not end well");
        ensure!(mounts_below(cage.dir())?.is_empty(), "something is mounted");
        Ok(())
    });
}

/// Row 9: whether descriptors have a keeper is not the configuration's to say, but who greps for the words finds them.
#[test]
fn row_9_fuse_manager_mode_is_told_if_asked_for_and_else_not() {
    cage::test(Needs::Containers, |cage| {
        const WORDS: &str = "Start snapshotter with fusemanager mode";
        let (mut daemon, _) = alone(cage, Some("[fuse_manager]\nenable = true\n"))?;
        daemon.wait_for_line(WORDS, READY_LIMIT)?;
        daemon.stop()?;
        let (mut daemon, _) = alone(cage, Some("[fuse_manager]\nenable = false\n"))?;
        daemon.stop()?;
        ensure!(!daemon.log().iter().any(|line| line.contains(WORDS)), "told without being asked for");
        Ok(())
    });
}

/// `pantala snapshotter` with nothing around it.
fn alone(cage: &Cage, config: Option<&str>) -> Result<(Daemon, Plugin)> {
    let socket = cage.dir().join("s.sock");
    let mut command = Command::new(Pantala::locate()?.binary());
    command.arg("snapshotter").arg("--address").arg(&socket).arg("--root").arg(cage.dir().join("root"));
    if let Some(text) = config {
        let file = cage.dir().join("config.toml");
        std::fs::write(&file, text)?;
        command.arg("--config").arg(file);
    }
    let mut daemon = Daemon::start("pantala snapshotter", &mut command, &cage.dir().join("snapshotter.log"))?;
    daemon.wait_for_socket(&socket)?;
    Ok((daemon, Plugin::connect(&socket)?))
}

/// Rows 7 and 8. Told to end, it leaves no mount, and what was fetched survives: upstream's caches go, ours must not. Killed,
/// it is started again, and a container that ran goes on reading.
#[test]
fn rows_7_and_8_told_to_end_it_leaves_its_caches_and_killed_it_leaves_its_containers() {
    cage::test(Needs::Containers, |cage| {
        let (image, sum) = big_file_image(31, 5_000_000)?;
        let options = ClusterOptions {
            seed: false,
            snapshotter_extra: "no_background_fetch = true".into(),
            ..ClusterOptions::default()
        };
        let mut cluster = cluster_with(cage, &image, options)?;
        let lazy = cluster.reference("lab:esgz");
        let program = ["/bin/sha256sum", "/big"];
        cluster.machines[0].containerd.rpull(&lazy)?;
        let read_once = |cluster: &Cluster| -> Result<()> {
            let printed = cluster.machines[0].containerd.run(&lazy, Snapshotter::Stargz, &program)?;
            ensure!(printed.stdout == sum_line(&sum), "{}", printed.stdout);
            Ok(())
        };
        read_once(&cluster)?;
        for signal in [Signal::INT, Signal::TERM] {
            let machine = &mut cluster.machines[0];
            machine.node.daemon().signal(signal)?;
            wait_until("its end", READY_LIMIT, || (!machine.node.daemon().is_running()).then_some(()))?;
            // Checks that nothing is mounted.
            machine.node.stop().with_context(|| format!("{signal:?}"))?;
            cluster.registry.meter.reset();
            let machine = &mut cluster.machines[0];
            machine.node.start_again()?;
            machine.containerd.wait_for_plugin()?;
            read_once(&cluster)?;
            let sent = layer_bytes_sent(&cluster, "esgz")?;
            // A byte shows that the registry would give the rest.
            ensure!(sent < 10, "{sent} bytes were fetched again after {signal:?}");
        }
        let machine = &mut cluster.machines[0];
        let container =
            machine.containerd.run_detached(&lazy, Snapshotter::Stargz, &["/bin/sleep", "1000"])?;
        machine.node.daemon().kill()?;
        machine.node.start_again()?;
        let printed = machine.containerd.exec(&container, &program)?;
        ensure!(printed.stdout == sum_line(&sum), "after a kill: {}", printed.stdout);
        machine.containerd.wait_for_plugin()?;
        machine.containerd.remove(&container)
    });
}

/// containerd's own suite of 21 cases, where it was built: a process of `pantala snapshotter` for each.
#[test]
fn containerds_own_suite_passes() {
    cage::test(Needs::Containers, |cage| {
        let Some(suite) = peers::find("snapshotter-suite") else { return Ok(()) };
        let mut command = Command::new(suite);
        command.args(["-test.v", "-test.root"]).env("PANTALA_BIN", Pantala::locate()?.binary());
        let (status, output, errors) = run_any(command.env("TMPDIR", cage.dir()))?;
        ensure!(status.success(), "{output}\n{errors}");
        let passed = output.lines().filter(|line| line.trim().starts_with("--- PASS: TestSuite/")).count();
        ensure!(passed == 21, "{passed} of 21 cases:\n{output}");
        Ok(())
    });
}
