//! From JSON to checked entries, one at a time: the whole document is never in memory twice.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use content::Digest;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::tree::{Raw, RawChunk, Tree};
use super::{EntryProblem, Kind, Landmark, Span, Toc, TocError, TocLimits};
use crate::path::{self, MAX_PATH};
use crate::{NO_PREFETCH_LANDMARK, PREFETCH_LANDMARK, TOC_NAME};

/// As Linux has them: `XATTR_NAME_MAX`, `XATTR_SIZE_MAX`, and as many as `XATTR_LIST_MAX` could list.
const MAX_XATTR_NAME: usize = 255;
const MAX_XATTR_VALUE: usize = 65536;
const MAX_XATTR_LIST: usize = 65536;

/// One entry as it stands in the JSON. Unknown fields are ignored, as other readers do.
#[derive(Deserialize)]
#[serde(default)]
struct JsonEntry<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    size: i64,
    #[serde(borrow)]
    modtime: Cow<'a, str>,
    #[serde(borrow, rename = "linkName")]
    link_name: Cow<'a, str>,
    mode: i64,
    uid: i64,
    gid: i64,
    offset: i64,
    #[serde(rename = "innerOffset")]
    inner_offset: i64,
    #[serde(rename = "devMajor")]
    dev_major: i64,
    #[serde(rename = "devMinor")]
    dev_minor: i64,
    xattrs: Option<BTreeMap<String, Option<String>>>,
    #[serde(borrow)]
    digest: Cow<'a, str>,
    #[serde(rename = "chunkOffset")]
    chunk_offset: i64,
    #[serde(rename = "chunkSize")]
    chunk_size: i64,
    #[serde(borrow, rename = "chunkDigest")]
    chunk_digest: Cow<'a, str>,
}

impl Default for JsonEntry<'_> {
    fn default() -> Self {
        let empty = Cow::Borrowed("");
        Self {
            name: empty.clone(),
            kind: empty.clone(),
            size: 0,
            modtime: empty.clone(),
            link_name: empty.clone(),
            mode: 0,
            uid: 0,
            gid: 0,
            offset: 0,
            inner_offset: 0,
            dev_major: 0,
            dev_minor: 0,
            xattrs: None,
            digest: empty.clone(),
            chunk_offset: 0,
            chunk_size: 0,
            chunk_digest: empty,
        }
    }
}

pub(super) fn parse(json: &[u8], toc_offset: u64, limits: &TocLimits) -> Result<Toc, TocError> {
    if json.len() as u64 > limits.json_bytes {
        return Err(TocError::TooLarge { what: "bytes", limit: limits.json_bytes });
    }
    let mut reader = EntryReader { tree: Tree::new(toc_offset, *limits), open: None, failure: None };
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let outcome = Document(&mut reader).deserialize(&mut deserializer).and_then(|version| {
        deserializer.end()?;
        Ok(version)
    });
    let version = match (outcome, reader.failure.take()) {
        (_, Some(failure)) => return Err(failure),
        (Err(error), None) => return Err(error.into()),
        (Ok(version), None) => version,
    };
    if version != 1 {
        return Err(TocError::Version(version));
    }
    reader.close_file()?;
    reader.tree.finish(Digest::of(json))
}

/// A file whose chunks are still coming.
struct OpenFile {
    path: Span,
    size: u64,
    covered: u64,
    /// Its entry; `None` for a landmark, which is not shown.
    raw: Option<u32>,
}

struct EntryReader {
    tree: Tree,
    open: Option<OpenFile>,
    /// Why reading stopped: serde's own errors cannot carry it.
    failure: Option<TocError>,
}

fn named(name: &str, problem: impl Into<EntryProblem>) -> TocError {
    TocError::Entry { name: name.chars().take(200).collect(), problem: problem.into() }
}

fn unsigned<T: TryFrom<i64>>(value: i64, what: &'static str) -> Result<T, EntryProblem> {
    T::try_from(value).map_err(|_| EntryProblem::Range(what))
}

impl EntryReader {
    fn entry(&mut self, entry: &JsonEntry<'_>) -> Result<(), TocError> {
        if entry.kind == "chunk" {
            return self.chunk(entry).map_err(|problem| named(&entry.name, problem));
        }
        self.close_file()?;
        self.tree.count_entry()?;
        self.inode(entry).map_err(|problem| named(&entry.name, problem))
    }

    /// The file that was open must have been covered by its chunks.
    fn close_file(&mut self) -> Result<(), TocError> {
        match self.open.take() {
            Some(file) if file.covered != file.size => Err(TocError::Entry {
                name: crate::archive::display(self.tree.bytes(file.path)),
                problem: EntryProblem::Tiling,
            }),
            _ => Ok(()),
        }
    }

    fn inode(&mut self, entry: &JsonEntry<'_>) -> Result<(), EntryProblem> {
        let path = self.tree.clean_path(entry.name.as_bytes())?;
        let landmark = match self.tree.bytes(path) {
            name if name == PREFETCH_LANDMARK.as_bytes() => {
                Some(Landmark::Prefetch(unsigned(entry.offset, "offset")?))
            }
            name if name == NO_PREFETCH_LANDMARK.as_bytes() => Some(Landmark::NoPrefetch),
            _ => None,
        };
        let kind = match &*entry.kind {
            "dir" => Kind::Directory,
            "reg" => Kind::Regular,
            "symlink" => Kind::Symlink,
            "char" => Kind::CharDevice,
            "block" => Kind::BlockDevice,
            "fifo" => Kind::Fifo,
            "hardlink" => {
                let target = self.tree.clean_path(entry.link_name.as_bytes())?;
                self.tree.push(Raw::hardlink(path, target));
                return Ok(());
            }
            other => return Err(EntryProblem::Type(other.chars().take(40).collect())),
        };
        let mut raw = Raw::new(path, kind);
        raw.node.mode = u16::try_from(entry.mode & 0o7777).unwrap_or(0);
        raw.node.uid = unsigned(entry.uid, "uid")?;
        raw.node.gid = unsigned(entry.gid, "gid")?;
        raw.node.mtime = mtime(&entry.modtime)?;
        self.xattrs(entry, &mut raw)?;
        match kind {
            Kind::Symlink => {
                let target = entry.link_name.as_bytes();
                if target.is_empty() || target.len() >= MAX_PATH || target.contains(&0) {
                    return Err(EntryProblem::Link);
                }
                let span = self.tree.add_string(target)?;
                raw.node.size = u64::from(span.len);
                (raw.node.first, raw.node.count) = (span.at, span.len);
            }
            Kind::CharDevice | Kind::BlockDevice => {
                raw.node.first = unsigned(entry.dev_major, "devMajor")?;
                raw.node.count = unsigned(entry.dev_minor, "devMinor")?;
            }
            Kind::Regular => raw.node.size = unsigned(entry.size, "size")?,
            Kind::Directory | Kind::Fifo => {}
        }
        let hidden = landmark.is_some() || self.tree.bytes(path) == TOC_NAME.as_bytes();
        let size = raw.node.size;
        let number = if hidden { None } else { Some(self.tree.push(raw)) };
        if let Some(landmark) = landmark {
            self.tree.landmark = landmark;
        }
        if kind == Kind::Regular {
            self.open = Some(OpenFile { path, size, covered: 0, raw: number });
            if size > 0 {
                self.piece(entry)?;
            }
        }
        Ok(())
    }

    /// A further chunk of the file before it.
    fn chunk(&mut self, entry: &JsonEntry<'_>) -> Result<(), EntryProblem> {
        let Some(file) = &self.open else { return Err(EntryProblem::StrayChunk) };
        if !entry.name.is_empty() {
            let mut name = Vec::new();
            path::clean(entry.name.as_bytes(), &mut name)?;
            if name != self.tree.bytes(file.path) {
                return Err(EntryProblem::StrayChunk);
            }
        }
        self.piece(entry)
    }

    /// The chunk that `entry`, a file's first or a further one, describes.
    fn piece(&mut self, entry: &JsonEntry<'_>) -> Result<(), EntryProblem> {
        let file = self.open.as_mut().ok_or(EntryProblem::StrayChunk)?;
        let file_offset: u64 = unsigned(entry.chunk_offset, "chunkOffset")?;
        let left = file.size - file.covered;
        if file_offset != file.covered || left == 0 {
            return Err(EntryProblem::Tiling);
        }
        let len = match unsigned(entry.chunk_size, "chunkSize")? {
            0 => left,
            len if len > left => return Err(EntryProblem::Tiling),
            len => len,
        };
        let digest = match (&*entry.chunk_digest, &*entry.digest) {
            // A file in one piece may name its digest only once.
            ("", whole) if !whole.is_empty() && len == file.size => whole.parse()?,
            ("", _) => return Err(EntryProblem::NoDigest),
            (chunk, _) => chunk.parse()?,
        };
        file.covered += len;
        let chunk = RawChunk {
            raw: file.raw,
            file_offset,
            len: u32::try_from(len).map_err(|_| EntryProblem::LargeChunk)?,
            blob_start: unsigned(entry.offset, "offset")?,
            inner_offset: unsigned(entry.inner_offset, "innerOffset")?,
            digest,
        };
        self.tree.push_chunk(chunk)
    }

    fn xattrs(&mut self, entry: &JsonEntry<'_>, raw: &mut Raw) -> Result<(), EntryProblem> {
        let mut listed = 0;
        for (name, value) in entry.xattrs.iter().flatten() {
            if is_overlay_xattr(name.as_bytes()) {
                continue;
            }
            listed += name.len() + 1;
            let problem = || EntryProblem::Xattr(name.chars().take(80).collect());
            let value = BASE64.decode(value.as_deref().unwrap_or_default()).map_err(|_| problem())?;
            let name_fits = !name.is_empty() && name.len() <= MAX_XATTR_NAME && !name.contains('\0');
            if !name_fits || value.len() > MAX_XATTR_VALUE || listed > MAX_XATTR_LIST {
                return Err(problem());
            }
            self.tree.push_xattr(raw, name.as_bytes(), &value)?;
        }
        Ok(())
    }
}

/// Whether an attribute would steer the overlay file system that a layer becomes part of. An image has no
/// say there.
pub(crate) fn is_overlay_xattr(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.")
}

/// Whole seconds since 1970. Tools leave out the time 0.
fn mtime(text: &str) -> Result<i64, EntryProblem> {
    if text.is_empty() {
        return Ok(0);
    }
    OffsetDateTime::parse(text, &Rfc3339).map(OffsetDateTime::unix_timestamp).map_err(|_| EntryProblem::Time)
}

/// `{"version":…,"entries":[…]}`; answers the version.
struct Document<'a>(&'a mut EntryReader);

impl<'de> DeserializeSeed<'de> for Document<'_> {
    type Value = i64;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<i64, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Document<'_> {
    type Value = i64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table of contents")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<i64, A::Error> {
        let mut version = 0;
        let mut seen = false;
        while let Some(key) = map.next_key::<Cow<'_, str>>()? {
            match &*key {
                "version" => version = map.next_value()?,
                "entries" if seen => return Err(serde::de::Error::duplicate_field("entries")),
                "entries" => {
                    seen = true;
                    map.next_value_seed(Entries(&mut *self.0))?;
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(version)
    }
}

struct Entries<'a>(&'a mut EntryReader);

impl<'de> DeserializeSeed<'de> for Entries<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Entries<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of entries")
    }

    /// How Go writes a list that was never filled.
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        while let Some(entry) = entries.next_element::<JsonEntry<'_>>()? {
            if let Err(failure) = self.0.entry(&entry) {
                self.0.failure = Some(failure);
                return Err(serde::de::Error::custom("refused"));
            }
        }
        Ok(())
    }
}
