//! Everything that the cluster has no part in, passed through as it comes.
//!
//! One thing is read on the way: a manifest that the registry gives a caller says which blobs the caller may
//! read, and saves it the question for each of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use content::{ByteStream, Fault, ReadError, ReadErrorKind};
use futures::{StreamExt, TryStreamExt};
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use registry::{ForwardRequest, Forwarded, Manifest, media_type};
use url::Url;

use crate::answer::{Body, full, of_read_error, of_registry_error, stream};
use crate::grants::{Grant, Key};
use crate::headers::{for_upstream, strip_hop_by_hop};
use crate::route::{authorization, manifest_repository};
use crate::server::Shared;

/// For the head of an answer. Uploads are answered when the registry has stored them.
const ANSWER_LIMIT: Duration = Duration::from_mins(10);
/// A manifest longer than this is passed on unread.
const MAX_MANIFEST: u64 = 4 << 20;

/// Passes `request` on to `url`, and the answer back.
pub(crate) async fn pass(
    shared: &Arc<Shared>,
    request: Request<Incoming>,
    url: Url,
    insecure: bool,
    mirror: bool,
) -> Response<Body> {
    let method = request.method().clone();
    let caller = authorization(&request);
    let repository = manifest_repository(&method, &url);
    let mut headers = for_upstream(&request);
    shared.add_via(&mut headers);
    let body = request.into_body();
    let body = if body.is_end_stream() { None } else { Some(incoming(body)) };
    let name = registry::canonical_registry(&host_and_port(&url));
    let forward = ForwardRequest {
        method: method.clone(),
        url,
        headers,
        body,
        insecure,
        configured: false,
        follow: false,
        timeout: ANSWER_LIMIT,
    };
    let mut answer = match shared.client(mirror).forward(forward).await {
        Ok(answer) => answer,
        Err(error) => {
            tracing::debug!(%error, "a request could not be passed on");
            return of_registry_error(&error);
        }
    };
    strip_hop_by_hop(&mut answer.headers);
    if let Some(repository) = repository.filter(|_| is_readable_manifest(&answer)) {
        return manifest(shared, answer, &name, &repository, caller.as_ref()).await;
    }
    let empty = method == Method::HEAD || answer.status == StatusCode::NOT_MODIFIED;
    let body = if empty { full("") } else { stream(answer.body) };
    respond(answer.status, answer.headers, body)
}

fn respond(status: StatusCode, headers: HeaderMap, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// The caller's body as bytes.
fn incoming(body: Incoming) -> ByteStream {
    let frames = body.into_data_stream();
    let failed = |error: hyper::Error| {
        ReadError::new(Fault::Caller, ReadErrorKind::Other, format!("reading the caller's body: {error}"))
    };
    frames.map_err(failed).boxed()
}

fn host_and_port(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

fn is_readable_manifest(answer: &Forwarded) -> bool {
    let length =
        answer.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    answer.status == StatusCode::OK
        && !answer.headers.contains_key(CONTENT_ENCODING)
        && length.is_some_and(|length| length <= MAX_MANIFEST)
}

/// Reads a manifest whole, grants its blobs, and gives it to the caller.
async fn manifest(
    shared: &Shared,
    answer: Forwarded,
    registry: &str,
    repository: &str,
    caller: Option<&HeaderValue>,
) -> Response<Body> {
    let whole = answer.body.try_fold(BytesMut::new(), |mut whole, chunk| async move {
        whole.extend_from_slice(&chunk);
        Ok(whole)
    });
    let bytes: Bytes = match whole.await {
        Ok(bytes) => bytes.freeze(),
        Err(error) => return of_read_error(&error),
    };
    if let Ok(manifest) = serde_json::from_slice::<Manifest>(&bytes) {
        let now = Instant::now();
        for descriptor in manifest.layers.iter().chain([&manifest.config]) {
            // The registry has not seen blobs that lie elsewhere: listing one proves nothing.
            if descriptor.urls.is_some() || media_type::is_foreign(&descriptor.media_type) {
                continue;
            }
            let key = Key::new(registry, repository, &descriptor.digest, caller);
            shared.grants.give(key, Grant { size: Some(descriptor.size) }, now);
        }
    }
    respond(answer.status, answer.headers, full(bytes))
}
