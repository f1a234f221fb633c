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
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

pub type Body = BoxBody<Bytes, std::io::Error>;

/// What a server was asked.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: Method,
    pub path: String,
    pub query: String,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// Whether a certificate was shown.
    pub identified: bool,
}

impl Seen {
    /// The value of `name` in the query.
    pub fn query(&self, name: &str) -> Option<String> {
        let mut pairs = url::form_urlencoded::parse(self.query.as_bytes());
        pairs.find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
    }

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
        R: Future<Output = Response<Body>> + Send + 'static,
    {
        Self::start_with(|tcp| async { Some((tcp, false)) }, answer).await
    }

    /// The same behind a handshake, which tells whether a certificate was shown.
    pub async fn start_with<H, S, T, F, R>(handshake: H, answer: F) -> Self
    where
        H: Fn(TcpStream) -> S + Send + Sync + 'static,
        S: Future<Output = Option<(T, bool)>> + Send + 'static,
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        F: Fn(Seen, usize) -> R + Send + Sync + 'static,
        R: Future<Output = Response<Body>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let answer = Arc::new(answer);
        let log = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (answer, log) = (Arc::clone(&answer), Arc::clone(&log));
                let connected = handshake(tcp);
                tokio::spawn(async move {
                    let Some((stream, identified)) = connected.await else { return };
                    serve_connection(stream, identified, answer, log).await;
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

async fn serve_connection<S, F, R>(stream: S, identified: bool, answer: Arc<F>, log: Arc<Mutex<Vec<Seen>>>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Fn(Seen, usize) -> R + Send + Sync + 'static,
    R: Future<Output = Response<Body>> + Send + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let (answer, log) = (Arc::clone(&answer), Arc::clone(&log));
        async move {
            let (head, body) = request.into_parts();
            let seen = Seen {
                method: head.method,
                path: head.uri.path().to_owned(),
                query: head.uri.query().unwrap_or_default().to_owned(),
                headers: head.headers,
                body: body.collect().await.map_err(std::io::Error::other)?.to_bytes(),
                identified,
            };
            let before = {
                let mut log = log.lock().unwrap();
                log.push(seen.clone());
                log.len() - 1
            };
            let answer = answer(seen, before).await;
            match answer.extensions().get::<HangUp>() {
                Some(HangUp) => Err(std::io::Error::other("hung up on purpose")),
                None => Ok(answer),
            }
        }
    });
    let server = auto::Builder::new(TokioExecutor::new());
    let _ = server.serve_connection(TokioIo::new(stream), service).await;
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

/// A body that sends `bytes` and then nothing, for ever.
pub fn stalled(bytes: Bytes) -> Body {
    let first = stream::iter([Ok(Frame::data(bytes))]);
    BodyExt::boxed(StreamBody::new(Box::pin(futures::StreamExt::chain(first, stream::pending()))))
}

/// A body without a length.
pub fn chunked(bytes: &Bytes) -> Body {
    let parts: Vec<_> =
        bytes.chunks(1000).map(|part| Ok(Frame::data(Bytes::copy_from_slice(part)))).collect();
    BodyExt::boxed(StreamBody::new(stream::iter(parts)))
}

#[derive(Clone, Copy)]
struct HangUp;

/// No answer: the connection is closed.
pub fn hang_up() -> Response<Body> {
    let mut answer = status(500);
    answer.extensions_mut().insert(HangUp);
    answer
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
    folder: tempfile::TempDir,
    auth: String,
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
        Self::start_in(folder, auth)
    }

    /// With the section `auth` of its configuration, and its files in `folder`.
    pub fn start_in(folder: tempfile::TempDir, auth: String) -> Option<Self> {
        let (host, child) = serve(folder.path(), "127.0.0.1:0", &auth)?;
        Some(Self { host, child, folder, auth })
    }

    /// Ends it as a power cut does.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Stops it as SIGSTOP does: the kernel goes on accepting connections for it.
    pub fn freeze(&self) {
        self.signal("STOP");
    }

    pub fn thaw(&self) {
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    /// Starts it again, at the same address and with the same files.
    pub fn restart(&mut self) {
        self.kill();
        (_, self.child) = serve(self.folder.path(), &self.host, &self.auth).unwrap();
    }
}

fn serve(folder: &std::path::Path, address: &str, auth: &str) -> Option<(String, Child)> {
    // Without a secret of its own, a restarted registry knows none of the uploads that it had open.
    let config = format!(
        "version: 0.1\nlog:\n  level: info\n  formatter: json\nstorage:\n  filesystem:\n    rootdirectory: {}\n  \
         delete:\n    enabled: true\nhttp:\n  addr: {address}\n  secret: of-this-test\n{auth}",
        folder.join("data").display()
    );
    let path = folder.join("config.yml");
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
    Some((address, child))
}

impl Drop for RealRegistry {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Forwards TCP connections to `to`, and cuts the one that carries byte `after` of all that go there.
pub struct Cutter {
    pub address: SocketAddr,
    /// How many connections were cut: one, or none yet.
    pub cuts: Arc<std::sync::atomic::AtomicUsize>,
    task: JoinHandle<()>,
}

impl Cutter {
    pub async fn start(to: String, after: usize) -> Self {
        use std::sync::atomic::{AtomicUsize, Ordering};
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let cuts = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&cuts);
        let carried = Arc::new(AtomicUsize::new(0));
        let task = tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let (to, count, carried) = (to.clone(), Arc::clone(&count), Arc::clone(&carried));
                tokio::spawn(async move {
                    let Ok(mut far) = TcpStream::connect(&to).await else { return };
                    let (mut near_in, mut near_out) = near.split();
                    let (mut far_in, mut far_out) = far.split();
                    let there = async {
                        let mut buffer = vec![0; 64 << 10];
                        while let Ok(size @ 1..) = near_in.read(&mut buffer).await {
                            let before = carried.fetch_add(size, Ordering::SeqCst);
                            if far_out.write_all(&buffer[..size]).await.is_err() {
                                return;
                            }
                            if before <= after && before + size > after {
                                count.fetch_add(1, Ordering::SeqCst);
                                return;
                            }
                        }
                    };
                    let back = tokio::io::copy(&mut far_in, &mut near_out);
                    // Whoever ends first ends both: the sockets are closed.
                    tokio::select! { () = there => {}, _ = back => {} }
                });
            }
        });
        Self { address, cuts, task }
    }

    pub fn host(&self) -> String {
        self.address.to_string()
    }
}

impl Drop for Cutter {
    fn drop(&mut self) {
        self.task.abort();
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
