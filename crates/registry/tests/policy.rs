//! Redirects and tokens: who is told which secret, and where a request may be led.

// Clippy exempts test functions from these lints, and not their helpers.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::cast_possible_truncation)]

mod common;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{Server, full, noise, serve_blob, status};
use content::{ByteRange, Digest, Locator, ReadErrorKind, Urgency};
use http::Response;
use registry::{
    Client, ClientConfig, Credential, CredentialSource, Proxies, Reference, RegistryError, UpstreamRule,
    Upstreams,
};

const CANARY: &str = "canary-secret";

fn owner_of(host: &str) -> CredentialSource {
    let credential = Credential::Password { username: "user".to_owned(), password: CANARY.to_owned() };
    CredentialSource::Static(HashMap::from([(host.to_owned(), credential)]))
}

fn redirect(to: &str) -> Response<common::Body> {
    Response::builder().status(307).header("location", to).body(full("")).unwrap()
}

#[tokio::test]
async fn credentials_stay_with_the_host_that_they_are_for() {
    let blob = noise(5000);
    let bytes = blob.clone();
    let storage = Server::start(move |seen, _| {
        let answer = serve_blob(&seen, &bytes);
        async move { answer }
    })
    .await;
    let target = format!("http://{}/bucket/object?signature=1", storage.host());
    let registry = Server::start(move |seen, _| {
        let answer = match seen.header("authorization") {
            Some(_) => redirect(&target),
            None => Response::builder()
                .status(401)
                .header("www-authenticate", "Basic realm=\"test\"")
                .body(full(""))
                .unwrap(),
        };
        async move { answer }
    })
    .await;
    let credentials = owner_of(&registry.host());
    let client = Client::new(ClientConfig { credentials, ..ClientConfig::default() }).unwrap();
    let reference: Reference = format!("{}/team/app", registry.host()).parse().unwrap();
    let origin = client.origin(&reference, &Digest::of(&blob), None);
    assert_eq!(origin.tail(10).await.unwrap().bytes, blob.slice(4990..));
    for start in [0, 100] {
        let read = origin.read(ByteRange::at(start, 100), Urgency::Blocking).await.unwrap();
        assert_eq!(read, blob.slice(start as usize..start as usize + 100));
    }
    let at_storage = storage.requests();
    assert_eq!(at_storage.len(), 3);
    for seen in &at_storage {
        assert!(seen.header("authorization").is_none() && seen.header("cookie").is_none(), "{seen:?}");
    }
    // 401, then the redirect, which is remembered.
    assert_eq!(registry.requests().len(), 2);
}

#[tokio::test]
async fn a_remembered_redirect_that_has_expired_is_asked_for_again() {
    let blob = noise(5000);
    let bytes = blob.clone();
    let storage = Server::start(move |seen, before| {
        let answer = if before == 1 { status(403) } else { serve_blob(&seen, &bytes) };
        async move { answer }
    })
    .await;
    let target = format!("http://{}/object", storage.host());
    let registry = Server::start(move |_, _| {
        let answer = redirect(&target);
        async move { answer }
    })
    .await;
    let client = Client::new(ClientConfig::default()).unwrap();
    let reference: Reference = format!("{}/team/app", registry.host()).parse().unwrap();
    let origin = client.origin(&reference, &Digest::of(&blob), Some(5000));
    for start in [0, 100] {
        let read = origin.read(ByteRange::at(start, 100), Urgency::Blocking).await.unwrap();
        assert_eq!(read, blob.slice(start as usize..start as usize + 100));
    }
    assert_eq!((registry.requests().len(), storage.requests().len()), (2, 3));
}

#[tokio::test]
async fn a_redirect_never_leads_to_link_local_or_odd_places() {
    for place in [
        "http://169.254.169.254/latest",
        "http://0.0.0.0:1/",
        "http://[fe80::1]/",
        "file:///etc/passwd",
        "http://user:pw@127.0.0.1/",
    ] {
        let registry = Server::start(move |_, _| async move { redirect(place) }).await;
        let client = Client::new(ClientConfig::default()).unwrap();
        let reference: Reference = format!("{}/team/app", registry.host()).parse().unwrap();
        let error = client.origin(&reference, &Digest::of(b"x"), None).tail(10).await.unwrap_err();
        assert_eq!(error.kind(), ReadErrorKind::Refused, "{place}: {error}");
        assert!(!error.to_string().contains("pw"), "{error}");
    }
}

#[tokio::test]
async fn redirects_in_a_circle_end() {
    let registry = Server::start(|seen, _| async move { redirect(&seen.path) }).await;
    let client = Client::new(ClientConfig::default()).unwrap();
    let reference: Reference = format!("{}/team/app", registry.host()).parse().unwrap();
    let error = client.manifest(&reference).await.unwrap_err();
    assert!(matches!(error, RegistryError::Corrupt { .. }), "{error}");
}

#[tokio::test]
async fn what_the_network_names_is_asked_only_if_it_is_listed() {
    let blob = noise(1000);
    let bytes = blob.clone();
    let server = Server::start(move |seen, _| {
        let answer = serve_blob(&seen, &bytes);
        async move { answer }
    })
    .await;
    let locator = Locator {
        registry: format!("http://{}", server.host()),
        repository: "team/app".to_owned(),
        digest: Digest::of(&blob),
    };
    let client = Client::new(ClientConfig::default()).unwrap();
    for upstreams in [None, Some(Upstreams::default()), Some(Upstreams::new(&[], true).unwrap())] {
        let client = upstreams.map_or(client.clone(), |upstreams| client.with_upstreams(upstreams));
        let refused = client.origin_of(&locator, None).err().unwrap();
        assert!(matches!(refused, RegistryError::Refused { .. }), "{refused}");
    }
    let rule = UpstreamRule {
        host: Some("127.0.0.1".to_owned()),
        ports: vec![server.address.port()],
        ..UpstreamRule::default()
    };
    let listed = client.with_upstreams(Upstreams::new(&[rule], false).unwrap());
    let origin = listed.origin_of(&locator, None).unwrap();
    assert_eq!(origin.tail(10).await.unwrap().bytes, blob.slice(990..));
    assert_eq!(origin.locator().unwrap(), locator);
    let same = client.origin(&format!("{}/team/app", server.host()).parse().unwrap(), &locator.digest, None);
    assert_eq!(origin.id(), same.id(), "the same blob has one name, however it was found");
    for bad in ["x/../../y", "UPPER", ""] {
        let wrong = Locator { repository: bad.to_owned(), ..locator.clone() };
        assert!(listed.origin_of(&wrong, None).is_err(), "{bad:?}");
    }
}

/// Another node's word is not enough to send a password through the network in the clear.
#[tokio::test]
async fn a_place_without_tls_that_the_network_names_gets_no_credentials() {
    let server = Server::start(|seen, _| {
        let answer = match seen.header("authorization") {
            Some(_) => serve_blob(&seen, &noise(1000)),
            None => Response::builder()
                .status(401)
                .header("www-authenticate", "Basic realm=\"test\"")
                .body(full(""))
                .unwrap(),
        };
        async move { answer }
    })
    .await;
    // By way of a proxy, a name means what the test wants.
    let host = "r.example".to_owned();
    let proxies = Proxies::from_variables(|name| (name == "HTTP_PROXY").then(|| server.host())).unwrap();
    let rule = UpstreamRule { host: Some(host.clone()), ..UpstreamRule::default() };
    let locator = Locator {
        registry: format!("http://{host}"),
        repository: "team/app".to_owned(),
        digest: Digest::of(&noise(1000)),
    };
    for plain_http in [vec![], vec![host.clone()]] {
        let trusted = !plain_http.is_empty();
        let config = ClientConfig {
            credentials: owner_of(&host),
            upstreams: Some(Upstreams::new(std::slice::from_ref(&rule), false).unwrap()),
            plain_http,
            proxies: proxies.clone(),
            ..ClientConfig::default()
        };
        let tail = Client::new(config).unwrap().origin_of(&locator, None).unwrap().tail(10).await;
        assert_eq!(tail.is_ok(), trusted, "{tail:?}");
        let told = server.requests().iter().any(|seen| seen.header("authorization").is_some());
        assert_eq!(told, trusted);
    }
}

/// A registry with a token server. Counts tokens given out.
async fn token_registry(expires_in: u64) -> (Server, Arc<AtomicUsize>) {
    let given = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&given);
    let blob = noise(1000);
    let server = Server::start(move |seen, _| {
        let (count, blob) = (Arc::clone(&count), blob.clone());
        async move {
            let host = seen.header("host").unwrap().to_owned();
            if seen.path == "/token" {
                let good = seen.header("authorization") == Some("Basic dXNlcjpjYW5hcnktc2VjcmV0");
                if !good || !seen.query.contains("scope=repository%3Ateam%2Fapp%3Apull") {
                    return status(401);
                }
                let number = count.fetch_add(1, Ordering::SeqCst);
                let token = format!(r#"{{"token":"token-{number}","expires_in":{expires_in}}}"#);
                return Response::new(full(token));
            }
            let current = format!("Bearer token-{}", count.load(Ordering::SeqCst).saturating_sub(1));
            if seen.header("authorization") == Some(&current) {
                return serve_blob(&seen, &blob);
            }
            let challenge = format!(
                r#"Bearer realm="http://{host}/token",service="test",scope="repository:team/app:pull""#
            );
            Response::builder().status(401).header("www-authenticate", challenge).body(full("")).unwrap()
        }
    })
    .await;
    (server, given)
}

#[tokio::test]
async fn readers_that_start_together_share_one_token() {
    let (server, given) = token_registry(300).await;
    let credentials = owner_of(&server.host());
    let client = Client::new(ClientConfig { credentials, ..ClientConfig::default() }).unwrap();
    let reference: Reference = format!("{}/team/app", server.host()).parse().unwrap();
    let blob = noise(1000);
    let origins: Vec<_> = (0..8).map(|_| client.origin(&reference, &Digest::of(&blob), Some(1000))).collect();
    let range = ByteRange::new(10, 20);
    let reads = origins.iter().map(|origin| origin.read(range, Urgency::Blocking));
    for read in futures::future::join_all(reads).await {
        assert_eq!(read.unwrap(), blob.slice(10..20));
    }
    let after_first_round = given.load(Ordering::SeqCst);
    assert!(after_first_round >= 1);
    let before = server.requests().len();
    origins[0].read(range, Urgency::Blocking).await.unwrap();
    assert_eq!(server.requests().len() - before, 1, "a token at hand is used at once");
    assert_eq!(given.load(Ordering::SeqCst), after_first_round);
    // Passwords go to the token server, tokens to the registry.
    for seen in server.requests() {
        let header = seen.header("authorization").unwrap_or_default();
        assert_eq!(header.starts_with("Basic"), seen.path == "/token", "{} {header}", seen.path);
    }
}

#[tokio::test]
async fn a_token_that_is_refused_is_replaced() {
    let (server, given) = token_registry(300).await;
    let credentials = owner_of(&server.host());
    let client = Client::new(ClientConfig { credentials, ..ClientConfig::default() }).unwrap();
    let reference: Reference = format!("{}/team/app", server.host()).parse().unwrap();
    let blob = noise(1000);
    let origin = client.origin(&reference, &Digest::of(&blob), Some(1000));
    origin.read(ByteRange::new(0, 10), Urgency::Blocking).await.unwrap();
    given.fetch_add(1, Ordering::SeqCst); // The server no longer takes the token that it gave.
    assert_eq!(origin.read(ByteRange::new(0, 10), Urgency::Blocking).await.unwrap(), blob.slice(..10));
    assert_eq!(given.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_registry_cannot_send_the_password_to_a_metadata_service() {
    let registry = Server::start(|_, _| async {
        Response::builder()
            .status(401)
            .header("www-authenticate", r#"Bearer realm="http://169.254.169.254/token",service="x""#)
            .body(full(""))
            .unwrap()
    })
    .await;
    let credentials = owner_of(&registry.host());
    let client = Client::new(ClientConfig { credentials, ..ClientConfig::default() }).unwrap();
    let reference: Reference = format!("{}/team/app", registry.host()).parse().unwrap();
    let error = client.manifest(&reference).await.unwrap_err();
    assert!(matches!(error, RegistryError::Refused { .. }), "{error}");
    assert!(!error.to_string().contains(CANARY));
}
