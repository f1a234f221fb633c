//! Whether a container that starts now will find its bytes.
//!
//! A layer that is not all here needs somebody who has the rest. If nobody was heard of for a while, they are asked, all
//! layers' at once; if none answers, the container does not start: it would stop in the middle, at a place that nobody
//! expects. Layers that are all here need nobody.
//!
//! containerd's garbage collection waits for each `Prepare`, so that one does not wait long: what is not known by then is
//! left to the `Mounts` that comes before every start.

use std::sync::Arc;
use std::time::Duration;

use futures::future::try_join_all;

use super::{SnapshotError, Snapshots};
use crate::layer::LayerError;
use crate::meta::Record;

/// How long `Prepare` waits for an answer.
const PREPARE_WAIT: Duration = Duration::from_millis(1500);
/// How long `Mounts` does.
const MOUNTS_WAIT: Duration = Duration::from_secs(15);

/// Which call asks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Asks {
    /// One that another follows before the start.
    Prepare,
    /// The last before the start.
    Mounts,
}

impl Snapshots {
    /// Asks for those of `rows` that are lazy and not all here.
    ///
    /// # Errors
    /// [`SnapshotError::Unavailable`] for the first that nobody has.
    pub(super) async fn check(
        &self,
        rows: &[(String, Arc<Record>)],
        asks: Asks,
    ) -> Result<(), SnapshotError> {
        let mounted = rows.iter().filter_map(|(name, row)| Some((name, self.table.get(row.id)?)));
        let wait = if asks == Asks::Prepare { PREPARE_WAIT } else { MOUNTS_WAIT };
        let checks = mounted.map(async |(name, mounted)| {
            let error = match tokio::time::timeout(wait, mounted.layer.check()).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => error,
                Err(_) if asks == Asks::Prepare => return Ok(()),
                Err(_) => LayerError(format!("nobody who has it answers within {} s", wait.as_secs())),
            };
            tracing::warn!(snapshot = %name, %error, "a lazy layer is not all here and cannot be fetched");
            Err(SnapshotError::Unavailable { name: name.clone(), error })
        });
        try_join_all(checks).await.map(|_| ())
    }
}
