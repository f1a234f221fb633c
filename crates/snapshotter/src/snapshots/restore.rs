//! After a restart: what lives is taken over, what does not is mounted again.
//!
//! If somebody kept the descriptors of the process before, its mounts are only waiting: they are served on, and
//! no container notices. The same goes for what has no mountpoint any more but is still used below a container's
//! overlay. All other layers are mounted again, all at once and without the network: tables of contents lie on
//! disk. One that cannot be is logged and left; the next `Mounts` that needs it tries again, and says so if it
//! fails. Nothing is ever unmounted by force.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream;

use super::{SnapshotError, Snapshots};
use crate::meta::Record;

/// Layers mounted at once.
const RESTORES_AT_ONCE: usize = 32;

/// How long the start waits for them. What is slower goes on in the background.
const RESTORE_WAIT: Duration = Duration::from_secs(5);

impl Snapshots {
    /// Brings everything back.
    ///
    /// # Errors
    /// That mounts which nobody owns cannot be taken away. A single layer is no reason to stay down.
    pub async fn restore(self: &Arc<Self>) -> Result<(), SnapshotError> {
        let lazy: Vec<u64> = self.meta.lazy().iter().map(|(_, row)| row.id).collect();
        let stale = self.blocking(move |_, dirs| Ok(dirs.unmount_others(&lazy)?)).await?;
        if stale > 0 {
            tracing::info!(mounts = stale, "took away mounts that belong to no layer");
        }
        let this = Arc::clone(self);
        let restoring = self.tasks.spawn(async move {
            let each = |(name, row): (String, Arc<Record>)| {
                let this = Arc::clone(&this);
                async move { this.bring_back(&name, &row).await }
            };
            let all = stream::iter(this.meta.lazy()).for_each_concurrent(RESTORES_AT_ONCE, each);
            // Once more at the end: what could not be taken over at its place is an orphan by then.
            let all = async {
                tokio::join!(all, this.table.backend().serve_orphans());
                this.table.backend().serve_orphans().await;
            };
            tokio::select! {
                () = this.stop.cancelled() => {}
                () = all => {}
            }
        });
        if tokio::time::timeout(RESTORE_WAIT, restoring).await.is_err() {
            tracing::warn!("some lazy layers are not mounted yet; they follow in the background");
        }
        // What a dead process left is of no hurry and no reason to fail.
        if let Err(error) = self.cleanup().await {
            tracing::warn!(%error, "could not delete what no snapshot owns");
        }
        Ok(())
    }

    async fn bring_back(&self, name: &str, row: &Record) {
        let Some(source) = &row.source else { return };
        match self.table.ensure(row.id, source).await {
            Ok(()) => tracing::debug!(snapshot = name, layer = %source.layer, "a lazy layer is back"),
            Err(error) => tracing::error!(
                snapshot = name, layer = %source.layer, image = %source.reference, %error,
                "could not mount a lazy layer again; its next use tries anew"
            ),
        }
    }
}
