//! A blob in one request, for registries that take no chunks.

use std::sync::Arc;
use std::time::Duration;

use content::{ByteStream, Digest};
use futures::StreamExt;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};

use crate::answer::status_error;
use crate::ask::{Ask, Auth};
use crate::client::Client;
use crate::error::RegistryError;
use crate::push::{ask, check_stored};
use crate::reference::Reference;
use crate::retry::{Patience, Retry};
use crate::upload::Progress;

/// An upload's answer comes after all bytes were sent and the registry has stored them.
const UPLOAD_LIMIT: Duration = Duration::from_hours(6);
/// How often a whole upload is tried again.
const UPLOAD_TRIES: u32 = 3;

impl Client {
    /// Uploads a blob in one request, a few times.
    pub(super) async fn push_whole(
        &self,
        doing: &str,
        reference: &Reference,
        digest: &Digest,
        size: u64,
        bytes: &(dyn Fn() -> ByteStream + Send + Sync),
        progress: Option<Progress>,
    ) -> Result<(), RegistryError> {
        let mut retry = Retry::new(self.inner.patience(Patience::control()));
        let mut tries = 0;
        loop {
            tries += 1;
            match self.push_once(doing, reference, digest, size, bytes, progress.clone()).await {
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
        let endpoint = self.inner.push_base(reference.registry())?;
        let auth = Auth::push(reference.repository());
        let url = endpoint.url(&format!("{}/blobs/uploads/", reference.repository()));
        let patience = Patience::control();
        let opened =
            self.control(doing, &endpoint, Method::POST, url, HeaderMap::new(), &auth, patience).await?;
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
}
