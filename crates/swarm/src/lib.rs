//! The swarm: bytes of a content from whoever has them, each checked before anybody sees it.
//!
//! A content is cut into pieces of 64 KiB. A read names bytes; the pieces under them come, in order of
//! cost, from this node's store, from neighbours, from a seed, or from the origin:
//!
//! 1. What is in the store is read there, and nothing else is asked.
//! 2. Neighbours tell each other what they have; the rules of [`policy`] choose whom to ask for what.
//! 3. What nobody has is a *want*, and the scheduler grants a *lease* of it: to this node or to another
//!    one. Either way one node reads it at the origin, signs it, and everybody gets it from there.
//! 4. When the scheduler is gone, or nobody answers in time, this node reads it at the origin itself. Every
//!    failure has this way out; a dead component costs speed and never a read.
//!
//! **What is believed.** Whoever reads a piece at the origin signs its BLAKE3 digest. A piece from a
//! neighbour is kept only if its bytes have the digest, the signature fits, and the signer is a node that
//! the scheduler has named or the neighbour itself. Twice wrong and a neighbour is out. That catches whoever
//! changes a piece on its way. It does not catch an origin that lies, nor a reader that signs what it
//! made up, nor this node's own reading over a bad path: the chunk digest of the layer above, and the
//! hash of the whole once it is here, do.
//!
//! **Parts.** One task per open content decides; one stream per neighbour carries everything; one task
//! serves pieces to others, one at a time; one keeps the session with the scheduler. All of them are
//! awaited by [`Swarm::shutdown`].

mod actor;
mod config;
mod full;
mod link;
mod node;
mod open;
mod origin;
pub mod policy;
mod session;
mod status;
mod upload;
mod wire;

/// What the fuzz targets (`fuzz/`) reach of this crate. A decoder of bytes from elsewhere is no part of the
/// interface, and a target is a crate of its own.
#[doc(hidden)]
pub mod fuzzing {
    pub use crate::wire::{
        WireError, frame, messages, proof_from_wire, proof_to_wire, ranges_from_wire, ranges_to_wire,
    };
}

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use proto::cluster::{ClusterRequest, ClusterResponse};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

pub use config::{Limits, OriginFinder, Patience, SwarmConfig, Tamper};
pub use status::{Bytes as SourceBytes, ContentStatus, SwarmStatus};
#[doc(no_inline)]
pub use store::PIECE;

use node::{Node, lock};

/// How long a start waits for the first word of a scheduler. Without one a node starts all the same.
const FIRST_SESSION: Duration = Duration::from_secs(1);

/// Messages to the scheduler that may wait.
const OUTBOX: usize = 1024;

/// Requests of neighbours that may wait to be looked at.
const UPLOADS: usize = 1024;

/// How long a shutdown waits for tasks that do not end.
const SHUTDOWN: Duration = Duration::from_secs(5);

/// Why a node cannot take part, or cannot say what was asked.
#[derive(Debug, thiserror::Error)]
pub enum SwarmError {
    /// The piece port is not to be had.
    #[error(
        "cannot serve pieces on {address}: {source} (is another node running, or the address not this machine's?)"
    )]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// No scheduler answered.
    #[error("no scheduler answered: {0}")]
    Scheduler(String),
}

/// A node of the swarm. Dropping it does not stop it; [`Swarm::shutdown`] does.
pub struct Swarm {
    node: Arc<Node>,
}

impl Swarm {
    /// Starts a node: listens for neighbours and looks for a scheduler.
    ///
    /// # Errors
    /// [`SwarmError::Listen`]. A scheduler that is not there is no error.
    pub async fn start(config: SwarmConfig) -> Result<Arc<Self>, SwarmError> {
        let address = config.listen;
        let listen_error = |source| SwarmError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(listen_error)?;
        let port = listener.local_addr().map_err(listen_error)?.port();
        let (to_scheduler, outbox) = mpsc::channel(OUTBOX);
        let (uploads, requests) = mpsc::channel(UPLOADS);
        let node = Arc::new(Node::new(config, port, to_scheduler, uploads));
        node.tracker.spawn(link::accept(Arc::clone(&node), listener));
        node.tracker.spawn(upload::run(Arc::clone(&node), requests));
        if !node.config.schedulers.is_empty() {
            let mut connected = node.connected.subscribe();
            node.tracker.spawn(session::run(Arc::clone(&node), outbox));
            let first = connected.wait_for(|connected| *connected);
            if tokio::time::timeout(FIRST_SESSION, first).await.is_err() {
                tracing::warn!(schedulers = ?node.config.schedulers, "no scheduler yet, going on without");
            }
        }
        Ok(Arc::new(Self { node }))
    }

    /// Port on which this node serves pieces.
    pub fn port(&self) -> u16 {
        self.node.port
    }

    /// What this node has done and has now.
    pub fn status(&self) -> SwarmStatus {
        let contents = self.node.config.store.all();
        let contents = contents.iter().map(|content| ContentStatus {
            id: *content.id(),
            len: content.len(),
            have: content.have_bytes(),
            verified: content.head().verified,
        });
        SwarmStatus {
            node: self.node.id.to_string(),
            port: self.node.port,
            bytes: self.node.counters.bytes(),
            uploaded: self.node.counters.uploaded(),
            contents: contents.collect(),
            neighbours: lock(&self.node.links).len(),
            scheduler: self.node.has_scheduler(),
        }
    }

    /// Tells when the stream to a scheduler stands, and when not.
    pub fn scheduler_watch(&self) -> tokio::sync::watch::Receiver<bool> {
        self.node.connected.subscribe()
    }

    /// The whole cluster, as the scheduler sees it.
    ///
    /// # Errors
    /// [`SwarmError::Scheduler`] if none answers.
    pub async fn cluster(&self) -> Result<ClusterResponse, SwarmError> {
        let mut last = "none is configured".to_owned();
        for scheduler in &self.node.config.schedulers {
            let mut client = session::client(&self.node.config.security, &self.node, scheduler);
            let answer =
                tokio::time::timeout(Duration::from_secs(5), client.cluster(ClusterRequest {})).await;
            match answer {
                Ok(Ok(response)) => return Ok(response.into_inner()),
                Ok(Err(status)) => last = format!("{scheduler}: {status}"),
                Err(_) => last = format!("{scheduler}: no answer in 5 s"),
            }
        }
        Err(SwarmError::Scheduler(last))
    }

    /// Says good-bye and waits until every task has ended. Reads that are open fail.
    pub async fn shutdown(&self) {
        self.node.cancel.cancel();
        self.node.tracker.close();
        if tokio::time::timeout(SHUTDOWN, self.node.tracker.wait()).await.is_err() {
            tracing::warn!(tasks = self.node.tracker.len(), "tasks did not end in time");
        }
    }
}
