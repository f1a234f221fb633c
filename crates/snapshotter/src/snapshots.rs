//! The snapshotter itself: what each call of containerd does.
//!
//! * Metadata is checked and changed in [`crate::meta`], always on a blocking thread, never with a lock held
//!   while somebody waits for the network.
//! * A directory exists before its row, and is deleted after it: a death in between leaves a directory that
//!   belongs to nobody and goes with the next cleanup, never a snapshot without files.
//! * Before mounts are answered, every lazy layer below is seen to answer, or mounted again. A container
//!   whose layers are not there must not start.
//!
//! Layers that are mounted lazily are prepared in [`remote`], brought back after a restart in [`restore`]. Whether they
//! are what an image means is asked in [`trust`], and set right in [`exchange`].

mod check;
mod exchange;
mod remote;
mod resolve;
mod restore;
mod state;
mod trust;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use content::Digest;
use futures::future::{join_all, try_join_all};
use proto::containerd::types::Mount;
use telemetry::metrics::Exposition;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::claims::{ClaimOptions, Claims};
use crate::dirs::{DirError, Dirs};
use crate::filter::{Filter, FilterError};
use crate::labels::{Labels, LayerSource, SNAPSHOT_REF};
use crate::layer::{LayerBackend, LayerError, Progress};
use crate::meta::{Kind, Meta, MetaError, Record, UpdateMask, Usage};
use crate::metrics::{self, Metrics, Shown};
use crate::mounted::MountTable;
use crate::overlay::Overlay;
use crate::usage::{UsageCache, measure};

/// How long a call waits for lazy layers below a snapshot to be mounted again. Layers whose table of
/// contents is on disk need milliseconds; only a lost one goes to the network.
const ENSURE_WAIT: Duration = Duration::from_secs(20);

/// How long background work (deleting directories, mostly) may take at the end.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(5);

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// Names, parents, kinds.
    #[error(transparent)]
    Meta(#[from] MetaError),
    /// A filter that is none.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// The layer was committed under the name that was asked for: the good end of a lazy preparation.
    #[error("target snapshot {0} already exists")]
    TargetExists(String),
    /// A lazy layer below does not answer.
    #[error("layer {name:?} unavailable: {error}")]
    Unavailable {
        /// The snapshot that holds it.
        name: String,
        /// Why.
        error: LayerError,
    },
    /// Images disagree about what lies below, and it is not known who is right.
    #[error("not handing out what stands on {parent}: {reason}")]
    Disputed {
        /// The snapshot below, or the image.
        parent: String,
        /// Who disagrees about what, and what to do.
        reason: String,
    },
    /// A directory could not be made or measured.
    #[error(transparent)]
    Dir(#[from] DirError),
    /// Reading a directory's size failed.
    #[error("measuring snapshot {name}: {error}")]
    Usage {
        /// The snapshot.
        name: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// The process is ending.
    #[error("the snapshotter is shutting down")]
    ShuttingDown,
}

/// What is wanted of a [`Snapshots`], beside its directories.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// How long `Prepare` waits for a layer's table of contents before it falls back to an ordinary layer.
    /// containerd's garbage collection, and with it every other change on the node, waits as long.
    pub prepare_wait: Duration,
    /// How long the layers of an image are held open after one of them was named. Zero: only the one is opened.
    pub resolved_for: Duration,
}

/// A lazy layer, as `pantala status` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerView {
    /// The snapshot's name.
    pub name: String,
    /// Its directory's number.
    pub id: u64,
    /// Where its bytes come from.
    pub source: LayerSource,
    /// How much of it is here, and how the kernel asks for it; `None` if it is not mounted.
    pub mounted: Option<(Progress, &'static str)>,
}

/// The snapshots of one root directory, with everything that happens to them.
pub struct Snapshots {
    meta: Arc<Meta>,
    dirs: Dirs,
    overlay: Overlay,
    table: Arc<MountTable>,
    usages: UsageCache,
    limits: Limits,
    metrics: Metrics,
    tasks: TaskTracker,
    /// Unmounting and deleting of removed snapshots. Closed from the start, so that one can wait for what is
    /// under way and go on adding.
    removals: TaskTracker,
    resolving: Arc<tokio::sync::Semaphore>,
    resolver: resolve::Resolver,
    /// Compares what images claim; nobody does, where no containerd stands behind the calls.
    claims: Option<Arc<Claims>>,
    stop: CancellationToken,
}

impl Snapshots {
    /// The snapshots in `dirs`. Background work runs until `stop`.
    pub fn new(
        meta: Arc<Meta>,
        dirs: Dirs,
        overlay: Overlay,
        backend: Arc<dyn LayerBackend>,
        limits: Limits,
        claims: Option<ClaimOptions>,
        stop: CancellationToken,
    ) -> Self {
        let tasks = TaskTracker::new();
        let claims = claims.map(|options| {
            let (backend, meta, scratch) = (Arc::clone(&backend), Arc::clone(&meta), dirs.proofs());
            Arc::new(Claims::new(options, backend, meta, scratch, tasks.clone(), stop.clone()))
        });
        let held_for = limits.resolved_for;
        let resolver = resolve::Resolver::new(Arc::clone(&backend), held_for, tasks.clone(), stop.clone());
        let table = Arc::new(MountTable::new(backend, dirs.clone(), tasks.clone(), stop.clone()));
        let resolving = Arc::new(tokio::sync::Semaphore::new(remote::RESOLVES_AT_ONCE));
        let removals = TaskTracker::new();
        removals.close();
        let usages = UsageCache::default();
        let metrics = Metrics::default();
        Self {
            meta,
            dirs,
            overlay,
            table,
            usages,
            limits,
            metrics,
            tasks,
            removals,
            resolving,
            resolver,
            claims,
            stop,
        }
    }

    /// Runs `work` on a blocking thread. It runs to its end even if the caller goes away.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Meta, &Dirs) -> Result<T, SnapshotError> + Send + 'static,
    ) -> Result<T, SnapshotError> {
        let (meta, dirs) = (Arc::clone(&self.meta), self.dirs.clone());
        let work = self.tasks.spawn_blocking(move || work(&meta, &dirs));
        work.await.unwrap_or(Err(SnapshotError::ShuttingDown))
    }

    /// `Prepare`: a writable snapshot, or a lazy layer that is committed at once.
    ///
    /// # Errors
    /// [`SnapshotError::TargetExists`] is the good end of the second kind.
    pub async fn prepare(
        self: &Arc<Self>,
        key: &str,
        parent: &str,
        labels: Labels,
    ) -> Result<Vec<Mount>, SnapshotError> {
        self.meta.check_new(key, parent)?;
        match labels.get(SNAPSHOT_REF).cloned() {
            Some(target) => {
                if let Some(name) = self.prepare_remote(key, parent, &target, &labels).await? {
                    return Err(SnapshotError::TargetExists(name));
                }
            }
            None => self.check_claims(key, parent).await?,
        }
        self.create(Kind::Active, key, parent, labels).await
    }

    /// `View`: a snapshot that cannot be written.
    ///
    /// # Errors
    /// What is wrong with key or parent.
    pub async fn view(
        self: &Arc<Self>,
        key: &str,
        parent: &str,
        labels: Labels,
    ) -> Result<Vec<Mount>, SnapshotError> {
        self.meta.check_new(key, parent)?;
        self.check_claims(key, parent).await?;
        self.create(Kind::View, key, parent, labels).await
    }

    async fn create(
        &self,
        kind: Kind,
        key: &str,
        parent: &str,
        labels: Labels,
    ) -> Result<Vec<Mount>, SnapshotError> {
        let mut below = Vec::new();
        if !parent.is_empty() {
            below.push((parent.to_owned(), self.meta.get(parent)?));
            below.extend(self.meta.ancestors(parent)?);
        }
        self.ensure(&below).await?;
        self.check(&below, check::Asks::Prepare).await?;
        let ids: Vec<u64> = below.iter().map(|(_, row)| row.id).collect();
        let reservation = self.meta.reserve();
        let id = reservation.id();
        let (key, parent, parent_id) = (key.to_owned(), parent.to_owned(), ids.first().copied());
        self.blocking(move |meta, dirs| {
            dirs.make(reservation.id(), parent_id, kind == Kind::Active)?;
            if let Err(error) = meta.create(kind, &key, &parent, labels, reservation.id()) {
                if let Err(error) = dirs.delete(reservation.id()) {
                    tracing::warn!(%error, "a directory stays until the next cleanup");
                }
                return Err(error.into());
            }
            Ok(())
        })
        .await?;
        Ok(self.overlay.mounts(&self.dirs, kind, id, &ids))
    }

    /// Sees to it that the lazy layers among these snapshots answer.
    async fn ensure(&self, rows: &[(String, Arc<Record>)]) -> Result<(), SnapshotError> {
        let began = Instant::now();
        let lazy = rows.iter().filter_map(|(name, row)| Some((name, row.id, row.source.as_ref()?)));
        let checks = lazy.map(async |(name, id, source)| {
            let ensured = tokio::time::timeout(ENSURE_WAIT, self.table.ensure(id, source)).await;
            let error = match ensured {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => error,
                Err(_) => LayerError(format!("no answer within {} s", ENSURE_WAIT.as_secs())),
            };
            tracing::warn!(snapshot = %name, layer = %source.layer, %error, "a lazy layer is unavailable");
            Err(SnapshotError::Unavailable { name: name.clone(), error })
        });
        let ensured = try_join_all(checks).await.map(|_| ());
        self.metrics.looked(began.elapsed(), ensured.is_ok());
        ensured
    }

    /// `Mounts`: how to mount an active snapshot or a view.
    ///
    /// # Errors
    /// [`SnapshotError::Unavailable`] if a layer below does not answer.
    pub async fn mounts(&self, key: &str) -> Result<Vec<Mount>, SnapshotError> {
        let row = self.meta.get(key)?;
        if row.kind == Kind::Committed {
            return Err(MetaError::NotMountable(key.to_owned()).into());
        }
        let below = self.meta.ancestors(key)?;
        self.ensure(&below).await?;
        self.check(&below, check::Asks::Mounts).await?;
        let ids: Vec<u64> = below.iter().map(|(_, row)| row.id).collect();
        Ok(self.overlay.mounts(&self.dirs, row.kind, row.id, &ids))
    }

    /// `Commit`: freezes a writable snapshot.
    ///
    /// # Errors
    /// What is wrong with name, key or parent.
    pub async fn commit(
        &self,
        name: &str,
        key: &str,
        parent: &str,
        labels: Labels,
    ) -> Result<(), SnapshotError> {
        let row = self.meta.get(key)?;
        let (name, key, parent) = (name.to_owned(), key.to_owned(), parent.to_owned());
        self.blocking(move |meta, dirs| {
            let usage = measure(&dirs.fs(row.id))
                .map_err(|error| SnapshotError::Usage { name: key.clone(), error })?;
            Ok(meta.commit(&name, &key, &parent, labels, usage)?)
        })
        .await
    }

    /// `Remove`: forgets a snapshot. Its files go in the background.
    ///
    /// # Errors
    /// That it is not there, or that others stand on it.
    pub async fn remove(&self, key: &str) -> Result<(), SnapshotError> {
        let key = key.to_owned();
        let row = self.blocking(move |meta, _| Ok(meta.remove(&key)?)).await?;
        let mounted = self.table.take(row.id);
        let dirs = self.dirs.clone();
        self.removals.spawn(async move {
            if let Some(mounted) = mounted {
                mounted.unmount().await;
            }
            let deleted = tokio::task::spawn_blocking(move || dirs.delete(row.id)).await;
            if let Ok(Err(error)) = deleted {
                tracing::warn!(%error, "a removed snapshot's directory stays until the next cleanup");
            }
        });
        Ok(())
    }

    /// `Stat`: from memory.
    ///
    /// # Errors
    /// That it is not there.
    pub fn stat(&self, key: &str) -> Result<Arc<Record>, SnapshotError> {
        Ok(self.meta.get(key)?)
    }

    /// `Update`: changes labels.
    ///
    /// # Errors
    /// That the mask names anything else.
    pub async fn update(
        &self,
        name: &str,
        labels: Labels,
        mask: UpdateMask,
    ) -> Result<Arc<Record>, SnapshotError> {
        let name = name.to_owned();
        self.blocking(move |meta, _| Ok(meta.update(&name, labels, &mask)?)).await
    }

    /// `List`: from memory.
    ///
    /// # Errors
    /// That a filter is none.
    pub fn list(&self, filters: &[String]) -> Result<Vec<(String, Arc<Record>)>, SnapshotError> {
        Ok(self.meta.list(&Filter::parse(filters)?))
    }

    /// `Usage`: measured for active snapshots, remembered for committed ones, nothing for lazy layers and
    /// views.
    ///
    /// # Errors
    /// That it is not there, or cannot be measured.
    pub async fn usage(&self, key: &str) -> Result<Usage, SnapshotError> {
        let row = self.meta.get(key)?;
        if row.kind != Kind::Active {
            return Ok(row.usage);
        }
        let measured = self.usages.get(row.id, self.dirs.fs(row.id)).await;
        measured.map_err(|error| SnapshotError::Usage { name: key.to_owned(), error })
    }

    /// `Cleanup`: deletes directories that belong to no snapshot, and what was fetched for layers that are
    /// gone.
    ///
    /// # Errors
    /// The first that cannot be deleted; the others are.
    pub async fn cleanup(&self) -> Result<(), SnapshotError> {
        self.removals.wait().await; // a layer that is still mounted is still in use
        let lazy = self.meta.lazy();
        let keep = lazy.iter().filter_map(|(_, row)| row.source.as_ref().map(|source| source.toc));
        self.table.backend().keep_only(keep.collect()).await;
        if let Some(claims) = self.claims.clone() {
            let held = lazy.iter().filter_map(|(_, row)| row.source.as_ref()).filter(|source| source.local);
            let held: HashSet<Digest> = held.map(|source| source.layer).collect();
            self.blocking(move |_, _| {
                claims.prover().keep_only(&held);
                Ok(())
            })
            .await?;
        }
        self.blocking(|meta, dirs| {
            // First the directories, then who owns them: one that is made meanwhile is not in the list.
            let orphans = meta.orphans(dirs.ids()?);
            let failures = orphans.into_iter().filter_map(|id| dirs.delete(id).err());
            failures.into_iter().next().map_or(Ok(()), |error| Err(error.into()))
        })
        .await
    }

    /// All lazy layers.
    pub fn layers(&self) -> Vec<LayerView> {
        let lazy = self.meta.lazy().into_iter().filter_map(|(name, row)| {
            let source = row.source.clone()?;
            let mounted = self.table.get(row.id).map(|up| (up.layer.progress(), up.driver));
            Some(LayerView { name, id: row.id, source, mounted })
        });
        lazy.collect()
    }

    /// What stargz-snapshotter would show of the layer mounted for directory `id`, which its image calls `layer`.
    pub fn state_of(&self, id: u64, layer: Digest) -> Option<serde_json::Value> {
        let mounted = self.table.get(id)?;
        let (status, _) = mounted.layer.numbers()?;
        serde_json::from_slice(&status.state_json(layer)).ok()
    }

    /// What is counted.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The page that Prometheus reads. Looks at every layer: not for the threads of a runtime.
    pub fn metrics_page(&self) -> String {
        let mounted: Vec<_> = self
            .meta
            .lazy()
            .into_iter()
            .filter_map(|(_, row)| {
                Some((row.source.as_ref()?.layer, self.dirs.fs(row.id), self.table.get(row.id)?))
            })
            .collect();
        let shown: Vec<Shown<'_>> = mounted
            .iter()
            .filter_map(|(layer, at, mounted)| {
                let (status, numbers) = mounted.layer.numbers()?;
                Some(Shown { at, layer: *layer, driver: mounted.driver, status, numbers })
            })
            .collect();
        let mut page = Exposition::default();
        metrics::write_layers(&mut page, &shown, &self.metrics);
        self.metrics.write(&mut page);
        self.table.backend().write_metrics(&mut page);
        if let Some(claims) = &self.claims {
            claims.write_metrics(&mut page);
        }
        metrics::write_process(&mut page);
        page.finish()
    }

    /// Where the bytes of the snapshot `name` come from: `None` for what containerd itself unpacked.
    ///
    /// # Errors
    /// That it is not there.
    pub fn source_of(&self, name: &str) -> Result<Option<LayerSource>, SnapshotError> {
        Ok(self.meta.get(name)?.source.clone())
    }

    /// Process `pid` calls: containerd, as a rule.
    pub fn called_by(&self, pid: i32) {
        if let Some(claims) = &self.claims {
            claims.locator().seen(pid);
        }
    }

    /// The directories.
    pub fn dirs(&self) -> &Dirs {
        &self.dirs
    }

    /// Ends all background work and takes every lazy layer out of the directory tree, unless another process goes on
    /// (`stays`). What was fetched stays on disk. Ends in bounded time.
    pub async fn shut_down(&self, stays: bool) {
        self.stop.cancel();
        if stays {
            self.table.backend().hand_over().await;
        } else {
            self.unmount_all().await;
        }
        self.tasks.close();
        let ending = async { tokio::join!(self.tasks.wait(), self.removals.wait()) };
        if tokio::time::timeout(SHUTDOWN_WAIT, ending).await.is_err() {
            tracing::warn!("background work of the snapshotter did not end in time");
        }
        if !stays {
            self.unmount_all().await; // what was being mounted meanwhile
        }
        self.table.backend().shut_down().await;
    }

    async fn unmount_all(&self) {
        let mounted = self.table.take_all();
        join_all(mounted.iter().map(|up| up.unmount())).await;
    }
}
