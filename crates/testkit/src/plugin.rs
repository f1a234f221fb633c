//! A client of the snapshots API: asks of the snapshotter under test what containerd would, past containerd.

use std::collections::HashMap;
use std::path::Path;

use anyhow::Result;
use proto::containerd::snapshots as wire;
use proto::containerd::snapshots::snapshots_client::SnapshotsClient;
use proto::containerd::types::Mount;
use tonic::Status;
use tonic::transport::Channel;

use crate::grpc::Connection;

pub use tonic::Code;
pub use wire::{Info, Kind};

/// The label by which a client asks for a lazy layer: the chain ID that it is for.
pub const SNAPSHOT_REF: &str = "containerd.io/snapshot.ref";

/// The snapshotter at one socket.
#[derive(Debug, Clone)]
pub struct Plugin(Connection);

impl Plugin {
    /// Connects.
    pub fn connect(socket: &Path) -> Result<Self> {
        Ok(Self(Connection::new(socket)?))
    }

    fn client(&self) -> SnapshotsClient<Channel> {
        SnapshotsClient::new(self.0.channel.clone())
    }

    /// `Prepare`.
    #[allow(clippy::result_large_err, reason = "what gRPC answers, for a test to look at")]
    pub fn prepare(
        &self,
        key: &str,
        parent: &str,
        labels: &HashMap<String, String>,
    ) -> Result<Vec<Mount>, Status> {
        let request = wire::PrepareSnapshotRequest {
            snapshotter: "stargz".into(),
            key: key.into(),
            parent: parent.into(),
            labels: labels.clone(),
        };
        let answer = self.0.wait(self.client().prepare(request))?;
        Ok(answer.into_inner().mounts)
    }

    /// `Remove`.
    #[allow(clippy::result_large_err, reason = "what gRPC answers, for a test to look at")]
    pub fn remove(&self, key: &str) -> Result<(), Status> {
        let request = wire::RemoveSnapshotRequest { snapshotter: "stargz".into(), key: key.into() };
        self.0.wait(self.client().remove(request)).map(drop)
    }

    /// `Stat`.
    #[allow(clippy::result_large_err, reason = "what gRPC answers, for a test to look at")]
    pub fn stat(&self, key: &str) -> Result<Info, Status> {
        let request = wire::StatSnapshotRequest { snapshotter: "stargz".into(), key: key.into() };
        let answer = self.0.wait(self.client().stat(request))?;
        answer.into_inner().info.ok_or_else(|| Status::internal("no info"))
    }

    /// `Usage`: bytes.
    #[allow(clippy::result_large_err, reason = "what gRPC answers, for a test to look at")]
    pub fn usage(&self, key: &str) -> Result<i64, Status> {
        let request = wire::UsageRequest { snapshotter: "stargz".into(), key: key.into() };
        Ok(self.0.wait(self.client().usage(request))?.into_inner().size)
    }

    /// `List`.
    pub fn list(&self, filters: &[&str]) -> Result<Vec<Info>> {
        let filters = filters.iter().map(ToString::to_string).collect();
        let request = wire::ListSnapshotsRequest { snapshotter: "stargz".into(), filters };
        self.0.wait(async {
            let mut stream = self.client().list(request).await?.into_inner();
            let mut all = Vec::new();
            while let Some(batch) = stream.message().await? {
                all.extend(batch.info);
            }
            Ok(all)
        })
    }

    /// The one that containerd would adopt for a chain ID on a parent: it looks for it with this filter.
    pub fn adopted(&self, chain: &str, parent: &str) -> Result<Vec<Info>> {
        self.list(&[&format!("labels.\"{SNAPSHOT_REF}\"=={chain},parent==\"{parent}\"")])
    }
}
