//! What snapshots there are: names, parents, labels, and where lazy layers come from.
//!
//! The truth lies in an embedded database, one row per snapshot. Every change is on disk before it is
//! answered, because containerd asks for it in the next millisecond and, after our own death, in the next
//! process. A copy of all rows is kept in memory: containerd asks for every snapshot every ten seconds, and
//! those answers must not wait for a disk. A change is made by one writer at a time: checked against the
//! copy, committed to disk, then shown in the copy. Readers never wait for the disk.
//!
//! The rules of names, kinds and parents are those of containerd's own metadata store.
//!
//! **Slots.** A layer that was mounted lazily is committed under the chain ID that the client asked for, but
//! that is only a name: an ordinary layer below has another name in each of containerd's namespaces, so one
//! chain ID can have several parents. containerd finds the slot by label and parent, under whatever name.
//! What lies in the slot is kept beside it ([`LayerSource`]): a chain ID is what an image *claims*. It can be exchanged
//! ([`Meta::exchange`]) when somebody proves that something else is the truth; what was proven is kept in a table of
//! its own, by the blob's digest, and outlives every snapshot.

mod disk;
mod record;

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use content::Digest;

use crate::claims::Fact;
use crate::filter::Filter;
use crate::labels::{self, LabelError, Labels, LayerSource};
use disk::Disk;
pub use record::{Kind, Record, Usage};

/// Why the metadata could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum MetaError {
    /// There is no snapshot of that name.
    #[error("snapshot {0} does not exist")]
    NotFound(String),
    /// The parent of a new snapshot does not exist.
    #[error("parent snapshot {0} does not exist")]
    ParentNotFound(String),
    /// The name is taken.
    #[error("snapshot {0} already exists")]
    Exists(String),
    /// Only committed snapshots can be parents.
    #[error("parent snapshot {0} is not committed")]
    ParentNotCommitted(String),
    /// Only active snapshots can be committed.
    #[error("snapshot {0} is not active")]
    NotActive(String),
    /// Committed snapshots cannot be mounted.
    #[error("snapshot {0} is neither active nor a view")]
    NotMountable(String),
    /// Other snapshots stand on this one.
    #[error("cannot remove snapshot with child: {0}")]
    HasChild(String),
    /// A commit names another parent than the snapshot was prepared with.
    #[error(
        "snapshot {key} was prepared on top of {had:?} and cannot be moved onto {wanted:?}: this snapshotter \
         has no capability `rebase`, take it out of containerd's configuration"
    )]
    Rebase {
        /// The active snapshot.
        key: String,
        /// Its parent.
        had: String,
        /// The parent that the commit named.
        wanted: String,
    },
    /// An update named a field that cannot change.
    #[error("cannot update field {field:?} of snapshot {name}: only labels can change")]
    Immutable {
        /// The snapshot.
        name: String,
        /// The field.
        field: String,
    },
    /// A name, key or label that cannot be.
    #[error("{0}")]
    Invalid(String),
    /// A label is too long.
    #[error(transparent)]
    Label(#[from] LabelError),
    /// Another process works on the same directory.
    #[error(
        "{path} is in use by another process: stop the other snapshotter, or give this one another --root (a node: \
         --snapshotter-root)"
    )]
    InUse {
        /// The database.
        path: String,
    },
    /// The database failed.
    #[error("snapshot database, {doing}: {error}")]
    Disk {
        /// What was being done.
        doing: &'static str,
        /// What happened.
        error: Box<redb::Error>,
    },
    /// A row is not what this version writes.
    #[error("snapshot database: the row of {name} cannot be read: {error}")]
    Row {
        /// The snapshot.
        name: String,
        /// What happened.
        error: serde_json::Error,
    },
}

/// Which labels an update changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UpdateMask {
    /// All of them.
    All,
    /// These fields: `labels`, or `labels.<key>`.
    Fields(Vec<String>),
}

/// What committing a lazy layer came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SlotCommit {
    /// A new snapshot under this name.
    New(String),
    /// Somebody was faster; the same content lies there under this name.
    Existing(String),
}

/// Who lies under a chain ID and a parent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Slot {
    /// Nobody.
    Free,
    /// What was asked for, or what containerd itself unpacked and verified.
    Same(String),
    /// Another image claims the chain with other bytes.
    Other(String),
}

/// The snapshots of one root directory.
pub struct Meta {
    disk: Disk,
    /// Held by whoever changes something, from the check to the moment it is visible. Only blocking threads
    /// take it.
    writer: Mutex<()>,
    state: RwLock<State>,
}

struct State {
    rows: BTreeMap<String, Arc<Record>>,
    /// Directories that belong to no row yet.
    reserved: HashSet<u64>,
    next_id: u64,
}

/// The number of a directory that is about to belong to a snapshot. As long as this lives, nobody deletes it.
pub struct Reservation {
    meta: Arc<Meta>,
    id: u64,
}

impl Reservation {
    /// The number.
    pub const fn id(&self) -> u64 {
        self.id
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.meta.change_state(|state| state.reserved.remove(&self.id));
    }
}

impl Meta {
    /// Opens or creates the database. Numbers of new directories begin above `directories_up_to`, so that
    /// what a dead process left behind is never taken for something new. Blocks.
    ///
    /// # Errors
    /// [`MetaError::InUse`], or that the database cannot be read.
    pub fn open(path: &Path, directories_up_to: u64) -> Result<Self, MetaError> {
        let (disk, rows) = Disk::open(path)?;
        let last = rows.values().map(|row| row.id).max().unwrap_or(0).max(directories_up_to);
        let rows = rows.into_iter().map(|(name, row)| (name, Arc::new(row))).collect();
        let state = RwLock::new(State { rows, reserved: HashSet::new(), next_id: last + 1 });
        Ok(Self { disk, writer: Mutex::new(()), state })
    }

    fn read<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        read(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn change_state<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.write().unwrap_or_else(PoisonError::into_inner))
    }

    fn writer(&self) -> MutexGuard<'_, ()> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes changes durable, then visible. Called with the writer held.
    fn write(&self, changes: Vec<(String, Option<Record>)>) -> Result<(), MetaError> {
        self.disk.write(&changes)?;
        self.change_state(|state| {
            for (name, row) in changes {
                match row {
                    Some(row) => state.rows.insert(name, Arc::new(row)),
                    None => state.rows.remove(&name),
                };
            }
        });
        Ok(())
    }

    /// The snapshot called `name`.
    ///
    /// # Errors
    /// [`MetaError::NotFound`].
    pub fn get(&self, name: &str) -> Result<Arc<Record>, MetaError> {
        self.read(|state| state.rows.get(name).cloned()).ok_or_else(|| MetaError::NotFound(name.to_owned()))
    }

    /// The snapshots below `name`, its parent first.
    ///
    /// # Errors
    /// [`MetaError::NotFound`] if `name` or something below it does not exist.
    pub fn ancestors(&self, name: &str) -> Result<Vec<(String, Arc<Record>)>, MetaError> {
        let mut chain = Vec::new();
        let mut at = self.get(name)?.parent.clone();
        while !at.is_empty() {
            let row = self.get(&at)?;
            let below = row.parent.clone();
            chain.push((std::mem::replace(&mut at, below), row));
        }
        Ok(chain)
    }

    /// Whether a snapshot `key` can be made on top of `parent` (empty: of nothing).
    ///
    /// # Errors
    /// What is wrong with either.
    pub fn check_new(&self, key: &str, parent: &str) -> Result<(), MetaError> {
        if key.is_empty() {
            return Err(MetaError::Invalid("the key of a snapshot cannot be empty".into()));
        }
        self.read(|state| {
            if state.rows.contains_key(key) {
                return Err(MetaError::Exists(key.to_owned()));
            }
            if parent.is_empty() {
                return Ok(());
            }
            match state.rows.get(parent) {
                None => Err(MetaError::ParentNotFound(parent.to_owned())),
                Some(row) if row.kind != Kind::Committed => {
                    Err(MetaError::ParentNotCommitted(parent.to_owned()))
                }
                Some(_) => Ok(()),
            }
        })
    }

    /// A number for a new directory.
    pub fn reserve(self: &Arc<Self>) -> Reservation {
        let id = self.change_state(|state| {
            let id = state.next_id;
            state.next_id += 1;
            state.reserved.insert(id);
            id
        });
        Reservation { meta: Arc::clone(self), id }
    }

    /// Keeps the directory `id` from being nobody's, although its snapshot is about to have another.
    pub fn hold(self: &Arc<Self>, id: u64) -> Reservation {
        self.change_state(|state| state.reserved.insert(id));
        Reservation { meta: Arc::clone(self), id }
    }

    /// Of these directory numbers, those that belong to nobody.
    pub fn orphans(&self, ids: impl IntoIterator<Item = u64>) -> Vec<u64> {
        self.read(|state| {
            let known: HashSet<u64> = state.rows.values().map(|row| row.id).collect();
            ids.into_iter().filter(|id| !known.contains(id) && !state.reserved.contains(id)).collect()
        })
    }

    /// Makes an active snapshot or a view whose directory is `id`. Blocks.
    ///
    /// # Errors
    /// As [`Meta::check_new`], or that the database failed.
    pub fn create(
        &self,
        kind: Kind,
        key: &str,
        parent: &str,
        labels: Labels,
        id: u64,
    ) -> Result<(), MetaError> {
        let _writer = self.writer();
        self.check_new(key, parent)?;
        self.write(vec![(key.to_owned(), Some(Record::new(id, kind, parent, labels)))])
    }

    /// Freezes the active snapshot `key` under `name`; `labels` replace those it had. Blocks.
    ///
    /// # Errors
    /// That `name` is taken, `key` is not there or not active, or the database failed.
    pub fn commit(
        &self,
        name: &str,
        key: &str,
        parent: &str,
        labels: Labels,
        usage: Usage,
    ) -> Result<(), MetaError> {
        let _writer = self.writer();
        if name.is_empty() {
            return Err(MetaError::Invalid("the name of a snapshot cannot be empty".into()));
        }
        if self.get(name).is_ok() {
            return Err(MetaError::Exists(name.to_owned()));
        }
        let active = self.get(key)?;
        if active.kind != Kind::Active {
            return Err(MetaError::NotActive(key.to_owned()));
        }
        if !parent.is_empty() && parent != active.parent {
            return Err(MetaError::Rebase {
                key: key.to_owned(),
                had: active.parent.clone(),
                wanted: parent.to_owned(),
            });
        }
        let mut row = Record::new(active.id, Kind::Committed, &active.parent, labels);
        row.usage = usage;
        self.write(vec![(key.to_owned(), None), (name.to_owned(), Some(row))])
    }

    /// Who lies under the chain ID `target` on top of `parent`, seen by somebody who wants `source` there.
    pub fn slot(&self, target: &str, parent: &str, source: &LayerSource) -> Slot {
        self.read(|state| {
            let mut same = Slot::Free;
            for (name, row) in &state.rows {
                let claims = row.kind == Kind::Committed
                    && row.parent == parent
                    && row.labels.get(labels::SNAPSHOT_REF).is_some_and(|chain| chain == target);
                if !claims {
                    continue;
                }
                match &row.source {
                    Some(other) if !other.same_content(source) => return Slot::Other(name.clone()),
                    _ => same = Slot::Same(name.clone()),
                }
            }
            same
        })
    }

    /// Commits a lazy layer whose directory is `id`, under the chain ID if that name is free. Blocks.
    ///
    /// # Errors
    /// [`MetaError::Exists`] if another image's bytes lie under the same chain and parent; else as
    /// [`Meta::create`].
    pub fn commit_slot(
        &self,
        target: &str,
        parent: &str,
        labels: Labels,
        source: LayerSource,
        id: u64,
    ) -> Result<SlotCommit, MetaError> {
        let _writer = self.writer();
        match self.slot(target, parent, &source) {
            Slot::Same(name) => return Ok(SlotCommit::Existing(name)),
            Slot::Other(name) => return Err(MetaError::Exists(name)),
            Slot::Free => {}
        }
        let mut name = target.to_owned();
        let mut attempt = 0_u32;
        loop {
            match self.check_new(&name, parent) {
                Ok(()) => break,
                Err(MetaError::Exists(_)) => {
                    name = format!("{target}@{}", short_name(parent, attempt));
                    attempt += 1;
                }
                Err(error) => return Err(error),
            }
        }
        let mut row = Record::new(id, Kind::Committed, parent, labels);
        row.source = Some(source);
        self.write(vec![(name.clone(), Some(row))])?;
        Ok(SlotCommit::New(name))
    }

    /// Puts other bytes into the slot `name`: they lie in the directory `id`. Only if the slot still is what the
    /// caller saw (`seen`); tells whether. Blocks.
    ///
    /// # Errors
    /// [`MetaError::NotFound`], or that the database failed.
    pub fn exchange(
        &self,
        name: &str,
        seen: &Record,
        source: LayerSource,
        id: u64,
    ) -> Result<bool, MetaError> {
        let _writer = self.writer();
        let mut row = Record::clone(&*self.get(name)?);
        if (row.id, &row.source) != (seen.id, &seen.source) {
            return Ok(false);
        }
        (row.id, row.source) = (id, Some(source));
        row.touch();
        self.write(vec![(name.to_owned(), Some(row))])?;
        Ok(true)
    }

    /// What is known of a blob, since somebody hashed it whole. Blocks.
    ///
    /// # Errors
    /// That the database failed.
    pub fn fact(&self, layer: &Digest) -> Result<Option<Fact>, MetaError> {
        self.disk.fact(layer)
    }

    /// Keeps what is known of a blob, for ever. Blocks.
    ///
    /// # Errors
    /// That the database failed.
    pub fn keep_fact(&self, layer: &Digest, fact: &Fact) -> Result<(), MetaError> {
        self.disk.keep_fact(layer, fact)
    }

    /// Forgets a snapshot, and tells what it was. Blocks.
    ///
    /// # Errors
    /// That it is not there, that others stand on it, or that the database failed.
    pub fn remove(&self, name: &str) -> Result<Arc<Record>, MetaError> {
        let _writer = self.writer();
        let row = self.get(name)?;
        if self.read(|state| state.rows.values().any(|other| other.parent == name)) {
            return Err(MetaError::HasChild(name.to_owned()));
        }
        self.write(vec![(name.to_owned(), None)])?;
        Ok(row)
    }

    /// Changes labels. Blocks.
    ///
    /// # Errors
    /// [`MetaError::Immutable`] if the mask names anything else; [`MetaError::NotFound`].
    pub fn update(&self, name: &str, labels: Labels, mask: &UpdateMask) -> Result<Arc<Record>, MetaError> {
        let _writer = self.writer();
        let mut row = Record::clone(&*self.get(name)?);
        match mask {
            UpdateMask::All => row.labels = labels,
            UpdateMask::Fields(fields) => {
                for field in fields {
                    if field == "labels" {
                        row.labels.clone_from(&labels);
                    } else if let Some(key) = field.strip_prefix("labels.") {
                        match labels.get(key) {
                            Some(value) => row.labels.insert(key.to_owned(), value.clone()),
                            None => row.labels.remove(key),
                        };
                    } else {
                        return Err(MetaError::Immutable { name: name.to_owned(), field: field.clone() });
                    }
                }
            }
        }
        row.touch();
        self.write(vec![(name.to_owned(), Some(row))])?;
        self.get(name)
    }

    /// The snapshots that match, those first whose bytes containerd itself has verified: of several that
    /// match, it adopts the first.
    pub fn list(&self, filter: &Filter) -> Vec<(String, Arc<Record>)> {
        let mut found: Vec<_> = self.read(|state| {
            let matching = state.rows.iter().filter(|(name, row)| row.matches(name, filter));
            matching.map(|(name, row)| (name.clone(), Arc::clone(row))).collect()
        });
        found.sort_by_key(|(_, row)| row.source.is_some());
        found
    }

    /// All lazy layers.
    pub fn lazy(&self) -> Vec<(String, Arc<Record>)> {
        self.read(|state| {
            let lazy = state.rows.iter().filter(|(_, row)| row.source.is_some());
            lazy.map(|(name, row)| (name.clone(), Arc::clone(row))).collect()
        })
    }
}

/// Twelve digits that tell one parent's slot from another's.
fn short_name(parent: &str, attempt: u32) -> String {
    let text = if attempt == 0 { parent.to_owned() } else { format!("{attempt} {parent}") };
    Digest::of(text.as_bytes()).hex().chars().take(12).collect()
}

#[cfg(test)]
mod tests;
