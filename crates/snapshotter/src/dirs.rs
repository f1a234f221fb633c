//! The directories of snapshots: `<root>/snapshots/<id>/{fs,work}`.
//!
//! Paths are short on purpose: an overlay mount lists one per layer in a single page of options. None of them is one
//! of stargz-snapshotter's, whose root this may have been ([`crate::leftover`]). A directory belongs to a snapshot if the metadata says so, and to nobody otherwise; what belongs to nobody is deleted
//! by [`Dirs::delete`], never through a mount.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

/// Mounts stacked on one place that are undone before giving up: a bound, never met.
const MAX_STACKED_MOUNTS: usize = 32;

/// The directory of blobs that are hashed, and of copies that were made of some, beside that of layers.
pub const PROOFS: &str = "proofs";

/// Something about a snapshot's directory failed.
#[derive(Debug, thiserror::Error)]
#[error("{doing} {path}: {error}")]
pub struct DirError {
    /// What was being done.
    pub doing: &'static str,
    /// With which path.
    pub path: PathBuf,
    /// What the system said.
    pub error: io::Error,
}

impl DirError {
    fn at(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |error| Self { doing, path, error }
    }
}

/// Where the snapshots lie.
#[derive(Debug, Clone)]
pub struct Dirs {
    root: PathBuf,
}

impl Dirs {
    /// The directories below `root`; makes what is missing. Blocks.
    ///
    /// # Errors
    /// That they cannot be made.
    pub fn create(root: &Path) -> Result<Self, DirError> {
        let dirs = Self { root: root.to_owned() };
        let make = |path: &Path, mode| {
            let made = DirBuilder::new().recursive(true).mode(mode).create(path);
            made.map_err(DirError::at("making the directory", path))
        };
        make(root, 0o711)?;
        for path in [dirs.snapshots(), dirs.layers()] {
            make(&path, 0o700)?;
            // Whoever made it first may not have known how private it is: private images lie there too.
            fs::set_permissions(&path, Permissions::from_mode(0o700))
                .map_err(DirError::at("protecting", &path))?;
        }
        // Mount tables show true paths; ours must be comparable with them.
        let root = fs::canonicalize(root).map_err(DirError::at("finding the directory", root))?;
        Ok(Self { root })
    }

    /// The database of snapshots.
    pub fn metadata(&self) -> PathBuf {
        self.root.join("snapshots.db")
    }

    /// Makes the database, which must be there, root's alone: it names images. Blocks.
    ///
    /// # Errors
    /// That the system refuses.
    pub fn protect_metadata(&self) -> Result<(), DirError> {
        let path = self.metadata();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).map_err(DirError::at("protecting", &path))
    }

    /// The directory of all snapshots.
    pub fn snapshots(&self) -> PathBuf {
        self.root.join("snapshots")
    }

    /// Where blobs lie while they are hashed.
    pub fn proofs(&self) -> PathBuf {
        self.root.join(PROOFS)
    }

    /// Lazily filled layers.
    pub fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    /// Where it is told how much of each mounted layer is here.
    pub fn states(&self) -> PathBuf {
        self.root.join("state")
    }

    /// Where mounts are tried.
    pub fn probe(&self) -> PathBuf {
        self.root.join("probe")
    }

    fn snapshot(&self, id: u64) -> PathBuf {
        self.snapshots().join(id.to_string())
    }

    /// The files of a snapshot, without what lies below.
    pub fn fs(&self, id: u64) -> PathBuf {
        self.snapshot(id).join("fs")
    }

    /// overlayfs's own scratch directory beside the files.
    pub fn work(&self, id: u64) -> PathBuf {
        self.snapshot(id).join("work")
    }

    /// Makes the directories of snapshot `id`. Its root gets owner and mode of the root of `parent`: the
    /// uppermost layer's root is what a container sees. Without a parent it is root's, 0755. Blocks.
    ///
    /// # Errors
    /// That they cannot be made; nothing is left then.
    pub fn make(&self, id: u64, parent: Option<u64>, writable: bool) -> Result<(), DirError> {
        let made = self.try_make(id, parent, writable);
        if made.is_err() {
            // The error that is told is the first one; what stays behind goes with the next cleanup.
            let _leftover = fs::remove_dir_all(self.snapshot(id));
        }
        made
    }

    fn try_make(&self, id: u64, parent: Option<u64>, writable: bool) -> Result<(), DirError> {
        let mkdir = |path: &Path, mode| {
            DirBuilder::new().mode(mode).create(path).map_err(DirError::at("making the directory", path))
        };
        let (files, work) = (self.fs(id), self.work(id));
        mkdir(&self.snapshot(id), 0o700)?;
        mkdir(&files, 0o755)?;
        if writable {
            mkdir(&work, 0o711)?;
        }
        let (uid, gid, mode) = match parent {
            None => (None, None, 0o755), // whatever the umask says
            Some(parent) => {
                let parent = self.fs(parent);
                let stat =
                    fs::symlink_metadata(&parent).map_err(DirError::at("reading the root", &parent))?;
                (Some(stat.uid()), Some(stat.gid()), stat.mode() & 0o7777)
            }
        };
        chown(&files, uid, gid).map_err(DirError::at("giving away", &files))?;
        fs::set_permissions(&files, Permissions::from_mode(mode)).map_err(DirError::at("opening up", &files))
    }

    /// The numbers of all directories that are there. Blocks.
    ///
    /// # Errors
    /// That the directory cannot be read.
    pub fn ids(&self) -> Result<Vec<u64>, DirError> {
        let dir = self.snapshots();
        let entries = fs::read_dir(&dir).map_err(DirError::at("reading", &dir))?;
        Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
    }

    /// Whether something is mounted on the files of snapshot `id` and answers. Blocks.
    pub fn is_mounted(&self, id: u64) -> bool {
        let device = |path: &Path| fs::symlink_metadata(path).map(|stat| stat.dev());
        match (device(&self.fs(id)), device(&self.snapshot(id))) {
            (Ok(files), Ok(outside)) => files != outside,
            _ => false,
        }
    }

    /// Takes away whatever is mounted on the files of snapshot `id`. Who has files open there keeps them.
    /// Blocks.
    ///
    /// # Errors
    /// That it cannot be unmounted.
    pub fn unmount(&self, id: u64) -> Result<(), DirError> {
        unmount_all(&self.fs(id))
    }

    /// Deletes the directory of snapshot `id`, after unmounting what is mounted there. Blocks.
    ///
    /// # Errors
    /// That it cannot; the rest goes another time.
    pub fn delete(&self, id: u64) -> Result<(), DirError> {
        self.unmount(id)?;
        let path = self.snapshot(id);
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(DirError::at("deleting", &path)(error))
            }
            _ => Ok(()),
        }
    }

    /// Takes away every mount below the directory of snapshots that is not on the files of one of `lazy`. Who has
    /// files open there keeps them. Blocks.
    ///
    /// # Errors
    /// That the mount table cannot be read, or a mount stays.
    pub fn unmount_others(&self, lazy: &[u64]) -> Result<usize, DirError> {
        let all =
            lazyfs::mount_points().map_err(DirError::at("reading", Path::new("/proc/self/mountinfo")))?;
        let ours = self.snapshots();
        let kept: HashSet<PathBuf> = lazy.iter().map(|id| self.fs(*id)).collect();
        let mut points: Vec<PathBuf> =
            all.into_iter().filter(|point| point.starts_with(&ours) && !kept.contains(point)).collect();
        points.dedup();
        for point in points.iter().rev() {
            unmount_all(point)?;
        }
        Ok(points.len())
    }
}

fn unmount_all(path: &Path) -> Result<(), DirError> {
    for _ in 0..MAX_STACKED_MOUNTS {
        match unmount(path, UnmountFlags::DETACH) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()), // nothing is mounted there
            Err(error) => return Err(DirError::at("unmounting", path)(error.into())),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dirs() -> (tempfile::TempDir, Dirs) {
        let root = tempfile::tempdir().unwrap();
        let dirs = Dirs::create(root.path()).unwrap();
        (root, dirs)
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn the_root_of_a_container_is_the_root_of_its_image() {
        let (_root, dirs) = dirs();
        dirs.make(1, None, true).unwrap();
        assert_eq!(mode(&dirs.fs(1)), 0o755);
        fs::set_permissions(dirs.fs(1), Permissions::from_mode(0o1711)).unwrap();
        dirs.make(2, Some(1), true).unwrap();
        assert_eq!(mode(&dirs.fs(2)), 0o1711);
        assert!(dirs.work(2).is_dir());
        dirs.make(3, Some(1), false).unwrap();
        assert!(!dirs.work(3).exists());
    }

    #[test]
    fn nobody_else_reads_what_is_kept_also_if_another_made_the_directories() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("layers/probe")).unwrap();
        let dirs = Dirs::create(root.path()).unwrap();
        assert_eq!((mode(&dirs.layers()), mode(&dirs.snapshots())), (0o700, 0o700));
    }

    #[test]
    fn a_failed_attempt_leaves_nothing() {
        let (_root, dirs) = dirs();
        assert!(dirs.make(1, Some(77), true).is_err());
        assert!(dirs.ids().unwrap().is_empty());
        dirs.make(2, None, true).unwrap();
        dirs.delete(2).unwrap();
        dirs.delete(2).unwrap();
        assert!(dirs.ids().unwrap().is_empty());
    }

    #[test]
    fn nothing_is_mounted_on_a_plain_directory() {
        let (_root, dirs) = dirs();
        dirs.make(1, None, true).unwrap();
        assert!(!dirs.is_mounted(1) && !dirs.is_mounted(2));
    }
}
