//! What the node answers to `pantala status`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use store::Store;

use super::Cluster;
use crate::admin::Answers;
use crate::status::{BySource, LayerLine, NodeLine, SnapshotterLine, Status};

/// The scheduler is asked for the cluster's nodes, but nobody waits for it longer than this.
const CLUSTER_WAIT: Duration = Duration::from_secs(1);

/// Gathers the status from the parts of the node.
pub struct Report {
    hostname: String,
    started: Instant,
    cluster: Arc<Cluster>,
    store: Store,
    layers: Option<Layers>,
}

/// The snapshotter of a node.
pub struct Layers {
    /// Who is asked.
    pub handle: snapshotter::Handle,
    /// The socket that containerd knows.
    pub address: PathBuf,
}

impl Layers {
    /// What it did.
    pub fn line(&self) -> SnapshotterLine {
        let fallbacks = self.handle.fallbacks().into_iter();
        SnapshotterLine {
            address: self.address.display().to_string(),
            fallbacks: fallbacks.map(|(reason, count)| (reason.name().to_owned(), count)).collect(),
            recent_fallbacks: self.handle.recent_fallbacks(),
        }
    }

    /// Its layers, whose absent bytes come from `source`.
    pub fn lines(&self, source: &str) -> Vec<LayerLine> {
        self.handle.layers().into_iter().map(|layer| LayerLine::of(layer, source)).collect()
    }
}

impl Report {
    /// A report on these parts.
    pub fn new(hostname: String, cluster: Arc<Cluster>, store: Store, layers: Option<Layers>) -> Self {
        Self { hostname, started: Instant::now(), cluster, store, layers }
    }
}

#[async_trait]
impl Answers for Report {
    async fn status(&self) -> Status {
        let mut status = Status {
            version: env!("CARGO_PKG_VERSION").into(),
            hostname: self.hostname.clone(),
            uptime_seconds: self.started.elapsed().as_secs(),
            stored: self.store.bytes(),
            ..Status::default()
        };
        if let Some(layers) = &self.layers {
            status.snapshotter = Some(layers.line());
            status.layers = layers.lines("swarm");
        }
        let Some(swarm) = self.cluster.swarm() else { return status };
        let now = swarm.status();
        status.scheduler = now.scheduler;
        status.uploaded = now.uploaded;
        status.neighbours = now.neighbours as u64;
        status.bytes = BySource {
            store: now.bytes.store,
            peer: now.bytes.peer,
            seed: now.bytes.seed,
            origin: now.bytes.origin,
        };
        if let Ok(Ok(cluster)) = tokio::time::timeout(CLUSTER_WAIT, swarm.cluster()).await {
            status.nodes = cluster
                .nodes
                .into_iter()
                .map(|node| NodeLine {
                    hostname: node.hostname,
                    address: node.address,
                    seed: node.seed,
                    contents: node.contents,
                    bytes: node.bytes,
                })
                .collect();
        }
        status
    }

    fn ready(&self) -> bool {
        self.layers.as_ref().is_none_or(|layers| layers.handle.is_alive())
    }

    fn metrics(&self) -> String {
        self.layers.as_ref().map(|layers| layers.handle.metrics()).unwrap_or_default()
    }

    fn connected(&self) -> bool {
        self.cluster.swarm().is_some_and(|swarm| swarm.status().scheduler)
    }
}
