//! Why a layer could not be built.

use std::io;

use super::DescribeProblem;
use crate::archive::{ArchiveError, SparseProblem};
use crate::toc::TocError;

/// Why a layer could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The input is no tar stream that layers can hold.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// An entry cannot be described in a TOC.
    #[error("tar entry \"{name}\": {problem}")]
    Entry {
        /// Its path, bytes that are no UTF-8 as `\xe9`.
        name: String,
        /// Why.
        problem: DescribeProblem,
    },
    /// The entries do not make a tree.
    #[error("the layer cannot be mounted lazily: {0}")]
    Toc(#[from] TocError),
    /// The options do not fit together, or one of them is not possible.
    #[error("{0}")]
    Options(&'static str),
    /// The layer could not be written.
    #[error("writing the layer: {0}")]
    Output(#[source] io::Error),
}

impl BuildError {
    /// Whether the layer is a tar that can be read, and only the format cannot hold it: such a layer may be
    /// left as it is. Not so for damaged input, a full disk, or options that are no use.
    pub const fn is_unconvertible(&self) -> bool {
        match self {
            Self::Archive(ArchiveError::Sparse(error)) => {
                matches!(error.problem, SparseProblem::Unknown | SparseProblem::Bomb)
            }
            Self::Archive(error) => {
                matches!(error, ArchiveError::Unsupported { .. } | ArchiveError::Ambiguous { .. })
            }
            Self::Entry { .. } | Self::Toc(_) => true,
            Self::Options(_) | Self::Output(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_that_the_format_cannot_hold_is_told_from_a_broken_one() {
        let name = || "x".to_owned();
        let problem = DescribeProblem::NotUtf8("name");
        assert!(BuildError::Entry { name: name(), problem }.is_unconvertible());
        assert!(
            BuildError::Archive(ArchiveError::Unsupported { name: name(), kind: 'V' }).is_unconvertible()
        );
        assert!(!BuildError::Archive(ArchiveError::Truncated(name())).is_unconvertible());
        assert!(!BuildError::Archive(ArchiveError::Checksum(name())).is_unconvertible());
        assert!(!BuildError::Output(io::ErrorKind::StorageFull.into()).is_unconvertible());
        assert!(!BuildError::Options("no").is_unconvertible());
    }
}
