//! The lazy layers that are mounted now, each at most once.
//!
//! Several calls can need a layer at the same time: restoring after a restart, `Mounts` of two containers.
//! The first one starts the work as a task of its own; all wait for its result, and one that goes away
//! takes nothing with it. A mount that somebody undid by hand is found out and made anew.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::dirs::Dirs;
use crate::labels::LayerSource;
use crate::layer::{LayerBackend, LayerError, LayerMount, OpenLayer};

/// A layer with its mount.
pub struct Mounted {
    /// The layer.
    pub layer: Arc<dyn OpenLayer>,
    /// How the kernel asks for its bytes.
    pub driver: &'static str,
    mount: Box<dyn LayerMount>,
}

impl Mounted {
    /// Joins the two.
    pub fn new(layer: Arc<dyn OpenLayer>, mount: Box<dyn LayerMount>) -> Self {
        let driver = mount.driver();
        Self { layer, driver, mount }
    }

    /// Notes that it took so long from being asked for to being mounted.
    pub fn took(&self, took: Duration) {
        if let Some((_, numbers)) = self.layer.numbers() {
            numbers.mounted(took);
        }
    }

    /// Unmounts. What still has files open there keeps them.
    pub async fn unmount(&self) {
        if let Err(error) = self.mount.unmount().await {
            tracing::warn!(%error, "could not unmount a lazy layer");
        }
    }
}

type Outcome = Option<Result<Arc<Mounted>, LayerError>>;

enum State {
    Starting(watch::Receiver<Outcome>),
    Up(Arc<Mounted>),
}

/// All of them, by the number of their snapshot's directory.
pub struct MountTable {
    backend: Arc<dyn LayerBackend>,
    dirs: Dirs,
    tasks: TaskTracker,
    stop: CancellationToken,
    states: Mutex<HashMap<u64, State>>,
}

impl MountTable {
    /// An empty table. Its work runs in `tasks`, until `stop`.
    pub fn new(
        backend: Arc<dyn LayerBackend>,
        dirs: Dirs,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        Self { backend, dirs, tasks, stop, states: Mutex::default() }
    }

    fn states<T>(&self, use_states: impl FnOnce(&mut HashMap<u64, State>) -> T) -> T {
        use_states(&mut self.states.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The opener of layers.
    pub fn backend(&self) -> &Arc<dyn LayerBackend> {
        &self.backend
    }

    /// Takes in a layer that was mounted elsewhere.
    pub fn adopt(&self, id: u64, mounted: Arc<Mounted>) {
        self.states(|states| states.insert(id, State::Up(mounted)));
    }

    /// Forgets the layer of snapshot `id`; the caller unmounts it.
    pub fn take(&self, id: u64) -> Option<Arc<Mounted>> {
        match self.states(|states| states.remove(&id)) {
            Some(State::Up(mounted)) => Some(mounted),
            _ => None,
        }
    }

    /// Forgets all layers; the caller unmounts them.
    pub fn take_all(&self) -> Vec<Arc<Mounted>> {
        let states = self.states(std::mem::take);
        let up = states.into_values().filter_map(|state| match state {
            State::Up(mounted) => Some(mounted),
            State::Starting(_) => None,
        });
        up.collect()
    }

    /// The layer of snapshot `id`, if it is mounted.
    pub fn get(&self, id: u64) -> Option<Arc<Mounted>> {
        self.states(|states| match states.get(&id) {
            Some(State::Up(mounted)) => Some(Arc::clone(mounted)),
            _ => None,
        })
    }

    /// Makes sure that the layer is mounted and answers.
    ///
    /// # Errors
    /// Why it cannot be. The next call tries again.
    pub async fn ensure(self: &Arc<Self>, id: u64, source: &LayerSource) -> Result<(), LayerError> {
        if let Some(mounted) = self.get(id) {
            let dirs = self.dirs.clone();
            let alive = tokio::task::spawn_blocking(move || dirs.is_mounted(id)).await.unwrap_or(false);
            if alive {
                return Ok(());
            }
            tracing::warn!(id, layer = %source.layer, "the mount of a lazy layer is gone: mounting it again");
            let gone = self.states(|states| match states.get(&id) {
                Some(State::Up(now)) if Arc::ptr_eq(now, &mounted) => states.remove(&id).is_some(),
                _ => false,
            });
            if gone {
                mounted.unmount().await;
            }
        }
        let mut outcome = self.start(id, source);
        let ended = outcome.wait_for(Option::is_some).await;
        match ended.map(|ended| ended.clone()) {
            Ok(Some(Ok(_))) => Ok(()),
            Ok(Some(Err(error))) => Err(error),
            Ok(None) | Err(_) => Err(LayerError("the snapshotter is shutting down".into())),
        }
    }

    /// Starts mounting, or joins who started before.
    fn start(self: &Arc<Self>, id: u64, source: &LayerSource) -> watch::Receiver<Outcome> {
        let (sender, receiver) = watch::channel(None);
        let joined = self.states(|states| match states.get(&id) {
            Some(State::Starting(running)) => Some(running.clone()),
            Some(State::Up(mounted)) => {
                sender.send_replace(Some(Ok(Arc::clone(mounted))));
                Some(receiver.clone())
            }
            None => {
                states.insert(id, State::Starting(receiver.clone()));
                None
            }
        });
        if let Some(joined) = joined {
            return joined;
        }
        let (table, source) = (Arc::clone(self), source.clone());
        self.tasks.spawn(async move {
            let result = table.mount(id, &source).await.map(Arc::new);
            let unwanted = table.states(|states| {
                // Removed or shut down meanwhile: then nobody else will unmount it.
                let wanted = matches!(states.get(&id), Some(State::Starting(_)));
                match &result {
                    Ok(mounted) if wanted => {
                        states.insert(id, State::Up(Arc::clone(mounted)));
                    }
                    Err(_) if wanted => {
                        states.remove(&id);
                    }
                    _ => {}
                }
                !wanted
            });
            if let (true, Ok(mounted)) = (unwanted, &result) {
                mounted.unmount().await;
            }
            sender.send_replace(Some(result));
        });
        receiver
    }

    async fn mount(&self, id: u64, source: &LayerSource) -> Result<Mounted, LayerError> {
        let began = Instant::now();
        let layer = tokio::select! {
            () = self.stop.cancelled() => return Err(LayerError("the snapshotter is shutting down".into())),
            opened = self.backend.open(source) => opened?,
        };
        match layer.take_over(&self.dirs.fs(id)).await {
            Ok(Some(mount)) => return Ok(Mounted::new(layer, mount)),
            Ok(None) => {}
            Err(error) => tracing::warn!(id, %error, "a lazy layer cannot be taken over: mounting it anew"),
        }
        let dirs = self.dirs.clone();
        let at = tokio::task::spawn_blocking(move || {
            // Whatever lies there is dead or another's, else it would have been taken over.
            dirs.unmount(id).map_err(|error| LayerError(error.to_string()))?;
            let at = dirs.fs(id);
            std::fs::create_dir_all(&at).map_err(|error| LayerError(error.to_string()))?;
            Ok(at)
        });
        let at = at.await.map_err(|error| LayerError(error.to_string()))??;
        let mount = layer.mount(&at).await?;
        let mounted = Mounted::new(layer, mount);
        mounted.took(began.elapsed());
        Ok(mounted)
    }
}
