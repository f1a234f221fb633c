//! CRI's image service, passed on to containerd.
//!
//! A kubelet that is told to find its image service here (`--image-service-endpoint`) talks with containerd as before:
//! each call of `runtime.v1.ImageService` goes through as it is, head, bytes and trailers, so that fields which nobody
//! here knows arrive as well, and errors too. Of one call, `PullImage`, a copy is read: whoever pulls an image shows the
//! credentials for it, and its layers will be read with them for as long as it is used
//! ([`crate::keychain::PulledKeychain`]).
//!
//! And when containerd says that the image is there, somebody may object before the kubelet is told ([`PullGuard`]).

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::{Context, Poll};

use async_trait::async_trait;
use bytes::{Buf, Bytes};
use futures::FutureExt;
use futures::future::BoxFuture;
use http::HeaderMap;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use prost::Message;
use proto::cri::PullImageRequest;
use tokio::net::UnixStream;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;
use tonic::body::Body;
use tonic::transport::{Channel, Endpoint, Server, Uri};
use tower::{Service, ServiceExt};

use crate::config::Config;
use crate::keychain::{Keychains, PulledKeychain};
use crate::socket::{Socket, SocketError};

/// What the paths of all calls begin with.
const SERVICE: &str = "/runtime.v1.ImageService/";
/// The call that is looked at.
const PULL: &str = "/runtime.v1.ImageService/PullImage";
/// The longest request of it, which is what containerd itself takes, and the longest answer to it.
const MAX_REQUEST: usize = 16 << 20;
const MAX_ANSWER: usize = 4 << 20;
/// What stands before a message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// Is asked before a kubelet is told that an image was pulled.
#[async_trait]
pub trait PullGuard: Send + Sync + 'static {
    /// `image` is as the kubelet named it, `resolved` as containerd calls it now.
    ///
    /// # Errors
    /// Why the image must not be used; the caller is told so.
    async fn pulled(&self, image: &str, resolved: &str) -> Result<(), String>;
}

/// What is served of CRI, and what is watched for it.
pub(crate) struct CriFace {
    keychains: Keychains,
    image_service: PathBuf,
    listen: Option<PathBuf>,
}

impl CriFace {
    /// As `config` says, with the keychains that the client of registries asks.
    pub(crate) fn new(keychains: Keychains, config: &Config) -> Self {
        let cri = config.keychains.cri.clone().unwrap_or_default();
        let image_service = cri.image_service.unwrap_or_else(|| config.containerd_address.clone());
        Self { keychains, image_service, listen: cri.listen }
    }

    /// Starts what needs starting, in `tasks`, until `stop`. The service, if it is wanted, is for the snapshotter's socket.
    ///
    /// # Errors
    /// That its own socket cannot be had.
    pub(crate) async fn start(
        self,
        guard: Option<Arc<dyn PullGuard>>,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<Option<ImageProxy>, SocketError> {
        self.keychains.start(tasks, stop);
        let Some(pulled) = self.keychains.pulled() else { return Ok(None) };
        let proxy = ImageProxy::new(&self.image_service, Arc::clone(pulled), guard);
        if let Some(path) = &self.listen {
            proxy.clone().listen(path, tasks, stop.clone()).await?;
        }
        tracing::info!(containerd = %self.image_service.display(), "CRI's image service is passed on");
        Ok(Some(proxy))
    }
}

/// The service. Cheap to clone.
#[derive(Clone)]
pub struct ImageProxy(Arc<Inner>);

struct Inner {
    containerd: Channel,
    path: PathBuf,
    keychain: Arc<PulledKeychain>,
    guard: Option<Arc<dyn PullGuard>>,
}

type Request = http::Request<Body>;
type Response = http::Response<Body>;

impl ImageProxy {
    /// Passes calls on to the socket at `containerd`, which need not be there yet.
    pub(crate) fn new(
        containerd: &Path,
        keychain: Arc<PulledKeychain>,
        guard: Option<Arc<dyn PullGuard>>,
    ) -> Self {
        let path = containerd.to_owned();
        let connector = {
            let path = path.clone();
            tower::service_fn(move |_: Uri| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            })
        };
        // The name is for the HTTP header only.
        let channel = Endpoint::from_static("http://containerd").connect_with_connector_lazy(connector);
        Self(Arc::new(Inner { containerd: channel, path, keychain, guard }))
    }

    /// Serves it alone on a socket of its own, in `tasks`, until `stop`.
    ///
    /// # Errors
    /// That the socket cannot be had.
    pub(crate) async fn listen(
        self,
        path: &Path,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Result<(), SocketError> {
        let (socket, listener) = Socket::bind(path).await?;
        tracing::info!(address = %path.display(), "CRI's image service has a socket of its own");
        tasks.spawn(async move {
            let incoming = UnixListenerStream::new(listener);
            // Not to the last call: a pull may go on for an hour.
            let serving = Server::builder().serve_with_incoming(self, incoming);
            if let Some(Err(error)) = stop.run_until_cancelled(serving).await {
                tracing::error!(%error, "serving CRI's image service failed");
            }
            drop(socket);
        });
        Ok(())
    }
}

/// The snapshots API, and CRI's image service beside it on one socket.
#[derive(Clone)]
pub(crate) struct Faces<S> {
    pub(crate) snapshots: S,
    pub(crate) images: Option<ImageProxy>,
}

impl<S> Service<Request> for Faces<S>
where
    S: Service<Request, Response = Response, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.snapshots.poll_ready(context)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        match &mut self.images {
            Some(images) if request.uri().path().starts_with(SERVICE) => images.call(request),
            _ => self.snapshots.call(request).boxed(),
        }
    }
}

impl Service<Request> for ImageProxy {
    type Response = Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let inner = Arc::clone(&self.0);
        async move {
            let answered = if request.uri().path() == PULL {
                inner.pull(request).await
            } else {
                inner.pass_on(request).await
            };
            Ok(answered.unwrap_or_else(Status::into_http))
        }
        .boxed()
    }
}

impl Inner {
    async fn pass_on(&self, request: Request) -> Result<Response, Status> {
        let answered = self.containerd.clone().oneshot(request).await;
        answered.map_err(|error| {
            use std::error::Error as _;
            let cause = error.source().map_or_else(|| error.to_string(), ToString::to_string);
            Status::unavailable(format!(
                "containerd's image service at {} does not answer: {cause}",
                self.path.display()
            ))
        })
    }

    async fn pull(&self, request: Request) -> Result<Response, Status> {
        let (head, body) = request.into_parts();
        let (bytes, trailers) = collect(body, MAX_REQUEST).await?;
        let asked = pull_request(&bytes);
        let image = asked.as_ref().and_then(|asked| asked.image.as_ref()).map(|spec| spec.image.clone());
        // Before containerd begins: it will want the layers while this call is under way.
        let auth = asked.and_then(|asked| asked.auth);
        let pulled =
            image.as_deref().zip(auth).and_then(|(image, auth)| self.keychain.remember(image, &auth));
        tracing::debug!(image, with_credentials = pulled.is_some(), "an image is pulled by CRI");
        let response = self.pass_on(Request::from_parts(head, body_of(bytes, trailers))).await?;
        let (head, body) = response.into_parts();
        // An answer without a body is an error, and has its status in the head.
        if head.headers.contains_key("grpc-status") || !head.status.is_success() {
            return Ok(Response::from_parts(head, body));
        }
        let (bytes, trailers) = collect(body, MAX_ANSWER).await?;
        let status = trailers.as_ref().and_then(|trailers| trailers.get("grpc-status"));
        if status.is_some_and(|status| status == "0") {
            if let Some(pulled) = pulled {
                pulled.keep().await;
            }
            if let (Some(guard), Some(image)) = (&self.guard, &image) {
                let resolved = message::<proto::cri::PullImageResponse>(&bytes).unwrap_or_default().image_ref;
                if let Err(reason) = guard.pulled(image, &resolved).await {
                    tracing::error!(image, reason, "a pulled image is refused");
                    return Err(Status::failed_precondition(reason));
                }
            }
        }
        Ok(Response::from_parts(head, body_of(bytes, trailers)))
    }
}

/// All of a body, and what stands behind it.
async fn collect(body: Body, at_most: usize) -> Result<(Bytes, Option<HeaderMap>), Status> {
    let collected = Limited::new(body, at_most.saturating_add(PREFIX)).collect().await;
    let collected = collected.map_err(|error| {
        if error.is::<http_body_util::LengthLimitError>() {
            return Status::resource_exhausted(format!("a message of more than {at_most} bytes"));
        }
        // What it is made from is an error of the wire, with a status of its own.
        error
            .downcast::<Status>()
            .map_or_else(|error| Status::unavailable(error.to_string()), |status| *status)
    })?;
    let trailers = collected.trailers().cloned();
    Ok((collected.to_bytes(), trailers))
}

fn body_of(bytes: Bytes, trailers: Option<HeaderMap>) -> Body {
    Body::new(Full::new(bytes).with_trailers(std::future::ready(trailers.map(Ok))))
}

/// The one message of a body. `None` if it is compressed or none.
fn message<T: Message + Default>(body: &Bytes) -> Option<T> {
    let mut rest = body.clone();
    if rest.len() < PREFIX {
        return None;
    }
    let (is_compressed, len) = (rest.get_u8(), usize::try_from(rest.get_u32()).ok()?);
    if is_compressed != 0 || rest.len() < len {
        return None;
    }
    T::decode(rest.split_to(len)).ok()
}

/// What a body of `PullImage` asks for.
pub(crate) fn pull_request(body: &Bytes) -> Option<PullImageRequest> {
    message(body)
}

/// For the fuzz target.
#[doc(hidden)]
pub fn fuzz_pull_request(body: &[u8]) {
    let _ = pull_request(&Bytes::copy_from_slice(body));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_is_cut_or_compressed_is_none() {
        let request = PullImageRequest {
            image: Some(proto::cri::ImageSpec { image: "a".into(), ..Default::default() }),
            ..Default::default()
        };
        let encoded = request.encode_to_vec();
        let framed = |flag: u8, len: usize| {
            let len = u32::try_from(len).unwrap();
            Bytes::from([&[flag][..], &len.to_be_bytes(), &encoded].concat())
        };
        assert_eq!(pull_request(&framed(0, encoded.len())), Some(request));
        assert_eq!(pull_request(&framed(1, encoded.len())), None);
        assert_eq!(pull_request(&framed(0, encoded.len() + 1)), None);
        assert_eq!(pull_request(&framed(0, 1 << 31)), None);
        assert_eq!(pull_request(&Bytes::from_static(b"\0\0")), None);
    }
}
