//! Where bytes can be read: the one trait in the middle of the house, and its two neighbours.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};

use crate::{ByteRange, ContentId, Digest, ReadError, ReadErrorKind};

/// Who waits for a read. Every queue on a byte's way serves the lower value first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Urgency {
    /// A process in a container sleeps until these bytes are here.
    Blocking,
    /// A start will probably need them soon.
    Prefetch,
    /// Nobody waits; use bandwidth that nobody else wants.
    Background,
}

/// Where bytes came from, in order of cost.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Provenance {
    /// This node's own disk.
    Store,
    /// Another node.
    Peer,
    /// A seed peer.
    Seed,
    /// The registry.
    Origin,
}

impl Provenance {
    /// The word that status, metrics and the `X-Pantala-Source` header use.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Store => "store",
            Self::Peer => "peer",
            Self::Seed => "seed",
            Self::Origin => "origin",
        }
    }
}

/// Bytes as they arrive. Ends after the last byte, or with the first error.
pub type ByteStream = BoxStream<'static, Result<Bytes, ReadError>>;

/// An immutable byte string that can be read by range.
///
/// A read answers exactly the bytes of the range or fails; it never answers fewer. Dropping the future
/// cancels the caller's interest, and nothing else that shares the fetch.
#[async_trait]
pub trait BlobSource: Send + Sync {
    /// The name of the content.
    fn id(&self) -> &ContentId;

    /// Its length in bytes.
    fn len(&self) -> u64;

    /// Whether it has no byte.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes come in multiples of so many: whoever reads a part of such a piece is sent all of it, and the rest
    /// costs nothing.
    fn unit(&self) -> u64 {
        1
    }

    /// Reads `range`, and tells the costliest place that any of its bytes came from.
    ///
    /// # Errors
    /// [`ReadErrorKind::OutOfRange`] if `range` ends beyond the content; otherwise whatever kept every
    /// source from answering.
    async fn read_traced(&self, range: ByteRange, urgency: Urgency)
    -> Result<(Bytes, Provenance), ReadError>;

    /// Reads `range`.
    ///
    /// # Errors
    /// As [`BlobSource::read_traced`].
    async fn read(&self, range: ByteRange, urgency: Urgency) -> Result<Bytes, ReadError> {
        self.read_traced(range, urgency).await.map(|(bytes, _)| bytes)
    }

    /// Streams `range`, bytes as they arrive: for ranges too long to hold in memory.
    fn stream(self: Arc<Self>, range: ByteRange, urgency: Urgency) -> ByteStream;

    /// Told by a reader that the bytes of `range` are not what they must be (a chunk's digest differs): what
    /// is kept of them is forgotten, and the next read asks elsewhere. A source that keeps nothing has
    /// nothing to do.
    async fn reject(&self, range: ByteRange) {
        let _ = range;
    }
}

/// A [`BlobSource::stream`] made of successive reads of `window` bytes, `ahead` of them under way at once.
pub fn stream_by_reads<S>(
    source: Arc<S>,
    range: ByteRange,
    urgency: Urgency,
    window: u64,
    ahead: usize,
) -> ByteStream
where
    S: BlobSource + ?Sized + 'static,
{
    let window = window.max(1);
    let starts = std::iter::successors(Some(range.start), move |at| at.checked_add(window))
        .take_while(move |at| *at < range.end);
    futures::stream::iter(starts)
        .map(move |start| {
            let source = Arc::clone(&source);
            async move { source.read(ByteRange::at(start, window).intersect(&range), urgency).await }
        })
        .buffered(ahead.max(1))
        .boxed()
}

/// The end of a blob, and with it the blob's length.
#[derive(Clone, Debug)]
pub struct Tail {
    /// Length of the whole blob in bytes.
    pub len: u64,
    /// Its last bytes.
    pub bytes: Bytes,
}

/// Where another node can find the same blob. Carries no credentials: whoever goes there uses its own.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Locator {
    /// Scheme and host of the registry, `https://registry.example` or `http://10.0.0.2:5000`.
    pub registry: String,
    /// Repository, `library/python`.
    pub repository: String,
    /// The digest that the registry serves the blob under.
    pub digest: Digest,
}

/// A blob at the place it comes from. Its length need not be known before the first request.
#[async_trait]
pub trait Origin: Send + Sync {
    /// The name of the content.
    fn id(&self) -> &ContentId;

    /// Its length in bytes, if a manifest told it.
    fn known_len(&self) -> Option<u64>;

    /// The digest that the whole blob must have, if it is named by one.
    fn expected_digest(&self) -> Option<Digest>;

    /// How others find the same blob; `None` if only this node can (it needs a caller's credentials).
    fn locator(&self) -> Option<Locator>;

    /// The last `at_most` bytes and the length, by one request.
    ///
    /// # Errors
    /// What the origin answered, or that it could not be reached.
    async fn tail(&self, at_most: u64) -> Result<Tail, ReadError>;

    /// Reads `range` by one request.
    ///
    /// # Errors
    /// What the origin answered, or that it could not be reached.
    async fn read(&self, range: ByteRange, urgency: Urgency) -> Result<Bytes, ReadError>;

    /// Streams `range` by one request, bytes as they arrive.
    fn stream(self: Arc<Self>, range: ByteRange, urgency: Urgency) -> ByteStream;

    /// Told by a reader that the bytes of `range` are not what they must be: where they came from is asked last
    /// from now on. An origin that is one place only has nothing to do.
    async fn reject(&self, range: ByteRange) {
        let _ = range;
    }
}

/// An opened blob.
#[derive(Clone)]
pub struct OpenBlob {
    /// Reads it.
    pub source: Arc<dyn BlobSource>,
    /// Its last bytes, if learning the length brought them along.
    pub tail: Option<Bytes>,
}

/// Turns an origin into something to read from: directly, or through the cluster.
#[async_trait]
pub trait ContentOpener: Send + Sync {
    /// Opens the blob. `tail` is how many of its last bytes the caller is going to need first; if its
    /// length has to be asked for, they come with the same request.
    ///
    /// # Errors
    /// That nobody who was asked knows the blob.
    async fn open(&self, origin: Arc<dyn Origin>, tail: u64) -> Result<OpenBlob, ReadError>;
}

/// Opens blobs straight at their origin.
#[derive(Clone, Copy, Debug, Default)]
pub struct DirectOpener;

#[async_trait]
impl ContentOpener for DirectOpener {
    async fn open(&self, origin: Arc<dyn Origin>, tail: u64) -> Result<OpenBlob, ReadError> {
        let (len, tail) = match origin.known_len() {
            Some(len) if tail == 0 => (len, None),
            _ => {
                let tail = origin.tail(tail.max(1)).await?;
                (tail.len, Some(tail.bytes))
            }
        };
        Ok(OpenBlob { source: Arc::new(DirectBlob { origin, len }), tail })
    }
}

/// A blob that is read from its origin and nowhere else.
struct DirectBlob {
    origin: Arc<dyn Origin>,
    len: u64,
}

impl DirectBlob {
    fn check(&self, range: ByteRange) -> Result<(), ReadError> {
        if range.end <= self.len {
            return Ok(());
        }
        let message = format!("range {range} ends beyond the {} bytes of {}", self.len, self.origin.id());
        Err(ReadError::new(crate::Fault::Caller, ReadErrorKind::OutOfRange, message))
    }
}

#[async_trait]
impl BlobSource for DirectBlob {
    fn id(&self) -> &ContentId {
        self.origin.id()
    }

    fn len(&self) -> u64 {
        self.len
    }

    async fn read_traced(
        &self,
        range: ByteRange,
        urgency: Urgency,
    ) -> Result<(Bytes, Provenance), ReadError> {
        self.check(range)?;
        Ok((self.origin.read(range, urgency).await?, Provenance::Origin))
    }

    fn stream(self: Arc<Self>, range: ByteRange, urgency: Urgency) -> ByteStream {
        match self.check(range) {
            Ok(()) => Arc::clone(&self.origin).stream(range, urgency),
            Err(error) => futures::stream::iter([Err(error)]).boxed(),
        }
    }

    async fn reject(&self, range: ByteRange) {
        self.origin.reject(range).await;
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "ten bytes fit")]
mod tests {
    use super::*;

    struct Memory(ContentId, Bytes);

    #[async_trait]
    impl Origin for Memory {
        fn id(&self) -> &ContentId {
            &self.0
        }
        fn known_len(&self) -> Option<u64> {
            None
        }
        fn expected_digest(&self) -> Option<Digest> {
            None
        }
        fn locator(&self) -> Option<Locator> {
            None
        }
        async fn tail(&self, at_most: u64) -> Result<Tail, ReadError> {
            let len = self.1.len() as u64;
            Ok(Tail { len, bytes: self.1.slice(len.saturating_sub(at_most) as usize..) })
        }
        async fn read(&self, range: ByteRange, _: Urgency) -> Result<Bytes, ReadError> {
            Ok(self.1.slice(range.start as usize..range.end as usize))
        }
        fn stream(self: Arc<Self>, range: ByteRange, _: Urgency) -> ByteStream {
            futures::stream::iter([Ok(self.1.slice(range.start as usize..range.end as usize))]).boxed()
        }
    }

    #[tokio::test]
    async fn one_request_tells_length_and_tail() {
        let origin = Arc::new(Memory(ContentId::url(&["m"]), Bytes::from_static(b"0123456789")));
        let blob = DirectOpener.open(origin, 3).await.unwrap();
        assert_eq!(blob.source.len(), 10);
        assert_eq!(blob.tail.unwrap(), "789");
        assert_eq!(blob.source.read(ByteRange::new(2, 5), Urgency::Blocking).await.unwrap(), "234");
        let error = blob.source.read(ByteRange::new(5, 11), Urgency::Blocking).await.unwrap_err();
        assert_eq!(error.kind(), ReadErrorKind::OutOfRange);
    }

    #[tokio::test]
    async fn a_stream_of_reads_is_the_range_in_order() {
        let origin = Arc::new(Memory(ContentId::url(&["m"]), Bytes::from_static(b"0123456789")));
        let blob = DirectOpener.open(origin, 1).await.unwrap();
        let parts: Vec<_> =
            stream_by_reads(blob.source, ByteRange::new(1, 9), Urgency::Prefetch, 3, 2).collect().await;
        let parts: Vec<Bytes> = parts.into_iter().map(Result::unwrap).collect();
        assert_eq!(parts, ["123", "456", "78"]);
    }
}
