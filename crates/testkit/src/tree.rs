//! Two file trees compared, attribute by attribute.
//!
//! What a container could notice: kind, permissions, owner, size and content, time of modification to the second,
//! links and which names share a file, device numbers, extended attributes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use anyhow::{Context, Result};
use content::{Digest, Hasher};

/// Everything that is compared of one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// `file`, `dir`, `symlink`, `char`, `block`, `fifo` or `socket`.
    pub kind: &'static str,
    /// The twelve permission bits.
    pub mode: u32,
    /// User and group.
    pub owner: (u32, u32),
    /// Seconds since 1970.
    pub mtime: i64,
    /// Bytes of a regular file, and their digest.
    pub content: Option<(u64, Digest)>,
    /// Where a symbolic link points.
    pub target: Option<String>,
    /// The device's number.
    pub device: Option<u64>,
    /// The first name, in sorted order, of the same file; its own when it has only one. Not for folders.
    pub same_as: String,
    /// How many names it has. Not for folders, whose count is the file system's own affair.
    pub links: u64,
    /// Extended attributes, sorted.
    pub xattrs: Vec<(String, Vec<u8>)>,
}

/// A tree by path, relative to its root, which is the empty path.
pub type Tree = BTreeMap<String, Node>;

/// Reads everything below `root`, and the root itself.
pub fn read(root: &Path) -> Result<Tree> {
    let mut tree = Tree::new();
    let mut first_names = BTreeMap::new();
    add(root, String::new(), &mut tree, &mut first_names)?;
    Ok(tree)
}

fn add(
    file: &Path,
    path: String,
    tree: &mut Tree,
    first_names: &mut BTreeMap<(u64, u64), String>,
) -> Result<()> {
    let node =
        read_node(file, &path, first_names).with_context(|| format!("cannot read {}", file.display()))?;
    let is_dir = node.kind == "dir";
    let prefix = if path.is_empty() { String::new() } else { format!("{path}/") };
    tree.insert(path, node);
    if !is_dir {
        return Ok(());
    }
    let entries = fs::read_dir(file).with_context(|| format!("cannot list {}", file.display()))?;
    let mut names = entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?;
    names.sort();
    for name in names {
        add(&file.join(&name), format!("{prefix}{}", name.to_string_lossy()), tree, first_names)?;
    }
    Ok(())
}

fn read_node(file: &Path, path: &str, first_names: &mut BTreeMap<(u64, u64), String>) -> Result<Node> {
    let metadata = fs::symlink_metadata(file)?;
    let file_type = metadata.file_type();
    let (mut device, mut target, mut content) = (None, None, None);
    let kind = if file_type.is_dir() {
        "dir"
    } else if file_type.is_symlink() {
        target = Some(fs::read_link(file)?.to_string_lossy().into_owned());
        "symlink"
    } else if file_type.is_char_device() {
        device = Some(metadata.rdev());
        "char"
    } else if file_type.is_block_device() {
        device = Some(metadata.rdev());
        "block"
    } else if file_type.is_fifo() {
        "fifo"
    } else if file_type.is_socket() {
        "socket"
    } else {
        let mut hasher = Hasher::new();
        let len = io::copy(&mut File::open(file)?, &mut hasher)?;
        content = Some((len, hasher.finish()));
        anyhow::ensure!(len == metadata.len(), "{len} bytes were read of a file of {}", metadata.len());
        "file"
    };
    let same_as = if kind == "dir" {
        String::new()
    } else {
        first_names.entry((metadata.dev(), metadata.ino())).or_insert_with(|| path.to_owned()).clone()
    };
    Ok(Node {
        kind,
        mode: metadata.mode() & 0o7777,
        owner: (metadata.uid(), metadata.gid()),
        mtime: metadata.mtime(),
        content,
        target,
        device,
        same_as,
        links: if kind == "dir" { 0 } else { metadata.nlink() },
        xattrs: xattrs(file)?,
    })
}

/// Every difference, a line each; empty when the trees are the same.
pub fn differences(expected: &Tree, seen: &Tree) -> Vec<String> {
    let mut lines = Vec::new();
    for (path, node) in expected {
        match seen.get(path) {
            None => lines.push(format!("/{path} is missing")),
            Some(other) if other != node => lines.push(format!("/{path}: expected {node:?}, seen {other:?}")),
            Some(_) => {}
        }
    }
    lines.extend(
        seen.keys().filter(|path| !expected.contains_key(*path)).map(|path| format!("/{path} is extra")),
    );
    lines
}

/// A file's extended attributes, sorted, links not followed.
pub fn xattrs(file: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    // Linux's own limits for one list and one value.
    let mut buffer = vec![0; 65_536];
    let len = match rustix::fs::llistxattr(file, &mut buffer) {
        Ok(len) => len,
        Err(rustix::io::Errno::NOTSUP) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let names = buffer[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let mut attributes = Vec::new();
    for name in names {
        let mut value = vec![0; 65_536];
        let len = rustix::fs::lgetxattr(file, name, &mut value)?;
        value.truncate(len);
        attributes.push((String::from_utf8_lossy(name).into_owned(), value));
    }
    attributes.sort();
    Ok(attributes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_byte_a_lost_link_and_an_extra_file_are_seen() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for dir in [a.path(), b.path()] {
            fs::create_dir(dir.join("d")).unwrap();
            fs::write(dir.join("d/one"), "1").unwrap();
            fs::hard_link(dir.join("d/one"), dir.join("d/two")).unwrap();
        }
        let same = |expected: &Tree| {
            let mut seen = read(b.path()).unwrap();
            // The clock may have moved on between the two.
            for (path, node) in &mut seen {
                node.mtime = expected.get(path).map_or(node.mtime, |other| other.mtime);
            }
            differences(expected, &seen)
        };
        let expected = read(a.path()).unwrap();
        assert_eq!(same(&expected), Vec::<String>::new());
        fs::remove_file(b.path().join("d/two")).unwrap();
        fs::write(b.path().join("d/two"), "1").unwrap();
        fs::write(b.path().join("d/three"), "").unwrap();
        let lines = same(&expected);
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert!(lines[2] == "/d/three is extra", "{lines:?}");
    }
}
