//! Whether an image tells the truth: every digest, every chunk, every tar header.
//!
//! Each blob is read once, as a stream, into a file that has no name, and from there it is audited
//! (`estargz::audit`) on all cores; one layer is fetched while the one before it is audited. The image's
//! documents are held against each other: sizes and digests of descriptors, the number of layers and of
//! diffIDs, the platform that the index promises. A layer that several platforms share is audited once.
//!
//! What is wrong with the image is told in the report, the first lie of each layer. What keeps the image from
//! being read is an error.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use content::{Digest, ReadErrorKind};
use estargz::audit::Claims;
use futures::stream::{self, StreamExt};
use registry::{Descriptor, media_type};
use serde_json::Value;

use crate::inspect::LookError;
use crate::inspect::find::ExternalTocs;
use crate::inspect::image::{self, Image, images};
use crate::place::ImageSource;
use crate::platform::{self, PlatformSpec};

mod layer;
mod report;
mod spool;
mod watch;

pub use report::{LayerVerdict, LieReport, PlatformVerdict, Verdict, VerifyReport};
use spool::Spool;
pub use watch::{LayerWatch, Unwatched, VerifyBars, Watch};

/// Layers under way at once: one is fetched while the other is audited. Each may take as much room on disk as
/// it has bytes.
const AT_ONCE: usize = 2;

/// How an image is verified.
#[derive(Clone, Debug)]
pub struct VerifyOptions {
    /// This platform alone.
    pub platform: Option<PlatformSpec>,
    /// An ordinary layer, or one whose TOC is not pinned, is a failure.
    pub require_lazy: bool,
    /// Where layers stay while they are audited.
    pub temporary: PathBuf,
}

/// Verifies the image `source`.
///
/// # Errors
/// [`LookError`], if the image cannot be read. What is wrong with it is told in the report.
pub async fn verify(
    source: &dyn ImageSource,
    options: &VerifyOptions,
    watch: &dyn Watch,
) -> Result<VerifyReport, LookError> {
    let found = images(source, options.platform.as_ref()).await?;
    let verifier = Verifier { source, options, watch, external: ExternalTocs::new(source) };
    let mut known = HashMap::new();
    let mut platforms = Vec::with_capacity(found.images.len());
    for image in &found.images {
        platforms.push(verifier.image(image, &mut known).await?);
    }
    Ok(VerifyReport {
        reference: source.place().to_string(),
        digest: found.root.digest,
        truthful: platforms.iter().all(PlatformVerdict::is_truthful),
        platforms,
    })
}

/// Layers that were audited for another platform, by everything that was held against them.
type Known = HashMap<(Digest, Option<Digest>, String), LayerVerdict>;

struct Verifier<'a> {
    source: &'a dyn ImageSource,
    options: &'a VerifyOptions,
    watch: &'a dyn Watch,
    external: ExternalTocs<'a>,
}

/// A layer and what the image says of it.
struct Job<'a> {
    number: usize,
    layer: &'a Descriptor,
    claims: Claims,
    /// It must be lazy, or it is a lie.
    require_lazy: bool,
}

impl Verifier<'_> {
    async fn image(&self, image: &Image, known: &mut Known) -> Result<PlatformVerdict, LookError> {
        let config = image::config(self.source, &image.manifest).await?;
        let diff_ids = diff_ids(&config);
        let problems = self.documents(image, &config, diff_ids.as_deref());
        let mut verdicts: Vec<Option<LayerVerdict>> = Vec::new();
        let mut work = Vec::new();
        for (number, layer) in (1..).zip(&image.manifest.layers) {
            let diff_id = diff_ids.as_ref().and_then(|ids| ids.get(number - 1)).copied();
            let claims = Claims {
                digest: Some(layer.digest),
                size: Some(layer.size),
                diff_id: diff_id.filter(|_| image.runs),
                annotations: layer.annotations.clone().unwrap_or_default(),
            };
            let seen = known.get(&key(&claims, layer));
            verdicts.push(seen.map(|verdict| LayerVerdict { number, ..verdict.clone() }));
            if seen.is_none() {
                // What is said about an image, and is none, is never mounted.
                let require_lazy = self.options.require_lazy && image.runs;
                work.push(self.layer(Job { number, layer, claims, require_lazy }));
            }
        }
        let mut fresh = stream::iter(work).buffered(AT_ONCE);
        for slot in verdicts.iter_mut().filter(|slot| slot.is_none()) {
            let Some(outcome) = fresh.next().await else { break };
            let (key, verdict) = outcome?;
            known.insert(key, verdict.clone());
            *slot = Some(verdict);
        }
        Ok(PlatformVerdict {
            platform: image.platform.clone(),
            digest: image.descriptor.digest,
            problems,
            layers: verdicts.into_iter().flatten().collect(),
        })
    }

    /// What manifest, config and index say about each other. Their digests were compared when they were read.
    fn documents(&self, image: &Image, config: &Value, diff_ids: Option<&[Digest]>) -> Vec<String> {
        let mut problems = Vec::new();
        let (descriptor, manifest) = (&image.descriptor, &image.manifest);
        if descriptor.size != image.manifest_len {
            problems.push(format!(
                "the manifest has {} bytes, its descriptor says {}",
                image.manifest_len, descriptor.size
            ));
        }
        if let Some(own) = manifest.media_type.as_ref().filter(|own| **own != descriptor.media_type) {
            let said = &descriptor.media_type;
            problems.push(format!("the manifest calls itself {own:?}, its descriptor says {said:?}"));
        }
        if !image.runs {
            return problems;
        }
        match diff_ids {
            None => problems.push("the config does not name the layers' diffIDs".to_owned()),
            Some(ids) if ids.len() != manifest.layers.len() => {
                let (ids, layers) = (ids.len(), manifest.layers.len());
                problems.push(format!("the config names {ids} layers, the manifest {layers}"));
            }
            Some(_) => {}
        }
        if let Some(promised) = &descriptor.platform {
            let real = image::platform_of(config);
            if (&promised.os, &promised.architecture) != (&real.os, &real.architecture) {
                let (real, promised) = (platform::display(&real), platform::display(promised));
                problems.push(format!("the config is one for {real}, the index says {promised}"));
            }
        }
        if self.options.require_lazy && manifest.layers.is_empty() {
            problems.push("there is no layer".to_owned());
        }
        problems
    }

    async fn layer(
        &self,
        job: Job<'_>,
    ) -> Result<((Digest, Option<Digest>, String), LayerVerdict), LookError> {
        let (key, require_lazy) = (key(&job.claims, job.layer), job.require_lazy);
        let mut verdict = self.audit(job).await?;
        if require_lazy {
            verdict.require_lazy();
        }
        Ok((key, verdict))
    }

    async fn audit(&self, job: Job<'_>) -> Result<LayerVerdict, LookError> {
        let Job { number, layer, claims, .. } = job;
        if media_type::is_foreign(&layer.media_type) {
            return Ok(LayerVerdict::unread(number, layer, "its blob is kept elsewhere and was not read"));
        }
        let name = crate::inspect::show::short(&layer.digest);
        let watched: Arc<dyn LayerWatch> = self.watch.layer(&name, layer.size);
        let fetched = Spool::fetch(self.source, layer, &self.options.temporary, &*watched).await;
        let spool = match fetched {
            Ok(spool) => spool,
            // The bytes arrived and are not those that were asked for: a lie, and not a failure.
            Err(LookError::Read { reason, .. }) if reason.kind() == ReadErrorKind::Corrupt => {
                return Ok(LayerVerdict::lying(number, layer, LieReport::digest(reason.to_string())));
            }
            Err(error) => return Err(error),
        };
        if !layer.media_type.contains("tar") {
            return Ok(LayerVerdict::unread(number, layer, "it is no layer of files; its digest is right"));
        }
        layer::audit(number, layer, claims, spool, &self.external, &watched, &self.options.temporary).await
    }
}

fn key(claims: &Claims, layer: &Descriptor) -> (Digest, Option<Digest>, String) {
    let told: Vec<String> = claims.annotations.iter().map(|(key, value)| format!("{key}={value}")).collect();
    (layer.digest, claims.diff_id, format!("{} {} {}", layer.size, layer.media_type, told.join("\n")))
}

/// The diffIDs of a config; `None` if it has none, or not such as can be read.
fn diff_ids(config: &Value) -> Option<Vec<Digest>> {
    serde_json::from_value(config.pointer("/rootfs/diff_ids")?.clone()).ok()
}
