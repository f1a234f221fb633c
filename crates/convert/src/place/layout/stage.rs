//! The directory in which a layout's new blobs are gathered, and the change of `index.json`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use content::Digest;
use registry::{Descriptor, Index};
use tempfile::TempDir;

use super::{INDEX_FILE, LAYOUT, LAYOUT_FILE, blob_path, empty_index, read_index};
use crate::place::PlaceError;
use crate::place::blob::Extent;
use crate::place::image::{MAX_MANIFEST, REF_NAME, read_if_there};

/// What directories with new blobs are called.
const PREFIX: &str = ".pantala-";
/// The bits of a file's mode that let its group and everybody write.
const OTHERS_WRITE: u32 = 0o022;
/// How often a layout's directory is made anew that another writer took back meanwhile.
const TRIES: usize = 5;

/// The stage of one layout, shared by an image and its siblings. All its functions block.
#[derive(Debug)]
pub(crate) struct Stage {
    dir: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    open: Option<Open>,
    /// Directories that were made, the outermost first.
    made: Vec<PathBuf>,
    /// Siblings that have to get their names.
    beside: Vec<Descriptor>,
    /// Whether the image has its name.
    named: bool,
    next: u64,
}

#[derive(Debug)]
struct Open {
    temporary: TempDir,
    /// Locked for as long as somebody writes.
    _lock: File,
}

impl Stage {
    pub(crate) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), state: Mutex::default() }
    }

    /// The layout's directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the stage, and the layout's directory if need be.
    pub(crate) fn prepare(&self) -> Result<(), PlaceError> {
        self.opened(&mut self.state()).map(drop)
    }

    fn opened(&self, state: &mut State) -> Result<PathBuf, PlaceError> {
        if let Some(open) = &state.open {
            return Ok(open.temporary.path().to_owned());
        }
        let mut tries = 0;
        loop {
            tries += 1;
            self.make_dir(&mut state.made)?;
            match self.open_stage() {
                Ok(open) => {
                    let path = open.temporary.path().to_owned();
                    state.open = Some(open);
                    return Ok(path);
                }
                // Somebody else made the directory, and took it back as it was empty.
                Err(error) if error.kind() == io::ErrorKind::NotFound && tries < TRIES => {}
                Err(error) => return Err(PlaceError::file("making a directory in", &self.dir, error)),
            }
        }
    }

    fn make_dir(&self, made: &mut Vec<PathBuf>) -> Result<(), PlaceError> {
        let missing: Vec<&Path> =
            self.dir.ancestors().take_while(|dir| !dir.as_os_str().is_empty() && !dir.exists()).collect();
        for dir in missing.into_iter().rev() {
            match fs::create_dir(dir) {
                Ok(()) => made.push(dir.to_owned()),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(PlaceError::file("making the directory", dir, error)),
            }
        }
        let list = fs::read_dir(&self.dir).map_err(|error| PlaceError::file("listing", &self.dir, error))?;
        let mut other = false;
        for entry in list {
            let entry = entry.map_err(|error| PlaceError::file("listing", &self.dir, error))?;
            let name = entry.file_name();
            if name == INDEX_FILE || name == LAYOUT_FILE {
                return Ok(());
            }
            other |= !(name.to_string_lossy().starts_with(PREFIX) || name == "blobs");
        }
        if !other {
            return Ok(());
        }
        Err(PlaceError::Unsupported {
            place: format!("oci:{}", self.dir.display()),
            reason: "holds other files and is no OCI layout: name an empty or a new directory".to_owned(),
        })
    }

    fn open_stage(&self) -> io::Result<Open> {
        // Under the lock nobody takes the new directory for one whose writer is gone.
        let _guard = lock(&self.dir)?;
        for entry in fs::read_dir(&self.dir)?.flatten() {
            if entry.file_name().to_string_lossy().starts_with(PREFIX)
                && entry.file_type().is_ok_and(|kind| kind.is_dir())
                && File::open(entry.path()).is_ok_and(|left| left.try_lock().is_ok())
            {
                tracing::info!(dir = %entry.path().display(), "removing what a killed process left");
                fs::remove_dir_all(entry.path())?;
            }
        }
        let temporary = tempfile::Builder::new().prefix(PREFIX).tempdir_in(&self.dir)?;
        let lock = lock(temporary.path())?;
        Ok(Open { temporary, _lock: lock })
    }

    /// A new file for a blob whose digest is not known yet.
    pub(crate) fn create(&self) -> Result<(File, PathBuf), PlaceError> {
        let mut state = self.state();
        let path = self.opened(&mut state)?.join(format!("{}.part", state.next));
        state.next += 1;
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
        Ok((file.map_err(|error| PlaceError::file("making", &path, error))?, path))
    }

    /// Keeps the file `part` as the blob `digest`.
    pub(crate) fn keep(file: &File, part: &Path, digest: &Digest) -> Result<(), PlaceError> {
        file.sync_all().map_err(|error| PlaceError::file("writing", part, error))?;
        let path = part.with_file_name(digest.hex());
        fs::rename(part, &path).map_err(|error| PlaceError::file("renaming", part, error))
    }

    /// Writes a whole blob.
    pub(crate) fn put(&self, digest: &Digest, bytes: &[u8]) -> Result<(), PlaceError> {
        let (mut file, part) = self.create()?;
        file.write_all(bytes).map_err(|error| PlaceError::file("writing", &part, error))?;
        Self::keep(&file, &part, digest)
    }

    /// Links the file `from` of another layout. `false` if it is not there, on another file system, or open to
    /// others: a linked file is one file, and whoever may write to it may do so after it was compared.
    pub(crate) fn link(&self, from: &Path, descriptor: &Descriptor) -> Result<bool, PlaceError> {
        let (file, part) = self.create()?;
        let ours = file.metadata().map(|ours| ours.uid());
        let removed = fs::remove_file(&part);
        drop(file);
        // The link is made of what the name leads to, never of a link.
        let linked =
            removed.and_then(|()| fs::canonicalize(from)).and_then(|from| fs::hard_link(from, &part));
        if let Err(error) = linked {
            tracing::debug!(%error, "copying a blob that could not be linked");
            return Ok(false);
        }
        let right = fs::metadata(&part).and_then(|found| {
            let right = found.is_file() && found.len() == descriptor.size;
            let ours = found.uid() == ours? && found.mode() & OTHERS_WRITE == 0;
            Ok(right && ours && Extent::whole(File::open(&part)?)?.digest()? == descriptor.digest)
        });
        if right.is_ok_and(|right| right) {
            let path = part.with_file_name(descriptor.digest.hex());
            fs::rename(&part, &path).map_err(|error| PlaceError::file("renaming", &part, error))?;
            return Ok(true);
        }
        fs::remove_file(&part).map_err(|error| PlaceError::file("removing", &part, error))?;
        Ok(false)
    }

    fn places_of(&self, digest: &Digest) -> impl Iterator<Item = PathBuf> {
        let staged = self.state().open.as_ref().map(|open| open.temporary.path().join(digest.hex()));
        staged.into_iter().chain([blob_path(&self.dir, digest)])
    }

    /// Whether the blob is there.
    pub(crate) fn find(&self, descriptor: &Descriptor) -> Result<bool, PlaceError> {
        for path in self.places_of(&descriptor.digest) {
            match fs::metadata(&path) {
                Ok(found) if found.is_file() && found.len() == descriptor.size => return Ok(true),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(PlaceError::file("looking for", &path, error)),
            }
        }
        Ok(false)
    }

    /// A manifest, if it is there and whole.
    pub(crate) fn read(&self, descriptor: &Descriptor) -> Result<Option<Bytes>, PlaceError> {
        for path in self.places_of(&descriptor.digest) {
            let bytes = read_if_there(&path, MAX_MANIFEST)
                .map_err(|error| PlaceError::file("reading", &path, error))?;
            if let Some(bytes) = bytes.filter(|bytes| Digest::of(bytes) == descriptor.digest) {
                return Ok(Some(bytes));
            }
        }
        Ok(None)
    }

    /// Brings everything to its place and names `entry`. A sibling (`beside`) waits for its image.
    pub(crate) fn publish(&self, entry: Descriptor, beside: bool) -> Result<(), PlaceError> {
        let mut state = self.state();
        if beside && !state.named {
            state.beside.push(entry);
            return Ok(());
        }
        let staged = self.opened(&mut state)?;
        let mut entries = state.beside.clone();
        entries.push(entry);
        let failed = |error| PlaceError::file("writing the layout", &self.dir.join(INDEX_FILE), error);
        let _guard = lock(&self.dir).map_err(failed)?;
        // What can fail comes first: then nothing was brought.
        let index = read_index(&self.dir)?.map_or_else(empty_index, |(index, _)| index);
        let index = serde_json::to_vec(&index_with(index, &entries)).map_err(|error| failed(error.into()))?;
        write(&staged.join(INDEX_FILE), &index).map_err(failed)?;
        write(&staged.join(LAYOUT_FILE), LAYOUT).map_err(failed)?;
        self.bring(&staged).map_err(failed)?;
        *state = State { named: true, ..State::default() };
        Ok(())
    }

    /// Moves everything to its place, the index last.
    fn bring(&self, staged: &Path) -> io::Result<()> {
        let blobs = self.dir.join("blobs/sha256");
        fs::create_dir_all(&blobs)?;
        for blob in fs::read_dir(staged)? {
            let blob = blob?;
            let name = blob.file_name();
            if name.to_str().is_some_and(|name| format!("sha256:{name}").parse::<Digest>().is_ok()) {
                fs::rename(blob.path(), blobs.join(name))?;
            }
        }
        for dir in [&blobs, &self.dir.join("blobs")] {
            File::open(dir)?.sync_all()?;
        }
        if !self.dir.join(LAYOUT_FILE).exists() {
            fs::rename(staged.join(LAYOUT_FILE), self.dir.join(LAYOUT_FILE))?;
        }
        fs::rename(staged.join(INDEX_FILE), self.dir.join(INDEX_FILE))?;
        File::open(&self.dir)?.sync_all()
    }

    /// Removes all that has no name.
    pub(crate) fn clear(&self) {
        let state = std::mem::take(&mut *self.state());
        let named = state.named;
        drop(state.open);
        for dir in state.made.iter().rev() {
            // Another writer may be in there by now: only what is empty goes.
            if fs::remove_dir(dir).is_err() {
                break;
            }
        }
        self.state().named = named;
    }
}

impl Drop for Stage {
    /// The last resort: whoever fails says so by [`Stage::clear`].
    fn drop(&mut self) {
        self.clear();
    }
}

/// `index` with `entries`, each in place of the one that had its name.
pub(crate) fn index_with(mut index: Index, entries: &[Descriptor]) -> Index {
    for entry in entries {
        let name = entry.annotation(REF_NAME);
        index.manifests.retain(|old| old.annotation(REF_NAME) != name);
        index.manifests.push(entry.clone());
    }
    index
}

/// Waits for the lock of a directory, which ends with the answer.
fn lock(dir: &Path) -> io::Result<File> {
    let file = File::open(dir)?;
    file.lock()?;
    Ok(file)
}

/// Writes a file, down to the disk.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}
