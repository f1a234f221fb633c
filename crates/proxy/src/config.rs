//! What a proxy is told.

use registry::{Client, Upstream, UpstreamError, UpstreamRule, Upstreams};
use url::Url;

use crate::ProxyError;

/// How a proxy behaves. The address it listens on is the caller's listener.
#[derive(Clone, Debug)]
pub struct ProxyConfig {
    /// The registry that requests without another upstream are for.
    pub registry_mirror: RegistryMirror,
    /// Tried in order against a request's URL; the first that matches decides. Empty means one rule for
    /// registry blobs.
    pub rules: Vec<ProxyRule>,
    /// Query parameters that do not tell content apart, joined by `&`.
    pub default_filter: String,
    /// Upstreams that may be named, private ones among them. If empty, public ones may be.
    pub white_list: Vec<UpstreamRule>,
    /// User and password that callers must show in `Proxy-Authorization`.
    pub basic_auth: Option<BasicAuth>,
    /// Connections at once; more wait to be accepted.
    pub max_connections: usize,
}

/// The registry that the mirror stands for.
#[derive(Clone, Debug)]
pub struct RegistryMirror {
    /// Scheme and host.
    pub url: String,
    /// Whether requests may name another registry (`X-Dragonfly-Registry`, `?ns=`) that the white list does
    /// not: public ones only, and only while the white list is empty.
    pub dynamic: bool,
    /// Whether the certificate of `url` is not checked.
    pub insecure: bool,
    /// Whether everything passes through.
    pub direct: bool,
}

/// One rule about requests.
#[derive(Clone, Debug, Default)]
pub struct ProxyRule {
    /// A regular expression for the URL.
    pub regx: String,
    /// Ask the upstream over https although the caller said http.
    pub use_https: bool,
    /// Pass through, without the cluster.
    pub direct: bool,
    /// Ask this host instead.
    pub redirect: Option<String>,
}

/// What a caller must know to use the proxy.
#[derive(Clone)]
pub struct BasicAuth {
    /// The user.
    pub username: String,
    /// The password.
    pub password: String,
}

impl std::fmt::Debug for BasicAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BasicAuth(hidden)")
    }
}

impl Default for ProxyConfig {
    fn default() -> Self {
        Self {
            registry_mirror: RegistryMirror {
                url: "https://index.docker.io".to_owned(),
                dynamic: true,
                insecure: false,
                direct: false,
            },
            rules: Vec::new(),
            default_filter: "Expires&Signature&ns".to_owned(),
            white_list: Vec::new(),
            basic_auth: None,
            max_connections: 1024,
        }
    }
}

impl ProxyConfig {
    /// What requests to the mirror, and other nodes of the cluster, may name: the mirror's own registry, the
    /// white list, and with `dynamic` and without a white list everything public.
    ///
    /// # Errors
    /// That an expression or the mirror's URL is wrong.
    pub fn upstreams(&self, client: &Client) -> Result<Upstreams, ProxyError> {
        self.list(client, self.registry_mirror.dynamic)
    }

    /// What a forward proxy's callers may name: as above, `dynamic` or not.
    pub(crate) fn forward_upstreams(&self, client: &Client) -> Result<Upstreams, ProxyError> {
        self.list(client, true)
    }

    fn list(&self, client: &Client, dynamic: bool) -> Result<Upstreams, ProxyError> {
        let list = Upstreams::new(&self.white_list, dynamic && self.white_list.is_empty());
        let list = list.map_err(|error: UpstreamError| ProxyError::Config(error.to_string()))?;
        let mut list = list.with_listed(&self.mirror(client)?.base);
        // Hosts that a rule leads to are named by the configuration as well.
        let hosts = self.rules.iter().filter_map(|rule| rule.redirect.as_deref());
        for host in hosts.filter(|host| !host.contains('/')) {
            for scheme in ["http", "https"] {
                if let Ok(url) = Url::parse(&format!("{scheme}://{host}/")) {
                    list = list.with_listed(&url);
                }
            }
        }
        Ok(list)
    }

    /// The mirror's own registry.
    pub(crate) fn mirror(&self, client: &Client) -> Result<Upstream, ProxyError> {
        let mut upstream = Upstream::parse(&self.registry_mirror.url, client)
            .map_err(|error| ProxyError::Config(format!("registryMirror.url: {error}")))?;
        upstream.insecure |= self.registry_mirror.insecure;
        Ok(upstream)
    }
}
