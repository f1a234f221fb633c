//! Uploads in chunks: against Debian's `docker-registry`, which is killed and whose connections are cut, and
//! against registries with every habit that the specification allows or that somebody has.

// Clippy exempts test functions from these lints, and not their helpers.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::cast_possible_truncation)]

mod common;
#[path = "common/uploads.rs"]
mod uploads;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use common::{Cutter, RealRegistry, Server, full, hang_up, noise, status};
use content::{ByteStream, Digest};
use futures::StreamExt;
use http::{Method, Response};
use registry::{
    Client, ClientConfig, Credential, CredentialSource, Progress, Reference, RegistryError, Upload,
    UploadError,
};
use uploads::{Uploads, told};

/// As much as the client makes a chunk of.
const CHUNK: usize = 8 << 20;
const CANARY: &str = "canary-secret";

fn client() -> Client {
    Client::new(ClientConfig::default()).unwrap()
}

fn owner_of(host: &str) -> Client {
    let credential = Credential::Password { username: "user".to_owned(), password: CANARY.to_owned() };
    let credentials = CredentialSource::Static(HashMap::from([(host.to_owned(), credential)]));
    Client::new(ClientConfig { credentials, ..ClientConfig::default() }).unwrap()
}

fn at(host: &str) -> Reference {
    format!("{host}/team/app:1").parse().unwrap()
}

/// Sends `blob` from `from` on in parts of odd sizes.
async fn send(upload: &mut Upload, blob: &Bytes, from: u64) -> Result<(), UploadError> {
    for part in blob[from as usize..].chunks(777_777) {
        upload.send(Bytes::copy_from_slice(part)).await?;
    }
    Ok(())
}

/// Sends and finishes, resuming as often as it takes. How often that was.
async fn upload_all(client: &Client, reference: &Reference, blob: &Bytes) -> usize {
    let mut upload = client.begin_upload(reference).await.unwrap();
    let (mut from, mut resumed) = (0, 0);
    loop {
        let sent = match send(&mut upload, blob, from).await {
            Ok(()) => upload.finish(&Digest::of(blob)).await,
            Err(error) => Err(error),
        };
        match sent {
            Ok(()) => return resumed,
            Err(UploadError::Lost(_)) => {
                from = upload.resume().await.unwrap();
                resumed += 1;
            }
            Err(error) => panic!("{error:?}"),
        }
    }
}

fn stream_of(blob: &Bytes) -> impl Fn() -> ByteStream + Send + Sync + use<> {
    let blob = blob.clone();
    move || {
        let parts: Vec<_> = blob.chunks(100_000).map(|part| Ok(Bytes::copy_from_slice(part))).collect();
        futures::stream::iter(parts).boxed()
    }
}

fn patches(server: &Server) -> usize {
    server.requests().iter().filter(|seen| seen.method == Method::PATCH).count()
}

async fn has(client: &Client, reference: &Reference, blob: &Bytes) -> bool {
    client.head_blob(reference, &Digest::of(blob)).await.unwrap() == Some(blob.len() as u64)
}

#[tokio::test]
async fn a_real_registry_takes_blobs_of_every_size() {
    let Some(server) = RealRegistry::start(false) else { return };
    let (client, reference) = (client(), at(&server.host));
    for len in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 12_345] {
        let blob = noise(len);
        assert_eq!(upload_all(&client, &reference, &blob).await, 0, "{len}");
        assert!(has(&client, &reference, &blob).await, "{len}");
    }
    assert_eq!(client.usage().retries, 0);
}

#[tokio::test]
async fn a_registry_that_is_killed_and_restarted_gets_only_the_rest() {
    let Some(mut server) = RealRegistry::start(false) else { return };
    let (client, reference) = (client(), at(&server.host));
    let blob = noise(4 * CHUNK);
    let mut upload = client.begin_upload(&reference).await.unwrap();
    upload.send(blob.slice(..2 * CHUNK + 1000)).await.unwrap();
    assert_eq!(upload.position(), 2 * CHUNK as u64);

    server.kill();
    let restarted = tokio::task::spawn_blocking(move || {
        server.restart();
        server
    });
    // Meanwhile nobody is there.
    upload.send(blob.slice(2 * CHUNK + 1000..)).await.unwrap();
    upload.finish(&Digest::of(&blob)).await.unwrap();
    let server = restarted.await.unwrap();
    assert!(has(&client, &reference, &blob).await);
    assert!(client.usage().retries > 0);
    // Less than one chunk was sent twice.
    let sent = client.usage().sent;
    assert!(sent < 5 * CHUNK as u64, "{sent} bytes were sent");
    drop(server);
}

#[tokio::test]
async fn an_upload_that_is_taken_up_after_a_restart_goes_on_where_it_was() {
    let Some(mut server) = RealRegistry::start(false) else { return };
    let (client, reference) = (client(), at(&server.host));
    let blob = noise(3 * CHUNK);
    let mut upload = client.begin_upload(&reference).await.unwrap();
    upload.send(blob.slice(..CHUNK + 5)).await.unwrap();
    server.restart();
    // What was given and not acknowledged has to be given again.
    let from = upload.resume().await.unwrap();
    assert_eq!((from, upload.position()), (CHUNK as u64, CHUNK as u64));
    send(&mut upload, &blob, from).await.unwrap();
    upload.finish(&Digest::of(&blob)).await.unwrap();
    assert!(has(&client, &reference, &blob).await);
    assert_eq!(client.usage().sent, 3 * CHUNK as u64, "no byte was sent twice");
}

#[tokio::test]
async fn a_connection_that_is_cut_within_a_chunk_is_survived() {
    let Some(server) = RealRegistry::start(false) else { return };
    let blob = noise(3 * CHUNK + 17);
    for after in [CHUNK / 2, CHUNK + CHUNK / 2, 3 * CHUNK] {
        let cutter = Cutter::start(server.host.clone(), after).await;
        let (client, reference) = (client(), at(&cutter.host()));
        let reference: Reference = format!("{}/cut/at-{after}", reference.registry()).parse().unwrap();
        upload_all(&client, &reference, &blob).await;
        assert!(has(&client, &reference, &blob).await);
        assert_eq!(cutter.cuts.load(Ordering::SeqCst), 1);

        let cutter = Cutter::start(server.host.clone(), after).await;
        let (client, reference) = (self::client(), format!("{}/pushed/at-{after}", cutter.host()));
        let reference: Reference = reference.parse().unwrap();
        let told = Arc::new(AtomicU64::new(0));
        let total = Arc::clone(&told);
        let progress: Progress = Arc::new(move |bytes| {
            total.fetch_add(bytes, Ordering::Relaxed);
        });
        let size = blob.len() as u64;
        let (digest, stream) = (Digest::of(&blob), stream_of(&blob));
        client.push_blob(&reference, &digest, size, &stream, Some(progress)).await.unwrap();
        assert!(has(&client, &reference, &blob).await);
        assert_eq!(told.load(Ordering::Relaxed), size, "what is sent twice is told once");
        assert_eq!(cutter.cuts.load(Ordering::SeqCst), 1);
    }
}

#[tokio::test]
async fn an_upload_that_is_cancelled_leaves_nothing_open() {
    let uploads = Uploads::default();
    let registry = uploads.clone();
    let server = Server::start(move |seen, _| {
        let answer = registry.answer(&seen);
        async move { answer }
    })
    .await;
    let (client, reference) = (client(), at(&server.host()));
    let mut upload = client.begin_upload(&reference).await.unwrap();
    upload.send(noise(CHUNK + 1)).await.unwrap();
    assert_eq!(uploads.open(), 1);
    upload.cancel().await;
    assert_eq!(uploads.open(), 0);

    // Neither does one whose source fails, or has another length than was said.
    let broken = || -> ByteStream {
        let reason = content::ReadError::local(content::ReadErrorKind::Other, "the disk is gone");
        futures::stream::iter([Ok(noise(CHUNK + 1)), Err(reason)]).boxed()
    };
    let digest = Digest::of(b"x");
    let error = client.push_blob(&reference, &digest, 3 * CHUNK as u64, &broken, None).await.unwrap_err();
    assert!(matches!(error, RegistryError::Source { .. }), "{error}");
    assert!(error.to_string().contains("the disk is gone"), "{error}");
    for len in [CHUNK, 2 * CHUNK] {
        let blob = noise(len);
        let size = blob.len() as u64 + 1;
        let fewer = client.push_blob(&reference, &digest, size, &stream_of(&blob), None).await.unwrap_err();
        assert!(fewer.to_string().contains("fewer bytes"), "{fewer}");
        let more =
            client.push_blob(&reference, &digest, size - 2, &stream_of(&blob), None).await.unwrap_err();
        assert!(more.to_string().contains("more bytes"), "{more}");
    }
    assert_eq!(uploads.open(), 0);
}

#[tokio::test]
async fn a_registry_may_ask_for_larger_chunks() {
    let uploads = Uploads::default();
    let registry = uploads.clone();
    let server = Server::start(move |seen, _| {
        let mut answer = registry.answer(&seen);
        if seen.method == Method::POST {
            answer.headers_mut().insert("oci-chunk-min-length", (CHUNK * 2).into());
        }
        async move { answer }
    })
    .await;
    let blob = noise(5 * CHUNK);
    upload_all(&client(), &at(&server.host()), &blob).await;
    assert_eq!(uploads.blob(&Digest::of(&blob)).unwrap(), blob);
    let lengths: Vec<usize> =
        server.requests().iter().filter(|s| s.method == Method::PATCH).map(|s| s.body.len()).collect();
    assert_eq!(lengths, [2 * CHUNK, 2 * CHUNK, CHUNK]);
}

#[tokio::test]
async fn a_registry_that_wants_huge_chunks_gets_none() {
    let server = Server::start(move |seen, _| {
        let mut answer = told(202, &format!("{}1", seen.path), 0);
        answer.headers_mut().insert("oci-chunk-min-length", (1_u64 << 40).into());
        async move { answer }
    })
    .await;
    let mut upload = client().begin_upload(&at(&server.host())).await.unwrap();
    let zeros = Bytes::from(vec![0; 64 << 20]);
    upload.send(zeros).await.unwrap();
    // No more than this is gathered for it.
    let error = upload.send(Bytes::from_static(b"x")).await.unwrap_err();
    assert!(matches!(error, UploadError::NoChunks(_)), "{error:?}");
    assert_eq!(patches(&server), 0);
}

/// Breaks of every kind, each at the second chunk. `once` tells how the first attempt at it ends.
async fn with_trouble(
    once: impl Fn(&Uploads, &common::Seen) -> Response<common::Body> + Send + Sync + 'static,
) {
    let uploads = Uploads::default();
    let registry = uploads.clone();
    let happened = Arc::new(AtomicBool::new(false));
    let server = Server::start(move |seen, _| {
        let second = seen.header("content-range").is_some_and(|range| range.starts_with("8388608-"));
        let trouble = second && !happened.swap(true, Ordering::SeqCst);
        let answer = if trouble { once(&registry, &seen) } else { registry.answer(&seen) };
        async move { answer }
    })
    .await;
    let blob = noise(3 * CHUNK + 5);
    let client = client();
    let resumed = upload_all(&client, &at(&server.host()), &blob).await;
    assert_eq!(uploads.blob(&Digest::of(&blob)).unwrap(), blob);
    assert_eq!((resumed, uploads.opened(), uploads.open()), (0, 1, 0), "the session went on");
    assert!(client.usage().sent <= (4 * CHUNK + 5) as u64);
}

#[tokio::test]
async fn the_second_chunk_gets_through_whatever_happens_to_it() {
    // Nothing of it arrived.
    with_trouble(|_, _| hang_up()).await;
    with_trouble(|_, _| status(502)).await;
    with_trouble(|_, _| Response::builder().status(429).header("retry-after", "0").body(full("")).unwrap())
        .await;
    // All of it arrived, and the answer did not.
    with_trouble(|uploads, seen| {
        uploads.answer(seen);
        hang_up()
    })
    .await;
    // Half of it arrived.
    with_trouble(|uploads, seen| {
        uploads.sneak(&seen.body[..1_000_000]);
        hang_up()
    })
    .await;
    with_trouble(|uploads, seen| {
        uploads.sneak(&seen.body[..1_000_000]);
        told(202, &seen.path, CHUNK + 1_000_000)
    })
    .await;
    // The registry has more than it said, and says so.
    with_trouble(|uploads, seen| {
        uploads.sneak(&seen.body[..1_000_000]);
        uploads.answer(seen)
    })
    .await;
}

#[tokio::test]
async fn a_session_that_is_lost_is_begun_anew_and_not_for_ever() {
    for refusals in [1, 3, usize::MAX] {
        let uploads = Uploads::default();
        let registry = uploads.clone();
        let count = AtomicUsize::new(0);
        let server = Server::start(move |seen, _| {
            let second = seen.header("content-range").is_some_and(|range| range.starts_with("8388608-"));
            if second && count.fetch_add(1, Ordering::SeqCst) < refusals {
                registry.forget();
            }
            let answer = registry.answer(&seen);
            async move { answer }
        })
        .await;
        let (client, reference, blob) = (client(), at(&server.host()), noise(2 * CHUNK + 5));
        let pushed = client
            .push_blob(&reference, &Digest::of(&blob), blob.len() as u64, &stream_of(&blob), None)
            .await;
        if refusals == usize::MAX {
            assert_eq!(pushed.unwrap_err().status(), Some(404));
            assert!(uploads.opened() < 10);
        } else {
            pushed.unwrap();
            assert_eq!(uploads.blob(&Digest::of(&blob)).unwrap(), blob);
            assert_eq!(uploads.opened(), refusals + 1);
        }
    }
}

/// It knows how far it has got, and cannot end it: asking again would go on for ever.
#[tokio::test]
async fn a_session_that_never_ends_well_is_given_up() {
    let uploads = Uploads::default();
    let registry = uploads.clone();
    let server = Server::start(move |seen, _| {
        let answer = if seen.method == Method::PUT {
            let broken = r#"{"errors":[{"code":"BLOB_UPLOAD_INVALID","message":"storage"}]}"#;
            Response::builder().status(400).body(full(broken)).unwrap()
        } else {
            registry.answer(&seen)
        };
        async move { answer }
    })
    .await;
    let (client, reference, blob) = (client(), at(&server.host()), noise(CHUNK + 5));
    let len = blob.len() as u64;
    let stream = stream_of(&blob);
    let digest = Digest::of(&blob);
    let pushed = client.push_blob(&reference, &digest, len, &stream, None);
    let pushed = tokio::time::timeout(std::time::Duration::from_mins(1), pushed).await.unwrap();
    assert!(pushed.unwrap_err().to_string().contains("BLOB_UPLOAD_INVALID"));
    assert!(server.requests().len() < 60 && uploads.open() == 0, "{}", server.requests().len());
}

#[tokio::test]
async fn a_last_answer_that_is_lost_is_found_out() {
    for len in [1000, 2 * CHUNK] {
        let uploads = Uploads::default();
        let registry = uploads.clone();
        let server = Server::start(move |seen, _| {
            let answer = registry.answer(&seen);
            // The blob is stored, and the client is not told.
            let answer = if seen.method == Method::PUT { hang_up() } else { answer };
            async move { answer }
        })
        .await;
        let blob = noise(len);
        assert_eq!(upload_all(&client(), &at(&server.host()), &blob).await, 0);
        assert_eq!(uploads.blob(&Digest::of(&blob)).unwrap(), blob);
        let puts = server.requests().iter().filter(|seen| seen.method == Method::PUT).count();
        assert_eq!((puts, uploads.opened()), (1, 1));
    }
}

#[tokio::test]
async fn wrong_bytes_are_refused_at_the_end_and_not_tried_again() {
    let uploads = Uploads::default();
    let registry = uploads.clone();
    let server = Server::start(move |seen, _| {
        let answer = registry.answer(&seen);
        async move { answer }
    })
    .await;
    for len in [1000, CHUNK + 1] {
        let mut upload = client().begin_upload(&at(&server.host())).await.unwrap();
        upload.send(noise(len)).await.unwrap();
        let error = upload.finish(&Digest::of(b"other")).await.unwrap_err();
        assert!(
            matches!(&error, UploadError::Failed(RegistryError::Status { status: 400, .. })),
            "{error:?}"
        );
        assert!(error.to_string().contains("DIGEST_INVALID"), "{error}");
        upload.cancel().await;
    }
    assert_eq!(server.requests().iter().filter(|seen| seen.method == Method::PUT).count(), 2);
}

#[tokio::test]
async fn a_registry_without_chunks_is_told_apart_and_gets_the_blob_whole() {
    for refusal in [400, 405, 415, 416, 501] {
        let uploads = Uploads::default();
        let registry = uploads.clone();
        let server = Server::start(move |seen, _| {
            let patch = seen.method == Method::PATCH;
            let answer = if patch { status(refusal) } else { registry.answer(&seen) };
            async move { answer }
        })
        .await;
        let (client, reference, blob) = (client(), at(&server.host()), noise(CHUNK + 1));
        let mut upload = client.begin_upload(&reference).await.unwrap();
        let error = upload.send(blob.clone()).await.unwrap_err();
        assert!(matches!(error, UploadError::NoChunks(_)), "{refusal}: {error:?}");
        upload.cancel().await;
        assert_eq!(patches(&server), 1);
        let size = blob.len() as u64;
        client.push_blob(&reference, &Digest::of(&blob), size, &stream_of(&blob), None).await.unwrap();
        assert_eq!(uploads.blob(&Digest::of(&blob)).unwrap(), blob);
        assert_eq!(uploads.open(), 0);
    }
}

#[tokio::test]
async fn a_registry_that_takes_chunks_at_the_wrong_place_is_noticed() {
    // It says that it holds more than it was ever sent.
    let uploads = Uploads::default();
    let registry = uploads.clone();
    let server = Server::start(move |seen, _| {
        let mut answer = registry.answer(&seen);
        if seen.method == Method::PATCH || seen.method == Method::GET {
            answer.headers_mut().insert("range", "0-99999999".parse().unwrap());
        }
        async move { answer }
    })
    .await;
    let mut upload = client().begin_upload(&at(&server.host())).await.unwrap();
    let error = upload.send(noise(CHUNK + 1)).await.unwrap_err();
    assert!(matches!(error, UploadError::Lost(_)), "{error:?}");
    assert_eq!(upload.position(), 0);
}

#[tokio::test]
async fn places_that_change_are_followed_and_another_host_gets_no_credentials() {
    let uploads = Uploads::default();
    let storage_uploads = uploads.clone();
    // Every answer names a new place: the state is in the query, and only the newest is good.
    let state = Arc::new(AtomicUsize::new(0));
    let storage = Server::start(move |seen, _| {
        let expected = state.load(Ordering::SeqCst).to_string();
        let mut answer = if seen.query("state").unwrap_or_default() == expected {
            storage_uploads.answer(&seen)
        } else {
            status(400)
        };
        if seen.method == Method::PATCH {
            let next = state.fetch_add(1, Ordering::SeqCst) + 1;
            let place = format!("{}?state={next}", seen.path);
            answer.headers_mut().insert("location", place.parse().unwrap());
        }
        async move { answer }
    })
    .await;
    let (opened, elsewhere) = (uploads.clone(), storage.host());
    let server = Server::start(move |seen, _| {
        let mut answer = if seen.header("authorization").is_none() {
            Response::builder()
                .status(401)
                .header("www-authenticate", "Basic realm=\"t\"")
                .body(full(""))
                .unwrap()
        } else {
            opened.answer(&seen)
        };
        if let Some(place) = answer.headers().get("location") {
            let place = format!("http://{elsewhere}{}?state=0", place.to_str().unwrap());
            answer.headers_mut().insert("location", place.parse().unwrap());
        }
        async move { answer }
    })
    .await;
    let client = owner_of(&server.host());
    let blob = noise(3 * CHUNK);
    let digest = Digest::of(&blob);
    let mut upload = client.begin_upload(&at(&server.host())).await.unwrap();
    send(&mut upload, &blob, 0).await.unwrap();
    upload.finish(&digest).await.unwrap();
    assert_eq!(uploads.blob(&digest).unwrap(), blob);
    let mut upload = client.begin_upload(&at(&server.host())).await.unwrap();
    upload.resume().await.unwrap_err();
    upload.cancel().await;
    let at_storage = storage.requests();
    assert!(at_storage.len() >= 6);
    for seen in at_storage {
        let secret = seen.header("authorization").or(seen.header("cookie"));
        assert!(secret.is_none(), "{} {secret:?}", seen.method);
    }
}

#[tokio::test]
async fn a_session_may_not_lead_to_link_local_or_odd_places() {
    for place in ["http://169.254.169.254/upload", "file:///etc/passwd", "http://user:pw@127.0.0.1/"] {
        let server = Server::start(move |_, _| async move { told(202, place, 0) }).await;
        let error = client().begin_upload(&at(&server.host())).await.unwrap_err();
        assert!(matches!(error, RegistryError::Refused { .. }), "{place}: {error}");
        // And not later on, either.
        let server = Server::start(move |seen, _| {
            let place = if seen.method == Method::POST { "/v2/team/app/blobs/uploads/1" } else { place };
            async move { told(202, place, 0) }
        })
        .await;
        let mut upload = client().begin_upload(&at(&server.host())).await.unwrap();
        let error = upload.send(noise(CHUNK + 1)).await.unwrap_err();
        assert!(matches!(error, UploadError::Failed(RegistryError::Refused { .. })), "{place}: {error}");
    }
}

/// Token expiry is the registry's word: it refuses each token after three requests.
#[tokio::test]
async fn a_token_that_expires_within_an_upload_is_replaced() {
    let uploads = Uploads::default();
    let registry = uploads.clone();
    let (given, used) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let tokens = Arc::clone(&given);
    let server = Server::start(move |seen, _| {
        let host = seen.header("host").unwrap().to_owned();
        let answer = if seen.path == "/token" {
            used.store(0, Ordering::SeqCst);
            let number = tokens.fetch_add(1, Ordering::SeqCst) + 1;
            Response::new(full(format!(r#"{{"token":"token-{number}"}}"#)))
        } else {
            let current = format!("Bearer token-{}", tokens.load(Ordering::SeqCst));
            if seen.header("authorization") == Some(&current) && used.fetch_add(1, Ordering::SeqCst) < 3 {
                registry.answer(&seen)
            } else {
                let challenge = format!(r#"Bearer realm="http://{host}/token",service="t""#);
                Response::builder().status(401).header("www-authenticate", challenge).body(full("")).unwrap()
            }
        };
        async move { answer }
    })
    .await;
    let client = owner_of(&server.host());
    let blob = noise(8 * CHUNK);
    assert_eq!(upload_all(&client, &at(&server.host()), &blob).await, 0);
    assert_eq!(uploads.blob(&Digest::of(&blob)).unwrap(), blob);
    assert!(given.load(Ordering::SeqCst) >= 3);
    assert_eq!(uploads.opened(), 1);
}

#[tokio::test]
async fn a_refusal_is_told_at_once_and_a_dead_registry_in_the_end() {
    let uploads = Uploads::default();
    let registry = uploads.clone();
    let server = Server::start(move |seen, _| {
        let full_disk = r#"{"errors":[{"code":"DENIED","message":"quota exceeded"}]}"#;
        let answer = match seen.method {
            Method::PATCH => Response::builder().status(403).body(full(full_disk)).unwrap(),
            _ => registry.answer(&seen),
        };
        async move { answer }
    })
    .await;
    let mut upload = client().begin_upload(&at(&server.host())).await.unwrap();
    let error = upload.send(noise(CHUNK + 1)).await.unwrap_err();
    assert!(matches!(error, UploadError::Failed(_)) && error.to_string().contains("quota"), "{error}");
    assert_eq!(patches(&server), 1);

    let Some(mut real) = RealRegistry::start(false) else { return };
    let patience = Some(std::time::Duration::from_millis(300));
    let client = Client::new(ClientConfig { patience, ..ClientConfig::default() }).unwrap();
    let mut upload = client.begin_upload(&at(&real.host)).await.unwrap();
    real.kill();
    let error = upload.send(noise(CHUNK + 1)).await.unwrap_err();
    assert!(matches!(error, UploadError::Failed(RegistryError::Connect { .. })), "{error:?}");
    assert!(error.to_string().contains("is the registry running"), "{error}");
}
