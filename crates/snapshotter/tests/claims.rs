//! What images claim meets what lies in lazy snapshots: over the real socket, with a containerd that has images only,
//! and blobs that are really hashed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "helpers of tests, which may stop where they fail"
)]

mod claims_fake;
mod common;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use claims_fake::{Claimed, Fake};
use common::{Client, Mounted, REF, is_root, labels};
use content::{
    BlobSource, ByteRange, ByteStream, ContentId, Digest, OpenBlob, Provenance, ReadError, Urgency,
    stream_by_reads,
};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use snapshotter::{
    ClaimOptions, LayerBackend, LayerError, LayerMount, LayerSource, Limits, OpenLayer, Progress, Running,
};
use tokio_util::sync::CancellationToken;
use tonic::Code;

const HONEST: &str = "registry.example/honest:1";
const LIAR: &str = "evil.example/liar:1";

/// An eStargz layer with one file, `who`.
#[derive(Clone)]
struct Blob {
    bytes: Bytes,
    claimed: Claimed,
}

fn blob(who: &str) -> Blob {
    let mut bytes = Vec::new();
    let built = estargz::build(&tar(who)[..], &mut bytes, &estargz::Options::default()).unwrap();
    let claimed = Claimed { layer: built.digest, toc: Some(built.toc_digest), diff_id: built.diff_id };
    Blob { bytes: bytes.into(), claimed }
}

/// A layer that is a tar and no more.
fn ordinary(who: &str) -> Blob {
    let bytes = tar(who);
    let digest = Digest::of(&bytes);
    Blob { bytes: bytes.into(), claimed: Claimed { layer: digest, toc: None, diff_id: digest } }
}

fn tar(who: &str) -> Vec<u8> {
    let mut tar = vec![0; 512];
    let mut put = |at: usize, text: &str| tar[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, "who");
    put(100, "0000644\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{:011o}\0", who.len()));
    put(136, "00000000000\0");
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\0");
    put(263, "00");
    let sum: u32 = tar.iter().map(|byte| u32::from(*byte)).sum();
    tar[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    tar.extend_from_slice(who.as_bytes());
    tar.resize(512 + who.len().div_ceil(512) * 512 + 1024, 0);
    tar
}

/// Registries: by the name of an image and a digest, whatever they serve.
#[derive(Default)]
struct World {
    blobs: Mutex<HashMap<(String, Digest), Bytes>>,
    /// How many blobs were read whole.
    hashed: AtomicUsize,
}

impl World {
    fn serve(&self, image: &str, digest: Digest, bytes: &Bytes) {
        self.blobs.lock().unwrap().insert((image.to_owned(), digest), bytes.clone());
    }
}

struct Backend(Arc<World>);

#[tonic::async_trait]
impl LayerBackend for Backend {
    async fn open(&self, source: &LayerSource) -> Result<Arc<dyn OpenLayer>, LayerError> {
        Ok(Arc::new(Layer(source.clone())))
    }

    async fn blob(&self, reference: &str, layer: &Digest) -> Result<OpenBlob, LayerError> {
        let found = self.0.blobs.lock().unwrap().get(&(reference.to_owned(), *layer)).cloned();
        let bytes = found.ok_or_else(|| LayerError(format!("{reference} has no layer {layer}")))?;
        self.0.hashed.fetch_add(1, Ordering::SeqCst);
        let id = ContentId::url(&[reference]);
        Ok(OpenBlob { source: Arc::new(Memory(id, bytes)), tail: None })
    }

    async fn keep_only(&self, _: HashSet<Digest>) {}

    async fn shut_down(&self) {}
}

struct Memory(ContentId, Bytes);

#[tonic::async_trait]
impl BlobSource for Memory {
    fn id(&self) -> &ContentId {
        &self.0
    }

    fn len(&self) -> u64 {
        self.1.len() as u64
    }

    async fn read_traced(&self, range: ByteRange, _: Urgency) -> Result<(Bytes, Provenance), ReadError> {
        let place = |at: u64| usize::try_from(at).unwrap();
        Ok((self.1.slice(place(range.start)..place(range.end)), Provenance::Origin))
    }

    fn stream(self: Arc<Self>, range: ByteRange, urgency: Urgency) -> ByteStream {
        stream_by_reads(self, range, urgency, 100, 1)
    }
}

/// Shows which layer it is, and through which table of contents.
struct Layer(LayerSource);

#[tonic::async_trait]
impl OpenLayer for Layer {
    async fn mount(&self, at: &Path) -> Result<Box<dyn LayerMount>, LayerError> {
        mount("layer", at, "tmpfs", MountFlags::empty(), None)
            .map_err(|error| LayerError(error.to_string()))?;
        std::fs::write(at.join("shown"), format!("{} {}", self.0.layer, self.0.toc)).unwrap();
        Ok(Box::new(Place(at.to_owned())))
    }

    fn progress(&self) -> Progress {
        Progress::default()
    }
}

struct Place(PathBuf);

#[tonic::async_trait]
impl LayerMount for Place {
    async fn unmount(&self) -> Result<(), LayerError> {
        let _gone = unmount(&self.0, UnmountFlags::DETACH);
        Ok(())
    }

    fn driver(&self) -> &'static str {
        "fake"
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // A test that ends without a stop leaves nothing either.
        let _gone = unmount(&self.0, UnmountFlags::DETACH);
    }
}

/// Who calls is found by its sockets, and all tests are one process: those that want containerd to be gone are alone.
static ALONE: tokio::sync::RwLock<()> = tokio::sync::RwLock::const_new(());

struct Lab {
    dir: tempfile::TempDir,
    world: Arc<World>,
    containerd: Arc<Fake>,
    /// Ends containerd.
    gone: CancellationToken,
    running: Option<Running>,
    stop: CancellationToken,
    client: Client,
    require_proof: bool,
}

impl Lab {
    async fn start(require_proof: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (world, containerd) = (Arc::new(World::default()), Fake::new());
        let gone = containerd.serve(&dir.path().join("containerd.sock"));
        let (running, client, stop) = launch(dir.path(), &world, require_proof).await;
        Self { dir, world, containerd, gone, running: Some(running), stop, client, require_proof }
    }

    /// Each one's registry has the layers that its image claims.
    fn serve(&self, honest: &[Blob], liar: &[Blob]) {
        for (reference, blobs) in [(HONEST, honest), (LIAR, liar)] {
            for blob in blobs {
                self.world.serve(reference, blob.claimed.layer, &blob.bytes);
            }
        }
    }

    async fn stop(&mut self) {
        self.stop.cancel();
        self.running.take().unwrap().stopped().await.unwrap();
    }

    async fn restart(&mut self) {
        self.stop().await;
        let (running, client, stop) = launch(self.dir.path(), &self.world, self.require_proof).await;
        (self.running, self.client, self.stop) = (Some(running), client, stop);
    }

    /// Pulls: each layer is prepared by its labels, then the image has its record. The layers' names.
    async fn pull(&self, image: &str, layers: &[Claimed]) -> String {
        let (mut parent, mut chain) = (String::new(), String::new());
        for layer in layers {
            chain = if chain.is_empty() {
                layer.diff_id.to_string()
            } else {
                Digest::of(format!("{chain} {}", layer.diff_id).as_bytes()).to_string()
            };
            let filter = format!("labels.\"{REF}\"=={chain},parent==\"{parent}\"");
            if let Some(there) = self.client.names(&[&filter]).await.into_iter().next() {
                parent = there; // a Stat and no more
                continue;
            }
            let asked = labels(&[
                (REF, &chain),
                ("containerd.io/snapshot/cri.image-ref", image),
                ("containerd.io/snapshot/cri.layer-digest", &layer.layer.to_string()),
                ("containerd.io/snapshot/stargz/toc.digest", &layer.toc.unwrap().to_string()),
            ]);
            let key = format!("default/1/extract {chain}");
            assert_eq!(
                common::code(self.client.prepare_with(&key, &parent, asked).await),
                Code::AlreadyExists
            );
            parent = self.client.names(&[&filter]).await.remove(0);
        }
        self.containerd.add("default", image, layers);
        parent
    }

    /// What a container sees of its topmost layer.
    async fn sees(&self, key: &str, parent: &str) -> Result<String, tonic::Status> {
        let mounts = self.client.view(&format!("default/7/{key}"), parent).await?;
        let at = self.dir.path().join(key);
        let mounted = Mounted::new(&mounts, &at);
        let seen = std::fs::read_to_string(mounted.0.join("shown")).unwrap();
        drop(mounted);
        Ok(seen)
    }

    /// The same of one who tries again for a while.
    async fn sees_at_last(&self, key: &str, parent: &str) -> String {
        let begun = Instant::now();
        loop {
            match self.sees(key, parent).await {
                Ok(seen) => return seen,
                Err(error) => {
                    assert!(begun.elapsed() < Duration::from_secs(20), "{error}");
                    assert_eq!(error.code(), Code::Unavailable, "{error}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }
}

async fn launch(dir: &Path, world: &Arc<World>, require_proof: bool) -> (Running, Client, CancellationToken) {
    let stop = CancellationToken::new();
    let (socket, root) = (dir.join("run/s.sock"), dir.join("root"));
    let world = Arc::clone(world);
    let backend = move |_: &snapshotter::Overlay| -> Result<Arc<dyn LayerBackend>, LayerError> {
        Ok(Arc::new(Backend(world)))
    };
    let limits = Limits { prepare_wait: Duration::from_secs(10), resolved_for: Duration::ZERO };
    let claims = ClaimOptions {
        // Who calls is this very process, and it listens on that socket too.
        containerd_address: dir.join("containerd.sock"),
        cri_namespace: "k8s.io".into(),
        require_proof,
        wait: Duration::from_secs(5),
    };
    let running = snapshotter::start_claiming(&socket, &root, limits, Some(claims), backend, stop.clone());
    let running = running.await.unwrap();
    (running, Client::connect(&socket).await, stop)
}

fn shown(layer: &Claimed) -> String {
    format!("{} {}", layer.layer, layer.toc.unwrap())
}

/// The victim's layers, and what the liar puts in their place: the same diffIDs, other blobs.
fn two_layers() -> (Vec<Blob>, Vec<Blob>) {
    let honest = vec![blob("honest lower"), blob("honest upper")];
    let mut liar = vec![blob("liar lower"), blob("liar upper")];
    for (liar, honest) in liar.iter_mut().zip(&honest) {
        liar.claimed.diff_id = honest.claimed.diff_id;
    }
    (honest, liar)
}

fn claimed(blobs: &[Blob]) -> Vec<Claimed> {
    blobs.iter().map(|blob| blob.claimed.clone()).collect()
}

#[tokio::test]
async fn an_honest_image_costs_one_listing_among_two_hundred() {
    if !is_root() {
        return;
    }
    let _turn = ALONE.read().await;
    let mut lab = Lab::start(false).await;
    let (honest, _) = two_layers();
    for number in 0..200 {
        let other =
            Claimed { diff_id: Digest::of(format!("{number}").as_bytes()), ..honest[0].claimed.clone() };
        lab.containerd.add("default", &format!("registry.example/other{number}:1"), &vec![other; 5]);
    }
    let top = lab.pull(HONEST, &claimed(&honest)).await;
    lab.client.prepare("default/5/first", &top).await.unwrap();
    let mut times = Vec::new();
    for number in 0..20 {
        let begun = Instant::now();
        lab.client.prepare(&format!("default/6/run{number}"), &top).await.unwrap();
        times.push(begun.elapsed());
    }
    times.sort();
    println!("Prepare of a container with 200 images known: median {:?}, longest {:?}", times[10], times[19]);
    assert_eq!(lab.world.hashed.load(Ordering::SeqCst), 0, "nobody disagreed");
    assert!(times[10] < Duration::from_millis(50), "{times:?}");
    lab.stop().await;
}

#[tokio::test]
async fn the_true_layers_take_the_place_of_the_liars_and_stay_there() {
    if !is_root() {
        return;
    }
    let _turn = ALONE.write().await;
    let mut lab = Lab::start(false).await;
    let (honest, liar) = two_layers();
    lab.serve(&honest, &liar);
    let top = lab.pull(LIAR, &claimed(&liar)).await;
    // Alone it may run on what it brought, and goes on with that.
    let mounts = lab.client.prepare("default/3/liar", &top).await.unwrap();
    let running = Mounted::new(&mounts, &lab.dir.path().join("liar"));

    assert_eq!(lab.pull(HONEST, &claimed(&honest)).await, top, "containerd knows one chain");
    assert_eq!(lab.sees_at_last("victim", &top).await, shown(&honest[1].claimed));
    let old = std::fs::read_to_string(running.0.join("shown")).unwrap();
    assert_eq!(old, shown(&liar[1].claimed), "a running container lost its files");
    // So does the liar's next one.
    assert_eq!(lab.sees_at_last("next", &top).await, shown(&honest[1].claimed));

    // What was proven needs neither containerd nor registry any more.
    lab.gone.cancel();
    lab.world.blobs.lock().unwrap().clear();
    lab.restart().await;
    assert_eq!(lab.sees("restarted", &top).await.unwrap(), shown(&honest[1].claimed));
    drop(running);
    lab.stop().await;
}

#[tokio::test]
async fn a_true_digest_with_a_false_table_of_contents_is_a_lie_too() {
    if !is_root() {
        return;
    }
    let _turn = ALONE.read().await;
    let mut lab = Lab::start(false).await;
    let (honest, mut liar) = two_layers();
    for (honest, liar) in honest.iter().zip(&mut liar) {
        liar.claimed.layer = honest.claimed.layer;
    }
    lab.serve(&honest, &liar);
    let top = lab.pull(LIAR, &claimed(&liar)).await;
    lab.pull(HONEST, &claimed(&honest)).await;
    assert_eq!(lab.sees_at_last("victim", &top).await, shown(&honest[1].claimed));
    lab.stop().await;
}

#[tokio::test]
async fn an_image_that_does_not_name_its_table_of_contents_is_told_by_its_bytes() {
    if !is_root() {
        return;
    }
    let _turn = ALONE.read().await;
    let mut lab = Lab::start(false).await;
    let (mut honest, liar) = two_layers();
    for honest in &mut honest {
        // Nothing in its manifest tells of a table of contents.
        honest.claimed.toc = None;
    }
    lab.serve(&honest, &liar);
    let top = lab.pull(LIAR, &claimed(&liar)).await;
    lab.pull(HONEST, &claimed(&honest)).await;
    let seen = lab.sees_at_last("victim", &top).await;
    assert!(seen.starts_with(&format!("{} ", honest[1].claimed.layer)), "{seen}");
    lab.stop().await;
}

#[tokio::test]
async fn an_ordinary_image_gets_a_copy_that_can_be_mounted() {
    if !is_root() {
        return;
    }
    let _turn = ALONE.read().await;
    let mut lab = Lab::start(false).await;
    let (mut honest, mut liar) = two_layers();
    for ((honest, liar), who) in honest.iter_mut().zip(&mut liar).zip(["lower", "upper"]) {
        *honest = ordinary(who);
        liar.claimed.diff_id = honest.claimed.diff_id;
    }
    lab.serve(&honest, &liar);
    let top = lab.pull(LIAR, &claimed(&liar)).await;
    lab.pull(HONEST, &claimed(&honest)).await;
    let seen = lab.sees_at_last("victim", &top).await;
    assert!(seen.starts_with(&format!("{} ", honest[1].claimed.layer)), "{seen}");
    let copies = || {
        let names = std::fs::read_dir(lab.dir.path().join("root/proofs")).unwrap().flatten();
        names.filter(|entry| entry.file_name().len() == 64).count()
    };
    assert_eq!(copies(), 2);
    lab.client.cleanup().await.unwrap();
    assert_eq!(copies(), 2, "a copy that a snapshot holds was deleted");
    lab.restart().await;
    assert_eq!(lab.sees("restarted", &top).await.unwrap(), seen);
    lab.stop().await;
}

#[tokio::test]
async fn a_conflict_is_settled_when_the_image_comes_and_nobody_waits_for_it() {
    if !is_root() {
        return;
    }
    let _turn = ALONE.read().await;
    let mut lab = Lab::start(false).await;
    let (honest, liar) = two_layers();
    lab.serve(&honest, &liar);
    lab.pull(LIAR, &claimed(&liar)).await;
    lab.pull(HONEST, &claimed(&honest)).await;
    let handle = lab.running.as_ref().unwrap().handle();
    let settled = async {
        loop {
            let layers: HashSet<Digest> = handle.layers().iter().map(|layer| layer.layer).collect();
            if honest.iter().all(|blob| layers.contains(&blob.claimed.layer)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), settled).await.expect("nobody looked");
    lab.stop().await;
}

#[tokio::test]
async fn what_cannot_be_settled_is_refused_with_a_reason() {
    if !is_root() {
        return;
    }
    let _turn = ALONE.read().await;
    let mut lab = Lab::start(false).await;
    let (honest, liar) = two_layers();
    // Nobody serves anything.
    let top = lab.pull(LIAR, &claimed(&liar)).await;
    lab.pull(HONEST, &claimed(&honest)).await;
    let error = loop {
        let error = lab.sees("victim", &top).await.unwrap_err();
        if !error.message().contains("try again") {
            break error;
        }
    };
    assert_eq!(error.code(), Code::Unavailable);
    for word in ["not handing out", "images claim different layers", "remove the image that lies"] {
        assert!(error.message().contains(word), "{error}");
    }
    lab.stop().await;
}

#[tokio::test]
async fn without_containerd_only_proven_layers_are_handed_out() {
    if !is_root() {
        return;
    }
    let _turn = ALONE.write().await;
    let mut lab = Lab::start(false).await;
    let (honest, _) = two_layers();
    let top = lab.pull(HONEST, &claimed(&honest)).await;
    lab.gone.cancel();
    lab.restart().await;
    let error = lab.sees("container", &top).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    assert!(error.message().contains("containerd_address"), "{error}");
    // Who is not containerd has no images that could disagree.
    lab.client.view("by hand", &top).await.unwrap();
    lab.stop().await;
}

#[tokio::test]
async fn with_require_diffid_proof_a_layer_is_mounted_lazily_once_it_was_hashed() {
    if !is_root() {
        return;
    }
    let _turn = ALONE.read().await;
    let mut lab = Lab::start(true).await;
    let (honest, _) = two_layers();
    let layer = &honest[0].claimed;
    lab.world.serve(HONEST, layer.layer, &honest[0].bytes);
    let chain = layer.diff_id.to_string();
    let asked = labels(&[
        (REF, &chain),
        ("containerd.io/snapshot/cri.image-ref", HONEST),
        ("containerd.io/snapshot/cri.layer-digest", &layer.layer.to_string()),
        ("containerd.io/snapshot/stargz/toc.digest", &layer.toc.unwrap().to_string()),
    ]);
    lab.client.prepare_with("default/1/a", "", asked.clone()).await.unwrap();
    for attempt in 0.. {
        assert!(attempt < 200, "it was never proven");
        match lab.client.prepare_with(&format!("default/1/b{attempt}"), "", asked.clone()).await {
            Ok(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            Err(error) => {
                assert_eq!(error.code(), Code::AlreadyExists, "{error}");
                break;
            }
        }
    }
    lab.stop().await;
}
