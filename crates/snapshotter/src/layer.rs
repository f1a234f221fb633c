//! What the snapshotter needs of lazy layers, and no more: open one, mount it, ask how far it is.
//!
//! The metadata half of this crate knows lazy layers through these traits alone, so that its tests can take
//! them apart without registry and FUSE. [`crate::lazy`] is the real thing.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use content::Digest;

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

    /// Deletes what lies on disk for layers that nobody uses and whose table of contents is not in `keep`.
    async fn keep_only(&self, keep: HashSet<Digest>);

    /// Makes durable what was fetched, and ends all work. Mounts are gone by then.
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

    /// How much of it is here.
    fn progress(&self) -> Progress;
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
