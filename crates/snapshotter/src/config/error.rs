//! Why a configuration cannot be used, in words that name file, line and key.

use std::io;
use std::path::PathBuf;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error(
        "cannot read the snapshotter's configuration {path}: {error}; name a file in stargz-snapshotter's keys, or leave \
         it out for the defaults"
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// It is not TOML, or a value has the wrong type. The message tells the line.
    #[error("{path}: {message}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        message: String,
    },
    /// A key that nobody knows.
    #[error("{path}, line {line}: unknown key {key}{}", .nearest.map_or("; remove it".to_owned(), |key| format!(" (did you mean {key}?)")))]
    Unknown {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The key with its tables, joined by dots.
        key: String,
        /// The known key that looks most like it.
        nearest: Option<&'static str>,
    },
    /// A key that would switch verification off.
    #[error(
        "{path}, line {line}: {key} = true is refused: every byte is checked against the digest in the \
         image's manifest before a container sees it. Remove the key; images without such digests run as \
         ordinary layers"
    )]
    Unverified {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The key.
        key: String,
    },
    /// A value that cannot be followed.
    #[error("{path}: {key}: {message}")]
    Value {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What is wrong with it.
        message: String,
    },
}
