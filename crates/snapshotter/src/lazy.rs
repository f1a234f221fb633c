//! Lazy layers for real: found at the registry, read through whatever opener the node has, shown by `lazyfs`.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use content::{ContentOpener, Digest, Fault, ReadError, ReadErrorKind};
use lazyfs::keeper::Keep;
use lazyfs::mounter::Mounter;
use lazyfs::{LayerSpec, Layers, LayersOptions, MountOptions, OpaqueXattr, OpenSource, Prefetch, TAIL};
use registry::{Client, Index, Manifest, Platform, Reference, media_type};

use crate::config::Config;
use crate::labels::{LayerSource, TOC_DIGEST};
use crate::layer::{LayerBackend, LayerError, LayerMount, OpenLayer, Progress};

/// How long the store may take to make durable what was fetched.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(5);

/// Opens layers of registries.
pub struct LazyBackend {
    layers: Arc<Layers>,
    mounter: Arc<Mounter>,
    opener: Arc<dyn ContentOpener>,
    client: Client,
    prefetch: Prefetch,
    background: bool,
    opaque_xattr: OpaqueXattr,
}

impl LazyBackend {
    /// Keeps what it fetches in `dir`, and descriptors with `keep`; `mounter` shows layers. Must be called inside a
    /// tokio runtime.
    ///
    /// # Errors
    /// That the directory cannot be made.
    pub fn open(
        dir: &Path,
        config: &Config,
        uses_user_xattr: bool,
        (mounter, keep): (Arc<Mounter>, Arc<dyn Keep>),
        opener: Arc<dyn ContentOpener>,
        client: &Client,
    ) -> Result<Self, LayerError> {
        let layers = Layers::open_with(
            dir,
            &LayersOptions {
                read_deadline: config.read_deadline,
                budget: config.disk_budget,
                keep_free: config.keep_free.unwrap_or(LayersOptions::default().keep_free),
                ..LayersOptions::default()
            },
            keep,
        )
        .map_err(told)?;
        Ok(Self {
            layers,
            mounter,
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

/// Whether an image for `platform` is the one that containerd runs here.
fn is_ours(platform: &Platform) -> bool {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    platform.os == "linux" && platform.architecture == architecture
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
            external_toc: None,
        };
        let layer = self.layers.layer(spec).await.map_err(told)?;
        let layer_digest = Some(source.layer);
        let options =
            MountOptions { opaque_xattr: self.opaque_xattr, layer_digest, ..MountOptions::default() };
        Ok(Arc::new(Lazy { layer, options, mounter: Arc::clone(&self.mounter) }))
    }

    async fn neighbours(
        &self,
        source: &LayerSource,
        manifest: Option<Digest>,
    ) -> Result<Vec<LayerSource>, LayerError> {
        let image: Reference = source.reference.parse().map_err(told)?;
        let named = manifest.map_or_else(|| image.clone(), |digest| image.clone().with_digest(digest));
        let (mut found, mut bytes) = self.client.manifest(&named).await.map_err(told)?;
        if media_type::is_index(&found.media_type) {
            let index: Index = serde_json::from_slice(&bytes).map_err(told)?;
            let ours = index.manifests.iter().find(|one| one.platform.as_ref().is_some_and(is_ours));
            let ours = ours.ok_or_else(|| told("the image has no manifest for this machine"))?;
            (found, bytes) = self.client.manifest(&image.with_digest(ours.digest)).await.map_err(told)?;
        }
        let manifest: Manifest = serde_json::from_slice(&bytes).map_err(told)?;
        if manifest.layers.iter().all(|layer| layer.digest != source.layer) {
            return Err(told(format!("manifest {} does not have layer {}", found.digest, source.layer)));
        }
        let lazy = manifest.layers.iter().filter_map(|layer| {
            let toc = layer.annotation(TOC_DIGEST)?.parse().ok()?;
            Some(LayerSource { layer: layer.digest, toc, ..source.clone() })
        });
        Ok(lazy.collect())
    }

    async fn keep_only(&self, keep: HashSet<Digest>) {
        match self.layers.remove_unused(keep).await {
            Ok(0) => {}
            Ok(removed) => tracing::info!(removed, "deleted layers that no image has any more"),
            Err(error) => tracing::warn!(%error, "could not delete unused layers"),
        }
    }

    async fn serve_orphans(&self) {
        let mounter = Arc::clone(&self.mounter);
        let orphans = tokio::task::spawn_blocking(move || mounter.orphans()).await.unwrap_or_default();
        for orphan in orphans {
            let spec = LayerSpec {
                toc_digest: orphan.toc,
                layer_digest: orphan.layer.unwrap_or(orphan.toc),
                open: Arc::new(|| {
                    let message = "no image on this machine has the layer any more";
                    let error = ReadError::new(Fault::Caller, ReadErrorKind::NotFound, message);
                    Box::pin(std::future::ready(Err(error)))
                }),
                prefetch: Prefetch { enabled: false, size: 0 },
                background: false,
                external_toc: None,
            };
            let mounter = Arc::clone(&self.mounter);
            let served = match self.layers.layer(spec).await.map_err(told) {
                Ok(layer) => {
                    let served =
                        tokio::task::spawn_blocking(move || mounter.serve(&layer).map_err(told)).await;
                    served.unwrap_or_else(|error| Err(told(error)))
                }
                Err(error) => {
                    let gave_up = tokio::task::spawn_blocking(move || mounter.abandon(&orphan.toc)).await;
                    gave_up.map_err(told).and(Err(error))
                }
            };
            match served {
                Ok(()) => {
                    tracing::info!(toc = %orphan.toc, "a layer without mountpoint is served on: it is still read");
                }
                Err(error) => {
                    tracing::error!(toc = %orphan.toc, %error, "a layer that is still read cannot be served on");
                }
            }
        }
    }

    async fn hand_over(&self) {
        self.mounter.hand_over().await;
    }

    async fn shut_down(&self) {
        // Before the fetches end: whoever waits for one is answered by the next process, and not with an error.
        let ending = async {
            self.mounter.leave().await;
            self.layers.shutdown().await;
        };
        if tokio::time::timeout(SHUTDOWN_WAIT, ending).await.is_err() {
            tracing::warn!(
                "the layer store did not come to rest in time; what was fetched last is fetched again"
            );
        }
    }
}

struct Lazy {
    layer: Arc<lazyfs::Layer>,
    options: MountOptions,
    mounter: Arc<Mounter>,
}

#[async_trait]
impl OpenLayer for Lazy {
    async fn mount(&self, at: &Path) -> Result<Box<dyn LayerMount>, LayerError> {
        let mount = self.mounter.mount(Arc::clone(&self.layer), at, &self.options).await.map_err(told)?;
        Ok(Box::new(Mounted(mount)))
    }

    async fn take_over(&self, at: &Path) -> Result<Option<Box<dyn LayerMount>>, LayerError> {
        let taken = self.mounter.take_over(Arc::clone(&self.layer), at, &self.options).await.map_err(told)?;
        Ok(taken.map(|mount| Box::new(Mounted(mount)) as Box<dyn LayerMount>))
    }

    fn progress(&self) -> Progress {
        let status = self.layer.status();
        Progress { size: status.size, fetched: status.fetched, touched: status.touched }
    }
}

struct Mounted(lazyfs::mounter::Mount);

#[async_trait]
impl LayerMount for Mounted {
    async fn unmount(&self) -> Result<(), LayerError> {
        self.0.unmount().await.map_err(told)
    }

    fn driver(&self) -> &'static str {
        self.0.driver().name()
    }
}
