//! A snapshotter on a real socket, a client, and lazy layers that need neither registry nor FUSE: a bind
//! mount of a directory stands in for the layer's files.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests, which may stop where they fail")]

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use content::Digest;
use hyper_util::rt::TokioIo;
use proto::containerd::snapshots as wire;
use proto::containerd::snapshots::snapshots_client::SnapshotsClient;
use proto::containerd::types::Mount;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};
use snapshotter::{
    Handle, LayerBackend, LayerError, LayerMount, LayerSource, Limits, OpenLayer, Progress, Running,
};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status};

/// Says why, if the test cannot run here.
pub fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root to mount");
    }
    root
}

pub const REF: &str = "containerd.io/snapshot.ref";

/// Layers whose files lie in `files/<layer digest>`.
pub struct FakeLayers {
    pub files: PathBuf,
    pub opened: AtomicUsize,
    /// Names of the blobs of the one image that there is, and how often its manifest was asked for.
    pub image: Mutex<Vec<&'static str>>,
    pub manifests: AtomicUsize,
    pub broken: AtomicBool,
    /// While set, opening waits for a permit of `gate`.
    pub held: AtomicBool,
    pub gate: Semaphore,
    /// Gets a permit when somebody begins to wait.
    pub waiting: Semaphore,
    pub kept: Mutex<HashSet<Digest>>,
}

impl FakeLayers {
    pub fn new(files: &Path) -> Arc<Self> {
        Arc::new(Self {
            files: files.to_owned(),
            opened: AtomicUsize::new(0),
            image: Mutex::default(),
            manifests: AtomicUsize::new(0),
            broken: AtomicBool::new(false),
            held: AtomicBool::new(false),
            gate: Semaphore::new(0),
            waiting: Semaphore::new(0),
            kept: Mutex::default(),
        })
    }
}

struct Shared(Arc<FakeLayers>);

#[tonic::async_trait]
impl LayerBackend for Shared {
    async fn neighbours(
        &self,
        source: &LayerSource,
        _: Option<Digest>,
    ) -> Result<Vec<LayerSource>, LayerError> {
        self.0.manifests.fetch_add(1, Ordering::SeqCst);
        let image = self.0.image.lock().unwrap().clone();
        if image.is_empty() {
            return Err(LayerError("there is no manifest".into()));
        }
        let layer = |name: &&str| LayerSource {
            layer: Digest::of(name.as_bytes()),
            toc: Digest::of(format!("toc {name}").as_bytes()),
            ..source.clone()
        };
        Ok(image.iter().map(layer).collect())
    }

    async fn is_lowest(&self, source: &LayerSource, _: Option<Digest>) -> Result<bool, LayerError> {
        let image = self.0.image.lock().unwrap();
        let lowest = image.first().ok_or_else(|| LayerError("there is no manifest".into()))?;
        Ok(source.layer == Digest::of(lowest.as_bytes()))
    }

    async fn open(&self, source: &LayerSource) -> Result<Arc<dyn OpenLayer>, LayerError> {
        if self.0.held.load(Ordering::SeqCst) {
            self.0.waiting.add_permits(1);
            self.0.gate.acquire().await.unwrap().forget();
        }
        self.0.opened.fetch_add(1, Ordering::SeqCst);
        if self.0.broken.load(Ordering::SeqCst) {
            return Err(LayerError("the registry is gone".into()));
        }
        let files = self.0.files.join(source.layer.hex());
        std::fs::create_dir_all(&files).map_err(|error| LayerError(error.to_string()))?;
        Ok(Arc::new(FakeLayer(files)))
    }

    async fn keep_only(&self, keep: HashSet<Digest>) {
        *self.0.kept.lock().unwrap() = keep;
    }

    async fn shut_down(&self) {}
}

struct FakeLayer(PathBuf);

#[tonic::async_trait]
impl OpenLayer for FakeLayer {
    async fn mount(&self, at: &Path) -> Result<Box<dyn LayerMount>, LayerError> {
        // A file system of its own, as a real layer is: a bind mount of the same one has the same device.
        let told = |error: rustix::io::Errno| LayerError(error.to_string());
        mount("layer", at, "tmpfs", MountFlags::empty(), None).map_err(told)?;
        for entry in std::fs::read_dir(&self.0).unwrap().flatten() {
            std::fs::copy(entry.path(), at.join(entry.file_name())).unwrap();
        }
        Ok(Box::new(FakeMount(at.to_owned())))
    }

    fn progress(&self) -> Progress {
        Progress { size: 3, fetched: 2, touched: 1 }
    }
}

struct FakeMount(PathBuf);

#[tonic::async_trait]
impl LayerMount for FakeMount {
    async fn unmount(&self) -> Result<(), LayerError> {
        match unmount(&self.0, UnmountFlags::DETACH) {
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(()),
            Err(error) => Err(LayerError(error.to_string())),
        }
    }

    fn driver(&self) -> &'static str {
        "fake"
    }
}

/// Everything that one test needs.
pub struct Lab {
    pub dir: tempfile::TempDir,
    pub layers: Arc<FakeLayers>,
    pub running: Option<Running>,
    pub handle: Handle,
    pub stop: CancellationToken,
    pub client: Client,
    pub limits: Limits,
}

impl Lab {
    pub async fn start() -> Self {
        Self::with_wait(Duration::from_secs(30)).await
    }

    pub async fn with_wait(prepare_wait: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let layers = FakeLayers::new(&dir.path().join("files"));
        let limits = Limits { prepare_wait, resolved_for: Duration::from_mins(2) };
        let (running, client, stop) = launch(dir.path(), &layers, limits).await;
        Self { handle: running.handle(), running: Some(running), dir, layers, stop, client, limits }
    }

    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("run/s.sock")
    }

    pub async fn stop(&mut self) {
        self.stop.cancel();
        if let Some(running) = self.running.take() {
            running.stopped().await.unwrap();
        }
    }

    /// A new process on the same directories.
    pub async fn restart(&mut self) {
        self.stop().await;
        let (running, client, stop) = launch(self.dir.path(), &self.layers, self.limits).await;
        self.handle = running.handle();
        (self.running, self.client, self.stop) = (Some(running), client, stop);
    }

    /// Mount points below the root.
    pub fn mount_points(&self) -> Vec<PathBuf> {
        let root = std::fs::canonicalize(self.root()).unwrap();
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
        points.filter(|point| point.starts_with(&root)).collect()
    }

    /// Numbers of the snapshots' directories.
    pub fn directories(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.root().join("snapshots")).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

async fn launch(
    dir: &Path,
    layers: &Arc<FakeLayers>,
    limits: Limits,
) -> (Running, Client, CancellationToken) {
    let stop = CancellationToken::new();
    let backend = Arc::clone(layers);
    let (socket, root) = (dir.join("run/s.sock"), dir.join("root"));
    let backend = move |_: &snapshotter::Overlay| -> Result<Arc<dyn LayerBackend>, LayerError> {
        Ok(Arc::new(Shared(backend)))
    };
    let running = snapshotter::start_with(&socket, &root, limits, backend, stop.clone());
    let running = running.await.unwrap();
    (running, Client::connect(&socket).await, stop)
}

/// Calls as containerd makes them.
#[derive(Clone)]
pub struct Client(SnapshotsClient<Channel>);

pub fn labels(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
}

/// The labels of a `Prepare` for a lazy layer.
pub fn lazy(chain: &str, layer: &str) -> HashMap<String, String> {
    labels(&[
        (REF, chain),
        ("containerd.io/snapshot/cri.image-ref", "registry.example/image:1"),
        ("containerd.io/snapshot/cri.layer-digest", &Digest::of(layer.as_bytes()).to_string()),
        (
            "containerd.io/snapshot/stargz/toc.digest",
            &Digest::of(format!("toc {layer}").as_bytes()).to_string(),
        ),
        ("containerd.io/snapshot/remote/urls", ""),
    ])
}

impl Client {
    pub async fn connect(socket: &Path) -> Self {
        let socket = socket.to_owned();
        let connector = tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
        });
        let endpoint = Endpoint::from_static("http://snapshotter.invalid");
        Self(SnapshotsClient::new(endpoint.connect_with_connector(connector).await.unwrap()))
    }

    pub async fn prepare_with(
        &self,
        key: &str,
        parent: &str,
        labels: HashMap<String, String>,
    ) -> Result<Vec<Mount>, Status> {
        let (key, parent) = (key.into(), parent.into());
        let request = wire::PrepareSnapshotRequest { snapshotter: "x".into(), key, parent, labels };
        Ok(self.0.clone().prepare(request).await?.into_inner().mounts)
    }

    pub async fn prepare(&self, key: &str, parent: &str) -> Result<Vec<Mount>, Status> {
        self.prepare_with(key, parent, HashMap::new()).await
    }

    pub async fn view(&self, key: &str, parent: &str) -> Result<Vec<Mount>, Status> {
        let (key, parent, labels) = (key.into(), parent.into(), HashMap::new());
        let request = wire::ViewSnapshotRequest { snapshotter: "x".into(), key, parent, labels };
        Ok(self.0.clone().view(request).await?.into_inner().mounts)
    }

    pub async fn mounts(&self, key: &str) -> Result<Vec<Mount>, Status> {
        let request = wire::MountsRequest { snapshotter: "x".into(), key: key.into() };
        Ok(self.0.clone().mounts(request).await?.into_inner().mounts)
    }

    pub async fn commit_with(
        &self,
        name: &str,
        key: &str,
        labels: HashMap<String, String>,
    ) -> Result<(), Status> {
        let (name, key, parent) = (name.into(), key.into(), String::new());
        let request = wire::CommitSnapshotRequest { snapshotter: "x".into(), name, key, labels, parent };
        self.0.clone().commit(request).await.map(|_| ())
    }

    /// Commits onto another parent than it was prepared with, as containerd does where a snapshotter can `rebase`.
    pub async fn rebase(&self, name: &str, key: &str, parent: &str) -> Result<(), Status> {
        let (name, key, parent, labels) = (name.into(), key.into(), parent.into(), HashMap::new());
        let request = wire::CommitSnapshotRequest { snapshotter: "x".into(), name, key, labels, parent };
        self.0.clone().commit(request).await.map(|_| ())
    }

    pub async fn commit(&self, name: &str, key: &str) -> Result<(), Status> {
        self.commit_with(name, key, HashMap::new()).await
    }

    pub async fn remove(&self, key: &str) -> Result<(), Status> {
        let request = wire::RemoveSnapshotRequest { snapshotter: "x".into(), key: key.into() };
        self.0.clone().remove(request).await.map(|_| ())
    }

    pub async fn stat(&self, key: &str) -> Result<wire::Info, Status> {
        let request = wire::StatSnapshotRequest { snapshotter: "x".into(), key: key.into() };
        Ok(self.0.clone().stat(request).await?.into_inner().info.unwrap())
    }

    pub async fn update(
        &self,
        name: &str,
        labels: HashMap<String, String>,
        mask: &[&str],
    ) -> Result<wire::Info, Status> {
        let info = wire::Info { name: name.into(), labels, parent: "ignored".into(), ..Default::default() };
        let paths: Vec<String> = mask.iter().map(ToString::to_string).collect();
        let update_mask = (!paths.is_empty()).then_some(prost_types::FieldMask { paths });
        let request = wire::UpdateSnapshotRequest { snapshotter: "x".into(), info: Some(info), update_mask };
        Ok(self.0.clone().update(request).await?.into_inner().info.unwrap())
    }

    /// The names, and how many messages they came in.
    pub async fn list(&self, filters: &[&str]) -> Result<(Vec<wire::Info>, usize), Status> {
        let filters = filters.iter().map(ToString::to_string).collect();
        let request = wire::ListSnapshotsRequest { snapshotter: "x".into(), filters };
        let mut stream = self.0.clone().list(request).await?.into_inner();
        let (mut all, mut messages) = (Vec::new(), 0);
        while let Some(batch) = stream.message().await? {
            messages += 1;
            all.extend(batch.info);
        }
        Ok((all, messages))
    }

    pub async fn names(&self, filters: &[&str]) -> Vec<String> {
        self.list(filters).await.unwrap().0.into_iter().map(|info| info.name).collect()
    }

    pub async fn usage(&self, key: &str) -> Result<wire::UsageResponse, Status> {
        let request = wire::UsageRequest { snapshotter: "x".into(), key: key.into() };
        Ok(self.0.clone().usage(request).await?.into_inner())
    }

    pub async fn cleanup(&self) -> Result<(), Status> {
        self.0.clone().cleanup(wire::CleanupRequest { snapshotter: "x".into() }).await.map(|_| ())
    }
}

/// The code of a failure.
pub fn code<T: std::fmt::Debug>(result: Result<T, Status>) -> Code {
    result.unwrap_err().code()
}

/// Mounts as containerd would; unmounts when dropped.
pub struct Mounted(pub PathBuf);

impl Mounted {
    pub fn new(mounts: &[Mount], at: &Path) -> Self {
        std::fs::create_dir_all(at).unwrap();
        let [how] = mounts else { panic!("one mount was expected, not {mounts:?}") };
        if how.r#type == "bind" {
            mount_bind(&how.source, at).unwrap();
            if how.options.iter().any(|option| option == "ro") {
                let flags = MountFlags::BIND | MountFlags::RDONLY;
                rustix::mount::mount_remount(at, flags, "").unwrap();
            }
        } else {
            let options = std::ffi::CString::new(how.options.join(",")).unwrap();
            mount(&how.source, at, &how.r#type, MountFlags::empty(), options.as_c_str()).unwrap();
        }
        Self(at.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        unmount(&self.0, UnmountFlags::DETACH).unwrap();
    }
}
