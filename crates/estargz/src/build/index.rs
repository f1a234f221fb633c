//! The TOC of stargz-snapshotter, for gzip and for zstd.

use content::{Digest, Hasher};

use super::pipeline::{Chunk, Index};
use super::toc_layer::TocTar;
use crate::archive::BLOCK;
use crate::toc::json::{DigestSlot, JsonEntry, Place, TocWriter};

/// What the cutter leaves in a section.
pub(super) enum Mark {
    /// The section's payload: a file or a part of it.
    Chunk {
        /// Its entry.
        entry: JsonEntry,
        /// Nothing of the file comes after it.
        is_last: bool,
    },
    /// An entry without payload.
    Entry(JsonEntry),
}

/// Collects the TOC.
pub(super) struct StargzIndex {
    toc: TocWriter,
    /// The file whose chunks are coming.
    file: Option<(DigestSlot, Hasher)>,
    /// Entries that are not further chunks.
    pub(super) entries: u64,
    pub(super) chunks: u64,
}

impl StargzIndex {
    pub(super) fn new() -> Self {
        Self { toc: TocWriter::new(BLOCK), file: None, entries: 0, chunks: 0 }
    }

    /// The TOC in its tar entry.
    pub(super) fn finish(self) -> TocTar {
        TocTar::around(self.toc.finish())
    }

    fn chunk(&mut self, entry: &JsonEntry, is_last: bool, chunk: Option<&Chunk<'_>>) {
        let empty = Digest::of(b"");
        let (place, payload) = match chunk {
            Some(Chunk { offset, inner, digest, payload, .. }) => {
                (Place { offset: *offset, inner: *inner, digest: *digest }, *payload)
            }
            None => (Place { offset: 0, inner: 0, digest: empty }, [].as_slice()),
        };
        self.chunks += 1;
        if let Some(slot) = self.toc.push(entry, Some(place)) {
            self.entries += 1;
            if is_last {
                self.toc.set_digest(&slot, &place.digest);
                return;
            }
            self.file = Some((slot, Hasher::new()));
        }
        let Some((slot, mut hasher)) = self.file.take() else { return };
        hasher.update(payload);
        if is_last {
            self.toc.set_digest(&slot, &hasher.finish());
        } else {
            self.file = Some((slot, hasher));
        }
    }
}

impl Index for StargzIndex {
    type Mark = Mark;

    fn mark(&mut self, mark: Mark, chunk: Option<&Chunk<'_>>) {
        match mark {
            Mark::Chunk { entry, is_last } => self.chunk(&entry, is_last, chunk),
            Mark::Entry(entry) => {
                self.entries += 1;
                self.toc.push(&entry, None);
            }
        }
    }
}
