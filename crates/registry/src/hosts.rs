//! Where a registry's content can be asked for: its mirrors in order, then itself.
//!
//! A mirror is told by `?ns=` whose content is meant, as containerd does. One that does not answer is put
//! aside for a while, so that a dead mirror costs one time limit and not one per request.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::HeaderMap;
use tokio::time::Instant;
use url::Url;

use crate::error::RegistryError;
use crate::reference::{DOCKER_HUB, canonical_registry};

/// How long a mirror is put aside after its first failure; doubles up to [`LONGEST_ASIDE`].
const FIRST_ASIDE: Duration = Duration::from_secs(5);
const LONGEST_ASIDE: Duration = Duration::from_mins(1);
/// Hosts that are remembered as failing. More than any configuration has mirrors.
const MAX_ASIDE: usize = 256;

/// Somewhere else to ask for a registry's content first.
#[derive(Clone, Debug, Default)]
pub struct Mirror {
    /// `host[:port]`, or a URL with scheme and perhaps a path before `/v2`.
    pub host: String,
    /// Ask over plain HTTP. Mirrors on this machine are asked so anyway.
    pub insecure: bool,
    /// Sent with every request to it.
    pub headers: HeaderMap,
    /// For the head of an answer; `None` leaves it to the urgency of the read.
    pub request_timeout: Option<Duration>,
}

/// The mirrors of each registry.
#[derive(Clone, Debug, Default)]
pub struct HostsConfig {
    mirrors: BTreeMap<String, Vec<Mirror>>,
}

impl HostsConfig {
    /// No mirrors.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a mirror of `registry` behind those that it has.
    pub fn add(&mut self, registry: &str, mirror: Mirror) {
        self.mirrors.entry(canonical_registry(registry)).or_default().push(mirror);
    }

    /// Keeps the mirrors for which `keep(registry, mirror)` is true. A node that reads through the swarm
    /// drops the mirror that is its own proxy.
    pub fn retain(&mut self, mut keep: impl FnMut(&str, &Mirror) -> bool) {
        for (registry, mirrors) in &mut self.mirrors {
            mirrors.retain(|mirror| keep(registry, mirror));
        }
    }

    /// The mirrors of `registry`, in order.
    pub fn mirrors(&self, registry: &str) -> &[Mirror] {
        self.mirrors.get(&canonical_registry(registry)).map_or(&[], Vec::as_slice)
    }

    /// Every registry that has mirrors.
    pub fn registries(&self) -> impl Iterator<Item = &str> {
        self.mirrors.keys().map(String::as_str)
    }
}

/// One place to ask.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    /// Scheme, host, port, and perhaps a path that stands before `/v2`.
    pub base: Url,
    /// The registry whose content a mirror is asked for.
    pub namespace: Option<String>,
    pub headers: HeaderMap,
    pub timeout: Option<Duration>,
    /// Whether certificates are not checked.
    pub insecure_tls: bool,
}

impl Endpoint {
    pub(crate) fn origin(base: Url, insecure_tls: bool) -> Self {
        Self { base, namespace: None, headers: HeaderMap::new(), timeout: None, insecure_tls }
    }

    /// A mirror of `registry`; `None` if its host is no host.
    pub(crate) fn mirror(registry: &str, mirror: &Mirror) -> Option<Self> {
        let base = if mirror.host.contains("://") {
            Url::parse(&mirror.host).ok()?
        } else {
            base_url(&mirror.host, mirror.insecure).ok()?
        };
        base.host_str()?;
        Some(Self {
            base,
            namespace: Some(registry.to_owned()),
            headers: mirror.headers.clone(),
            timeout: mirror.request_timeout,
            insecure_tls: false,
        })
    }

    pub(crate) const fn is_mirror(&self) -> bool {
        self.namespace.is_some()
    }

    /// `host[:port]`: what credentials and tokens are kept under.
    pub(crate) fn authority(&self) -> String {
        let host = self.base.host_str().unwrap_or_default();
        let authority = self.base.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        canonical_registry(&authority)
    }

    /// The URL of `path` below `/v2/`.
    pub(crate) fn url(&self, path: &str) -> Url {
        let mut url = self.base.clone();
        let prefix = self.base.path().trim_end_matches('/');
        url.set_path(&format!("{prefix}/v2/{path}"));
        url.set_query(None);
        if let Some(namespace) = &self.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        url
    }
}

/// Where `registry` itself is asked.
///
/// # Errors
/// That it is no host.
pub(crate) fn base_url(registry: &str, plain_http: bool) -> Result<Url, RegistryError> {
    let host = if registry == DOCKER_HUB { "registry-1.docker.io" } else { registry };
    let scheme = if plain_http || is_this_machine(host) { "http" } else { "https" };
    Url::parse(&format!("{scheme}://{host}/"))
        .map_err(|error| RegistryError::Setup(format!("{registry:?} is no registry host: {error}")))
}

/// Registries on this machine are asked over plain HTTP, as Docker and containerd do.
fn is_this_machine(host: &str) -> bool {
    let name = host
        .strip_prefix('[')
        .and_then(|rest| rest.split_once(']'))
        .map_or_else(|| host.rsplit_once(':').map_or(host, |(name, _)| name), |(address, _)| address);
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The name of the registry at `base`, whatever host name it was reached by.
pub(crate) fn registry_of(base: &Url) -> String {
    let host = base.host_str().unwrap_or_default();
    canonical_registry(&base.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}")))
}

/// Mirrors that failed a short time ago.
#[derive(Debug, Default)]
pub(crate) struct Aside(Mutex<HashMap<String, (Instant, Duration)>>);

impl Aside {
    /// `endpoint` did not do what it should at `now`.
    pub(crate) fn failed(&self, endpoint: &Endpoint, now: Instant) {
        if !endpoint.is_mirror() {
            return;
        }
        let mut aside = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if aside.len() >= MAX_ASIDE {
            aside.retain(|_, (until, _)| *until > now);
        }
        let entry = aside.entry(endpoint.authority()).or_insert((now, FIRST_ASIDE / 2));
        // Requests that were under way together are one failure.
        if entry.0 <= now {
            entry.1 = (entry.1 * 2).min(LONGEST_ASIDE);
            entry.0 = now + entry.1;
        }
    }

    pub(crate) fn answered(&self, endpoint: &Endpoint) {
        if endpoint.is_mirror() {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&endpoint.authority());
        }
    }

    pub(crate) fn is_aside(&self, endpoint: &Endpoint, now: Instant) -> bool {
        if !endpoint.is_mirror() {
            return false;
        }
        let aside = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        aside.get(&endpoint.authority()).is_some_and(|(until, _)| *until > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_built_as_registries_expect_them() {
        let hub = Endpoint::origin(base_url("docker.io", false).unwrap(), false);
        assert_eq!(hub.url("a/b").as_str(), "https://registry-1.docker.io/v2/a/b");
        assert_eq!(hub.authority(), "docker.io");
        let local = base_url("127.0.0.1:5000", false).unwrap();
        assert_eq!(local.as_str(), "http://127.0.0.1:5000/");
        assert_eq!(base_url("[::1]:5000", false).unwrap().scheme(), "http");
        assert_eq!(base_url("localhost.example", false).unwrap().scheme(), "https");
        assert_eq!(base_url("10.0.0.2:5000", true).unwrap().scheme(), "http");
        let mirror = Mirror { host: "https://m.example/cache/".to_owned(), ..Mirror::default() };
        let mirror = Endpoint::mirror("docker.io", &mirror).unwrap();
        assert_eq!(mirror.url("a/b").as_str(), "https://m.example/cache/v2/a/b?ns=docker.io");
    }

    #[test]
    fn a_mirror_that_fails_is_left_alone_for_longer_each_time() {
        let mirror = Mirror { host: "m.example".to_owned(), ..Mirror::default() };
        let mirror = Endpoint::mirror("docker.io", &mirror).unwrap();
        let aside = Aside::default();
        let start = Instant::now();
        assert!(!aside.is_aside(&mirror, start));
        aside.failed(&mirror, start);
        aside.failed(&mirror, start);
        assert!(aside.is_aside(&mirror, start));
        let later = start + FIRST_ASIDE;
        assert!(!aside.is_aside(&mirror, later), "two failures at once are one");
        aside.failed(&mirror, later);
        assert!(aside.is_aside(&mirror, later + FIRST_ASIDE));
        assert!(!aside.is_aside(&mirror, later + FIRST_ASIDE * 2));
        aside.failed(&mirror, later + FIRST_ASIDE * 2);
        aside.answered(&mirror);
        assert!(!aside.is_aside(&mirror, later + FIRST_ASIDE * 2));
    }
}
