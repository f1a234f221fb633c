//! Manifests of images that are being pulled.
//!
//! Two questions about one image come in the same moment: which layers follow, and which one is the lowest. A manifest
//! that is named by its digest is asked for once for both, and remembered for the layers that are asked about next.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use content::Digest;
use registry::{Client, Index, Manifest, Platform, Reference, media_type};
use tokio::sync::OnceCell;

use super::told;
use crate::labels::LayerSource;
use crate::layer::LayerError;

/// How many are remembered: more than are pulled at once.
const MOST: usize = 32;

type Cell = Arc<OnceCell<Arc<Manifest>>>;

/// What was asked for a moment ago, by image and digest.
#[derive(Default)]
pub(super) struct Manifests(Mutex<VecDeque<(String, Cell)>>);

impl Manifests {
    /// The manifest of the image that `source` is a layer of. `digest` is the manifest's, if the client told it.
    pub(super) async fn get(
        &self,
        client: &Client,
        source: &LayerSource,
        digest: Option<Digest>,
    ) -> Result<Arc<Manifest>, LayerError> {
        let image: Reference = source.reference.parse().map_err(told)?;
        let manifest = match digest {
            // What a tag names may change.
            None => Arc::new(fetch(client, image).await?),
            Some(digest) => {
                let cell = self.cell(format!("{}@{digest}", source.reference));
                let fetched = cell.get_or_try_init(|| async {
                    fetch(client, image.with_digest(digest)).await.map(Arc::new)
                });
                Arc::clone(fetched.await?)
            }
        };
        if manifest.layers.iter().all(|layer| layer.digest != source.layer) {
            return Err(told(format!(
                "the manifest of {} does not have layer {}",
                source.reference, source.layer
            )));
        }
        Ok(manifest)
    }

    fn cell(&self, name: String) -> Cell {
        let mut recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, cell)) = recent.iter().find(|(other, _)| *other == name) {
            return Arc::clone(cell);
        }
        let cell = Cell::default();
        recent.push_back((name, Arc::clone(&cell)));
        if recent.len() > MOST {
            recent.pop_front();
        }
        cell
    }
}

async fn fetch(client: &Client, image: Reference) -> Result<Manifest, LayerError> {
    let (found, mut bytes) = client.manifest(&image).await.map_err(told)?;
    if media_type::is_index(&found.media_type) {
        let index: Index = serde_json::from_slice(&bytes).map_err(told)?;
        let ours = index.manifests.iter().find(|one| one.platform.as_ref().is_some_and(is_ours));
        let ours = ours.ok_or_else(|| told("the image has no manifest for this machine"))?;
        (_, bytes) = client.manifest(&image.with_digest(ours.digest)).await.map_err(told)?;
    }
    serde_json::from_slice(&bytes).map_err(told)
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
