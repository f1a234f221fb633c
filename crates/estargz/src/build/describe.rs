//! From a tar entry to its entry in the TOC.

use std::collections::HashMap;

use super::podman::PodmanProblem;
use crate::archive::{Entry, EntryKind};
use crate::path::PathProblem;
use crate::toc::is_overlay_xattr;
use crate::toc::json::JsonEntry;

/// Why a tar entry has no place in a TOC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DescribeProblem {
    /// The name is no path inside the layer.
    #[error("{0}")]
    Path(#[from] PathProblem),
    /// JSON has no bytes: such a name could not be read back.
    #[error("its {0} is not UTF-8, which a table of contents cannot hold; rename it in the image")]
    NotUtf8(&'static str),
    /// The tar, whose bytes must stay as they are, has a TOC of its own.
    #[error(
        "the layer holds a table of contents already, which cannot be left out if its diffID is to be kept"
    )]
    HasToc,
    /// containers/storage would not take it.
    #[error(transparent)]
    Podman(#[from] PodmanProblem),
    /// The data of a sparse file are not its content.
    #[error(
        "it is a sparse or contiguous file, which must be stored anew, and that cannot be done if the diffID is to be kept"
    )]
    Sparse,
    /// A hard link that would become one to another file.
    #[error("it is a hard link to a file that a later entry replaces")]
    Replaced,
}

/// Keeps track of the names of owners: they are written when they change.
#[derive(Default)]
pub(super) struct Describer {
    users: HashMap<u32, String>,
    groups: HashMap<u32, String>,
}

impl Describer {
    pub(super) fn describe(&mut self, entry: &Entry) -> Result<JsonEntry, DescribeProblem> {
        let mut xattrs = std::collections::BTreeMap::new();
        for (name, value) in &entry.xattrs {
            if !is_overlay_xattr(name) {
                xattrs.insert(text(name, "extended attribute's name")?, value.clone());
            }
        }
        let is_link = matches!(entry.kind, EntryKind::Symlink | EntryKind::Hardlink);
        Ok(JsonEntry {
            name: text(&entry.path, "name")?,
            kind: kind(entry.kind),
            size: entry.size,
            mtime: Some(entry.mtime),
            link: if is_link { text(&entry.link, "link target")? } else { String::new() },
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            user: changed(&mut self.users, entry.uid, &entry.user),
            group: changed(&mut self.groups, entry.gid, &entry.group),
            device: entry.device,
            xattrs,
            has_digest: entry.kind == EntryKind::Regular,
            chunk_offset: 0,
            chunk_size: 0,
        })
    }
}

pub(super) const fn kind(kind: EntryKind) -> &'static str {
    match kind {
        EntryKind::Directory => "dir",
        EntryKind::Regular => "reg",
        EntryKind::Symlink => "symlink",
        EntryKind::Hardlink => "hardlink",
        EntryKind::CharDevice => "char",
        EntryKind::BlockDevice => "block",
        EntryKind::Fifo => "fifo",
    }
}

pub(super) fn text(bytes: &[u8], what: &'static str) -> Result<String, DescribeProblem> {
    String::from_utf8(bytes.to_vec()).map_err(|_| DescribeProblem::NotUtf8(what))
}

/// The name, if it is another one than the last for this id. A name that is no UTF-8 is left out: nobody
/// looks files up by it, the number counts.
fn changed(known: &mut HashMap<u32, String>, id: u32, name: &[u8]) -> Option<String> {
    let name = std::str::from_utf8(name).ok().filter(|name| !name.is_empty())?;
    if known.get(&id).is_some_and(|last| last == name) {
        return None;
    }
    known.insert(id, name.to_owned());
    Some(name.to_owned())
}
