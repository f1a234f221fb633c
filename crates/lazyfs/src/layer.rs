//! A layer: every byte of its files can be read at any time, and arrives when it is first wanted.
//!
//! The table of contents says which *chunks* a read touches. Chunks that are here are read from the data
//! file. For one that is not there is a *flight*, one per chunk however many readers wait: the flight
//! carries it from the source through inflating and verification to the disk, and lets all of them go.
//!
//! * `layer/demand.rs`: the same for ranges of the data file, as the kernel asks for them.
//! * `layer/read.rs`: what a reader does, and the order in which it gives up.
//! * `layer/flight.rs`: which chunks travel together, and who waits for them.
//! * `layer/fetch.rs`: the way of the bytes.
//! * `layer/schedule.rs`: what is fetched though nobody waits: readahead, prefetch, background.
//! * `layer/record.rs`: what readers wanted first, for whoever wants to know.
//! * `layer/hold.rs`: who uses the layer, and what ends when nobody does.

mod demand;
mod fetch;
mod flight;
mod hold;
mod late;
mod lend;
mod read;
mod record;
mod schedule;

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};

use content::{Digest, ReadError, ReadErrorKind};
use estargz::Toc;
use rustix::fs::{Mode, OFlags};
use serde::Serialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::ahead::Ahead;
use crate::bitmap::Bitmap;
use crate::desk::at_desk_blocking;
use crate::engine::{Engine, Wanted};
use crate::error::LayerError;
use crate::fill::Fill;
use crate::index::Index;
use crate::layout::Layout;
use crate::metadata::{self, file::Identity};
use crate::numbers::Numbers;
use crate::reserve::is_full;
use crate::source::Sources;
use crate::tree::{OpaqueXattr, Tree};
use flight::Flight;
pub use hold::Layer;
pub use record::{Record, Touch};
pub(crate) use schedule::Step;

/// Complaints about one layer are logged at most this often; what falls in between is counted.
const COMPLAIN_EVERY: Duration = Duration::from_secs(1);

/// Numbers about a layer.
#[derive(Clone, Debug, Serialize)]
pub struct LayerStatus {
    /// sha256 of its table of contents.
    pub toc_digest: Digest,
    /// Digest of its blob, as the manifest names it.
    pub layer_digest: Digest,
    /// Bytes of the blob.
    pub blob_len: u64,
    /// Bytes of all its files.
    pub size: u64,
    /// How many of these are here.
    pub fetched: u64,
    /// How many of these lie in chunks that a reader asked for.
    pub touched: u64,
    /// Whether all bytes are here: the source is not needed any more.
    pub complete: bool,
    /// Why bytes could not be had the last time; empty once one could.
    pub error: String,
}

impl LayerStatus {
    /// The layer in stargz-snapshotter's words, as `.stargz-snapshotter/<layer digest>.json` of a FUSE mount shows it:
    /// JSON with `error`, `digest`, `size`, `fetchedSize` (both of the blob) and `fetchedPercent`.
    pub fn state_json(&self, digest: Digest) -> Vec<u8> {
        crate::fuse::state::json(digest, self)
    }

    /// How many bytes of the blob are here: the blob itself is not kept, so this is told by proportion.
    pub fn blob_fetched(&self) -> u64 {
        if self.complete {
            return self.blob_len;
        }
        let share = u128::from(self.blob_len) * u128::from(self.fetched) / u128::from(self.size.max(1));
        u64::try_from(share).unwrap_or(self.blob_len)
    }
}

/// The layer itself. Work under way holds it; who uses it holds a [`Layer`].
pub(crate) struct Core {
    folder: PathBuf,
    toc_digest: Digest,
    digest: Digest,
    blob_len: u64,
    index: Index,
    fill: Arc<Fill>,
    sources: Sources,
    engine: Arc<Engine>,
    touched: Bitmap,
    touched_bytes: AtomicU64,
    fetched_bytes: AtomicU64,
    flights: Mutex<HashMap<u32, Arc<Flight>>>,
    late: Mutex<late::Late>,
    ahead: Mutex<Ahead>,
    complaints: Mutex<Complaints>,
    prefetched: watch::Sender<bool>,
    /// First chunk that the background fetch did not look at yet.
    cursor: AtomicU64,
    /// What is counted.
    pub(crate) numbers: Numbers,
    /// Chunks that were inflated.
    inflated: AtomicU64,
    /// Steps of the background fetch that failed since one last succeeded.
    failures: AtomicU32,
    /// Cancelled when nobody uses the layer any more.
    unused: Mutex<CancellationToken>,
    /// Which metadata images this process has looked at or written: for the one and the other attribute.
    images: Mutex<[bool; 2]>,
    /// When the tree was last read to name a file.
    told: Mutex<Option<Instant>>,
    /// Who writes down what is touched, if anybody does.
    record: RwLock<Weak<record::Log>>,
    /// Files whose first read was logged, if that is wanted.
    accessed: Mutex<HashSet<u32>>,
    itself: Weak<Core>,
}

#[derive(Default)]
struct Complaints {
    last: Option<Instant>,
    withheld: u64,
    error: String,
}

/// What a layer is made of.
pub(crate) struct Parts {
    pub(crate) folder: PathBuf,
    pub(crate) toc_digest: Digest,
    pub(crate) layer_digest: Digest,
    pub(crate) blob_len: u64,
    pub(crate) index: Index,
    pub(crate) fill: Fill,
    pub(crate) sources: Sources,
    pub(crate) engine: Arc<Engine>,
    pub(crate) numbers: Numbers,
}

impl Core {
    pub(crate) fn new(parts: Parts) -> Arc<Self> {
        let Parts { folder, toc_digest, layer_digest, blob_len, index, fill, sources, engine, numbers } =
            parts;
        let fetched = index.bytes_of(fill.present());
        Arc::new_cyclic(|itself| Self {
            touched: Bitmap::new(fill.present().len()),
            touched_bytes: AtomicU64::new(0),
            fetched_bytes: AtomicU64::new(fetched),
            flights: Mutex::default(),
            late: Mutex::default(),
            ahead: Mutex::default(),
            complaints: Mutex::default(),
            prefetched: watch::Sender::new(false),
            cursor: AtomicU64::new(0),
            inflated: AtomicU64::new(0),
            failures: AtomicU32::new(0),
            unused: Mutex::default(),
            images: Mutex::default(),
            told: Mutex::default(),
            record: RwLock::default(),
            accessed: Mutex::default(),
            itself: itself.clone(),
            folder,
            toc_digest,
            digest: layer_digest,
            blob_len,
            index,
            fill: Arc::new(fill),
            sources,
            engine,
            numbers,
        })
    }

    /// The layer's numbers.
    pub(crate) fn status(&self) -> LayerStatus {
        let size = self.index.file_bytes();
        let fetched = self.fetched_bytes.load(Ordering::Relaxed);
        LayerStatus {
            toc_digest: self.toc_digest,
            layer_digest: self.digest,
            blob_len: self.blob_len,
            size,
            fetched,
            touched: self.touched_bytes.load(Ordering::Relaxed),
            complete: fetched == size,
            error: self.complaints.lock().unwrap_or_else(PoisonError::into_inner).error.clone(),
        }
    }

    /// Digest of its blob, as the manifest that opened it first names it.
    pub(crate) fn layer_digest(&self) -> Digest {
        self.digest
    }

    /// Whether every chunk is here.
    pub(crate) fn is_complete(&self) -> bool {
        self.fetched_bytes.load(Ordering::Relaxed) == self.index.file_bytes()
    }

    /// Asks the background fetch to bring everything, as long as somebody uses the layer.
    pub(crate) fn wants_everything(&self) {
        if self.engine.options.background_fetches == 0 {
            return;
        }
        self.engine.enqueue(Wanted { layer: self.itself.clone(), unused: self.unused() });
    }

    /// Whether a flush has something to do.
    pub(crate) fn is_dirty(&self) -> bool {
        self.fill.is_dirty()
    }

    /// Makes what was fetched durable.
    pub(crate) fn flush(&self) {
        let Err((error, lost)) = self.fill.flush() else { return };
        if lost.is_empty() && is_full(&error) {
            // They are on disk, only their map is not; it is tried again.
            self.engine.disk(true);
            return;
        }
        let lost_bytes: u64 = lost
            .iter()
            .filter_map(|bit| self.index.chunk(u32::try_from(*bit).ok()?))
            .map(|chunk| u64::from(chunk.len))
            .sum();
        self.fetched_bytes.fetch_sub(lost_bytes, Ordering::Relaxed);
        tracing::warn!(layer = %self.digest, %error, lost_bytes, "chunks cannot be made durable");
    }

    /// Notes that something is done which leaves memory behind.
    pub(crate) fn engine_is_busy(&self) {
        self.engine.is_busy();
    }

    /// Puts the background fetch off: somebody is about to need everything for himself.
    pub(crate) fn stir(&self) {
        self.engine.stir();
    }

    /// Logs that bytes could not be had: what for, and why. At most once a second. It is an error if
    /// somebody waited for them.
    fn complain(&self, what: &str, error: &ReadError, waited: bool) {
        if error.kind() == ReadErrorKind::Cancelled {
            return;
        }
        let mut complaints = self.complaints.lock().unwrap_or_else(PoisonError::into_inner);
        complaints.error = error.to_string();
        if complaints.last.is_some_and(|last| last.elapsed() < COMPLAIN_EVERY) {
            complaints.withheld += 1;
            return;
        }
        complaints.last = Some(Instant::now());
        let withheld = std::mem::take(&mut complaints.withheld);
        drop(complaints);
        if waited {
            tracing::error!(layer = %self.digest, %what, %error, withheld, "bytes of a layer cannot be had");
        } else {
            tracing::warn!(layer = %self.digest, %what, %error, withheld, "bytes of a layer cannot be had ahead of time");
        }
    }

    fn content_again(&self) {
        let mut complaints = self.complaints.lock().unwrap_or_else(PoisonError::into_inner);
        if !complaints.error.is_empty() {
            complaints.error.clear();
        }
    }

    /// The inodes, which stay in memory as long as somebody holds them. Reads a few megabytes if nobody does: not for
    /// the threads of a runtime.
    pub(crate) fn tree(&self) -> Result<Arc<Toc>, LayerError> {
        self.index.tree().ok_or(LayerError::Damaged { layer: self.digest })
    }

    /// The same for whoever will ask again in a moment.
    pub(crate) fn tree_for_now(&self) -> Result<Arc<Toc>, LayerError> {
        self.index.tree_for_now().ok_or(LayerError::Damaged { layer: self.digest })
    }

    /// Called now and then. Gives up what is in memory for those who ask again in a moment, if they did not; says whether
    /// there was anything.
    pub(crate) fn give_up_idle(&self) -> bool {
        self.index.give_up_idle()
    }

    /// The EROFS image that describes the layer.
    pub(crate) fn metadata_image(&self, opaque: OpaqueXattr) -> Result<Vec<u8>, LayerError> {
        let toc = self.tree()?;
        let tree = Tree::new(&toc, opaque);
        let mut left_out =
            toc.inodes().filter_map(|inode| Some((inode.number(), tree.impossible_xattr(inode)?)));
        // Once for all of them: a layer may have many.
        if tracing::enabled!(tracing::Level::DEBUG)
            && let Some((inode, name)) = left_out.next()
        {
            tracing::debug!(
                layer = %self.digest,
                file = self.path_of(inode),
                name = %name.escape_ascii(),
                other_files = left_out.count(),
                "extended attributes that no file can have are left out"
            );
        }
        let layout = Layout::new(self.index.chunks());
        if layout.len() != self.index.data_len() {
            return Err(LayerError::Damaged { layer: self.digest });
        }
        metadata::image(&toc, &layout, opaque)
            .map_err(|source| LayerError::Metadata { layer: self.digest, source })
    }

    /// Where the layer is on disk.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// See [`Layer::metadata_file`].
    pub(crate) fn metadata_file(&self, opaque: OpaqueXattr) -> Result<File, LayerError> {
        let identity = Identity { toc: self.toc_digest, data_len: self.index.data_len(), opaque };
        let path = self.folder.join(identity.name());
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder: OwnedFd = rustix::fs::open(&self.folder, flags, Mode::empty())
            .map_err(|error| LayerError::disk("opening", &self.folder)(error.into()))?;
        // Held all the while: nobody looks at an image, or writes it, a second time.
        let mut images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        let [trusted, user] = &mut *images;
        let is_known = match opaque {
            OpaqueXattr::Trusted => trusted,
            OpaqueXattr::User => user,
        };
        match metadata::file::open(&folder, &identity, *is_known) {
            Ok(Some(file)) => {
                *is_known = true;
                return Ok(file);
            }
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(image = %path.display(), %error, "a metadata image cannot be read, writing it anew");
            }
        }
        let layer = self.itself.upgrade().ok_or(LayerError::Stopped)?;
        let image = at_desk_blocking(move || layer.metadata_image(opaque)).ok_or(LayerError::Stopped)??;
        let file = metadata::file::write(&folder, &identity, image);
        let file = file.map_err(LayerError::disk("writing", &path))?;
        *is_known = true;
        Ok(file)
    }

    /// The path of one name of an inode, for people. Reads the tree if nobody holds it, but not again and again.
    pub(crate) fn path_of(&self, inode: u32) -> String {
        let tree = self.index.tree_in_memory().or_else(|| {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            if told.is_some_and(|told| told.elapsed() < COMPLAIN_EVERY) {
                return None;
            }
            *told = Some(Instant::now());
            self.index.tree()
        });
        tree.map_or_else(|| format!("inode {inode}"), |tree| path_in(&tree, inode))
    }

    /// The file that has this byte of the data file, for people.
    pub(crate) fn path_at(&self, at: u64) -> Option<String> {
        Some(self.path_of(self.index.chunk(self.index.chunk_at(at)?)?.inode))
    }
}

fn path_in(toc: &Toc, inode: u32) -> String {
    let parts: Vec<_> = path_parts(toc, inode).into_iter().map(String::from_utf8_lossy).collect();
    format!("/{}", parts.join("/"))
}

/// The names on the way from the root to an inode.
fn path_parts(toc: &Toc, inode: u32) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    let mut at = inode;
    // A path has at most 2048 parts; the bound keeps a broken table from holding us.
    for _ in 0..2048 {
        let Some(parent) = toc.inode(at).map(|inode| inode.parent()).filter(|parent| *parent != at) else {
            break;
        };
        let name = toc.inode(parent).and_then(|dir| dir.children().find(|(_, child)| *child == at));
        let Some((name, _)) = name else { break };
        parts.push(name);
        at = parent;
    }
    parts.reverse();
    parts
}

impl Drop for Core {
    fn drop(&mut self) {
        if !self.fill.is_dirty() {
            return;
        }
        let fill = Arc::clone(&self.fill);
        let flush = move || {
            if let Err((error, _)) = fill.flush() {
                tracing::debug!(%error, "chunks of a layer that is not used any more were not made durable");
            }
        };
        match tokio::runtime::Handle::try_current() {
            // Awaited at shutdown like all tasks.
            Ok(_) => drop(self.engine.tasks.spawn_blocking(flush)),
            Err(_) => flush(),
        }
    }
}
