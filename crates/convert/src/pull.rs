//! An image of a registry becomes an image of containerd whose layers a snapshotter mounts before their bytes
//! are here.
//!
//! containerd's own pull fetches every layer. A lazy one asks the snapshotter first, layer by layer from below:
//! `Prepare` with labels that tell what the snapshot is for ([`labels`]). The answer "exists already" means that
//! the layer is mounted, and nothing is fetched. A snapshot to be filled means an ordinary layer: then its blob
//! goes into the content store, compared with its digest, and containerd unpacks it ([`fetch`], [`layers`]).
//! Unlike containerd's unpacker, which begins to fetch everything above the first ordinary layer, this one
//! fetches no layer that may yet be mounted.
//!
//! Everything that is made is held by one lease. The name comes last; before it there is nothing to be seen,
//! and whoever stops earlier gives the lease back, and with it all that was made.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use content::Digest;
use registry::{Descriptor, Index, Reference, media_type};
use tokio_util::sync::CancellationToken;

use crate::error::ConvertError;
use crate::place::{ContainerdShelf, ImageSource, Place, Places};
use crate::plan::{Image, document, no_platform, pick, platforms};
use crate::platform::{self, PlatformSpec};
use crate::progress::Progress;

mod fetch;
mod labels;
mod layers;
mod report;

use fetch::Fetches;
pub use report::{PullReport, PulledAs, PulledLayer};

/// How long containerd may take to put away what a pull that failed has brought.
const PUTTING_AWAY: Duration = Duration::from_secs(20);

/// What begins the label that keeps the snapshots of a config.
const KEEPS_SNAPSHOT: &str = "containerd.io/gc.ref.snapshot.";

/// How an image is pulled.
#[derive(Clone, Debug)]
pub struct PullOptions {
    /// containerd's name of the snapshotter.
    pub snapshotter: String,
    /// Which image of an index; `None` for this machine's.
    pub platform: Option<PlatformSpec>,
    /// Bytes from its beginning that the snapshotter shall fetch at once of a layer that has no landmark; 0 for
    /// what its own configuration says.
    pub prefetch: u64,
    /// Cancelled when the image is not wanted any more: the pull ends with [`ConvertError::Interrupted`], and
    /// nothing is left.
    pub stop: CancellationToken,
}

impl Default for PullOptions {
    fn default() -> Self {
        Self {
            snapshotter: "stargz".to_owned(),
            platform: None,
            prefetch: labels::PREFETCH_DEFAULT,
            stop: CancellationToken::new(),
        }
    }
}

/// Pulls `reference` from its registry into the containerd of `places`.
///
/// # Errors
/// [`ConvertError`]; then the name stands for what it stood for before.
pub async fn pull(
    places: &Places,
    reference: &Reference,
    options: &PullOptions,
    progress: &dyn Progress,
) -> Result<PullReport, ConvertError> {
    let started = Instant::now();
    let opening = async {
        // Asked first because it is near: whether there is a containerd is known at once.
        let name = reference.to_string();
        let shelf = ContainerdShelf::open(&places.containerd, &name, &options.snapshotter).await?;
        let source = places.source(&Place::Registry(reference.clone())).await?;
        let wanted = Wanted::read(&*source, options.platform.as_ref()).await?;
        Ok((Arc::new(shelf), source, wanted))
    };
    let (shelf, source, wanted) = unless_stopped(&options.stop, opening).await?;
    let mut pulling = Pulling::new(reference, options, progress, shelf, source, wanted);
    let layers = unless_stopped(&options.stop, pulling.prepare()).await;
    let layers = match layers {
        // From here on it is a matter of one request, which is not broken off half way.
        Ok(layers) => pulling.shelf.publish(&pulling.wanted.root).await.map(|()| layers).map_err(Into::into),
        Err(error) => Err(error),
    };
    pulling.fetches.end().await;
    match layers {
        Ok(layers) => Ok(pulling.report(&places.containerd.namespace, layers, started)),
        Err(error) => {
            pulling.put_away().await;
            Err(error)
        }
    }
}

async fn unless_stopped<T>(
    stop: &CancellationToken,
    work: impl Future<Output = Result<T, ConvertError>>,
) -> Result<T, ConvertError> {
    tokio::select! {
        biased;
        () = stop.cancelled() => Err(ConvertError::Interrupted),
        done = work => done,
    }
}

/// The image that was asked for.
pub(crate) struct Wanted {
    /// What the name stands for.
    root: Descriptor,
    root_bytes: Bytes,
    /// The image for the platform; the root itself, or one that it names.
    pub(crate) image: Image,
    manifest_bytes: Bytes,
    /// The place of the image in the index.
    place: Option<usize>,
}

impl Wanted {
    /// Reads the documents of the image for `spec`; for this machine if there is none.
    pub(crate) async fn read(
        source: &dyn ImageSource,
        spec: Option<&PlatformSpec>,
    ) -> Result<Self, ConvertError> {
        let here = PlatformSpec::here();
        let spec = spec.unwrap_or(&here);
        let (root, root_bytes) = source.root().await?;
        if !media_type::is_index(&root.media_type) {
            let image = Image::read(source, &root, &root_bytes).await?;
            // An image that does not say for which machine it is may be for this one.
            if let Some(platform) = image.platform.as_ref().filter(|platform| !spec.matches(platform)) {
                return Err(no_platform(source, spec, vec![platform::display(platform)]));
            }
            return Ok(Self { manifest_bytes: root_bytes.clone(), root, root_bytes, image, place: None });
        }
        let index: Index = document("index", root.digest, &root_bytes)?;
        let chosen = pick(&index, spec).ok_or_else(|| no_platform(source, spec, platforms(&index)))?;
        let place = index.manifests.iter().position(|it| it.digest == chosen.digest);
        let manifest_bytes = source.manifest(chosen).await?;
        let image = Image::read(source, chosen, &manifest_bytes).await?;
        Ok(Self { root, root_bytes, image, manifest_bytes, place })
    }
}

/// A pull under way.
struct Pulling<'a> {
    options: &'a PullOptions,
    progress: &'a dyn Progress,
    reference: &'a Reference,
    shelf: Arc<ContainerdShelf>,
    wanted: Wanted,
    fetches: Fetches,
    /// The snapshot that is being filled.
    active: Mutex<Option<String>>,
    warnings: Vec<String>,
    /// What the name stood for before.
    before: Option<Digest>,
}

impl<'a> Pulling<'a> {
    fn new(
        reference: &'a Reference,
        options: &'a PullOptions,
        progress: &'a dyn Progress,
        shelf: Arc<ContainerdShelf>,
        source: Arc<dyn ImageSource>,
        wanted: Wanted,
    ) -> Self {
        let fetches = Fetches::new(Arc::clone(&shelf), source, distribution(reference));
        let (active, warnings) = (Mutex::default(), Vec::new());
        Self { options, progress, reference, shelf, wanted, fetches, active, warnings, before: None }
    }

    /// Brings everything but the name.
    async fn prepare(&mut self) -> Result<Vec<PulledLayer>, ConvertError> {
        self.before = self.shelf.current().await?;
        self.shelf.lease().await?;
        let (manifest, config) =
            (self.wanted.image.descriptor.clone(), self.wanted.image.manifest.config.clone());
        self.document(&config, self.wanted.image.config_bytes.clone(), HashMap::new()).await?;
        let bytes = self.wanted.manifest_bytes.clone();
        self.document(&manifest, bytes, labels::of_manifest(&self.wanted.image.manifest)).await?;
        if let Some(place) = self.wanted.place {
            let bytes = self.wanted.root_bytes.clone();
            self.document(&self.wanted.root, bytes, labels::of_index(place, &manifest.digest)).await?;
        }
        let layers = self.all_layers().await?;
        if let Some(top) = layers.last() {
            let key = format!("{KEEPS_SNAPSHOT}{}", self.options.snapshotter);
            self.shelf.label(&config.digest, HashMap::from([(key, top.chain_id.to_string())])).await?;
        }
        Ok(layers)
    }

    /// Brings a document. Where it came from is told only of what was not there before.
    async fn document(
        &self,
        descriptor: &Descriptor,
        bytes: Bytes,
        mut labels: HashMap<String, String>,
    ) -> Result<(), ConvertError> {
        if !self.shelf.has(descriptor).await? {
            labels.extend([distribution(self.reference)]);
        }
        Ok(self.shelf.put(descriptor, bytes, labels).await?)
    }

    /// Tells the user something that is no failure.
    fn warn(&mut self, text: String) {
        self.progress.note(&text);
        self.warnings.push(text);
    }

    fn active(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes back what was made.
    async fn put_away(&self) {
        let key = self.active().take();
        let all = async {
            if let Some(key) = key
                && let Err(error) = self.shelf.remove(&key).await
            {
                tracing::debug!(%error, "containerd will collect an unfinished snapshot later");
            }
            self.shelf.abandon().await;
        };
        if tokio::time::timeout(PUTTING_AWAY, all).await.is_err() {
            tracing::warn!(
                "containerd did not take back in time what the pull had brought: its lease ends in a day"
            );
        }
    }

    fn report(self, namespace: &str, layers: Vec<PulledLayer>, started: Instant) -> PullReport {
        let image = &self.wanted.image;
        let platform = image.platform.as_ref().map_or_else(|| "unknown".to_owned(), platform::display);
        PullReport {
            name: self.shelf.name().to_owned(),
            digest: self.wanted.root.digest,
            manifest: image.descriptor.digest,
            platform,
            namespace: namespace.to_owned(),
            snapshotter: self.options.snapshotter.clone(),
            existed: self.before == Some(self.wanted.root.digest),
            bytes: layers.iter().map(|layer| layer.size).sum(),
            fetched_bytes: layers.iter().map(|layer| layer.fetched).sum(),
            layers,
            warnings: self.warnings,
            seconds: started.elapsed().as_secs_f64(),
        }
    }
}

/// The label by which containerd remembers in which repository it can find a blob again. Its key has no port.
fn distribution(reference: &Reference) -> (String, String) {
    let registry = reference.registry();
    let host = match registry.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => registry,
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    (format!("containerd.io/distribution.source.{host}"), reference.repository().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_is_found_again_by_host_and_repository() {
        for (reference, host, repository) in [
            ("python:3", "docker.io", "library/python"),
            ("r.example:5000/a/b:1", "r.example", "a/b"),
            ("10.0.0.2:5000/a", "10.0.0.2", "a"),
        ] {
            let (key, value) = distribution(&reference.parse().unwrap());
            assert_eq!(
                (key, value),
                (format!("containerd.io/distribution.source.{host}"), repository.to_owned())
            );
        }
    }
}
