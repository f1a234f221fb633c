//! HTTP proxies: who is asked through one, and who never is.

// Clippy exempts test functions from these lints, and not their helpers.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::cast_possible_truncation)]

mod common;
#[path = "common/tls.rs"]
mod tls;

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use common::{Server, full, noise, serve_blob, status};
use content::{ByteRange, Digest, Locator, ReadErrorKind, Urgency};
use http::Response;
use registry::{
    Client, ClientConfig, Credential, CredentialSource, Proxies, Reference, RegistryError, UpstreamRule,
    Upstreams,
};
use tls::Authority;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

const CANARY: &str = "canary-secret";

/// No resolver knows names under `.test`: whoever gets an answer from one got it through the proxy.
const REGISTRY: &str = "registry.test";
/// A name that no resolver has to ask anybody about: its first part is longer than any may be.
const NOWHERE: &str = "nobody-nobody-nobody-nobody-nobody-nobody-nobody-nobody-nobody-nobody.test";

fn proxies(variables: &[(&str, &str)]) -> Proxies {
    let found = |name: &str| {
        let found = variables.iter().find(|(key, _)| *key == name);
        found.map(|(_, value)| (*value).to_owned())
    };
    Proxies::from_variables(found).unwrap()
}

fn config(proxies: Proxies) -> ClientConfig {
    let credential = Credential::Password { username: "user".to_owned(), password: CANARY.to_owned() };
    ClientConfig {
        proxies,
        plain_http: vec![REGISTRY.to_owned(), NOWHERE.to_owned()],
        credentials: CredentialSource::Static([(REGISTRY.to_owned(), credential)].into()),
        ..ClientConfig::default()
    }
}

async fn read(client: &Client, blob: &Bytes) -> Result<Bytes, content::ReadError> {
    read_at(REGISTRY, client, blob).await
}

async fn read_at(registry: &str, client: &Client, blob: &Bytes) -> Result<Bytes, content::ReadError> {
    let reference: Reference = format!("{registry}/team/app").parse().unwrap();
    let origin = client.origin(&reference, &Digest::of(blob), Some(blob.len() as u64));
    origin.read(ByteRange::new(0, 10), Urgency::Blocking).await
}

/// A proxy for plain HTTP that is all the hosts there are. `answer` is told the host that was meant.
async fn proxy_for(
    answer: impl Fn(&str, &common::Seen) -> Response<common::Body> + Send + Sync + 'static,
) -> Server {
    Server::start(move |seen, _| {
        let answer = answer(seen.header("host").unwrap(), &seen);
        async move { answer }
    })
    .await
}

#[tokio::test]
async fn a_registry_is_asked_through_the_proxy_that_the_environment_names() {
    let blob = noise(1000);
    let bytes = blob.clone();
    let proxy = proxy_for(move |_, seen| serve_blob(seen, &bytes)).await;
    let url = format!("http://me:proxy-password@{}", proxy.host());
    let client = Client::new(config(proxies(&[("HTTP_PROXY", &url)]))).unwrap();
    assert_eq!(read_at(NOWHERE, &client, &blob).await.unwrap(), blob.slice(..10));
    let seen = &proxy.requests()[0];
    assert_eq!(seen.header("host"), Some(NOWHERE));
    assert_eq!(seen.header("proxy-authorization"), Some("Basic bWU6cHJveHktcGFzc3dvcmQ="));
    assert!(!format!("{client:?}").contains("proxy-password"));

    for straight in [
        proxies(&[("HTTPS_PROXY", &url)]),
        proxies(&[("HTTP_PROXY", &url), ("NO_PROXY", NOWHERE)]),
        Proxies::none(),
    ] {
        let before = proxy.requests().len();
        let patience = Some(std::time::Duration::ZERO);
        let client = Client::new(ClientConfig { patience, ..config(straight) }).unwrap();
        assert_eq!(read_at(NOWHERE, &client, &blob).await.unwrap_err().kind(), ReadErrorKind::Unavailable);
        assert_eq!(proxy.requests().len(), before);
    }
}

/// A proxy that connects any name to `to`, and what it was asked for.
async fn tunnel_to(to: String) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let heads = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&heads);
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let (to, log) = (to.clone(), Arc::clone(&log));
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let Ok(byte) = near.read_u8().await else { return };
                    head.push(byte);
                }
                log.lock().unwrap().push(String::from_utf8(head).unwrap());
                let mut far = TcpStream::connect(&to).await.unwrap();
                near.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                let _ = copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    (address, heads)
}

#[tokio::test]
async fn https_goes_through_a_tunnel_and_the_certificate_is_the_registrys() {
    let authority = Authority::new();
    let blob = noise(1000);
    let bytes = blob.clone();
    let server = tls::start(authority.server(REGISTRY, None), move |seen, _| {
        let answer = match seen.header("authorization") {
            Some(_) => serve_blob(&seen, &bytes),
            None => Response::builder()
                .status(401)
                .header("www-authenticate", "Basic realm=\"test\"")
                .body(full(""))
                .unwrap(),
        };
        async move { answer }
    })
    .await;
    let (address, heads) = tunnel_to(server.host()).await;
    let secure = |roots: Vec<Vec<u8>>| {
        let proxies = proxies(&[("https_proxy", &address)]);
        Client::new(ClientConfig { plain_http: Vec::new(), extra_roots: roots, ..config(proxies) }).unwrap()
    };
    let client = secure(vec![authority.pem().into_bytes()]);
    assert_eq!(read(&client, &blob).await.unwrap(), blob.slice(..10));
    let head = heads.lock().unwrap()[0].clone();
    assert!(head.starts_with("CONNECT registry.test:443 HTTP/1.1\r\n"), "{head}");
    assert!(!head.to_ascii_lowercase().contains("\r\nauthorization"), "{head}");
    assert!(read(&secure(Vec::new()), &blob).await.unwrap_err().to_string().contains("certificate"));
}

#[tokio::test]
async fn a_redirect_of_a_proxied_registry_goes_through_the_proxy_and_never_inside() {
    let blob = noise(1000);
    let bytes = blob.clone();
    let proxy = proxy_for(move |host, seen| match host {
        "storage.test" => serve_blob(seen, &bytes),
        _ if seen.header("authorization").is_none() => Response::builder()
            .status(401)
            .header("www-authenticate", "Basic realm=\"t\"")
            .body(full(""))
            .unwrap(),
        _ => Response::builder()
            .status(307)
            .header("location", "http://storage.test/x")
            .body(full(""))
            .unwrap(),
    })
    .await;
    let variables = proxies(&[("ALL_PROXY", &proxy.host())]);
    let client = Client::new(config(variables.clone())).unwrap();
    for _ in 0..2 {
        assert_eq!(read(&client, &blob).await.unwrap(), blob.slice(..10));
    }
    let at_storage: Vec<_> =
        proxy.requests().into_iter().filter(|seen| seen.header("host") == Some("storage.test")).collect();
    assert_eq!(at_storage.len(), 2);
    assert!(at_storage.iter().all(|seen| seen.header("authorization").is_none()));

    // The proxy stands for the outside: from there nothing leads to this network.
    let inside = Server::start(|_, _| async { status(200) }).await;
    let own = format!("http://{}/x", inside.host());
    for place in ["http://169.254.169.254/latest", "http://10.0.0.1/x", &own] {
        let target = place.to_owned();
        let proxy = proxy_for(move |_, _| {
            Response::builder().status(307).header("location", &target).body(full("")).unwrap()
        })
        .await;
        let client = Client::new(config(proxies(&[("ALL_PROXY", &proxy.host())]))).unwrap();
        let error = read(&client, &blob).await.unwrap_err();
        assert_eq!(error.kind(), ReadErrorKind::Refused, "{place}: {error}");
        assert_eq!(proxy.requests().len(), 1, "{place}");
    }
    assert!(inside.requests().is_empty());
}

#[tokio::test]
async fn what_the_network_named_is_not_sent_through_a_proxy_unless_it_is_listed() {
    let blob = noise(1000);
    let bytes = blob.clone();
    let proxy = proxy_for(move |_, seen| serve_blob(seen, &bytes)).await;
    let locator = Locator {
        registry: format!("http://{NOWHERE}"),
        repository: "team/app".to_owned(),
        digest: Digest::of(&blob),
    };
    let patience = Some(std::time::Duration::ZERO);
    let variables = proxies(&[("ALL_PROXY", &proxy.host())]);
    let client = Client::new(ClientConfig { patience, ..config(variables) }).unwrap();
    let dynamic = client.with_upstreams(Upstreams::new(&[], true).unwrap());
    let error = dynamic.origin_of(&locator, None).unwrap().tail(10).await.unwrap_err();
    assert_eq!(error.kind(), ReadErrorKind::Unavailable, "{error}");
    assert!(proxy.requests().is_empty());

    let rule = UpstreamRule { host: Some(NOWHERE.to_owned()), ..UpstreamRule::default() };
    let listed = client.with_upstreams(Upstreams::new(&[rule], false).unwrap());
    assert_eq!(listed.origin_of(&locator, None).unwrap().tail(10).await.unwrap().bytes, blob.slice(990..));
    assert_eq!(proxy.requests().len(), 1);
}

#[tokio::test]
async fn a_dead_proxy_is_told_without_its_password() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://me:proxy-password@{free}");
    let client = Client::new(config(proxies(&[("ALL_PROXY", &url)]))).unwrap();
    let reference: Reference = format!("{REGISTRY}/team/app").parse().unwrap();
    let error = client.manifest(&reference).await.unwrap_err();
    assert!(matches!(error, RegistryError::Connect { .. }), "{error:?}");
    assert!(!format!("{error} {error:?}").contains("proxy-password"), "{error:?}");
    assert!(error.to_string().contains("check HTTPS_PROXY"), "{error}");
}
