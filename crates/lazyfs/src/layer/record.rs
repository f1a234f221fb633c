//! Which chunks readers wanted, in the order in which each was first wanted: for whoever writes the image again with these
//! in front.
//!
//! Off unless somebody holds a [`Record`]. It costs 24 bytes for each chunk that was touched, and none that was not.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use content::ByteRange;
use estargz::Toc;

use super::{Core, Layer, path_parts};
use crate::bitmap::Bitmap;
use crate::error::LayerError;

/// What was touched since the record was begun.
pub(super) struct Log {
    seen: Bitmap,
    order: Mutex<Vec<(u32, Instant)>>,
}

impl Log {
    fn note(&self, chunks: std::ops::Range<u32>) {
        let mut now = None;
        for number in chunks {
            if self.seen.set(number as usize) {
                let now = *now.get_or_insert_with(Instant::now);
                self.order.lock().unwrap_or_else(PoisonError::into_inner).push((number, now));
            }
        }
    }
}

/// Writes down what readers of a layer want, until it is dropped. Holds the layer.
pub struct Record {
    layer: Arc<Layer>,
    log: Arc<Log>,
}

/// A chunk that a reader wanted, for the first time since the record was begun.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Touch {
    /// When.
    pub at: Instant,
    /// One of the names of the file, from the layer's root on, without a leading slash. Any bytes.
    pub path: Vec<u8>,
    /// Inode of the file: equal for all its names.
    pub inode: u32,
    /// Number of the chunk in the table of contents.
    pub chunk: u32,
    /// Bytes of the file that the chunk holds.
    pub range: ByteRange,
}

impl Layer {
    /// Begins to write down which chunks readers want, through any driver. Whoever begins while another record runs shares
    /// it.
    ///
    /// The kernel asks only for what it does not have in memory, so this belongs before the layer is mounted. A natively
    /// mounted layer goes on being asked for while it is recorded, though it be complete, unless it was before.
    pub fn record(self: &Arc<Self>) -> Record {
        let mut current = self.core().record.write().unwrap_or_else(PoisonError::into_inner);
        let log = current.upgrade().unwrap_or_else(|| {
            let log = Log { seen: Bitmap::new(self.core().fill.present().len()), order: Mutex::default() };
            let log = Arc::new(log);
            *current = Arc::downgrade(&log);
            log
        });
        Record { layer: Arc::clone(self), log }
    }
}

impl Record {
    /// The layer.
    pub fn layer(&self) -> &Arc<Layer> {
        &self.layer
    }

    /// Chunks touched so far.
    pub fn len(&self) -> usize {
        self.log.order.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether nothing was touched so far.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What was touched so far, in order. Empty files have no chunk and are not among it. May read the layer's tree: not for
    /// the threads of a runtime.
    ///
    /// # Errors
    /// [`LayerError::Damaged`].
    pub fn touches(&self) -> Result<Vec<Touch>, LayerError> {
        let order = self.log.order.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let core = self.layer.core();
        let tree = core.tree()?;
        let mut known: Option<(u32, Vec<u8>)> = None;
        let touch = |(number, at)| {
            let chunk = core.index.chunk(number)?;
            let inode = chunk.inode;
            let path = match &known {
                Some((of, path)) if *of == inode => path.clone(),
                _ => path(&tree, inode),
            };
            known = Some((inode, path.clone()));
            let range = ByteRange::at(chunk.file_offset, u64::from(chunk.len));
            Some(Touch { at, path, inode, chunk: number, range })
        };
        Ok(order.into_iter().filter_map(touch).collect())
    }
}

fn path(tree: &Toc, inode: u32) -> Vec<u8> {
    path_parts(tree, inode).join(&b'/')
}

impl Core {
    /// Whether somebody writes down what is touched.
    pub(crate) fn is_recorded(&self) -> bool {
        self.record.read().unwrap_or_else(PoisonError::into_inner).strong_count() > 0
    }

    /// Writes it down, if somebody wants it. Inside a runtime.
    pub(super) fn record(&self, chunks: std::ops::Range<u32>) {
        if self.engine.options.log_file_access && tracing::enabled!(tracing::Level::DEBUG) {
            self.log_first_access(chunks.clone());
        }
        let log = self.record.read().unwrap_or_else(PoisonError::into_inner).upgrade();
        if let Some(log) = log {
            log.note(chunks);
        }
    }

    /// Logs each file when it is read for the first time. Off the caller's thread: its path must be found.
    fn log_first_access(&self, chunks: std::ops::Range<u32>) {
        let mut files: Vec<u32> = {
            let mut accessed = self.accessed.lock().unwrap_or_else(PoisonError::into_inner);
            let inodes = chunks.filter_map(|number| Some(self.index.chunk(number)?.inode));
            inodes.filter(|inode| accessed.insert(*inode)).collect()
        };
        files.dedup();
        let Some(layer) = self.itself.upgrade().filter(|_| !files.is_empty()) else { return };
        self.engine.tasks.spawn_blocking(move || {
            let Ok(tree) = layer.tree() else { return };
            for file in files.into_iter().filter_map(|number| tree.inode(number)) {
                tracing::debug!(
                    layer = %layer.digest,
                    size = file.size(),
                    mode = format!("0{:o}", file.mode() & 0o777),
                    "file accessed: {}",
                    super::path_in(&tree, file.number())
                );
            }
        });
    }
}
