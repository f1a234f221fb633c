//! What `docker save` writes: a tar with `manifest.json`, configs, and layers, plain or compressed.
//!
//! Such an archive has no manifest that names its blobs by digest, so one is made. A plain layer's digest is
//! the diffID that the config claims for it (and is found out to be true or not when the layer is read); a
//! compressed layer is read once to learn its digest. Newer versions write an OCI layout into the same tar;
//! then that is read, as it says more.
//!
//! Only a source: the format has no place for a layer's annotations, without which no layer is lazy.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use content::Digest;
use registry::{Descriptor, Manifest, media_type};
use serde::Deserialize;
use serde_json::Map;

use super::archive::{Magic, layout_in, magic, member, open_tar};
use super::blob::{Extent, blocking};
use super::error::shorten;
use super::image::{Blobs, FileImage, Shelf, parse, same_reference};
use super::layout::{empty_index, named};
use super::tar_index::TarIndex;
use super::{ImageSource, Place, PlaceError};

/// The file that names the images.
const MANIFEST_FILE: &str = "manifest.json";

/// One image of `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// What is read of a config.
#[derive(Deserialize)]
struct Config {
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Option<Vec<Digest>>,
}

#[derive(Debug, Default)]
struct Known(HashMap<Digest, Extent>);

impl Blobs for Known {
    fn find(&self, digest: &Digest) -> io::Result<Option<Extent>> {
        Ok(self.0.get(digest).cloned())
    }
}

/// The same archive with another image.
fn rename(place: &Place, name: String) -> Place {
    match place {
        Place::DockerArchive { file, .. } => {
            Place::DockerArchive { file: file.clone(), reference: Some(name) }
        }
        other => other.clone(),
    }
}

/// Opens the archive `file` to read `reference`.
pub(crate) async fn source(
    place: &Place,
    file: &Path,
    reference: Option<&String>,
    temporary: &Path,
) -> Result<Arc<dyn ImageSource>, PlaceError> {
    let (file, wanted, temporary) = (file.to_owned(), reference.cloned(), temporary.to_owned());
    let (shelf, name) = blocking(move || open(&file, wanted, &temporary)).await?;
    Ok(Arc::new(FileImage::new(place.clone(), name, Arc::new(shelf), rename)))
}

/// Opens an archive; answers what it holds and the name under which `wanted` is found there. Blocks.
fn open(
    file: &Path,
    wanted: Option<String>,
    temporary: &Path,
) -> Result<(Shelf, Option<String>), PlaceError> {
    let shown = format!("docker-archive:{}", file.display());
    let tar = match layout_in(open_tar(&shown, file, temporary)?, &shown)? {
        Ok(shelf) => return Ok((shelf, wanted)),
        Err(tar) => tar,
    };
    let Some(list) = member(&tar, &shown, MANIFEST_FILE)? else {
        let reason = "is nothing that docker save wrote: it has no manifest.json".to_owned();
        return Err(PlaceError::Unsupported { place: shown, reason });
    };
    let list: Vec<Saved> = parse(&shown, MANIFEST_FILE, &list)?;
    let names = || list.iter().flat_map(|image| image.repo_tags.iter().flatten().cloned()).collect();
    let image = match &wanted {
        Some(wanted) => list.iter().enumerate().find(|(at, image)| is_named(image, *at, wanted)),
        None if list.len() > 1 => return Err(PlaceError::Ambiguous { place: shown, available: names() }),
        None => list.first().map(|image| (0, image)),
    };
    let Some((_, image)) = image else {
        let place = format!("{shown}{}", wanted.map(|wanted| format!(":{wanted}")).unwrap_or_default());
        return Err(PlaceError::NotFound { place, available: names() });
    };
    let mut known = Known::default();
    let (descriptor, bytes) = manifest(&tar, &shown, image, &mut known)?;
    known.0.insert(descriptor.digest, Extent::memory(bytes));
    let name = wanted.unwrap_or_else(|| descriptor.digest.to_string());
    let mut index = empty_index();
    index.manifests.push(named(&descriptor, Some(&name)));
    let shelf = Shelf { shown, dir: None, index, index_bytes: Bytes::new(), blobs: Box::new(known) };
    Ok((shelf, Some(name)))
}

/// Whether `wanted` is one of the image's names, or `@` and its number in the list, as skopeo has it.
fn is_named(image: &Saved, at: usize, wanted: &str) -> bool {
    if let Some(number) = wanted.strip_prefix('@') {
        return number.parse() == Ok(at);
    }
    image.repo_tags.iter().flatten().any(|tag| tag == wanted || same_reference(tag, wanted))
}

/// Makes the manifest of an image, and notes where its blobs are.
fn manifest(
    tar: &TarIndex,
    shown: &str,
    image: &Saved,
    known: &mut Known,
) -> Result<(Descriptor, Bytes), PlaceError> {
    let malformed = |what: &str, reason: String| PlaceError::Malformed {
        place: shown.to_owned(),
        what: shorten(what),
        reason,
    };
    let lacks = |name: &str| malformed(MANIFEST_FILE, format!("it names {name:?}, which the archive lacks"));
    let config = member(tar, shown, &image.config)?.ok_or_else(|| lacks(&image.config))?;
    let diff_ids = parse::<Config>(shown, &image.config, &config)?.rootfs.diff_ids.unwrap_or_default();
    let names = image.layers.as_deref().unwrap_or_default();
    if names.len() != diff_ids.len() {
        let reason = format!("it names {} layers, the config of the image {}", names.len(), diff_ids.len());
        return Err(malformed(MANIFEST_FILE, reason));
    }
    let mut layers = Vec::new();
    // One member may be named as often as one likes.
    let mut digests = HashMap::new();
    for (name, diff_id) in names.iter().zip(diff_ids) {
        let extent = tar.find(name).ok_or_else(|| lacks(name))?;
        let mut hash = || match digests.entry(extent.offset()) {
            Entry::Occupied(known) => Ok::<_, PlaceError>(*known.get()),
            Entry::Vacant(new) => {
                let digest = extent.digest().map_err(|error| malformed(name, error.to_string()))?;
                Ok(*new.insert(digest))
            }
        };
        let (kind, digest) = match magic(&extent) {
            Magic::Plain => (media_type::OCI_LAYER, diff_id),
            Magic::Gzip => (media_type::OCI_LAYER_GZIP, hash()?),
            Magic::Zstd => (media_type::OCI_LAYER_ZSTD, hash()?),
        };
        layers.push(Descriptor::new(kind, digest, extent.len()));
        known.0.insert(digest, extent);
    }
    let digest = Digest::of(&config);
    let size = config.len() as u64;
    known.0.insert(digest, Extent::memory(config));
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(media_type::OCI_MANIFEST.to_owned()),
        config: Descriptor::new(media_type::OCI_CONFIG, digest, size),
        layers,
        annotations: None,
        rest: Map::new(),
    };
    let bytes = serde_json::to_vec(&manifest).map_err(|error| malformed(MANIFEST_FILE, error.to_string()))?;
    let descriptor = Descriptor::new(media_type::OCI_MANIFEST, Digest::of(&bytes), bytes.len() as u64);
    Ok((descriptor, bytes.into()))
}
