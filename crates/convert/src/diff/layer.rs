//! What a layer lists: from its table of contents, or from its tar.

use std::io::{self, Read};

use bytes::{Buf as _, Bytes};
use content::{Hasher, ReadError, Urgency};
use estargz::archive::{EntryKind, Reader};
use estargz::audit::{Listed, list_toc};
use estargz::{Toc, TocLimits, decompress};
use futures::TryStreamExt;
use registry::{Descriptor, media_type};
use tokio::sync::mpsc;

use crate::inspect::LookError;
use crate::inspect::find::{ExternalTocs, Found, find_toc};
use crate::inspect::pin;
use crate::place::ImageSource;

/// Parts of a stream that wait to be inflated.
const WAITING: usize = 8;

/// The entries of `layer`, with a digest for each file.
pub(super) async fn list(
    source: &dyn ImageSource,
    layer: &Descriptor,
    external: &ExternalTocs<'_>,
    read_all: bool,
) -> Result<Vec<Listed>, LookError> {
    if media_type::is_foreign(&layer.media_type) {
        let reason = "its blob is kept elsewhere, so the images cannot be compared".to_owned();
        return Err(LookError::Layer { digest: layer.digest, reason });
    }
    let is_promised = layer.annotations.iter().flatten().any(|(key, _)| {
        key == estargz::TOC_DIGEST_ANNOTATION || key.ends_with("zstd-chunked.manifest-checksum")
    });
    if is_promised
        && !read_all
        && let Found::Toc(found) = find_toc(source, layer, external).await?
        && found.kind.is_verifiable()
        && pin(layer, &found).is_ok()
        && Toc::parse(&found.json, found.payload_end, &TocLimits::default()).is_ok()
        && let Ok(listing) = list_toc(&found.json)
        && listing.entries.iter().all(is_known)
    {
        return Ok(listing.entries);
    }
    stream(source, layer).await
}

/// Whether the content of a file is told.
fn is_known(entry: &Listed) -> bool {
    entry.kind != EntryKind::Regular || entry.content_digest().is_some()
}

/// Streams the layer and hashes its files.
async fn stream(source: &dyn ImageSource, layer: &Descriptor) -> Result<Vec<Listed>, LookError> {
    let (sender, receiver) = mpsc::channel::<Result<Bytes, ReadError>>(WAITING);
    let reader = tokio::task::spawn_blocking(move || {
        let mut parts = Parts { receiver, part: Bytes::new(), failure: None };
        let outcome = read(&mut parts);
        (outcome, parts.failure)
    });
    let mut stream = source.stream(layer, Urgency::Background);
    loop {
        let (part, is_last) = match stream.try_next().await {
            Ok(Some(part)) => (Ok(part), false),
            Ok(None) => break,
            Err(error) => (Err(error), true),
        };
        // A reader that is gone has failed, and tells why below.
        if sender.send(part).await.is_err() || is_last {
            break;
        }
    }
    drop(sender);
    match reader.await.map_err(|_| LookError::Interrupted)? {
        (_, Some(reason)) => Err(LookError::Read { digest: layer.digest, reason }),
        (Ok(entries), None) => Ok(entries),
        (Err(reason), None) => Err(LookError::Layer { digest: layer.digest, reason }),
    }
}

/// Reads a tar, however it is compressed.
fn read(parts: &mut Parts) -> Result<Vec<Listed>, String> {
    let mut archive = Reader::new(decompress(&mut *parts).map_err(|error| error.to_string())?);
    let mut entries = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    while let Some(entry) = archive.next_entry().map_err(|error| error.to_string())? {
        let mut listed = Listed::of_tar(&entry).map_err(|error| format!("tar, {error}"))?;
        if listed.kind == EntryKind::Regular {
            let mut hasher = Hasher::new();
            let mut data = archive.data();
            loop {
                match data.read(&mut buffer).map_err(|error| error.to_string())? {
                    0 => break,
                    count => hasher.update(buffer.get(..count).unwrap_or_default()),
                }
            }
            listed.digest = Some(hasher.finish());
        }
        entries.push(listed);
    }
    // To the end of the blob, where its digest is compared.
    io::copy(parts, &mut io::sink()).map_err(|error| error.to_string())?;
    Ok(entries)
}

/// The bytes of a stream, as they arrive.
struct Parts {
    receiver: mpsc::Receiver<Result<Bytes, ReadError>>,
    part: Bytes,
    failure: Option<ReadError>,
}

impl Read for Parts {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.part.is_empty() {
            match self.receiver.blocking_recv() {
                None => return Ok(0),
                Some(Ok(part)) => self.part = part,
                Some(Err(error)) => {
                    let text = error.to_string();
                    self.failure = Some(error);
                    return Err(io::Error::other(text));
                }
            }
        }
        let count = self.part.len().min(buffer.len());
        self.part.copy_to_slice(buffer.get_mut(..count).unwrap_or_default());
        Ok(count)
    }
}
