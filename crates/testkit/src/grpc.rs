//! gRPC over Unix sockets, for a lab that waits for each answer.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

/// One connection, and the threads that work for it.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    pub(crate) channel: Channel,
    runtime: Arc<tokio::runtime::Runtime>,
}

impl Connection {
    /// Connects to `socket`, again with each call if it was lost.
    pub(crate) fn new(socket: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let at = socket.to_owned();
        let connector = tower::service_fn(move |_: Uri| {
            let at = at.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(at).await?)) }
        });
        let endpoint = Endpoint::from_static("http://socket.invalid");
        let channel = runtime
            .block_on(endpoint.connect_with_connector(connector))
            .with_context(|| format!("nobody listens at {}", socket.display()))?;
        Ok(Self { channel, runtime: Arc::new(runtime) })
    }

    /// Waits for an answer.
    pub(crate) fn wait<T>(&self, answer: impl Future<Output = T>) -> T {
        self.runtime.block_on(answer)
    }
}
