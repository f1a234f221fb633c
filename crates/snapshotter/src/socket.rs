//! The Unix socket that containerd knows.
//!
//! A socket file outlives the process that made it. So one that is found is tried: if somebody answers, it
//! is theirs; if nobody does, it is only a file. A service manager may listen in our place (systemd's `.socket` units): then
//! the socket is there before we are and after, and whoever connects meanwhile waits.

use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, PoisonError};

use tokio::net::{UnixListener, UnixStream};

/// Why the socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody answers on it.
    #[error(
        "another snapshotter is listening on {0}: stop it, or choose another --address (a node: --snapshotter-address)"
    )]
    Taken(PathBuf),
    /// Something else lies there.
    #[error("{0} is there and is no socket: choose another --address, or move it away")]
    NotASocket(PathBuf),
    /// The system refuses.
    #[error("{doing} {path}: {error}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// With which path.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

/// A listening socket whose file goes with it.
pub struct Socket {
    path: PathBuf,
    /// Tells our file from one that somebody put in its place: its inode, and when it was last changed,
    /// because inodes are used again. `None`: the service manager's, who listens on when we are gone.
    identity: Option<(u64, i64, i64)>,
}

impl Socket {
    /// Takes one of the sockets that the service manager listens on for us.
    fn adopt(
        path: &Path,
        passed: std::os::unix::net::UnixListener,
    ) -> Result<(Self, UnixListener), SocketError> {
        let failed = |error| SocketError::Io { doing: "taking over", path: path.to_owned(), error };
        passed.set_nonblocking(true).map_err(failed)?;
        let listener = UnixListener::from_std(passed).map_err(failed)?;
        Ok((Self { path: path.to_owned(), identity: None }, listener))
    }

    /// Listens on `path`, as the service manager does already if it was told to; makes its directory if it is missing.
    ///
    /// # Errors
    /// [`SocketError::Taken`] if somebody answers there.
    pub async fn bind(path: &Path) -> Result<(Self, UnixListener), SocketError> {
        let failed = |doing| {
            let path = path.to_owned();
            move |error| SocketError::Io { doing, path, error }
        };
        if let Some(passed) = take_passed(path) {
            return Self::adopt(path, passed);
        }
        if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
            let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
            made.map_err(failed("making the directory of"))?;
        }
        match UnixStream::connect(path).await {
            Ok(_) => return Err(SocketError::Taken(path.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                use std::os::unix::fs::FileTypeExt;
                let stat = std::fs::symlink_metadata(path).map_err(failed("looking at"))?;
                if !stat.file_type().is_socket() {
                    return Err(SocketError::NotASocket(path.to_owned()));
                }
                std::fs::remove_file(path).map_err(failed("removing the stale socket"))?;
            }
            Err(error) => return Err(failed("trying")(error)),
        }
        let listener = UnixListener::bind(path).map_err(failed("listening on"))?;
        // Who can talk to this socket can mount and delete images: root alone.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
            .map_err(failed("protecting"))?;
        let identity = std::fs::symlink_metadata(path).map(|stat| identity(&stat));
        let identity = identity.map_err(failed("looking at"))?;
        Ok((Self { path: path.to_owned(), identity: Some(identity) }, listener))
    }
}

/// What the service manager listens on for this process, as far as nobody took it yet.
static PASSED: LazyLock<Mutex<Vec<std::os::unix::net::UnixListener>>> = LazyLock::new(|| {
    Mutex::new(lazyfs::keeper::sockets().into_iter().map(|(_, socket)| socket.into()).collect())
});

/// The one of them that is `path`.
fn take_passed(path: &Path) -> Option<std::os::unix::net::UnixListener> {
    let mut passed = PASSED.lock().unwrap_or_else(PoisonError::into_inner);
    let at = passed.iter().position(|socket| is_at(socket, path));
    if at.is_none() && !passed.is_empty() {
        tracing::warn!(
            address = %path.display(),
            "the service manager listens for this service, but elsewhere: ListenStream= and --address must be one path"
        );
    }
    Some(passed.swap_remove(at?))
}

fn is_at(socket: &std::os::unix::net::UnixListener, path: &Path) -> bool {
    socket.local_addr().is_ok_and(|address| address.as_pathname().is_some_and(|found| is_same(found, path)))
}

/// Whether two paths are of one file, or of one that is not there yet.
fn is_same(one: &Path, other: &Path) -> bool {
    let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    one == other || real(one) == real(other)
}

fn identity(stat: &std::fs::Metadata) -> (u64, i64, i64) {
    (stat.ino(), stat.ctime(), stat.ctime_nsec())
}

impl Drop for Socket {
    fn drop(&mut self) {
        let Some(ours) = self.identity else { return };
        let is_ours = std::fs::symlink_metadata(&self.path).is_ok_and(|stat| identity(&stat) == ours);
        if is_ours && let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "could not remove the socket");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_living_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/s.sock");
        let (socket, listener) = Socket::bind(&path).await.unwrap();
        assert!(matches!(Socket::bind(&path).await, Err(SocketError::Taken(_))));

        // What a killed process leaves: a file, and nobody behind it.
        drop(listener);
        let (second, _listener) = Socket::bind(&path).await.unwrap();
        drop(socket);
        assert!(path.exists(), "the first one removed the second one's file");
        drop(second);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_socket_of_the_service_manager_is_used_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        let manager = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let client = std::os::unix::net::UnixStream::connect(&path).unwrap();
        let passed = manager.try_clone().unwrap();
        assert!(is_at(&passed, &path) && !is_at(&passed, &dir.path().join("other.sock")));
        let (socket, listener) = Socket::adopt(&path, passed).unwrap();
        // Who came before we did is served.
        listener.accept().await.unwrap();
        drop((client, socket, listener));
        assert!(path.exists());
        std::os::unix::net::UnixStream::connect(&path).unwrap();
    }

    #[tokio::test]
    async fn a_file_is_not_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("precious");
        std::fs::write(&path, "x").unwrap();
        assert!(matches!(Socket::bind(&path).await, Err(SocketError::NotASocket(_))));
        assert!(path.exists());
    }
}
