//! An image whose blobs lie in files, whichever kind of directory or archive it is.
//!
//! A [`Shelf`] is what such a place holds: named descriptors, and blobs by digest. [`FileImage`] is one of
//! its images.

use std::any::Any;
use std::collections::HashSet;
use std::fmt::{self, Debug};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use content::{BlobSource, ByteStream, Digest, ReadError, ReadErrorKind, Urgency};
use futures::{StreamExt as _, TryStreamExt as _};
use registry::{Descriptor, Index, Reference, media_type};

use super::blob::{Extent, FileBlob, blocking, check_size, failed, read_whole, stream};
use super::{ImageSource, Place, PlaceError};

/// Longest manifest or index that is read, in bytes; the same as the registry client's.
pub(crate) const MAX_MANIFEST: u64 = 8 << 20;
/// Under which key an index names its manifests, by OCI's specification of annotations.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The full name that Docker's and containerd's exports add.
const IMAGE_NAME: &str = "io.containerd.image.name";
/// How deep indexes may lie in each other before a name in them is not looked for any more.
const MAX_DEPTH: usize = 4;

/// Where the blobs of a shelf lie.
pub(crate) trait Blobs: Send + Sync + Debug {
    /// The blob, if it is there. Blocks.
    fn find(&self, digest: &Digest) -> io::Result<Option<Extent>>;
}

/// What a directory or an archive holds.
#[derive(Debug)]
pub(crate) struct Shelf {
    /// As people write it, without the name of an image.
    pub(crate) shown: String,
    /// The directory, if it is one whose files can be linked.
    pub(crate) dir: Option<PathBuf>,
    /// What `index.json` says, and its bytes.
    pub(crate) index: Index,
    pub(crate) index_bytes: Bytes,
    pub(crate) blobs: Box<dyn Blobs>,
}

impl Shelf {
    /// Names of the images, as they can be asked for.
    pub(crate) fn names(&self) -> Vec<String> {
        self.index.manifests.iter().filter_map(name_of).map(str::to_owned).collect()
    }

    /// A blob. Blocks.
    pub(crate) fn extent(&self, descriptor: &Descriptor) -> Result<Extent, PlaceError> {
        let digest = descriptor.digest;
        let found = self.blobs.find(&digest).map_err(|error| PlaceError::Read {
            place: self.shown.clone(),
            digest,
            reason: ReadError::local(ReadErrorKind::Other, error.to_string()),
        })?;
        found.ok_or_else(|| PlaceError::MissingBlob {
            place: self.shown.clone(),
            digest,
            hint: "it is incomplete, write it anew or choose a platform that it has",
        })
    }

    /// A manifest or an index. Blocks.
    pub(crate) fn manifest(&self, descriptor: &Descriptor) -> Result<Bytes, PlaceError> {
        let extent = self.extent(descriptor)?;
        read_whole(&self.shown, &extent, descriptor, MAX_MANIFEST)
    }

    /// What `name` stands for; without a name, the only image. Blocks.
    pub(crate) fn resolve(&self, name: Option<&str>) -> Result<(Descriptor, Bytes), PlaceError> {
        let found = match name {
            Some(name) => self.find_name(&self.index, name, 0, &mut HashSet::new())?,
            None => self.only()?,
        };
        match found {
            Some(Found::Entry(descriptor)) => {
                let bytes = self.manifest(&descriptor)?;
                Ok((without_name(*descriptor), bytes))
            }
            Some(Found::Index) => {
                let media_type = self.index.media_type.as_deref().unwrap_or(media_type::OCI_INDEX);
                let digest = Digest::of(&self.index_bytes);
                let descriptor = Descriptor::new(media_type, digest, self.index_bytes.len() as u64);
                Ok((descriptor, self.index_bytes.clone()))
            }
            None => {
                let name = name.map(|name| format!(":{name}")).unwrap_or_default();
                let available = self.names();
                Err(PlaceError::NotFound { place: format!("{}{name}", self.shown), available })
            }
        }
    }

    fn only(&self) -> Result<Option<Found>, PlaceError> {
        match self.index.manifests.as_slice() {
            [] => Ok(None),
            // One image for several machines, written without an index between.
            many if many.len() > 1
                && many.iter().all(|entry| name_of(entry).is_none() && entry.platform.is_some()) =>
            {
                Ok(Some(Found::Index))
            }
            // One image, under one name or several.
            [first, others @ ..] if others.iter().all(|entry| entry.digest == first.digest) => {
                Ok(Some(Found::Entry(Box::new(first.clone()))))
            }
            many => {
                let mut unnamed = many.iter().filter(|entry| name_of(entry).is_none());
                match (unnamed.next(), unnamed.next()) {
                    (Some(only), None) => Ok(Some(Found::Entry(Box::new(only.clone())))),
                    _ => Err(PlaceError::Ambiguous { place: self.shown.clone(), available: self.names() }),
                }
            }
        }
    }

    /// `seen` are the indexes that were read: each is read once, however often others name it.
    fn find_name(
        &self,
        index: &Index,
        name: &str,
        depth: usize,
        seen: &mut HashSet<Digest>,
    ) -> Result<Option<Found>, PlaceError> {
        if let Some(entry) = index.manifests.iter().find(|entry| is_named(entry, name)) {
            return Ok(Some(Found::Entry(Box::new(entry.clone()))));
        }
        if depth == MAX_DEPTH {
            return Ok(None);
        }
        for entry in index.manifests.iter().filter(|entry| media_type::is_index(&entry.media_type)) {
            if !seen.insert(entry.digest) {
                continue;
            }
            // An index that is not there has no name that could be found.
            let Some(extent) = self.blobs.find(&entry.digest).ok().flatten() else { continue };
            let bytes = read_whole(&self.shown, &extent, entry, MAX_MANIFEST)?;
            let below: Index = self.parse(&entry.digest.to_string(), &bytes)?;
            if let Some(found) = self.find_name(&below, name, depth + 1, seen)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn parse<T: serde::de::DeserializeOwned>(&self, what: &str, bytes: &[u8]) -> Result<T, PlaceError> {
        parse(&self.shown, what, bytes)
    }
}

/// A document of a place, from JSON.
pub(crate) fn parse<T: serde::de::DeserializeOwned>(
    place: &str,
    what: &str,
    bytes: &[u8],
) -> Result<T, PlaceError> {
    serde_json::from_slice(bytes).map_err(|error| PlaceError::Malformed {
        place: place.to_owned(),
        what: what.to_owned(),
        reason: error.to_string(),
    })
}

/// A file's bytes, if there is such a file of at most `limit` bytes. Blocks.
pub(crate) fn read_if_there(path: &Path, limit: u64) -> io::Result<Option<Bytes>> {
    match std::fs::metadata(path) {
        Ok(found) if found.is_file() && found.len() <= limit => Ok(Some(std::fs::read(path)?.into())),
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

enum Found {
    Entry(Box<Descriptor>),
    Index,
}

/// An entry without what names it: at another place it has another name.
pub(crate) fn without_name(mut entry: Descriptor) -> Descriptor {
    if let Some(annotations) = &mut entry.annotations {
        annotations.retain(|key, _| key != REF_NAME && key != IMAGE_NAME);
    }
    entry.annotations = entry.annotations.filter(|annotations| !annotations.is_empty());
    entry
}

/// The name that an entry of an index can be asked for by.
pub(crate) fn name_of(entry: &Descriptor) -> Option<&str> {
    entry.annotation(REF_NAME).or_else(|| entry.annotation(IMAGE_NAME))
}

/// Whether `name` means this entry: its name, its full name however it is completed, or its digest.
fn is_named(entry: &Descriptor, name: &str) -> bool {
    if entry.annotation(REF_NAME) == Some(name) || entry.digest.to_string() == name {
        return true;
    }
    entry.annotation(IMAGE_NAME).is_some_and(|full| full == name || same_reference(full, name))
}

/// Whether two names are one image by Docker's rules.
pub(crate) fn same_reference(left: &str, right: &str) -> bool {
    matches!((left.parse::<Reference>(), right.parse::<Reference>()), (Ok(left), Ok(right)) if left == right)
}

/// One image of a shelf.
pub(crate) struct FileImage {
    place: Place,
    name: Option<String>,
    shelf: Arc<Shelf>,
    /// `place` with another name.
    rename: fn(&Place, String) -> Place,
}

impl Debug for FileImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileImage").field("place", &self.place).finish_non_exhaustive()
    }
}

impl FileImage {
    /// The image `name` of `shelf`, or its only one. `rename` makes the place of another image of the shelf.
    pub(crate) fn new(
        place: Place,
        name: Option<String>,
        shelf: Arc<Shelf>,
        rename: fn(&Place, String) -> Place,
    ) -> Self {
        Self { place, name, shelf, rename }
    }

    /// The directory of the layout that it is in.
    pub(crate) fn dir(&self) -> Option<&Path> {
        self.shelf.dir.as_deref()
    }

    async fn on_shelf<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shelf) -> Result<T, PlaceError> + Send + 'static,
    ) -> Result<T, PlaceError> {
        let shelf = Arc::clone(&self.shelf);
        blocking(move || work(&shelf)).await
    }
}

#[async_trait]
impl ImageSource for FileImage {
    fn place(&self) -> &Place {
        &self.place
    }

    async fn root(&self) -> Result<(Descriptor, Bytes), PlaceError> {
        let name = self.name.clone();
        self.on_shelf(move |shelf| shelf.resolve(name.as_deref())).await
    }

    async fn manifest(&self, descriptor: &Descriptor) -> Result<Bytes, PlaceError> {
        let descriptor = descriptor.clone();
        self.on_shelf(move |shelf| shelf.manifest(&descriptor)).await
    }

    async fn document(&self, descriptor: &Descriptor, limit: u64) -> Result<Bytes, PlaceError> {
        let descriptor = descriptor.clone();
        let read = move |shelf: &Shelf| {
            let extent = shelf.extent(&descriptor)?;
            read_whole(&shelf.shown, &extent, &descriptor, limit)
        };
        self.on_shelf(read).await
    }

    fn stream(&self, descriptor: &Descriptor, _: Urgency) -> ByteStream {
        let (shelf, descriptor) = (Arc::clone(&self.shelf), descriptor.clone());
        let shown = self.shelf.shown.clone();
        let open = async move {
            let wanted = descriptor.clone();
            let found = blocking(move || shelf.extent(&wanted)).await;
            Ok::<_, ReadError>(match found {
                Ok(extent) => stream(&shown, extent, &descriptor),
                Err(error) => failed(to_read_error(&error)),
            })
        };
        futures::stream::once(open).try_flatten().boxed()
    }

    async fn ranges(&self, descriptor: &Descriptor) -> Result<Arc<dyn BlobSource>, PlaceError> {
        let wanted = descriptor.clone();
        let extent = self.on_shelf(move |shelf| shelf.extent(&wanted)).await?;
        check_size(&extent, descriptor).map_err(|reason| PlaceError::Damaged {
            place: self.shelf.shown.clone(),
            digest: descriptor.digest,
            reason,
        })?;
        Ok(Arc::new(FileBlob::new(&self.shelf.shown, extent, &descriptor.digest)))
    }

    async fn sibling(&self, suffix: &str) -> Result<Option<Arc<dyn ImageSource>>, PlaceError> {
        let name = self
            .name
            .clone()
            .or_else(|| self.shelf.index.manifests.first().and_then(name_of).map(str::to_owned));
        let Some(name) = name.map(|name| format!("{name}{suffix}")) else { return Ok(None) };
        let wanted = name.clone();
        match self.on_shelf(move |shelf| shelf.resolve(Some(&wanted))).await {
            Ok(_) => {
                let place = (self.rename)(&self.place, name.clone());
                Ok(Some(Arc::new(Self::new(place, Some(name), Arc::clone(&self.shelf), self.rename))))
            }
            Err(PlaceError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The same failure in the words of a stream.
pub(crate) fn to_read_error(error: &PlaceError) -> ReadError {
    let kind = match error {
        PlaceError::MissingBlob { .. } | PlaceError::NotFound { .. } => ReadErrorKind::NotFound,
        PlaceError::Damaged { .. } | PlaceError::Malformed { .. } => ReadErrorKind::Corrupt,
        PlaceError::NoContainerd { .. } => ReadErrorKind::Unavailable,
        PlaceError::Interrupted => ReadErrorKind::Cancelled,
        PlaceError::DiskFull { .. } => ReadErrorKind::NoSpace,
        _ => ReadErrorKind::Other,
    };
    ReadError::local(kind, error.to_string())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::place::layout::empty_index;

    #[derive(Debug, Default)]
    struct Counted {
        blobs: HashMap<Digest, Bytes>,
        asked: Arc<AtomicUsize>,
    }

    impl Blobs for Counted {
        fn find(&self, digest: &Digest) -> io::Result<Option<Extent>> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            Ok(self.blobs.get(digest).cloned().map(Extent::memory))
        }
    }

    /// Ten times ten times ten times ten indexes, in four blobs.
    #[test]
    fn an_index_that_is_named_often_is_read_once() {
        let mut blobs = Counted::default();
        let asked = Arc::clone(&blobs.asked);
        let mut index = empty_index();
        for level in 0..4 {
            index.annotations = Some([("level".to_owned(), level.to_string())].into());
            let bytes = Bytes::from(serde_json::to_vec(&index).unwrap());
            let descriptor = Descriptor::new(media_type::OCI_INDEX, Digest::of(&bytes), bytes.len() as u64);
            blobs.blobs.insert(descriptor.digest, bytes);
            index.manifests = vec![descriptor; 10];
        }
        let shelf = Shelf {
            shown: "here".to_owned(),
            dir: None,
            index,
            index_bytes: Bytes::new(),
            blobs: Box::new(blobs),
        };
        assert!(shelf.resolve(Some("nothing")).unwrap_err().is_not_found());
        assert_eq!(asked.load(Ordering::Relaxed), 4);
    }
}
