//! The layers that the group guards.
//!
//! A layer is registered before its data file is marked, and stays as long as a superblock shows it. Its mark, and the
//! descriptor that the keeper has, go when it is complete for good.

use std::collections::{HashMap, HashSet};
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use content::Digest;

use super::{GROUP, Inner, JOURNAL, NativeError, is_shown, sys, system};
use crate::fill::kept_name;
use crate::keeper::names::DATA;
use crate::layer::Layer;

/// A registered layer.
struct Guard {
    layer: Arc<Layer>,
    /// Whether its data file is marked, and its descriptor with the keeper.
    marked: bool,
}

/// All of them, by device and inode of the data file.
#[derive(Default)]
pub(super) struct Guards {
    all: RwLock<HashMap<(u64, u64), Guard>>,
    /// Held while marks are set and taken off, and from a mark to its mount.
    changing: Mutex<()>,
    /// Layers that cannot be opened, and their data files.
    abandoned: RwLock<HashMap<Digest, Option<(u64, u64)>>>,
}

impl Guards {
    pub(super) fn layer(&self, file: (u64, u64)) -> Option<Arc<Layer>> {
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        all.get(&file).map(|guard| Arc::clone(&guard.layer))
    }

    pub(super) fn layers(&self) -> Vec<Arc<Layer>> {
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        all.values().map(|guard| Arc::clone(&guard.layer)).collect()
    }

    pub(super) fn is_abandoned(&self, file: (u64, u64)) -> bool {
        let abandoned = self.abandoned.read().unwrap_or_else(PoisonError::into_inner);
        abandoned.values().any(|other| *other == Some(file))
    }

    fn knows(&self, toc: &Digest) -> bool {
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        all.values().any(|guard| guard.layer.toc_digest() == *toc)
            || self.abandoned.read().unwrap_or_else(PoisonError::into_inner).contains_key(toc)
    }
}

/// Whether somebody must be asked before the data file is read, or wants to know that it is.
fn needs_mark(layer: &Layer) -> bool {
    !layer.core().is_settled() || layer.core().is_recorded()
}

fn kept_digest(name: &str) -> Option<Digest> {
    format!("sha256:{}", name.strip_prefix(DATA)?).parse().ok()
}

impl Inner {
    /// Registers a layer and marks its data file if it needs it. As long as the result is held, nothing is taken off.
    ///
    /// `is_new` says that it is about to be mounted; otherwise what shows it is there already.
    pub(super) fn guard(&self, layer: &Arc<Layer>, is_new: bool) -> Result<MutexGuard<'_, ()>, NativeError> {
        let changing = self.guards.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let data = layer.core().data();
        let stat = rustix::fs::fstat(data).map_err(|error| system("looking at a data file")(error.into()))?;
        let file = (stat.st_dev, stat.st_ino);
        let needs_mark = needs_mark(layer);
        self.guards.abandoned.write().unwrap_or_else(PoisonError::into_inner).remove(&layer.toc_digest());
        let before = {
            let mut all = self.guards.all.write().unwrap_or_else(PoisonError::into_inner);
            let guard = all.entry(file).or_insert_with(|| Guard { layer: Arc::clone(layer), marked: false });
            let before = guard.marked;
            guard.marked |= needs_mark;
            before
        };
        if needs_mark && !before {
            let marked = self
                .keep
                .keep(&kept_name(&layer.toc_digest()), data)
                .map_err(system("giving a descriptor to the keeper"))
                .and_then(|()| {
                    sys::fanotify_mark(self.desk.group().as_fd(), data, true)
                        .map_err(system("marking a data file"))
                });
            if let Err(error) = marked {
                let mut all = self.guards.all.write().unwrap_or_else(PoisonError::into_inner);
                let left = if is_new { all.remove(&file) } else { None };
                drop(all);
                drop(left);
                return Err(error);
            }
        } else if !needs_mark && !before && !is_new {
            // The process before had it marked, and it was complete when that died.
            self.take_off(layer);
        }
        Ok(changing)
    }

    /// Takes the mark off, and the descriptor back from the keeper.
    fn take_off(&self, layer: &Layer) {
        if let Err(error) = sys::fanotify_mark(self.desk.group().as_fd(), layer.core().data(), false) {
            tracing::warn!(layer = %layer.layer_digest(), %error, "a mark cannot be taken off");
            return;
        }
        if let Err(error) = self.keep.forget(&kept_name(&layer.toc_digest())) {
            tracing::warn!(layer = %layer.layer_digest(), %error, "the keeper cannot forget a descriptor");
        }
    }

    /// Whether any superblock shows the layer.
    pub(super) fn is_shown(&self, toc: &Digest) -> bool {
        self.shown().contains(toc)
    }

    /// Whether the keeper has the layer's descriptor.
    pub(super) fn is_kept(&self, toc: &Digest) -> bool {
        self.keep.names().is_ok_and(|names| names.contains(&kept_name(toc)))
    }

    /// The layers that any superblock shows.
    fn shown(&self) -> HashSet<Digest> {
        let superblocks = self.desk.journal().superblocks();
        superblocks
            .iter()
            .filter(|(_, superblock)| is_shown(superblock))
            .map(|(_, noted)| noted.toc)
            .collect()
    }

    /// The layers of the process before that nobody has registered yet.
    pub(super) fn expected(&self) -> Vec<Digest> {
        let mut expected = self.shown();
        expected.extend(self.keep.names().unwrap_or_default().iter().filter_map(|name| kept_digest(name)));
        let mut expected: Vec<Digest> = expected.into_iter().filter(|toc| !self.guards.knows(toc)).collect();
        expected.sort_by_key(|toc| *toc.as_bytes());
        expected
    }

    /// Refuses what is asked of a layer from now on, until it is registered after all.
    pub(super) fn abandon(&self, toc: &Digest) {
        let data = self.keep.get(&kept_name(toc)).ok().flatten();
        let file = data.and_then(|data| rustix::fs::fstat(data).ok()).map(|data| (data.st_dev, data.st_ino));
        self.guards.abandoned.write().unwrap_or_else(PoisonError::into_inner).insert(*toc, file);
    }

    /// Takes the marks off what nothing shows any more, before anything is registered.
    pub(super) fn drop_marks_of_the_dead(&self) {
        let shown = self.shown();
        for name in self.keep.names().unwrap_or_default() {
            let Some(toc) = kept_digest(&name).filter(|toc| !shown.contains(toc)) else { continue };
            if let Ok(Some(data)) = self.keep.get(&name) {
                if let Err(error) = sys::fanotify_mark(self.desk.group().as_fd(), data.as_fd(), false) {
                    tracing::warn!(%toc, %error, "a mark cannot be taken off");
                    continue;
                }
                let _ = self.keep.forget(&name);
            }
        }
    }

    /// Takes marks off what is complete, gives up what nothing shows any more, and looks at parked events. Blocks.
    pub(super) fn tidy_now(self: &Arc<Self>) {
        let changing = self.guards.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let journal = self.desk.journal();
        for (number, superblock) in journal.superblocks() {
            if !is_shown(&superblock) {
                journal.forget_superblock(number);
            }
        }
        let shown = self.shown();
        let mut gone = Vec::new();
        {
            let mut all = self.guards.all.write().unwrap_or_else(PoisonError::into_inner);
            let dead: Vec<_> = all
                .iter()
                .filter(|(_, guard)| !shown.contains(&guard.layer.toc_digest()))
                .map(|(file, _)| *file)
                .collect();
            gone.extend(dead.iter().filter_map(|file| all.remove(file)));
        }
        for guard in gone.iter().filter(|guard| guard.marked) {
            self.take_off(&guard.layer);
        }
        let settled: Vec<Arc<Layer>> = {
            let mut all = self.guards.all.write().unwrap_or_else(PoisonError::into_inner);
            all.values_mut()
                .filter(|guard| guard.marked && !needs_mark(&guard.layer))
                .map(|guard| {
                    guard.marked = false;
                    Arc::clone(&guard.layer)
                })
                .collect()
        };
        for layer in &settled {
            tracing::debug!(layer = %layer.layer_digest(), "complete: the kernel is alone with it from now on");
            self.take_off(layer);
        }
        drop(changing);
        drop(gone);
        self.wake_parked();
    }

    /// Gives the group back if nothing needs it. Blocks.
    pub(super) fn forget_if_idle(&self) {
        let marked =
            self.guards.all.read().unwrap_or_else(PoisonError::into_inner).values().any(|guard| guard.marked);
        if marked || !self.shown().is_empty() || !self.expected().is_empty() {
            return;
        }
        for name in [GROUP, JOURNAL] {
            if let Err(error) = self.keep.forget(name) {
                tracing::warn!(%error, "the keeper cannot forget a descriptor");
            }
        }
    }
}
