//! The caller's bytes on their way into an upload.

use std::collections::VecDeque;

use bytes::Bytes;
use content::{ByteStream, Digest, ReadError, ReadErrorKind};
use futures::TryStreamExt;

use crate::error::RegistryError;
use crate::upload::{Upload, UploadError};

/// Bytes read while a chunk is on its way: about as many as make the next one.
const READ_AHEAD: usize = 8 << 20;

/// Sends the bytes of a blob from `from` on, and gives it its name. While one chunk is on its way, the next
/// one is read.
pub(super) async fn push_from(
    upload: &mut Upload,
    doing: &str,
    digest: &Digest,
    size: u64,
    bytes: &(dyn Fn() -> ByteStream + Send + Sync),
    from: u64,
) -> Result<(), UploadError> {
    let mut source = Source { stream: bytes(), doing, size, seen: 0, from, ended: false };
    let mut ahead = VecDeque::new();
    let mut ahead_len = 0;
    loop {
        let part = match ahead.pop_front() {
            Some(part) => part,
            None if source.ended => break,
            None => source.next().await?.unwrap_or_default(),
        };
        ahead_len -= part.len().min(ahead_len);
        let mut sending = std::pin::pin!(upload.send(part));
        loop {
            tokio::select! {
                biased;
                sent = &mut sending => {
                    sent?;
                    break;
                }
                part = source.next(), if !source.ended && ahead_len < READ_AHEAD => {
                    if let Some(part) = part? {
                        ahead_len += part.len();
                        ahead.push_back(part);
                    }
                }
            }
        }
    }
    upload.finish(digest).await
}

/// The caller's bytes, held against what was said of them.
struct Source<'a> {
    stream: ByteStream,
    doing: &'a str,
    size: u64,
    /// Bytes that the stream gave, and from where on they are wanted.
    seen: u64,
    from: u64,
    ended: bool,
}

impl Source<'_> {
    /// The next wanted bytes; `None` after the last.
    async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        while let Some(mut part) = self.stream.try_next().await.map_err(|reason| self.failed(reason))? {
            let skip = self.from.saturating_sub(self.seen).min(part.len() as u64);
            self.seen += part.len() as u64;
            if self.seen > self.size {
                return Err(self.wrong_length("more"));
            }
            let _ = part.split_to(usize::try_from(skip).unwrap_or(part.len()));
            if !part.is_empty() {
                return Ok(Some(part));
            }
        }
        self.ended = true;
        if self.seen < self.size { Err(self.wrong_length("fewer")) } else { Ok(None) }
    }

    fn failed(&self, reason: ReadError) -> RegistryError {
        RegistryError::Source { doing: self.doing.to_owned(), reason }
    }

    fn wrong_length(&self, more_or_fewer: &str) -> RegistryError {
        let message = format!("it has {more_or_fewer} bytes than the {} that were announced", self.size);
        self.failed(ReadError::local(ReadErrorKind::Corrupt, message))
    }
}
