//! A layer as the kernel's EROFS shows it, by the metadata image and the filled data file, against the same tar
//! unpacked and against the *fuse* driver. Root only; elsewhere the reason is printed.

// Clippy exempts test functions from these lints, and not their helpers.
#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

mod common;

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use common::formats::formats;
use common::tree::{assert_same_tree, describe, unpack, xattrs};
use common::{Blob, CHUNK, Source, Tar, blob_of, everything, noise, off, on_demand, quick};
use content::Urgency;
use lazyfs::{Layer, Layers, MountOptions, OpaqueXattr};
use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount,
};

/// On disk, as the build is: the kernel mounts no file of a tmpfs.
fn parent() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

/// Why images cannot be mounted here, if they cannot.
fn missing() -> Option<String> {
    const TMPFS: u64 = 0x0102_1994;
    const OVERLAY: u64 = 0x794c_7630;
    if !rustix::process::geteuid().is_root() {
        return Some("needs root: mounts an EROFS image".into());
    }
    if !Path::new("/dev/fuse").exists() {
        return Some("there is no /dev/fuse".into());
    }
    if fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC).is_err() {
        return Some("this kernel has no EROFS".into());
    }
    let file_system = rustix::fs::statfs(parent()).unwrap().f_type.cast_unsigned();
    matches!(file_system, TMPFS | OVERLAY)
        .then(|| format!("EROFS mounts no image from the file system of {}", parent().display()))
}

fn skip(reason: &str) {
    assert!(std::env::var_os("PANTALA_E2E").is_none_or(|value| value != "require"), "not skipped: {reason}");
    eprintln!("SKIPPED: {reason}");
}

fn can_mount() -> bool {
    missing().inspect(|reason| skip(reason)).is_none()
}

/// A layer of which every byte is here, and its image.
struct Filled {
    folder: tempfile::TempDir,
    layers: Arc<Layers>,
    layer: Arc<Layer>,
}

/// Something mounted by a test, until it ends however it ends.
struct At(PathBuf);

impl Drop for At {
    fn drop(&mut self) {
        let unmounted = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
        assert!(unmounted.is_ok() || std::thread::panicking(), "{unmounted:?}");
    }
}

impl Filled {
    async fn new(blob: &Blob, opaque: OpaqueXattr) -> Self {
        let folder = tempfile::tempdir_in(parent()).unwrap();
        let store = folder.path().join("store");
        let layers = Layers::open(&store, &quick()).unwrap();
        let layer = layers.layer(on_demand(blob, &Source::new(blob))).await.unwrap();
        let image = layer.metadata_image(opaque).unwrap();
        let toc = layer.toc().unwrap();
        let files: Vec<_> = toc.inodes().filter(|inode| inode.size() > 0).collect();
        for file in files.iter().filter(|inode| inode.kind() == estargz::Kind::Regular) {
            let bytes = layer.read(file.number(), 0, u32::MAX, Urgency::Blocking).await.unwrap();
            assert_eq!(bytes.len() as u64, file.size());
        }
        assert!(layer.is_complete());
        let filled = Self { folder, layers, layer };
        // What is here has no part in it.
        assert!(filled.layer.metadata_image(opaque).unwrap() == image);
        std::fs::write(filled.path("image"), &image).unwrap();
        let data_len = std::fs::metadata(filled.data()).unwrap().len();
        if let Err(error) = erofs::check(&image, data_len) {
            panic!("{error}");
        }
        filled.fsck();
        filled
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn data(&self) -> PathBuf {
        self.path("store").join(self.layer.toc_digest().hex()).join("data")
    }

    fn fsck(&self) {
        let device = [OsStr::new("--device="), self.data().as_os_str()].map(OsStr::as_bytes).concat();
        let output =
            Command::new("fsck.erofs").arg(OsStr::from_bytes(&device)).arg(self.path("image")).output();
        match output {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                skip("fsck.erofs is not installed (package erofs-utils)");
            }
            output => {
                let output = output.unwrap();
                assert!(output.status.success(), "{output:?}");
            }
        }
    }

    fn mount(&self) -> At {
        let context = fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
        fsconfig_set_string(context.as_fd(), "source", self.path("image")).unwrap();
        fsconfig_set_string(context.as_fd(), "device", self.data()).unwrap();
        fsconfig_set_flag(context.as_fd(), "ro").unwrap();
        fsconfig_create(context.as_fd()).unwrap();
        let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let mount = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes).unwrap();
        let at = self.path("erofs");
        std::fs::create_dir(&at).unwrap();
        move_mount(mount.as_fd(), "", CWD, &at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).unwrap();
        At(at)
    }

    /// Compares what the two drivers show.
    async fn compare_drivers(&self, erofs: &At, opaque: OpaqueXattr) {
        let root = self.path("fuse");
        std::fs::create_dir(&root).unwrap();
        let options = MountOptions { opaque_xattr: opaque, ..MountOptions::default() };
        let fuse = lazyfs::mount(Arc::clone(&self.layer), &root, &options).await.unwrap();
        let erofs = erofs.0.clone();
        off(move || assert_same_tree(&erofs, &root)).await;
        fuse.unmount().await.unwrap();
    }

    async fn end(self) {
        drop(self.layer);
        self.layers.shutdown().await;
    }
}

/// Something below, and what a layer can do to it.
fn two_layers() -> (Vec<u8>, Vec<u8>) {
    // The owner may read and write, user 1000 and everybody else may read.
    let entries =
        [(1u8, 6u8, u32::MAX), (2, 4, 1000), (4, 4, u32::MAX), (16, 4, u32::MAX), (32, 4, u32::MAX)];
    let entry = |(tag, may, id): (u8, u8, u32)| [[tag, 0, may, 0], id.to_le_bytes()].concat();
    let acl = [vec![2, 0, 0, 0], entries.map(entry).concat()].concat();
    let mut lower = Tar::new();
    lower.dir("etc", 0o755).file("etc/gone", 0o644, b"low").file("etc/kept", 0o644, &noise(1, 3 * CHUNK + 1));
    lower.dir("opaque", 0o755).dir("opaque/old", 0o755).file("opaque/theirs", 0o644, b"low");
    lower.dir("both", 0o755).file("both/x", 0o644, b"low").file("top", 0o644, b"low");
    let mut upper = Tar::new();
    upper.dir("etc", 0o711).file("etc/.wh.gone", 0, b"").file("etc/new", 0o644, b"new");
    upper.dir("opaque", 0o750).file("opaque/.wh..wh..opq", 0, b"").file("opaque/mine", 0o644, b"mine");
    upper.dir("both", 0o755).file("both/.wh.x", 0, b"").file("both/x", 0o644, &noise(2, CHUNK + 1));
    upper.owned(".wh.top", 0o7777, 5, 6, 1_000_000, b"").file(".wh..wh.plnk", 0, b"hidden");
    upper.xattrs(
        "sly",
        &[
            ("trusted.overlay.redirect", b"/etc"),
            ("trusted.never", b"1"),
            ("user.overlay.opaque", b"y"),
            ("user.fine", b"1"),
            ("system.posix_acl_access", &acl),
            ("system.posix_acl_default", &acl),
            ("nameless", b"1"),
        ],
        b"s",
    );
    (lower.finish(), upper.finish())
}

fn names(root: &Path) -> Vec<String> {
    describe(root).into_iter().map(|(path, ..)| path.display().to_string()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_of_any_format_is_the_unpacked_tar() {
    if !can_mount() {
        return;
    }
    let tar = everything();
    let unpacked = tempfile::tempdir_in(parent()).unwrap();
    unpack(&tar, unpacked.path());
    for (format, options) in formats() {
        eprintln!("{format}");
        let filled = Filled::new(&blob_of(&tar, &options), OpaqueXattr::Trusted).await;
        let mounted = filled.mount();
        let (ours, theirs) = (mounted.0.clone(), unpacked.path().to_owned());
        // Twice: from the disk, and from the kernel's caches.
        off(move || {
            assert_same_tree(&ours, &theirs);
            assert_same_tree(&ours, &theirs);
            let error = std::fs::write(ours.join("new"), b"").unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
            for absent in ["absent", ".no.prefetch.landmark", ".prefetch.landmark", "stargz.index.json"] {
                let error = std::fs::symlink_metadata(ours.join(absent)).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::NotFound, "{absent}");
            }
        })
        .await;
        filled.compare_drivers(&mounted, OpaqueXattr::Trusted).await;
        drop(mounted);
        filled.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn under_overlayfs_a_layer_hides_what_it_removes() {
    if !can_mount() {
        return;
    }
    let (lower, upper) = two_layers();
    for (format, options) in formats() {
        for (opaque, name, flag) in [
            (OpaqueXattr::Trusted, "trusted.overlay.opaque", ""),
            (OpaqueXattr::User, "user.overlay.opaque", ",userxattr"),
        ] {
            eprintln!("{format}, {name}");
            let lower = Filled::new(&blob_of(&lower, &options), opaque).await;
            let upper = Filled::new(&blob_of(&upper, &options), opaque).await;
            let (low, high) = (lower.mount(), upper.mount());
            lower.compare_drivers(&low, opaque).await;
            upper.compare_drivers(&high, opaque).await;
            let at = |name: &str| upper.path(name);
            for dir in ["changes", "work", "merged"] {
                std::fs::create_dir(at(dir)).unwrap();
            }
            assert_eq!(
                names(&high.0),
                ["", "both", "both/x", "etc", "etc/gone", "etc/new", "opaque", "opaque/mine", "sly", "top"]
            );
            assert_eq!(xattrs(&high.0.join("opaque")), [(name.to_owned(), b"y".to_vec())]);
            let sly: Vec<_> = xattrs(&high.0.join("sly")).into_iter().map(|(name, _)| name).collect();
            assert_eq!(sly, ["system.posix_acl_access", "user.fine"]);
            let options = format!(
                "lowerdir={}:{},upperdir={},workdir={}{flag}",
                high.0.display(),
                low.0.display(),
                at("changes").display(),
                at("work").display()
            );
            let options = CString::new(options).unwrap();
            let none = MountFlags::empty();
            rustix::mount::mount("overlay", at("merged"), "overlay", none, options.as_c_str()).unwrap();
            let merged = At(at("merged"));
            assert_eq!(
                names(&merged.0),
                ["", "both", "both/x", "etc", "etc/kept", "etc/new", "opaque", "opaque/mine", "sly"]
            );
            assert!(std::fs::read(merged.0.join("both/x")).unwrap() == noise(2, CHUNK + 1));
            assert!(std::fs::read(merged.0.join("etc/kept")).unwrap() == noise(1, 3 * CHUNK + 1));
            assert!(xattrs(&merged.0.join("opaque")).is_empty());
            // Copying up asks for everything that a file has.
            std::fs::write(merged.0.join("sly"), b"changed").unwrap();
            std::fs::write(merged.0.join("etc/gone"), b"here again").unwrap();
            assert_eq!(std::fs::read(merged.0.join("etc/gone")).unwrap(), b"here again");
            drop((merged, high, low));
            lower.end().await;
            upper.end().await;
        }
    }
}
