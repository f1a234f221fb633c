//! The *fuse* driver: a mounted layer, and the few threads that answer the kernel.
//!
//! The content of a layer never changes, so the kernel may believe everything for ever: names (those that
//! do not exist too), attributes, directory listings, link targets and file pages stay in its caches, and
//! opening and closing are not asked at all. What remains are first lookups, and reads of pages that are
//! not in memory.
//!
//! Each mount has a few threads that take requests from `/dev/fuse`. They answer everything that needs no
//! waiting. A read of absent bytes becomes a task; its reply may come at any time, from any thread. So no
//! chunk, however slow, is in the way of another request.
//!
//! A mount outlives this process if somebody keeps its device: the next process answers it from then on, and
//! whoever waited for a reply gets it a little later. That is so for mounts in the directory tree, and for
//! those that were taken out of it but are still used below an overlay.
//!
//! * `fuse/abi.rs`: layouts and numbers of the kernel's protocol.
//! * `fuse/request.rs`: requests, read with every length checked.
//! * `fuse/session.rs`: takes requests and answers them.
//! * `fuse/state.rs`: the hidden file that tells how much of the layer is here.
//! * `fuse/attach.rs`: makes mounts, and finds them.
//! * `fuse/kept.rs`: devices that the next process gets.

pub(crate) mod abi;
mod attach;
mod kept;
pub(crate) mod request;
mod session;
pub(crate) mod state;

use std::collections::HashSet;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError, Weak};
use std::time::Duration;

use content::Digest;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use tokio::sync::watch;

use crate::error::LayerError;
use crate::keeper::Keep;
use crate::layer::Layer;
use crate::mountpoint::detach;
use crate::tree::OpaqueXattr;
use kept::{Kept, Label, Owner};
use session::{Ended, Session};

/// How long the kernel may take for its first request. It sends it during the mount.
const FIRST_REQUEST: Duration = Duration::from_secs(10);
/// How long [`Mount::unmount`] waits for files that are still open.
const LAST_CLOSE: Duration = Duration::from_secs(2);

/// Whether it was said that this kernel loses requests when a process follows another.
static SAID: Once = Once::new();

/// How a layer is mounted.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// How opaque directories are marked.
    pub opaque_xattr: OpaqueXattr,
    /// Digest that names the state file; by default the one that the layer was opened under.
    pub layer_digest: Option<Digest>,
    /// Threads that take requests.
    pub threads: usize,
    /// Reads of absent bytes under way at once. When there are more, the kernel's queue holds them.
    pub waiting_reads: usize,
}

impl Default for MountOptions {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        Self {
            opaque_xattr: OpaqueXattr::Trusted,
            layer_digest: None,
            threads: cores.clamp(2, 4),
            waiting_reads: 1024,
        }
    }
}

/// Why a layer cannot be mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// No FUSE here.
    #[error("opening /dev/fuse: {0} (is the kernel module `fuse` loaded, and the device visible here?)")]
    Device(io::Error),
    /// The mount itself.
    #[error("mounting a layer at {}: {source}{}", path.display(), hint(source))]
    Mount {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The kernel speaks another protocol, or nothing at all.
    #[error("mounting a layer at {}: the kernel does not answer", path.display())]
    Silent {
        /// Where.
        path: PathBuf,
    },
    /// A thread could not be started.
    #[error("starting a thread for a mount: {0}")]
    Thread(io::Error),
    /// Whoever keeps descriptors for the next process does not.
    #[error("keeping the device of a mount: {0}")]
    Keep(io::Error),
    /// This machine cannot do what is wanted, or what everything needs.
    #[error("{0}")]
    Unable(String),
    /// The layer cannot be shown.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// The native driver failed.
    #[error(transparent)]
    Native(#[from] crate::native::NativeError),
}

fn hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::PermissionDenied => " (mounting needs CAP_SYS_ADMIN: run as root)",
        _ => "",
    }
}

/// The FUSE mounts of this process.
pub(crate) struct Fuse {
    /// `None`: mounts die with this process.
    kept: Option<Kept>,
    sessions: Mutex<Vec<Weak<Session>>>,
    /// Mounts stay where they are when this process ends.
    stays: AtomicBool,
}

/// A mounted layer. Dropping it unmounts it; what still has files open there keeps being served.
pub struct Mount {
    path: PathBuf,
    fuse: Arc<Fuse>,
    session: Arc<Session>,
    threads: watch::Receiver<usize>,
    unmounted: AtomicBool,
}

/// Mounts `layer` at `mountpoint`, an existing directory. Must be called inside a tokio runtime. The mount ends with
/// this process; see [`Mounter`](crate::mounter::Mounter) for those that do not.
///
/// Set-user-ID files and devices keep their meaning, as in any container image.
///
/// # Errors
/// [`MountError`]. Nothing stays mounted then.
pub async fn mount(
    layer: Arc<Layer>,
    mountpoint: &Path,
    options: &MountOptions,
) -> Result<Mount, MountError> {
    Fuse::new(None).mount(layer, mountpoint, options).await
}

/// Whether FUSE works here: opens the device.
pub(crate) fn probe() -> Result<(), MountError> {
    open_device().map(drop)
}

fn open_device() -> Result<std::os::fd::OwnedFd, MountError> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    rustix::fs::open("/dev/fuse", flags, Mode::empty()).map_err(|error| MountError::Device(error.into()))
}

impl Fuse {
    fn new(kept: Option<Kept>) -> Arc<Self> {
        Arc::new(Self { kept, sessions: Mutex::default(), stays: AtomicBool::new(false) })
    }

    /// Looks for what the process before left. Blocks for a moment.
    pub(crate) fn start(keep: Arc<dyn Keep>) -> Result<Arc<Self>, MountError> {
        Ok(Self::new(Some(Kept::look(keep).map_err(MountError::Keep)?)))
    }

    /// See [`mount`].
    pub(crate) async fn mount(
        self: &Arc<Self>,
        layer: Arc<Layer>,
        at: &Path,
        options: &MountOptions,
    ) -> Result<Mount, MountError> {
        let (this, path, options) = (Arc::clone(self), at.to_owned(), options.clone());
        // A task of its own: if the caller goes away, it ends all the same and its mount is dropped.
        let mounting = tokio::spawn(async move { this.mount_at(layer, path, options).await }).await;
        let failed = |error| MountError::Mount { path: at.to_owned(), source: io::Error::other(error) };
        mounting.map_err(failed)?
    }

    async fn mount_at(
        self: Arc<Self>,
        layer: Arc<Layer>,
        path: PathBuf,
        options: MountOptions,
    ) -> Result<Mount, MountError> {
        let failed = |source| MountError::Mount { path: path.clone(), source };
        let device = open_device()?;
        // Read off the runtime's threads, for the session.
        let shown = Arc::clone(&layer);
        let tree = tokio::task::spawn_blocking(move || shown.toc()).await;
        let _tree = tree.map_err(|error| failed(io::Error::other(error)))??;
        let (toc, layer_digest) = (layer.toc_digest(), options.layer_digest.unwrap_or(layer.layer_digest()));
        let (this, opaque) = (Arc::clone(&self), options.opaque_xattr);
        let made = blocking(move || {
            let made = attach::create(device.as_fd())?;
            let label = Label { minor: made.minor(), toc, layer: layer_digest, opaque };
            let kept = this.kept.as_ref().map(|kept| kept.keep(&label, device.as_fd())).transpose();
            Ok((made, kept.map_err(MountError::Keep), device))
        });
        let (made, owner, device) = made.await.map_err(failed)?;
        let session = Session::new(device, layer, &options)?;
        // If anything fails from here on, what was made is dropped: the threads find it gone.
        let threads = self.serve_with(&session, owner?.as_ref(), options.threads)?;
        if tokio::time::timeout(FIRST_REQUEST, session.started()).await != Ok(true) {
            return Err(MountError::Silent { path });
        }
        let at = path.clone();
        blocking(move || made.show(&at)).await.map_err(failed)?;
        Ok(Mount { path, fuse: self, session, threads, unmounted: AtomicBool::new(false) })
    }

    /// Starts the threads of a session.
    fn serve_with(
        self: &Arc<Self>,
        session: &Arc<Session>,
        owner: Option<&Owner>,
        threads: usize,
    ) -> Result<watch::Receiver<usize>, MountError> {
        let threads = threads.max(1);
        let (alive, watched) = watch::channel(threads);
        let alive = Arc::new(alive);
        {
            let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
            sessions.retain(|session| session.strong_count() > 0);
            sessions.push(Arc::downgrade(session));
        }
        for number in 0..threads {
            let (this, session, owner) = (Arc::clone(self), Arc::clone(session), owner.cloned());
            let counted = Counted(Arc::clone(&alive));
            let work = move || {
                let ended = session.serve();
                // Each thread sees the end; the first to come gives the device up.
                if let (Ended::Gone, Some(kept), Some(owner)) = (ended, &this.kept, &owner) {
                    kept.forget(owner);
                }
                drop(session);
                drop(counted);
            };
            std::thread::Builder::new()
                .name(format!("fuse-{number}"))
                .spawn(work)
                .map_err(MountError::Thread)?;
        }
        Ok(watched)
    }

    /// What the process before mounted at `at`, if it is `layer` as `options` want it, and its device was kept.
    ///
    /// # Errors
    /// That the mount table cannot be read, or a thread not be started.
    pub(crate) async fn take_over(
        self: &Arc<Self>,
        layer: Arc<Layer>,
        at: &Path,
        options: &MountOptions,
    ) -> Result<Option<Mount>, MountError> {
        let Some(kept) = &self.kept else { return Ok(None) };
        let path = at.to_owned();
        let shown = blocking(move || attach::shown_at(&path)).await;
        let failed = |source| MountError::Mount { path: at.to_owned(), source };
        let Some(minor) = shown.map_err(failed)? else { return Ok(None) };
        let wanted = Label {
            minor,
            toc: layer.toc_digest(),
            layer: options.layer_digest.unwrap_or(layer.layer_digest()),
            opaque: options.opaque_xattr,
        };
        let Some((label, device, owner)) = kept.take(|label| *label == wanted) else { return Ok(None) };
        let (session, threads) = self.go_on(label, device, &owner, layer, options)?;
        Ok(Some(Mount {
            path: at.to_owned(),
            fuse: Arc::clone(self),
            session,
            threads,
            unmounted: AtomicBool::new(false),
        }))
    }

    /// Serves what shows `layer` and is at no place any more.
    ///
    /// # Errors
    /// That a thread cannot be started.
    pub(crate) fn serve(self: &Arc<Self>, layer: &Arc<Layer>) -> Result<usize, MountError> {
        let mut served = 0;
        let Some(kept) = &self.kept else { return Ok(served) };
        let (toc, shown) = (layer.toc_digest(), shown());
        while let Some((label, device, owner)) =
            kept.take(|label| label.toc == toc && !shown.contains(&label.minor))
        {
            self.go_on(label, device, &owner, Arc::clone(layer), &MountOptions::default())?;
            served += 1;
        }
        Ok(served)
    }

    fn go_on(
        self: &Arc<Self>,
        label: Label,
        device: std::os::fd::OwnedFd,
        owner: &Owner,
        layer: Arc<Layer>,
        options: &MountOptions,
    ) -> Result<(Arc<Session>, watch::Receiver<usize>), MountError> {
        let options =
            MountOptions { opaque_xattr: label.opaque, layer_digest: Some(label.layer), ..options.clone() };
        let (session, asked) = Session::go_on(device, layer, &options)?;
        match asked {
            Ok(()) | Err(Errno::NODEV) => {}
            // Of the machine, not of the mount: once is enough.
            Err(error) => SAID.call_once(|| {
                tracing::warn!(
                    %error,
                    "this kernel (before Linux 6.9) cannot send again what the process before did not answer: whoever \
                     waited for it must be killed"
                );
            }),
        }
        let threads = self.serve_with(&session, Some(owner), options.threads)?;
        Ok((session, threads))
    }

    /// TOC and layer digest of what the process before left, and what is at no place any more.
    pub(crate) fn orphans(&self) -> Vec<(Digest, Digest)> {
        let Some(kept) = &self.kept else { return Vec::new() };
        let shown = shown();
        let orphans = kept.left().into_iter().filter(|label| !shown.contains(&label.minor));
        orphans.map(|label| (label.toc, label.layer)).collect()
    }

    /// Ends what is at no place any more and shows this layer.
    pub(crate) fn abandon(&self, toc: &Digest) {
        let Some(kept) = &self.kept else { return };
        let shown = shown();
        while let Some((_, device, owner)) =
            kept.take(|label| label.toc == *toc && !shown.contains(&label.minor))
        {
            kept.forget(&owner);
            // The last descriptor: the kernel fails whatever waits.
            drop(device);
        }
    }

    /// Stops answering: another process goes on. With `stays`, mounts that are dropped stay where they are.
    pub(crate) fn leave(&self, stays: bool) {
        if stays {
            self.stays.store(true, Ordering::Release);
        }
        for session in self.sessions.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            if let Some(session) = session.upgrade() {
                session.leave();
            }
        }
    }
}

/// Device numbers of what is mounted somewhere. If that cannot be told, all that was left is an orphan.
fn shown() -> HashSet<u32> {
    attach::all_shown().unwrap_or_default()
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// Counts a thread out when it ends, however it ends.
struct Counted(Arc<watch::Sender<usize>>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.send_modify(|threads| *threads = threads.saturating_sub(1));
    }
}

impl Mount {
    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The layer that it shows.
    pub fn layer(&self) -> &Arc<Layer> {
        self.session.layer()
    }

    /// Whether the kernel still sends requests: the mount is there, or something has files open in it.
    pub fn is_alive(&self) -> bool {
        *self.threads.borrow() > 0
    }

    /// Takes the mount away. Nobody can open anything there any more; files that are open stay readable,
    /// and are waited for a moment only.
    ///
    /// # Errors
    /// What the system said; that nothing is mounted there is no error.
    pub async fn unmount(&self) -> io::Result<()> {
        if !self.unmounted.swap(true, Ordering::AcqRel) {
            let path = self.path.clone();
            let detached = tokio::task::spawn_blocking(move || detach(&path)).await;
            if let Err(error) = detached.unwrap_or_else(|error| Err(io::Error::other(error))) {
                self.unmounted.store(false, Ordering::Release);
                return Err(error);
            }
        }
        let mut threads = self.threads.clone();
        // `.is_err()` at once: the guard that it drops must not be held over the next await.
        let open = tokio::time::timeout(LAST_CLOSE, threads.wait_for(|threads| *threads == 0)).await.is_err();
        if open {
            tracing::debug!(path = %self.path.display(), "unmounted, but files in it are still open");
            return Ok(());
        }
        self.session.finish().await;
        Ok(())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if !self.fuse.stays.load(Ordering::Acquire)
            && !self.unmounted.swap(true, Ordering::AcqRel)
            && let Err(error) = detach(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "a layer cannot be unmounted");
        }
    }
}

/// Takes away mounts at `path` whose process died: they answer "transport endpoint is not connected" to
/// everything. Says whether there was one. Any other mount is left alone.
///
/// # Errors
/// What the system said.
pub fn unmount_stale(path: &Path) -> io::Result<bool> {
    let mut found = false;
    // Several may lie on one another.
    while matches!(rustix::fs::statfs(path), Err(Errno::NOTCONN)) {
        rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?;
        found = true;
    }
    Ok(found)
}
