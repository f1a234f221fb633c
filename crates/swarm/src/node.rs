//! What all parts of a node share. Short locks only; none is held across an await.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use content::{ByteRange, ContentId, Locator, RangeSet, Urgency};
use identity::NodeId;
use proto::cluster::{self, node_message, scheduler_message};
use store::{Content, PIECE, StoreError};
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::actor::{self, Event};
use crate::config::SwarmConfig;
use crate::link::Link;
use crate::policy::{BLOCKING_AFTER, IN_FLIGHT_BESIDE_BLOCKING, Rate};
use crate::status::Counters;
use crate::upload::UploadEvent;
use crate::wire;

/// Wrong answers after which a node is no longer talked to.
const STRIKES: u32 = 2;

/// Names that others could make us remember.
const KNOWN_LIMIT: usize = 8_192;

/// A node that the scheduler has named.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known {
    pub(crate) address: SocketAddr,
}

/// How to talk to the actor of a content.
#[derive(Clone)]
pub(crate) struct ActorHandle {
    pub(crate) inbox: mpsc::Sender<Event>,
    pub(crate) content: Arc<Content>,
    /// Nodes that may vouch for its pieces.
    pub(crate) readers: Arc<Mutex<HashSet<NodeId>>>,
}

/// What the scheduler says to an open content that has no actor yet.
pub(crate) enum OpenAnswer {
    LookUp,
    Length(Result<u64, String>),
}

pub(crate) struct Node {
    pub(crate) config: SwarmConfig,
    pub(crate) id: NodeId,
    pub(crate) port: u16,
    pub(crate) counters: Counters,
    pub(crate) tracker: TaskTracker,
    pub(crate) cancel: CancellationToken,
    pub(crate) links: Mutex<HashMap<NodeId, Arc<Link>>>,
    /// When each node was last dialled, unless that led to a stream.
    pub(crate) dialled: Mutex<HashMap<NodeId, Instant>>,
    strikes: Mutex<HashMap<NodeId, u32>>,
    pub(crate) known: Mutex<HashMap<NodeId, Known>>,
    pub(crate) actors: Mutex<HashMap<ContentId, ActorHandle>>,
    pub(crate) opens: Mutex<HashMap<ContentId, mpsc::Sender<OpenAnswer>>>,
    pub(crate) to_scheduler: mpsc::Sender<node_message::Kind>,
    pub(crate) connected: watch::Sender<bool>,
    changed: Mutex<HashSet<ContentId>>,
    pub(crate) have_changed: Notify,
    pub(crate) uploads: mpsc::Sender<UploadEvent>,
    pub(crate) download: Mutex<Rate>,
    bulk: AtomicUsize,
    blocking: Mutex<Blocking>,
    pub(crate) origin_slots: Arc<Semaphore>,
    pub(crate) runs: Mutex<HashMap<ContentId, crate::open::Running>>,
}

#[derive(Default)]
struct Blocking {
    open: usize,
    ended: Option<Instant>,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No critical section here can leave its data half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Node {
    pub(crate) fn new(
        config: SwarmConfig,
        port: u16,
        to_scheduler: mpsc::Sender<node_message::Kind>,
        uploads: mpsc::Sender<UploadEvent>,
    ) -> Self {
        Self {
            id: config.key.id(),
            port,
            counters: Counters::default(),
            tracker: TaskTracker::new(),
            cancel: CancellationToken::new(),
            links: Mutex::default(),
            dialled: Mutex::default(),
            strikes: Mutex::default(),
            known: Mutex::default(),
            actors: Mutex::default(),
            opens: Mutex::default(),
            to_scheduler,
            connected: watch::Sender::new(false),
            changed: Mutex::default(),
            have_changed: Notify::new(),
            uploads,
            download: Mutex::new(Rate::new()),
            bulk: AtomicUsize::new(0),
            blocking: Mutex::default(),
            origin_slots: Arc::new(Semaphore::new(config.limits.origin_requests.max(1))),
            runs: Mutex::default(),
            config,
        }
    }

    // ---- contents ----

    /// The actor of a content, started if it is not running.
    pub(crate) fn actor(self: &Arc<Self>, content: &Arc<Content>) -> ActorHandle {
        let mut actors = lock(&self.actors);
        if let Some(handle) = actors.get(content.id()).filter(|handle| !handle.inbox.is_closed()) {
            return handle.clone();
        }
        let handle = actor::start(self, Arc::clone(content));
        actors.insert(*content.id(), handle.clone());
        handle
    }

    /// The actor of a content, if it is running.
    pub(crate) fn running(&self, id: &ContentId) -> Option<ActorHandle> {
        lock(&self.actors).get(id).cloned()
    }

    /// A new piece, or one less, of a content: neighbours that lack it and the scheduler will hear of it.
    pub(crate) fn announce(&self, id: &ContentId) {
        for link in lock(&self.links).values() {
            link.content_changed(id);
        }
        lock(&self.changed).insert(*id);
        self.have_changed.notify_one();
    }

    /// Contents whose pieces changed since the last call.
    pub(crate) fn take_changed(&self) -> Vec<ContentId> {
        lock(&self.changed).drain().collect()
    }

    /// What this node has of a content, as the scheduler wants to hear it.
    /// `signers` are the keys that vouch for it, where the scheduler may not know them.
    pub(crate) fn have_message(
        &self,
        id: &ContentId,
        signers: &BTreeSet<[u8; 32]>,
    ) -> Option<node_message::Kind> {
        let content = self.config.store.find(id)?;
        let head = content.head();
        Some(node_message::Kind::Have(cluster::Have {
            content: id.to_string(),
            length: content.len(),
            piece_size: PIECE,
            locator: head.locator.as_ref().map(locator_to_wire),
            pieces: wire::ranges_to_wire(&content.have()),
            signers: signers.iter().map(|key| NodeId::of(key).as_bytes().to_vec()).collect(),
        }))
    }

    /// Keeps a piece that this node read at the origin, with its own word for it. Blocks.
    pub(crate) fn keep_own(&self, content: &Content, piece: u32, bytes: &[u8]) -> Result<(), StoreError> {
        let proof = wire::prove(&self.config.key, content.id(), piece, content.len(), bytes);
        content.put(piece, bytes, &proof)?;
        self.announce(content.id());
        Ok(())
    }

    // ---- the scheduler ----

    /// Whether the stream to a scheduler stands.
    pub(crate) fn has_scheduler(&self) -> bool {
        *self.connected.borrow()
    }

    /// Says something to the scheduler; `false` if it cannot be said now.
    pub(crate) fn tell_scheduler(&self, kind: node_message::Kind) -> bool {
        self.has_scheduler() && self.to_scheduler.try_send(kind).is_ok()
    }

    /// Takes note of nodes that the scheduler names, and dials those that are not linked yet.
    pub(crate) fn learn(self: &Arc<Self>, nodes: &[cluster::Neighbour], dial: bool) {
        for neighbour in nodes {
            let (Ok(id), Ok(address)) =
                (NodeId::try_from(neighbour.node.as_slice()), neighbour.address.parse::<SocketAddr>())
            else {
                continue;
            };
            if id == self.id || self.is_banned(&id) {
                continue;
            }
            {
                let mut known = lock(&self.known);
                if known.len() < KNOWN_LIMIT || known.contains_key(&id) {
                    known.insert(id, Known { address });
                }
            }
            if dial {
                crate::link::dial(self, id, address);
            }
        }
    }

    /// Passes on what the scheduler pushed.
    pub(crate) async fn on_scheduler(self: &Arc<Self>, message: scheduler_message::Kind) {
        use scheduler_message::Kind;
        match message {
            Kind::Welcome(welcome) => self.learn(&welcome.seeds, false),
            Kind::LookUp(look_up) => {
                let Ok(id) = look_up.content.parse() else { return };
                let waiting = lock(&self.opens).get(&id).cloned();
                let told = waiting.is_some_and(|waiting| waiting.try_send(OpenAnswer::LookUp).is_ok());
                if !told {
                    // Whoever asked here found out in another way, or gave up.
                    let length = self.config.store.find(&id).map(|content| content.len());
                    let error = if length.is_some() { "" } else { "this node no longer opens it" };
                    self.opened(&id, length.ok_or_else(|| error.to_owned()));
                }
            }
            Kind::Length(length) => {
                let Ok(id) = length.content.parse() else { return };
                let answer = if length.error.is_empty() { Ok(length.length) } else { Err(length.error) };
                if let Some(waiting) = lock(&self.opens).get(&id) {
                    let _ = waiting.try_send(OpenAnswer::Length(answer));
                }
            }
            Kind::Neighbours(neighbours) => {
                self.learn(&neighbours.nodes, true);
                let Ok(id) = neighbours.content.parse() else { return };
                self.object(&id, &neighbours.nodes);
                let Some(handle) = self.running(&id) else { return };
                {
                    let mut readers = lock(&handle.readers);
                    let ids = neighbours.readers.iter().filter_map(|id| NodeId::try_from(id.as_slice()).ok());
                    let room = KNOWN_LIMIT.saturating_sub(readers.len());
                    readers.extend(ids.take(room));
                }
                let _ = handle.inbox.send(Event::Heard).await;
            }
            Kind::Lease(lease) => self.on_lease(lease).await,
            Kind::Failed(failed) => {
                let Ok(id) = failed.content.parse() else { return };
                let Some(handle) = self.running(&id) else { return };
                let pieces: Vec<_> = failed.pieces.into_iter().collect();
                let pieces = wire::ranges_from_wire(&pieces, handle.content.pieces());
                let _ = handle.inbox.send(Event::WantFailed { pieces, error: failed.error }).await;
            }
            Kind::Gone(gone) => {
                if let Ok(id) = NodeId::try_from(gone.node.as_slice()) {
                    // Its stream to us tells better than the scheduler whether it is dead.
                    lock(&self.known).remove(&id);
                }
            }
        }
    }

    /// A node that lied about one content is not believed about another: the scheduler must not think that
    /// this node can have anything from it.
    fn object(&self, content: &ContentId, nodes: &[cluster::Neighbour]) {
        for neighbour in nodes {
            if NodeId::try_from(neighbour.node.as_slice()).is_ok_and(|node| self.is_banned(&node)) {
                let liar = cluster::Liar { content: content.to_string(), node: neighbour.node.clone() };
                self.tell_scheduler(node_message::Kind::Liar(liar));
            }
        }
    }

    async fn on_lease(self: &Arc<Self>, lease: cluster::Lease) {
        let fail = |error: &str| {
            self.lease_report(&lease.content, lease.lease, cluster::LeaseState::Failed, error);
        };
        let Ok(id) = lease.content.parse::<ContentId>() else { return fail("not a content name") };
        if lease.length > 0 && lease.piece_size != 0 && lease.piece_size != PIECE {
            return fail("another piece size");
        }
        let content = match self.running(&id).map(|handle| handle.content) {
            Some(content) => Ok(content),
            None => self.config.store.content(&id, lease.length),
        };
        let content = match content {
            Ok(content) => content,
            Err(error) => return fail(&error.to_string()),
        };
        let ranges: Vec<_> = lease.pieces.into_iter().collect();
        let event = Event::Lease {
            lease: lease.lease,
            pieces: wire::ranges_from_wire(&ranges, content.pieces()),
            locator: lease.locator.as_ref().and_then(locator_from_wire),
        };
        if self.actor(&content).inbox.send(event).await.is_err() {
            self.lease_report(&id.to_string(), lease.lease, cluster::LeaseState::Failed, "shutting down");
        }
    }

    pub(crate) fn lease_report(&self, content: &str, lease: u64, state: cluster::LeaseState, error: &str) {
        self.tell_scheduler(node_message::Kind::Lease(cluster::LeaseReport {
            content: content.to_owned(),
            lease,
            state: state.into(),
            error: error.to_owned(),
        }));
    }

    /// Answers a LookUp.
    pub(crate) fn opened(&self, id: &ContentId, length: Result<u64, String>) {
        let content = id.to_string();
        let opened = match length {
            Ok(length) => cluster::Opened { content, length, error: String::new() },
            Err(error) => cluster::Opened { content, length: 0, error },
        };
        self.tell_scheduler(node_message::Kind::Opened(opened));
    }

    // ---- neighbours ----

    /// Charges a node with a lie. At the second it is banned: its stream is closed, the scheduler told.
    pub(crate) fn strike(&self, id: &NodeId, content: Option<&ContentId>, why: &str) {
        let strikes = {
            let mut strikes = lock(&self.strikes);
            let count = strikes.entry(*id).or_insert(0);
            *count += 1;
            *count
        };
        tracing::warn!(node = ?id, content = content.map(tracing::field::display), strikes, why, "a node lies");
        if strikes < STRIKES {
            return;
        }
        if let Some(link) = lock(&self.links).get(id) {
            link.close();
        }
        lock(&self.known).remove(id);
        self.tell_scheduler(node_message::Kind::Liar(cluster::Liar {
            content: content.map(ToString::to_string).unwrap_or_default(),
            node: id.as_bytes().to_vec(),
        }));
    }

    pub(crate) fn is_banned(&self, id: &NodeId) -> bool {
        lock(&self.strikes).get(id).is_some_and(|strikes| *strikes >= STRIKES)
    }

    /// Whether `signer` may vouch for pieces of a content: it is this node, or the scheduler named it.
    pub(crate) fn is_reader(&self, signer: &NodeId, readers: &Mutex<HashSet<NodeId>>, link: &NodeId) -> bool {
        !self.is_banned(signer)
            && (*signer == self.id
                || signer == link
                || lock(readers).contains(signer)
                || lock(&self.known).contains_key(signer))
    }

    // ---- what is in flight ----

    /// Moves an actor's share of the requests in flight from `before` to `after`.
    pub(crate) fn count_bulk(&self, before: usize, after: usize) {
        self.bulk.fetch_add(after, Ordering::Relaxed);
        self.bulk.fetch_sub(before, Ordering::Relaxed);
    }

    /// How many more pieces may be in flight now, and the budget in all.
    pub(crate) fn room(&self, now: Instant) -> (usize, usize) {
        let budget = lock(&self.download).budget(PIECE);
        let limit = if self.is_blocking(now) { budget.min(IN_FLIGHT_BESIDE_BLOCKING) } else { budget };
        (limit.saturating_sub(self.bulk.load(Ordering::Relaxed)), budget)
    }

    /// Whether a Blocking read is open, or was until a moment ago.
    pub(crate) fn is_blocking(&self, now: Instant) -> bool {
        let blocking = lock(&self.blocking);
        let ended = blocking.ended.is_some_and(|at| now.saturating_duration_since(at) < BLOCKING_AFTER);
        blocking.open > 0 || ended
    }

    /// For as long as the guard lives, a Blocking read is open.
    pub(crate) fn blocking(self: &Arc<Self>, urgency: Urgency) -> Option<BlockingGuard> {
        (urgency == Urgency::Blocking).then(|| {
            lock(&self.blocking).open += 1;
            BlockingGuard(Arc::clone(self))
        })
    }

    /// Deadline of a read from now on.
    pub(crate) fn deadline(&self, urgency: Urgency) -> Duration {
        let base = self.config.limits.read_deadline;
        if urgency == Urgency::Blocking { base } else { base * 5 }
    }
}

/// See [`Node::blocking`].
pub(crate) struct BlockingGuard(Arc<Node>);

impl Drop for BlockingGuard {
    fn drop(&mut self) {
        let mut blocking = lock(&self.0.blocking);
        blocking.open = blocking.open.saturating_sub(1);
        blocking.ended = Some(Instant::now());
    }
}

pub(crate) fn locator_to_wire(locator: &Locator) -> cluster::Locator {
    cluster::Locator {
        registry: locator.registry.clone(),
        repository: locator.repository.clone(),
        digest: locator.digest.to_string(),
    }
}

pub(crate) fn locator_from_wire(locator: &cluster::Locator) -> Option<Locator> {
    Some(Locator {
        registry: locator.registry.clone(),
        repository: locator.repository.clone(),
        digest: locator.digest.parse().ok()?,
    })
}

/// All pieces of a content.
pub(crate) fn all_pieces(content: &Content) -> RangeSet {
    [ByteRange::new(0, u64::from(content.pieces()))].into_iter().collect()
}
