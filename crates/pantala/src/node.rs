//! One node, assembled: store, swarm, proxy, snapshotter, and the two small faces for the operator.
//!
//! Nothing here waits for the cluster. A node that cannot reach its scheduler starts, serves what it has,
//! reads the rest at registries, and joins as soon as somebody answers.

mod cluster;
mod registries;
mod report;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use content::ContentOpener;
use identity::{JoinToken, NodeKey};
use store::{Store, StoreOptions};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::{self, SOCKET_NAME, StatusSocket};
use crate::faces::Faces;
use crate::ports;
use crate::supervised::Succession;
use crate::watchdog;

pub use cluster::{Cluster, Membership};
pub use registries::Registries;
pub use report::Layers;

/// Everything that a node is told, whichever file or flag it stood in.
pub struct Settings {
    /// Everything the node keeps.
    pub data_dir: PathBuf,
    /// Its name for people.
    pub hostname: String,
    /// Address under which others reach it.
    pub advertise: IpAddr,
    /// Data centre.
    pub idc: String,
    /// Rack or row.
    pub location: String,
    /// Whether it reads at registries for others.
    pub seed: bool,
    /// Schedulers, `host:port`.
    pub schedulers: Vec<String>,
    /// Proof of membership; `None` switches TLS between nodes off.
    pub token: Option<JoinToken>,
    /// Where pieces are served.
    pub pieces: SocketAddr,
    /// Where health is answered.
    pub health: SocketAddr,
    /// Where the proxy listens.
    pub proxy: SocketAddr,
    /// What moves these three elsewhere, for errors.
    pub port_keys: PortKeys,
    /// Bytes of pieces kept on disk.
    pub budget: u64,
    /// The proxy's rules, and which upstreams the network may name.
    pub rules: proxy::ProxyConfig,
    /// How registries are reached.
    pub registries: Registries,
    /// Lazy mounts, if they are wanted.
    pub snapshotter: Option<SnapshotterSettings>,
}

/// Names of the settings that move a node's ports.
#[derive(Debug, Clone, Copy)]
pub struct PortKeys {
    /// That of [`Settings::pieces`].
    pub pieces: &'static str,
    /// That of [`Settings::health`].
    pub health: &'static str,
    /// That of [`Settings::proxy`].
    pub proxy: &'static str,
}

/// The snapshotter's part of a node.
pub struct SnapshotterSettings {
    /// Socket that containerd connects to.
    pub address: PathBuf,
    /// State.
    pub root: PathBuf,
    /// What its `config.toml` says.
    pub config: snapshotter::Config,
}

/// Runs a node until `shutdown`; calls `ready` once every socket answers.
///
/// # Errors
/// What kept it from starting, or the first part that failed while it ran.
pub async fn run(
    settings: Settings,
    shutdown: CancellationToken,
    ready: impl FnOnce(),
) -> anyhow::Result<()> {
    if settings.snapshotter.is_some() {
        // Before anything is bound, made or joined.
        snapshotter::check_host()?;
    }
    let dir = &settings.data_dir;
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make the directory {}", dir.display()))?;
    let status_socket = StatusSocket::bind(&dir.join(SOCKET_NAME))?;
    let health = ports::bind(settings.health, "health", settings.port_keys.health)?;
    let proxy_listener = ports::bind(settings.proxy, "the proxy", settings.port_keys.proxy)?;
    // Held only to find out at once that the port is taken; the swarm binds it again when it has joined.
    drop(ports::bind(settings.pieces, "pieces", settings.port_keys.pieces)?);
    let key = Arc::new(NodeKey::load_or_create(&dir.join("node.key"))?);
    let store = Store::open(&dir.join("pieces"), &StoreOptions { budget: settings.budget })?;

    let keychains = settings.snapshotter.as_ref();
    let keychains = keychains.map(|lazy| snapshotter::Keychains::open(&lazy.config.keychains, &lazy.root));
    let registries = match &keychains {
        Some(keychains) => settings.registries.clone().with_keychains(keychains),
        None => settings.registries.clone(),
    };
    let client = registries.client(&settings.rules)?;
    let membership = Membership {
        key,
        token: settings.token.clone(),
        schedulers: settings.schedulers.clone(),
        advertise: settings.advertise,
        credentials: dir.join("credentials"),
    };
    let swarm_config = cluster::SwarmTemplate {
        store: store.clone(),
        listen: settings.pieces,
        hostname: settings.hostname.clone(),
        idc: settings.idc.clone(),
        location: settings.location.clone(),
        seed: settings.seed,
        client: client.clone(),
    };
    let cluster = Arc::new(Cluster::default());
    let opener: Arc<dyn ContentOpener> = Arc::clone(&cluster) as Arc<dyn ContentOpener>;
    let tasks = TaskTracker::new();
    // Whichever part ends first with an error takes the others with it.
    let stop = shutdown.child_token();
    let (failed, mut failures) = tokio::sync::mpsc::channel::<anyhow::Error>(4);
    let guard = |what: &'static str,
                 part: std::pin::Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>| {
        let (failed, stop) = (failed.clone(), stop.clone());
        async move {
            if let Err(error) = part.await {
                let _ = failed.try_send(error.context(what));
                stop.cancel();
            }
        }
    };

    cluster::join_first(&cluster, &membership, &swarm_config).await?;
    tasks.spawn(guard(
        "joining the cluster",
        Box::pin(cluster::keep(Arc::clone(&cluster), membership, swarm_config, stop.clone())),
    ));

    let mut lazy = None;
    if let Some(wanted) = &settings.snapshotter {
        let clients = (Arc::clone(&opener), client.clone(), keychains.clone());
        let (started, running) = start_snapshotter(wanted, clients, &shutdown, stop.clone()).await?;
        lazy = Some(started);
        tasks.spawn(guard("the snapshotter", Box::pin(async move { Ok(running.stopped().await?) })));
    }
    let rules = settings.rules.clone();
    let (proxy_client, proxy_stop) = (client.clone(), stop.clone());
    tasks.spawn(guard(
        "the proxy",
        Box::pin(
            async move { Ok(proxy::serve(proxy_listener, rules, proxy_client, opener, proxy_stop).await?) },
        ),
    ));
    tasks.spawn(close_idle(store.clone(), stop.clone()));
    let (layers, faces, hand_over) = match lazy {
        Some(Lazy { layers, faces, hand_over }) => (Some(layers), faces, Some(hand_over)),
        None => (None, Faces::default(), None),
    };
    let answers: Arc<dyn admin::Answers> =
        Arc::new(report::Report::new(settings.hostname.clone(), Arc::clone(&cluster), store, layers));
    tasks.spawn(admin::serve_health(health, Arc::clone(&answers), stop.clone()));
    faces.serve(&answers, &tasks, &stop);
    tasks.spawn(status_socket.serve(answers, stop.clone()));
    tasks.spawn(watchdog::keep_telling(stop.clone()));
    ready();
    notify_systemd("READY=1");

    stop.cancelled().await;
    if !hand_over.is_some_and(|hand_over| hand_over.is_cancelled()) {
        notify_systemd("STOPPING=1");
    }
    tasks.close();
    tasks.wait().await;
    cluster.leave().await;
    match failures.try_recv() {
        Ok(error) => Err(error),
        Err(_) => Ok(()),
    }
}

/// What a node keeps of its snapshotter.
struct Lazy {
    layers: Layers,
    faces: Faces,
    /// Cancelled before the end if another process goes on with everything.
    hand_over: CancellationToken,
}

/// Starts the snapshotter of a node, which ends with `stop`.
async fn start_snapshotter(
    wanted: &SnapshotterSettings,
    (opener, client, keychains): (Arc<dyn ContentOpener>, registry::Client, Option<snapshotter::Keychains>),
    shutdown: &CancellationToken,
    stop: CancellationToken,
) -> anyhow::Result<(Lazy, snapshotter::Running)> {
    // Bound before anything else is made: a wrong address is told at once.
    let faces = Faces::bind(&wanted.config)?;
    let Succession { keep, hand_over } = Succession::prepare(&wanted.root, shutdown).await?;
    let options = snapshotter::ServeOptions {
        address: wanted.address.clone(),
        root: wanted.root.clone(),
        config: wanted.config.clone(),
        keep,
        hand_over: hand_over.clone(),
        keychains,
    };
    let running = snapshotter::start(options, opener, client, stop).await?;
    let layers = Layers { handle: running.handle(), address: wanted.address.clone() };
    Ok((Lazy { layers, faces, hand_over }, running))
}

/// How often files of contents that nobody reads any more are closed.
const CLOSE_IDLE: std::time::Duration = std::time::Duration::from_mins(1);

/// Gives back the file descriptors of contents that nobody reads.
async fn close_idle(store: Store, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(CLOSE_IDLE)).await.is_some() {
        let store = store.clone();
        if tokio::task::spawn_blocking(move || store.close_idle()).await.is_err() {
            tracing::warn!("closing idle contents broke off");
        }
    }
}

/// Tells systemd about a change, if it started us and asked to know.
pub fn notify_systemd(state: &str) {
    lazyfs::keeper::tell_manager(state);
}
