//! Pushing: blobs whose digest is known, mounts from other repositories, manifests.
//!
//! What is pushed goes to the first host that is configured to take it, else to the registry itself.

mod source;
mod whole;

use bytes::Bytes;
use content::{ByteStream, Digest};
use http::header::{ACCEPT, CONTENT_TYPE, LOCATION};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use url::Url;

use crate::answer::status_error;
use crate::ask::{Ask, Auth};
use crate::client::Client;
use crate::error::RegistryError;
use crate::hosts::Endpoint;
use crate::push::source::push_from;
use crate::ranges::content_length;
use crate::reference::Reference;
use crate::retry::{Patience, Retry};
use crate::transport::{Response, Trust, reach_of};
use crate::upload::{Progress, UploadError};
use crate::upstreams::name_of;

impl Client {
    /// Whether the repository has the blob.
    ///
    /// # Errors
    /// What the registry answered, other than that it does not have it.
    pub async fn blob_exists(&self, reference: &Reference, digest: &Digest) -> Result<bool, RegistryError> {
        // As by who may push: of a repository that is not there yet, others learn nothing.
        let (path, auth) = (format!("blobs/{digest}"), Auth::push(reference.repository()));
        Ok(self.head(reference, &path, "looking for a blob in", &auth).await?.is_some())
    }

    /// Makes a blob of the repository `from`, on the same registry, a blob of the repository of `reference`
    /// without sending it. `false` if the registry cannot.
    ///
    /// # Errors
    /// What the registry answered, or that it could not be reached.
    pub async fn mount_blob(
        &self,
        reference: &Reference,
        digest: &Digest,
        from: &str,
    ) -> Result<bool, RegistryError> {
        let patience = Patience::control();
        let doing = format!("mounting {digest} of {from} into {}", place(reference));
        let endpoint = self.inner.push_base(reference.registry())?;
        let mut url = endpoint.url(&format!("{}/blobs/uploads/", reference.repository()));
        url.query_pairs_mut().append_pair("mount", &digest.to_string()).append_pair("from", from);
        let scope = format!("repository:{}:pull,push repository:{from}:pull", reference.repository());
        let auth = Auth::Own(scope);
        let response =
            self.control(&doing, &endpoint, Method::POST, url, HeaderMap::new(), &auth, patience).await?;
        match response.status() {
            StatusCode::CREATED => Ok(true),
            StatusCode::ACCEPTED => {
                // An upload was opened instead.
                if let Ok(at) = self.upload_url(&doing, &response) {
                    self.close_session(&doing, &endpoint, &auth, at).await;
                }
                Ok(false)
            }
            _ => Err(status_error(&doing, response).await),
        }
    }

    /// Whether this client may push to the repository: opens an upload, and takes it back. A conversion of
    /// an hour should not find out at its end.
    ///
    /// # Errors
    /// What the registry answered, or that it could not be reached.
    pub async fn check_push(&self, reference: &Reference) -> Result<(), RegistryError> {
        let patience = Patience::control();
        let doing = format!("trying to push to {}", place(reference));
        let endpoint = self.inner.push_base(reference.registry())?;
        let url = endpoint.url(&format!("{}/blobs/uploads/", reference.repository()));
        let auth = Auth::push(reference.repository());
        let response =
            self.control(&doing, &endpoint, Method::POST, url, HeaderMap::new(), &auth, patience).await?;
        if response.status() != StatusCode::ACCEPTED {
            return Err(status_error(&doing, response).await);
        }
        if let Ok(at) = self.upload_url(&doing, &response) {
            self.close_session(&doing, &endpoint, &auth, at).await;
        }
        Ok(())
    }

    /// Takes back the upload whose place is `at`. Leaving it open would keep room at the registry.
    pub(crate) async fn close_session(
        &self,
        doing: &str,
        endpoint: &Endpoint,
        auth: &Auth,
        at: (Url, Trust),
    ) {
        let (url, trust) = at;
        // As for the upload itself: at another host the URL is its own permission.
        let nobody = Auth::Caller(None);
        let auth = if url.origin() == endpoint.base.origin() { auth } else { &nobody };
        let ask = Ask { trust, ..ask(doing, endpoint, Method::DELETE, url, auth) };
        match self.inner.ask(ask).await {
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "an unused upload stays open"),
        }
    }

    /// Uploads a blob of `size` bytes. `bytes` makes the stream of them, anew for each attempt. A blob that
    /// the repository has already is not sent; a broken upload goes on where the registry says it is.
    ///
    /// # Errors
    /// What the registry answered, that it could not be reached, or what `bytes` failed with.
    pub async fn push_blob(
        &self,
        reference: &Reference,
        digest: &Digest,
        size: u64,
        bytes: &(dyn Fn() -> ByteStream + Send + Sync),
        progress: Option<Progress>,
    ) -> Result<(), RegistryError> {
        if self.blob_exists(reference, digest).await? {
            if let Some(progress) = progress {
                progress(size);
            }
            return Ok(());
        }
        let doing = format!("pushing {digest} to {}", place(reference));
        let mut upload = self.begin(reference, doing.clone(), progress.clone()).await?;
        let mut from = 0;
        loop {
            let error = match push_from(&mut upload, &doing, digest, size, bytes, from).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            tracing::debug!(%error, from, "an upload broke");
            match error {
                UploadError::Lost(_) => from = upload.resume().await?,
                UploadError::NoChunks(_) => {
                    upload.cancel().await;
                    return self.push_whole(&doing, reference, digest, size, bytes, progress).await;
                }
                UploadError::Failed(error) => {
                    upload.cancel().await;
                    return Err(error);
                }
            }
        }
    }

    /// Uploads a manifest or an index under the tag of `reference`, or under its digest if it has one.
    ///
    /// # Errors
    /// What the registry answered, or that it could not be reached.
    pub async fn push_manifest(
        &self,
        reference: &Reference,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<Digest, RegistryError> {
        let doing = format!("pushing the manifest of {reference}");
        let digest = Digest::of(&bytes);
        if let Some(expected) = reference.digest().filter(|expected| *expected != digest) {
            let host = reference.registry().to_owned();
            return Err(RegistryError::Digest { doing, host, expected, found: digest });
        }
        let endpoint = self.inner.push_base(reference.registry())?;
        let auth = Auth::push(reference.repository());
        let url =
            endpoint.url(&format!("{}/manifests/{}", reference.repository(), reference.manifest_name()));
        let mut headers = HeaderMap::new();
        let kind = HeaderValue::from_str(media_type)
            .map_err(|_| RegistryError::Setup(format!("{media_type:?} is no media type")))?;
        headers.insert(CONTENT_TYPE, kind);
        let body = move || reqwest::Body::from(bytes.clone());
        let mut retry = Retry::new(self.inner.patience(Patience::control()));
        loop {
            let question = Ask {
                headers: headers.clone(),
                body: Some(&body),
                ..ask(&doing, &endpoint, Method::PUT, url.clone(), &auth)
            };
            let error = match self.inner.ask(question).await {
                Ok(done) if matches!(done.status().as_u16(), 200 | 201) => {
                    check_stored(&doing, &done, &digest)?;
                    return Ok(digest);
                }
                Ok(refused) => status_error(&doing, refused).await,
                Err(error) => error,
            };
            retry.pause(self.inner.transport.counters(), error).await?;
        }
    }

    /// Whether something exists in the repository, and its length. Mirrors are not asked.
    pub(crate) async fn head(
        &self,
        reference: &Reference,
        path: &str,
        doing: &str,
        auth: &Auth,
    ) -> Result<Option<u64>, RegistryError> {
        let doing = format!("{doing} {}", place(reference));
        let endpoint = self.inner.push_base(reference.registry())?;
        let url = endpoint.url(&format!("{}/{path}", reference.repository()));
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
        let response =
            self.control(&doing, &endpoint, Method::HEAD, url, headers, auth, Patience::control()).await?;
        match response.status() {
            StatusCode::OK => {
                let length = content_length(response.headers()).ok().flatten();
                Ok(Some(length.unwrap_or_default()))
            }
            StatusCode::NOT_FOUND => Ok(None),
            _ => Err(status_error(&doing, response).await),
        }
    }

    /// A question without a body, put again while the registry is busy.
    #[allow(clippy::too_many_arguments)] // The parts of one question.
    pub(crate) async fn control(
        &self,
        doing: &str,
        endpoint: &Endpoint,
        method: Method,
        url: Url,
        headers: HeaderMap,
        auth: &Auth,
        patience: Patience,
    ) -> Result<Response, RegistryError> {
        let mut retry = Retry::new(self.inner.patience(patience));
        loop {
            let follow = method == Method::HEAD;
            let question = Ask {
                headers: headers.clone(),
                follow,
                ..ask(doing, endpoint, method.clone(), url.clone(), auth)
            };
            let error = match self.inner.ask(question).await {
                Ok(busy) if crate::error::is_transient_status(busy.status().as_u16()) => {
                    status_error(doing, busy).await
                }
                Ok(response) => return Ok(response),
                Err(error) => error,
            };
            retry.pause(self.inner.transport.counters(), error).await?;
        }
    }

    /// Where an opened upload goes on.
    pub(crate) fn upload_url(&self, doing: &str, opened: &Response) -> Result<(Url, Trust), RegistryError> {
        let location = opened.headers().get(LOCATION).and_then(|location| location.to_str().ok());
        let url = location.and_then(|location| opened.url().join(location).ok());
        let url = url.ok_or_else(|| RegistryError::Corrupt {
            doing: doing.to_owned(),
            host: name_of(opened.url()),
            reason: "an opened upload without its location".to_owned(),
        })?;
        if opened.url().scheme() == "https" && url.scheme() != "https" {
            return Err(RegistryError::Corrupt {
                doing: doing.to_owned(),
                host: name_of(opened.url()),
                reason: format!(
                    "it is asked over https and wants an upload at {} without: the proxy before it has to send it \
                     the header X-Forwarded-Proto",
                    name_of(&url)
                ),
            });
        }
        let reach = reach_of(&url, opened, self.inner.upstreams.as_deref())
            .map_err(|reason| RegistryError::Refused { doing: doing.to_owned(), reason })?;
        Ok((url, Trust::UpTo(reach)))
    }
}

pub(crate) fn ask<'a>(
    doing: &'a str,
    endpoint: &'a Endpoint,
    method: Method,
    url: Url,
    auth: &'a Auth,
) -> Ask<'a> {
    Ask {
        doing,
        endpoint,
        method,
        url,
        headers: HeaderMap::new(),
        body: None,
        auth,
        trust: Trust::Configured,
        timeout: Patience::control().answer,
        follow: false,
    }
}

/// Registries say what they stored.
pub(crate) fn check_stored(doing: &str, done: &Response, digest: &Digest) -> Result<(), RegistryError> {
    let stored = done.headers().get("docker-content-digest").and_then(|value| value.to_str().ok());
    match stored.and_then(|text| text.parse::<Digest>().ok()) {
        Some(found) if found != *digest => Err(RegistryError::Digest {
            doing: doing.to_owned(),
            host: name_of(done.url()),
            expected: *digest,
            found,
        }),
        _ => Ok(()),
    }
}

pub(crate) fn place(reference: &Reference) -> String {
    format!("{}/{}", reference.registry(), reference.repository())
}
