//! Why containerd could not be asked, or what it said instead of an answer.

use std::path::PathBuf;

use tonic::{Code, Status};

/// A conversation with containerd that failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// Nobody answers at the socket.
    #[error("no containerd answers at {}: {reason}", .address.display())]
    Unreachable {
        /// The socket that was tried.
        address: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// It answers, and not with what was asked for.
    #[error("{doing}: containerd at {} answers: {reason}", .address.display())]
    Refused {
        /// What was being done.
        doing: String,
        /// Its socket.
        address: PathBuf,
        /// What it said.
        reason: String,
    },
    /// What it keeps is not of the form that it must have.
    #[error("{what}: containerd at {} keeps something else: {reason}", .address.display())]
    Malformed {
        /// What was looked at.
        what: String,
        /// Its socket.
        address: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// Whether containerd says that it has no such thing.
pub fn is_not_found(status: &Status) -> bool {
    status.code() == Code::NotFound
}

/// containerd's words, on one line and not too many.
pub fn words(status: &Status) -> String {
    const MOST: usize = 300;
    let text: String = status.message().chars().filter(|c| !c.is_control()).take(MOST).collect();
    if text.is_empty() { format!("{:?}", status.code()) } else { text }
}

/// The reason at the bottom of an error.
pub(crate) fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containerds_words_stay_on_one_line() {
        assert_eq!(words(&Status::not_found("no\nsuch\u{1b}[2J thing")), "nosuch[2J thing");
        assert_eq!(words(&Status::unavailable("")), "Unavailable");
        assert_eq!(words(&Status::internal("x".repeat(10_000))).len(), 300);
    }
}
