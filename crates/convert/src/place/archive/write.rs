//! The tar that is being written.
//!
//! It depends on nothing but the blobs and their order: no times, no owners.

use std::collections::HashMap;
use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use content::{ByteRange, Digest};
use registry::Descriptor;
use tempfile::NamedTempFile;

use super::blob_name;
use crate::place::PlaceError;
use crate::place::blob::Extent;
use crate::place::image::Shelf;
use crate::place::layout::{INDEX_FILE, LAYOUT, LAYOUT_FILE, empty_index, index_with};

/// Bytes of a header; contents are filled up to a multiple of it.
const BLOCK: u64 = HEADER as u64;
const HEADER: usize = 512;
/// Bytes copied at once.
const PIECE: u64 = 1 << 20;
/// Largest size that eleven octal digits can tell.
const MAX_OCTAL: u64 = (1 << 33) - 1;

/// An archive under way, shared by an image and its siblings. All its functions block.
#[derive(Debug)]
pub(crate) struct Archive {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    tar: Option<Tar>,
    /// Siblings that have to get their names.
    beside: Vec<Descriptor>,
    named: bool,
    /// Whether somebody asked what stands under the name now.
    asked: bool,
    /// That, if it is an archive.
    old: Option<Arc<Shelf>>,
}

#[derive(Debug)]
struct Tar {
    temporary: NamedTempFile,
    /// The same file, for those who read blobs of it.
    file: Arc<File>,
    end: u64,
    blobs: HashMap<Digest, (u64, u64)>,
}

impl Archive {
    pub(crate) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the file that is going to be the archive.
    pub(crate) fn prepare(&self) -> Result<(), PlaceError> {
        self.opened(&mut self.state()).map(drop)
    }

    fn opened<'a>(&self, state: &'a mut State) -> Result<&'a mut Tar, PlaceError> {
        if state.tar.is_none() {
            if state.named {
                return Err(PlaceError::Unsupported {
                    place: format!("oci-archive:{}", self.path.display()),
                    reason: "is complete: nothing can be added to it".to_owned(),
                });
            }
            state.tar =
                Some(self.begin().map_err(|error| PlaceError::file("writing beside", &self.path, error))?);
        }
        state.tar.as_mut().ok_or(PlaceError::Interrupted)
    }

    fn begin(&self) -> io::Result<Tar> {
        if self.path.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let name = self.path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let prefix = format!(".{}.pantala-", name.to_string_lossy());
        let dir = parent(&self.path);
        let temporary = tempfile::Builder::new()
            .prefix(&prefix)
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(dir)?;
        let file = Arc::new(temporary.as_file().try_clone()?);
        let mut tar = Tar { temporary, file, end: 0, blobs: HashMap::new() };
        tar.header("blobs/", b'5', 0)?;
        tar.header("blobs/sha256/", b'5', 0)?;
        tar.member(LAYOUT_FILE, &Extent::memory(LAYOUT.into()))?;
        Ok(tar)
    }

    /// A blob that was appended.
    pub(crate) fn find(&self, digest: &Digest) -> Option<Extent> {
        let state = self.state();
        let tar = state.tar.as_ref()?;
        let (offset, len) = tar.blobs.get(digest)?;
        Some(Extent::new(Arc::clone(&tar.file), *offset, *len))
    }

    /// Appends a blob, unless it is there.
    pub(crate) fn append(&self, digest: &Digest, blob: &Extent) -> Result<(), PlaceError> {
        let mut state = self.state();
        let tar = self.opened(&mut state)?;
        if tar.blobs.contains_key(digest) {
            return Ok(());
        }
        let offset = tar
            .member(&blob_name(digest), blob)
            .map_err(|error| PlaceError::file("writing beside", &self.path, error))?;
        tar.blobs.insert(*digest, (offset, blob.len()));
        Ok(())
    }

    /// The archive that stands under the name now, if it can be read. It is opened once.
    pub(crate) fn replaced(
        &self,
        open: impl FnOnce(&Path) -> Result<Shelf, PlaceError>,
    ) -> Option<Arc<Shelf>> {
        let mut state = self.state();
        if !state.asked {
            state.asked = true;
            let opened = self.path.exists().then(|| open(&self.path));
            let opened = opened.transpose().inspect_err(|error| {
                tracing::debug!(%error, "replacing what is no archive");
            });
            state.old = opened.ok().flatten().map(Arc::new);
        }
        state.old.clone()
    }

    /// Ends the archive, in which `entry` has a name, and gives it its own. A sibling (`beside`) waits for
    /// its image.
    pub(crate) fn publish(&self, entry: Descriptor, beside: bool) -> Result<(), PlaceError> {
        let mut state = self.state();
        self.opened(&mut state)?;
        if beside {
            state.beside.push(entry);
            return Ok(());
        }
        let mut entries = state.beside.clone();
        entries.push(entry);
        let Some(mut tar) = state.tar.take() else { return Err(PlaceError::Interrupted) };
        let failed = |error| PlaceError::file("writing", &self.path, error);
        let index = serde_json::to_vec(&index_with(empty_index(), &entries));
        let index = index.map_err(|error| failed(error.into()))?;
        tar.finish(&index).map_err(failed)?;
        tar.temporary.persist(&self.path).map_err(|error| failed(error.error))?;
        File::open(parent(&self.path)).and_then(|dir| dir.sync_all()).map_err(failed)?;
        *state = State { named: true, ..State::default() };
        Ok(())
    }

    /// Removes what has no name yet.
    pub(crate) fn clear(&self) {
        let mut state = self.state();
        *state = State { named: state.named, ..State::default() };
    }
}

impl Tar {
    /// Writes a header at the end; answers where the content goes.
    fn header(&mut self, name: &str, kind: u8, size: u64) -> io::Result<u64> {
        let header = header(name, kind, size).ok_or(io::ErrorKind::FileTooLarge)?;
        self.file.write_all_at(&header, self.end)?;
        self.end += BLOCK;
        Ok(self.end)
    }

    /// Appends a file; answers where its content is. A failure leaves the archive as long as it was.
    fn member(&mut self, name: &str, content: &Extent) -> io::Result<u64> {
        let before = self.end;
        let written = self.header(name, b'0', content.len()).and_then(|offset| {
            let mut at = 0;
            while at < content.len() {
                let bytes = content.read(ByteRange::new(at, (at + PIECE).min(content.len())))?;
                self.file.write_all_at(&bytes, offset + at)?;
                at += bytes.len() as u64;
            }
            let end = offset.checked_add(content.len()).and_then(|end| end.checked_next_multiple_of(BLOCK));
            self.end = end.ok_or(io::ErrorKind::FileTooLarge)?;
            self.file.set_len(self.end)?;
            Ok(offset)
        });
        if written.is_err() {
            self.end = before;
        }
        written
    }

    fn finish(&mut self, index: &[u8]) -> io::Result<()> {
        self.member(INDEX_FILE, &Extent::memory(index.to_vec().into()))?;
        // Two empty blocks end a tar.
        self.file.set_len(self.end)?;
        self.file.set_len(self.end + 2 * BLOCK)?;
        self.file.sync_all()
    }
}

/// A ustar header for a name of at most 100 bytes.
fn header(name: &str, kind: u8, size: u64) -> Option<[u8; HEADER]> {
    let mut block = [0; HEADER];
    let mut put = |at: usize, bytes: &[u8]| {
        block.get_mut(at..at + bytes.len()).map(|field| field.copy_from_slice(bytes))
    };
    let mode: &[u8] = if kind == b'5' { b"0000755\0" } else { b"0000644\0" };
    put(0, name.as_bytes().get(..name.len().min(100))?)?;
    put(100, mode)?;
    put(108, b"0000000\0")?;
    put(116, b"0000000\0")?;
    if size <= MAX_OCTAL {
        put(124, format!("{size:011o}\0").as_bytes())?;
    } else {
        // GNU's way for what octal digits cannot tell.
        put(124, &[0x80, 0, 0, 0])?;
        put(128, &size.to_be_bytes())?;
    }
    put(136, b"00000000000\0")?;
    put(148, b"        ")?;
    put(156, &[kind])?;
    put(257, b"ustar\x0000")?;
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block.get_mut(148..156)?.copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    Some(block)
}

/// The directory that a file is in.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::place::tar_index::TarIndex;

    #[test]
    fn sizes_beyond_octal_digits_are_written_as_bytes() {
        for size in [0, MAX_OCTAL, MAX_OCTAL + 1, 1 << 40] {
            let block = header("name", b'0', size).unwrap();
            let other = tar::Header::from_byte_slice(&block);
            assert_eq!(other.size().unwrap(), size);
            assert_eq!(other.cksum().unwrap(), block_sum(&block));
        }
    }

    fn block_sum(block: &[u8]) -> u32 {
        block
            .iter()
            .enumerate()
            .map(|(at, b)| if (148..156).contains(&at) { 32 } else { u32::from(*b) })
            .sum()
    }

    #[test]
    fn what_was_appended_can_be_read_before_and_after_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image.tar");
        let archive = Archive::new(&path);
        let blobs: Vec<Vec<u8>> = (0..5_u8).map(|n| vec![n; 300 * usize::from(n)]).collect();
        for blob in &blobs {
            archive.append(&Digest::of(blob), &Extent::memory(blob.clone().into())).unwrap();
            assert_eq!(archive.find(&Digest::of(blob)).unwrap().digest().unwrap(), Digest::of(blob));
        }
        assert!(!path.exists());
        archive.publish(Descriptor::new("x", Digest::of(&blobs[1]), 300), false).unwrap();
        let index = TarIndex::read(Arc::new(File::open(&path).unwrap())).unwrap();
        for blob in &blobs {
            let found = index.find(&blob_name(&Digest::of(blob))).unwrap();
            assert_eq!(found.digest().unwrap(), Digest::of(blob));
        }
        let mut other = tar::Archive::new(File::open(&path).unwrap());
        assert_eq!(other.entries().unwrap().map(Result::unwrap).count(), 2 + 1 + 5 + 1);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
