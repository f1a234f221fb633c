//! What is to be written: a tree of nodes that the caller has and knows by numbers of its own.
//!
//! The writer asks for each node two or three times and keeps none of it, so a table of contents can be written
//! without a copy of it.

/// What a node is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind<'a> {
    /// A directory.
    Directory,
    /// A regular file.
    Regular {
        /// Bytes.
        size: u64,
        /// Where in the data file they begin: a multiple of [`crate::BLOCK`]. Means nothing if there are none.
        address: u64,
    },
    /// A symbolic link, and where it leads.
    Symlink(&'a [u8]),
    /// A character device, by major and minor number. 0:0 is what overlayfs takes for a whiteout.
    CharDevice(u32, u32),
    /// A block device, likewise.
    BlockDevice(u32, u32),
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// A node without its names, its children and its extended attributes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Node<'a> {
    /// What it is.
    pub kind: Kind<'a>,
    /// Permission bits with setuid, setgid and sticky (07777), without the type.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time in seconds since 1970; may be negative. It is shown as the other times too.
    pub mtime: i64,
    /// Nanoseconds after that, less than 1,000,000,000.
    pub mtime_nanos: u32,
}

impl Node<'_> {
    /// What overlayfs takes for the absence of a name that lower layers have.
    pub const WHITEOUT: Self =
        Self { kind: Kind::CharDevice(0, 0), mode: 0, uid: 0, gid: 0, mtime: 0, mtime_nanos: 0 };
}

/// A tree of nodes.
///
/// Must answer the same whenever it is asked: an image is made in several passes.
pub trait Tree {
    /// All numbers of nodes are less than this. The writer keeps 4 bytes for each, used or not.
    fn bound(&self) -> u32;

    /// Number of the root, which is a directory.
    fn root(&self) -> u32;

    /// The node of a number; `None` if there is none.
    fn node(&self, number: u32) -> Option<Node<'_>>;

    /// Names and nodes in a directory, in any order, without `.` and `..`. A node that comes several times, here
    /// or in several directories, has several names. Not asked of anything but directories.
    fn children(&self, number: u32) -> impl Iterator<Item = (&[u8], u32)>;

    /// Names, with their prefix, and values of a node's extended attributes, in any order.
    fn xattrs(&self, number: u32) -> impl Iterator<Item = (&[u8], &[u8])>;
}
