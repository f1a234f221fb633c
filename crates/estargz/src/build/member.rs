//! One gzip member: compressed by whichever worker is free, written when its turn has come.

use std::io::{self, Write};
use std::sync::mpsc::{Receiver, SyncSender};

use content::{Digest, Hasher};
use libdeflater::{CompressionLvl, Compressor};

use crate::archive::BLOCK;
use crate::toc::json::{DigestSlot, JsonEntry, Place, TocWriter};

/// A member to compress.
pub(super) struct Job {
    /// The inflated bytes.
    pub(super) data: Vec<u8>,
    /// How many of them, from the first, are a chunk.
    pub(super) payload: usize,
    /// Takes the result; has room for it.
    pub(super) reply: SyncSender<io::Result<Compressed>>,
}

/// A compressed member.
pub(super) struct Compressed {
    bytes: Vec<u8>,
    payload_digest: Digest,
}

/// A member's turn to be written.
pub(super) struct Ordered {
    /// Brings the compressed bytes.
    pub(super) result: Receiver<io::Result<Compressed>>,
    /// The chunk that the member begins with.
    pub(super) chunk: Option<JsonEntry>,
    /// What is known of the file's digest with this chunk.
    pub(super) file: FileDigest,
    /// Entries without payload whose headers the member holds, after the chunk.
    pub(super) entries: Vec<JsonEntry>,
}

/// How a member's chunk contributes to its file's digest.
#[derive(Clone, Copy, Debug)]
pub(super) enum FileDigest {
    /// The chunk is the whole file.
    Chunk,
    /// There is more of the file to come, or there is no chunk.
    Open,
    /// This was the file's last chunk.
    Closed(Digest),
}

/// The blob when all members are written.
pub(super) struct Written<W> {
    pub(super) out: Blob<W>,
    pub(super) toc: TocWriter,
    /// Entries that are not further chunks.
    pub(super) entries: u64,
}

pub(super) fn compressor(level: u8) -> Compressor {
    let level = CompressionLvl::new(i32::from(level)).unwrap_or_default();
    Compressor::new(level)
}

impl Job {
    pub(super) fn run(self, compressor: &mut Compressor) {
        let mut bytes = vec![0; compressor.gzip_compress_bound(self.data.len())];
        let result = compressor
            .gzip_compress(&self.data, &mut bytes)
            .map_err(|error| io::Error::other(format!("compressing: {error}")))
            .map(|len| {
                bytes.truncate(len);
                let payload = self.data.get(..self.payload).unwrap_or_default();
                Compressed { bytes, payload_digest: Digest::of(payload) }
            });
        // A writer that failed does not take it any more.
        let _ = self.reply.send(result);
    }
}

/// Writes members until the channel closes.
pub(super) fn write_in_order<W: Write>(members: &Receiver<Ordered>, out: W) -> io::Result<Written<W>> {
    let mut out = Blob { out, hasher: Hasher::new(), position: 0 };
    let mut toc = TocWriter::new();
    let mut entries = 0;
    let mut open: Option<DigestSlot> = None;
    for member in members {
        let lost = |_| io::Error::other("a member was lost on its way to a worker");
        let Compressed { bytes, payload_digest } = member.result.recv().map_err(lost)??;
        if let Some(chunk) = &member.chunk {
            let place = Place { offset: out.position, digest: payload_digest };
            if let Some(slot) = toc.push(chunk, Some(place)) {
                entries += 1;
                open = Some(slot);
            }
        }
        let file = match member.file {
            FileDigest::Chunk => Some(payload_digest),
            FileDigest::Open => None,
            FileDigest::Closed(digest) => Some(digest),
        };
        if let Some(digest) = file
            && let Some(slot) = open.take()
        {
            toc.set_digest(&slot, &digest);
        }
        for entry in &member.entries {
            toc.push(entry, None);
            entries += 1;
        }
        out.write_all(&bytes)?;
    }
    Ok(Written { out, toc, entries })
}

/// Where the blob goes, with what must be known of it.
pub(super) struct Blob<W> {
    out: W,
    hasher: Hasher,
    position: u64,
}

impl<W> Blob<W> {
    pub(super) const fn position(&self) -> u64 {
        self.position
    }

    /// Digest and size.
    pub(super) fn finish(self) -> (Digest, u64) {
        (self.hasher.finish(), self.position)
    }
}

impl<W: Write> Write for Blob<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.hasher.update(bytes.get(..count).unwrap_or_default());
        self.position += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// The tar header of a regular file that has nothing but a name and a size.
pub(super) fn ustar_header(name: &str, size: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, text: &[u8]| {
        for (slot, byte) in block.iter_mut().skip(at).zip(text) {
            *slot = *byte;
        }
    };
    put(0, name.as_bytes());
    for at in [100, 108, 116, 329, 337] {
        put(at, b"0000000\0");
    }
    put(124, format!("{size:011o}\0").as_bytes());
    put(136, b"00000000000\0");
    put(148, b"        0");
    put(257, b"ustar\x0000");
    let checksum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    let checksum = format!("{checksum:06o}\0 ");
    for (slot, byte) in block.iter_mut().skip(148).zip(checksum.as_bytes()) {
        *slot = *byte;
    }
    block
}
