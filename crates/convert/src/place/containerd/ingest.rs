//! A blob on its way into containerd: a stream of messages, each answered by how far it has got.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use content::Digest;
use proto::containerd::content::{AbortRequest, WriteAction, WriteContentRequest, WriteContentResponse};
use registry::Descriptor;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::target::Work;
use crate::place::{BlobWriter, PlaceError};

/// Bytes of one message.
const PIECE: usize = 1 << 20;
/// containerd's label for the digest of a layer when inflated.
const UNCOMPRESSED: &str = "containerd.io/uncompressed";

/// An open write.
pub(super) struct Ingest {
    work: Arc<Work>,
    name: String,
    send: mpsc::Sender<WriteContentRequest>,
    answers: Streaming<WriteContentResponse>,
    gathered: BytesMut,
    /// Bytes that containerd has.
    offset: u64,
    /// Their digest, as it says.
    digest: String,
}

/// How a write ended.
pub(super) enum Ended {
    /// containerd has the blob now.
    Written,
    /// It had it before.
    Existed,
}

impl Ingest {
    /// Opens a write. With `expected`, a blob that containerd has for another namespace is there at once
    /// ([`Ingest::offset`]).
    pub(super) async fn open(
        work: Arc<Work>,
        expected: Option<&Descriptor>,
    ) -> Result<Self, Result<PlaceError, Status>> {
        let api = work.api().await.map_err(Ok)?;
        let name = work.new_ingest();
        let (send, receive) = mpsc::channel(1);
        let first = WriteContentRequest {
            action: WriteAction::Stat.into(),
            r#ref: name.clone(),
            total: expected.map_or(0, |it| i64::try_from(it.size).unwrap_or(0)),
            expected: expected.map(|it| it.digest.to_string()).unwrap_or_default(),
            ..WriteContentRequest::default()
        };
        // The channel is empty: there is room for the first message.
        send.try_send(first).map_err(|_| Ok(PlaceError::Interrupted))?;
        let request = api.request(ReceiverStream::new(receive)).map_err(Ok)?;
        let answers = api.content().write(request).await.map_err(Err)?.into_inner();
        let mut ingest =
            Self { work, name, send, answers, gathered: BytesMut::new(), offset: 0, digest: String::new() };
        let answer = ingest.answer().await.map_err(Err)?;
        ingest.offset = u64::try_from(answer.offset).unwrap_or(0);
        Ok(ingest)
    }

    /// Opens a write of a blob whose digest is not known.
    pub(super) async fn begin(work: Arc<Work>) -> Result<Self, PlaceError> {
        let kept = Arc::clone(&work);
        match Self::open(work, None).await {
            Ok(ingest) => Ok(ingest),
            Err(Ok(error)) => Err(error),
            Err(Err(status)) => Err(kept.error("opening a blob".to_owned(), &status)),
        }
    }

    /// Bytes that containerd has.
    pub(super) const fn offset(&self) -> u64 {
        self.offset
    }

    async fn answer(&mut self) -> Result<WriteContentResponse, Status> {
        self.answers.message().await?.ok_or_else(|| Status::unavailable("it ended the write"))
    }

    async fn put(&mut self, request: WriteContentRequest) -> Result<WriteContentResponse, Status> {
        // A stream that containerd ended has its reason in the answer.
        drop(self.send.send(request).await);
        self.answer().await
    }

    async fn flush(&mut self) -> Result<(), Status> {
        while !self.gathered.is_empty() {
            let piece = self.gathered.split_to(self.gathered.len().min(PIECE)).freeze();
            let after = self.offset + piece.len() as u64;
            let request = WriteContentRequest {
                action: WriteAction::Write.into(),
                r#ref: self.name.clone(),
                offset: i64::try_from(self.offset).unwrap_or(i64::MAX),
                data: piece,
                ..WriteContentRequest::default()
            };
            let answer = self.put(request).await?;
            if u64::try_from(answer.offset) != Ok(after) {
                return Err(Status::internal(format!("it has {} bytes of {after}", answer.offset)));
            }
            self.offset = after;
            self.digest = answer.digest;
        }
        Ok(())
    }

    /// Ends the write with these labels.
    pub(super) async fn end(
        mut self,
        descriptor: &Descriptor,
        labels: HashMap<String, String>,
    ) -> Result<Ended, PlaceError> {
        let digest = descriptor.digest;
        let ended = match self.flush().await {
            Ok(()) => {
                let request = WriteContentRequest {
                    action: WriteAction::Commit.into(),
                    r#ref: self.name.clone(),
                    total: i64::try_from(descriptor.size).unwrap_or(i64::MAX),
                    expected: digest.to_string(),
                    offset: i64::try_from(self.offset).unwrap_or(i64::MAX),
                    data: Bytes::new(),
                    labels: labels.clone(),
                };
                self.put(request).await
            }
            Err(status) => Err(status),
        };
        let Self { work, name, send, answers, offset, digest: found, .. } = self;
        // The write's lock at containerd goes with the stream.
        drop((send, answers));
        match ended {
            Ok(_) => {
                work.ingest_ended(&name);
                Ok(Ended::Written)
            }
            Err(status) if status.code() == Code::AlreadyExists => {
                abort(&work, &name).await;
                // What is there is right. What was written need not be, and nobody compared it.
                if offset != descriptor.size || (!found.is_empty() && found != digest.to_string()) {
                    let reason = format!(
                        "{offset} bytes with the digest {found} were written, {} were announced",
                        descriptor.size
                    );
                    return Err(PlaceError::Damaged { place: work.shown(), digest, reason });
                }
                work.hold(&digest).await?;
                work.label(&digest, labels).await?;
                Ok(Ended::Existed)
            }
            Err(status) => {
                abort(&work, &name).await;
                let doing = format!("writing {digest}");
                // containerd compares size and digest.
                if status.code() == Code::FailedPrecondition {
                    let reason = super::api::words(&status);
                    return Err(PlaceError::Damaged { place: work.shown(), digest, reason });
                }
                Err(work.error(doing, &status))
            }
        }
    }
}

/// Takes a write back.
pub(super) async fn abort(work: &Work, name: &str) {
    let aborted = async {
        let api = work.api().await?;
        let request = api.request(AbortRequest { r#ref: name.to_owned() })?;
        match api.content().abort(request).await {
            Ok(_) => Ok(()),
            Err(status) if super::api::is_not_found(&status) => Ok(()),
            Err(status) => Err(work.error("taking a write back".to_owned(), &status)),
        }
    };
    match aborted.await {
        Ok(()) => work.ingest_ended(name),
        Err(error) => tracing::debug!(%error, "containerd will collect an unfinished write later"),
    }
}

#[async_trait]
impl BlobWriter for Ingest {
    async fn write(&mut self, bytes: Bytes) -> Result<(), PlaceError> {
        self.gathered.extend_from_slice(&bytes);
        if self.gathered.len() < PIECE {
            return Ok(());
        }
        let flushed = self.flush().await;
        flushed.map_err(|status| self.work.error("writing a blob".to_owned(), &status))
    }

    async fn commit(
        self: Box<Self>,
        descriptor: &Descriptor,
        diff_id: Option<&Digest>,
    ) -> Result<(), PlaceError> {
        let labels = diff_id.map(|diff_id| (UNCOMPRESSED.to_owned(), diff_id.to_string()));
        (*self).end(descriptor, labels.into_iter().collect()).await.map(drop)
    }

    async fn abort(self: Box<Self>) {
        let Self { work, name, send, answers, .. } = *self;
        drop((send, answers));
        abort(&work, &name).await;
    }
}
