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
//! * `fuse/abi.rs`: layouts and numbers of the kernel's protocol.
//! * `fuse/request.rs`: requests, read with every length checked.
//! * `fuse/session.rs`: takes requests and answers them.
//! * `fuse/state.rs`: the hidden file that tells how much of the layer is here.

pub(crate) mod abi;
pub(crate) mod request;
mod session;
mod state;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use content::Digest;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use tokio::sync::watch;

use crate::layer::Layer;
use crate::tree::OpaqueXattr;
use session::Session;

/// How long the kernel may take for its first request. It sends it during the mount.
const FIRST_REQUEST: Duration = Duration::from_secs(10);
/// How long [`Mount::unmount`] waits for files that are still open.
const LAST_CLOSE: Duration = Duration::from_secs(2);

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
}

fn hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::PermissionDenied => " (mounting needs CAP_SYS_ADMIN: run as root)",
        _ => "",
    }
}

/// A mounted layer. Dropping it unmounts it; what still has files open there keeps being served.
pub struct Mount {
    path: PathBuf,
    session: Arc<Session>,
    threads: watch::Receiver<usize>,
    unmounted: AtomicBool,
}

/// Mounts `layer` at `mountpoint`, an existing directory. Must be called inside a tokio runtime.
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
    let (path, options) = (mountpoint.to_owned(), options.clone());
    // A task of its own: if the caller goes away, it ends all the same and its mount is dropped.
    let mounting = tokio::spawn(mount_at(layer, path, options)).await;
    let failed = |error| MountError::Mount { path: mountpoint.to_owned(), source: io::Error::other(error) };
    mounting.map_err(failed)?
}

async fn mount_at(layer: Arc<Layer>, path: PathBuf, options: MountOptions) -> Result<Mount, MountError> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let device =
        rustix::fs::open("/dev/fuse", flags, Mode::empty()).map_err(|e| MountError::Device(e.into()))?;
    let device = {
        let at = path.clone();
        let mounted = tokio::task::spawn_blocking(move || attach(&device, &at).map(|()| device)).await;
        let failed = |source| MountError::Mount { path: path.clone(), source };
        mounted.map_err(|error| failed(io::Error::other(error)))?.map_err(failed)?
    };
    let session = Session::new(device, layer, &options);
    let (alive, threads) = watch::channel(options.threads.max(1));
    let alive = Arc::new(alive);
    // From here on the mount is taken down again by dropping.
    let mount = Mount { path, session, threads, unmounted: AtomicBool::new(false) };
    for number in 0..options.threads.max(1) {
        let session = Arc::clone(&mount.session);
        let alive = Arc::clone(&alive);
        let work = move || {
            let _counted = Counted(alive);
            session.serve();
        };
        std::thread::Builder::new().name(format!("fuse-{number}")).spawn(work).map_err(MountError::Thread)?;
    }
    if tokio::time::timeout(FIRST_REQUEST, mount.session.started()).await != Ok(true) {
        return Err(MountError::Silent { path: mount.path.clone() });
    }
    Ok(mount)
}

/// Counts a thread out when it ends, however it ends.
struct Counted(Arc<watch::Sender<usize>>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.send_modify(|threads| *threads = threads.saturating_sub(1));
    }
}

fn attach(device: &OwnedFd, path: &Path) -> io::Result<()> {
    // `default_permissions`: the kernel checks the modes that we report, without asking.
    let data = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions",
        device.as_raw_fd()
    );
    let data = CString::new(data).map_err(io::Error::other)?;
    let flags = MountFlags::RDONLY | MountFlags::NOATIME;
    Ok(rustix::mount::mount("pantala", path, "fuse.pantala", flags, data.as_c_str())?)
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
        if !self.unmounted.swap(true, Ordering::AcqRel)
            && let Err(error) = detach(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "a layer cannot be unmounted");
        }
    }
}

fn detach(path: &Path) -> io::Result<()> {
    match rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
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
