//! Layers over real sockets: registries that freeze, lie and vary, and how much is asked of them.

// Clippy exempts test functions from these lints, and not their helpers.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation)]

mod common;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{Blob, Tar, blob, noise, quick};
use content::{ContentOpener as _, DirectOpener, ReadErrorKind, Urgency};
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use lazyfs::{Layer, LayerSpec, Layers, LayersOptions, OpenSource, Prefetch, TAIL};
use registry::{Client, ClientConfig, HostsConfig, Mirror, Reference};
use tokio::net::TcpListener;

const CHUNK: usize = 256 * 1024;

/// What a host does, from now on, with whatever it is asked.
#[derive(Default)]
struct Mood {
    frozen: AtomicBool,
    lies: AtomicBool,
    bytes: AtomicU64,
    ranges: Mutex<Vec<String>>,
}

impl Mood {
    fn requests(&self) -> usize {
        self.ranges.lock().unwrap().len()
    }
}

/// A registry that has one blob. It accepts connections whatever its mood, as the kernel does for a stopped process.
struct Host {
    address: SocketAddr,
    mood: Arc<Mood>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Host {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Host {
    async fn start(blob: &Blob) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mood = Arc::new(Mood::default());
        let (moody, bytes) = (Arc::clone(&mood), blob.bytes.clone());
        let task = tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (mood, bytes) = (Arc::clone(&moody), bytes.clone());
                tokio::spawn(async move {
                    let service =
                        service_fn(move |request| answer(request, Arc::clone(&mood), bytes.clone()));
                    let http = hyper::server::conn::http1::Builder::new();
                    let _ = http.serve_connection(TokioIo::new(tcp), service).await;
                });
            }
        });
        Self { address, mood, task }
    }

    fn name(&self) -> String {
        self.address.to_string()
    }

    fn freeze(&self, frozen: bool) {
        self.mood.frozen.store(frozen, Ordering::SeqCst);
    }
}

async fn answer(
    request: Request<Incoming>,
    mood: Arc<Mood>,
    blob: Bytes,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let range = request.headers()["range"].to_str().unwrap().to_owned();
    mood.ranges.lock().unwrap().push(range.clone());
    while mood.frozen.load(Ordering::SeqCst) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (first, last) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
    let len = blob.len();
    let (start, end) = match (first.parse::<usize>(), last.parse::<usize>()) {
        (Ok(first), Ok(last)) => (first, last + 1),
        (_, Ok(suffix)) => (len.saturating_sub(suffix), len),
        _ => unreachable!("range {range}"),
    };
    let mut part = blob.slice(start..end);
    mood.bytes.fetch_add(part.len() as u64, Ordering::SeqCst);
    if mood.lies.load(Ordering::SeqCst) {
        part = part.iter().map(|byte| byte ^ 0x10).collect();
    }
    let answer = Response::builder().status(206);
    let answer = answer.header("content-range", format!("bytes {start}-{}/{len}", end - 1));
    Ok(answer.body(Full::new(part)).unwrap())
}

/// Opens the blob at `hosts`: the last is the registry, the others its mirrors.
fn opener(blob: &Blob, hosts: &[&Host]) -> (OpenSource, Client) {
    let (registry, mirrors) = hosts.split_last().unwrap();
    let mut config = HostsConfig::new();
    for mirror in mirrors {
        config.add(&registry.name(), Mirror { host: mirror.name(), ..Mirror::default() });
    }
    let client = Client::new(ClientConfig { hosts: config, ..ClientConfig::default() }).unwrap();
    let reference: Reference = format!("{}/test:1", registry.name()).parse().unwrap();
    let (digest, asking) = (blob.built.digest, client.clone());
    let open: OpenSource = Arc::new(move || {
        let origin = asking.origin(&reference, &digest, None);
        Box::pin(async move { DirectOpener.open(origin, TAIL).await })
    });
    (open, client)
}

fn spec(blob: &Blob, open: OpenSource) -> LayerSpec {
    let source = common::Source::new(blob);
    LayerSpec { open, prefetch: Prefetch { enabled: false, size: 0 }, ..common::on_demand(blob, &source) }
}

/// Files of one chunk each, far apart in the blob.
fn files() -> Blob {
    let mut tar = Tar::new();
    for number in 0..16 {
        tar.file(&format!("{number:02}"), 0o644, &noise(number, CHUNK));
    }
    blob(&tar.finish(), CHUNK as u32)
}

struct Store {
    layers: Arc<Layers>,
    _folder: tempfile::TempDir,
}

impl Store {
    fn new(options: &LayersOptions) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { layers: Layers::open(folder.path(), options).unwrap(), _folder: folder }
    }
}

async fn read(layer: &Arc<Layer>, number: u64) -> Result<Duration, content::ReadError> {
    let inode = layer.toc().unwrap().find(format!("{number:02}").as_bytes()).unwrap();
    let started = Instant::now();
    let bytes = layer.read(inode, 1000, 5000, Urgency::Blocking).await?;
    assert_eq!(bytes, noise(number, CHUNK)[1000..6000]);
    Ok(started.elapsed())
}

const SOON: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_host_with_a_second_one_is_read_around() {
    let blob = files();
    let (mirror, registry) = (Host::start(&blob).await, Host::start(&blob).await);
    let store = Store::new(&quick());
    let (open, client) = opener(&blob, &[&mirror, &registry]);
    let layer = store.layers.layer(spec(&blob, open)).await.unwrap();
    assert_eq!(mirror.mood.requests(), 1, "one request before the first chunk");
    read(&layer, 0).await.unwrap();
    mirror.freeze(true);
    for number in 1..12 {
        let took = read(&layer, number).await.unwrap();
        assert!(took < SOON, "{number}: {took:?}");
    }
    assert!(mirror.mood.requests() < 8, "it was put aside: {}", mirror.mood.requests());
    // Now the other way round, though the one that is well again is still put aside.
    mirror.freeze(false);
    registry.freeze(true);
    for number in 12..16 {
        let took = read(&layer, number).await.unwrap();
        assert!(took < SOON, "{number}: {took:?}");
    }
    assert!(client.usage().hedges > 0);
    store.layers.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_image_is_another_host() {
    let blob = files();
    let (first, second) = (Host::start(&blob).await, Host::start(&blob).await);
    let store = Store::new(&quick());
    let layer = store.layers.layer(spec(&blob, opener(&blob, &[&first]).0)).await.unwrap();
    let again = store.layers.layer(spec(&blob, opener(&blob, &[&second]).0)).await.unwrap();
    assert!(Arc::ptr_eq(&layer, &again) && second.mood.requests() == 0);
    first.freeze(true);
    for number in 0..4 {
        let took = read(&layer, number).await.unwrap();
        assert!(took < SOON, "{number}: {took:?}");
    }
    assert!(first.mood.requests() < 6, "it was put aside: {}", first.mood.requests());
    store.layers.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_that_are_all_frozen_are_an_error_in_time_and_read_when_one_thaws() {
    let blob = files();
    let (mirror, registry) = (Host::start(&blob).await, Host::start(&blob).await);
    let deadline = Duration::from_secs(2);
    let store = Store::new(&LayersOptions { read_deadline: deadline, ..quick() });
    let layer = store.layers.layer(spec(&blob, opener(&blob, &[&mirror, &registry]).0)).await.unwrap();
    mirror.freeze(true);
    registry.freeze(true);
    // Some that wait together, and one that comes in between.
    let readers: Vec<_> = [0, 0, 1, 1]
        .into_iter()
        .map(|number| {
            let layer = Arc::clone(&layer);
            tokio::spawn(async move {
                let started = Instant::now();
                (read(&layer, number).await, started.elapsed())
            })
        })
        .collect();
    tokio::time::sleep(deadline / 2).await;
    let late = {
        let layer = Arc::clone(&layer);
        tokio::spawn(async move { read(&layer, 0).await })
    };
    for reader in readers {
        let (outcome, took) = reader.await.unwrap();
        assert_eq!(outcome.unwrap_err().kind(), ReadErrorKind::Unavailable);
        assert!(took < deadline + SOON / 2, "{took:?}");
    }
    // Both have failed by now, and nobody waits for that.
    mirror.freeze(false);
    let took = read(&layer, 2).await.unwrap();
    assert!(took < SOON, "{took:?}");
    // Its time was not over when those before it gave up.
    late.await.unwrap().unwrap();
    registry.freeze(false);
    store.layers.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_of_one_host_are_asked_for_at_the_other() {
    let blob = files();
    let (liar, registry) = (Host::start(&blob).await, Host::start(&blob).await);
    let store = Store::new(&quick());
    let layer = store.layers.layer(spec(&blob, opener(&blob, &[&liar, &registry]).0)).await.unwrap();
    liar.mood.lies.store(true, Ordering::SeqCst);
    // Not one after another, which would be read ahead for.
    for number in [0, 3, 6, 9, 12, 15] {
        read(&layer, number).await.unwrap();
    }
    assert_eq!((liar.mood.requests(), registry.mood.requests()), (2, 6), "the tail and one lie");
    store.layers.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_readers_of_a_cold_range_cost_one_request_and_one_inflation() {
    let blob = files();
    let host = Host::start(&blob).await;
    let store = Store::new(&quick());
    let (open, client) = opener(&blob, &[&host]);
    let layer = store.layers.layer(spec(&blob, open)).await.unwrap();
    let readers: Vec<_> = (0..8)
        .map(|_| {
            let layer = Arc::clone(&layer);
            tokio::spawn(async move { read(&layer, 3).await.unwrap() })
        })
        .collect();
    for reader in readers {
        reader.await.unwrap();
    }
    assert_eq!((host.mood.requests(), client.usage().hedges, layer.inflated()), (2, 0, 1));
    store.layers.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_is_asked_for_the_touched_chunks_and_nothing_else() {
    let mut tar = Tar::new();
    for number in 0..400 {
        tar.file(&format!("{number:02}"), 0o644, &noise(number, 1500));
    }
    let blob = blob(&tar.finish(), CHUNK as u32);
    let host = Host::start(&blob).await;
    let store = Store::new(&quick());
    let layer = store.layers.layer(spec(&blob, opener(&blob, &[&host]).0)).await.unwrap();
    let end = estargz::open_tail(&blob.bytes, blob.bytes.len() as u64).unwrap();
    let estargz::TailState::Toc { json, toc_offset, .. } = end else { unreachable!("the tail is the blob") };
    let toc = estargz::Toc::parse(&json, toc_offset, &estargz::TocLimits::default()).unwrap();
    let before = host.mood.bytes.load(Ordering::SeqCst);
    let mut touched = 0;
    for number in (0..400).step_by(40) {
        let inode = toc.find(format!("{number:02}").as_bytes()).unwrap();
        let chunks = toc.chunks().filter(|chunk| chunk.inode == inode);
        touched += chunks.map(|chunk| chunk.blob.len()).sum::<u64>();
        layer.read(inode, 0, 1500, Urgency::Blocking).await.unwrap();
    }
    let asked = host.mood.bytes.load(Ordering::SeqCst) - before;
    assert!(asked * 10 <= touched * 11, "{asked} bytes for chunks of {touched}");
    store.layers.shutdown().await;
}

/// A container's read that is interrupted: its thread goes away, the flight goes on, and nothing else stays.
#[tokio::test(flavor = "multi_thread")]
async fn readers_that_go_away_leave_nothing_behind() {
    let blob = files();
    let host = Host::start(&blob).await;
    let store = Store::new(&LayersOptions { blocking_fetches: 2, ..quick() });
    let layer = store.layers.layer(spec(&blob, opener(&blob, &[&host]).0)).await.unwrap();
    host.freeze(true);
    let mut readers = Vec::new();
    for round in 0..50 {
        let layer = Arc::clone(&layer);
        readers.push(tokio::spawn(async move { read(&layer, round % 2 * 5).await }));
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    for reader in &readers {
        reader.abort();
    }
    host.freeze(false);
    // Their two places at the source are free again, and what they asked for is here.
    for number in [0, 5, 10, 15] {
        read(&layer, number).await.unwrap();
    }
    assert_eq!(layer.inflated(), 4);
    assert_eq!(host.mood.requests(), 5);
    store.layers.shutdown().await;
}
