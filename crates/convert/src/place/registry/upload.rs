//! One blob on its way to a registry: a file that grows, and a task that sends what is in it.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use content::{ByteRange, Digest, Urgency};
use registry::{Client, Descriptor, Reference, RegistryError, Upload, UploadError};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::place::blob::{Extent, FileBlob, blocking};
use crate::place::spool::Spool;
use crate::place::{BlobWriter, PlaceError};

/// What is shorter goes in one piece at the end: fewer questions than an upload by chunks.
const AT_ONCE: u64 = 8 << 20;
/// Bytes read from the file and given to the upload at once.
const PIECE: u64 = 1 << 20;
/// How long a request under way may take to its end when the upload is taken back.
const GRACE: Duration = Duration::from_secs(3);

/// What the sending task is told.
#[derive(Clone, Copy, Default)]
struct Told {
    /// Bytes that can be read from the file.
    written: u64,
    /// The digest, once there are no more.
    end: Option<Digest>,
}

/// Why a blob was not sent.
enum Unsent {
    /// The registry wants it in one piece.
    NoChunks,
    /// Something went wrong that another attempt may mend.
    Failed(RegistryError),
    /// Nobody wants it any more.
    Stopped,
}

impl From<RegistryError> for Unsent {
    fn from(error: RegistryError) -> Self {
        Self::Failed(error)
    }
}

/// The sending task, and how it is told things.
type Sending = (watch::Sender<Told>, JoinHandle<Result<(), Unsent>>);

/// A blob on its way to a registry.
pub(super) struct RegistryBlob {
    sender: Sender,
    spool: Spool,
    sending: Option<Sending>,
}

/// Starts sending tasks.
struct Sender {
    client: Client,
    reference: Reference,
    file: Arc<File>,
    uploads: TaskTracker,
    stop: CancellationToken,
    /// Stops the task when the blob is dropped.
    guard: DropGuard,
}

impl Sender {
    fn start(&self) -> Sending {
        let (tell, told) = watch::channel(Told::default());
        let (client, reference, stop) = (self.client.clone(), self.reference.clone(), self.stop.clone());
        let file = Arc::clone(&self.file);
        let task = self.uploads.spawn(async move { send(&client, &reference, file, told, &stop).await });
        (tell, task)
    }

    /// Waits until the task has taken its upload back.
    async fn take_back(self, sending: Option<Sending>) {
        drop(self.guard);
        if let Some((_, task)) = sending {
            drop(task.await);
        }
    }
}

impl RegistryBlob {
    pub(super) async fn new(
        client: Client,
        reference: Reference,
        temporary: &Path,
        uploads: TaskTracker,
        stop: CancellationToken,
    ) -> Result<Self, PlaceError> {
        let spool = Spool::unnamed(temporary).await?;
        let guard = stop.clone().drop_guard();
        let sender = Sender { client, reference, file: spool.file(), uploads, stop, guard };
        Ok(Self { sender, spool, sending: None })
    }
}

#[async_trait]
impl BlobWriter for RegistryBlob {
    async fn write(&mut self, bytes: Bytes) -> Result<(), PlaceError> {
        self.spool.write(bytes).await?;
        let written = self.spool.written();
        if written > AT_ONCE {
            let (tell, _) = self.sending.get_or_insert_with(|| self.sender.start());
            tell.send_replace(Told { written, end: None });
        }
        Ok(())
    }

    async fn commit(self: Box<Self>, descriptor: &Descriptor, _: Option<&Digest>) -> Result<(), PlaceError> {
        let Self { sender, spool, mut sending } = *self;
        let (client, reference) = (sender.client.clone(), sender.reference.clone());
        let spooled = spool.finish().await?;
        spooled.check(&format!("{}/{}", reference.registry(), reference.repository()), descriptor)?;
        let digest = descriptor.digest;
        // Somebody else may have brought it meanwhile. Who cannot be asked now is waited for by the upload.
        if client.blob_exists(&reference, &digest).await.unwrap_or(false) {
            sender.take_back(sending).await;
            return Ok(());
        }
        // Everything is in the file: what broke off can begin anew.
        loop {
            let is_fresh = sending.is_none();
            let (tell, task) = sending.take().unwrap_or_else(|| sender.start());
            tell.send_replace(Told { written: spooled.len, end: Some(digest) });
            match task.await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(Unsent::Failed(error))) if is_fresh => return Err(error.into()),
                Ok(Err(Unsent::Failed(error))) => {
                    tracing::warn!(%error, "an upload broke off and begins anew");
                }
                Ok(Err(Unsent::NoChunks)) => break,
                Ok(Err(Unsent::Stopped)) | Err(_) => return Err(PlaceError::Interrupted),
            }
        }
        let extent = Extent::new(spooled.file, 0, spooled.len);
        let blob = Arc::new(FileBlob::new("a temporary file", extent, &digest));
        let stream = move || {
            let whole = ByteRange::new(0, spooled.len);
            content::BlobSource::stream(
                Arc::clone(&blob) as Arc<dyn content::BlobSource>,
                whole,
                Urgency::Prefetch,
            )
        };
        Ok(client.push_blob(&reference, &digest, spooled.len, &stream, None).await?)
    }

    async fn abort(self: Box<Self>) {
        self.sender.take_back(self.sending).await;
    }
}

/// Sends a file that grows, until it is told the end, or stopped: then the upload is taken back.
async fn send(
    client: &Client,
    reference: &Reference,
    file: Arc<File>,
    told: watch::Receiver<Told>,
    stop: &CancellationToken,
) -> Result<(), Unsent> {
    // A registry that is still busy with a request that was cut off may do what it asks after the upload was
    // taken back: the request under way gets a little time.
    let late = async {
        stop.cancelled().await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::pin!(late);
    let mut upload = tokio::select! {
        biased;
        opened = client.begin_upload(reference) => opened?,
        () = &mut late => return Err(Unsent::Stopped),
    };
    let sent = tokio::select! {
        biased;
        sent = send_all(&mut upload, &file, told, stop) => sent,
        () = late => Err(Unsent::Stopped),
    };
    if sent.is_err() {
        upload.cancel().await;
    }
    sent
}

async fn send_all(
    upload: &mut Upload,
    file: &Arc<File>,
    mut told: watch::Receiver<Told>,
    stop: &CancellationToken,
) -> Result<(), Unsent> {
    let mut at = 0;
    loop {
        let now = *told.borrow_and_update();
        while at < now.written {
            if stop.is_cancelled() {
                return Err(Unsent::Stopped);
            }
            let extent = Extent::new(Arc::clone(file), 0, now.written);
            let range = ByteRange::new(at, (at + PIECE).min(now.written));
            let bytes = blocking(move || extent.read(range)).await;
            let bytes = bytes.map_err(|error: std::io::Error| {
                RegistryError::Setup(format!("reading a temporary file: {error}"))
            })?;
            let len = bytes.len() as u64;
            at = match upload.send(bytes).await {
                Ok(()) => at + len,
                Err(error) => go_on(upload, error).await?,
            };
        }
        let Some(digest) = now.end else {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Err(Unsent::Stopped),
                changed = told.changed() => changed.map_err(|_| Unsent::Stopped)?,
            }
            continue;
        };
        match upload.finish(&digest).await {
            Ok(()) => return Ok(()),
            Err(error) => at = go_on(upload, error).await?,
        }
    }
}

/// From which byte an upload goes on that `error` stopped.
async fn go_on(upload: &mut Upload, error: UploadError) -> Result<u64, Unsent> {
    match error {
        UploadError::Lost(error) => {
            tracing::info!(%error, "going on with an upload that broke off");
            Ok(upload.resume().await?)
        }
        UploadError::NoChunks(error) => {
            tracing::debug!(%error, "sending a blob in one piece");
            Err(Unsent::NoChunks)
        }
        UploadError::Failed(error) => Err(Unsent::Failed(error)),
    }
}
