//! The two small faces of a service for its operator: health on a TCP port, status on a Unix socket. [`crate::faces`] has
//! the two of the snapshotter that stargz-snapshotter has too.
//!
//! Status names images and nodes, so only this machine's root may read it; health says nothing but that
//! the process lives and whether it sees its scheduler.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::status::Status;
use crate::unix::{UnixError, UnixFace};

/// Name of the status socket below a node's data directory.
pub const SOCKET_NAME: &str = "pantala.sock";

/// A client that says nothing for so long is gone.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Who answers.
#[async_trait::async_trait]
pub trait Answers: Send + Sync + 'static {
    /// What `pantala status` shows.
    async fn status(&self) -> Status;

    /// Whether a scheduler is connected, or none is configured.
    fn connected(&self) -> bool;

    /// Whether containerd is answered.
    fn ready(&self) -> bool {
        true
    }

    /// The page that Prometheus reads. Not for the threads of a runtime.
    fn metrics(&self) -> String {
        String::new()
    }
}

pub(crate) type Reply = Response<Full<Bytes>>;

pub(crate) fn reply(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    response
}

pub(crate) fn not_found() -> Reply {
    reply(StatusCode::NOT_FOUND, "text/plain", "not found\n")
}

/// Serves `GET /server/ping` and `GET /healthy` until `shutdown`.
pub async fn serve_health(listener: TcpListener, answers: Arc<dyn Answers>, shutdown: CancellationToken) {
    let connections = TaskTracker::new();
    while let Some(Ok((stream, _))) = shutdown.run_until_cancelled(listener.accept()).await {
        let answers = Arc::clone(&answers);
        connections.spawn(serve_one(stream, shutdown.clone(), move |request| {
            let answers = Arc::clone(&answers);
            async move {
                match (request.method(), request.uri().path()) {
                    (&Method::GET | &Method::HEAD, "/server/ping" | "/healthy") => {
                        let scheduler = if answers.connected() { "connected" } else { "not connected" };
                        reply(StatusCode::OK, "text/plain", format!("OK\nscheduler: {scheduler}\n"))
                    }
                    _ => not_found(),
                }
            }
        }));
    }
    connections.close();
    connections.wait().await;
}

/// A bound status socket; the file goes when this does.
pub struct StatusSocket(UnixFace);

impl StatusSocket {
    /// Binds the socket. One that was left behind by a killed process is replaced.
    ///
    /// # Errors
    /// If a living process answers there, or the directory is not writable.
    pub fn bind(path: &Path) -> anyhow::Result<Self> {
        match UnixFace::bind(path, 0o600) {
            Ok(face) => Ok(Self(face)),
            Err(UnixError::Taken) => anyhow::bail!(
                "another process answers on {}: stop it, or give this one its own dataDir (a snapshotter: --root)",
                path.display()
            ),
            Err(error) => {
                Err(error).with_context(|| format!("cannot listen on the status socket {}", path.display()))
            }
        }
    }

    /// Serves `GET /status` until `shutdown`, then removes the socket.
    pub async fn serve(self, answers: Arc<dyn Answers>, shutdown: CancellationToken) {
        let connections = TaskTracker::new();
        while let Some(Ok(stream)) = shutdown.run_until_cancelled(self.0.accept()).await {
            let answers = Arc::clone(&answers);
            connections.spawn(serve_one(stream, shutdown.clone(), move |request| {
                let answers = Arc::clone(&answers);
                async move {
                    if (request.method(), request.uri().path()) != (&Method::GET, "/status") {
                        return not_found();
                    }
                    match serde_json::to_vec(&answers.status().await) {
                        Ok(body) => reply(StatusCode::OK, "application/json", body),
                        Err(error) => {
                            reply(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", error.to_string())
                        }
                    }
                }
            }));
        }
        connections.close();
        connections.wait().await;
    }
}

pub(crate) async fn serve_one<S, H, F>(stream: S, shutdown: CancellationToken, handler: H)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Fn(Request<Incoming>) -> F,
    F: Future<Output = Reply> + Send,
{
    let service = service_fn(|request| {
        let answer = handler(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    // A client that breaks off is its own affair.
    let _ = shutdown.run_until_cancelled(connection).await;
}

/// Asks the node behind `socket` for its status.
///
/// # Errors
/// If nobody answers there.
pub async fn fetch_status(socket: &Path) -> anyhow::Result<Status> {
    let stream = UnixStream::connect(socket).await.map_err(|error| {
        let at = socket.display();
        if error.kind() == std::io::ErrorKind::PermissionDenied {
            anyhow::anyhow!("no access to {at}: only root may ask for the status")
        } else {
            anyhow::anyhow!(
                "nobody answers on {at} ({error}): start one of `pantala up`, `pantala node` and `pantala snapshotter`, or \
                 name its socket with --socket <dataDir or root>/{SOCKET_NAME}"
            )
        }
    })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let exchange = async {
        let request =
            Request::get("/status").header(header::HOST, "pantala").body(Full::<Bytes>::default())?;
        let response = sender.send_request(request).await?;
        anyhow::ensure!(response.status().is_success(), "the node answered {}", response.status());
        Ok(response.into_body().collect().await?.to_bytes())
    };
    // The exchange ends first; the connection only has to be driven meanwhile.
    tokio::pin!(connection);
    tokio::pin!(exchange);
    let body = loop {
        tokio::select! {
            result = &mut exchange => break result?,
            result = &mut connection => result.context("the node closed the connection")?,
        }
    };
    serde_json::from_slice(&body).context("the node's answer is not a status: is it another version?")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    struct Fixed;

    #[async_trait::async_trait]
    impl Answers for Fixed {
        async fn status(&self) -> Status {
            Status { hostname: "alpha".into(), uploaded: 7, ..Status::default() }
        }
        fn connected(&self) -> bool {
            true
        }
    }

    #[tokio::test]
    async fn status_is_answered_on_a_private_socket_that_goes_with_the_node() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(SOCKET_NAME);
        std::os::unix::net::UnixListener::bind(&path).unwrap(); // a killed node's
        let socket = StatusSocket::bind(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let shutdown = CancellationToken::new();
        let server = tokio::spawn(socket.serve(Arc::new(Fixed), shutdown.clone()));
        let status = fetch_status(&path).await.unwrap();
        assert_eq!((status.hostname.as_str(), status.uploaded), ("alpha", 7));
        let error = StatusSocket::bind(&path).err().unwrap().to_string();
        assert!(error.contains("another process answers"), "{error}");
        shutdown.cancel();
        server.await.unwrap();
        assert!(!path.exists());
        assert!(fetch_status(&path).await.unwrap_err().to_string().contains("nobody answers"));
    }
}
