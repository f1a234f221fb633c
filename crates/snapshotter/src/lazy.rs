//! Lazy layers for real: found at the registry, read through whatever opener the node has, shown by `lazyfs`.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use content::{ContentOpener, Digest, Fault, ReadError, ReadErrorKind};
use lazyfs::{LayerSpec, Layers, LayersOptions, MountOptions, OpaqueXattr, OpenSource, Prefetch, TAIL};
use registry::{Client, Reference};

use crate::config::Config;
use crate::labels::LayerSource;
use crate::layer::{LayerBackend, LayerError, LayerMount, OpenLayer, Progress};

/// Opens layers of registries.
pub struct LazyBackend {
    layers: Arc<Layers>,
    opener: Arc<dyn ContentOpener>,
    client: Client,
    prefetch: Prefetch,
    background: bool,
    opaque_xattr: OpaqueXattr,
}

impl LazyBackend {
    /// Keeps what it fetches in `dir`. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// That the directory cannot be made.
    pub fn open(
        dir: &Path,
        config: &Config,
        uses_user_xattr: bool,
        opener: Arc<dyn ContentOpener>,
        client: &Client,
    ) -> Result<Self, LayerError> {
        let layers = Layers::open(dir, &LayersOptions::default()).map_err(told)?;
        Ok(Self {
            layers,
            opener,
            client: client.clone(),
            prefetch: Prefetch { enabled: config.prefetch, size: config.prefetch_size },
            background: config.background_fetch,
            opaque_xattr: if uses_user_xattr { OpaqueXattr::User } else { OpaqueXattr::Trusted },
        })
    }

    /// How to reach the layer's bytes. Nothing is asked before somebody needs a byte.
    fn source(&self, source: &LayerSource) -> OpenSource {
        let (client, opener) = (self.client.clone(), Arc::clone(&self.opener));
        let (reference, layer) = (source.reference.clone(), source.layer);
        Arc::new(move || {
            let (client, opener, reference) = (client.clone(), Arc::clone(&opener), reference.clone());
            Box::pin(async move {
                let image: Reference = reference.parse().map_err(|error| {
                    let message = format!("image reference {reference:?}: {error}");
                    ReadError::new(Fault::Caller, ReadErrorKind::Other, message)
                })?;
                opener.open(client.origin(&image, &layer, None), TAIL).await
            })
        })
    }
}

fn told(error: impl std::fmt::Display) -> LayerError {
    LayerError(error.to_string())
}

#[async_trait]
impl LayerBackend for LazyBackend {
    async fn open(&self, source: &LayerSource) -> Result<Arc<dyn OpenLayer>, LayerError> {
        let size = source.prefetch.unwrap_or(self.prefetch.size);
        let spec = LayerSpec {
            toc_digest: source.toc,
            layer_digest: source.layer,
            open: self.source(source),
            prefetch: Prefetch { size, ..self.prefetch },
            background: self.background,
        };
        let layer = self.layers.layer(spec).await.map_err(told)?;
        let layer_digest = Some(source.layer);
        let options =
            MountOptions { opaque_xattr: self.opaque_xattr, layer_digest, ..MountOptions::default() };
        Ok(Arc::new(Layer { layer, options }))
    }

    async fn keep_only(&self, keep: HashSet<Digest>) {
        match self.layers.remove_unused(keep).await {
            Ok(0) => {}
            Ok(removed) => tracing::info!(removed, "deleted layers that no image has any more"),
            Err(error) => tracing::warn!(%error, "could not delete unused layers"),
        }
    }

    async fn shut_down(&self) {
        self.layers.shutdown().await;
    }
}

struct Layer {
    layer: Arc<lazyfs::Layer>,
    options: MountOptions,
}

#[async_trait]
impl OpenLayer for Layer {
    async fn mount(&self, at: &Path) -> Result<Box<dyn LayerMount>, LayerError> {
        let mount = lazyfs::mount(Arc::clone(&self.layer), at, &self.options).await.map_err(told)?;
        Ok(Box::new(FuseMount(mount)))
    }

    fn progress(&self) -> Progress {
        let status = self.layer.status();
        Progress { size: status.size, fetched: status.fetched, touched: status.touched }
    }
}

struct FuseMount(lazyfs::Mount);

#[async_trait]
impl LayerMount for FuseMount {
    async fn unmount(&self) -> Result<(), LayerError> {
        self.0.unmount().await.map_err(told)
    }

    fn driver(&self) -> &'static str {
        "fuse"
    }
}
