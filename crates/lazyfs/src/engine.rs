//! What all layers of a node share: limits, the tasks under way, and who may go on.
//!
//! Reads that somebody waits for go first. They have permits of their own at the source and at the
//! processor, so that no amount of prefetch can stand before them, and while one of them is at the source
//! the background fetch starts nothing new.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use content::Urgency;
use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::buffers::Buffers;
use crate::disk::{Disk, Os};
use crate::fill::Means;
use crate::keeper::Keep;
use crate::layer::Core;
use crate::numbers::Totals;
use crate::reserve::{AFTER_ANSWER, Reserve};
use crate::space::{Limits, Space};

/// How the layers of a node behave. `Default` is what a node wants.
#[derive(Clone, Debug)]
pub struct LayersOptions {
    /// Longest time that a reader waits for a chunk before it gets an I/O error.
    pub read_deadline: Duration,
    /// Reads at the source at once that somebody waits for. Each holds up to one chunk, compressed and
    /// inflated (8 MiB with the usual 4 MiB chunks).
    pub blocking_fetches: usize,
    /// Prefetches at the source at once.
    pub prefetches: usize,
    /// Layers that are fetched in the background at once. 0 switches the background fetch off.
    pub background_fetches: usize,
    /// The background fetch starts when nobody has waited for this long.
    pub background_quiet: Duration,
    /// And takes a step at least this often however busy the readers are, so that it always gets on.
    pub background_at_least: Duration,
    /// Chunks inflated at once.
    pub inflaters: usize,
    /// How long a chunk that arrived may stay in the page cache only. A crash costs fetching it again.
    pub flush_after: Duration,
    /// Bytes that the store may take on disk; `None` for as many as `keep_free` leaves. From 90 % on nothing more is
    /// fetched that nobody waits for and layers that nobody uses are deleted, the longest unused first, until 80 %
    /// are left. When all is taken, chunks are served without being kept.
    pub budget: Option<u64>,
    /// Percent of the file system that the store leaves to others. Where less is free, nothing is fetched that
    /// nobody waits for and unused layers are deleted, until a tenth more than that is free; where less than a tenth of
    /// that is free, chunks are served without being kept. 0 for none.
    pub keep_free: u8,
    /// Bytes held back so that the `native` driver can go on when the disk is full. It is the most that can be
    /// read of absent chunks in ten seconds then. Allocated when the first layer is mounted so.
    pub reserve: u64,
    /// Whether the first read of each file is logged, at level `debug`. The `native` driver hears of reads only as long as a
    /// layer is not complete.
    pub log_file_access: bool,
}

impl Default for LayersOptions {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        Self {
            read_deadline: Duration::from_mins(1),
            blocking_fetches: 64,
            prefetches: 4,
            background_fetches: 2,
            background_quiet: Duration::from_millis(1500),
            background_at_least: Duration::from_secs(5),
            inflaters: cores,
            flush_after: Duration::from_secs(2),
            budget: None,
            // A kubelet evicts pods when less than 15 % are free (imagefs.available), and begins to delete images when
            // 85 % are used: what nobody waits for must not be what gets it there.
            keep_free: 18,
            reserve: 64 << 20,
            log_file_access: false,
        }
    }
}

/// A layer that wants all its bytes, and what is cancelled when nobody wants the layer.
pub(crate) struct Wanted {
    pub(crate) layer: Weak<Core>,
    pub(crate) unused: CancellationToken,
}

/// The shared part.
pub(crate) struct Engine {
    pub(crate) options: LayersOptions,
    /// Who keeps the descriptors of data files for the next process.
    pub(crate) keep: Arc<dyn Keep>,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) space: Arc<Space>,
    pub(crate) reserve: Arc<Reserve>,
    pub(crate) totals: Arc<Totals>,
    pub(crate) tasks: TaskTracker,
    pub(crate) stop: CancellationToken,
    blocking: Semaphore,
    prefetch: Semaphore,
    background: Semaphore,
    inflate_first: Semaphore,
    inflate_later: Semaphore,
    activity: Activity,
    /// Layers that want their background fetch, and a word when one is added.
    queue: Mutex<Vec<Wanted>>,
    pub(crate) queued: Notify,
    /// A chunk was written that is not flushed yet.
    pub(crate) wrote: Notify,
    /// What chunks pass through.
    pub(crate) buffers: Buffers,
    /// Something that takes memory was done since this was looked at.
    busy: AtomicBool,
    /// The disk was seen full: said once, until a write succeeds again.
    disk_full: AtomicBool,
}

impl Engine {
    /// The shared part of the store in `folder`.
    pub(crate) fn new(
        options: LayersOptions,
        keep: Arc<dyn Keep>,
        folder: OwnedFd,
    ) -> std::io::Result<Arc<Self>> {
        let limits = Limits { budget: options.budget, keep_free: options.keep_free };
        let space = Arc::new(Space::new(folder.try_clone()?, limits));
        let reserve = Reserve::new(folder, Arc::clone(&space), AFTER_ANSWER);
        Ok(Arc::new(Self {
            space,
            reserve,
            blocking: Semaphore::new(options.blocking_fetches.max(1)),
            prefetch: Semaphore::new(options.prefetches.max(1)),
            background: Semaphore::new(options.background_fetches.max(1)),
            inflate_first: Semaphore::new(options.inflaters.max(1)),
            // One more than there are processors: one of them waits for the data file's lock, or for the disk.
            inflate_later: Semaphore::new(options.inflaters.max(1) + 1),
            options,
            keep,
            disk: Arc::new(Os),
            totals: Arc::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            activity: Activity::default(),
            queue: Mutex::default(),
            queued: Notify::new(),
            wrote: Notify::new(),
            buffers: Buffers::default(),
            busy: AtomicBool::new(false),
            disk_full: AtomicBool::new(false),
        }))
    }

    /// What the files of layers are handled with.
    pub(crate) fn means(&self) -> Means<'_> {
        Means { disk: Arc::clone(&self.disk), keep: &*self.keep, space: Arc::clone(&self.space) }
    }

    /// Waits for leave to go to the source. `None` when the node stops.
    pub(crate) async fn fetch_permit(&self, urgency: Urgency) -> Option<SemaphorePermit<'_>> {
        let gate = match urgency {
            Urgency::Blocking => &self.blocking,
            Urgency::Prefetch => &self.prefetch,
            Urgency::Background => &self.background,
        };
        self.is_busy();
        gate.acquire().await.ok()
    }

    /// Notes that something is done which leaves memory behind.
    pub(crate) fn is_busy(&self) {
        self.busy.store(true, Ordering::Relaxed);
    }

    /// Whether anything was since this was asked last.
    pub(crate) fn was_busy(&self) -> bool {
        self.busy.swap(false, Ordering::Relaxed)
    }

    /// Waits for leave to use a processor.
    pub(crate) async fn inflate_permit(&self, urgency: Urgency) -> Option<SemaphorePermit<'_>> {
        let gate = if urgency == Urgency::Blocking { &self.inflate_first } else { &self.inflate_later };
        gate.acquire().await.ok()
    }

    /// Gives a processor back that [`Engine::inflate_permit`] gave and that was kept.
    pub(crate) fn inflated(&self, urgency: Urgency) {
        let gate = if urgency == Urgency::Blocking { &self.inflate_first } else { &self.inflate_later };
        gate.add_permits(1);
    }

    /// Counts as a reader that waited until now.
    pub(crate) fn stir(&self) {
        *self.activity.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// A reader begins to wait; it ends when the guard is dropped.
    pub(crate) fn reader_waits(&self) -> Waiting<'_> {
        self.activity.readers.fetch_add(1, Ordering::AcqRel);
        Waiting(&self.activity)
    }

    /// Waits until nobody has waited for a while, or until the background fetch has been patient enough.
    pub(crate) async fn quiet(&self) {
        let patience = tokio::time::sleep(self.options.background_at_least);
        let quiet = async {
            loop {
                let changed = self.activity.idle.notified();
                if self.activity.readers.load(Ordering::Acquire) > 0 {
                    changed.await;
                    continue;
                }
                let last = *self.activity.last.lock().unwrap_or_else(PoisonError::into_inner);
                let since = last.map_or(Duration::MAX, |last| last.elapsed());
                match self.options.background_quiet.checked_sub(since) {
                    None | Some(Duration::ZERO) => return,
                    Some(rest) => tokio::time::sleep(rest).await,
                }
            }
        };
        tokio::select! {
            () = quiet => {}
            () = patience => {}
        }
    }

    /// Adds a layer to those that want all their bytes.
    pub(crate) fn enqueue(&self, wanted: Wanted) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).push(wanted);
        self.queued.notify_one();
    }

    /// The layer that waits longest, of those that somebody uses.
    pub(crate) fn dequeue(&self) -> Option<(Arc<Core>, CancellationToken)> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.retain(|wanted| !wanted.unused.is_cancelled());
        while !queue.is_empty() {
            let Wanted { layer, unused } = queue.remove(0);
            if let Some(layer) = layer.upgrade() {
                return Some((layer, unused));
            }
        }
        None
    }

    /// Notes whether writing worked; says once that it did not.
    pub(crate) fn disk(&self, full: bool) {
        if self.disk_full.swap(full, Ordering::AcqRel) != full {
            if full {
                tracing::warn!(
                    "the disk of the layer store is full: chunks are served without being kept, background fetch waits"
                );
            } else {
                tracing::info!("the layer store can write again");
            }
        }
    }

    /// Whether the last write found the disk full.
    pub(crate) fn is_disk_full(&self) -> bool {
        self.disk_full.load(Ordering::Acquire)
    }
}

#[derive(Default)]
struct Activity {
    readers: AtomicUsize,
    last: Mutex<Option<Instant>>,
    idle: Notify,
}

/// Held while a reader waits for the source.
pub(crate) struct Waiting<'a>(&'a Activity);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        *self.0.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        if self.0.readers.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}
