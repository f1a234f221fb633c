//! The registry: Debian's `docker-registry`, with a folder of its own and the meter before it.
//!
//! The reference that everybody uses, `<host>:5000/…`, is the meter's. The registry itself listens on 5001 of
//! the same host; only the lab goes there, to put images in without being counted.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
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
    address: Ipv4Addr,
}

impl Registry {
    /// Starts both on `host`, with the registry's files below `dir`.
    pub fn start(host: &Host, dir: &Path, options: MeterOptions) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        let config = dir.join("config.yml");
        std::fs::write(
            &config,
            format!(
                "version: 0.1\n\
                 log: {{level: warn, accesslog: {{disabled: true}}}}\n\
                 storage:\n  filesystem: {{rootdirectory: {}}}\n  cache: {{blobdescriptor: inmemory}}\n\
                 http:\n  addr: 0.0.0.0:{BACK_PORT}\n",
                dir.join("files").display()
            ),
        )?;
        let mut command: Command = host.command("docker-registry");
        // It would try to ask the cluster's configuration for tracing otherwise.
        command.arg("serve").arg(&config).env("OTEL_TRACES_EXPORTER", "none");
        let mut daemon = Daemon::start("docker-registry", &mut command, &dir.join("registry.log"))?;
        let address = host.address();
        daemon.wait_for_address(SocketAddr::from((address, BACK_PORT)))?;
        let behind = SocketAddr::from((Ipv4Addr::LOCALHOST, BACK_PORT));
        let meter = Meter::start(host, SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT)), behind, options)?;
        Ok(Self { meter, daemon, address })
    }

    /// `host:port` as it stands in references.
    pub fn name(&self) -> String {
        self.front().to_string()
    }

    /// The address that clients use.
    pub fn front(&self) -> SocketAddr {
        SocketAddr::from((self.address, PORT))
    }

    /// The address that is not counted.
    pub fn back(&self) -> SocketAddr {
        SocketAddr::from((self.address, BACK_PORT))
    }

    /// The registry's own process.
    pub fn daemon(&mut self) -> &mut Daemon {
        &mut self.daemon
    }
}
