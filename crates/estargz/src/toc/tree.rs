//! From a list of entries to a tree of inodes.
//!
//! The entries are sorted by path, so that a directory stands right before everything below it. One walk
//! with a stack then finds every entry's parent, makes up those that are missing and drops all but the last
//! entry of a path; hard links are resolved by binary search in the sorted list. Nothing is hashed and
//! nothing recurses, so a hostile TOC can neither collide nor overflow.

use content::Digest;

use super::owners::Owners;
use super::{EntryProblem, Kind, Landmark, Node, ROOT, Span, Toc, TocError, TocLimits};
use crate::path::{self, PathProblem};

mod inodes;
mod place;

use inodes::by_inode;

/// What an entry stands for.
#[derive(Clone, Copy)]
pub(super) enum Target {
    /// An inode of its own.
    Own,
    /// Another name of the entry at this path.
    Link(Span),
}

/// An entry that was read and checked by itself.
pub(super) struct Raw {
    pub(super) path: Span,
    pub(super) target: Target,
    pub(super) node: Node,
}

impl Raw {
    pub(super) fn new(path: Span, kind: Kind) -> Self {
        let node = Node {
            size: 0,
            mtime: 0,
            uid: 0,
            gid: 0,
            first: 0,
            count: 0,
            nlink: 0,
            parent: ROOT,
            xattr_first: 0,
            xattr_count: 0,
            mode: 0,
            user: 0,
            group: 0,
            kind,
        };
        Self { path, target: Target::Own, node }
    }

    pub(super) fn hardlink(path: Span, target: Span) -> Self {
        Self { target: Target::Link(target), ..Self::new(path, Kind::Regular) }
    }

    fn is_directory(&self) -> bool {
        matches!(self.target, Target::Own) && self.node.kind == Kind::Directory
    }
}

/// A chunk of the entry with number `raw`.
#[derive(Clone, Copy)]
pub(super) struct RawChunk {
    pub(super) raw: Option<u32>,
    pub(super) file_offset: u64,
    pub(super) len: u32,
    pub(super) blob_start: u64,
    /// Where its frame ends at the latest.
    pub(super) blob_end: u64,
    pub(super) inner_offset: u32,
    /// It needs no bytes of the blob.
    pub(super) is_zeros: bool,
    pub(super) digest: Digest,
}

/// One name of the tree, in depth-first order.
struct Name {
    path: Span,
    /// Index of the parent in the list of names.
    parent: u32,
    /// The entry; `None` for a directory that only paths imply.
    raw: Option<u32>,
    /// What earlier entries put below it is gone: something that is no directory had its place since.
    since: u32,
}

/// Collects entries and makes the table.
pub(super) struct Tree {
    payload_end: u64,
    limits: TocLimits,
    pub(super) landmark: Landmark,
    /// Paths, which are not needed any more afterwards.
    paths: Vec<u8>,
    /// Link targets, attributes, and at the end names.
    strings: Vec<u8>,
    raws: Vec<Raw>,
    chunks: Vec<RawChunk>,
    xattrs: Vec<(Span, Span)>,
    /// Digests of whole files, by entry.
    digests: Vec<(u32, Digest)>,
    /// Fractions of times, by entry.
    nanos: Vec<(u32, u32)>,
    pub(super) owners: Owners,
    entries: u32,
}

impl Tree {
    pub(super) fn new(payload_end: u64, limits: TocLimits) -> Self {
        Self {
            payload_end,
            limits,
            landmark: Landmark::Absent,
            paths: Vec::new(),
            strings: Vec::new(),
            raws: Vec::new(),
            chunks: Vec::new(),
            xattrs: Vec::new(),
            digests: Vec::new(),
            nanos: Vec::new(),
            owners: Owners::default(),
            entries: 0,
        }
    }

    pub(super) fn payload_end(&self) -> u64 {
        self.payload_end
    }

    /// Every entry counts, and so do directories that are made up.
    pub(super) fn count_entry(&mut self) -> Result<(), TocError> {
        self.entries = self.entries.saturating_add(1);
        if self.entries > self.limits.entries {
            return Err(TocError::TooLarge { what: "entries", limit: u64::from(self.limits.entries) });
        }
        Ok(())
    }

    pub(super) fn clean_path(&mut self, path: &[u8]) -> Result<Span, EntryProblem> {
        let at = self.paths.len();
        path::clean(path, &mut self.paths)?;
        span(at, self.paths.len())
    }

    pub(super) fn add_string(&mut self, text: &[u8]) -> Result<Span, EntryProblem> {
        let at = self.strings.len();
        self.strings.extend_from_slice(text);
        span(at, self.strings.len())
    }

    /// A path that [`Self::clean_path`] gave.
    pub(super) fn bytes(&self, path: Span) -> &[u8] {
        slice(&self.paths, path)
    }

    pub(super) fn push(&mut self, raw: Raw) -> u32 {
        self.raws.push(raw);
        u32::try_from(self.raws.len() - 1).unwrap_or(u32::MAX)
    }

    pub(super) fn push_xattr(
        &mut self,
        raw: &mut Raw,
        name: &[u8],
        value: &[u8],
    ) -> Result<(), EntryProblem> {
        let pair = (self.add_string(name)?, self.add_string(value)?);
        if raw.node.xattr_count == 0 {
            raw.node.xattr_first =
                u32::try_from(self.xattrs.len()).map_err(|_| EntryProblem::Range("number of xattrs"))?;
        }
        raw.node.xattr_count += 1;
        self.xattrs.push(pair);
        Ok(())
    }

    /// The digest of all of a file.
    pub(super) fn push_digest(&mut self, raw: u32, digest: Digest) {
        self.digests.push((raw, digest));
    }

    /// Nanoseconds of an entry's modification time.
    pub(super) fn push_nanos(&mut self, raw: u32, nanos: u32) {
        self.nanos.push((raw, nanos));
    }

    pub(super) fn push_chunk(&mut self, chunk: RawChunk) -> Result<(), EntryProblem> {
        // Offset 0 is no member of a file: the first one holds that file's own tar header.
        let is_nowhere = chunk.blob_start == 0 && !chunk.is_zeros;
        if is_nowhere || chunk.blob_start >= chunk.blob_end || chunk.blob_end > self.payload_end {
            return Err(EntryProblem::OutsidePayload);
        }
        if chunk.len > self.limits.chunk_bytes || chunk.inner_offset > self.limits.chunk_bytes {
            return Err(EntryProblem::LargeChunk);
        }
        if self.chunks.len() >= u32::MAX as usize {
            return Err(EntryProblem::Range("number of chunks"));
        }
        self.chunks.push(chunk);
        Ok(())
    }

    /// Makes the table.
    pub(super) fn finish(mut self, digest: Digest) -> Result<Toc, TocError> {
        let names = self.names()?;
        let (inode_of, count) = self.resolve(&names)?;
        let mut nodes = self.nodes(&names, &inode_of, count);
        let children = self.children(&names, &inode_of, &mut nodes);
        let inode_of_raw = self.inode_of_raw(&names, &inode_of);
        self.refuse_overlap()?;
        // Not needed any more: a large layer's are tens of MiB.
        drop((names, inode_of));
        self.raws = Vec::new();
        self.paths = Vec::new();
        let chunks = self.place_chunks(&inode_of_raw, &mut nodes);
        let digests = self.file_digests(&inode_of_raw);
        let nanos = by_inode(std::mem::take(&mut self.nanos), &inode_of_raw);
        let file_bytes = nodes
            .iter()
            .filter(|node| node.kind == Kind::Regular)
            .fold(0_u64, |sum, node| sum.saturating_add(node.size));
        let owners = self.owner_names();
        self.strings.shrink_to_fit();
        self.xattrs.shrink_to_fit();
        Ok(Toc {
            digest,
            payload_end: self.payload_end,
            landmark: self.landmark,
            nodes,
            children,
            chunks,
            xattrs: self.xattrs,
            strings: self.strings,
            owners,
            digests,
            nanos,
            file_bytes,
        })
    }

    fn problem(&self, path: Span, problem: EntryProblem) -> TocError {
        TocError::Entry { name: crate::archive::display(self.bytes(path)), problem }
    }

    fn raw(&self, index: Option<u32>) -> Option<&Raw> {
        self.raws.get(index? as usize)
    }

    /// All names in depth-first order, the root first: sorted, the last of each path, parents made up.
    fn names(&mut self) -> Result<Vec<Name>, TocError> {
        let mut order: Vec<(u32, Span)> =
            (0..).zip(&self.raws).map(|(index, raw)| (index, raw.path)).collect();
        order.sort_unstable_by(|a, b| path::tree_order(self.bytes(a.1), self.bytes(b.1)).then(a.0.cmp(&b.0)));
        let mut names: Vec<Name> =
            vec![Name { path: Span { at: 0, len: 0 }, parent: 0, raw: None, since: 0 }];
        let mut stack: Vec<u32> = vec![0];
        let mut rest = order.iter().peekable();
        let mut since = 0;
        while let Some(&(index, path)) = rest.next() {
            if rest.peek().is_some_and(|next| self.bytes(next.1) == self.bytes(path)) {
                if !self.raw(Some(index)).is_some_and(Raw::is_directory) {
                    since = index;
                }
                continue;
            }
            let since = std::mem::take(&mut since);
            if path.len == 0 {
                if !self.raw(Some(index)).is_some_and(Raw::is_directory) {
                    return Err(self.problem(path, EntryProblem::NotDirectory));
                }
                names = vec![Name { path, parent: 0, raw: Some(index), since }];
                continue;
            }
            while let Some(top) = stack.last().and_then(|top| names.get(*top as usize)) {
                if is_below(self.bytes(path), self.bytes(top.path)) {
                    break;
                }
                stack.pop();
            }
            if self.is_replaced(&names, &stack, index)? {
                continue;
            }
            self.push_with_parents(&mut names, &mut stack, path, index)?;
            if let Some(name) = names.last_mut() {
                name.since = name.since.max(since);
            }
        }
        Ok(names)
    }

    /// Whether entry `index` lay below a directory that a later entry replaced by something else, be that still
    /// there or not. Below something else that came earlier it cannot lie at all.
    fn is_replaced(&self, names: &[Name], stack: &[u32], index: u32) -> Result<bool, TocError> {
        let Some(top) = stack.last().and_then(|top| names.get(*top as usize)) else { return Ok(false) };
        match top.raw {
            _ if index < top.since => Ok(true),
            Some(raw) if !self.raw(Some(raw)).is_some_and(Raw::is_directory) => {
                if index < raw {
                    Ok(true)
                } else {
                    Err(self.problem(top.path, EntryProblem::NotDirectory))
                }
            }
            _ => Ok(false),
        }
    }

    fn push_with_parents(
        &mut self,
        names: &mut Vec<Name>,
        stack: &mut Vec<u32>,
        path: Span,
        index: u32,
    ) -> Result<(), TocError> {
        let above = stack.last().and_then(|top| names.get(*top as usize)).map_or(0, |top| top.path.len);
        let slashes: Vec<u32> = (0..)
            .zip(self.bytes(path))
            .filter(|(at, byte)| **byte == b'/' && *at > above)
            .map(|(at, _)| at)
            .collect();
        for len in slashes {
            self.count_entry()?;
            push_name(names, stack, Span { at: path.at, len }, None);
        }
        push_name(names, stack, path, Some(index));
        Ok(())
    }

    /// The inode of every name, and how many inodes there are.
    ///
    /// A hard link's target must stand before it, as it must for whoever unpacks the tar: so there are no
    /// circles, and links in the order of their entries find their targets resolved.
    fn resolve(&self, names: &[Name]) -> Result<(Vec<u32>, u32), TocError> {
        let mut next = ROOT;
        let mut inode_of: Vec<u32> = Vec::with_capacity(names.len());
        let mut links: Vec<(u32, usize, Span)> = Vec::new();
        for (at, name) in names.iter().enumerate() {
            if let (Some(raw), Some(Raw { target: Target::Link(target), .. })) =
                (name.raw, self.raw(name.raw))
            {
                links.push((raw, at, *target));
                inode_of.push(0);
            } else {
                inode_of.push(next);
                next += 1;
            }
        }
        links.sort_unstable_by_key(|(raw, ..)| *raw);
        for (raw, at, target) in links {
            let found = self
                .link_target(names, raw, target)
                .map_err(|problem| self.problem(names.get(at).map_or(target, |name| name.path), problem))?;
            let inode = inode_of.get(found).copied().unwrap_or(0);
            if let Some(slot) = inode_of.get_mut(at) {
                *slot = inode;
            }
        }
        Ok((inode_of, next - ROOT))
    }

    /// Index of the name that the hard link with entry `link` points to.
    fn link_target(&self, names: &[Name], link: u32, target: Span) -> Result<usize, EntryProblem> {
        let wanted = self.bytes(target);
        let text = || crate::archive::display(wanted);
        let found = names
            .binary_search_by(|name| path::tree_order(self.bytes(name.path), wanted))
            .map_err(|_| EntryProblem::MissingTarget(text()))?;
        match names.get(found).and_then(|name| name.raw) {
            Some(raw) if self.raw(Some(raw)).is_some_and(Raw::is_directory) => {
                Err(EntryProblem::DirectoryTarget(text()))
            }
            None => Err(EntryProblem::DirectoryTarget(text())),
            Some(raw) if raw >= link => Err(EntryProblem::LaterTarget(text())),
            Some(_) => Ok(found),
        }
    }
}

fn push_name(names: &mut Vec<Name>, stack: &mut Vec<u32>, path: Span, raw: Option<u32>) {
    let parent = stack.last().copied().unwrap_or(0);
    let since = names.get(parent as usize).map_or(0, |parent| parent.since);
    // Bounded by the limit on entries.
    stack.push(u32::try_from(names.len()).unwrap_or(u32::MAX));
    names.push(Name { path, parent, raw, since });
}

/// Whether `path` lies below `above`. Everything lies below the root.
fn is_below(path: &[u8], above: &[u8]) -> bool {
    above.is_empty() || path.strip_prefix(above).is_some_and(|rest| rest.starts_with(b"/"))
}

fn node_mut(nodes: &mut [Node], inode: u32) -> Option<&mut Node> {
    nodes.get_mut(inode.checked_sub(ROOT)? as usize)
}

fn slice(bytes: &[u8], span: Span) -> &[u8] {
    let at = span.at as usize;
    bytes.get(at..at + span.len as usize).unwrap_or_default()
}

/// Limits on the JSON keep everything below 4 GiB; this makes sure.
fn span(start: usize, end: usize) -> Result<Span, EntryProblem> {
    let at = u32::try_from(start).map_err(|_| PathProblem::LongPath)?;
    let len = u32::try_from(end - start).map_err(|_| PathProblem::LongPath)?;
    Ok(Span { at, len })
}
