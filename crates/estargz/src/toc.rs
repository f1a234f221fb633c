//! The table of contents of a layer as a compact table of inodes.
//!
//! A layer can have hundreds of thousands of files and a node dozens of layers, so an inode costs 56 bytes,
//! a directory entry 12, a chunk 64, and all names stand in one string. Inodes are numbered from 1 (the
//! root) in the order of a depth-first walk; hard links are names of one inode. Directory entries are sorted
//! by name, so that a lookup is a binary search and a directory stream has stable positions.
//!
//! `toc/schema.rs` reads the JSON entry by entry, `toc/parse.rs` checks each, `toc/tree.rs` makes the table of
//! what they found, `toc/json.rs` writes entries as Go's tools do, [`pack`] keeps a table on disk.

use content::{ByteRange, Digest};

use crate::path::PathProblem;

mod inode;
pub(crate) mod json;
mod owners;
pub mod pack;
mod parse;
mod schema;
mod tree;

pub use inode::Inode;
pub(crate) use parse::is_overlay_xattr;

/// Number of the root's inode.
pub const ROOT: u32 = 1;

/// What an inode is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file.
    Regular,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
}

/// How large a TOC may be. The defaults let through everything seen in the wild, ten times over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TocLimits {
    /// Bytes of JSON.
    pub json_bytes: u64,
    /// Entries: chunks too, and the directories that paths imply.
    pub entries: u32,
    /// Inflated bytes of one chunk, and bytes before it in its member: both must be inflated to read it.
    pub chunk_bytes: u32,
    /// Take chunks without a digest too, as legacy stargz has them: to look at such a table, never to mount
    /// the layer. [`crate::inflate_chunk`] refuses those chunks.
    pub unverified: bool,
}

impl Default for TocLimits {
    fn default() -> Self {
        // About 370 bytes of JSON are usual per file; tools write chunks of 4 MiB.
        Self { json_bytes: 512 << 20, entries: 4_000_000, chunk_bytes: 256 << 20, unverified: false }
    }
}

/// What is wrong with an entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryProblem {
    /// The name is no path inside the layer.
    #[error("{0}")]
    Path(#[from] PathProblem),
    /// The type is unknown.
    #[error("unknown type {0:?}")]
    Type(String),
    /// A number is negative or too large.
    #[error("{0} is out of range")]
    Range(&'static str),
    /// The modification time is not RFC 3339.
    #[error("the modification time is malformed")]
    Time,
    /// A symbolic link that leads nowhere a link can lead.
    #[error("the link target is empty, too long, or has a NUL byte")]
    Link,
    /// An extended attribute that no file can have.
    #[error("the extended attribute {0:?} is malformed or too large")]
    Xattr(String),
    /// A digest is missing.
    #[error("a chunk has no digest, so it could not be verified")]
    NoDigest,
    /// A digest is no sha256.
    #[error("{0}")]
    Digest(#[from] content::DigestError),
    /// The digest of a file and that of its only chunk differ, or an empty file has that of something else.
    #[error("the digest of the file contradicts that of its content")]
    DigestsDiffer,
    /// A chunk of a type that is not known.
    #[error("unknown type of chunk {0:?}")]
    ChunkType(String),
    /// The chunks do not cover the file exactly, in order.
    #[error("its chunks do not cover the file exactly")]
    Tiling,
    /// A chunk that follows no file, or another one.
    #[error("a chunk does not follow its file")]
    StrayChunk,
    /// A chunk that does not lie between the beginning of the blob and the TOC.
    #[error("a chunk lies outside the payload")]
    OutsidePayload,
    /// A chunk beyond the limit.
    #[error("a chunk is larger than the limit")]
    LargeChunk,
    /// Two chunks share bytes.
    #[error("its bytes overlap those of another file")]
    Overlap,
    /// A hard link to nothing.
    #[error("it is a hard link to {0:?}, which is not in the layer")]
    MissingTarget(String),
    /// A hard link to a directory.
    #[error("it is a hard link to the directory {0:?}")]
    DirectoryTarget(String),
    /// A hard link to itself, or to something that comes after it: unpacking would fail, or find another
    /// file of that name.
    #[error("it is a hard link to {0:?}, which does not come before it")]
    LaterTarget(String),
    /// Something is below it, and it is no directory.
    #[error("it is not a directory, but other entries lie below it")]
    NotDirectory,
}

/// Why a TOC is refused.
#[derive(Debug, thiserror::Error)]
pub enum TocError {
    /// Not the JSON of a TOC.
    #[error("the table of contents is malformed: {0}")]
    Json(#[from] serde_json::Error),
    /// A version of the format that is not known.
    #[error("the table of contents has version {0}, only 1 is known")]
    Version(i64),
    /// More than the limit.
    #[error("the table of contents has more {what} than the limit of {limit}")]
    TooLarge {
        /// What there is too much of.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// An entry that cannot stand in a layer.
    #[error("table of contents, entry {name:?}: {problem}")]
    Entry {
        /// Its name.
        name: String,
        /// What is wrong with it.
        problem: EntryProblem,
    },
}

/// What the layer's landmark says about prefetching.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Landmark {
    /// There is none.
    Absent,
    /// Prefetch nothing.
    NoPrefetch,
    /// Prefetch the blob up to this offset.
    Prefetch(u64),
}

/// One verifiable part of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Chunk {
    /// The file's inode.
    pub inode: u32,
    /// Where in the file it begins.
    pub file_offset: u64,
    /// Bytes of the file.
    pub len: u32,
    /// The compressed bytes in the blob that are needed to inflate it. They begin at a gzip member or zstd
    /// frame. Chunks of small files may share one, and so their extents overlap. Empty for a chunk of zeros.
    pub blob: ByteRange,
    /// Inflated bytes of the member that stand before it.
    pub inner_offset: u32,
    /// sha256 of the inflated bytes. All zeros ([`NO_DIGEST`]) if the table does not say: a chunk of zeros,
    /// or one that [`TocLimits::unverified`] let through.
    pub digest: Digest,
}

impl Chunk {
    /// Whether it is nothing but zeros, and no bytes of the blob are needed to know them.
    pub const fn is_zeros(&self) -> bool {
        self.blob.is_empty()
    }
}

/// Stands for a digest that the table does not give. No bytes are known whose sha256 it is.
pub const NO_DIGEST: Digest = Digest::from_bytes([0; 32]);

/// An inode as it is kept. `first` and `count` are a run of chunks (file), of directory entries (directory)
/// or of bytes in `strings` (symbolic link), or major and minor number (device).
#[derive(Clone, Copy, Debug)]
struct Node {
    size: u64,
    mtime: i64,
    uid: u32,
    gid: u32,
    first: u32,
    count: u32,
    nlink: u32,
    parent: u32,
    xattr_first: u32,
    xattr_count: u16,
    mode: u16,
    /// Number in `owners`, plus 1; 0 if there is no name.
    user: u16,
    group: u16,
    kind: Kind,
}

/// A run of bytes in `strings`.
#[derive(Clone, Copy, Debug)]
struct Span {
    at: u32,
    len: u32,
}

#[derive(Clone, Copy, Debug)]
struct Child {
    name_at: u32,
    inode: u32,
    name_len: u8,
}

#[derive(Clone, Copy, Debug)]
struct StoredChunk {
    file_offset: u64,
    blob_start: u64,
    blob_len: u32,
    len: u32,
    inner_offset: u32,
    inode: u32,
    digest: Digest,
}

/// The table of contents of a layer.
#[derive(Debug)]
pub struct Toc {
    digest: Digest,
    payload_end: u64,
    landmark: Landmark,
    nodes: Vec<Node>,
    children: Vec<Child>,
    chunks: Vec<StoredChunk>,
    xattrs: Vec<(Span, Span)>,
    strings: Vec<u8>,
    /// Names of users and groups.
    owners: Vec<Span>,
    /// Digests of whole files, ascending by inode: of those alone for which their only chunk does not tell.
    digests: Vec<(u32, Digest)>,
    /// Fractions of modification times, ascending by inode: of those alone that have one.
    nanos: Vec<(u32, u32)>,
    file_bytes: u64,
}

impl Toc {
    /// Reads and checks the TOC `json`, of either schema, of a blob whose payload ends at `payload_end`.
    ///
    /// # Errors
    /// [`TocError`], naming the first entry that is wrong.
    pub fn parse(json: &[u8], payload_end: u64, limits: &TocLimits) -> Result<Self, TocError> {
        parse::parse(json, payload_end, limits)
    }

    /// sha256 of the JSON as stored: the TOC digest of the layer's annotation.
    pub const fn digest(&self) -> Digest {
        self.digest
    }

    /// Where in the blob the payload ends and the TOC, or the footer of an external one, begins.
    pub const fn payload_end(&self) -> u64 {
        self.payload_end
    }

    /// The layer's landmark.
    pub const fn landmark(&self) -> Landmark {
        self.landmark
    }

    /// Bytes of all regular files, hard links counted once.
    pub const fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// Number of inodes. They are numbered from [`ROOT`] without gaps.
    pub fn inode_count(&self) -> u32 {
        u32::try_from(self.nodes.len()).unwrap_or(u32::MAX)
    }

    /// The inode of this number.
    pub fn inode(&self, number: u32) -> Option<Inode<'_>> {
        let index = usize::try_from(number.checked_sub(ROOT)?).ok()?;
        self.nodes.get(index).map(|node| Inode { toc: self, node, number })
    }

    /// All inodes, ascending by number.
    pub fn inodes(&self) -> impl Iterator<Item = Inode<'_>> {
        self.nodes.iter().zip(ROOT..).map(|(node, number)| Inode { toc: self, node, number })
    }

    /// The inode that directory `parent` has under `name`.
    pub fn lookup(&self, parent: u32, name: &[u8]) -> Option<u32> {
        let children = self.inode(parent)?.stored_children();
        let at = children.binary_search_by(|child| self.child_name(child).cmp(name)).ok()?;
        children.get(at).map(|child| child.inode)
    }

    /// The inode at `path` (any spelling; symbolic links are not followed).
    pub fn find(&self, path: &[u8]) -> Option<u32> {
        let mut parts = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".");
        parts.try_fold(ROOT, |inode, part| self.lookup(inode, part))
    }

    /// Number of chunks of the layer. They are numbered from 0 in the order of the TOC, which is nearly
    /// always that of the blob; those of one file are neighbours.
    pub fn chunk_count(&self) -> u32 {
        u32::try_from(self.chunks.len()).unwrap_or(u32::MAX)
    }

    /// The chunk of this number.
    pub fn chunk(&self, number: u32) -> Option<Chunk> {
        self.chunks.get(usize::try_from(number).ok()?).map(StoredChunk::public)
    }

    /// Numbers of the chunks that hold `range` of the file `inode`. Bytes beyond its end are in none.
    pub fn chunks_of(&self, inode: u32, range: ByteRange) -> std::ops::Range<u32> {
        let Some(inode) = self.inode(inode).filter(|inode| inode.kind() == Kind::Regular) else {
            return 0..0;
        };
        let end = range.end.min(inode.size());
        match (inode.chunk_at(range.start), end.checked_sub(1).and_then(|last| inode.chunk_at(last))) {
            (Some(first), Some(last)) if range.start < end => first..last.saturating_add(1),
            _ => 0..0,
        }
    }

    /// All chunks, ascending by number.
    pub fn chunks(&self) -> impl ExactSizeIterator<Item = Chunk> {
        self.chunks.iter().map(StoredChunk::public)
    }

    /// Bytes of memory that the table takes.
    pub fn memory(&self) -> usize {
        self.nodes.capacity() * size_of::<Node>()
            + self.children.capacity() * size_of::<Child>()
            + self.chunks.capacity() * size_of::<StoredChunk>()
            + self.xattrs.capacity() * size_of::<(Span, Span)>()
            + self.owners.capacity() * size_of::<Span>()
            + self.digests.capacity() * size_of::<(u32, Digest)>()
            + self.nanos.capacity() * size_of::<(u32, u32)>()
            + self.strings.capacity()
    }

    fn string(&self, span: Span) -> &[u8] {
        let at = span.at as usize;
        self.strings.get(at..at + span.len as usize).unwrap_or_default()
    }

    fn child_name(&self, child: &Child) -> &[u8] {
        self.string(Span { at: child.name_at, len: u32::from(child.name_len) })
    }
}

impl StoredChunk {
    fn public(&self) -> Chunk {
        Chunk {
            inode: self.inode,
            file_offset: self.file_offset,
            len: self.len,
            blob: ByteRange::at(self.blob_start, u64::from(self.blob_len)),
            inner_offset: self.inner_offset,
            digest: self.digest,
        }
    }
}

#[cfg(test)]
mod tests;
