//! What a snapshot takes on disk.
//!
//! containerd asks for every running container every ten seconds, and measuring means walking its whole
//! upper directory. So a measure is used for some seconds by whoever asks, and few walks run at once.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use crate::meta::Usage;

/// How long a measure is used again: less than half of containerd's interval of ten seconds.
const FRESH_FOR: Duration = Duration::from_secs(4);

/// Walks at once: they are bound by the disk.
const WALKS_AT_ONCE: usize = 2;

/// Bytes of a block in `st_blocks`, whatever the file system's own blocks are.
const BLOCK: u64 = 512;

/// Walks `root` and counts every inode once. What vanishes under the walk is not counted. Blocks.
///
/// # Errors
/// That a directory cannot be read.
pub fn measure(root: &Path) -> io::Result<Usage> {
    let mut usage = Usage::default();
    let mut seen = HashSet::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(path) = waiting.pop() {
        let stat = match std::fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other?,
        };
        if seen.insert((stat.dev(), stat.ino())) {
            usage.size += stat.blocks() * BLOCK;
            usage.inodes += 1;
        }
        if stat.is_dir() {
            match std::fs::read_dir(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => waiting.extend(other?.flatten().map(|entry| entry.path())),
            }
        }
    }
    Ok(usage)
}

/// Recent measures of active snapshots.
pub struct UsageCache {
    recent: Mutex<HashMap<u64, (Instant, Usage)>>,
    walks: Semaphore,
}

impl Default for UsageCache {
    fn default() -> Self {
        Self { recent: Mutex::default(), walks: Semaphore::new(WALKS_AT_ONCE) }
    }
}

impl UsageCache {
    fn recent(&self, id: u64) -> Option<Usage> {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        // Bounds the map: only what was asked for in the last seconds stays.
        recent.retain(|_, (at, _)| at.elapsed() < FRESH_FOR);
        recent.get(&id).map(|(_, usage)| *usage)
    }

    /// The usage of snapshot `id`, whose files lie at `path`.
    ///
    /// # Errors
    /// As [`measure`].
    pub async fn get(&self, id: u64, path: PathBuf) -> io::Result<Usage> {
        if let Some(usage) = self.recent(id) {
            return Ok(usage);
        }
        let _permit = self.walks.acquire().await.map_err(io::Error::other)?;
        if let Some(usage) = self.recent(id) {
            return Ok(usage); // somebody measured while this one waited
        }
        let usage = tokio::task::spawn_blocking(move || measure(&path)).await.map_err(io::Error::other)??;
        self.recent.lock().unwrap_or_else(PoisonError::into_inner).insert(id, (Instant::now(), usage));
        Ok(usage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_inode_counts_once() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("d")).unwrap();
        std::fs::write(dir.path().join("d/f"), vec![1; 100_000]).unwrap();
        std::fs::hard_link(dir.path().join("d/f"), dir.path().join("g")).unwrap();
        std::os::unix::fs::symlink("/does/not/exist", dir.path().join("l")).unwrap();
        let usage = measure(dir.path()).unwrap();
        assert_eq!(usage.inodes, 4);
        assert!(usage.size >= 100_000 && usage.size < 200_000, "{usage:?}");
        assert_eq!(measure(&dir.path().join("gone")).unwrap(), Usage::default());
    }

    #[tokio::test]
    async fn a_fresh_measure_is_used_again() {
        let dir = tempfile::tempdir().unwrap();
        let cache = UsageCache::default();
        let first = cache.get(1, dir.path().to_owned()).await.unwrap();
        std::fs::write(dir.path().join("f"), "x").unwrap();
        assert_eq!(cache.get(1, dir.path().to_owned()).await.unwrap(), first);
        assert_ne!(cache.get(2, dir.path().to_owned()).await.unwrap(), first);
    }
}
