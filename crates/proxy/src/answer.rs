//! Answers: bodies, errors in the form that registry clients read, errors' statuses.

use bytes::Bytes;
use content::{ByteStream, Fault, ReadError, ReadErrorKind};
use futures::TryStreamExt;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use registry::RegistryError;

use crate::headers::{ERROR_TYPE, value};

/// A body of an answer. An error in it ends the connection: a client never takes a part for the whole.
pub(crate) type Body = UnsyncBoxBody<Bytes, ReadError>;

pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

pub(crate) fn stream(bytes: ByteStream) -> Body {
    StreamBody::new(bytes.map_ok(Frame::data)).boxed_unsync()
}

/// Who is to blame, in Dragonfly's words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Blame {
    /// The upstream.
    Backend,
    /// The request, or policy about it.
    Proxy,
    /// This node or the cluster.
    Node,
}

impl Blame {
    const fn word(self) -> &'static str {
        match self {
            Self::Backend => "backend",
            Self::Proxy => "proxy",
            Self::Node => "dfdaemon",
        }
    }
}

/// An answer that is an error.
pub(crate) fn error(status: StatusCode, blame: Blame, message: &str) -> Response<Body> {
    let code = match status {
        StatusCode::UNAUTHORIZED | StatusCode::PROXY_AUTHENTICATION_REQUIRED => "UNAUTHORIZED",
        StatusCode::FORBIDDEN => "DENIED",
        StatusCode::NOT_FOUND => "BLOB_UNKNOWN",
        StatusCode::TOO_MANY_REQUESTS => "TOOMANYREQUESTS",
        _ => "UNKNOWN",
    };
    let body = serde_json::json!({ "errors": [{ "code": code, "message": message }] });
    let mut response = Response::new(full(body.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(ERROR_TYPE, value(blame.word()));
    response
}

/// The answer to a request that could not be passed on.
pub(crate) fn of_registry_error(failed: &RegistryError) -> Response<Body> {
    let (status, blame) = match failed {
        RegistryError::Refused { .. } => (StatusCode::FORBIDDEN, Blame::Proxy),
        RegistryError::Reference(_) => (StatusCode::BAD_REQUEST, Blame::Proxy),
        RegistryError::Timeout { .. } => (StatusCode::GATEWAY_TIMEOUT, Blame::Backend),
        RegistryError::Setup(_) => (StatusCode::INTERNAL_SERVER_ERROR, Blame::Node),
        _ => (StatusCode::BAD_GATEWAY, Blame::Backend),
    };
    error(status, blame, &failed.to_string())
}

/// The answer to a blob that could not be read.
pub(crate) fn of_read_error(failed: &ReadError) -> Response<Body> {
    let status = match failed.kind() {
        ReadErrorKind::NotFound => StatusCode::NOT_FOUND,
        ReadErrorKind::Unauthorized => StatusCode::UNAUTHORIZED,
        ReadErrorKind::Forbidden | ReadErrorKind::Refused => StatusCode::FORBIDDEN,
        ReadErrorKind::OutOfRange => StatusCode::RANGE_NOT_SATISFIABLE,
        ReadErrorKind::NoSpace => StatusCode::INSUFFICIENT_STORAGE,
        ReadErrorKind::Cancelled => StatusCode::SERVICE_UNAVAILABLE,
        ReadErrorKind::Unavailable | ReadErrorKind::Corrupt => StatusCode::BAD_GATEWAY,
        ReadErrorKind::Other if failed.fault() == Fault::Origin => StatusCode::BAD_GATEWAY,
        ReadErrorKind::Other => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let status = failed.status().and_then(|status| StatusCode::from_u16(status).ok()).unwrap_or(status);
    let blame = match (failed.fault(), failed.kind()) {
        (_, ReadErrorKind::Refused) | (Fault::Caller, _) => Blame::Proxy,
        (Fault::Origin, _) => Blame::Backend,
        _ => Blame::Node,
    };
    error(status, blame, &failed.to_string())
}
