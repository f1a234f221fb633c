//! What a failed request is told by: the HTTP library hides the cause below several errors, and what lies on
//! top repeats the URL.

use std::error::Error as _;

use url::Url;

use crate::error::RegistryError;
use crate::pools::CONNECT_TIMEOUT;
use crate::upstreams::name_of;
use crate::zone::BeyondCeiling;

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

/// Says that there was a proxy on the way, whose fault it may be.
pub(crate) fn blame_proxy(error: RegistryError, proxy: Option<&Url>) -> RegistryError {
    match (error, proxy) {
        (RegistryError::Connect { doing, host, reason }, Some(proxy)) => {
            let reason = format!("through the proxy {}: {reason}", name_of(proxy));
            RegistryError::Connect { doing, host, reason }
        }
        (error, _) => error,
    }
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
pub(crate) fn chain(error: &reqwest::Error) -> String {
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
