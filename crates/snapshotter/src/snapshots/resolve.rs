//! All layers of an image, opened together.
//!
//! containerd asks for one layer after another, and each would wait for its own round trips to the registry. The first
//! `Prepare` of an image names it: its manifest tells the other layers with the digests of their tables of contents,
//! so that all are opened at once, in the background. They are held for a while, and the next `Prepare`s find them
//! open. It is a help and no more: an image whose manifest cannot be had, or a layer that cannot be opened, is as if
//! nobody had tried, and the `Prepare` that needs it says what is wrong.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::labels::{Labels, LayerSource, MANIFEST_DIGEST};
use crate::layer::LayerBackend;

/// Layers that are opened at once. They are small reads; an image has some ten layers.
const AT_ONCE: usize = 16;
/// Images that are remembered. More than any node starts within the time that layers are held.
const IMAGES: usize = 256;
/// Layers of one image that are opened ahead. Whatever has more is no image that somebody made by hand.
const LAYERS: usize = 256;

/// Opens images ahead of their `Prepare`s.
pub(super) struct Resolver {
    backend: Arc<dyn LayerBackend>,
    /// How long a layer is held open for a `Prepare`.
    held_for: Duration,
    /// Images whose layers were opened, and until when they are held.
    images: Mutex<HashMap<String, Instant>>,
    permits: Arc<Semaphore>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Resolver {
    pub(super) fn new(
        backend: Arc<dyn LayerBackend>,
        held_for: Duration,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        let permits = Arc::new(Semaphore::new(AT_ONCE));
        Self { backend, held_for, images: Mutex::default(), permits, tasks, stop }
    }

    /// A `Prepare` names `source`: its neighbours will be wanted next. Returns at once.
    pub(super) fn neighbours_of(&self, source: &LayerSource, labels: &Labels) {
        let manifest = labels.get(MANIFEST_DIGEST).and_then(|digest| digest.parse().ok());
        if self.held_for.is_zero() || !self.is_first(&format!("{} {manifest:?}", source.reference)) {
            return;
        }
        let (backend, source) = (Arc::clone(&self.backend), source.clone());
        let (permits, held_for) = (Arc::clone(&self.permits), self.held_for);
        let (tasks, stop) = (self.tasks.clone(), self.stop.clone());
        let work = async move {
            let layers = match backend.neighbours(&source, manifest).await {
                Ok(layers) => layers,
                Err(error) => {
                    tracing::debug!(image = source.reference, %error, "the layers are not opened ahead");
                    return;
                }
            };
            // The layer itself is opened by its own `Prepare`.
            for layer in layers.into_iter().filter(|layer| layer.toc != source.toc).take(LAYERS) {
                let (backend, permits) = (Arc::clone(&backend), Arc::clone(&permits));
                let opening = async move {
                    let Ok(permit) = permits.acquire_owned().await else { return };
                    let opened = backend.open(&layer).await;
                    drop(permit);
                    match opened {
                        Ok(open) => {
                            tokio::time::sleep(held_for).await;
                            drop(open);
                        }
                        Err(error) => {
                            tracing::debug!(layer = %layer.layer, %error, "a layer cannot be opened ahead");
                        }
                    }
                };
                tasks.spawn(stop.clone().run_until_cancelled_owned(opening));
            }
        };
        self.tasks.spawn(self.stop.clone().run_until_cancelled_owned(work));
    }

    /// Whether nobody named the image a short time ago.
    fn is_first(&self, image: &str) -> bool {
        let now = Instant::now();
        let mut images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        images.retain(|_, until| *until > now);
        if images.len() >= IMAGES || images.contains_key(image) {
            return false;
        }
        images.insert(image.to_owned(), now + self.held_for);
        true
    }
}
