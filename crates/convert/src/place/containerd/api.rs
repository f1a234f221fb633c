//! containerd's API, as far as it is needed: one connection, one namespace.

use std::path::{Path, PathBuf};
use std::time::Duration;

use content::Digest;
use proto::containerd::content::content_client::ContentClient;
use proto::containerd::content::{Info, InfoRequest};
use proto::containerd::images::GetImageRequest;
use proto::containerd::images::images_client::ImagesClient;
use proto::containerd::leases::leases_client::LeasesClient;
use proto::containerd::namespaces::ListNamespacesRequest;
use proto::containerd::namespaces::namespaces_client::NamespacesClient;
use proto::containerd::types;
use registry::Descriptor;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use crate::place::{Containerd, Place, PlaceError};

/// Longest message that is taken, in bytes; containerd sends no more than this.
const MAX_MESSAGE: usize = 16 << 20;
/// A socket of this machine answers at once or never.
const CONNECT: Duration = Duration::from_secs(5);
/// Bytes that containerd may send ahead of one reader. HTTP/2's own 64 KiB are a sixteenth of a message.
const WINDOW: u32 = 4 << 20;
/// Most namespaces in which an image is looked for that is not where it should be.
const MAX_NAMESPACES: usize = 20;

/// A connection to containerd, for one namespace. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Api {
    address: PathBuf,
    namespace: String,
    lease: Option<String>,
    channel: Channel,
}

impl Api {
    /// Connects.
    pub(super) async fn connect(
        containerd: &Containerd,
        namespace: Option<&String>,
    ) -> Result<Self, PlaceError> {
        let address = containerd.address.clone();
        let unreachable = |reason: String| PlaceError::NoContainerd { address: address.clone(), reason };
        let path =
            std::path::absolute(&containerd.address).map_err(|error| unreachable(error.to_string()))?;
        // The connection's own words about a missing socket say less than this.
        std::fs::metadata(&path).map_err(|error| unreachable(error.to_string()))?;
        let endpoint = Endpoint::from_shared(format!("unix://{}", path.display()))
            .map_err(|error| unreachable(error.to_string()))?
            .connect_timeout(CONNECT)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW * 4);
        let channel = endpoint.connect().await.map_err(|error| unreachable(innermost(&error)))?;
        let namespace = namespace.unwrap_or(&containerd.namespace).clone();
        Ok(Self { address, namespace, lease: None, channel })
    }

    /// The same connection; what is made over it belongs to `lease`.
    pub(super) fn with_lease(&self, lease: String) -> Self {
        Self { lease: Some(lease), ..self.clone() }
    }

    /// The same connection for another namespace.
    fn in_namespace(&self, namespace: String) -> Self {
        Self { namespace, ..self.clone() }
    }

    /// The lease that is held.
    pub(super) fn lease(&self) -> Option<&str> {
        self.lease.as_deref()
    }

    /// The socket.
    pub(super) fn address(&self) -> &Path {
        &self.address
    }

    /// The namespace.
    pub(super) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// A request for this namespace.
    pub(super) fn request<T>(&self, message: T) -> Result<Request<T>, PlaceError> {
        let value = |text: &str| {
            text.parse::<AsciiMetadataValue>().map_err(|_| PlaceError::Containerd {
                doing: "asking it".to_owned(),
                address: self.address.clone(),
                reason: format!("{text:?} cannot be a name of a namespace or a lease"),
            })
        };
        let mut request = Request::new(message);
        request.metadata_mut().insert("containerd-namespace", value(&self.namespace)?);
        if let Some(lease) = &self.lease {
            request.metadata_mut().insert("containerd-lease", value(lease)?);
        }
        Ok(request)
    }

    pub(super) fn content(&self) -> ContentClient<Channel> {
        ContentClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    pub(super) fn images(&self) -> ImagesClient<Channel> {
        ImagesClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    pub(super) fn leases(&self) -> LeasesClient<Channel> {
        LeasesClient::new(self.channel.clone())
    }

    /// What containerd said instead of an answer.
    pub(super) fn error(&self, doing: String, status: &Status) -> PlaceError {
        let address = self.address.clone();
        if status.code() == Code::Unavailable {
            return PlaceError::NoContainerd { address, reason: words(status) };
        }
        PlaceError::Containerd { doing, address, reason: words(status) }
    }

    /// What is known of a blob, if this namespace has it.
    pub(super) async fn info(&self, digest: &Digest) -> Result<Option<Info>, PlaceError> {
        let request = self.request(InfoRequest { digest: digest.to_string() })?;
        match self.content().info(request).await {
            Ok(answer) => Ok(answer.into_inner().info),
            Err(status) if is_not_found(&status) => Ok(None),
            Err(status) => Err(self.error(format!("looking for {digest}"), &status)),
        }
    }

    /// What the image `name` stands for, if there is one.
    pub(super) async fn image(&self, name: &str) -> Result<Option<Descriptor>, PlaceError> {
        let doing = || format!("looking for the image {name}");
        let target = match self.images().get(self.request(GetImageRequest { name: name.to_owned() })?).await {
            Ok(answer) => answer.into_inner().image.and_then(|image| image.target),
            Err(status) if is_not_found(&status) => return Ok(None),
            Err(status) => return Err(self.error(doing(), &status)),
        };
        let Some(target) = target else { return Ok(None) };
        let malformed = |reason: String| PlaceError::Malformed {
            place: format!("containerd://{}/{name}", self.namespace),
            what: "what it stands for".to_owned(),
            reason,
        };
        let digest = target.digest.parse::<Digest>().map_err(|error| malformed(error.to_string()))?;
        let size =
            u64::try_from(target.size).map_err(|_| malformed(format!("it has {} bytes", target.size)))?;
        let mut descriptor = Descriptor::new(target.media_type, digest, size);
        if !target.annotations.is_empty() {
            descriptor.annotations = Some(target.annotations.into_iter().collect());
        }
        Ok(Some(descriptor))
    }

    /// Other namespaces in which one of `names` is an image, as places. Only a hint: what fails is left out.
    pub(super) async fn elsewhere(&self, names: &[String]) -> Vec<String> {
        let request = Request::new(ListNamespacesRequest { filter: String::new() });
        let mut client = NamespacesClient::new(self.channel.clone());
        let Ok(answer) = client.list(request).await else { return Vec::new() };
        let mut found = Vec::new();
        for namespace in answer.into_inner().namespaces.into_iter().take(MAX_NAMESPACES) {
            let other = self.in_namespace(namespace.name);
            for name in names {
                if matches!(other.image(name).await, Ok(Some(_))) {
                    let namespace = Some(other.namespace.clone());
                    found.push(Place::Containerd { namespace, reference: name.clone() }.to_string());
                }
            }
        }
        found
    }
}

/// A descriptor in containerd's words.
pub(super) fn to_containerd(descriptor: &Descriptor) -> types::Descriptor {
    types::Descriptor {
        media_type: descriptor.media_type.clone(),
        digest: descriptor.digest.to_string(),
        size: i64::try_from(descriptor.size).unwrap_or(i64::MAX),
        annotations: descriptor.annotations.clone().unwrap_or_default().into_iter().collect(),
    }
}

/// Whether containerd says that it has no such thing.
pub(super) fn is_not_found(status: &Status) -> bool {
    status.code() == Code::NotFound
}

/// containerd's words, on one line and not too many.
pub(super) fn words(status: &Status) -> String {
    const MOST: usize = 300;
    let text: String = status.message().chars().filter(|c| !c.is_control()).take(MOST).collect();
    if text.is_empty() { format!("{:?}", status.code()) } else { text }
}

/// The reason at the bottom of an error.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
