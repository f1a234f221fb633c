//! Preparing a layer lazily: mount it instead of unpacking it.
//!
//! containerd asks for it with a `Prepare` that names the chain ID. The way on:
//!
//! 1. Somebody committed the same content there before: nothing to do.
//! 2. The layer's table of contents is fetched, within a bound. Too late, or not to be had: an ordinary
//!    layer then, which containerd downloads itself. The fetch goes on, so the next pull finds it.
//! 3. The layer is mounted in a new directory and committed, in one step that nobody can interrupt. There is
//!    never an active snapshot: a caller that goes away at any moment leaves nothing behind under its key.
//!
//! Only when the commit is on disk is the call answered, with `ALREADY_EXISTS`: that is how containerd is
//! told that it need not unpack anything.

use std::sync::Arc;
use std::time::Instant;

use super::{SnapshotError, Snapshots};
use crate::dirs::Dirs;
use crate::labels::{DIFF_ID, Labels, LayerRequest, LayerSource, MANIFEST_DIGEST, REMOTE, REMOTE_VALUE};
use crate::layer::{LayerError, OpenLayer};
use crate::meta::{Meta, Reservation, Slot, SlotCommit};
use crate::metrics::Reason;
use crate::mounted::{MountTable, Mounted};

/// Layers whose tables of contents are fetched at once. More wait, within their own bound.
pub(super) const RESOLVES_AT_ONCE: usize = 64;

impl Snapshots {
    /// Tries it. `None`: prepare an ordinary layer.
    pub(super) async fn prepare_remote(
        self: &Arc<Self>,
        key: &str,
        parent: &str,
        target: &str,
        labels: &Labels,
    ) -> Result<Option<String>, SnapshotError> {
        let source = match LayerRequest::from_labels(labels, target, parent) {
            LayerRequest::Lazy(source) => source,
            LayerRequest::Ordinary(reason) => {
                // Nothing is wrong with an ordinary layer: no warning.
                tracing::info!(
                    "remote-snapshot-prepared" = "false",
                    key,
                    parent,
                    reason,
                    "prepared ordinary snapshot"
                );
                self.metrics.fallback(Reason::Ordinary, "", None, "");
                return Ok(None);
            }
            LayerRequest::Wrong(error) => {
                self.fall_back((key, parent), Reason::Labels, None, &error);
                return Ok(None);
            }
        };
        let proven = match self.is_proven(target, parent, &source).await {
            Ok(proven) => proven,
            Err(error) => {
                self.fall_back((key, parent), Reason::OtherClaim, Some(&source), &error);
                return Ok(None);
            }
        };
        match self.meta.slot(target, parent, &source) {
            Slot::Same(name) => {
                self.prepared(key, parent);
                return Ok(Some(name));
            }
            Slot::Other(name) => {
                // Only one of the two tells the truth about its diffIDs, and containerd would take either. What
                // lies there may be known to be true.
                if self.holds_truth(&name, target, parent).await {
                    self.prepared(key, parent);
                    return Ok(Some(name));
                }
                // Unpacked by containerd, this one is verified.
                let error = format!("snapshot {name} holds another image's bytes for the same chain");
                self.fall_back((key, parent), Reason::OtherClaim, Some(&source), &error);
                self.dispute(&name, &source);
                return Ok(None);
            }
            Slot::Free => {}
        }
        if !proven && self.requires_proof() {
            let error =
                format!("layer {} was never hashed whole, and require_diffid_proof = true", source.layer);
            self.fall_back((key, parent), Reason::Unproven, Some(&source), &error);
            self.begin_proof(&source);
            return Ok(None);
        }
        self.resolver.neighbours_of(&source, labels);
        match self.resolve_and_commit(parent, target, labels, source.clone()).await {
            Ok(name) => {
                self.prepared(key, parent);
                Ok(Some(name))
            }
            Err((reason, error)) => {
                self.fall_back((key, parent), reason, Some(&source), &error.0);
                Ok(None)
            }
        }
    }

    async fn resolve_and_commit(
        &self,
        parent: &str,
        target: &str,
        labels: &Labels,
        source: LayerSource,
    ) -> Result<String, (Reason, LayerError)> {
        let began = Instant::now();
        let wait = self.limits.prepare_wait;
        let (resolving, is_lowest) = tokio::join!(
            tokio::time::timeout(wait, self.resolve(source.clone())),
            tokio::time::timeout(wait, self.is_lowest(parent, labels, &source)),
        );
        if is_lowest.is_ok_and(|lowest| !lowest) {
            let error = "the client unpacks in parallel and does not tell the parent: containerd's configuration \
                         promises `rebase` for this snapshotter, take it out";
            return Err((Reason::Labels, LayerError(error.into())));
        }
        let layer = match resolving {
            Ok(Ok(layer)) => layer,
            Ok(Err(error)) => return Err((Reason::Open, error)),
            Err(_) => {
                let error = LayerError(format!(
                    "layer {} of {}: no table of contents within {} s; it is fetched on in the background",
                    source.layer,
                    source.reference,
                    wait.as_secs_f32()
                ));
                return Err((Reason::Timeout, error));
            }
        };
        let mut labels = labels.clone();
        labels.insert(REMOTE.into(), REMOTE_VALUE.into());
        let commit = Commit {
            meta: Arc::clone(&self.meta),
            table: Arc::clone(&self.table),
            dirs: self.dirs.clone(),
            reservation: self.meta.reserve(),
            target: target.to_owned(),
            parent: parent.to_owned(),
            labels,
            source,
            began,
        };
        // A task of its own: once begun it ends, whoever waits for it.
        let task = self.tasks.spawn(commit.run(layer));
        let committed = task.await.unwrap_or_else(|error| Err(LayerError(format!("mounting: {error}"))));
        committed.map_err(|error| (Reason::Mount, error))
    }

    /// The record that people count: its words and keys are stargz-snapshotter's.
    fn prepared(&self, key: &str, parent: &str) {
        self.metrics.prepared();
        tracing::info!("remote-snapshot-prepared" = "true", key, parent, "prepared remote snapshot");
    }

    /// The other one: containerd will download the layer, and says so to nobody.
    fn fall_back(
        &self,
        (key, parent): (&str, &str),
        reason: Reason,
        source: Option<&LayerSource>,
        error: &str,
    ) {
        let (image, layer) =
            source.map_or(("", None), |source| (source.reference.as_str(), Some(source.layer)));
        self.metrics.fallback(reason, image, layer, error);
        tracing::warn!(
            "remote-snapshot-prepared" = "false",
            key,
            parent,
            image,
            layer_sha = layer.map(tracing::field::display),
            reason = reason.name(),
            error,
            "failed to prepare remote snapshot"
        );
    }

    /// Whether a layer without a parent is where it belongs. containerd 2.2 leaves the parent out, and does not say so, where
    /// the configuration promises that it can come later; committed at once, such a layer would stay without. What cannot
    /// be found out counts as well.
    async fn is_lowest(&self, parent: &str, labels: &Labels, source: &LayerSource) -> bool {
        // Newer versions tell by a label, older ones and other clients tell the parent.
        let told = !parent.is_empty() || labels.contains_key(DIFF_ID);
        let manifest = labels.get(MANIFEST_DIGEST).and_then(|digest| digest.parse().ok());
        if told || manifest.is_none() {
            return true;
        }
        self.table.backend().is_lowest(source, manifest).await.unwrap_or(true)
    }

    /// Opens the layer in a task of its own, which goes on when nobody waits any more.
    pub(super) async fn resolve(&self, source: LayerSource) -> Result<Arc<dyn OpenLayer>, LayerError> {
        let shutting_down = || LayerError("the snapshotter is shutting down".into());
        let permit = Arc::clone(&self.resolving).acquire_owned().await.map_err(|_| shutting_down())?;
        let backend = Arc::clone(self.table.backend());
        let stop = self.stop.clone();
        let task = self.tasks.spawn(async move {
            let _permit = permit;
            tokio::select! {
                () = stop.cancelled() => Err(LayerError("the snapshotter is shutting down".into())),
                opened = backend.open(&source) => opened,
            }
        });
        task.await.map_err(|_| shutting_down())?
    }
}

struct Commit {
    meta: Arc<Meta>,
    table: Arc<MountTable>,
    dirs: Dirs,
    reservation: Reservation,
    target: String,
    parent: String,
    labels: Labels,
    source: LayerSource,
    /// When it was asked for.
    began: Instant,
}

impl Commit {
    async fn run(self, layer: Arc<dyn OpenLayer>) -> Result<String, LayerError> {
        let id = self.reservation.id();
        let dirs = self.dirs.clone();
        blocking(move || dirs.make(id, None, true).map_err(|error| LayerError(error.to_string()))).await?;
        let mount = match layer.mount(&self.dirs.fs(id)).await {
            Ok(mount) => mount,
            Err(error) => {
                self.discard().await;
                return Err(error);
            }
        };
        let mounted = Arc::new(Mounted::new(layer, mount));
        mounted.took(self.began.elapsed());
        // Before the commit: whoever sees the snapshot must find its mount.
        self.table.adopt(id, Arc::clone(&mounted));
        let meta = Arc::clone(&self.meta);
        let (target, parent) = (self.target.clone(), self.parent.clone());
        let (labels, source) = (self.labels.clone(), self.source.clone());
        let committed = blocking(move || {
            let committed = meta.commit_slot(&target, &parent, labels, source, id);
            committed.map_err(|error| LayerError(format!("committing the mounted layer: {error}")))
        });
        let committed = committed.await;
        if let Ok(SlotCommit::New(name)) = committed {
            return Ok(name);
        }
        self.table.take(id);
        mounted.unmount().await;
        self.discard().await;
        committed.map(|(SlotCommit::New(name) | SlotCommit::Existing(name))| name)
    }

    /// Deletes the directory, which belongs to nobody once the reservation ends.
    async fn discard(self) {
        let Self { dirs, reservation, .. } = self;
        let deleted = tokio::task::spawn_blocking(move || dirs.delete(reservation.id())).await;
        if let Ok(Err(error)) = deleted {
            tracing::warn!(%error, "a directory stays until the next cleanup");
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LayerError> + Send + 'static,
) -> Result<T, LayerError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| LayerError(error.to_string()))?
}
