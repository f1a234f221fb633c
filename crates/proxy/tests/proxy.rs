//! The proxy through real sockets, before Debian's registry and before servers that misbehave.

// Clippy exempts test functions from these lints, and not their helpers.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::cast_possible_truncation)]

#[path = "../../registry/tests/common/mod.rs"]
mod common;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use common::{RealRegistry, Server, broken, full, image, noise, serve_blob, status};
use content::{
    BlobSource, ByteRange, ByteStream, ContentId, ContentOpener, Digest, DirectOpener, OpenBlob, Origin,
    Provenance, ReadError, Urgency,
};
use futures::StreamExt;
use http::{Response, StatusCode};
use proxy::{BasicAuth, ProxyConfig, ProxyRule, RegistryMirror};
use registry::{Client, ClientConfig, Credential, CredentialSource, Reference, UpstreamRule, media_type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

struct Proxy {
    address: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<Result<(), proxy::ProxyError>>,
}

impl Proxy {
    async fn start(config: ProxyConfig, opener: Arc<dyn ContentOpener>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::start_on(listener, config, opener)
    }

    fn start_on(listener: TcpListener, config: ProxyConfig, opener: Arc<dyn ContentOpener>) -> Self {
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let client = Client::new(ClientConfig::default()).unwrap();
        let task = tokio::spawn(proxy::serve(listener, config, client, opener, stop.clone()));
        Self { address, stop, task }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

/// A mirror of the registry at `host`, as the page's configuration has it.
fn mirror_of(host: &str) -> ProxyConfig {
    ProxyConfig {
        registry_mirror: RegistryMirror {
            url: format!("http://{host}"),
            dynamic: true,
            insecure: true,
            direct: false,
        },
        ..ProxyConfig::default()
    }
}

fn http() -> reqwest::Client {
    // Another provider may have been installed by another test.
    let _ = Client::new(ClientConfig::default()).unwrap();
    reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().unwrap()
}

/// Keeps whole blobs in memory and gives them to whoever opens them, as a node's store does.
#[derive(Default)]
struct Cache(Mutex<HashMap<ContentId, Bytes>>);

struct Memory(ContentId, Bytes, Provenance);

#[async_trait]
impl ContentOpener for Cache {
    async fn open(&self, origin: Arc<dyn Origin>, _: u64) -> Result<OpenBlob, ReadError> {
        let id = *origin.id();
        let cached = self.0.lock().unwrap().get(&id).cloned();
        let (bytes, from) = match cached {
            Some(bytes) => (bytes, Provenance::Store),
            None => (origin.tail(u64::MAX).await?.bytes, Provenance::Origin),
        };
        self.0.lock().unwrap().insert(id, bytes.clone());
        Ok(OpenBlob { source: Arc::new(Memory(id, bytes, from)), tail: None })
    }
}

#[async_trait]
impl BlobSource for Memory {
    fn id(&self) -> &ContentId {
        &self.0
    }
    fn len(&self) -> u64 {
        self.1.len() as u64
    }
    async fn read_traced(&self, range: ByteRange, _: Urgency) -> Result<(Bytes, Provenance), ReadError> {
        Ok((self.1.slice(range.start as usize..range.end as usize), self.2))
    }
    fn stream(self: Arc<Self>, range: ByteRange, urgency: Urgency) -> ByteStream {
        content::stream_by_reads(self, range, urgency, 100_000, 1)
    }
}

async fn push(client: &Client, reference: &Reference, layer: &Bytes) -> Bytes {
    let (manifest, blobs) = image(layer);
    for (digest, bytes) in blobs {
        let size = bytes.len() as u64;
        let make = move || futures::stream::iter([Ok(bytes.clone())]).boxed();
        client.push_blob(reference, &digest, size, &make, None).await.unwrap();
    }
    client.push_manifest(reference, media_type::OCI_MANIFEST, manifest.clone()).await.unwrap();
    manifest
}

fn header<'a>(response: &'a reqwest::Response, name: &str) -> Option<&'a str> {
    response.headers().get(name).map(|value| value.to_str().unwrap())
}

#[tokio::test]
async fn an_image_is_pulled_through_the_mirror() {
    let Some(registry) = RealRegistry::start(false) else { return };
    let layer = noise(300_000);
    let reference: Reference = format!("{}/team/app:1", registry.host).parse().unwrap();
    let manifest = push(&Client::new(ClientConfig::default()).unwrap(), &reference, &layer).await;
    let proxy = Proxy::start(mirror_of(&registry.host), Arc::new(Cache::default())).await;
    let http = http();

    let got = http.get(proxy.url("/v2/")).send().await.unwrap();
    assert_eq!(got.status(), 200);
    let got = http
        .get(proxy.url("/v2/team/app/manifests/1"))
        .header("accept", media_type::OCI_MANIFEST)
        .send()
        .await
        .unwrap();
    assert_eq!(header(&got, "content-type"), Some(media_type::OCI_MANIFEST));
    assert_eq!(got.bytes().await.unwrap(), manifest);

    let digest = Digest::of(&layer);
    let path = proxy.url(&format!("/v2/team/app/blobs/{digest}?ns={}", registry.host));
    for (number, from) in ["origin", "store"].into_iter().enumerate() {
        let got = http.get(&path).send().await.unwrap();
        assert_eq!((got.status().as_u16(), header(&got, "x-pantala-source")), (200, Some(from)), "{number}");
        assert_eq!(header(&got, "content-length"), Some("300000"));
        assert_eq!(header(&got, "accept-ranges"), Some("bytes"));
        assert_eq!(header(&got, "docker-content-digest"), Some(digest.to_string().as_str()));
        assert_eq!(header(&got, "x-dragonfly-task-id").unwrap().len(), "claimed-".len() + 64);
        assert_eq!(got.bytes().await.unwrap(), layer);
    }
    let head = http.head(&path).send().await.unwrap();
    assert_eq!((head.status().as_u16(), header(&head, "content-length")), (200, Some("300000")));
    let missing = proxy.url(&format!("/v2/team/app/blobs/{}", Digest::of(b"none")));
    let got = http.get(&missing).send().await.unwrap();
    assert_eq!(got.status(), 404);
    assert!(got.text().await.unwrap().contains("BLOB_UNKNOWN"));

    // Everything but GET and HEAD passes through: the image gets a second tag.
    let put =
        http.put(proxy.url("/v2/team/app/manifests/2")).header("content-type", media_type::OCI_MANIFEST);
    assert_eq!(put.body(manifest.clone()).send().await.unwrap().status(), 201);
    let got = http
        .get(proxy.url("/v2/team/app/manifests/2"))
        .header("accept", media_type::OCI_MANIFEST)
        .send()
        .await
        .unwrap();
    assert_eq!(got.bytes().await.unwrap(), manifest);
    proxy.stop().await;
}

#[tokio::test]
async fn ranges_are_answered_byte_for_byte() {
    let Some(registry) = RealRegistry::start(false) else { return };
    let layer = noise(200_000);
    let reference: Reference = format!("{}/team/app:1", registry.host).parse().unwrap();
    push(&Client::new(ClientConfig::default()).unwrap(), &reference, &layer).await;
    for opener in [Arc::new(Cache::default()) as Arc<dyn ContentOpener>, Arc::new(DirectOpener)] {
        let proxy = Proxy::start(mirror_of(&registry.host), opener).await;
        let url = proxy.url(&format!("/v2/team/app/blobs/{}", Digest::of(&layer)));
        let etag = format!("\"{}\"", Digest::of(&layer));
        let get = |range: &str| http().get(&url).header("range", range);
        for (range, start, end) in [
            ("bytes=0-0", 0, 1),
            ("bytes=5-149999", 5, 150_000),
            ("bytes=199999-", 199_999, 200_000),
            ("bytes=-100000", 100_000, 200_000),
            ("bytes=-999999", 0, 200_000),
            ("bytes=1000-999999", 1000, 200_000),
        ] {
            let got = get(range).send().await.unwrap();
            assert_eq!(got.status(), 206, "{range}");
            let expected = format!("bytes {start}-{}/200000", end - 1);
            assert_eq!(header(&got, "content-range"), Some(expected.as_str()), "{range}");
            assert_eq!(header(&got, "content-length"), Some((end - start).to_string().as_str()), "{range}");
            assert_eq!(got.bytes().await.unwrap(), layer.slice(start..end), "{range}");
        }
        for range in ["bytes=200000-", "bytes=-0", "bytes=9-2"] {
            let got = get(range).send().await.unwrap();
            assert_eq!((got.status().as_u16(), header(&got, "content-range")), (416, Some("bytes */200000")));
            assert!(got.bytes().await.unwrap().is_empty());
        }
        let several = get("bytes=0-9,100-109").send().await.unwrap();
        assert_eq!(several.status(), 200);
        assert_eq!(several.bytes().await.unwrap(), layer);
        let same = get("bytes=0-9").header("if-range", &etag).send().await.unwrap();
        assert_eq!(same.status(), 206);
        for other in ["\"other\"", "Sun, 06 Nov 1994 08:49:37 GMT"] {
            let whole = get("bytes=0-9").header("if-range", other).send().await.unwrap();
            assert_eq!(whole.status(), 200);
        }
        let cached = http().get(&url).header("if-none-match", &etag).send().await.unwrap();
        assert_eq!(cached.status(), 304);
        proxy.stop().await;
    }
}

#[tokio::test]
async fn a_private_blob_is_for_those_whom_the_registry_lets_in_cached_or_not() {
    let Some(registry) = RealRegistry::start(true) else { return };
    let layer = noise(100_000);
    let reference: Reference = format!("{}/team/app:1", registry.host).parse().unwrap();
    let credential = Credential::Password { username: "user".to_owned(), password: "secret".to_owned() };
    let credentials = CredentialSource::Static(HashMap::from([(registry.host.clone(), credential)]));
    push(&Client::new(ClientConfig { credentials, ..ClientConfig::default() }).unwrap(), &reference, &layer)
        .await;
    let proxy = Proxy::start(mirror_of(&registry.host), Arc::new(Cache::default())).await;
    let http = http();
    let blob = proxy.url(&format!("/v2/team/app/blobs/{}", Digest::of(&layer)));
    let strangers = [None, Some("Basic dXNlcjp3cm9uZw=="), Some("Bearer forged"), Some("")];
    for round in ["cold", "warm"] {
        for stranger in strangers {
            for range in [None, Some("bytes=0-9")] {
                let mut get = http.get(&blob);
                if let Some(authorization) = stranger {
                    get = get.header("authorization", authorization);
                }
                if let Some(range) = range {
                    get = get.header("range", range);
                }
                let got = get.send().await.unwrap();
                assert_eq!(got.status(), 401, "{round} {stranger:?}");
                assert!(header(&got, "www-authenticate").unwrap().starts_with("Basic"));
                assert!(got.bytes().await.unwrap().len() < 1000);
            }
        }
        let owner = http.get(&blob).header("authorization", "Basic dXNlcjpzZWNyZXQ=").send().await.unwrap();
        assert_eq!(owner.status(), 200, "{round}");
        assert_eq!(owner.bytes().await.unwrap(), layer);
    }
    proxy.stop().await;
}

/// A registry with one image that takes `Bearer good` only, and counts.
async fn strict_registry(layer: Bytes, manifest: Bytes) -> Server {
    Server::start(move |seen, _| {
        let answer = if seen.header("authorization") != Some("Bearer good") {
            status(401)
        } else if seen.path.contains("/manifests/") {
            Response::new(full(manifest.clone()))
        } else if seen.path.ends_with(&Digest::of(&layer).to_string()) {
            serve_blob(&seen, &layer)
        } else {
            status(404)
        };
        async move { answer }
    })
    .await
}

#[tokio::test]
async fn a_manifest_grants_the_blobs_that_it_lists_and_a_question_is_asked_once() {
    let layer = noise(50_000);
    let (manifest, _) = image(&layer);
    let registry = strict_registry(layer.clone(), manifest).await;
    let proxy = Proxy::start(mirror_of(&registry.host()), Arc::new(Cache::default())).await;
    let http = http();
    let get = |path: &str| http.get(proxy.url(path)).header("authorization", "Bearer good");
    let blob = format!("/v2/team/app/blobs/{}", Digest::of(&layer));

    // Without a manifest: one HEAD, however many ask.
    let heads = || registry.requests().iter().filter(|seen| seen.method == http::Method::HEAD).count();
    let readers = (0..20).map(|_| get(&blob).header("range", "bytes=0-99").send());
    for got in futures::future::join_all(readers).await {
        assert_eq!(got.unwrap().status(), 206);
    }
    assert_eq!(heads(), 1);

    // With one: none, in that repository only.
    assert_eq!(get("/v2/team/other/manifests/1").send().await.unwrap().status(), 200);
    let other = format!("/v2/team/other/blobs/{}", Digest::of(&layer));
    assert_eq!(get(&other).send().await.unwrap().status(), 200);
    assert_eq!(heads(), 1);
    let third = format!("/v2/team/third/blobs/{}", Digest::of(&layer));
    assert_eq!(get(&third).send().await.unwrap().status(), 200);
    assert_eq!(heads(), 2);
    // A grant is for the credentials that it was given to.
    let stranger = http.get(proxy.url(&other)).header("authorization", "Bearer bad").send().await.unwrap();
    assert_eq!(stranger.status(), 401);
    for seen in registry.requests() {
        assert!(seen.header("via").is_none_or(|via| via.contains("pantala")));
        assert!(seen.header("x-dragonfly-registry").is_none());
    }
    proxy.stop().await;
}

#[tokio::test]
async fn a_foreign_layer_in_a_manifest_grants_nothing() {
    let secret = noise(1000);
    let digest = Digest::of(&secret);
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "config": {"mediaType": media_type::OCI_CONFIG, "digest": Digest::of(b"c"), "size": 1},
        "layers": [
            {"mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "digest": digest, "size": 1000},
            {"mediaType": media_type::OCI_LAYER, "digest": digest, "size": 1000, "urls": ["http://r.example/"]},
        ],
    });
    let manifest = Bytes::from(manifest.to_string());
    // The registry knows the manifest and denies the blob; the cache has the blob.
    let registry = Server::start(move |seen, _| {
        let answer = if seen.path.contains("/manifests/") {
            Response::new(full(manifest.clone()))
        } else {
            status(404)
        };
        async move { answer }
    })
    .await;
    let cache = Cache::default();
    let host = registry::canonical_registry(&registry.host());
    cache.0.lock().unwrap().insert(ContentId::claimed(&host, &digest), secret);
    let proxy = Proxy::start(mirror_of(&registry.host()), Arc::new(cache)).await;
    assert_eq!(http().get(proxy.url("/v2/evil/app/manifests/1")).send().await.unwrap().status(), 200);
    let got = http().get(proxy.url(&format!("/v2/evil/app/blobs/{digest}"))).send().await.unwrap();
    assert_eq!(got.status(), 404);
    proxy.stop().await;
}

#[tokio::test]
async fn a_redirect_to_a_login_page_is_no_permission() {
    let secret = noise(1000);
    let digest = Digest::of(&secret);
    let registry = Server::start(move |seen, _| {
        let answer = if seen.path == "/login" {
            Response::builder().header("content-type", "text/html").body(full("<form>")).unwrap()
        } else {
            Response::builder().status(302).header("location", "/login").body(full("")).unwrap()
        };
        async move { answer }
    })
    .await;
    let cache = Cache::default();
    let host = registry::canonical_registry(&registry.host());
    cache.0.lock().unwrap().insert(ContentId::claimed(&host, &digest), secret);
    let proxy = Proxy::start(mirror_of(&registry.host()), Arc::new(cache)).await;
    let got = http().get(proxy.url(&format!("/v2/team/app/blobs/{digest}"))).send().await.unwrap();
    assert_eq!((got.status().as_u16(), header(&got, "location")), (302, Some("/login")));
    proxy.stop().await;
}

#[tokio::test]
async fn a_blob_that_breaks_off_breaks_the_callers_connection() {
    let layer = noise(500_000);
    let bytes = layer.clone();
    let registry = Server::start(move |seen, before| {
        let answer = serve_blob(&seen, &bytes);
        let bytes = bytes.clone();
        async move {
            match before {
                // The question, and the first read.
                0 | 1 => answer,
                // Nothing but the beginning of the rest, and then no more.
                2 => {
                    let (parts, _) = answer.into_parts();
                    Response::from_parts(parts, broken(bytes.slice(65_536..200_000)))
                }
                _ => status(403),
            }
        }
    })
    .await;
    let proxy = Proxy::start(mirror_of(&registry.host()), Arc::new(DirectOpener)).await;
    let got =
        http().get(proxy.url(&format!("/v2/team/app/blobs/{}", Digest::of(&layer)))).send().await.unwrap();
    assert_eq!(got.status(), 200);
    assert!(got.bytes().await.is_err(), "a part was taken for the whole");
    proxy.stop().await;
}

#[tokio::test]
async fn what_must_be_refused_is_refused_with_a_word() {
    let registry = Server::start(|_, _| async { Response::new(full("ok")) }).await;
    let inside = Server::start(|_, _| async { Response::new(full("secret")) }).await;
    let proxy = Proxy::start(mirror_of(&registry.host()), Arc::new(DirectOpener)).await;
    let http = http();
    let inside_url = format!("http://{}", inside.host());
    for named in
        [inside_url.as_str(), "http://169.254.169.254", "http://localhost:1", "http://[::ffff:127.0.0.1]:1"]
    {
        let got = http.get(proxy.url("/v2/")).header("x-dragonfly-registry", named).send().await.unwrap();
        assert_eq!(
            (got.status().as_u16(), header(&got, "x-dragonfly-error-type")),
            (403, Some("proxy")),
            "{named}"
        );
        let blob = proxy.url(&format!("/v2/a/blobs/{}", Digest::of(b"x")));
        let got = http.get(blob).header("x-dragonfly-registry", named).send().await.unwrap();
        assert_eq!(got.status(), 403, "{named}");
    }
    let got = http.get(proxy.url(&format!("/v2/?ns={}", inside.host()))).send().await.unwrap();
    assert_eq!(got.status(), 403);
    let got =
        http.get(proxy.url("/v2/")).header("x-dragonfly-output-path", "/etc/cron.d/x").send().await.unwrap();
    assert_eq!((got.status().as_u16(), header(&got, "x-dragonfly-error-type")), (400, Some("proxy")));
    let got = http.get(proxy.url("/v2/")).header("x-dragonfly-registry", "file:///etc").send().await.unwrap();
    assert_eq!(got.status(), 400);
    assert!(inside.requests().is_empty());
    // The mirror's own registry is named by the configuration, however private.
    assert_eq!(http.get(proxy.url("/v2/")).send().await.unwrap().status(), 200);
    proxy.stop().await;
}

#[tokio::test]
async fn a_forward_proxy_asks_listed_hosts_and_reads_their_blobs_through_the_cluster() {
    let layer = noise(100_000);
    let bytes = layer.clone();
    let registry = Server::start(move |seen, _| {
        let answer =
            if seen.path.contains("/blobs/") { serve_blob(&seen, &bytes) } else { Response::new(full("hi")) };
        async move { answer }
    })
    .await;
    let rule = UpstreamRule {
        host: Some("127.0.0.1".to_owned()),
        ports: vec![registry.address.port()],
        ..UpstreamRule::default()
    };
    let config = ProxyConfig { white_list: vec![rule], ..ProxyConfig::default() };
    let proxy = Proxy::start(config, Arc::new(Cache::default())).await;
    let through = reqwest::Client::builder().proxy(reqwest::Proxy::all(proxy.url("")).unwrap()).build();
    let _ = http();
    let through = through.unwrap_or_else(|error| panic!("{error}"));
    let url = |path: &str| format!("http://{}{path}", registry.host());
    let got = through.get(url("/anything")).send().await.unwrap();
    assert_eq!(got.text().await.unwrap(), "hi");
    let blob = url(&format!("/v2/team/app/blobs/{}", Digest::of(&layer)));
    for from in ["origin", "store"] {
        let got = through.get(&blob).send().await.unwrap();
        assert_eq!(header(&got, "x-pantala-source"), Some(from));
        assert_eq!(got.bytes().await.unwrap(), layer);
    }
    let got = through.get("http://127.0.0.1:1/").send().await.unwrap();
    assert_eq!((got.status().as_u16(), header(&got, "x-dragonfly-error-type")), (403, Some("proxy")));
    proxy.stop().await;
}

#[tokio::test]
async fn a_proxy_that_is_led_to_itself_says_so() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = listener.local_addr().unwrap().to_string();
    let proxy = Proxy::start_on(listener, mirror_of(&own), Arc::new(DirectOpener));
    for path in ["/v2/".to_owned(), format!("/v2/a/blobs/{}", Digest::of(b"x"))] {
        let got = http().get(proxy.url(&path)).send().await.unwrap();
        assert_eq!(got.status(), 508);
    }
    proxy.stop().await;
}

#[tokio::test]
async fn a_password_guards_all_of_it() {
    let registry = Server::start(|_, _| async { Response::new(full("ok")) }).await;
    let mut config = mirror_of(&registry.host());
    config.basic_auth = Some(BasicAuth { username: "user".to_owned(), password: "secret".to_owned() });
    let proxy = Proxy::start(config, Arc::new(DirectOpener)).await;
    let http = http();
    for (shown, expected) in [
        (None, 407),
        (Some("Basic dXNlcjp3cm9uZw=="), 407),
        (Some("basic"), 407),
        (Some("Basic dXNlcjpzZWNyZXQ="), 200),
    ] {
        let mut get = http.get(proxy.url("/v2/"));
        if let Some(shown) = shown {
            get = get.header("proxy-authorization", shown);
        }
        let got = get.send().await.unwrap();
        assert_eq!(got.status(), expected, "{shown:?}");
    }
    assert!(registry.requests().iter().all(|seen| seen.header("proxy-authorization").is_none()));
    assert!(connect(&proxy, &registry.host()).await.starts_with("HTTP/1.1 407"));
    proxy.stop().await;
}

async fn connect(proxy: &Proxy, target: &str) -> String {
    let mut tcp = TcpStream::connect(proxy.address).await.unwrap();
    let request = format!("CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n\r\n");
    tcp.write_all(request.as_bytes()).await.unwrap();
    let mut line = vec![0; 64];
    let read = tcp.read(&mut line).await.unwrap();
    String::from_utf8_lossy(&line[..read]).into_owned()
}

#[tokio::test]
async fn tunnels_lead_where_the_list_says_and_never_inside_without_it() {
    let echo = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = echo.local_addr().unwrap();
    let echoing = tokio::spawn(async move {
        let (mut tcp, _) = echo.accept().await.unwrap();
        let (mut read, mut write) = tcp.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    });
    let unlisted = Proxy::start(ProxyConfig::default(), Arc::new(DirectOpener)).await;
    for inside in [
        target.to_string(),
        format!("localhost:{}", target.port()),
        format!("[::ffff:127.0.0.1]:{}", target.port()),
        format!("2130706433:{}", target.port()),
        "169.254.169.254:80".to_owned(),
        "0.0.0.0:8080".to_owned(),
        "8.8.8.8:25".to_owned(),
    ] {
        let answer = connect(&unlisted, &inside).await;
        assert!(answer.starts_with("HTTP/1.1 403"), "{inside}: {answer}");
    }
    unlisted.stop().await;

    let rule = UpstreamRule {
        host: Some("127.0.0.1".to_owned()),
        ports: vec![target.port()],
        ..UpstreamRule::default()
    };
    let config = ProxyConfig { white_list: vec![rule], ..ProxyConfig::default() };
    let proxy = Proxy::start(config, Arc::new(DirectOpener)).await;
    assert!(connect(&proxy, "example.com:443").await.starts_with("HTTP/1.1 403"));
    let mut tcp = TcpStream::connect(proxy.address).await.unwrap();
    tcp.write_all(format!("CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n\r\n").as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(tcp.read_u8().await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 200"));
    tcp.write_all(b"through").await.unwrap();
    let mut back = [0; 7];
    tcp.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"through");
    // Stopping the proxy ends the tunnel.
    proxy.stop().await;
    assert_eq!(tcp.read(&mut back).await.unwrap_or(0), 0);
    echoing.await.unwrap();
}

#[tokio::test]
async fn rules_send_requests_past_the_cluster() {
    let layer = noise(1000);
    let bytes = layer.clone();
    let registry = Server::start(move |seen, _| {
        let answer = serve_blob(&seen, &bytes);
        async move { answer }
    })
    .await;
    let direct = ProxyRule { regx: "team/direct".to_owned(), direct: true, ..ProxyRule::default() };
    let blobs = ProxyRule { regx: "blobs/sha256.*".to_owned(), ..ProxyRule::default() };
    let config = ProxyConfig { rules: vec![direct, blobs], ..mirror_of(&registry.host()) };
    let proxy = Proxy::start(config, Arc::new(DirectOpener)).await;
    for (repository, through) in [("team/direct", false), ("team/app", true)] {
        let got = http()
            .get(proxy.url(&format!("/v2/{repository}/blobs/{}", Digest::of(&layer))))
            .send()
            .await
            .unwrap();
        assert_eq!(header(&got, "x-dragonfly-task-id").is_some(), through, "{repository}");
        assert_eq!(got.bytes().await.unwrap(), layer);
    }
    proxy.stop().await;
}

#[tokio::test]
async fn a_dead_registry_is_a_bad_gateway_and_a_wrong_configuration_is_told_at_once() {
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let proxy = Proxy::start(mirror_of(&dead), Arc::new(DirectOpener)).await;
    for path in ["/v2/".to_owned(), format!("/v2/a/blobs/{}", Digest::of(b"x"))] {
        let got = http().get(proxy.url(&path)).timeout(Duration::from_secs(30)).send().await.unwrap();
        assert_eq!(got.status(), StatusCode::BAD_GATEWAY);
        assert_eq!(header(&got, "x-dragonfly-error-type"), Some("backend"));
        assert!(got.text().await.unwrap().contains("is the registry running"));
    }
    proxy.stop().await;
    let config = ProxyConfig {
        rules: vec![ProxyRule { regx: "(".to_owned(), ..ProxyRule::default() }],
        ..ProxyConfig::default()
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = Client::new(ClientConfig::default()).unwrap();
    let started =
        proxy::serve(listener, config, client, Arc::new(DirectOpener), CancellationToken::new()).await;
    assert!(started.is_err());
}
