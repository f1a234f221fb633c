//! From entries of the JSON to checked parts of the table, one at a time.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use content::Digest;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::schema::{self, JsonEntry};
use super::tree::{Raw, RawChunk, Tree};
use super::{EntryProblem, Kind, Landmark, NO_DIGEST, Span, Toc, TocError, TocLimits};
use crate::path::{self, MAX_PATH};
use crate::{NO_PREFETCH_LANDMARK, PREFETCH_LANDMARK, TOC_NAME};

/// As Linux has them: `XATTR_NAME_MAX`, `XATTR_SIZE_MAX`, and as many as `XATTR_LIST_MAX` could list.
const MAX_XATTR_NAME: usize = 255;
const MAX_XATTR_VALUE: usize = 65536;
const MAX_XATTR_LIST: usize = 65536;

/// Device numbers of Linux: 12 bits and 20 bits.
const MAX_MAJOR: u32 = 0xfff;
const MAX_MINOR: u32 = 0xf_ffff;

/// Modes as tar has them, with the bits of the type. Some readers know others above that (Go's own setuid
/// bit, for one): what they take for a mode must not be another one here.
const MAX_MODE: i64 = 0o177_777;

pub(super) fn parse(json: &[u8], payload_end: u64, limits: &TocLimits) -> Result<Toc, TocError> {
    if json.len() as u64 > limits.json_bytes {
        return Err(TocError::TooLarge { what: "bytes", limit: limits.json_bytes });
    }
    let mut reader = EntryReader { tree: Tree::new(payload_end, *limits), open: None, limits };
    let version = schema::read(json, &mut |entry| reader.entry(entry))?;
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
    /// Where its last frame ends at the latest.
    blob_end: u64,
    digest: Option<Digest>,
    /// Its entry; `None` for a landmark, which is not shown.
    raw: Option<u32>,
}

struct EntryReader<'a> {
    tree: Tree,
    open: Option<OpenFile>,
    limits: &'a TocLimits,
}

fn named(name: &str, problem: impl Into<EntryProblem>) -> TocError {
    TocError::Entry { name: name.chars().take(200).collect(), problem: problem.into() }
}

fn unsigned<T: TryFrom<i64>>(value: i64, what: &'static str) -> Result<T, EntryProblem> {
    T::try_from(value).map_err(|_| EntryProblem::Range(what))
}

fn at_most(value: i64, limit: u32, what: &'static str) -> Result<u32, EntryProblem> {
    unsigned(value, what)
        .and_then(|value| if value <= limit { Ok(value) } else { Err(EntryProblem::Range(what)) })
}

impl EntryReader<'_> {
    fn entry(&mut self, entry: &JsonEntry<'_>) -> Result<(), TocError> {
        let is_chunk = &*entry.kind == "chunk";
        if !is_chunk {
            self.close_file()?;
        }
        self.tree.count_entry()?;
        let taken = if is_chunk { self.chunk(entry) } else { self.inode(entry) };
        match taken {
            Ok(()) => Ok(()),
            Err(Refusal::Entry(problem)) => Err(named(&entry.name, problem)),
            Err(Refusal::Table(error)) => Err(error),
        }
    }

    /// The file that was open must have been covered by its chunks.
    fn close_file(&mut self) -> Result<(), TocError> {
        match self.open.take() {
            Some(file) if file.covered != file.size => Err(TocError::Entry {
                name: crate::archive::display(self.tree.bytes(file.path)),
                problem: EntryProblem::Tiling,
            }),
            Some(OpenFile { digest: Some(digest), raw: Some(raw), .. }) => {
                self.tree.push_digest(raw, digest);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn inode(&mut self, entry: &JsonEntry<'_>) -> Result<(), Refusal> {
        let path = self.tree.clean_path(entry.name.as_bytes())?;
        let landmark = match self.tree.bytes(path) {
            name if name == PREFETCH_LANDMARK.as_bytes() => {
                Some(Landmark::Prefetch(unsigned(entry.offset, "offset")?))
            }
            name if name == NO_PREFETCH_LANDMARK.as_bytes() => Some(Landmark::NoPrefetch),
            _ => None,
        };
        let kind = match &*entry.kind {
            "dir" => Some(Kind::Directory),
            "reg" => Some(Kind::Regular),
            "symlink" => Some(Kind::Symlink),
            "char" => Some(Kind::CharDevice),
            "block" => Some(Kind::BlockDevice),
            "fifo" => Some(Kind::Fifo),
            "hardlink" => None,
            other => return Err(EntryProblem::Type(other.chars().take(40).collect()).into()),
        };
        // 2^32 - 1 stands for "no id" in Linux; no file can have it.
        let uid = at_most(entry.uid, u32::MAX - 1, "uid")?;
        let gid = at_most(entry.gid, u32::MAX - 1, "gid")?;
        // A hard link's names count for the entries that follow.
        let user = self.tree.owners.user(uid, &entry.user_name)?;
        let group = self.tree.owners.group(gid, &entry.group_name)?;
        let Some(kind) = kind else {
            let target = self.tree.clean_path(entry.link_name.as_bytes())?;
            self.tree.push(Raw::hardlink(path, target));
            return Ok(());
        };
        let mut raw = Raw::new(path, kind);
        if !(0..=MAX_MODE).contains(&entry.mode) {
            return Err(EntryProblem::Range("mode").into());
        }
        raw.node.mode = u16::try_from(entry.mode & 0o7777).unwrap_or(0);
        (raw.node.uid, raw.node.gid) = (uid, gid);
        (raw.node.user, raw.node.group) = (user, group);
        let nanos;
        (raw.node.mtime, nanos) = mtime(&entry.modtime)?;
        let size = unsigned(entry.size, "size")?;
        self.xattrs(entry, &mut raw)?;
        match kind {
            Kind::Symlink => {
                let target = entry.link_name.as_bytes();
                if target.is_empty() || target.len() >= MAX_PATH || target.contains(&0) {
                    return Err(EntryProblem::Link.into());
                }
                let span = self.tree.add_string(target)?;
                raw.node.size = u64::from(span.len);
                (raw.node.first, raw.node.count) = (span.at, span.len);
            }
            Kind::CharDevice | Kind::BlockDevice => {
                raw.node.first = at_most(entry.dev_major, MAX_MAJOR, "devMajor")?;
                raw.node.count = at_most(entry.dev_minor, MAX_MINOR, "devMinor")?;
            }
            Kind::Regular => raw.node.size = size,
            Kind::Directory | Kind::Fifo => {}
        }
        let hidden = landmark.is_some() || self.tree.bytes(path) == TOC_NAME.as_bytes();
        let number = if hidden { None } else { Some(self.tree.push(raw)) };
        if let Some(number) = number.filter(|_| nanos > 0) {
            self.tree.push_nanos(number, nanos);
        }
        if let Some(landmark) = landmark {
            self.tree.landmark = landmark;
        }
        if kind == Kind::Regular { self.file(entry, path, size, number) } else { Ok(()) }
    }

    /// A regular file, which its first chunk is part of.
    fn file(
        &mut self,
        entry: &JsonEntry<'_>,
        path: Span,
        size: u64,
        raw: Option<u32>,
    ) -> Result<(), Refusal> {
        let blob_end = match unsigned(entry.end_offset, "endOffset")? {
            0 => self.tree.payload_end(),
            end if end <= self.tree.payload_end() => end,
            _ => return Err(EntryProblem::OutsidePayload.into()),
        };
        let digest = match &*entry.digest {
            "" => None,
            digest => Some(digest.parse().map_err(EntryProblem::Digest)?),
        };
        if size == 0 && digest.is_some_and(|digest| digest != Digest::of(b"")) {
            return Err(EntryProblem::DigestsDiffer.into());
        }
        self.open = Some(OpenFile { path, size, covered: 0, blob_end, digest, raw });
        if size > 0 { self.piece(entry) } else { Ok(()) }
    }

    /// A further chunk of the file before it.
    fn chunk(&mut self, entry: &JsonEntry<'_>) -> Result<(), Refusal> {
        let Some(file) = &self.open else { return Err(EntryProblem::StrayChunk.into()) };
        if !entry.name.is_empty() {
            let mut name = Vec::new();
            path::clean(entry.name.as_bytes(), &mut name).map_err(EntryProblem::Path)?;
            if name != self.tree.bytes(file.path) {
                return Err(EntryProblem::StrayChunk.into());
            }
        }
        self.piece(entry)
    }

    /// The chunk that `entry`, a file's first or a further one, describes.
    fn piece(&mut self, entry: &JsonEntry<'_>) -> Result<(), Refusal> {
        let file = self.open.as_mut().ok_or(EntryProblem::StrayChunk)?;
        let file_offset: u64 = unsigned(entry.chunk_offset, "chunkOffset")?;
        let left = file.size - file.covered;
        if file_offset != file.covered || left == 0 {
            return Err(EntryProblem::Tiling.into());
        }
        let len = match unsigned(entry.chunk_size, "chunkSize")? {
            0 => left,
            len if len > left => return Err(EntryProblem::Tiling.into()),
            len => len,
        };
        file.covered += len;
        let is_zeros = match &*entry.chunk_type {
            "" | "data" => false,
            "zeros" => true,
            other => return Err(EntryProblem::ChunkType(other.chars().take(40).collect()).into()),
        };
        let whole = file.digest.filter(|_| len == file.size);
        let digest = match &*entry.chunk_digest {
            "" => None,
            digest => Some(digest.parse().map_err(EntryProblem::Digest)?),
        };
        let digest = match (digest, whole) {
            (Some(digest), Some(whole)) if digest != whole => return Err(EntryProblem::DigestsDiffer.into()),
            // A file in one piece may name its digest only once.
            (Some(digest), _) | (None, Some(digest)) => digest,
            (None, None) if is_zeros || self.limits.unverified => NO_DIGEST,
            (None, None) => return Err(EntryProblem::NoDigest.into()),
        };
        if whole.is_some() && !is_zeros {
            // The chunk says it.
            file.digest = None;
        }
        let chunk = RawChunk {
            raw: file.raw,
            file_offset,
            len: 0,
            blob_start: unsigned(entry.offset, "offset")?,
            blob_end: file.blob_end,
            inner_offset: unsigned(entry.inner_offset, "innerOffset")?,
            is_zeros,
            digest,
        };
        self.store(chunk, len)
    }

    /// Keeps a chunk of `len` bytes. Zeros that are too many for one chunk are several.
    fn store(&mut self, chunk: RawChunk, len: u64) -> Result<(), Refusal> {
        let limit = u64::from(self.limits.chunk_bytes.max(1));
        if !chunk.is_zeros || len <= limit {
            let len = u32::try_from(len).map_err(|_| EntryProblem::LargeChunk)?;
            return Ok(self.tree.push_chunk(RawChunk { len, ..chunk })?);
        }
        let mut at = 0;
        while at < len {
            self.tree.count_entry().map_err(Refusal::Table)?;
            let part = u32::try_from(limit.min(len - at)).map_err(|_| EntryProblem::LargeChunk)?;
            let file_offset = chunk.file_offset + at;
            self.tree.push_chunk(RawChunk { len: part, file_offset, digest: NO_DIGEST, ..chunk })?;
            at += u64::from(part);
        }
        Ok(())
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

/// Why an entry is not taken: it is wrong, or the table has become too large.
enum Refusal {
    Entry(EntryProblem),
    Table(TocError),
}

impl From<EntryProblem> for Refusal {
    fn from(problem: EntryProblem) -> Self {
        Self::Entry(problem)
    }
}

/// Whether an attribute would steer the overlay file system that a layer becomes part of. An image has no
/// say there.
pub(crate) fn is_overlay_xattr(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.")
}

/// Whole seconds since 1970, and nanoseconds after them. Tools leave out the time 0.
fn mtime(text: &str) -> Result<(i64, u32), EntryProblem> {
    if text.is_empty() {
        return Ok((0, 0));
    }
    let time = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| EntryProblem::Time)?;
    Ok((time.unix_timestamp(), time.nanosecond()))
}
