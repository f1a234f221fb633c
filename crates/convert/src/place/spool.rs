//! A blob being written to a file: bytes are gathered, hashed and written on the blocking pool.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use content::{Digest, Hasher};
use registry::Descriptor;

use super::PlaceError;
use super::blob::blocking;

/// Bytes gathered before they are written.
const BATCH: usize = 1 << 20;

/// A file that grows.
pub(crate) struct Spool {
    file: Arc<File>,
    /// For messages: the directory that fills up.
    dir: PathBuf,
    temporary: bool,
    hasher: Option<Hasher>,
    gathered: Vec<Bytes>,
    waiting: usize,
    len: u64,
}

/// A spool at its end.
pub(crate) struct Spooled {
    pub(crate) file: Arc<File>,
    pub(crate) digest: Digest,
    pub(crate) len: u64,
}

impl Spool {
    /// Writes to `file`, which is empty and lies in `dir`.
    pub(crate) fn new(file: File, dir: &Path) -> Self {
        Self {
            file: Arc::new(file),
            dir: dir.to_owned(),
            temporary: false,
            hasher: Some(Hasher::new()),
            gathered: Vec::new(),
            waiting: 0,
            len: 0,
        }
    }

    /// Writes to a file without a name in `dir`, the directory for temporary files: it is gone when nobody
    /// has it open any more.
    pub(crate) async fn unnamed(dir: &Path) -> Result<Self, PlaceError> {
        let at = dir.to_owned();
        let file = blocking(move || {
            tempfile::tempfile_in(&at)
                .map_err(|reason| disk_error("writing a temporary file in", &at, true, reason))
        });
        Ok(Self { temporary: true, ..Self::new(file.await?, dir) })
    }

    /// Bytes that can be read from the file by now.
    pub(crate) const fn written(&self) -> u64 {
        self.len - self.waiting as u64
    }

    /// The file, to be read while it grows.
    pub(crate) fn file(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    /// Adds bytes.
    pub(crate) async fn write(&mut self, bytes: Bytes) -> Result<(), PlaceError> {
        self.len += bytes.len() as u64;
        self.waiting += bytes.len();
        self.gathered.push(bytes);
        if self.waiting < BATCH { Ok(()) } else { self.flush().await }
    }

    /// Writes what was gathered.
    pub(crate) async fn flush(&mut self) -> Result<(), PlaceError> {
        if self.gathered.is_empty() {
            return Ok(());
        }
        let Some(mut hasher) = self.hasher.take() else { return Err(PlaceError::Interrupted) };
        let (batch, file) = (std::mem::take(&mut self.gathered), Arc::clone(&self.file));
        let (dir, temporary) = (self.dir.clone(), self.temporary);
        let hasher = blocking(move || {
            for bytes in batch {
                hasher.update(&bytes);
                (&*file)
                    .write_all(&bytes)
                    .map_err(|reason| disk_error("writing in", &dir, temporary, reason))?;
            }
            Ok::<_, PlaceError>(hasher)
        });
        self.hasher = Some(hasher.await?);
        self.waiting = 0;
        Ok(())
    }

    /// Ends it: what was written, and its digest.
    pub(crate) async fn finish(mut self) -> Result<Spooled, PlaceError> {
        self.flush().await?;
        let digest = self.hasher.take().ok_or(PlaceError::Interrupted)?.finish();
        Ok(Spooled { file: self.file, digest, len: self.len })
    }
}

impl Spooled {
    /// Whether it is what `descriptor` says.
    pub(crate) fn check(&self, place: &str, descriptor: &Descriptor) -> Result<(), PlaceError> {
        if self.len == descriptor.size && self.digest == descriptor.digest {
            return Ok(());
        }
        Err(PlaceError::Damaged {
            place: place.to_owned(),
            digest: descriptor.digest,
            reason: format!(
                "{} bytes with the digest {} were written, {} were announced",
                self.len, self.digest, descriptor.size
            ),
        })
    }
}

/// What the system said about a file in `dir`.
pub(crate) fn disk_error(doing: &'static str, dir: &Path, temporary: bool, reason: io::Error) -> PlaceError {
    match reason.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            PlaceError::DiskFull { dir: dir.to_owned(), temporary }
        }
        _ => PlaceError::File { doing, path: dir.to_owned(), reason },
    }
}
