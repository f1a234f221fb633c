//! What turned out to be wrong, although every piece fitted its proof: a reader may reject pieces, and the
//! whole may not be what its digest says.

use std::sync::Arc;
use std::time::{Duration, Instant};

use content::{ByteRange, Digest};
use store::{Content, StoreError};

use super::{Actor, Event};

/// A piece that a reader rejected is not dropped again for so long: a reader that is wrong itself (its table
/// of contents lies) must not make the cluster read the same bytes for ever.
const REJECT_PAUSE: Duration = Duration::from_secs(10);

impl Actor {
    /// Drops pieces that a reader found wrong, whoever vouched for them, this node included: from now on
    /// only what it reads at the origin itself counts.
    pub(super) fn on_reject(&mut self, now: Instant, pieces: ByteRange) {
        if self.content.head().verified {
            // The whole has its digest: it is the reader's expectation that is wrong.
            return;
        }
        let mut dropped = 0;
        for piece in pieces.start..pieces.end {
            let Ok(piece) = u32::try_from(piece) else { break };
            let lately =
                self.rejected.get(&piece).is_some_and(|at| now.saturating_duration_since(*at) < REJECT_PAUSE);
            if lately || !self.content.has(piece) {
                continue;
            }
            self.rejected.insert(piece, now);
            self.forget(piece);
            dropped += 1;
        }
        if dropped > 0 {
            tracing::warn!(
                security = true, content = %self.content.id(), pieces = %pieces, dropped,
                "a reader found pieces wrong, they are dropped and read at the origin"
            );
            self.distrust = true;
            self.judged = false;
            self.node.announce(self.content.id());
        }
    }

    /// Takes a piece out of the store, and tells the policy that it is missing again.
    fn forget(&mut self, piece: u32) {
        if let Err(error) = self.content.drop_piece(piece) {
            tracing::warn!(content = %self.content.id(), piece, %error, "cannot drop a piece");
        }
        self.child.on_dropped(piece);
    }

    /// Hashes the whole once it is here, unless it was, or cannot be judged.
    pub(super) fn check_whole(&mut self) {
        if self.hashing || self.judged || !self.content.is_complete() {
            return;
        }
        let head = self.content.head();
        if head.expected.is_none() || head.verified {
            return;
        }
        self.hashing = true;
        let (content, inbox) = (Arc::clone(&self.content), self.inbox.clone());
        let own = self.node.config.key.public_key();
        self.node.tracker.spawn(async move {
            let hashed = tokio::task::spawn_blocking(move || hash(&content, &own)).await;
            if let Ok(hashed) = hashed {
                let _ = inbox.send(Event::Hashed(hashed)).await;
            }
        });
    }

    pub(super) fn on_hashed(&mut self, hashed: Result<(Digest, Vec<u32>), StoreError>) {
        self.hashing = false;
        let expected = self.content.head().expected;
        let (digest, foreign) = match hashed {
            Ok(hashed) => hashed,
            Err(error) => {
                // A piece went rotten meanwhile: it is no longer there, and the whole not complete.
                tracing::warn!(content = %self.content.id(), %error, "cannot hash a whole content");
                return;
            }
        };
        if Some(digest) == expected {
            self.judged = true;
            return;
        }
        let expected = expected.map(|digest| digest.to_string()).unwrap_or_default();
        tracing::error!(
            security = true, content = %self.content.id(), expected, got = %digest, foreign = foreign.len(),
            "a content is not what its digest says; what other nodes read is dropped and read again"
        );
        self.distrust = true;
        self.judged = foreign.is_empty();
        let now = Instant::now();
        for piece in foreign {
            self.forget(piece);
            self.child.want(now, piece, 2);
        }
        self.node.announce(self.content.id());
    }
}

/// The digest of the whole, noted if it is right; if not, which pieces somebody else vouches for.
fn hash(content: &Content, own: &[u8; 32]) -> Result<(Digest, Vec<u32>), StoreError> {
    let digest = content.hash_whole()?;
    let mut foreign = Vec::new();
    if Some(digest) == content.head().expected {
        if let Err(error) = content.mark_whole_verified() {
            tracing::warn!(content = %content.id(), %error, "cannot note that a content is proven");
        }
    } else {
        for piece in 0..content.pieces() {
            if content.proof(piece)?.signer != *own {
                foreign.push(piece);
            }
        }
    }
    Ok((digest, foreign))
}
