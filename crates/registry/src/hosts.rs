//! Where a registry's content can be asked for: its mirrors in order, then itself.
//!
//! A mirror is told by `?ns=` whose content is meant, as containerd does. One that does not answer is put
//! aside for a while, so that a dead mirror costs one time limit and not one per request.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::HeaderMap;
use tokio::time::Instant;
use url::Url;

use crate::error::RegistryError;
use crate::reference::{DOCKER_HUB, canonical_registry};
use crate::tls::Tls;

/// Where Docker Hub is asked.
const HUB_HOST: &str = "registry-1.docker.io";
/// What [`HostsConfig::retain`] calls the registries that are not listed.
const DEFAULT: &str = "_default";
/// How long a mirror is put aside after its first failure; doubles up to [`LONGEST_ASIDE`].
const FIRST_ASIDE: Duration = Duration::from_secs(5);
const LONGEST_ASIDE: Duration = Duration::from_mins(1);
/// How long the others wait for the one request that finds out whether a host is well again.
const PROBE: Duration = Duration::from_secs(2);
/// Hosts that are remembered as failing. More than any configuration has mirrors.
const MAX_ASIDE: usize = 256;

/// What a host may be asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capabilities {
    /// Content by its digest.
    pub pull: bool,
    /// What a tag stands for.
    pub resolve: bool,
    /// Uploads.
    pub push: bool,
}

impl Capabilities {
    /// A mirror is read from, unless more is said.
    pub const READ: Self = Self { pull: true, resolve: true, push: false };
    /// Everything.
    pub const ALL: Self = Self { pull: true, resolve: true, push: true };
}

impl Default for Capabilities {
    fn default() -> Self {
        Self::READ
    }
}

/// What a question needs of a host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Need {
    Pull,
    Resolve,
    Push,
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pull => "pull",
            Self::Resolve => "resolve",
            Self::Push => "push",
        })
    }
}

/// A host to ask for a registry's content.
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
    /// What it may be asked for.
    pub capabilities: Capabilities,
    /// The path of `host` stands in place of `/v2`, not before it.
    pub override_path: bool,
    /// How it is connected with over HTTPS.
    pub tls: Tls,
}

/// What is configured for one registry.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hosts {
    pub mirrors: Vec<Mirror>,
    /// Where the registry itself is asked; with an empty host, by its own name.
    pub server: Option<Mirror>,
}

/// The mirrors of each registry, and how the registry itself is reached if not by its name alone.
#[derive(Clone, Debug, Default)]
pub struct HostsConfig {
    registries: BTreeMap<String, Hosts>,
    /// For registries that are not listed.
    default: Hosts,
}

impl HostsConfig {
    /// No mirrors.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a mirror of `registry` behind those that it has; of every registry that is not listed, if that is `*`.
    pub fn add(&mut self, registry: &str, mirror: Mirror) {
        if registry == "*" {
            self.default.mirrors.push(mirror);
            return;
        }
        self.registries.entry(canonical_registry(registry)).or_default().mirrors.push(mirror);
    }

    /// Connects with `host` so from now on, be it a registry itself or a mirror. Mirrors that have settings of their own
    /// keep them.
    pub fn secure(&mut self, host: &str, tls: &Tls) {
        let name = canonical_registry(host);
        let listed = self.registries.values_mut().chain([&mut self.default]);
        for mirror in listed.flat_map(|hosts| &mut hosts.mirrors) {
            let is_it = Endpoint::mirror("", mirror).is_some_and(|endpoint| endpoint.authority() == name);
            if is_it && mirror.tls == Tls::default() {
                mirror.tls = tls.clone();
            }
        }
        let hosts = self.registries.entry(name).or_default();
        let itself = Mirror { capabilities: Capabilities::ALL, ..Mirror::default() };
        hosts.server.get_or_insert(itself).tls = tls.clone();
    }

    pub(crate) fn insert(&mut self, registry: &str, hosts: Hosts) {
        self.registries.insert(canonical_registry(registry), hosts);
    }

    pub(crate) fn set_default(&mut self, hosts: Hosts) {
        self.default = hosts;
    }

    /// Adds what `other` says of registries that are not listed here.
    pub fn merge(&mut self, other: Self) {
        for (registry, hosts) in other.registries {
            self.registries.entry(registry).or_insert(hosts);
        }
        if self.default.mirrors.is_empty() && self.default.server.is_none() {
            self.default = other.default;
        }
    }

    /// Keeps the mirrors for which `keep(registry, mirror)` is true; `registry` is `_default` for those of
    /// registries that are not listed. A node that reads through the swarm drops the mirror that is its own
    /// proxy.
    pub fn retain(&mut self, mut keep: impl FnMut(&str, &Mirror) -> bool) {
        for (registry, hosts) in &mut self.registries {
            hosts.mirrors.retain(|mirror| keep(registry, mirror));
        }
        self.default.mirrors.retain(|mirror| keep(DEFAULT, mirror));
    }

    /// The mirrors of `registry`, in order.
    pub fn mirrors(&self, registry: &str) -> &[Mirror] {
        &self.of(registry).mirrors
    }

    /// Every registry that is listed.
    pub fn registries(&self) -> impl Iterator<Item = &str> {
        self.registries.keys().map(String::as_str)
    }

    /// Where `registry` itself is asked, if that is configured.
    pub(crate) fn server(&self, registry: &str) -> Option<&Mirror> {
        self.of(registry).server.as_ref()
    }

    fn of(&self, registry: &str) -> &Hosts {
        self.registries.get(&canonical_registry(registry)).unwrap_or(&self.default)
    }
}

/// One place to ask.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    /// Scheme, host and port.
    pub base: Url,
    /// What stands before the repository's name: `/v2`.
    api: String,
    mirror: bool,
    /// The registry whose content another host is asked for.
    namespace: Option<String>,
    pub headers: HeaderMap,
    pub timeout: Option<Duration>,
    pub tls: Arc<Tls>,
    pub capabilities: Capabilities,
    /// Over a new connection, whatever connections there are.
    pub anew: bool,
}

impl Endpoint {
    pub(crate) fn origin(base: Url, tls: Arc<Tls>) -> Self {
        let api = api_path(&base, false);
        Self {
            base,
            api,
            mirror: false,
            namespace: None,
            headers: HeaderMap::new(),
            timeout: None,
            tls,
            capabilities: Capabilities::ALL,
            anew: false,
        }
    }

    /// A mirror of `registry`; `None` if its host is no host.
    pub(crate) fn mirror(registry: &str, mirror: &Mirror) -> Option<Self> {
        let base = if mirror.host.contains("://") {
            Url::parse(&mirror.host).ok()?
        } else {
            base_url(&mirror.host, mirror.insecure).ok()?
        };
        base.host_str()?;
        Some(Self { mirror: true, ..Self::configured(registry, base, mirror) })
    }

    /// The registry itself, at the place that is configured for it. `plain_http` is for its own name.
    pub(crate) fn server(registry: &str, server: &Mirror, plain_http: bool) -> Result<Self, RegistryError> {
        let base = if server.host.is_empty() {
            let mut base = base_url(registry, plain_http)?;
            // Whoever configures certificates for it means HTTPS, on this machine too.
            if server.tls != Tls::default() && !plain_http {
                let _ = base.set_scheme("https");
            }
            base
        } else {
            Url::parse(&server.host)
                .map_err(|error| RegistryError::Setup(format!("{:?} is no URL: {error}", server.host)))?
        };
        Ok(Self::configured(registry, base, server))
    }

    fn configured(registry: &str, base: Url, host: &Mirror) -> Self {
        let mut endpoint = Self {
            api: api_path(&base, host.override_path),
            headers: host.headers.clone(),
            timeout: host.request_timeout,
            capabilities: host.capabilities,
            ..Self::origin(base, Arc::new(host.tls.clone()))
        };
        if endpoint.authority() == DOCKER_HUB {
            // Of the Hub's names, people write the one that serves web pages.
            let _ = endpoint.base.set_host(Some(HUB_HOST));
        }
        if endpoint.authority() != canonical_registry(registry) {
            endpoint.namespace = Some(registry.to_owned());
        }
        endpoint
    }

    /// The same place over a new connection.
    pub(crate) fn anew(&self) -> Self {
        Self { anew: true, ..self.clone() }
    }

    pub(crate) const fn is_mirror(&self) -> bool {
        self.mirror
    }

    pub(crate) const fn can(&self, need: Need) -> bool {
        match need {
            Need::Pull => self.capabilities.pull,
            Need::Resolve => self.capabilities.resolve,
            Need::Push => self.capabilities.push,
        }
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
        url.set_path(&format!("{}/{path}", self.api));
        url.set_query(None);
        if let Some(namespace) = &self.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        url
    }
}

/// What stands before a repository's name at `base`.
fn api_path(base: &Url, is_whole: bool) -> String {
    let path = base.path().trim_end_matches('/');
    if is_whole || path.ends_with("/v2") { path.to_owned() } else { format!("{path}/v2") }
}

/// Where `registry` itself is asked.
///
/// # Errors
/// That it is no host.
pub(crate) fn base_url(registry: &str, plain_http: bool) -> Result<Url, RegistryError> {
    let host = if registry == DOCKER_HUB { HUB_HOST } else { registry };
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
pub(crate) struct Aside(Mutex<HashMap<String, Failing>>);

#[derive(Debug)]
struct Failing {
    until: Instant,
    span: Duration,
    /// Somebody is finding out whether it is well again.
    is_probed: bool,
}

impl Aside {
    /// `endpoint` did not do what it should at `now`.
    pub(crate) fn failed(&self, endpoint: &Endpoint, now: Instant) {
        if !endpoint.is_mirror() {
            return;
        }
        let mut aside = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if aside.len() >= MAX_ASIDE {
            aside.retain(|_, failing| failing.until > now);
        }
        let fresh = Failing { until: now, span: FIRST_ASIDE / 2, is_probed: false };
        let failing = aside.entry(endpoint.authority()).or_insert(fresh);
        // Requests that were under way together are one failure.
        if failing.until <= now || failing.is_probed {
            failing.span = (failing.span * 2).min(LONGEST_ASIDE);
            failing.until = now + failing.span;
            failing.is_probed = false;
        }
    }

    pub(crate) fn answered(&self, endpoint: &Endpoint) {
        if endpoint.is_mirror() {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&endpoint.authority());
        }
    }

    /// Whether `endpoint` is asked before others. When its time aside is over, one request finds out for all
    /// whether it is well again: for a moment the next ones still go elsewhere first.
    pub(crate) fn admits(&self, endpoint: &Endpoint, now: Instant) -> bool {
        if !endpoint.is_mirror() {
            return true;
        }
        let mut aside = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(failing) = aside.get_mut(&endpoint.authority()) else { return true };
        if failing.until > now {
            return false;
        }
        failing.until = now + PROBE;
        failing.is_probed = true;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_built_as_registries_expect_them() {
        let hub = Endpoint::origin(base_url("docker.io", false).unwrap(), Arc::default());
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
        for (host, override_path, expected) in [
            ("https://m.example", false, "https://m.example/v2/a/b?ns=r.example"),
            ("https://m.example/v2/", false, "https://m.example/v2/a/b?ns=r.example"),
            ("https://m.example/api/v2", false, "https://m.example/api/v2/a/b?ns=r.example"),
            ("https://m.example/other", true, "https://m.example/other/a/b?ns=r.example"),
            ("https://m.example", true, "https://m.example/a/b?ns=r.example"),
            ("http://r.example", false, "http://r.example/v2/a/b"),
            ("https://docker.io", false, "https://registry-1.docker.io/v2/a/b?ns=r.example"),
        ] {
            let mirror = Mirror { host: host.to_owned(), override_path, ..Mirror::default() };
            let endpoint = Endpoint::mirror("r.example", &mirror).unwrap();
            assert_eq!(endpoint.url("a/b").as_str(), expected, "{host} {override_path}");
        }
    }

    #[test]
    fn a_mirror_that_fails_is_left_alone_for_longer_each_time() {
        let mirror = Mirror { host: "m.example".to_owned(), ..Mirror::default() };
        let mirror = Endpoint::mirror("docker.io", &mirror).unwrap();
        let aside = Aside::default();
        let start = Instant::now();
        assert!(aside.admits(&mirror, start));
        aside.failed(&mirror, start);
        aside.failed(&mirror, start);
        assert!(!aside.admits(&mirror, start));
        let later = start + FIRST_ASIDE;
        assert!(aside.admits(&mirror, later), "two failures at once are one");
        assert!(!aside.admits(&mirror, later), "one request finds out");
        aside.failed(&mirror, later);
        assert!(!aside.admits(&mirror, later + FIRST_ASIDE));
        assert!(aside.admits(&mirror, later + FIRST_ASIDE * 2));
        aside.failed(&mirror, later + FIRST_ASIDE * 4);
        aside.answered(&mirror);
        assert!(aside.admits(&mirror, later + FIRST_ASIDE * 4));
    }
}
