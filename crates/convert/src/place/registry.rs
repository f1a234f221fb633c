//! Images of registries.
//!
//! A registry wants to know a blob's digest only at the end of its upload, so bytes leave while they are
//! made. They also go into a file without a name: a broken upload goes on from there, or begins anew, and a
//! registry that takes no chunks gets the blob in one piece.

use std::any::Any;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use content::{BlobSource, ByteStream, ContentOpener as _, Digest, DirectOpener, Urgency};
use futures::StreamExt as _;
use registry::{Client, Descriptor, Reference, RegistryError};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::blob::check_bytes;
use super::layout::sibling_name;
use super::{BlobWriter, ImageSource, ImageTarget, Place, PlaceError};

mod upload;

use upload::RegistryBlob;

/// Opens the image `reference` to read it.
pub(crate) fn source(client: &Client, reference: &Reference) -> Arc<dyn ImageSource> {
    Arc::new(RegistrySource::new(client.clone(), reference.clone()))
}

/// Opens the image `reference` to write it. `temporary` is where blobs are kept that are under way.
pub(crate) fn target(
    client: &Client,
    reference: &Reference,
    temporary: &Path,
) -> Result<Arc<dyn ImageTarget>, PlaceError> {
    let place = Place::Registry(reference.clone());
    if reference.digest().is_some() {
        return Err(PlaceError::unsupported(
            &place,
            "has a digest, which nobody knows before the work is done: give it a tag instead",
        ));
    }
    Ok(Arc::new(RegistryTarget {
        place,
        client: client.clone(),
        reference: reference.clone(),
        temporary: temporary.to_owned(),
        work: Arc::default(),
        beside: false,
    }))
}

/// An image of a registry.
#[derive(Debug)]
struct RegistrySource {
    place: Place,
    client: Client,
    reference: Reference,
}

impl RegistrySource {
    fn new(client: Client, reference: Reference) -> Self {
        Self { place: Place::Registry(reference.clone()), client, reference }
    }

    fn read_error(&self, digest: Digest) -> impl FnOnce(content::ReadError) -> PlaceError {
        let place = self.place.to_string();
        move |reason| PlaceError::Read { place, digest, reason }
    }
}

#[async_trait]
impl ImageSource for RegistrySource {
    fn place(&self) -> &Place {
        &self.place
    }

    async fn root(&self) -> Result<(Descriptor, Bytes), PlaceError> {
        Ok(self.client.manifest(&self.reference).await?)
    }

    async fn manifest(&self, descriptor: &Descriptor) -> Result<Bytes, PlaceError> {
        let reference = self.reference.clone().with_digest(descriptor.digest);
        let (_, bytes) = self.client.manifest(&reference).await?;
        check_bytes(&self.place.to_string(), descriptor, &bytes)?;
        Ok(bytes)
    }

    async fn document(&self, descriptor: &Descriptor, limit: u64) -> Result<Bytes, PlaceError> {
        let read = self.client.pull_bytes(&self.reference, descriptor, limit).await;
        read.map_err(self.read_error(descriptor.digest))
    }

    fn stream(&self, descriptor: &Descriptor, urgency: Urgency) -> ByteStream {
        self.client.pull_blob(&self.reference, descriptor, urgency)
    }

    async fn ranges(&self, descriptor: &Descriptor) -> Result<Arc<dyn BlobSource>, PlaceError> {
        let origin = self.client.origin(&self.reference, &descriptor.digest, Some(descriptor.size));
        let opened = DirectOpener.open(origin, 0).await;
        Ok(opened.map_err(self.read_error(descriptor.digest))?.source)
    }

    async fn sibling(&self, suffix: &str) -> Result<Option<Arc<dyn ImageSource>>, PlaceError> {
        let Some(reference) = self.reference.tag().map(|tag| format!("{tag}{suffix}")) else {
            return Ok(None);
        };
        let reference = self.reference.clone().with_tag(&reference).map_err(RegistryError::from)?;
        let sibling = Self::new(self.client.clone(), reference);
        match sibling.root().await {
            Ok(_) => Ok(Some(Arc::new(sibling))),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// An image of a registry, to be written.
#[derive(Debug)]
struct RegistryTarget {
    place: Place,
    client: Client,
    reference: Reference,
    temporary: PathBuf,
    work: Arc<Work>,
    /// Whether it is a sibling, which gets its name together with the image that it belongs to.
    beside: bool,
}

/// What an image and its siblings share.
#[derive(Debug, Default)]
struct Work {
    /// Uploads under way.
    uploads: TaskTracker,
    /// Takes them back.
    stop: CancellationToken,
    /// Siblings that have to get their names.
    beside: Mutex<Vec<(Reference, Descriptor, Bytes)>>,
}

#[async_trait]
impl ImageTarget for RegistryTarget {
    fn place(&self) -> &Place {
        &self.place
    }

    async fn check(&self) -> Result<(), PlaceError> {
        Ok(self.client.check_push(&self.reference).await?)
    }

    async fn current(&self) -> Result<Option<(Descriptor, Bytes)>, PlaceError> {
        Ok(self.client.pushed_manifest(&self.reference).await?)
    }

    async fn manifest(&self, descriptor: &Descriptor) -> Result<Option<Bytes>, PlaceError> {
        let reference = self.reference.clone().with_digest(descriptor.digest);
        Ok(self.client.pushed_manifest(&reference).await?.map(|(_, bytes)| bytes))
    }

    async fn has(&self, descriptor: &Descriptor) -> Result<bool, PlaceError> {
        Ok(self.client.blob_exists(&self.reference, &descriptor.digest).await?)
    }

    async fn adopt(&self, source: &dyn ImageSource, descriptor: &Descriptor) -> Result<bool, PlaceError> {
        let Some(source) = source.as_any().downcast_ref::<RegistrySource>() else { return Ok(false) };
        let from = &source.reference;
        if from.registry() != self.reference.registry() {
            return Ok(false);
        }
        if from.repository() == self.reference.repository() {
            return self.has(descriptor).await;
        }
        match self.client.mount_blob(&self.reference, &descriptor.digest, from.repository()).await {
            Ok(mounted) => Ok(mounted),
            // The account may push and pull, and still not mount: then the bytes travel.
            Err(error) => {
                tracing::debug!(%error, "copying a blob that could not be mounted");
                Ok(false)
            }
        }
    }

    async fn begin(&self) -> Result<Box<dyn BlobWriter>, PlaceError> {
        let (client, reference) = (self.client.clone(), self.reference.clone());
        let (uploads, stop) = (self.work.uploads.clone(), self.work.stop.child_token());
        Ok(Box::new(RegistryBlob::new(client, reference, &self.temporary, uploads, stop).await?))
    }

    async fn put_blob(&self, descriptor: &Descriptor, bytes: Bytes) -> Result<(), PlaceError> {
        check_bytes(&self.place.to_string(), descriptor, &bytes)?;
        let stream = move || futures::stream::iter([Ok(bytes.clone())]).boxed();
        let (digest, size) = (descriptor.digest, descriptor.size);
        Ok(self.client.push_blob(&self.reference, &digest, size, &stream, None).await?)
    }

    async fn put_manifest(&self, descriptor: &Descriptor, bytes: Bytes) -> Result<(), PlaceError> {
        check_bytes(&self.place.to_string(), descriptor, &bytes)?;
        let reference = self.reference.clone().with_digest(descriptor.digest);
        self.client.push_manifest(&reference, &descriptor.media_type, bytes).await?;
        Ok(())
    }

    async fn name(&self, root: &Descriptor, bytes: Bytes) -> Result<(), PlaceError> {
        if self.beside {
            self.put_manifest(root, bytes.clone()).await?;
            let sibling = (self.reference.clone(), root.clone(), bytes);
            self.work.beside.lock().unwrap_or_else(PoisonError::into_inner).push(sibling);
            return Ok(());
        }
        check_bytes(&self.place.to_string(), root, &bytes)?;
        let beside = self.work.beside.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (reference, root, bytes) in beside {
            self.client.push_manifest(&reference, &root.media_type, bytes).await?;
        }
        self.client.push_manifest(&self.reference, &root.media_type, bytes).await?;
        Ok(())
    }

    async fn sibling(&self, suffix: &str) -> Result<Arc<dyn ImageTarget>, PlaceError> {
        let tag = sibling_name(&self.place, self.reference.tag(), suffix)?;
        let reference = self.reference.clone().with_tag(&tag).map_err(RegistryError::from)?;
        Ok(Arc::new(Self {
            place: Place::Registry(reference.clone()),
            client: self.client.clone(),
            reference,
            temporary: self.temporary.clone(),
            work: Arc::clone(&self.work),
            beside: true,
        }))
    }

    async fn abandon(&self) {
        self.work.stop.cancel();
        self.work.uploads.close();
        self.work.uploads.wait().await;
    }
}
