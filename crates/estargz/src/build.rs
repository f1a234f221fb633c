//! Writing a blob from a tar stream.
//!
//! The caller's thread reads the tar and cuts it into members: everything from one file's payload (or one
//! chunk of it) to the next. Workers compress members at the same time; one thread writes them in order, and
//! with each the TOC entries whose place is known then. Where members begin depends on the input and the
//! chunk size alone, so the blob's bytes are the same on every machine.
//!
//! At most a few members per worker are in memory, however large the layer is, and beside them the TOC.
//!
//! Header blocks are passed on as they came, with all that they hold beyond the TOC's fields. An old TOC and
//! old landmarks are left out. An entry that a lazy mount could not show is an error, and the finished TOC
//! is read back by the very code that readers use: what was built can be mounted.

use std::io::{self, Read, Write};
use std::num::NonZeroUsize;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;

use content::{Digest, Hasher};

use crate::archive::{ArchiveError, Reader};
use crate::footer::Footer;
use crate::toc::{Toc, TocError, TocLimits};
use crate::{NO_PREFETCH_LANDMARK, PREFETCH_LANDMARK, TOC_NAME};

mod cut;
mod describe;
mod member;

use cut::Cutter;
pub use describe::DescribeProblem;
use member::{Job, Ordered, Written};

/// Bytes of a file per chunk, as other tools have it: small enough to read at one go, large enough to
/// compress well.
pub const DEFAULT_CHUNK_SIZE: u32 = 4 << 20;

/// Compression level, as other tools have it.
pub const DEFAULT_LEVEL: u8 = 9;

/// More workers than this would need gigabytes for members under way.
const MAX_WORKERS: usize = 16;

/// How a blob is built.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes of a file per chunk; 0 for [`DEFAULT_CHUNK_SIZE`].
    pub chunk_size: u32,
    /// Compression level from 1 (fast) to 12 (small).
    pub level: u8,
    /// Threads that compress; `None` for one per core. Has no influence on the result.
    pub workers: Option<NonZeroUsize>,
}

impl Default for Options {
    fn default() -> Self {
        Self { chunk_size: DEFAULT_CHUNK_SIZE, level: DEFAULT_LEVEL, workers: None }
    }
}

/// What was built.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Built {
    /// sha256 of the blob.
    pub digest: Digest,
    /// Bytes of the blob.
    pub size: u64,
    /// sha256 of the inflated blob, TOC included: the layer's diffID.
    pub diff_id: Digest,
    /// sha256 of the TOC's JSON.
    pub toc_digest: Digest,
    /// Bytes of the inflated blob.
    pub uncompressed_size: u64,
    /// Entries of the TOC that are not further chunks of a file; the landmark counts.
    pub entries: u64,
    /// Where in the blob the TOC's member begins.
    pub toc_offset: u64,
}

/// Why a blob could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The input is no tar stream that layers can hold.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// An entry cannot be described in a TOC.
    #[error("tar entry {name:?}: {problem}")]
    Entry {
        /// Its path, with replacement characters where it is no UTF-8.
        name: String,
        /// Why.
        problem: DescribeProblem,
    },
    /// The entries do not make a tree.
    #[error("the layer cannot be mounted lazily: {0}")]
    Toc(#[from] TocError),
    /// The chunk size or level is not possible.
    #[error("{0}")]
    Options(&'static str),
    /// The blob could not be written.
    #[error("writing the layer: {0}")]
    Output(#[source] io::Error),
}

/// Builds a blob from the tar stream `tar` and writes it to `out`.
///
/// Reads `tar` up to its end marker; what stands behind that is left to the caller. Padding of the last file
/// and end marker may be missing.
///
/// # Errors
/// [`BuildError`]; what was written by then is of no use.
pub fn build<W: Write + Send>(tar: impl Read, out: W, options: &Options) -> Result<Built, BuildError> {
    let chunk_size = match options.chunk_size {
        0 => DEFAULT_CHUNK_SIZE,
        size => size,
    };
    if chunk_size > TocLimits::default().chunk_bytes {
        return Err(BuildError::Options("the chunk size is larger than 256 MiB"));
    }
    if !(1..=12).contains(&options.level) {
        return Err(BuildError::Options("the compression level must be between 1 and 12"));
    }
    let workers = options
        .workers
        .or_else(|| thread::available_parallelism().ok())
        .map_or(1, NonZeroUsize::get)
        .min(MAX_WORKERS);
    let (written, diff) = run(tar, out, chunk_size as usize, options.level, workers)?;
    finish(written, diff, options.level)
}

/// The inflated stream so far.
#[derive(Default)]
pub(crate) struct Diff {
    hasher: Hasher,
    size: u64,
}

impl Diff {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
    }
}

/// Everything before the TOC.
fn run<W: Write + Send>(
    tar: impl Read,
    out: W,
    chunk_size: usize,
    level: u8,
    workers: usize,
) -> Result<(Written<W>, Diff), BuildError> {
    // A member waits in one of these while others are compressed or written.
    let (jobs, todo) = sync_channel::<Job>(workers);
    let (order, in_order) = sync_channel::<Ordered>(workers * 2);
    let todo = Mutex::new(todo);
    thread::scope(|scope| {
        for index in 0..workers {
            let todo = &todo;
            thread::Builder::new()
                .name(format!("deflate-{index}"))
                .spawn_scoped(scope, move || work(todo, level))
                .map_err(BuildError::Output)?;
        }
        let writer = thread::Builder::new()
            .name("write-layer".to_owned())
            .spawn_scoped(scope, move || member::write_in_order(&in_order, out))
            .map_err(BuildError::Output)?;
        let cut = cut(tar, chunk_size, jobs, order);
        // The writer's failure is what made the cutter stop, if both failed.
        let written = match writer.join() {
            Ok(written) => written.map_err(BuildError::Output)?,
            Err(_) => return Err(BuildError::Output(io::Error::other("the writing thread died"))),
        };
        Ok((written, cut?))
    })
}

fn work(todo: &Mutex<Receiver<Job>>, level: u8) {
    let mut compressor = member::compressor(level);
    loop {
        let job = todo.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        job.run(&mut compressor);
    }
}

/// Reads the tar and sends off its members. Both channels close when it returns.
fn cut(
    tar: impl Read,
    chunk_size: usize,
    jobs: SyncSender<Job>,
    order: SyncSender<Ordered>,
) -> Result<Diff, BuildError> {
    let mut archive = Reader::new(tar);
    let mut cutter = Cutter::new(chunk_size, jobs, order);
    cutter.landmark(NO_PREFETCH_LANDMARK)?;
    while let Some(entry) = archive.next_entry()? {
        cutter.entry(&entry, &mut archive.data())?;
    }
    Ok(cutter.finish())
}

/// Whether a path, cleaned, is one that the format itself puts into a layer.
fn is_reserved(path: &[u8]) -> bool {
    [TOC_NAME, PREFETCH_LANDMARK, NO_PREFETCH_LANDMARK].iter().any(|name| name.as_bytes() == path)
}

/// Writes the TOC and the footer.
fn finish<W: Write>(written: Written<W>, mut diff: Diff, level: u8) -> Result<Built, BuildError> {
    let Written { mut out, toc, entries } = written;
    let toc_offset = out.position();
    let json = toc.finish();
    let toc = Toc::parse(&json, toc_offset, &TocLimits::default())?;
    let header = member::ustar_header(TOC_NAME, json.len() as u64);
    let padding = vec![0; usize::try_from(crate::archive::padding(json.len() as u64)).unwrap_or(0)];
    // Two blocks of zeros end a tar.
    let end = [0; 2 * crate::archive::BLOCK];
    // As Go writes the header: no time, system unknown.
    let mut gzip = flate2::GzBuilder::new()
        .operating_system(255)
        .write(&mut out, flate2::Compression::new(u32::from(level.min(9))));
    for part in [header.as_slice(), &json, &padding, &end] {
        diff.update(part);
        gzip.write_all(part).map_err(BuildError::Output)?;
    }
    gzip.finish().map_err(BuildError::Output)?;
    out.write_all(&Footer { toc_offset }.to_bytes()).map_err(BuildError::Output)?;
    out.flush().map_err(BuildError::Output)?;
    let (digest, size) = out.finish();
    Ok(Built {
        digest,
        size,
        diff_id: diff.hasher.finish(),
        toc_digest: toc.digest(),
        uncompressed_size: diff.size,
        entries,
        toc_offset,
    })
}

#[cfg(test)]
mod tests;
