//! What the tests of mounted layers share: blobs of every kind of entry, and a source that counts and
//! misbehaves.

#![allow(dead_code, missing_docs)] // each test binary uses its part
// Helpers of tests, outside the functions that clippy recognises as tests.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::format_push_string
)]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use content::{
    BlobSource, ByteRange, ByteStream, ContentId, OpenBlob, Provenance, ReadError, ReadErrorKind, Urgency,
    stream_by_reads,
};
use estargz::Built;
use futures::FutureExt as _;
use lazyfs::{Layer, LayerSpec, Layers, LayersOptions, Mount, MountOptions, OpenSource, Prefetch};
use tokio::sync::{Semaphore, watch};

pub mod formats;
pub mod tree;

/// Whether layers can be mounted here; says why not.
pub fn can_mount() -> bool {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: mounting needs root");
        return false;
    }
    if !Path::new("/dev/fuse").exists() {
        eprintln!("SKIPPED: there is no /dev/fuse");
        return false;
    }
    true
}

/// Bytes that compress a little and are the same in every run.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state as u8) & 0x3f
    });
    next.take(len).collect()
}

/// Builds tar streams.
pub struct Tar(tar::Builder<Vec<u8>>);

impl Tar {
    pub fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn header(kind: tar::EntryType, mode: u32, size: usize) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size as u64);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_600_000_000);
        header
    }

    pub fn dir(&mut self, path: &str, mode: u32) -> &mut Self {
        let mut header = Self::header(tar::EntryType::Directory, mode, 0);
        self.0.append_data(&mut header, format!("{path}/"), std::io::empty()).unwrap();
        self
    }

    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> &mut Self {
        let mut header = Self::header(tar::EntryType::Regular, mode, content.len());
        self.0.append_data(&mut header, path, content).unwrap();
        self
    }

    pub fn owned(
        &mut self,
        path: &str,
        mode: u32,
        uid: u64,
        gid: u64,
        mtime: u64,
        content: &[u8],
    ) -> &mut Self {
        let mut header = Self::header(tar::EntryType::Regular, mode, content.len());
        header.set_uid(uid);
        header.set_gid(gid);
        header.set_mtime(mtime);
        self.0.append_data(&mut header, path, content).unwrap();
        self
    }

    pub fn xattrs(&mut self, path: &str, xattrs: &[(&str, &[u8])], content: &[u8]) -> &mut Self {
        self.attributed(path, 0o644, xattrs, content)
    }

    pub fn attributed(
        &mut self,
        path: &str,
        mode: u32,
        xattrs: &[(&str, &[u8])],
        content: &[u8],
    ) -> &mut Self {
        let named: Vec<(String, &[u8])> =
            xattrs.iter().map(|(name, value)| (format!("SCHILY.xattr.{name}"), *value)).collect();
        self.0.append_pax_extensions(named.iter().map(|(name, value)| (name.as_str(), *value))).unwrap();
        self.file(path, mode, content)
    }

    pub fn symlink(&mut self, path: &str, target: &str) -> &mut Self {
        let mut header = Self::header(tar::EntryType::Symlink, 0o777, 0);
        self.0.append_link(&mut header, path, target).unwrap();
        self
    }

    pub fn hardlink(&mut self, path: &str, target: &str) -> &mut Self {
        let mut header = Self::header(tar::EntryType::Link, 0o644, 0);
        self.0.append_link(&mut header, path, target).unwrap();
        self
    }

    pub fn device(&mut self, path: &str, kind: tar::EntryType, major: u32, minor: u32) -> &mut Self {
        let mut header = Self::header(kind, 0o640, 0);
        header.set_device_major(major).unwrap();
        header.set_device_minor(minor).unwrap();
        self.0.append_data(&mut header, path, std::io::empty()).unwrap();
        self
    }

    pub fn fifo(&mut self, path: &str) -> &mut Self {
        let mut header = Self::header(tar::EntryType::Fifo, 0o600, 0);
        self.0.append_data(&mut header, path, std::io::empty()).unwrap();
        self
    }

    pub fn finish(&mut self) -> Vec<u8> {
        self.0.finish().unwrap();
        self.0.get_ref().clone()
    }
}

/// What the files of [`everything`] should be cut into.
pub const CHUNK: usize = 64 * 1024;

/// Every kind of entry that a tar can hold and `tar` can unpack.
pub fn everything() -> Vec<u8> {
    let long = "n".repeat(200);
    let mut tar = Tar::new();
    tar.dir("etc", 0o755).dir("sizes", 0o700).dir("sticky", 0o1777).dir("deep", 0o755);
    for size in [0, 1, 4095, 4096, 4097, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 5 * CHUNK + 77] {
        tar.file(&format!("sizes/{size}"), 0o644, &noise(size as u64, size));
    }
    tar.file("etc/setuid", 0o4755, b"s").file("etc/setgid", 0o2755, b"g").file("etc/none", 0, b"n");
    tar.owned("etc/owned", 0o640, 1000, 3_000_000 % 2_097_152, 0, b"epoch");
    tar.file("etc/first", 0o644, b"linked")
        .hardlink("etc/second", "etc/first")
        .hardlink("third", "etc/first");
    tar.symlink("etc/link", "first").symlink("etc/dangling", &"x/".repeat(120)).symlink("sizes/up", "../etc");
    tar.device("etc/null", tar::EntryType::Char, 1, 3).device("etc/disk", tar::EntryType::Block, 259, 300);
    tar.fifo("etc/pipe");
    tar.dir(&long, 0o755).dir(&format!("{long}/{long}"), 0o750);
    tar.file(&format!("{long}/{long}/file"), 0o644, b"long");
    tar.xattrs(
        "etc/xattrs",
        &[("user.one", b"1"), ("user.binary", &[0, 255, 10, 61]), ("user.empty", b"")],
        b"x",
    );
    tar.xattrs(
        "etc/capable",
        &[("security.capability", &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])],
        b"x",
    );
    let mut path = "deep".to_owned();
    for level in 0..40 {
        path = format!("{path}/{level}");
        tar.dir(&path, 0o755);
    }
    tar.file(&format!("{path}/leaf"), 0o644, b"leaf");
    tar.dir("many", 0o755);
    for number in 0..3000 {
        tar.file(
            &format!("many/{number:04}-with-a-longer-name-so-that-listings-need-several-turns"),
            0o644,
            b"m",
        );
    }
    tar.file("odd \n \\ <&> \u{e4}", 0o644, b"odd").dir("empty", 0o711);
    tar.finish()
}

/// A blob.
pub struct Blob {
    pub bytes: Bytes,
    pub built: Built,
}

pub fn blob(tar: &[u8], chunk_size: u32) -> Blob {
    blob_of(tar, &estargz::Options { chunk_size, level: Some(1), ..estargz::Options::default() })
}

pub fn blob_of(tar: &[u8], options: &estargz::Options) -> Blob {
    let mut bytes = Vec::new();
    let built = estargz::build(tar, &mut bytes, options).unwrap();
    Blob { bytes: bytes.into(), built }
}

/// What a source does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mood {
    Honest,
    /// Fails every read.
    Dead,
    /// Flips a bit of every read.
    Liar,
    /// Never answers.
    Frozen,
}

/// A blob in memory that counts who reads what.
pub struct Source {
    id: ContentId,
    bytes: Bytes,
    pub mood: Mutex<Mood>,
    pub opened: AtomicUsize,
    /// See [`BlobSource::unit`].
    pub unit: AtomicUsize,
    pub reads: Mutex<Vec<(ByteRange, Urgency)>>,
    /// A read takes a permit and does not give it back.
    pub gate: Semaphore,
    traffic: watch::Sender<Traffic>,
}

/// What becomes of the reads of a source.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Traffic {
    pub under_way: usize,
    /// Nobody waited for the answer any more.
    pub given_up: usize,
}

/// Counts a read that ends, or is dropped before.
struct UnderWay<'a>(&'a watch::Sender<Traffic>, bool);

impl<'a> UnderWay<'a> {
    fn new(traffic: &'a watch::Sender<Traffic>) -> Self {
        traffic.send_modify(|traffic| traffic.under_way += 1);
        Self(traffic, false)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|traffic| {
            traffic.under_way -= 1;
            traffic.given_up += usize::from(!self.1);
        });
    }
}

impl Source {
    pub fn new(blob: &Blob) -> Arc<Self> {
        Arc::new(Self {
            id: ContentId::proven(&blob.built.digest),
            bytes: blob.bytes.clone(),
            mood: Mutex::new(Mood::Honest),
            opened: AtomicUsize::new(0),
            unit: AtomicUsize::new(1),
            reads: Mutex::default(),
            gate: Semaphore::new(Semaphore::MAX_PERMITS),
            traffic: watch::Sender::default(),
        })
    }

    pub fn set(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    /// Lets no read pass until permits are added.
    pub fn close_gate(&self) {
        self.gate.forget_permits(Semaphore::MAX_PERMITS);
    }

    pub fn open_gate(&self) {
        self.gate.add_permits(Semaphore::MAX_PERMITS);
    }

    pub fn traffic(&self) -> Traffic {
        *self.traffic.borrow()
    }

    /// Waits until the reads are as wanted.
    pub async fn until(&self, wanted: impl FnMut(&Traffic) -> bool) {
        let mut traffic = self.traffic.subscribe();
        let waited = tokio::time::timeout(Duration::from_secs(20), traffic.wait_for(wanted)).await;
        assert!(waited.is_ok(), "never happened: {:?}", self.traffic());
    }

    pub fn read_count(&self) -> usize {
        self.reads.lock().unwrap().len()
    }

    pub fn opener(self: &Arc<Self>) -> OpenSource {
        let source = Arc::clone(self);
        Arc::new(move || {
            let source = Arc::clone(&source);
            async move {
                source.opened.fetch_add(1, Ordering::SeqCst);
                if *source.mood.lock().unwrap() == Mood::Dead {
                    return Err(ReadError::origin(ReadErrorKind::Unavailable, "the registry is dead"));
                }
                let tail = source.bytes.slice(source.bytes.len().saturating_sub(512 * 1024)..);
                Ok(OpenBlob { source, tail: Some(tail) })
            }
            .boxed()
        })
    }
}

#[async_trait]
impl BlobSource for Source {
    fn id(&self) -> &ContentId {
        &self.id
    }

    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn unit(&self) -> u64 {
        self.unit.load(Ordering::SeqCst) as u64
    }

    async fn read_traced(
        &self,
        range: ByteRange,
        urgency: Urgency,
    ) -> Result<(Bytes, Provenance), ReadError> {
        self.reads.lock().unwrap().push((range, urgency));
        let mood = *self.mood.lock().unwrap();
        let mut under_way = UnderWay::new(&self.traffic);
        self.gate.acquire().await.unwrap().forget();
        if mood != Mood::Frozen {
            under_way.1 = true;
        }
        let bytes = self.bytes.slice(range.start as usize..range.end as usize);
        match mood {
            Mood::Honest => Ok((bytes, Provenance::Origin)),
            Mood::Dead => Err(ReadError::origin(ReadErrorKind::Unavailable, "the registry is dead")),
            Mood::Liar => {
                let mut bytes = bytes.to_vec();
                let middle = bytes.len() / 2;
                bytes[middle] ^= 0x10;
                Ok((bytes.into(), Provenance::Peer))
            }
            Mood::Frozen => std::future::pending().await,
        }
    }

    fn stream(self: Arc<Self>, range: ByteRange, urgency: Urgency) -> ByteStream {
        stream_by_reads(self, range, urgency, 8 << 20, 1)
    }
}

/// Nothing is fetched but what is read.
pub fn on_demand(blob: &Blob, source: &Arc<Source>) -> LayerSpec {
    LayerSpec {
        toc_digest: blob.built.toc_digest,
        layer_digest: blob.built.digest,
        open: source.opener(),
        external_toc: formats::external_toc(blob),
        prefetch: Prefetch { enabled: false, size: 0 },
        background: false,
    }
}

pub fn quick() -> LayersOptions {
    LayersOptions {
        read_deadline: Duration::from_secs(20),
        background_quiet: Duration::ZERO,
        flush_after: Duration::from_millis(10),
        // However full the disk is on which the tests run.
        keep_free: 0,
        ..LayersOptions::default()
    }
}

/// A mounted layer with all that holds it.
pub struct Mounted {
    pub layers: Arc<Layers>,
    pub layer: Arc<Layer>,
    pub mount: Mount,
    pub root: PathBuf,
    folder: tempfile::TempDir,
}

impl Mounted {
    pub async fn new(blob: &Blob, source: &Arc<Source>) -> Self {
        Self::with(on_demand(blob, source), quick(), MountOptions::default()).await
    }

    pub async fn with(spec: LayerSpec, options: LayersOptions, mount_options: MountOptions) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let layers = Layers::open(folder.path().join("store"), &options).unwrap();
        let layer = layers.layer(spec).await.unwrap();
        let root = folder.path().join("root");
        std::fs::create_dir(&root).unwrap();
        let mount = lazyfs::mount(Arc::clone(&layer), &root, &mount_options).await.unwrap();
        Self { layers, layer, mount, root, folder }
    }

    /// Reads a file of the mount.
    pub async fn read(&self, path: &str) -> std::io::Result<Vec<u8>> {
        let path = self.root.join(path);
        off(move || std::fs::read(path)).await
    }

    pub async fn end(self) {
        self.mount.unmount().await.unwrap();
        assert!(!self.mount.is_alive(), "the threads of the mount did not end");
        drop(self.mount);
        drop(self.layer);
        self.layers.shutdown().await;
    }
}

/// Does blocking work on a thread of its own.
pub async fn off<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}
