//! Servers to test against: Debian's registry, and ones that misbehave on purpose.
// Each test file uses its part; and clippy's exemption of tests does not reach helpers.
#![allow(
    dead_code,
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use content::Digest;
use futures::stream;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

pub type Body = BoxBody<Bytes, std::io::Error>;

/// What a server was asked.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: Method,
    pub path: String,
    pub query: String,
    pub headers: HeaderMap,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// A server on a loopback port that remembers what it was asked.
pub struct Server {
    pub address: SocketAddr,
    pub seen: Arc<Mutex<Vec<Seen>>>,
    task: JoinHandle<()>,
}

impl Server {
    /// Answers every request by `answer`, which is told how many came before.
    pub async fn start<F, R>(answer: F) -> Self
    where
        F: Fn(Seen, usize) -> R + Send + Sync + 'static,
        R: Future<Output = Response<Body>> + Send,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let answer = Arc::new(answer);
        let log = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (answer, log) = (Arc::clone(&answer), Arc::clone(&log));
                let service = service_fn(move |request: Request<Incoming>| {
                    let (answer, log) = (Arc::clone(&answer), Arc::clone(&log));
                    async move {
                        let seen = Seen {
                            method: request.method().clone(),
                            path: request.uri().path().to_owned(),
                            query: request.uri().query().unwrap_or_default().to_owned(),
                            headers: request.headers().clone(),
                        };
                        let before = {
                            let mut log = log.lock().unwrap();
                            log.push(seen.clone());
                            log.len() - 1
                        };
                        Ok::<_, Infallible>(answer(seen, before).await)
                    }
                });
                tokio::spawn(async move {
                    let server = auto::Builder::new(TokioExecutor::new());
                    let _ = server.serve_connection(TokioIo::new(tcp), service).await;
                });
            }
        });
        Self { address, seen, task }
    }

    pub fn host(&self) -> String {
        self.address.to_string()
    }

    pub fn requests(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}

/// A body that breaks the connection after `bytes`, which are on their way before it does.
pub fn broken(bytes: Bytes) -> Body {
    let parts = stream::unfold(Some(bytes), |bytes| async move {
        if let Some(bytes) = bytes {
            return Some((Ok(Frame::data(bytes)), None));
        }
        // While the body is pending, the server flushes what it has.
        tokio::task::yield_now().await;
        Some((Err(std::io::Error::other("broken on purpose")), None))
    });
    BodyExt::boxed(StreamBody::new(Box::pin(parts)))
}

/// A body without a length.
pub fn chunked(bytes: &Bytes) -> Body {
    let parts: Vec<_> =
        bytes.chunks(1000).map(|part| Ok(Frame::data(Bytes::copy_from_slice(part)))).collect();
    BodyExt::boxed(StreamBody::new(stream::iter(parts)))
}

pub fn status(status: u16) -> Response<Body> {
    Response::builder().status(StatusCode::from_u16(status).unwrap()).body(full("")).unwrap()
}

/// What a good server answers to a request for `blob`, ranges included.
pub fn serve_blob(seen: &Seen, blob: &Bytes) -> Response<Body> {
    let len = blob.len();
    let Some(range) = seen.header("range").and_then(|range| range.strip_prefix("bytes=")) else {
        return Response::builder().header("content-length", len).body(full(blob.clone())).unwrap();
    };
    let (first, last) = range.split_once('-').unwrap();
    let (start, end) = match (first.parse::<usize>(), last.parse::<usize>()) {
        (Ok(first), Ok(last)) => (first, (last + 1).min(len)),
        (Ok(first), Err(_)) => (first, len),
        (Err(_), Ok(suffix)) => (len.saturating_sub(suffix), len),
        _ => panic!("range {range}"),
    };
    if start >= end {
        let answer = Response::builder().status(416).header("content-range", format!("bytes */{len}"));
        return answer.body(full("")).unwrap();
    }
    Response::builder()
        .status(206)
        .header("content-range", format!("bytes {start}-{}/{len}", end - 1))
        .body(full(blob.slice(start..end)))
        .unwrap()
}

/// Bytes without a pattern that a mistake in offsets could hide in.
pub fn noise(len: usize) -> Bytes {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let bytes = (0..len).map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[4]
    });
    bytes.collect()
}

/// Debian's `docker-registry` on a free port; its data goes when it is dropped.
pub struct RealRegistry {
    pub host: String,
    child: Child,
    _folder: tempfile::TempDir,
}

impl RealRegistry {
    /// `None`, with a word on standard error, if the binary is not installed.
    pub fn start(password: bool) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let auth = if password {
            // htpasswd of user `user` with password `secret`, bcrypt.
            let file = folder.path().join("htpasswd");
            std::fs::write(&file, HTPASSWD).unwrap();
            format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", file.display())
        } else {
            String::new()
        };
        let config = format!(
            "version: 0.1\nlog:\n  level: info\n  formatter: json\nstorage:\n  filesystem:\n    rootdirectory: {}\n  \
             delete:\n    enabled: true\nhttp:\n  addr: 127.0.0.1:0\n{auth}",
            folder.path().join("data").display()
        );
        let path = folder.path().join("config.yml");
        std::fs::write(&path, config).unwrap();
        let spawned = Command::new("docker-registry")
            .arg("serve")
            .arg(&path)
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = match spawned {
            Ok(child) => child,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                eprintln!("SKIPPED: docker-registry is not installed (apt-get install docker-registry)");
                return None;
            }
            Err(error) => panic!("docker-registry: {error}"),
        };
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = loop {
            let line = lines.next().expect("docker-registry ended").unwrap();
            if let Some((_, rest)) = line.split_once("listening on ") {
                break rest.chars().take_while(|c| c.is_ascii_digit() || matches!(c, '.' | ':')).collect();
            }
        };
        // Its log is read to the end, so that it never waits for us.
        std::thread::spawn(move || lines.for_each(drop));
        Some(Self { host: address, child, _folder: folder })
    }
}

impl Drop for RealRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const HTPASSWD: &str = "user:$2y$04$A2ceHBuRzd35sN/MHqoi2OMKl5nccuC9YHX7TiGcaODcKym/J3aFu\n";

/// A manifest of one layer, with the bytes of its blobs by digest.
pub fn image(layer: &Bytes) -> (Bytes, HashMap<Digest, Bytes>) {
    let config = Bytes::from_static(
        br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]},"config":{}}"#,
    );
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": registry::media_type::OCI_MANIFEST,
        "config": {"mediaType": registry::media_type::OCI_CONFIG,
                   "digest": Digest::of(&config), "size": config.len()},
        "layers": [{"mediaType": registry::media_type::OCI_LAYER_GZIP,
                    "digest": Digest::of(layer), "size": layer.len()}],
    });
    let blobs = [config, layer.clone()].map(|bytes| (Digest::of(&bytes), bytes));
    (Bytes::from(manifest.to_string()), HashMap::from(blobs))
}
