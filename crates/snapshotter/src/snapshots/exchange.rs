//! Putting other bytes into a committed snapshot.
//!
//! The new layer is mounted in a directory of its own, and the snapshot's row then names that directory: one step on
//! disk, and whoever is told mounts from then on is told the new place. Nothing is done to the old mount: a container
//! that runs on it keeps its files. It goes from the directory tree when who was told of it had time to mount it.

use std::sync::Arc;
use std::time::Duration;

use super::{SnapshotError, Snapshots};
use crate::claims::Counters;
use crate::labels::LayerSource;
use crate::layer::LayerError;
use crate::meta::{Record, Reservation};
use crate::mounted::Mounted;

/// How long an old mount stays for those who were told of it and have not mounted it yet.
const LINGER: Duration = Duration::from_mins(1);

impl Snapshots {
    /// Puts `source` into the snapshot `name`, if that still is what the caller saw. Once begun it goes to its end,
    /// whoever waits.
    ///
    /// # Errors
    /// That the layer cannot be opened or mounted.
    pub(super) async fn exchange(
        self: &Arc<Self>,
        name: &str,
        seen: Arc<Record>,
        source: LayerSource,
    ) -> Result<(), SnapshotError> {
        let (this, owned) = (Arc::clone(self), name.to_owned());
        let task = self.tasks.spawn(async move { this.run_exchange(&owned, &seen, source).await });
        let ended = task.await.unwrap_or_else(|error| Err(LayerError(error.to_string())));
        ended.map_err(|error| SnapshotError::Unavailable { name: name.to_owned(), error })
    }

    async fn run_exchange(
        self: &Arc<Self>,
        name: &str,
        seen: &Record,
        source: LayerSource,
    ) -> Result<(), LayerError> {
        let layer = self.resolve(source.clone()).await?;
        let reservation = self.meta.reserve();
        let id = reservation.id();
        let dirs = self.dirs.clone();
        let made = tokio::task::spawn_blocking(move || dirs.make(id, None, true)).await;
        made.map_err(|error| LayerError(error.to_string()))?
            .map_err(|error| LayerError(error.to_string()))?;
        let mount = match layer.mount(&self.dirs.fs(id)).await {
            Ok(mount) => mount,
            Err(error) => {
                self.discard(reservation).await;
                return Err(error);
            }
        };
        let mounted = Arc::new(Mounted::new(layer, mount));
        // Before the row: whoever sees it must find its mount. The old directory belongs to nobody after it.
        self.table.adopt(id, Arc::clone(&mounted));
        let old = self.meta.hold(seen.id);
        let (meta, owned, row, put) = (Arc::clone(&self.meta), name.to_owned(), seen.clone(), source.clone());
        let exchanged = tokio::task::spawn_blocking(move || meta.exchange(&owned, &row, put, id)).await;
        let exchanged = match exchanged {
            Ok(Ok(exchanged)) => Ok(exchanged),
            Ok(Err(error)) => Err(LayerError(error.to_string())),
            Err(error) => Err(LayerError(error.to_string())),
        };
        if !matches!(exchanged, Ok(true)) {
            // Somebody else exchanged or removed it.
            self.table.take(id);
            mounted.unmount().await;
            self.discard(reservation).await;
            return exchanged.map(|_| ());
        }
        if let Some(claims) = &self.claims {
            Counters::count(&claims.counters().exchanged);
        }
        let had = seen.source.as_ref();
        tracing::warn!(
            snapshot = name,
            was = had.map(|had| had.layer.to_string()), was_from = had.map(|had| had.reference.as_str()),
            layer = %source.layer, image = source.reference,
            "a snapshot held what its chain ID does not stand for: exchanged for the layer that was verified"
        );
        self.retire(old);
        Ok(())
    }

    /// Takes an old mount away after a while. At the end of this process it goes with all others, or is left to the
    /// next.
    fn retire(self: &Arc<Self>, old: Reservation) {
        let this = Arc::clone(self);
        self.tasks.spawn(async move {
            tokio::select! {
                () = this.stop.cancelled() => return,
                () = tokio::time::sleep(LINGER) => {}
            }
            if let Some(mounted) = this.table.take(old.id()) {
                mounted.unmount().await;
            }
            this.discard(old).await;
        });
    }

    /// Deletes a directory that belongs to nobody once the reservation ends.
    async fn discard(&self, reservation: Reservation) {
        let dirs = self.dirs.clone();
        let deleted = tokio::task::spawn_blocking(move || dirs.delete(reservation.id())).await;
        if let Ok(Err(error)) = deleted {
            tracing::warn!(%error, "a directory stays until the next cleanup");
        }
    }
}
