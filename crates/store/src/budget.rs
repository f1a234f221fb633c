//! All contents of a node, and which of them go when there is no room.
//!
//! The budget counts the bytes of present pieces. When a new piece would exceed it, whole contents
//! that nobody holds open go, least recently used first. What is open is never evicted, even beyond the
//! budget: a container reads from it. The last word is the disk's.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use content::ContentId;

use crate::StoreError;
use crate::content::{Content, PIECE, lock};
use crate::folder::{self, Head};

/// At most so many evicted names are remembered for [`Store::take_evicted`].
const EVICTED_LIMIT: usize = 65_536;

/// How a store is run.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Bytes of pieces to keep at most, as far as nobody needs more at once.
    pub budget: u64,
}

impl Default for StoreOptions {
    /// 32 GiB.
    fn default() -> Self {
        Self { budget: 32 << 30 }
    }
}

/// The contents of one node. Cheap to clone; all clones are the same store.
#[derive(Clone, Debug)]
pub struct Store(Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    dir: PathBuf,
    budget: u64,
    bytes: AtomicU64,
    trash: AtomicU64,
    contents: Mutex<HashMap<ContentId, Arc<Content>>>,
    evicted: Mutex<Vec<ContentId>>,
    /// Held for as long as the store lives; the kernel lets go of it when the process dies.
    _lock: File,
}

impl Store {
    /// Opens the store in `dir`, which is made if it does not exist, and takes up what is in it.
    ///
    /// # Errors
    /// The folder cannot be made or read, or another process uses it.
    pub fn open(dir: &Path, options: &StoreOptions) -> Result<Self, StoreError> {
        fs::create_dir_all(dir).map_err(StoreError::io("create", dir))?;
        let path = dir.join("lock");
        let lock_file = File::create(&path).map_err(StoreError::io("create", &path))?;
        match lock_file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(StoreError::InUse(dir.to_path_buf())),
            Err(fs::TryLockError::Error(error)) => return Err(StoreError::io("lock", &path)(error)),
        }
        let inner = Arc::new(Inner {
            dir: dir.to_path_buf(),
            budget: options.budget,
            bytes: AtomicU64::new(0),
            trash: AtomicU64::new(0),
            contents: Mutex::default(),
            evicted: Mutex::default(),
            _lock: lock_file,
        });
        inner.load()?;
        Ok(Self(inner))
    }

    /// The content `id` of `len` bytes, made if it is not here yet.
    ///
    /// # Errors
    /// It is here with another length; it cannot be made.
    pub fn content(&self, id: &ContentId, len: u64) -> Result<Arc<Content>, StoreError> {
        let mut contents = lock(&self.0.contents);
        if let Some(content) = contents.get(id) {
            if content.len() != len {
                return Err(StoreError::Length { id: *id, have: content.len(), want: len });
            }
            content.touch();
            return Ok(Arc::clone(content));
        }
        let folder = self.0.dir.join(id.to_string());
        let weak = Arc::downgrade(&self.0);
        let content = Arc::new(Content::create(folder, Head::new(*id, len, PIECE), weak)?);
        contents.insert(*id, Arc::clone(&content));
        Ok(content)
    }

    /// The content `id`, if any of it is here.
    pub fn find(&self, id: &ContentId) -> Option<Arc<Content>> {
        let content = lock(&self.0.contents).get(id).cloned()?;
        content.touch();
        Some(content)
    }

    /// Everything that is here, in no order.
    pub fn all(&self) -> Vec<Arc<Content>> {
        lock(&self.0.contents).values().cloned().collect()
    }

    /// Removes a content, if nobody holds it open. `true` if it is gone.
    pub fn remove(&self, id: &ContentId) -> bool {
        self.0.evict_where(|content| content.id() == id, 1) > 0
    }

    /// Contents that were evicted since the last call.
    pub fn take_evicted(&self) -> Vec<ContentId> {
        std::mem::take(&mut *lock(&self.0.evicted))
    }

    /// Closes the files of contents that nobody uses.
    pub fn close_idle(&self) {
        for content in lock(&self.0.contents).values() {
            if Arc::strong_count(content) == 1 {
                content.close();
            }
        }
    }

    /// Bytes of pieces on disk.
    pub fn bytes(&self) -> u64 {
        self.0.bytes.load(Ordering::Relaxed)
    }
}

impl Inner {
    fn load(self: &Arc<Self>) -> Result<(), StoreError> {
        let doing = "list";
        let mut contents = lock(&self.contents);
        for entry in fs::read_dir(&self.dir).map_err(StoreError::io(doing, &self.dir))? {
            let path = entry.map_err(StoreError::io(doing, &self.dir))?.path();
            if !path.is_dir() {
                continue;
            }
            if let Some(content) = Content::load(path.clone(), Arc::downgrade(self)) {
                self.added(content.have_bytes());
                contents.insert(*content.id(), Arc::new(content));
            } else if is_ours(&path) {
                folder::remove(&path);
            }
        }
        Ok(())
    }

    pub(crate) fn added(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn removed(&self, bytes: u64) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Evicts until `bytes` more fit into the budget, or nothing is left that may go.
    pub(crate) fn make_room(&self, bytes: u64) {
        while self.bytes.load(Ordering::Relaxed).saturating_add(bytes) > self.budget {
            if self.evict_where(|_| true, 1) == 0 {
                return;
            }
        }
    }

    /// Evicts everything that nobody uses. `true` if anything went.
    pub(crate) fn evict_all(&self) -> bool {
        self.evict_where(|_| true, usize::MAX) > 0
    }

    /// Evicts up to `at_most` unused contents that `which` accepts, least recently used first.
    fn evict_where(&self, which: impl Fn(&Content) -> bool, at_most: usize) -> usize {
        let mut hidden = Vec::new();
        {
            let mut contents = lock(&self.contents);
            // The map holds one reference; under its lock nobody can take another.
            let mut idle: Vec<(u64, ContentId)> = contents
                .values()
                .filter(|content| Arc::strong_count(content) == 1 && which(content))
                .map(|content| (content.used(), *content.id()))
                .collect();
            idle.sort_unstable();
            for (_, id) in idle.into_iter().take(at_most) {
                let Some(content) = contents.get(&id) else { continue };
                let number = self.trash.fetch_add(1, Ordering::Relaxed);
                match folder::hide(content.folder(), number) {
                    Ok(path) => hidden.push(path),
                    Err(error) => {
                        tracing::warn!(content = %id, %error, "cannot evict");
                        continue;
                    }
                }
                self.removed(content.have_bytes());
                contents.remove(&id);
                let mut evicted = lock(&self.evicted);
                if evicted.len() < EVICTED_LIMIT {
                    evicted.push(id);
                }
            }
        }
        for path in &hidden {
            folder::remove(path);
        }
        hidden.len()
    }
}

/// Whether a folder that is no content is one that we made: a half-made or half-removed one.
fn is_ours(path: &Path) -> bool {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return false };
    name.starts_with("trash.") || name.parse::<ContentId>().is_ok()
}
