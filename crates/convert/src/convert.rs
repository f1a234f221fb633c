//! Whole images: their documents are read, all their layers are converted side by side, and then configs,
//! manifests, TOC image and index are written, in this order, so that no name ever points to something that
//! is not whole.
//!
//! What was begun is ended: after a failure, or when the conversion is not wanted any more, every thread is
//! waited for, and the target takes back what no name needs.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use content::Digest;
use estargz::TocPlace;
use futures::future::try_join_all;
use registry::{Descriptor, Index, Manifest, media_type};
use tokio_util::sync::CancellationToken;

use crate::engine::Engine;
use crate::error::ConvertError;
use crate::layer::Done;
use crate::options::ConvertOptions;
use crate::place::{Place, Places};
use crate::plan::{Entry, Image, Plan, document, not_an_image, set_diff_ids, to_bytes};
use crate::platform;
use crate::progress::{LayerProgress, Progress, Silent};
use crate::report::{ConvertReport, ConvertedImage};
use crate::reuse::Earlier;
use crate::toc_image::TocPart;

/// Indexes within indexes that are followed when they are copied.
const MOST_NESTED: usize = 4;

/// Converts the image at `source` and writes the result to `target`, whose name then stands for it.
///
/// # Errors
/// [`ConvertError`]; then the name stands for what it stood for before.
pub async fn convert(
    places: &Places,
    source: &Place,
    target: &Place,
    options: &ConvertOptions,
    progress: &dyn Progress,
) -> Result<ConvertReport, ConvertError> {
    let started = Instant::now();
    options.check()?;
    if let Place::Registry(reference) = target
        && reference.digest().is_some()
    {
        return Err(ConvertError::DigestDestination(target.to_string()));
    }
    let opening = async {
        let source = places.source(source).await?;
        let plan = Plan::read(&*source, &options.platforms).await?;
        let target = places.target(target).await?;
        Ok((source, plan, target))
    };
    let (source, plan, target) = unless_stopped(&options.stop, opening).await?;
    let engine = Engine::new(places, source, target, options, progress);
    let images = match unless_stopped(&options.stop, engine.prepare(plan)).await {
        // From here on it is a matter of one request, which is not broken off half way.
        Ok(ready) => engine.name(ready).await,
        Err(error) => Err(error),
    };
    engine.ended(images.is_err()).await;
    let named = match images {
        Ok(named) => named,
        Err(error) => {
            engine.put_away().await;
            return Err(error);
        }
    };
    Ok(engine.report(named, started))
}

/// The outcome of `work`, unless it is not wanted any more.
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

/// All that the root names is at the target.
struct Ready {
    root: Descriptor,
    bytes: Bytes,
    tocs: Vec<TocPart>,
    images: Vec<ConvertedImage>,
    copied: usize,
}

/// The root has its name.
struct Named {
    root: Digest,
    toc_image: Option<Digest>,
    images: Vec<ConvertedImage>,
    copied: usize,
}

/// An image whose config is at the target, and whose manifest is to be.
struct Rewritten {
    descriptor: Descriptor,
    bytes: Bytes,
    report: ConvertedImage,
}

impl Engine<'_> {
    /// Brings everything to the target but the root.
    async fn prepare(&self, mut plan: Plan) -> Result<Ready, ConvertError> {
        // Who may not write learns it before the work is done, not after.
        let target = Arc::clone(&self.target);
        self.see_through(async move { target.check().await }).await?;
        for warning in std::mem::take(&mut plan.warnings) {
            self.warn(warning);
        }
        if !self.options.force {
            let external = self.options.layer.toc == TocPlace::External;
            let earlier = Earlier::read(self.places, self.target.place(), external).await;
            // It is set nowhere else.
            let _ = self.earlier.set(earlier);
        }
        let done = self.all_layers(&plan).await?;
        let (mut rewritten, mut tocs) = (Vec::new(), Vec::new());
        for image in plan.images {
            rewritten.push(self.rewrite(image, &done, &mut tocs).await?);
        }
        let Some((index, entries)) = plan.index else {
            let Some(Rewritten { descriptor: root, bytes, report }) = rewritten.pop() else {
                return Err(not_an_image(self.source.place(), media_type::OCI_INDEX));
            };
            return Ok(Ready { root, bytes, tocs, images: vec![report], copied: 0 });
        };
        let (bytes, copied) = self.index(index, entries, &rewritten).await?;
        let root = Descriptor::new(media_type::OCI_INDEX, Digest::of(&bytes), bytes.len() as u64);
        let images = rewritten.into_iter().map(|image| image.report).collect();
        Ok(Ready { root, bytes, tocs, images, copied })
    }

    /// Every layer of every image, once; the first failure stops the others.
    async fn all_layers(&self, plan: &Plan) -> Result<HashMap<LayerKey, Done>, ConvertError> {
        let mut wanted: Vec<(&Descriptor, Digest)> = Vec::new();
        let mut seen = std::collections::HashSet::new();
        for image in &plan.images {
            for (layer, claimed) in image.manifest.layers.iter().zip(&image.diff_ids) {
                if seen.insert(key(layer)) {
                    wanted.push((layer, *claimed));
                }
            }
        }
        // The largest first, so that none of them is alone at the end.
        wanted.sort_by_key(|(layer, _)| std::cmp::Reverse(layer.size));
        // Made by a loop: a closure over references would keep this from being spawned as a task.
        let mut work = Vec::with_capacity(wanted.len());
        for (layer, claimed) in &wanted {
            work.push(self.layer(layer, *claimed));
        }
        let done = try_join_all(work).await?;
        Ok(wanted.iter().map(|(layer, _)| key(layer)).zip(done).collect())
    }

    /// Writes the config, and puts the manifest together.
    async fn rewrite(
        &self,
        image: Image,
        done: &HashMap<LayerKey, Done>,
        tocs: &mut Vec<TocPart>,
    ) -> Result<Rewritten, ConvertError> {
        let Image { descriptor, mut manifest, mut config, config_bytes, platform, mut diff_ids } = image;
        let mut layers = Vec::with_capacity(manifest.layers.len());
        for (before, claimed) in manifest.layers.iter_mut().zip(&mut diff_ids) {
            let done = done.get(&key(before)).ok_or(ConvertError::Interrupted)?;
            // A layer that another platform brought was compared with that one's claim.
            if let Some(found) = done.source_diff_id.filter(|found| found != claimed) {
                return Err(ConvertError::DiffId { digest: before.digest, claimed: *claimed, found });
            }
            *before = done.descriptor(before);
            if let Some(made) = &done.made {
                *claimed = made.diff_id;
            }
            tocs.extend(done.toc.clone());
            layers.push(done.report.clone());
        }
        let config_bytes = set_diff_ids(&mut config, &diff_ids, config_bytes)?;
        media_type::OCI_CONFIG.clone_into(&mut manifest.config.media_type);
        manifest.config.digest = Digest::of(&config_bytes);
        manifest.config.size = config_bytes.len() as u64;
        manifest.config.rest.remove("data");
        manifest.media_type = Some(media_type::OCI_MANIFEST.to_owned());
        self.put_blob(&self.target, &manifest.config, config_bytes).await?;

        let bytes = to_bytes("manifest", &manifest)?;
        let digest = Digest::of(&bytes);
        let report = ConvertedImage {
            platform: platform.as_ref().map_or_else(|| "unknown".to_owned(), platform::display),
            source_digest: descriptor.digest,
            digest,
            layers,
        };
        let descriptor = Descriptor::new(media_type::OCI_MANIFEST, digest, bytes.len() as u64);
        Ok(Rewritten { descriptor, bytes, report })
    }

    /// Brings all that the index names, and puts it together. Answers how many entries were copied as well.
    async fn index(
        &self,
        mut index: Index,
        entries: Vec<Entry>,
        images: &[Rewritten],
    ) -> Result<(Bytes, usize), ConvertError> {
        let mut copied = 0;
        for (descriptor, entry) in index.manifests.iter_mut().zip(entries) {
            match entry {
                Entry::Other(bytes) => {
                    self.copy(descriptor.clone(), bytes).await?;
                    copied += 1;
                }
                Entry::Image(at) => {
                    let image = images.get(at).ok_or(ConvertError::Interrupted)?;
                    self.target.put_manifest(&image.descriptor, image.bytes.clone()).await?;
                    descriptor.media_type.clone_from(&image.descriptor.media_type);
                    descriptor.digest = image.descriptor.digest;
                    descriptor.size = image.descriptor.size;
                    descriptor.rest.remove("data");
                }
            }
        }
        index.media_type = Some(media_type::OCI_INDEX.to_owned());
        Ok((to_bytes("index", &index)?, copied))
    }

    /// Copies an entry of an index that is no image, with all that it names.
    async fn copy(&self, descriptor: Descriptor, bytes: Bytes) -> Result<(), ConvertError> {
        let silent: Arc<dyn LayerProgress> = Arc::new(Silent);
        let mut todo = vec![(descriptor, bytes, 0)];
        let mut found = Vec::new();
        while let Some((descriptor, bytes, depth)) = todo.pop() {
            if media_type::is_manifest(&descriptor.media_type) {
                let manifest: Manifest = document("manifest", descriptor.digest, &bytes)?;
                for blob in manifest.layers.iter().chain([&manifest.config]) {
                    if !media_type::is_foreign(&blob.media_type) {
                        self.bring(&self.source, blob, &silent).await?;
                    }
                }
            } else if media_type::is_index(&descriptor.media_type) && depth < MOST_NESTED {
                let index: Index = document("index", descriptor.digest, &bytes)?;
                for child in index.manifests {
                    let bytes = self.source.manifest(&child).await?;
                    todo.push((child, bytes, depth + 1));
                }
            } else {
                return Err(not_an_image(self.source.place(), &descriptor.media_type));
            }
            found.push((descriptor, bytes));
        }
        // What an index names was found after it, and has to be there before it.
        for (descriptor, bytes) in found.into_iter().rev() {
            self.target.put_manifest(&descriptor, bytes).await?;
        }
        Ok(())
    }

    /// Gives the names: the TOC image's first, because the image cannot be mounted without it.
    async fn name(&self, ready: Ready) -> Result<Named, ConvertError> {
        let Ready { root, bytes, tocs, images, copied } = ready;
        let toc_image = self.name_toc_image(tocs).await?;
        self.target.name(&root, bytes).await?;
        Ok(Named { root: root.digest, toc_image, images, copied })
    }

    fn report(&self, named: Named, started: Instant) -> ConvertReport {
        let Named { root, toc_image, images, copied } = named;
        let mut seen = HashMap::new();
        for layer in images.iter().flat_map(|image| &image.layers) {
            seen.insert(layer.source_digest, (layer.source_size, layer.size));
        }
        ConvertReport {
            source: self.source.place().to_string(),
            destination: self.target.place().to_string(),
            digest: root,
            toc_image,
            images,
            copied,
            source_bytes: seen.values().map(|(source, _)| source).sum(),
            bytes: seen.values().map(|(_, size)| size).sum(),
            warnings: self.warnings(),
            seconds: started.elapsed().as_secs_f64(),
        }
    }
}

/// What tells layers apart: the blob, and what a manifest says of it that decides what becomes of it.
type LayerKey = (Digest, String, Option<String>);

fn key(layer: &Descriptor) -> LayerKey {
    let pinned = layer.annotation(estargz::TOC_DIGEST_ANNOTATION).map(str::to_owned);
    (layer.digest, layer.media_type.clone(), pinned)
}
