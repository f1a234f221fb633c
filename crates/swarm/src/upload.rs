//! The parent's side: one task serves pieces to all neighbours, one at a time.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use content::ContentId;
use proto::peer::{self, peer_message::Kind};
use rand::RngExt;
use store::PIECE;
use tokio::sync::mpsc;

use crate::link::Link;
use crate::node::Node;
use crate::policy::{ChildKey, Parent, Rate, Request, Verdict};
use crate::wire;

/// A child that does not take its piece in so long is left to its own speed, and the next one served.
const STALL: Duration = Duration::from_millis(50);

/// What a link says to the upload task.
pub(crate) enum UploadEvent {
    Get(Arc<Link>, Request<ContentId>),
    Cancel(ChildKey, ContentId, u32),
    /// A piece, so many bytes with its frame, went to the socket.
    Sent(ChildKey, u64),
    Gone(ChildKey),
}

struct Uploads {
    node: Arc<Node>,
    parent: Parent<ContentId>,
    children: HashMap<ChildKey, Arc<Link>>,
    rate: Rate,
    /// Whom a piece is being sent to, and since when.
    current: Option<(ChildKey, Instant)>,
}

/// Serves until the node shuts down.
pub(crate) async fn run(node: Arc<Node>, mut inbox: mpsc::Receiver<UploadEvent>) {
    let mut uploads = Uploads {
        node: Arc::clone(&node),
        parent: Parent::new(),
        children: HashMap::new(),
        rate: Rate::new(),
        current: None,
    };
    loop {
        let stalled = async {
            match uploads.current {
                Some((_, since)) => tokio::time::sleep_until((since + STALL).into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = node.cancel.cancelled() => return,
            () = stalled => uploads.current = None,
            event = inbox.recv() => match event {
                Some(event) => uploads.on_event(event),
                None => return,
            },
        }
        while let Ok(event) = inbox.try_recv() {
            uploads.on_event(event);
        }
        uploads.serve().await;
    }
}

impl Uploads {
    fn on_event(&mut self, event: UploadEvent) {
        match event {
            UploadEvent::Get(link, request) => {
                let seconds = self.rate.seconds(PIECE);
                let random = rand::rng().random::<f64>();
                self.children.insert(link.key, link);
                match self.parent.on_get(Instant::now(), request, random, seconds) {
                    Verdict::Queued => {}
                    Verdict::Busy(request, retry) => self.send_away(&request, retry, false),
                }
            }
            UploadEvent::Cancel(child, content, piece) => {
                self.parent.on_cancel(child, content, piece);
            }
            UploadEvent::Sent(child, bytes) => {
                self.rate.add(Instant::now(), bytes);
                self.node.counters.add_uploaded(bytes);
                if self.current.is_some_and(|(current, _)| current == child) {
                    self.current = None;
                }
            }
            UploadEvent::Gone(child) => {
                self.parent.on_gone(child);
                self.children.remove(&child);
                if self.current.is_some_and(|(current, _)| current == child) {
                    self.current = None;
                }
            }
        }
    }

    fn send_away(&self, request: &Request<ContentId>, retry: Duration, absent: bool) {
        if let Some(link) = self.children.get(&request.child) {
            link.say(Kind::Busy(peer::Busy {
                content: request.content.to_string(),
                piece: request.piece,
                retry_ms: u32::try_from(retry.as_millis()).unwrap_or(u32::MAX).max(1),
                absent,
            }));
        }
    }

    /// Sends the next piece, unless one is on its way.
    async fn serve(&mut self) {
        while self.current.is_none() {
            let children = &self.children;
            let can_take = |child| children.get(&child).is_some_and(|link| link.can_take());
            let Some(request) = self.parent.next(Instant::now(), can_take) else { return };
            let Some(link) = self.children.get(&request.child).cloned() else { continue };
            let queue = u32::try_from(self.parent.len()).unwrap_or(u32::MAX);
            let node = Arc::clone(&self.node);
            let read = tokio::task::spawn_blocking(move || piece_frame(&node, &request, queue));
            if let Some(frame) = read.await.ok().flatten() {
                if link.send_piece(frame) {
                    self.current = Some((request.child, Instant::now()));
                }
            } else {
                link.lacks_again(&request.content, request.piece);
                // If it went rotten just now, everybody who believes that it is here hears otherwise.
                self.node.announce(&request.content);
                self.send_away(&request, Duration::from_secs(1), true);
            }
        }
    }
}

/// The whole, checked piece as it travels; `None` if it is not here.
fn piece_frame(node: &Node, request: &Request<ContentId>, queue: u32) -> Option<Bytes> {
    let content = node.config.store.find(&request.content)?;
    let (mut data, proof) = content.read_piece(request.piece).ok()?;
    if let Some(tamper) = &node.config.tamper {
        let mut changed = data.to_vec();
        tamper(&request.content, request.piece, &mut changed);
        data = changed.into();
    }
    Some(wire::frame(Kind::Piece(peer::Piece {
        content: request.content.to_string(),
        piece: request.piece,
        queue,
        proof: Some(wire::proof_to_wire(&proof)),
        data,
    })))
}
