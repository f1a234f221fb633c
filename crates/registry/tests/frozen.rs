//! Registries that accept connections and say nothing: what a reader does when there is another host, and when there
//! is none.

// Clippy exempts test functions from these lints, and not their helpers.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::cast_possible_truncation)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{RealRegistry, Server, noise, serve_blob};
use content::{ByteRange, Digest, Origin, ReadErrorKind, Urgency};
use futures::StreamExt as _;
use registry::{Client, ClientConfig, HostsConfig, Mirror, Reference};

const LEN: usize = 400_000;

fn client(registry: &str, mirrors: &[&str]) -> Client {
    let mut hosts = HostsConfig::new();
    for mirror in mirrors {
        hosts.add(registry, Mirror { host: (*mirror).to_owned(), ..Mirror::default() });
    }
    Client::new(ClientConfig { hosts, ..ClientConfig::default() }).unwrap()
}

fn origin(client: &Client, registry: &str, blob: &Bytes) -> Arc<dyn Origin> {
    let reference: Reference = format!("{registry}/team/app").parse().unwrap();
    client.origin(&reference, &Digest::of(blob), Some(blob.len() as u64))
}

async fn read(origin: &Arc<dyn Origin>, blob: &Bytes, at: usize) -> Duration {
    let started = Instant::now();
    let range = ByteRange::at(at as u64, 5000);
    let bytes = origin.read(range, Urgency::Blocking).await.unwrap();
    assert_eq!(bytes, blob.slice(at..at + 5000));
    started.elapsed()
}

/// A server that says nothing while `frozen`.
async fn freezing(blob: &Bytes, frozen: &Arc<AtomicBool>) -> Server {
    let (blob, frozen) = (blob.clone(), Arc::clone(frozen));
    Server::start(move |seen, _| {
        let answer = serve_blob(&seen, &blob);
        let frozen = Arc::clone(&frozen);
        async move {
            while frozen.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            answer
        }
    })
    .await
}

/// The kernel accepts for it, nothing answers: on connections that are kept, and on new ones.
#[tokio::test]
async fn a_stopped_registry_with_a_second_host_is_read_around() {
    let (Some(first), Some(second)) = (RealRegistry::start(false), RealRegistry::start(false)) else {
        return;
    };
    let blob = noise(LEN);
    for registry in [&first, &second] {
        let plain = client(&registry.host, &[]);
        let reference: Reference = format!("{}/team/app", registry.host).parse().unwrap();
        let bytes = blob.clone();
        let make = move || futures::stream::iter([Ok(bytes.clone())]).boxed();
        plain.push_blob(&reference, &Digest::of(&blob), LEN as u64, &make, None).await.unwrap();
    }
    let client = client(&second.host, &[&first.host]);
    let origin = origin(&client, &second.host, &blob);
    for at in 0..20 {
        read(&origin, &blob, at * 5000).await;
    }
    assert_eq!(client.usage().hedges, 0, "both are well");
    first.freeze();
    let mut slowest = Duration::ZERO;
    for at in 0..20 {
        slowest = slowest.max(read(&origin, &blob, 100_000 + at * 5000).await);
    }
    first.thaw();
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    // It was put aside before long.
    assert!(client.usage().hedges < 8, "{:?}", client.usage());
}

#[tokio::test]
async fn hosts_that_are_all_frozen_are_an_error_in_time_and_read_as_soon_as_one_thaws() {
    let blob = noise(LEN);
    let (a, b) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(true)));
    let (mirror, registry) = (freezing(&blob, &a).await, freezing(&blob, &b).await);
    let mut hosts = HostsConfig::new();
    hosts.add(&registry.host(), Mirror { host: mirror.host(), ..Mirror::default() });
    let patience = Some(Duration::from_millis(1500));
    let request_timeout = Some(Duration::from_millis(700));
    let config = ClientConfig { hosts, patience, request_timeout, ..ClientConfig::default() };
    let client = Client::new(config).unwrap();
    let origin = origin(&client, &registry.host(), &blob);
    let started = Instant::now();
    let error = origin.read(ByteRange::new(0, 10), Urgency::Blocking).await.unwrap_err();
    assert_eq!(error.kind(), ReadErrorKind::Unavailable, "{error}");
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    // The mirror is put aside by now. Nobody waits for that.
    a.store(false, Ordering::SeqCst);
    let took = read(&origin, &blob, 0).await;
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[tokio::test]
async fn a_lone_host_is_asked_again_over_a_new_connection() {
    let blob = noise(LEN);
    let bytes = blob.clone();
    // Each second request is forgotten, as by a firewall that lost a connection.
    let count = Arc::new(AtomicUsize::new(0));
    let server = Server::start(move |seen, _| {
        let answer = serve_blob(&seen, &bytes);
        let number = count.fetch_add(1, Ordering::SeqCst);
        async move {
            if number == 1 {
                std::future::pending::<()>().await;
            }
            answer
        }
    })
    .await;
    let client = client(&server.host(), &[]);
    let origin = origin(&client, &server.host(), &blob);
    read(&origin, &blob, 0).await;
    let took = read(&origin, &blob, 5000).await;
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert_eq!((server.requests().len(), client.usage().hedges), (3, 1));
}

#[tokio::test]
async fn a_body_that_stops_is_gone_on_with_elsewhere() {
    let blob = noise(LEN);
    let bytes = blob.clone();
    let mirror = Server::start(move |seen, _| {
        let (parts, _) = serve_blob(&seen, &bytes).into_parts();
        let body = common::stalled(bytes.slice(0..50_000));
        async move { http::Response::from_parts(parts, body) }
    })
    .await;
    let thawed = Arc::new(AtomicBool::new(false));
    let registry = freezing(&blob, &thawed).await;
    let client = client(&registry.host(), &[&mirror.host()]);
    let origin = origin(&client, &registry.host(), &blob);
    let started = Instant::now();
    let bytes = origin.read(ByteRange::new(0, LEN as u64), Urgency::Blocking).await.unwrap();
    assert_eq!(bytes, blob);
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    assert_eq!(registry.requests()[0].header("range"), Some("bytes=50000-399999"));
}

#[tokio::test]
async fn a_host_that_varies_is_not_asked_twice_as_much() {
    let blob = noise(LEN);
    let bytes = blob.clone();
    let server = Server::start(move |seen, before| {
        let answer = serve_blob(&seen, &bytes);
        async move {
            if before % 5 == 0 {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            answer
        }
    })
    .await;
    let client = client(&server.host(), &[]);
    let origin = origin(&client, &server.host(), &blob);
    let mut readers = Vec::new();
    for reader in 0..20 {
        let (origin, blob) = (Arc::clone(&origin), blob.clone());
        readers.push(tokio::spawn(async move {
            for at in 0..20 {
                read(&origin, &blob, reader * 10_000 + at * 100).await;
            }
        }));
    }
    for reader in readers {
        reader.await.unwrap();
    }
    let usage = client.usage();
    assert!(usage.hedges <= 4 + 400 / 20, "{usage:?}");
}

#[tokio::test]
async fn who_sent_wrong_bytes_is_asked_last() {
    let blob = noise(LEN);
    let wrong: Bytes = blob.iter().map(|byte| byte ^ 1).collect();
    let well = Arc::new(AtomicBool::new(false));
    let (liar, registry) = (freezing(&wrong, &well).await, freezing(&blob, &well).await);
    let client = client(&registry.host(), &[&liar.host()]);
    let origin = origin(&client, &registry.host(), &blob);
    let range = ByteRange::new(0, 5000);
    assert_eq!(origin.read(range, Urgency::Blocking).await.unwrap(), wrong.slice(0..5000));
    origin.reject(range).await;
    for at in 0..10 {
        read(&origin, &blob, at * 5000).await;
    }
    assert_eq!(liar.requests().len(), 1);
    // Opened anew, as for another image: still known.
    let again: Arc<dyn Origin> = self::origin(&client, &registry.host(), &blob);
    read(&again, &blob, 0).await;
    assert_eq!(liar.requests().len(), 1);
}

/// What one host may know, no other is told: neither by a hedge nor by the next attempt.
#[tokio::test]
async fn credentials_stay_with_their_host() {
    let blob = noise(LEN);
    let frozen = Arc::new(AtomicBool::new(true));
    let well = Arc::new(AtomicBool::new(false));
    let (first, registry) = (freezing(&blob, &frozen).await, freezing(&blob, &well).await);
    let mut hosts = HostsConfig::new();
    let mut headers = http::HeaderMap::new();
    headers.insert("authorization", http::HeaderValue::from_static("Bearer secret"));
    hosts.add(&registry.host(), Mirror { host: first.host(), headers, ..Mirror::default() });
    let client = Client::new(ClientConfig { hosts, ..ClientConfig::default() }).unwrap();
    read(&origin(&client, &registry.host(), &blob), &blob, 0).await;
    assert_eq!(first.requests()[0].header("authorization"), Some("Bearer secret"));
    assert!(registry.requests().iter().all(|seen| seen.header("authorization").is_none()));
}
