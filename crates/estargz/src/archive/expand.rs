//! From a sparse file's headers to its map, and to the plain header that takes their place.

use std::io::Read;

use super::data::Content;
use super::pax::Pax;
use super::sparse::{Map, MapReader, More, Place, REAL_SIZE, SparseError, SparseProblem, TextMap};
use super::{ArchiveError, BLOCK, Entry, EntryKind, Reader, header, rewrite};

impl<R: Read> Reader<R> {
    /// Reads the map of a file of type `S`: it begins in the header, and goes on in blocks behind it.
    pub(super) fn old_map(
        &mut self,
        header: &[u8; BLOCK],
        gnu: bool,
        pax: &Pax,
    ) -> Result<Map, ArchiveError> {
        if !gnu {
            // The type stands for something else in star's headers.
            return Err(self.cannot(SparseProblem::Unknown));
        }
        if pax.sparse.any() {
            return Err(self.cannot(SparseProblem::Incomplete));
        }
        let mut reader = MapReader::new();
        let mut more = reader.old_header(header).map_err(|problem| self.cannot(problem))?;
        while matches!(more, More::Yes) {
            let block = self.read_block()?.ok_or_else(|| self.truncated())?;
            more = reader.old_block(&block).map_err(|problem| self.cannot(problem))?;
        }
        let size = header.get(REAL_SIZE).and_then(header::number).and_then(|size| u64::try_from(size).ok());
        let size = size.ok_or_else(|| self.cannot(SparseProblem::Number))?;
        reader.finish(size, self.content.stored).map_err(|problem| self.cannot(problem))
    }

    /// Finds the map that PAX records speak of: in them, or in front of the data.
    pub(super) fn pax_map(&mut self, pax: &Pax, kind: EntryKind) -> Result<Map, ArchiveError> {
        if kind != EntryKind::Regular {
            return Err(self.cannot(SparseProblem::Kind));
        }
        let (size, place) = pax.sparse.resolve().map_err(|problem| self.cannot(problem))?;
        let parts = match place {
            Place::Records(parts) => Ok(parts),
            Place::Data => self.text_map()?.parts(),
        };
        parts
            .and_then(|parts| MapReader::records(parts).finish(size, self.content.stored))
            .map_err(|problem| self.cannot(problem))
    }

    /// Reads a map in front of the data, which is a part of what the header counts as data.
    fn text_map(&mut self) -> Result<TextMap, ArchiveError> {
        let mut text = TextMap::new();
        loop {
            let left = self.content.stored.checked_sub(BLOCK as u64);
            self.content.stored = left.ok_or_else(|| self.cannot(SparseProblem::Data))?;
            let block = self.read_block()?.ok_or_else(|| self.truncated())?;
            match text.block(&block).map_err(|problem| self.cannot(problem))? {
                More::Yes => {}
                More::No => return Ok(text),
            }
        }
    }

    /// Makes `entry` the file that `map` describes. Its raw headers are global ones at most.
    pub(super) fn expand(&mut self, entry: &mut Entry, map: Map, pax: &Pax) -> Result<(), ArchiveError> {
        let left = self.holes_left.checked_sub(map.holes());
        self.holes_left = left.ok_or_else(|| self.cannot(SparseProblem::Bomb))?;
        entry.size = map.size;
        entry.rewritten = true;
        entry.raw.extend(rewrite::plain(entry, &pax.data));
        self.content = Content::sparse(self.content.stored, map);
        Ok(())
    }

    fn cannot(&self, problem: SparseProblem) -> ArchiveError {
        SparseError { name: self.current.clone(), problem }.into()
    }
}
