//! Whichever process dies, or is replaced, a running container reads on and gets the right bytes.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use content::Digest;
use e2e::deaths::{keeper, kill, original};
use e2e::{base_layer, noise};
use rustix::process::Signal;
use testkit::cage::{self, Cage, Needs};
use testkit::cluster::{Cluster, ClusterOptions, Machine};
use testkit::containerd::Snapshotter;
use testkit::image::{Entry, Image, layer};
use testkit::node::{Pantala, mounts_below};
use testkit::process::wait_until;

const LIMIT: Duration = Duration::from_secs(30);
/// Files that nobody has read before: one for each disaster.
const FILES: [&str; 7] = ["before", "worker", "supervisor", "keeper", "both", "upgrade", "after"];

/// A node with a running container of an image with [`FILES`], of which nothing was read yet.
struct Lab {
    cluster: Cluster,
    container: String,
    root: PathBuf,
    files: Vec<(&'static str, Vec<u8>)>,
}

impl Lab {
    fn start(cage: &Cage, pantala: &Pantala, driver: &str) -> Result<Self> {
        let files: Vec<_> =
            (0..).zip(FILES).map(|(seed, name)| (name, noise(100 + seed, 2_000_000))).collect();
        let entries: Vec<_> = files.iter().map(|(name, bytes)| Entry::file(name, bytes.clone())).collect();
        let image = Image::new(&[base_layer()?, layer(&entries)?]);
        let options = ClusterOptions {
            seed: false,
            snapshotter_extra: format!("driver = {driver:?}\nno_background_fetch = true\nnoprefetch = true"),
            ..ClusterOptions::default()
        };
        let mut cluster = Cluster::registry_only(cage, pantala, options)?;
        image.push(cluster.registry.back(), "lab", "plain")?;
        cluster.convert("lab:plain", "lab:esgz")?;
        cluster.start_nodes()?;
        let lazy = cluster.reference("lab:esgz");
        let machine = &mut cluster.machines[0];
        let root = machine.node.data_dir().with_file_name("snapshots");
        machine.containerd.rpull(&lazy)?;
        let container =
            machine.containerd.run_detached(&lazy, Snapshotter::Stargz, &["/bin/sleep", "1000"])?;
        Ok(Self { cluster, container, root, files })
    }

    fn machine(&mut self) -> &mut Machine {
        &mut self.cluster.machines[0]
    }

    /// Reads a file in the container, to its end, and compares.
    fn read(&mut self, name: &str) -> Result<()> {
        let path = format!("/{name}");
        let wanted = self.files.iter().find(|(one, _)| *one == name).context("no such file")?;
        let wanted = format!("{}  {path}\n", Digest::of(&wanted.1).hex());
        let container = self.container.clone();
        let printed = self.machine().containerd.exec(&container, &["/bin/sha256sum", &path]);
        let printed =
            printed.with_context(|| format!("{name}: {}", self.machine().node.daemon().log_tail()))?;
        assert_eq!(printed.stdout, wanted, "{name}");
        Ok(())
    }

    /// All ends, and nothing is left.
    fn stop(mut self) -> Result<()> {
        let (container, root) = (self.container.clone(), self.root.clone());
        self.machine().containerd.remove(&container)?;
        self.machine().node.stop()?;
        wait_until("the keeper's end", LIMIT, || keeper(&root).is_none().then_some(()))?;
        assert_eq!(mounts_below(&root)?, Vec::<String>::new());
        Ok(())
    }
}

fn a_container_reads_on(cage: &Cage, driver: &str) -> Result<()> {
    // A binary of our own, to be replaced.
    let program = cage.dir().join("pantala");
    std::fs::copy(original()?, &program)?;
    let mut lab = Lab::start(cage, &Pantala::at(&program)?, driver)?;
    let root = lab.root.clone();
    for name in FILES {
        let node = &mut lab.machine().node;
        match name {
            "worker" => kill(node.daemon().worker()),
            "supervisor" => {
                node.daemon().kill()?;
                node.start_again()?;
            }
            "keeper" => kill(keeper(&root).context("no keeper")?),
            "both" => {
                // Whoever was killed before has been replaced.
                let keeper = wait_until("a keeper", LIMIT, || {
                    keeper(&root).filter(|_| root.join("keeper.sock").exists())
                })?;
                std::thread::sleep(Duration::from_millis(500));
                kill(node.daemon().worker());
                kill(keeper);
            }
            "upgrade" => {
                let fresh = cage.dir().join("pantala.new");
                std::fs::copy(original()?, &fresh)?;
                std::fs::rename(&fresh, &program)?;
                let wanted = std::fs::metadata(&program)?.ino();
                let running = format!("/proc/{}/exe", node.daemon().pid());
                assert_ne!(std::fs::metadata(&running)?.ino(), wanted);
                node.daemon().signal(Signal::HUP)?;
                wait_until("the new program", LIMIT, || {
                    std::fs::metadata(&running).ok().filter(|stat| stat.ino() == wanted)
                })?;
            }
            _ => {}
        }
        lab.read(name)?;
    }
    lab.stop()
}

#[test]
fn natively_a_container_reads_on_whoever_dies_and_whatever_is_replaced() {
    cage::test(Needs::Containers, |cage| a_container_reads_on(cage, "native"));
}

#[test]
fn through_fuse_a_container_reads_on_whoever_dies_and_whatever_is_replaced() {
    cage::test(Needs::Containers, |cage| a_container_reads_on(cage, "fuse"));
}

fn nobody_comes(cage: &Cage, driver: &str) -> Result<()> {
    // A keeper with less patience.
    let script = cage.dir().join("pantala");
    let text = format!("#!/bin/sh\nPANTALA_KEEPER_GRACE=2 exec {} \"$@\"\n", original()?.display());
    std::fs::write(&script, text)?;
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))?;
    let mut lab = Lab::start(cage, &Pantala::at(&script)?, driver)?;
    // What `sha256sum` itself needs is here from now on.
    lab.read("before")?;
    lab.machine().node.daemon().kill()?;
    let began = Instant::now();
    let container = lab.container.clone();
    let failed = lab.machine().containerd.exec(&container, &["/bin/sha256sum", "/worker"]);
    let (failed, after) = (failed.unwrap_err().to_string(), began.elapsed());
    assert!(failed.contains("/worker"), "{failed}");
    assert!(after < Duration::from_secs(15), "an error came only after {after:?}");
    lab.machine().node.start_again()?;
    for name in FILES {
        lab.read(name)?;
    }
    lab.stop()
}

#[test]
fn natively_readers_get_an_error_while_nobody_comes_and_the_right_bytes_afterwards() {
    cage::test(Needs::Containers, |cage| nobody_comes(cage, "native"));
}

#[test]
fn through_fuse_readers_get_an_error_while_nobody_comes_and_the_right_bytes_afterwards() {
    cage::test(Needs::Containers, |cage| nobody_comes(cage, "fuse"));
}
