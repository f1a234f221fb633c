//! A snapshotter without a cluster: layers come straight from registries, to the byte.

use std::path::Path;

use anyhow::Result;
use testkit::cage::Cage;
use testkit::containerd::Containerd;
use testkit::net::Host;
use testkit::node::Pantala;
use testkit::process::Daemon;

/// `pantala snapshotter`, and a containerd that uses it. Fields end in the order in which they stand here.
#[derive(Debug)]
pub struct Alone {
    /// Ends first.
    pub containerd: Containerd,
    /// The supervisor.
    pub snapshotter: Daemon,
}

impl Alone {
    /// Starts both on `host` with everything below `dir`; `config` is the snapshotter's `config.toml`.
    pub fn start(cage: &Cage, pantala: &Pantala, host: &Host, dir: &Path, config: &str) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        let (file, plugin) = (dir.join("config.toml"), dir.join("snapshotter.sock"));
        std::fs::write(&file, config)?;
        let mut command = pantala.on(host);
        command.arg("snapshotter").arg("--config").arg(&file);
        command.arg("--address").arg(&plugin).arg("--root").arg(dir.join("root"));
        let mut snapshotter = Daemon::start("snapshotter", &mut command, &dir.join("snapshotter.log"))?;
        snapshotter.wait_for_socket(&plugin)?;
        let containerd = Containerd::start(host, &dir.join("containerd"), &cage.tag(), &plugin)?;
        Ok(Self { containerd, snapshotter })
    }
}

/// Lines of a `config.toml` by which the blobs of the registry `of` come from `hosts`, in this order, without TLS.
pub fn mirrors(of: &str, hosts: &[&str]) -> String {
    let mirror =
        |host: &&str| format!("[[resolver.host.\"{of}\".mirrors]]\nhost = \"{host}\"\ninsecure = true\n");
    hosts.iter().map(mirror).collect()
}
