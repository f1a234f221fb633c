//! The client: configuration, manifests, and the blobs that can be opened.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use content::{Digest, Locator, Origin};
use http::header::ACCEPT;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use url::Url;

use crate::answer::{media_type_of, on_one_line, read_limited, status_error};
use crate::ask::{Ask, Auth};
use crate::auth::Tokens;
use crate::contacts::Contacts;
use crate::credentials::CredentialSource;
use crate::error::RegistryError;
use crate::hosts::{Aside, Endpoint, HostsConfig, Need, registry_of};
use crate::manifest::Descriptor;
use crate::manifest::media_type::is_schema_1;
use crate::origin::{Asker, RegistryBlob};
use crate::pace::Pace;
use crate::pools::Pools;
use crate::proxies::Proxies;
use crate::reference::{DOCKER_HUB, Reference};
use crate::retry::{Patience, Retries, Retry};
use crate::tally::{HostAsked, Tally};
use crate::transport::{Transport, Trust, Usage};
use crate::upstreams::{UpstreamError, Upstreams, check_form, name_of};

/// The longest manifest that is read. Registries must take 4 MiB; none is known to take more than this.
const MAX_MANIFEST: usize = 8 << 20;

/// How to reach registries.
#[derive(Clone, Debug, Default)]
pub struct ClientConfig {
    /// Mirrors, and places of registries.
    pub hosts: HostsConfig,
    /// In whose name.
    pub credentials: CredentialSource,
    /// Registries (`host[:port]`) that speak plain HTTP. Those on this machine do anyway.
    pub plain_http: Vec<String>,
    /// Registries (`host[:port]`) whose certificates are not checked.
    pub skip_tls_verify: Vec<String>,
    /// PEM files' contents: CAs that are trusted beside the system's.
    pub extra_roots: Vec<Vec<u8>>,
    /// HTTP proxies on the way.
    pub proxies: Proxies,
    /// `User-Agent`; `pantala/<version>` if empty.
    pub user_agent: String,
    /// For the head of an answer; `None` leaves it to the urgency of each read.
    pub request_timeout: Option<Duration>,
    /// How long a request without progress is tried again; `None` leaves it to the kind of request.
    pub patience: Option<Duration>,
    /// How often, and with which pauses.
    pub retries: Retries,
    /// What may be asked because the network named it; `None` refuses all of it.
    pub upstreams: Option<Upstreams>,
}

/// A client of OCI registries. Clones share connections, tokens and counters.
#[derive(Clone)]
pub struct Client {
    pub(crate) inner: Arc<Inner>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("usage", &self.usage()).finish_non_exhaustive()
    }
}

pub(crate) struct Inner {
    pub(crate) transport: Arc<Transport>,
    pub(crate) tokens: Arc<Tokens>,
    pub(crate) aside: Arc<Aside>,
    pub(crate) pace: Arc<Pace>,
    pub(crate) hosts: HostsConfig,
    pub(crate) credentials: CredentialSource,
    pub(crate) upstreams: Option<Arc<Upstreams>>,
    pub(crate) plain_http: Vec<String>,
    pub(crate) skip_tls_verify: Vec<String>,
    pub(crate) request_timeout: Option<Duration>,
    pub(crate) patience: Option<Duration>,
    pub(crate) retries: Retries,
    pub(crate) contacts: Arc<Contacts>,
    pub(crate) tally: Arc<Tally>,
}

impl Client {
    /// A client. Nothing is asked yet.
    ///
    /// # Errors
    /// That an additional CA cannot be read.
    pub fn new(config: ClientConfig) -> Result<Self, RegistryError> {
        let user_agent = match config.user_agent.as_str() {
            "" => concat!("pantala/", env!("CARGO_PKG_VERSION")),
            named => named,
        };
        Ok(Self {
            inner: Arc::new(Inner {
                transport: Arc::new(Transport::new(
                    Pools::new(user_agent, &config.extra_roots)?,
                    config.proxies,
                )),
                tokens: Arc::default(),
                aside: Arc::default(),
                pace: Arc::default(),
                hosts: config.hosts,
                credentials: config.credentials,
                upstreams: config.upstreams.map(Arc::new),
                plain_http: config.plain_http,
                skip_tls_verify: config.skip_tls_verify,
                request_timeout: config.request_timeout,
                patience: config.patience,
                retries: config.retries,
                contacts: Arc::default(),
                tally: Arc::default(),
            }),
        })
    }

    fn with(&self, change: impl FnOnce(&mut Inner)) -> Self {
        let old = &self.inner;
        let mut inner = Inner {
            transport: Arc::clone(&old.transport),
            tokens: Arc::clone(&old.tokens),
            aside: Arc::clone(&old.aside),
            pace: Arc::clone(&old.pace),
            hosts: old.hosts.clone(),
            credentials: old.credentials.clone(),
            upstreams: old.upstreams.clone(),
            plain_http: old.plain_http.clone(),
            skip_tls_verify: old.skip_tls_verify.clone(),
            request_timeout: old.request_timeout,
            patience: old.patience,
            retries: old.retries,
            contacts: Arc::clone(&old.contacts),
            tally: Arc::clone(&old.tally),
        };
        change(&mut inner);
        Self { inner: Arc::new(inner) }
    }

    /// The same client with another allow-list for what the network names.
    #[must_use]
    pub fn with_upstreams(&self, upstreams: Upstreams) -> Self {
        self.with(|inner| inner.upstreams = Some(Arc::new(upstreams)))
    }

    /// What was asked for and received so far, over all clones.
    pub fn usage(&self) -> Usage {
        self.inner.transport.counters().usage()
    }

    /// Which hosts were asked so far, over all clones, and how that went.
    pub fn hosts_asked(&self) -> Vec<HostAsked> {
        self.inner.tally.all()
    }

    /// Fetches a manifest or an index: from a mirror if one has it, else from the registry.
    ///
    /// The descriptor's digest is that of the bytes; if `reference` names a digest, it is the same.
    ///
    /// # Errors
    /// What the registry answered, that it could not be reached, or that the bytes are others.
    pub async fn manifest(&self, reference: &Reference) -> Result<(Descriptor, Bytes), RegistryError> {
        let need = if reference.digest().is_some() { Need::Pull } else { Need::Resolve };
        let endpoints = || {
            let found = self.inner.endpoints(reference.registry(), need)?;
            if found.is_empty() { Err(no_hosts(reference.registry(), need)) } else { Ok(found) }
        };
        self.manifest_of(reference, &Auth::pull(reference.repository()), endpoints).await
    }

    /// What stands under `reference` where it is pushed to, asked as by who may push: of a repository that
    /// is not there yet, others learn nothing. `None` if there is nothing. Mirrors are not asked.
    ///
    /// # Errors
    /// As [`Client::manifest`], other than that there is nothing.
    pub async fn pushed_manifest(
        &self,
        reference: &Reference,
    ) -> Result<Option<(Descriptor, Bytes)>, RegistryError> {
        let endpoints = || Ok(vec![self.inner.push_base(reference.registry())?]);
        match self.manifest_of(reference, &Auth::push(reference.repository()), endpoints).await {
            Ok(found) => Ok(Some(found)),
            Err(RegistryError::Status { status: 404, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// From the first of `endpoints` that has it. The last one's word counts.
    async fn manifest_of(
        &self,
        reference: &Reference,
        auth: &Auth,
        endpoints: impl Fn() -> Result<Vec<Endpoint>, RegistryError>,
    ) -> Result<(Descriptor, Bytes), RegistryError> {
        let doing = format!("fetching the manifest of {reference}");
        let path = format!("{}/manifests/{}", reference.repository(), reference.manifest_name());
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, accept_manifests());
        let mut retry = Retry::new(self.inner.patience(Patience::control()));
        loop {
            let mut last = None;
            for endpoint in endpoints()? {
                match self.manifest_at(&doing, &endpoint, &path, &headers, auth, reference).await {
                    Ok(manifest) => return Ok(manifest),
                    Err(error) => last = Some(error),
                }
            }
            let Some(error) = last else { return Err(no_hosts(reference.registry(), Need::Pull)) };
            retry.pause(self.inner.transport.counters(), error).await?;
        }
    }

    async fn manifest_at(
        &self,
        doing: &str,
        endpoint: &Endpoint,
        path: &str,
        headers: &HeaderMap,
        auth: &Auth,
        reference: &Reference,
    ) -> Result<(Descriptor, Bytes), RegistryError> {
        let timeout = self.inner.timeout(endpoint, Patience::control().answer);
        let ask = Ask {
            doing,
            endpoint,
            method: Method::GET,
            url: endpoint.url(path),
            headers: headers.clone(),
            body: None,
            auth,
            trust: Trust::Configured,
            timeout,
            follow: true,
        };
        let mut response = self.inner.ask(ask).await?;
        if response.status() != StatusCode::OK {
            return Err(status_error(doing, response).await);
        }
        let bytes = read_limited(doing, &mut response, MAX_MANIFEST, timeout).await?;
        let digest = Digest::of(&bytes);
        let header = response.headers().get("docker-content-digest").and_then(|value| value.to_str().ok());
        let expected = reference.digest().or_else(|| header.and_then(|text| text.parse().ok()));
        if let Some(expected) = expected.filter(|expected| *expected != digest) {
            let host = name_of(response.url());
            return Err(RegistryError::Digest { doing: doing.to_owned(), host, expected, found: digest });
        }
        let media_type = media_type_of(response.headers(), &bytes);
        if is_schema_1(&media_type) {
            return Err(RegistryError::Schema1 {
                doing: doing.to_owned(),
                host: name_of(response.url()),
                media_type: on_one_line(&media_type),
            });
        }
        Ok((Descriptor::new(media_type, digest, bytes.len() as u64), bytes))
    }

    /// A blob of the repository of `reference`, read in this client's own name: mirrors first, then the
    /// registry. `size` is its length if a manifest told it.
    pub fn origin(&self, reference: &Reference, digest: &Digest, size: Option<u64>) -> Arc<dyn Origin> {
        let repository = reference.repository();
        let base = self.inner.base(reference.registry());
        let asker = Asker { auth: Auth::pull(repository), trust: Trust::Configured, mirrors: true };
        RegistryBlob::shared(self.clone(), reference.registry(), base, repository, *digest, size, asker)
    }

    /// A blob of the repository of `reference`, read with the credentials (or none) of a proxy's caller and
    /// no others, from the registry and no mirror.
    pub fn origin_with_header(
        &self,
        reference: &Reference,
        digest: &Digest,
        size: Option<u64>,
        authorization: Option<HeaderValue>,
    ) -> Arc<dyn Origin> {
        let base = self.inner.base(reference.registry());
        let repository = reference.repository();
        let asker = Asker { auth: Auth::Caller(authorization), trust: Trust::Named, mirrors: false };
        RegistryBlob::shared(self.clone(), reference.registry(), base, repository, *digest, size, asker)
    }

    /// As [`Client::origin_with_header`], at the registry whose scheme and host are `upstream`.
    ///
    /// # Errors
    /// That the allow-list does not let `upstream` be asked, or that a part is not well formed.
    pub fn origin_at(
        &self,
        upstream: &Upstream,
        repository: &str,
        digest: &Digest,
        size: Option<u64>,
        authorization: Option<HeaderValue>,
    ) -> Result<Arc<dyn Origin>, RegistryError> {
        let registry = self.check_named(&upstream.base, "opening a blob")?;
        let reference = Reference::new(&registry, repository)?;
        let base = Ok(self.inner.endpoint_at(upstream.base.clone(), upstream.insecure));
        let asker = Asker { auth: Auth::Caller(authorization), trust: Trust::Named, mirrors: false };
        let name = reference.registry();
        Ok(RegistryBlob::shared(self.clone(), name, base, repository, *digest, size, asker))
    }

    /// The blob that another node located, read in this client's own name; in nobody's if the place is named
    /// without TLS and the configuration does not say that it is asked so.
    ///
    /// # Errors
    /// That the allow-list does not let the place be asked, or that the locator is not well formed.
    pub fn origin_of(&self, locator: &Locator, size: Option<u64>) -> Result<Arc<dyn Origin>, RegistryError> {
        let doing = "opening a blob that another node named";
        let base = Url::parse(&locator.registry).map_err(|_| RegistryError::Refused {
            doing: doing.to_owned(),
            reason: UpstreamError::Url(locator.registry.chars().take(80).collect(), "it is no URL"),
        })?;
        let registry = self.check_named(&base, doing)?;
        let reference = Reference::new(&registry, &locator.repository)?;
        let mut root = base.clone();
        root.set_path("/");
        root.set_query(None);
        root.set_fragment(None);
        // Another node's word is not enough to send a password without TLS.
        let own = self.inner.base(&registry).is_ok_and(|own| own.base.origin() == root.origin());
        let auth = if own || root.scheme() == "https" {
            Auth::pull(&locator.repository)
        } else {
            Auth::Caller(None)
        };
        let insecure = self.inner.skip_tls_verify.contains(&registry);
        let base = Ok(self.inner.endpoint_at(root, insecure));
        let asker = Asker { auth, trust: Trust::Named, mirrors: true };
        let (name, repository) = (reference.registry(), reference.repository());
        Ok(RegistryBlob::shared(self.clone(), name, base, repository, locator.digest, size, asker))
    }

    /// The canonical registry at `url`, which the network named, if it may be asked.
    pub(crate) fn check_named(&self, url: &Url, doing: &str) -> Result<String, RegistryError> {
        let nobody = Upstreams::default();
        let upstreams = self.inner.upstreams.as_deref().unwrap_or(&nobody);
        upstreams.decide(url).map_err(|reason| RegistryError::Refused { doing: doing.to_owned(), reason })?;
        Ok(registry_of(url))
    }
}

/// A registry as a proxy's configuration or caller names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// Scheme, host and port.
    pub base: Url,
    /// Whether its certificates are not checked.
    pub insecure: bool,
}

impl Upstream {
    /// `https://registry.example`, `http://10.0.0.2:5000`, or a bare `host[:port]`, which `client` completes
    /// with the scheme that it would use itself. Any name of Docker Hub means the host that serves it.
    ///
    /// # Errors
    /// That it is no registry.
    pub fn parse(text: &str, client: &Client) -> Result<Self, RegistryError> {
        let wrong = |reason| RegistryError::Refused {
            doing: "finding the registry that was named".to_owned(),
            reason: UpstreamError::Url(text.chars().take(80).collect(), reason),
        };
        let endpoint = if text.contains("://") {
            let url = Url::parse(text).map_err(|_| wrong("it is no URL"))?;
            check_form(&url).map_err(|reason| RegistryError::Refused {
                doing: "finding the registry that was named".to_owned(),
                reason,
            })?;
            let name = registry_of(&url);
            if name == DOCKER_HUB {
                client.inner.base(&name)?
            } else {
                let insecure = client.inner.skip_tls_verify.contains(&name);
                let root = Url::parse(&name_of(&url)).map_err(|_| wrong("it is no URL"))?;
                client.inner.endpoint_at(root, insecure)
            }
        } else {
            // The checks of a reference are those of a host.
            let reference = Reference::new(text, "host").map_err(|_| wrong("it is no host"))?;
            client.inner.base(reference.registry())?
        };
        Ok(Self { base: endpoint.base, insecure: endpoint.tls.skip_verify })
    }

    /// The canonical name of the registry.
    pub fn registry(&self) -> String {
        registry_of(&self.base)
    }
}

/// The configuration leaves nobody to ask.
pub(crate) fn no_hosts(registry: &str, need: Need) -> RegistryError {
    RegistryError::Setup(format!(
        "no host of {registry} has the capability \"{need}\" in its hosts.toml: add it there"
    ))
}

pub(crate) fn accept_manifests() -> HeaderValue {
    HeaderValue::from_static(concat!(
        "application/vnd.oci.image.index.v1+json, ",
        "application/vnd.oci.image.manifest.v1+json, ",
        "application/vnd.docker.distribution.manifest.list.v2+json, ",
        "application/vnd.docker.distribution.manifest.v2+json"
    ))
}
