//! What the node answers to `pantala status`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use store::Store;

use super::Cluster;
use crate::admin::Answers;
use crate::status::{BySource, LayerLine, NodeLine, Status};

/// The scheduler is asked for the cluster's nodes, but nobody waits for it longer than this.
const CLUSTER_WAIT: Duration = Duration::from_secs(1);

/// Gathers the status from the parts of the node.
pub struct Report {
    hostname: String,
    started: Instant,
    cluster: Arc<Cluster>,
    store: Store,
    layers: Option<snapshotter::Handle>,
}

impl Report {
    /// A report on these parts.
    pub fn new(
        hostname: String,
        cluster: Arc<Cluster>,
        store: Store,
        layers: Option<snapshotter::Handle>,
    ) -> Self {
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
        if let Some(handle) = &self.layers {
            status.layers = handle
                .layers()
                .into_iter()
                .map(|layer| LayerLine {
                    mountpoint: layer.mountpoint.display().to_string(),
                    digest: layer.layer.to_string(),
                    image: layer.image,
                    size: layer.size,
                    fetched: layer.fetched,
                    touched: layer.touched,
                    driver: layer.driver.to_owned(),
                })
                .collect();
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

    fn connected(&self) -> bool {
        self.cluster.swarm().is_some_and(|swarm| swarm.status().scheduler)
    }
}
