//! What stargz-snapshotter left in a root that was its own.
//!
//! People exchange the binary and keep everything else, so its files are there at our first start. None of ours has the
//! name of one of its: both can live in one root, and whoever goes back finds what he had. What it pulled is not taken
//! over: its lazy layers were mounts that ended with it, and its metadata say nothing that a new pull does not say.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// Marks a file of bbolt, in its first page behind the page's header of 16 bytes (bbolt's `magic`, little endian on all
/// machines that matter).
const BOLT: (u64, [u8; 4]) = (16, 0xED0C_DAED_u32.to_le_bytes());

/// Its databases: of snapshots, of files in layers, of its FUSE manager.
const DATABASES: [&str; 3] = ["snapshotter/metadata.db", "metadata.db", "fusestore.db"];

/// Its caches.
const CACHES: [&str; 2] = ["stargz/httpcache", "stargz/fscache"];

/// The files and directories of stargz-snapshotter in `root`; none if there was none. Blocks shortly.
pub fn find(root: &Path) -> Vec<PathBuf> {
    let databases = DATABASES.iter().map(|name| root.join(name)).filter(|path| is_bolt(path));
    let caches = CACHES.iter().map(|name| root.join(name)).filter(|path| path.is_dir());
    databases.chain(caches).collect()
}

/// Says once what is there and what to do about it.
pub fn tell(root: &Path) {
    let found = find(root);
    if found.is_empty() {
        return;
    }
    let found: Vec<_> = found.iter().map(|path| path.display().to_string()).collect();
    tracing::warn!(
        found = found.join(" "),
        "stargz-snapshotter left its files here: they are ignored and stay as they are. Images that were pulled with it \
         must be removed from containerd and pulled again (docs/from-stargz-snapshotter.md)"
    );
}

fn is_bolt(path: &Path) -> bool {
    let mut magic = [0; 4];
    let (at, expected) = BOLT;
    path.is_file()
        && File::open(path).is_ok_and(|file| file.read_exact_at(&mut magic, at).is_ok() && magic == expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_of_bolt_is_known_by_its_magic_and_nothing_else_is() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(find(root.path()), Vec::<PathBuf>::new());
        std::fs::create_dir_all(root.path().join("snapshotter/snapshots/1/fs")).unwrap();
        let database = root.path().join("snapshotter/metadata.db");
        std::fs::write(&database, [0; 64]).unwrap();
        assert_eq!(find(root.path()), Vec::<PathBuf>::new());
        let page = [&[0; 16][..], &[0xED, 0xDA, 0x0C, 0xED], &[0; 4076]].concat();
        std::fs::write(&database, page).unwrap();
        std::fs::create_dir_all(root.path().join("stargz/httpcache/123")).unwrap();
        assert_eq!(find(root.path()), [database, root.path().join("stargz/httpcache")]);
    }
}
