//! Why a place could not be read or written, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

use content::{Digest, ReadError};
use registry::RegistryError;

use super::Place;

/// A place that could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// A conversation with a registry failed; the message says how to go on.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A conversation with containerd failed.
    #[error("{doing}: containerd at {} answers: {reason}", .address.display())]
    Containerd {
        /// What was being done.
        doing: String,
        /// Its socket.
        address: PathBuf,
        /// What it said.
        reason: String,
    },
    /// containerd is not to be reached.
    #[error(
        "no containerd answers at {}: {reason}; is it running, may you use its socket, or is it elsewhere (--address)?",
        .address.display()
    )]
    NoContainerd {
        /// The socket that was tried.
        address: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// A blob could not be read.
    #[error("reading {digest} from {place}: {reason}")]
    Read {
        /// Where from.
        place: String,
        /// The blob.
        digest: Digest,
        /// What happened.
        reason: ReadError,
    },
    /// A file could not be read or written.
    #[error("{doing} {}: {reason}", .path.display())]
    File {
        /// What was being done.
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system says.
        reason: io::Error,
    },
    /// There is no room.
    #[error("no room left in {}: free some space, or name another directory{}", .dir.display(), if *.temporary { " by TMPDIR" } else { "" })]
    DiskFull {
        /// The directory.
        dir: PathBuf,
        /// Whether it is where temporary files go.
        temporary: bool,
    },
    /// There is no such image.
    #[error("{place}: there is no such image{}", hint_available(.available))]
    NotFound {
        /// Where it was looked for.
        place: String,
        /// Images that are there; may be empty if nobody can tell.
        available: Vec<String>,
    },
    /// The place holds several images, and none was named.
    #[error("{place} holds {} images: name one of them, {}", .available.len(), listed(.available))]
    Ambiguous {
        /// The place.
        place: String,
        /// The images that are there.
        available: Vec<String>,
    },
    /// A blob that the image names is not there.
    #[error("{place} lacks {digest}, which the image names: {hint}")]
    MissingBlob {
        /// Where it was looked for.
        place: String,
        /// The blob.
        digest: Digest,
        /// What to do.
        hint: &'static str,
    },
    /// The bytes are not what their descriptor says.
    #[error("{place}: {digest} is damaged: {reason}")]
    Damaged {
        /// Where it is.
        place: String,
        /// The blob.
        digest: Digest,
        /// What is wrong with it.
        reason: String,
    },
    /// Something at the place is not of the form that it must have.
    #[error("{place}: {what} is malformed: {reason}")]
    Malformed {
        /// The place.
        place: String,
        /// Which part of it.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The place cannot be used in this way.
    #[error("{place} {reason}")]
    Unsupported {
        /// The place.
        place: String,
        /// Why, and what can be done instead.
        reason: String,
    },
    /// The process is shutting down.
    #[error("interrupted")]
    Interrupted,
}

impl PlaceError {
    /// `place` cannot be used in this way; `reason` goes on from its name.
    pub(crate) fn unsupported(place: &Place, reason: impl Into<String>) -> Self {
        Self::Unsupported { place: place.to_string(), reason: reason.into() }
    }

    /// What the system said about `path`.
    pub(crate) fn file(doing: &'static str, path: &Path, reason: io::Error) -> Self {
        match reason.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                let dir = path.parent().unwrap_or(path);
                let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
                Self::DiskFull { dir: dir.to_owned(), temporary: false }
            }
            _ => Self::File { doing, path: path.to_owned(), reason },
        }
    }

    /// Whether the image, or a blob of it, is not there: another answer than that nobody could tell.
    pub fn is_not_found(&self) -> bool {
        match self {
            Self::NotFound { .. } | Self::MissingBlob { .. } => true,
            Self::Registry(RegistryError::Status { status, .. }) => *status == 404,
            _ => false,
        }
    }
}

fn hint_available(available: &[String]) -> String {
    if available.is_empty() { String::new() } else { format!("; there is {}", listed(available)) }
}

/// Somebody else's words, fit for a message of one line.
pub(crate) fn shorten(text: &str) -> String {
    const MOST: usize = 80;
    text.chars().filter(|c| !c.is_control()).take(MOST).collect()
}

/// At most ten names.
fn listed(available: &[String]) -> String {
    const MOST: usize = 10;
    let mut text = available.iter().take(MOST).map(|name| shorten(name)).collect::<Vec<_>>().join(", ");
    if available.len() > MOST {
        text.push_str(", …");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_by_its_directory() {
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let error = PlaceError::file("writing beside", Path::new("image.tar"), full()).to_string();
        assert!(error.starts_with("no room left in .: "), "{error}");
        let error = PlaceError::file("writing beside", Path::new("/a/image.tar"), full()).to_string();
        assert!(error.starts_with("no room left in /a: "), "{error}");
    }

    /// They are somebody else's words.
    #[test]
    fn names_of_images_stay_on_one_line() {
        let available = vec!["a\nb\u{1b}[2J".to_owned(), "x".repeat(100_000)];
        let error = PlaceError::Ambiguous { place: "oci:dir".to_owned(), available }.to_string();
        assert!(!error.contains(char::is_control) && error.len() < 1000, "{error}");
    }
}
