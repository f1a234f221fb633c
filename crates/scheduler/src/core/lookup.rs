//! The length of a content: asked of the origin by one node, on behalf of all who wait.

use std::collections::BTreeSet;

use proto::cluster::scheduler_message::Kind;
use proto::cluster::{Length, Locator, LookUp};

use super::content::Content;
use super::event::{Millis, Peer, Shape};
use super::{Context, PIECE_SIZE};

/// A node that has not answered for so long is no longer waited for.
const LOOK_TIME: Millis = 10_000;
/// Nodes that may fail before everybody who waits is told the error.
const FAILURES: u32 = 3;

/// A look at the origin under way.
pub(crate) struct Lookup {
    looker: Option<Peer>,
    since: Millis,
    failures: u32,
    error: String,
    waiting: BTreeSet<Peer>,
    /// Of those who wait: looked in vain.
    tried: BTreeSet<Peer>,
}

impl Lookup {
    pub(super) fn involves(&self, peer: Peer) -> bool {
        self.looker == Some(peer) || self.waiting.contains(&peer)
    }
}

impl Content {
    pub(super) fn open(&mut self, peer: Peer, locator: Option<Locator>, context: &mut Context<'_>) {
        self.used_at = context.now;
        if self.locator.is_none() {
            self.locator = locator;
        }
        if let Some(shape) = &self.shape {
            let length =
                Length { content: self.name.to_string(), length: shape.length, error: String::new() };
            context.send(peer, Kind::Length(length));
            return;
        }
        let lookup = self.lookup.get_or_insert_with(|| Lookup {
            looker: None,
            since: context.now,
            failures: 0,
            error: String::new(),
            waiting: BTreeSet::new(),
            tried: BTreeSet::new(),
        });
        lookup.waiting.insert(peer);
        self.look_next(context);
    }

    pub(super) fn opened(&mut self, peer: Peer, length: Result<u64, String>, context: &mut Context<'_>) {
        let Some(lookup) = &mut self.lookup else { return };
        if !lookup.involves(peer) {
            return;
        }
        match length {
            Ok(length) => {
                lookup.waiting.remove(&peer);
                self.shape = Some(Shape { length, piece_size: PIECE_SIZE, locator: self.locator.clone() });
                self.length_is_known(context);
            }
            Err(error) => {
                // It knows its error; the others may have better credentials.
                lookup.waiting.remove(&peer);
                lookup.tried.remove(&peer);
                if lookup.looker == Some(peer) {
                    lookup.looker = None;
                    lookup.failures += 1;
                    lookup.error = error;
                    self.look_next(context);
                }
            }
        }
    }

    /// Tells the length to everybody who waits for it.
    pub(super) fn length_is_known(&mut self, context: &mut Context<'_>) {
        let (Some(shape), Some(lookup)) = (&self.shape, self.lookup.take()) else { return };
        for peer in lookup.waiting {
            let length =
                Length { content: self.name.to_string(), length: shape.length, error: String::new() };
            context.send(peer, Kind::Length(length));
        }
    }

    fn look_next(&mut self, context: &mut Context<'_>) {
        let Some(lookup) = &mut self.lookup else { return };
        if lookup.looker.is_some() || !context.settled {
            return;
        }
        let next = lookup.waiting.difference(&lookup.tried).next().copied();
        if let Some(peer) = next.filter(|_| lookup.failures < FAILURES) {
            lookup.looker = Some(peer);
            lookup.since = context.now;
            context.send(peer, Kind::LookUp(LookUp { content: self.name.to_string() }));
            if let Some(node) = context.node(peer) {
                // What it reads while it looks, it may sign.
                self.add_reader(node, None, context);
            }
            return;
        }
        let Some(lookup) = self.lookup.take() else { return };
        for peer in lookup.waiting {
            let length = Length { content: self.name.to_string(), length: 0, error: lookup.error.clone() };
            context.send(peer, Kind::Length(length));
        }
    }

    /// `peer` neither looks nor waits any more.
    pub(super) fn look_without(&mut self, peer: Peer, why: &str, context: &mut Context<'_>) {
        let Some(lookup) = &mut self.lookup else { return };
        lookup.waiting.remove(&peer);
        lookup.tried.remove(&peer);
        if lookup.looker == Some(peer) {
            lookup.looker = None;
            why.clone_into(&mut lookup.error);
        }
        if lookup.waiting.is_empty() && lookup.looker.is_none() {
            self.lookup = None;
        } else {
            self.look_next(context);
        }
    }

    pub(super) fn look_again(&mut self, context: &mut Context<'_>) {
        let Some(lookup) = &mut self.lookup else { return };
        if let Some(looker) = lookup.looker.filter(|_| context.now >= lookup.since + LOOK_TIME) {
            lookup.looker = None;
            lookup.failures += 1;
            lookup.tried.insert(looker);
            "the origin did not answer in time".clone_into(&mut lookup.error);
        }
        self.look_next(context);
    }
}
