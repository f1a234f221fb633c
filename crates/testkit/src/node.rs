//! The `pantala` binary in a lab: its configuration files, its processes, what they say of themselves.

use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cage::Cage;
use crate::group::Group;
use crate::http;
use crate::net::Host;
use crate::process::{Daemon, run, wait_until};
use crate::service_manager::ServiceManager;

/// The scheduler's port.
pub const SCHEDULER_PORT: u16 = 8002;
/// The proxy's and registry mirror's port.
pub const PROXY_PORT: u16 = 65001;
/// The port that answers whether a node is well.
pub const HEALTH_PORT: u16 = 40901;

/// The binary under test.
#[derive(Debug, Clone)]
pub struct Pantala {
    binary: PathBuf,
}

/// Where bytes that a node delivered came from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sources {
    /// Its own disk.
    pub store: u64,
    /// Other nodes.
    pub peer: u64,
    /// Seeds.
    pub seed: u64,
    /// The registry.
    pub origin: u64,
}

impl Sources {
    /// Bytes that came over the network.
    pub const fn fetched(&self) -> u64 {
        self.peer + self.seed + self.origin
    }

    /// What was added since an earlier look.
    #[must_use]
    pub const fn since(&self, earlier: &Self) -> Self {
        Self {
            store: self.store - earlier.store,
            peer: self.peer - earlier.peer,
            seed: self.seed - earlier.seed,
            origin: self.origin - earlier.origin,
        }
    }
}

/// What makes one node of a lab different from another.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// `host:port` of the registry whose blobs it may fetch and mirror.
    pub registry: String,
    /// The scheduler's address, if there is one.
    pub scheduler: Option<SocketAddr>,
    /// The secret that lets it into the cluster; without one it is `insecure`.
    pub join_token: Option<String>,
    /// Whether it is a seed.
    pub seed: bool,
    /// Whether it also is containerd's snapshotter.
    pub snapshotter: bool,
    /// More keys for its YAML file, whole lines.
    pub extra: String,
    /// More keys for the snapshotter's TOML file, placed at its beginning.
    pub snapshotter_extra: String,
}

impl Pantala {
    /// The binary that `PANTALA_BIN` names, else the one that cargo built beside the running program.
    pub fn locate() -> Result<Self> {
        if let Some(binary) = std::env::var_os("PANTALA_BIN") {
            return Self::at(Path::new(&binary));
        }
        // target/<profile>/deps/<test> or target/<profile>/<binary>
        let program = std::env::current_exe()?;
        let found =
            program.ancestors().skip(1).take(2).map(|dir| dir.join("pantala")).find(|file| file.is_file());
        Self::at(
            &found
                .context("no pantala binary: build it with `cargo build -p pantala`, or set PANTALA_BIN")?,
        )
    }

    /// The binary at a path.
    pub fn at(binary: &Path) -> Result<Self> {
        let binary =
            fs::canonicalize(binary).with_context(|| format!("no binary at {}", binary.display()))?;
        Ok(Self { binary })
    }

    /// Where it is.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// A command line on a host. What it remembers of conversions is the cage's own.
    pub fn on(&self, host: &Host) -> Command {
        let mut command = host.command(&self.binary);
        if let Some(cage) = Cage::current() {
            command.env("PANTALA_CACHE", cage.dir().join("index"));
        }
        command
    }

    /// Runs a command line on a host to its end; answers what it printed.
    pub fn run(&self, host: &Host, arguments: &[&str]) -> Result<String> {
        run(self.on(host).args(arguments))
    }

    /// Starts the scheduler on a host, with its state and log below `dir`.
    pub fn scheduler(&self, host: &Host, dir: &Path, join_token: Option<&str>) -> Result<Daemon> {
        fs::create_dir_all(dir)?;
        let config = dir.join("scheduler.yaml");
        let mut text = format!(
            "server:\n  advertiseIP: {}\n  port: {SCHEDULER_PORT}\n  dataDir: {}\n",
            host.address(),
            dir.join("data").display()
        );
        text += &security(join_token);
        fs::write(&config, text)?;
        let mut command = self.on(host);
        command.args(["scheduler", "--config"]).arg(&config);
        let mut daemon = Daemon::start("scheduler", &mut command, &dir.join("scheduler.log"))?;
        daemon.wait_for_address(SocketAddr::from((host.address(), SCHEDULER_PORT)))?;
        Ok(daemon)
    }
}

fn security(join_token: Option<&str>) -> String {
    match join_token {
        Some(token) => format!("security:\n  joinToken: {token}\n"),
        None => "security:\n  insecure: true\n".into(),
    }
}

/// A running `pantala node`. Ends when dropped.
#[derive(Debug)]
pub struct Node {
    daemon: Option<Daemon>,
    pantala: Pantala,
    host: Host,
    dir: PathBuf,
    config: NodeConfig,
}

impl Node {
    /// Starts a node on `host` with everything below `dir`, and waits until it is well.
    pub fn start(pantala: &Pantala, host: &Host, dir: &Path, config: NodeConfig) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let mut node =
            Self { daemon: None, pantala: pantala.clone(), host: host.clone(), dir: dir.into(), config };
        fs::write(node.dir.join("node.yaml"), node.yaml())?;
        fs::write(node.dir.join("snapshotter.toml"), snapshotter_toml(&node.config))?;
        node.start_again()?;
        Ok(node)
    }

    /// Starts it once more, with the same files and state. It must not be running.
    pub fn start_again(&mut self) -> Result<()> {
        let mut command = self.command();
        self.launch(&mut command)
    }

    /// As [`Node::start_again`], as a service of `manager`, which gives it what it stored.
    pub fn start_under(&mut self, manager: &ServiceManager) -> Result<()> {
        let (mut command, _given) = manager.service(&self.command())?;
        self.launch(&mut command)
    }

    /// As [`Node::start_again`], in the control group that was made for it.
    pub fn start_in(&mut self, group: &Group) -> Result<()> {
        let mut command = group.member(&self.command());
        self.launch(&mut command)
    }

    fn command(&self) -> Command {
        let mut command = self.pantala.on(&self.host);
        command.args(["node", "--config"]).arg(self.dir.join("node.yaml"));
        if self.config.seed {
            command.arg("--seed");
        }
        if self.config.snapshotter {
            command.arg("--snapshotter").arg(self.dir.join("snapshotter.toml"));
            command.arg("--snapshotter-address").arg(self.snapshotter_socket());
            command.arg("--snapshotter-root").arg(self.dir.join("snapshots"));
        }
        command
    }

    fn launch(&mut self, command: &mut Command) -> Result<()> {
        let name = format!("pantala on {}", self.host.name());
        let mut daemon = Daemon::start(&name, command, &self.dir.join("node.log"))?;
        let health = SocketAddr::from((self.host.address(), HEALTH_PORT));
        daemon.wait_for("its health port", || {
            http::get(health, "/server/ping", &[]).is_ok_and(|response| response.status == 200)
        })?;
        if self.config.snapshotter {
            daemon.wait_for_socket(&self.snapshotter_socket())?;
        }
        self.daemon = Some(daemon);
        Ok(())
    }

    fn yaml(&self) -> String {
        let registry = &self.config.registry;
        let (registry_host, registry_port) = registry.rsplit_once(':').unwrap_or((registry, "80"));
        let address = self.host.address();
        let mut text = String::new();
        if let Some(scheduler) = self.config.scheduler {
            let _ = writeln!(text, "scheduler:\n  netAddrs:\n    - type: tcp\n      addr: {scheduler}");
        }
        let _ = write!(
            text,
            "host:\n  hostname: {}\n  advertiseIP: {address}\n\
             dataDir: {}\n\
             {}\
             proxy:\n  registryMirror:\n    dynamic: true\n    url: http://{registry}\n\
             \x20 whiteList:\n    - host: {registry_host}\n      ports: [\"{registry_port}\"]\n\
             \x20 tcpListen:\n    listen: 0.0.0.0\n    port: {PROXY_PORT}\n\
             health:\n  tcpListen:\n    port: {HEALTH_PORT}\n\
             {}",
            self.host.name(),
            self.data_dir().display(),
            security(self.config.join_token.as_deref()),
            self.config.extra
        );
        text
    }

    /// The host that it runs on.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The socket for containerd.
    pub fn snapshotter_socket(&self) -> PathBuf {
        snapshotter_socket(&self.dir)
    }

    /// Where its state is.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// The address of its proxy, from anywhere in the lab.
    pub fn proxy(&self) -> SocketAddr {
        SocketAddr::from((self.host.address(), PROXY_PORT))
    }

    /// The process.
    pub fn daemon(&mut self) -> &mut Daemon {
        self.daemon.as_mut().expect("started in the constructor")
    }

    /// What `pantala status --output json` says.
    pub fn status(&self) -> Result<Value> {
        let mut command = self.pantala.on(&self.host);
        command
            .arg("status")
            .arg("--socket")
            .arg(self.data_dir().join("pantala.sock"))
            .args(["--output", "json"]);
        Ok(serde_json::from_str(&run(&mut command)?)?)
    }

    /// Where the bytes that it delivered since its start came from.
    pub fn sources(&self) -> Result<Sources> {
        let status = self.status()?;
        Sources::deserialize(&status["bytes"]).with_context(|| format!("no bytes in the status {status}"))
    }

    /// Waits until every mounted layer has arrived as a whole.
    pub fn wait_until_complete(&self, limit: Duration) -> Result<()> {
        wait_until(&format!("the layers of {} to be complete", self.host.name()), limit, || {
            let status = self.status().ok()?;
            let layers = status["layers"].as_array()?;
            let complete = layers.iter().all(|layer| layer["fetched"] == layer["size"]);
            (!layers.is_empty() && complete).then_some(())
        })
        .with_context(|| format!("its status: {}", self.status().unwrap_or_default()))
    }

    /// Ends it in order and checks that nothing of it is left mounted.
    pub fn stop(&mut self) -> Result<()> {
        let daemon = self.daemon();
        let status = daemon.stop()?;
        if !status.success() {
            bail!("{} ended with {status}:\n{}", daemon.name(), daemon.log_tail());
        }
        let left = mounts_below(&self.dir)?;
        anyhow::ensure!(left.is_empty(), "left mounted: {left:?}");
        Ok(())
    }
}

/// Where the node with folder `dir` listens for containerd. Known before the node runs.
pub fn snapshotter_socket(dir: &Path) -> PathBuf {
    dir.join("snapshotter.sock")
}

/// The snapshotter's file in the words of upstream: the registry's blobs come through this node's proxy port.
fn snapshotter_toml(config: &NodeConfig) -> String {
    let registry = &config.registry;
    format!(
        "{extra}\n\
         [[resolver.host.\"{registry}\".mirrors]]\n\
         host = \"{localhost}:{PROXY_PORT}\"\n\
         insecure = true\n\
         [resolver.host.\"{registry}\".mirrors.header]\n\
         X-Dragonfly-Registry = [\"http://{registry}\"]\n",
        extra = config.snapshotter_extra,
        localhost = Ipv4Addr::LOCALHOST
    )
}

/// Mount points below a folder.
pub fn mounts_below(dir: &Path) -> Result<Vec<String>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    Ok(points.filter(|point| Path::new(point).starts_with(dir)).map(str::to_owned).collect())
}
