//! The room that layers take: budget, eviction, a disk that is really full, and how much more than the files'
//! own bytes is on it.

// Clippy exempts test functions from these lints, and not their helpers.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation)]

mod common;

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Blob, Mood, Source, Tar, blob, can_mount, noise, off, on_demand, quick};
use content::Urgency;
use lazyfs::fuzzing::Native;
use lazyfs::keeper::{Keep, KeepHere};
use lazyfs::{Layer, LayerSpec, Layers, LayersOptions, MountOptions, OpaqueXattr};

const MIB: usize = 1 << 20;

/// A layer of `files` files of a MiB each, unlike any of another seed.
fn layer_blob(seed: u64, files: u64) -> Blob {
    let mut tar = Tar::new();
    for number in 0..files {
        tar.file(&number.to_string(), 0o644, &content_of(seed, number));
    }
    blob(&tar.finish(), 256 * 1024)
}

fn content_of(seed: u64, number: u64) -> Vec<u8> {
    noise(seed * 1000 + number + 1, MIB)
}

async fn read(layer: &Arc<Layer>, number: u64) -> Result<Vec<u8>, content::ReadError> {
    let inode = layer.toc().unwrap().find(number.to_string().as_bytes()).unwrap();
    let mut bytes = Vec::new();
    while bytes.len() < MIB {
        let more = layer.read(inode, bytes.len() as u64, MIB as u32, Urgency::Blocking).await?;
        bytes.extend_from_slice(&more);
    }
    Ok(bytes)
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < Duration::from_secs(20), "{what} did not come true");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn folder_of(store: &Path, blob: &Blob) -> PathBuf {
    store.join(blob.built.toc_digest.hex())
}

fn in_background(blob: &Blob, source: &Arc<Source>) -> LayerSpec {
    LayerSpec { background: true, ..on_demand(blob, source) }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_uses_goes_the_longest_unused_first_and_only_until_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let blobs: Vec<Blob> = (0..4).map(|seed| layer_blob(seed, 4)).collect();
    let sources: Vec<_> = blobs.iter().map(Source::new).collect();
    let options = LayersOptions { budget: Some(14 * MIB as u64), ..quick() };
    let keep = Arc::new(KeepHere::default());
    let layers = Layers::open_with(folder.path(), &options, keep.clone()).unwrap();
    let mut open = Vec::new();
    // Three are filled, 12 of 14 MiB, and were last used in another order than they came: 1, 0, 2.
    for (blob, source) in blobs.iter().zip(&sources).take(3) {
        let layer = layers.layer(on_demand(blob, source)).await.unwrap();
        for number in 0..4 {
            assert_eq!(read(&layer, number).await.unwrap().len(), MIB);
        }
        open.push(layer);
    }
    drop(open);
    tokio::time::sleep(Duration::from_millis(500)).await;
    for (at, minutes) in [(1, 30), (0, 20), (2, 10)] {
        let used = std::time::SystemTime::now() - Duration::from_mins(minutes);
        File::open(folder_of(folder.path(), &blobs[at])).unwrap().set_modified(used).unwrap();
    }
    let there = |at: usize| folder_of(folder.path(), &blobs[at]).exists();
    assert!((0..3).all(there));
    // The one that would go first was left mounted by the process before.
    let data = File::open(folder_of(folder.path(), &blobs[1]).join("data")).unwrap();
    let name = format!("data-{}", blobs[1].built.toc_digest.hex());
    keep.keep(&name, std::os::fd::AsFd::as_fd(&data)).unwrap();
    let last = layers.layer(on_demand(&blobs[3], &sources[3])).await.unwrap();
    read(&last, 0).await.unwrap();
    until("eviction", || !there(0)).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(there(1) && there(2) && there(3), "more went than had to");
    assert_eq!(
        layers.remove_unused(HashSet::new()).await.unwrap(),
        1,
        "not what the keeper has, nor what is used"
    );
    keep.forget(&name).unwrap();
    assert_eq!(layers.remove_unused(HashSet::new()).await.unwrap(), 1);
    assert!(layers.disk_usage().unwrap() < 2 * MIB as u64);
    // What was evicted comes back like any other.
    let again = layers.layer(on_demand(&blobs[0], &sources[0])).await.unwrap();
    assert_eq!(read(&again, 3).await.unwrap(), content_of(0, 3));
    drop((again, last));
    layers.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_budget_stops_what_nobody_waits_for_and_then_what_is_kept_but_no_reader() {
    let folder = tempfile::tempdir().unwrap();
    let blob = layer_blob(7, 24);
    let source = Source::new(&blob);
    let options = LayersOptions { budget: Some(10 * MIB as u64), ..quick() };
    let layers = Layers::open(folder.path(), &options).unwrap();
    let layer = layers.layer(in_background(&blob, &source)).await.unwrap();
    until("the background fetch", || layers.disk_usage().unwrap() >= 8 * MIB as u64).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let used = layers.disk_usage().unwrap();
    assert!(used <= 10 * MIB as u64 + 64 * 1024, "{used}: the background fetch passed the budget");
    let requests = source.reads.lock().unwrap().len();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(source.reads.lock().unwrap().len(), requests, "the background fetch goes on");
    for number in 0..24 {
        assert_eq!(read(&layer, number).await.unwrap(), content_of(7, number));
    }
    let used = layers.disk_usage().unwrap();
    assert!(used <= 10 * MIB as u64 + 64 * 1024, "{used}: reads passed the budget");
    drop(layer);
    layers.shutdown().await;

    // Opened with more, it goes on where it was.
    let layers =
        Layers::open(folder.path(), &LayersOptions { budget: Some(100 * MIB as u64), ..quick() }).unwrap();
    let layer = layers.layer(in_background(&blob, &source)).await.unwrap();
    until("the layer", || layer.is_complete()).await;
    drop(layer);
    layers.shutdown().await;
}

/// An ext4 of its own; gone when dropped, also if the test failed.
struct SmallDisk {
    at: PathBuf,
    _folder: tempfile::TempDir,
}

impl SmallDisk {
    fn new(bytes: u64) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let (image, at) = (folder.path().join("image"), folder.path().join("disk"));
        std::fs::create_dir(&at).unwrap();
        File::create(&image).unwrap().set_len(bytes).unwrap();
        let ran = |command: &mut Command| {
            command.output().map_err(|error| error.to_string()).and_then(|output| {
                let told = String::from_utf8_lossy(&output.stderr).into_owned();
                if output.status.success() { Ok(()) } else { Err(told) }
            })
        };
        let made = ran(Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(&image))
            .and_then(|()| ran(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&at)));
        match made {
            Ok(()) => Some(Self { at, _folder: folder }),
            Err(error) => {
                assert!(std::env::var_os("PANTALA_E2E").is_none_or(|mode| mode != "require"), "{error}");
                eprintln!("SKIPPED: no small disk can be mounted here: {error}");
                None
            }
        }
    }

    /// Takes all but `left` bytes.
    fn fill_up(&self, left: u64) -> PathBuf {
        let path = self.at.join("others");
        let file = File::create(&path).unwrap();
        let free = || {
            let fs = rustix::fs::statvfs(&self.at).unwrap();
            fs.f_bavail * fs.f_frsize
        };
        let mut at = 0;
        for piece in [MIB as u64, 4096] {
            while free() >= left + piece && file.write_all_at(&vec![1; piece as usize], at).is_ok() {
                at += piece;
            }
        }
        let _ = file.sync_all();
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_reads_go_on_and_when_there_is_room_bytes_are_kept_again() {
    let Some(disk) = SmallDisk::new(64 << 20) else { return };
    let blob = layer_blob(9, 24);
    let source = Source::new(&blob);
    let store = disk.at.join("store");
    let layers = Layers::open(&store, &quick()).unwrap();
    let layer = layers.layer(on_demand(&blob, &source)).await.unwrap();
    let root = tempfile::tempdir().unwrap();
    let mount = if can_mount() {
        Some(lazyfs::mount(Arc::clone(&layer), root.path(), &MountOptions::default()).await.unwrap())
    } else {
        None
    };
    let at = root.path().to_owned();
    let through_mount = |number: u64| {
        let path = at.join(number.to_string());
        off(move || std::fs::read(path))
    };
    assert_eq!(read(&layer, 0).await.unwrap(), content_of(9, 0));
    let others = disk.fill_up(3 * MIB as u64 / 2);
    for number in 0..24 {
        assert_eq!(read(&layer, number).await.unwrap(), content_of(9, number), "file {number}");
        if mount.is_some() {
            assert_eq!(through_mount(number).await.unwrap(), content_of(9, number), "file {number}, mounted");
        }
    }
    let kept = layer.status().fetched;
    assert!(kept >= MIB as u64 && kept < 3 * MIB as u64, "{kept} bytes kept on a full disk");
    // What was kept is right, with nobody to ask.
    source.set(Mood::Dead);
    assert_eq!(read(&layer, 0).await.unwrap(), content_of(9, 0));
    assert!(read(&layer, 23).await.is_err());
    source.set(Mood::Honest);

    std::fs::remove_file(others).unwrap();
    for number in 0..24 {
        assert_eq!(read(&layer, number).await.unwrap(), content_of(9, number));
    }
    assert!(layer.is_complete());
    if let Some(mount) = mount {
        mount.unmount().await.unwrap();
    }
    drop(layer);
    layers.shutdown().await;
    // All of it reached the disk, the map too, which had no room before.
    source.set(Mood::Dead);
    let layers = Layers::open(&store, &quick()).unwrap();
    let layer = layers.layer(on_demand(&blob, &source)).await.unwrap();
    assert!(layer.is_complete());
    assert_eq!(read(&layer, 23).await.unwrap(), content_of(9, 23));
    drop(layer);
    layers.shutdown().await;
}

/// Whoever reads is another process: this one answers.
async fn cat(path: PathBuf) -> Result<Vec<u8>, String> {
    off(move || {
        let output = Command::new("cat").arg(path).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() { Ok(output.stdout) } else { Err(told) }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_the_kernel_reads_on_from_the_reserve() {
    let Some(disk) = SmallDisk::new(64 << 20) else { return };
    if let Err(error) = lazyfs::probe(&disk.at) {
        assert!(std::env::var_os("PANTALA_E2E").is_none_or(|mode| mode != "require"), "{error}");
        eprintln!("SKIPPED: {error}");
        return;
    }
    let blob = layer_blob(13, 24);
    let source = Source::new(&blob);
    let store = disk.at.join("store");
    let options = LayersOptions { reserve: 6 * MIB as u64, ..quick() };
    let keep: Arc<dyn Keep> = Arc::new(KeepHere::default());
    let native = Native::start(Arc::clone(&keep)).unwrap();
    let layers = Layers::open_with(&store, &options, Arc::clone(&keep)).unwrap();
    let layer = layers.layer(on_demand(&blob, &source)).await.unwrap();
    let root = tempfile::tempdir().unwrap();
    let mount = native.mount(Arc::clone(&layer), root.path(), OpaqueXattr::Trusted).await.unwrap();
    assert_eq!(cat(root.path().join("0")).await.unwrap(), content_of(13, 0));
    let others = disk.fill_up(MIB as u64);
    let started = Instant::now();
    for number in 0..10 {
        // Pages that the kernel has are nobody's test.
        let path = root.path().join(number.to_string());
        assert_eq!(cat(path).await.unwrap(), content_of(13, number), "file {number}");
    }
    assert!(started.elapsed() > Duration::from_secs(9), "places were taken from readers before their time");
    let kept = layer.status().fetched;
    assert!(kept < 3 * MIB as u64, "{kept} bytes kept on a full disk");

    std::fs::remove_file(others).unwrap();
    until("recovery", || layer.status().fetched > kept || layer.is_complete()).await;
    for number in 0..24 {
        let path = root.path().join(number.to_string());
        assert_eq!(cat(path).await.unwrap(), content_of(13, number), "file {number}");
    }
    mount.unmount().await.unwrap();
    drop((mount, layer));
    native.leave().await;
    layers.shutdown().await;
    // What is called present is right: the places that were taken back are not among it.
    source.set(Mood::Dead);
    let layers = Layers::open(&store, &options).unwrap();
    let layer = layers.layer(on_demand(&blob, &source)).await.unwrap();
    let mut right = 0;
    for number in 0..24 {
        if let Ok(bytes) = read(&layer, number).await {
            assert_eq!(bytes, content_of(13, number));
            right += 1;
        }
    }
    assert!(right >= 14, "{right} files are kept");
    drop(layer);
    layers.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn room_is_left_to_others_on_the_disk() {
    let Some(disk) = SmallDisk::new(64 << 20) else { return };
    let blob = layer_blob(11, 40);
    let source = Source::new(&blob);
    let layers = Layers::open(disk.at.join("store"), &LayersOptions { keep_free: 50, ..quick() }).unwrap();
    let layer = layers.layer(in_background(&blob, &source)).await.unwrap();
    let free = || {
        let fs = rustix::fs::statvfs(&disk.at).unwrap();
        fs.f_bavail * 100 / fs.f_blocks
    };
    until("the background fetch", || free() < 55).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(free() >= 30, "only {} % are left", free());
    assert!(!layer.is_complete());
    assert_eq!(read(&layer, 39).await.unwrap(), content_of(11, 39));
    drop(layer);
    layers.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_takes_little_more_than_the_pages_of_its_files() {
    let folder = tempfile::tempdir().unwrap();
    let mut tar = Tar::new();
    // As in a real image: most files are small, most bytes are in large ones.
    for number in 0..200u64 {
        tar.file(&format!("small{number}"), 0o644, &noise(number + 1, 700 + 97 * number as usize));
    }
    for number in 0..8u64 {
        tar.file(&format!("large{number}"), 0o644, &noise(number + 1000, 3 * MIB + 17));
    }
    let blob = blob(&tar.finish(), MIB as u32);
    let source = Source::new(&blob);
    let layers = Layers::open(folder.path(), &quick()).unwrap();
    let layer = layers.layer(in_background(&blob, &source)).await.unwrap();
    until("the layer", || layer.is_complete()).await;
    let size = layer.status().size;
    drop(layer);
    layers.shutdown().await;
    let data = std::fs::metadata(folder_of(folder.path(), &blob).join("data")).unwrap().blocks() * 512;
    assert!(data <= size * 105 / 100, "{data} bytes on disk for {size}");
    assert!(layers.disk_usage().unwrap() <= size * 105 / 100);
}
