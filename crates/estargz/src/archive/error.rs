//! Why a tar stream cannot be read.

use std::io;

use super::sparse::SparseError;

/// Why a tar stream could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The stream below failed.
    #[error("reading the tar stream: {0}")]
    Io(#[from] io::Error),
    /// The stream ends inside an entry.
    #[error("the tar stream ends in the middle of \"{0}\" or of the header behind it")]
    Truncated(String),
    /// A header whose checksum is wrong.
    #[error("this is not a tar stream, or it is damaged: wrong checksum of the header after \"{0}\"")]
    Checksum(String),
    /// Something follows the first of the two blocks of zeros that end a tar: readers would not agree on
    /// where it ends.
    #[error("the end marker behind \"{0}\" is followed by something else: the tar stream is damaged")]
    EndMarker(String),
    /// A field that is no number, or too large a one.
    #[error("tar entry \"{name}\": {field} is not a number that fits")]
    Number {
        /// Path of the entry, as far as it is known.
        name: String,
        /// The field.
        field: &'static str,
    },
    /// A PAX header that cannot be read.
    #[error("tar entry \"{name}\": malformed PAX header: {problem}")]
    Pax {
        /// Path of the entry, as far as it is known.
        name: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// Extended headers that contradict or repeat each other: which one counts differs between readers.
    #[error("tar entry \"{name}\": ambiguous headers: {problem}")]
    Ambiguous {
        /// Path of the entry, as far as it is known.
        name: String,
        /// What contradicts what.
        problem: &'static str,
    },
    /// PAX headers or long names beyond 1 MiB.
    #[error("tar entry \"{0}\": extended headers are larger than 1 MiB")]
    LongExtension(String),
    /// A sparse file that cannot be expanded.
    #[error(transparent)]
    Sparse(#[from] SparseError),
    /// A type of entry that layers cannot hold.
    #[error("tar entry \"{name}\" has type '{kind}'{}, which layers cannot hold", meaning(*kind))]
    Unsupported {
        /// Path of the entry.
        name: String,
        /// The type byte.
        kind: char,
    },
}

/// What tools mean by a type byte.
const fn meaning(kind: char) -> &'static str {
    match kind {
        'D' => " (a directory with a list of its names, from an incremental backup)",
        'M' => " (the continuation of a file in another volume)",
        'V' => " (the label of a volume)",
        'N' => " (old GNU long names)",
        'X' => " (Solaris extended header)",
        'A' => " (Solaris access control list)",
        _ => "",
    }
}
