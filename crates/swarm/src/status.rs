//! What a node tells about itself.

use std::sync::atomic::{AtomicU64, Ordering};

use content::{ContentId, Provenance};
use serde::Serialize;

/// Bytes by where they came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Bytes {
    /// Answered to readers from this node's own disk.
    pub store: u64,
    /// Received from other nodes.
    pub peer: u64,
    /// Received from seeds.
    pub seed: u64,
    /// Received from origins.
    pub origin: u64,
}

/// One content of the node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct ContentStatus {
    /// Its name.
    pub id: ContentId,
    /// Its length in bytes.
    pub len: u64,
    /// How many of them are here.
    pub have: u64,
    /// Whether it was hashed whole and is what its digest says.
    pub verified: bool,
}

/// A node of the swarm at one moment.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct SwarmStatus {
    /// Name of the node, in hexadecimal.
    pub node: String,
    /// Port on which it serves pieces.
    pub port: u16,
    /// Bytes by source, since the start.
    pub bytes: Bytes,
    /// Bytes of pieces sent to other nodes, since the start.
    pub uploaded: u64,
    /// Everything in the store.
    pub contents: Vec<ContentStatus>,
    /// Nodes with which a stream is open.
    pub neighbours: usize,
    /// Whether the stream to a scheduler stands.
    pub scheduler: bool,
}

/// The running totals.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    store: AtomicU64,
    peer: AtomicU64,
    seed: AtomicU64,
    origin: AtomicU64,
    uploaded: AtomicU64,
}

impl Counters {
    pub(crate) fn add(&self, from: Provenance, bytes: u64) {
        let counter = match from {
            Provenance::Store => &self.store,
            Provenance::Peer => &self.peer,
            Provenance::Seed => &self.seed,
            Provenance::Origin => &self.origin,
        };
        counter.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn add_uploaded(&self, bytes: u64) {
        self.uploaded.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn uploaded(&self) -> u64 {
        self.uploaded.load(Ordering::Relaxed)
    }

    pub(crate) fn bytes(&self) -> Bytes {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Bytes {
            store: get(&self.store),
            peer: get(&self.peer),
            seed: get(&self.seed),
            origin: get(&self.origin),
        }
    }
}
