//! A blob at its registry: [`content::Origin`] over HTTP ranges.
//!
//! A read is one ranged request. Around it stands what makes it dependable:
//!
//! * **Hosts.** Mirrors are tried in order, then the registry, anew for each request; whatever fails with
//!   something that another host may not fail with is left for the next one.
//! * **Resumption.** A body that breaks is gone on with where it broke, perhaps at another host.
//! * **Doubt.** A server may ignore `Range` and send the whole blob (the part is cut out of it), send less
//!   than it was asked for (the rest is asked for again), or contradict what is known of the blob's length
//!   (its bytes are not used).
//! * **Shortcuts.** The tail is asked for as a suffix, so that the length comes with it; the place that a
//!   registry redirects to is remembered and asked directly until it refuses.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use content::{ByteRange, ByteStream, ContentId, Digest, Locator, Origin, ReadError, Tail, Urgency};
use futures::StreamExt;
use http::header::{CONTENT_TYPE, RANGE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use tokio::time::Instant;
use url::Url;

use crate::answer::{next_chunk, status_error};
use crate::client::{Ask, Auth, Client};
use crate::error::RegistryError;
use crate::fetch::Fetch;
use crate::hosts::Endpoint;
use crate::ranges::{content_length, part_of, total_of_unsatisfied};
use crate::retry::{Patience, Retry};
use crate::transport::{Request, Response, Trust};
use crate::upstreams::name_of;
use crate::zone::Zone;

/// How long a redirect's target is used before the registry is asked again. Registries sign such URLs for
/// ten minutes and more.
const REDIRECT_LIFE: Duration = Duration::from_mins(4);
/// A blob up to this length that comes whole instead of its tail is read to its end: a second request
/// would cost more.
const WHOLE_IS_FINE: u64 = 256 << 10;
/// Room made for a read in advance; longer ones grow as bytes come.
const READ_CAPACITY: u64 = 8 << 20;

/// Who asks, and where.
pub(crate) struct Asker {
    pub auth: Auth,
    pub trust: Trust,
    pub mirrors: bool,
}

/// A blob at its registry.
pub(crate) struct RegistryBlob {
    client: Client,
    id: ContentId,
    registry: String,
    origin: Result<Endpoint, RegistryError>,
    repository: String,
    digest: Digest,
    len: OnceLock<u64>,
    asker: Asker,
    found: Mutex<Option<Found>>,
}

/// Where a host redirected to.
#[derive(Clone)]
struct Found {
    host: String,
    url: Url,
    zone: Zone,
    until: Instant,
}

impl RegistryBlob {
    pub(crate) fn shared(
        client: Client,
        registry: &str,
        origin: Result<Endpoint, RegistryError>,
        repository: &str,
        digest: Digest,
        size: Option<u64>,
        asker: Asker,
    ) -> Arc<dyn Origin> {
        let len = OnceLock::new();
        if let Some(size) = size {
            len.get_or_init(|| size);
        }
        Arc::new(Self {
            client,
            id: ContentId::claimed(registry, &digest),
            registry: registry.to_owned(),
            origin,
            repository: repository.to_owned(),
            digest,
            len,
            asker,
            found: Mutex::default(),
        })
    }

    pub(crate) const fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) fn doing(&self) -> String {
        format!("reading {} of {}/{}", self.digest, self.registry, self.repository)
    }

    /// Where to ask, in order. After a failed round, mirrors that were put aside are asked as well.
    pub(crate) fn endpoints(&self, all: bool) -> Result<Vec<Endpoint>, RegistryError> {
        let origin = self.origin.clone()?;
        if !self.asker.mirrors {
            return Ok(vec![origin]);
        }
        Ok(self.client.inner.with_mirrors(&self.registry, origin, all))
    }

    /// Takes a length that a server told.
    ///
    /// # Errors
    /// That it contradicts the one that is known.
    pub(crate) fn learn(&self, total: u64) -> Result<(), String> {
        let known = *self.len.get_or_init(|| total);
        if known == total {
            return Ok(());
        }
        Err(format!("a blob of {total} bytes, and it should have {known}"))
    }

    /// One request for the blob with a `Range` header. A 200, 206 or 416 is an answer.
    pub(crate) async fn get(
        &self,
        doing: &str,
        endpoint: &Endpoint,
        range: Option<&str>,
        patience: Patience,
    ) -> Result<Response, RegistryError> {
        let mut headers = HeaderMap::new();
        if let Some(range) = range.and_then(|range| HeaderValue::from_str(range).ok()) {
            headers.insert(RANGE, range);
        }
        if let Some(response) = self.get_found(doing, endpoint, &headers, patience).await {
            return Ok(response);
        }
        let response = self.ask(doing, endpoint, Method::GET, headers, patience).await?;
        match response.status().as_u16() {
            200 | 206 => {
                self.remember(endpoint, &response);
                Ok(response)
            }
            416 => Ok(response),
            _ => Err(status_error(doing, response).await),
        }
    }

    async fn ask(
        &self,
        doing: &str,
        endpoint: &Endpoint,
        method: Method,
        headers: HeaderMap,
        patience: Patience,
    ) -> Result<Response, RegistryError> {
        let ask = Ask {
            doing,
            endpoint,
            method,
            url: endpoint.url(&format!("{}/blobs/{}", self.repository, self.digest)),
            headers,
            body: None,
            auth: &self.asker.auth,
            trust: if endpoint.is_mirror() { Trust::Configured } else { self.asker.trust },
            timeout: self.client.inner.timeout(endpoint, patience.answer),
            follow: true,
        };
        self.client.inner.ask(ask).await
    }

    /// Asks the place that `endpoint` redirected to a short time ago, with no credentials.
    async fn get_found(
        &self,
        doing: &str,
        endpoint: &Endpoint,
        headers: &HeaderMap,
        patience: Patience,
    ) -> Option<Response> {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let found =
            found.filter(|found| found.until > Instant::now() && found.host == name_of(&endpoint.base))?;
        let request = Request {
            doing,
            method: Method::GET,
            url: found.url,
            headers: headers.clone(),
            body: None,
            trust: Trust::UpTo(found.zone),
            insecure: false,
            follow: false,
            timeout: self.client.inner.timeout(endpoint, patience.answer),
        };
        let inner = &self.client.inner;
        match inner.transport.send(request, inner.upstreams.as_deref()).await {
            Ok(response) if matches!(response.status().as_u16(), 200 | 206) => Some(response),
            _ => {
                *self.found.lock().unwrap_or_else(PoisonError::into_inner) = None;
                None
            }
        }
    }

    fn remember(&self, endpoint: &Endpoint, response: &Response) {
        if response.url().origin() == endpoint.base.origin() {
            return;
        }
        let found = Found {
            host: name_of(&endpoint.base),
            url: response.url().clone(),
            zone: response.zone(),
            until: Instant::now() + REDIRECT_LIFE,
        };
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
    }

    /// The tail at one host, or at least the length.
    async fn tail_at(
        &self,
        doing: &str,
        endpoint: &Endpoint,
        at_most: u64,
        patience: Patience,
    ) -> Result<TailAnswer, RegistryError> {
        let response = if at_most == 0 {
            return self.length_at(doing, endpoint, patience).await;
        } else {
            self.get(doing, endpoint, Some(&format!("bytes=-{at_most}")), patience).await
        };
        let response = match response {
            Ok(response) => response,
            // What servers say that know ranges, and not this form of them.
            Err(RegistryError::Status { status: 400 | 405 | 501, .. }) => {
                return self.length_at(doing, endpoint, patience).await;
            }
            Err(error) => return Err(error),
        };
        let corrupt = |reason: String| RegistryError::Corrupt {
            doing: doing.to_owned(),
            host: name_of(&endpoint.base),
            reason,
        };
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            return match total_of_unsatisfied(response.headers()) {
                Some(0) => {
                    self.learn(0).map_err(corrupt)?;
                    Ok(TailAnswer::Tail(Tail { len: 0, bytes: Bytes::new() }))
                }
                _ => self.length_at(doing, endpoint, patience).await,
            };
        }
        let part = part_of(response.status(), response.headers()).map_err(corrupt)?;
        if let Some(total) = part.total {
            self.learn(total).map_err(corrupt)?;
        }
        match (response.status(), part.total) {
            (StatusCode::OK, Some(total)) if total > at_most.max(WHOLE_IS_FINE) => {
                Ok(TailAnswer::Length(total))
            }
            (StatusCode::OK, _) => {
                self.whole_tail(doing, response, at_most, patience).await.map(TailAnswer::Tail)
            }
            (_, Some(total)) if part.range == ByteRange::new(total.saturating_sub(at_most), total) => {
                let bytes = read_exactly(doing, response, part.range.len(), patience).await?;
                Ok(TailAnswer::Tail(Tail { len: total, bytes }))
            }
            (_, Some(total)) => Ok(TailAnswer::Length(total)),
            (_, None) => self.length_at(doing, endpoint, patience).await,
        }
    }

    /// The end of a body that holds the whole blob, which may not say how long it is.
    async fn whole_tail(
        &self,
        doing: &str,
        mut response: Response,
        at_most: u64,
        patience: Patience,
    ) -> Result<Tail, RegistryError> {
        let at_most = usize::try_from(at_most).unwrap_or(usize::MAX);
        let mut len = 0;
        let mut end = BytesMut::new();
        while let Some(chunk) = next_chunk(doing, &mut response, patience.answer).await? {
            len += chunk.len() as u64;
            end.extend_from_slice(&chunk);
            if end.len() > at_most.saturating_mul(2).max(1 << 20) {
                let _ = end.split_to(end.len() - at_most);
            }
        }
        let host = name_of(response.url());
        self.learn(len).map_err(|reason| RegistryError::Corrupt { doing: doing.to_owned(), host, reason })?;
        let _ = end.split_to(end.len().saturating_sub(at_most));
        Ok(Tail { len, bytes: end.freeze() })
    }

    async fn length_at(
        &self,
        doing: &str,
        endpoint: &Endpoint,
        patience: Patience,
    ) -> Result<TailAnswer, RegistryError> {
        let response = self.ask(doing, endpoint, Method::HEAD, HeaderMap::new(), patience).await?;
        if response.status() != StatusCode::OK {
            return Err(status_error(doing, response).await);
        }
        let corrupt = |reason: String| RegistryError::Corrupt {
            doing: doing.to_owned(),
            host: name_of(response.url()),
            reason,
        };
        let length = content_length(response.headers()).map_err(corrupt)?;
        let length = length.ok_or_else(|| corrupt("no length of the blob".to_owned()))?;
        self.learn(length).map_err(corrupt)?;
        Ok(TailAnswer::Length(length))
    }

    /// The tail or the length, from whichever host gives it.
    async fn tail_anywhere(&self, at_most: u64) -> Result<TailAnswer, RegistryError> {
        let doing = self.doing();
        let patience = Patience::of(Urgency::Blocking);
        let mut retry = Retry::new(patience);
        let mut all = false;
        loop {
            let mut last = None;
            for endpoint in self.endpoints(all)? {
                match self.tail_at(&doing, &endpoint, at_most, patience).await {
                    Ok(answer) => return Ok(answer),
                    Err(error) => last = Some(error),
                }
            }
            let error = last.unwrap_or_else(|| RegistryError::Setup("a registry without hosts".to_owned()));
            retry.pause(self.client.inner.transport.counters(), error).await?;
            all = true;
        }
    }
}

/// What asking for a tail brought.
enum TailAnswer {
    Tail(Tail),
    Length(u64),
}

async fn read_exactly(
    doing: &str,
    mut response: Response,
    len: u64,
    patience: Patience,
) -> Result<Bytes, RegistryError> {
    let mut bytes = BytesMut::new();
    while let Some(chunk) = next_chunk(doing, &mut response, patience.answer).await? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() as u64 > len {
            break;
        }
    }
    if bytes.len() as u64 == len {
        return Ok(bytes.freeze());
    }
    let reason = format!("a body of {} bytes instead of {len}", bytes.len());
    Err(RegistryError::Corrupt { doing: doing.to_owned(), host: name_of(response.url()), reason })
}

/// A page instead of a blob: what captive portals and login walls answer with 200.
pub(crate) fn is_page(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/html"))
}

#[async_trait]
impl Origin for RegistryBlob {
    fn id(&self) -> &ContentId {
        &self.id
    }

    fn known_len(&self) -> Option<u64> {
        self.len.get().copied()
    }

    fn expected_digest(&self) -> Option<Digest> {
        Some(self.digest)
    }

    fn locator(&self) -> Option<Locator> {
        if matches!(self.asker.auth, Auth::Caller(Some(_))) {
            return None;
        }
        let registry = name_of(&self.origin.as_ref().ok()?.base);
        Some(Locator { registry, repository: self.repository.clone(), digest: self.digest })
    }

    async fn tail(&self, at_most: u64) -> Result<Tail, ReadError> {
        let len = match self.known_len() {
            Some(len) => len,
            None => match self.tail_anywhere(at_most).await? {
                TailAnswer::Tail(tail) => return Ok(tail),
                TailAnswer::Length(len) => len,
            },
        };
        let range = ByteRange::new(len.saturating_sub(at_most), len);
        Ok(Tail { len, bytes: self.read(range, Urgency::Blocking).await? })
    }

    async fn read(&self, range: ByteRange, urgency: Urgency) -> Result<Bytes, ReadError> {
        let room = usize::try_from(range.len().min(READ_CAPACITY)).unwrap_or_default();
        let mut bytes = BytesMut::with_capacity(room);
        let mut fetch = Fetch::new(range, urgency);
        while let Some(chunk) = fetch.next(self).await? {
            if chunk.len() as u64 == range.len() {
                return Ok(chunk);
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.freeze())
    }

    fn stream(self: Arc<Self>, range: ByteRange, urgency: Urgency) -> ByteStream {
        let fetch = Fetch::new(range, urgency);
        futures::stream::try_unfold((self, fetch), |(blob, mut fetch)| async move {
            let chunk = fetch.next(&blob).await?;
            Ok(chunk.map(|chunk| (chunk, (blob, fetch))))
        })
        .boxed()
    }
}
