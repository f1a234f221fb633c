//! The TOC and the tar-split data of a layer, as its sections come to stand in the blob.
//!
//! A file that is one chunk has one TOC entry. One of several has an entry for each: the first with everything
//! that is known of the file, the others with their place alone.

use std::io;

use content::{Digest, Hasher};

use super::head::{Head, Object};
use crate::build::codec::Codec;
use crate::build::pipeline::{Chunk, Index};
use crate::build::tar_split::{Crc64, TarSplit};

/// What the cutter leaves in a section.
pub(super) enum Mark {
    /// Bytes of the section that are no content.
    Segment(Vec<u8>),
    /// An entry without content.
    Entry(Head),
    /// The section's payload: a file or a part of it.
    Chunk {
        /// The file's head, with its first chunk.
        head: Option<Head>,
        is_hole: bool,
        /// Nothing of the file comes after it.
        is_last: bool,
    },
}

/// A chunk of a file, and where its frame is.
struct Place {
    offset: u64,
    end: u64,
    file_offset: u64,
    len: u64,
    digest: Digest,
    is_hole: bool,
}

/// A file whose chunks are coming.
struct File {
    head: Head,
    size: u64,
    digest: Hasher,
    crc: Crc64,
    places: Vec<Place>,
}

/// What was collected.
pub(super) struct Collected {
    /// The TOC.
    pub(super) json: Vec<u8>,
    /// The frame with the tar-split data.
    pub(super) tar_split: Vec<u8>,
    /// What that inflates to.
    pub(super) tar_split_len: u64,
    pub(super) entries: u64,
    pub(super) chunks: u64,
}

pub(super) struct PodmanIndex {
    json: Vec<u8>,
    tar_split: TarSplit,
    file: Option<File>,
    entries: u64,
    chunks: u64,
}

impl PodmanIndex {
    pub(super) fn new(codec: Codec) -> Self {
        let (Codec::Gzip { level } | Codec::Zstd { level }) = codec;
        Self {
            json: b"{\"version\":1,\"entries\":[".to_vec(),
            tar_split: TarSplit::new(level),
            file: None,
            entries: 0,
            chunks: 0,
        }
    }

    pub(super) fn finish(self) -> io::Result<Collected> {
        let (tar_split, tar_split_len) = self.tar_split.finish()?;
        let mut json = self.json;
        json.extend_from_slice(format!("],\"tarSplitDigest\":\"{}\"}}", Digest::of(&tar_split)).as_bytes());
        Ok(Collected { json, tar_split, tar_split_len, entries: self.entries, chunks: self.chunks })
    }

    /// Appends an entry to the TOC.
    fn push(&mut self, mut object: Vec<u8>) {
        if self.json.last() == Some(&b'}') {
            self.json.push(b',');
        }
        object.push(b'}');
        self.json.append(&mut object);
    }

    fn end_file(&mut self, file: File) {
        self.tar_split.file(&file.head.name, Some((file.size, file.crc.finish())));
        let end = file.places.last().map_or(0, |place| place.end);
        let many = file.places.len() > 1;
        let mut first = Some(file.head.json);
        let digest = file.digest.finish().to_string();
        for place in &file.places {
            let mut object = if let Some(head) = first.take() {
                let mut object = Object(head);
                object.text("digest", &digest);
                object.number("offset", place.offset);
                object.number("endOffset", end);
                object
            } else {
                let mut object = Object(b"{".to_vec());
                object.text("type", "chunk");
                object.text("name", &file.head.name);
                object.number("offset", place.offset);
                object
            };
            if many {
                object.number("chunkSize", place.len);
                object.number("chunkOffset", place.file_offset);
                object.text("chunkDigest", &place.digest.to_string());
                if place.is_hole {
                    object.text("chunkType", "zeros");
                }
            }
            self.push(object.0);
        }
    }
}

impl Index for PodmanIndex {
    type Mark = Mark;

    fn mark(&mut self, mark: Mark, chunk: Option<&Chunk<'_>>) {
        match mark {
            Mark::Segment(bytes) => self.tar_split.segment(&bytes),
            Mark::Entry(head) => {
                self.entries += 1;
                self.tar_split.file(&head.name, None);
                self.push(head.json);
            }
            Mark::Chunk { head, is_hole, is_last } => {
                if let Some(head) = head {
                    self.entries += 1;
                    let (digest, crc) = (Hasher::new(), Crc64::new());
                    self.file = Some(File { head, size: 0, digest, crc, places: Vec::new() });
                }
                let (Some(mut file), Some(chunk)) = (self.file.take(), chunk) else { return };
                self.chunks += 1;
                file.digest.update(chunk.payload);
                file.crc.update(chunk.payload);
                let len = chunk.payload.len() as u64;
                let Chunk { offset, end, digest, .. } = *chunk;
                file.places.push(Place { offset, end, file_offset: file.size, len, digest, is_hole });
                file.size += len;
                if is_last {
                    self.end_file(file);
                } else {
                    self.file = Some(file);
                }
            }
        }
    }
}
