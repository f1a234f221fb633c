//! One layer: kept, found again, or made anew.
//!
//! What is tried, in this order, each cheaper than the next:
//!
//! 1. A layer that is kept elsewhere (non-distributable) stays there; where all that is wanted is a copy
//!    ([`crate::ConvertOptions::verbatim`]), every layer is copied.
//! 2. A layer that can be mounted lazily in the wished format already is copied as it is, once its own TOC
//!    agreed with what the manifest pins.
//! 3. The target's present image, or the local index, knows what this layer became before ([`crate::reuse`]).
//! 4. It is made: download, inflate, cut, compress and push at the same time ([`make`]). Nothing is
//!    committed at the target before the source had the digest that its manifest names, and the diffID that
//!    its config claims.
//!
//! What was made depends on the layer and the [`Recipe`](crate::options::Recipe) alone.

use std::sync::Arc;
use std::time::Instant;

use content::{Digest, Urgency};
use estargz::{Built, BuiltToc, Format, TocPlace};
use futures::StreamExt;
use registry::{Descriptor, media_type};

use crate::engine::Engine;
use crate::error::ConvertError;
use crate::pipe::{outlet, pipe};
use crate::place::{ImageSource, Place};
use crate::progress::LayerProgress;
use crate::report::{ConvertedLayer, Outcome};
use crate::reuse::{CacheEntry, Found};
use crate::toc_image::TocPart;

mod describe;
mod lazy;
mod make;

pub(crate) use lazy::mountable_toc;

use describe::oci_layer;
pub(crate) use describe::{Done, Made, OPTIONS_ANNOTATION, SOURCE_ANNOTATION, is_of_bytes};
use make::Making;

/// A layer that is under way.
struct Layer<'a> {
    before: &'a Descriptor,
    started: Instant,
    progress: Arc<dyn LayerProgress>,
}

impl Layer<'_> {
    fn report(&self, outcome: Outcome, digest: Digest, size: u64) -> ConvertedLayer {
        ConvertedLayer {
            outcome,
            source_digest: self.before.digest,
            source_size: self.before.size,
            digest,
            size,
            toc_digest: None,
            uncompressed_size: None,
            entries: None,
            seconds: self.started.elapsed().as_secs_f64(),
        }
    }

    /// As it was, in OCI's words.
    fn kept(&self, outcome: Outcome, toc: Option<TocPart>) -> Done {
        let before = self.before;
        let media_type = oci_layer(&before.media_type).unwrap_or(&before.media_type).to_owned();
        self.progress.done(outcome.as_str(), before.size);
        let mut report = self.report(outcome, before.digest, before.size);
        report.describe(before);
        Done { report, media_type, made: None, source_diff_id: None, toc }
    }

    fn found(&self, found: Found, toc: Option<TocPart>) -> Done {
        let Found { descriptor, diff_id } = found;
        self.progress.done(Outcome::Reused.as_str(), descriptor.size);
        let mut report = self.report(Outcome::Reused, descriptor.digest, descriptor.size);
        report.describe(&descriptor);
        let media_type = descriptor.media_type.clone();
        Done { report, media_type, made: Some(Made { descriptor, diff_id }), source_diff_id: None, toc }
    }
}

impl Engine<'_> {
    /// Brings a layer to the target in the wished format. `claimed` is the diffID that the image's config has
    /// for it.
    pub(crate) async fn layer(&self, before: &Descriptor, claimed: Digest) -> Result<Done, ConvertError> {
        let _slot = self.under_way.acquire().await.map_err(|_| ConvertError::Interrupted)?;
        let short: String = before.digest.hex().chars().take(12).collect();
        let layer =
            Layer { before, started: Instant::now(), progress: self.progress.layer(&short, before.size) };
        if media_type::is_foreign(&before.media_type) {
            return Ok(layer.kept(Outcome::Foreign, None));
        }
        if self.options.verbatim {
            self.bring(&self.source, before, &layer.progress).await?;
            return Ok(layer.kept(Outcome::Kept, None));
        }
        if oci_layer(&before.media_type).is_none() {
            let (digest, media_type) = (before.digest, before.media_type.clone());
            return self.leave(&layer, ConvertError::LayerType { digest, media_type }).await;
        }
        if !self.options.force {
            if let Some(done) = self.keep(&layer).await? {
                return Ok(done);
            }
            if let Some(done) = self.find(&layer, claimed).await? {
                return Ok(done);
            }
        }
        match self.make(&layer, claimed).await {
            Ok(built) => self.made(&layer, claimed, built).await,
            Err(ConvertError::Build { digest, reason }) if reason.is_unconvertible() => {
                self.leave(&layer, ConvertError::Build { digest, reason }).await
            }
            Err(error) => Err(error),
        }
    }

    /// The layer as it is, if it need not be made.
    async fn keep(&self, layer: &Layer<'_>) -> Result<Option<Done>, ConvertError> {
        let Some(lazy) = lazy::probe(&*self.source, layer.before).await? else { return Ok(None) };
        let made_so = layer.before.annotation(OPTIONS_ANNOTATION) == Some(&self.name);
        let ordered = self.recipe.ranks.is_some() && !made_so;
        if lazy.kind != lazy::wished(&self.recipe.layer) || (ordered && !self.options.reuse) {
            return Ok(None);
        }
        let mut toc = None;
        let mut landmark = lazy.landmark;
        if self.recipe.layer.toc == TocPlace::External {
            let Some(json) = self.source_toc(layer.before).await? else { return Ok(None) };
            landmark = lazy::landmark(&json, layer.before.size);
            toc = Some(self.put_toc(layer.before.digest, &json).await?);
        }
        if ordered && !landmark {
            return Ok(None);
        }
        self.bring(&self.source, layer.before, &layer.progress).await?;
        Ok(Some(layer.kept(Outcome::Kept, toc)))
    }

    /// What the layer became before, if the target has that or can have it without the bytes being made.
    async fn find(&self, layer: &Layer<'_>, claimed: Digest) -> Result<Option<Done>, ConvertError> {
        let digest = layer.before.digest;
        // Where a diffID must stay, one that differs from the claim is a lie, which converting finds out.
        let fits = |found: &Found| !self.recipe.keeps_diff_id() || found.diff_id == claimed;
        if let Some(earlier) = self.earlier.get().and_then(Option::as_ref)
            && let Some(found) = earlier.find(&digest, &self.name).filter(fits)
        {
            let toc = match self.recipe.layer.toc {
                TocPlace::Inside => None,
                TocPlace::External => match earlier.toc(&found.descriptor).await {
                    Some(json) => Some(self.put_toc(found.descriptor.digest, &json).await?),
                    None => return Ok(None),
                },
            };
            self.bring(&earlier.source, &found.descriptor, &layer.progress).await?;
            return Ok(Some(layer.found(found, toc)));
        }
        let Some(cache) = self.cache.as_ref().filter(|_| self.recipe.layer.toc == TocPlace::Inside) else {
            return Ok(None);
        };
        let Some(entry) = cache.get(digest, &self.name).await.filter(|entry| fits(&entry.found)) else {
            return Ok(None);
        };
        if !self.target.has(&entry.found.descriptor).await? && !self.adopt_from(&entry).await {
            return Ok(None);
        }
        Ok(Some(layer.found(entry.found, None)))
    }

    /// Takes a blob from where it was brought to before, if that is the same registry, containerd or file
    /// system.
    async fn adopt_from(&self, entry: &CacheEntry) -> bool {
        let blob = &entry.found.descriptor;
        for place in entry.places.iter().filter_map(|text| text.parse::<Place>().ok()) {
            let near = match (&place, self.target.place()) {
                (Place::Registry(from), Place::Registry(to)) => from.registry() == to.registry(),
                (from, to) => std::mem::discriminant(from) == std::mem::discriminant(to),
            };
            if !near {
                continue;
            }
            let adopted = match self.places.source(&place).await {
                Ok(source) => self.adopt(&source, blob).await,
                Err(error) => Err(error.into()),
            };
            match adopted {
                Ok(true) => return true,
                Ok(false) => {}
                Err(error) => {
                    tracing::debug!(%place, %error, "a layer that was converted before is not taken from there");
                }
            }
        }
        false
    }

    /// Keeps a layer that cannot be made as it is, if that is wished; else it is the reason to fail.
    async fn leave(&self, layer: &Layer<'_>, reason: ConvertError) -> Result<Done, ConvertError> {
        if !self.options.skip_unconvertible {
            return Err(reason);
        }
        self.warn(format!("{reason}; the layer stays as it is"));
        self.bring(&self.source, layer.before, &layer.progress).await?;
        Ok(layer.kept(Outcome::Unconvertible, None))
    }

    /// Makes the layer and commits it at the target.
    async fn make(&self, layer: &Layer<'_>, claimed: Digest) -> Result<Built, ConvertError> {
        let turn = self.turns.acquire().await.map_err(|_| ConvertError::Interrupted)?;
        let digest = layer.before.digest;
        let mut writer = self.target.begin().await?;
        let (feed, pipe) = pipe();
        let (outlet, drain) = outlet();
        let making = Making {
            options: estargz::Options { workers: Some(self.budget.workers), ..self.recipe.layer.clone() },
            ranks: self.recipe.ranks.clone(),
            temporary: self.places.temporary.clone(),
            digest,
            claimed,
        };
        let work = self.tasks.spawn_blocking(move || making.run(pipe, outlet));
        let stream = self.source.stream(layer.before, Urgency::Prefetch);
        let read = |bytes| layer.progress.read(bytes);
        let (fed, drained, worked) = tokio::join!(feed.run(stream, read), drain.run(&mut *writer), work);
        // Who failed first made the others stop: a download that broke off, or a target that takes no more,
        // is the reason for whatever the thread says of its ends.
        let built = match (fed, drained, worked) {
            (Err(reason), _, _) => Err(ConvertError::Read { digest, reason }),
            (_, Err(error), _) => Err(error.into()),
            (_, _, Ok(worked)) => worked,
            (_, _, Err(_)) => Err(ConvertError::Interrupted),
        };
        // What is left needs no memory: another layer may begin.
        drop(turn);
        let built = match built {
            Ok(built) => built,
            Err(error) => {
                writer.abort().await;
                return Err(error);
            }
        };
        layer.progress.pushing(built.size);
        let descriptor = Descriptor::new(self.recipe.layer.format.media_type(), built.digest, built.size);
        let diff_id = built.diff_id;
        self.see_through(async move { writer.commit(&descriptor, Some(&diff_id)).await }).await?;
        Ok(built)
    }

    async fn made(&self, layer: &Layer<'_>, claimed: Digest, built: Built) -> Result<Done, ConvertError> {
        let before = layer.before;
        layer.progress.done(Outcome::Converted.as_str(), built.size);
        tracing::debug!(source = %before.digest, layer = %built.digest, toc = %built.toc_digest, "converted a layer");
        let mut descriptor = Descriptor::new(self.recipe.layer.format.media_type(), built.digest, built.size);
        let mut annotations = built.annotations();
        annotations.insert(SOURCE_ANNOTATION.to_owned(), before.digest.to_string());
        annotations.insert(OPTIONS_ANNOTATION.to_owned(), self.name.clone());
        descriptor.annotations = Some(annotations);
        let mut report = layer.report(Outcome::Converted, built.digest, built.size);
        report.toc_digest =
            (self.recipe.layer.format != Format::ZstdChunkedPodman).then_some(built.toc_digest);
        report.uncompressed_size = Some(built.uncompressed_size);
        report.entries = Some(built.entries);
        let toc = match &built.toc {
            BuiltToc::External { json } => Some(self.put_toc(built.digest, json).await?),
            BuiltToc::Inside | BuiltToc::Zstd { .. } => None,
        };
        let media_type = descriptor.media_type.clone();
        // Made again of itself: then all that was said of it is still true, also what it was made of.
        let same = built.digest == before.digest
            && before.annotation(OPTIONS_ANNOTATION) == Some(&self.name)
            && built.diff_id == claimed;
        let made = (!same).then_some(Made { descriptor, diff_id: built.diff_id });
        if let (Some(cache), Some(made)) = (&self.cache, &made) {
            let found = Found { descriptor: made.descriptor.clone(), diff_id: made.diff_id };
            cache.put(before.digest, &self.name, found, self.target.place()).await;
        }
        Ok(Done { report, media_type, made, source_diff_id: Some(claimed), toc })
    }

    async fn adopt(&self, from: &Arc<dyn ImageSource>, blob: &Descriptor) -> Result<bool, ConvertError> {
        let (target, from, blob) = (Arc::clone(&self.target), Arc::clone(from), blob.clone());
        self.see_through(async move { target.adopt(&*from, &blob).await }).await
    }

    /// Brings a blob to the target as it is, without moving a byte if that can be.
    pub(crate) async fn bring(
        &self,
        from: &Arc<dyn ImageSource>,
        blob: &Descriptor,
        progress: &Arc<dyn LayerProgress>,
    ) -> Result<(), ConvertError> {
        if self.target.has(blob).await? {
            return Ok(());
        }
        match self.adopt(from, blob).await {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            // An account may read and write, and still not link: then the bytes travel.
            Err(error) => tracing::debug!(%error, "copying a blob that could not be adopted"),
        }
        let mut writer = self.target.begin().await?;
        let mut stream = from.stream(blob, Urgency::Prefetch);
        let failed = loop {
            match stream.next().await {
                None => break None,
                Some(Err(reason)) => break Some(ConvertError::Read { digest: blob.digest, reason }),
                Some(Ok(part)) => {
                    let len = part.len() as u64;
                    if let Err(error) = writer.write(part).await {
                        break Some(error.into());
                    }
                    progress.read(len);
                }
            }
        };
        match failed {
            None => {
                let blob = blob.clone();
                self.see_through(async move { writer.commit(&blob, None).await }).await
            }
            Some(error) => {
                writer.abort().await;
                Err(error)
            }
        }
    }
}
