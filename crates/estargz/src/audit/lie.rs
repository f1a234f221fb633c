//! What a layer can lie about.

use std::fmt;

use content::Digest;

use super::listed::ListError;
use crate::archive::ArchiveError;
use crate::chunk::ChunkError;
use crate::tail::TailError;
use crate::toc::TocError;

/// One thing in which a layer, or what its image says about it, is not true.
#[derive(Debug, thiserror::Error)]
pub enum Lie {
    /// The blob has another length than its descriptor says.
    #[error("the blob has {found} bytes, its descriptor says {claimed}")]
    Size {
        /// What the descriptor says.
        claimed: u64,
        /// What it has.
        found: u64,
    },
    /// The blob has another digest than it was asked for by.
    #[error("the blob has the digest {found}, its descriptor says {claimed}")]
    Digest {
        /// What the descriptor says.
        claimed: Digest,
        /// What it has.
        found: Digest,
    },
    /// The blob has a TOC that cannot be read.
    #[error("{0}")]
    Tail(#[from] TailError),
    /// The image promises a TOC.
    #[error("the image promises a table of contents by {key:?}, the blob has none")]
    NoToc {
        /// The annotation.
        key: String,
    },
    /// The TOC is said to be in another image, and is not there.
    #[error("the blob says that its table of contents is in another image, and there is none for it")]
    NoExternalToc,
    /// The TOC is refused.
    #[error("{0}")]
    Toc(#[from] TocError),
    /// The TOC cannot be listed.
    #[error("table of contents, {0}")]
    List(ListError),
    /// The image pins another TOC.
    #[error("the table of contents has the digest {found}, the image pins {claimed}")]
    TocDigest {
        /// What the annotation says.
        claimed: Digest,
        /// What it has.
        found: Digest,
    },
    /// An annotation says something else than the blob.
    #[error("the annotation {key:?} says {claimed:?}, the blob says {found:?}")]
    Annotation {
        /// The annotation.
        key: String,
        /// Its value.
        claimed: String,
        /// What would be true.
        found: String,
    },
    /// Whoever unpacks the tar finds more than one TOC, or one where there must be none.
    #[error("the tar has a table of contents too many: {0:?}")]
    TwoTocs(String),
    /// The TOC that the footer names is not the one that stands in the tar.
    #[error("the table of contents that the footer names is not where the tar has it")]
    HiddenToc,
    /// The bytes are not compressed as they claim to be.
    #[error("the member at {offset} cannot be inflated: {reason}")]
    Inflate {
        /// Where it begins in the blob.
        offset: u64,
        /// What the inflater says.
        reason: String,
    },
    /// The layer inflates beyond all measure.
    #[error("the blob inflates to more than {0} bytes and was not read any further")]
    Bomb(u64),
    /// Not a tar, or one that cannot be read.
    #[error("{0}")]
    Archive(ArchiveError),
    /// A path or link of the tar leads out of the layer.
    #[error("tar, {0}")]
    Path(ListError),
    /// Something stands behind the end of the tar: some tools would read it, others not.
    #[error("the tar goes on behind its end, at {0}")]
    Trailing(u64),
    /// The tar has an entry that the TOC does not list.
    #[error("{name:?} is in the tar and not in the table of contents{}", if *.again { " so many times" } else { "" })]
    NotInToc {
        /// The entry.
        name: String,
        /// The TOC has such a name, and the tar has it more often.
        again: bool,
    },
    /// Tar and TOC have their entries in different orders: links and duplicates then mean different files.
    #[error("the tar goes on with {name:?}, the table of contents with {listed:?}")]
    Order {
        /// The entry of the tar.
        name: String,
        /// The entry of the TOC.
        listed: String,
    },
    /// The TOC lists an entry that the tar does not have.
    #[error("{name:?} is in the table of contents and not in the tar{}", if *.again { " so many times" } else { "" })]
    NotInTar {
        /// The entry.
        name: String,
        /// The tar has such a name, and the TOC has it more often.
        again: bool,
    },
    /// Tar and TOC do not say the same about an entry.
    #[error("{name:?}: the tar says {what} {tar}, the table of contents {toc}")]
    Differs {
        /// The entry.
        name: String,
        /// What they differ in.
        what: &'static str,
        /// The tar's word.
        tar: String,
        /// The TOC's.
        toc: String,
    },
    /// A file has another content than the TOC says.
    #[error("{name:?}: the file has the digest {found}, the table of contents says {claimed}")]
    FileDigest {
        /// The file.
        name: String,
        /// What the TOC says.
        claimed: Digest,
        /// What it has.
        found: Digest,
    },
    /// A part of a file has another content than the TOC says.
    #[error(
        "{name:?}: the chunk at byte {offset} has the digest {found}, the table of contents says {claimed}"
    )]
    ChunkDigest {
        /// The file.
        name: String,
        /// Where in the file the chunk begins.
        offset: u64,
        /// What the TOC says.
        claimed: Digest,
        /// What it has.
        found: Digest,
    },
    /// What the TOC calls a hole is none.
    #[error(
        "{name:?}: the table of contents says that the chunk at byte {offset} is zeros, the tar has other bytes"
    )]
    NotZeros {
        /// The file.
        name: String,
        /// Where in the file the chunk begins.
        offset: u64,
    },
    /// The TOC sends a reader elsewhere for a part of a file.
    #[error(
        "{name:?}: the chunk at byte {offset} of the file is {found} in the blob, the table of contents says {claimed}"
    )]
    ChunkPlace {
        /// The file.
        name: String,
        /// Where in the file the chunk begins.
        offset: u64,
        /// What the TOC says.
        claimed: Spot,
        /// Where the tar has it.
        found: Spot,
    },
    /// A chunk cannot be had from the bytes that a mount would fetch for it.
    #[error("{name:?}: {reason}")]
    Chunk {
        /// The file.
        name: String,
        /// Why.
        reason: ChunkError,
    },
    /// Who unpacks the tar gives the file the privileges of the hard link's header, who mounts it those of its
    /// own.
    #[error("{name:?} is a hard link to {target:?}: their {what} differ")]
    HardLink {
        /// The hard link.
        name: String,
        /// The file.
        target: String,
        /// What differs.
        what: &'static str,
    },
    /// Both landmarks, or one twice.
    #[error("the layer has more than one landmark")]
    Landmarks,
    /// The layer inflates to something else than the config claims.
    #[error("the layer inflates to {found}, the config's diffID is {claimed}")]
    DiffId {
        /// What the config says.
        claimed: Digest,
        /// What it is.
        found: Digest,
    },
    /// The tar-split data does not give the tar back.
    #[error("the tar cannot be put together again from the tar-split data: {0}")]
    TarSplit(String),
}

/// A place in a blob: a member, and a byte of what it inflates to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Spot {
    /// Offset of the member in the blob.
    pub member: u64,
    /// Inflated bytes before it in the member.
    pub inner: u64,
}

impl fmt::Display for Spot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at {}", self.member)?;
        if self.inner > 0 { write!(f, "+{}", self.inner) } else { Ok(()) }
    }
}

impl Lie {
    /// The entry that the lie is about, if it is about one.
    pub fn entry(&self) -> Option<&str> {
        match self {
            Self::NotInToc { name, .. }
            | Self::NotInTar { name, .. }
            | Self::Differs { name, .. }
            | Self::HardLink { name, .. }
            | Self::Order { name, .. }
            | Self::FileDigest { name, .. }
            | Self::ChunkDigest { name, .. }
            | Self::NotZeros { name, .. }
            | Self::ChunkPlace { name, .. }
            | Self::Chunk { name, .. }
            | Self::TwoTocs(name)
            | Self::Toc(TocError::Entry { name, .. })
            | Self::List(ListError::Entry { name, .. })
            | Self::Path(ListError::Entry { name, .. }) => Some(name),
            _ => None,
        }
    }

    /// A short word for programs, which stays when the message changes.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Size { .. } => "size",
            Self::Digest { .. } => "digest",
            Self::Tail(_) => "toc-unreadable",
            Self::NoToc { .. } | Self::NoExternalToc => "toc-missing",
            Self::Toc(_) | Self::List(_) => "toc-refused",
            Self::TocDigest { .. } => "toc-digest",
            Self::Annotation { .. } => "annotation",
            Self::TwoTocs(_) => "two-tocs",
            Self::HiddenToc => "hidden-toc",
            Self::Inflate { .. } => "inflate",
            Self::Bomb(_) => "bomb",
            Self::Archive(_) | Self::Path(_) => "tar",
            Self::Trailing(_) => "trailing",
            Self::NotInToc { .. } => "not-in-toc",
            Self::NotInTar { .. } => "not-in-tar",
            Self::Order { .. } => "order",
            Self::Differs { .. } => "differs",
            Self::FileDigest { .. } => "file-digest",
            Self::ChunkDigest { .. } | Self::NotZeros { .. } => "chunk-digest",
            Self::ChunkPlace { .. } => "chunk-place",
            Self::Chunk { .. } => "chunk",
            Self::HardLink { .. } => "hard-link",
            Self::Landmarks => "landmarks",
            Self::DiffId { .. } => "diff-id",
            Self::TarSplit(_) => "tar-split",
        }
    }
}
