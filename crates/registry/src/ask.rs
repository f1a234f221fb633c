//! One question to one place: which places there are for a registry, and the conversation with one of them,
//! in whose name it is held, and what is answered to a challenge.

use std::sync::Arc;
use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use tokio::time::Instant;
use url::Url;

use crate::auth;
use crate::client::{Inner, no_hosts};
use crate::credentials::Asked;
use crate::error::RegistryError;
use crate::hosts::{Endpoint, Need, base_url, registry_of};
use crate::retry::Patience;
use crate::tls::Tls;
use crate::transport::{Request, Response, Trust};

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

impl Inner {
    /// Where `registry` itself is asked.
    pub(crate) fn base(&self, registry: &str) -> Result<Endpoint, RegistryError> {
        let listed = |list: &[String]| list.iter().any(|host| host == registry);
        let (plain_http, skip_verify) = (listed(&self.plain_http), listed(&self.skip_tls_verify));
        let mut endpoint = match self.hosts.server(registry) {
            Some(server) => Endpoint::server(registry, server, plain_http)?,
            None => Endpoint::origin(base_url(registry, plain_http)?, Arc::default()),
        };
        if skip_verify && !endpoint.tls.skip_verify {
            endpoint.tls = Arc::new(Tls { skip_verify, ..Tls::clone(&endpoint.tls) });
        }
        Ok(endpoint)
    }

    /// Where what is pushed to `registry` goes: the first host that is configured to take it, else itself.
    pub(crate) fn push_base(&self, registry: &str) -> Result<Endpoint, RegistryError> {
        let mirrors = self.hosts.mirrors(registry).iter();
        let mirrors = mirrors.filter_map(|mirror| Endpoint::mirror(registry, mirror));
        let mut hosts = mirrors.chain([self.base(registry)?]).filter(|host| host.can(Need::Push));
        hosts.next().ok_or_else(|| no_hosts(registry, Need::Push))
    }

    /// The place at `base`, connected with as the configuration says of the registry that it is.
    pub(crate) fn endpoint_at(&self, base: Url, insecure: bool) -> Endpoint {
        let tls = self.tls_of(&base, insecure);
        Endpoint::origin(base, tls)
    }

    /// How the host of `url` is connected with; `insecure` lets its certificates go unchecked.
    pub(crate) fn tls_of(&self, url: &Url, insecure: bool) -> Arc<Tls> {
        let own = self.base(&registry_of(url)).ok().filter(|own| own.base.origin() == url.origin());
        let tls = own.map(|own| own.tls).unwrap_or_default();
        if tls.skip_verify || !insecure {
            return tls;
        }
        Arc::new(Tls { skip_verify: true, ..Tls::clone(&tls) })
    }

    /// Mirrors that are not put aside, in order, then the registry itself.
    pub(crate) fn endpoints(&self, registry: &str, need: Need) -> Result<Vec<Endpoint>, RegistryError> {
        Ok(self.with_mirrors(registry, self.base(registry)?, need).0)
    }

    /// The mirrors of `registry` before `origin`, and those that are put aside.
    pub(crate) fn with_mirrors(
        &self,
        registry: &str,
        origin: Endpoint,
        need: Need,
    ) -> (Vec<Endpoint>, Vec<Endpoint>) {
        let now = Instant::now();
        let mirrors = self.hosts.mirrors(registry).iter();
        let mirrors = mirrors.filter_map(|mirror| Endpoint::mirror(registry, mirror));
        let (mut endpoints, aside): (Vec<Endpoint>, Vec<Endpoint>) =
            mirrors.filter(|endpoint| endpoint.can(need)).partition(|one| self.aside.admits(one, now));
        if origin.can(need) {
            endpoints.push(origin);
        }
        (endpoints, aside)
    }

    /// The time limit for the head of an answer: what is configured may only shorten it.
    pub(crate) fn timeout(&self, endpoint: &Endpoint, patience: Duration) -> Duration {
        endpoint.timeout.or(self.request_timeout).map_or(patience, |limit| limit.min(patience))
    }

    /// The bounds that `usual` becomes by the configuration.
    pub(crate) fn patience(&self, usual: Patience) -> Patience {
        Patience { total: self.patience.unwrap_or(usual.total), retries: self.retries, ..usual }
    }

    /// Puts one question, answering the registry's challenge if it has one. Every status but the 401 that
    /// could be answered is an answer. Keeps account of mirrors that fail.
    pub(crate) async fn ask(self: &Arc<Self>, ask: Ask<'_>) -> Result<Response, RegistryError> {
        let endpoint = ask.endpoint;
        let answered = self.ask_with_auth(ask).await;
        let well = answered
            .as_ref()
            .is_ok_and(|response| response.status().as_u16() < 500 && response.status() != 429);
        self.tally.note(endpoint.authority(), endpoint.is_mirror(), well);
        match &answered {
            Ok(_) if well => self.aside.answered(endpoint),
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
        let host = ask.endpoint.authority();
        let first = self.tokens.get(ask.endpoint, scope);
        let response = self.put(&ask, first.clone()).await?;
        // Only the registry's own challenge is answered, never that of a host it redirected to.
        if response.status() != StatusCode::UNAUTHORIZED || response.url().origin() != ask.url.origin() {
            return Ok(response);
        }
        let (challenged, mut last, mut tried, mut nth) = (response, None, first, 0);
        loop {
            let question = auth::Question { doing: ask.doing, endpoint: ask.endpoint, scope, nth };
            let (header, used) = match auth::answer(self, question, &challenged, tried.as_ref()).await {
                Ok(Some(found)) => found,
                Ok(None) => break,
                // What one candidate was answered counts more than why there is no other.
                Err(error) if last.is_some() => {
                    tracing::debug!(%error, "no further credentials");
                    break;
                }
                Err(error) => return Err(error),
            };
            let response = self.put(&ask, Some(header.clone())).await?;
            let is_refusal = matches!(response.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
            let is_own = response.url().origin() == ask.url.origin();
            if !is_refusal {
                return Ok(response);
            }
            (last, tried, nth) = (Some(response), Some(header), used + 1);
            if !is_own {
                break;
            }
        }
        let asked = Asked::of_scope(&host, scope);
        let known = self.credentials.lookup(&asked).await;
        Ok(last.unwrap_or(challenged).with_known(matches!(known, Ok(Some(_)))))
    }

    async fn put(
        &self,
        ask: &Ask<'_>,
        authorization: Option<HeaderValue>,
    ) -> Result<Response, RegistryError> {
        // What is configured for a host is not for the one that it names as the place of an upload.
        let is_own = ask.url.origin() == ask.endpoint.base.origin();
        let mut headers = if is_own { ask.endpoint.headers.clone() } else { HeaderMap::new() };
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
            tls: if is_own { Arc::clone(&ask.endpoint.tls) } else { Arc::default() },
            follow: ask.follow,
            anew: ask.endpoint.anew,
            timeout: ask.timeout,
        };
        self.transport.send(request, self.upstreams.as_deref()).await
    }
}
