//! The sessions of nodes, and the core that decides for them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use identity::NodeId;
use proto::cluster::{ClusterResponse, SchedulerMessage};
use rand::rngs::StdRng;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::core::{Core, Decision, Event, Millis, NodeInfo, Peer};

/// Messages that wait for a node. A node that falls back further is dropped and comes again.
const QUEUE: usize = 1024;
/// Sessions at once.
const MAX_SESSIONS: usize = 20_000;

type Answer = Result<SchedulerMessage, Status>;

/// All sessions.
pub(super) struct Sessions {
    began: Instant,
    inner: Mutex<Inner>,
}

struct Inner {
    core: Core,
    rng: StdRng,
    next_peer: u32,
    queues: HashMap<Peer, Queue>,
    peers: HashMap<NodeId, Peer>,
}

/// The way to a node.
struct Queue {
    node: NodeId,
    answers: mpsc::Sender<Answer>,
    end: CancellationToken,
}

/// One session. Dropping it is the node's leave.
pub(super) struct Session {
    sessions: Arc<Sessions>,
    peer: Peer,
    answers: mpsc::Sender<Answer>,
    end: CancellationToken,
}

impl Session {
    pub(super) const fn peer(&self) -> Peer {
        self.peer
    }

    /// Until the session has to end: shutdown, another session of the same node, or a full queue.
    pub(super) async fn ended(&self) {
        self.end.cancelled().await;
    }

    pub(super) fn why(&self) -> String {
        let full = self.answers.capacity() == 0;
        let why = if full { "the node does not read its messages" } else { "replaced, or shutting down" };
        why.to_owned()
    }

    /// The last answer of the session.
    pub(super) fn refuse(&self, status: Status) {
        // A full queue ends the session all the same.
        drop(self.answers.try_send(Err(status)));
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.sessions.handle(Event::Leave { peer: self.peer });
    }
}

impl Sessions {
    pub(super) fn new() -> Self {
        let inner = Inner {
            core: Core::new(rand::random()),
            rng: rand::make_rng(),
            next_peer: 0,
            queues: HashMap::new(),
            peers: HashMap::new(),
        };
        Self { began: Instant::now(), inner: Mutex::new(inner) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // The core keeps no promise across a panic that the next restart would not mend.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Millis {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Begins a session; an earlier one of the same node ends.
    pub(super) fn begin(
        self: &Arc<Self>,
        info: NodeInfo,
        stop: &CancellationToken,
    ) -> Result<(Session, ReceiverStream<Answer>), Status> {
        let (answers, stream) = mpsc::channel(QUEUE);
        let end = stop.child_token();
        let mut inner = self.lock();
        let now = self.now();
        if let Some(earlier) = inner.peers.get(&info.node).copied() {
            inner.handle(now, Event::Leave { peer: earlier });
        }
        if inner.queues.len() >= MAX_SESSIONS {
            return Err(Status::resource_exhausted("the scheduler has as many sessions as it can hold"));
        }
        let peer = Peer(inner.next_peer);
        inner.next_peer = inner.next_peer.wrapping_add(1);
        let node = info.node;
        tracing::info!(%node, address = %info.address, hostname = info.hostname, seed = info.seed, "node joined");
        inner.peers.insert(node, peer);
        inner.queues.insert(peer, Queue { node, answers: answers.clone(), end: end.clone() });
        inner.handle(now, Event::Join { peer, info });
        drop(inner);
        let session = Session { sessions: Arc::clone(self), peer, answers, end };
        Ok((session, ReceiverStream::new(stream)))
    }

    /// Tells the core, and sends what it decides.
    pub(super) fn handle(&self, event: Event) {
        let mut inner = self.lock();
        // Under the lock, so that the core's time never runs backwards.
        let now = self.now();
        inner.handle(now, event);
    }

    pub(super) fn cluster(&self) -> ClusterResponse {
        self.lock().core.cluster()
    }
}

impl Inner {
    fn handle(&mut self, now: Millis, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            if let Event::Leave { peer } = &event {
                self.forget(*peer);
            }
            for Decision { to, message } in self.core.handle(now, event, &mut self.rng) {
                let Some(queue) = self.queues.get(&to) else { continue };
                let message = SchedulerMessage { kind: Some(message) };
                if queue.answers.try_send(Ok(message)).is_err() {
                    tracing::warn!(node = %queue.node, "node does not read its messages, its session ends");
                    self.forget(to);
                    events.push(Event::Leave { peer: to });
                }
            }
        }
    }

    fn forget(&mut self, peer: Peer) {
        let Some(queue) = self.queues.remove(&peer) else { return };
        queue.end.cancel();
        if self.peers.get(&queue.node) == Some(&peer) {
            self.peers.remove(&queue.node);
        }
    }
}
