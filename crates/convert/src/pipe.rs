//! Between the asynchronous world of places and the synchronous one of the layer format: a pipe into a
//! thread, and one out of it. Both are short, so that whoever is faster waits.

use std::io::{self, Read, Write};

use bytes::{Buf, Bytes, BytesMut};
use content::{ByteStream, ReadError};
use futures::StreamExt;
use tokio::sync::mpsc;

use crate::place::{BlobWriter, PlaceError};

/// Parts of a stream that may wait for their reader: network buffers, so a few MiB at the most.
const PARTS: usize = 8;

/// Bytes that are gathered before they go out of the thread.
const GATHER: usize = 256 << 10;

/// The writing end of a pipe from a stream to a reader.
pub(crate) struct Feed(mpsc::Sender<Option<Bytes>>);

/// The reading end: blocks, so it belongs on a thread where that is allowed.
pub(crate) struct Pipe {
    parts: mpsc::Receiver<Option<Bytes>>,
    current: Bytes,
    ended: bool,
}

/// A pipe into a thread.
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

/// The writing end of a pipe out of a thread. What was written since the last flush is lost when it is
/// dropped: whoever failed has nothing more to say.
pub(crate) struct Outlet {
    parts: mpsc::Sender<Bytes>,
    gathered: BytesMut,
}

/// The reading end.
pub(crate) struct Drain(mpsc::Receiver<Bytes>);

/// A pipe out of a thread.
pub(crate) fn outlet() -> (Outlet, Drain) {
    let (parts, receiver) = mpsc::channel(PARTS);
    (Outlet { parts, gathered: BytesMut::with_capacity(GATHER) }, Drain(receiver))
}

impl Write for Outlet {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = GATHER.saturating_sub(self.gathered.len()).max(1);
        let part = bytes.get(..room).unwrap_or(bytes);
        self.gathered.extend_from_slice(part);
        if self.gathered.len() >= GATHER {
            self.flush()?;
        }
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.gathered.is_empty() {
            return Ok(());
        }
        let part = std::mem::replace(&mut self.gathered, BytesMut::with_capacity(GATHER)).freeze();
        self.parts.blocking_send(part).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Drain {
    /// Hands all that comes to `writer`, until the thread has let its end go.
    pub(crate) async fn run(mut self, writer: &mut dyn BlobWriter) -> Result<(), PlaceError> {
        while let Some(part) = self.0.recv().await {
            writer.write(part).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use content::{Digest, ReadErrorKind};
    use registry::Descriptor;

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

    /// Keeps what is written; fails when it has more than `room` bytes.
    struct Kept {
        bytes: Vec<u8>,
        room: usize,
    }

    #[async_trait::async_trait]
    impl BlobWriter for Kept {
        async fn write(&mut self, bytes: Bytes) -> Result<(), PlaceError> {
            self.bytes.extend_from_slice(&bytes);
            if self.bytes.len() > self.room { Err(PlaceError::Interrupted) } else { Ok(()) }
        }
        async fn commit(self: Box<Self>, _: &Descriptor, _: Option<&Digest>) -> Result<(), PlaceError> {
            Ok(())
        }
        async fn abort(self: Box<Self>) {}
    }

    #[tokio::test]
    async fn what_a_thread_writes_arrives_whole_and_in_order() {
        let data: Vec<u8> = (0..GATHER * 3 + 5).map(|at| at.to_le_bytes()[0]).collect();
        let (mut outlet, drain) = outlet();
        let expected = data.clone();
        let thread = tokio::task::spawn_blocking(move || {
            for part in data.chunks(70_001) {
                outlet.write_all(part).unwrap();
            }
            outlet.flush().unwrap();
        });
        let mut kept = Kept { bytes: Vec::new(), room: usize::MAX };
        drain.run(&mut kept).await.unwrap();
        thread.await.unwrap();
        assert!(kept.bytes == expected);
    }

    #[tokio::test]
    async fn a_target_that_fails_stops_the_thread() {
        let (mut outlet, drain) = outlet();
        let thread = tokio::task::spawn_blocking(move || {
            loop {
                if let Err(error) = outlet.write_all(&vec![7; GATHER]) {
                    break error.kind();
                }
            }
        });
        let mut kept = Kept { bytes: Vec::new(), room: 10 };
        assert!(drain.run(&mut kept).await.is_err());
        assert_eq!(thread.await.unwrap(), io::ErrorKind::BrokenPipe);
    }
}
