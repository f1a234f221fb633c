//! Requests over HTTP, one hop at a time.
//!
//! Redirects are followed here and not by the HTTP library, for three reasons: credentials must never
//! cross from one origin (scheme, host, port) to another, every hop must pass the policy, and the place
//! where a blob was found at the end is worth remembering.
//!
//! Each hop has a *ceiling* ([`Zone`]): a host that the user configured may lie anywhere; one that the
//! network named may lie only outside unless it is listed; and a redirect may go no further inside than the
//! address that sent it, so that a public registry cannot send this node to its own metadata service.
//! A connection pool exists for each ceiling, because a pool reuses connections without resolving again.

use std::collections::HashMap;
use std::error::Error as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, IF_RANGE, LOCATION, RANGE};
use http::{HeaderMap, Method, StatusCode};
use serde::Serialize;
use url::Url;

use crate::error::RegistryError;
use crate::upstreams::{Allowed, UpstreamError, Upstreams, check_form, check_literal, name_of};
use crate::zone::{BeyondCeiling, CeilingResolver, Zone};

/// More redirects in a row than any registry needs.
const MAX_REDIRECTS: usize = 5;
/// A host that does not complete a handshake in this time is as good as down; the next one is asked.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Idle connections kept per host: as many as parallel ranges of one layer.
const IDLE_PER_HOST: usize = 8;
/// HTTP/2 windows. The protocol's 64 KiB would hold one stream to 26 Mbit/s at 20 ms.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// How the first hop of a request came to be named.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Trust {
    /// The user named it: on the command line, in a configuration, as an image reference.
    Configured,
    /// The network named it: the allow-list decides.
    Named,
    /// An answer named it, and this was found to be its ceiling ([`ceiling_of`]).
    UpTo(Zone),
}

/// Counts of what went over the wire, over all clones of a client.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    requests: AtomicU64,
    redirects: AtomicU64,
    body_bytes: AtomicU64,
    sent_bytes: AtomicU64,
    retries: AtomicU64,
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

    pub(crate) fn usage(&self) -> Usage {
        Usage {
            requests: self.requests.load(Ordering::Relaxed),
            redirects: self.redirects.load(Ordering::Relaxed),
            retries: self.retries.load(Ordering::Relaxed),
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
    /// Whether certificates of the first host are not checked.
    pub insecure: bool,
    pub follow: bool,
    /// For the head of the answer, over all hops.
    pub timeout: Duration,
}

/// An answer, and where it came from in the end.
pub(crate) struct Response {
    inner: reqwest::Response,
    counters: Arc<Counters>,
    known: Option<bool>,
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

    /// The zone that the answer came from.
    pub(crate) fn zone(&self) -> Zone {
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
    pools: Mutex<HashMap<(Zone, bool), reqwest::Client>>,
    extra_roots: Vec<reqwest::Certificate>,
    user_agent: String,
    counters: Arc<Counters>,
}

impl Transport {
    /// Pools whose TLS trusts the system's roots and `extra_roots` (PEM, any number of certificates each).
    pub(crate) fn new(user_agent: &str, extra_roots: &[Vec<u8>]) -> Result<Self, RegistryError> {
        // The binary has done this already; a test or a tool may not have. The second time is no error.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let mut roots = Vec::new();
        for pem in extra_roots {
            let certificates = reqwest::Certificate::from_pem_bundle(pem).map_err(|error| {
                RegistryError::Setup(format!("an additional CA file holds no PEM certificates: {error}"))
            })?;
            roots.extend(certificates);
        }
        Ok(Self {
            pools: Mutex::default(),
            extra_roots: roots,
            user_agent: user_agent.to_owned(),
            counters: Arc::default(),
        })
    }

    pub(crate) fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    fn pool(&self, ceiling: Zone, insecure: bool) -> Result<reqwest::Client, RegistryError> {
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = pools.get(&(ceiling, insecure)) {
            return Ok(pool.clone());
        }
        let builder = || {
            reqwest::Client::builder()
                .user_agent(&self.user_agent)
                .redirect(reqwest::redirect::Policy::none())
                .referer(false)
                .no_proxy()
                .tcp_nodelay(true)
                .connect_timeout(CONNECT_TIMEOUT)
                .pool_max_idle_per_host(IDLE_PER_HOST)
                .http2_initial_stream_window_size(STREAM_WINDOW)
                .http2_initial_connection_window_size(CONNECTION_WINDOW)
                .tls_danger_accept_invalid_certs(insecure)
                .dns_resolver(Arc::new(CeilingResolver(ceiling)))
        };
        let with_system_roots = builder().tls_certs_merge(self.extra_roots.iter().cloned()).build();
        let pool = with_system_roots.or_else(|error| {
            // A machine without ca-certificates still talks to plain-HTTP and extra-CA registries.
            tracing::warn!(%error, "no CA certificates on this machine: https registries need an extra CA file");
            builder().tls_certs_only(self.extra_roots.iter().cloned()).build()
        });
        let pool = pool.map_err(|error| RegistryError::Setup(chain(&error)))?;
        pools.insert((ceiling, insecure), pool.clone());
        Ok(pool)
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
        let Request { doing, method, url, headers, body, trust, insecure, follow, timeout } = request;
        let first_host = name_of(&url);
        let hops = self.hops(Hops { doing, method, url, headers, body, trust, insecure, follow, upstreams });
        tokio::time::timeout(timeout, hops).await.unwrap_or_else(|_| {
            Err(RegistryError::Timeout { doing: doing.to_owned(), host: first_host, after: timeout })
        })
    }

    async fn hops(&self, hops: Hops<'_>) -> Result<Response, RegistryError> {
        let Hops { doing, method, mut url, mut headers, mut body, trust, mut insecure, follow, upstreams } =
            hops;
        let refused = |reason| RegistryError::Refused { doing: doing.to_owned(), reason };
        let mut ceiling = match trust {
            Trust::Configured => check_form(&url).map(|()| Zone::Special).map_err(refused)?,
            Trust::Named => named_ceiling(&url, upstreams).map_err(refused)?,
            Trust::UpTo(zone) => {
                check_form(&url).map_err(refused)?;
                check_literal(&url, zone).map_err(|beyond| refused(beyond.into()))?;
                zone
            }
        };
        for _ in 0..=MAX_REDIRECTS {
            let mut call =
                self.pool(ceiling, insecure)?.request(method.clone(), url.clone()).headers(headers.clone());
            if let Some(body) = body.take() {
                call = call.body(body);
            }
            self.counters.requests.fetch_add(1, Ordering::Relaxed);
            let inner = call.send().await.map_err(|error| failure(doing, &url, &error))?;
            let response = Response { inner, counters: Arc::clone(&self.counters), known: None };
            let Some(target) = redirect_target(&response).filter(|_| follow) else {
                return Ok(response);
            };
            self.counters.redirects.fetch_add(1, Ordering::Relaxed);
            ceiling = ceiling_of(&target, &response, upstreams).map_err(refused)?;
            if target.origin() != url.origin() {
                headers = harmless(&headers);
                insecure = false;
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
    insecure: bool,
    follow: bool,
    upstreams: Option<&'a Upstreams>,
}

fn named_ceiling(url: &Url, upstreams: Option<&Upstreams>) -> Result<Zone, UpstreamError> {
    match upstreams.unwrap_or(&Upstreams::default()).decide(url)? {
        Allowed::Listed => Ok(Zone::Special),
        Allowed::UpTo(zone) => Ok(zone),
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
pub(crate) fn ceiling_of(
    target: &Url,
    response: &Response,
    upstreams: Option<&Upstreams>,
) -> Result<Zone, UpstreamError> {
    check_form(target)?;
    if upstreams.is_some_and(|upstreams| upstreams.lists(target)) {
        return Ok(Zone::Special);
    }
    let same_host = target.host() == response.url().host();
    let ceiling = if same_host { response.zone() } else { response.zone().min(Zone::Loopback) };
    check_literal(target, ceiling)?;
    Ok(ceiling)
}

fn redirect_target(response: &Response) -> Option<Url> {
    let status = response.status().as_u16();
    if !matches!(status, 301 | 302 | 303 | 307 | 308) {
        return None;
    }
    let location = response.headers().get(LOCATION)?.to_str().ok()?;
    response.url().join(location).ok()
}

/// A failed request, told by its innermost causes: the outer ones repeat the URL, which may hold secrets.
pub(crate) fn failure(doing: &str, url: &Url, error: &reqwest::Error) -> RegistryError {
    let mut cause = error.source();
    while let Some(inner) = cause {
        if let Some(beyond) = inner.downcast_ref::<BeyondCeiling>() {
            return RegistryError::Refused { doing: doing.to_owned(), reason: beyond.clone().into() };
        }
        if let Some(reason) = inner.downcast_ref::<content::ReadError>() {
            return RegistryError::Source { doing: doing.to_owned(), reason: reason.clone() };
        }
        if is_tls_refusal(inner) {
            return RegistryError::Tls { doing: doing.to_owned(), host: name_of(url), reason: chain(error) };
        }
        cause = inner.source();
    }
    if error.is_timeout() {
        return RegistryError::Timeout {
            doing: doing.to_owned(),
            host: name_of(url),
            after: CONNECT_TIMEOUT,
        };
    }
    RegistryError::Connect { doing: doing.to_owned(), host: name_of(url), reason: chain(error) }
}

/// Whether a handshake failed for a reason that the next one would fail for as well.
fn is_tls_refusal(cause: &(dyn std::error::Error + 'static)) -> bool {
    // An I/O error hides what it carries from `source`, and may carry another one.
    let mut innermost: &(dyn std::error::Error + 'static) = cause;
    while let Some(inner) = innermost.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
        innermost = inner;
    }
    matches!(
        innermost.downcast_ref(),
        Some(
            rustls::Error::InvalidCertificate(_)
                | rustls::Error::InvalidMessage(_)
                | rustls::Error::PeerIncompatible(_)
        )
    )
}

/// What the HTTP library says of a failed connection before it says why.
const EMPTY_WORDS: [&str; 4] =
    ["client error (Connect)", "tcp connect error", "dns error", "error resolving DNS"];

/// The causes of `error`, without the error itself.
fn chain(error: &reqwest::Error) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let text = inner.to_string();
        let says_more = !EMPTY_WORDS.contains(&text.as_str());
        if says_more && words.last().is_none_or(|last| !last.contains(&text)) {
            words.push(text);
        }
        cause = inner.source();
    }
    if words.is_empty() { "the connection failed".to_owned() } else { words.join(": ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_refused_address_is_named_as_such() {
        let transport = Transport::new("test", &[]).unwrap();
        let upstreams = Upstreams::new(&[], true).unwrap();
        let request = |url: &str| Request {
            doing: "testing",
            method: Method::GET,
            url: Url::parse(url).unwrap(),
            headers: HeaderMap::new(),
            body: None,
            trust: Trust::Named,
            insecure: false,
            follow: true,
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
