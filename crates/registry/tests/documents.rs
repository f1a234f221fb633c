//! Manifests of every kind, referrers, tags, and the patience with servers that are busy.

// Clippy exempts test functions from these lints, and not their helpers.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::cast_possible_truncation)]

mod common;

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use common::{RealRegistry, Server, full, hang_up, image, noise, status};
use content::Digest;
use futures::StreamExt;
use http::Response;
use registry::{Client, ClientConfig, Index, Reference, RegistryError, media_type};
use serde_json::json;

fn client() -> Client {
    Client::new(ClientConfig::default()).unwrap()
}

fn reference(server: &Server) -> Reference {
    format!("{}/team/app:1", server.host()).parse().unwrap()
}

/// A server that always says the same.
async fn saying(kind: &'static str, body: String) -> Server {
    Server::start(move |_, _| {
        let body = body.clone();
        async move {
            let answer = Response::builder();
            let answer = if kind.is_empty() { answer } else { answer.header("content-type", kind) };
            answer.body(full(body)).unwrap()
        }
    })
    .await
}

#[tokio::test]
async fn manifests_and_indexes_of_both_houses_are_told_apart() {
    let docker =
        json!({"schemaVersion": 2, "mediaType": media_type::DOCKER_MANIFEST, "layers": []}).to_string();
    let list = json!({"schemaVersion": 2, "mediaType": media_type::DOCKER_LIST, "manifests": []}).to_string();
    let index = json!({"schemaVersion": 2, "manifests": []}).to_string();
    for (kind, body, expected) in [
        (media_type::OCI_MANIFEST, "{}", media_type::OCI_MANIFEST),
        (media_type::OCI_INDEX, "{}", media_type::OCI_INDEX),
        (media_type::DOCKER_MANIFEST, "{}", media_type::DOCKER_MANIFEST),
        (media_type::DOCKER_LIST, "{}", media_type::DOCKER_LIST),
        ("application/vnd.oci.image.index.v1+json; charset=utf-8", "{}", media_type::OCI_INDEX),
        ("text/plain", &docker, media_type::DOCKER_MANIFEST),
        ("application/json", &list, media_type::DOCKER_LIST),
        ("", &index, media_type::OCI_INDEX),
        ("", "{}", media_type::OCI_MANIFEST),
    ] {
        let server = saying(kind, body.to_owned()).await;
        let (descriptor, bytes) = client().manifest(&reference(&server)).await.unwrap();
        assert_eq!((descriptor.media_type.as_str(), bytes.as_ref()), (expected, body.as_bytes()), "{kind:?}");
        let asked = server.requests()[0].header("accept").unwrap().to_owned();
        for kind in [
            media_type::OCI_MANIFEST,
            media_type::OCI_INDEX,
            media_type::DOCKER_MANIFEST,
            media_type::DOCKER_LIST,
        ] {
            assert!(asked.contains(kind), "{asked}");
        }
        assert!(!asked.contains("distribution.manifest.v1+"), "schema 1 is not asked for");
    }
}

#[tokio::test]
async fn schema_1_is_refused_by_its_name() {
    let body = json!({"schemaVersion": 1, "name": "team/app", "tag": "1", "fsLayers": [], "signatures": []})
        .to_string();
    for kind in [
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
        "application/vnd.docker.distribution.manifest.v1+json",
        "application/json",
        "",
    ] {
        let server = saying(kind, body.clone()).await;
        let error = client().manifest(&reference(&server)).await.unwrap_err();
        assert!(matches!(error, RegistryError::Schema1 { .. }), "{kind}: {error}");
        assert!(error.to_string().contains("schema 1"), "{error}");
        assert_eq!(server.requests().len(), 1, "it will be the same next time");
    }
}

fn referrer(kind: &str, number: u64) -> serde_json::Value {
    json!({"mediaType": media_type::OCI_MANIFEST, "digest": Digest::of(&number.to_le_bytes()), "size": number,
           "artifactType": kind})
}

fn index(manifests: &[serde_json::Value]) -> String {
    json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": manifests}).to_string()
}

fn sizes(index: &Index) -> Vec<u64> {
    index.manifests.iter().map(|descriptor| descriptor.size).collect()
}

#[tokio::test]
async fn referrers_are_listed_in_pages_and_filtered_whether_or_not_the_registry_does() {
    for filters in [false, true] {
        let server = Server::start(move |seen, _| {
            let kind = seen.query("artifactType");
            let all = match seen.query("page").as_deref() {
                None => vec![referrer("sbom", 1), referrer("signature", 2)],
                Some(_) => vec![referrer("signature", 3), referrer("other", 4)],
            };
            let wanted: Vec<_> = all
                .into_iter()
                .filter(|found| !filters || kind.as_deref().is_none_or(|kind| found["artifactType"] == kind))
                .collect();
            let mut answer = Response::builder().header("content-type", media_type::OCI_INDEX);
            if filters && kind.is_some() {
                answer = answer.header("oci-filters-applied", "artifactType");
            }
            if seen.query("page").is_none() {
                let more = kind.map_or_else(String::new, |kind| format!("&artifactType={kind}"));
                answer = answer.header("link", format!("<{}?page=2{more}>; rel=\"next\"", seen.path));
            }
            let answer = answer.body(full(index(&wanted))).unwrap();
            async move { answer }
        })
        .await;
        let (client, reference, subject) = (client(), reference(&server), Digest::of(b"subject"));
        assert_eq!(sizes(&client.referrers(&reference, &subject, None).await.unwrap()), [1, 2, 3, 4]);
        let signatures = client.referrers(&reference, &subject, Some("signature")).await.unwrap();
        assert_eq!(sizes(&signatures), [2, 3], "filters: {filters}");
        let first = &server.requests()[0];
        assert_eq!(first.path, format!("/v2/team/app/referrers/{subject}"));
    }
}

#[tokio::test]
async fn a_registry_without_the_api_has_referrers_under_a_tag() {
    let subject = Digest::of(b"subject");
    for refusal in [404, 405, 400] {
        let server = Server::start(move |seen, _| {
            let tag = format!("/v2/team/app/manifests/sha256-{}", subject.hex());
            let answer = if seen.path == tag {
                let body = index(&[referrer("sbom", 1), referrer("signature", 2)]);
                Response::builder().header("content-type", media_type::OCI_INDEX).body(full(body)).unwrap()
            } else {
                status(refusal)
            };
            async move { answer }
        })
        .await;
        let found = client().referrers(&reference(&server), &subject, Some("sbom")).await.unwrap();
        assert_eq!(sizes(&found), [1]);
    }
    let nothing = Server::start(|_, _| async { status(404) }).await;
    assert!(client().referrers(&reference(&nothing), &subject, None).await.unwrap().manifests.is_empty());
    let forbidden = Server::start(|_, _| async { status(403) }).await;
    let error = client().referrers(&reference(&forbidden), &subject, None).await.unwrap_err();
    assert_eq!(error.status(), Some(403));
}

#[tokio::test]
async fn a_list_without_an_end_is_given_up() {
    let server = Server::start(|seen, _| async move {
        let answer = Response::builder().header("link", format!("<{}?again>; rel=next", seen.path));
        answer.body(full(r#"{"name":"team/app","tags":["a"]}"#)).unwrap()
    })
    .await;
    let patience = Some(Duration::ZERO);
    let client = Client::new(ClientConfig { patience, ..ClientConfig::default() }).unwrap();
    let error = client.tags(&reference(&server)).await.unwrap_err();
    assert!(error.to_string().contains("without an end"), "{error}");
}

#[tokio::test]
async fn a_real_registry_lists_tags_and_what_refers_to_a_manifest() {
    let Some(server) = RealRegistry::start(false) else { return };
    let client = client();
    let reference: Reference = format!("{}/team/app:1", server.host).parse().unwrap();
    let (manifest, blobs) = image(&noise(1000));
    for (digest, bytes) in &blobs {
        let bytes = bytes.clone();
        let make = move || futures::stream::iter([Ok(bytes.clone())]).boxed();
        client.push_blob(&reference, digest, blobs[digest].len() as u64, &make, None).await.unwrap();
    }
    let subject = client.push_manifest(&reference, media_type::OCI_MANIFEST, manifest.clone()).await.unwrap();
    assert!(client.referrers(&reference, &subject, None).await.unwrap().manifests.is_empty());
    // This registry does not know the API: whoever signs keeps the index.
    let list = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [
        {"mediaType": media_type::OCI_MANIFEST, "digest": subject, "size": manifest.len(), "artifactType": "sbom"}]});
    let tag = format!("sha256-{}", subject.hex());
    let tagged = reference.clone().with_tag(&tag).unwrap();
    client.push_manifest(&tagged, media_type::OCI_INDEX, Bytes::from(list.to_string())).await.unwrap();
    let found = client.referrers(&reference, &subject, Some("sbom")).await.unwrap();
    assert_eq!(found.manifests.len(), 1);
    assert!(client.referrers(&reference, &subject, Some("other")).await.unwrap().manifests.is_empty());
    let mut tags = client.tags(&reference).await.unwrap();
    tags.sort_unstable();
    assert_eq!(tags, ["1".to_owned(), tag]);
}

/// A registry's words are not printed as they come.
#[tokio::test]
async fn a_media_type_stays_on_one_line() {
    let kind = format!("{}\n\u{1b}[2J{}", media_type::DOCKER_SCHEMA_1, "x".repeat(100_000));
    let body = serde_json::json!({"schemaVersion": 2, "mediaType": kind}).to_string();
    let server = saying("text/plain", body).await;
    let error = client().manifest(&reference(&server)).await.unwrap_err().to_string();
    assert!(error.contains("schema 1") && !error.contains(char::is_control) && error.len() < 1000, "{error}");
}

/// `Tue, 24 Nov 2026 13:00:00 GMT`.
fn http_date(at: SystemTime) -> String {
    let seconds = at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs().cast_signed();
    let time = time::OffsetDateTime::from_unix_timestamp(seconds).unwrap();
    let format = time::macros::format_description!(
        "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
    );
    time.format(&format).unwrap()
}

#[tokio::test]
async fn a_date_to_come_back_at_is_kept_and_one_too_far_is_told() {
    let (manifest, _) = image(&noise(10));
    let soon = SystemTime::now() + Duration::from_secs(2);
    let server = Server::start(move |_, before| {
        let answer = match before {
            0 => {
                Response::builder().status(503).header("retry-after", http_date(soon)).body(full("")).unwrap()
            }
            1 => hang_up(),
            _ => Response::new(full(manifest.clone())),
        };
        async move { answer }
    })
    .await;
    let client = client();
    client.manifest(&reference(&server)).await.unwrap();
    // A lower bound is no race. The date has no fractions of a second.
    assert!(SystemTime::now() + Duration::from_secs(1) >= soon);
    // The library itself may repeat a request on a connection that it kept and found closed.
    assert!(client.usage().retries >= 1);

    let far = http_date(SystemTime::now() + Duration::from_hours(1));
    let server = Server::start(move |_, _| {
        let answer =
            Response::builder().status(429).header("retry-after", far.clone()).body(full("")).unwrap();
        async move { answer }
    })
    .await;
    let error = client.manifest(&reference(&server)).await.unwrap_err();
    assert_eq!((error.status(), server.requests().len()), (Some(429), 1));
    assert!(error.to_string().contains("the registry limits requests"), "{error}");
}

#[tokio::test]
async fn what_cannot_get_better_is_told_at_once() {
    for code in [400, 401, 403, 404, 405, 413, 501] {
        let server = Server::start(move |_, _| async move { status(code) }).await;
        let error = client().manifest(&reference(&server)).await.unwrap_err();
        assert_eq!((error.status(), server.requests().len()), (Some(code), 1), "{error}");
    }
}
