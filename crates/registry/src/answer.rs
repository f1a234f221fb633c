//! Reading answers: bodies with a limit, errors with their reasons.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use serde::Deserialize;

use crate::error::RegistryError;
use crate::failure::failure;
use crate::manifest::media_type;
use crate::retry::retry_after;
use crate::transport::Response;
use crate::upstreams::name_of;

/// How much of an error's body is looked at.
const MAX_ERROR_BODY: usize = 8 << 10;

/// What the header says, or the document itself if the header is as vague as `text/plain`.
pub(crate) fn media_type_of(headers: &HeaderMap, bytes: &[u8]) -> String {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Kind {
        media_type: Option<String>,
        schema_version: Option<serde_json::Value>,
        manifests: Option<serde::de::IgnoredAny>,
    }
    let header = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let header = header.split(';').next().unwrap_or_default().trim();
    if media_type::is_index(header) || media_type::is_manifest(header) {
        return header.to_owned();
    }
    match serde_json::from_slice::<Kind>(bytes) {
        Ok(Kind { media_type: Some(media_type), .. }) => media_type,
        Ok(Kind { schema_version: Some(version), .. }) if version == 1 => {
            media_type::DOCKER_SCHEMA_1.to_owned()
        }
        Ok(Kind { manifests: Some(_), .. }) => media_type::OCI_INDEX.to_owned(),
        _ if header.is_empty() => media_type::OCI_MANIFEST.to_owned(),
        _ => header.to_owned(),
    }
}

/// The next part of a body, if it comes within `stall`.
pub(crate) async fn next_chunk(
    doing: &str,
    response: &mut Response,
    stall: Duration,
) -> Result<Option<Bytes>, RegistryError> {
    match tokio::time::timeout(stall, response.chunk()).await {
        Ok(chunk) => chunk.map_err(|error| failure(doing, response.url(), &error)),
        Err(_) => Err(RegistryError::Timeout {
            doing: doing.to_owned(),
            host: name_of(response.url()),
            after: stall,
        }),
    }
}

/// Reads a body of at most `limit` bytes; `stall` is the longest wait for a part of it.
pub(crate) async fn read_limited(
    doing: &str,
    response: &mut Response,
    limit: usize,
    stall: Duration,
) -> Result<Bytes, RegistryError> {
    let mut body = BytesMut::new();
    while let Some(chunk) = next_chunk(doing, response, stall).await? {
        if body.len() + chunk.len() > limit {
            return Err(RegistryError::Corrupt {
                doing: doing.to_owned(),
                host: name_of(response.url()),
                reason: format!("more than the {limit} bytes that such a document may have"),
            });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

/// Somebody else's words, fit for a message.
pub(crate) fn on_one_line(words: &str) -> String {
    words.chars().filter(|c| !c.is_control()).take(200).collect()
}

/// The error that an unwelcome answer is, with what its body tells.
pub(crate) async fn status_error(doing: &str, mut response: Response) -> RegistryError {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<OneError>,
    }
    #[derive(Deserialize)]
    struct OneError {
        code: Option<String>,
        message: Option<String>,
    }
    let status = response.status().as_u16();
    let retry_after = retry_after(response.headers());
    let body = read_limited(doing, &mut response, MAX_ERROR_BODY, Duration::from_secs(2)).await;
    let errors = body.ok().and_then(|body| serde_json::from_slice::<Errors>(&body).ok());
    let first = errors.and_then(|errors| errors.errors.into_iter().next());
    let detail = first.map_or_else(String::new, |error| {
        let words = [error.code, error.message].into_iter().flatten().collect::<Vec<_>>().join(": ");
        on_one_line(&words)
    });
    RegistryError::Status {
        doing: doing.to_owned(),
        host: name_of(response.url()),
        status,
        detail,
        known: response.known(),
        login: None,
        retry_after,
    }
}
