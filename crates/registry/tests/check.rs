//! Whether a blob can be had, before somebody needs it.

// Clippy exempts test functions from these lints, and not their helpers.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{Server, noise, serve_blob, status};
use content::{ByteRange, Digest, Urgency};
use registry::{Client, ClientConfig, HostsConfig, Mirror, Reference};

const MINUTE: Duration = Duration::from_mins(1);

/// A server that answers with `status`, or with the blob if that is 200.
async fn serving(blob: &Bytes, answers: &Arc<AtomicU16>) -> Server {
    let (blob, answers) = (blob.clone(), Arc::clone(answers));
    Server::start(move |seen, _| {
        let answer = match answers.load(Ordering::SeqCst) {
            200 => serve_blob(&seen, &blob),
            other => status(other),
        };
        async move { answer }
    })
    .await
}

fn client(registry: &str, mirror: &str) -> Client {
    let mut hosts = HostsConfig::new();
    hosts.add(registry, Mirror { host: mirror.to_owned(), ..Mirror::default() });
    Client::new(ClientConfig { hosts, ..ClientConfig::default() }).unwrap()
}

#[tokio::test]
async fn one_byte_tells_and_for_a_while_nobody_is_asked_again() {
    let blob = noise(1000);
    let server = serving(&blob, &Arc::new(AtomicU16::new(200))).await;
    let client = Client::new(ClientConfig::default()).unwrap();
    let image: Reference = format!("{}/team/app", server.host()).parse().unwrap();
    let digest = Digest::of(&blob);
    // The layers of an image are checked together, and are one question.
    let checks = (0..10).map(|_| client.check_blob(&image, &digest, MINUTE));
    assert!(futures::future::join_all(checks).await.iter().all(Result::is_ok));
    assert_eq!(server.requests().len(), 1);
    assert_eq!(server.requests()[0].header("range"), Some("bytes=0-0"));
    client.check_blob(&image, &digest, MINUTE).await.unwrap();
    assert_eq!(server.requests().len(), 1);
    client.check_blob(&image, &digest, Duration::ZERO).await.unwrap();
    assert_eq!(server.requests().len(), 2, "no interval: always");

    // A read tells as much; another repository is another question.
    let other: Reference = format!("{}/team/other", server.host()).parse().unwrap();
    client.origin(&other, &digest, Some(1000)).read(ByteRange::new(0, 10), Urgency::Blocking).await.unwrap();
    client.check_blob(&other, &digest, MINUTE).await.unwrap();
    assert_eq!(server.requests().len(), 3);
}

#[tokio::test]
async fn any_host_that_has_it_is_enough_and_none_is_an_error_soon() {
    let blob = noise(1000);
    let (origin_says, mirror_says) = (Arc::new(AtomicU16::new(200)), Arc::new(AtomicU16::new(200)));
    let (origin, mirror) = (serving(&blob, &origin_says).await, serving(&blob, &mirror_says).await);
    let client = client(&origin.host(), &mirror.host());
    let image: Reference = format!("{}/team/app", origin.host()).parse().unwrap();
    let digest = Digest::of(&blob);
    let check = || client.check_blob(&image, &digest, Duration::ZERO);
    for (of_origin, of_mirror, good) in [
        (200, 200, true),
        (503, 200, true),
        (200, 404, true),
        (200, 503, true),
        (404, 404, false),
        (503, 503, false),
    ] {
        origin_says.store(of_origin, Ordering::SeqCst);
        mirror_says.store(of_mirror, Ordering::SeqCst);
        let begun = Instant::now();
        let checked = check().await;
        assert_eq!(checked.is_ok(), good, "{of_origin} {of_mirror}: {checked:?}");
        assert!(begun.elapsed() < Duration::from_secs(6), "{of_origin} {of_mirror}: {:?}", begun.elapsed());
    }
    // One question fails for all who wait, and each of them asks about its own blob before it gives up.
    origin_says.store(404, Ordering::SeqCst);
    mirror_says.store(404, Ordering::SeqCst);
    let (one, two) = futures::future::join(check(), check()).await;
    assert!(one.is_err() && two.is_err());

    let used = client.hosts_asked();
    assert_eq!(used.len(), 2);
    for host in used {
        assert_eq!(host.mirror, host.host == mirror.host());
        assert!(host.failed > 0 && host.answered > 0, "{host:?}");
    }
}

#[tokio::test]
async fn a_host_that_nobody_answers_at_is_told_within_seconds() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let client = Client::new(ClientConfig::default()).unwrap();
    let image: Reference = format!("{closed}/team/app").parse().unwrap();
    let begun = Instant::now();
    let error = client.check_blob(&image, &Digest::of(b"x"), MINUTE).await.unwrap_err().to_string();
    assert!(error.contains("is the registry running"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
}
