//! Blobs that lie in files: a whole file of a layout, or a stretch of an archive, read in place.
//!
//! Bytes are read on the blocking pool, a window at a time, and hashed there before they are given out; the
//! task is awaited by whoever reads.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use content::{
    BlobSource, ByteRange, ByteStream, ContentId, Digest, Fault, Hasher, Provenance, ReadError,
    ReadErrorKind, Urgency, stream_by_reads,
};
use futures::StreamExt as _;
use registry::Descriptor;

use super::PlaceError;

/// Bytes read and hashed at once.
const WINDOW: u64 = 1 << 20;

/// A stretch of an open file, or of memory.
#[derive(Clone, Debug)]
pub(crate) struct Extent {
    source: Source,
    offset: u64,
    len: u64,
}

#[derive(Clone, Debug)]
enum Source {
    File(Arc<File>),
    Memory(Bytes),
}

impl Source {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        match self {
            Self::File(file) => file.read_at(buffer, at),
            Self::Memory(bytes) => {
                let start = usize::try_from(at).unwrap_or(usize::MAX);
                let mut rest = bytes.get(start..).unwrap_or_default();
                io::Read::read(&mut rest, buffer)
            }
        }
    }
}

impl Extent {
    /// `len` bytes of `file` from `offset` on. Whether the file has them is found out when they are read.
    pub(crate) fn new(file: Arc<File>, offset: u64, len: u64) -> Self {
        Self { source: Source::File(file), offset, len }
    }

    /// Bytes that lie in no file.
    pub(crate) fn memory(bytes: Bytes) -> Self {
        let len = bytes.len() as u64;
        Self { source: Source::Memory(bytes), offset: 0, len }
    }

    /// A whole file.
    pub(crate) fn whole(file: File) -> io::Result<Self> {
        let len = file.metadata()?.len();
        Ok(Self::new(Arc::new(file), 0, len))
    }

    /// Where it begins.
    pub(crate) const fn offset(&self) -> u64 {
        self.offset
    }

    /// Length in bytes.
    pub(crate) const fn len(&self) -> u64 {
        self.len
    }

    /// Reads a range, which must lie inside. Blocks.
    pub(crate) fn read(&self, range: ByteRange) -> io::Result<Bytes> {
        if range.end > self.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let len = usize::try_from(range.len()).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let mut buffer = BytesMut::zeroed(len);
        ExtentReader { extent: self.clone(), at: range.start }.read_exact(&mut buffer)?;
        Ok(buffer.freeze())
    }

    /// The digest of all of it. Blocks for as long as reading takes.
    pub(crate) fn digest(&self) -> io::Result<Digest> {
        let mut hasher = Hasher::new();
        let mut at = 0;
        while at < self.len {
            let bytes = self.read(ByteRange::new(at, (at + WINDOW).min(self.len)))?;
            hasher.update(&bytes);
            at += bytes.len() as u64;
        }
        Ok(hasher.finish())
    }

    /// A reader of all of it, from its beginning.
    pub(crate) fn reader(&self) -> ExtentReader {
        ExtentReader { extent: self.clone(), at: 0 }
    }
}

/// Reads an extent in order. Blocks.
#[derive(Debug)]
pub(crate) struct ExtentReader {
    extent: Extent,
    at: u64,
}

impl io::Read for ExtentReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.extent.len - self.at).unwrap_or(usize::MAX);
        let count = left.min(buffer.len());
        let Some(wanted) = buffer.get_mut(..count).filter(|wanted| !wanted.is_empty()) else { return Ok(0) };
        let start = self.extent.offset.checked_add(self.at).ok_or(io::ErrorKind::UnexpectedEof)?;
        let read = self.extent.source.read_at(wanted, start)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += read as u64;
        Ok(read)
    }
}

/// Runs blocking work that is awaited.
pub(crate) async fn blocking<T, E>(work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, E>
where
    T: Send + 'static,
    E: Send + 'static + From<Stopped>,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(_) => Err(Stopped.into()),
    }
}

/// Blocking work did not come to its end.
#[derive(Debug)]
pub(crate) struct Stopped;

impl From<Stopped> for PlaceError {
    fn from(_: Stopped) -> Self {
        Self::Interrupted
    }
}

impl From<Stopped> for ReadError {
    fn from(_: Stopped) -> Self {
        Self::local(ReadErrorKind::Cancelled, "interrupted")
    }
}

impl From<Stopped> for io::Error {
    fn from(_: Stopped) -> Self {
        io::Error::from(io::ErrorKind::Interrupted)
    }
}

/// A failed read of a file, in the words of a [`BlobSource`].
fn read_error(place: &str, error: &io::Error) -> ReadError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => {
            ReadError::local(ReadErrorKind::Corrupt, format!("{place}: the file ends before the blob does"))
        }
        io::ErrorKind::Interrupted => ReadError::local(ReadErrorKind::Cancelled, "interrupted"),
        _ => ReadError::local(ReadErrorKind::Other, format!("{place}: {error}")),
    }
}

/// What keeps an extent from being the blob that `descriptor` describes, as far as its length tells.
pub(crate) fn check_size(extent: &Extent, descriptor: &Descriptor) -> Result<(), String> {
    if extent.len == descriptor.size {
        return Ok(());
    }
    Err(format!("it has {} bytes, the descriptor says {}", extent.len, descriptor.size))
}

/// A stream of a blob that fails at its end if the bytes are others.
pub(crate) fn stream(place: &str, extent: Extent, descriptor: &Descriptor) -> ByteStream {
    if let Err(reason) = check_size(&extent, descriptor) {
        let message = format!("{place}: {}: {reason}", descriptor.digest);
        return failed(ReadError::local(ReadErrorKind::Corrupt, message));
    }
    let state = (extent, 0_u64, Hasher::new());
    let (place, expected) = (place.to_owned(), descriptor.digest);
    futures::stream::try_unfold(state, move |(extent, at, mut hasher)| {
        let place = place.clone();
        async move {
            if at == extent.len {
                let found = hasher.finish();
                if found == expected {
                    return Ok(None);
                }
                let message = format!("{place}: the bytes of {expected} have the digest {found}");
                return Err(ReadError::local(ReadErrorKind::Corrupt, message));
            }
            let read = blocking(move || {
                let bytes = extent.read(ByteRange::new(at, (at + WINDOW).min(extent.len)))?;
                hasher.update(&bytes);
                Ok::<_, io::Error>((extent, bytes, hasher))
            });
            let (extent, bytes, hasher) = read.await.map_err(|error| read_error(&place, &error))?;
            let at = at + bytes.len() as u64;
            Ok(Some((bytes, (extent, at, hasher))))
        }
    })
    .boxed()
}

/// A stream that is an error.
pub(crate) fn failed(error: ReadError) -> ByteStream {
    futures::stream::iter([Err(error)]).boxed()
}

/// A whole small blob, its digest compared. Blocks.
pub(crate) fn read_whole(
    place: &str,
    extent: &Extent,
    descriptor: &Descriptor,
    limit: u64,
) -> Result<Bytes, PlaceError> {
    let digest = descriptor.digest;
    let damaged = |reason| PlaceError::Damaged { place: place.to_owned(), digest, reason };
    check_size(extent, descriptor).map_err(damaged)?;
    if extent.len > limit {
        return Err(damaged(format!(
            "it has {} bytes, more than the {limit} such a document may have",
            extent.len
        )));
    }
    let bytes = extent.read(ByteRange::new(0, extent.len)).map_err(|error| PlaceError::Read {
        place: place.to_owned(),
        digest,
        reason: read_error(place, &error),
    })?;
    check_bytes(place, descriptor, &bytes)?;
    Ok(bytes)
}

/// Whether `bytes` are what `descriptor` says.
pub(crate) fn check_bytes(place: &str, descriptor: &Descriptor, bytes: &[u8]) -> Result<(), PlaceError> {
    let digest = descriptor.digest;
    let damaged = |reason| PlaceError::Damaged { place: place.to_owned(), digest, reason };
    if bytes.len() as u64 != descriptor.size {
        return Err(damaged(format!(
            "it has {} bytes, the descriptor says {}",
            bytes.len(),
            descriptor.size
        )));
    }
    match Digest::of(bytes) {
        found if found == digest => Ok(()),
        found => Err(damaged(format!("its bytes have the digest {found}"))),
    }
}

/// A blob in a file, read by ranges.
pub(crate) struct FileBlob {
    id: ContentId,
    place: String,
    extent: Extent,
}

impl FileBlob {
    pub(crate) fn new(place: &str, extent: Extent, digest: &Digest) -> Self {
        Self { id: ContentId::claimed(place, digest), place: place.to_owned(), extent }
    }
}

#[async_trait]
impl BlobSource for FileBlob {
    fn id(&self) -> &ContentId {
        &self.id
    }

    fn len(&self) -> u64 {
        self.extent.len
    }

    async fn read_traced(&self, range: ByteRange, _: Urgency) -> Result<(Bytes, Provenance), ReadError> {
        if range.end > self.extent.len {
            let message = format!("range {range} ends beyond the {} bytes of the blob", self.extent.len);
            return Err(ReadError::new(Fault::Caller, ReadErrorKind::OutOfRange, message));
        }
        let extent = self.extent.clone();
        let bytes = blocking(move || extent.read(range)).await;
        Ok((bytes.map_err(|error| read_error(&self.place, &error))?, Provenance::Store))
    }

    fn stream(self: Arc<Self>, range: ByteRange, urgency: Urgency) -> ByteStream {
        stream_by_reads(self, range, urgency, WINDOW, 1)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use futures::TryStreamExt as _;
    use registry::media_type;

    use super::*;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    async fn collect(stream: ByteStream) -> Result<Vec<u8>, ReadError> {
        stream
            .try_fold(Vec::new(), |mut all, chunk| async move {
                Ok({
                    all.extend(chunk);
                    all
                })
            })
            .await
    }

    #[tokio::test]
    async fn a_stretch_of_a_file_is_a_blob() {
        let content: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
        let mut all = vec![1; 700];
        all.extend_from_slice(&content);
        all.extend([2; 900]);
        let extent = Extent::new(Arc::new(file(&all)), 700, content.len() as u64);
        let descriptor = Descriptor::new(media_type::OCI_LAYER, Digest::of(&content), content.len() as u64);
        assert_eq!(collect(stream("here", extent.clone(), &descriptor)).await.unwrap(), content);
        let mut read = Vec::new();
        extent.reader().read_to_end(&mut read).unwrap();
        assert_eq!(read, content);
        assert_eq!(extent.digest().unwrap(), descriptor.digest);
        let blob = Arc::new(FileBlob::new("here", extent, &descriptor.digest));
        let range = ByteRange::new(5, 2_500_000);
        assert_eq!(
            collect(blob.clone().stream(range, Urgency::Prefetch)).await.unwrap(),
            content[5..2_500_000]
        );
        let beyond = blob.read(ByteRange::new(0, blob.len() + 1), Urgency::Prefetch).await.unwrap_err();
        assert_eq!(beyond.kind(), ReadErrorKind::OutOfRange);
    }

    #[tokio::test]
    async fn a_blob_that_is_another_one_or_too_short_ends_with_an_error() {
        let extent = Extent::whole(file(b"pantala")).unwrap();
        let wrong = Descriptor::new(media_type::OCI_LAYER, Digest::of(b"pantale"), 7);
        let error = collect(stream("here", extent.clone(), &wrong)).await.unwrap_err();
        assert_eq!(error.kind(), ReadErrorKind::Corrupt);
        assert!(matches!(read_whole("here", &extent, &wrong, 100), Err(PlaceError::Damaged { .. })));
        let long = Descriptor::new(media_type::OCI_LAYER, Digest::of(b"pantala"), 8);
        assert!(collect(stream("here", extent.clone(), &long)).await.is_err());
        let cut = Extent::new(Arc::new(file(b"pant")), 0, 7);
        let right = Descriptor::new(media_type::OCI_LAYER, Digest::of(b"pantala"), 7);
        let error = collect(stream("here", cut, &right)).await.unwrap_err();
        assert!(error.to_string().contains("ends before"), "{error}");
        assert_eq!(read_whole("here", &extent, &right, 7).unwrap(), "pantala");
        assert!(read_whole("here", &extent, &right, 6).is_err());
    }
}
