//! Keeping within the room that there is: measuring what the store takes, and deleting what no mount needs.
//!
//! *Measuring* costs one `fstat` per open layer. What lies in the folders of layers that are not open does not
//! change, so it is looked at once; so is what lies beside an open layer's data.
//!
//! *Evicting* takes whole folders, the longest unused first: description and metadata image go with the data. They
//! are a hundredth of it, a layer whose folder is there but whose bytes are not would be a third state beside "here" and
//! "not here", and what they save is one request when the layer comes back. What somebody uses is never taken:
//! a layer that is mounted, or whose superblock still lives, has users; one that the process before left mounted has
//! its descriptor with the keeper.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Arc, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use content::Digest;

use super::{GRAVE, Layers, Slot};
use crate::engine::Engine;
use crate::layer::Core;
use crate::space::Level;

/// Measures are at least so far apart.
const AT_MOST_EVERY: Duration = Duration::from_millis(500);

/// What is known of the folders of a store.
#[derive(Default)]
pub(super) struct Sizes {
    /// Bytes on disk by folder: of all files of one that is closed, of all but the data of one that is open.
    known: HashMap<String, (bool, u64)>,
}

/// Measures when it is time, and acts on it. Ends with the store.
pub(super) async fn keep_within(engine: &Arc<Engine>, layers: &Weak<Layers>) {
    loop {
        {
            let Some(layers) = layers.upgrade() else { return };
            let _ = tokio::task::spawn_blocking(move || layers.mind_the_room()).await;
        }
        tokio::time::sleep(AT_MOST_EVERY).await;
        tokio::select! {
            () = engine.space.stale.notified() => {}
            () = tokio::time::sleep(engine.space.pause()) => {}
        }
    }
}

impl Layers {
    /// Measures, evicts if there is too little room, and measures again.
    fn mind_the_room(&self) {
        let space = &self.engine.space;
        let measure = || self.disk_usage().and_then(|used| space.measured(used));
        match measure() {
            Ok(seen) if space.level() > Level::Ample => {
                let evicted = self.evict(space.limits.excess(&seen));
                if evicted.is_ok_and(|layers| layers > 0) {
                    let _ = measure();
                }
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "the room of the layer store cannot be measured"),
        }
        if space.level() < Level::Full && self.engine.reserve.is_short() {
            self.recover();
        }
    }

    /// Keeps for good what was lent, once the reserve is whole again.
    fn recover(&self) {
        let kept = self.engine.reserve.recover();
        if kept.is_empty() {
            return;
        }
        let open: HashMap<Digest, Arc<Core>> =
            self.cores().into_iter().map(|core| (core.toc_digest(), core)).collect();
        let chunks = kept.len();
        for ((toc, chunk), fill, _) in kept {
            if let Some(core) = open.get(&toc).filter(|core| Arc::ptr_eq(core.fill(), &fill)) {
                core.keep_lent(chunk);
            }
        }
        self.engine.disk(false);
        tracing::info!(chunks, "the disk of the layer store has room again: what readers were lent is kept");
    }

    /// Bytes that the store takes on disk.
    ///
    /// # Errors
    /// That its folder cannot be listed.
    pub fn disk_usage(&self) -> io::Result<u64> {
        let open: HashMap<String, u64> =
            self.cores().iter().map(|core| (core.toc_digest().hex(), core.fill().allocated())).collect();
        let mut sizes = self.sizes.lock().unwrap_or_else(PoisonError::into_inner);
        let mut seen = HashSet::new();
        let mut used = self.engine.reserve.len();
        for entry in std::fs::read_dir(&self.folder)? {
            let Ok(name) = entry?.file_name().into_string() else { continue };
            let data = open.get(&name).copied();
            let rest = match sizes.known.get(&name) {
                Some((was_open, bytes)) if *was_open == data.is_some() => *bytes,
                _ => {
                    let bytes = folder_size(&self.folder.join(&name), data.is_none());
                    // The rest of an open layer grows once, when it is first shown.
                    sizes.known.insert(name.clone(), (data.is_some(), bytes));
                    bytes
                }
            };
            used = used.saturating_add(rest).saturating_add(data.unwrap_or(0));
            seen.insert(name);
        }
        sizes.known.retain(|name, _| seen.contains(name));
        Ok(used)
    }

    /// Deletes unused layers, the longest unused first, until `excess` bytes are free. Returns how many.
    fn evict(&self, excess: u64) -> io::Result<usize> {
        let mut unused = Vec::new();
        for entry in std::fs::read_dir(&self.folder)?.flatten() {
            let Some((name, digest)) = entry.file_name().into_string().ok().and_then(layer_of) else {
                continue;
            };
            let is_used = self
                .slots
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .get(&digest)
                .is_some_and(Slot::is_used);
            if !is_used {
                let last = entry.metadata().and_then(|folder| folder.modified());
                unused.push((last.unwrap_or(SystemTime::UNIX_EPOCH), name, digest));
            }
        }
        unused.sort();
        let (mut layers, mut bytes) = (0, 0);
        for (_, name, digest) in unused {
            if bytes >= excess {
                break;
            }
            let size = folder_size(&self.folder.join(&name), true);
            let doomed = |other: &Digest| *other == digest;
            match self.bury(doomed).map(super::dig_up) {
                Ok(0) => {}
                Ok(_) => {
                    layers += 1;
                    bytes += size;
                }
                Err(error) => {
                    tracing::warn!(%error, "unused layers cannot be evicted");
                    break;
                }
            }
        }
        if layers > 0 {
            tracing::info!(layers, bytes, "evicted layers that nobody uses: the store has little room");
        }
        Ok(layers)
    }
}

/// The layer whose folder has this name.
fn layer_of(name: String) -> Option<(String, Digest)> {
    if name.ends_with(GRAVE) {
        return None;
    }
    let digest = format!("sha256:{name}").parse().ok()?;
    Some((name, digest))
}

/// Bytes on disk of what lies in a folder.
fn folder_size(folder: &Path, with_data: bool) -> u64 {
    let Ok(files) = std::fs::read_dir(folder) else { return 0 };
    let counts = |name: &std::ffi::OsStr| with_data || name != "data";
    files
        .flatten()
        .filter(|file| counts(&file.file_name()))
        .map(|file| file.metadata().map_or(0, |data| data.blocks().saturating_mul(512)))
        .sum()
}
