//! The files of a layer, as its table of contents lists them.

use std::collections::HashMap;

use estargz::archive::EntryKind;
use estargz::audit::{Listed, Listing};
use estargz::{NO_PREFETCH_LANDMARK, PREFETCH_LANDMARK};
use serde::Serialize;

/// An entry of a layer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct FileReport {
    /// Its path, without a leading slash.
    pub path: String,
    /// `dir`, `reg`, `symlink`, `hardlink`, `char`, `block` or `fifo`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Permission bits, setuid, setgid and sticky: 420 is 0644.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Name of the owner, if the table has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Name of the group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Bytes of a regular file.
    pub size: u64,
    /// Modification time in seconds since 1970.
    pub mtime: i64,
    /// Target of a link.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
    /// Major and minor number of a device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<(u32, u32)>,
    /// Names of its extended attributes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub xattrs: Vec<String>,
    /// sha256 of its content.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<content::Digest>,
    /// Parts in which it is fetched.
    pub chunks: usize,
    /// Offset in the blob of the first of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// Whether a mount fetches all of it ahead.
    pub prefetched: bool,
}

/// The word of the format for a kind.
pub(crate) const fn kind_word(kind: EntryKind) -> &'static str {
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

/// All entries but the landmark, in the order of the blob. `prefetch` is where a landmark ends the prefetch.
pub(super) fn report(listing: &Listing, prefetch: u64) -> Vec<FileReport> {
    let is_landmark =
        |path: &[u8]| path == PREFETCH_LANDMARK.as_bytes() || path == NO_PREFETCH_LANDMARK.as_bytes();
    let shown = listing.entries.iter().filter(|entry| !is_landmark(&entry.path));
    shown.map(|entry| file(entry, listing, prefetch)).collect()
}

fn file(entry: &Listed, listing: &Listing, prefetch: u64) -> FileReport {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let name = |names: &HashMap<u32, String>, id: u32| names.get(&id).cloned();
    let fetched = || entry.pieces.iter().filter(|piece| !piece.zeros);
    FileReport {
        path: text(&entry.path),
        kind: kind_word(entry.kind),
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        user: name(&listing.users, entry.uid),
        group: name(&listing.groups, entry.gid),
        size: entry.size,
        mtime: entry.mtime,
        link: (!entry.link.is_empty()).then(|| text(&entry.link)),
        device: matches!(entry.kind, EntryKind::CharDevice | EntryKind::BlockDevice).then_some(entry.device),
        xattrs: entry.xattrs.keys().map(|name| text(name)).collect(),
        digest: (entry.kind == EntryKind::Regular).then(|| entry.content_digest()).flatten(),
        chunks: entry.pieces.len(),
        offset: fetched().next().map(|piece| piece.offset),
        prefetched: !entry.pieces.is_empty() && fetched().all(|piece| piece.offset < prefetch),
    }
}
