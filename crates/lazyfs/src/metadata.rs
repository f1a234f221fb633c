//! A layer's table of contents as an EROFS metadata image.
//!
//! The image says the same as the view of the *fuse* driver ([`crate::tree`]) and says it through that very view:
//! whiteouts are character devices 0:0, opaque directories have their attribute, landmarks and other names of the
//! format are hidden, names of one inode share it. Of a file it says where in the layer's data file its bytes lie.
//! These stand there in one run from a multiple of 4 KiB on, the rest of the last block is a hole and so reads as
//! zeros, and the length of the data file is a multiple of 4 KiB: what [`crate::layout`] promises is what EROFS
//! needs, and one data file serves both drivers.
//!
//! The writer asks the view for each inode again whenever it needs it. Nothing is copied out of the table: beside the
//! image and the writer's own tables no memory is taken.
//!
//! Numbers of nodes: an inode of the table has its own, a whiteout that of its inode and the number of all inodes
//! added. The numbers that `stat` shows are others, those of places in the image.

use erofs::{Kind as Content, Node, Options, WriteError};
use estargz::{Kind, ROOT, Toc};

use crate::fuse::abi::libc_mode;
use crate::layout::Layout;
use crate::tree::{OpaqueXattr, Tree, WHITEOUT};

pub(crate) mod file;

/// The image of a layer, opaque directories being marked by `opaque`. Its UUID is the beginning of the table's digest.
///
/// # Errors
/// What cannot be described: the layer is too large.
pub(crate) fn image(toc: &Toc, layout: &Layout, opaque: OpaqueXattr) -> Result<Vec<u8>, WriteError> {
    let metadata = Metadata { layout, tree: Tree::new(toc, opaque), inodes: toc.inode_count() };
    let uuid = toc.digest().as_bytes().first_chunk().copied().unwrap_or_default();
    erofs::write(&metadata, &Options { data_len: layout.len(), uuid })
}

/// The view of a layer, as the writer wants it.
struct Metadata<'a> {
    layout: &'a Layout,
    tree: Tree<'a>,
    /// The highest number of an inode.
    inodes: u32,
}

impl<'a> Metadata<'a> {
    /// The view's number of a node.
    fn shown(&self, number: u32) -> u64 {
        match number.checked_sub(self.inodes) {
            None | Some(0) => u64::from(number),
            Some(removed) => u64::from(removed) | WHITEOUT,
        }
    }

    /// The writer's number of a node. Where numbers are too few, which no table comes near, it is one that the writer
    /// refuses.
    fn number(&self, shown: u64) -> u32 {
        let inode = u32::try_from(shown & !WHITEOUT).unwrap_or(u32::MAX);
        if shown & WHITEOUT == 0 { inode } else { inode.saturating_add(self.inodes) }
    }

    fn content(&self, number: u32) -> Option<Content<'a>> {
        // A number beyond those of the table is a whiteout's.
        let Some(inode) = self.tree.plain(self.shown(number)) else { return Some(Content::CharDevice(0, 0)) };
        let (major, minor) = inode.device().unwrap_or_default();
        Some(match inode.kind() {
            Kind::Directory => Content::Directory,
            Kind::Regular => {
                let first = inode.chunk_numbers().next();
                let address = first.map_or(Some(0), |chunk| self.layout.start(chunk))?;
                Content::Regular { size: inode.size(), address }
            }
            Kind::Symlink => Content::Symlink(inode.link_target()?),
            Kind::CharDevice => Content::CharDevice(major, minor),
            Kind::BlockDevice => Content::BlockDevice(major, minor),
            Kind::Fifo => Content::Fifo,
        })
    }
}

impl erofs::Tree for Metadata<'_> {
    fn bound(&self) -> u32 {
        self.inodes.saturating_mul(2).saturating_add(1)
    }

    fn root(&self) -> u32 {
        ROOT
    }

    fn node(&self, number: u32) -> Option<Node<'_>> {
        let attr = self.tree.attr(self.shown(number))?;
        Some(Node {
            kind: self.content(number)?,
            mode: u16::try_from(attr.mode & libc_mode::PERMISSIONS).ok()?,
            uid: attr.uid,
            gid: attr.gid,
            mtime: attr.mtime.cast_signed(),
            mtime_nanos: attr.mtimensec,
        })
    }

    fn children(&self, number: u32) -> impl Iterator<Item = (&[u8], u32)> {
        let entries = self.tree.entries(self.shown(number), 0).into_iter().flatten();
        entries.map(|entry| (entry.name, self.number(entry.node)))
    }

    fn xattrs(&self, number: u32) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.tree.xattrs(self.shown(number))
    }
}

#[cfg(test)]
mod tests;
