//! Cutting the tar stream into members.

use std::io::Read;
use std::sync::mpsc::{SyncSender, sync_channel};

use content::Hasher;

use super::describe::Describer;
use super::member::{FileDigest, Job, Ordered, ustar_header};
use super::{BuildError, Diff, is_reserved};
use crate::archive::{ArchiveError, Entry, EntryKind, display, padding};
use crate::path;
use crate::toc::json::JsonEntry;

/// Bytes of tar headers after which a member ends though no payload has come: bounds memory in a layer of a
/// million empty files, and what a reader must skip.
const HEADER_RUN: usize = 128 * 1024;

/// What a landmark holds, by the format.
const LANDMARK_CONTENT: &[u8] = &[0x0f];

/// The member that is being filled.
#[derive(Default)]
struct Member {
    data: Vec<u8>,
    payload: usize,
    chunk: Option<JsonEntry>,
    file: Option<FileDigest>,
    entries: Vec<JsonEntry>,
}

pub(super) struct Cutter {
    chunk_size: usize,
    jobs: SyncSender<Job>,
    order: SyncSender<Ordered>,
    diff: Diff,
    describer: Describer,
    member: Member,
    /// The writer failed; its error is the one to tell.
    stopped: bool,
}

impl Cutter {
    pub(super) fn new(chunk_size: usize, jobs: SyncSender<Job>, order: SyncSender<Ordered>) -> Self {
        Self {
            chunk_size,
            jobs,
            order,
            diff: Diff::default(),
            describer: Describer::default(),
            member: Member::default(),
            stopped: false,
        }
    }

    /// Adds a landmark file.
    pub(super) fn landmark(&mut self, name: &str) -> Result<(), BuildError> {
        let size = LANDMARK_CONTENT.len() as u64;
        self.append(&ustar_header(name, size));
        let entry = JsonEntry {
            name: name.to_owned(),
            kind: "reg",
            size,
            mtime: Some(0),
            has_digest: true,
            ..JsonEntry::default()
        };
        self.payload(&entry, &mut &*LANDMARK_CONTENT)
    }

    /// Adds an entry with its data.
    pub(super) fn entry(&mut self, entry: &Entry, data: &mut impl Read) -> Result<(), BuildError> {
        let mut clean = Vec::new();
        path::clean(&entry.path, &mut clean)
            .map_err(|problem| BuildError::Entry { name: entry.display_path(), problem: problem.into() })?;
        if is_reserved(&clean) {
            return Ok(());
        }
        let described = self
            .describer
            .describe(entry)
            .map_err(|problem| BuildError::Entry { name: display(&entry.path), problem })?;
        self.append(&entry.raw);
        if entry.kind == EntryKind::Regular && entry.size > 0 {
            self.payload(&described, data)?;
        } else {
            self.member.entries.push(described);
        }
        if self.member.data.len() - self.member.payload > HEADER_RUN {
            self.send();
        }
        Ok(())
    }

    /// Ends the last member. Both channels close.
    pub(super) fn finish(mut self) -> Diff {
        if !self.member.data.is_empty() {
            self.send();
        }
        self.diff
    }

    fn append(&mut self, bytes: &[u8]) {
        self.diff.update(bytes);
        self.member.data.extend_from_slice(bytes);
    }

    /// A file's content: every chunk begins a member.
    fn payload(&mut self, entry: &JsonEntry, data: &mut impl Read) -> Result<(), BuildError> {
        let mut whole = Hasher::new();
        let mut offset = 0;
        while offset < entry.size {
            self.send();
            let left = entry.size - offset;
            let full = left >= self.chunk_size as u64;
            let len = if full { self.chunk_size } else { usize::try_from(left).unwrap_or(self.chunk_size) };
            let mut bytes = Vec::with_capacity(len + 2 * crate::archive::BLOCK);
            data.take(len as u64).read_to_end(&mut bytes).map_err(ArchiveError::from)?;
            self.diff.update(&bytes);
            let one_chunk = len as u64 == entry.size;
            if !one_chunk {
                whole.update(&bytes);
            }
            self.member = Member {
                data: bytes,
                payload: len,
                chunk: Some(chunk_entry(entry, offset, if full { self.chunk_size as u64 } else { 0 })),
                file: one_chunk.then_some(FileDigest::Chunk),
                entries: Vec::new(),
            };
            offset += len as u64;
        }
        if self.member.file.is_none() {
            self.member.file = Some(FileDigest::Closed(whole.finish()));
        }
        let padding = usize::try_from(padding(entry.size)).unwrap_or(0);
        self.append([0; crate::archive::BLOCK].get(..padding).unwrap_or_default());
        Ok(())
    }

    /// Hands the member over and begins an empty one.
    fn send(&mut self) {
        let member = std::mem::take(&mut self.member);
        if self.stopped || member.data.is_empty() {
            return;
        }
        let (reply, result) = sync_channel(1);
        let ordered = Ordered {
            result,
            chunk: member.chunk,
            file: member.file.unwrap_or(FileDigest::Open),
            entries: member.entries,
        };
        let job = Job { data: member.data, payload: member.payload, reply };
        self.stopped = self.order.send(ordered).is_err() || self.jobs.send(job).is_err();
    }
}

/// The TOC entry of the chunk at `offset`: the file's own for the first one.
fn chunk_entry(file: &JsonEntry, offset: u64, chunk_size: u64) -> JsonEntry {
    if offset == 0 {
        return JsonEntry { chunk_size, ..file.clone() };
    }
    JsonEntry {
        name: file.name.clone(),
        kind: "chunk",
        chunk_offset: offset,
        chunk_size,
        ..JsonEntry::default()
    }
}
