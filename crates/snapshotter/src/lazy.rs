//! Lazy layers for real: found at the registry, read through whatever opener the node has, shown by `lazyfs`.

mod manifests;
mod toc_image;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use content::{ContentOpener, Digest, Fault, ReadError, ReadErrorKind};
use lazyfs::keeper::Keep;
use lazyfs::mounter::Mounter;
use lazyfs::{
    LayerSpec, LayerStatus, Layers, LayersOptions, MountOptions, Numbers, OpaqueXattr, OpenSource, Prefetch,
    TAIL,
};
use registry::{Client, Reference};
use telemetry::metrics::Exposition;

use crate::config::Config;
use crate::labels::{LayerSource, TOC_DIGEST};
use crate::layer::{LayerBackend, LayerError, LayerMount, OpenLayer, Progress};
use crate::metrics;

/// How long the store may take to make durable what was fetched.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(5);

/// How long a registry may be silent, when a start waits for its word, before the other places of a layer are tried as
/// well; and how long those may take.
const ELSEWHERE: Duration = Duration::from_secs(1);
const ELSEWHERE_WAIT: Duration = Duration::from_secs(3);

/// Opens layers of registries.
pub struct LazyBackend {
    layers: Arc<Layers>,
    mounter: Arc<Mounter>,
    opener: Arc<dyn ContentOpener>,
    client: Client,
    manifests: manifests::Manifests,
    prefetch: Prefetch,
    background: bool,
    check_after: Duration,
    opaque_xattr: OpaqueXattr,
    /// Where copies of layers lie that could not be mounted as they are.
    copies: PathBuf,
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
                background_fetches: config
                    .background_layers
                    .unwrap_or(LayersOptions::default().background_fetches),
                keep_free: config.keep_free.unwrap_or(LayersOptions::default().keep_free),
                log_file_access: config.log_file_access,
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
            manifests: manifests::Manifests::default(),
            prefetch: Prefetch { enabled: config.prefetch, size: config.prefetch_size },
            background: config.background_fetch,
            check_after: config.check_after,
            copies: dir.with_file_name(crate::dirs::PROOFS),
            opaque_xattr: if uses_user_xattr { OpaqueXattr::User } else { OpaqueXattr::Trusted },
        })
    }

    /// How to reach the copy of a layer.
    fn copy(&self, layer: Digest) -> OpenSource {
        let dir = self.copies.clone();
        Arc::new(move || {
            let dir = dir.clone();
            Box::pin(async move { crate::claims::open_copy(&dir, layer).await })
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
            open: if source.local { self.copy(source.layer) } else { self.source(source) },
            prefetch: Prefetch { size, ..self.prefetch },
            background: self.background,
            external_toc: Some(toc_image::beside(&self.client, source)),
        };
        let layer = self.layers.layer(spec).await.map_err(told)?;
        let layer_digest = Some(source.layer);
        let options =
            MountOptions { opaque_xattr: self.opaque_xattr, layer_digest, ..MountOptions::default() };
        Ok(Arc::new(Lazy {
            layer,
            options,
            mounter: Arc::clone(&self.mounter),
            client: self.client.clone(),
            image: source.reference.parse().ok(),
            check_after: self.check_after,
        }))
    }

    async fn neighbours(
        &self,
        source: &LayerSource,
        manifest: Option<Digest>,
    ) -> Result<Vec<LayerSource>, LayerError> {
        let manifest = self.manifests.get(&self.client, source, manifest).await?;
        let lazy = manifest.layers.iter().filter_map(|layer| {
            let toc = layer.annotation(TOC_DIGEST)?.parse().ok()?;
            Some(LayerSource { layer: layer.digest, toc, ..source.clone() })
        });
        Ok(lazy.collect())
    }

    async fn is_lowest(&self, source: &LayerSource, manifest: Option<Digest>) -> Result<bool, LayerError> {
        let manifest = self.manifests.get(&self.client, source, manifest).await?;
        Ok(manifest.layers.first().is_some_and(|layer| layer.digest == source.layer))
    }

    async fn blob(&self, reference: &str, layer: &Digest) -> Result<content::OpenBlob, LayerError> {
        let image: Reference = reference.parse().map_err(told)?;
        self.opener.open(self.client.origin(&image, layer, None), TAIL).await.map_err(told)
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
                // Not the blob's own digest: this source would take the place of one that works, if an image still has it.
                layer_digest: orphan.toc,
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

    fn write_metrics(&self, page: &mut Exposition) {
        metrics::write_totals(page, self.layers.totals());
        metrics::write_hosts(page, &self.client.hosts_asked());
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
    client: Client,
    /// Where it was pulled from.
    image: Option<Reference>,
    check_after: Duration,
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

    async fn check(&self) -> Result<(), LayerError> {
        let Some(image) = self.image.as_ref().filter(|_| !self.layer.is_complete()) else { return Ok(()) };
        // Whoever gave its bytes a short time ago, another node perhaps, has them still: the registry is left in peace.
        if self.layer.numbers().heard_ago().is_some_and(|ago| ago < self.check_after) {
            return Ok(());
        }
        let layer = self.layer.layer_digest();
        let mut asked = pin!(self.client.check_blob(image, &layer, self.check_after));
        let mut answer = tokio::time::timeout(ELSEWHERE, &mut asked).await.ok();
        if let Some(Ok(())) = answer {
            return Ok(());
        }
        // Other images' registries, other nodes.
        let elsewhere = async {
            let tried = tokio::time::timeout(ELSEWHERE_WAIT, self.layer.try_absent()).await;
            tried.is_ok_and(|tried| tried.is_ok())
        };
        let mut elsewhere = pin!(elsewhere);
        let mut found = None;
        loop {
            match (&answer, found) {
                (Some(Ok(())), _) | (_, Some(true)) => return Ok(()),
                (Some(Err(error)), Some(false)) => return Err(told(error)),
                _ => tokio::select! {
                    came = &mut asked, if answer.is_none() => answer = Some(came),
                    came = &mut elsewhere, if found.is_none() => found = Some(came),
                },
            }
        }
    }

    fn numbers(&self) -> Option<(LayerStatus, &Numbers)> {
        Some((self.layer.status(), self.layer.numbers()))
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
