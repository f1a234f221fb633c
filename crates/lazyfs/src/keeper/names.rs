//! The names under which a worker finds what the one before it kept. The keeper knows them too: it must tell what it
//! refuses for, and what nothing needs any more.

/// The fanotify group.
pub(crate) const GROUP: &str = "group";
/// The journal of its unanswered events.
pub(crate) const JOURNAL: &str = "journal";
/// What the name of a data file's descriptor begins with; the digest of the layer's table of contents follows.
pub(crate) const DATA: &str = "data-";
/// What the name of a FUSE mount's device begins with.
pub(crate) const FUSE: &str = "fuse-";
