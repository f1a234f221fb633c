//! CRI's image service through the snapshotter: what passes, what is remembered of it, and where that is found again.

// Clippy exempts test functions from these lints, and not their helpers.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../../registry/tests/common/mod.rs"]
mod web;

use std::convert::Infallible;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use content::DirectOpener;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use proto::cri::image_service_client::ImageServiceClient;
use proto::cri::{AuthConfig, ImageSpec, ListImagesRequest, PullImageRequest};
use registry::{Client, ClientConfig, CredentialSource, Reference, media_type};
use snapshotter::{Config, Keychains, Running, ServeOptions};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::body::Body;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::ServiceExt;

const CANARY: &str = "canary-secret";

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root to mount");
    }
    root
}

/// What containerd was sent: the path, headers and all bytes.
type Seen = Arc<Mutex<Vec<(String, http::HeaderMap, Bytes)>>>;

/// Containerd's image service as far as bytes go. An image named `bad` cannot be pulled.
struct Containerd {
    seen: Seen,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Containerd {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn framed(message: &[u8]) -> Bytes {
    let len = u32::try_from(message.len()).unwrap();
    Bytes::from([&[0][..], &len.to_be_bytes(), message].concat())
}

impl Containerd {
    fn start(path: &Path) -> Self {
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path).unwrap();
        let seen = Seen::default();
        let log = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            // Whoever stops listening takes its connections with it.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let log = Arc::clone(&log);
                connections.spawn(async move {
                    let service = service_fn(move |request| answer(Arc::clone(&log), request));
                    let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    let _ = server.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { seen, task }
    }
}

/// Field 77, which nobody knows: a text.
const UNKNOWN: &[u8] = b"\xea\x04\x05later";

async fn answer(
    seen: Seen,
    request: http::Request<Incoming>,
) -> Result<http::Response<impl http_body::Body<Data = Bytes, Error = Infallible>>, Infallible> {
    let (head, body) = request.into_parts();
    let bytes = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    seen.lock().unwrap().push((head.uri.path().to_owned(), head.headers, bytes.clone()));
    let is_bad = bytes.windows(4).any(|window| window == b"/bad");
    let frames: Vec<Result<Frame<Bytes>, Infallible>> = if is_bad {
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", "5".parse().unwrap());
        trailers.insert("grpc-message", "no%20such%20image".parse().unwrap());
        trailers.insert("grpc-status-details-bin", "CAUSAA".parse().unwrap());
        vec![Ok(Frame::trailers(trailers))]
    } else {
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        trailers.insert("x-later", "kept".parse().unwrap());
        // Of either answer, field 1; and a field that nobody knows yet.
        let message = [&b"\x0a\x00"[..], UNKNOWN].concat();
        vec![Ok(Frame::data(framed(&message))), Ok(Frame::trailers(trailers))]
    };
    let body = StreamBody::new(futures::stream::iter(frames));
    Ok(http::Response::builder()
        .header("content-type", "application/grpc")
        .header("x-head", "kept")
        .body(body)
        .unwrap())
}

async fn channel(path: &Path) -> Channel {
    let path = path.to_owned();
    let connect = move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    };
    Endpoint::from_static("http://snapshotter")
        .connect_with_connector(tower::service_fn(connect))
        .await
        .unwrap()
}

/// A snapshotter that passes CRI on, and a client of registries with its keychains.
struct Lab {
    dir: PathBuf,
    running: Option<Running>,
    client: Client,
    stop: CancellationToken,
}

impl Lab {
    async fn start(dir: &Path) -> Self {
        let text = format!(
            "driver = \"fuse\"\ncontainerd_address = \"{}\"\n[cri_keychain]\nenable_keychain = true\nlisten_path = \"{}\"\n",
            dir.join("containerd.sock").display(),
            dir.join("cri.sock").display(),
        );
        let config = Config::parse(&text, Path::new("config.toml")).unwrap();
        let root = dir.join("root");
        std::fs::create_dir_all(&root).unwrap();
        let keychains = Keychains::open(&config.keychains, &root);
        let nobody = CredentialSource::DockerConfig(Some(dir.join("none.json")));
        let credentials = CredentialSource::Chain([vec![nobody], keychains.sources()].concat());
        let client = Client::new(ClientConfig { credentials, ..ClientConfig::default() }).unwrap();
        let stop = CancellationToken::new();
        let options = ServeOptions {
            address: dir.join("s.sock"),
            root,
            config,
            keep: None,
            hand_over: CancellationToken::new(),
            keychains: Some(keychains),
        };
        let running = snapshotter::start(options, Arc::new(DirectOpener), client.clone(), stop.clone());
        Self { dir: dir.to_owned(), running: Some(running.await.unwrap()), client, stop }
    }

    async fn stop(&mut self) {
        self.stop.cancel();
        let stopped = self.running.take().unwrap().stopped();
        tokio::time::timeout(Duration::from_secs(20), stopped).await.unwrap().unwrap();
    }

    async fn cri(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(channel(&self.dir.join("s.sock")).await)
    }
}

fn pull(image: &str, username: &str, password: &str) -> PullImageRequest {
    PullImageRequest {
        image: Some(ImageSpec { image: image.into(), ..ImageSpec::default() }),
        auth: Some(AuthConfig {
            username: username.into(),
            password: password.into(),
            ..AuthConfig::default()
        }),
        sandbox_config: None,
    }
}

#[tokio::test]
async fn calls_pass_in_both_directions_as_they_are() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut lab = Lab::start(dir.path()).await;
    let socket = dir.path().join("s.sock");
    let containerd = Containerd::start(&dir.path().join("containerd.sock"));

    let send = async |socket: &Path, path: &str, message: &[u8]| {
        let request = http::Request::builder()
            .method("POST")
            .uri(format!("http://snapshotter{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("x-caller", "kept")
            .body(Body::new(http_body_util::Full::new(framed(message))))
            .unwrap();
        channel(socket).await.oneshot(request).await.unwrap()
    };
    // A method that nobody knows yet, fields that nobody knows, more bytes than a gRPC server takes by itself.
    let long = [b"\x0a\x05ok/ok", UNKNOWN, &b"\xf2\x04\x80\x80\x80\x04"[..], &vec![b'x'; 8 << 20]].concat();
    for (at, path) in [
        (&socket, "/runtime.v1.ImageService/PullImage"),
        (&socket, "/runtime.v1.ImageService/NotYetInvented"),
        (&dir.path().join("cri.sock"), "/runtime.v1.ImageService/ListImages"),
    ] {
        let response = send(at, path, &long).await;
        assert_eq!(response.headers()["x-head"], "kept");
        let collected = response.into_body().collect().await.unwrap();
        let trailers = collected.trailers().unwrap().clone();
        assert_eq!(
            (&trailers["grpc-status"], &trailers["x-later"]),
            (&"0".parse().unwrap(), &"kept".parse().unwrap())
        );
        assert!(collected.to_bytes().ends_with(UNKNOWN), "{path}");
        let (seen, headers, bytes) = containerd.seen.lock().unwrap().pop().unwrap();
        assert_eq!(
            (seen.as_str(), &headers["x-caller"], headers.contains_key("te")),
            (path, &"kept".parse().unwrap(), true)
        );
        assert_eq!(bytes, framed(&long));
    }

    // An error is containerd's own, with everything behind it.
    let mut cri = lab.cri().await;
    let error = cri.pull_image(pull("r.example/bad", "u", "p")).await.unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::NotFound, "no such image"));
    assert!(!error.details().is_empty());
    // The snapshots API is still there.
    let mut snapshots =
        proto::containerd::snapshots::snapshots_client::SnapshotsClient::new(channel(&socket).await);
    assert_eq!(
        snapshots
            .stat(proto::containerd::snapshots::StatSnapshotRequest::default())
            .await
            .unwrap_err()
            .code(),
        Code::NotFound
    );

    // Containerd goes, and comes back.
    drop(containerd);
    std::fs::remove_file(dir.path().join("containerd.sock")).unwrap();
    let error = loop {
        match cri.list_images(ListImagesRequest::default()).await {
            Err(error) if error.code() == Code::Unavailable => break error,
            // The connection is still being taken down.
            _ => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    assert_eq!(error.code(), Code::Unavailable);
    let _containerd = Containerd::start(&dir.path().join("containerd.sock"));
    for attempt in 0.. {
        let Err(error) = cri.list_images(ListImagesRequest::default()).await else { break };
        assert!(attempt < 100, "containerd is back and is not found: {error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    lab.stop().await;
    assert!(!dir.path().join("cri.sock").exists(), "its own socket goes with it");
}

/// A registry that knows one user.
async fn registry_of(user: &str) -> web::Server {
    let good = format!("Basic {}", STANDARD.encode(format!("{user}:{CANARY}")));
    let (manifest, _) = web::image(&web::noise(10));
    web::Server::start(move |seen, _| {
        let answer = if seen.header("authorization") == Some(good.as_str()) {
            let answer = http::Response::builder().header("content-type", media_type::OCI_MANIFEST);
            answer.body(web::full(manifest.clone())).unwrap()
        } else {
            let answer =
                http::Response::builder().status(401).header("www-authenticate", "Basic realm=\"t\"");
            answer.body(web::full("")).unwrap()
        };
        async move { answer }
    })
    .await
}

/// Everything that is logged, at every level.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The canary as it was given, and in base64 at each offset.
fn holds_canary(text: &[u8]) -> bool {
    let mut forms = vec![CANARY.as_bytes().to_vec()];
    for prefix in ["", "a", "aa"] {
        let encoded = STANDARD.encode(format!("{prefix}{CANARY}"));
        forms.push(encoded.trim_end_matches('=').as_bytes()[4..16].to_vec());
    }
    forms.iter().any(|form| text.windows(form.len()).any(|window| window == form))
}

fn files_below(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            files_below(&entry.path(), found);
        } else if kind.is_file() {
            found.push(entry.path());
        }
    }
}

#[tokio::test]
async fn what_came_with_a_pull_is_good_after_a_restart_and_is_nowhere_else() {
    if !is_root() {
        return;
    }
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    let _listening = tracing::subscriber::set_default(subscriber);

    let dir = tempfile::tempdir().unwrap();
    let _containerd = Containerd::start(&dir.path().join("containerd.sock"));
    let mut lab = Lab::start(dir.path()).await;
    let registry = registry_of("pod").await;
    let image: Reference = format!("{}/team/app:1", registry.host()).parse().unwrap();
    assert!(lab.client.manifest(&image).await.is_err());

    let mut cri = lab.cri().await;
    cri.pull_image(pull(&image.to_string(), "pod", CANARY)).await.unwrap();
    lab.client.manifest(&image).await.unwrap();
    // Another repository of that registry is another affair; so is the same one with a secret that is wrong, or a pull
    // that fails.
    let other: Reference = format!("{}/team/other:1", registry.host()).parse().unwrap();
    assert!(lab.client.manifest(&other).await.is_err());
    cri.pull_image(pull(&image.to_string(), "pod", "wrong")).await.unwrap();
    cri.pull_image(pull(&format!("{}/bad:1", registry.host()), "pod", CANARY)).await.unwrap_err();
    let metrics = lab.running.as_ref().unwrap().handle().metrics();
    lab.stop().await;

    let mut lab = Lab::start(dir.path()).await;
    lab.client.manifest(&image).await.unwrap();
    let bad: Reference = format!("{}/bad:1", registry.host()).parse().unwrap();
    assert!(lab.client.manifest(&bad).await.is_err(), "that pull had failed");
    lab.stop().await;

    let kept = dir.path().join("root/credentials.json");
    assert!(holds_canary(&std::fs::read(&kept).unwrap()), "the search finds what it should");
    let mut files = Vec::new();
    files_below(dir.path(), &mut files);
    for file in files.iter().filter(|file| **file != kept) {
        assert!(!holds_canary(&std::fs::read(file).unwrap()), "{}", file.display());
    }
    assert!(!holds_canary(metrics.as_bytes()));
    let log = log.0.lock().unwrap();
    assert!(String::from_utf8_lossy(&log).contains("an image is pulled by CRI"), "nothing was logged");
    assert!(!holds_canary(&log), "{}", String::from_utf8_lossy(&log));
    assert!(pull("a", "u", "p").encoded_len() > 0);
}
