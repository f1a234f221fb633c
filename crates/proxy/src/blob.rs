//! A registry blob through the cluster.
//!
//! First the registry's word that this caller may read it ([`crate::grants`]), then the bytes from wherever
//! they are. If the registry does not give its word, the caller is handed the registry's own answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use content::{BlobSource, ByteRange, Fault, ReadError, Urgency};
use futures::{FutureExt, StreamExt};
use http::header::{
    ACCEPT_RANGES, AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderValue,
    IF_NONE_MATCH, IF_RANGE, RANGE,
};
use http::{HeaderMap, Method, Response, StatusCode};
use registry::{ForwardRequest, Forwarded};
use url::Url;

use crate::answer::{Body, full, of_read_error, of_registry_error, stream};
use crate::grants::{Grant, Key};
use crate::headers::{CONTENT_DIGEST, SOURCE, TASK_ID, text, value};
use crate::range::{Wanted, wanted};
use crate::route::BlobUrl;
use crate::server::Shared;

/// The first read of an answer: one piece of the swarm. Its success is waited for before the head is sent, so
/// that a blob that cannot be read is an error with a status.
const FIRST_READ: u64 = 64 << 10;
/// For the registry's word.
const ASK_LIMIT: Duration = Duration::from_secs(30);

/// What became of a request for a blob.
pub(crate) enum Outcome {
    /// It is answered.
    Answer(Response<Body>),
    /// The registry does not let this caller read it: its own answer is to be passed on.
    Pass,
}

/// Answers a GET for `blob` with the caller's `headers`.
pub(crate) async fn serve(
    shared: &Arc<Shared>,
    blob: &BlobUrl,
    url: &Url,
    headers: &HeaderMap,
    mirror: bool,
) -> Outcome {
    let authorization = headers.get(AUTHORIZATION);
    let registry = blob.upstream.registry();
    let key = Key::new(&registry, &blob.repository, &blob.digest, authorization);
    let Some(grant) = granted(shared, key, blob, url, authorization, mirror).await else {
        return Outcome::Pass;
    };
    let origin = shared.client(mirror).origin_at(
        &blob.upstream,
        &blob.repository,
        &blob.digest,
        grant.size,
        authorization.cloned(),
    );
    let origin = match origin {
        Ok(origin) => origin,
        Err(error) => return Outcome::Answer(of_registry_error(&error)),
    };
    let opened = match shared.opener.open(origin, 0).await {
        Ok(opened) => opened.source,
        Err(error) => return failed(shared, &key, &error),
    };
    match answer(opened, blob, headers).await {
        Ok(response) => Outcome::Answer(response),
        Err(error) => failed(shared, &key, &error),
    }
}

/// A refusal of the registry is the caller's to see, and ends the grant.
fn failed(shared: &Shared, key: &Key, error: &ReadError) -> Outcome {
    if error.fault() == Fault::Origin
        && error.status().is_some_and(|status| matches!(status, 401 | 403 | 404))
    {
        shared.grants.take_back(key);
        return Outcome::Pass;
    }
    tracing::warn!(%error, "a blob could not be served");
    Outcome::Answer(of_read_error(error))
}

/// The registry's word, from memory or by asking.
async fn granted(
    shared: &Arc<Shared>,
    key: Key,
    blob: &BlobUrl,
    url: &Url,
    authorization: Option<&HeaderValue>,
    mirror: bool,
) -> Option<Grant> {
    if let Some(grant) = shared.grants.get(&key, Instant::now()) {
        return Some(grant);
    }
    let question = shared.grants.question(key, || {
        let shared = Arc::clone(shared);
        let (url, insecure, authorization) = (url.clone(), blob.upstream.insecure, authorization.cloned());
        async move {
            let grant = ask(&shared, &url, insecure, authorization, mirror).await;
            if let Some(grant) = grant {
                shared.grants.give(key, grant, Instant::now());
            }
            shared.grants.answered(&key);
            grant
        }
        .boxed()
    });
    question.await
}

/// Asks the registry with the caller's credentials: by `HEAD`, or for one byte where that leads elsewhere.
/// A redirect alone is no word: a login page is reached by one, too.
async fn ask(
    shared: &Shared,
    url: &Url,
    insecure: bool,
    authorization: Option<HeaderValue>,
    mirror: bool,
) -> Option<Grant> {
    let request = |method: Method, range: Option<&'static str>| {
        let mut headers = HeaderMap::new();
        if let Some(authorization) = &authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        if let Some(range) = range {
            headers.insert(RANGE, HeaderValue::from_static(range));
        }
        shared.add_via(&mut headers);
        let follow = range.is_some();
        let (url, body, timeout) = (url.clone(), None, ASK_LIMIT);
        ForwardRequest { method, url, headers, body, insecure, configured: false, follow, timeout }
    };
    let client = shared.client(mirror);
    let head = client.forward(request(Method::HEAD, None)).await.ok()?;
    match head.status.as_u16() {
        200 => Some(Grant { size: number(&head.headers, CONTENT_LENGTH.as_str()) }),
        301 | 302 | 303 | 307 | 308 | 405 => {
            let probe = client.forward(request(Method::GET, Some("bytes=0-0"))).await.ok()?;
            word_of_probe(&probe)
        }
        _ => None,
    }
}

fn word_of_probe(probe: &Forwarded) -> Option<Grant> {
    let page = text(&probe.headers, &CONTENT_TYPE).is_some_and(|kind| kind.starts_with("text/html"));
    match probe.status.as_u16() {
        206 => {
            let total = text(&probe.headers, &CONTENT_RANGE)?.rsplit_once('/')?.1.parse().ok();
            Some(Grant { size: total })
        }
        200 if !page => Some(Grant { size: number(&probe.headers, CONTENT_LENGTH.as_str()) }),
        _ => None,
    }
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

/// The head and body for an opened blob.
async fn answer(
    source: Arc<dyn BlobSource>,
    blob: &BlobUrl,
    headers: &HeaderMap,
) -> Result<Response<Body>, ReadError> {
    let len = source.len();
    let digest = blob.digest.to_string();
    let etag = format!("\"{digest}\"");
    let mut response = Response::new(full(""));
    let head = response.headers_mut();
    head.insert(CONTENT_DIGEST, value(&digest));
    head.insert(ETAG, value(&etag));
    head.insert(TASK_ID, value(&source.id().to_string()));
    head.insert("docker-distribution-api-version", HeaderValue::from_static("registry/2.0"));
    if text(headers, &IF_NONE_MATCH).is_some_and(|tags| matches_any(tags, &etag)) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return Ok(response);
    }
    // A part is asked for only if it is a part of this very content; there is no date to compare.
    let current = text(headers, &IF_RANGE).is_none_or(|tag| tag.trim() == etag);
    let range = text(headers, &RANGE).filter(|_| current);
    let (range, urgency) = match wanted(range, len) {
        Wanted::Whole => {
            head.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
            (ByteRange::new(0, len), Urgency::Prefetch)
        }
        Wanted::Part(range) => {
            head.insert(CONTENT_RANGE, value(&format!("bytes {}-{}/{len}", range.start, range.end - 1)));
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            (range, Urgency::Blocking)
        }
        Wanted::Unsatisfiable => {
            head.insert(CONTENT_RANGE, value(&format!("bytes */{len}")));
            *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
            return Ok(response);
        }
    };
    let first = range.intersect(&ByteRange::at(range.start, FIRST_READ));
    let (bytes, provenance) = source.read_traced(first, urgency).await?;
    let rest = source.stream(ByteRange::new(first.end, range.end), urgency);
    let head = response.headers_mut();
    head.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    head.insert(CONTENT_LENGTH, HeaderValue::from(range.len()));
    head.insert(SOURCE, value(provenance.as_str()));
    *response.body_mut() = body(bytes, rest, first.end == range.end);
    Ok(response)
}

fn body(first: Bytes, rest: content::ByteStream, all: bool) -> Body {
    if all {
        return full(first);
    }
    let logged = rest.inspect(|chunk| {
        if let Err(error) = chunk {
            tracing::warn!(%error, "a blob broke off; the caller's connection is ended");
        }
    });
    stream(futures::stream::iter([Ok(first)]).chain(logged).boxed())
}

/// Whether a list of entity tags has this one, weakly compared.
fn matches_any(tags: &str, etag: &str) -> bool {
    tags.split(',').map(str::trim).any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}
