//! The connection to containerd, in the words of places.

use content::Digest;
use proto::containerd::content::Info;
use proto::containerd::types;
use registry::Descriptor;
use tonic::{Request, Status};

use crate::place::{Containerd, Place, PlaceError};

pub(super) use ::containerd::{is_not_found, words};

/// Most namespaces in which an image is looked for that is not where it should be.
const MAX_NAMESPACES: usize = 20;

/// A connection to containerd, for one namespace. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Api(::containerd::Client);

impl std::ops::Deref for Api {
    type Target = ::containerd::Client;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl From<::containerd::Error> for PlaceError {
    fn from(error: ::containerd::Error) -> Self {
        use ::containerd::Error;
        match error {
            Error::Unreachable { address, reason } => Self::NoContainerd { address, reason },
            Error::Refused { doing, address, reason } => Self::Containerd { doing, address, reason },
            Error::Malformed { what, address, reason } => {
                Self::Malformed { place: format!("containerd at {}", address.display()), what, reason }
            }
        }
    }
}

impl Api {
    /// Connects.
    pub(super) async fn connect(
        containerd: &Containerd,
        namespace: Option<&String>,
    ) -> Result<Self, PlaceError> {
        let namespace = namespace.unwrap_or(&containerd.namespace);
        Ok(Self(::containerd::Client::connect(&containerd.address, namespace).await?))
    }

    /// The same connection; what is made over it belongs to `lease`.
    pub(super) fn with_lease(&self, lease: String) -> Self {
        Self(self.0.with_lease(lease))
    }

    /// A request for this namespace.
    pub(super) fn request<T>(&self, message: T) -> Result<Request<T>, PlaceError> {
        Ok(self.0.request(message)?)
    }

    /// What containerd said instead of an answer.
    pub(super) fn error(&self, doing: String, status: &Status) -> PlaceError {
        self.0.error(doing, status).into()
    }

    /// What is known of a blob, if this namespace has it.
    pub(super) async fn info(&self, digest: &Digest) -> Result<Option<Info>, PlaceError> {
        Ok(self.0.info(&digest.to_string()).await?)
    }

    /// What the image `name` stands for, if there is one.
    pub(super) async fn image(&self, name: &str) -> Result<Option<Descriptor>, PlaceError> {
        let Some(image) = self.0.image(name).await? else { return Ok(None) };
        let digest = image.digest.parse::<Digest>().map_err(|error| PlaceError::Malformed {
            place: format!("containerd://{}/{name}", self.namespace()),
            what: "what it stands for".to_owned(),
            reason: error.to_string(),
        })?;
        let mut descriptor = Descriptor::new(image.media_type, digest, image.size);
        if !image.annotations.is_empty() {
            descriptor.annotations = Some(image.annotations.into_iter().collect());
        }
        Ok(Some(descriptor))
    }

    /// Other namespaces in which one of `names` is an image, as places. Only a hint: what fails is left out.
    pub(super) async fn elsewhere(&self, names: &[String]) -> Vec<String> {
        let Ok(namespaces) = self.namespaces().await else { return Vec::new() };
        let mut found = Vec::new();
        for namespace in namespaces.into_iter().take(MAX_NAMESPACES) {
            let other = self.in_namespace(&namespace);
            for name in names {
                if matches!(other.image(name).await, Ok(Some(_))) {
                    let namespace = Some(namespace.clone());
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
