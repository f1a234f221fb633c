//! What a pull does at containerd: keep blobs by digest, make snapshots of them, and give an image its name, all
//! held by one lease.
//!
//! This is the client's side of the snapshots API. A process that *is* a snapshotter must not use it.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use content::Digest;
use proto::containerd::diff::ApplyRequest;
use proto::containerd::diff::diff_client::DiffClient;
use proto::containerd::snapshots::snapshots_client::SnapshotsClient;
use proto::containerd::snapshots::{
    CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
};
use proto::containerd::types::Mount;
use registry::Descriptor;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::api::{Api, to_containerd, words};
use super::ingest::Ingest;
use super::names;
use super::target::{Work, abandon};
use crate::place::{BlobWriter, Containerd, Place, PlaceError};

/// One image of containerd that is about to be there, with its snapshots.
#[derive(Debug)]
pub(crate) struct ContainerdShelf {
    place: Place,
    name: String,
    snapshotter: String,
    work: Arc<Work>,
}

/// What a snapshotter made of a layer.
#[derive(Debug)]
pub(crate) enum Prepared {
    /// The snapshot is there already, committed: mounted lazily, or made by somebody else meanwhile.
    Exists,
    /// An empty one, to be filled through these mounts.
    Empty(Vec<Mount>),
}

impl ContainerdShelf {
    /// Connects, and finds out what containerd calls the image `reference`.
    pub(crate) async fn open(
        containerd: &Containerd,
        reference: &str,
        snapshotter: &str,
    ) -> Result<Self, PlaceError> {
        let api = Api::connect(containerd, None).await?;
        let name = names(reference).pop().unwrap_or_default();
        let place =
            Place::Containerd { namespace: Some(api.namespace().to_owned()), reference: name.clone() };
        Ok(Self { place, name, snapshotter: snapshotter.to_owned(), work: Arc::new(Work::new(api)) })
    }

    /// containerd's name of the image.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// What the name stands for now.
    pub(crate) async fn current(&self) -> Result<Option<Digest>, PlaceError> {
        Ok(self.work.plain().image(&self.name).await?.map(|root| root.digest))
    }

    /// Takes the lease that holds what is made from here on. Without a call, the first thing made takes it.
    pub(crate) async fn lease(&self) -> Result<(), PlaceError> {
        self.work.api().await.map(drop)
    }

    /// Whether containerd has the blob; if so it is held.
    pub(crate) async fn has(&self, descriptor: &Descriptor) -> Result<bool, PlaceError> {
        self.work.has(descriptor).await
    }

    /// Brings a small document, with labels.
    pub(crate) async fn put(
        &self,
        descriptor: &Descriptor,
        bytes: Bytes,
        labels: HashMap<String, String>,
    ) -> Result<(), PlaceError> {
        self.work.put(&self.place, descriptor, bytes, labels).await
    }

    /// Begins a large blob.
    pub(crate) async fn begin(&self) -> Result<Box<dyn BlobWriter>, PlaceError> {
        Ok(Box::new(Ingest::begin(Arc::clone(&self.work)).await?))
    }

    /// Adds labels to a blob.
    pub(crate) async fn label(
        &self,
        digest: &Digest,
        labels: HashMap<String, String>,
    ) -> Result<(), PlaceError> {
        self.work.label(digest, labels).await
    }

    /// Gives the image its name and the lease back: everything is held by the name now.
    pub(crate) async fn publish(&self, root: &Descriptor) -> Result<(), PlaceError> {
        self.work.give_name(&self.name, root).await?;
        self.work.published().await;
        Ok(())
    }

    /// Takes back whatever no name needs.
    pub(crate) async fn abandon(&self) {
        abandon(&self.work).await;
    }

    async fn snapshots(&self) -> Result<(&Api, SnapshotsClient<Channel>), PlaceError> {
        let api = self.work.api().await?;
        Ok((api, SnapshotsClient::new(api.channel())))
    }

    /// Labels of the committed snapshot `name`, if there is one.
    pub(crate) async fn stat(&self, name: &str) -> Result<Option<HashMap<String, String>>, PlaceError> {
        let (api, mut client) = self.snapshots().await?;
        let request = StatSnapshotRequest { snapshotter: self.snapshotter.clone(), key: name.to_owned() };
        match client.stat(api.request(request)?).await {
            Ok(answer) => Ok(Some(answer.into_inner().info.unwrap_or_default().labels)),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(self.snapshot_error(api, format!("looking for the snapshot {name}"), &status)),
        }
    }

    /// Asks for a snapshot under `key` on top of `parent`; the snapshotter learns by `labels` what for.
    pub(crate) async fn prepare(
        &self,
        key: &str,
        parent: &str,
        labels: HashMap<String, String>,
    ) -> Result<Prepared, PlaceError> {
        let (api, mut client) = self.snapshots().await?;
        let request = PrepareSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels,
        };
        match client.prepare(api.request(request)?).await {
            Ok(answer) => Ok(Prepared::Empty(answer.into_inner().mounts)),
            Err(status) if status.code() == Code::AlreadyExists => Ok(Prepared::Exists),
            Err(status) => Err(self.snapshot_error(api, "preparing a snapshot".to_owned(), &status)),
        }
    }

    /// Freezes what is under `key` as `name`. `false` if somebody else was faster.
    pub(crate) async fn commit(
        &self,
        name: &str,
        key: &str,
        labels: HashMap<String, String>,
    ) -> Result<bool, PlaceError> {
        let (api, mut client) = self.snapshots().await?;
        let request = CommitSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            name: name.to_owned(),
            key: key.to_owned(),
            labels,
            ..CommitSnapshotRequest::default()
        };
        match client.commit(api.request(request)?).await {
            Ok(_) => Ok(true),
            Err(status) if status.code() == Code::AlreadyExists => Ok(false),
            Err(status) => Err(self.snapshot_error(api, format!("committing the snapshot {name}"), &status)),
        }
    }

    /// Removes what is under `key`, if it is there.
    pub(crate) async fn remove(&self, key: &str) -> Result<(), PlaceError> {
        let (api, mut client) = self.snapshots().await?;
        let request = RemoveSnapshotRequest { snapshotter: self.snapshotter.clone(), key: key.to_owned() };
        match client.remove(api.request(request)?).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::NotFound => Ok(()),
            Err(status) => Err(self.snapshot_error(api, format!("removing the snapshot {key}"), &status)),
        }
    }

    /// Unpacks the blob, which containerd has, onto `mounts`. Answers the digest of the inflated blob.
    pub(crate) async fn apply(&self, layer: &Descriptor, mounts: Vec<Mount>) -> Result<Digest, PlaceError> {
        let api = self.work.api().await?;
        let doing = || format!("unpacking {}", layer.digest);
        let request = ApplyRequest { diff: Some(to_containerd(layer)), mounts };
        let answer = DiffClient::new(api.channel()).apply(api.request(request)?).await;
        let applied = answer.map_err(|status| api.error(doing(), &status))?.into_inner().applied;
        applied.unwrap_or_default().digest.parse().map_err(|error| PlaceError::Malformed {
            place: self.work.shown(),
            what: doing(),
            reason: format!("the digest of the inflated layer: {error}"),
        })
    }

    /// The snapshotter is a process of its own: if it does not answer, containerd still does.
    fn snapshot_error(&self, api: &Api, doing: String, status: &Status) -> PlaceError {
        let name = &self.snapshotter;
        let hint = match status.code() {
            Code::Unavailable => {
                format!("does the snapshotter {name} run, and where containerd looks for it?")
            }
            Code::InvalidArgument if status.message().contains("not loaded") => format!(
                "containerd's configuration has no [proxy_plugins.{name}]; --snapshotter overlayfs unpacks the image"
            ),
            _ => return api.error(doing, status),
        };
        let reason = format!("{}; {hint}", words(status));
        PlaceError::Containerd { doing, address: api.address().to_owned(), reason }
    }
}
