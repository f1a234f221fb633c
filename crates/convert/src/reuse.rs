//! Layers that were converted before, so that no layer is converted twice.
//!
//! Two places are asked. The image that the target's name stands for now says of each of its layers what it
//! was made of and how, by annotations. And a local index ([`Cache`]) remembers what this machine converted,
//! for any target.
//!
//! Neither is asked whether a blob is right, only which it is: the blob has to be at the target, or must be
//! adopted from where it was pushed to before. Whoever may write the target's image, or the user's own cache
//! directory, is believed, as is anybody who may replace the image itself. `--force` asks neither.

use std::collections::HashMap;
use std::sync::Arc;

use content::Digest;
use registry::{Descriptor, Index, Manifest, media_type};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::ConvertError;
use crate::layer::{OPTIONS_ANNOTATION, SOURCE_ANNOTATION};
use crate::place::{ImageSource, Place, Places};
use crate::plan::{MAX_CONFIG, diff_ids, document};
use crate::toc_image::TocImage;

mod cache;

pub(crate) use cache::{Cache, Entry as CacheEntry};

/// Images of the target's index that are looked at.
const MOST_IMAGES: usize = 64;

/// A layer that was made before.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Found {
    /// The blob, with all annotations that are true of its bytes.
    pub(crate) descriptor: Descriptor,
    /// What the image's config must say.
    pub(crate) diff_id: Digest,
}

/// What the target's name stands for now.
pub(crate) struct Earlier {
    pub(crate) source: Arc<dyn ImageSource>,
    layers: HashMap<(Digest, String), Found>,
    tocs: Option<TocImage>,
}

impl Earlier {
    /// Reads the image at the target; `None` if there is none, or none of ours. That it cannot be read is no
    /// failure: then everything is converted.
    pub(crate) async fn read(places: &Places, target: &Place, external: bool) -> Option<Self> {
        match Self::try_read(places, target, external).await {
            Ok(earlier) if !earlier.layers.is_empty() => Some(earlier),
            Ok(_) => None,
            Err(error) => {
                tracing::debug!(%target, %error, "the target has no image to take layers from");
                None
            }
        }
    }

    async fn try_read(places: &Places, target: &Place, external: bool) -> Result<Self, ConvertError> {
        let source = places.source(target).await?;
        let (root, bytes) = source.root().await?;
        let mut layers = HashMap::new();
        if media_type::is_index(&root.media_type) {
            let index: Index = document("index", root.digest, &bytes)?;
            let images = index.manifests.iter().filter(|it| media_type::is_manifest(&it.media_type));
            for descriptor in images.take(MOST_IMAGES) {
                let bytes = source.manifest(descriptor).await?;
                collect(&*source, descriptor.digest, &bytes, &mut layers).await?;
            }
        } else {
            collect(&*source, root.digest, &bytes, &mut layers).await?;
        }
        let tocs = if external { TocImage::beside(&*source).await? } else { None };
        Ok(Self { source, layers, tocs })
    }

    /// What `source` became by the recipe `name`.
    pub(crate) fn find(&self, source: &Digest, name: &str) -> Option<Found> {
        self.layers.get(&(*source, name.to_owned())).cloned()
    }

    /// The TOC of a layer that was found, from the TOC image beside the image.
    pub(crate) async fn toc(&self, layer: &Descriptor) -> Option<Vec<u8>> {
        let read = self.tocs.as_ref()?.json(layer).await;
        read.inspect_err(|error| tracing::debug!(%error, "converting a layer whose TOC is lost")).ok()?
    }
}

/// Puts the layers of one image that say what they were made of into `layers`.
async fn collect(
    source: &dyn ImageSource,
    digest: Digest,
    bytes: &[u8],
    layers: &mut HashMap<(Digest, String), Found>,
) -> Result<(), ConvertError> {
    let manifest: Manifest = document("manifest", digest, bytes)?;
    let ours = |layer: &Descriptor| layer.annotation(SOURCE_ANNOTATION).is_some();
    if !manifest.layers.iter().any(ours) {
        return Ok(());
    }
    let config = source.document(&manifest.config, MAX_CONFIG).await?;
    let config: Value = document("config", manifest.config.digest, &config)?;
    let diff_ids = diff_ids(&config, manifest.config.digest)?;
    for (layer, diff_id) in manifest.layers.iter().zip(diff_ids) {
        let made_of = layer.annotation(SOURCE_ANNOTATION).and_then(|text| text.parse::<Digest>().ok());
        let Some((made_of, name)) = made_of.zip(layer.annotation(OPTIONS_ANNOTATION)) else { continue };
        let mut descriptor = Descriptor::new(layer.media_type.clone(), layer.digest, layer.size);
        let annotations = layer.annotations.clone().unwrap_or_default();
        // What else stands there is said of the layer by the image, and the new image says its own.
        let annotations = annotations.into_iter().filter(|(key, _)| crate::layer::is_of_bytes(key));
        descriptor.annotations = Some(annotations.collect());
        layers.insert((made_of, name.to_owned()), Found { descriptor, diff_id });
    }
    Ok(())
}
