//! The eStargz layer format: an ordinary `tar.gz` in which every file can be found and checked alone.
//!
//! A blob is a row of gzip members. Each non-empty file starts a member of its own (a large one a member
//! per chunk), so that a file's bytes are one range of the blob. The last tar entry, `stargz.index.json`,
//! is the table of contents ([`Toc`]): names, attributes, and for every chunk its place and sha256. An
//! empty gzip member of fixed size, the [`footer`], says where that entry's member begins. To a tool that
//! knows nothing of this the blob is a tar.gz with two files too many.
//!
//! zstd:chunked is the same idea in zstd frames, in two dialects: that of stargz-snapshotter has the same
//! TOC, that of containers/storage (podman) one with holes. TOC and footer hide in skippable frames.
//!
//! * Reading: [`open_tail`] finds the TOC in a blob's last bytes, whichever of these it is, [`Toc::parse`]
//!   turns it into an inode table, [`inflate_chunk`] inflates and verifies what was fetched.
//! * Writing: [`build`] turns a tar stream into a blob; its bytes do not depend on the number of cores.
//! * Auditing: [`audit::audit`] holds a blob's TOC, its tar and what an image says of it against each other.
//!
//! Everything here is synchronous and knows no network and no files. All input is hostile: sizes are
//! bounded before memory is given, arithmetic is checked, and whatever does not fit is an error that names
//! the entry. A refused layer costs laziness and nothing else: it can still be unpacked.

pub mod archive;
pub mod audit;
pub mod footer;
pub mod toc;

mod build;
mod chunk;
mod decompress;
mod path;
mod tail;
mod whiteout;

pub use build::{
    BuildError, Built, BuiltToc, DEFAULT_CHUNK_SIZE, DEFAULT_LEVEL, DEFAULT_ZSTD_LEVEL, DescribeProblem,
    Format, FormatError, Options, PodmanProblem, TocLayer, TocPlace, build, build_ordered, toc_layer,
};
pub use chunk::{ChunkError, inflate_chunk, inflate_chunk_in};
pub use decompress::{Compression, Decompressor, decompress};
pub use tail::{BlobKind, TailError, TailState, open_tail, read_toc_layer};
pub use toc::{Chunk, Inode, Kind, Landmark, NO_DIGEST, ROOT, Toc, TocError, TocLimits};
pub use whiteout::{Whiteout, whiteout};

/// Annotation of a layer's descriptor that pins its TOC: the sha256 of the uncompressed JSON as stored.
/// containerd hands it to the snapshotter as a label, because of its prefix.
pub const TOC_DIGEST_ANNOTATION: &str = "containerd.io/snapshot/stargz/toc.digest";

/// Annotation with the size of the inflated blob in bytes, decimal.
pub const UNCOMPRESSED_SIZE_ANNOTATION: &str = "io.containers.estargz.uncompressed-size";

/// Name of the tar entry that holds the TOC.
pub const TOC_NAME: &str = "stargz.index.json";

/// Name of the landmark behind the files that a start needs: prefetch everything before it.
pub const PREFETCH_LANDMARK: &str = ".prefetch.landmark";

/// Name of the landmark that says: prefetch nothing.
pub const NO_PREFETCH_LANDMARK: &str = ".no.prefetch.landmark";
