//! Cutting the tar stream into sections, as stargz-snapshotter has them.
//!
//! A file's payload begins a section, a large one's every chunk. Padding, and the headers of what follows up
//! to the next payload, stand in the section of the payload before them: a reader stops behind the payload.

use std::io::Read;

use super::describe::Describer;
use super::index::Mark;
use super::pipeline::Feeder;
use super::recorder::Recorder;
use super::room::Room;
use super::ustar::ustar_header;
use super::{BuildError, DescribeProblem, is_reserved};
use crate::archive::{ArchiveError, BLOCK, Entry, EntryKind, Reader, display, padding};
use crate::toc::json::JsonEntry;
use crate::{TOC_NAME, path};

/// Bytes of tar headers after which a section ends though no payload has come: bounds memory in a layer of a
/// million empty files, and what a reader must skip.
pub(super) const HEADER_RUN: usize = 128 * 1024;

/// What a landmark holds, by the format.
const LANDMARK_CONTENT: &[u8] = &[0x0f];

pub(super) struct Cutter<'a> {
    chunk_len: usize,
    feeder: &'a mut Feeder<Mark>,
    describer: Describer,
    room: Room,
}

impl<'a> Cutter<'a> {
    pub(super) fn new(chunk_len: usize, feeder: &'a mut Feeder<Mark>) -> Self {
        Self { chunk_len, feeder, describer: Describer::default(), room: Room::default() }
    }

    /// Adds a landmark file.
    pub(super) fn landmark(&mut self, name: &str) -> Result<(), BuildError> {
        let size = LANDMARK_CONTENT.len() as u64;
        self.feeder.append(&ustar_header(name, size))?;
        let entry = JsonEntry {
            name: name.to_owned(),
            kind: "reg",
            size,
            mtime: Some(0),
            has_digest: true,
            ..JsonEntry::default()
        };
        self.payload(entry, &mut &*LANDMARK_CONTENT, true)?;
        self.zeros(size)
    }

    /// Adds an entry with its data, all but what the format itself puts into layers.
    pub(super) fn entry(&mut self, entry: &Entry, data: &mut impl Read) -> Result<(), BuildError> {
        if is_reserved(&clean(entry)?) {
            return Ok(());
        }
        self.feeder.append(&entry.raw)?;
        self.described(entry, data)?;
        self.zeros(entry.size)
    }

    /// Ends the tar: two blocks of zeros.
    pub(super) fn end(&mut self) -> Result<(), BuildError> {
        self.feeder.append(&[0; 2 * BLOCK])
    }

    /// Adds everything in `tar`, byte for byte, up to the end of the stream.
    pub(super) fn raw(&mut self, tar: impl Read) -> Result<(), BuildError> {
        let recorder = Recorder::new(tar);
        let mut archive = Reader::new(&recorder);
        while let Some(entry) = archive.next_entry()? {
            if clean(&entry)? == TOC_NAME.as_bytes() {
                return Err(failure(&entry, DescribeProblem::HasToc));
            }
            if entry.rewritten {
                return Err(failure(&entry, DescribeProblem::Sparse));
            }
            self.feeder.append(&recorder.take())?;
            recorder.pause(|| self.described(&entry, &mut archive.data()))?;
        }
        drop(archive);
        loop {
            self.feeder.append(&recorder.take())?;
            self.split_run()?;
            if recorder.read_on(HEADER_RUN).map_err(ArchiveError::from)? == 0 {
                return Ok(());
            }
        }
    }

    /// The entry itself; its headers are in place.
    fn described(&mut self, entry: &Entry, data: &mut impl Read) -> Result<(), BuildError> {
        let described = self.describer.describe(entry).map_err(|problem| failure(entry, problem))?;
        if entry.kind == EntryKind::Regular && entry.size > 0 {
            return self.payload(described, data, false);
        }
        self.room.take(&described)?;
        self.feeder.mark(Mark::Entry(described))?;
        self.split_run()
    }

    /// A file's content.
    fn payload(&mut self, entry: JsonEntry, data: &mut impl Read, fresh: bool) -> Result<(), BuildError> {
        let (size, chunk_len) = (entry.size, self.chunk_len as u64);
        let mut first = Some(entry);
        let mut name = String::new();
        let mut offset = 0;
        while offset < size {
            let len = chunk_len.min(size - offset);
            let chunk_size = if len == chunk_len { len } else { 0 };
            let is_last = offset + len == size;
            self.feeder.payload(data, usize::try_from(len).unwrap_or(self.chunk_len), fresh)?;
            let entry = if let Some(mut entry) = first.take() {
                if !is_last {
                    name.clone_from(&entry.name);
                }
                entry.chunk_size = chunk_size;
                entry
            } else {
                JsonEntry {
                    name: name.clone(),
                    kind: "chunk",
                    chunk_offset: offset,
                    chunk_size,
                    ..JsonEntry::default()
                }
            };
            self.room.take(&entry)?;
            self.feeder.mark(Mark::Chunk { entry, is_last })?;
            offset += len;
        }
        Ok(())
    }

    /// Padding behind `size` bytes of data.
    fn zeros(&mut self, size: u64) -> Result<(), BuildError> {
        let len = usize::try_from(padding(size)).unwrap_or(0);
        self.feeder.append([0; BLOCK].get(..len).unwrap_or_default())
    }

    /// Ends a section that has become too long.
    fn split_run(&mut self) -> Result<(), BuildError> {
        if self.feeder.beyond_payload() > HEADER_RUN { self.feeder.begin(false) } else { Ok(()) }
    }
}

/// The clean path of `entry`.
pub(super) fn clean(entry: &Entry) -> Result<Vec<u8>, BuildError> {
    let mut clean = Vec::new();
    path::clean(&entry.path, &mut clean).map_err(|problem| failure(entry, problem.into()))?;
    Ok(clean)
}

pub(super) fn failure(entry: &Entry, problem: DescribeProblem) -> BuildError {
    BuildError::Entry { name: display(&entry.path), problem }
}
