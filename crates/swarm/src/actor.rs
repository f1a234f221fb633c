//! One task per open content: it alone decides what is asked of whom.
//!
//! Readers, neighbours, the scheduler and origin reads send it events; after each batch of events it takes
//! one [`Actor::turn`]: leases are started, what nobody can give is read straight from the origin,
//! neighbours are asked, the scheduler hears of new wants. It never waits for a socket or a disk, so
//! nothing can hold it up.
//!
//! One fetch per piece, however many readers wait: a reader names pieces and is answered when the last
//! of them is in the store. Whoever goes away takes only its own interest along.

mod judge;
mod origins;
mod reads;
mod wants;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use content::{ByteRange, Digest, Locator, Origin, Provenance, RangeSet, ReadError};
use identity::NodeId;
use proto::peer::{self, peer_message::Kind};
use rand::RngExt;
use store::{Content, PIECE, StoreError};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::link::Link;
use crate::node::{ActorHandle, Node, all_pieces, lock};
use crate::policy::{Action, Child, Class};
use crate::wire::{self, each};

/// Events that may wait. Links and readers wait for room; the actor never waits for them.
const INBOX: usize = 1024;

/// Hedges, deadlines and patience are looked at so often while there is anything to do.
const TICK: Duration = Duration::from_millis(25);

/// An actor with nothing to do ends after so long; the next event starts another.
const IDLE: Duration = Duration::from_secs(30);

/// Nodes that are dialled for a content when there is no scheduler to name any.
const DIAL_ALONE: usize = 8;

/// Neighbours below which the scheduler is asked for more.
const FEW_NEIGHBOURS: usize = 8;

/// What became of a piece that a neighbour sent.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It is right, and in the store.
    Stored,
    /// It is not what its proof says.
    Lie,
    /// Nobody known vouches for it.
    Unknown,
    /// It could not be kept.
    Disk(ReadError),
}

/// A reader's wish.
pub(crate) struct ReadRequest {
    /// Piece numbers.
    pub(crate) pieces: ByteRange,
    pub(crate) class: Class,
    pub(crate) done: oneshot::Sender<Result<Provenance, ReadError>>,
    pub(crate) deadline: Instant,
    /// Where the reader would get it without the cluster.
    pub(crate) origin: Weak<dyn Origin>,
}

/// What an actor hears.
pub(crate) enum Event {
    Attach(Weak<dyn Origin>),
    Read(ReadRequest),
    LinkUp(Arc<Link>),
    LinkDown(Arc<Link>),
    Have {
        node: NodeId,
        pieces: RangeSet,
        queue: u32,
    },
    Piece {
        node: NodeId,
        piece: u32,
        queue: u32,
        from: Provenance,
        outcome: Outcome,
    },
    Busy {
        node: NodeId,
        piece: u32,
        retry: Duration,
        absent: bool,
    },
    Gone(NodeId),
    /// The scheduler said something about this content.
    Heard,
    Lease {
        lease: u64,
        pieces: RangeSet,
        locator: Option<Locator>,
    },
    WantFailed {
        pieces: RangeSet,
        error: String,
    },
    /// The scheduler's stream stands (again), or does not.
    Scheduler(bool),
    OriginPiece(u32),
    OriginDone {
        job: u64,
        result: Result<(), ReadError>,
    },
    /// A reader found the bytes of these pieces wrong.
    Reject {
        pieces: ByteRange,
        done: oneshot::Sender<()>,
    },
    /// The whole content was hashed: its digest, and the pieces that others vouch for.
    Hashed(Result<(Digest, Vec<u32>), StoreError>),
}

struct Neighbour {
    peer: u32,
    link: Arc<Link>,
    /// It has told what it has, if only that it has nothing.
    answered: bool,
}

/// The state of one content.
struct Actor {
    node: Arc<Node>,
    content: Arc<Content>,
    inbox: mpsc::Sender<Event>,
    child: Child,
    /// Small numbers for the policy; a node keeps its number.
    peers: HashMap<NodeId, u32>,
    neighbours: HashMap<u32, Neighbour>,
    reads: Vec<reads::Read>,
    origins: origins::Origins,
    wants: wants::Wants,
    /// This actor's share of the node's requests in flight.
    bulk: usize,
    wanting_since: Option<Instant>,
    got: u64,
    hashing: bool,
    /// The whole was not what its digest says: only what this node reads itself counts from now on.
    distrust: bool,
    /// The whole was hashed, and there is nothing more to find out.
    judged: bool,
    /// When a reader last rejected a piece.
    rejected: HashMap<u32, Instant>,
    idle_since: Instant,
}

/// Starts the actor of a content.
pub(crate) fn start(node: &Arc<Node>, content: Arc<Content>) -> ActorHandle {
    let (inbox, events) = mpsc::channel(INBOX);
    let readers = Arc::new(Mutex::new(HashSet::new()));
    let handle =
        ActorHandle { inbox: inbox.clone(), content: Arc::clone(&content), readers: Arc::clone(&readers) };
    let mut child = Child::new(content.pieces());
    for piece in each(&content.have()) {
        child.on_stored(piece);
    }
    let actor = Actor {
        child,
        content,
        inbox,
        peers: HashMap::new(),
        neighbours: HashMap::new(),
        reads: Vec::new(),
        origins: origins::Origins::default(),
        wants: wants::Wants::default(),
        bulk: 0,
        wanting_since: None,
        got: 0,
        hashing: false,
        distrust: false,
        judged: false,
        rejected: HashMap::new(),
        idle_since: Instant::now(),
        node: Arc::clone(node),
    };
    node.tracker.spawn(actor.run(events));
    handle
}

impl Actor {
    async fn run(mut self, mut events: mpsc::Receiver<Event>) {
        let cancel = self.node.cancel.clone();
        self.meet_neighbours();
        loop {
            let tick = if self.is_busy() { TICK } else { IDLE };
            tokio::select! {
                () = cancel.cancelled() => break,
                event = events.recv() => match event {
                    Some(event) => self.on_event(event),
                    None => break,
                },
                () = tokio::time::sleep(tick) => {}
            }
            while let Ok(event) = events.try_recv() {
                self.on_event(event);
            }
            let now = Instant::now();
            self.turn(now);
            if self.may_end(now) && events.is_empty() {
                break;
            }
        }
        self.end(&mut events);
    }

    /// Closes the inbox, and answers what came in meanwhile.
    fn end(&mut self, events: &mut mpsc::Receiver<Event>) {
        {
            let mut actors = lock(&self.node.actors);
            if actors.get(self.content.id()).is_some_and(|handle| handle.inbox.same_channel(&self.inbox)) {
                actors.remove(self.content.id());
            }
        }
        events.close();
        while let Ok(event) = events.try_recv() {
            if let Event::Lease { lease, .. } = event {
                self.report_lease(lease, proto::cluster::LeaseState::Failed, "closing");
            }
        }
        self.origins.stop();
        self.node.count_bulk(self.bulk, 0);
        let error = ReadError::local(content::ReadErrorKind::Cancelled, "shutting down");
        for read in self.reads.drain(..) {
            read.answer(Err(error.clone()));
        }
    }

    fn is_busy(&self) -> bool {
        !self.child.is_idle() || !self.reads.is_empty() || self.origins.is_busy()
    }

    fn may_end(&mut self, now: Instant) -> bool {
        if self.is_busy() || self.hashing {
            self.idle_since = now;
        }
        let needed = !self.content.is_complete() && self.origins.is_attached();
        !needed && now.saturating_duration_since(self.idle_since) >= IDLE
    }

    fn on_event(&mut self, event: Event) {
        let now = Instant::now();
        self.idle_since = now;
        match event {
            Event::Attach(origin) => self.origins.attach(origin),
            Event::Read(request) => self.on_read(now, request),
            Event::LinkUp(link) => self.on_link(link),
            Event::LinkDown(link) => self.on_link_down(&link),
            Event::Have { node, pieces, queue } => {
                let Some(peer) = self.peers.get(&node).copied() else { return };
                if let Some(neighbour) = self.neighbours.get_mut(&peer) {
                    neighbour.answered = true;
                }
                if !pieces.is_empty() {
                    // Somebody is reading it, and it comes this way.
                    self.wants.heard = Some(now);
                }
                self.child.on_have(peer, each(&pieces), queue);
            }
            Event::Piece { node, piece, queue, from, outcome } => {
                self.on_piece(now, node, piece, queue, from, outcome);
            }
            Event::Busy { node, piece, retry, absent } => {
                let Some(peer) = self.peers.get(&node).copied() else { return };
                if absent {
                    self.child.on_lacks(peer, piece);
                } else {
                    self.child.on_busy(now, peer, piece, retry);
                }
            }
            Event::Gone(node) => {
                if let Some(peer) = self.peers.get(&node).copied() {
                    self.child.on_neighbour(peer);
                }
            }
            Event::Heard => self.wants.heard = Some(now),
            Event::Lease { lease, pieces, locator } => self.on_lease(now, lease, &pieces, locator),
            Event::WantFailed { pieces, error } => self.on_want_failed(now, &pieces, &error),
            Event::Scheduler(connected) => self.on_scheduler(connected),
            Event::OriginPiece(piece) => self.on_stored(now, piece, Provenance::Origin),
            Event::OriginDone { job, result } => self.on_origin_done(now, job, result),
            Event::Reject { pieces, done } => {
                self.on_reject(now, pieces);
                let _ = done.send(());
            }
            Event::Hashed(hashed) => self.on_hashed(hashed),
        }
    }

    /// Everything that follows from the events so far.
    fn turn(&mut self, now: Instant) {
        self.prune_reads(now);
        self.start_origin_reads(now);
        self.ask_neighbours(now);
        self.tell_wants(now);
        self.check_whole();
        if self.child.is_idle() {
            self.wanting_since = None;
        }
    }

    // ---- neighbours ----

    fn meet_neighbours(&mut self) {
        let links: Vec<_> = lock(&self.node.links).values().cloned().collect();
        for link in links {
            if !self.neighbours.values().any(|neighbour| neighbour.link.key == link.key) {
                self.on_link(link);
            }
        }
        if !self.node.has_scheduler() {
            let known: Vec<_> =
                lock(&self.node.known).iter().map(|(id, known)| (*id, known.address)).collect();
            for (id, address) in known.into_iter().take(DIAL_ALONE) {
                crate::link::dial(&self.node, id, address);
            }
        }
    }

    fn on_link(&mut self, link: Arc<Link>) {
        if link.is_closed()
            || self.content.is_complete()
            || self.neighbours.len() >= self.node.config.limits.neighbours
        {
            return;
        }
        let next = u32::try_from(self.peers.len()).unwrap_or(u32::MAX);
        let peer = *self.peers.entry(link.node).or_insert(next);
        let have = self.content.have();
        let lacks: RangeSet = all_pieces(&self.content)
            .iter()
            .flat_map(|all| have.missing(all).iter().collect::<Vec<_>>())
            .collect();
        link.say(Kind::Want(peer::PeerWant {
            content: self.content.id().to_string(),
            length: self.content.len(),
            pieces: wire::ranges_to_wire(&lacks),
            urgency: wire::class_to_wire(2),
        }));
        self.child.on_neighbour(peer);
        self.neighbours.insert(peer, Neighbour { peer, link, answered: false });
    }

    fn on_link_down(&mut self, link: &Link) {
        let Some(peer) = self.peers.get(&link.node).copied() else { return };
        if self.neighbours.get(&peer).is_some_and(|neighbour| neighbour.link.key == link.key) {
            self.neighbours.remove(&peer);
            self.child.on_lost(peer);
            if self.neighbours.len() < FEW_NEIGHBOURS {
                self.wants.need_neighbours = true;
            }
        }
    }

    fn on_piece(
        &mut self,
        now: Instant,
        node: NodeId,
        piece: u32,
        queue: u32,
        from: Provenance,
        outcome: Outcome,
    ) {
        let Some(peer) = self.peers.get(&node).copied() else { return };
        self.child.on_piece(now, peer, piece, queue);
        match outcome {
            Outcome::Stored => self.on_stored(now, piece, from),
            Outcome::Lie => {
                self.child.on_lacks(peer, piece);
                if self.node.is_banned(&node) {
                    self.neighbours.remove(&peer);
                    self.child.on_lost(peer);
                }
            }
            Outcome::Unknown => {
                // The scheduler tells who reads this content; then the neighbour may be asked again.
                self.child.on_busy(now, peer, piece, Duration::from_millis(100));
                self.wants.need_neighbours = true;
            }
            Outcome::Disk(error) => {
                self.child.on_failed(peer, piece);
                self.fail_reads(piece, &error);
            }
        }
    }

    /// A piece is in the store.
    fn on_stored(&mut self, now: Instant, piece: u32, from: Provenance) {
        let _ = now;
        self.got += self.content.piece_range(piece).len();
        for action in self.child.on_stored(piece) {
            self.act(action);
        }
        self.wants.forget(piece);
        self.origins.clear_failure(piece);
        self.advance_leases(piece);
        self.answer_reads(piece, from);
    }

    fn ask_neighbours(&mut self, now: Instant) {
        let silence = self.node.config.limits.silence;
        for peer in self.child.silent(now, silence) {
            if let Some(neighbour) = self.neighbours.remove(&peer) {
                tracing::debug!(node = ?neighbour.link.node, "a neighbour owes a piece and is silent");
                neighbour.link.close();
                self.child.on_lost(peer);
            }
        }
        if self.distrust {
            return;
        }
        if !self.child.is_idle() && self.wanting_since.is_none() {
            (self.wanting_since, self.got) = (Some(now), 0);
        }
        let (room, budget) = self.node.room(now);
        let own = lock(&self.node.download).seconds(PIECE);
        let mut rng = rand::rng();
        let mut random = |below: u32| rng.random_range(0..below.max(1));
        let mut actions = self.child.pump(now, room, own, &mut random);
        actions.extend(self.child.hedge(now, budget, own));
        for action in actions {
            self.act(action);
        }
        let bulk = self.child.bulk_in_flight();
        self.node.count_bulk(self.bulk, bulk);
        self.bulk = bulk;
    }

    fn act(&self, action: Action) {
        match action {
            Action::Get { peer, piece, class } => {
                if let Some(neighbour) = self.neighbours.get(&peer) {
                    debug_assert_eq!(neighbour.peer, peer);
                    neighbour.link.get(*self.content.id(), piece, class, self.satisfaction());
                }
            }
            Action::Cancel { peer, piece } => {
                if let Some(neighbour) = self.neighbours.get(&peer) {
                    neighbour.link.cancel_get(*self.content.id(), piece);
                }
            }
        }
    }

    /// Thousandths of its own download rate that this node got since it began to want.
    fn satisfaction(&self) -> u16 {
        let seconds = self.wanting_since.map_or(0.0, |since| since.elapsed().as_secs_f64()) + 0.05;
        let rate = lock(&self.node.download).get();
        let thousandths = (self.got as f64 / seconds / rate * 1000.0).clamp(0.0, f64::from(u16::MAX));
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
        let thousandths = thousandths as u16;
        thousandths
    }
}

/// Consecutive piece numbers as ranges, none longer than `at_most`.
fn runs_of(pieces: impl Iterator<Item = u32>, at_most: u64) -> Vec<ByteRange> {
    let mut runs: Vec<ByteRange> = Vec::new();
    for piece in pieces.map(u64::from) {
        match runs.last_mut() {
            Some(run) if run.end == piece && run.len() < at_most => run.end += 1,
            _ => runs.push(ByteRange::at(piece, 1)),
        }
    }
    runs
}

type Jobs = BTreeMap<u64, origins::Job>;
type Stop = CancellationToken;
