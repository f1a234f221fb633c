//! A small cluster on loopback: real sockets, a real scheduler, and an origin in memory that counts.
#![allow(dead_code, reason = "each test file uses its part of it")]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use content::{
    BlobSource, ByteRange, ByteStream, ContentId, ContentOpener, Digest, Locator, OpenBlob, Origin,
    ReadError, ReadErrorKind, Tail, Urgency,
};
use futures::StreamExt;
use identity::{NodeKey, Security};
use store::{Store, StoreOptions};
use swarm::{Limits, OriginFinder, PIECE, Patience, Swarm, SwarmConfig, Tamper};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

pub const PIECE_LEN: u64 = PIECE as u64;
pub const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Bytes that look like nothing else.
pub fn sample(len: u64, salt: u64) -> Bytes {
    let mut bytes = vec![0; len as usize];
    blake3::Hasher::new().update(&salt.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes.into()
}

/// A blob in memory that counts what is asked of it.
pub struct Memory {
    id: ContentId,
    digest: Digest,
    bytes: Bytes,
    knows_len: bool,
    gate: tokio::sync::watch::Sender<bool>,
    broken: AtomicBool,
    served: AtomicU64,
    requests: AtomicU64,
    /// How often each piece was begun to be served.
    pieces: Mutex<BTreeMap<u64, u32>>,
}

impl Memory {
    pub fn new(len: u64, salt: u64, knows_len: bool) -> Arc<Self> {
        let bytes = sample(len, salt);
        Self::with(bytes.clone(), Digest::of(&bytes), knows_len)
    }

    /// Serves other bytes than its name says.
    pub fn evil(honest: &Self) -> Arc<Self> {
        let mut bytes = honest.bytes.to_vec();
        bytes[70_000] ^= 1;
        Self::with(bytes.into(), honest.digest, true)
    }

    fn with(bytes: Bytes, digest: Digest, knows_len: bool) -> Arc<Self> {
        Arc::new(Self {
            id: ContentId::claimed("registry.test", &digest),
            digest,
            bytes,
            knows_len,
            gate: tokio::sync::watch::Sender::new(true),
            broken: AtomicBool::new(false),
            served: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            pieces: Mutex::default(),
        })
    }

    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Bytes that left the origin.
    pub fn served(&self) -> u64 {
        self.served.load(Ordering::SeqCst)
    }

    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::SeqCst)
    }

    pub fn break_it(&self, broken: bool) {
        self.broken.store(broken, Ordering::SeqCst);
    }

    /// Closed, the origin answers nothing until it is opened again.
    pub fn set_open(&self, open: bool) {
        self.gate.send_replace(open);
    }

    /// Pieces that left the origin more than once.
    pub fn twice(&self) -> Vec<u64> {
        let pieces = self.pieces.lock().unwrap();
        pieces.iter().filter(|(_, count)| **count > 1).map(|(piece, _)| *piece).collect()
    }

    fn refuse(&self) -> Result<(), ReadError> {
        self.requests.fetch_add(1, Ordering::SeqCst);
        if self.broken.load(Ordering::SeqCst) {
            return Err(ReadError::origin(ReadErrorKind::NotFound, "the registry says 404").with_status(404));
        }
        Ok(())
    }

    fn give(&self, range: ByteRange) -> Bytes {
        self.served.fetch_add(range.len(), Ordering::SeqCst);
        let mut pieces = self.pieces.lock().unwrap();
        for piece in range.start / PIECE_LEN..range.end.div_ceil(PIECE_LEN) {
            *pieces.entry(piece).or_default() += 1;
        }
        self.bytes.slice(range.start as usize..range.end as usize)
    }

    async fn opened(&self) {
        self.gate.subscribe().wait_for(|open| *open).await.unwrap();
    }
}

#[async_trait]
impl Origin for Memory {
    fn id(&self) -> &ContentId {
        &self.id
    }
    fn known_len(&self) -> Option<u64> {
        self.knows_len.then_some(self.bytes.len() as u64)
    }
    fn expected_digest(&self) -> Option<Digest> {
        Some(self.digest)
    }
    fn locator(&self) -> Option<Locator> {
        Some(Locator {
            registry: "https://registry.test".into(),
            repository: "library/test".into(),
            digest: self.digest,
        })
    }
    async fn tail(&self, at_most: u64) -> Result<Tail, ReadError> {
        self.refuse()?;
        self.opened().await;
        let len = self.bytes.len() as u64;
        Ok(Tail { len, bytes: self.give(ByteRange::new(len.saturating_sub(at_most), len)) })
    }
    async fn read(&self, range: ByteRange, _: Urgency) -> Result<Bytes, ReadError> {
        self.refuse()?;
        self.opened().await;
        Ok(self.give(range))
    }
    fn stream(self: Arc<Self>, range: ByteRange, _: Urgency) -> ByteStream {
        if let Err(error) = self.refuse() {
            return futures::stream::iter([Err(error)]).boxed();
        }
        // Parts that do not fall on pieces.
        let parts = (range.start..range.end)
            .step_by(40_000)
            .map(move |at| ByteRange::at(at, 40_000).intersect(&range));
        futures::stream::iter(parts.collect::<Vec<_>>())
            .then(move |part| {
                let origin = Arc::clone(&self);
                async move {
                    origin.opened().await;
                    Ok(origin.give_part(part, range.start))
                }
            })
            .boxed()
    }
}

impl Memory {
    /// Part of a stream that began at `start`: each piece counts once per stream.
    fn give_part(&self, range: ByteRange, start: u64) -> Bytes {
        self.served.fetch_add(range.len(), Ordering::SeqCst);
        let mut pieces = self.pieces.lock().unwrap();
        for piece in range.start / PIECE_LEN..range.end.div_ceil(PIECE_LEN) {
            if (piece * PIECE_LEN).max(start) >= range.start {
                *pieces.entry(piece).or_default() += 1;
            }
        }
        self.bytes.slice(range.start as usize..range.end as usize)
    }
}

/// A finder that knows the origins of the test.
pub struct Known(pub Vec<Arc<Memory>>);

#[async_trait]
impl OriginFinder for Known {
    async fn find(&self, locator: &Locator) -> Result<Arc<dyn Origin>, ReadError> {
        let found = self.0.iter().find(|origin| origin.locator().as_ref() == Some(locator));
        let found = found.ok_or_else(|| ReadError::local(ReadErrorKind::Refused, "not on the list"))?;
        Ok(Arc::clone(found) as Arc<dyn Origin>)
    }
}

/// Patience of tests that are about anything but patience: a loaded machine must not look like a dead node.
pub fn patient() -> Limits {
    let long = Duration::from_mins(2);
    Limits {
        silence: long,
        read_deadline: long,
        patience: Patience {
            open: long,
            blocking: long,
            blocking_heard: long,
            blocking_held: long,
            other: long,
            held: long,
            neighbours: Duration::from_millis(500),
        },
        ..Limits::default()
    }
}

/// A node and the folder it lives in.
pub struct TestNode {
    pub swarm: Arc<Swarm>,
    pub store: Store,
    pub dir: TempDir,
}

/// How to start a node.
pub struct Options {
    pub schedulers: Vec<String>,
    pub security: Security,
    pub key: Arc<NodeKey>,
    pub seed: bool,
    pub finder: Option<Arc<dyn OriginFinder>>,
    pub limits: Limits,
    pub tamper: Option<Tamper>,
    pub ip: IpAddr,
}

impl Options {
    pub fn new(schedulers: &[SocketAddr]) -> Self {
        Self {
            schedulers: schedulers.iter().map(ToString::to_string).collect(),
            security: Security::Insecure,
            key: Arc::new(NodeKey::generate().unwrap()),
            seed: false,
            finder: None,
            limits: patient(),
            tamper: None,
            ip: LOCALHOST,
        }
    }

    pub async fn start(self) -> TestNode {
        self.start_in(tempfile::tempdir().unwrap()).await
    }

    pub async fn start_in(self, dir: TempDir) -> TestNode {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let _ = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .try_init();
        let store = Store::open(&dir.path().join("store"), &StoreOptions::default()).unwrap();
        let swarm = Swarm::start(SwarmConfig {
            store: store.clone(),
            key: self.key,
            security: self.security,
            schedulers: self.schedulers,
            listen: SocketAddr::new(self.ip, 0),
            advertise: self.ip,
            hostname: "test".into(),
            idc: String::new(),
            location: String::new(),
            seed: self.seed,
            finder: self.finder,
            limits: self.limits,
            tamper: self.tamper,
        })
        .await
        .unwrap();
        TestNode { swarm, store, dir }
    }
}

impl TestNode {
    pub async fn open(&self, origin: &Arc<Memory>, tail: u64) -> OpenBlob {
        self.swarm.open(Arc::clone(origin) as Arc<dyn Origin>, tail).await.unwrap()
    }

    /// Reads a range and compares it with the origin.
    pub async fn check(&self, origin: &Arc<Memory>, range: ByteRange, urgency: Urgency) {
        let blob = self.open(origin, 0).await;
        check(&*blob.source, origin, range, urgency).await;
    }

    pub async fn check_all(&self, origin: &Arc<Memory>, urgency: Urgency) {
        self.check(origin, ByteRange::new(0, origin.bytes().len() as u64), urgency).await;
    }

    pub async fn connected(&self) {
        self.swarm.scheduler_watch().wait_for(|connected| *connected).await.unwrap();
    }

    pub async fn stop(self) {
        self.swarm.shutdown().await;
    }
}

/// Reads a range and compares it with the origin.
pub async fn check(blob: &dyn BlobSource, origin: &Memory, range: ByteRange, urgency: Urgency) {
    let bytes = blob.read(range, urgency).await.unwrap();
    let right = &origin.bytes()[range.start as usize..range.end as usize];
    assert!(bytes == right, "{range} differs from the origin");
}

/// A scheduler on loopback.
pub struct TestScheduler {
    pub address: SocketAddr,
    cancel: CancellationToken,
    task: tokio::task::JoinHandle<()>,
    pub dir: TempDir,
}

impl TestScheduler {
    pub async fn start(security: scheduler::SchedulerSecurity) -> Self {
        Self::start_at(SocketAddr::new(LOCALHOST, 0), security).await
    }

    pub async fn insecure() -> Self {
        Self::start(scheduler::SchedulerSecurity::Insecure).await
    }

    #[expect(clippy::unused_async, reason = "spawning needs a runtime, and an async function has one")]
    pub async fn start_at(address: SocketAddr, security: scheduler::SchedulerSecurity) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(address).unwrap();
        let listener = socket.listen(64).unwrap();
        let address = listener.local_addr().unwrap();
        let cancel = CancellationToken::new();
        let config = scheduler::SchedulerConfig { data_dir: dir.path().to_path_buf(), security };
        let token = cancel.clone();
        let task = tokio::spawn(async move {
            scheduler::serve(listener, config, token).await.unwrap();
        });
        Self { address, cancel, task, dir }
    }

    pub async fn stop(self) {
        self.cancel.cancel();
        self.task.await.unwrap();
    }
}
