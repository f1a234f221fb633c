//! Requests over HTTP, one hop at a time.
//!
//! Redirects are followed here and not by the HTTP library, for three reasons: credentials must never
//! cross from one origin (scheme, host, port) to another, every hop must pass the policy, and the place
//! where a blob was found at the end is worth remembering.
//!
//! Each hop has a *ceiling* ([`Zone`]): a host that the user configured may lie anywhere; one that the
//! network named may lie only outside unless it is listed; and a redirect may go no further inside than the
//! address that sent it, so that a public registry cannot send this node to its own metadata service.
//! What goes through an HTTP proxy ([`crate::Proxies`]) has no address that could be checked; only chains of
//! requests that begin at a host that somebody configured go there.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, IF_RANGE, LOCATION, RANGE};
use http::{HeaderMap, Method, StatusCode};
use serde::Serialize;
use url::Url;

use crate::error::RegistryError;
use crate::failure::{blame_proxy, failure};
use crate::pools::{Pools, Way};
use crate::proxies::Proxies;
use crate::tls::Tls;
use crate::upstreams::{Allowed, UpstreamError, Upstreams, check_form, check_literal, name_of};
use crate::zone::Zone;

/// More redirects in a row than any registry needs.
const MAX_REDIRECTS: usize = 5;

/// How the first hop of a request came to be named.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Trust {
    /// The user named it: on the command line, in a configuration, as an image reference.
    Configured,
    /// The network named it: the allow-list decides.
    Named,
    /// An answer named it, and this was found to be how far it may reach ([`reach_of`]).
    UpTo(Reach),
}

/// How far a request may reach.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Reach {
    /// The furthest inside that its address may lie.
    pub ceiling: Zone,
    /// Whether it may go through a proxy: whether the chain that it belongs to began at a configured host.
    pub by_proxy: bool,
}

/// Counts of what went over the wire, over all clones of a client.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    requests: AtomicU64,
    redirects: AtomicU64,
    body_bytes: AtomicU64,
    sent_bytes: AtomicU64,
    retries: AtomicU64,
    hedges: AtomicU64,
}

/// What a client has asked for and received so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Usage {
    /// Requests sent, redirects and retries included.
    pub requests: u64,
    /// Redirects followed.
    pub redirects: u64,
    /// Attempts after the first one.
    pub retries: u64,
    /// Second questions, put because the first was not answered soon.
    pub hedges: u64,
    /// Bytes of bodies received.
    pub bytes: u64,
    /// Bytes of blobs and manifests sent.
    pub sent: u64,
}

impl Counters {
    pub(crate) fn received(&self, bytes: usize) {
        self.body_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn sent(&self, bytes: usize) {
        self.sent_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn retried(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn hedged(&self) {
        self.hedges.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn usage(&self) -> Usage {
        Usage {
            requests: self.requests.load(Ordering::Relaxed),
            redirects: self.redirects.load(Ordering::Relaxed),
            retries: self.retries.load(Ordering::Relaxed),
            hedges: self.hedges.load(Ordering::Relaxed),
            bytes: self.body_bytes.load(Ordering::Relaxed),
            sent: self.sent_bytes.load(Ordering::Relaxed),
        }
    }
}

/// One request. The body, if there is one, is sent at most once.
pub(crate) struct Request<'a> {
    /// What is being done, for errors.
    pub doing: &'a str,
    pub method: Method,
    pub url: Url,
    pub headers: HeaderMap,
    pub body: Option<reqwest::Body>,
    pub trust: Trust,
    /// For the first host and no other.
    pub tls: Arc<Tls>,
    pub follow: bool,
    /// Over a new connection, whatever connections there are.
    pub anew: bool,
    /// For the head of the answer, over all hops.
    pub timeout: Duration,
}

/// An answer, and where it came from in the end.
pub(crate) struct Response {
    inner: reqwest::Response,
    counters: Arc<Counters>,
    known: Option<bool>,
    /// Whether it came through a proxy, and whether it might have.
    came_by_proxy: bool,
    may_by_proxy: bool,
}

impl Response {
    pub(crate) fn status(&self) -> StatusCode {
        self.inner.status()
    }

    pub(crate) fn headers(&self) -> &HeaderMap {
        self.inner.headers()
    }

    /// Whether there were credentials for who answered; `None` if nobody looked.
    pub(crate) fn known(&self) -> Option<bool> {
        self.known
    }

    /// Notes that, for the error which a refusal becomes.
    pub(crate) fn with_known(self, known: bool) -> Self {
        Self { known: Some(known), ..self }
    }

    pub(crate) fn url(&self) -> &Url {
        self.inner.url()
    }

    /// How far the place of this answer may be asked again.
    pub(crate) fn reach(&self) -> Reach {
        Reach { ceiling: self.zone(), by_proxy: self.may_by_proxy }
    }

    /// The zone that the answer came from. A proxy stands between us and the outside, wherever it lies.
    fn zone(&self) -> Zone {
        if self.came_by_proxy {
            return Zone::Public;
        }
        self.inner.remote_addr().map_or(Zone::Public, |address| Zone::of(address.ip()))
    }

    /// The next part of the body.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, reqwest::Error> {
        let chunk = self.inner.chunk().await?;
        if let Some(bytes) = &chunk {
            self.counters.received(bytes.len());
        }
        Ok(chunk)
    }
}

/// The connection pools, and the policy.
pub(crate) struct Transport {
    pools: Pools,
    proxies: Proxies,
    counters: Arc<Counters>,
}

impl Transport {
    pub(crate) fn new(pools: Pools, proxies: Proxies) -> Self {
        Self { pools, proxies, counters: Arc::default() }
    }

    pub(crate) fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Sends `request`, and follows redirects if it may.
    ///
    /// # Errors
    /// That a hop was refused or did not answer. Every status is an answer.
    pub(crate) async fn send(
        &self,
        request: Request<'_>,
        upstreams: Option<&Upstreams>,
    ) -> Result<Response, RegistryError> {
        let Request { doing, method, url, headers, body, trust, tls, follow, anew, timeout } = request;
        let first_host = name_of(&url);
        let hops = self.hops(Hops { doing, method, url, headers, body, trust, tls, follow, anew, upstreams });
        tokio::time::timeout(timeout, hops).await.unwrap_or_else(|_| {
            Err(RegistryError::Timeout { doing: doing.to_owned(), host: first_host, after: timeout })
        })
    }

    async fn hops(&self, hops: Hops<'_>) -> Result<Response, RegistryError> {
        let Hops { doing, method, mut url, mut headers, mut body, trust, mut tls, follow, anew, upstreams } =
            hops;
        let refused = |reason| RegistryError::Refused { doing: doing.to_owned(), reason };
        let mut reach = match trust {
            Trust::Configured => check_form(&url).map(|()| ANYWHERE).map_err(refused)?,
            Trust::Named => named_reach(&url, upstreams).map_err(refused)?,
            Trust::UpTo(reach) => {
                check_form(&url).map_err(refused)?;
                check_literal(&url, reach.ceiling).map_err(|beyond| refused(beyond.into()))?;
                reach
            }
        };
        for _ in 0..=MAX_REDIRECTS {
            let proxy = self.proxies.of(&url).filter(|_| reach.by_proxy);
            let came_by_proxy = proxy.is_some();
            // The proxy is configured: its own address may lie anywhere.
            let ceiling = if came_by_proxy { Zone::Special } else { reach.ceiling };
            let pool = self.pools.of(&Way { ceiling, tls: Arc::clone(&tls), proxy: proxy.cloned(), anew })?;
            let mut call = pool.request(method.clone(), url.clone()).headers(headers.clone());
            if let Some(body) = body.take() {
                call = call.body(body);
            }
            self.counters.requests.fetch_add(1, Ordering::Relaxed);
            let sent = call.send().await;
            let inner = sent.map_err(|error| blame_proxy(failure(doing, &url, &error), proxy))?;
            let counters = Arc::clone(&self.counters);
            let may_by_proxy = reach.by_proxy;
            let response = Response { inner, counters, known: None, came_by_proxy, may_by_proxy };
            let Some(target) = redirect_target(&response).filter(|_| follow) else {
                return Ok(response);
            };
            self.counters.redirects.fetch_add(1, Ordering::Relaxed);
            reach = reach_of(&target, &response, upstreams).map_err(refused)?;
            if target.origin() != url.origin() {
                headers = harmless(&headers);
                tls = Arc::default();
            }
            url = target;
        }
        let reason = format!("more than {MAX_REDIRECTS} redirects");
        Err(RegistryError::Corrupt { doing: doing.to_owned(), host: name_of(&url), reason })
    }
}

struct Hops<'a> {
    doing: &'a str,
    method: Method,
    url: Url,
    headers: HeaderMap,
    body: Option<reqwest::Body>,
    trust: Trust,
    tls: Arc<Tls>,
    follow: bool,
    anew: bool,
    upstreams: Option<&'a Upstreams>,
}

/// For what somebody configured.
const ANYWHERE: Reach = Reach { ceiling: Zone::Special, by_proxy: true };

fn named_reach(url: &Url, upstreams: Option<&Upstreams>) -> Result<Reach, UpstreamError> {
    match upstreams.unwrap_or(&Upstreams::default()).decide(url)? {
        Allowed::Listed => Ok(ANYWHERE),
        Allowed::UpTo(ceiling) => Ok(Reach { ceiling, by_proxy: false }),
    }
}

/// What another origin may be told: never credentials, cookies, or headers made for a mirror.
fn harmless(headers: &HeaderMap) -> HeaderMap {
    let mut kept = HeaderMap::new();
    for name in [ACCEPT, ACCEPT_ENCODING, RANGE, IF_RANGE] {
        for value in headers.get_all(&name) {
            kept.append(name.clone(), value.clone());
        }
    }
    kept
}

/// Where an answer may send us: anywhere that is listed, else no further inside than where it came from.
pub(crate) fn reach_of(
    target: &Url,
    response: &Response,
    upstreams: Option<&Upstreams>,
) -> Result<Reach, UpstreamError> {
    check_form(target)?;
    if upstreams.is_some_and(|upstreams| upstreams.lists(target)) {
        return Ok(ANYWHERE);
    }
    let same_host = target.host() == response.url().host();
    let ceiling = if same_host { response.zone() } else { response.zone().min(Zone::Loopback) };
    // The same name through the same proxy is no new place, whatever it looks like.
    if !(same_host && response.came_by_proxy) {
        check_literal(target, ceiling)?;
    }
    Ok(Reach { ceiling, by_proxy: response.may_by_proxy })
}

fn redirect_target(response: &Response) -> Option<Url> {
    let status = response.status().as_u16();
    if !matches!(status, 301 | 302 | 303 | 307 | 308) {
        return None;
    }
    let location = response.headers().get(LOCATION)?.to_str().ok()?;
    response.url().join(location).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_refused_address_is_named_as_such() {
        let transport = Transport::new(Pools::new("test", &[]).unwrap(), Proxies::none());
        let upstreams = Upstreams::new(&[], true).unwrap();
        let request = |url: &str| Request {
            doing: "testing",
            method: Method::GET,
            url: Url::parse(url).unwrap(),
            headers: HeaderMap::new(),
            body: None,
            trust: Trust::Named,
            tls: Arc::default(),
            follow: true,
            anew: false,
            timeout: Duration::from_secs(5),
        };
        for url in ["http://localhost:9/", "http://127.0.0.1:9/", "http://[::1]:9/"] {
            let error = transport.send(request(url), Some(&upstreams)).await.err().unwrap();
            assert!(matches!(error, RegistryError::Refused { .. }), "{url}: {error}");
            let error = transport.send(request(url), None).await.err().unwrap();
            assert!(matches!(error, RegistryError::Refused { .. }), "{url}: {error}");
        }
        assert_eq!(transport.counters().usage().requests, 1, "only the name needed the resolver");
    }
}
