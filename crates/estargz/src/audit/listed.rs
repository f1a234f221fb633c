//! The entries of a TOC, or of a tar, as they stand there: nothing merged, hidden or made up.
//!
//! [`crate::Toc`] answers what a mount shows; two entries of one name are one inode there, landmarks are gone
//! and missing parents exist. Whoever compares a TOC with a tar, or lays layers over each other, needs to
//! know what was really written. This is a second, independent reading of the same JSON: it believes nothing
//! that `Toc::parse` did not check, and checks again what it relies on.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use content::Digest;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::archive::{Entry, EntryKind};
use crate::path;
use crate::toc::is_overlay_xattr;

/// Why the entries of a TOC or a tar cannot be listed.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// Not the JSON of a TOC.
    #[error("the table of contents is malformed: {0}")]
    Json(#[from] serde_json::Error),
    /// An entry that cannot stand in a layer.
    #[error("entry {name:?}: {problem}")]
    Entry {
        /// Its name.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// A part of a file as the TOC lists it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Piece {
    /// Offset in the blob of the compressed member that holds it.
    pub offset: u64,
    /// Inflated bytes of the member that stand before it.
    pub inner_offset: u64,
    /// Where in the file it begins.
    pub file_offset: u64,
    /// Bytes of the file.
    pub len: u64,
    /// sha256 of the bytes; legacy tables have none.
    pub digest: Option<Digest>,
    /// Nothing but zeros, which no reader fetches.
    pub zeros: bool,
}

/// An entry of a TOC or of a tar.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    /// What it is.
    pub kind: EntryKind,
    /// Its path: relative, without `.` and doubled slashes; the root is empty.
    pub path: Vec<u8>,
    /// Target of a symbolic link as written, or of a hard link as a path like [`Self::path`].
    pub link: Vec<u8>,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time in whole seconds since 1970.
    pub mtime: i64,
    /// Bytes of a regular file, else 0.
    pub size: u64,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Extended attributes, without those that would steer an overlay file system.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// sha256 of a regular file's content, where it is known.
    pub digest: Option<Digest>,
    /// Where the bytes of a regular file lie; empty for an entry of a tar.
    pub pieces: Vec<Piece>,
}

impl Listed {
    /// An entry of a tar. Its content is not read, so it has no digest.
    ///
    /// # Errors
    /// [`ListError::Entry`] for a path that leads out of the layer, or is too long.
    pub fn of_tar(entry: &Entry) -> Result<Self, ListError> {
        let problem = |problem: path::PathProblem| ListError::Entry {
            name: entry.display_path(),
            problem: problem.to_string(),
        };
        let is_device = matches!(entry.kind, EntryKind::CharDevice | EntryKind::BlockDevice);
        let mut xattrs = entry.xattrs.clone();
        xattrs.retain(|name, _| !is_overlay_xattr(name));
        Ok(Self {
            kind: entry.kind,
            path: cleaned(&entry.path).map_err(problem)?,
            link: match entry.kind {
                EntryKind::Symlink => entry.link.clone(),
                EntryKind::Hardlink => cleaned(&entry.link).map_err(problem)?,
                _ => Vec::new(),
            },
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            size: if entry.kind == EntryKind::Regular { entry.size } else { 0 },
            device: if is_device { entry.device } else { (0, 0) },
            xattrs,
            digest: None,
            pieces: Vec::new(),
        })
    }

    /// The path for a message.
    pub fn display_path(&self) -> String {
        if self.path.is_empty() { "/".to_owned() } else { crate::archive::display(&self.path) }
    }

    /// The digest that a reader of this entry enforces: that of the content if it is one piece, else what the
    /// table says about the whole.
    pub fn content_digest(&self) -> Option<Digest> {
        match self.pieces.as_slice() {
            [] if self.size == 0 && self.kind == EntryKind::Regular => Some(Digest::of(b"")),
            [only] => only.digest.or(self.digest),
            _ => self.digest,
        }
    }
}

/// What a TOC lists.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Listing {
    /// The entries in their order.
    pub entries: Vec<Listed>,
    /// Names of owners, where the table gives them.
    pub users: HashMap<u32, String>,
    /// Names of groups.
    pub groups: HashMap<u32, String>,
}

/// Lists the entries of the TOC `json`, which [`crate::Toc::parse`] accepted: that is where limits are.
///
/// # Errors
/// [`ListError`].
pub fn list_toc(json: &[u8]) -> Result<Listing, ListError> {
    let Document(listing, failure) = serde_json::from_slice(json)?;
    failure.map_or(Ok(listing), Err)
}

/// One entry as it stands in the JSON.
#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct JsonEntry<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    size: i64,
    #[serde(borrow)]
    modtime: Option<Cow<'a, str>>,
    #[serde(borrow)]
    link_name: Cow<'a, str>,
    mode: i64,
    uid: i64,
    gid: i64,
    #[serde(borrow)]
    user_name: Cow<'a, str>,
    #[serde(borrow)]
    group_name: Cow<'a, str>,
    offset: i64,
    inner_offset: i64,
    dev_major: i64,
    dev_minor: i64,
    xattrs: Option<BTreeMap<String, Option<String>>>,
    #[serde(borrow)]
    digest: Cow<'a, str>,
    chunk_offset: i64,
    chunk_size: i64,
    #[serde(borrow)]
    chunk_digest: Cow<'a, str>,
    #[serde(borrow)]
    chunk_type: Cow<'a, str>,
}

impl JsonEntry<'_> {
    fn failure(&self, problem: impl fmt::Display) -> ListError {
        ListError::Entry { name: self.name.chars().take(200).collect(), problem: problem.to_string() }
    }

    fn number<T: TryFrom<i64>>(&self, value: i64, what: &str) -> Result<T, ListError> {
        T::try_from(value).map_err(|_| self.failure(format!("{what} is out of range")))
    }

    fn digest(&self, text: &str) -> Result<Option<Digest>, ListError> {
        if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(|error| self.failure(error)) }
    }

    fn piece(&self, size: u64) -> Result<Piece, ListError> {
        let file_offset: u64 = self.number(self.chunk_offset, "chunkOffset")?;
        let left =
            size.checked_sub(file_offset).ok_or_else(|| self.failure("a chunk lies behind its end"))?;
        let len = match self.number(self.chunk_size, "chunkSize")? {
            0 => left,
            len => len,
        };
        let whole = if len == size { self.digest(&self.digest)? } else { None };
        Ok(Piece {
            offset: self.number(self.offset, "offset")?,
            inner_offset: self.number(self.inner_offset, "innerOffset")?,
            file_offset,
            len,
            digest: self.digest(&self.chunk_digest)?.or(whole),
            zeros: self.chunk_type == "zeros",
        })
    }

    fn listed(&self) -> Result<Listed, ListError> {
        let kind = match &*self.kind {
            "dir" => EntryKind::Directory,
            "reg" => EntryKind::Regular,
            "symlink" => EntryKind::Symlink,
            "hardlink" => EntryKind::Hardlink,
            "char" => EntryKind::CharDevice,
            "block" => EntryKind::BlockDevice,
            "fifo" => EntryKind::Fifo,
            other => return Err(self.failure(format!("unknown type {other:?}"))),
        };
        let path = |text: &str| cleaned(text.as_bytes()).map_err(|problem| self.failure(problem));
        let mut xattrs = BTreeMap::new();
        for (name, value) in self.xattrs.iter().flatten() {
            let value = BASE64.decode(value.as_deref().unwrap_or_default());
            let value =
                value.map_err(|_| self.failure(format!("the extended attribute {name:?} is malformed")))?;
            if !is_overlay_xattr(name.as_bytes()) {
                xattrs.insert(name.clone().into_bytes(), value);
            }
        }
        let mtime = match self.modtime.as_deref() {
            None | Some("") => 0,
            Some(text) => OffsetDateTime::parse(text, &Rfc3339)
                .map(OffsetDateTime::unix_timestamp)
                .map_err(|_| self.failure("the modification time is malformed"))?,
        };
        let is_device = matches!(kind, EntryKind::CharDevice | EntryKind::BlockDevice);
        let size = if kind == EntryKind::Regular { self.number(self.size, "size")? } else { 0 };
        Ok(Listed {
            kind,
            path: path(&self.name)?,
            link: match kind {
                EntryKind::Symlink => self.link_name.as_bytes().to_vec(),
                EntryKind::Hardlink => path(&self.link_name)?,
                _ => Vec::new(),
            },
            mode: u16::try_from(self.mode & 0o7777).unwrap_or(0),
            uid: self.number(self.uid, "uid")?,
            gid: self.number(self.gid, "gid")?,
            mtime,
            size,
            device: if is_device {
                (self.number(self.dev_major, "devMajor")?, self.number(self.dev_minor, "devMinor")?)
            } else {
                (0, 0)
            },
            xattrs,
            digest: if kind == EntryKind::Regular { self.digest(&self.digest)? } else { None },
            pieces: if size > 0 { vec![self.piece(size)?] } else { Vec::new() },
        })
    }
}

impl Listing {
    fn add(&mut self, entry: &JsonEntry<'_>) -> Result<(), ListError> {
        if entry.kind == "chunk" {
            let file = self.entries.last_mut().filter(|last| last.kind == EntryKind::Regular);
            let file = file.ok_or_else(|| entry.failure("a chunk does not follow its file"))?;
            let piece = entry.piece(file.size)?;
            file.pieces.push(piece);
            return Ok(());
        }
        let listed = entry.listed()?;
        for (name, id, names) in [
            (&entry.user_name, listed.uid, &mut self.users),
            (&entry.group_name, listed.gid, &mut self.groups),
        ] {
            if !name.is_empty() {
                names.insert(id, name.to_string());
            }
        }
        self.entries.push(listed);
        Ok(())
    }
}

/// `{"version":…,"entries":[…]}`, read entry by entry: the document is never in memory twice. serde's own
/// errors cannot carry ours, so the first stands beside what was read before it.
struct Document(Listing, Option<ListError>);

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Top)
    }
}

struct Top;

impl<'de> Visitor<'de> for Top {
    type Value = Document;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table of contents")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Document, A::Error> {
        let mut document = Document(Listing::default(), None);
        while let Some(key) = map.next_key::<Cow<'_, str>>()? {
            if key == "entries" {
                if let Some(Entries(found)) = map.next_value::<Option<Entries>>()? {
                    document = found;
                }
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(document)
    }
}

struct Entries(Document);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(List)
    }
}

struct List;

impl<'de> Visitor<'de> for List {
    type Value = Entries;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of entries")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Entries, A::Error> {
        let mut document = Document(Listing::default(), None);
        while let Some(entry) = entries.next_element::<JsonEntry<'_>>()? {
            if document.1.is_none() {
                document.1 = document.0.add(&entry).err();
            }
        }
        Ok(Entries(document))
    }
}

fn cleaned(text: &[u8]) -> Result<Vec<u8>, path::PathProblem> {
    let mut out = Vec::new();
    path::clean(text, &mut out)?;
    Ok(out)
}

#[cfg(test)]
mod tests;
