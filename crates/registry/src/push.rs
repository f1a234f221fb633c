//! Uploads: blobs in one piece, mounts from other repositories, manifests.
//!
//! Mirrors have no part in this: what is pushed goes to the registry itself.

use std::sync::Arc;

use bytes::Bytes;
use content::{ByteStream, Digest};
use futures::StreamExt;
use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use url::Url;

use crate::answer::status_error;
use crate::client::{Ask, Auth, Client};
use crate::error::RegistryError;
use crate::hosts::Endpoint;
use crate::ranges::content_length;
use crate::reference::Reference;
use crate::retry::{Patience, Retry};
use crate::transport::{Response, Trust, ceiling_of};
use crate::upstreams::name_of;

/// An upload's answer comes after all bytes were sent and the registry has stored them.
const UPLOAD_LIMIT: std::time::Duration = std::time::Duration::from_hours(6);
/// How often a whole upload is tried again.
const UPLOAD_TRIES: u32 = 3;

/// Is told the bytes that were sent since it was told last.
pub type Progress = Arc<dyn Fn(u64) + Send + Sync>;

impl Client {
    /// Whether the repository has the blob.
    ///
    /// # Errors
    /// What the registry answered, other than that it does not have it.
    pub async fn blob_exists(&self, reference: &Reference, digest: &Digest) -> Result<bool, RegistryError> {
        Ok(self.head_blob(reference, digest).await?.is_some())
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
        let doing = format!("mounting {digest} of {from} into {}", place(reference));
        let endpoint = self.inner.base(reference.registry())?;
        let mut url = endpoint.url(&format!("{}/blobs/uploads/", reference.repository()));
        url.query_pairs_mut().append_pair("mount", &digest.to_string()).append_pair("from", from);
        let scope = format!("repository:{}:pull,push repository:{from}:pull", reference.repository());
        let auth = Auth::Own(scope);
        let response = self.control(&doing, &endpoint, Method::POST, url, HeaderMap::new(), &auth).await?;
        match response.status() {
            StatusCode::CREATED => Ok(true),
            StatusCode::ACCEPTED => {
                // An upload was opened instead.
                self.take_back(&doing, &endpoint, &auth, &response).await;
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
        let doing = format!("trying to push to {}", place(reference));
        let endpoint = self.inner.base(reference.registry())?;
        let url = endpoint.url(&format!("{}/blobs/uploads/", reference.repository()));
        let auth = Auth::push(reference.repository());
        let response = self.control(&doing, &endpoint, Method::POST, url, HeaderMap::new(), &auth).await?;
        if response.status() != StatusCode::ACCEPTED {
            return Err(status_error(&doing, response).await);
        }
        self.take_back(&doing, &endpoint, &auth, &response).await;
        Ok(())
    }

    /// Closes an upload that nothing will be sent to. Leaving it open would keep room at the registry.
    async fn take_back(&self, doing: &str, endpoint: &Endpoint, auth: &Auth, opened: &Response) {
        let Ok((url, trust)) = self.upload_url(doing, opened) else { return };
        // As for the upload itself: at another host the URL is its own permission.
        let nobody = Auth::Caller(None);
        let auth = if url.origin() == endpoint.base.origin() { auth } else { &nobody };
        let ask = Ask { trust, ..ask(doing, endpoint, Method::DELETE, url, auth) };
        if let Err(error) = self.inner.ask(ask).await {
            tracing::debug!(%error, "an unused upload stays open");
        }
    }

    /// Uploads a blob of `size` bytes. `bytes` makes the stream of them, anew for each attempt. A blob that
    /// the repository has already is not sent.
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
        let mut retry = Retry::new(Patience::control());
        let mut tries = 0;
        loop {
            tries += 1;
            match self.push_once(&doing, reference, digest, size, bytes, progress.clone()).await {
                Ok(()) => return Ok(()),
                Err(error) if tries >= UPLOAD_TRIES => return Err(error),
                Err(error) => {
                    retry.progressed();
                    retry.pause(self.inner.transport.counters(), error).await?;
                }
            }
        }
    }

    async fn push_once(
        &self,
        doing: &str,
        reference: &Reference,
        digest: &Digest,
        size: u64,
        bytes: &(dyn Fn() -> ByteStream + Send + Sync),
        progress: Option<Progress>,
    ) -> Result<(), RegistryError> {
        let endpoint = self.inner.base(reference.registry())?;
        let auth = Auth::push(reference.repository());
        let url = endpoint.url(&format!("{}/blobs/uploads/", reference.repository()));
        let opened = self.control(doing, &endpoint, Method::POST, url, HeaderMap::new(), &auth).await?;
        if opened.status() != StatusCode::ACCEPTED {
            return Err(status_error(doing, opened).await);
        }
        let (mut url, trust) = self.upload_url(doing, &opened)?;
        url.query_pairs_mut().append_pair("digest", &digest.to_string());
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        headers.insert(CONTENT_LENGTH, HeaderValue::from(size));
        let counters = Arc::clone(self.inner.transport.counters());
        let body = move || {
            let (counters, progress) = (Arc::clone(&counters), progress.clone());
            let counted = bytes().inspect(move |chunk| {
                if let Ok(chunk) = chunk {
                    counters.sent(chunk.len());
                    if let Some(progress) = &progress {
                        progress(chunk.len() as u64);
                    }
                }
            });
            reqwest::Body::wrap_stream(counted)
        };
        // Some registries take uploads at another host, by a URL that is its own permission.
        let elsewhere = url.origin() != endpoint.base.origin();
        let nobody = Auth::Caller(None);
        let auth = if elsewhere { &nobody } else { &auth };
        let question = Ask {
            headers,
            body: Some(&body),
            trust,
            timeout: UPLOAD_LIMIT,
            ..ask(doing, &endpoint, Method::PUT, url, auth)
        };
        let done = self.inner.ask(question).await?;
        if done.status() != StatusCode::CREATED {
            return Err(status_error(doing, done).await);
        }
        check_stored(doing, &done, digest)
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
        let endpoint = self.inner.base(reference.registry())?;
        let auth = Auth::push(reference.repository());
        let url =
            endpoint.url(&format!("{}/manifests/{}", reference.repository(), reference.manifest_name()));
        let mut headers = HeaderMap::new();
        let kind = HeaderValue::from_str(media_type)
            .map_err(|_| RegistryError::Setup(format!("{media_type:?} is no media type")))?;
        headers.insert(CONTENT_TYPE, kind);
        let body = move || reqwest::Body::from(bytes.clone());
        let mut retry = Retry::new(Patience::control());
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
    ) -> Result<Option<u64>, RegistryError> {
        let doing = format!("{doing} {}", place(reference));
        let endpoint = self.inner.base(reference.registry())?;
        let auth = Auth::pull(reference.repository());
        let url = endpoint.url(&format!("{}/{path}", reference.repository()));
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
        let response = self.control(&doing, &endpoint, Method::HEAD, url, headers, &auth).await?;
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
    async fn control(
        &self,
        doing: &str,
        endpoint: &Endpoint,
        method: Method,
        url: Url,
        headers: HeaderMap,
        auth: &Auth,
    ) -> Result<Response, RegistryError> {
        let mut retry = Retry::new(Patience::control());
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
    fn upload_url(&self, doing: &str, opened: &Response) -> Result<(Url, Trust), RegistryError> {
        let location = opened.headers().get(LOCATION).and_then(|location| location.to_str().ok());
        let url = location.and_then(|location| opened.url().join(location).ok());
        let url = url.ok_or_else(|| RegistryError::Corrupt {
            doing: doing.to_owned(),
            host: name_of(opened.url()),
            reason: "an opened upload without its location".to_owned(),
        })?;
        let ceiling = ceiling_of(&url, opened, self.inner.upstreams.as_deref())
            .map_err(|reason| RegistryError::Refused { doing: doing.to_owned(), reason })?;
        Ok((url, Trust::UpTo(ceiling)))
    }
}

fn ask<'a>(doing: &'a str, endpoint: &'a Endpoint, method: Method, url: Url, auth: &'a Auth) -> Ask<'a> {
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
fn check_stored(doing: &str, done: &Response, digest: &Digest) -> Result<(), RegistryError> {
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

fn place(reference: &Reference) -> String {
    format!("{}/{}", reference.registry(), reference.repository())
}
