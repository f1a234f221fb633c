//! One multiplexed stream per neighbour: dialling, accepting, reading and writing it.
//!
//! Of two streams between the same two nodes one is kept: the one that the node with the lower id
//! dialled, unless the other is known to be old (then its peer has restarted, and the new one counts).
//!
//! Each link has a reader and a writer task. The reader checks a piece and writes it to the store before
//! it reads on: a neighbour cannot send faster than this node can keep. The writer sends small messages
//! before pieces, and holds at most one piece.

mod hear;
mod meet;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use content::{ByteRange, ContentId, RangeSet};
use identity::{NodeId, SecureStream};
use proto::peer::{self, peer_message::Kind};
use tokio::io::{AsyncWriteExt, WriteHalf};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use crate::actor::Event;
use crate::node::{Node, lock};
use crate::policy::ChildKey;
use crate::upload::UploadEvent;
use crate::wire;

use hear::read_all;
use meet::Ready;
pub(crate) use meet::{accept, dial};

/// News are gathered for so long: from 0 to 20 ms it makes no difference, 50 ms cost a little.
const GATHER: Duration = Duration::from_millis(10);

/// A neighbour that does not take a message for so long is dead.
const WRITE_TIME: Duration = Duration::from_secs(10);

/// Messages that may wait to be written.
const CONTROL_QUEUE: usize = 1024;

/// Of two streams to the same node the younger wins, if the elder is at least so old.
const ELDER: Duration = Duration::from_secs(1);

static KEYS: AtomicU64 = AtomicU64::new(1);

/// A stream to a neighbour.
pub(crate) struct Link {
    pub(crate) key: ChildKey,
    pub(crate) node: NodeId,
    pub(crate) seed: bool,
    dialled: bool,
    since: Instant,
    control: mpsc::Sender<Kind>,
    piece: mpsc::Sender<Bytes>,
    /// A piece is on its way to the socket.
    sending: AtomicBool,
    /// Pieces that were asked for here; others are not looked at.
    expected: Mutex<HashSet<(ContentId, u32)>>,
    /// Per content, what the neighbour lacks and was not told that we have.
    lacks: Mutex<HashMap<ContentId, RangeSet>>,
    news: Mutex<HashSet<ContentId>>,
    has_news: Notify,
    cancel: CancellationToken,
}

impl Link {
    /// Says something small. A neighbour that does not take its messages is given up.
    pub(crate) fn say(&self, kind: Kind) {
        if self.control.try_send(kind).is_err() {
            self.close();
        }
    }

    /// Asks for a piece.
    pub(crate) fn get(&self, content: ContentId, piece: u32, class: usize, satisfaction: u16) {
        lock(&self.expected).insert((content, piece));
        self.say(Kind::Get(peer::Get {
            content: content.to_string(),
            piece,
            urgency: wire::class_to_wire(class),
            satisfaction: satisfaction.into(),
        }));
    }

    /// No longer asks for a piece.
    pub(crate) fn cancel_get(&self, content: ContentId, piece: u32) {
        if lock(&self.expected).remove(&(content, piece)) {
            self.say(Kind::Cancel(peer::Cancel { content: content.to_string(), piece }));
        }
    }

    /// Hands a framed piece to the writer; `false` if it has one already.
    pub(crate) fn send_piece(&self, frame: Bytes) -> bool {
        if self.sending.swap(true, Ordering::AcqRel) {
            return false;
        }
        self.piece.try_send(frame).is_ok()
    }

    /// Whether a piece could be handed to the writer now.
    pub(crate) fn can_take(&self) -> bool {
        !self.sending.load(Ordering::Acquire) && !self.is_closed()
    }

    /// The pieces of a content changed here: the neighbour hears of it if it asked.
    pub(crate) fn content_changed(&self, id: &ContentId) {
        if lock(&self.lacks).contains_key(id) && lock(&self.news).insert(*id) {
            self.has_news.notify_one();
        }
    }

    /// The neighbour was told of a piece that is not here after all: it is told again when it is.
    pub(crate) fn lacks_again(&self, id: &ContentId, piece: u32) {
        if let Some(lacks) = lock(&self.lacks).get_mut(id) {
            lacks.insert(ByteRange::at(piece.into(), 1));
        }
    }

    pub(crate) fn close(&self) {
        self.cancel.cancel();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.cancel.is_cancelled()
    }

    /// The pieces of `id` that the neighbour lacks and that are here since it was last told.
    fn news_of(&self, node: &Node, id: &ContentId) -> RangeSet {
        let Some(content) = node.config.store.find(id) else { return RangeSet::new() };
        let have = content.have();
        let mut lacks = lock(&self.lacks);
        let Some(lacks) = lacks.get_mut(id) else { return RangeSet::new() };
        let fresh: RangeSet =
            lacks.iter().flat_map(|range| have.intersect(range).iter().collect::<Vec<_>>()).collect();
        for range in fresh.iter() {
            lacks.remove(range);
        }
        fresh
    }
}

/// Serves a neighbour until either side ends it.
async fn run(node: Arc<Node>, ready: Ready) {
    let (control, control_out) = mpsc::channel(CONTROL_QUEUE);
    let (piece, piece_out) = mpsc::channel(1);
    let link = Arc::new(Link {
        key: KEYS.fetch_add(1, Ordering::Relaxed),
        node: ready.node,
        seed: ready.hello.seed,
        dialled: ready.dialled,
        since: Instant::now(),
        control,
        piece,
        sending: AtomicBool::new(false),
        expected: Mutex::default(),
        lacks: Mutex::default(),
        news: Mutex::default(),
        has_news: Notify::new(),
        cancel: node.cancel.child_token(),
    });
    if !register(&node, &link) {
        return;
    }
    // Little unsent in the kernel: the order of the queue is ours to choose.
    let _ = socket2::SockRef::from(ready.stream.tcp()).set_tcp_notsent_lowat(16 * 1024);
    let (read, write) = tokio::io::split(ready.stream);
    for handle in actors(&node) {
        let _ = handle.send(Event::LinkUp(Arc::clone(&link))).await;
    }
    let writer =
        node.tracker.spawn(write_all(Arc::clone(&node), Arc::clone(&link), write, control_out, piece_out));
    let ended = tokio::select! {
        () = link.cancel.cancelled() => Ok(()),
        ended = read_all(&node, &link, read) => ended,
    };
    if let Err(error) = ended {
        tracing::debug!(node = ?link.node, %error, "the stream of a neighbour ended");
        if error.is_invalid() {
            node.strike(&link.node, None, "a frame that is no message");
        }
    }
    link.close();
    {
        let mut links = lock(&node.links);
        if links.get(&link.node).is_some_and(|current| current.key == link.key) {
            links.remove(&link.node);
        }
    }
    let _ = node.uploads.send(UploadEvent::Gone(link.key)).await;
    for handle in actors(&node) {
        let _ = handle.send(Event::LinkDown(Arc::clone(&link))).await;
    }
    let _ = writer.await;
}

fn actors(node: &Node) -> Vec<mpsc::Sender<Event>> {
    lock(&node.actors).values().map(|handle| handle.inbox.clone()).collect()
}

/// Takes the link into the table; `false` if another stream to the same node is the one to keep.
fn register(node: &Node, link: &Arc<Link>) -> bool {
    let mut links = lock(&node.links);
    if links.len() >= node.config.limits.links {
        return false;
    }
    let preferred = |dialled: bool| dialled == (node.id < link.node);
    if let Some(old) = links.get(&link.node).filter(|old| !old.is_closed()) {
        if !preferred(link.dialled) && preferred(old.dialled) && old.since.elapsed() < ELDER {
            return false;
        }
        old.close();
    }
    links.insert(link.node, Arc::clone(link));
    true
}

async fn write_all(
    node: Arc<Node>,
    link: Arc<Link>,
    mut out: WriteHalf<SecureStream>,
    mut control: mpsc::Receiver<Kind>,
    mut pieces: mpsc::Receiver<Bytes>,
) {
    let mut flush_at: Option<tokio::time::Instant> = None;
    loop {
        let gathered = async {
            match flush_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let (frame, is_piece) = tokio::select! {
            biased;
            () = link.cancel.cancelled() => break,
            Some(kind) = control.recv() => (wire::frame(kind), false),
            () = gathered => {
                flush_at = None;
                (news(&node, &link), false)
            }
            () = link.has_news.notified(), if flush_at.is_none() => {
                flush_at = Some(tokio::time::Instant::now() + GATHER);
                continue;
            }
            Some(piece) = pieces.recv() => (piece, true),
        };
        let write = async {
            out.write_all(&frame).await?;
            out.flush().await
        };
        let written = tokio::select! {
            () = link.cancel.cancelled() => break,
            written = tokio::time::timeout(WRITE_TIME, write) => written,
        };
        if !matches!(written, Ok(Ok(()))) {
            break;
        }
        if is_piece {
            link.sending.store(false, Ordering::Release);
            let sent = UploadEvent::Sent(link.key, frame.len() as u64);
            tokio::select! {
                () = link.cancel.cancelled() => break,
                _ = node.uploads.send(sent) => {}
            }
        }
    }
    link.close();
}

/// One frame per content with news.
fn news(node: &Node, link: &Link) -> Bytes {
    let changed: Vec<ContentId> = lock(&link.news).drain().collect();
    let mut frames = Vec::new();
    for id in changed {
        let fresh = link.news_of(node, &id);
        if !fresh.is_empty() {
            frames.extend_from_slice(&wire::frame(have(id, &fresh)));
        }
    }
    frames.into()
}

fn have(id: ContentId, pieces: &RangeSet) -> Kind {
    Kind::Have(peer::PeerHave { content: id.to_string(), pieces: wire::ranges_to_wire(pieces), queue: 0 })
}
