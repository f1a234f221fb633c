//! Directories in OCI's image layout: `oci-layout`, `index.json`, `blobs/sha256/<digest>`.
//!
//! **Writing.** Blobs are gathered in a directory `.pantala-…` inside the layout, which its writer keeps
//! locked. When the image gets its name they are renamed to where they belong, and then `index.json` is
//! replaced by one that names the image; that is done under a lock of the layout's directory, so that of two
//! writers none loses the other's name. Until then a reader sees nothing, and taking everything back means
//! to remove one directory. What a killed process left is known by its lock being free, and is removed by
//! the next writer.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use content::Digest;
use registry::{Descriptor, Index, media_type};
use serde_json::Map;

use super::blob::{Extent, blocking, check_bytes};
use super::image::{Blobs, FileImage, MAX_MANIFEST, REF_NAME, Shelf, parse, without_name};
use super::spool::Spool;
use super::{BlobWriter, ImageSource, ImageTarget, Place, PlaceError};

mod stage;

use stage::Stage;
pub(crate) use stage::index_with;

/// The file that makes a directory a layout.
pub(crate) const LAYOUT_FILE: &str = "oci-layout";
/// Its content.
pub(crate) const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
/// The file that names the images.
pub(crate) const INDEX_FILE: &str = "index.json";

/// The blobs of a layout's directory.
#[derive(Debug)]
struct DirBlobs(PathBuf);

impl Blobs for DirBlobs {
    fn find(&self, digest: &Digest) -> io::Result<Option<Extent>> {
        let path = blob_path(&self.0, digest);
        match fs::metadata(&path) {
            // Opening a pipe would wait for whoever writes to it.
            Ok(found) if !found.is_file() => Err(io::Error::other(format!("{} is no file", path.display()))),
            Ok(_) => Ok(Some(Extent::whole(File::open(&path)?)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Where a blob lies in the layout `dir`.
fn blob_path(dir: &Path, digest: &Digest) -> PathBuf {
    dir.join("blobs/sha256").join(digest.hex())
}

/// Opens a layout; `None` if there is no `index.json`. Blocks.
fn open(dir: &Path) -> Result<Option<Shelf>, PlaceError> {
    let Some((index, index_bytes)) = read_index(dir)? else { return Ok(None) };
    Ok(Some(Shelf {
        shown: format!("oci:{}", dir.display()),
        dir: Some(dir.to_owned()),
        index,
        index_bytes,
        blobs: Box::new(DirBlobs(dir.to_owned())),
    }))
}

/// The layout's `index.json`, if there is one. Blocks.
fn read_index(dir: &Path) -> Result<Option<(Index, Bytes)>, PlaceError> {
    let path = dir.join(INDEX_FILE);
    let bytes = match fs::metadata(&path) {
        Ok(found) if found.len() > MAX_MANIFEST || !found.is_file() => {
            return Err(PlaceError::Malformed {
                place: format!("oci:{}", dir.display()),
                what: INDEX_FILE.to_owned(),
                reason: format!("it is no file of at most {MAX_MANIFEST} bytes"),
            });
        }
        Ok(_) => fs::read(&path).map_err(|error| PlaceError::file("reading", &path, error))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(PlaceError::file("reading", &path, error)),
    };
    let index = parse(&format!("oci:{}", dir.display()), INDEX_FILE, &bytes)?;
    Ok(Some((index, bytes.into())))
}

/// The same layout with another tag.
fn rename(place: &Place, name: String) -> Place {
    match place {
        Place::OciLayout { dir, .. } => Place::OciLayout { dir: dir.clone(), tag: Some(name) },
        other => other.clone(),
    }
}

/// Opens the layout `dir` to read `tag`.
pub(crate) async fn source(
    place: &Place,
    dir: &Path,
    tag: Option<&String>,
) -> Result<Arc<dyn ImageSource>, PlaceError> {
    let at = dir.to_owned();
    let shelf = blocking(move || open(&at)).await?.ok_or_else(|| PlaceError::Unsupported {
        place: format!("oci:{}", dir.display()),
        reason: "is no OCI layout: it has no index.json".to_owned(),
    })?;
    Ok(Arc::new(FileImage::new(place.clone(), tag.cloned(), Arc::new(shelf), rename)))
}

/// Opens the layout `dir` to write `tag`.
pub(crate) fn target(place: &Place, dir: &Path, tag: Option<&String>) -> Arc<dyn ImageTarget> {
    let stage = Arc::new(Stage::new(dir));
    Arc::new(LayoutTarget { place: place.clone(), tag: tag.cloned(), stage, beside: false })
}

/// An image of a layout, to be written.
#[derive(Debug)]
struct LayoutTarget {
    place: Place,
    tag: Option<String>,
    stage: Arc<Stage>,
    /// Whether it is a sibling, which gets its name together with the image that it belongs to.
    beside: bool,
}

impl LayoutTarget {
    async fn on_stage<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Stage) -> Result<T, PlaceError> + Send + 'static,
    ) -> Result<T, PlaceError> {
        let stage = Arc::clone(&self.stage);
        blocking(move || work(&stage)).await
    }

    async fn put(&self, descriptor: &Descriptor, bytes: Bytes) -> Result<(), PlaceError> {
        check_bytes(&self.place.to_string(), descriptor, &bytes)?;
        let descriptor = descriptor.clone();
        self.on_stage(move |stage| {
            // Small enough to be compared with what is there.
            if stage.read(&descriptor)?.is_some() { Ok(()) } else { stage.put(&descriptor.digest, &bytes) }
        })
        .await
    }
}

#[async_trait]
impl ImageTarget for LayoutTarget {
    fn place(&self) -> &Place {
        &self.place
    }

    async fn check(&self) -> Result<(), PlaceError> {
        self.on_stage(Stage::prepare).await
    }

    async fn current(&self) -> Result<Option<(Descriptor, Bytes)>, PlaceError> {
        let tag = self.tag.clone();
        let resolve = move |stage: &Stage| {
            let Some(shelf) = open(stage.dir())? else { return Ok(None) };
            match shelf.resolve(tag.as_deref()) {
                Ok(found) => Ok(Some(found)),
                Err(PlaceError::Ambiguous { .. }) => Ok(None),
                Err(error) if error.is_not_found() => Ok(None),
                Err(error) => Err(error),
            }
        };
        self.on_stage(resolve).await
    }

    async fn manifest(&self, descriptor: &Descriptor) -> Result<Option<Bytes>, PlaceError> {
        let descriptor = descriptor.clone();
        self.on_stage(move |stage| stage.read(&descriptor)).await
    }

    async fn has(&self, descriptor: &Descriptor) -> Result<bool, PlaceError> {
        let descriptor = descriptor.clone();
        self.on_stage(move |stage| stage.find(&descriptor)).await
    }

    async fn adopt(&self, source: &dyn ImageSource, descriptor: &Descriptor) -> Result<bool, PlaceError> {
        let image = source.as_any().downcast_ref::<FileImage>();
        let Some(from) = image.and_then(FileImage::dir).map(|dir| blob_path(dir, &descriptor.digest)) else {
            return Ok(false);
        };
        let descriptor = descriptor.clone();
        self.on_stage(move |stage| Ok(stage.find(&descriptor)? || stage.link(&from, &descriptor)?)).await
    }

    async fn begin(&self) -> Result<Box<dyn BlobWriter>, PlaceError> {
        let (file, path) = self.on_stage(Stage::create).await?;
        let spool = Spool::new(file, self.stage.dir());
        let place = self.place.to_string();
        Ok(Box::new(StagedBlob { place, stage: Arc::clone(&self.stage), spool, path }))
    }

    async fn put_blob(&self, descriptor: &Descriptor, bytes: Bytes) -> Result<(), PlaceError> {
        self.put(descriptor, bytes).await
    }

    async fn put_manifest(&self, descriptor: &Descriptor, bytes: Bytes) -> Result<(), PlaceError> {
        self.put(descriptor, bytes).await
    }

    async fn name(&self, root: &Descriptor, bytes: Bytes) -> Result<(), PlaceError> {
        self.put(root, bytes).await?;
        let (entry, beside) = (named(root, self.tag.as_deref()), self.beside);
        self.on_stage(move |stage| stage.publish(entry, beside)).await
    }

    async fn sibling(&self, suffix: &str) -> Result<Arc<dyn ImageTarget>, PlaceError> {
        let name = sibling_name(&self.place, self.tag.as_deref(), suffix)?;
        let place = rename(&self.place, name.clone());
        let stage = Arc::clone(&self.stage);
        Ok(Arc::new(Self { place, tag: Some(name), stage, beside: true }))
    }

    async fn abandon(&self) {
        let cleared = self.on_stage(|stage| {
            stage.clear();
            Ok(())
        });
        if let Err(error) = cleared.await {
            tracing::debug!(%error, "temporary files stay until the next writer comes");
        }
    }
}

/// The name of an image beside `tag`.
pub(crate) fn sibling_name(place: &Place, tag: Option<&str>, suffix: &str) -> Result<String, PlaceError> {
    tag.map(|tag| format!("{tag}{suffix}")).ok_or_else(|| {
        PlaceError::unsupported(place, format!("names no image to put the {suffix} image beside: add a tag"))
    })
}

/// An entry of `index.json` for `root` under `tag`.
pub(crate) fn named(root: &Descriptor, tag: Option<&str>) -> Descriptor {
    let mut entry = without_name(root.clone());
    if let Some(tag) = tag {
        entry.annotations.get_or_insert_default().insert(REF_NAME.to_owned(), tag.to_owned());
    }
    entry
}

/// An index without images.
pub(crate) fn empty_index() -> Index {
    Index {
        schema_version: 2,
        media_type: Some(media_type::OCI_INDEX.to_owned()),
        manifests: Vec::new(),
        annotations: None,
        rest: Map::new(),
    }
}

/// A blob on its way into the stage.
struct StagedBlob {
    place: String,
    stage: Arc<Stage>,
    spool: Spool,
    path: PathBuf,
}

#[async_trait]
impl BlobWriter for StagedBlob {
    async fn write(&mut self, bytes: Bytes) -> Result<(), PlaceError> {
        self.spool.write(bytes).await
    }

    async fn commit(self: Box<Self>, descriptor: &Descriptor, _: Option<&Digest>) -> Result<(), PlaceError> {
        let Self { place, stage, spool, path } = *self;
        let spooled =
            match spool.finish().await.and_then(|done| done.check(&place, descriptor).map(|()| done)) {
                Ok(spooled) => spooled,
                Err(error) => {
                    remove(path).await;
                    return Err(error);
                }
            };
        let digest = descriptor.digest;
        blocking(move || {
            let kept = Stage::keep(&spooled.file, &path, &digest);
            // Not before: what is staged goes with it.
            drop(stage);
            kept
        })
        .await
    }

    async fn abort(self: Box<Self>) {
        remove(self.path).await;
    }
}

async fn remove(path: PathBuf) {
    let removed = blocking(move || fs::remove_file(&path)).await;
    if let Err(error) = removed.map_err(|error: io::Error| error) {
        tracing::debug!(%error, "a temporary file stays until the stage is cleared");
    }
}
