//! Headers that end here, and headers that say what Dragonfly's users say.

use http::header::{CONNECTION, HeaderName, HeaderValue};
use http::{HeaderMap, Request};

/// Headers that concern one connection only (RFC 9110, 7.6.1), and the old ones that proxies know.
const HOP_BY_HOP: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Why a request is not answered: `X-Dragonfly-Error-Type`.
pub(crate) const ERROR_TYPE: HeaderName = HeaderName::from_static("x-dragonfly-error-type");
/// The name of the content.
pub(crate) const TASK_ID: HeaderName = HeaderName::from_static("x-dragonfly-task-id");
/// Where the first bytes came from.
pub(crate) const SOURCE: HeaderName = HeaderName::from_static("x-pantala-source");
/// The registry that a request is for.
pub(crate) const REGISTRY: HeaderName = HeaderName::from_static("x-dragonfly-registry");
/// A path that the caller wants the content to be written to.
pub(crate) const OUTPUT_PATH: HeaderName = HeaderName::from_static("x-dragonfly-output-path");
/// A registry's own name of what it serves.
pub(crate) const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// Takes out what concerns one connection only.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

/// The caller's headers as the upstream may see them: none that are meant for this proxy.
pub(crate) fn for_upstream<B>(request: &Request<B>) -> HeaderMap {
    let mut headers = request.headers().clone();
    strip_hop_by_hop(&mut headers);
    headers.remove(http::header::HOST);
    let ours: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with("x-dragonfly-")).cloned().collect();
    for name in ours {
        headers.remove(name);
    }
    headers
}

/// The text of a header, if it has one.
pub(crate) fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// A header value of `text`; nothing if no header can carry it.
pub(crate) fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_concerns_one_connection_or_this_proxy_goes_no_further() {
        let request = Request::builder()
            .header("connection", "close, X-Private")
            .header("x-private", "1")
            .header("proxy-authorization", "Basic x")
            .header("transfer-encoding", "chunked")
            .header("x-dragonfly-registry", "https://r.example")
            .header("host", "127.0.0.1:65001")
            .header("authorization", "Bearer x")
            .header("range", "bytes=0-1")
            .body(())
            .unwrap();
        let mut names: Vec<String> =
            for_upstream(&request).keys().map(|name| name.as_str().to_owned()).collect();
        names.sort();
        assert_eq!(names, ["authorization", "range"]);
    }
}
