//! Two trees, name by name.

use std::collections::{BTreeSet, HashMap};

use estargz::archive::EntryKind;
use serde::{Serialize, Serializer};

use super::Aspect;
use super::tree::{Node, NodeId, Tree};
use crate::inspect::show::short;

/// What happened to a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub enum ChangeKind {
    /// Only the second image has it.
    #[serde(rename = "A")]
    Added,
    /// Only the first has it.
    #[serde(rename = "D")]
    Deleted,
    /// Both have it, and it differs.
    #[serde(rename = "M")]
    Modified,
}

impl ChangeKind {
    /// The letter that is printed.
    pub const fn letter(self) -> char {
        match self {
            Self::Added => 'A',
            Self::Deleted => 'D',
            Self::Modified => 'M',
        }
    }
}

/// One thing in which an entry differs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct FieldChange {
    /// `type`, `mode`, `owner`, `mtime`, `content`, `link`, `xattrs`, `device` or `nlink`.
    pub field: &'static str,
    /// In the first image.
    pub a: String,
    /// In the second.
    pub b: String,
}

/// An entry that differs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Change {
    /// Its path, without a leading slash; the root is empty.
    #[serde(serialize_with = "path")]
    pub path: Vec<u8>,
    /// What happened to it.
    pub change: ChangeKind,
    /// In what it differs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<FieldChange>,
}

fn path<S: Serializer>(path: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&String::from_utf8_lossy(path))
}

/// All that differs between `a` and `b`, sorted by name.
pub(super) fn compare(a: &Tree, b: &Tree, ignore: &BTreeSet<Aspect>) -> Vec<Change> {
    let links = (Links::of(a), Links::of(b));
    let mut changes = Vec::new();
    let (mut left, mut right) = (a.names().peekable(), b.names().peekable());
    loop {
        let order = match (left.peek(), right.peek()) {
            (None, None) => return changes,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some((left, _)), Some((right, _))) => left.cmp(right),
        };
        let first = if order.is_le() { left.next() } else { None };
        let second = if order.is_ge() { right.next() } else { None };
        let change = |path: &[u8], change: ChangeKind, fields: Vec<FieldChange>| Change {
            path: path.to_vec(),
            change,
            fields,
        };
        match (first, second) {
            (Some((path, _)), None) => changes.push(change(path, ChangeKind::Deleted, Vec::new())),
            (None, Some((path, _))) => changes.push(change(path, ChangeKind::Added, Vec::new())),
            (Some((path, first)), Some((_, second))) => {
                let (Some(node_a), Some(node_b)) = (a.node(first), b.node(second)) else { continue };
                let mut fields = fields(node_a, node_b, ignore);
                if !ignore.contains(&Aspect::Nlink) {
                    fields.extend(names(path, (&links.0, first), (&links.1, second)));
                }
                if !fields.is_empty() {
                    changes.push(change(path, ChangeKind::Modified, fields));
                }
            }
            (None, None) => return changes,
        }
    }
}

/// What differs between two nodes of one name.
fn fields(a: &Node, b: &Node, ignore: &BTreeSet<Aspect>) -> Vec<FieldChange> {
    let mut fields = Vec::new();
    let mut differ = |field: &'static str, a: String, b: String| fields.push(FieldChange { field, a, b });
    let counts = |aspect: Aspect| !ignore.contains(&aspect);
    if a.kind != b.kind {
        let kind = |node: &Node| crate::inspect::kind_word(node.kind).to_owned();
        differ("type", kind(a), kind(b));
    }
    // A symbolic link has no permissions of its own.
    let has_mode = a.kind != EntryKind::Symlink && b.kind != EntryKind::Symlink;
    if counts(Aspect::Mode) && has_mode && a.mode != b.mode {
        differ("mode", format!("{:04o}", a.mode), format!("{:04o}", b.mode));
    }
    if counts(Aspect::Owner) && (a.uid, a.gid) != (b.uid, b.gid) {
        differ("owner", format!("{}:{}", a.uid, a.gid), format!("{}:{}", b.uid, b.gid));
    }
    if let (true, Some(first), Some(second)) = (counts(Aspect::Mtime), a.mtime, b.mtime)
        && first != second
    {
        differ("mtime", first.to_string(), second.to_string());
    }
    if a.kind != b.kind {
        return fields;
    }
    if counts(Aspect::Content) && (a.size, a.digest) != (b.size, b.digest) {
        let content = |node: &Node| {
            let digest = node.digest.as_ref().map_or_else(|| "unknown".to_owned(), short);
            format!("{} bytes {digest}", node.size)
        };
        differ("content", content(a), content(b));
    }
    if counts(Aspect::Link) && a.link != b.link {
        let text = |node: &Node| String::from_utf8_lossy(&node.link).into_owned();
        differ("link", text(a), text(b));
    }
    if counts(Aspect::Device) && a.device != b.device {
        differ("device", format!("{}:{}", a.device.0, a.device.1), format!("{}:{}", b.device.0, b.device.1));
    }
    if counts(Aspect::Xattrs) {
        let names: BTreeSet<&Vec<u8>> = a.xattrs.keys().chain(b.xattrs.keys()).collect();
        for name in names {
            let (first, second) = (a.xattrs.get(name), b.xattrs.get(name));
            if first != second {
                let text = |value: Option<&Vec<u8>>| match value {
                    Some(value) => {
                        format!("{}={:?}", String::from_utf8_lossy(name), String::from_utf8_lossy(value))
                    }
                    None => format!("no {}", String::from_utf8_lossy(name)),
                };
                differ("xattrs", text(first), text(second));
            }
        }
    }
    fields
}

/// The names of each inode that is no directory: how many, and the first of them.
struct Links<'a>(HashMap<NodeId, (u32, &'a [u8])>);

impl<'a> Links<'a> {
    fn of(tree: &'a Tree) -> Self {
        let mut links: HashMap<NodeId, (u32, &[u8])> = HashMap::new();
        for (name, id) in tree.names() {
            if tree.node(id).is_some_and(|node| node.kind != EntryKind::Directory) {
                links.entry(id).or_insert((0, name)).0 += 1;
            }
        }
        Self(links)
    }

    fn text(&self, id: NodeId, path: &[u8]) -> String {
        match self.0.get(&id) {
            None | Some((1, _)) => "1".to_owned(),
            Some((count, first)) if *first == path => count.to_string(),
            Some((count, first)) => format!("{count}, with {}", String::from_utf8_lossy(first)),
        }
    }
}

/// Whether one name of a file stands for the same other names in both.
fn names(path: &[u8], a: (&Links<'_>, NodeId), b: (&Links<'_>, NodeId)) -> Option<FieldChange> {
    let (first, second) = (a.0.0.get(&a.1)?, b.0.0.get(&b.1)?);
    if first == second {
        return None;
    }
    Some(FieldChange { field: "nlink", a: a.0.text(a.1, path), b: b.0.text(b.1, path) })
}

#[cfg(test)]
mod tests {
    use content::Digest;
    use estargz::audit::Listed;

    use super::super::tree::tests::{dir, entry, file, hard, tree};
    use super::*;

    fn lines(a: &[Listed], b: &[Listed], ignore: &[Aspect]) -> Vec<String> {
        let ignore = ignore.iter().copied().collect();
        compare(&tree(&[a]), &tree(&[b]), &ignore).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_field_is_compared_and_can_be_ignored() {
        let xattrs = [(b"user.x".to_vec(), b"1".to_vec())].into();
        let link = |target: &str| Listed { link: target.into(), ..entry(EntryKind::Symlink, "x") };
        let device = |minor| Listed { device: (1, minor), ..entry(EntryKind::CharDevice, "x") };
        let content = |text: &str| Listed {
            size: text.len() as u64,
            digest: Some(Digest::of(text.as_bytes())),
            pieces: Vec::new(),
            ..file("x")
        };
        for (a, b, aspect, expected) in [
            (file("x"), Listed { mode: 0o4755, ..file("x") }, Aspect::Mode, "M x (mode 0755→4755)"),
            (file("x"), Listed { uid: 5, ..file("x") }, Aspect::Owner, "M x (owner 0:0→5:0)"),
            (file("x"), Listed { mtime: 9, ..file("x") }, Aspect::Mtime, "M x (mtime 7→9)"),
            (content("ab"), content("abc"), Aspect::Content, "M x (content 2→3 bytes)"),
            (content("ab"), content("ba"), Aspect::Content, "M x (content)"),
            (link("a"), link("b"), Aspect::Link, "M x (link a→b)"),
            (device(1), device(2), Aspect::Device, "M x (device 1:1→1:2)"),
            (
                file("x"),
                Listed { xattrs, ..file("x") },
                Aspect::Xattrs,
                "M x (xattrs no user.x→user.x=\"1\")",
            ),
        ] {
            let (a, b) = ([a], [b]);
            assert_eq!(lines(&a, &b, &[]), [expected]);
            assert!(lines(&a, &b, &[aspect]).is_empty(), "{expected} was ignored");
            assert!(lines(&a, &a, &[]).is_empty());
        }
    }

    #[test]
    fn names_come_go_and_change_their_kind() {
        let (a, b) = ([file("a"), dir("b"), file("b/x")], [file("b"), file("c")]);
        assert_eq!(lines(&a, &b, &[]), ["D a", "M b (type dir→reg)", "D b/x", "A c"]);
    }

    #[test]
    fn hard_links_are_compared_by_their_names() {
        let linked = [file("a"), hard("b", "a"), file("c")];
        let copied = [file("a"), file("b"), file("c")];
        let other = [file("a"), file("b"), hard("c", "a")];
        assert_eq!(lines(&linked, &copied, &[]), ["M a (nlink 2→1)", "M b (nlink 2, with a→1)"]);
        assert_eq!(
            lines(&linked, &other, &[]),
            ["M b (nlink 2, with a→1)", "M c (nlink 1→2, with a)"],
            "a has two names in both, and they are others"
        );
        assert!(lines(&linked, &copied, &[Aspect::Nlink]).is_empty());
    }

    #[test]
    fn nobody_knows_when_an_implied_directory_was_made() {
        let written = [dir("d"), file("d/x")];
        assert!(lines(&written, &[file("d/x")], &[]).is_empty());
        let private = [Listed { mode: 0o700, ..dir("d") }, file("d/x")];
        assert_eq!(lines(&private, &[file("d/x")], &[]), ["M d (mode 0700→0755)"]);
    }
}
