//! Secrets stay where they belong: every kind of request is redirected across every kind of border, and then
//! a canary is searched for in everything that a stranger received and everything that was logged.

// Clippy exempts test functions from these lints, and not their helpers.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::cast_possible_truncation)]

mod common;
#[path = "common/tls.rs"]
mod tls;

use std::collections::HashMap;
use std::io::Write;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use common::{Seen, Server, full, image, noise, serve_blob, status};
use content::{ByteRange, Digest, Urgency};
use futures::StreamExt;
use http::{HeaderMap, HeaderValue, Method, Response};
use registry::{
    Client, ClientConfig, Credential, CredentialSource, HostsConfig, Mirror, Reference, media_type,
};
use tls::Authority;

const CANARY: &str = "canary-secret";

/// The canary as it was given, and in base64 at each offset.
fn holds_canary(text: &[u8]) -> bool {
    let mut forms = vec![CANARY.as_bytes().to_vec()];
    for prefix in ["", "a", "aa"] {
        let encoded = STANDARD.encode(format!("{prefix}{CANARY}"));
        // What depends on the neighbours is cut off.
        forms.push(encoded.trim_end_matches('=').as_bytes()[4..16].to_vec());
    }
    forms.iter().any(|form| text.windows(form.len()).any(|window| window == form))
}

#[test]
fn the_search_finds_what_it_should() {
    for prefix in ["user:", "a:", "ab:", "abc:"] {
        assert!(holds_canary(STANDARD.encode(format!("{prefix}{CANARY}")).as_bytes()), "{prefix}");
    }
    assert!(!holds_canary(b"Basic dXNlcjpzZWNyZXQ="));
}

fn text_of(seen: &Seen) -> Vec<u8> {
    let mut text = format!("{} {}?{}\n", seen.method, seen.path, seen.query).into_bytes();
    for (name, value) in &seen.headers {
        text.extend_from_slice(name.as_str().as_bytes());
        text.extend_from_slice(value.as_bytes());
    }
    text.extend_from_slice(&seen.body);
    text
}

#[track_caller]
fn assert_clean(stranger: &Server, what: &str) {
    for seen in stranger.requests() {
        let text = text_of(&seen);
        assert!(!holds_canary(&text), "{what}: {}", String::from_utf8_lossy(&text));
    }
}

/// Everything that is logged while it lives, at every level.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn listen(&self) -> tracing::subscriber::DefaultGuard {
        let log = self.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_writer(move || log.clone())
            .finish();
        tracing::subscriber::set_default(subscriber)
    }

    #[track_caller]
    fn assert_clean(&self) {
        let log = self.0.lock().unwrap();
        assert!(!log.is_empty(), "nothing was logged, so nothing was looked at");
        assert!(!holds_canary(&log), "{}", String::from_utf8_lossy(&log));
    }
}

/// A registry that answers whoever knows the canary with a redirect to `border` and the path.
fn guarded(seen: &Seen, border: &str) -> Response<common::Body> {
    if !seen.headers.contains_key("authorization") {
        return Response::builder()
            .status(401)
            .header("www-authenticate", "Basic realm=\"t\"")
            .body(full(""))
            .unwrap();
    }
    Response::builder()
        .status(307)
        .header("location", format!("{border}{}", seen.path))
        .body(full(""))
        .unwrap()
}

/// What the redirect leads to gives whatever it is asked for, and would take any credentials.
fn stranger(layer: &Bytes) -> impl Fn(&Seen) -> Response<common::Body> + Send + Sync + use<> {
    let (manifest, blobs) = image(layer);
    move |seen| {
        if seen.path.contains("/manifests/") {
            let answer = Response::builder().header("content-type", media_type::OCI_MANIFEST);
            return answer.body(full(manifest.clone())).unwrap();
        }
        let name = seen.path.rsplit('/').next().unwrap();
        let blob = name.parse().ok().and_then(|digest: Digest| blobs.get(&digest));
        blob.map_or_else(|| status(200), |blob| serve_blob(seen, blob))
    }
}

/// Scheme of the registry, scheme of the stranger, and the stranger's name for itself.
const BORDERS: [(bool, bool, &str); 5] = [
    (false, false, "127.0.0.1"), // another port
    (false, false, "localhost"), // another name
    (false, true, "127.0.0.1"),  // another scheme
    (true, false, "127.0.0.1"),  // a weaker one
    (true, true, "localhost"),
];

async fn start(
    authority: &Authority,
    secure: bool,
    name: &str,
    answer: impl Fn(&Seen) -> Response<common::Body> + Send + Sync + 'static,
) -> Server {
    let answer = move |seen: Seen, _: usize| {
        let answer = answer(&seen);
        async move { answer }
    };
    if secure { tls::start(authority.server(name, None), answer).await } else { Server::start(answer).await }
}

fn scheme(secure: bool) -> &'static str {
    if secure { "https" } else { "http" }
}

/// The host as a mirror that is told secrets in headers of its own.
fn mirror_of(host: &str, secure: bool) -> Mirror {
    let mut headers = HeaderMap::new();
    headers.insert("x-mirror-token", CANARY.parse().unwrap());
    headers.insert("cookie", CANARY.parse().unwrap());
    Mirror {
        host: format!("{}://{host}", scheme(secure)),
        headers,
        capabilities: registry::Capabilities::ALL,
        ..Mirror::default()
    }
}

/// Uses everything that a client can ask for at `host`. How much of it works is not the question.
async fn use_everything(client: &Client, reference: &Reference, layer: &Bytes) {
    let digest = Digest::of(layer);
    client.manifest(reference).await.ok();
    client.head_blob(reference, &digest).await.ok();
    client.referrers(reference, &digest, None).await.ok();
    client.tags(reference).await.ok();
    let origin = client.origin(reference, &digest, None);
    origin.tail(10).await.ok();
    origin.read(ByteRange::new(0, 10), Urgency::Blocking).await.ok();
    client.check_push(reference).await.ok();
    client.mount_blob(reference, &digest, "other/base").await.ok();
    client.push_manifest(reference, media_type::OCI_MANIFEST, Bytes::from_static(b"{}")).await.ok();
    let bytes = layer.clone();
    let make = move || futures::stream::iter([Ok(bytes.clone())]).boxed();
    client.push_blob(reference, &Digest::of(b"other"), layer.len() as u64, &make, None).await.ok();
}

#[tokio::test]
async fn no_redirect_carries_credentials_over_a_border() {
    let log = Log::default();
    let _listening = log.listen();
    let authority = Authority::new();
    let layer = noise(1000);
    for (near, far, name) in BORDERS {
        let what = format!("{} to {} {name}", scheme(near), scheme(far));
        let elsewhere = start(&authority, far, name, stranger(&layer)).await;
        let border = format!("{}://{name}:{}", scheme(far), elsewhere.address.port());
        let registry = start(&authority, near, "127.0.0.1", move |seen| guarded(seen, &border)).await;
        let credential = Credential::Password { username: "user".to_owned(), password: CANARY.to_owned() };
        let mut hosts = HostsConfig::new();
        // The registry as its own mirror: headers for mirrors must not cross the border either.
        hosts.add("r.example", mirror_of(&registry.host(), near));
        let config = ClientConfig {
            hosts,
            credentials: CredentialSource::Static(HashMap::from([(registry.host(), credential)])),
            extra_roots: vec![authority.pem().into_bytes()],
            patience: Some(std::time::Duration::ZERO),
            ..ClientConfig::default()
        };
        let client = Client::new(config).unwrap();
        let at_mirror: Reference = "r.example/team/app:1".parse().unwrap();
        use_everything(&client, &at_mirror, &layer).await;
        if !near {
            let itself: Reference = format!("{}/team/app:1", registry.host()).parse().unwrap();
            use_everything(&client, &itself, &layer).await;
            // A proxy's caller has a canary of its own.
            let header = HeaderValue::from_str(&format!("Bearer {CANARY}")).unwrap();
            let rule = registry::UpstreamRule {
                host: Some("127.0.0.1".to_owned()),
                ..registry::UpstreamRule::default()
            };
            let client = client.with_upstreams(registry::Upstreams::new(&[rule], false).unwrap());
            let caller = client.origin_with_header(&itself, &Digest::of(&layer), None, Some(header));
            assert_eq!(caller.tail(10).await.unwrap().bytes, layer.slice(990..), "{what}");
        }
        let asked = elsewhere.requests();
        assert!(asked.len() >= 3, "{what}: the border was not crossed: {asked:?}");
        assert!(asked.iter().any(|seen| seen.path.contains("/manifests/")), "{what}");
        assert_clean(&elsewhere, &what);
        assert!(
            registry.requests().iter().any(|seen| holds_canary(&text_of(seen))),
            "{what}: nothing was secret"
        );
    }
    log.assert_clean();
}

/// Where a session leads, a token server sends on, or a list goes on: other ways over the border.
#[tokio::test]
async fn no_other_way_carries_credentials_over_a_border() {
    let log = Log::default();
    let _listening = log.listen();
    for way in ["location", "realm", "token-redirect", "link"] {
        let elsewhere = Server::start(|_, _| async { status(401) }).await;
        let border = format!("http://{}", elsewhere.host());
        let registry = Server::start(move |seen, _| {
            let host = seen.header("host").unwrap();
            let realm =
                if way == "realm" { format!("{border}/token") } else { format!("http://{host}/token") };
            let bearer = way == "realm" || way == "token-redirect";
            let answer = if seen.path == "/token" {
                Response::builder()
                    .status(307)
                    .header("location", format!("{border}/token"))
                    .body(full(""))
                    .unwrap()
            } else if bearer || seen.header("authorization").is_none() {
                let challenge =
                    if bearer { format!("Bearer realm=\"{realm}\"") } else { "Basic realm=\"t\"".to_owned() };
                Response::builder().status(401).header("www-authenticate", challenge).body(full("")).unwrap()
            } else if seen.method == Method::POST {
                let place = format!("{border}/upload");
                Response::builder().status(202).header("location", place).body(full("")).unwrap()
            } else {
                let next = format!("<{border}/next>; rel=\"next\"");
                Response::builder().header("link", next).body(full(r#"{"tags":["a"]}"#)).unwrap()
            };
            async move { answer }
        })
        .await;
        for credential in [
            Credential::Password { username: "user".to_owned(), password: CANARY.to_owned() },
            Credential::IdentityToken(CANARY.to_owned()),
            Credential::RegistryToken(CANARY.to_owned()),
        ] {
            let config = ClientConfig {
                credentials: CredentialSource::Static(HashMap::from([(registry.host(), credential.clone())])),
                patience: Some(std::time::Duration::ZERO),
                ..ClientConfig::default()
            };
            let mut config = config;
            config.hosts.add("r.example", mirror_of(&registry.host(), false));
            let client = Client::new(config).unwrap();
            let before = elsewhere.requests().len();
            for name in [&registry.host(), "r.example"] {
                let reference: Reference = format!("{name}/team/app:1").parse().unwrap();
                use_everything(&client, &reference, &noise(1000)).await;
            }
            let asked = &elsewhere.requests()[before..];
            if way == "realm" && !matches!(credential, Credential::RegistryToken(_)) {
                // The one place that a registry may send its user's password to: its token server.
                assert!(asked.iter().all(|seen| seen.path == "/token"), "{asked:?}");
                assert!(asked.iter().any(|seen| holds_canary(&text_of(seen))));
                continue;
            }
            for seen in asked {
                assert!(!holds_canary(&text_of(seen)), "{way}: {seen:?}");
            }
        }
    }
    log.assert_clean();
}

/// Neither in errors nor in `Debug`.
#[tokio::test]
async fn nothing_that_is_printed_holds_a_secret() {
    let registry = Server::start(|seen, _| async move {
        match seen.header("authorization") {
            None => Response::builder()
                .status(401)
                .header("www-authenticate", "Basic realm=\"t\"")
                .body(full(""))
                .unwrap(),
            Some(_) => status(403),
        }
    })
    .await;
    let credential = Credential::Password { username: "user".to_owned(), password: CANARY.to_owned() };
    let credentials = CredentialSource::Static(HashMap::from([(registry.host(), credential)]));
    let config = ClientConfig { credentials, ..ClientConfig::default() };
    let mut printed = vec![format!("{config:?}")];
    let client = Client::new(config).unwrap();
    let reference: Reference = format!("{}/team/app:1", registry.host()).parse().unwrap();
    let error = client.manifest(&reference).await.unwrap_err();
    printed.push(format!("{client:?} {error} {error:?}"));
    let error = client.begin_upload(&reference).await.unwrap_err();
    printed.push(format!("{error} {error:?}"));
    let printed = printed.join(" ");
    assert!(!holds_canary(printed.as_bytes()), "{printed}");
}
