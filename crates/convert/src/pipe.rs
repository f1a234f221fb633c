//! Between the asynchronous world of registries and the synchronous one of the layer format.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use content::{ByteStream, ReadError};
use futures::StreamExt;
use tokio::sync::mpsc;

/// Parts of a stream that may wait for their reader: network buffers, so a few MiB at the most.
const PARTS: usize = 64;

/// How much of a file is read at once for a push.
const WINDOW: usize = 1 << 20;

/// The writing end of a pipe from a stream to a reader.
pub(crate) struct Feed(mpsc::Sender<Option<Bytes>>);

/// The reading end: blocks, so it belongs on a thread where that is allowed.
pub(crate) struct Pipe {
    parts: mpsc::Receiver<Option<Bytes>>,
    current: Bytes,
    ended: bool,
}

/// A new pipe.
pub(crate) fn pipe() -> (Feed, Pipe) {
    let (sender, parts) = mpsc::channel(PARTS);
    (Feed(sender), Pipe { parts, current: Bytes::new(), ended: false })
}

impl Feed {
    /// Sends all of `stream`. Ends early, and without an error, when the reader has gone: it will say why.
    pub(crate) async fn run(self, mut stream: ByteStream, read: impl Fn(u64)) -> Result<(), ReadError> {
        while let Some(part) = stream.next().await {
            let part = part?;
            let len = part.len() as u64;
            if self.0.send(Some(part)).await.is_err() {
                return Ok(());
            }
            read(len);
        }
        // Without this end marker the reader knows that the stream broke off.
        let _ = self.0.send(None).await;
        Ok(())
    }
}

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() && !self.ended {
            match self.parts.blocking_recv() {
                Some(Some(part)) => self.current = part,
                Some(None) => self.ended = true,
                None => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the stream broke off")),
            }
        }
        let count = buffer.len().min(self.current.len());
        if let Some(part) = buffer.get_mut(..count) {
            self.current.copy_to_slice(part);
        }
        Ok(count)
    }
}

/// All of `file`, which has `size` bytes, as a stream. Can be called again for another attempt.
pub(crate) fn stream_file(file: &Arc<File>, size: u64) -> ByteStream {
    let file = Arc::clone(file);
    futures::stream::try_unfold(0_u64, move |offset| {
        let file = Arc::clone(&file);
        async move {
            if offset >= size {
                return Ok(None);
            }
            let window = usize::try_from(size - offset).unwrap_or(WINDOW).min(WINDOW);
            let part = tokio::task::spawn_blocking(move || {
                let mut part = vec![0; window];
                file.read_exact_at(&mut part, offset).map(|()| part)
            })
            .await
            .map_err(|error| ReadError::from(io::Error::other(error)))??;
            Ok(Some((Bytes::from(part), offset + window as u64)))
        }
    })
    .boxed()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use content::ReadErrorKind;

    use super::*;

    #[tokio::test]
    async fn what_goes_in_comes_out() {
        let parts = ["pan", "", "tala"].map(|part| Ok(Bytes::from_static(part.as_bytes())));
        let (feed, mut pipe) = pipe();
        let reader = tokio::task::spawn_blocking(move || {
            let mut all = String::new();
            pipe.read_to_string(&mut all).map(|_| all)
        });
        feed.run(futures::stream::iter(parts).boxed(), |_| {}).await.unwrap();
        assert_eq!(reader.await.unwrap().unwrap(), "pantala");
    }

    #[tokio::test]
    async fn a_broken_stream_is_never_a_short_one() {
        let failure = ReadError::origin(ReadErrorKind::Corrupt, "wrong digest");
        let parts = [Ok(Bytes::from_static(b"pan")), Err(failure)];
        let (feed, mut pipe) = pipe();
        let reader = tokio::task::spawn_blocking(move || pipe.read_to_end(&mut Vec::new()));
        assert!(feed.run(futures::stream::iter(parts).boxed(), |_| {}).await.is_err());
        assert!(reader.await.unwrap().is_err());
    }

    #[tokio::test]
    async fn a_file_is_streamed_whole_and_again() {
        let mut file = tempfile::tempfile().unwrap();
        let data: Vec<u8> = (0..WINDOW + 5).map(|at| at.to_le_bytes()[0]).collect();
        file.write_all(&data).unwrap();
        let file = Arc::new(file);
        for _ in 0..2 {
            let parts: Vec<_> = stream_file(&file, data.len() as u64).collect().await;
            let all: Vec<u8> = parts.into_iter().flat_map(|part| part.unwrap().to_vec()).collect();
            assert!(all == data);
        }
    }
}
