//! Inodes and directory entries, of names whose inodes are known.

use content::Digest;

use super::{Name, Raw, Target, Tree, node_mut, slice};
use crate::toc::{Child, Kind, Node, ROOT, Span};

impl Tree {
    /// The inodes, with parents and link counts.
    pub(super) fn nodes(&self, names: &[Name], inode_of: &[u32], count: u32) -> Vec<Node> {
        let mut nodes: Vec<Node> = Vec::with_capacity(count as usize);
        for name in names {
            match self.raw(name.raw) {
                Some(Raw { target: Target::Link(_), .. }) => {}
                Some(raw) => nodes.push(raw.node),
                None => nodes.push(Node { mode: 0o755, ..Raw::new(name.path, Kind::Directory).node }),
            }
        }
        for (index, (name, inode)) in names.iter().zip(inode_of).enumerate() {
            let parent = inode_of.get(name.parent as usize).copied().unwrap_or(ROOT);
            let mut is_directory = false;
            if let Some(node) = node_mut(&mut nodes, *inode) {
                is_directory = node.kind == Kind::Directory;
                node.nlink += if is_directory { 2 } else { 1 };
                node.parent = parent;
            }
            if is_directory
                && index > 0
                && let Some(above) = node_mut(&mut nodes, parent)
            {
                above.nlink += 1;
            }
        }
        nodes
    }

    /// Directory entries, those of one directory together. Names come depth first, so within a directory
    /// they are sorted already.
    pub(super) fn children(&mut self, names: &[Name], inode_of: &[u32], nodes: &mut [Node]) -> Vec<Child> {
        let parent_of = |name: &Name| inode_of.get(name.parent as usize).copied().unwrap_or(ROOT);
        for name in names.iter().skip(1) {
            if let Some(parent) = node_mut(nodes, parent_of(name)) {
                parent.count += 1;
            }
        }
        let mut next = 0;
        for node in nodes.iter_mut().filter(|node| node.kind == Kind::Directory) {
            node.first = next;
            next += node.count;
            node.count = 0;
        }
        let mut children = vec![Child { name_at: 0, inode: ROOT, name_len: 0 }; next as usize];
        for (name, inode) in names.iter().zip(inode_of).skip(1) {
            let path = slice(&self.paths, name.path);
            let part = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
            // Paths fit into u32 together, and names are parts of them.
            let name_at = u32::try_from(self.strings.len()).unwrap_or(u32::MAX);
            self.strings.extend_from_slice(part);
            let name_len = u8::try_from(part.len()).unwrap_or(u8::MAX);
            let Some(parent) = node_mut(nodes, parent_of(name)) else { continue };
            if let Some(slot) = children.get_mut((parent.first + parent.count) as usize) {
                *slot = Child { name_at, inode: *inode, name_len };
            }
            parent.count += 1;
        }
        children
    }

    /// Inode of every entry; 0 for one that was replaced.
    pub(super) fn inode_of_raw(&self, names: &[Name], inode_of: &[u32]) -> Vec<u32> {
        let mut inode_of_raw = vec![0_u32; self.raws.len()];
        for (name, inode) in names.iter().zip(inode_of) {
            if let Some(slot) = name.raw.and_then(|raw| inode_of_raw.get_mut(raw as usize)) {
                *slot = *inode;
            }
        }
        inode_of_raw
    }

    /// Digests of the files that are still there, ascending by inode.
    pub(super) fn file_digests(&mut self, inode_of_raw: &[u32]) -> Vec<(u32, Digest)> {
        by_inode(std::mem::take(&mut self.digests), inode_of_raw)
    }

    pub(super) fn owner_names(&mut self) -> Vec<Span> {
        let names = std::mem::take(&mut self.owners).into_names();
        names.iter().map(|name| self.add_string(name.as_bytes()).unwrap_or(Span { at: 0, len: 0 })).collect()
    }
}

/// What is said of entries that are still there, ascending by inode.
pub(super) fn by_inode<T>(said: Vec<(u32, T)>, inode_of_raw: &[u32]) -> Vec<(u32, T)> {
    let inode = |raw: u32| inode_of_raw.get(raw as usize).copied().filter(|inode| *inode != 0);
    let mut said: Vec<(u32, T)> =
        said.into_iter().filter_map(|(raw, what)| Some((inode(raw)?, what))).collect();
    said.sort_unstable_by_key(|(inode, _)| *inode);
    said.shrink_to_fit();
    said
}
