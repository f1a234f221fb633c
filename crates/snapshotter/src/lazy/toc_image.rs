//! Tables of contents that lie beside their image, in an image of their own.
//!
//! A layer that keeps every byte of its tar has no room for one. Its image `name:tag` then has a neighbour
//! `name:tag-esgztoc`: one manifest, a layer for each table, and an annotation that says whose it is. What is found is
//! not trusted: the digest in the image's own manifest pins the table.

use std::sync::Arc;

use bytes::Bytes;
use content::{Digest, Fault, ReadError, ReadErrorKind};
use lazyfs::ExternalToc;
use registry::{Client, Manifest, Reference};

use crate::labels::LayerSource;

/// What is added to an image's tag to name the neighbour.
const SUFFIX: &str = "-esgztoc";
/// Annotation with the digest of the layer that a table describes.
const LAYER_DIGEST: &str = "containerd.io/snapshot/stargz/layer.digest";
/// Largest compressed table that is read, in bytes: one for millions of files.
const MAX_TABLE: u64 = 64 << 20;

/// How to get the table of `source`'s layer. Asked only if the layer says that it has none inside.
pub(super) fn beside(client: &Client, source: &LayerSource) -> ExternalToc {
    let (client, reference, layer) = (client.clone(), source.reference.clone(), source.layer);
    Arc::new(move || {
        let (client, reference) = (client.clone(), reference.clone());
        Box::pin(async move { fetch(&client, &reference, layer).await })
    })
}

async fn fetch(client: &Client, reference: &str, layer: Digest) -> Result<Bytes, ReadError> {
    let wrong = |error: &dyn std::fmt::Display| {
        let message = format!("looking for the table of contents beside {reference}: {error}");
        ReadError::new(Fault::Caller, ReadErrorKind::Other, message)
    };
    let image: Reference = reference.parse().map_err(|error| wrong(&error))?;
    let tag = image.tag().ok_or_else(|| wrong(&"an image without a tag has no neighbour"))?;
    let tag = format!("{tag}{SUFFIX}");
    let beside = Reference::new(image.registry(), image.repository()).and_then(|name| name.with_tag(&tag));
    let beside = beside.map_err(|error| wrong(&error))?;
    let (_, bytes) = client.manifest(&beside).await?;
    let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|error| wrong(&error))?;
    let owner = layer.to_string();
    let table = manifest.layers.iter().find(|held| held.annotation(LAYER_DIGEST) == Some(&owner));
    let table = table.ok_or_else(|| {
        let message = format!("{beside} has no table of contents for layer {layer}");
        ReadError::origin(ReadErrorKind::NotFound, message)
    })?;
    client.pull_bytes(&beside, table, MAX_TABLE).await
}
