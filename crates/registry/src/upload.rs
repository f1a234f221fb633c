//! An upload whose digest and size are not known at its beginning: chunks, and a way back after a failure.
//!
//! A registry opens a session (POST) and names its place; each chunk (PATCH) is answered with the place of
//! the next one, and the last request (PUT) names the digest. Three facts shape what is done here:
//!
//! * **Places change.** Some registries keep the state of the session in the place's query, so the newest
//!   place is the only good one. A place at another host is its own permission and gets no credentials.
//! * **Answers get lost.** After a broken connection nobody knows how much of a chunk arrived, so the
//!   registry is asked (GET, `Range: 0-n`) and the chunk, which is kept until it is acknowledged, goes on
//!   from there. Some registries take a chunk at the wrong offset without a word: what they say they hold is
//!   compared after each one.
//! * **Sessions get lost.** A registry may forget one, or refuse it because a torn chunk made its state
//!   differ. What was acknowledged is not kept here, so the caller is told ([`UploadError::Lost`]), asks
//!   [`Upload::resume`] where to go on, and sends from there.
//!
//! What fits into one chunk is not chunked at all: its bytes go with the last request, which every registry
//! takes. A registry that refuses chunks is told apart ([`UploadError::NoChunks`]): such a blob has to be
//! pushed in one piece, by [`Client::push_blob`].

mod gathered;
mod recovery;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use content::Digest;
use futures::StreamExt;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, LOCATION, RANGE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use url::Url;

use crate::answer::status_error;
use crate::ask::{Ask, Auth};
use crate::client::Client;
use crate::error::RegistryError;
use crate::hosts::Endpoint;
use crate::push::{ask, check_stored, place};
use crate::reference::Reference;
use crate::retry::{Patience, Retry};
use crate::transport::{Response, Trust};
use crate::upload::gathered::{Meter, STALL, Waiting};
use crate::upload::recovery::{Held, is_gone};
use crate::upstreams::name_of;

/// Bytes of a chunk, unless the registry asks for more. Each costs a round trip, and is kept until it is
/// acknowledged.
pub(crate) const CHUNK: u64 = 8 << 20;
/// A registry that wants larger chunks than this wants the blob in one piece.
const LARGEST_CHUNK: u64 = 64 << 20;
/// For the last request: the registry may hash the whole blob before it answers.
const FINISH_LIMIT: Duration = Duration::from_hours(1);
/// How often the last request is put before its failure is told.
const FINISH_TRIES: u32 = 4;
pub use gathered::Progress;

/// Why an upload did not go on.
#[derive(Debug, Clone, thiserror::Error)]
pub enum UploadError {
    /// The registry no longer has what it acknowledged. [`Upload::resume`] tells where to go on.
    #[error("{0}")]
    Lost(#[source] RegistryError),
    /// The registry takes no chunks. Take the upload back and push the blob in one piece.
    #[error("{0}")]
    NoChunks(#[source] RegistryError),
    /// Trying again is of no use, or was tried long enough.
    #[error(transparent)]
    Failed(#[from] RegistryError),
}

impl From<UploadError> for RegistryError {
    fn from(error: UploadError) -> Self {
        match error {
            UploadError::Lost(reason) | UploadError::NoChunks(reason) | UploadError::Failed(reason) => reason,
        }
    }
}

/// An open upload. One that is dropped stays open at the registry until that cleans up: end it with
/// [`Upload::finish`] or [`Upload::cancel`].
pub struct Upload {
    client: Client,
    reference: Reference,
    doing: String,
    endpoint: Endpoint,
    auth: Auth,
    /// Where the session goes on, and how far that place is trusted.
    at: (Url, Trust),
    chunk: u64,
    /// Bytes that the registry acknowledged.
    position: u64,
    /// What follows them.
    waiting: Waiting,
    lost: u32,
    meter: Arc<Meter>,
}

impl std::fmt::Debug for Upload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The session's place may hold a secret.
        f.debug_struct("Upload")
            .field("to", &place(&self.reference))
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Opens an upload to the repository of `reference`.
    ///
    /// # Errors
    /// What the registry answered, or that it could not be reached.
    pub async fn begin_upload(&self, reference: &Reference) -> Result<Upload, RegistryError> {
        self.begin(reference, format!("uploading a blob to {}", place(reference)), None).await
    }

    /// As [`Client::begin_upload`], in the words of `doing`, telling `progress`.
    pub(crate) async fn begin(
        &self,
        reference: &Reference,
        doing: String,
        progress: Option<Progress>,
    ) -> Result<Upload, RegistryError> {
        let endpoint = self.inner.push_base(reference.registry())?;
        let auth = Auth::push(reference.repository());
        let patience = Patience::control();
        let (at, chunk) = self.open_session(&doing, reference, &endpoint, &auth, patience).await?;
        Ok(Upload {
            client: self.clone(),
            reference: reference.clone(),
            doing,
            endpoint,
            auth,
            at,
            chunk,
            position: 0,
            waiting: Waiting::default(),
            lost: 0,
            meter: Arc::new(Meter::new(Arc::clone(self.inner.transport.counters()), progress)),
        })
    }

    /// A session's place, and how large its chunks must be.
    async fn open_session(
        &self,
        doing: &str,
        reference: &Reference,
        endpoint: &Endpoint,
        auth: &Auth,
        patience: Patience,
    ) -> Result<((Url, Trust), u64), RegistryError> {
        let url = endpoint.url(&format!("{}/blobs/uploads/", reference.repository()));
        let opened =
            self.control(doing, endpoint, Method::POST, url, HeaderMap::new(), auth, patience).await?;
        if opened.status() != StatusCode::ACCEPTED {
            return Err(status_error(doing, opened).await);
        }
        let asked_for = opened.headers().get("oci-chunk-min-length");
        let asked_for = asked_for.and_then(|value| value.to_str().ok()?.trim().parse::<u64>().ok());
        Ok((self.upload_url(doing, &opened)?, asked_for.unwrap_or(0).max(CHUNK)))
    }
}

impl Upload {
    /// Bytes from the beginning of the blob that the registry acknowledged.
    pub const fn position(&self) -> u64 {
        self.position
    }

    /// Takes the next bytes. They are gathered until they make a chunk, which is then sent; waits for its
    /// acknowledgement, so at most one chunk is held.
    ///
    /// # Errors
    /// See [`UploadError`]. A busy or restarted registry is waited for.
    pub async fn send(&mut self, bytes: Bytes) -> Result<(), UploadError> {
        if !bytes.is_empty() {
            self.waiting.push(bytes);
        }
        // What makes exactly one chunk may be all there is: it waits, and goes with the last request.
        while self.waiting.len > self.chunk.min(LARGEST_CHUNK) {
            self.send_chunk(self.chunk).await?;
        }
        Ok(())
    }

    /// After a failure: how far the registry has got. What was given to [`Upload::send`] from there on must
    /// be sent again. 0 if the session is lost; a new one is open then.
    ///
    /// # Errors
    /// What the registry answered, or that it could not be reached.
    pub async fn resume(&mut self) -> Result<u64, RegistryError> {
        self.waiting.clear();
        match self.held().await? {
            Held::Bytes(position) => self.position = position,
            Held::Nothing(reason) => self.reopen(&reason).await?,
        }
        Ok(self.position)
    }

    /// Sends what is left and gives the blob its name.
    ///
    /// # Errors
    /// See [`UploadError`]; also that the bytes do not have the digest.
    pub async fn finish(&mut self, digest: &Digest) -> Result<(), UploadError> {
        let mut tries = 0;
        loop {
            // What was not chunked goes with the last request.
            while self.position > 0 && self.waiting.len > 0 {
                self.send_chunk(self.chunk.min(self.waiting.len)).await?;
            }
            let error = match self.put(digest).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            tries += 1;
            let held = if is_gone(&error) {
                Held::Nothing(error)
            } else if tries < FINISH_TRIES {
                Retry::new(self.patience()).pause(self.client.inner.transport.counters(), error).await?;
                self.held().await?
            } else {
                return Err(error.into());
            };
            // Perhaps an earlier attempt was heard after all, and ended the session.
            if matches!(held, Held::Nothing(_)) && self.client.blob_exists(&self.reference, digest).await? {
                return Ok(());
            }
            self.go_on(held).await?;
        }
    }

    /// Takes the upload back. What was sent is thrown away by the registry.
    pub async fn cancel(self) {
        self.client.close_session(&self.doing, &self.endpoint, &self.auth, self.at).await;
    }

    fn patience(&self) -> Patience {
        self.client.inner.patience(Patience::upload())
    }

    /// At another host, the session's place is its own permission.
    fn auth(&self) -> Auth {
        if self.at.0.origin() == self.endpoint.base.origin() { self.auth.clone() } else { Auth::Caller(None) }
    }

    fn question<'a>(&'a self, method: Method, url: Url, auth: &'a Auth) -> Ask<'a> {
        Ask { trust: self.at.1, ..ask(&self.doing, &self.endpoint, method, url, auth) }
    }

    /// Sends the first `len` bytes of what waits, however many attempts that takes.
    async fn send_chunk(&mut self, len: u64) -> Result<(), UploadError> {
        if self.chunk > LARGEST_CHUNK {
            let reason = format!("that it wants chunks of {} bytes", self.chunk);
            return Err(UploadError::NoChunks(self.corrupt(reason)));
        }
        let end = self.position + len;
        let mut retry = Retry::new(self.patience());
        while self.position < end {
            let error = match self.patch(end - self.position).await {
                Ok(()) => {
                    retry.progressed();
                    continue;
                }
                Err(error) => error,
            };
            if is_gone(&error) {
                self.start_over(error).await?;
                continue;
            }
            if refuses_chunks(&error) {
                return Err(UploadError::NoChunks(error));
            }
            let before = self.position;
            let misplaced = Some(error.clone()).filter(|error| error.status() == Some(416));
            if misplaced.is_none() {
                retry.pause(self.client.inner.transport.counters(), error).await?;
            }
            self.catch_up().await?;
            if self.position > before {
                retry.progressed();
            } else if let Some(error) = misplaced {
                // It wants exactly what it refused.
                return Err(UploadError::NoChunks(error));
            }
        }
        Ok(())
    }

    /// One chunk, once.
    async fn patch(&mut self, len: u64) -> Result<(), RegistryError> {
        let mut headers = octets(len);
        let range = format!("{}-{}", self.position, self.position + len - 1);
        headers.insert(CONTENT_RANGE, header(&range, &self.doing)?);
        let body = self.body(len);
        let auth = self.auth();
        let question = Ask {
            headers,
            body: Some(&body),
            timeout: FINISH_LIMIT,
            ..self.question(Method::PATCH, self.at.0.clone(), &auth)
        };
        let answer = self.watched(question).await?;
        if !matches!(answer.status().as_u16(), 200..=202 | 204) {
            return Err(status_error(&self.doing, answer).await);
        }
        self.move_to(&answer)?;
        let held = match answer.headers().get(RANGE) {
            Some(value) => self.read_range(value)?,
            None => self.position + len,
        };
        if held <= self.position || held > self.position + len {
            let reason = format!("that it holds {held} bytes, after the bytes {range}");
            return Err(self.corrupt(reason));
        }
        self.waiting.release(held - self.position);
        self.position = held;
        Ok(())
    }

    /// The last request, once: with all bytes if none was sent before.
    async fn put(&self, digest: &Digest) -> Result<(), RegistryError> {
        let mut url = self.at.0.clone();
        url.query_pairs_mut().append_pair("digest", &digest.to_string());
        let body = self.body(self.waiting.len);
        let auth = self.auth();
        let question = Ask {
            headers: octets(self.waiting.len),
            body: Some(&body),
            timeout: FINISH_LIMIT,
            ..self.question(Method::PUT, url, &auth)
        };
        let done = self.client.inner.ask(question).await?;
        if !matches!(done.status().as_u16(), 201 | 204) {
            return Err(status_error(&self.doing, done).await);
        }
        check_stored(&self.doing, &done, digest)
    }

    /// The first `len` bytes that wait, again for each attempt.
    fn body(&self, len: u64) -> impl Fn() -> reqwest::Body + Send + Sync + use<> {
        let (parts, meter, start) = (self.waiting.first(len), Arc::clone(&self.meter), self.position);
        move || {
            meter.touch();
            let (meter, mut at) = (Arc::clone(&meter), start);
            let parts = futures::stream::iter(parts.clone()).map(move |part: Bytes| {
                meter.sent(at, part.len());
                at += part.len() as u64;
                Ok::<_, std::io::Error>(part)
            });
            reqwest::Body::wrap_stream(parts)
        }
    }

    async fn watched(&self, question: Ask<'_>) -> Result<Response, RegistryError> {
        self.meter.touch();
        tokio::select! {
            answer = self.client.inner.ask(question) => answer,
            () = self.meter.stalled() => Err(RegistryError::Timeout {
                doing: self.doing.clone(),
                host: name_of(&self.at.0),
                after: STALL,
            }),
        }
    }

    /// Follows the session to the place that `answer` names.
    fn move_to(&mut self, answer: &Response) -> Result<(), RegistryError> {
        if answer.headers().contains_key(LOCATION) {
            self.at = self.client.upload_url(&self.doing, answer)?;
        }
        Ok(())
    }

    fn corrupt(&self, reason: String) -> RegistryError {
        RegistryError::Corrupt { doing: self.doing.clone(), host: name_of(&self.at.0), reason }
    }
}

fn octets(len: u64) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(len));
    headers
}

fn header(text: &str, doing: &str) -> Result<HeaderValue, RegistryError> {
    HeaderValue::from_str(text).map_err(|_| RegistryError::Setup(format!("{doing}: {text:?} is no header")))
}

/// What registries answer that know no chunks, or not in this form.
fn refuses_chunks(error: &RegistryError) -> bool {
    matches!(error.status(), Some(400 | 405 | 406 | 411 | 415 | 422 | 501))
}
