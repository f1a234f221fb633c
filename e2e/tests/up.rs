//! `pantala up`: everything on one machine, in one process, and nothing left after Ctrl-C.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use e2e::{big_file_image, sum_line};
use rustix::process::Signal;
use testkit::cage::{self, Needs};
use testkit::cluster::{Cluster, ClusterOptions};
use testkit::containerd::{Containerd, Snapshotter};
use testkit::node::{Pantala, mounts_below};
use testkit::process::{Daemon, READY_LIMIT, wait_until};

/// Every socket below a folder.
fn sockets_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            found.extend(sockets_below(&entry.path()));
        } else if kind.is_socket() {
            found.push(entry.path());
        }
    }
    found
}

#[test]
fn one_command_starts_containers_lazily_and_ctrl_c_leaves_nothing() {
    cage::test(Needs::Containers, |cage| {
        let pantala = Pantala::locate()?;
        let options = ClusterOptions { seed: false, nodes: 0, ..ClusterOptions::default() };
        let cluster = Cluster::registry_only(cage, &pantala, options)?;
        let (image, sum) = big_file_image(10, 3_000_000)?;
        image.push(cluster.registry.back(), "lab", "plain")?;
        cluster.convert("lab:plain", "lab:esgz")?;

        let host = cluster.network.host("one")?;
        let root = cage.dir().join("up");
        let socket = root.join("snapshotter.sock");
        let mut command = pantala.on(&host);
        command.arg("up").arg("--root").arg(&root).args(["--plain-http", &cluster.registry.name()]);
        let mut up = Daemon::start("pantala up", &mut command, &cage.dir().join("up.log"))?;
        up.wait_for_line("ready", READY_LIMIT)?;

        let mut containerd = Containerd::start(&host, &cage.dir().join("c"), &cage.tag(), &socket)?;
        let lazy = cluster.reference("lab:esgz");
        containerd.rpull(&lazy)?;
        let printed = containerd.run(&lazy, Snapshotter::Stargz, &["/bin/sha256sum", "/big"])?;
        assert_eq!(printed.stdout, sum_line(&sum));
        assert!(!mounts_below(&root)?.is_empty(), "the layers are mounted below {}", root.display());

        containerd.daemon().stop()?;
        up.signal(Signal::INT)?;
        wait_until("pantala up to end", READY_LIMIT, || (!up.is_running()).then_some(()))?;
        assert!(up.stop()?.success(), "{}", up.log_tail());
        assert_eq!(mounts_below(&root)?, Vec::<String>::new());
        assert_eq!(sockets_below(&root), Vec::<PathBuf>::new());
        Ok(())
    });
}
