//! The tar of a layer, entry by entry, held against what the TOC lists.
//!
//! Both must list the same entries in the same order, as every writer does it. The order counts: a hard link
//! is a name of the entry that stood there before it, and of two entries of one path the later is seen.

use std::io::{self, Read};

use content::{Digest, Hasher};

use super::AuditError;
use super::lie::{Lie, Spot};
use super::listed::{Listed, Listing};
use super::members::Members;
use super::track::Track;
use crate::archive::{ArchiveError, Entry, EntryKind, Reader};
use crate::{NO_PREFETCH_LANDMARK, PREFETCH_LANDMARK, TOC_NAME};

/// Bytes of a file that are hashed at once.
const STEP: usize = 64 * 1024;

/// The TOC of a blob whose tar has it as its last entry.
#[derive(Clone, Copy)]
pub(super) struct Inside {
    pub(super) digest: Digest,
    /// Offset of its member in the blob.
    pub(super) offset: u64,
}

/// What a walk found besides lies.
#[derive(Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) entries: u64,
    pub(super) files: u64,
    pub(super) file_bytes: u64,
}

/// Holds a tar against a listing.
pub(super) struct Walk<'a> {
    listing: Option<&'a Listing>,
    inside: Option<Inside>,
    track: &'a Track,
    /// Indices of the listing's entries, sorted by path, those of one path in their order.
    order: Vec<u32>,
    /// The entry of the listing that must come next.
    next: usize,
    tocs: u32,
    landmarks: u32,
    counts: Counts,
    buffer: Vec<u8>,
}

/// Why a step ended: a lie, or a blob that cannot be read.
pub(super) enum Stop {
    Lie(Box<Lie>),
    Error(AuditError),
}

impl From<Lie> for Stop {
    fn from(lie: Lie) -> Self {
        Self::Lie(Box::new(lie))
    }
}

impl<'a> Walk<'a> {
    pub(super) fn new(listing: Option<&'a Listing>, inside: Option<Inside>, track: &'a Track) -> Self {
        let entries = listing.map_or(&[][..], |listing| &listing.entries);
        let mut order: Vec<u32> = (0..).zip(entries).map(|(index, _)| index).collect();
        let path = |index: u32| entries.get(index as usize).map_or(&[][..], |entry| entry.path.as_slice());
        order.sort_by(|a, b| path(*a).cmp(path(*b)).then(a.cmp(b)));
        let buffer = vec![0; STEP];
        Self {
            listing,
            inside,
            track,
            order,
            next: 0,
            tocs: 0,
            landmarks: 0,
            counts: Counts::default(),
            buffer,
        }
    }

    /// Reads the whole tar.
    pub(super) fn run(&mut self, members: &mut Members<'_>) -> Result<(), Stop> {
        let mut reader = Reader::new(members);
        while let Some(entry) = reader.next_entry().map_err(|error| archive(self.track, error))? {
            self.entry(&entry, &mut reader)?;
        }
        if self.inside.is_some() && self.tocs == 0 {
            return Err(Lie::HiddenToc.into());
        }
        self.rest(reader.into_inner())?;
        self.leftover()?;
        if self.landmarks > 1 {
            return Err(Lie::Landmarks.into());
        }
        Ok(())
    }

    /// What was counted so far.
    pub(super) fn counts(&self) -> Counts {
        self.counts
    }

    fn entry<R: Read>(&mut self, entry: &Entry, reader: &mut Reader<R>) -> Result<(), Stop> {
        // The reader reads no byte ahead, so this is where the entry's data begins.
        let at = self.track.inflated();
        let found = Listed::of_tar(entry).map_err(Lie::Path)?;
        if self.listing.is_some() && found.path == TOC_NAME.as_bytes() {
            return self.toc(entry, reader);
        }
        if [PREFETCH_LANDMARK, NO_PREFETCH_LANDMARK].iter().any(|name| found.path == name.as_bytes()) {
            self.landmarks += 1;
        }
        self.counts.entries += 1;
        if found.kind == EntryKind::Regular {
            self.counts.files += 1;
            self.counts.file_bytes = self.counts.file_bytes.saturating_add(found.size);
        }
        let Some(listing) = self.listing else { return Ok(()) };
        let listed = self.next_listed(listing, &found)?;
        compare(&found, listed, entry)?;
        if found.kind == EntryKind::Hardlink {
            self.hard_link(listing, &found)?;
        }
        self.track.forget_before(at);
        if found.kind == EntryKind::Regular { self.content(listed, at, reader) } else { Ok(()) }
    }

    /// The entry of the TOC that this one of the tar must be.
    fn next_listed(&mut self, listing: &'a Listing, found: &Listed) -> Result<&'a Listed, Lie> {
        let name = || found.display_path();
        match listing.entries.get(self.next) {
            Some(listed) if listed.path == found.path => {
                self.next += 1;
                Ok(listed)
            }
            // It is listed, and not here.
            Some(listed) if self.last(&found.path, usize::MAX).is_some_and(|last| last > self.next) => {
                Err(Lie::Order { name: name(), listed: listed.display_path() })
            }
            _ => Err(Lie::NotInToc { name: name(), again: self.last(&found.path, self.next).is_some() }),
        }
    }

    /// Index of the last entry of this path that the listing has before entry `before`.
    fn last(&self, path: &[u8], before: usize) -> Option<usize> {
        let entries = self.listing.map_or(&[][..], |listing| &listing.entries);
        let end = self.order.partition_point(|index| {
            let index = *index as usize;
            entries.get(index).is_some_and(|entry| (entry.path.as_slice(), index) < (path, before))
        });
        let last = *self.order.get(end.checked_sub(1)?)? as usize;
        entries.get(last).filter(|entry| entry.path == path).map(|_| last)
    }

    /// Whoever unpacks a hard link sets owner, mode and attributes of its header, and so those of the file: one
    /// name more, and a file has privileges that a mount does not show, or has them for somebody else.
    fn hard_link(&self, listing: &Listing, found: &Listed) -> Result<(), Lie> {
        const SET_ID: u16 = 0o6000;
        const CAPABILITY: &[u8] = b"security.capability";
        let (mut path, mut before) = (&found.link, self.next);
        // A link to a link is rare, one to many of them is made to keep others busy.
        for _ in 0..8 {
            let target = self.last(path, before).and_then(|at| Some((at, listing.entries.get(at)?)));
            let Some((at, target)) = target else { break };
            if target.kind == EntryKind::Hardlink {
                (path, before) = (&target.link, at);
                continue;
            }
            let capability = found.xattrs.get(CAPABILITY);
            let what = if (target.mode ^ found.mode) & SET_ID != 0 {
                "set-id bits"
            } else if target.mode & SET_ID != 0 && (target.uid, target.gid) != (found.uid, found.gid) {
                "owners, and it has set-id bits,"
            } else if capability.is_some() && capability != target.xattrs.get(CAPABILITY) {
                "capabilities"
            } else {
                break;
            };
            return Err(Lie::HardLink { name: found.display_path(), target: target.display_path(), what });
        }
        Ok(())
    }

    /// The TOC itself, where it is an entry of the tar: it must be the one that the footer names.
    fn toc<R: Read>(&mut self, entry: &Entry, reader: &mut Reader<R>) -> Result<(), Stop> {
        self.tocs += 1;
        let Some(inside) = self.inside.filter(|_| self.tocs == 1) else {
            return Err(Lie::TwoTocs(entry.display_path()).into());
        };
        let start = self.track.locate(entry.position);
        if start.is_none_or(|start| (start.blob, start.inflated) != (inside.offset, entry.position)) {
            return Err(Lie::HiddenToc.into());
        }
        let mut hasher = Hasher::new();
        self.hash(reader, entry.size, &mut |part| hasher.update(part))?;
        if hasher.finish() == inside.digest { Ok(()) } else { Err(Lie::HiddenToc.into()) }
    }

    /// A file's bytes: every chunk's digest and place, and the digest of the whole.
    fn content<R: Read>(&mut self, listed: &Listed, at: u64, reader: &mut Reader<R>) -> Result<(), Stop> {
        let name = || listed.display_path();
        let alone = matches!(listed.pieces.as_slice(), [only] if only.digest.is_some());
        let mut whole = Hasher::new();
        let mut covered = 0;
        let mut content = None;
        for piece in &listed.pieces {
            let mut hasher = Hasher::new();
            let mut zeros = true;
            self.hash(reader, piece.len, &mut |part| {
                hasher.update(part);
                if !alone {
                    whole.update(part);
                }
                zeros &= !piece.zeros || part.iter().all(|byte| *byte == 0);
            })?;
            let found = hasher.finish();
            if let Some(claimed) = piece.digest.filter(|claimed| *claimed != found) {
                let offset = piece.file_offset;
                return Err(Lie::ChunkDigest { name: name(), offset, claimed, found }.into());
            }
            if piece.zeros {
                if !zeros {
                    return Err(Lie::NotZeros { name: name(), offset: piece.file_offset }.into());
                }
            } else {
                let place = at + covered;
                let start = self.track.locate(place);
                let claimed = Spot { member: piece.offset, inner: piece.inner_offset };
                let found =
                    start.map_or(claimed, |start| Spot { member: start.blob, inner: place - start.inflated });
                if found != claimed || start.is_none() {
                    let offset = piece.file_offset;
                    return Err(Lie::ChunkPlace { name: name(), offset, claimed, found }.into());
                }
            }
            covered += piece.len;
            self.track.forget_before(at + covered);
            content = Some(found);
        }
        let found = if alone { content.unwrap_or_else(|| Digest::of(b"")) } else { whole.finish() };
        match listed.digest {
            Some(claimed) if claimed != found => Err(Lie::FileDigest { name: name(), claimed, found }.into()),
            _ => Ok(()),
        }
    }

    /// Gives the next `len` bytes of the entry's data to `take`.
    fn hash<R: Read>(
        &mut self,
        reader: &mut Reader<R>,
        len: u64,
        take: &mut dyn FnMut(&[u8]),
    ) -> Result<(), Stop> {
        let mut left = len;
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(STEP).min(STEP);
            let part = self.buffer.get_mut(..want).unwrap_or_default();
            let count = match reader.data().read(part) {
                Ok(0) => {
                    return Err(archive(self.track, io::Error::from(io::ErrorKind::UnexpectedEof).into()));
                }
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(archive(self.track, error.into())),
            };
            take(part.get(..count).unwrap_or_default());
            left -= count as u64;
        }
        Ok(())
    }

    /// What follows the end of the tar: nothing but zeros.
    fn rest<R: Read>(&mut self, mut inner: R) -> Result<(), Stop> {
        loop {
            let at = self.track.inflated();
            match inner.read(&mut self.buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => {
                    let part = self.buffer.get(..count).unwrap_or_default();
                    if let Some(position) = part.iter().position(|byte| *byte != 0) {
                        return Err(Lie::Trailing(at + position as u64).into());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(archive(self.track, error.into())),
            }
        }
    }

    /// The first entry of the TOC that the tar did not have.
    fn leftover(&self) -> Result<(), Lie> {
        match self.listing.and_then(|listing| listing.entries.get(self.next)) {
            Some(entry) => {
                let again = self.last(&entry.path, self.next).is_some();
                Err(Lie::NotInTar { name: entry.display_path(), again })
            }
            None => Ok(()),
        }
    }
}

/// Whose fault an error of the tar reader is.
fn archive(track: &Track, error: ArchiveError) -> Stop {
    match error {
        ArchiveError::Io(source) if track.is_unreadable() => Stop::Error(AuditError::Read(source)),
        ArchiveError::Io(_) if track.is_bomb() => Lie::Bomb(track.inflated()).into(),
        ArchiveError::Io(source) => {
            Lie::Inflate { offset: track.member(), reason: source.to_string() }.into()
        }
        other => Lie::Archive(other).into(),
    }
}

/// Field by field, the most telling first.
fn compare(tar: &Listed, toc: &Listed, entry: &Entry) -> Result<(), Lie> {
    fn check<T: PartialEq>(
        listed: &Listed,
        what: &'static str,
        (tar, toc): (T, T),
        show: impl Fn(&T) -> String,
    ) -> Result<(), Lie> {
        if tar == toc {
            return Ok(());
        }
        let (tar, toc) = (show(&tar), show(&toc));
        Err(Lie::Differs { name: listed.display_path(), what, tar, toc })
    }
    let text = |bytes: &&[u8]| format!("{:?}", crate::archive::display(bytes));
    check(toc, "type", (tar.kind, toc.kind), |kind| format!("{kind:?}").to_lowercase())?;
    check(toc, "size", (tar.size, toc.size), u64::to_string)?;
    check(toc, "link target", (tar.link.as_slice(), toc.link.as_slice()), text)?;
    check(toc, "mode", (tar.mode, toc.mode), |mode| format!("{mode:04o}"))?;
    check(toc, "owner", (tar.uid, toc.uid), u32::to_string)?;
    check(toc, "group", (tar.gid, toc.gid), u32::to_string)?;
    check(toc, "device", (tar.device, toc.device), |(major, minor)| format!("{major}:{minor}"))?;
    if !same_time(tar.mtime, toc.mtime, entry) {
        check(toc, "time", (tar.mtime, toc.mtime), i64::to_string)?;
    }
    for (name, value) in &tar.xattrs {
        let listed = toc.xattrs.get(name);
        let (name, tar_value, toc_value) = (crate::archive::display(name), Some(value), listed);
        check(toc, "extended attribute", (tar_value, toc_value), |value| match value {
            Some(value) => format!("{name}={:?}", crate::archive::display(value)),
            None => format!("{name} not at all"),
        })?;
    }
    if let Some((name, value)) = toc.xattrs.iter().find(|(name, _)| !tar.xattrs.contains_key(*name)) {
        let (name, value) = (crate::archive::display(name), crate::archive::display(value));
        let (tar, toc) = (format!("{name} not at all"), format!("{name}={value:?}"));
        let what = "extended attribute";
        return Err(Lie::Differs { name: entry.display_path(), what, tar, toc });
    }
    Ok(())
}

/// The format has whole seconds. A tar may have fractions, which some tools truncate and others round.
/// What RFC 3339 cannot write is brought near.
fn same_time(tar: i64, toc: i64, entry: &Entry) -> bool {
    const YEARS_1_TO_9999: std::ops::Range<i64> = -62_135_596_800..253_402_300_800;
    let tar = tar.clamp(YEARS_1_TO_9999.start, YEARS_1_TO_9999.end - 1);
    tar == toc || (tar.checked_add(1) == Some(toc) && entry.mtime_nanos > 0)
}
