//! Why a read failed: whose fault it is, and whether trying again can help.

use std::fmt;

/// Who is to blame for a failed read. Decides who is charged and who is asked next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The registry, or the way to it.
    Origin,
    /// Another node of the cluster.
    Peer,
    /// This machine: disk, memory, shutdown.
    Local,
    /// Whoever asked: a range beyond the end, a name that is no name.
    Caller,
}

/// What kind of failure it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReadErrorKind {
    /// Nobody has such content (HTTP 404).
    NotFound,
    /// The credentials, or their absence, were not accepted (HTTP 401).
    Unauthorized,
    /// The credentials were accepted and do not suffice (HTTP 403).
    Forbidden,
    /// Policy of this node refuses to ask that place.
    Refused,
    /// Nobody who could answer can be reached now, or in time.
    Unavailable,
    /// Bytes arrived that are not what their name says.
    Corrupt,
    /// The range does not lie inside the content.
    OutOfRange,
    /// The disk is full.
    NoSpace,
    /// The reader went away, or the process is shutting down.
    Cancelled,
    /// Anything else, told by the message.
    Other,
}

/// A failed read. Carries what was being done, in words that a person can act on.
#[derive(Clone)]
pub struct ReadError {
    fault: Fault,
    kind: ReadErrorKind,
    message: String,
    status: Option<u16>,
}

impl ReadError {
    /// An error that blames `fault`. `message` says what was being done and what happened: lower case,
    /// no full stop.
    pub fn new(fault: Fault, kind: ReadErrorKind, message: impl Into<String>) -> Self {
        Self { fault, kind, message: message.into(), status: None }
    }

    /// Shorthand for a fault of the origin.
    pub fn origin(kind: ReadErrorKind, message: impl Into<String>) -> Self {
        Self::new(Fault::Origin, kind, message)
    }

    /// Shorthand for a fault of a peer.
    pub fn peer(kind: ReadErrorKind, message: impl Into<String>) -> Self {
        Self::new(Fault::Peer, kind, message)
    }

    /// Shorthand for a fault of this machine.
    pub fn local(kind: ReadErrorKind, message: impl Into<String>) -> Self {
        Self::new(Fault::Local, kind, message)
    }

    /// Adds the HTTP status that the origin answered, so that a proxy can pass it on.
    #[must_use]
    pub fn with_status(mut self, status: u16) -> Self {
        self.status = Some(status);
        self
    }

    /// Puts what the caller was doing before the message.
    #[must_use]
    pub fn context(mut self, doing: impl fmt::Display) -> Self {
        self.message = format!("{doing}: {}", self.message);
        self
    }

    /// Who is to blame.
    pub const fn fault(&self) -> Fault {
        self.fault
    }

    /// What kind of failure it is.
    pub const fn kind(&self) -> ReadErrorKind {
        self.kind
    }

    /// The HTTP status of the origin, if it answered one.
    pub const fn status(&self) -> Option<u16> {
        self.status
    }

    /// Whether the same read may succeed later, or from another source.
    pub const fn is_transient(&self) -> bool {
        matches!(self.kind, ReadErrorKind::Unavailable | ReadErrorKind::Corrupt | ReadErrorKind::NoSpace)
    }
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Debug for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}/{:?}: {}", self.fault, self.kind, self.message)
    }
}

impl std::error::Error for ReadError {}

impl From<std::io::Error> for ReadError {
    fn from(error: std::io::Error) -> Self {
        let kind = match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ReadErrorKind::NoSpace,
            std::io::ErrorKind::NotFound => ReadErrorKind::NotFound,
            _ => ReadErrorKind::Other,
        };
        Self::local(kind, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_recognised_and_local() {
        let error = ReadError::from(std::io::Error::from(std::io::ErrorKind::StorageFull));
        assert_eq!((error.fault(), error.kind()), (Fault::Local, ReadErrorKind::NoSpace));
    }

    #[test]
    fn context_stands_before_the_message() {
        let error = ReadError::origin(ReadErrorKind::NotFound, "the registry says 404").with_status(404);
        let error = error.context("layer sha256:00");
        assert_eq!(error.to_string(), "layer sha256:00: the registry says 404");
        assert_eq!(error.status(), Some(404));
        assert!(!error.is_transient());
    }
}
