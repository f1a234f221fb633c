//! The connection.

use std::path::{Path, PathBuf};
use std::time::Duration;

use proto::containerd::content::content_client::ContentClient;
use proto::containerd::images::images_client::ImagesClient;
use proto::containerd::leases::leases_client::LeasesClient;
use proto::containerd::namespaces::ListNamespacesRequest;
use proto::containerd::namespaces::namespaces_client::NamespacesClient;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use crate::error::innermost;
use crate::{Error, words};

/// Where containerd listens unless its configuration says otherwise.
pub const DEFAULT_ADDRESS: &str = "/run/containerd/containerd.sock";
/// Longest message that is taken, in bytes; containerd sends no more than this.
const MAX_MESSAGE: usize = 16 << 20;
/// A socket of this machine answers at once or never.
const CONNECT: Duration = Duration::from_secs(5);
/// Bytes that containerd may send ahead of one reader. HTTP/2's own 64 KiB are a sixteenth of a message.
const WINDOW: u32 = 4 << 20;

/// A connection to containerd, for one namespace. Clones share it; it is made anew whenever it is lost.
#[derive(Clone, Debug)]
pub struct Client {
    address: PathBuf,
    namespace: String,
    lease: Option<String>,
    channel: Channel,
}

impl Client {
    /// Connects to the socket `address`.
    ///
    /// # Errors
    /// [`Error::Unreachable`] if nobody answers there.
    pub async fn connect(address: &Path, namespace: &str) -> Result<Self, Error> {
        let endpoint = endpoint(address)?;
        let channel = endpoint.connect().await.map_err(|error| unreachable(address, innermost(&error)))?;
        Ok(Self { address: address.to_owned(), namespace: namespace.to_owned(), lease: None, channel })
    }

    /// A connection that is made when something is first asked. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Unreachable`] if `address` cannot be that of a socket, or nothing lies there.
    pub fn lazy(address: &Path, namespace: &str) -> Result<Self, Error> {
        let channel = endpoint(address)?.connect_lazy();
        Ok(Self { address: address.to_owned(), namespace: namespace.to_owned(), lease: None, channel })
    }

    /// The same connection; what is made over it belongs to `lease`.
    #[must_use]
    pub fn with_lease(&self, lease: String) -> Self {
        Self { lease: Some(lease), ..self.clone() }
    }

    /// The same connection for another namespace, without a lease: leases are a namespace's own.
    #[must_use]
    pub fn in_namespace(&self, namespace: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), lease: None, ..self.clone() }
    }

    /// The lease that is held.
    pub fn lease(&self) -> Option<&str> {
        self.lease.as_deref()
    }

    /// The socket.
    pub fn address(&self) -> &Path {
        &self.address
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The connection itself, for clients of services that have no method here.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// A request for this namespace, and lease if there is one.
    ///
    /// # Errors
    /// [`Error::Refused`] if the name of either cannot be sent.
    pub fn request<T>(&self, message: T) -> Result<Request<T>, Error> {
        let value = |text: &str| {
            text.parse::<AsciiMetadataValue>().map_err(|_| Error::Refused {
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

    /// Blobs.
    pub fn content(&self) -> ContentClient<Channel> {
        ContentClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// Names of images.
    pub fn images(&self) -> ImagesClient<Channel> {
        ImagesClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// Leases.
    pub fn leases(&self) -> LeasesClient<Channel> {
        LeasesClient::new(self.channel.clone())
    }

    /// The names of all namespaces.
    ///
    /// # Errors
    /// That containerd does not answer.
    pub async fn namespaces(&self) -> Result<Vec<String>, Error> {
        let request = Request::new(ListNamespacesRequest { filter: String::new() });
        let answer = NamespacesClient::new(self.channel.clone()).list(request).await;
        let answer = answer.map_err(|status| self.error("listing namespaces", &status))?;
        Ok(answer.into_inner().namespaces.into_iter().map(|namespace| namespace.name).collect())
    }

    /// What containerd said instead of an answer.
    pub fn error(&self, doing: impl Into<String>, status: &Status) -> Error {
        if status.code() == Code::Unavailable {
            return unreachable(&self.address, words(status));
        }
        Error::Refused { doing: doing.into(), address: self.address.clone(), reason: words(status) }
    }

    pub(crate) fn malformed(&self, what: impl Into<String>, reason: impl Into<String>) -> Error {
        Error::Malformed { what: what.into(), address: self.address.clone(), reason: reason.into() }
    }
}

fn unreachable(address: &Path, reason: String) -> Error {
    Error::Unreachable { address: address.to_owned(), reason }
}

fn endpoint(address: &Path) -> Result<Endpoint, Error> {
    let unreachable = |reason: String| unreachable(address, reason);
    let path = std::path::absolute(address).map_err(|error| unreachable(error.to_string()))?;
    // The connection's own words about a missing socket say less than this.
    std::fs::metadata(&path).map_err(|error| unreachable(error.to_string()))?;
    let endpoint = Endpoint::from_shared(format!("unix://{}", path.display()))
        .map_err(|error| unreachable(error.to_string()))?;
    Ok(endpoint
        .connect_timeout(CONNECT)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW * 4))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_that_is_not_there_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("none.sock");
        let error = Client::connect(&path, "default").await.unwrap_err();
        assert!(matches!(error, Error::Unreachable { .. }), "{error}");
        assert!(error.to_string().contains("none.sock"), "{error}");
        assert!(Client::lazy(&path, "default").is_err());
    }

    #[tokio::test]
    async fn a_request_carries_namespace_and_lease() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "").unwrap();
        let client = Client::lazy(&path, "k8s.io").unwrap().with_lease("l1".to_owned());
        let request = client.request(()).unwrap();
        assert_eq!(request.metadata().get("containerd-namespace").unwrap(), "k8s.io");
        assert_eq!(request.metadata().get("containerd-lease").unwrap(), "l1");
        let other = client.in_namespace("other");
        assert_eq!((other.namespace(), other.lease()), ("other", None));
        assert!(client.in_namespace("a\nb").request(()).is_err());
    }
}
