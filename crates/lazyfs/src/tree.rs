//! A layer's table of contents as the lower directory that overlayfs expects.
//!
//! Two names mean something else: `.wh.x` is shown as the whiteout `x` (a character device 0:0), and
//! `.wh..wh..opq` as an attribute of its directory.
//!
//! Not every extended attribute is shown (`tree/xattr.rs`). FUSE and EROFS both show a layer as it is described here,
//! and so they show the same tree.
//!
//! Node numbers are the TOC's inode numbers. A whiteout has bit 32 set besides: the same inode may have an
//! ordinary name too.

use estargz::{Inode, Kind, Toc, Whiteout, whiteout};

use crate::fuse::abi::{Attr, ROOT, encode_dev, libc_mode};

mod xattr;

use xattr::Room;

/// Which attribute marks a directory as opaque.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OpaqueXattr {
    /// `trusted.overlay.opaque`: overlayfs is mounted by the real root.
    #[default]
    Trusted,
    /// `user.overlay.opaque`: overlayfs is mounted with `userxattr`.
    User,
}

impl OpaqueXattr {
    const fn name(self) -> &'static [u8] {
        match self {
            Self::Trusted => b"trusted.overlay.opaque",
            Self::User => b"user.overlay.opaque",
        }
    }
}

/// Set in the number of a whiteout.
pub(crate) const WHITEOUT: u64 = 1 << 32;
const OPAQUE_NAME: &[u8] = b".wh..wh..opq";
const WHITEOUT_PREFIX: &[u8] = b".wh.";
/// What a fresh directory has on the usual file systems.
const DIRECTORY_SIZE: u64 = 4096;

/// An entry of a directory, as shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Entry<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) node: u64,
    /// Where a listing goes on after this entry.
    pub(crate) next: u64,
}

/// The view of one mount.
#[derive(Clone, Copy)]
pub(crate) struct Tree<'a> {
    toc: &'a Toc,
    opaque: OpaqueXattr,
}

impl<'a> Tree<'a> {
    pub(crate) const fn new(toc: &'a Toc, opaque: OpaqueXattr) -> Self {
        Self { toc, opaque }
    }

    fn inode(self, node: u64) -> Option<Inode<'a>> {
        self.toc.inode(u32::try_from(node & !WHITEOUT).ok()?)
    }

    /// The inode of a node that is shown as what it is.
    pub(crate) fn plain(self, node: u64) -> Option<Inode<'a>> {
        if node & WHITEOUT != 0 { None } else { self.inode(node) }
    }

    pub(crate) fn attr(self, node: u64) -> Option<Attr> {
        let inode = self.inode(node)?;
        let common = Attr {
            ino: node,
            // The kernel's FUSE takes them as signed; before 1970 they are negative.
            mtime: inode.mtime().cast_unsigned(),
            mtimensec: inode.mtime_nanos(),
            uid: inode.uid(),
            gid: inode.gid(),
            ..Attr::default()
        };
        if node & WHITEOUT != 0 {
            return Some(Attr { mode: libc_mode::CHAR, nlink: 1, ..common });
        }
        let format = match inode.kind() {
            Kind::Directory => libc_mode::DIR,
            Kind::Regular => libc_mode::FILE,
            Kind::Symlink => libc_mode::LINK,
            Kind::CharDevice => libc_mode::CHAR,
            Kind::BlockDevice => libc_mode::BLOCK,
            Kind::Fifo => libc_mode::FIFO,
        };
        // The permissions of a symbolic link are not stored by any file system of Linux.
        let permissions = if inode.kind() == Kind::Symlink { 0o777 } else { u32::from(inode.mode()) };
        Some(Attr {
            size: if inode.kind() == Kind::Directory { DIRECTORY_SIZE } else { inode.size() },
            mode: format | (permissions & libc_mode::PERMISSIONS),
            nlink: inode.nlink(),
            rdev: inode.device().map_or(0, |(major, minor)| encode_dev(major, minor)),
            ..common
        })
    }

    /// The node that directory `parent` shows under `name`.
    pub(crate) fn lookup(self, parent: u64, name: &[u8]) -> Option<u64> {
        let directory = self.plain(parent)?;
        if directory.kind() != Kind::Directory {
            return None;
        }
        match name {
            b".." => return Some(u64::from(directory.parent())),
            // Names with the prefix are never shown.
            _ if whiteout(name).is_some() => return None,
            _ => {}
        }
        let number = directory.number();
        if let Some(inode) = self.toc.lookup(number, name) {
            return Some(u64::from(inode));
        }
        let removed = self.toc.lookup(number, &[WHITEOUT_PREFIX, name].concat())?;
        Some(u64::from(removed) | WHITEOUT)
    }

    /// The entries of a directory from `offset` on, without `.` and `..`; `None` if it is no directory.
    pub(crate) fn entries(self, node: u64, offset: u64) -> Option<impl Iterator<Item = Entry<'a>>> {
        let directory = self.plain(node).filter(|inode| inode.kind() == Kind::Directory)?;
        let number = directory.number();
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        Some(directory.children().zip(1..).skip(skip).filter_map(move |((name, inode), next)| {
            let entry = |name, node| Some(Entry { name, node, next });
            match whiteout(name) {
                // What the layer itself has under that name stands before what it removes from below.
                Some(Whiteout::Removed(target)) if self.toc.lookup(number, target).is_some() => None,
                Some(Whiteout::Removed(target)) => entry(target, u64::from(inode) | WHITEOUT),
                Some(_) => None,
                None => entry(name, u64::from(inode)),
            }
        }))
    }

    /// The directory above a directory.
    pub(crate) fn parent(self, node: u64) -> u64 {
        self.plain(node).map_or(ROOT, |inode| u64::from(inode.parent()))
    }

    fn is_opaque(self, node: u64) -> bool {
        self.plain(node).is_some_and(|inode| {
            inode.kind() == Kind::Directory && self.toc.lookup(inode.number(), OPAQUE_NAME).is_some()
        })
    }

    /// The extended attributes of a node.
    pub(crate) fn xattrs(self, node: u64) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        let own = self.plain(node).into_iter().flat_map(|inode| {
            let kind = inode.kind();
            xattr::wanted(inode).filter(move |(name, value)| xattr::is_possible(kind, name, value))
        });
        let opaque = self.is_opaque(node).then_some((self.opaque.name(), &b"y"[..]));
        let mut room = Room::new();
        opaque.into_iter().chain(own).filter(move |(name, value)| room.take(name, value))
    }

    /// An extended attribute that the image may give an inode, and that is not shown because no file can have it.
    pub(crate) fn impossible_xattr(self, inode: Inode<'a>) -> Option<&'a [u8]> {
        // Both in the order of the table: a layer may have thousands for each file.
        let mut shown = self.xattrs(u64::from(inode.number())).map(|(name, _)| name).peekable();
        let _ = shown.next_if_eq(&self.opaque.name());
        let mut wanted = xattr::wanted(inode).map(|(name, _)| name);
        wanted.find(|name| shown.next_if_eq(name).is_none())
    }

    /// Bytes of all its files.
    pub(crate) fn file_bytes(self) -> u64 {
        self.toc.file_bytes()
    }

    /// Number of inodes.
    pub(crate) fn inode_count(self) -> u32 {
        self.toc.inode_count()
    }

    /// Whether any node has an access control list.
    pub(crate) fn has_acls(self) -> bool {
        let is_acl = |(name, _): (&[u8], _)| name.starts_with(b"system.posix_acl_");
        self.toc.inodes().any(|inode| inode.xattrs().any(is_acl))
    }
}
