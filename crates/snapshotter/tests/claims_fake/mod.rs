//! A containerd that has images, and nothing else: list, documents, namespaces, events.
#![allow(clippy::unwrap_used, reason = "helpers of tests, which may stop where they fail")]

use std::collections::HashMap;
use std::convert::Infallible;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use content::Digest;
use futures::Stream;
use proto::containerd::content::content_server::{Content, ContentServer};
use proto::containerd::events::events_server::{Events, EventsServer};
use proto::containerd::images::images_server::{Images, ImagesServer};
use proto::containerd::namespaces::namespaces_server::{Namespaces, NamespacesServer};
use proto::containerd::{content as blobs, events, images, namespaces, types};
use tokio::net::UnixListener;
use tokio::sync::broadcast;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::{Request, Response, Status, Streaming};

type Boxed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What it has. Namespaces are not kept apart but by the list of images.
pub struct Fake {
    images: Mutex<Vec<(String, images::Image)>>,
    documents: Mutex<HashMap<String, Vec<u8>>>,
    told: broadcast::Sender<String>,
}

/// A layer as an image claims it.
#[derive(Debug, Clone)]
pub struct Claimed {
    pub layer: Digest,
    pub toc: Option<Digest>,
    pub diff_id: Digest,
}

impl Fake {
    pub fn new() -> Arc<Self> {
        let (told, _) = broadcast::channel(64);
        Arc::new(Self { images: Mutex::default(), documents: Mutex::default(), told })
    }

    /// Serves on `socket` until it is told to stop.
    pub fn serve(self: &Arc<Self>, socket: &Path) -> CancellationToken {
        let listener = UnixListener::bind(socket).unwrap();
        let stop = CancellationToken::new();
        let (this, stopped) = (Arc::clone(self), stop.clone());
        tokio::spawn(async move {
            let faces = Faces {
                images: ImagesServer::new(Service(Arc::clone(&this))),
                content: ContentServer::new(Service(Arc::clone(&this))),
                namespaces: NamespacesServer::new(Service(Arc::clone(&this))),
                events: EventsServer::new(Service(this)),
            };
            let incoming = UnixListenerStream::new(listener);
            let server = tonic::transport::Server::builder().serve_with_incoming(faces, incoming);
            tokio::select! {
                served = server => served.unwrap(),
                () = stopped.cancelled() => {}
            }
        });
        stop
    }

    fn keep(&self, document: &serde_json::Value) -> String {
        let bytes = document.to_string().into_bytes();
        let digest = Digest::of(&bytes).to_string();
        self.documents.lock().unwrap().insert(digest.clone(), bytes);
        digest
    }

    /// An image of these layers, and the event that tells of it.
    pub fn add(&self, namespace: &str, name: &str, layers: &[Claimed]) {
        let diff_ids: Vec<_> = layers.iter().map(|layer| layer.diff_id).collect();
        let config = self.keep(&serde_json::json!({"rootfs": {"diff_ids": diff_ids}, "of": name}));
        let layer = |layer: &Claimed| {
            let toc = layer.toc.map(|toc| ("containerd.io/snapshot/stargz/toc.digest", toc.to_string()));
            let annotations: HashMap<_, _> = toc.into_iter().collect();
            serde_json::json!({"digest": layer.layer, "mediaType": "x", "annotations": annotations})
        };
        let layers: Vec<_> = layers.iter().map(layer).collect();
        let manifest = self.keep(&serde_json::json!({"config": {"digest": config}, "layers": layers}));
        let target = types::Descriptor { digest: manifest, size: 1, ..Default::default() };
        let image = images::Image { name: name.into(), target: Some(target), ..Default::default() };
        self.images.lock().unwrap().push((namespace.to_owned(), image));
        drop(self.told.send(namespace.to_owned()));
    }
}

struct Service(Arc<Fake>);

/// The services behind one socket.
#[derive(Clone)]
struct Faces {
    images: ImagesServer<Service>,
    content: ContentServer<Service>,
    namespaces: NamespacesServer<Service>,
    events: EventsServer<Service>,
}

type Answer = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

impl tower::Service<http::Request<Body>> for Faces {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Answer {
        let path = request.uri().path().to_owned();
        match path.split('.').nth(2) {
            Some("images") => tower::Service::call(&mut self.images, request),
            Some("content") => tower::Service::call(&mut self.content, request),
            Some("namespaces") => tower::Service::call(&mut self.namespaces, request),
            _ => tower::Service::call(&mut self.events, request),
        }
    }
}

impl tonic::server::NamedService for Faces {
    const NAME: &'static str = "containerd";
}

fn namespace<T>(request: &Request<T>) -> String {
    request.metadata().get("containerd-namespace").unwrap().to_str().unwrap().to_owned()
}

#[tonic::async_trait]
impl Images for Service {
    async fn get(
        &self,
        _: Request<images::GetImageRequest>,
    ) -> Result<Response<images::GetImageResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list(
        &self,
        request: Request<images::ListImagesRequest>,
    ) -> Result<Response<images::ListImagesResponse>, Status> {
        let wanted = namespace(&request);
        let all = self.0.images.lock().unwrap();
        let images = all.iter().filter(|(namespace, _)| *namespace == wanted).map(|(_, image)| image.clone());
        Ok(Response::new(images::ListImagesResponse { images: images.collect() }))
    }

    async fn create(
        &self,
        _: Request<images::CreateImageRequest>,
    ) -> Result<Response<images::CreateImageResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn update(
        &self,
        _: Request<images::UpdateImageRequest>,
    ) -> Result<Response<images::UpdateImageResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

#[tonic::async_trait]
impl Content for Service {
    type ReadStream = Boxed<blobs::ReadContentResponse>;
    type WriteStream = Boxed<blobs::WriteContentResponse>;

    async fn info(&self, _: Request<blobs::InfoRequest>) -> Result<Response<blobs::InfoResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn update(
        &self,
        _: Request<blobs::UpdateRequest>,
    ) -> Result<Response<blobs::UpdateResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn read(
        &self,
        request: Request<blobs::ReadContentRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        let found = self.0.documents.lock().unwrap().get(&request.get_ref().digest).cloned();
        let data = found.ok_or_else(|| Status::not_found("no such blob"))?.into();
        let piece = blobs::ReadContentResponse { offset: 0, data };
        Ok(Response::new(Box::pin(futures::stream::iter([Ok(piece)]))))
    }

    async fn status(
        &self,
        _: Request<blobs::StatusRequest>,
    ) -> Result<Response<blobs::StatusResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn write(
        &self,
        _: Request<Streaming<blobs::WriteContentRequest>>,
    ) -> Result<Response<Self::WriteStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn abort(&self, _: Request<blobs::AbortRequest>) -> Result<Response<()>, Status> {
        Err(Status::unimplemented(""))
    }
}

#[tonic::async_trait]
impl Namespaces for Service {
    async fn list(
        &self,
        _: Request<namespaces::ListNamespacesRequest>,
    ) -> Result<Response<namespaces::ListNamespacesResponse>, Status> {
        let mut names: Vec<String> =
            self.0.images.lock().unwrap().iter().map(|(namespace, _)| namespace.clone()).collect();
        names.sort();
        names.dedup();
        let namespaces =
            names.into_iter().map(|name| namespaces::Namespace { name, ..Default::default() }).collect();
        Ok(Response::new(namespaces::ListNamespacesResponse { namespaces }))
    }
}

#[tonic::async_trait]
impl Events for Service {
    type SubscribeStream = Boxed<events::Envelope>;

    async fn subscribe(
        &self,
        _: Request<events::SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let told = self.0.told.subscribe();
        let stream = futures::stream::unfold(told, |mut told| async move {
            let namespace = told.recv().await.ok()?;
            let topic = "/images/create".into();
            Some((Ok(events::Envelope { namespace, topic, ..Default::default() }), told))
        });
        Ok(Response::new(Box::pin(stream)))
    }
}
