//! A tree in memory: what the writer is given, and what the readers are compared with.

use std::collections::HashMap;

use erofs::{BLOCK, Checked, Kind, Node, Tree};

/// What a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    Directory(Vec<(Vec<u8>, u32)>),
    Regular { size: u64, address: u64 },
    Symlink(Vec<u8>),
    Char(u32, u32),
    Block(u32, u32),
    Fifo,
    Socket,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelNode {
    pub what: What,
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: i64,
    pub nanos: u32,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Nodes; the first is the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    pub nodes: Vec<ModelNode>,
    /// Length of the data file.
    pub data_len: u64,
}

pub const ROOT: u32 = 0;

impl Model {
    pub fn new() -> Self {
        let mut model = Self { nodes: Vec::new(), data_len: 0 };
        model.push(What::Directory(Vec::new()));
        model
    }

    /// A node without a name.
    pub fn push(&mut self, what: What) -> u32 {
        let (mode, uid, gid, mtime) = (0o755, 1000, 1001, 1_700_000_000);
        self.nodes.push(ModelNode { what, mode, uid, gid, mtime, nanos: 0, xattrs: Vec::new() });
        u32::try_from(self.nodes.len() - 1).unwrap()
    }

    /// One name more for a node.
    pub fn link(&mut self, parent: u32, name: impl AsRef<[u8]>, node: u32) {
        let What::Directory(children) = &mut self.at(parent).what else { panic!("{parent} is no directory") };
        children.push((name.as_ref().to_vec(), node));
    }

    pub fn add(&mut self, parent: u32, name: impl AsRef<[u8]>, what: What) -> u32 {
        let node = self.push(what);
        self.link(parent, name, node);
        node
    }

    pub fn directory(&mut self, parent: u32, name: impl AsRef<[u8]>) -> u32 {
        self.add(parent, name, What::Directory(Vec::new()))
    }

    /// A file whose content stands behind that of all others.
    pub fn file(&mut self, parent: u32, name: impl AsRef<[u8]>, size: u64) -> u32 {
        let address = self.data_len;
        self.data_len += size.next_multiple_of(BLOCK);
        self.add(parent, name, What::Regular { size, address })
    }

    pub fn symlink(&mut self, parent: u32, name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> u32 {
        self.add(parent, name, What::Symlink(target.as_ref().to_vec()))
    }

    pub fn xattr(&mut self, node: u32, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        self.at(node).xattrs.push((name.as_ref().to_vec(), value.as_ref().to_vec()));
    }

    pub fn at(&mut self, node: u32) -> &mut ModelNode {
        &mut self.nodes[node as usize]
    }

    /// Number of names of each node, as `stat` shows it.
    pub fn links(&self) -> Vec<u32> {
        let mut links = vec![0; self.nodes.len()];
        links[ROOT as usize] = 1;
        for (node, number) in self.nodes.iter().zip(0..) {
            let What::Directory(children) = &node.what else { continue };
            links[number] += 1;
            for (_, child) in children {
                links[*child as usize] += 1;
                let is_directory = matches!(self.nodes[*child as usize].what, What::Directory(_));
                links[number] += u32::from(is_directory);
            }
        }
        links
    }

    /// The same tree with its nodes numbered breadth first, names and attributes sorted: two trees are equal if
    /// these are.
    pub fn canonical(&self) -> Self {
        let mut order = vec![ROOT];
        let mut numbers = HashMap::from([(ROOT, 0)]);
        let mut nodes = Vec::new();
        let mut next = 0;
        while let Some(number) = order.get(next) {
            let mut node = self.nodes[*number as usize].clone();
            node.xattrs.sort();
            if let What::Directory(children) = &mut node.what {
                children.sort();
                for (_, child) in children {
                    let old = *child;
                    *child = *numbers.entry(old).or_insert_with(|| {
                        order.push(old);
                        u32::try_from(order.len() - 1).unwrap()
                    });
                }
            }
            if let What::Regular { size: 0, address } = &mut node.what {
                *address = 0; // means nothing
            }
            nodes.push(node);
            next += 1;
        }
        Self { nodes, data_len: self.data_len }
    }

    /// What an image says, canonical.
    pub fn of_image(image: &Checked<'_>, data_len: u64) -> Self {
        let mut nids = vec![image.root()];
        let mut numbers = HashMap::from([(image.root(), 0)]);
        let mut nodes = Vec::new();
        let mut next = 0;
        while let Some(&nid) = nids.get(next) {
            let node = image.node(nid).unwrap();
            let what = match node.kind {
                Kind::Directory => {
                    let children = image.children(nid).into_iter().map(|(name, child)| {
                        let number = *numbers.entry(child).or_insert_with(|| {
                            nids.push(child);
                            u32::try_from(nids.len() - 1).unwrap()
                        });
                        (name.to_vec(), number)
                    });
                    What::Directory(children.collect())
                }
                Kind::Regular { size, address } => What::Regular { size, address },
                Kind::Symlink(target) => What::Symlink(target.to_vec()),
                Kind::CharDevice(major, minor) => What::Char(major, minor),
                Kind::BlockDevice(major, minor) => What::Block(major, minor),
                Kind::Fifo => What::Fifo,
                Kind::Socket => What::Socket,
            };
            let mut xattrs: Vec<_> =
                image.xattrs(nid).into_iter().map(|(name, value)| (name, value.to_vec())).collect();
            xattrs.sort();
            let Node { mode, uid, gid, mtime, mtime_nanos: nanos, .. } = node;
            nodes.push(ModelNode { what, mode, uid, gid, mtime, nanos, xattrs });
            next += 1;
        }
        Self { nodes, data_len }
    }
}

impl Tree for Model {
    fn bound(&self) -> u32 {
        u32::try_from(self.nodes.len()).unwrap()
    }

    fn root(&self) -> u32 {
        ROOT
    }

    fn node(&self, number: u32) -> Option<Node<'_>> {
        let node = self.nodes.get(number as usize)?;
        let kind = match &node.what {
            What::Directory(_) => Kind::Directory,
            What::Regular { size, address } => Kind::Regular { size: *size, address: *address },
            What::Symlink(target) => Kind::Symlink(target),
            What::Char(major, minor) => Kind::CharDevice(*major, *minor),
            What::Block(major, minor) => Kind::BlockDevice(*major, *minor),
            What::Fifo => Kind::Fifo,
            What::Socket => Kind::Socket,
        };
        Some(Node {
            kind,
            mode: node.mode,
            uid: node.uid,
            gid: node.gid,
            mtime: node.mtime,
            mtime_nanos: node.nanos,
        })
    }

    fn children(&self, number: u32) -> impl Iterator<Item = (&[u8], u32)> {
        let children = match &self.nodes[number as usize].what {
            What::Directory(children) => children.as_slice(),
            _ => panic!("children of a node that has none"),
        };
        children.iter().map(|(name, child)| (name.as_slice(), *child))
    }

    fn xattrs(&self, number: u32) -> impl Iterator<Item = (&[u8], &[u8])> {
        let xattrs = &self.nodes[number as usize].xattrs;
        xattrs.iter().map(|(name, value)| (name.as_slice(), value.as_slice()))
    }
}
