//! The process that serves, and is killed.

use std::collections::HashSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use content::{
    BlobSource, ByteRange, ByteStream, ContentId, OpenBlob, Provenance, ReadError, ReadErrorKind, Urgency,
    stream_by_reads,
};
use futures::FutureExt as _;
use lazyfs::keeper::Keep;
use lazyfs::mounter::{DriverChoice, Mount, Mounter, MounterOptions};
use lazyfs::{LayerSpec, Layers, LayersOptions, MountOptions, Prefetch};

use crate::common::{Blob, Tar, blob, noise, quick};
use crate::keep::Keeper;

pub const LAYERS: u64 = 3;
pub const FILES: u64 = 6;

/// A file: some small, some of many chunks, with ends within pages.
pub fn content(layer: u64, file: u64) -> Vec<u8> {
    let len = [3000, 4096, 70_000, 200_001, 500_000, 1_000_003][file as usize % 6];
    // No byte is zero: a hole is seen at once.
    noise(layer * 100 + file + 1, len).into_iter().map(|byte| byte | 0x40).collect()
}

fn layer_blob(layer: u64) -> Blob {
    let mut tar = Tar::new();
    for file in 0..FILES {
        tar.file(&file.to_string(), 0o644, &content(layer, file));
    }
    tar.file("cat", 0o755, &std::fs::read("/bin/cat").unwrap());
    blob(&tar.finish(), [16 * 1024, 100_000, 1 << 20][layer as usize % 3])
}

/// Fails, lies and dawdles, unless it is honest.
struct Moody {
    id: ContentId,
    bytes: Bytes,
    honest: bool,
    reads: AtomicU64,
}

#[async_trait]
impl BlobSource for Moody {
    fn id(&self) -> &ContentId {
        &self.id
    }

    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    async fn read_traced(&self, range: ByteRange, _: Urgency) -> Result<(Bytes, Provenance), ReadError> {
        let bytes = self.bytes.slice(range.start as usize..range.end as usize);
        let read = self.reads.fetch_add(1, Ordering::Relaxed);
        let dice = noise(read + u64::from(std::process::id()) * 1000, 2);
        tokio::time::sleep(Duration::from_millis(u64::from(dice[0]) / 2)).await;
        match dice[1] % 10 {
            _ if self.honest => Ok((bytes, Provenance::Origin)),
            0 => Err(ReadError::origin(ReadErrorKind::Unavailable, "in a bad mood")),
            1 => {
                let mut wrong = bytes.to_vec();
                let at = dice[0] as usize * 7919 % wrong.len();
                wrong[at] ^= 1;
                Ok((wrong.into(), Provenance::Peer))
            }
            2 => Ok((vec![0; bytes.len()].into(), Provenance::Peer)),
            _ => Ok((bytes, Provenance::Origin)),
        }
    }

    fn stream(self: Arc<Self>, range: ByteRange, urgency: Urgency) -> ByteStream {
        stream_by_reads(self, range, urgency, 8 << 20, 1)
    }
}

struct Serving {
    folder: PathBuf,
    layers: Arc<Layers>,
    mounter: Arc<Mounter>,
    specs: Vec<LayerSpec>,
    mounts: Vec<Option<Mount>>,
}

impl Serving {
    fn root(&self, layer: usize) -> PathBuf {
        self.folder.join("root").join(layer.to_string())
    }

    async fn mount(&mut self, number: usize) {
        let layer = self.layers.layer(self.specs[number].clone()).await.unwrap();
        let (root, options) = (self.root(number), MountOptions::default());
        let taken = self.mounter.take_over(Arc::clone(&layer), &root, &options).await.unwrap();
        self.mounts[number] = Some(if let Some(mount) = taken {
            mount
        } else {
            while lazyfs::unmount_stale(&root).unwrap() {}
            self.mounter.mount(layer, &root, &options).await.unwrap()
        });
    }

    async fn unmount(&mut self, number: usize) {
        if let Some(mount) = self.mounts[number].take() {
            mount.unmount().await.unwrap();
        }
    }
}

/// What it is told: `LAZYFS_TEST_HOLES`, a folder, then the driver, whether to be honest, and the keeper's process.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by the other test"]
async fn worker() {
    let Ok(told) = std::env::var("LAZYFS_TEST_HOLES") else { return };
    let words: Vec<_> = told.split(' ').collect();
    let (folder, driver, honest) = (PathBuf::from(words[0]), words[1].parse().unwrap(), words[2] == "true");
    let keep: Arc<dyn Keep> =
        Arc::new(Keeper::connect(&folder.join("keeper.sock"), words[3].parse().unwrap()));
    let options = LayersOptions {
        read_deadline: Duration::from_secs(5),
        flush_after: Duration::from_millis(20),
        ..quick()
    };
    let layers = Layers::open_with(folder.join("store"), &options, Arc::clone(&keep)).unwrap();
    let options = MounterOptions { choice: driver, keep, scratch: folder.join("scratch") };
    let mounter = Mounter::start(options).await.unwrap();
    let specs: Vec<_> = (0..LAYERS).map(|layer| spec(&layer_blob(layer), honest, layer == 1)).collect();
    let mut serving = Serving { folder, layers, mounter, specs, mounts: (0..LAYERS).map(|_| None).collect() };
    let orphans = serving.mounter.orphans();
    for number in 0..LAYERS as usize {
        serving.mount(number).await;
        let toc = serving.specs[number].toc_digest;
        if orphans.iter().any(|orphan| orphan.toc == toc) {
            let layer = serving.layers.layer(serving.specs[number].clone()).await.unwrap();
            serving.mounter.serve(&layer).unwrap();
        }
    }
    println!("\nready");
    let (orders, mut order) = tokio::sync::mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines() {
            orders.blocking_send(line.unwrap()).unwrap();
        }
    });
    while let Some(line) = order.recv().await {
        let (word, number) = line.split_once(' ').unwrap_or((&line, "0"));
        let number: usize = number.parse().unwrap();
        match word {
            "remount" => {
                serving.unmount(number).await;
                serving.mount(number).await;
            }
            "evict" => {
                serving.unmount(number).await;
                let keep: HashSet<_> = serving.specs.iter().map(|spec| spec.toc_digest).collect();
                let keep = keep.into_iter().filter(|toc| *toc != serving.specs[number].toc_digest).collect();
                serving.layers.remove_unused(keep).await.unwrap();
                serving.mount(number).await;
            }
            _ => {
                for number in 0..LAYERS as usize {
                    serving.unmount(number).await;
                }
                serving.mounter.leave().await;
                serving.layers.shutdown().await;
                std::process::exit(0);
            }
        }
        println!("done");
    }
}

fn spec(blob: &Blob, honest: bool, background: bool) -> LayerSpec {
    let source = Arc::new(Moody {
        id: ContentId::proven(&blob.built.digest),
        bytes: blob.bytes.clone(),
        honest,
        reads: AtomicU64::new(0),
    });
    let open = move || {
        let source = Arc::clone(&source);
        let tail = source.bytes.slice(source.bytes.len().saturating_sub(512 * 1024)..);
        async move { Ok(OpenBlob { source, tail: Some(tail) }) }.boxed()
    };
    LayerSpec {
        toc_digest: blob.built.toc_digest,
        layer_digest: blob.built.digest,
        open: Arc::new(open),
        external_toc: None,
        prefetch: Prefetch { enabled: false, size: 0 },
        background,
    }
}

/// The worker, from outside.
pub struct Worker {
    child: Child,
    orders: ChildStdin,
    lines: BufReader<ChildStdout>,
}

impl Worker {
    pub fn start(folder: &Path, driver: DriverChoice, honest: bool) -> Self {
        let driver = format!("{driver:?}").to_lowercase();
        let mut command = Command::new("setpriv");
        // It ends with the test however that ends.
        command.args(["--pdeathsig", "KILL", "--"]).arg(std::env::current_exe().unwrap());
        let mut child = command
            .args(["--ignored", "--exact", "worker::worker", "--nocapture"])
            .env(
                "LAZYFS_TEST_HOLES",
                format!("{} {driver} {honest} {}", folder.display(), std::process::id()),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let orders = child.stdin.take().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        let mut worker = Self { child, orders, lines };
        worker.wait_for("ready");
        worker
    }

    fn wait_for(&mut self, word: &str) {
        let mut line = String::new();
        while line.trim() != word {
            line.clear();
            assert!(self.lines.read_line(&mut line).unwrap() > 0, "the worker ended before it was {word}");
        }
    }

    pub fn tell(&mut self, order: &str) {
        writeln!(self.orders, "{order}").unwrap();
        self.wait_for("done");
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn stop(mut self) {
        writeln!(self.orders, "stop").unwrap();
        assert!(self.child.wait().unwrap().success(), "the worker did not end well");
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
