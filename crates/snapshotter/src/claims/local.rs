//! A copy of a layer on this machine, as a blob to be read.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use content::{
    BlobSource, ByteRange, ByteStream, ContentId, Digest, Fault, OpenBlob, Provenance, ReadError,
    ReadErrorKind, Urgency, stream_by_reads,
};

/// Bytes of one read of a stretch.
const WINDOW: u64 = 1 << 20;

/// Opens the copy of the blob `layer` in `dir`.
///
/// # Errors
/// That it is not there.
pub async fn open(dir: &Path, layer: Digest) -> Result<OpenBlob, ReadError> {
    let path = dir.join(layer.hex());
    let opened = tokio::task::spawn_blocking(move || {
        let file = File::open(&path)?;
        let len = file.metadata()?.len();
        Ok::<_, std::io::Error>((file, len))
    });
    let lost = |error: &dyn std::fmt::Display| {
        ReadError::local(ReadErrorKind::Unavailable, format!("the copy of layer {layer}: {error}"))
    };
    let (file, len) = opened.await.map_err(|error| lost(&error))?.map_err(|error| lost(&error))?;
    let id = ContentId::claimed("a copy on this machine", &layer);
    Ok(OpenBlob { source: Arc::new(Copy { id, file: Arc::new(file), len }), tail: None })
}

struct Copy {
    id: ContentId,
    file: Arc<File>,
    len: u64,
}

#[async_trait]
impl BlobSource for Copy {
    fn id(&self) -> &ContentId {
        &self.id
    }

    fn len(&self) -> u64 {
        self.len
    }

    async fn read_traced(&self, range: ByteRange, _: Urgency) -> Result<(Bytes, Provenance), ReadError> {
        let out_of_range = || {
            let message = format!("range {range} is not within the {} bytes of a copy", self.len);
            ReadError::new(Fault::Caller, ReadErrorKind::OutOfRange, message)
        };
        let len = usize::try_from(range.len()).map_err(|_| out_of_range())?;
        if range.end > self.len {
            return Err(out_of_range());
        }
        let file = Arc::clone(&self.file);
        let read = tokio::task::spawn_blocking(move || {
            let mut bytes = vec![0; len];
            file.read_exact_at(&mut bytes, range.start)?;
            Ok::<_, std::io::Error>(bytes)
        });
        let lost = |error: &dyn std::fmt::Display| {
            ReadError::local(ReadErrorKind::Unavailable, format!("reading a copy: {error}"))
        };
        let bytes = read.await.map_err(|error| lost(&error))?.map_err(|error| lost(&error))?;
        Ok((bytes.into(), Provenance::Store))
    }

    fn stream(self: Arc<Self>, range: ByteRange, urgency: Urgency) -> ByteStream {
        stream_by_reads(self, range, urgency, WINDOW, 2)
    }
}
