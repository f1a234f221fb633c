//! The client: configuration, one conversation with an endpoint, manifests.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use content::{Digest, Locator, Origin};
use http::header::{ACCEPT, AUTHORIZATION};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use tokio::time::Instant;
use url::Url;

use crate::answer::{media_type_of, read_limited, status_error};
use crate::auth::{self, Tokens};
use crate::credentials::CredentialSource;
use crate::error::RegistryError;
use crate::hosts::{Aside, Endpoint, HostsConfig, base_url, registry_of};
use crate::manifest::Descriptor;
use crate::origin::{Asker, RegistryBlob};
use crate::reference::{DOCKER_HUB, Reference};
use crate::retry::{Patience, Retry};
use crate::transport::{Request, Response, Transport, Trust, Usage};
use crate::upstreams::{UpstreamError, Upstreams, check_form, name_of};

/// The longest manifest that is read. Registries must take 4 MiB; none is known to take more than this.
const MAX_MANIFEST: usize = 8 << 20;

/// How to reach registries.
#[derive(Clone, Debug, Default)]
pub struct ClientConfig {
    /// Mirrors.
    pub hosts: HostsConfig,
    /// In whose name.
    pub credentials: CredentialSource,
    /// Registries (`host[:port]`) that speak plain HTTP. Those on this machine do anyway.
    pub plain_http: Vec<String>,
    /// Registries (`host[:port]`) whose certificates are not checked.
    pub skip_tls_verify: Vec<String>,
    /// PEM files' contents: CAs that are trusted beside the system's.
    pub extra_roots: Vec<Vec<u8>>,
    /// `User-Agent`; `pantala/<version>` if empty.
    pub user_agent: String,
    /// For the head of an answer; `None` leaves it to the urgency of each read.
    pub request_timeout: Option<Duration>,
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
    pub(crate) hosts: HostsConfig,
    pub(crate) credentials: CredentialSource,
    pub(crate) upstreams: Option<Arc<Upstreams>>,
    plain_http: Vec<String>,
    skip_tls_verify: Vec<String>,
    request_timeout: Option<Duration>,
}

/// In whose name one request is made.
#[derive(Clone, Debug)]
pub(crate) enum Auth {
    /// This client's own, for the scope.
    Own(String),
    /// What the caller of a proxy sent, and nothing else.
    Caller(Option<HeaderValue>),
}

impl Auth {
    /// Reading from a repository in this client's own name.
    pub(crate) fn pull(repository: &str) -> Self {
        Self::Own(format!("repository:{repository}:pull"))
    }

    /// Writing to a repository in this client's own name.
    pub(crate) fn push(repository: &str) -> Self {
        Self::Own(format!("repository:{repository}:pull,push"))
    }
}

/// One question to one endpoint.
pub(crate) struct Ask<'a> {
    pub doing: &'a str,
    pub endpoint: &'a Endpoint,
    pub method: Method,
    pub url: Url,
    pub headers: HeaderMap,
    /// Makes the body, again if the question has to be put again with a token.
    pub body: Option<&'a (dyn Fn() -> reqwest::Body + Send + Sync)>,
    pub auth: &'a Auth,
    pub trust: Trust,
    pub timeout: Duration,
    pub follow: bool,
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
                transport: Arc::new(Transport::new(user_agent, &config.extra_roots)?),
                tokens: Arc::default(),
                aside: Arc::default(),
                hosts: config.hosts,
                credentials: config.credentials,
                upstreams: config.upstreams.map(Arc::new),
                plain_http: config.plain_http,
                skip_tls_verify: config.skip_tls_verify,
                request_timeout: config.request_timeout,
            }),
        })
    }

    fn with(&self, change: impl FnOnce(&mut Inner)) -> Self {
        let old = &self.inner;
        let mut inner = Inner {
            transport: Arc::clone(&old.transport),
            tokens: Arc::clone(&old.tokens),
            aside: Arc::clone(&old.aside),
            hosts: old.hosts.clone(),
            credentials: old.credentials.clone(),
            upstreams: old.upstreams.clone(),
            plain_http: old.plain_http.clone(),
            skip_tls_verify: old.skip_tls_verify.clone(),
            request_timeout: old.request_timeout,
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

    /// Fetches a manifest or an index: from a mirror if one has it, else from the registry.
    ///
    /// The descriptor's digest is that of the bytes; if `reference` names a digest, it is the same.
    ///
    /// # Errors
    /// What the registry answered, that it could not be reached, or that the bytes are others.
    pub async fn manifest(&self, reference: &Reference) -> Result<(Descriptor, Bytes), RegistryError> {
        let doing = format!("fetching the manifest of {reference}");
        let path = format!("{}/manifests/{}", reference.repository(), reference.manifest_name());
        let auth = Auth::pull(reference.repository());
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, accept_manifests());
        let mut retry = Retry::new(Patience::control());
        loop {
            let mut last = None;
            for endpoint in self.inner.endpoints(reference.registry())? {
                let fetched = self.manifest_at(&doing, &endpoint, &path, &headers, &auth, reference).await;
                match fetched {
                    Ok(manifest) => return Ok(manifest),
                    Err(error) => last = Some(error),
                }
            }
            // The last endpoint is the registry itself: its word counts.
            let error = last.unwrap_or_else(|| RegistryError::Setup("a registry without hosts".to_owned()));
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
        let base = Ok(Endpoint::origin(upstream.base.clone(), upstream.insecure));
        let asker = Asker { auth: Auth::Caller(authorization), trust: Trust::Named, mirrors: false };
        let name = reference.registry();
        Ok(RegistryBlob::shared(self.clone(), name, base, repository, *digest, size, asker))
    }

    /// The blob that another node located, read in this client's own name.
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
        let insecure = self.inner.skip_tls_verify.contains(&registry);
        let base = Ok(Endpoint::origin(root, insecure));
        let asker = Asker { auth: Auth::pull(&locator.repository), trust: Trust::Named, mirrors: true };
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
                Endpoint::origin(root, insecure)
            }
        } else {
            // The checks of a reference are those of a host.
            let reference = Reference::new(text, "host").map_err(|_| wrong("it is no host"))?;
            client.inner.base(reference.registry())?
        };
        Ok(Self { base: endpoint.base, insecure: endpoint.insecure_tls })
    }

    /// The canonical name of the registry.
    pub fn registry(&self) -> String {
        registry_of(&self.base)
    }
}

impl Inner {
    /// Where `registry` itself is asked.
    pub(crate) fn base(&self, registry: &str) -> Result<Endpoint, RegistryError> {
        let listed = |list: &[String]| list.iter().any(|host| host == registry);
        let base = base_url(registry, listed(&self.plain_http))?;
        Ok(Endpoint::origin(base, listed(&self.skip_tls_verify)))
    }

    /// Mirrors that are not put aside, in order, then the registry itself.
    fn endpoints(&self, registry: &str) -> Result<Vec<Endpoint>, RegistryError> {
        Ok(self.with_mirrors(registry, self.base(registry)?, false))
    }

    /// The mirrors of `registry` before `origin`; also those that are put aside if `all`.
    pub(crate) fn with_mirrors(&self, registry: &str, origin: Endpoint, all: bool) -> Vec<Endpoint> {
        let now = Instant::now();
        let mirrors = self.hosts.mirrors(registry).iter();
        let mirrors = mirrors.filter_map(|mirror| Endpoint::mirror(registry, mirror));
        let mut endpoints: Vec<Endpoint> =
            mirrors.filter(|endpoint| all || !self.aside.is_aside(endpoint, now)).collect();
        endpoints.push(origin);
        endpoints
    }

    /// The time limit for the head of an answer: what is configured may only shorten it.
    pub(crate) fn timeout(&self, endpoint: &Endpoint, patience: Duration) -> Duration {
        endpoint.timeout.or(self.request_timeout).map_or(patience, |limit| limit.min(patience))
    }

    /// Puts one question, answering the registry's challenge if it has one. Every status but the 401 that
    /// could be answered is an answer. Keeps account of mirrors that fail.
    pub(crate) async fn ask(self: &Arc<Self>, ask: Ask<'_>) -> Result<Response, RegistryError> {
        let endpoint = ask.endpoint;
        let answered = self.ask_with_auth(ask).await;
        match &answered {
            Ok(response) if response.status().as_u16() < 500 && response.status() != 429 => {
                self.aside.answered(endpoint);
            }
            Ok(_) => self.aside.failed(endpoint, Instant::now()),
            Err(error) if error.is_transient() => self.aside.failed(endpoint, Instant::now()),
            Err(_) => {}
        }
        answered
    }

    async fn ask_with_auth(self: &Arc<Self>, ask: Ask<'_>) -> Result<Response, RegistryError> {
        let Auth::Own(scope) = ask.auth else {
            let Auth::Caller(header) = ask.auth else { return self.put(&ask, None).await };
            return self.put(&ask, header.clone()).await;
        };
        let first = self.tokens.get(ask.endpoint, scope);
        let response = self.put(&ask, first.clone()).await?;
        // Only the registry's own challenge is answered, never that of a host it redirected to.
        if response.status() != StatusCode::UNAUTHORIZED || response.url().origin() != ask.url.origin() {
            return Ok(response);
        }
        let header = auth::answer(self, ask.doing, ask.endpoint, scope, &response, first.as_ref()).await?;
        let response = match header {
            Some(header) => self.put(&ask, Some(header)).await?,
            None => response,
        };
        if !matches!(response.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            return Ok(response);
        }
        let known = self.credentials.lookup(&ask.endpoint.authority()).await;
        Ok(response.with_known(matches!(known, Ok(Some(_)))))
    }

    async fn put(
        &self,
        ask: &Ask<'_>,
        authorization: Option<HeaderValue>,
    ) -> Result<Response, RegistryError> {
        let mut headers = ask.endpoint.headers.clone();
        headers.extend(ask.headers.clone());
        if let Some(mut header) = authorization {
            header.set_sensitive(true);
            headers.insert(AUTHORIZATION, header);
        }
        let request = Request {
            doing: ask.doing,
            method: ask.method.clone(),
            url: ask.url.clone(),
            headers,
            body: ask.body.map(|make| make()),
            trust: ask.trust,
            insecure: ask.endpoint.insecure_tls,
            follow: ask.follow,
            timeout: ask.timeout,
        };
        self.transport.send(request, self.upstreams.as_deref()).await
    }
}

fn accept_manifests() -> HeaderValue {
    HeaderValue::from_static(concat!(
        "application/vnd.oci.image.index.v1+json, ",
        "application/vnd.oci.image.manifest.v1+json, ",
        "application/vnd.docker.distribution.manifest.list.v2+json, ",
        "application/vnd.docker.distribution.manifest.v2+json"
    ))
}
