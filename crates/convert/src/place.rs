//! Where images are and where they go: registries, OCI layouts and archives, Docker's archives, containerd.
//!
//! A [`Place`] is what a person writes. [`Places`] knows what this machine can reach and opens it, as an
//! [`ImageSource`] or as an [`ImageTarget`]; whoever works on images knows nothing else of where they are.
//!
//! **A source lies until it was hashed.** Documents are compared with their digest before they are given
//! out, and a stream of a blob ends with an error if its digest or its length is not what the descriptor
//! says. The exception is [`ImageSource::ranges`], which reads parts.
//!
//! **A target shows nothing half written.** Blobs come first, then manifests by digest, and
//! [`ImageTarget::name`] is last of all: before it the name stands for what it stood for before. What was
//! brought for an image that never got its name is taken back by [`ImageTarget::abandon`].
//!
//! Digests become file names, and only after they were parsed as such; no other word of an image ever does.

use std::any::Any;
use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::Arc;

use ::registry::{Client, Descriptor};
use async_trait::async_trait;
use bytes::Bytes;
use content::{BlobSource, ByteStream, Digest, Urgency};

mod archive;
mod blob;
mod containerd;
mod docker_archive;
mod error;
mod image;
mod layout;
mod name;
mod registry;
mod spool;
mod tar_index;

pub(crate) use containerd::{ContainerdShelf, Prepared};
pub use error::PlaceError;
pub use name::{Place, PlaceParseError};

/// The local containerd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Containerd {
    /// The socket of its API.
    pub address: PathBuf,
    /// Which of its namespaces is meant where a place names none.
    pub namespace: String,
}

impl Default for Containerd {
    /// containerd's own defaults.
    fn default() -> Self {
        Self { address: "/run/containerd/containerd.sock".into(), namespace: "default".to_owned() }
    }
}

/// What this machine can reach.
#[derive(Clone, Debug)]
pub struct Places {
    /// Speaks with registries.
    pub client: Client,
    /// The local containerd. It is not asked before a place names it.
    pub containerd: Containerd,
    /// Where blobs stay that cannot be written where they go before they are whole.
    pub temporary: PathBuf,
}

impl Places {
    /// Opens `place` to read from. Nothing is read yet but what is needed to know that it is there.
    ///
    /// # Errors
    /// That there is nothing, or nothing of this kind.
    pub async fn source(&self, place: &Place) -> Result<Arc<dyn ImageSource>, PlaceError> {
        match place {
            Place::Registry(reference) => Ok(registry::source(&self.client, reference)),
            Place::OciLayout { dir, tag } => layout::source(place, dir, tag.as_ref()).await,
            Place::OciArchive { file, tag } => {
                archive::source(place, file, tag.as_ref(), &self.temporary).await
            }
            Place::DockerArchive { file, reference } => {
                docker_archive::source(place, file, reference.as_ref(), &self.temporary).await
            }
            Place::Containerd { namespace, reference } => {
                containerd::source(place, &self.containerd, namespace.as_ref(), reference).await
            }
        }
    }

    /// Opens `place` to write to. Nothing is written yet.
    ///
    /// # Errors
    /// That images cannot be written there.
    pub async fn target(&self, place: &Place) -> Result<Arc<dyn ImageTarget>, PlaceError> {
        match place {
            Place::Registry(reference) => registry::target(&self.client, reference, &self.temporary),
            Place::OciLayout { dir, tag } => Ok(layout::target(place, dir, tag.as_ref())),
            Place::OciArchive { file, tag } => {
                Ok(archive::target(place, file, tag.as_ref(), &self.temporary))
            }
            Place::DockerArchive { .. } => Err(PlaceError::unsupported(
                place,
                "cannot be written: the format has no place for the annotations that lazy layers need; write \
                 oci-archive: instead",
            )),
            Place::Containerd { namespace, reference } => {
                containerd::target(place, &self.containerd, namespace.as_ref(), reference).await
            }
        }
    }
}

/// One image, to be read.
#[async_trait]
pub trait ImageSource: Send + Sync + Debug {
    /// Where it is.
    fn place(&self) -> &Place;

    /// What the name stands for: a manifest or an index, its digest compared.
    ///
    /// # Errors
    /// That it is not there, cannot be read, or is not what its digest says.
    async fn root(&self) -> Result<(Descriptor, Bytes), PlaceError>;

    /// A manifest or an index that the root names, its digest compared.
    ///
    /// # Errors
    /// As [`ImageSource::root`].
    async fn manifest(&self, descriptor: &Descriptor) -> Result<Bytes, PlaceError>;

    /// A small blob such as a config, its digest compared.
    ///
    /// # Errors
    /// As [`ImageSource::root`], and that it is longer than `limit` bytes.
    async fn document(&self, descriptor: &Descriptor, limit: u64) -> Result<Bytes, PlaceError>;

    /// A whole blob. The stream ends with an error if the bytes do not have the descriptor's digest and
    /// size: whoever uses them before the end must be able to take that back.
    fn stream(&self, descriptor: &Descriptor, urgency: Urgency) -> ByteStream;

    /// A blob to be read by ranges. Only the ranges that are read are fetched, so nothing is compared.
    ///
    /// # Errors
    /// That it is not there, or has another length than the descriptor says.
    async fn ranges(&self, descriptor: &Descriptor) -> Result<Arc<dyn BlobSource>, PlaceError>;

    /// The image beside this one whose name has `suffix` added, such as the `-esgztoc` image that carries the
    /// TOCs; `None` if there is none.
    ///
    /// # Errors
    /// That nobody could tell whether it is there.
    async fn sibling(&self, suffix: &str) -> Result<Option<Arc<dyn ImageSource>>, PlaceError>;

    /// For a target that knows how to take a blob from this kind of source without moving its bytes.
    fn as_any(&self) -> &dyn Any;
}

/// One image, to be written.
#[async_trait]
pub trait ImageTarget: Send + Sync + Debug {
    /// Where it goes.
    fn place(&self) -> &Place;

    /// Tries whether it may be written, so that who may not learns it before the work and not after.
    ///
    /// # Errors
    /// That it may not, or cannot.
    async fn check(&self) -> Result<(), PlaceError>;

    /// What the name stands for now, its digest compared; `None` if it is a new name.
    ///
    /// # Errors
    /// That nobody could tell.
    async fn current(&self) -> Result<Option<(Descriptor, Bytes)>, PlaceError>;

    /// A manifest or an index that the target has, its digest compared; `None` if it has not.
    ///
    /// # Errors
    /// That nobody could tell.
    async fn manifest(&self, descriptor: &Descriptor) -> Result<Option<Bytes>, PlaceError>;

    /// Whether the target has the blob, so that it need not be brought.
    ///
    /// # Errors
    /// That nobody could tell.
    async fn has(&self, descriptor: &Descriptor) -> Result<bool, PlaceError>;

    /// Takes the blob from `source` without moving its bytes through here, if the two know how: by a mount
    /// from another repository, by a link. `false` if they do not.
    ///
    /// # Errors
    /// What went wrong; the blob can still be brought byte by byte.
    async fn adopt(&self, source: &dyn ImageSource, descriptor: &Descriptor) -> Result<bool, PlaceError>;

    /// Begins a blob whose digest is not known yet.
    ///
    /// # Errors
    /// That there is no room, or nothing to write to.
    async fn begin(&self) -> Result<Box<dyn BlobWriter>, PlaceError>;

    /// Brings a small blob, such as a config. One that is there already is left as it is.
    ///
    /// # Errors
    /// That `bytes` are not what the descriptor says, or what the target said.
    async fn put_blob(&self, descriptor: &Descriptor, bytes: Bytes) -> Result<(), PlaceError>;

    /// Brings a manifest or an index without a name. All that it names must have been brought before.
    ///
    /// # Errors
    /// As [`ImageTarget::put_blob`].
    async fn put_manifest(&self, descriptor: &Descriptor, bytes: Bytes) -> Result<(), PlaceError>;

    /// Brings the root and gives it the name. All that it names must have been brought before; a sibling
    /// must have got its name before.
    ///
    /// # Errors
    /// As [`ImageTarget::put_blob`]; then the name stands for what it stood for before.
    async fn name(&self, root: &Descriptor, bytes: Bytes) -> Result<(), PlaceError>;

    /// The image beside this one whose name has `suffix` added.
    ///
    /// # Errors
    /// That there cannot be such a name.
    async fn sibling(&self, suffix: &str) -> Result<Arc<dyn ImageTarget>, PlaceError>;

    /// Takes back what was brought, as far as no name needs it: after a failure, or when nobody wants the
    /// image any more. After [`ImageTarget::name`] it does nothing.
    async fn abandon(&self);
}

/// A blob on its way to a target. One that is dropped without an end leaves nothing that has a name; what
/// else it leaves, [`ImageTarget::abandon`] takes back.
#[async_trait]
pub trait BlobWriter: Send {
    /// Adds bytes. May wait until those before have gone.
    ///
    /// # Errors
    /// That there is no room, or that the target is gone for good.
    async fn write(&mut self, bytes: Bytes) -> Result<(), PlaceError>;

    /// Ends the blob, which must be what `descriptor` says. `diff_id` is the digest of a layer when
    /// inflated, for targets that keep note of it.
    ///
    /// # Errors
    /// That it has another digest or size, or what the target said; then the target does not have it.
    async fn commit(
        self: Box<Self>,
        descriptor: &Descriptor,
        diff_id: Option<&Digest>,
    ) -> Result<(), PlaceError>;

    /// Takes the blob back.
    async fn abort(self: Box<Self>);
}
