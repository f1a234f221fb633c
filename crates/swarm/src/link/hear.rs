//! What a neighbour says: the reader's side of a link.

use std::sync::Arc;
use std::time::{Duration, Instant};

use content::{ContentId, Provenance, RangeSet};
use identity::{NodeId, SecureStream};
use proto::peer::{self, peer_message::Kind};
use store::{PIECE, StoreError};
use tokio::io::ReadHalf;

use super::{Link, have};
use crate::actor::{Event, Outcome};
use crate::node::{Node, lock};
use crate::policy::Request;
use crate::upload::UploadEvent;
use crate::wire::{self, Frames, WireError};

/// Contents that one neighbour may ask news of.
const INTEREST_LIMIT: usize = 4096;

pub(super) async fn read_all(
    node: &Arc<Node>,
    link: &Arc<Link>,
    read: ReadHalf<SecureStream>,
) -> Result<(), WireError> {
    let mut frames = Frames::new(read);
    while let Some(kind) = frames.next().await? {
        match kind {
            Kind::Hello(_) => {}
            Kind::Want(want) => on_want(node, link, &want),
            Kind::Have(have) => {
                let Some(handle) = running(node, &have.content) else { continue };
                let pieces = wire::ranges_from_wire(&have.pieces, handle.content.pieces());
                let event = Event::Have { node: link.node, pieces, queue: have.queue };
                let _ = handle.inbox.send(event).await;
            }
            Kind::Get(get) => {
                let Ok(content) = get.content.parse() else { continue };
                let request = Request {
                    child: link.key,
                    content,
                    piece: get.piece,
                    class: wire::class_from_wire(get.urgency),
                    satisfaction: u16::try_from(get.satisfaction).unwrap_or(u16::MAX),
                };
                let _ = node.uploads.send(UploadEvent::Get(Arc::clone(link), request)).await;
            }
            Kind::Cancel(cancel) => {
                let Ok(content) = cancel.content.parse() else { continue };
                let _ = node.uploads.send(UploadEvent::Cancel(link.key, content, cancel.piece)).await;
            }
            Kind::Piece(piece) => on_piece(node, link, piece).await,
            Kind::Busy(busy) => {
                let Some(handle) = running(node, &busy.content) else { continue };
                lock(&link.expected).remove(&(*handle.content.id(), busy.piece));
                let retry = Duration::from_millis(busy.retry_ms.min(10_000).into());
                let event = Event::Busy { node: link.node, piece: busy.piece, retry, absent: busy.absent };
                let _ = handle.inbox.send(event).await;
            }
            Kind::Gone(gone) => {
                let Some(handle) = running(node, &gone.content) else { continue };
                let _ = handle.inbox.send(Event::Gone(link.node)).await;
            }
        }
    }
    Ok(())
}

fn running(node: &Node, content: &str) -> Option<crate::node::ActorHandle> {
    node.running(&content.parse().ok()?)
}

/// Tells at once what is here, and remembers what the neighbour lacks. The first answer may be empty: it
/// tells the neighbour not to wait.
fn on_want(node: &Node, link: &Link, want: &peer::PeerWant) {
    let Ok(id) = want.content.parse::<ContentId>() else { return };
    let pieces = u32::try_from(want.length.div_ceil(PIECE.into())).unwrap_or(u32::MAX);
    {
        let mut lacks = lock(&link.lacks);
        if lacks.len() >= INTEREST_LIMIT && !lacks.contains_key(&id) {
            return;
        }
        lacks.insert(id, wire::ranges_from_wire(&want.pieces, pieces));
    }
    let other_length = node.config.store.find(&id).is_some_and(|content| content.len() != want.length);
    let fresh = if other_length { RangeSet::new() } else { link.news_of(node, &id) };
    link.say(have(id, &fresh));
}

/// Checks a piece, keeps it, and tells the actor what became of it.
async fn on_piece(node: &Arc<Node>, link: &Arc<Link>, message: peer::Piece) {
    let Some(handle) = running(node, &message.content) else { return };
    let (id, piece, queue) = (*handle.content.id(), message.piece, message.queue);
    if !lock(&link.expected).remove(&(id, piece)) {
        return;
    }
    let (len, from) =
        (message.data.len() as u64, if link.seed { Provenance::Seed } else { Provenance::Peer });
    lock(&node.download).add(Instant::now(), len);
    node.counters.add(from, len);
    let checking = (Arc::clone(node), handle.clone(), link.node);
    let checked = tokio::task::spawn_blocking(move || {
        let (node, handle, sender) = checking;
        check(&node, &handle, &sender, &message)
    });
    let outcome = checked.await.unwrap_or(Outcome::Unknown);
    match &outcome {
        Outcome::Stored => node.announce(&id),
        Outcome::Lie => node.strike(&link.node, Some(&id), "a piece that is not what its proof says"),
        Outcome::Unknown | Outcome::Disk(_) => {}
    }
    let event = Event::Piece { node: link.node, piece, queue, from, outcome };
    let _ = handle.inbox.send(event).await;
}

/// Digest, signature, and whether the signer may be believed; then to disk.
fn check(node: &Node, handle: &crate::node::ActorHandle, sender: &NodeId, message: &peer::Piece) -> Outcome {
    let content = &handle.content;
    let Some(proof) = message.proof.as_ref().and_then(wire::proof_from_wire) else { return Outcome::Lie };
    if *blake3::hash(&message.data).as_bytes() != proof.digest
        || !wire::is_signed(&proof, content.id(), message.piece, content.len())
    {
        return Outcome::Lie;
    }
    if !node.is_reader(&NodeId::of(&proof.signer), &handle.readers, sender) {
        // Perhaps the news of who reads this content have not come yet: no lie, and no piece either.
        return Outcome::Unknown;
    }
    match content.put(message.piece, &message.data, &proof) {
        Ok(_) => Outcome::Stored,
        Err(StoreError::Mismatch { .. }) => Outcome::Lie,
        Err(error) => Outcome::Disk(error.into()),
    }
}
