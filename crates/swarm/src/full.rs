//! A full disk is no reason to fail a read: what cannot be kept is read at the origin and passed on.
//!
//! The store is how the swarm works: pieces go to disk, and readers and neighbours get them from there. With
//! no room that way is closed, and only the origin is left. After such a failure a blob goes straight there
//! for a while: asking the swarm first would fetch everything twice.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use content::{
    BlobSource, ByteRange, ByteStream, ContentId, Origin, Provenance, ReadError, ReadErrorKind, Urgency,
};
use futures::StreamExt;
use tokio::time::Instant;

use crate::node::lock;

/// How long the swarm is not asked again: short, because room may be made at any time.
const PAUSE: Duration = Duration::from_secs(5);

/// Whether `error` says that this machine's disk is full.
pub(crate) fn is_full(error: &ReadError) -> bool {
    error.kind() == ReadErrorKind::NoSpace
}

/// A blob of the swarm, and its origin for when it cannot be kept.
pub(crate) struct Unkept {
    source: Arc<dyn BlobSource>,
    origin: Arc<dyn Origin>,
    /// Until when the swarm is left alone.
    pause: Mutex<Option<Instant>>,
}

impl Unkept {
    pub(crate) fn new(source: Arc<dyn BlobSource>, origin: Arc<dyn Origin>) -> Self {
        Self { source, origin, pause: Mutex::new(None) }
    }

    fn pauses(&self) -> bool {
        lock(&self.pause).is_some_and(|until| Instant::now() < until)
    }

    fn begin_pause(&self, error: &ReadError) {
        if lock(&self.pause).replace(Instant::now() + PAUSE).is_none() {
            tracing::warn!(%error, content = %self.id(), "the disk is full: reading at the registry, keeping nothing");
        }
    }

    /// `range` ends inside of the blob, or the swarm would have said so.
    async fn at_origin(&self, range: ByteRange, urgency: Urgency) -> Result<(Bytes, Provenance), ReadError> {
        Ok((self.origin.read(range, urgency).await?, Provenance::Origin))
    }
}

#[async_trait]
impl BlobSource for Unkept {
    fn id(&self) -> &ContentId {
        self.source.id()
    }

    fn len(&self) -> u64 {
        self.source.len()
    }

    fn unit(&self) -> u64 {
        self.source.unit()
    }

    async fn read_traced(
        &self,
        range: ByteRange,
        urgency: Urgency,
    ) -> Result<(Bytes, Provenance), ReadError> {
        if range.end <= self.len() && self.pauses() {
            return self.at_origin(range, urgency).await;
        }
        match self.source.read_traced(range, urgency).await {
            Err(error) if is_full(&error) => {
                self.begin_pause(&error);
                self.at_origin(range, urgency).await
            }
            read => read,
        }
    }

    async fn reject(&self, range: ByteRange) {
        self.source.reject(range).await;
    }

    fn stream(self: Arc<Self>, range: ByteRange, urgency: Urgency) -> ByteStream {
        let direct = range.end <= self.len() && self.pauses();
        let stream = if direct {
            Arc::clone(&self.origin).stream(range, urgency)
        } else {
            Arc::clone(&self.source).stream(range, urgency)
        };
        futures::stream::unfold((self, stream, range.start, direct), move |state| async move {
            let (blob, mut stream, mut at, mut direct) = state;
            loop {
                match stream.next().await? {
                    Err(error) if is_full(&error) && !direct => {
                        blob.begin_pause(&error);
                        direct = true;
                        let rest = ByteRange { start: at, end: range.end };
                        stream = Arc::clone(&blob.origin).stream(rest, urgency);
                    }
                    item => {
                        at += item.as_ref().map_or(0, |bytes| bytes.len() as u64);
                        return Some((item, (blob, stream, at, direct)));
                    }
                }
            }
        })
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use content::{Digest, Locator, Tail};

    use super::*;

    const TEXT: &[u8] = b"0123456789";

    fn id() -> ContentId {
        ContentId::claimed("r.example", &Digest::of(TEXT))
    }

    fn cut(range: ByteRange) -> Bytes {
        Bytes::from_static(TEXT)
            .slice(usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap())
    }

    /// Has room for the first four bytes.
    struct Small(ContentId, AtomicUsize);

    #[async_trait]
    impl BlobSource for Small {
        fn id(&self) -> &ContentId {
            &self.0
        }
        fn len(&self) -> u64 {
            TEXT.len() as u64
        }
        async fn read_traced(&self, range: ByteRange, _: Urgency) -> Result<(Bytes, Provenance), ReadError> {
            self.1.fetch_add(1, Ordering::Relaxed);
            if range.end > 4 {
                return Err(ReadError::local(ReadErrorKind::NoSpace, "no room"));
            }
            Ok((cut(range), Provenance::Store))
        }
        async fn reject(&self, _: ByteRange) {
            self.1.fetch_add(100, Ordering::Relaxed);
        }
        fn stream(self: Arc<Self>, range: ByteRange, urgency: Urgency) -> ByteStream {
            content::stream_by_reads(self, range, urgency, 2, 1)
        }
    }

    struct Whole(ContentId);

    #[async_trait]
    impl Origin for Whole {
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
        async fn tail(&self, _: u64) -> Result<Tail, ReadError> {
            Ok(Tail { len: TEXT.len() as u64, bytes: Bytes::new() })
        }
        async fn read(&self, range: ByteRange, _: Urgency) -> Result<Bytes, ReadError> {
            Ok(cut(range))
        }
        fn stream(self: Arc<Self>, range: ByteRange, _: Urgency) -> ByteStream {
            futures::stream::iter([Ok(cut(range))]).boxed()
        }
    }

    fn blob() -> (Arc<Small>, Arc<Unkept>) {
        let small = Arc::new(Small(id(), AtomicUsize::new(0)));
        let blob = Unkept::new(Arc::clone(&small) as Arc<dyn BlobSource>, Arc::new(Whole(id())));
        (small, Arc::new(blob))
    }

    #[tokio::test]
    async fn what_cannot_be_kept_is_read_and_the_swarm_is_left_alone_for_a_while() {
        let (small, blob) = blob();
        let read = |start, end| blob.read_traced(ByteRange { start, end }, Urgency::Blocking);
        assert_eq!(read(0, 4).await.unwrap(), (Bytes::from_static(b"0123"), Provenance::Store));
        assert_eq!(read(2, 8).await.unwrap(), (Bytes::from_static(b"234567"), Provenance::Origin));
        assert_eq!(read(0, 4).await.unwrap().1, Provenance::Origin);
        assert_eq!(small.1.load(Ordering::Relaxed), 2);
        *lock(&blob.pause) = Some(Instant::now());
        assert_eq!(read(0, 4).await.unwrap().1, Provenance::Store);
        blob.reject(ByteRange { start: 0, end: 4 }).await;
        assert_eq!(small.1.load(Ordering::Relaxed), 103, "what is kept must be forgotten all the same");
    }

    #[tokio::test]
    async fn a_stream_goes_on_where_the_disk_was_full() {
        let (_, blob) = blob();
        let parts: Vec<_> = blob.stream(ByteRange { start: 1, end: 10 }, Urgency::Blocking).collect().await;
        let bytes: Vec<u8> = parts.into_iter().flat_map(|part| part.unwrap().to_vec()).collect();
        assert_eq!(bytes, &TEXT[1..]);
    }
}
