//! Opening a content: its length, and the blob that readers hold.
//!
//! A length that is known, here or from a manifest, costs nothing. Otherwise the scheduler is asked: it
//! tells one node of the cluster to look at the origin, which brings the tail of the blob along, and
//! everybody else what that node found.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use content::{
    BlobSource, ByteRange, ByteStream, ContentId, ContentOpener, DirectOpener, OpenBlob, Origin, Provenance,
    ReadError, ReadErrorKind, Tail, Urgency,
};
use futures::future::{BoxFuture, Shared, WeakShared};
use futures::{FutureExt, StreamExt};
use proto::cluster::{self, node_message};
use store::{Content, PIECE, StoreError};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::Swarm;
use crate::actor::{Event, ReadRequest};
use crate::full::{self, Unkept};
use crate::node::{Node, OpenAnswer, locator_to_wire, lock};
use crate::origin;
use crate::wire::class_of;

/// A read whose pieces turn out to be rotten is fetched again, but not for ever.
const ROUNDS: usize = 4;

/// A stream is read in parts of so many bytes, so many at once.
const WINDOW: u64 = 1 << 20;
const AHEAD: usize = 8;

/// A stream's interest in what is far ahead of it ends after so long at the latest.
const STREAM_TIME: Duration = Duration::from_hours(24);

type Found = Result<(u64, Option<Bytes>), ReadError>;

/// The search for one content's length, shared by all who open it now.
pub(crate) struct Running {
    search: WeakShared<BoxFuture<'static, Found>>,
    locator: Option<content::Locator>,
}

/// What to ask the scheduler about a content that is being opened.
pub(crate) fn open_message(node: &Node, id: &ContentId) -> Option<node_message::Kind> {
    let runs = lock(&node.runs);
    let locator = runs.get(id)?.locator.as_ref().map(locator_to_wire);
    Some(node_message::Kind::Open(cluster::Open { content: id.to_string(), locator }))
}

#[async_trait]
impl ContentOpener for Swarm {
    async fn open(&self, origin: Arc<dyn Origin>, tail: u64) -> Result<OpenBlob, ReadError> {
        match self.open_kept(Arc::clone(&origin), tail).await {
            Err(error) if full::is_full(&error) => {
                tracing::warn!(%error, content = %origin.id(), "the disk is full: reading at the registry, keeping nothing");
                DirectOpener.open(origin, tail).await
            }
            opened => opened,
        }
    }
}

impl Swarm {
    async fn open_kept(&self, origin: Arc<dyn Origin>, tail: u64) -> Result<OpenBlob, ReadError> {
        let node = &self.node;
        let id = *origin.id();
        let known = node.config.store.find(&id).map(|content| content.len()).or(origin.known_len());
        let (len, tail) = match known {
            Some(len) => (len, None),
            None => search(node, &origin, tail).await?,
        };
        let content = make(node, &origin, len).await?;
        let handle = node.actor(&content);
        let _ = handle.inbox.send(Event::Attach(Arc::downgrade(&origin))).await;
        let source = SwarmBlob { node: Arc::clone(node), content, origin: Arc::clone(&origin) };
        Ok(OpenBlob { source: Arc::new(Unkept::new(Arc::new(source), origin)), tail })
    }
}

fn shutting_down() -> ReadError {
    ReadError::local(ReadErrorKind::Cancelled, "shutting down")
}

/// The content in the store, made if need be.
async fn make(node: &Arc<Node>, origin: &Arc<dyn Origin>, len: u64) -> Result<Arc<Content>, ReadError> {
    let (store, id) = (node.config.store.clone(), *origin.id());
    let (locator, expected) = (origin.locator(), origin.expected_digest());
    let made = tokio::task::spawn_blocking(move || {
        let content = store.content(&id, len)?;
        content.describe(locator, expected)?;
        Ok::<_, StoreError>(content)
    });
    Ok(made.await.map_err(|_| shutting_down())??)
}

/// Keeps the whole pieces of a tail: they were read at the origin by this node, just now.
async fn keep_tail(node: &Arc<Node>, content: &Arc<Content>, tail: &Bytes) -> Result<(), ReadError> {
    let from = content.len().saturating_sub(tail.len() as u64);
    let first = from.div_ceil(u64::from(PIECE));
    for piece in first..u64::from(content.pieces()) {
        let Ok(piece) = u32::try_from(piece) else { break };
        let range = content.piece_range(piece);
        let start = usize::try_from(range.start - from).unwrap_or(usize::MAX);
        let end = usize::try_from(range.end - from).unwrap_or(usize::MAX);
        if end <= tail.len() && start < end {
            origin::keep(node, content, piece, tail.slice(start..end)).await?;
        }
    }
    Ok(())
}

/// Finds out the length, together with everybody else on this node who wants to know it now.
async fn search(node: &Arc<Node>, origin: &Arc<dyn Origin>, tail: u64) -> Found {
    let id = *origin.id();
    let (search, joined) = {
        let mut runs = lock(&node.runs);
        if let Some(search) = runs.get(&id).and_then(|running| running.search.upgrade()) {
            (search, true)
        } else {
            let search: Shared<BoxFuture<'static, Found>> =
                find_out(Arc::clone(node), Arc::clone(origin), tail).boxed().shared();
            if let Some(weak) = search.downgrade() {
                runs.insert(id, Running { search: weak, locator: origin.locator() });
            }
            (search, false)
        }
    };
    let found = search.await;
    lock(&node.runs).remove(&id);
    match found {
        // It failed with the credentials of somebody else.
        Err(_) if joined => find_out(Arc::clone(node), Arc::clone(origin), tail).await,
        found => found,
    }
}

/// Forgets the waiting for an answer, also when the opener goes away.
struct Asking(Arc<Node>, ContentId);

impl Drop for Asking {
    fn drop(&mut self) {
        lock(&self.0.opens).remove(&self.1);
    }
}

async fn find_out(node: Arc<Node>, origin: Arc<dyn Origin>, tail: u64) -> Found {
    let id = *origin.id();
    let (answer, mut answers) = mpsc::channel(4);
    let asking = Asking(Arc::clone(&node), id);
    lock(&node.opens).insert(id, answer);
    let deadline = Instant::now() + node.config.limits.patience.open;
    let locator = origin.locator().as_ref().map(locator_to_wire);
    let open = node_message::Kind::Open(cluster::Open { content: id.to_string(), locator });
    let answer = if node.tell_scheduler(open) {
        tokio::time::timeout_at(deadline, answers.recv()).await.ok().flatten()
    } else {
        None
    };
    if let Some(OpenAnswer::Length(Ok(length))) = answer {
        return Ok((length, None));
    }
    // Told to look, told that nobody could, or told nothing: this node has its own credentials.
    let found = look_up(&node, &id, &origin, tail).await;
    if let Ok((len, Some(tail))) = &found {
        let content = make(&node, &origin, *len).await?;
        keep_tail(&node, &content, tail).await?;
        // First what is here, then the length: nobody is to be sent for it.
        if let Some(have) = node.have_message(&id, &BTreeSet::new()).filter(|_| !content.have().is_empty()) {
            node.tell_scheduler(have);
        }
    }
    drop(asking);
    if node.has_scheduler() {
        let length = found.as_ref().map(|(length, _)| *length).map_err(ToString::to_string);
        node.opened(&id, length);
    }
    found
}

async fn look_up(node: &Node, id: &ContentId, origin: &Arc<dyn Origin>, tail: u64) -> Found {
    let Tail { len, bytes } =
        origin.tail(tail.max(1)).await.map_err(|error| error.context(format!("open {id}")))?;
    node.counters.add(Provenance::Origin, bytes.len() as u64);
    Ok((len, (tail > 0).then_some(bytes)))
}

/// A content read through the cluster.
struct SwarmBlob {
    node: Arc<Node>,
    content: Arc<Content>,
    origin: Arc<dyn Origin>,
}

impl SwarmBlob {
    /// Reads from the store what is there, on the blocking pool.
    async fn read_store(&self, range: ByteRange) -> Result<Bytes, StoreError> {
        let content = Arc::clone(&self.content);
        let id = *content.id();
        let read = tokio::task::spawn_blocking(move || content.read(range)).await;
        read.unwrap_or(Err(StoreError::Absent { id, piece: 0 }))
    }

    fn request(
        &self,
        pieces: ByteRange,
        urgency: Urgency,
        deadline: Duration,
    ) -> (ReadRequest, oneshot::Receiver<Result<Provenance, ReadError>>) {
        let (done, answer) = oneshot::channel();
        let deadline = std::time::Instant::now() + deadline;
        let origin = Arc::downgrade(&self.origin);
        (ReadRequest { pieces, class: class_of(urgency), done, deadline, origin }, answer)
    }

    /// Has the pieces fetched; tells the costliest place that one of them came from.
    async fn fetch(&self, pieces: ByteRange, urgency: Urgency) -> Result<Provenance, ReadError> {
        let (request, answer) = self.request(pieces, urgency, self.node.deadline(urgency));
        let handle = self.node.actor(&self.content);
        handle.inbox.send(Event::Read(request)).await.map_err(|_| shutting_down())?;
        answer.await.map_err(|_| shutting_down())?
    }

    /// Bytes of `range` that are here.
    fn present(&self, range: ByteRange) -> u64 {
        let have = self.content.have();
        let size = u64::from(PIECE);
        let parts = have.intersect(self.content.pieces_of(range));
        parts
            .iter()
            .map(|part| ByteRange::new(part.start * size, part.end * size).intersect(&range).len())
            .sum()
    }
}

#[async_trait]
impl BlobSource for SwarmBlob {
    fn id(&self) -> &ContentId {
        self.content.id()
    }

    fn len(&self) -> u64 {
        self.content.len()
    }

    fn unit(&self) -> u64 {
        PIECE.into()
    }

    async fn read_traced(
        &self,
        range: ByteRange,
        urgency: Urgency,
    ) -> Result<(Bytes, Provenance), ReadError> {
        let pieces = self.content.pieces_of(range);
        let mut worst = Provenance::Store;
        if range.end <= self.len() && !self.content.has_all(pieces) {
            self.node.counters.add(Provenance::Store, self.present(range));
            let _blocking = self.node.blocking(urgency);
            for _ in 0..ROUNDS {
                worst = worst.max(self.fetch(pieces, urgency).await?);
                match self.read_store(range).await {
                    Err(StoreError::Absent { .. }) => {}
                    read => return Ok((read?, worst)),
                }
            }
        }
        for _ in 0..ROUNDS {
            match self.read_store(range).await {
                Err(StoreError::Absent { .. }) => {
                    self.node.announce(self.id());
                    worst = worst.max(self.fetch(pieces, urgency).await?);
                }
                Ok(bytes) => {
                    if worst == Provenance::Store {
                        self.node.counters.add(Provenance::Store, range.len());
                    }
                    return Ok((bytes, worst));
                }
                Err(error) => return Err(error.into()),
            }
        }
        let message = format!("{}: {range} does not stay in the store (is its disk failing?)", self.id());
        Err(ReadError::local(ReadErrorKind::Other, message))
    }

    async fn reject(&self, range: ByteRange) {
        // If it was the origin that lied, it shall ask another of its hosts.
        self.origin.reject(range).await;
        let pieces = self.content.pieces_of(range.intersect(&ByteRange::new(0, self.len())));
        let (done, dropped) = oneshot::channel();
        let handle = self.node.actor(&self.content);
        if handle.inbox.send(Event::Reject { pieces, done }).await.is_ok() {
            // The next read must not find them any more.
            let _ = dropped.await;
        }
    }

    fn stream(self: Arc<Self>, range: ByteRange, urgency: Urgency) -> ByteStream {
        // The whole range is wanted from the start, so that the swarm can fetch it in the order that is
        // good for all; the reads before the cursor are only more urgent.
        let blob = Arc::clone(&self);
        let interest = async move {
            let pieces = blob.content.pieces_of(range.intersect(&ByteRange::new(0, blob.len())));
            if blob.content.has_all(pieces) {
                return None;
            }
            let (request, answer) = blob.request(pieces, Urgency::Background, STREAM_TIME);
            let handle = blob.node.actor(&blob.content);
            handle.inbox.send(Event::Read(request)).await.ok()?;
            Some(answer)
        };
        let starts = std::iter::successors(Some(range.start), |at| at.checked_add(WINDOW))
            .take_while(move |at| *at < range.end);
        let parts = futures::stream::once(interest).flat_map(move |interest| {
            let blob = Arc::clone(&self);
            let parts = futures::stream::iter(starts.clone().enumerate())
                .map(move |(number, start)| {
                    let blob = Arc::clone(&blob);
                    // Whoever streams waits for the first window only.
                    let urgency = if number == 0 { urgency } else { urgency.max(Urgency::Prefetch) };
                    let part = ByteRange::at(start, WINDOW).intersect(&range);
                    async move { blob.read(part, urgency).await }
                })
                .buffered(AHEAD);
            // The interest lives as long as the stream does.
            parts.map(move |part| {
                let _ = &interest;
                part
            })
        });
        // Nothing comes after an error.
        let mut failed = false;
        parts
            .take_while(move |part| {
                let go_on = !failed;
                failed |= part.is_err();
                futures::future::ready(go_on)
            })
            .boxed()
    }
}
