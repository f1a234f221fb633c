//! Which upstream a request is for.

use content::Digest;
use http::header::{AUTHORIZATION, HeaderValue};
use http::{Method, Request, StatusCode};
use registry::{Client, Upstream};
use url::Url;

use crate::answer::Blame;
use crate::headers::{REGISTRY, text};

/// Where a request goes.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    pub url: Url,
    /// Whether the upstream's certificate is not checked.
    pub insecure: bool,
    /// Whether the request came to the mirror (`GET /v2/…`) and not to the forward proxy (`GET http://…`).
    pub mirror: bool,
}

/// Why a request goes nowhere.
#[derive(Debug)]
pub(crate) struct NoRoute {
    pub status: StatusCode,
    pub blame: Blame,
    pub message: String,
}

impl NoRoute {
    fn bad(message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, blame: Blame::Proxy, message: message.into() }
    }
}

/// A registry blob, as a URL names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BlobUrl {
    pub upstream: Upstream,
    pub repository: String,
    pub digest: Digest,
}

/// The upstream of `request`: its absolute URL; else the registry that its header or `?ns=` names; else the
/// mirror's own. Whether that may be asked is decided by whoever asks.
pub(crate) fn find<B>(request: &Request<B>, mirror: &Upstream, client: &Client) -> Result<Route, NoRoute> {
    let uri = request.uri();
    if uri.authority().is_some() {
        let url = Url::parse(&uri.to_string()).map_err(|error| NoRoute::bad(format!("the URL: {error}")))?;
        return Ok(Route { url, insecure: false, mirror: false });
    }
    let path = uri.path();
    if !path.starts_with('/') {
        return Err(NoRoute::bad("the request has no path"));
    }
    let pairs: Vec<(String, String)> = uri
        .query()
        .map(|query| url::form_urlencoded::parse(query.as_bytes()).into_owned().collect())
        .unwrap_or_default();
    let namespace = pairs.iter().find(|(name, _)| name == "ns").map(|(_, value)| value.as_str());
    let named = match text(request.headers(), &REGISTRY).or(namespace).filter(|name| !name.is_empty()) {
        Some(name) => named_upstream(name, mirror, client)?,
        None => mirror.clone(),
    };
    let mut url = named.base.clone();
    url.set_path(path);
    // The query goes on as it was written, but for the part that was meant for this proxy.
    let rest = uri.query().map(|query| query.split('&').filter(|part| !part.starts_with("ns=")));
    let rest = rest.map(|parts| parts.collect::<Vec<_>>().join("&")).filter(|query| !query.is_empty());
    url.set_query(rest.as_deref());
    Ok(Route { url, insecure: named.insecure, mirror: true })
}

fn named_upstream(name: &str, mirror: &Upstream, client: &Client) -> Result<Upstream, NoRoute> {
    let named = Upstream::parse(name, client).map_err(|error| NoRoute::bad(error.to_string()))?;
    // A bare host that is the mirror's own is asked the way that the configuration says.
    let same = named.registry() == mirror.registry() && (named.base == mirror.base || !name.contains("://"));
    Ok(if same { mirror.clone() } else { named })
}

/// The blob that `url` names, if it is one: `/v2/<repository>/blobs/sha256:<hex>`.
pub(crate) fn blob(url: &Url, insecure: bool) -> Option<BlobUrl> {
    let (repository, digest) = url.path().strip_prefix("/v2/")?.rsplit_once("/blobs/")?;
    let digest = digest.parse().ok()?;
    let mut base = url.clone();
    base.set_path("/");
    base.set_query(None);
    base.set_fragment(None);
    Some(BlobUrl { upstream: Upstream { base, insecure }, repository: repository.to_owned(), digest })
}

/// The repository of a manifest's URL.
pub(crate) fn manifest_repository(method: &Method, url: &Url) -> Option<String> {
    let (repository, _) = url.path().strip_prefix("/v2/")?.rsplit_once("/manifests/")?;
    (*method == Method::GET).then(|| repository.to_owned())
}

/// The caller's own credentials.
pub(crate) fn authorization<B>(request: &Request<B>) -> Option<HeaderValue> {
    request.headers().get(AUTHORIZATION).cloned()
}

#[cfg(test)]
mod tests {
    use registry::ClientConfig;

    use super::*;

    fn route(uri: &str, header: Option<&str>) -> Result<String, NoRoute> {
        let client = Client::new(ClientConfig::default()).unwrap();
        let mirror = Upstream::parse("https://index.docker.io", &client).unwrap();
        let mut request = Request::builder().uri(uri);
        if let Some(header) = header {
            request = request.header(REGISTRY, header);
        }
        find(&request.body(()).unwrap(), &mirror, &client).map(|route| route.url.to_string())
    }

    #[test]
    fn the_upstream_is_found_where_callers_name_it() {
        let blob = "/v2/library/python/blobs/sha256:00";
        for (uri, header, expected) in [
            (blob, None, "https://registry-1.docker.io/v2/library/python/blobs/sha256:00"),
            ("/v2/", Some("https://index.docker.io"), "https://registry-1.docker.io/v2/"),
            ("/v2/a/tags/list?ns=docker.io&n=5", None, "https://registry-1.docker.io/v2/a/tags/list?n=5"),
            ("/v2/?ns=ghcr.io", None, "https://ghcr.io/v2/"),
            ("/v2/?ns=ghcr.io", Some("https://quay.io"), "https://quay.io/v2/"),
            ("/v2/?ns=127.0.0.1:5000", None, "http://127.0.0.1:5000/v2/"),
            ("/v2/?a=%2F&ns=ghcr.io&b=+", None, "https://ghcr.io/v2/?a=%2F&b=+"),
            ("http://r.example/v2/a?ns=x", None, "http://r.example/v2/a?ns=x"),
            ("/v2/", Some("https://r.example:5000/path?q#f"), "https://r.example:5000/v2/"),
        ] {
            assert_eq!(route(uri, header).unwrap(), expected, "{uri} {header:?}");
        }
        for (uri, header) in [
            ("/v2/", Some("file:///etc")),
            ("/v2/", Some("https://user:pw@r.example")),
            ("/v2/", Some("not a host")),
            ("/v2/?ns=a%0d%0ab", None),
            ("/v2/?ns=r.example/../x", None),
        ] {
            assert!(route(uri, header).is_err(), "{uri} {header:?}");
        }
    }

    #[test]
    fn blobs_are_told_from_everything_else() {
        let hex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let found = |path: &str| blob(&Url::parse(&format!("http://r.example:5000{path}")).unwrap(), false);
        let good = found(&format!("/v2/a/b/blobs/sha256:{hex}?x=1")).unwrap();
        assert_eq!(
            (good.upstream.base.as_str(), good.repository.as_str()),
            ("http://r.example:5000/", "a/b")
        );
        for other in
            ["/v2/a/manifests/latest", "/v2/a/blobs/uploads/", "/v2/a/blobs/sha256:00", "/blobs/sha256:00"]
        {
            assert!(found(other).is_none(), "{other}");
        }
    }
}
