//! What ends a service at once does not end the keeper; where it would, nothing is shown that needs a keeper.

// Helpers of tests may fail as tests do.
#![allow(clippy::indexing_slicing)]

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use content::Digest;
use e2e::deaths::keeper;
use e2e::{base_layer, cluster_with, noise};
use testkit::cage::{self, Cage, Needs};
use testkit::cluster::{ClusterOptions, Machine};
use testkit::containerd::{Containerd, Snapshotter};
use testkit::group::{Group, hierarchy};
use testkit::image::{Entry, Image, layer};
use testkit::node::Pantala;
use testkit::process::{Daemon, READY_LIMIT, wait_until};
use testkit::service_manager::ServiceManager;

const FILE: usize = 2_000_000;
const NATIVE: &str = "lazy layers are shown by the kernel itself";
const NOT_NATIVE: &str = "layers are not shown natively";

/// A unit without a word about keepers: its stop kills its control group.
fn killed_as_one(cage: &Cage, driver: &str) -> Result<()> {
    let files: Vec<_> = (0..3).map(|seed| Entry::file(&format!("{seed}"), noise(seed, FILE))).collect();
    let options = ClusterOptions {
        seed: false,
        snapshotter_extra: format!("driver = \"{driver}\"\nno_background_fetch = true\nnoprefetch = true"),
        ..ClusterOptions::default()
    };
    let mut cluster = cluster_with(cage, &Image::new(&[base_layer()?, layer(&files)?]), options)?;
    let group = Group::new(&format!("{}.service", cage.tag()))?;
    let lazy = cluster.reference("lab:esgz");
    let machine = &mut cluster.machines[0];
    let root = machine.node.data_dir().with_file_name("snapshots");
    machine.node.stop()?;
    wait_until("the keeper's end", READY_LIMIT, || keeper(&root).is_none().then_some(()))?;
    machine.node.start_in(&group)?;
    let native = machine.node.daemon().log().iter().any(|line| line.contains(NATIVE));
    ensure!(native || driver != "native", "{}", machine.node.daemon().log_tail());
    wait_until("a pull", READY_LIMIT, || machine.containerd.rpull(&lazy).ok())?;
    let container = machine.containerd.run_detached(&lazy, Snapshotter::Stargz, &["/bin/sleep", "1000"])?;
    let read = |containerd: &Containerd, seed: u64| -> Result<()> {
        let path = format!("/{seed}");
        let printed = containerd.exec(&container, &["/bin/sha256sum", &path])?.stdout;
        let wanted = format!("{}  {path}\n", Digest::of(&noise(seed, FILE)).hex());
        ensure!(printed == wanted, "{driver}: {printed}");
        Ok(())
    };
    read(&machine.containerd, 0)?;
    let kept = keeper(&root).context("no keeper")?;
    ensure!(!group.members()?.contains(&kept), "the keeper is in the service's group");
    group.kill()?;
    ensure!(keeper(&root) == Some(kept), "the keeper died with the service");
    // Somebody reads what is not here while nobody is there to fetch it, and gets it when somebody is.
    let Machine { containerd, node, .. } = machine;
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| read(containerd, 1));
        std::thread::sleep(Duration::from_millis(700));
        ensure!(!waiting.is_finished(), "{driver}: {:?}", waiting.join());
        node.daemon().kill()?;
        node.start_in(&group)?;
        waiting.join().map_err(|_| anyhow::anyhow!("the reader panicked"))?
    })?;
    read(containerd, 2)?;
    containerd.remove(&container)?;
    node.stop()
}

#[test]
fn a_service_that_is_killed_as_one_leaves_its_keeper_and_readers_wait_with_fuse() {
    cage::test(Needs::Containers, |cage| killed_as_one(cage, "fuse"));
}

#[test]
fn a_service_that_is_killed_as_one_leaves_its_keeper_and_readers_wait_with_native() {
    cage::test(Needs::Containers, |cage| killed_as_one(cage, "native"));
}

/// Starts a snapshotter whose keeper cannot leave its control group; answers what it logs about its driver.
fn driver_where_nobody_leaves(cage: &Cage, name: &str, manager: Option<&ServiceManager>) -> Result<String> {
    let group = Group::new(&format!("{}-{name}.service", cage.tag()))?;
    let dir = cage.dir().join(name);
    fs::create_dir_all(&dir)?;
    fs::write(dir.join("config.toml"), "")?;
    // As with `ProtectControlGroups=yes`.
    let mut command = Command::new("unshare");
    let script = "mount -o remount,bind,ro \"$0\" && exec \"$@\"";
    command.args(["--mount", "sh", "-c", script]).arg(hierarchy()?).arg(program()?);
    command.arg("snapshotter").arg("--config").arg(dir.join("config.toml"));
    command.arg("--root").arg(dir.join("root")).arg("--address").arg(dir.join("s.sock"));
    command.env_remove("NOTIFY_SOCKET");
    let mut command = group.member(&command);
    if let Some(manager) = manager {
        command = manager.service(&command)?.0;
    }
    let daemon = Daemon::start(name, &mut command, &dir.join("log"))?;
    let found = wait_until("the choice of a driver", READY_LIMIT, || {
        daemon.log().into_iter().find(|line| line.contains(NATIVE) || line.contains(NOT_NATIVE))
    });
    found.with_context(|| daemon.log_tail())
}

fn program() -> Result<std::path::PathBuf> {
    Pantala::locate()?;
    e2e::deaths::original()
}

#[test]
fn where_one_blow_would_end_all_layers_are_shown_through_fuse_unless_descriptors_are_stored() {
    cage::test(Needs::Containers, |cage| {
        let folder = |name: &str| -> Result<std::path::PathBuf> {
            let folder = cage.dir().join(name);
            fs::create_dir_all(&folder)?;
            Ok(folder)
        };
        if !can_be_native(cage)? {
            println!("skipped: the native driver does not work here");
            return Ok(());
        }
        let said = driver_where_nobody_leaves(cage, "unmanaged", None)?;
        ensure!(said.contains(NOT_NATIVE) && said.contains("no service manager"), "{said}");
        let manager = ServiceManager::storing(&folder("none")?, 0)?;
        let said = driver_where_nobody_leaves(cage, "unstored", Some(&manager))?;
        ensure!(said.contains(NOT_NATIVE) && said.contains("FileDescriptorStoreMax"), "{said}");
        let manager = ServiceManager::start(&folder("all")?)?;
        let said = driver_where_nobody_leaves(cage, "stored", Some(&manager))?;
        ensure!(said.contains(NATIVE), "{said}");
        Ok(())
    });
}

fn can_be_native(cage: &Cage) -> Result<bool> {
    let config = cage.dir().join("native.toml");
    fs::write(&config, "driver = \"native\"\n")?;
    let mut command = Command::new(program()?);
    command.arg("snapshotter").arg("--config").arg(&config).arg("--root").arg(cage.dir().join("native"));
    command.arg("--address").arg(cage.dir().join("native.sock"));
    let mut daemon = Daemon::start("native", &mut command, &cage.dir().join("native.log"))?;
    let socket = cage.dir().join("native.sock");
    Ok(daemon.wait_for_socket(Path::new(&socket)).is_ok())
}
