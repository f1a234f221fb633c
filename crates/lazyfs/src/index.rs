//! What a layer knows about itself, in a form that costs nothing to open.
//!
//! The table of contents is JSON: hundreds of bytes a file, to be parsed as a whole. It stays on disk as the truth,
//! and is read once: what follows from it is written to `index`, and a layer whose index is there opens by reading
//! its *head* alone (`index/head.rs`): numbers, and of each 64 chunks a line of 44 bytes. Everything else is read
//! when it is wanted:
//!
//! * the *chunks*, 64 at a time (`index/group.rs`): where in the data file and where in the blob each lies, and its
//!   digest. A few groups are remembered. A chunk that is present costs its reader no digest.
//! * the *tree*, as a whole, by whoever walks it: the *fuse* driver, the writer of a metadata image, and a log line that
//!   names a file. A natively mounted layer has its tree in the kernel's EROFS and none here.
//!
//! ```text
//! index:  head │ chunks of group 0, of group 1, … │ digests of group 0, … │ tree
//! ```
//!
//! The head ends with the BLAKE3 of itself, and holds hashes of everything behind it; each part is checked whenever it
//! is read, and no bit can change unseen. What is damaged, or of another version, is made again from `toc.json`, with
//! one line in the log, also while the layer is in use. If that is damaged as well, opening the layer fetches it
//! again.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};

use content::{ByteRange, Digest};
use estargz::{Chunk, Landmark, Toc, TocLimits};
use rustix::fs::{Mode, OFlags};

use crate::bitmap::Bitmap;
use crate::fill::replace;

mod build;
mod group;
mod head;

pub(crate) use build::build;
use group::{GROUP, Group};
use head::Head;

/// Name of the file.
pub(crate) const NAME: &str = "index";
/// Groups that are remembered: 4 readers that each cross a border, 6 KiB of memory each at most.
const REMEMBERED: usize = 8;
/// After an index could not be made again, this long passes before it is tried once more.
const DESPAIR: Duration = Duration::from_secs(10);

/// What is known of the blob and not said in its table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct About {
    pub(crate) layer: Digest,
    pub(crate) blob_len: u64,
    /// Where the payload ends.
    pub(crate) toc_offset: u64,
}

/// Where the bytes of an index are.
#[derive(Debug)]
enum Bytes {
    File(File),
    /// The disk is full.
    Memory(Vec<u8>),
}

impl Bytes {
    fn read(&self, at: u64, len: usize) -> io::Result<Vec<u8>> {
        match self {
            Self::File(file) => {
                let mut bytes = vec![0; len];
                file.read_exact_at(&mut bytes, at)?;
                Ok(bytes)
            }
            Self::Memory(all) => {
                let start = usize::try_from(at).unwrap_or(usize::MAX);
                let part = all.get(start..start.saturating_add(len));
                part.map(<[u8]>::to_vec).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
            }
        }
    }
}

/// The tree, as far as it is in memory.
#[derive(Default)]
struct Known {
    /// What anybody holds.
    tree: Weak<Toc>,
    /// Held for those who will ask again in a moment.
    kept: Option<Arc<Toc>>,
    /// Whether one of them asked since [`Index::give_up_idle`].
    asked: bool,
}

/// The index of one layer.
pub(crate) struct Index {
    folder: PathBuf,
    head: Head,
    bytes: RwLock<Arc<Bytes>>,
    /// Groups that were used last, the latest last.
    groups: Mutex<Vec<Arc<Group>>>,
    tree: Mutex<Known>,
    /// When it could not be made again, if it could not.
    despaired: Mutex<Option<Instant>>,
}

impl Index {
    /// Opens the index in `folder`; `None` if there is none.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub(crate) fn open(folder: &Path, toc: &Digest) -> io::Result<Option<Self>> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = match rustix::fs::open(folder.join(NAME), flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let len = file.metadata()?.len();
        Self::over(folder, toc, Bytes::File(file), len).map(Some)
    }

    /// Makes the index of a table, keeps it in `folder`, and opens it. It is in memory alone if it cannot be kept.
    ///
    /// # Errors
    /// That the table is too large for an index.
    pub(crate) fn make(folder: &Path, toc: &Toc, about: &About) -> io::Result<Self> {
        let all = build(toc, about)?;
        match keep(folder, &all) {
            Ok(()) => {
                if let Ok(Some(index)) = Self::open(folder, &toc.digest()) {
                    return Ok(index);
                }
            }
            Err(error) => {
                tracing::warn!(folder = %folder.display(), %error, "the index of a layer cannot be kept, it stays in memory");
            }
        }
        let len = all.len() as u64;
        Self::over(folder, &toc.digest(), Bytes::Memory(all), len)
    }

    fn over(folder: &Path, toc: &Digest, bytes: Bytes, len: u64) -> io::Result<Self> {
        let head = Head::read(|at, len| bytes.read(at, len), len)?;
        if head.facts.digest != *toc {
            return Err(malformed("it is that of another layer"));
        }
        Ok(Self {
            folder: folder.to_owned(),
            head,
            bytes: RwLock::new(Arc::new(bytes)),
            groups: Mutex::default(),
            tree: Mutex::default(),
            despaired: Mutex::default(),
        })
    }

    /// What the table does not say about its blob.
    pub(crate) fn about(&self) -> &About {
        &self.head.about
    }

    /// Number of chunks. They are numbered as in the table.
    pub(crate) fn chunk_count(&self) -> u32 {
        self.head.facts.chunk_count
    }

    /// The layer's landmark.
    pub(crate) fn landmark(&self) -> Landmark {
        self.head.facts.landmark
    }

    /// Bytes of all regular files.
    pub(crate) fn file_bytes(&self) -> u64 {
        self.head.facts.file_bytes
    }

    /// Length of the data file.
    pub(crate) fn data_len(&self) -> u64 {
        self.head.data_len
    }

    /// The chunks that are nothing but zeros, ascending.
    pub(crate) fn zeros(&self) -> impl Iterator<Item = usize> + '_ {
        self.head.zeros.iter().flat_map(|run| run.start as usize..run.end as usize)
    }

    /// The chunk of this number. `None` also if the index is damaged and cannot be made again.
    pub(crate) fn chunk(&self, number: u32) -> Option<Chunk> {
        let group = self.group(number / GROUP)?;
        let mut chunk = group.chunk(number)?;
        chunk.digest = match group.digest(number) {
            Some(digest) => digest,
            None => self.with_digests(&group)?.digest(number)?,
        };
        Some(chunk)
    }

    /// All chunks, ascending.
    pub(crate) fn chunks(&self) -> impl Iterator<Item = Chunk> + '_ {
        (0..self.chunk_count()).map_while(|number| self.chunk(number))
    }

    /// Where in the data file a chunk begins.
    pub(crate) fn start(&self, chunk: u32) -> Option<u64> {
        self.group(chunk / GROUP)?.start(chunk)
    }

    /// The chunk that holds this byte of the data file. `None` for those behind the end of a file.
    pub(crate) fn chunk_at(&self, at: u64) -> Option<u32> {
        let number = self.begun(at).ok()?.checked_sub(1)?;
        let group = self.group(number / GROUP)?;
        let end = group.start(number)?.checked_add(u64::from(group.chunk(number)?.len))?;
        (at < end).then_some(number)
    }

    /// The chunks that begin in `range` of the data file.
    pub(crate) fn chunks_in(&self, range: ByteRange) -> Range<u32> {
        // Of a group that cannot be read, all: whoever asks for one of them is told that it is missing.
        let begun = |at: u64| at.checked_sub(1).map_or(Ok(0), |at| self.begun(at));
        let start = begun(range.start).unwrap_or_else(|group| group.start);
        start..begun(range.end).unwrap_or_else(|group| group.end).max(start)
    }

    /// The chunks that have a byte in `range` of the data file.
    pub(crate) fn chunks_touching(&self, range: ByteRange) -> Range<u32> {
        let chunks = self.chunks_in(range);
        let before = self.chunk_at(range.start).filter(|_| !range.is_empty());
        before.map_or(chunks.start, |before| before.min(chunks.start))..chunks.end
    }

    /// Where in the data file the file ends that the chunk is part of.
    pub(crate) fn file_end(&self, chunk: u32) -> Option<u64> {
        let number = chunk / GROUP;
        let line = self.head.lines.get(number as usize)?;
        self.group(number)?.file_end(chunk, line.file_end)
    }

    /// Bytes of files in the chunks that are set.
    pub(crate) fn bytes_of(&self, chunks: &Bitmap) -> u64 {
        let count = |number: u32| {
            let range = self.numbers(number);
            let set = range.clone().filter(|chunk| chunks.get(*chunk as usize)).count();
            if set == 0 {
                return 0;
            }
            if set == range.len() {
                return self.head.bytes_of_group(number);
            }
            let Some(group) = self.group(number) else { return 0 };
            let set = range.filter(|chunk| chunks.get(*chunk as usize));
            set.filter_map(|chunk| group.chunk(chunk)).map(|chunk| u64::from(chunk.len)).sum()
        };
        (0..self.head.group_count()).map(count).sum()
    }

    /// The inodes, without chunks. Reads all of them, if nobody holds them at present.
    pub(crate) fn tree(&self) -> Option<Arc<Toc>> {
        self.tree_of(&mut self.tree.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The same, for whoever will ask again in a moment: it stays in memory as long as somebody does.
    pub(crate) fn tree_for_now(&self) -> Option<Arc<Toc>> {
        let mut known = self.tree.lock().unwrap_or_else(PoisonError::into_inner);
        known.asked = true;
        if let Some(tree) = &known.kept {
            return Some(Arc::clone(tree));
        }
        let tree = self.tree_of(&mut known)?;
        known.kept = Some(Arc::clone(&tree));
        Some(tree)
    }

    fn tree_of(&self, known: &mut Known) -> Option<Arc<Toc>> {
        if let Some(tree) = known.tree.upgrade() {
            return Some(tree);
        }
        let tree = Arc::new(self.checked(|bytes| self.head.tree(|at, len| bytes.read(at, len)))?);
        known.tree = Arc::downgrade(&tree);
        Some(tree)
    }

    /// Called now and then: gives the tree up if nobody asked since the last time. Says whether there was one.
    pub(crate) fn give_up_idle(&self) -> bool {
        let mut known = self.tree.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::take(&mut known.asked) {
            return false;
        }
        let tree = known.kept.take();
        drop(known);
        tree.is_some()
    }

    /// The inodes, if somebody holds them.
    pub(crate) fn tree_in_memory(&self) -> Option<Arc<Toc>> {
        self.tree.lock().unwrap_or_else(PoisonError::into_inner).tree.upgrade()
    }

    /// How many chunks begin at or before this byte of the data file; the numbers among which it is, if they cannot be
    /// read.
    fn begun(&self, at: u64) -> Result<u32, Range<u32>> {
        let lines = self.head.lines.partition_point(|line| line.data_start <= at);
        let Some(number) = lines.checked_sub(1).and_then(|number| u32::try_from(number).ok()) else {
            return Ok(0);
        };
        self.group(number).map(|group| group.begun(at)).ok_or_else(|| self.numbers(number))
    }

    fn numbers(&self, group: u32) -> Range<u32> {
        let start = group.saturating_mul(GROUP);
        start..start.saturating_add(GROUP).min(self.chunk_count())
    }

    fn group(&self, number: u32) -> Option<Arc<Group>> {
        {
            let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(at) = groups.iter().rposition(|group| group.number() == number) {
                let group = Arc::clone(groups.get(at)?);
                if at + 1 != groups.len() {
                    let group = groups.remove(at);
                    groups.push(group);
                }
                return Some(group);
            }
        }
        if number >= self.head.group_count() {
            return None;
        }
        let group = Arc::new(self.checked(|bytes| self.head.group(number, |at, len| bytes.read(at, len)))?);
        self.remember(&group);
        Some(group)
    }

    /// The same group, with the digests of its chunks.
    fn with_digests(&self, group: &Group) -> Option<Arc<Group>> {
        let number = group.number();
        let digests = self.checked(|bytes| self.head.digests(number, |at, len| bytes.read(at, len)))?;
        let group = Arc::new(group.with(digests));
        self.remember(&group);
        Some(group)
    }

    fn remember(&self, group: &Arc<Group>) {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        groups.retain(|other| other.number() != group.number());
        if groups.len() >= REMEMBERED {
            groups.remove(0);
        }
        groups.push(Arc::clone(group));
    }

    /// Reads something; what is damaged is made again and read once more.
    fn checked<T>(&self, read: impl Fn(&Bytes) -> io::Result<T>) -> Option<T> {
        let bytes = Arc::clone(&self.bytes.read().unwrap_or_else(PoisonError::into_inner));
        let error = match read(&bytes) {
            Ok(read) => return Some(read),
            Err(error) => error,
        };
        let mut despaired = self.despaired.lock().unwrap_or_else(PoisonError::into_inner);
        let current = Arc::clone(&self.bytes.read().unwrap_or_else(PoisonError::into_inner));
        if !Arc::ptr_eq(&bytes, &current) {
            // Somebody else made it again meanwhile.
            return read(&current).ok();
        }
        if despaired.is_some_and(|when| when.elapsed() < DESPAIR) {
            return None;
        }
        let folder = self.folder.display();
        let again = self.made_again().and_then(|bytes| {
            let read = read(&bytes)?;
            *self.bytes.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(bytes);
            Ok(read)
        });
        match again {
            Ok(read) => {
                *despaired = None;
                tracing::warn!(%folder, %error, "the index of a layer was damaged, it was made again");
                Some(read)
            }
            Err(toc) => {
                *despaired = Some(Instant::now());
                tracing::error!(%folder, %error, %toc, "the index of a layer is damaged and cannot be made again");
                None
            }
        }
    }

    fn made_again(&self) -> io::Result<Bytes> {
        let (about, facts) = (&self.head.about, &self.head.facts);
        let toc = stored_toc(&self.folder, &facts.digest, about)?;
        let again = Self::make(&self.folder, &toc, about)?;
        if again.head != self.head {
            return Err(malformed("the table of contents says something else now"));
        }
        let bytes = again.bytes.into_inner().unwrap_or_else(PoisonError::into_inner);
        Arc::into_inner(bytes).ok_or_else(|| malformed("it is in use already"))
    }
}

/// Reads all that can be read of the bytes of an index, with checksums that are right wherever they are in the head. For
/// the fuzz target.
#[doc(hidden)]
pub fn read_all(all: &[u8]) {
    let resealed = head::reseal(all);
    for all in [all, &resealed] {
        let bytes = Bytes::Memory(all.to_vec());
        let read = |at, len| bytes.read(at, len);
        let Ok(head) = Head::read(read, all.len() as u64) else { continue };
        for number in 0..head.group_count().min(16) {
            let _ = (head.group(number, read), head.digests(number, read));
        }
        if let Ok(tree) = head.tree(read) {
            let _ = tree.inodes().map(|inode| inode.children().len() + inode.xattrs().len()).max();
        }
    }
}

/// The table of contents in `folder`, if it is the one.
///
/// # Errors
/// That it cannot be read, or is another one.
pub(crate) fn stored_toc(folder: &Path, digest: &Digest, about: &About) -> io::Result<Toc> {
    let json = std::fs::read(folder.join("toc.json"))?;
    if Digest::of(&json) != *digest {
        return Err(malformed("the digest of the table of contents is wrong"));
    }
    Toc::parse(&json, about.toc_offset, &TocLimits::default()).map_err(io::Error::other)
}

fn keep(folder: &Path, all: &[u8]) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder: OwnedFd = rustix::fs::open(folder, flags, Mode::empty())?;
    replace(&folder, NAME, all)
}

fn malformed(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests;
