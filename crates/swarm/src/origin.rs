//! Reading pieces at the origin: one request for a run of them, each kept and announced as it completes.
//!
//! What is kept this way is this node's own word. It is not proven yet either: an origin, or the way to
//! it, can lie. The digest of the chunk or of the whole blob tells, and until then the signature says whom
//! to blame.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use content::{ByteRange, Locator, Origin, Provenance, ReadError, ReadErrorKind};
use futures::StreamExt;
use store::{Content, PIECE};
use tokio::sync::mpsc;

use crate::actor::Event;
use crate::node::Node;
use crate::policy::{BLOCKING, Class};
use crate::wire;

/// An origin that sends nothing for so long is given up, and the next one asked.
const SILENCE: Duration = Duration::from_secs(20);

/// A run of pieces to read.
pub(crate) struct Run {
    pub(crate) content: Arc<Content>,
    /// Piece numbers.
    pub(crate) pieces: ByteRange,
    pub(crate) class: Class,
    /// Asked in order until one answers.
    pub(crate) origins: Vec<Arc<dyn Origin>>,
    /// How to find an origin if there is none above.
    pub(crate) locator: Option<Locator>,
    pub(crate) inbox: mpsc::Sender<Event>,
}

/// Reads the run. Each piece is told to the actor as it is kept.
pub(crate) async fn read(node: &Arc<Node>, mut run: Run) -> Result<(), ReadError> {
    let _slot = if run.class == BLOCKING {
        None
    } else {
        // Only ever closed when the process ends.
        Arc::clone(&node.origin_slots).acquire_owned().await.ok()
    };
    if run.origins.is_empty() {
        run.origins.push(find(node, &run).await?);
    }
    let mut at = run.pieces.start;
    let mut last = None;
    for origin in run.origins.clone() {
        match read_from(node, &run, origin, &mut at).await {
            Ok(()) => return Ok(()),
            // Nobody else's origin has more room on this disk.
            Err(error) if error.kind() == ReadErrorKind::NoSpace => return Err(error),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| ReadError::origin(ReadErrorKind::Unavailable, "no origin is known")))
}

async fn find(node: &Node, run: &Run) -> Result<Arc<dyn Origin>, ReadError> {
    let refused =
        |why: &str| ReadError::local(ReadErrorKind::Refused, format!("{}: {why}", run.content.id()));
    let locator = run.locator.as_ref().ok_or_else(|| refused("nobody said where it comes from"))?;
    let finder =
        node.config.finder.as_ref().ok_or_else(|| refused("this node reads no origin for others"))?;
    let origin = finder.find(locator).await?;
    if origin.id() != run.content.id() {
        return Err(refused("the place that was named has another content"));
    }
    let head = (Some(locator.clone()), origin.expected_digest());
    let content = Arc::clone(&run.content);
    let described = tokio::task::spawn_blocking(move || content.describe(head.0, head.1)).await;
    if let Ok(Err(error)) = described {
        tracing::warn!(content = %run.content.id(), %error, "cannot note where a content comes from");
    }
    Ok(origin)
}

/// Streams pieces from `at` on; `at` moves with each that is kept.
async fn read_from(
    node: &Arc<Node>,
    run: &Run,
    origin: Arc<dyn Origin>,
    at: &mut u64,
) -> Result<(), ReadError> {
    let size = u64::from(PIECE);
    let range = ByteRange::new(*at * size, (run.pieces.end * size).min(run.content.len()));
    let mut stream = origin.stream(range, wire::urgency_of(run.class));
    let mut buffer = BytesMut::new();
    while *at < run.pieces.end {
        let Ok(piece) = u32::try_from(*at) else { break };
        let want = usize::try_from(run.content.piece_range(piece).len()).unwrap_or(0);
        while buffer.len() < want {
            let part = tokio::time::timeout(SILENCE, stream.next()).await.map_err(|_| silent(range))?;
            let part = part.unwrap_or_else(|| Err(ended(range)))?;
            node.counters.add(Provenance::Origin, part.len() as u64);
            buffer.extend_from_slice(&part);
        }
        keep(node, &run.content, piece, buffer.split_to(want).freeze()).await?;
        *at += 1;
        let _ = run.inbox.send(Event::OriginPiece(piece)).await;
    }
    Ok(())
}

/// Signs and keeps a piece on the blocking pool.
pub(crate) async fn keep(
    node: &Arc<Node>,
    content: &Arc<Content>,
    piece: u32,
    bytes: Bytes,
) -> Result<(), ReadError> {
    let (node, content) = (Arc::clone(node), Arc::clone(content));
    match tokio::task::spawn_blocking(move || node.keep_own(&content, piece, &bytes)).await {
        Ok(kept) => Ok(kept?),
        Err(_) => Err(ReadError::local(ReadErrorKind::Cancelled, "shutting down")),
    }
}

fn silent(range: ByteRange) -> ReadError {
    let message = format!("the origin sent nothing of {range} for {} s", SILENCE.as_secs());
    ReadError::origin(ReadErrorKind::Unavailable, message)
}

fn ended(range: ByteRange) -> ReadError {
    ReadError::origin(ReadErrorKind::Unavailable, format!("the origin ended before the end of {range}"))
}
