//! A mounted layer against the same tar, unpacked.

// Clippy exempts test functions from these lints, and not their helpers.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation)]

mod common;

use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::sync::Arc;

use common::tree::{assert_same_tree, describe, unpack, xattrs};
use common::{CHUNK, Mood, Mounted, Source, Tar, blob, can_mount, everything, noise, off, on_demand, quick};
use lazyfs::{Layers, MountOptions, OpaqueXattr};
use rustix::mount::{MountFlags, UnmountFlags};

#[tokio::test(flavor = "multi_thread")]
async fn a_mounted_layer_is_the_unpacked_tar() {
    if !can_mount() {
        return;
    }
    let tar = everything();
    let blob = blob(&tar, CHUNK as u32);
    let source = Source::new(&blob);
    let mounted = Mounted::new(&blob, &source).await;
    let root = mounted.root.clone();
    off(move || {
        let unpacked = tempfile::tempdir().unwrap();
        unpack(&tar, unpacked.path());
        // Twice: from the source, and from the kernel's caches.
        assert_same_tree(&root, unpacked.path());
        assert_same_tree(&root, unpacked.path());
        assert_eq!(std::fs::metadata(&root).unwrap().ino(), 1);
        let error = std::fs::write(root.join("new"), b"").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        assert_eq!(std::fs::metadata(root.join("absent")).unwrap_err().kind(), std::io::ErrorKind::NotFound);
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let line = mounts.lines().find(|line| line.contains(root.to_str().unwrap())).unwrap();
        assert!(line.starts_with("pantala ") && line.contains(" fuse.pantala "), "{line}");
        assert!(!line.contains("nosuid") && !line.contains("nodev"), "{line}");
    })
    .await;
    assert!(mounted.layer.is_complete());
    assert_eq!(mounted.layer.status().touched, mounted.layer.status().size);
    mounted.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn under_overlayfs_a_layer_hides_what_it_removes() {
    if !can_mount() {
        return;
    }
    let mut tar = Tar::new();
    tar.dir("etc", 0o755).file("etc/.wh.gone", 0, b"").file("etc/new", 0o644, b"new");
    tar.dir("opaque", 0o750).file("opaque/.wh..wh..opq", 0, b"").file("opaque/mine", 0o644, b"mine");
    tar.dir("both", 0o755).file("both/.wh.x", 0, b"").file("both/x", 0o644, b"stays");
    tar.file(".wh.top", 0, b"").file(".wh..wh.plnk", 0, b"");
    tar.xattrs(
        "sly",
        &[("trusted.overlay.redirect", b"/etc"), ("user.overlay.opaque", b"y"), ("user.fine", b"1")],
        b"s",
    );
    let tar = tar.finish();
    let blob = blob(&tar, 0);
    let source = Source::new(&blob);
    let mounted = Mounted::new(&blob, &source).await;
    let root = mounted.root.clone();
    off(move || {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for dir in ["low/etc", "low/opaque/old", "low/both", "upper", "work", "merged"] {
            std::fs::create_dir_all(at(dir)).unwrap();
        }
        for file in ["low/etc/gone", "low/etc/kept", "low/opaque/theirs", "low/both/x", "low/top"] {
            std::fs::write(at(file), b"low").unwrap();
        }
        let whiteout = std::fs::symlink_metadata(root.join("etc/gone")).unwrap();
        assert!(whiteout.file_type().is_char_device());
        assert_eq!((whiteout.rdev(), whiteout.mode() & 0o7777), (0, 0));
        assert_eq!(xattrs(&root.join("opaque")), [("trusted.overlay.opaque".to_owned(), b"y".to_vec())]);
        assert_eq!(xattrs(&root.join("sly")), [("user.fine".to_owned(), b"1".to_vec())]);
        let shown: Vec<_> =
            describe(&root).into_iter().map(|(path, ..)| path.display().to_string()).collect();
        assert_eq!(
            shown,
            ["", "both", "both/x", "etc", "etc/gone", "etc/new", "opaque", "opaque/mine", "sly", "top"]
        );

        let options = format!(
            "lowerdir={}:{},upperdir={},workdir={}",
            root.display(),
            at("low").display(),
            at("upper").display(),
            at("work").display()
        );
        let options = std::ffi::CString::new(options).unwrap();
        rustix::mount::mount("overlay", at("merged"), "overlay", MountFlags::empty(), options.as_c_str())
            .unwrap();
        let merged: Vec<_> =
            describe(&at("merged")).into_iter().map(|(path, ..)| path.display().to_string()).collect();
        let content = std::fs::read(at("merged/both/x")).unwrap();
        // Copying up asks for everything that a file has.
        std::fs::write(at("merged/sly"), b"changed").unwrap();
        let state = std::fs::read_dir(at("merged/.stargz-snapshotter")).unwrap().count();
        rustix::mount::unmount(at("merged"), UnmountFlags::empty()).unwrap();
        assert_eq!(
            merged,
            ["", "both", "both/x", "etc", "etc/kept", "etc/new", "opaque", "opaque/mine", "sly"]
        );
        assert_eq!(content, b"stays");
        assert_eq!(state, 1);
    })
    .await;
    mounted.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn opaque_directories_can_be_marked_for_user_namespaces() {
    if !can_mount() {
        return;
    }
    let mut tar = Tar::new();
    let tar = tar.dir("opaque", 0o755).file("opaque/.wh..wh..opq", 0, b"").finish();
    let blob = blob(&tar, 0);
    let options = MountOptions { opaque_xattr: OpaqueXattr::User, ..MountOptions::default() };
    let mounted = Mounted::with(on_demand(&blob, &Source::new(&blob)), quick(), options).await;
    let root = mounted.root.clone();
    off(move || {
        assert_eq!(xattrs(&root.join("opaque")), [("user.overlay.opaque".to_owned(), b"y".to_vec())]);
    })
    .await;
    mounted.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_runs_from_a_layer() {
    if !can_mount() {
        return;
    }
    let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    let mut tar = Tar::new();
    let tar = tar.dir("bin", 0o755).file("bin/me", 0o755, &program).finish();
    let blob = blob(&tar, 1 << 20);
    let source = Source::new(&blob);
    let mounted = Mounted::new(&blob, &source).await;
    let path = mounted.root.join("bin/me");
    let output = off(move || std::process::Command::new(path).arg("--list").output().unwrap()).await;
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("a_program_runs_from_a_layer"));
    mounted.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_state_file_follows_the_layer() {
    if !can_mount() {
        return;
    }
    let mut tar = Tar::new();
    let tar = tar.file("a", 0o644, &noise(1, 1 << 20)).file("b", 0o644, &noise(2, 8 << 20)).finish();
    let blob = blob(&tar, 1 << 20);
    let source = Source::new(&blob);
    let mounted = Mounted::new(&blob, &source).await;
    let name = format!(".stargz-snapshotter/{}.json", blob.built.digest);
    let state = async || -> serde_json::Value {
        serde_json::from_slice(&mounted.read(&name).await.unwrap()).unwrap()
    };
    assert_eq!(state().await["fetchedSize"], 0);
    // Through an overlay, as a container sees it.
    let folder = tempfile::tempdir().unwrap();
    let merged = folder.path().join("merged");
    let lower = folder.path().join("lower");
    std::fs::create_dir(&merged).unwrap();
    std::fs::create_dir(&lower).unwrap();
    let options = format!("lowerdir={}:{}", mounted.root.display(), lower.display());
    let options = std::ffi::CString::new(options).unwrap();
    rustix::mount::mount("overlay", &merged, "overlay", MountFlags::RDONLY, options.as_c_str()).unwrap();
    let inside = async || -> serde_json::Value {
        let path = merged.join(&name);
        serde_json::from_slice(&off(move || std::fs::read(path)).await.unwrap()).unwrap()
    };
    assert_eq!(inside().await["fetchedSize"], 0);
    mounted.read("a").await.unwrap();
    let half = state().await;
    let later = inside().await["fetchedSize"].as_u64().unwrap();
    assert!(later >= half["fetchedSize"].as_u64().unwrap(), "{later} {half}"); // readahead may have landed
    assert!(
        half["fetchedSize"].as_u64().unwrap() > 0 && half["fetchedPercent"].as_f64().unwrap() < 100.0,
        "{half}"
    );
    mounted.read("b").await.unwrap();
    let whole = state().await;
    assert_eq!(inside().await, whole);
    rustix::mount::unmount(&merged, UnmountFlags::empty()).unwrap();
    assert_eq!((&whole["fetchedSize"], &whole["size"]), (&blob.built.size.into(), &blob.built.size.into()));
    let root = mounted.root.clone();
    off(move || {
        let names: Vec<_> =
            std::fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "the state directory is listed: {names:?}");
        assert_eq!(std::fs::metadata(root.join(".stargz-snapshotter")).unwrap().mode() & 0o7777, 0o500);
    })
    .await;
    mounted.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_on_disk_mounts_without_a_source() {
    if !can_mount() {
        return;
    }
    let mut tar = Tar::new();
    let here = noise(1, 3 * CHUNK);
    let tar = tar.file("here", 0o644, &here).file("absent", 0o644, &noise(2, 3 * CHUNK)).finish();
    let blob = blob(&tar, CHUNK as u32);
    let folder = tempfile::tempdir().unwrap();
    let source = Source::new(&blob);
    let layers = Layers::open(folder.path().join("store"), &quick()).unwrap();
    let layer = layers.layer(on_demand(&blob, &source)).await.unwrap();
    let file = layer.toc().unwrap().find(b"here").unwrap();
    assert_eq!(layer.read(file, 0, u32::MAX, content::Urgency::Blocking).await.unwrap(), here);
    let fetched = layer.status().fetched;
    assert!(fetched > 0 && !layer.is_complete());
    drop(layer);
    layers.shutdown().await;
    drop(layers);

    source.set(Mood::Dead);
    let opened = source.opened.load(std::sync::atomic::Ordering::SeqCst);
    let layers = Layers::open(folder.path().join("store"), &quick()).unwrap();
    let layer = layers.layer(on_demand(&blob, &source)).await.unwrap();
    assert_eq!(layer.status().fetched, fetched);
    let root = folder.path().join("root");
    std::fs::create_dir(&root).unwrap();
    let mount = lazyfs::mount(Arc::clone(&layer), &root, &MountOptions::default()).await.unwrap();
    let at = root.clone();
    assert_eq!(off(move || std::fs::read(at.join("here"))).await.unwrap(), here);
    assert_eq!(
        source.opened.load(std::sync::atomic::Ordering::SeqCst),
        opened,
        "the source was opened for nothing"
    );
    let at = root.clone();
    let error = off(move || std::fs::read(at.join("absent"))).await.unwrap_err();
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
    // And when the source is back, so are the bytes.
    source.set(Mood::Honest);
    assert_eq!(off(move || std::fs::read(root.join("absent"))).await.unwrap(), noise(2, 3 * CHUNK));
    mount.unmount().await.unwrap();
    drop((mount, layer));
    layers.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_background_fetch_ends_with_the_last_mount() {
    if !can_mount() {
        return;
    }
    let mut tar = Tar::new();
    let blob = blob(&tar.file("a", 0o644, &noise(1, 3 * CHUNK)).finish(), CHUNK as u32);
    let source = Source::new(&blob);
    let folder = tempfile::tempdir().unwrap();
    let layers = Layers::open(folder.path().join("store"), &quick()).unwrap();
    source.close_gate();
    let mount = async |name: &str| {
        let root = folder.path().join(name);
        std::fs::create_dir_all(&root).unwrap();
        let spec = lazyfs::LayerSpec { background: true, ..on_demand(&blob, &source) };
        let layer = layers.layer(spec).await.unwrap();
        lazyfs::mount(layer, &root, &MountOptions::default()).await.unwrap()
    };
    let (one, other) = (mount("one").await, mount("other").await);
    source.until(|traffic| traffic.under_way == 1).await;
    one.unmount().await.unwrap();
    drop(one);
    assert_eq!(source.traffic().given_up, 0, "the layer is still mounted");
    other.unmount().await.unwrap();
    drop(other);
    source.until(|traffic| traffic.under_way == 0 && traffic.given_up == 1).await;
    let again = mount("one").await;
    source.open_gate();
    let root = folder.path().join("one");
    assert_eq!(off(move || std::fs::read(root.join("a"))).await.unwrap(), noise(1, 3 * CHUNK));
    again.unmount().await.unwrap();
    drop(again);
    layers.shutdown().await;
}

#[tokio::test]
async fn a_mount_whose_process_died_is_taken_away() {
    if !can_mount() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    assert!(!lazyfs::unmount_stale(folder.path()).unwrap());
    for _ in 0..2 {
        let device = std::fs::File::options().read(true).write(true).open("/dev/fuse").unwrap();
        let data = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        let data = std::ffi::CString::new(data).unwrap();
        rustix::mount::mount("dead", folder.path(), "fuse", MountFlags::empty(), data.as_c_str()).unwrap();
        drop(device);
        assert!(lazyfs::unmount_stale(folder.path()).unwrap());
        assert!(!lazyfs::unmount_stale(folder.path()).unwrap());
    }
}
