//! Sockets of this machine on which a service answers its operator.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::net::{UnixListener, UnixStream};

/// How long a process that was killed may go on listening: the kernel closes what it had after it is seen to be dead.
const LAST_BREATH: Duration = Duration::from_millis(500);
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// Why nobody can listen there.
#[derive(Debug, thiserror::Error)]
pub enum UnixError {
    /// A living process does already.
    #[error("another process answers there")]
    Taken,
    /// A file that is somebody else's.
    #[error("what lies there is no socket")]
    NotASocket,
    /// The system refuses.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A socket that listens. Its file goes with it.
#[derive(Debug)]
pub struct UnixFace {
    listener: UnixListener,
    path: PathBuf,
}

impl UnixFace {
    /// Listens at `path`, for whom `mode` allows it. What a killed process left there is replaced. Blocks for a moment if
    /// somebody answers there.
    ///
    /// # Errors
    /// Why that cannot be.
    pub fn bind(path: &Path, mode: u32) -> Result<Self, UnixError> {
        let until = Instant::now() + LAST_BREATH;
        while std::os::unix::net::UnixStream::connect(path).is_ok() {
            if Instant::now() >= until {
                return Err(UnixError::Taken);
            }
            std::thread::sleep(LOOK);
        }
        match fs::symlink_metadata(path) {
            Ok(stat) if stat.file_type().is_socket() => fs::remove_file(path)?,
            Ok(_) => return Err(UnixError::NotASocket),
            Err(_) => {}
        }
        let face = Self { listener: UnixListener::bind(path)?, path: path.to_owned() };
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        Ok(face)
    }

    /// The next who asks.
    ///
    /// # Errors
    /// What the system says.
    pub async fn accept(&self) -> io::Result<UnixStream> {
        Ok(self.listener.accept().await?.0)
    }
}

impl Drop for UnixFace {
    fn drop(&mut self) {
        // Whoever comes next replaces what stays.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_that_is_no_socket_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notes");
        fs::write(&path, "mine").unwrap();
        assert!(matches!(UnixFace::bind(&path, 0o600), Err(UnixError::NotASocket)));
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    }
}
