//! A layer: every byte of its files can be read at any time, and arrives when it is first wanted.
//!
//! The table of contents says which *chunks* a read touches. Chunks that are here are read from the data
//! file. For one that is not there is a *flight*, one per chunk however many readers wait: the flight
//! carries it from the source through inflating and verification to the disk, and lets all of them go.
//!
//! * `layer/read.rs`: what a reader does, and the order in which it gives up.
//! * `layer/flight.rs`: which chunks travel together, and who waits for them.
//! * `layer/fetch.rs`: the way of the bytes.
//! * `layer/schedule.rs`: what is fetched though nobody waits: readahead, prefetch, background.
//! * `layer/hold.rs`: who uses the layer, and what ends when nobody does.

mod fetch;
mod flight;
mod hold;
mod read;
mod schedule;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use content::{Digest, ReadError, ReadErrorKind};
use estargz::Toc;
use serde::Serialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::ahead::Ahead;
use crate::bitmap::Bitmap;
use crate::engine::{Engine, Wanted};
use crate::error::LayerError;
use crate::fill::Fill;
use crate::layout::Layout;
use crate::metadata;
use crate::source::Sources;
use crate::tree::{OpaqueXattr, Tree};
use flight::Flight;
pub use hold::Layer;
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

/// The layer itself. Work under way holds it; who uses it holds a [`Layer`].
pub(crate) struct Core {
    toc_digest: Digest,
    digest: Digest,
    blob_len: u64,
    toc: Toc,
    layout: Layout,
    fill: Arc<Fill>,
    sources: Sources,
    engine: Arc<Engine>,
    touched: Bitmap,
    touched_bytes: AtomicU64,
    fetched_bytes: AtomicU64,
    flights: Mutex<HashMap<u32, Arc<Flight>>>,
    ahead: Mutex<Ahead>,
    complaints: Mutex<Complaints>,
    prefetched: watch::Sender<bool>,
    /// First chunk that the background fetch did not look at yet.
    cursor: AtomicU64,
    /// Steps of the background fetch that failed since one last succeeded.
    failures: AtomicU32,
    /// Cancelled when nobody uses the layer any more.
    unused: Mutex<CancellationToken>,
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
    pub(crate) toc_digest: Digest,
    pub(crate) layer_digest: Digest,
    pub(crate) blob_len: u64,
    pub(crate) toc: Toc,
    pub(crate) layout: Layout,
    pub(crate) fill: Fill,
    pub(crate) sources: Sources,
    pub(crate) engine: Arc<Engine>,
}

impl Core {
    pub(crate) fn new(parts: Parts) -> Arc<Self> {
        let Parts { toc_digest, layer_digest, blob_len, toc, layout, fill, sources, engine } = parts;
        let fetched: u64 = fill
            .present()
            .ones()
            .filter_map(|bit| toc.chunk(u32::try_from(bit).ok()?))
            .map(|c| u64::from(c.len))
            .sum();
        Arc::new_cyclic(|itself| Self {
            touched: Bitmap::new(fill.present().len()),
            touched_bytes: AtomicU64::new(0),
            fetched_bytes: AtomicU64::new(fetched),
            flights: Mutex::default(),
            ahead: Mutex::default(),
            complaints: Mutex::default(),
            prefetched: watch::Sender::new(false),
            cursor: AtomicU64::new(0),
            failures: AtomicU32::new(0),
            unused: Mutex::default(),
            itself: itself.clone(),
            toc_digest,
            digest: layer_digest,
            blob_len,
            toc,
            layout,
            fill: Arc::new(fill),
            sources,
            engine,
        })
    }

    /// The layer's numbers.
    pub(crate) fn status(&self) -> LayerStatus {
        let size = self.toc.file_bytes();
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
        self.fetched_bytes.load(Ordering::Relaxed) == self.toc.file_bytes()
    }

    /// Asks the background fetch to bring everything, as long as somebody uses the layer.
    pub(crate) fn wants_everything(&self) {
        if self.engine.options.background_fetches == 0 {
            return;
        }
        self.engine.enqueue(Wanted { layer: self.itself.clone(), unused: self.unused() });
    }

    /// Makes what was fetched durable.
    pub(crate) fn flush(&self) {
        let Err((error, lost)) = self.fill.flush() else { return };
        let lost_bytes: u64 = lost
            .iter()
            .filter_map(|bit| self.toc.chunk(u32::try_from(*bit).ok()?))
            .map(|chunk| u64::from(chunk.len))
            .sum();
        self.fetched_bytes.fetch_sub(lost_bytes, Ordering::Relaxed);
        tracing::warn!(layer = %self.digest, %error, lost_bytes, "chunks cannot be made durable");
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

    /// The EROFS image that describes the layer.
    pub(crate) fn metadata_image(&self, opaque: OpaqueXattr) -> Result<Vec<u8>, LayerError> {
        let tree = Tree::new(&self.toc, opaque);
        let mut left_out =
            self.toc.inodes().filter_map(|inode| Some((inode.number(), tree.impossible_xattr(inode)?)));
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
        metadata::image(&self.toc, &self.layout, opaque)
            .map_err(|source| LayerError::Metadata { layer: self.digest, source })
    }

    /// The path of one name of an inode, for people.
    pub(crate) fn path_of(&self, inode: u32) -> String {
        let mut parts = Vec::new();
        let mut at = inode;
        // A path has at most 2048 parts; the bound keeps a broken table from holding us.
        for _ in 0..2048 {
            let Some(parent) = self.toc.inode(at).map(|inode| inode.parent()).filter(|parent| *parent != at)
            else {
                break;
            };
            let name = self.toc.inode(parent).and_then(|dir| dir.children().find(|(_, child)| *child == at));
            let Some((name, _)) = name else { break };
            parts.push(String::from_utf8_lossy(name).into_owned());
            at = parent;
        }
        parts.reverse();
        format!("/{}", parts.join("/"))
    }
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
