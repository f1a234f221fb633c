//! Every chunk, had as a mount has it: from the bytes of its extent alone.
//!
//! The walk has seen that the bytes are right and begin where the TOC says. That they can be had there, from
//! an inflater that starts at that offset and gets no byte beyond the extent, is another matter. Members are
//! shared out to all cores. One that many small files share is inflated once, not once per file: a table of a
//! million entries in one member would otherwise take years.

use std::io::{self, BufRead, BufReader, Read};
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use content::{ByteRange, Hasher};

use super::lie::Lie;
use super::walk::Stop;
use super::{AuditError, ReadAt};
use crate::chunk::{ChunkError, inflate_chunk};
use crate::decompress::Compression;
use crate::toc::{Chunk, NO_DIGEST, ROOT, Toc};

/// A chunk whose extent is longer is inflated as a stream.
const AT_ONCE: u64 = 16 << 20;

/// Checks every chunk of `toc`.
pub(super) fn check(
    blob: &dyn ReadAt,
    toc: &Toc,
    workers: NonZeroUsize,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<(), Stop> {
    let chunks: Vec<Chunk> = sorted(toc);
    let groups = groups(&chunks);
    let next = AtomicUsize::new(0);
    let stopped = AtomicBool::new(false);
    // The failure with the lowest place, so that the answer does not depend on timing: groups are begun in
    // order, and those begun are finished.
    let failure: Mutex<Option<(usize, Stop)>> = Mutex::new(None);
    let work = || {
        while !stopped.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(group) = groups.get(number).and_then(|group| chunks.get(group.clone())) else { return };
            match check_group(blob, toc, group) {
                Ok(()) => progress(group.first().map_or(0, |chunk| chunk.blob.len())),
                Err(stop) => {
                    stopped.store(true, Ordering::Relaxed);
                    let mut failure = failure.lock().unwrap_or_else(PoisonError::into_inner);
                    if failure.as_ref().is_none_or(|(first, _)| number < *first) {
                        *failure = Some((number, stop));
                    }
                }
            }
        }
    };
    thread::scope(|scope| {
        for _ in 1..workers.get().min(groups.len().max(1)) {
            scope.spawn(work);
        }
        work();
    });
    match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some((_, stop)) => Err(stop),
        None => Ok(()),
    }
}

/// The chunks that can be checked, in the order of the blob.
fn sorted(toc: &Toc) -> Vec<Chunk> {
    let mut chunks: Vec<Chunk> =
        toc.chunks().filter(|chunk| !chunk.is_zeros() && chunk.digest != NO_DIGEST).collect();
    chunks.sort_unstable_by_key(|chunk| (chunk.blob.start, chunk.inner_offset));
    chunks
}

/// Runs of chunks that begin with the same member.
fn groups(chunks: &[Chunk]) -> Vec<Range<usize>> {
    let mut end = 0;
    chunks
        .chunk_by(|a, b| a.blob.start == b.blob.start)
        .map(|run| {
            let start = end;
            end += run.len();
            start..end
        })
        .collect()
}

fn check_group(blob: &dyn ReadAt, toc: &Toc, group: &[Chunk]) -> Result<(), Stop> {
    if let [only] = group
        && only.blob.len() <= AT_ONCE
        && u64::from(only.len) <= AT_ONCE
    {
        let mut compressed = vec![0; usize::try_from(only.blob.len()).unwrap_or(0)];
        blob.read_exact_at(&mut compressed, only.blob.start).map_err(unreadable)?;
        return inflate_chunk(&compressed, only).map(|_| ()).map_err(|reason| lie(toc, only.inode, reason));
    }
    let Some(first) = group.first() else { return Ok(()) };
    let end = group.iter().map(|chunk| chunk.blob.end).max().unwrap_or(first.blob.end);
    let extent = Extent { blob, left: ByteRange::new(first.blob.start, end), failed: false };
    let mut source = BufReader::with_capacity(64 * 1024, extent);
    let outcome = stream(&mut source, group);
    if source.get_ref().failed {
        return Err(unreadable(io::Error::other("the blob cannot be read")));
    }
    outcome.map_err(|(inode, reason)| lie(toc, inode, reason))
}

/// Inflates one member and checks the chunks in it, which ascend. A failure names the inode.
fn stream(source: &mut impl BufRead, group: &[Chunk]) -> Result<(), (u32, ChunkError)> {
    let mut at = 0;
    let mut inflater = match group.first() {
        Some(first) => member(source).map_err(|error| (first.inode, inflate(first, error)))?,
        None => return Ok(()),
    };
    let mut buffer = vec![0; 64 * 1024];
    for chunk in group {
        let failed = |error| (chunk.inode, inflate(chunk, error));
        let inner = u64::from(chunk.inner_offset);
        // Two files cannot share bytes; what the parser let through is not skipped backwards.
        let skip = inner.checked_sub(at).ok_or_else(|| failed(io::ErrorKind::InvalidData.into()))?;
        pass(&mut inflater, skip, &mut buffer, &mut |_| ()).map_err(failed)?;
        let mut hasher = Hasher::new();
        pass(&mut inflater, u64::from(chunk.len), &mut buffer, &mut |part| hasher.update(part))
            .map_err(failed)?;
        at = inner + u64::from(chunk.len);
        let found = hasher.finish();
        if found != chunk.digest {
            let (offset, expected) = (chunk.blob.start, chunk.digest);
            return Err((chunk.inode, ChunkError::Digest { offset, expected, found }));
        }
    }
    Ok(())
}

/// An inflater of the one member or frame that `source` begins with.
fn member<'a>(source: &'a mut impl BufRead) -> io::Result<Box<dyn Read + 'a>> {
    Ok(match Compression::sniff(source.fill_buf()?) {
        Compression::Gzip => Box::new(flate2::bufread::GzDecoder::new(source)),
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(source)?.single_frame()),
        Compression::None => return Err(io::Error::other("it is neither a gzip member nor a zstd frame")),
    })
}

fn pass(from: &mut impl Read, len: u64, buffer: &mut [u8], take: &mut dyn FnMut(&[u8])) -> io::Result<()> {
    let mut left = len;
    while left > 0 {
        let want = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let count = from.read(buffer.get_mut(..want).unwrap_or_default())?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        take(buffer.get(..count).unwrap_or_default());
        left -= count as u64;
    }
    Ok(())
}

/// A part of the blob, read in order.
struct Extent<'a> {
    blob: &'a dyn ReadAt,
    left: ByteRange,
    failed: bool,
}

impl Read for Extent<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.left.len()).unwrap_or(usize::MAX).min(buffer.len());
        let part = buffer.get_mut(..want).unwrap_or_default();
        self.blob.read_exact_at(part, self.left.start).inspect_err(|_| self.failed = true)?;
        self.left.start += want as u64;
        Ok(want)
    }
}

fn inflate(chunk: &Chunk, source: io::Error) -> ChunkError {
    ChunkError::Inflate { offset: chunk.blob.start, source }
}

fn unreadable(error: io::Error) -> Stop {
    Stop::Error(AuditError::Read(error))
}

fn lie(toc: &Toc, inode: u32, reason: ChunkError) -> Stop {
    Lie::Chunk { name: path_of(toc, inode), reason }.into()
}

/// One of the paths of an inode.
fn path_of(toc: &Toc, number: u32) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut at = number;
    while at != ROOT {
        let Some(parent) = toc.inode(at).map(|inode| inode.parent()) else { break };
        let name = toc
            .inode(parent)
            .and_then(|directory| directory.children().find(|(_, inode)| *inode == at))
            .map_or_else(|| "?".to_owned(), |(name, _)| crate::archive::display(name));
        parts.push(name);
        at = parent;
    }
    parts.reverse();
    parts.join("/")
}
