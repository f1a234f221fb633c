//! Images of the local containerd, read and written over its socket.
//!
//! containerd keeps blobs by digest for each of its namespaces, and forgets what nothing refers to: an image
//! by name, a label `containerd.io/gc.ref.content.…` of a blob that something refers to, or a lease. A
//! [`target`] holds a lease for as long as the work takes, and labels manifests and indexes as containerd's
//! own client does; whoever takes the lease back takes back all that got no name.
//!
//! An image that was pulled for one platform names manifests and layers that containerd does not have. That
//! is found out when they are read.

use std::any::Any;
use std::fmt::{self, Debug};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use content::{
    BlobSource, ByteRange, ByteStream, ContentId, Digest, Fault, Hasher, Provenance, ReadError,
    ReadErrorKind, Urgency, stream_by_reads,
};
use futures::{StreamExt as _, TryStreamExt as _};
use proto::containerd::content::ReadContentRequest;
use registry::{Descriptor, Reference};

use super::blob::{check_bytes, failed};
use super::image::{MAX_MANIFEST, to_read_error};
use super::{Containerd, ImageSource, ImageTarget, Place, PlaceError};

mod api;
mod ingest;
mod shelf;
mod target;

use api::Api;
pub(crate) use shelf::{ContainerdShelf, Prepared};

/// Bytes of one read of a stretch.
const WINDOW: u64 = 1 << 20;
/// What to do about a blob that containerd lacks.
const INCOMPLETE: &str = "it was pulled for other platforms only; name one that is there, or pull it for all (ctr images pull --all-platforms)";

/// Names that `reference` may stand for: as it is, then completed by Docker's rules.
fn names(reference: &str) -> Vec<String> {
    let mut names = vec![reference.to_owned()];
    names.extend(
        reference.parse::<Reference>().ok().map(|whole| whole.to_string()).filter(|whole| whole != reference),
    );
    names
}

/// Opens the image `reference` to read it.
pub(crate) async fn source(
    place: &Place,
    containerd: &Containerd,
    namespace: Option<&String>,
    reference: &str,
) -> Result<Arc<dyn ImageSource>, PlaceError> {
    let api = Api::connect(containerd, namespace).await?;
    for name in names(reference) {
        if let Some(root) = api.image(&name).await? {
            return Ok(Arc::new(ContainerdSource { place: place.clone(), api, name, root }));
        }
    }
    let available = api.elsewhere(&names(reference)).await;
    Err(PlaceError::NotFound { place: place.to_string(), available })
}

/// Opens the image `reference` to write it.
pub(crate) async fn target(
    place: &Place,
    containerd: &Containerd,
    namespace: Option<&String>,
    reference: &str,
) -> Result<Arc<dyn ImageTarget>, PlaceError> {
    let api = Api::connect(containerd, namespace).await?;
    let name = names(reference).pop().unwrap_or_default();
    Ok(target::open(place.clone(), api, name))
}

/// The same place with another image.
fn rename(place: &Place, reference: String) -> Place {
    match place {
        Place::Containerd { namespace, .. } => Place::Containerd { namespace: namespace.clone(), reference },
        other => other.clone(),
    }
}

/// An image of containerd.
struct ContainerdSource {
    place: Place,
    api: Api,
    name: String,
    root: Descriptor,
}

impl Debug for ContainerdSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ContainerdSource").field("place", &self.place).finish_non_exhaustive()
    }
}

#[async_trait]
impl ImageSource for ContainerdSource {
    fn place(&self) -> &Place {
        &self.place
    }

    async fn root(&self) -> Result<(Descriptor, Bytes), PlaceError> {
        Ok((self.root.clone(), self.manifest(&self.root).await?))
    }

    async fn manifest(&self, descriptor: &Descriptor) -> Result<Bytes, PlaceError> {
        self.document(descriptor, MAX_MANIFEST).await
    }

    async fn document(&self, descriptor: &Descriptor, limit: u64) -> Result<Bytes, PlaceError> {
        read(&self.api, &self.place, descriptor, limit).await
    }

    fn stream(&self, descriptor: &Descriptor, _: Urgency) -> ByteStream {
        stream(self.api.clone(), self.place.to_string(), descriptor)
    }

    async fn ranges(&self, descriptor: &Descriptor) -> Result<Arc<dyn BlobSource>, PlaceError> {
        let digest = descriptor.digest;
        let place = self.place.to_string();
        let Some(info) = self.api.info(&digest).await? else {
            return Err(PlaceError::MissingBlob { place, digest, hint: INCOMPLETE });
        };
        if u64::try_from(info.size) != Ok(descriptor.size) {
            let reason = format!("it has {} bytes, the descriptor says {}", info.size, descriptor.size);
            return Err(PlaceError::Damaged { place, digest, reason });
        }
        let id = ContentId::claimed(&place, &digest);
        Ok(Arc::new(StoredBlob { id, api: self.api.clone(), digest, len: descriptor.size, place }))
    }

    async fn sibling(&self, suffix: &str) -> Result<Option<Arc<dyn ImageSource>>, PlaceError> {
        let name = format!("{}{suffix}", self.name);
        let Some(root) = self.api.image(&name).await? else { return Ok(None) };
        let place = rename(&self.place, name.clone());
        Ok(Some(Arc::new(Self { place, api: self.api.clone(), name, root })))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A whole small blob, its digest compared.
async fn read(api: &Api, place: &Place, descriptor: &Descriptor, limit: u64) -> Result<Bytes, PlaceError> {
    let (place, digest) = (place.to_string(), descriptor.digest);
    if descriptor.size > limit {
        let reason =
            format!("it has {} bytes, more than the {limit} such a document may have", descriptor.size);
        return Err(PlaceError::Damaged { place, digest, reason });
    }
    let doing = || format!("reading {digest}");
    let request = ReadContentRequest { digest: digest.to_string(), offset: 0, size: 0 };
    let answer = api.content().read(api.request(request)?).await;
    let mut pieces = match answer {
        Ok(pieces) => pieces.into_inner(),
        Err(status) if api::is_not_found(&status) => {
            return Err(PlaceError::MissingBlob { place, digest, hint: INCOMPLETE });
        }
        Err(status) => return Err(api.error(doing(), &status)),
    };
    let mut bytes = BytesMut::new();
    loop {
        match pieces.message().await {
            Ok(Some(piece)) if (bytes.len() + piece.data.len()) as u64 <= descriptor.size => {
                bytes.extend_from_slice(&piece.data);
            }
            Ok(Some(_)) => {
                let reason =
                    format!("it has more than the {} bytes that the descriptor says", descriptor.size);
                return Err(PlaceError::Damaged { place, digest, reason });
            }
            Ok(None) => break,
            // containerd finds out only now that it has not got it.
            Err(status) if api::is_not_found(&status) => {
                return Err(PlaceError::MissingBlob { place, digest, hint: INCOMPLETE });
            }
            Err(status) => return Err(api.error(doing(), &status)),
        }
    }
    let bytes = bytes.freeze();
    check_bytes(&place, descriptor, &bytes)?;
    Ok(bytes)
}

/// A stream of a blob that ends with an error if it is another one.
fn stream(api: Api, place: String, descriptor: &Descriptor) -> ByteStream {
    let (expected, size) = (descriptor.digest, descriptor.size);
    let corrupt = {
        let place = place.clone();
        move |reason: String| {
            ReadError::local(ReadErrorKind::Corrupt, format!("{place}: {expected}: {reason}"))
        }
    };
    let pieces = pieces(api, place, expected, ByteRange::new(0, 0));
    let state = (pieces, Hasher::new(), 0_u64);
    futures::stream::try_unfold(state, move |(mut pieces, mut hasher, mut len)| {
        let corrupt = corrupt.clone();
        async move {
            let Some(piece) = pieces.try_next().await? else {
                let found = hasher.finish();
                return if len != size {
                    Err(corrupt(format!("it has {len} bytes, the descriptor says {size}")))
                } else if found != expected {
                    Err(corrupt(format!("its bytes have the digest {found}")))
                } else {
                    Ok(None)
                };
            };
            hasher.update(&piece);
            len += piece.len() as u64;
            if len > size {
                return Err(corrupt(format!("it has more than the {size} bytes that the descriptor says")));
            }
            Ok(Some((piece, (pieces, hasher, len))))
        }
    })
    .boxed()
}

/// The bytes of a range as containerd sends them; all of the blob if the range is empty.
fn pieces(api: Api, place: String, digest: Digest, range: ByteRange) -> ByteStream {
    let (Ok(offset), Ok(size)) = (i64::try_from(range.start), i64::try_from(range.len())) else {
        let message = format!("{place}: no blob has a range {range}");
        return failed(ReadError::new(Fault::Caller, ReadErrorKind::OutOfRange, message));
    };
    let request = ReadContentRequest { digest: digest.to_string(), offset, size };
    let error = move |status: &tonic::Status| {
        if api::is_not_found(status) {
            let place = place.clone();
            return to_read_error(&PlaceError::MissingBlob { place, digest, hint: INCOMPLETE });
        }
        ReadError::local(
            ReadErrorKind::Unavailable,
            format!("{place}: reading {digest}: {}", api::words(status)),
        )
    };
    let open = async move {
        let request = api.request(request).map_err(|error| to_read_error(&error))?;
        let pieces = api.content().read(request).await.map_err(|status| error(&status))?.into_inner();
        Ok::<_, ReadError>(
            pieces.map(move |piece| piece.map(|piece| piece.data).map_err(|status| error(&status))),
        )
    };
    futures::stream::once(open).try_flatten().boxed()
}

/// A blob of containerd, read by ranges.
struct StoredBlob {
    id: ContentId,
    api: Api,
    digest: Digest,
    len: u64,
    place: String,
}

#[async_trait]
impl BlobSource for StoredBlob {
    fn id(&self) -> &ContentId {
        &self.id
    }

    fn len(&self) -> u64 {
        self.len
    }

    async fn read_traced(&self, range: ByteRange, _: Urgency) -> Result<(Bytes, Provenance), ReadError> {
        if range.end > self.len {
            let message = format!("range {range} ends beyond the {} bytes of {}", self.len, self.digest);
            return Err(ReadError::new(Fault::Caller, ReadErrorKind::OutOfRange, message));
        }
        if range.is_empty() {
            return Ok((Bytes::new(), Provenance::Store));
        }
        let mut pieces = pieces(self.api.clone(), self.place.clone(), self.digest, range);
        let mut bytes = BytesMut::new();
        while let Some(piece) = pieces.try_next().await? {
            bytes.extend_from_slice(&piece);
        }
        if bytes.len() as u64 != range.len() {
            let message = format!("{}: {} bytes came for the range {range}", self.place, bytes.len());
            return Err(ReadError::local(ReadErrorKind::Corrupt, message));
        }
        Ok((bytes.freeze(), Provenance::Store))
    }

    fn stream(self: Arc<Self>, range: ByteRange, urgency: Urgency) -> ByteStream {
        stream_by_reads(self, range, urgency, WINDOW, 2)
    }
}
