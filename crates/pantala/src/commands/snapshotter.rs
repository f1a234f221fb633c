//! `pantala snapshotter`: lazy mounts straight from registries, in place of stargz-snapshotter.

use std::os::unix::fs::DirBuilderExt as _;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use content::DirectOpener;
use tokio_util::task::TaskTracker;

use super::daemon_log;
use super::node::machine_name;
use crate::admin::{Answers, SOCKET_NAME, StatusSocket};
use crate::cli::{SnapshotterArgs, stargz};
use crate::faces::Faces;
use crate::node::{Layers, Registries, notify_systemd};
use crate::ports;
use crate::status::Status;
use crate::supervised::Succession;
use crate::watchdog;

/// Runs until a signal.
pub async fn run(args: SnapshotterArgs) -> anyhow::Result<()> {
    daemon_log(&args.log_level)?;
    let mut config = load(args.config.as_deref())?;
    config.driver = args.driver.unwrap_or(config.driver);
    if let Some(address) = args.containerd_address {
        config.containerd_address = address;
    }
    if let Some(directories) = &args.hosts_dir {
        config.add_hosts_dir(directories).with_context(|| format!("--hosts-dir {directories}"))?;
    }
    let keychains = snapshotter::Keychains::open(&config.keychains, &args.root);
    let registries = Registries {
        plain_http: args.registries.plain_http,
        docker_config: args.registries.docker_config,
        ..Registries::default()
    };
    let client = registries.of_snapshotter(&config).with_keychains(&keychains).own_client()?;
    let shutdown = ports::shutdown_on_signal()?;
    snapshotter::check_host()?;
    std::fs::DirBuilder::new().recursive(true).mode(0o711).create(&args.root).with_context(|| {
        format!("cannot make the directory {}, choose another --root", args.root.display())
    })?;
    let faces = Faces::bind(&config)?;
    let Succession { keep, hand_over } = Succession::prepare(&args.root, &shutdown).await?;
    let (address, status_at) = (args.address.clone(), args.root.join(SOCKET_NAME));
    let options = snapshotter::ServeOptions {
        address: args.address,
        root: args.root,
        config,
        keep,
        hand_over: hand_over.clone(),
        keychains: Some(keychains),
    };
    let running = snapshotter::start(options, Arc::new(DirectOpener), client, shutdown.clone()).await?;
    let tasks = TaskTracker::new();
    let answers: Arc<dyn Answers> = Arc::new(Alone {
        hostname: machine_name(),
        started: Instant::now(),
        layers: Layers { handle: running.handle(), address: address.clone() },
    });
    faces.serve(&answers, &tasks, &shutdown);
    // The root is ours by now: nobody else has a socket there.
    match StatusSocket::bind(&status_at) {
        Ok(socket) => drop(tasks.spawn(socket.serve(answers, shutdown.clone()))),
        Err(error) => tracing::warn!("`pantala status` gets no answer: {error:#}"),
    }
    tasks.spawn(watchdog::keep_telling(shutdown.clone()));
    notify_systemd(&format!("READY=1\nSTATUS=Serving containerd on {}", address.display()));
    let stopping = shutdown.clone();
    tasks.spawn(async move {
        stopping.cancelled().await;
        if !hand_over.is_cancelled() {
            notify_systemd("STOPPING=1\nSTATUS=Taking mountpoints away");
        }
    });
    let ended = running.stopped().await;
    // It may have ended by itself.
    shutdown.cancel();
    tasks.close();
    tasks.wait().await;
    Ok(ended?)
}

/// What a snapshotter without a node answers to `pantala status`.
struct Alone {
    hostname: String,
    started: Instant,
    layers: Layers,
}

#[async_trait::async_trait]
impl Answers for Alone {
    async fn status(&self) -> Status {
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            hostname: self.hostname.clone(),
            uptime_seconds: self.started.elapsed().as_secs(),
            alone: true,
            snapshotter: Some(self.layers.line()),
            layers: self.layers.lines("registry"),
            ..Status::default()
        }
    }

    fn connected(&self) -> bool {
        true
    }

    fn ready(&self) -> bool {
        self.layers.handle.is_alive()
    }

    fn metrics(&self) -> String {
        self.layers.handle.metrics()
    }
}

/// The file that was named must be there. The default one may be missing, also if it is named: so says the unit file of
/// stargz-snapshotter, and so does its daemon.
pub fn load(path: Option<&std::path::Path>) -> anyhow::Result<snapshotter::Config> {
    Ok(match path {
        Some(path) if !stargz::is_default_config(path) => snapshotter::Config::load(path)?,
        _ => snapshotter::Config::load_default()?,
    })
}
