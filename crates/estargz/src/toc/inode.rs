//! Reading an inode of the table.

use content::Digest;

use super::{Child, Chunk, Kind, NO_DIGEST, Node, Span, StoredChunk, Toc};

/// An inode of a [`Toc`].
#[derive(Clone, Copy, Debug)]
pub struct Inode<'a> {
    pub(super) toc: &'a Toc,
    pub(super) node: &'a Node,
    pub(super) number: u32,
}

impl<'a> Inode<'a> {
    /// Its number.
    pub const fn number(&self) -> u32 {
        self.number
    }

    /// What it is.
    pub const fn kind(&self) -> Kind {
        self.node.kind
    }

    /// Permission bits with setuid, setgid and sticky (07777), without the type.
    pub const fn mode(&self) -> u16 {
        self.node.mode
    }

    /// Owner.
    pub const fn uid(&self) -> u32 {
        self.node.uid
    }

    /// Group.
    pub const fn gid(&self) -> u32 {
        self.node.gid
    }

    /// Name of the owner, if the table has one for its number. It counts for nothing in the mounted layer.
    pub fn user(&self) -> Option<&'a [u8]> {
        self.owner(self.node.user)
    }

    /// Name of the group, likewise.
    pub fn group(&self) -> Option<&'a [u8]> {
        self.owner(self.node.group)
    }

    fn owner(&self, number: u16) -> Option<&'a [u8]> {
        let toc = self.toc;
        toc.owners.get(usize::from(number).checked_sub(1)?).map(|name| toc.string(*name))
    }

    /// Modification time in whole seconds since 1970, rounded down.
    pub const fn mtime(&self) -> i64 {
        self.node.mtime
    }

    /// Nanoseconds of the modification time, to be added to [`Inode::mtime`]. Most tools write none: eStargz rounds to
    /// seconds, containers/storage keeps what the tar has.
    pub fn mtime_nanos(&self) -> u32 {
        let nanos = &self.toc.nanos;
        let at = nanos.binary_search_by_key(&self.number, |(inode, _)| *inode);
        at.ok().and_then(|at| nanos.get(at)).map_or(0, |(_, nanos)| *nanos)
    }

    /// Bytes of a regular file, length of a symbolic link's target, else 0.
    pub const fn size(&self) -> u64 {
        self.node.size
    }

    /// Number of names; for a directory 2 and one for each directory in it.
    pub const fn nlink(&self) -> u32 {
        self.node.nlink
    }

    /// Major and minor number of a device.
    pub const fn device(&self) -> Option<(u32, u32)> {
        match self.node.kind {
            Kind::CharDevice | Kind::BlockDevice => Some((self.node.first, self.node.count)),
            _ => None,
        }
    }

    /// The directory that holds it; that of the root is the root. For a file with several names, the
    /// directory of one of them.
    pub const fn parent(&self) -> u32 {
        self.node.parent
    }

    /// Target of a symbolic link.
    pub fn link_target(&self) -> Option<&'a [u8]> {
        (self.node.kind == Kind::Symlink)
            .then(|| self.toc.string(Span { at: self.node.first, len: self.node.count }))
    }

    /// Extended attributes, sorted by name.
    pub fn xattrs(&self) -> impl ExactSizeIterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        let toc = self.toc;
        let first = self.node.xattr_first as usize;
        let xattrs = toc.xattrs.get(first..first + usize::from(self.node.xattr_count)).unwrap_or_default();
        xattrs.iter().map(move |(name, value)| (toc.string(*name), toc.string(*value)))
    }

    /// The extended attribute of this name.
    pub fn xattr(&self, name: &[u8]) -> Option<&'a [u8]> {
        self.xattrs().find(|(have, _)| *have == name).map(|(_, value)| value)
    }

    /// Number of names in a directory.
    pub fn child_count(&self) -> usize {
        self.stored_children().len()
    }

    /// Names and inodes in a directory, sorted by name. Use `.skip(position)`, which costs nothing here, to
    /// go on where an earlier listing stopped.
    pub fn children(&self) -> impl ExactSizeIterator<Item = (&'a [u8], u32)> + use<'a> {
        let toc = self.toc;
        self.stored_children().iter().map(move |child| (toc.child_name(child), child.inode))
    }

    /// Numbers of a file's chunks.
    pub const fn chunk_numbers(&self) -> std::ops::Range<u32> {
        match self.node.kind {
            Kind::Regular => self.node.first..self.node.first + self.node.count,
            _ => 0..0,
        }
    }

    /// A file's chunks, in order; they cover it exactly.
    pub fn chunks(&self) -> impl ExactSizeIterator<Item = Chunk> + use<'a> {
        self.stored_chunks().iter().map(StoredChunk::public)
    }

    /// sha256 of a file's content, if the table says.
    pub fn digest(&self) -> Option<Digest> {
        if self.node.kind != Kind::Regular {
            return None;
        }
        let digests = &self.toc.digests;
        if let Ok(at) = digests.binary_search_by_key(&self.number, |(inode, _)| *inode) {
            return digests.get(at).map(|(_, digest)| *digest);
        }
        match self.stored_chunks() {
            [] => Some(Digest::of(b"")),
            [only] if only.digest != NO_DIGEST => Some(only.digest),
            _ => None,
        }
    }

    /// Number of the chunk that holds byte `offset` of the file. `None` at and beyond its end.
    pub fn chunk_at(&self, offset: u64) -> Option<u32> {
        if self.node.kind != Kind::Regular || offset >= self.node.size {
            return None;
        }
        let after = self.stored_chunks().partition_point(|chunk| chunk.file_offset <= offset);
        self.node.first.checked_add(u32::try_from(after.checked_sub(1)?).ok()?)
    }

    pub(super) fn stored_children(&self) -> &'a [Child] {
        match self.node.kind {
            Kind::Directory => run(&self.toc.children, self.node),
            _ => &[],
        }
    }

    fn stored_chunks(&self) -> &'a [StoredChunk] {
        match self.node.kind {
            Kind::Regular => run(&self.toc.chunks, self.node),
            _ => &[],
        }
    }
}

fn run<'a, T>(all: &'a [T], node: &Node) -> &'a [T] {
    let first = node.first as usize;
    all.get(first..first + node.count as usize).unwrap_or_default()
}
