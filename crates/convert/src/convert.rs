//! Whole images: indexes, manifests, configs.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use content::Digest;
use futures::future::try_join_all;
use futures::stream::{self, StreamExt};
use registry::{Client, Descriptor, Index, Manifest, Platform, Reference, media_type};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::{OnceCell, Semaphore};

use crate::error::ConvertError;
use crate::layer::{Done, Job, concurrency};
use crate::platform::{self, PlatformSpec};
use crate::progress::{LayerProgress, Progress, Silent};
use crate::report::{ConvertReport, ConvertedImage};

/// Largest config that is read, in bytes. Registries take no larger manifests either.
const MAX_CONFIG: u64 = 4 << 20;

/// How an image is converted.
#[derive(Clone, Debug)]
pub struct ConvertOptions {
    /// Convert this platform alone, and push its manifest without an index.
    pub platform: Option<PlatformSpec>,
    /// Bytes of a file per chunk; 0 for the usual 4 MiB.
    pub chunk_size: u32,
    /// Compression level from 1 (fast) to 12 (small).
    pub level: u8,
    /// Convert layers that are eStargz already as well.
    pub force: bool,
    /// Where converted layers stay until they are pushed.
    pub temporary: PathBuf,
    /// Layers under way at once; `None` for as many as memory allows, at most 4.
    pub layers_at_once: Option<NonZeroUsize>,
}

impl Default for ConvertOptions {
    fn default() -> Self {
        Self {
            platform: None,
            chunk_size: estargz::DEFAULT_CHUNK_SIZE,
            level: estargz::DEFAULT_LEVEL,
            force: false,
            temporary: std::env::temp_dir(),
            layers_at_once: None,
        }
    }
}

/// Converts the image `source` and pushes the result as `destination`.
///
/// # Errors
/// [`ConvertError`]; then `destination` is what it was before.
pub async fn convert(
    client: &Client,
    source: &Reference,
    destination: &Reference,
    options: &ConvertOptions,
    progress: &dyn Progress,
) -> Result<ConvertReport, ConvertError> {
    let started = Instant::now();
    if destination.digest().is_some() {
        return Err(ConvertError::DigestDestination(destination.to_string()));
    }
    let converter = Converter {
        job: Job {
            client: client.clone(),
            source: source.clone(),
            destination: destination.clone(),
            build: estargz::Options { chunk_size: options.chunk_size, level: options.level, workers: None },
            temporary: options.temporary.clone(),
            force: options.force,
        },
        progress,
        turns: Semaphore::new(concurrency(options.chunk_size, options.layers_at_once)),
        layers: Mutex::default(),
    };
    let (descriptor, bytes) = client.manifest(source).await?;
    // Who may not push learns it before the work is done, not after.
    client.check_push(destination).await?;
    let (digest, images, copied) = if media_type::is_index(&descriptor.media_type) {
        let index: Index = document("index", descriptor.digest, &bytes)?;
        match &options.platform {
            None => converter.index(index).await?,
            Some(wanted) => {
                let (descriptor, bytes) = converter.pick(&index, wanted).await?;
                converter.single(&descriptor, &bytes, None).await?
            }
        }
    } else {
        converter.single(&descriptor, &bytes, options.platform.as_ref()).await?
    };
    let mut seen = HashMap::new();
    for layer in images.iter().flat_map(|image| &image.layers) {
        seen.insert(layer.source_digest, (layer.source_size, layer.size));
    }
    Ok(ConvertReport {
        source: source.to_string(),
        destination: destination.to_string(),
        digest,
        images,
        copied,
        source_bytes: seen.values().map(|(source, _)| source).sum(),
        bytes: seen.values().map(|(_, size)| size).sum(),
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// What is pushed under the destination's name, the images in it, and manifests copied as they are.
type Pushed = (Digest, Vec<ConvertedImage>, usize);

/// A manifest that is ready to be pushed.
struct Ready {
    descriptor: Descriptor,
    bytes: Bytes,
    image: ConvertedImage,
}

struct Converter<'a> {
    job: Job,
    progress: &'a dyn Progress,
    turns: Semaphore,
    /// Layers by the digest of their source: platforms share some, and each is converted once.
    layers: Mutex<HashMap<Digest, Arc<OnceCell<Done>>>>,
}

impl Converter<'_> {
    /// An image of one platform, under the destination's name.
    async fn single(
        &self,
        descriptor: &Descriptor,
        bytes: &Bytes,
        wanted: Option<&PlatformSpec>,
    ) -> Result<Pushed, ConvertError> {
        let ready = self.image(descriptor, bytes, wanted).await?;
        let digest = self.push(&self.job.destination, &ready.descriptor.media_type, ready.bytes).await?;
        Ok((digest, vec![ready.image], 0))
    }

    /// The images of all platforms, one after another: their layers are converted side by side anyway.
    async fn index(&self, mut index: Index) -> Result<Pushed, ConvertError> {
        let mut images = Vec::new();
        let mut copied = 0;
        for descriptor in &mut index.manifests {
            let reference = self.at_source(descriptor.digest);
            let (_, bytes) = self.job.client.manifest(&reference).await?;
            let is_image = media_type::is_manifest(&descriptor.media_type)
                && !descriptor.platform.as_ref().is_some_and(platform::is_unknown);
            if !is_image {
                self.copy_manifest(descriptor, bytes).await?;
                copied += 1;
                continue;
            }
            let ready = self.image(descriptor, &bytes, None).await?;
            let at = self.at_destination(ready.descriptor.digest);
            self.push(&at, &ready.descriptor.media_type, ready.bytes).await?;
            descriptor.media_type = ready.descriptor.media_type;
            descriptor.digest = ready.descriptor.digest;
            descriptor.size = ready.descriptor.size;
            descriptor.rest.remove("data");
            images.push(ready.image);
        }
        index.media_type = Some(media_type::OCI_INDEX.to_owned());
        let bytes = to_bytes("index", &index)?;
        let digest = self.push(&self.job.destination, media_type::OCI_INDEX, bytes).await?;
        Ok((digest, images, copied))
    }

    /// The manifest for one platform of an index.
    async fn pick(&self, index: &Index, wanted: &PlatformSpec) -> Result<(Descriptor, Bytes), ConvertError> {
        let picked = pick(index, wanted).ok_or_else(|| ConvertError::Platform {
            reference: self.job.source.to_string(),
            wanted: wanted.to_string(),
            available: platforms(index),
        })?;
        let (_, bytes) = self.job.client.manifest(&self.at_source(picked.digest)).await?;
        Ok((picked.clone(), bytes))
    }

    /// Converts the layers and the config of a manifest, and pushes them.
    async fn image(
        &self,
        descriptor: &Descriptor,
        bytes: &Bytes,
        wanted: Option<&PlatformSpec>,
    ) -> Result<Ready, ConvertError> {
        if !media_type::is_manifest(&descriptor.media_type) {
            return Err(self.not_an_image(&descriptor.media_type));
        }
        let mut manifest: Manifest = document("manifest", descriptor.digest, bytes)?;
        let config = &manifest.config;
        if config.media_type != media_type::OCI_CONFIG && config.media_type != media_type::DOCKER_CONFIG {
            return Err(self.not_an_image(&config.media_type));
        }
        let config_bytes = read_config(&self.job.client, &self.job.source, config).await?;
        let mut config: Value = document("config", config.digest, &config_bytes)?;
        let platform = platform_of(&config);
        if let Some(wanted) = wanted.filter(|wanted| !platform.as_ref().is_some_and(|it| wanted.matches(it)))
        {
            return Err(ConvertError::Platform {
                reference: self.job.source.to_string(),
                wanted: wanted.to_string(),
                available: platform.iter().map(platform::display).collect(),
            });
        }
        let mut diff_ids = diff_ids(&config, manifest.config.digest)?;
        if diff_ids.len() != manifest.layers.len() {
            return Err(ConvertError::LayerCount {
                manifest: descriptor.digest,
                diff_ids: diff_ids.len(),
                layers: manifest.layers.len(),
            });
        }
        let done = self.layers(&manifest.layers, &diff_ids).await?;
        for ((before, claimed), done) in manifest.layers.iter_mut().zip(&mut diff_ids).zip(&done) {
            // A layer that another platform brought was compared with that one's claim.
            if let Some(found) = done.source_diff_id.filter(|found| found != claimed) {
                return Err(ConvertError::DiffId { digest: before.digest, claimed: *claimed, found });
            }
            *before = done.descriptor(before);
            *claimed = done.diff_id.unwrap_or(*claimed);
        }
        let config_bytes = set_diff_ids(&mut config, &diff_ids, config_bytes)?;
        media_type::OCI_CONFIG.clone_into(&mut manifest.config.media_type);
        manifest.config.digest = Digest::of(&config_bytes);
        manifest.config.size = config_bytes.len() as u64;
        manifest.config.rest.remove("data");
        manifest.media_type = Some(media_type::OCI_MANIFEST.to_owned());
        self.push_bytes(&manifest.config, config_bytes).await?;

        let manifest_bytes = to_bytes("manifest", &manifest)?;
        let digest = Digest::of(&manifest_bytes);
        let image = ConvertedImage {
            platform: platform.as_ref().map_or_else(|| "unknown".to_owned(), platform::display),
            source_digest: descriptor.digest,
            digest,
            layers: done.into_iter().map(|done| done.report).collect(),
        };
        let descriptor = Descriptor::new(media_type::OCI_MANIFEST, digest, manifest_bytes.len() as u64);
        Ok(Ready { descriptor, bytes: manifest_bytes, image })
    }

    /// All layers, side by side; the first failure stops the others.
    async fn layers(&self, layers: &[Descriptor], claimed: &[Digest]) -> Result<Vec<Done>, ConvertError> {
        // Made by a loop: a closure over references would keep this from being spawned as a task.
        let mut work = Vec::with_capacity(layers.len());
        for (layer, claimed) in layers.iter().zip(claimed) {
            work.push(self.layer(layer, *claimed));
        }
        try_join_all(work).await
    }

    async fn layer(&self, before: &Descriptor, claimed: Digest) -> Result<Done, ConvertError> {
        let cell = {
            let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(layers.entry(before.digest).or_default())
        };
        let work = || async {
            let _turn = self.turns.acquire().await.map_err(|_| ConvertError::Interrupted)?;
            let name: String = before.digest.hex().chars().take(12).collect();
            let progress = self.progress.layer(&name, before.size);
            self.job.layer(before, claimed, &progress).await
        };
        cell.get_or_try_init(work).await.cloned()
    }

    /// A manifest of an index that is no image, with its blobs.
    async fn copy_manifest(&self, descriptor: &Descriptor, bytes: Bytes) -> Result<(), ConvertError> {
        let silent: Arc<dyn LayerProgress> = Arc::new(Silent);
        if media_type::is_manifest(&descriptor.media_type) {
            let manifest: Manifest = document("manifest", descriptor.digest, &bytes)?;
            for blob in manifest.layers.iter().chain([&manifest.config]) {
                if !media_type::is_foreign(&blob.media_type) {
                    self.job.copy(blob, &silent).await?;
                }
            }
        } else {
            return Err(self.not_an_image(&descriptor.media_type));
        }
        let at = self.at_destination(descriptor.digest);
        self.push(&at, &descriptor.media_type, bytes).await?;
        Ok(())
    }

    async fn push_bytes(&self, descriptor: &Descriptor, bytes: Bytes) -> Result<(), ConvertError> {
        let stream = move || stream::iter([Ok(bytes.clone())]).boxed();
        let Job { client, destination, .. } = &self.job;
        Ok(client.push_blob(destination, &descriptor.digest, descriptor.size, &stream, None).await?)
    }

    async fn push(&self, at: &Reference, media_type: &str, bytes: Bytes) -> Result<Digest, ConvertError> {
        Ok(self.job.client.push_manifest(at, media_type, bytes).await?)
    }

    fn at_source(&self, digest: Digest) -> Reference {
        self.job.source.clone().with_digest(digest)
    }

    fn at_destination(&self, digest: Digest) -> Reference {
        self.job.destination.clone().with_digest(digest)
    }

    fn not_an_image(&self, media_type: &str) -> ConvertError {
        ConvertError::NotAnImage { reference: self.job.source.to_string(), media_type: media_type.to_owned() }
    }
}

/// The first image of an index for `wanted`.
pub(crate) fn pick<'a>(index: &'a Index, wanted: &PlatformSpec) -> Option<&'a Descriptor> {
    index.manifests.iter().find(|manifest| manifest.platform.as_ref().is_some_and(|it| wanted.matches(it)))
}

/// The platforms of an index, for a message.
pub(crate) fn platforms(index: &Index) -> Vec<String> {
    let platforms = index.manifests.iter().filter_map(|manifest| manifest.platform.as_ref());
    platforms.filter(|it| !platform::is_unknown(it)).map(platform::display).collect()
}

pub(crate) fn document<T: DeserializeOwned>(
    what: &'static str,
    digest: Digest,
    bytes: &[u8],
) -> Result<T, ConvertError> {
    serde_json::from_slice(bytes).map_err(|reason| ConvertError::Document { what, digest, reason })
}

fn to_bytes(what: &'static str, document: &impl serde::Serialize) -> Result<Bytes, ConvertError> {
    serde_json::to_vec(document).map(Bytes::from).map_err(|reason| ConvertError::Document {
        what,
        digest: Digest::of(b""),
        reason,
    })
}

pub(crate) async fn read_config(
    client: &Client,
    reference: &Reference,
    config: &Descriptor,
) -> Result<Bytes, ConvertError> {
    let read = client.pull_bytes(reference, config, MAX_CONFIG).await;
    read.map_err(|reason| ConvertError::Read { digest: config.digest, reason })
}

/// The platform that a config names.
pub(crate) fn platform_of(config: &Value) -> Option<Platform> {
    let text = |key: &str| config.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    Some(Platform {
        os: text("os")?.to_owned(),
        architecture: text("architecture")?.to_owned(),
        variant: text("variant").map(str::to_owned),
        rest: serde_json::Map::new(),
    })
}

fn diff_ids(config: &Value, digest: Digest) -> Result<Vec<Digest>, ConvertError> {
    let value = config.pointer("/rootfs/diff_ids").cloned().unwrap_or(Value::Array(Vec::new()));
    serde_json::from_value(value).map_err(|reason| ConvertError::Document { what: "config", digest, reason })
}

/// The config with other diffIDs; the very bytes that it had if they are the same.
fn set_diff_ids(config: &mut Value, diff_ids: &[Digest], before: Bytes) -> Result<Bytes, ConvertError> {
    let Some(slot) = config.pointer_mut("/rootfs/diff_ids") else { return Ok(before) };
    let texts: Vec<Value> = diff_ids.iter().map(|digest| Value::String(digest.to_string())).collect();
    let new = Value::Array(texts);
    if *slot == new {
        return Ok(before);
    }
    *slot = new;
    to_bytes("config", config)
}
