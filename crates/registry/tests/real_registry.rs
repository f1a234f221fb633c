//! Against Debian's `docker-registry`, over real sockets.

// Clippy exempts test functions from these lints, and not their helpers.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::cast_possible_truncation)]

mod common;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use common::{RealRegistry, image, noise};
use content::{ByteRange, Digest, ReadErrorKind, Urgency};
use futures::{StreamExt, TryStreamExt};
use registry::{
    Client, ClientConfig, Credential, CredentialSource, Manifest, Reference, RegistryError, media_type,
};

fn client(credentials: CredentialSource) -> Client {
    Client::new(ClientConfig { credentials, ..ClientConfig::default() }).unwrap()
}

fn user(host: &str, password: &str) -> CredentialSource {
    let credential = Credential::Password { username: "user".to_owned(), password: password.to_owned() };
    CredentialSource::Static(HashMap::from([(host.to_owned(), credential)]))
}

async fn push(client: &Client, reference: &Reference, layer: &Bytes) -> Digest {
    let (manifest, blobs) = image(layer);
    for (digest, bytes) in blobs {
        let size = bytes.len() as u64;
        let make = move || {
            let parts: Vec<_> = bytes.chunks(100_000).map(|part| Ok(Bytes::copy_from_slice(part))).collect();
            futures::stream::iter(parts).boxed()
        };
        client.push_blob(reference, &digest, size, &make, None).await.unwrap();
    }
    client.push_manifest(reference, media_type::OCI_MANIFEST, manifest).await.unwrap()
}

#[tokio::test]
async fn what_is_pushed_is_read_back() {
    let Some(server) = RealRegistry::start(false) else { return };
    let client = client(CredentialSource::Anonymous);
    let reference: Reference = format!("{}/team/app:1", server.host).parse().unwrap();
    let layer = noise(300_000);
    let pushed = push(&client, &reference, &layer).await;

    let (descriptor, bytes) = client.manifest(&reference).await.unwrap();
    assert_eq!((descriptor.digest, descriptor.media_type.as_str()), (pushed, media_type::OCI_MANIFEST));
    let manifest: Manifest = serde_json::from_slice(&bytes).unwrap();
    let by_digest = reference.clone().with_digest(pushed);
    assert_eq!(client.manifest(&by_digest).await.unwrap().1, bytes);

    let blob = &manifest.layers[0];
    let pulled: Vec<Bytes> =
        client.pull_blob(&reference, blob, Urgency::Background).try_collect().await.unwrap();
    assert_eq!(pulled.concat(), layer);
    assert_eq!(client.head_blob(&reference, &blob.digest).await.unwrap(), Some(300_000));
    assert_eq!(client.head_blob(&reference, &Digest::of(b"none")).await.unwrap(), None);
    let config = client.pull_bytes(&reference, &manifest.config, 1 << 20).await.unwrap();
    assert_eq!(Digest::of(&config), manifest.config.digest);
}

#[tokio::test]
async fn one_request_brings_the_tail_and_the_length() {
    let Some(server) = RealRegistry::start(false) else { return };
    let client = client(CredentialSource::Anonymous);
    let reference: Reference = format!("{}/team/app:1", server.host).parse().unwrap();
    let layer = noise(300_000);
    push(&client, &reference, &layer).await;
    let origin = client.origin(&reference, &Digest::of(&layer), None);

    let before = client.usage();
    let tail = origin.tail(1000).await.unwrap();
    assert_eq!((tail.len, tail.bytes.as_ref()), (300_000, &layer[299_000..]));
    assert_eq!(client.usage().requests - before.requests, 1);
    assert_eq!(client.usage().bytes - before.bytes, 1000);
    assert_eq!(origin.known_len(), Some(300_000));

    let range = ByteRange::new(12_345, 67_890);
    assert_eq!(origin.read(range, Urgency::Blocking).await.unwrap(), layer[12_345..67_890]);
    let streamed: Vec<Bytes> =
        Arc::clone(&origin).stream(range, Urgency::Prefetch).try_collect().await.unwrap();
    assert_eq!(streamed.concat(), layer[12_345..67_890]);
    assert_eq!(origin.tail(1 << 30).await.unwrap().bytes, layer);
    assert!(origin.read(ByteRange::new(0, 0), Urgency::Blocking).await.unwrap().is_empty());

    let missing = client.origin(&reference, &Digest::of(b"none"), None);
    let error = missing.tail(10).await.unwrap_err();
    assert_eq!((error.kind(), error.status()), (ReadErrorKind::NotFound, Some(404)));
}

#[tokio::test]
async fn an_empty_blob_has_an_empty_tail() {
    let Some(server) = RealRegistry::start(false) else { return };
    let client = client(CredentialSource::Anonymous);
    let reference: Reference = format!("{}/team/app:1", server.host).parse().unwrap();
    push(&client, &reference, &Bytes::new()).await;
    let tail = client.origin(&reference, &Digest::of(b""), None).tail(100).await.unwrap();
    assert_eq!((tail.len, tail.bytes.len()), (0, 0));
}

#[tokio::test]
async fn a_blob_is_mounted_from_another_repository_and_not_sent_twice() {
    let Some(server) = RealRegistry::start(false) else { return };
    let client = client(CredentialSource::Anonymous);
    let first: Reference = format!("{}/team/app:1", server.host).parse().unwrap();
    let second: Reference = format!("{}/team/copy:1", server.host).parse().unwrap();
    let layer = noise(200_000);
    push(&client, &first, &layer).await;
    let digest = Digest::of(&layer);
    assert!(!client.blob_exists(&second, &digest).await.unwrap());
    assert!(client.mount_blob(&second, &digest, "team/app").await.unwrap());
    assert!(client.blob_exists(&second, &digest).await.unwrap());
    assert!(!client.mount_blob(&second, &Digest::of(b"none"), "team/app").await.unwrap());

    let sent = client.usage().sent;
    let reported = Arc::new(AtomicU64::new(0));
    let total = Arc::clone(&reported);
    let never = || -> content::ByteStream { panic!("a blob that exists was read to be sent") };
    let progress: registry::Progress = Arc::new(move |bytes| {
        total.fetch_add(bytes, Ordering::Relaxed);
    });
    client.push_blob(&second, &digest, 200_000, &never, Some(progress)).await.unwrap();
    assert_eq!((client.usage().sent, reported.load(Ordering::Relaxed)), (sent, 200_000));
}

#[tokio::test]
async fn wrong_bytes_are_not_taken_for_a_blob() {
    let Some(server) = RealRegistry::start(false) else { return };
    let client = client(CredentialSource::Anonymous);
    let reference: Reference = format!("{}/team/app:1", server.host).parse().unwrap();
    let make = || futures::stream::iter([Ok(Bytes::from_static(b"wrong"))]).boxed();
    let error = client.push_blob(&reference, &Digest::of(b"right"), 5, &make, None).await.unwrap_err();
    assert_eq!(error.status(), Some(400), "{error}");
    assert!(!client.blob_exists(&reference, &Digest::of(b"right")).await.unwrap());
}

#[tokio::test]
async fn a_password_is_asked_for_used_and_missed() {
    let Some(server) = RealRegistry::start(true) else { return };
    let reference: Reference = format!("{}/team/app:1", server.host).parse().unwrap();
    let layer = noise(50_000);
    let owner = client(user(&server.host, "secret"));
    push(&owner, &reference, &layer).await;
    let digest = Digest::of(&layer);
    let tail = owner.origin(&reference, &digest, None).tail(10).await.unwrap();
    assert_eq!(tail.bytes, layer[49_990..]);

    for stranger in
        [CredentialSource::Anonymous, user(&server.host, "wrong"), user("other.example", "secret")]
    {
        let stranger = client(stranger);
        let error = stranger.manifest(&reference).await.unwrap_err();
        assert_eq!(error.status(), Some(401), "{error}");
        assert!(error.to_string().contains("docker login"), "{error}");
        let error = stranger.origin(&reference, &digest, None).tail(10).await.unwrap_err();
        assert_eq!(error.kind(), ReadErrorKind::Unauthorized);
    }

    // A proxy's caller has its own credentials and nobody else's.
    let upstreams =
        registry::UpstreamRule { host: Some("127.0.0.1".to_owned()), ..registry::UpstreamRule::default() };
    let owner = owner.with_upstreams(registry::Upstreams::new(&[upstreams], false).unwrap());
    let anonymous = owner.origin_with_header(&reference, &digest, None, None);
    assert_eq!(anonymous.tail(10).await.unwrap_err().kind(), ReadErrorKind::Unauthorized);
    assert!(anonymous.locator().is_some());
    let header = http::HeaderValue::from_static("Basic dXNlcjpzZWNyZXQ=");
    let caller = owner.origin_with_header(&reference, &digest, None, Some(header));
    assert_eq!(caller.tail(10).await.unwrap().bytes, layer[49_990..]);
    assert!(caller.locator().is_none());
}

#[tokio::test]
async fn errors_say_what_to_do() {
    let Some(server) = RealRegistry::start(false) else { return };
    let client = client(CredentialSource::Anonymous);
    let missing: Reference = format!("{}/team/none:1", server.host).parse().unwrap();
    let error = client.manifest(&missing).await.unwrap_err();
    assert!(error.to_string().contains("check the repository and the tag"), "{error}");

    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let dead: Reference = format!("{free}/team/app:1").parse().unwrap();
    let error = client.blob_exists(&dead, &Digest::of(b"")).await;
    let error = match error {
        Err(error @ RegistryError::Connect { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    };
    assert!(error.contains("is the registry running"), "{error}");
}
