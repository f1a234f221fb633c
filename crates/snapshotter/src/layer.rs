//! What the snapshotter needs of lazy layers, and no more: open one, mount it, ask how far it is.
//!
//! The metadata half of this crate knows lazy layers through these traits alone, so that its tests can take
//! them apart without registry and FUSE. [`crate::lazy`] is the real thing.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use content::Digest;
use lazyfs::{LayerStatus, Numbers};
use telemetry::metrics::Exposition;

use crate::labels::LayerSource;

/// Why a layer cannot be had. Carries the whole story: what was tried, and what happened.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct LayerError(pub String);

/// How much of a layer is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Bytes of all files, uncompressed.
    pub size: u64,
    /// Of those, how many lie on this machine's disk.
    pub fetched: u64,
    /// Of those, how many were read by somebody.
    pub touched: u64,
}

/// Opens layers.
#[async_trait]
pub trait LayerBackend: Send + Sync + 'static {
    /// Makes a layer ready to be mounted. Asks the network only if its table of contents is not on disk.
    ///
    /// # Errors
    /// That nobody has it, or that it is not what `source` says.
    async fn open(&self, source: &LayerSource) -> Result<Arc<dyn OpenLayer>, LayerError>;

    /// All layers of the image that `source` is one of, as its manifest tells them: those that can be mounted lazily.
    /// `manifest` is the manifest's digest, if the client told it.
    ///
    /// # Errors
    /// That the manifest cannot be had, or does not name the layer.
    async fn neighbours(
        &self,
        source: &LayerSource,
        manifest: Option<Digest>,
    ) -> Result<Vec<LayerSource>, LayerError> {
        let _ = (source, manifest);
        Ok(Vec::new())
    }

    /// Whether `source` is the lowest layer of its image, as its manifest tells. `manifest` is the manifest's digest, if the
    /// client told it.
    ///
    /// # Errors
    /// That the manifest cannot be had, or does not name the layer.
    async fn is_lowest(&self, source: &LayerSource, manifest: Option<Digest>) -> Result<bool, LayerError> {
        let _ = (source, manifest);
        Ok(true)
    }

    /// The whole blob `layer` as the image `reference` has it: to hash it. Nothing of it is verified.
    ///
    /// # Errors
    /// That nobody has it.
    async fn blob(&self, reference: &str, layer: &Digest) -> Result<content::OpenBlob, LayerError> {
        Err(LayerError(format!("nobody can read layer {layer} of {reference}")))
    }

    /// Deletes what lies on disk for layers that nobody uses and whose table of contents is not in `keep`.
    async fn keep_only(&self, keep: HashSet<Digest>);

    /// Serves what a process before mounted, what has no mountpoint any more, and what is still read.
    async fn serve_orphans(&self) {}

    /// Another process goes on: nothing that is mounted is unmounted from now on, by dropping neither.
    async fn hand_over(&self) {}

    /// Writes down what it counts of all layers together.
    fn write_metrics(&self, page: &mut Exposition) {
        let _ = page;
    }

    /// Makes durable what was fetched, and ends all work, in bounded time. Mounts are gone by then, or handed over.
    async fn shut_down(&self);
}

/// A layer that can be mounted.
#[async_trait]
pub trait OpenLayer: Send + Sync {
    /// Shows its files, read only, at the directory `at`.
    ///
    /// # Errors
    /// That the kernel refuses.
    async fn mount(&self, at: &Path) -> Result<Box<dyn LayerMount>, LayerError>;

    /// What a process before mounted at `at`, if that is this layer and can be served on.
    ///
    /// # Errors
    /// That it cannot be found out.
    async fn take_over(&self, at: &Path) -> Result<Option<Box<dyn LayerMount>>, LayerError> {
        let _ = at;
        Ok(None)
    }

    /// How much of it is here.
    fn progress(&self) -> Progress;

    /// Whether what is not here can still be had. Asks somebody only if nobody was heard of for a while.
    ///
    /// # Errors
    /// That nobody gives it.
    async fn check(&self) -> Result<(), LayerError> {
        Ok(())
    }

    /// All its numbers, if it has any: as they are, and what was counted.
    fn numbers(&self) -> Option<(LayerStatus, &Numbers)> {
        None
    }
}

/// A mounted layer. Dropping it unmounts as well.
#[async_trait]
pub trait LayerMount: Send + Sync {
    /// Takes it out of the directory tree, and waits a moment for files that are still open. Who has some
    /// goes on reading.
    ///
    /// # Errors
    /// That the kernel refuses.
    async fn unmount(&self) -> Result<(), LayerError>;

    /// How the kernel asks for bytes: `fuse`, `native`.
    fn driver(&self) -> &'static str;
}
