//! How the bytes of a layer arrive, and what happens when they do not.

// Clippy exempts test functions from these lints, and not their helpers.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation)]

mod common;

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::{Blob, Mood, Mounted, Source, Tar, blob, can_mount, noise, off, on_demand, quick};
use content::{ReadErrorKind, Urgency};
use lazyfs::{Layer, LayerError, LayerSpec, Layers, LayersOptions, MountOptions, Prefetch};

const CHUNK: usize = 256 * 1024;

fn two_files() -> Blob {
    let mut tar = Tar::new();
    let tar = tar.file("a", 0o644, &noise(1, 4 * CHUNK)).file("b", 0o644, &noise(2, 2 * CHUNK)).finish();
    blob(&tar, CHUNK as u32)
}

struct Store {
    layers: Arc<Layers>,
    folder: tempfile::TempDir,
}

impl Store {
    fn new(options: &LayersOptions) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { layers: Layers::open(folder.path(), options).unwrap(), folder }
    }
}

fn file(layer: &Layer, name: &str) -> u32 {
    layer.toc().unwrap().find(name.as_bytes()).unwrap()
}

/// Waits for a condition that something else is about to make true.
async fn until(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..2000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    unreachable!("never happened: {what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_readers_of_one_cold_chunk_cost_one_read() {
    let blob = two_files();
    let source = Source::new(&blob);
    let store = Store::new(&quick());
    let layer = store.layers.layer(on_demand(&blob, &source)).await.unwrap();
    let inode = file(&layer, "a");
    source.close_gate();
    let readers: Vec<_> = (0..50u64)
        .map(|reader| {
            let layer = Arc::clone(&layer);
            tokio::spawn(async move { layer.read(inode, reader * 100, 4096, Urgency::Blocking).await })
        })
        .collect();
    until("a read at the source", || source.read_count() > 0).await;
    source.gate.add_permits(1000);
    let content = noise(1, 4 * CHUNK);
    for (reader, task) in readers.into_iter().enumerate() {
        assert_eq!(task.await.unwrap().unwrap(), content[reader * 100..reader * 100 + 4096]);
    }
    assert_eq!(source.read_count(), 1, "{:?}", source.reads.lock().unwrap());
    assert_eq!(layer.status().touched, CHUNK as u64);
    store.layers.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_across_chunks_is_one_request() {
    let blob = two_files();
    let source = Source::new(&blob);
    let store = Store::new(&quick());
    let layer = store.layers.layer(on_demand(&blob, &source)).await.unwrap();
    let all = layer.read(file(&layer, "a"), 1, u32::MAX, Urgency::Blocking).await.unwrap();
    assert_eq!(all, noise(1, 4 * CHUNK)[1..]);
    assert_eq!(source.read_count(), 1);
    assert!(layer.read(file(&layer, "a"), 4 * CHUNK as u64, 10, Urgency::Blocking).await.unwrap().is_empty());
    store.layers.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn small_neighbours_come_with_one_request() {
    let mut tar = Tar::new();
    for number in 0..20 {
        tar.file(&format!("{number:02}"), 0o644, &noise(number, 1000));
    }
    let blob = blob(&tar.finish(), 0);
    let source = Source::new(&blob);
    // As in a cluster: whoever reads a byte is sent 64 KiB.
    source.unit.store(64 << 10, Ordering::SeqCst);
    let store = Store::new(&quick());
    let layer = store.layers.layer(on_demand(&blob, &source)).await.unwrap();
    layer.read(file(&layer, "10"), 0, 1000, Urgency::Blocking).await.unwrap();
    until("the neighbours", || layer.is_complete()).await;
    assert_eq!(source.read_count(), 1);
    assert_eq!(layer.status().touched, 1000);
    store.layers.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_are_an_error_and_are_not_kept() {
    let blob = two_files();
    let source = Source::new(&blob);
    let store = Store::new(&quick());
    let layer = store.layers.layer(on_demand(&blob, &source)).await.unwrap();
    source.set(Mood::Liar);
    let error = layer.read(file(&layer, "a"), 0, 10, Urgency::Blocking).await.unwrap_err();
    assert_eq!(error.kind(), ReadErrorKind::Corrupt, "{error}");
    assert_eq!(source.read_count(), 2, "wrong bytes are asked for once more");
    assert_eq!(layer.status().fetched, 0);
    assert!(!layer.status().error.is_empty());
    let data = store.folder.path().join(blob.built.toc_digest.hex()).join("data");
    assert_eq!(std::fs::metadata(data).unwrap().blocks(), 0, "something was written");
    source.set(Mood::Honest);
    let bytes = layer.read(file(&layer, "a"), 0, 10, Urgency::Blocking).await.unwrap();
    assert_eq!(bytes, noise(1, 10));
    assert!(layer.status().error.is_empty());
    store.layers.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_image_brings_a_second_source() {
    let blob = two_files();
    let (first, second) = (Source::new(&blob), Source::new(&blob));
    let store = Store::new(&quick());
    let layer = store.layers.layer(on_demand(&blob, &first)).await.unwrap();
    let again = store.layers.layer(on_demand(&blob, &second)).await.unwrap();
    assert!(Arc::ptr_eq(&layer, &again));
    assert_eq!(second.opened.load(Ordering::SeqCst), 0);
    first.set(Mood::Dead);
    let bytes = layer.read(file(&layer, "b"), 0, 10, Urgency::Blocking).await.unwrap();
    assert_eq!(bytes, noise(2, 10));
    assert_eq!(second.opened.load(Ordering::SeqCst), 1);
    store.layers.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_source_is_an_error_in_time() {
    let blob = two_files();
    let source = Source::new(&blob);
    let store = Store::new(&LayersOptions { read_deadline: Duration::from_millis(100), ..quick() });
    let layer = store.layers.layer(on_demand(&blob, &source)).await.unwrap();
    source.set(Mood::Frozen);
    let error = layer.read(file(&layer, "a"), 0, 10, Urgency::Blocking).await.unwrap_err();
    assert_eq!(error.kind(), ReadErrorKind::Unavailable);
    store.layers.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_overtakes_a_prefetch_that_does_not_arrive() {
    let blob = two_files();
    let source = Source::new(&blob);
    let store = Store::new(&quick());
    let layer = store.layers.layer(on_demand(&blob, &source)).await.unwrap();
    source.set(Mood::Frozen);
    let inode = file(&layer, "a");
    let slow = tokio::spawn({
        let layer = Arc::clone(&layer);
        async move { layer.read(inode, 0, 10, Urgency::Background).await }
    });
    until("the background read", || source.read_count() == 1).await;
    source.set(Mood::Honest);
    assert_eq!(layer.read(inode, 0, 10, Urgency::Blocking).await.unwrap(), noise(1, 10));
    assert_eq!(source.reads.lock().unwrap().last().unwrap().1, Urgency::Blocking);
    slow.abort();
    store.layers.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sequential_reader_is_read_ahead_for() {
    let blob = two_files();
    let source = Source::new(&blob);
    let store = Store::new(&quick());
    let layer = store.layers.layer(on_demand(&blob, &source)).await.unwrap();
    let inode = file(&layer, "a");
    for at in (0..CHUNK as u64).step_by(32 * 1024) {
        layer.read(inode, at, 32 * 1024, Urgency::Blocking).await.unwrap();
    }
    until("a prefetch", || source.reads.lock().unwrap().iter().any(|read| read.1 == Urgency::Prefetch)).await;
    store.layers.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_file_is_no_reason_to_fetch_the_next() {
    for unit in [1, 64 << 10] {
        let blob = two_files();
        let source = Source::new(&blob);
        source.unit.store(unit, Ordering::SeqCst);
        let store = Store::new(&quick());
        let layer = store.layers.layer(on_demand(&blob, &source)).await.unwrap();
        let inode = file(&layer, "a");
        for at in (0..4 * CHUNK as u64).step_by(32 * 1024) {
            layer.read(inode, at, 32 * 1024, Urgency::Blocking).await.unwrap();
        }
        // Time for a guess to arrive.
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(layer.status().fetched < 4 * CHUNK as u64 + 4096, "{unit}: {:?}", layer.status());
        store.layers.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_background_fetch_completes_a_layer_and_it_survives() {
    let blob = two_files();
    let source = Source::new(&blob);
    let store = Store::new(&quick());
    let spec = LayerSpec { background: true, ..on_demand(&blob, &source) };
    let layer = store.layers.layer(spec).await.unwrap();
    until("completeness", || layer.is_complete()).await;
    assert!(source.reads.lock().unwrap().iter().all(|read| read.1 == Urgency::Background));
    assert_eq!(layer.status().touched, 0);
    drop(layer);
    store.layers.shutdown().await;
    source.set(Mood::Dead);
    let layers = Layers::open(store.folder.path(), &quick()).unwrap();
    let layer = layers.layer(on_demand(&blob, &source)).await.unwrap();
    assert!(layer.is_complete());
    assert_eq!(
        layer.read(file(&layer, "b"), 0, u32::MAX, Urgency::Blocking).await.unwrap(),
        noise(2, 2 * CHUNK)
    );
    layers.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_background_fetch_gives_way_and_still_gets_on() {
    let blob = two_files();
    let source = Source::new(&blob);
    let options = LayersOptions {
        background_quiet: Duration::from_hours(1),
        background_at_least: Duration::from_millis(20),
        ..quick()
    };
    let store = Store::new(&options);
    let spec = LayerSpec { background: true, ..on_demand(&blob, &source) };
    let layer = store.layers.layer(spec).await.unwrap();
    // Nobody read yet: it is quiet by definition. From the first read on only patience helps.
    let _ = layer.read(file(&layer, "a"), 0, 10, Urgency::Blocking).await.unwrap();
    until("completeness", || layer.is_complete()).await;
    store.layers.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_is_prefetched_as_far_as_asked() {
    let blob = two_files();
    let source = Source::new(&blob);
    let store = Store::new(&quick());
    let spec = prefetched(&store, &blob, &source, 1000);
    let layer = store.layers.layer(spec).await.unwrap();
    layer.prefetched().await;
    // The one byte of the former landmark, and the first chunk of the first file.
    assert_eq!(layer.status().fetched, 1 + CHUNK as u64);
    assert!(source.reads.lock().unwrap().iter().all(|read| read.1 == Urgency::Prefetch));
    store.layers.shutdown().await;
}

/// Puts a layer into the store whose first `size` bytes shall be prefetched. The builder writes the landmark
/// "prefetch nothing"; without it the size counts.
fn prefetched(store: &Store, blob: &Blob, source: &Arc<Source>, size: u64) -> LayerSpec {
    let tail = &blob.bytes[..];
    let end = estargz::open_tail(tail, tail.len() as u64).unwrap();
    let estargz::TailState::Toc { json, toc_offset, .. } = end else { unreachable!("the tail is the blob") };
    let json = String::from_utf8(json).unwrap().replace(estargz::NO_PREFETCH_LANDMARK, "ordinary");
    let toc_digest = content::Digest::of(json.as_bytes());
    let folder = store.folder.path().join(toc_digest.hex());
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("toc.json"), &json).unwrap();
    let about =
        serde_json::json!({"layer": blob.built.digest, "blob_len": tail.len(), "toc_offset": toc_offset});
    std::fs::write(folder.join("layer.json"), about.to_string()).unwrap();
    LayerSpec { toc_digest, prefetch: Prefetch { enabled: true, size }, ..on_demand(blob, source) }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_user_takes_the_background_fetch_along() {
    let blob = two_files();
    let source = Source::new(&blob);
    let store = Store::new(&quick());
    let spec = LayerSpec { background: true, ..on_demand(&blob, &source) };
    source.close_gate();
    let layer = store.layers.layer(spec.clone()).await.unwrap();
    let another = store.layers.layer(spec).await.unwrap();
    source.until(|traffic| traffic.under_way == 1).await;
    drop(layer);
    assert_eq!(source.traffic().given_up, 0, "somebody still uses the layer");
    assert_eq!(store.layers.remove_unused(HashSet::new()).await.unwrap(), 0);
    drop(another);
    // The folder waits for nobody.
    assert_eq!(store.layers.remove_unused(HashSet::new()).await.unwrap(), 1);
    source.until(|traffic| traffic.under_way == 0 && traffic.given_up == 1).await;
    source.open_gate();
    // Ends every task: what would go on would have to have begun by now.
    store.layers.shutdown().await;
    assert_eq!(source.read_count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_used_again_goes_on() {
    let blob = two_files();
    let source = Source::new(&blob);
    let store = Store::new(&quick());
    let spec = LayerSpec { background: true, ..on_demand(&blob, &source) };
    // Again before the work for the first user has noticed, and again when it has.
    for notices in [false, true] {
        source.close_gate();
        let given_up = source.traffic().given_up;
        let layer = store.layers.layer(spec.clone()).await.unwrap();
        source.until(|traffic| traffic.under_way > 0).await;
        drop(layer);
        if notices {
            source.until(|traffic| traffic.under_way == 0).await;
        }
        let layer = store.layers.layer(spec.clone()).await.unwrap();
        source.until(|traffic| traffic.given_up > given_up && traffic.under_way > 0).await;
        source.open_gate();
        until("completeness", || layer.is_complete()).await;
        let bytes = layer.read(file(&layer, "b"), 0, u32::MAX, Urgency::Blocking).await.unwrap();
        assert_eq!(bytes, noise(2, 2 * CHUNK));
        drop(layer);
        store.layers.remove_unused(HashSet::new()).await.unwrap();
    }
    store.layers.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_user_takes_the_prefetch_along_and_the_next_one_starts_it_again() {
    let blob = two_files();
    let source = Source::new(&blob);
    let store = Store::new(&quick());
    let spec = prefetched(&store, &blob, &source, 1000);
    source.close_gate();
    drop(store.layers.layer(spec.clone()).await.unwrap());
    let layer = store.layers.layer(spec.clone()).await.unwrap();
    source.until(|traffic| traffic.under_way > 0).await;
    let given_up = source.traffic().given_up;
    drop(layer);
    source.until(|traffic| traffic.under_way == 0 && traffic.given_up > given_up).await;
    let layer = store.layers.layer(spec).await.unwrap();
    source.until(|traffic| traffic.under_way > 0).await;
    source.open_gate();
    layer.prefetched().await;
    assert_eq!(layer.status().fetched, 1 + CHUNK as u64);
    store.layers.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_table_of_contents_than_the_manifests_is_refused() {
    let blob = two_files();
    let source = Source::new(&blob);
    let store = Store::new(&quick());
    let spec = LayerSpec { toc_digest: content::Digest::of(b"other"), ..on_demand(&blob, &source) };
    assert!(matches!(store.layers.layer(spec).await, Err(LayerError::TocDigest { .. })));
    assert_eq!(std::fs::read_dir(store.folder.path()).unwrap().count(), 0);
    let plain = Blob { bytes: vec![7; 1000].into(), built: blob.built.clone() };
    let spec = on_demand(&plain, &Source::new(&plain));
    assert!(matches!(store.layers.layer(spec).await, Err(LayerError::NotLazy { .. })));
    // A failure is not remembered.
    store.layers.layer(on_demand(&blob, &source)).await.unwrap();
    store.layers.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_opening_that_nobody_waits_for_any_more_is_forgotten() {
    let blob = two_files();
    let (frozen, honest) = (Source::new(&blob), Source::new(&blob));
    let store = Store::new(&quick());
    let opened = Arc::new(tokio::sync::Notify::new());
    let never: lazyfs::OpenSource = {
        let opened = Arc::clone(&opened);
        Arc::new(move || {
            opened.notify_one();
            Box::pin(std::future::pending())
        })
    };
    let spec = LayerSpec { open: never, ..on_demand(&blob, &frozen) };
    tokio::select! {
        _ = store.layers.layer(spec) => unreachable!("opened from a source that never answers"),
        () = opened.notified() => {}
    }
    store.layers.layer(on_demand(&blob, &honest)).await.unwrap();
    store.layers.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_contents_longer_than_the_tail_is_fetched_in_two_steps() {
    let mut tar = Tar::new();
    for number in 0..30_000u64 {
        tar.file(&format!("{}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15)), 0o644, &number.to_le_bytes());
    }
    let blob = blob(&tar.finish(), 0);
    let source = Source::new(&blob);
    let store = Store::new(&quick());
    let layer = store.layers.layer(on_demand(&blob, &source)).await.unwrap();
    assert!(blob.built.size - blob.built.payload_end > 512 * 1024, "the test needs a longer table");
    assert_eq!(source.read_count(), 1);
    assert_eq!(layer.toc().unwrap().inode_count(), 30_001);
    store.layers.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unused_layers_are_deleted_and_used_ones_are_not() {
    let (one, other) = (two_files(), blob(&Tar::new().file("x", 0o644, b"x").finish(), 0));
    let store = Store::new(&quick());
    let kept = store.layers.layer(on_demand(&one, &Source::new(&one))).await.unwrap();
    let source = Source::new(&other);
    drop(store.layers.layer(on_demand(&other, &source)).await.unwrap());
    assert_eq!(store.layers.remove_unused(HashSet::from([other.built.toc_digest])).await.unwrap(), 0);
    assert_eq!(store.layers.remove_unused(HashSet::new()).await.unwrap(), 1);
    assert!(store.folder.path().join(one.built.toc_digest.hex()).exists());
    assert_eq!(kept.read(file(&kept, "a"), 0, 4, Urgency::Blocking).await.unwrap(), noise(1, 4));
    // What was deleted can be had again.
    let again = store.layers.layer(on_demand(&other, &source)).await.unwrap();
    assert_eq!(again.read(file(&again, "x"), 0, 9, Urgency::Blocking).await.unwrap(), &b"x"[..]);
    store.layers.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_costs_the_cache_and_not_the_reader() {
    if !can_mount() {
        return;
    }
    let blob = two_files();
    let source = Source::new(&blob);
    let folder = tempfile::tempdir().unwrap();
    let small = c"size=400k";
    rustix::mount::mount("small", folder.path(), "tmpfs", rustix::mount::MountFlags::empty(), small).unwrap();
    let layers = Layers::open(folder.path().join("store"), &quick()).unwrap();
    let layer = layers.layer(on_demand(&blob, &source)).await.unwrap();
    for _ in 0..2 {
        for (name, seed, chunks) in [("a", 1, 4), ("b", 2, 2)] {
            let bytes = layer.read(file(&layer, name), 0, u32::MAX, Urgency::Blocking).await.unwrap();
            assert_eq!(bytes, noise(seed, chunks * CHUNK));
        }
    }
    assert!(!layer.is_complete());
    drop(layer);
    layers.shutdown().await;
    rustix::mount::unmount(folder.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_chunk_is_in_nobodys_way() {
    if !can_mount() {
        return;
    }
    let blob = two_files();
    let source = Source::new(&blob);
    let mounted = Mounted::new(&blob, &source).await;
    assert_eq!(mounted.read("b").await.unwrap(), noise(2, 2 * CHUNK));
    until("rest", || source.gate.available_permits() > 0).await;
    source.close_gate();
    let before = source.read_count();
    let path = mounted.root.join("a");
    let slow = tokio::task::spawn_blocking(move || std::fs::read(path));
    until("the slow read", || source.read_count() > before).await;
    // While it waits: attributes, listings, and other files.
    let root = mounted.root.clone();
    off(move || {
        assert_eq!(std::fs::metadata(root.join("a")).unwrap().len(), 4 * CHUNK as u64);
        assert_eq!(std::fs::read_dir(&root).unwrap().count(), 2);
        assert!(std::fs::metadata(root.join("nothing")).is_err());
    })
    .await;
    assert_eq!(mounted.read("b").await.unwrap(), noise(2, 2 * CHUNK));
    assert!(!slow.is_finished());
    source.gate.add_permits(1000);
    assert_eq!(slow.await.unwrap().unwrap(), noise(1, 4 * CHUNK));
    mounted.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_waiting_reads_than_places_wait_for_each_other() {
    if !can_mount() {
        return;
    }
    let blob = two_files();
    let source = Source::new(&blob);
    let options = MountOptions { waiting_reads: 1, ..MountOptions::default() };
    let mounted = Mounted::with(on_demand(&blob, &source), quick(), options).await;
    source.close_gate();
    let read = |name: &str| {
        let path = mounted.root.join(name);
        tokio::task::spawn_blocking(move || std::fs::read(path).unwrap())
    };
    let (a, b) = (read("a"), read("b"));
    until("a read", || source.read_count() > 0).await;
    source.gate.add_permits(1000);
    assert_eq!(a.await.unwrap(), noise(1, 4 * CHUNK));
    assert_eq!(b.await.unwrap(), noise(2, 2 * CHUNK));
    mounted.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_waits_can_be_killed() {
    if !can_mount() {
        return;
    }
    let blob = two_files();
    let source = Source::new(&blob);
    let mounted = Mounted::new(&blob, &source).await;
    source.set(Mood::Frozen);
    // Direct reads are waited for by the process itself; the kernel interrupts them.
    let arguments =
        [format!("if={}", mounted.root.join("a").display()), "of=/dev/null".into(), "iflag=direct".into()];
    let mut child = std::process::Command::new("dd").args(arguments).spawn().unwrap();
    until("the read", || source.read_count() > 0).await;
    child.kill().unwrap();
    let status = off(move || child.wait().unwrap()).await;
    assert!(!status.success());
    mounted.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_source_is_an_io_error() {
    if !can_mount() {
        return;
    }
    let blob = two_files();
    let source = Source::new(&blob);
    let mounted = Mounted::with(on_demand(&blob, &source), quick(), MountOptions::default()).await;
    source.set(Mood::Dead);
    let error = mounted.read("a").await.unwrap_err();
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
    source.set(Mood::Honest);
    assert_eq!(mounted.read("a").await.unwrap(), noise(1, 4 * CHUNK));
    mounted.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn open_files_stay_readable_after_unmounting() {
    if !can_mount() {
        return;
    }
    let blob = two_files();
    let source = Source::new(&blob);
    let mounted = Mounted::new(&blob, &source).await;
    let path = mounted.root.join("a");
    let mut open = off(move || std::fs::File::open(path)).await.unwrap();
    mounted.mount.unmount().await.unwrap();
    assert!(mounted.mount.is_alive());
    let content = off(move || {
        let mut content = Vec::new();
        std::io::Read::read_to_end(&mut open, &mut content).unwrap();
        content
    })
    .await;
    assert_eq!(content, noise(1, 4 * CHUNK));
    mounted.end().await;
}
