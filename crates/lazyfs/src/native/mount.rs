//! A layer that is mounted natively.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::{Native, is_shown};
use crate::layer::Layer;
use crate::mountpoint::detach;

/// How long an unmount waits for the superblock to go.
const LAST_CLOSE: Duration = Duration::from_millis(200);

/// A layer that the kernel shows by itself. Dropping it unmounts it; what still has files open there reads on.
pub struct NativeMount {
    pub(super) native: Arc<Native>,
    pub(super) layer: Arc<Layer>,
    pub(super) path: PathBuf,
    pub(super) dev: u64,
    pub(super) unmounted: AtomicBool,
}

impl std::fmt::Debug for NativeMount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NativeMount").field("path", &self.path).finish_non_exhaustive()
    }
}

impl NativeMount {
    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The layer that it shows.
    pub fn layer(&self) -> &Arc<Layer> {
        &self.layer
    }

    /// Takes the mount away. Nobody can open anything there any more; who has files open, or uses it below an
    /// overlay, reads on.
    ///
    /// # Errors
    /// What the system said; that nothing is mounted there is no error.
    pub async fn unmount(&self) -> io::Result<()> {
        if !self.unmounted.swap(true, Ordering::AcqRel) {
            let path = self.path.clone();
            let detached = tokio::task::spawn_blocking(move || detach(&path)).await;
            if let Err(error) = detached.unwrap_or_else(|error| Err(io::Error::other(error))) {
                self.unmounted.store(false, Ordering::Release);
                return Err(error);
            }
        }
        let until = Instant::now() + LAST_CLOSE;
        while self.is_alive() && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let inner = Arc::clone(&self.native.inner);
        let _ = tokio::task::spawn_blocking(move || inner.tidy_now()).await;
        Ok(())
    }

    /// Whether anything still shows the layer: the mount, or something that has files open in it.
    pub fn is_alive(&self) -> bool {
        let journal = self.native.inner.desk.journal();
        journal.superblocks().iter().any(|(_, superblock)| superblock.dev == self.dev && is_shown(superblock))
    }
}

impl Drop for NativeMount {
    fn drop(&mut self) {
        // Who hands over leaves its mounts where they are.
        if self.native.left.load(Ordering::Acquire) {
            return;
        }
        if !self.unmounted.swap(true, Ordering::AcqRel)
            && let Err(error) = detach(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "a layer cannot be unmounted");
        }
    }
}
