//! From a root directory to a listening socket, and back to nothing.
//!
//! Start: directories and database first (the database is also the lock on the root), then everything that
//! was mounted comes back, then the socket: containerd is never answered by half a snapshotter. End: no new
//! calls, those under way may finish, mounts and socket go, what was fetched stays.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use content::{ContentOpener, Digest};
use lazyfs::MountError;
use lazyfs::keeper::{Keep, KeepHere};
use lazyfs::mounter::{DriverChoice, Mounter, MounterOptions};
use proto::containerd::snapshots::snapshots_server::SnapshotsServer;
use serde::Serialize;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::claims::ClaimOptions;
use crate::config::Config;
use crate::cri::{CriFace, Faces};
use crate::dirs::{DirError, Dirs};
use crate::host::{HostError, check_host, check_overlay};
use crate::keychain::Keychains;
use crate::labels::LayerSource;
use crate::layer::{LayerBackend, LayerError};
use crate::lazy::LazyBackend;
use crate::leftover;
use crate::meta::{Meta, MetaError};
use crate::metrics::{Fallback, Reason};
use crate::overlay::Overlay;
use crate::service::SnapshotService;
use crate::snapshots::{Limits, SnapshotError, Snapshots};
use crate::socket::{Socket, SocketError};

/// How long calls that are under way may take when the process ends.
const LAST_CALLS: Duration = Duration::from_secs(3);

/// What to serve, and where.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// The socket that containerd's configuration names.
    pub address: PathBuf,
    /// Where everything is kept.
    pub root: PathBuf,
    /// What stargz-snapshotter's `config.toml` says.
    pub config: Config,
    /// Who keeps descriptors for the process after this one; nobody, if there is no keeper.
    pub keep: Option<Arc<dyn lazyfs::keeper::Keep>>,
    /// Cancelled before the stop if another process goes on with everything that is mounted.
    pub hand_over: CancellationToken,
    /// In whose name the client of registries asks: CRI's pulls feed them.
    pub keychains: Option<Keychains>,
}

/// Why the snapshotter does not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The machine, or the rights of this process.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The root directory.
    #[error(transparent)]
    Dir(#[from] DirError),
    /// The database of snapshots.
    #[error(transparent)]
    Meta(#[from] MetaError),
    /// No driver works here, or the chosen one does not.
    #[error(transparent)]
    Driver(#[from] MountError),
    /// The store of lazy layers.
    #[error("the store of lazy layers: {0}")]
    Layers(#[from] LayerError),
    /// What was mounted cannot be brought back.
    #[error("bringing back what was mounted: {0}")]
    Restore(#[from] SnapshotError),
    /// The socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The server itself.
    #[error("serving containerd: {0}")]
    Server(String),
}

/// A lazy layer, for people.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MountedLayer {
    /// The snapshot's name.
    pub name: String,
    /// Where its files are.
    pub mountpoint: PathBuf,
    /// The image that it was pulled for, as the client wrote it.
    pub image: String,
    /// The digest that the image's manifest gives its blob.
    pub layer: Digest,
    /// The digest of its table of contents.
    pub toc: Digest,
    /// Whether it is mounted now.
    pub mounted: bool,
    /// How the kernel asks for its bytes: `native` or `fuse`; empty if it is not mounted.
    pub driver: &'static str,
    /// Bytes of all files, uncompressed.
    pub size: u64,
    /// Of those, how many are on this machine.
    pub fetched: u64,
    /// Of those, how many somebody read.
    pub touched: u64,
    /// What stargz-snapshotter shows in `.stargz-snapshotter/<layer digest>.json` of a layer: `error`, `digest`, `size`,
    /// `fetchedSize`, `fetchedPercent`. Nothing if it is not mounted.
    pub state: Option<serde_json::Value>,
}

/// Asks a running snapshotter. Cheap to clone; one that outlives the snapshotter answers that there is
/// nothing.
#[derive(Clone)]
pub struct Handle(Weak<Snapshots>);

impl Handle {
    /// Where the bytes of the snapshot `name` come from: `None` for what containerd itself unpacked.
    ///
    /// # Errors
    /// That there is no such snapshot.
    pub fn source_of(&self, name: &str) -> Result<Option<LayerSource>, SnapshotError> {
        self.0.upgrade().ok_or(SnapshotError::ShuttingDown)?.source_of(name)
    }

    /// The page that Prometheus reads; empty if the snapshotter is gone. Looks at every layer: not for the threads of a
    /// runtime.
    pub fn metrics(&self) -> String {
        self.0.upgrade().map_or_else(String::new, |snapshots| snapshots.metrics_page())
    }

    /// Whether it serves.
    pub fn is_alive(&self) -> bool {
        self.0.strong_count() > 0
    }

    /// How many layers were not mounted lazily, by the reason.
    pub fn fallbacks(&self) -> Vec<(Reason, u64)> {
        self.0.upgrade().map(|snapshots| snapshots.metrics().fallbacks()).unwrap_or_default()
    }

    /// The last layers that were not mounted lazily though their images asked for it, the newest last.
    pub fn recent_fallbacks(&self) -> Vec<Fallback> {
        self.0.upgrade().map(|snapshots| snapshots.metrics().recent_fallbacks()).unwrap_or_default()
    }

    /// All lazy layers.
    pub fn layers(&self) -> Vec<MountedLayer> {
        let Some(snapshots) = self.0.upgrade() else { return Vec::new() };
        let views = snapshots.layers().into_iter().map(|view| {
            let (progress, driver) = view.mounted.unwrap_or_default();
            MountedLayer {
                mountpoint: snapshots.dirs().fs(view.id),
                name: view.name,
                image: view.source.reference,
                layer: view.source.layer,
                toc: view.source.toc,
                mounted: view.mounted.is_some(),
                driver,
                size: progress.size,
                fetched: progress.fetched,
                touched: progress.touched,
                state: snapshots.state_of(view.id, view.source.layer),
            }
        });
        views.collect()
    }
}

/// A snapshotter that listens.
pub struct Running {
    snapshots: Arc<Snapshots>,
    server: JoinHandle<Result<(), String>>,
    socket: Socket,
    /// What runs beside the server.
    tasks: TaskTracker,
    hand_over: CancellationToken,
}

impl Running {
    /// Asks it.
    pub fn handle(&self) -> Handle {
        Handle(Arc::downgrade(&self.snapshots))
    }

    /// Waits until it was told to stop, and has left nothing behind but what another process goes on with.
    ///
    /// # Errors
    /// [`ServeError::Server`] if it stopped by itself.
    pub async fn stopped(self) -> Result<(), ServeError> {
        let ended = self.server.await;
        self.tasks.close();
        self.tasks.wait().await;
        self.snapshots.shut_down(self.hand_over.is_cancelled()).await;
        drop(self.socket);
        match ended {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(ServeError::Server(error)),
            Err(error) => Err(ServeError::Server(error.to_string())),
        }
    }
}

/// Starts the snapshotter; it listens when this returns. `client` is asked as it is: whoever made it gave it
/// the mirrors of the configuration, as far as they are not the caller itself. It ends when `stop` is cancelled, and whoever
/// started it waits for [`Running::stopped`].
///
/// # Errors
/// What keeps it from serving.
pub async fn start(
    options: ServeOptions,
    opener: Arc<dyn ContentOpener>,
    client: registry::Client,
    stop: CancellationToken,
) -> Result<Running, ServeError> {
    for warning in &options.config.warnings {
        tracing::warn!(
            line = warning.line, key = %warning.key, reason = warning.reason,
            "this key of the configuration does nothing"
        );
    }
    if options.config.fuse_manager {
        // What scripts look for. The keeper is always there; the key changes nothing.
        tracing::info!("Start snapshotter with fusemanager mode");
    }
    let root = options.root.clone();
    let checked = tokio::task::spawn_blocking(move || {
        check_host()?;
        let scratch = Dirs::create(&root)?.probe();
        leftover::tell(&root);
        check_overlay(&root, Overlay::probe(&scratch).try_mount(&scratch))?;
        Ok::<_, ServeError>(())
    });
    checked.await.map_err(|error| ServeError::Server(error.to_string()))??;
    let layers = options.root.join("layers");
    let config = options.config.clone();
    // Without a keeper nothing outlives this process, and a native mount must not outlive what guards its holes.
    let (kept, keep) = match options.keep {
        Some(keep) => (true, keep),
        None => (false, Arc::new(KeepHere::default()) as Arc<dyn Keep>),
    };
    let choice = safe_choice(config.driver.into(), kept.then(|| Arc::clone(&keep))).await;
    let scratch = layers.join("probe");
    let mounter = Mounter::start(MounterOptions { choice, keep: Arc::clone(&keep), scratch }).await?;
    let backend = move |overlay: &Overlay| -> Result<Arc<dyn LayerBackend>, LayerError> {
        let with = (mounter, keep);
        let backend = LazyBackend::open(&layers, &config, overlay.uses_user_xattr(), with, opener, &client)?;
        Ok(Arc::new(backend))
    };
    let Config { prepare_wait, resolved_for, .. } = options.config;
    let limits = Limits { prepare_wait, resolved_for };
    let claims = ClaimOptions {
        containerd_address: options.config.containerd_address.clone(),
        cri_namespace: options.config.cri_namespace.clone(),
        require_proof: options.config.require_diffid_proof,
        wait: prepare_wait,
    };
    let face = options.keychains.map(|keychains| CriFace::new(keychains, &options.config));
    let running =
        start_whole(&options.address, &options.root, limits, (Some(claims), face), backend, stop).await?;
    Ok(Running { hand_over: options.hand_over, ..running })
}

/// The driver that is asked for, or FUSE, if everything could die at once and would leave natively mounted layers
/// unguarded: their holes would be zeros for whoever reads them then. FUSE answers an error.
async fn safe_choice(wanted: DriverChoice, keep: Option<Arc<dyn Keep>>) -> DriverChoice {
    if wanted == DriverChoice::Fuse {
        return wanted;
    }
    let alone = || Err("nobody keeps descriptors".to_owned());
    let judged = tokio::task::spawn_blocking(move || keep.map_or_else(alone, |keep| keep.outlives_all()));
    match (judged.await.unwrap_or_else(|error| Err(error.to_string())), wanted) {
        (Ok(()), _) => wanted,
        (Err(reason), DriverChoice::Native) => {
            tracing::warn!(
                reason,
                "driver = native was asked for where one blow may end all that guards a layer: \
                 what has not arrived would be zeros then (docs/restarts.md)"
            );
            wanted
        }
        (Err(reason), _) => {
            tracing::info!(
                reason,
                "layers are not shown natively: one blow may end all that would guard them"
            );
            DriverChoice::Fuse
        }
    }
}

/// Starts the snapshotter, and waits for its end.
///
/// # Errors
/// As [`start`] and [`Running::stopped`].
pub async fn serve(
    options: ServeOptions,
    opener: Arc<dyn ContentOpener>,
    client: registry::Client,
    stop: CancellationToken,
) -> Result<(), ServeError> {
    start(options, opener, client, stop).await?.stopped().await
}

/// As [`start`], with lazy layers from elsewhere, and without asking anybody which images claim them.
///
/// # Errors
/// What keeps it from serving.
pub async fn start_with(
    address: &Path,
    root: &Path,
    limits: Limits,
    backend: impl FnOnce(&Overlay) -> Result<Arc<dyn LayerBackend>, LayerError>,
    stop: CancellationToken,
) -> Result<Running, ServeError> {
    start_claiming(address, root, limits, None, backend, stop).await
}

/// As [`start`], with lazy layers from elsewhere.
///
/// # Errors
/// What keeps it from serving.
pub async fn start_claiming(
    address: &Path,
    root: &Path,
    limits: Limits,
    claims: Option<ClaimOptions>,
    backend: impl FnOnce(&Overlay) -> Result<Arc<dyn LayerBackend>, LayerError>,
    stop: CancellationToken,
) -> Result<Running, ServeError> {
    start_whole(address, root, limits, (claims, None), backend, stop).await
}

/// As [`start_claiming`], with CRI's image service.
async fn start_whole(
    address: &Path,
    root: &Path,
    limits: Limits,
    (claims, face): (Option<ClaimOptions>, Option<CriFace>),
    backend: impl FnOnce(&Overlay) -> Result<Arc<dyn LayerBackend>, LayerError>,
    stop: CancellationToken,
) -> Result<Running, ServeError> {
    let root = root.to_owned();
    let opened = tokio::task::spawn_blocking(move || {
        let dirs = Dirs::create(&root)?;
        let highest = dirs.ids()?.into_iter().max().unwrap_or(0);
        let meta = Arc::new(Meta::open(&dirs.metadata(), highest)?);
        dirs.protect_metadata()?;
        let overlay = Overlay::probe(&dirs.probe());
        Ok::<_, ServeError>((dirs, meta, overlay))
    });
    let (dirs, meta, overlay) = opened.await.map_err(|error| ServeError::Server(error.to_string()))??;
    let backend = backend(&overlay)?;
    let snapshots =
        Arc::new(Snapshots::new(meta, dirs, overlay, backend, limits, claims, stop.child_token()));
    let tasks = TaskTracker::new();
    let listening = async {
        snapshots.restore().await?;
        snapshots.show_states();
        snapshots.watch_images();
        let (socket, listener) = Socket::bind(address).await?;
        let images = match face {
            Some(face) => face.start(snapshots.guard(), &tasks, &stop).await?,
            None => None,
        };
        Ok::<_, ServeError>((socket, listener, images))
    };
    let (socket, listener, images) = match listening.await {
        Ok(listening) => listening,
        Err(error) => {
            snapshots.shut_down(false).await;
            return Err(error);
        }
    };
    let service = SnapshotsServer::new(SnapshotService::new(Arc::clone(&snapshots)));
    let service = Faces { snapshots: service, images };
    let server = tokio::spawn(async move {
        let shutdown = stop.clone().cancelled_owned();
        let serving = tonic::transport::Server::builder().serve_with_incoming_shutdown(
            service,
            UnixListenerStream::new(listener),
            shutdown,
        );
        let last_calls = async {
            stop.cancelled().await;
            tokio::time::sleep(LAST_CALLS).await;
        };
        tokio::select! {
            served = serving => served.map_err(|error| error.to_string()),
            () = last_calls => {
                tracing::warn!("calls of containerd were cut off: they did not end in time");
                Ok(())
            }
        }
    });
    tracing::info!(address = %address.display(), "the snapshotter is ready");
    Ok(Running { snapshots, server, socket, tasks, hand_over: CancellationToken::new() })
}
