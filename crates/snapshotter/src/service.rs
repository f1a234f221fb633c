//! containerd's gRPC face: unpack the request, call, pack the answer, translate the error.
//!
//! containerd decides by status code alone. The words are for people.

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use proto::containerd::snapshots as wire;
use proto::containerd::snapshots::snapshots_server::Snapshots as Service;
use tonic::transport::server::UdsConnectInfo;
use tonic::{Request, Response, Status};

use crate::labels::{self, Labels};
use crate::meta::{Kind, MetaError, Record, UpdateMask};
use crate::snapshots::{SnapshotError, Snapshots};

/// Snapshots in one message of `List`, as containerd's own server does it.
const LIST_BATCH: usize = 100;

/// Serves [`Snapshots`] over gRPC.
pub struct SnapshotService(Arc<Snapshots>);

impl SnapshotService {
    /// Serves these.
    pub fn new(snapshots: Arc<Snapshots>) -> Self {
        Self(snapshots)
    }

    fn seen<T>(&self, request: &Request<T>) {
        if let Some(pid) = caller(request) {
            self.0.called_by(pid);
        }
    }
}

/// The status code is containerd's for the same mistake.
fn status(error: SnapshotError) -> Status {
    let text = error.to_string();
    match error {
        SnapshotError::TargetExists(_) => Status::already_exists(text),
        SnapshotError::Filter(_) => Status::invalid_argument(text),
        SnapshotError::Unavailable { .. } | SnapshotError::Disputed { .. } | SnapshotError::ShuttingDown => {
            Status::unavailable(text)
        }
        SnapshotError::Dir(_) | SnapshotError::Usage { .. } => {
            tracing::error!(error = %text, "a snapshot's directory failed");
            Status::internal(text)
        }
        SnapshotError::Meta(error) => match error {
            MetaError::NotFound(_) | MetaError::ParentNotFound(_) => Status::not_found(text),
            MetaError::Exists(_) => Status::already_exists(text),
            MetaError::NotActive(_)
            | MetaError::NotMountable(_)
            | MetaError::HasChild(_)
            | MetaError::Rebase { .. } => Status::failed_precondition(text),
            MetaError::ParentNotCommitted(_)
            | MetaError::Immutable { .. }
            | MetaError::Invalid(_)
            | MetaError::Label(_) => Status::invalid_argument(text),
            MetaError::InUse { .. } | MetaError::Disk { .. } | MetaError::Row { .. } => {
                tracing::error!(error = %text, "the snapshot database failed");
                Status::internal(text)
            }
        },
    }
}

/// Who is at the other end.
fn caller<T>(request: &Request<T>) -> Option<i32> {
    request.extensions().get::<UdsConnectInfo>()?.peer_cred?.pid()
}

fn clean(labels: impl IntoIterator<Item = (String, String)>) -> Result<Labels, Status> {
    labels::clean(labels).map_err(|error| status(MetaError::from(error).into()))
}

fn timestamp(nanoseconds: u64) -> Option<prost_types::Timestamp> {
    let seconds = i64::try_from(nanoseconds / 1_000_000_000).ok()?;
    let nanos = i32::try_from(nanoseconds % 1_000_000_000).ok()?;
    Some(prost_types::Timestamp { seconds, nanos })
}

fn info(name: &str, row: &Record) -> wire::Info {
    let kind = match row.kind {
        Kind::View => wire::Kind::View,
        Kind::Active => wire::Kind::Active,
        Kind::Committed => wire::Kind::Committed,
    };
    wire::Info {
        name: name.to_owned(),
        parent: row.parent.clone(),
        kind: kind.into(),
        created_at: timestamp(row.created),
        updated_at: timestamp(row.updated),
        labels: row.labels.clone().into_iter().collect(),
    }
}

#[tonic::async_trait]
impl Service for SnapshotService {
    async fn prepare(
        &self,
        request: Request<wire::PrepareSnapshotRequest>,
    ) -> Result<Response<wire::PrepareSnapshotResponse>, Status> {
        self.seen(&request);
        let request = request.into_inner();
        let labels = clean(request.labels)?;
        let mounts = self.0.prepare(&request.key, &request.parent, labels).await.map_err(status)?;
        Ok(Response::new(wire::PrepareSnapshotResponse { mounts }))
    }

    async fn view(
        &self,
        request: Request<wire::ViewSnapshotRequest>,
    ) -> Result<Response<wire::ViewSnapshotResponse>, Status> {
        self.seen(&request);
        let request = request.into_inner();
        let labels = clean(request.labels)?;
        let mounts = self.0.view(&request.key, &request.parent, labels).await.map_err(status)?;
        Ok(Response::new(wire::ViewSnapshotResponse { mounts }))
    }

    async fn mounts(
        &self,
        request: Request<wire::MountsRequest>,
    ) -> Result<Response<wire::MountsResponse>, Status> {
        let mounts = self.0.mounts(&request.into_inner().key).await.map_err(status)?;
        Ok(Response::new(wire::MountsResponse { mounts }))
    }

    async fn commit(&self, request: Request<wire::CommitSnapshotRequest>) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        let labels = clean(request.labels)?;
        self.0.commit(&request.name, &request.key, &request.parent, labels).await.map_err(status)?;
        Ok(Response::new(()))
    }

    async fn remove(&self, request: Request<wire::RemoveSnapshotRequest>) -> Result<Response<()>, Status> {
        self.0.remove(&request.into_inner().key).await.map_err(status)?;
        Ok(Response::new(()))
    }

    async fn stat(
        &self,
        request: Request<wire::StatSnapshotRequest>,
    ) -> Result<Response<wire::StatSnapshotResponse>, Status> {
        self.seen(&request);
        let key = request.into_inner().key;
        let row = self.0.stat(&key).map_err(status)?;
        Ok(Response::new(wire::StatSnapshotResponse { info: Some(info(&key, &row)) }))
    }

    async fn update(
        &self,
        request: Request<wire::UpdateSnapshotRequest>,
    ) -> Result<Response<wire::UpdateSnapshotResponse>, Status> {
        let request = request.into_inner();
        let wanted = request.info.unwrap_or_default();
        let mask = match request.update_mask {
            Some(mask) if !mask.paths.is_empty() => UpdateMask::Fields(mask.paths),
            _ => UpdateMask::All,
        };
        let labels = clean(wanted.labels)?;
        let row = self.0.update(&wanted.name, labels, mask).await.map_err(status)?;
        Ok(Response::new(wire::UpdateSnapshotResponse { info: Some(info(&wanted.name, &row)) }))
    }

    type ListStream = Pin<Box<dyn Stream<Item = Result<wire::ListSnapshotsResponse, Status>> + Send>>;

    async fn list(
        &self,
        request: Request<wire::ListSnapshotsRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        self.seen(&request);
        let rows = self.0.list(&request.into_inner().filters).map_err(status)?;
        // Packed as they are sent: the rows are shared, the messages are not.
        let starts = (0..rows.len()).step_by(LIST_BATCH);
        let batches = starts.map(move |start| {
            let batch = rows.iter().skip(start).take(LIST_BATCH);
            Ok(wire::ListSnapshotsResponse { info: batch.map(|(name, row)| info(name, row)).collect() })
        });
        Ok(Response::new(Box::pin(futures::stream::iter(batches))))
    }

    async fn usage(
        &self,
        request: Request<wire::UsageRequest>,
    ) -> Result<Response<wire::UsageResponse>, Status> {
        let usage = self.0.usage(&request.into_inner().key).await.map_err(status)?;
        let number = |value| i64::try_from(value).unwrap_or(i64::MAX);
        Ok(Response::new(wire::UsageResponse { size: number(usage.size), inodes: number(usage.inodes) }))
    }

    async fn cleanup(&self, _request: Request<wire::CleanupRequest>) -> Result<Response<()>, Status> {
        self.0.cleanup().await.map_err(status)?;
        Ok(Response::new(()))
    }
}
