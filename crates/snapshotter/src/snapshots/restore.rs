//! After a restart: what was mounted is mounted again.
//!
//! Nothing of the process before lives on, so its mounts are dead and go first. Then every lazy layer is
//! mounted again, all at once and without the network: tables of contents lie on disk. One that cannot be
//! is logged and left; the next `Mounts` that needs it tries again, and says so if it fails.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream;

use super::{SnapshotError, Snapshots};

/// Layers mounted at once.
const RESTORES_AT_ONCE: usize = 16;

/// How long the start waits for them. What is slower goes on in the background.
const RESTORE_WAIT: Duration = Duration::from_secs(5);

impl Snapshots {
    /// Brings everything back.
    ///
    /// # Errors
    /// That the dead process's mounts cannot be taken away. A single layer is no reason to stay down.
    pub async fn restore(self: &Arc<Self>) -> Result<(), SnapshotError> {
        let stale = self.blocking(|_, dirs| Ok(dirs.unmount_stale()?)).await?;
        if stale > 0 {
            tracing::info!(mounts = stale, "took away the mounts of the process before");
        }
        let this = Arc::clone(self);
        let restoring = self.tasks.spawn(async move {
            let all =
                stream::iter(this.meta.lazy()).for_each_concurrent(RESTORES_AT_ONCE, async |(name, row)| {
                    let Some(source) = &row.source else { return };
                    match this.table.ensure(row.id, source).await {
                        Ok(()) => tracing::debug!(snapshot = %name, layer = %source.layer, "mounted again"),
                        Err(error) => tracing::error!(
                            snapshot = %name, layer = %source.layer, image = %source.reference, %error,
                            "could not mount a lazy layer again; its next use tries anew"
                        ),
                    }
                });
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
}
