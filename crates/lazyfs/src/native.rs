//! The *native* driver: the kernel's EROFS shows the layer's data file, and fanotify asks before it reads what may be a
//! hole.
//!
//! A layer is two files: a small image of metadata, complete, and the sparse data file. The kernel serves both
//! by itself, at the speed of a local disk. Only before it reads pages of the data file that are not in memory it
//! raises an *event*, and the reader sleeps until that is answered. The answer is given when the bytes are in the
//! file; if they cannot be had it is an error. When a layer is complete, and that is durable, its file needs no
//! guard, and nobody is asked any more.
//!
//! **Invariant: a hole is never readable as data.** So
//! * the file is marked before it is mounted (the kernel's own descriptor of the data file never asks if it was opened
//!   before), and the mark stays until all bytes are there for good;
//! * the group of all marks is never closed while anything needs it: a [keeper](crate::keeper) holds it too;
//! * no event is forgotten: each is in the [`journal`] from the moment in which the kernel hands it out
//!   until it is answered, and the next process goes on with what this one leaves;
//! * a layer is held as long as any superblock shows it, which is longer than its mount: containers go on with
//!   what they have open.
//!
//! Modules: `native/sys.rs` has the system calls and all `unsafe`; `native/event.rs` reads events; `native/journal.rs`
//! and `native/desk.rs` remember and answer them; `native/listen.rs` is the thread that takes them, and
//! `native/answer.rs` decides on each; `native/guard.rs` knows the layers; `native/superblock.rs` mounts, and
//! `native/mount.rs` is what is mounted; `native/probe.rs` tries whether it works here.

mod answer;
mod desk;
pub(crate) mod event;
mod guard;
mod journal;
mod listen;
mod mount;
mod probe;
mod superblock;
mod sys;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use content::Digest;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::error::LayerError;
use crate::keeper::Keep;
use crate::keeper::names::{GROUP, JOURNAL};
use crate::layer::Layer;
use crate::tree::OpaqueXattr;
use desk::Desk;
pub(crate) use desk::{refuse_new, refuse_unanswered};
use guard::Guards;
use journal::{Journal, Superblock};
pub use mount::NativeMount;
pub use probe::{ProbeError, probe};

/// Threads that take events. An event costs them some 5 µs, so that one has enough of it.
const THREADS: usize = 1;
/// How often layers are looked at: whether they are complete, and whether anybody still reads them.
const TIDY: Duration = Duration::from_millis(500);

/// Why a layer cannot be mounted natively.
#[derive(Debug, thiserror::Error)]
pub enum NativeError {
    /// A call of the system failed.
    #[error("{doing}: {source}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The mount itself.
    #[error("mounting a layer at {}: {source}", path.display())]
    Mount {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The layer cannot be described to EROFS.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// There are too many mounts.
    #[error("too many layers are mounted")]
    TooMany,
}

impl NativeError {
    /// Whether the fault is the layer's: EROFS has no words for what is in it.
    pub(crate) fn is_of_layer(&self) -> bool {
        matches!(self, Self::Layer(LayerError::Metadata { .. }))
    }
}

fn system(doing: &'static str) -> impl FnOnce(io::Error) -> NativeError {
    move |source| NativeError::System { doing, source }
}

/// What the threads and tasks of the driver share.
struct Inner {
    keep: Arc<dyn Keep>,
    desk: Desk,
    guards: Guards,
    runtime: Handle,
    /// Tasks that bring bytes; cancelled when the driver ends.
    tasks: TaskTracker,
    stop: CancellationToken,
    /// Events whose file nobody has registered yet, and since when.
    parked: Mutex<Vec<(u32, Instant)>>,
}

/// The fanotify group and the layers that it guards.
pub struct Native {
    inner: Arc<Inner>,
    bell: Arc<OwnedFd>,
    threads: Mutex<Vec<std::thread::JoinHandle<()>>>,
    left: AtomicBool,
    adopted: usize,
}

impl std::fmt::Debug for Native {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Native").finish_non_exhaustive()
    }
}

impl Native {
    /// Adopts what the process before left with the keeper, or begins. Must be called inside a tokio runtime. Blocks
    /// shortly.
    ///
    /// # Errors
    /// That there can be no group here, or that the keeper does not answer.
    pub fn start(keep: Arc<dyn Keep>) -> Result<Arc<Self>, NativeError> {
        let asking = "asking the keeper";
        let kept_group = keep.get(GROUP).map_err(system(asking))?;
        let adopted = kept_group.is_some();
        let kept_journal = if adopted { keep.get(JOURNAL).map_err(system(asking))? } else { None };
        let group = match kept_group {
            Some(group) => group,
            None => sys::fanotify_init().map_err(system("opening a fanotify group"))?,
        };
        let opened = kept_journal.map(|fd| Journal::open(fd.as_fd()));
        let journal = match opened {
            Some(Ok(journal)) => journal,
            other => {
                if let Some(Err(error)) = other {
                    tracing::error!(%error, "the journal of the process before cannot be used");
                }
                let fd = Journal::create().map_err(system("making the journal"))?;
                keep.keep(JOURNAL, fd.as_fd()).map_err(system(asking))?;
                Journal::open(fd.as_fd()).map_err(system("opening the journal"))?
            }
        };
        if !adopted {
            keep.keep(GROUP, group.as_fd()).map_err(system(asking))?;
        }
        if let Err(error) = journal.pin() {
            tracing::debug!(%error, "the journal is not pinned in memory");
        }
        for (number, superblock) in journal.superblocks() {
            if !is_shown(&superblock) {
                journal.forget_superblock(number);
            }
        }
        let (desk, left) = Desk::new(group, journal);
        let unanswered = left.len();
        if adopted {
            tracing::info!(unanswered, "the process before is followed");
        }
        let inner = Arc::new(Inner {
            keep,
            desk,
            guards: Guards::default(),
            runtime: Handle::current(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            parked: Mutex::new(left.iter().map(|(slot, _)| (*slot, Instant::now())).collect()),
        });
        inner.drop_marks_of_the_dead();
        let flags = rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK;
        let bell =
            rustix::event::eventfd(0, flags).map_err(|error| system("making an eventfd")(error.into()))?;
        let bell = Arc::new(bell);
        let mut threads = Vec::new();
        for reader in 0..THREADS {
            let (inner, bell) = (Arc::clone(&inner), Arc::clone(&bell));
            let thread = std::thread::Builder::new()
                .name(format!("native-{reader}"))
                .spawn(move || listen::listen(&inner, reader, &bell));
            threads.push(thread.map_err(system("starting a thread"))?);
        }
        tokio::spawn(tidy(Arc::downgrade(&inner)));
        Ok(Arc::new(Self {
            inner,
            bell,
            threads: Mutex::new(threads),
            left: AtomicBool::new(false),
            adopted: unanswered,
        }))
    }

    /// Mounts `layer` at `at`, an existing directory.
    ///
    /// # Errors
    /// [`NativeError`]. Nothing stays mounted then.
    pub async fn mount(
        self: &Arc<Self>,
        layer: Arc<Layer>,
        at: &Path,
        opaque: OpaqueXattr,
    ) -> Result<NativeMount, NativeError> {
        let (native, path) = (Arc::clone(self), at.to_owned());
        // Runs to its end whatever becomes of the caller; the mount is dropped then.
        blocking(move || native.mount_now(layer, path, opaque)).await
    }

    fn mount_now(
        self: Arc<Self>,
        layer: Arc<Layer>,
        path: PathBuf,
        opaque: OpaqueXattr,
    ) -> Result<NativeMount, NativeError> {
        let inner = &self.inner;
        let image = layer.metadata_file(opaque)?;
        layer.core().hold_reserve();
        let toc = layer.toc_digest();
        // From before the mark until the superblock is noted nobody may find that the layer is not used.
        let guard = inner.guard(&layer, true)?;
        let journal = inner.desk.journal();
        let mut noted = None;
        let mounted = superblock::mount(&image, layer.core().data(), &path, |bdi| {
            noted = journal.note_superblock(&Superblock { toc, opaque, dev: 0, bdi });
            noted.map(drop).ok_or_else(|| io::ErrorKind::StorageFull.into())
        });
        let forget = |number: Option<usize>| {
            if let Some(number) = number {
                journal.forget_superblock(number);
            }
        };
        let mounted = mounted.map_err(|source| {
            let error = if noted.is_none() {
                NativeError::TooMany
            } else {
                NativeError::Mount { path: path.clone(), source }
            };
            forget(noted);
            error
        })?;
        if let Some(number) = noted {
            journal.mounted(number, mounted.dev, mounted.number);
        }
        drop(guard);
        let mount = NativeMount {
            native: self.clone(),
            layer,
            path,
            dev: mounted.dev,
            unmounted: AtomicBool::new(false),
        };
        inner.wake_parked();
        Ok(mount)
    }

    /// What the process before mounted at `at`, if it is `layer` and still works.
    ///
    /// # Errors
    /// [`NativeError`]. What is mounted there stays.
    pub async fn take_over(
        self: &Arc<Self>,
        layer: Arc<Layer>,
        at: &Path,
        opaque: OpaqueXattr,
    ) -> Result<Option<NativeMount>, NativeError> {
        use std::os::unix::fs::MetadataExt as _;
        let (native, path) = (Arc::clone(self), at.to_owned());
        blocking(move || {
            let Ok(dev) = std::fs::symlink_metadata(&path).map(|data| data.dev()) else { return Ok(None) };
            let ours = native.inner.desk.journal().superblocks().into_iter().any(|(_, superblock)| {
                superblock.dev == dev
                    && superblock.toc == layer.toc_digest()
                    && superblock.opaque == opaque
                    && is_shown(&superblock)
            });
            if !ours {
                return Ok(None);
            }
            drop(native.inner.guard(&layer, false)?);
            native.inner.wake_parked();
            Ok(Some(NativeMount { native, layer, path, dev, unmounted: AtomicBool::new(false) }))
        })
        .await
    }

    /// Serves `layer` though it has no mountpoint any more, as long as it is read. May be repeated. Blocks shortly.
    ///
    /// # Errors
    /// [`NativeError`]. Its readers go on waiting, until they are refused.
    pub fn serve(self: &Arc<Self>, layer: &Arc<Layer>) -> Result<(), NativeError> {
        if self.inner.is_shown(&layer.toc_digest()) || self.inner.is_kept(&layer.toc_digest()) {
            drop(self.inner.guard(layer, false)?);
            self.inner.wake_parked();
        }
        Ok(())
    }

    /// The tables of contents of all layers that the process before left and that are shown, or may have unanswered
    /// events, and that nobody has registered yet.
    pub fn kept_layers(&self) -> Vec<Digest> {
        self.inner.expected()
    }

    /// Gives up a layer of the process before that cannot be opened: whoever reads it gets errors. Blocks shortly.
    pub fn abandon(&self, toc: &Digest) {
        self.inner.abandon(toc);
        self.inner.wake_parked();
    }

    /// The end of this process: nothing is answered any more. What is still read stays with the keeper; if nothing is,
    /// everything is forgotten.
    pub async fn leave(&self) {
        self.end(true).await;
    }

    /// Stops answering, so that another process can go on; everything stays with the keeper.
    pub async fn hand_over(&self) {
        self.end(false).await;
    }

    async fn end(&self, forget: bool) {
        let inner = Arc::clone(&self.inner);
        self.left.store(true, Ordering::Release);
        if forget {
            let inner = Arc::clone(&inner);
            let _ = tokio::task::spawn_blocking(move || inner.tidy_now()).await;
        }
        self.ring();
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        let joined = move || {
            for thread in threads {
                let _ = thread.join();
            }
        };
        let _ = tokio::task::spawn_blocking(joined).await;
        inner.stop.cancel();
        inner.tasks.close();
        inner.tasks.wait().await;
        inner.desk.close();
        if forget {
            let _ = tokio::task::spawn_blocking(move || inner.forget_if_idle()).await;
        }
    }

    /// Tells the threads to end.
    fn ring(&self) {
        self.inner.desk.stopping.store(true, Ordering::Release);
        let _ = rustix::io::write(&*self.bell, &1u64.to_ne_bytes());
    }

    /// Events that the process before this one had left unanswered.
    pub fn adopted(&self) -> usize {
        self.adopted
    }

    /// Events since the start.
    pub fn events(&self) -> u64 {
        self.inner.desk.events.load(Ordering::Relaxed)
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        self.ring();
        self.inner.stop.cancel();
        self.inner.desk.close();
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NativeError> + Send + 'static,
) -> Result<T, NativeError> {
    let failed = |error: tokio::task::JoinError| Err(system("working")(io::Error::other(error)));
    tokio::task::spawn_blocking(work).await.unwrap_or_else(failed)
}

/// Whether a noted superblock is, or may be, alive.
fn is_shown(superblock: &Superblock) -> bool {
    superblock::is_alive(superblock.bdi)
}

/// Looks after the layers, until the driver ends.
async fn tidy(inner: std::sync::Weak<Inner>) {
    loop {
        tokio::time::sleep(TIDY).await;
        let Some(inner) = inner.upgrade().filter(|inner| !inner.stop.is_cancelled()) else { return };
        let _ = tokio::task::spawn_blocking(move || inner.tidy_now()).await;
    }
}
