//! Servers that ignore ranges, break, lie, are busy, or are dead: the reader gets the right bytes or an error.

// Clippy exempts test functions from these lints, and not their helpers.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::cast_possible_truncation)]

mod common;

use bytes::Bytes;
use common::{Server, broken, chunked, full, noise, serve_blob, status};
use content::{ByteRange, Digest, Origin, ReadErrorKind, Urgency};
use http::Response;
use registry::{Client, ClientConfig, HostsConfig, Mirror, Reference};
use std::sync::Arc;

const LEN: usize = 400_000;

fn origin_at(client: &Client, server: &Server, blob: &Bytes, size: Option<u64>) -> Arc<dyn Origin> {
    let reference: Reference = format!("{}/team/app", server.host()).parse().unwrap();
    client.origin(&reference, &Digest::of(blob), size)
}

fn client() -> Client {
    Client::new(ClientConfig::default()).unwrap()
}

#[tokio::test]
async fn a_server_that_ignores_ranges_still_gives_the_right_bytes() {
    let blob = noise(LEN);
    for without_length in [false, true] {
        let bytes = blob.clone();
        let server = Server::start(move |_, _| {
            let body = if without_length { chunked(&bytes) } else { full(bytes.clone()) };
            async move { Response::new(body) }
        })
        .await;
        let origin = origin_at(&client(), &server, &blob, None);
        let tail = origin.tail(1000).await.unwrap();
        assert_eq!((tail.len, tail.bytes), (LEN as u64, blob.slice(LEN - 1000..)));
        let range = ByteRange::new(200_000, 300_001);
        assert_eq!(origin.read(range, Urgency::Blocking).await.unwrap(), blob.slice(200_000..300_001));
    }
}

#[tokio::test]
async fn a_server_without_suffix_ranges_is_asked_for_the_length_first() {
    for refusal in [400, 416, 501] {
        let blob = noise(LEN);
        let bytes = blob.clone();
        let server = Server::start(move |seen, _| {
            let suffix = seen.header("range").is_some_and(|range| range.starts_with("bytes=-"));
            let answer = if suffix { status(refusal) } else { serve_blob(&seen, &bytes) };
            async move { answer }
        })
        .await;
        let tail = origin_at(&client(), &server, &blob, None).tail(1000).await.unwrap();
        assert_eq!((tail.len, tail.bytes), (LEN as u64, blob.slice(LEN - 1000..)), "{refusal}");
        let methods: Vec<String> = server.requests().iter().map(|seen| seen.method.to_string()).collect();
        assert_eq!(methods, ["GET", "HEAD", "GET"]);
    }
}

#[tokio::test]
async fn a_broken_body_is_resumed_where_it_broke() {
    let blob = noise(LEN);
    let bytes = blob.clone();
    let server = Server::start(move |seen, before| {
        let answer = serve_blob(&seen, &bytes);
        let bytes = bytes.clone();
        async move {
            if before == 0 {
                let (parts, _) = answer.into_parts();
                return Response::from_parts(parts, broken(bytes.slice(100..70_000)));
            }
            answer
        }
    })
    .await;
    let origin = origin_at(&client(), &server, &blob, Some(LEN as u64));
    let range = ByteRange::new(100, 300_000);
    assert_eq!(origin.read(range, Urgency::Blocking).await.unwrap(), blob.slice(100..300_000));
    let ranges: Vec<String> =
        server.requests().iter().map(|seen| seen.header("range").unwrap().to_owned()).collect();
    assert_eq!(ranges.len(), 2);
    assert_eq!(ranges[0], "bytes=100-299999");
    let resumed: usize =
        ranges[1].strip_prefix("bytes=").unwrap().split('-').next().unwrap().parse().unwrap();
    assert!(resumed > 100 && resumed <= 70_000, "{ranges:?}");
}

#[tokio::test]
async fn a_part_that_is_shorter_than_asked_for_is_completed() {
    let blob = noise(LEN);
    let bytes = blob.clone();
    let server = Server::start(move |mut seen, _| {
        // Never more than 64 KiB at once.
        let range = seen.header("range").unwrap().strip_prefix("bytes=").unwrap().to_owned();
        let start: usize = range.split('-').next().unwrap().parse().unwrap();
        let short = format!("bytes={start}-{}", (start + 65_535).min(LEN - 1));
        seen.headers.insert("range", short.parse().unwrap());
        let answer = serve_blob(&seen, &bytes);
        async move { answer }
    })
    .await;
    let origin = origin_at(&client(), &server, &blob, None);
    let range = ByteRange::new(5, LEN as u64);
    assert_eq!(origin.read(range, Urgency::Blocking).await.unwrap(), blob.slice(5..));
}

#[tokio::test]
async fn bytes_from_the_wrong_place_or_of_another_blob_are_never_given_out() {
    let blob = noise(LEN);
    for lie in
        ["bytes 0-99/400000", "bytes 100-199/300000", "bytes 100-99/400000", "nonsense", "bytes */400000"]
    {
        let server = Server::start(move |_, _| async move {
            Response::builder().status(206).header("content-range", lie).body(full(vec![0; 100])).unwrap()
        })
        .await;
        let origin = origin_at(&client(), &server, &blob, Some(LEN as u64));
        let error = origin.read(ByteRange::new(100, 200), Urgency::Blocking).await.unwrap_err();
        assert_eq!(error.kind(), ReadErrorKind::Corrupt, "{lie}: {error}");
    }
    // A login page with status 200.
    let page = Server::start(|_, _| async {
        Response::builder()
            .header("content-type", "text/html; charset=utf-8")
            .body(full(vec![b'x'; LEN]))
            .unwrap()
    })
    .await;
    let origin = origin_at(&client(), &page, &blob, Some(LEN as u64));
    assert!(origin.read(ByteRange::new(0, 10), Urgency::Blocking).await.is_err());
}

#[tokio::test]
async fn a_busy_server_is_given_the_time_that_it_asks_for() {
    let blob = noise(1000);
    let bytes = blob.clone();
    let server = Server::start(move |seen, before| {
        let answer = serve_blob(&seen, &bytes);
        async move {
            match before {
                0 => Response::builder().status(429).header("retry-after", "1").body(full("")).unwrap(),
                1 => status(503),
                _ => answer,
            }
        }
    })
    .await;
    let client = client();
    let started = std::time::Instant::now();
    assert_eq!(origin_at(&client, &server, &blob, None).tail(10).await.unwrap().bytes, blob.slice(990..));
    // A lower bound is no race: the server asked for a second.
    assert!(started.elapsed() >= std::time::Duration::from_secs(1));
    assert_eq!((client.usage().requests, client.usage().retries), (3, 2));

    let forever = Server::start(|_, _| async {
        Response::builder().status(429).header("retry-after", "3600").body(full("")).unwrap()
    })
    .await;
    let error = origin_at(&client, &forever, &blob, None).tail(10).await.unwrap_err();
    assert_eq!((error.kind(), error.status()), (ReadErrorKind::Unavailable, Some(429)));
    assert_eq!(forever.requests().len(), 1);
}

#[tokio::test]
async fn mirrors_are_asked_first_and_left_when_they_fail() {
    let blob = noise(LEN);
    let (good, bytes) = (blob.clone(), blob.clone());
    let mirror = Server::start(move |seen, before| {
        let answer = if before == 0 { serve_blob(&seen, &good) } else { status(502) };
        async move { answer }
    })
    .await;
    let registry = Server::start(move |seen, _| {
        let answer = serve_blob(&seen, &bytes);
        async move { answer }
    })
    .await;
    let mut hosts = HostsConfig::new();
    let mut headers = http::HeaderMap::new();
    headers.insert("x-dragonfly-registry", "https://index.docker.io".parse().unwrap());
    hosts.add(&registry.host(), Mirror { host: mirror.host(), insecure: true, headers, ..Mirror::default() });
    let client = Client::new(ClientConfig { hosts, ..ClientConfig::default() }).unwrap();
    let origin = origin_at(&client, &registry, &blob, Some(LEN as u64));
    for start in [0, 1000, 2000] {
        let range = ByteRange::at(start, 1000);
        let expected = blob.slice(start as usize..start as usize + 1000);
        assert_eq!(origin.read(range, Urgency::Blocking).await.unwrap(), expected);
    }
    let at_mirror = mirror.requests();
    assert_eq!(at_mirror.len(), 2, "a mirror that failed is not asked again at once");
    let namespace = url::form_urlencoded::parse(at_mirror[0].query.as_bytes()).next().unwrap().1.into_owned();
    assert_eq!(namespace, registry.host());
    assert_eq!(at_mirror[0].header("x-dragonfly-registry"), Some("https://index.docker.io"));
    let at_registry = registry.requests();
    assert_eq!(at_registry.len(), 2);
    assert!(
        at_registry.iter().all(|seen| seen.query.is_empty() && seen.header("x-dragonfly-registry").is_none())
    );
}

#[tokio::test]
async fn a_dead_registry_is_survived_with_a_living_mirror() {
    let blob = noise(LEN);
    let bytes = blob.clone();
    let mirror = Server::start(move |seen, before| {
        let answer = if before == 0 { status(500) } else { serve_blob(&seen, &bytes) };
        async move { answer }
    })
    .await;
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut hosts = HostsConfig::new();
    hosts.add(&dead.to_string(), Mirror { host: mirror.host(), insecure: true, ..Mirror::default() });
    let client = Client::new(ClientConfig { hosts, ..ClientConfig::default() }).unwrap();
    let reference: Reference = format!("{dead}/team/app").parse().unwrap();
    let origin = client.origin(&reference, &Digest::of(&blob), None);
    // The mirror fails once and is put aside; when the registry fails too, it is asked again.
    assert_eq!(origin.tail(100).await.unwrap().bytes, blob.slice(LEN - 100..));
}
