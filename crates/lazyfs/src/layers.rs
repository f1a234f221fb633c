//! The layer store of a node: one folder per table of contents, one [`Layer`] however many mounts and
//! images use it.
//!
//! ```text
//! DIR/<64 hex digits of the TOC digest>/
//!     toc.json     the table of contents, checked against its digest whenever it is read
//!     index        what follows from it, to be opened without reading it
//!     erofs-?.img  the same for the kernel's EROFS, written when it is first mounted so
//!     layer.json   length of the blob, where the TOC begins, its digest in the manifest
//!     data         sparse: the inflated bytes of all files
//!     map          which chunks of `data` are there
//! ```
//!
//! The key is the TOC digest: the manifest pins it, and it pins every byte by the chunk digests. A layer's
//! own digest pins nothing until its whole blob was hashed.
//!
//! A layer whose folder is there opens without the network; its source is opened when the first chunk is
//! missing. All tasks of the store are awaited by [`Layers::shutdown`].

mod evict;
mod open;
mod tend;

pub use open::TAIL;

use std::collections::{HashMap, HashSet};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use content::Digest;
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};

use crate::engine::{Engine, LayersOptions};
use crate::error::LayerError;
use crate::keeper::names::DATA;
use crate::keeper::{Keep, KeepHere};
use crate::layer::{Core, Layer};
use crate::numbers::Totals;
use crate::source::{ExternalToc, OpenSource};

/// What is fetched as soon as a layer is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Prefetch {
    /// Whether anything is.
    pub enabled: bool,
    /// Bytes of the blob, from its beginning, if the image has no landmark.
    pub size: u64,
}

impl Default for Prefetch {
    fn default() -> Self {
        Self { enabled: true, size: 0 }
    }
}

/// A layer that is wanted.
#[derive(Clone)]
pub struct LayerSpec {
    /// sha256 of its table of contents, from the manifest.
    pub toc_digest: Digest,
    /// Digest of its blob, from the manifest.
    pub layer_digest: Digest,
    /// Where its bytes can be read.
    pub open: OpenSource,
    /// Where its table of contents can be had if the blob says that it is kept in another image; `None` refuses such
    /// a blob.
    pub external_toc: Option<ExternalToc>,
    /// What to fetch at once.
    pub prefetch: Prefetch,
    /// Whether to fetch everything in the end, as long as somebody uses the layer.
    pub background: bool,
}

type Opening = Shared<BoxFuture<'static, Result<Arc<Layer>, LayerError>>>;

enum Slot {
    /// Somebody opens it; whoever else wants it waits for the same.
    Opening(Opening),
    /// Somebody uses it, or its last work has not ended yet.
    Open {
        /// The part of those who use it.
        users: Weak<Layer>,
        core: Weak<Core>,
    },
}

impl Slot {
    fn open(layer: &Arc<Layer>) -> Self {
        Self::Open { users: Arc::downgrade(layer), core: Arc::downgrade(layer.core()) }
    }

    /// Whether anybody uses the layer, or is about to.
    fn is_used(&self) -> bool {
        match self {
            Self::Opening(_) => true,
            Self::Open { users, .. } => users.strong_count() > 0,
        }
    }
}

/// The layer store.
pub struct Layers {
    folder: PathBuf,
    engine: Arc<Engine>,
    slots: Mutex<HashMap<Digest, Slot>>,
    sizes: Mutex<evict::Sizes>,
}

impl Layers {
    /// Opens, or makes, the store in `folder`, for layers that no process takes over from this one. Must be called
    /// inside a tokio runtime.
    ///
    /// # Errors
    /// That the folder cannot be made.
    pub fn open(folder: impl Into<PathBuf>, options: &LayersOptions) -> Result<Arc<Self>, LayerError> {
        Self::open_with(folder, options, Arc::new(KeepHere::default()))
    }

    /// Opens, or makes, the store in `folder`. The descriptors by which `keep` holds its data files are used again.
    /// Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// That the folder cannot be made.
    pub fn open_with(
        folder: impl Into<PathBuf>,
        options: &LayersOptions,
        keep: Arc<dyn Keep>,
    ) -> Result<Arc<Self>, LayerError> {
        let folder = folder.into();
        // Only for us: it holds private images too.
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder);
        made.map_err(LayerError::disk("making", &folder))?;
        let own = std::fs::File::open(&folder).map_err(LayerError::disk("opening", &folder))?;
        let engine =
            Engine::new(options.clone(), keep, own.into()).map_err(LayerError::disk("opening", &folder))?;
        let layers = Arc::new(Self { folder, engine, slots: Mutex::default(), sizes: Mutex::default() });
        tend::start(&layers.engine, &Arc::downgrade(&layers));
        Ok(layers)
    }

    /// The layer of `spec`: the one that is open, or from disk, or from its source.
    ///
    /// # Errors
    /// [`LayerError`]: above all that the blob is no eStargz blob, or another than the manifest says.
    pub async fn layer(&self, spec: LayerSpec) -> Result<Arc<Layer>, LayerError> {
        if self.engine.stop.is_cancelled() {
            return Err(LayerError::Stopped);
        }
        let toc_digest = spec.toc_digest;
        if let Some(layer) = self.open_layer(&spec) {
            layer.offer_source(spec.layer_digest, &spec.open);
            return Ok(layer);
        }
        let opening = {
            let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            let known = match slots.get(&toc_digest) {
                Some(Slot::Opening(opening)) => Some(opening.clone()),
                // Somebody opened it since we looked.
                Some(Slot::Open { users, .. }) => {
                    users.upgrade().map(|layer| futures::future::ready(Ok(layer)).boxed().shared())
                }
                None => None,
            };
            known.unwrap_or_else(|| {
                let folder = self.folder_of(&toc_digest);
                let opening = open::open(Arc::clone(&self.engine), folder, spec.clone()).boxed().shared();
                slots.insert(toc_digest, Slot::Opening(opening.clone()));
                opening
            })
        };
        let waiter = Waiter { layers: self, toc_digest, opening };
        let result = waiter.opening.clone().await;
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(slots.get(&toc_digest), Some(Slot::Opening(other)) if other.ptr_eq(&waiter.opening)) {
            match &result {
                Ok(layer) => slots.insert(toc_digest, Slot::open(layer)),
                Err(_) => slots.remove(&toc_digest),
            };
        }
        drop(slots);
        let layer = result?;
        layer.offer_source(spec.layer_digest, &spec.open);
        Ok(layer)
    }

    /// The layer, if it is open. If only its last work is under way, it is used again, and goes on.
    fn open_layer(&self, spec: &LayerSpec) -> Option<Arc<Layer>> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = slots.get_mut(&spec.toc_digest)?;
        let Slot::Open { users, core } = slot else { return None };
        if let Some(layer) = users.upgrade() {
            return Some(layer);
        }
        let layer = Layer::hold(core.upgrade()?);
        *slot = Slot::open(&layer);
        drop(slots);
        open::begin(&layer, spec.prefetch, spec.background);
        Some(layer)
    }

    /// The layers that are in use.
    pub fn all(&self) -> Vec<Arc<Layer>> {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let open = |slot: &Slot| match slot {
            Slot::Open { users, .. } => users.upgrade(),
            Slot::Opening(_) => None,
        };
        slots.values().filter_map(open).collect()
    }

    /// Whatever may have chunks that are not flushed.
    fn cores(&self) -> Vec<Arc<Core>> {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let open = |slot: &Slot| match slot {
            Slot::Open { core, .. } => core.upgrade(),
            Slot::Opening(_) => None,
        };
        slots.values().filter_map(open).collect()
    }

    /// Deletes the folders of layers that nobody uses and that are not in `keep`. Returns how many.
    ///
    /// # Errors
    /// That the store's folder cannot be listed. A folder that resists is logged and left.
    pub async fn remove_unused(self: &Arc<Self>, keep: HashSet<Digest>) -> Result<usize, LayerError> {
        let layers = Arc::clone(self);
        tokio::task::spawn_blocking(move || layers.remove_unused_now(&keep))
            .await
            .unwrap_or(Err(LayerError::Stopped))
    }

    fn remove_unused_now(&self, keep: &HashSet<Digest>) -> Result<usize, LayerError> {
        let graves = self.bury(|digest| !keep.contains(digest))?;
        Ok(dig_up(graves))
    }

    /// Renames what nobody uses of the `doomed`, under the lock that opening takes; deleting can then take its time.
    fn bury(&self, doomed: impl Fn(&Digest) -> bool) -> Result<Vec<PathBuf>, LayerError> {
        // What the process before left mounted must find its folder when it is opened again.
        let kept =
            self.engine.keep.names().map_err(LayerError::disk("asking the keeper for", &self.folder))?;
        let kept: HashSet<&str> = kept.iter().filter_map(|name| name.strip_prefix(DATA)).collect();
        let listing = std::fs::read_dir(&self.folder).map_err(LayerError::disk("listing", &self.folder))?;
        let mut graves = Vec::new();
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.retain(|_, slot| !matches!(slot, Slot::Open { core, .. } if core.strong_count() == 0));
        for entry in listing.flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            if name.ends_with(GRAVE) {
                graves.push(entry.path());
                continue;
            }
            let Ok(digest) = format!("sha256:{name}").parse::<Digest>() else { continue };
            if !doomed(&digest) || kept.contains(name) || slots.get(&digest).is_some_and(Slot::is_used) {
                continue;
            }
            // Work that has not ended yet writes to files that nobody will open again.
            slots.remove(&digest);
            let grave = self.folder.join(format!("{name}{GRAVE}"));
            match std::fs::rename(entry.path(), &grave) {
                Ok(()) => graves.push(grave),
                Err(error) => tracing::warn!(folder = name, %error, "an unused layer cannot be deleted"),
            }
        }
        Ok(graves)
    }

    /// Ends every task and makes what was fetched durable. Mounts must be gone before.
    pub async fn shutdown(&self) {
        self.engine.stop.cancel();
        self.engine.tasks.close();
        self.engine.tasks.wait().await;
        let layers = self.cores();
        let _ = tokio::task::spawn_blocking(move || tend::flush(&layers)).await;
    }

    fn folder_of(&self, toc_digest: &Digest) -> PathBuf {
        self.folder.join(toc_digest.hex())
    }

    /// What is counted of all its layers together.
    pub fn totals(&self) -> &Totals {
        &self.engine.totals
    }

    /// Where the store is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

/// Somebody who waits for a layer to be opened. If all of them go away, the half-done work goes too:
/// whoever comes later starts afresh, and not with a connection that died long ago.
struct Waiter<'a> {
    layers: &'a Layers,
    toc_digest: Digest,
    opening: Opening,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut slots = self.layers.slots.lock().unwrap_or_else(PoisonError::into_inner);
        // The last waiter and the slot itself.
        let is_last = matches!(
            slots.get(&self.toc_digest),
            Some(Slot::Opening(other)) if other.ptr_eq(&self.opening) && other.strong_count().is_none_or(|n| n <= 2)
        );
        let abandoned = is_last.then(|| slots.remove(&self.toc_digest));
        drop(slots);
        drop(abandoned);
    }
}

/// Deletes what was buried; returns how many layers.
fn dig_up(graves: Vec<PathBuf>) -> usize {
    let mut removed = 0;
    for grave in graves {
        match std::fs::remove_dir_all(&grave) {
            Ok(()) => removed += 1,
            Err(error) => {
                tracing::warn!(folder = %grave.display(), %error, "an unused layer cannot be deleted");
            }
        }
    }
    removed
}

/// Suffix of folders that are being deleted.
const GRAVE: &str = ".deleted";

impl Drop for Layers {
    fn drop(&mut self) {
        // Tasks hold the engine, not the store: without a store there is nothing to tend.
        self.engine.stop.cancel();
        self.engine.tasks.close();
    }
}
