//! No layer is converted twice, and the same input gives the same bytes however it is converted.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking, and its helpers do as well"
)]

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use common::{
    Image, Registry, fast, files, open, outcomes, place, places, run, simple, tar_of, three_layers,
    two_platforms,
};
use convert::{ConvertError, ConvertOptions, LayerProgress, Outcome, Prefetch, Progress, convert};
use estargz::{Options, TocPlace};

/// The simple image with one layer more.
fn grown() -> Image {
    let mut layers = three_layers("amd64");
    layers.push((tar_of(&[("more", b"1")]), common::Stored::DockerGzip));
    let mut image = Image::default();
    image.platform("amd64", &layers);
    image
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_of_the_targets_image_are_found_again() {
    let registry = Registry::start();
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (registry.name("one"), registry.name("two"));
    simple().push(&one).await;
    grown().push(&two).await;
    let external = Options { toc: TocPlace::External, level: Some(1), ..Options::default() };
    let external = ConvertOptions { layer: external, ..ConvertOptions::default() };
    for (at, options) in [fast(), external].into_iter().enumerate() {
        let layout = |name: &str| format!("oci:{}:app", dir.path().join(format!("{at}-{name}")).display());
        for to in [
            registry.name(&format!("to-{at}")),
            layout("to"),
            format!("oci-archive:{}:app", dir.path().join(format!("{at}.tar")).display()),
        ] {
            run(&one, &to, &options).await.unwrap();
            let second = run(&two, &to, &options).await.unwrap();
            assert_eq!(outcomes(&second), [(Outcome::Reused, 3), (Outcome::Converted, 1)].into(), "{to}");
            let fresh = run(&two, &layout("fresh"), &options).await.unwrap();
            assert_eq!(outcomes(&fresh)[&Outcome::Converted], 4);
            assert_eq!((second.digest, second.toc_image), (fresh.digest, fresh.toc_image), "{to}");
            let forced = ConvertOptions { force: true, ..options.clone() };
            let forced = run(&two, &to, &forced).await.unwrap();
            assert_eq!(outcomes(&forced), [(Outcome::Converted, 4)].into());
            assert_eq!(forced.digest, second.digest);
            std::fs::remove_dir_all(dir.path().join(format!("{at}-fresh"))).unwrap();
            // Other options make other layers.
            let other = Options { chunk_size: 1 << 20, ..options.layer.clone() };
            let other = ConvertOptions { layer: other, ..options.clone() };
            assert_eq!(outcomes(&run(&two, &to, &other).await.unwrap()), [(Outcome::Converted, 4)].into());
        }
    }
    assert_eq!(registry.open_uploads(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_index_finds_layers_that_another_image_brought() {
    let registry = Registry::start();
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("cache");
    let options = ConvertOptions { cache: Some(cache.clone()), ..fast() };
    let (one, two) = (registry.name("one"), registry.name("two"));
    simple().push(&one).await;
    grown().push(&two).await;
    let first = run(&one, &registry.name("first/to"), &options).await.unwrap();
    assert_eq!(files(&cache).len(), 3);
    // Another repository: the blobs are mounted from where they are.
    let second = run(&two, &registry.name("second/to"), &options).await.unwrap();
    assert_eq!(outcomes(&second), [(Outcome::Reused, 3), (Outcome::Converted, 1)].into());
    let after = open(&registry.name("second/to")).await;
    for layer in &after.manifest().layers {
        assert_eq!(after.blob(layer).await.len() as u64, layer.size);
    }
    // Another kind of place does not have them.
    let layout = |name: &str| format!("oci:{}:app", dir.path().join(name).display());
    let third = run(&one, &layout("there"), &options).await.unwrap();
    assert_eq!(outcomes(&third), [(Outcome::Converted, 3)].into());
    assert_eq!(third.digest, first.digest);
    // A damaged index is no index.
    for file in files(&cache) {
        std::fs::write(file, "{").unwrap();
    }
    let fourth = run(&one, &registry.name("third/to"), &options).await.unwrap();
    assert_eq!(outcomes(&fourth), [(Outcome::Converted, 3)].into());
    let fifth = run(&one, &registry.name("fourth/to"), &options).await.unwrap();
    assert_eq!(outcomes(&fifth), [(Outcome::Reused, 3)].into());
    assert_eq!(fifth.digest, first.digest);
}

/// Stands before a registry and lets its answers through in drops. Its threads end with their connections.
fn dribble(registry: &Registry) -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let behind = registry.address.clone();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let client = client.unwrap();
            let Ok(server) = TcpStream::connect(&behind) else { return };
            client.set_nodelay(true).unwrap();
            let (mut asks, mut asked) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut asks, &mut asked);
                let _ = asked.shutdown(Shutdown::Write);
            });
            std::thread::spawn(move || {
                let (mut client, mut server, mut drop) = (client, server, [0; 997]);
                while let Ok(count @ 1..) = server.read(&mut drop) {
                    if client.write_all(&drop[..count]).is_err() {
                        break;
                    }
                }
                let _ = client.shutdown(Shutdown::Both);
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn the_digest_depends_on_nothing_but_input_and_options() {
    let registry = Registry::start();
    let dir = tempfile::tempdir().unwrap();
    let source = registry.name("app");
    let image = two_platforms();
    image.push(&source).await;
    let local = image.layout(&dir.path().join("in"), "app");
    let slow = format!("{}/app", dribble(&registry));
    let mut listed = Prefetch::default();
    listed.add_list("app\netc/*").unwrap();
    for prefetch in [Prefetch::default(), listed] {
        let mut digests = Vec::new();
        for (jobs, workers, from) in [(1, 1, &source), (4, 2, &source), (2, 7, &local), (2, 2, &slow)] {
            let layer = Options { workers: NonZeroUsize::new(workers), ..fast().layer };
            let options = ConvertOptions {
                jobs: NonZeroUsize::new(jobs),
                layer,
                prefetch: prefetch.clone(),
                ..ConvertOptions::default()
            };
            let to =
                format!("oci:{}:{jobs}-{workers}", dir.path().join(format!("{}", digests.len())).display());
            digests.push(run(from, &to, &options).await.unwrap().digest);
            std::fs::remove_dir_all(dir.path().join(format!("{}", digests.len() - 1))).unwrap();
        }
        digests.dedup();
        assert_eq!(digests.len(), 1);
    }
}

/// Stops a conversion when it has read so many bytes.
#[derive(Clone)]
struct StopAfter(Arc<AtomicU64>, tokio_util::sync::CancellationToken);

impl Progress for StopAfter {
    fn layer(&self, _: &str, _: u64) -> Arc<dyn LayerProgress> {
        Arc::new(self.clone())
    }
    fn note(&self, _: &str) {}
}

impl LayerProgress for StopAfter {
    fn read(&self, bytes: u64) {
        let left = self.0.load(Ordering::SeqCst).saturating_sub(bytes);
        self.0.store(left, Ordering::SeqCst);
        if left == 0 {
            self.1.cancel();
        }
    }
    fn pushing(&self, _: u64) {}
    fn done(&self, _: &'static str, _: u64) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversion_that_is_stopped_leaves_nothing_behind() {
    let registry = Registry::start();
    let dir = tempfile::tempdir().unwrap();
    let temporary = dir.path().join("temporary");
    std::fs::create_dir(&temporary).unwrap();
    let source = registry.name("app");
    simple().push(&source).await;
    let (layout, archive) = (dir.path().join("layout"), dir.path().join("a.tar"));
    let targets = [
        registry.name("to:1"),
        format!("oci:{}:app", layout.display()),
        format!("oci-archive:{}", archive.display()),
    ];
    let mut places = places();
    places.temporary = temporary.clone();
    for to in &targets {
        for bytes in [1, 3_000_000, 8_900_000] {
            let options = fast();
            let progress = StopAfter(Arc::new(bytes.into()), options.stop.clone());
            let error = convert(&places, &place(&source), &place(to), &options, &progress).await.unwrap_err();
            assert!(matches!(error, ConvertError::Interrupted), "{to}: {error}");
        }
        assert_eq!(files(&temporary), Vec::<std::path::PathBuf>::new(), "{to}");
    }
    assert!(!registry.has("to:1").await);
    assert_eq!(registry.open_uploads(), 0);
    assert!(!archive.exists());
    assert!(!layout.exists() || !files(&layout).iter().any(|path| path.ends_with("index.json")));
    let left = files(dir.path());
    assert!(left.iter().all(|path| path.starts_with(&layout)), "{left:?}");
    // And the way is free for the next.
    for to in &targets {
        run(&source, to, &fast()).await.unwrap();
    }
}
