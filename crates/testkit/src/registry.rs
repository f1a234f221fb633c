//! The registry: Debian's `docker-registry`, with a folder of its own and the meter before it.
//!
//! The reference that everybody uses, `<host>:5000/…`, is the meter's. The registry itself listens on 5001 of
//! the same host; only the lab goes there, to put images in without being counted.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::meter::{Meter, MeterOptions};
use crate::net::Host;
use crate::process::Daemon;

/// The port that clients know.
pub const PORT: u16 = 5000;
/// The registry's own port, behind the meter.
const BACK_PORT: u16 = 5001;

/// A registry on a host, and the meter before it. Both end when it is dropped.
#[derive(Debug)]
pub struct Registry {
    /// What counts, delays and misbehaves.
    pub meter: Meter,
    daemon: Daemon,
    host: Host,
    dir: PathBuf,
}

impl Registry {
    /// Starts both on `host`, with the registry's files below `dir`.
    pub fn start(host: &Host, dir: &Path, options: MeterOptions) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        // With a secret of its own, an upload can go on after a restart.
        std::fs::write(
            dir.join("config.yml"),
            format!(
                "version: 0.1\n\
                 log: {{level: warn, accesslog: {{disabled: true}}}}\n\
                 storage:\n  filesystem: {{rootdirectory: {}}}\n  cache: {{blobdescriptor: inmemory}}\n\
                 http:\n  addr: 0.0.0.0:{BACK_PORT}\n  secret: of-the-lab\n",
                dir.join("files").display()
            ),
        )?;
        let daemon = serve(host, dir)?;
        let behind = SocketAddr::from((Ipv4Addr::LOCALHOST, BACK_PORT));
        let meter = Meter::start(host, SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT)), behind, options)?;
        Ok(Self { meter, daemon, host: host.clone(), dir: dir.into() })
    }

    /// `host:port` as it stands in references.
    pub fn name(&self) -> String {
        self.front().to_string()
    }

    /// The address that clients use.
    pub fn front(&self) -> SocketAddr {
        SocketAddr::from((self.host.address(), PORT))
    }

    /// The address that is not counted.
    pub fn back(&self) -> SocketAddr {
        SocketAddr::from((self.host.address(), BACK_PORT))
    }

    /// The registry's own process.
    pub fn daemon(&mut self) -> &mut Daemon {
        &mut self.daemon
    }

    /// Kills the registry and starts it again, with what is on its disk. The meter stays.
    pub fn restart(&mut self) -> Result<()> {
        self.daemon.kill()?;
        self.daemon = serve(&self.host, &self.dir)?;
        Ok(())
    }

    /// Bytes on the registry's disk of uploads to a repository that are not finished.
    pub fn unfinished_uploads(&self, repository: &str) -> u64 {
        let uploads = self.dir.join(format!("files/docker/registry/v2/repositories/{repository}/_uploads"));
        let sessions = std::fs::read_dir(uploads).into_iter().flatten().flatten();
        sessions
            .filter_map(|session| session.path().join("data").metadata().ok())
            .map(|data| data.len())
            .sum()
    }
}

fn serve(host: &Host, dir: &Path) -> Result<Daemon> {
    let mut command: Command = host.command("docker-registry");
    // It would try to ask the cluster's configuration for tracing otherwise.
    command.arg("serve").arg(dir.join("config.yml")).env("OTEL_TRACES_EXPORTER", "none");
    let mut daemon = Daemon::start("docker-registry", &mut command, &dir.join("registry.log"))?;
    daemon.wait_for_address(SocketAddr::from((host.address(), BACK_PORT)))?;
    Ok(daemon)
}
