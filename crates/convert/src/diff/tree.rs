//! Layers laid over each other: the file system that a container sees.
//!
//! A layer first takes away (whiteouts and opaque directories, which concern lower layers alone) and then adds.
//! A directory over a directory has its own attributes and the content of both; everything else replaces what
//! was there, with all that was below it. A hard link is another name of one inode. What the format adds to a
//! layer's root, table of contents and landmarks, is not part of the image.

use std::collections::BTreeMap;
use std::ops::Bound;

use content::Digest;
use estargz::archive::EntryKind;
use estargz::audit::Listed;
use estargz::{NO_PREFETCH_LANDMARK, PREFETCH_LANDMARK, TOC_NAME, Whiteout, whiteout};

/// Why layers cannot be laid over each other.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum TreeError {
    #[error("{0:?} is a hard link to {1:?}, which is not there")]
    MissingTarget(String, String),
    #[error("{0:?} is a hard link to the directory {1:?}")]
    DirectoryTarget(String, String),
    #[error("the root is not a directory")]
    Root,
}

/// What a name stands for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Node {
    pub(super) kind: EntryKind,
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// `None` for a directory that only paths imply: whoever unpacks makes it, at that moment.
    pub(super) mtime: Option<i64>,
    pub(super) size: u64,
    pub(super) digest: Option<Digest>,
    pub(super) link: Vec<u8>,
    pub(super) device: (u32, u32),
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Node {
    fn implied() -> Self {
        Self {
            kind: EntryKind::Directory,
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: None,
            size: 0,
            digest: None,
            link: Vec::new(),
            device: (0, 0),
            xattrs: BTreeMap::new(),
        }
    }

    fn of(entry: &Listed) -> Self {
        Self {
            kind: entry.kind,
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: Some(entry.mtime),
            size: entry.size,
            digest: entry.content_digest(),
            link: entry.link.clone(),
            device: entry.device,
            xattrs: entry.xattrs.clone(),
        }
    }
}

/// Number of a node in its tree.
pub(super) type NodeId = usize;

/// A file system.
#[derive(Debug)]
pub(super) struct Tree {
    /// Names, the root with the empty one. What lies below a directory is one run.
    names: BTreeMap<Vec<u8>, NodeId>,
    /// Inodes. Those that lost their last name stay.
    nodes: Vec<Node>,
}

impl Tree {
    /// A root and nothing in it.
    pub(super) fn new() -> Self {
        Self { names: [(Vec::new(), 0)].into(), nodes: vec![Node::implied()] }
    }

    /// Number of names.
    pub(super) fn len(&self) -> usize {
        self.names.len()
    }

    /// Names and what they stand for, sorted.
    pub(super) fn names(&self) -> impl Iterator<Item = (&[u8], NodeId)> {
        self.names.iter().map(|(name, id)| (name.as_slice(), *id))
    }

    pub(super) fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id)
    }

    /// Lays a layer over what is there.
    pub(super) fn apply(&mut self, layer: &[Listed]) -> Result<(), TreeError> {
        for entry in layer {
            let (parent, name) = split(&entry.path);
            match whiteout(name) {
                Some(Whiteout::Opaque) => self.remove_below(parent),
                Some(Whiteout::Removed(target)) => {
                    let path = join(parent, target);
                    self.remove_below(&path);
                    self.names.remove(&path);
                }
                Some(Whiteout::Meta) | None => {}
            }
        }
        for entry in layer.iter().filter(|entry| !is_hidden(&entry.path)) {
            self.add(entry)?;
        }
        Ok(())
    }

    fn add(&mut self, entry: &Listed) -> Result<(), TreeError> {
        let path = entry.path.as_slice();
        let is_directory = entry.kind == EntryKind::Directory;
        if path.is_empty() {
            if !is_directory {
                return Err(TreeError::Root);
            }
            let id = self.push(Node::of(entry));
            self.names.insert(Vec::new(), id);
            return Ok(());
        }
        self.make_parents(path);
        let id =
            if entry.kind == EntryKind::Hardlink { self.target(entry)? } else { self.push(Node::of(entry)) };
        let was_directory = self.names.get(path).is_some_and(|id| self.is_directory(*id));
        if was_directory && !is_directory {
            self.remove_below(path);
        }
        self.names.insert(path.to_vec(), id);
        Ok(())
    }

    fn target(&self, entry: &Listed) -> Result<NodeId, TreeError> {
        let texts = || (entry.display_path(), String::from_utf8_lossy(&entry.link).into_owned());
        match self.names.get(&entry.link) {
            None => {
                let (name, target) = texts();
                Err(TreeError::MissingTarget(name, target))
            }
            Some(id) if self.is_directory(*id) => {
                let (name, target) = texts();
                Err(TreeError::DirectoryTarget(name, target))
            }
            Some(id) => Ok(*id),
        }
    }

    /// Every directory above `path` is there afterwards; what was something else is replaced.
    fn make_parents(&mut self, path: &[u8]) {
        let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        for at in slashes {
            let above = path.get(..at).unwrap_or_default();
            if self.names.get(above).is_none_or(|id| !self.is_directory(*id)) {
                let id = self.push(Node::implied());
                self.names.insert(above.to_vec(), id);
            }
        }
    }

    fn remove_below(&mut self, path: &[u8]) {
        if path.is_empty() {
            self.names.retain(|name, _| name.is_empty());
            return;
        }
        // Everything below "a" lies between "a/" and "a0": 0 follows the slash.
        let (start, end) = ([path, b"/"].concat(), [path, b"0"].concat());
        let range = (Bound::Included(start), Bound::Excluded(end));
        let below: Vec<Vec<u8>> = self.names.range(range).map(|(name, _)| name.clone()).collect();
        for name in below {
            self.names.remove(&name);
        }
    }

    fn push(&mut self, node: Node) -> NodeId {
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    fn is_directory(&self, id: NodeId) -> bool {
        self.nodes.get(id).is_some_and(|node| node.kind == EntryKind::Directory)
    }
}

/// Whether a name is not shown: it takes something away, or belongs to the format.
fn is_hidden(path: &[u8]) -> bool {
    let of_the_format = [TOC_NAME, PREFETCH_LANDMARK, NO_PREFETCH_LANDMARK];
    whiteout(split(path).1).is_some() || of_the_format.iter().any(|name| path == name.as_bytes())
}

/// Directory and name.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (path.get(..at).unwrap_or_default(), path.get(at + 1..).unwrap_or_default()),
        None => (b"", path),
    }
}

fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() { name.to_vec() } else { [parent, b"/", name].concat() }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::diff) fn entry(kind: EntryKind, path: &str) -> Listed {
        Listed {
            kind,
            path: path.as_bytes().to_vec(),
            link: Vec::new(),
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: 7,
            size: 0,
            device: (0, 0),
            xattrs: BTreeMap::new(),
            digest: None,
            pieces: Vec::new(),
        }
    }

    pub(in crate::diff) fn dir(path: &str) -> Listed {
        entry(EntryKind::Directory, path)
    }

    pub(in crate::diff) fn file(path: &str) -> Listed {
        entry(EntryKind::Regular, path)
    }

    pub(in crate::diff) fn hard(path: &str, target: &str) -> Listed {
        Listed { link: target.as_bytes().to_vec(), ..entry(EntryKind::Hardlink, path) }
    }

    pub(in crate::diff) fn tree(layers: &[&[Listed]]) -> Tree {
        let mut tree = Tree::new();
        for layer in layers {
            tree.apply(layer).unwrap();
        }
        tree
    }

    fn shown(layers: &[&[Listed]]) -> Vec<String> {
        let tree = tree(layers);
        tree.names().skip(1).map(|(name, _)| String::from_utf8(name.to_vec()).unwrap()).collect()
    }

    #[test]
    fn a_layer_takes_away_from_those_below_it_alone() {
        let lower = [dir("a"), file("a/x"), file("a/y"), dir("b"), file("b/z"), file("b0")];
        assert_eq!(shown(&[&lower, &[file("a/.wh.x")]]), ["a", "a/y", "b", "b/z", "b0"]);
        assert_eq!(shown(&[&lower, &[file(".wh.b")]]), ["a", "a/x", "a/y", "b0"]);
        // What the layer itself brings stays, wherever the whiteout stands.
        let upper = [dir("a"), file("a/new"), file("a/.wh..wh..opq"), file("b/.wh.z"), file("b/z")];
        assert_eq!(shown(&[&lower, &upper]), ["a", "a/new", "b", "b/z", "b0"]);
        assert_eq!(shown(&[&lower, &[file(".wh..wh..opq"), file("n")]]), ["n"]);
        assert_eq!(shown(&[&lower, &[file(".wh..wh.plnk"), file(".wh.nothing")]]).len(), 6);
    }

    #[test]
    fn types_are_replaced_and_directories_merged() {
        let lower = [dir("a"), file("a/x"), file("f")];
        assert_eq!(shown(&[&lower, &[file("a")]]), ["a", "f"]);
        assert_eq!(shown(&[&lower, &[dir("f"), file("f/y")]]), ["a", "a/x", "f", "f/y"]);
        assert_eq!(shown(&[&lower, &[file("f/y")]]), ["a", "a/x", "f", "f/y"]);
        let merged = tree(&[&lower, &[Listed { mode: 0o700, ..dir("a") }]]);
        let id = merged.names().find(|(name, _)| name == b"a").unwrap().1;
        assert_eq!(merged.node(id).unwrap().mode, 0o700);
        assert_eq!(merged.len(), 4);
    }

    #[test]
    fn a_parent_that_nobody_wrote_keeps_what_the_layer_below_says() {
        let lower = [Listed { mode: 0o700, ..dir("root") }];
        let tree = tree(&[&lower, &[file("root/x"), file("new/y")]]);
        let mode = |wanted: &[u8]| {
            let id = tree.names().find(|(name, _)| *name == wanted).unwrap().1;
            (tree.node(id).unwrap().mode, tree.node(id).unwrap().mtime)
        };
        assert_eq!(mode(b"root"), (0o700, Some(7)));
        assert_eq!(mode(b"new"), (0o755, None));
    }

    #[test]
    fn hard_links_are_names_of_one_inode() {
        let tree = tree(&[&[file("a"), hard("b", "a"), file("c")], &[hard("d", "c"), file("a")]]);
        let id = |wanted: &[u8]| tree.names().find(|(name, _)| *name == wanted).unwrap().1;
        assert_ne!(id(b"a"), id(b"b"), "a was replaced, b is what it was");
        assert_eq!(id(b"c"), id(b"d"));
        let mut broken = Tree::new();
        let error = broken.apply(&[hard("x", "nothing")]).unwrap_err().to_string();
        assert_eq!(error, "\"x\" is a hard link to \"nothing\", which is not there");
    }

    #[test]
    fn what_the_format_adds_is_no_part_of_the_image() {
        let layer = [
            file(PREFETCH_LANDMARK),
            file(NO_PREFETCH_LANDMARK),
            file(TOC_NAME),
            file("d/stargz.index.json"),
        ];
        assert_eq!(shown(&[&layer]), ["d", "d/stargz.index.json"]);
    }
}
