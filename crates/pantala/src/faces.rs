//! The two faces of the snapshotter that stargz-snapshotter has too: `metrics_address` and `debug_address`.
//!
//! * `metrics_address`: a TCP address or the path of a Unix socket; `GET /metrics` for Prometheus.
//! * `debug_address`: the path of a Unix socket, for root and its group; `GET /healthz`, `/readyz`, `/status` (what
//!   `pantala status --output json` prints), `/metrics`, `/log-level`, and `PUT /log-level` with a level as its body. Go's
//!   profiles under `/debug/pprof` have no equal here, and whoever asks for them is told so.

use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::{Answers, Reply, not_found, reply, serve_one};
use crate::unix::UnixFace;

/// Connections of one face at once; more wait to be accepted.
const CONNECTIONS: usize = 32;
/// A level is a short word.
const LONGEST_LEVEL: usize = 200;
/// Who may speak to the debug socket: root and its group, as upstream has it.
const DEBUG_MODE: u32 = 0o660;
/// Numbers are no secret, but a Unix socket is chosen to keep them on the machine.
const METRICS_MODE: u32 = 0o660;

/// Where somebody listens.
enum Listener {
    Tcp(TcpListener),
    Unix(UnixFace),
}

/// The faces that a configuration wants, bound: whatever is wrong with an address is told at the start.
#[derive(Default)]
pub struct Faces {
    metrics: Option<Listener>,
    debug: Option<Listener>,
}

impl Faces {
    /// Listens where `config` says. To be called inside a runtime.
    ///
    /// # Errors
    /// With the key, and what to do about it.
    pub fn bind(config: &snapshotter::Config) -> anyhow::Result<Self> {
        let metrics = config.metrics_address.as_deref().filter(|_| !config.no_prometheus);
        let metrics = metrics.filter(|address| !address.is_empty()).map(|address| {
            listen(address, METRICS_MODE).with_context(|| {
                format!(
                    "metrics_address = {address:?}: write a free host:port of this machine, or the path of a socket"
                )
            })
        });
        let debug = config.debug_address.as_deref().filter(|address| !address.is_empty()).map(|address| {
            let address = Path::new(address.strip_prefix("unix://").unwrap_or(address));
            unix(address, DEBUG_MODE).with_context(|| {
                format!(
                    "debug_address = {:?}: write the path of a socket in a directory of root's",
                    address.display()
                )
            })
        });
        Ok(Self { metrics: metrics.transpose()?, debug: debug.transpose()? })
    }

    /// Serves them until `shutdown`, in `tasks`.
    pub fn serve(self, answers: &Arc<dyn Answers>, tasks: &TaskTracker, shutdown: &CancellationToken) {
        if let Some(listener) = self.metrics {
            tasks.spawn(serve(listener, Arc::clone(answers), false, shutdown.clone()));
        }
        if let Some(listener) = self.debug {
            tasks.spawn(serve(listener, Arc::clone(answers), true, shutdown.clone()));
        }
    }
}

/// A path begins with a slash, or with the scheme `unix`; anything else is `host:port`.
fn listen(address: &str, mode: u32) -> anyhow::Result<Listener> {
    let path = address.strip_prefix("unix://").or_else(|| address.starts_with('/').then_some(address));
    if let Some(path) = path {
        return unix(Path::new(path), mode);
    }
    // Go takes ":9090" for every address of the machine.
    let full = if address.starts_with(':') { format!("[::]{address}") } else { address.to_owned() };
    let bound = std::net::TcpListener::bind(&full).or_else(|error| match full.strip_prefix("[::]") {
        // A machine without IPv6.
        Some(port) => std::net::TcpListener::bind(format!("0.0.0.0{port}")),
        None => Err(error),
    })?;
    bound.set_nonblocking(true)?;
    Ok(Listener::Tcp(TcpListener::from_std(bound)?))
}

fn unix(path: &Path, mode: u32) -> anyhow::Result<Listener> {
    if let Some(dir) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o711).create(dir)?;
    }
    Ok(Listener::Unix(UnixFace::bind(path, mode)?))
}

/// One connection.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

impl Listener {
    async fn accept(&self) -> std::io::Result<Box<dyn Stream>> {
        Ok(match self {
            Self::Tcp(listener) => Box::new(listener.accept().await?.0),
            Self::Unix(face) => Box::new(face.accept().await?),
        })
    }
}

async fn serve(listener: Listener, answers: Arc<dyn Answers>, debug: bool, shutdown: CancellationToken) {
    let connections = TaskTracker::new();
    let places = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS));
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        match shutdown.run_until_cancelled(listener.accept()).await {
            None => break,
            Some(Ok(stream)) => {
                let answers = Arc::clone(&answers);
                let answer = move |request| answer(request, Arc::clone(&answers), debug);
                let serving = serve_one(stream, shutdown.clone(), answer);
                connections.spawn(async move {
                    serving.await;
                    drop(place);
                });
            }
            // Out of descriptors, say: that passes.
            Some(Err(error)) => {
                tracing::warn!(%error, "a connection for metrics or debugging cannot be accepted");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
    connections.close();
    connections.wait().await;
}

const TEXT: &str = "text/plain; charset=utf-8";
/// What is here instead of Go's profiles.
const NO_PPROF: &str = "this is no Go program and has no profiles; here are /healthz, /readyz, /status, /metrics and \
                        /log-level. For a profile: perf record -g -p <pid>\n";

async fn answer(request: Request<Incoming>, answers: Arc<dyn Answers>, debug: bool) -> Reply {
    match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => {
            match tokio::task::spawn_blocking(move || answers.metrics()).await {
                Ok(page) => reply(StatusCode::OK, telemetry::metrics::CONTENT_TYPE, page),
                Err(error) => reply(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{error}\n")),
            }
        }
        _ if !debug => not_found(),
        (&Method::GET | &Method::HEAD, "/healthz") => reply(StatusCode::OK, TEXT, "ok\n"),
        (&Method::GET | &Method::HEAD, "/readyz") => {
            if answers.ready() {
                reply(StatusCode::OK, TEXT, "ok\n")
            } else {
                reply(StatusCode::SERVICE_UNAVAILABLE, TEXT, "containerd is not answered\n")
            }
        }
        (&Method::GET, "/status") => match serde_json::to_vec(&answers.status().await) {
            Ok(body) => reply(StatusCode::OK, "application/json", body),
            Err(error) => reply(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{error}\n")),
        },
        (&Method::GET, "/log-level") => reply(StatusCode::OK, TEXT, telemetry::log_level() + "\n"),
        (&Method::PUT | &Method::POST, "/log-level") => set_level(request).await,
        (_, path) if path.starts_with("/debug/") => reply(StatusCode::NOT_FOUND, TEXT, NO_PPROF),
        _ => not_found(),
    }
}

async fn set_level(request: Request<Incoming>) -> Reply {
    let refused = |text: String| reply(StatusCode::BAD_REQUEST, TEXT, text + "\n");
    let body = match Limited::new(request.into_body(), LONGEST_LEVEL).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return refused(error.to_string()),
    };
    let level = String::from_utf8_lossy(&body);
    match telemetry::set_log_level(level.trim()) {
        Ok(()) => {
            tracing::info!(to = level.trim(), "the log level was changed");
            reply(StatusCode::OK, TEXT, telemetry::log_level() + "\n")
        }
        Err(error) => refused(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpStream, UnixStream};

    use super::*;
    use crate::status::Status;

    struct Fixed;

    #[async_trait::async_trait]
    impl Answers for Fixed {
        async fn status(&self) -> Status {
            Status { hostname: "alpha".into(), ..Status::default() }
        }
        fn connected(&self) -> bool {
            true
        }
        fn metrics(&self) -> String {
            "stargz_fs_layer_size_bytes 1\n".into()
        }
    }

    async fn ask(stream: impl AsyncReadExt + AsyncWriteExt + Unpin, request: &str) -> String {
        let mut stream = stream;
        let request = format!("{request}\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn metrics_are_on_one_address_and_everything_is_on_the_other() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("run/debug.sock");
        let config = snapshotter::Config {
            metrics_address: Some("127.0.0.1:0".into()),
            debug_address: Some(socket.display().to_string()),
            ..snapshotter::Config::default()
        };
        let faces = Faces::bind(&config).unwrap();
        let Some(Listener::Tcp(tcp)) = &faces.metrics else { panic!("no TCP listener") };
        let address = tcp.local_addr().unwrap();
        assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o660);
        assert!(Faces::bind(&config).is_err(), "a living socket was taken away");
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        let answers: Arc<dyn Answers> = Arc::new(Fixed);
        faces.serve(&answers, &tasks, &shutdown);

        let page = ask(TcpStream::connect(address).await.unwrap(), "GET /metrics HTTP/1.1").await;
        assert!(page.starts_with("HTTP/1.1 200") && page.contains("version=0.0.4"), "{page}");
        assert!(page.ends_with("stargz_fs_layer_size_bytes 1\n"), "{page}");
        let refused = ask(TcpStream::connect(address).await.unwrap(), "GET /status HTTP/1.1").await;
        assert!(refused.starts_with("HTTP/1.1 404"), "{refused}");
        for (path, expected) in [
            ("/healthz", "ok"),
            ("/readyz", "ok"),
            ("/status", "\"alpha\""),
            ("/debug/pprof/heap", "perf record"),
        ] {
            let said =
                ask(UnixStream::connect(&socket).await.unwrap(), &format!("GET {path} HTTP/1.1")).await;
            assert!(said.contains(expected), "{path}: {said}");
        }
        shutdown.cancel();
        tasks.close();
        tasks.wait().await;
        assert!(!socket.exists());
    }

    #[tokio::test]
    async fn an_address_that_cannot_be_had_is_told_with_its_key() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap().to_string();
        let config = snapshotter::Config { metrics_address: Some(address), ..snapshotter::Config::default() };
        let Err(error) = Faces::bind(&config) else { panic!("it listens twice") };
        assert!(error.to_string().contains("metrics_address"), "{error}");
        let config = snapshotter::Config { no_prometheus: true, ..config };
        assert!(Faces::bind(&config).unwrap().metrics.is_none());
    }
}
