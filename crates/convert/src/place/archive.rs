//! Tar archives of an OCI image layout.
//!
//! **Reading.** The headers are read once; blobs are read where they lie, nothing is unpacked. An archive
//! that was compressed as a whole is inflated into a file without a name first.
//!
//! **Writing.** A tar is written beside its final name and renamed when the image gets its name. Blobs are
//! under way side by side and a tar is one after another, so each is gathered in a file without a name and
//! appended when it is whole. The archive that is replaced stays readable meanwhile: blobs that the new
//! image shares with it are taken over.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use content::Digest;
use registry::Descriptor;

use super::blob::{Extent, blocking, check_bytes};
use super::image::{Blobs, FileImage, MAX_MANIFEST, Shelf, parse};
use super::layout::{INDEX_FILE, named, sibling_name};
use super::spool::{Spool, disk_error};
use super::tar_index::{TarError, TarIndex};
use super::{BlobWriter, ImageSource, ImageTarget, Place, PlaceError};

mod write;

use write::Archive;

/// How many times its size an archive may inflate to: images shrink to a third, and a disk is soon full.
const MAX_RATIO: u64 = 200;
/// Bytes that any archive may inflate to.
const ALWAYS_INFLATED: u64 = 1 << 30;
/// The first bytes of what gzip and zstd write.
const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];

/// The member that is a blob.
pub(crate) fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// The blobs of a layout in a tar.
#[derive(Debug)]
struct TarBlobs(TarIndex);

impl Blobs for TarBlobs {
    fn find(&self, digest: &Digest) -> io::Result<Option<Extent>> {
        Ok(self.0.find(&blob_name(digest)))
    }
}

/// Opens a tar and reads its headers. Blocks.
pub(crate) fn open_tar(shown: &str, path: &Path, temporary: &Path) -> Result<TarIndex, PlaceError> {
    let failed = |error| PlaceError::file("reading", path, error);
    // Opening a pipe would wait for whoever writes to it.
    let found = std::fs::metadata(path).map_err(failed)?;
    if !found.is_file() {
        let reason = "is no file: an archive is read out of order, so it cannot be a directory or a pipe";
        return Err(PlaceError::Unsupported { place: shown.to_owned(), reason: reason.to_owned() });
    }
    let mut file = File::open(path).map_err(failed)?;
    if matches!(
        magic(&Extent::whole(file.try_clone().map_err(failed)?).map_err(failed)?),
        Magic::Gzip | Magic::Zstd
    ) {
        tracing::info!(archive = %path.display(), "inflating an archive that is compressed as a whole");
        let mut plain = tempfile::tempfile_in(temporary)
            .map_err(|error| disk_error("writing a temporary file in", temporary, true, error))?;
        let most = found.len().saturating_mul(MAX_RATIO).max(ALWAYS_INFLATED);
        let mut inflated = estargz::decompress(io::BufReader::new(file)).map_err(failed)?;
        if !inflate(&mut inflated, &mut plain, most, path, temporary)? {
            let reason = format!(
                "inflates to more than {MAX_RATIO} times its size: if that is right, inflate it first (gunzip, unzstd)"
            );
            return Err(PlaceError::Unsupported { place: shown.to_owned(), reason });
        }
        file = plain;
    }
    TarIndex::read(Arc::new(file)).map_err(|error| match error {
        TarError::Io(error) => failed(error),
        error => PlaceError::Malformed {
            place: shown.to_owned(),
            what: "the tar".to_owned(),
            reason: error.to_string(),
        },
    })
}

/// Inflates at most `most` bytes. `false` if there are more.
fn inflate(
    from: &mut impl io::Read,
    to: &mut File,
    most: u64,
    path: &Path,
    temporary: &Path,
) -> Result<bool, PlaceError> {
    let mut buffer = vec![0; 1 << 18];
    let mut left = most;
    loop {
        let count = from.read(&mut buffer).map_err(|error| PlaceError::file("inflating", path, error))?;
        let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else { return Ok(true) };
        let Some(after) = left.checked_sub(bytes.len() as u64) else { return Ok(false) };
        left = after;
        io::Write::write_all(to, bytes).map_err(|error| disk_error("writing in", temporary, true, error))?;
    }
}

/// How some bytes are compressed.
pub(crate) enum Magic {
    /// By gzip.
    Gzip,
    /// By zstd.
    Zstd,
    /// Not at all, as far as is known.
    Plain,
}

/// Looks at the first bytes. Blocks.
pub(crate) fn magic(extent: &Extent) -> Magic {
    let mut start = Vec::new();
    match extent.reader().take(4).read_to_end(&mut start) {
        Ok(_) if start.starts_with(GZIP) => Magic::Gzip,
        Ok(_) if start.starts_with(ZSTD) => Magic::Zstd,
        _ => Magic::Plain,
    }
}

/// A member that is a document, if it is there. Blocks.
pub(crate) fn member(tar: &TarIndex, shown: &str, name: &str) -> Result<Option<Bytes>, PlaceError> {
    let Some(extent) = tar.find(name) else { return Ok(None) };
    let malformed = |reason| PlaceError::Malformed { place: shown.to_owned(), what: name.to_owned(), reason };
    if extent.len() > MAX_MANIFEST {
        return Err(malformed(format!("it has {} bytes, more than {MAX_MANIFEST}", extent.len())));
    }
    let range = content::ByteRange::new(0, extent.len());
    extent.read(range).map(Some).map_err(|error| malformed(error.to_string()))
}

/// The layout in a tar; gives the tar back if there is none. Blocks.
pub(crate) fn layout_in(tar: TarIndex, shown: &str) -> Result<Result<Shelf, TarIndex>, PlaceError> {
    let Some(index_bytes) = member(&tar, shown, INDEX_FILE)? else { return Ok(Err(tar)) };
    let index = parse(shown, INDEX_FILE, &index_bytes)?;
    Ok(Ok(Shelf { shown: shown.to_owned(), dir: None, index, index_bytes, blobs: Box::new(TarBlobs(tar)) }))
}

/// Opens an archive. Blocks.
fn open(file: &Path, temporary: &Path) -> Result<Shelf, PlaceError> {
    let shown = format!("oci-archive:{}", file.display());
    let tar = open_tar(&shown, file, temporary)?;
    let docker = tar.find("manifest.json").is_some();
    layout_in(tar, &shown)?.map_err(|_| PlaceError::Unsupported {
        place: shown,
        reason: if docker {
            "is no OCI archive, but one that docker save wrote: write docker-archive: before its name"
                .to_owned()
        } else {
            "is no OCI archive: it has no index.json".to_owned()
        },
    })
}

/// The same archive with another tag.
fn rename(place: &Place, name: String) -> Place {
    match place {
        Place::OciArchive { file, .. } => Place::OciArchive { file: file.clone(), tag: Some(name) },
        other => other.clone(),
    }
}

/// Opens the archive `file` to read `tag`.
pub(crate) async fn source(
    place: &Place,
    file: &Path,
    tag: Option<&String>,
    temporary: &Path,
) -> Result<Arc<dyn ImageSource>, PlaceError> {
    let (file, temporary) = (file.to_owned(), temporary.to_owned());
    let shelf = blocking(move || open(&file, &temporary)).await?;
    Ok(Arc::new(FileImage::new(place.clone(), tag.cloned(), Arc::new(shelf), rename)))
}

/// Opens the archive `file` to write `tag`.
pub(crate) fn target(
    place: &Place,
    file: &Path,
    tag: Option<&String>,
    temporary: &Path,
) -> Arc<dyn ImageTarget> {
    Arc::new(ArchiveTarget {
        place: place.clone(),
        tag: tag.cloned(),
        archive: Arc::new(Archive::new(file)),
        temporary: temporary.to_owned(),
        beside: false,
    })
}

/// An image of an archive, to be written.
#[derive(Debug)]
struct ArchiveTarget {
    place: Place,
    tag: Option<String>,
    archive: Arc<Archive>,
    temporary: PathBuf,
    /// Whether it is a sibling, which gets its name together with the image that it belongs to.
    beside: bool,
}

impl ArchiveTarget {
    async fn on_archive<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Archive) -> Result<T, PlaceError> + Send + 'static,
    ) -> Result<T, PlaceError> {
        let archive = Arc::clone(&self.archive);
        blocking(move || work(&archive)).await
    }

    async fn put(&self, descriptor: &Descriptor, bytes: Bytes) -> Result<(), PlaceError> {
        check_bytes(&self.place.to_string(), descriptor, &bytes)?;
        let digest = descriptor.digest;
        self.on_archive(move |archive| archive.append(&digest, &Extent::memory(bytes))).await
    }
}

#[async_trait]
impl ImageTarget for ArchiveTarget {
    fn place(&self) -> &Place {
        &self.place
    }

    async fn check(&self) -> Result<(), PlaceError> {
        self.on_archive(Archive::prepare).await
    }

    async fn current(&self) -> Result<Option<(Descriptor, Bytes)>, PlaceError> {
        let (tag, temporary) = (self.tag.clone(), self.temporary.clone());
        let resolve = move |archive: &Archive| {
            let Some(old) = archive.replaced(|path| open(path, &temporary)) else { return Ok(None) };
            Ok(old.resolve(tag.as_deref()).ok())
        };
        self.on_archive(resolve).await
    }

    async fn manifest(&self, descriptor: &Descriptor) -> Result<Option<Bytes>, PlaceError> {
        let (descriptor, temporary) = (descriptor.clone(), self.temporary.clone());
        let read = move |archive: &Archive| {
            let old = archive.replaced(|path| open(path, &temporary));
            let found = archive.find(&descriptor.digest);
            let found = found.or_else(|| old.as_ref()?.extent(&descriptor).ok());
            let bytes = found.filter(|found| found.len() == descriptor.size && found.len() <= MAX_MANIFEST);
            let bytes = bytes.and_then(|found| found.read(content::ByteRange::new(0, found.len())).ok());
            Ok(bytes.filter(|bytes| Digest::of(bytes) == descriptor.digest))
        };
        self.on_archive(read).await
    }

    async fn has(&self, descriptor: &Descriptor) -> Result<bool, PlaceError> {
        let (descriptor, temporary) = (descriptor.clone(), self.temporary.clone());
        let look = move |archive: &Archive| {
            if archive.find(&descriptor.digest).is_some() {
                return Ok(true);
            }
            let old = archive.replaced(|path| open(path, &temporary));
            let Some(extent) = old.and_then(|old| old.extent(&descriptor).ok()) else { return Ok(false) };
            if extent.len() != descriptor.size || extent.digest().ok() != Some(descriptor.digest) {
                return Ok(false);
            }
            archive.append(&descriptor.digest, &extent)?;
            Ok(true)
        };
        self.on_archive(look).await
    }

    async fn adopt(&self, _: &dyn ImageSource, _: &Descriptor) -> Result<bool, PlaceError> {
        Ok(false)
    }

    async fn begin(&self) -> Result<Box<dyn BlobWriter>, PlaceError> {
        let spool = Spool::unnamed(&self.temporary).await?;
        Ok(Box::new(ArchivedBlob {
            place: self.place.to_string(),
            archive: Arc::clone(&self.archive),
            spool,
        }))
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
        self.on_archive(move |archive| archive.publish(entry, beside)).await
    }

    async fn sibling(&self, suffix: &str) -> Result<Arc<dyn ImageTarget>, PlaceError> {
        let name = sibling_name(&self.place, self.tag.as_deref(), suffix)?;
        Ok(Arc::new(Self {
            place: rename(&self.place, name.clone()),
            tag: Some(name),
            archive: Arc::clone(&self.archive),
            temporary: self.temporary.clone(),
            beside: true,
        }))
    }

    async fn abandon(&self) {
        let cleared = self.on_archive(|archive| {
            archive.clear();
            Ok(())
        });
        if let Err(error) = cleared.await {
            tracing::debug!(%error, "a temporary archive stays until the target is closed");
        }
    }
}

/// A blob on its way into an archive.
struct ArchivedBlob {
    place: String,
    archive: Arc<Archive>,
    spool: Spool,
}

#[async_trait]
impl BlobWriter for ArchivedBlob {
    async fn write(&mut self, bytes: Bytes) -> Result<(), PlaceError> {
        self.spool.write(bytes).await
    }

    async fn commit(self: Box<Self>, descriptor: &Descriptor, _: Option<&Digest>) -> Result<(), PlaceError> {
        let Self { place, archive, spool } = *self;
        let spooled = spool.finish().await?;
        spooled.check(&place, descriptor)?;
        let digest = descriptor.digest;
        blocking(move || archive.append(&digest, &Extent::new(spooled.file, 0, spooled.len))).await
    }

    async fn abort(self: Box<Self>) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_inflated_up_to_a_limit() {
        let small = zstd::encode_all(vec![0; 3_000_000].as_slice(), 3).unwrap();
        for (most, whole) in [(3_000_000, true), (2_999_999, false), (0, false)] {
            let mut to = tempfile::tempfile().unwrap();
            let mut from = estargz::decompress(small.as_slice()).unwrap();
            let here = Path::new("here");
            assert_eq!(inflate(&mut from, &mut to, most, here, here).unwrap(), whole, "{most}");
            assert!(to.metadata().unwrap().len() <= most);
        }
    }
}
