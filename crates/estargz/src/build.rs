//! Writing a layer from a tar stream.
//!
//! The caller's thread reads the tar and cuts it into sections: everything from one file's payload (or one
//! chunk of it) to the next. [`pipeline`] compresses sections on many threads and writes them in order; with
//! each the TOC entries whose place is known then. Where members begin depends on the input and the options
//! alone, so the blob's bytes are the same on every machine. A few batches of sections are in memory, however
//! large the layer is, and beside them the TOC.
//!
//! Header blocks are passed on as they came, with all that they hold beyond the TOC's fields. An old TOC and
//! old landmarks are left out. An entry that a lazy mount could not show is an error, and the finished TOC
//! is read back by the very code that readers use: what was built can be mounted.
//!
//! * `cut` and `order` decide what stands where; `index` collects the TOC; `finish` writes TOC and footer.
//! * `podman` does all of that in the dialect of containers/storage.

use std::io::{Read, Seek, Write};

use crate::archive::Reader;
use crate::{NO_PREFETCH_LANDMARK, PREFETCH_LANDMARK, TOC_NAME};

mod batch;
mod buffer;
mod built;
mod codec;
mod cut;
mod describe;
mod error;
mod finish;
mod index;
mod options;
mod order;
mod pipeline;
mod podman;
mod recorder;
mod room;
pub(crate) mod tar_split;
mod toc_layer;
mod ustar;

pub use built::{Built, BuiltToc};
use cut::Cutter;
pub use describe::DescribeProblem;
pub use error::BuildError;
use index::StargzIndex;
pub use options::{
    DEFAULT_CHUNK_SIZE, DEFAULT_LEVEL, DEFAULT_ZSTD_LEVEL, Format, FormatError, Options, TocPlace,
};
pub use podman::PodmanProblem;
pub use toc_layer::{TocLayer, toc_layer};

/// Builds a layer from the tar stream `tar` and writes it to `out`, its files in the order of the input.
///
/// Reads `tar` up to its end marker; what stands behind that is left to the caller, unless the diffID is to
/// be kept: then everything is read. Padding of the last file and end marker may be missing.
///
/// # Errors
/// [`BuildError`]; what was written by then is of no use.
pub fn build<W: Write + Send>(tar: impl Read, out: W, options: &Options) -> Result<Built, BuildError> {
    if options.format == Format::ZstdChunkedPodman {
        return podman::build(tar, out, options);
    }
    let codec = options.codec()?;
    let (written, ()) = pipeline::run(out, StargzIndex::new(), options.plan(codec), |feeder| {
        let mut cutter = Cutter::new(options.chunk_len(), feeder);
        if options.is_raw() {
            return cutter.raw(tar);
        }
        cutter.landmark(NO_PREFETCH_LANDMARK)?;
        let mut archive = Reader::new(tar);
        while let Some(entry) = archive.next_entry()? {
            cutter.entry(&entry, &mut archive.data())?;
        }
        if options.has_toc_entry() { Ok(()) } else { cutter.end() }
    })?;
    finish::finish(written, codec, options)
}

/// Builds a layer from the plain tar `tar`, the files that a start needs first.
///
/// `rank` is asked for every path (clean, no slash at its beginning). Those with a rank stand first, lowest
/// rank before higher ones, equal ranks as in the input, each behind its parent directories and the target
/// of its hard link; then a landmark; then everything else as in the input. Of entries with one path the
/// last counts. Reads the tar twice and keeps only names in memory.
///
/// # Errors
/// [`BuildError`]; what was written by then is of no use.
pub fn build_ordered<W: Write + Send>(
    tar: impl Read + Seek,
    out: W,
    options: &Options,
    rank: &mut dyn FnMut(&[u8]) -> Option<u32>,
) -> Result<Built, BuildError> {
    let codec = options.codec()?;
    if options.is_raw() {
        return Err(BuildError::Options(
            "a layer that keeps its diffID cannot have its files in another order",
        ));
    }
    let (written, ()) = pipeline::run(out, StargzIndex::new(), options.plan(codec), |feeder| {
        let mut cutter = Cutter::new(options.chunk_len(), feeder);
        order::cut(tar, &mut cutter, rank)?;
        if options.has_toc_entry() { Ok(()) } else { cutter.end() }
    })?;
    finish::finish(written, codec, options)
}

/// Whether a path, cleaned, is one that the format itself puts into a layer.
fn is_reserved(path: &[u8]) -> bool {
    [TOC_NAME, PREFETCH_LANDMARK, NO_PREFETCH_LANDMARK].iter().any(|name| name.as_bytes() == path)
}

#[cfg(test)]
mod tests;
