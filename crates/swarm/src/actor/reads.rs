//! Who waits for which pieces.

use std::time::Instant;

use content::{ByteRange, Provenance, RangeSet, ReadError, ReadErrorKind};
use tokio::sync::oneshot;

use super::{Actor, ReadRequest};
use crate::policy::Class;
use crate::wire::each;

/// A reader that waits.
pub(super) struct Read {
    class: Class,
    /// Pieces that are not here yet.
    left: RangeSet,
    /// The costliest place so far.
    worst: Provenance,
    deadline: Instant,
    done: oneshot::Sender<Result<Provenance, ReadError>>,
}

impl Read {
    pub(super) fn answer(self, answer: Result<Provenance, ReadError>) {
        // A reader that went away needs no answer.
        let _ = self.done.send(answer);
    }

    fn needs(&self, piece: u32) -> bool {
        self.left.contains(ByteRange::at(piece.into(), 1))
    }
}

impl Actor {
    pub(super) fn on_read(&mut self, now: Instant, request: ReadRequest) {
        let ReadRequest { pieces, class, done, deadline, origin } = request;
        self.origins.attach(origin);
        let all = u64::from(self.content.pieces());
        if pieces.end > all {
            let message = format!("{} has no bytes beyond {}", self.content.id(), self.content.len());
            let _ =
                done.send(Err(ReadError::new(content::Fault::Caller, ReadErrorKind::OutOfRange, message)));
            return;
        }
        // The store is the truth: a piece that went rotten is wanted again.
        let left = self.content.have().missing(pieces);
        let read = Read { class, left, worst: Provenance::Store, deadline, done };
        if read.left.is_empty() {
            read.answer(Ok(Provenance::Store));
            return;
        }
        for piece in each(&read.left) {
            self.child.on_dropped(piece);
            self.child.want(now, piece, class);
            if self.origins.is_reading(piece.into()) {
                self.child.at_origin(now, piece, true);
            }
        }
        // While the content was whole, new neighbours were of no interest.
        self.meet_neighbours();
        self.reads.push(read);
    }

    /// A piece is here: readers that waited for nothing else are answered.
    pub(super) fn answer_reads(&mut self, piece: u32, from: Provenance) {
        let mut at = 0;
        while let Some(read) = self.reads.get_mut(at) {
            if read.needs(piece) {
                read.left.remove(ByteRange::at(piece.into(), 1));
                read.worst = read.worst.max(from);
            }
            if read.left.is_empty() {
                let read = self.reads.swap_remove(at);
                let worst = read.worst;
                read.answer(Ok(worst));
            } else {
                at += 1;
            }
        }
    }

    /// Nobody can give `piece`: whoever needs it is told.
    pub(super) fn fail_reads(&mut self, piece: u32, error: &ReadError) {
        let mut failed = Vec::new();
        let mut at = 0;
        while let Some(read) = self.reads.get(at) {
            if read.needs(piece) {
                failed.push(self.reads.swap_remove(at));
            } else {
                at += 1;
            }
        }
        for read in failed {
            let left = read.left.clone();
            read.answer(Err(error.clone()));
            self.relax(&left);
        }
        self.child.relax(piece, None);
        self.origins.clear_failure(piece);
    }

    /// Drops readers that went away or have waited too long, and with them what only they wanted.
    pub(super) fn prune_reads(&mut self, now: Instant) {
        let mut at = 0;
        while let Some(read) = self.reads.get(at) {
            let late = now >= read.deadline;
            if !late && !read.done.is_closed() {
                at += 1;
                continue;
            }
            let read = self.reads.swap_remove(at);
            let left = read.left.clone();
            if late {
                let error = self.late(&left);
                read.answer(Err(error));
            }
            self.relax(&left);
        }
    }

    fn late(&self, left: &RangeSet) -> ReadError {
        let why = each(left).find_map(|piece| self.origins.failure(piece));
        let late = "no source answered in time";
        why.cloned().map_or_else(
            || ReadError::peer(ReadErrorKind::Unavailable, format!("{}: {late}", self.content.id())),
            |error| error.context(late),
        )
    }

    /// What a reader wanted is wanted only as far as others want it.
    fn relax(&mut self, pieces: &RangeSet) {
        for piece in each(pieces) {
            let class = self.reads.iter().filter(|read| read.needs(piece)).map(|read| read.class).min();
            self.child.relax(piece, class);
            if class.is_none() {
                // A later reader begins anew.
                self.origins.clear_failure(piece);
            }
        }
    }
}
