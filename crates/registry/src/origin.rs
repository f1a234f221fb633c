//! A blob at its registry: [`content::Origin`] over HTTP ranges.
//!
//! A read is one ranged request. Around it stands what makes it dependable:
//!
//! * **Hosts.** Mirrors are tried in order, then the registry, anew for each request; whatever fails with
//!   something that another host may not fail with is left for the next one, and whoever is silent for longer than
//!   it should be has company ([`crate::race`]).
//! * **Resumption.** A body that breaks is gone on with where it broke, perhaps at another host.
//! * **Doubt.** A server may ignore `Range` and send the whole blob (the part is cut out of it), send less
//!   than it was asked for (the rest is asked for again), or contradict what is known of the blob's length
//!   (its bytes are not used).
//! * **Shortcuts.** The tail is asked for as a suffix, so that the length comes with it; the place that a
//!   registry redirects to is remembered and asked directly until it refuses.

mod tail;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use content::{ByteRange, ByteStream, ContentId, Digest, Locator, Origin, ReadError, Tail, Urgency};
use futures::StreamExt;
use http::header::{CONTENT_TYPE, RANGE};
use http::{HeaderMap, HeaderValue, Method};
use tokio::time::Instant;
use url::Url;

use crate::answer::status_error;
use crate::ask::{Ask, Auth};
use crate::client::Client;
use crate::error::RegistryError;
use crate::fetch::Fetch;
use crate::hosts::{Endpoint, Need};
use crate::origin::tail::TailAnswer;
use crate::retry::Patience;
use crate::transport::{Reach, Request, Response, Trust};
use crate::upstreams::name_of;

/// How long a redirect's target is used before the registry is asked again. Registries sign such URLs for
/// ten minutes and more.
const REDIRECT_LIFE: Duration = Duration::from_mins(4);
/// Answers whose host is remembered: more than are under way at once.
const SERVED: usize = 64;
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
    /// Which host the last answers came from.
    served: Mutex<VecDeque<(ByteRange, String)>>,
}

/// Where a host redirected to.
#[derive(Clone)]
struct Found {
    host: String,
    url: Url,
    reach: Reach,
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
        Arc::new(Self::new(client, registry, origin, repository, digest, size, asker))
    }

    pub(crate) fn new(
        client: Client,
        registry: &str,
        origin: Result<Endpoint, RegistryError>,
        repository: &str,
        digest: Digest,
        size: Option<u64>,
        asker: Asker,
    ) -> Self {
        let len = OnceLock::new();
        if let Some(size) = size {
            len.get_or_init(|| size);
        }
        Self {
            client,
            id: ContentId::claimed(registry, &digest),
            registry: registry.to_owned(),
            origin,
            repository: repository.to_owned(),
            digest,
            len,
            asker,
            found: Mutex::default(),
            served: Mutex::default(),
        }
    }

    pub(crate) const fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) fn registry(&self) -> &str {
        &self.registry
    }

    pub(crate) fn doing(&self) -> String {
        format!("reading {} of {}/{}", self.digest, self.registry, self.repository)
    }

    /// Where to ask, in order: mirrors that failed a short time ago are last, who sent wrong bytes of this blob
    /// still behind them, and `silent`, who does not go on with an answer, at the very end.
    pub(crate) fn endpoints(&self, silent: Option<&Endpoint>) -> Result<Vec<Endpoint>, RegistryError> {
        let origin = self.origin.clone()?;
        if !self.asker.mirrors {
            return Ok(vec![origin]);
        }
        let inner = &self.client.inner;
        let (mut endpoints, mut aside) = inner.with_mirrors(&self.registry, origin, Need::Pull);
        endpoints.append(&mut aside);
        if endpoints.len() > 1 {
            endpoints.sort_by_cached_key(|endpoint| {
                let is_silent = silent.is_some_and(|silent| silent.base == endpoint.base);
                (is_silent, inner.pace.has_lied(&endpoint.authority(), self.digest))
            });
        }
        Ok(endpoints)
    }

    /// Notes which host `range` came from, in case it turns out to be wrong.
    pub(crate) fn served(&self, range: ByteRange, endpoint: &Endpoint) {
        if !self.asker.mirrors || self.client.inner.hosts.mirrors(&self.registry).is_empty() {
            return;
        }
        let mut served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        if served.len() >= SERVED {
            served.pop_front();
        }
        served.push_back((range, endpoint.authority()));
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
        // A new connection is wanted when something is frozen: perhaps what was found.
        if !endpoint.anew
            && let Some(response) = self.get_found(doing, endpoint, &headers, patience).await
        {
            self.note_contact();
            return Ok(response);
        }
        let response = self.ask(doing, endpoint, Method::GET, headers, patience).await?;
        match response.status().as_u16() {
            200 | 206 => {
                self.remember(endpoint, &response);
                self.note_contact();
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
            trust: Trust::UpTo(found.reach),
            tls: Arc::default(),
            follow: false,
            anew: false,
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

    /// A caller's credentials say nothing of this client's own.
    fn note_contact(&self) {
        if matches!(self.asker.auth, Auth::Own(_)) {
            self.client.inner.contacts.note(&self.registry, &self.repository);
        }
    }

    fn remember(&self, endpoint: &Endpoint, response: &Response) {
        if response.url().origin() == endpoint.base.origin() {
            return;
        }
        let found = Found {
            host: name_of(&endpoint.base),
            url: response.url().clone(),
            reach: response.reach(),
            until: Instant::now() + REDIRECT_LIFE,
        };
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
    }
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
        let mut fetch = Fetch::new(self, range, urgency);
        while let Some(chunk) = fetch.next(self).await? {
            if chunk.len() as u64 == range.len() {
                return Ok(chunk);
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.freeze())
    }

    async fn reject(&self, range: ByteRange) {
        let served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, host) in served.iter().filter(|(other, _)| !other.intersect(&range).is_empty()) {
            self.client.inner.pace.lied(host, self.digest);
        }
    }

    fn stream(self: Arc<Self>, range: ByteRange, urgency: Urgency) -> ByteStream {
        let fetch = Fetch::new(&self, range, urgency);
        futures::stream::try_unfold((self, fetch), |(blob, mut fetch)| async move {
            let chunk = fetch.next(&blob).await?;
            Ok(chunk.map(|chunk| (chunk, (blob, fetch))))
        })
        .boxed()
    }
}
