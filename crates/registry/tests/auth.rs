//! In whose name is asked: Docker's configuration with real helper programs, tokens of every kind, and
//! Debian's `docker-registry` with a token server that signs.

// Clippy exempts test functions from these lints, and not their helpers.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::cast_possible_truncation)]

mod common;

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use common::{RealRegistry, Seen, Server, broken, full, image, noise, serve_blob, status};
use content::{ByteRange, Digest, Urgency};
use futures::{StreamExt, TryStreamExt};
use http::{Method, Response};
use registry::{Client, ClientConfig, Credential, CredentialSource, Descriptor, Reference, media_type};

/// Runs the calling test again in a process with `variables`, which threads of one process cannot have.
/// `true` in the child.
fn in_child(test: &str, variables: &[(&str, &str)]) -> bool {
    if std::env::var_os("PANTALA_TEST_CHILD").is_some() {
        return true;
    }
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env("PANTALA_TEST_CHILD", "1");
    let output = command.envs(variables.iter().copied()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    false
}

fn script(folder: &Path, name: &str, text: &str) {
    let path = folder.join(format!("docker-credential-{name}"));
    std::fs::write(
        &path,
        format!("#!/bin/sh\nserver=$(cat)\necho \"$1 $server\" >> {}/log\n{text}\n", folder.display()),
    )
    .unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// A registry that takes any name, and what it was told.
async fn any_name() -> Server {
    let (manifest, _) = image(&noise(10));
    Server::start(move |seen, _| {
        let answer = match seen.header("authorization") {
            Some(_) => Response::builder()
                .header("content-type", media_type::OCI_MANIFEST)
                .body(full(manifest.clone()))
                .unwrap(),
            None => challenge("Basic realm=\"test\""),
        };
        async move { answer }
    })
    .await
}

fn challenge(text: &str) -> Response<common::Body> {
    Response::builder().status(401).header("www-authenticate", text).body(full("")).unwrap()
}

fn reference(server: &Server) -> Reference {
    format!("{}/team/app:1", server.host()).parse().unwrap()
}

fn with(host: &str, credential: Credential) -> Client {
    let credentials = CredentialSource::Static(HashMap::from([(host.to_owned(), credential)]));
    Client::new(ClientConfig { credentials, ..ClientConfig::default() }).unwrap()
}

fn password() -> Credential {
    Credential::Password { username: "user".to_owned(), password: "secret".to_owned() }
}

fn last_header(server: &Server) -> String {
    server.requests().last().unwrap().header("authorization").unwrap_or_default().to_owned()
}

fn basic(text: &str) -> String {
    format!("Basic {}", STANDARD.encode(text))
}

#[test]
fn helpers_and_stores_of_dockers_configuration_are_asked() {
    let folder = tempfile::tempdir().unwrap();
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
    let home = folder.path().to_str().unwrap();
    let variables = [("PATH", path.as_str()), ("DOCKER_CONFIG", home), ("HELPERS", home)];
    if in_child("helpers_and_stores_of_dockers_configuration_are_asked", &variables) {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(ask_helpers(Path::new(&std::env::var("HELPERS").unwrap())));
    }
}

async fn ask_helpers(folder: &Path) {
    let servers = [any_name().await, any_name().await, any_name().await, any_name().await];
    let [own, stored, filed, broken] = servers.each_ref().map(Server::host);
    // As Docker's helpers answer: one that knows, one that knows nothing, one that fails.
    script(folder, "own", r#"echo "{\"ServerURL\":\"$server\",\"Username\":\"helper\",\"Secret\":\"s:1\"}""#);
    script(
        folder,
        "store",
        &format!(
            "case $server in {stored}) echo '{{\"Username\":\"store\",\"Secret\":\"s2\"}}';; \
             *) echo 'credentials not found in native keychain'; exit 1;; esac"
        ),
    );
    script(folder, "broken", "echo 'the vault is sealed'; exit 3");
    let config = serde_json::json!({
        "auths": {&filed: {"auth": STANDARD.encode("file:s3")}, &stored: {}},
        "credHelpers": {&own: "own", &broken: "broken"},
        "credsStore": "store",
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let credentials = CredentialSource::DockerConfig(None);
    let client = Client::new(ClientConfig { credentials, ..ClientConfig::default() }).unwrap();
    for (server, expected) in servers.iter().zip(["helper:s:1", "store:s2", "file:s3"]) {
        client.manifest(&reference(server)).await.unwrap();
        assert_eq!(last_header(server), basic(expected));
    }
    let error = client.manifest(&reference(&servers[3])).await.unwrap_err().to_string();
    assert!(error.contains("docker-credential-broken failed: the vault is sealed"), "{error}");
    let log = std::fs::read_to_string(folder.join("log")).unwrap();
    assert!(log.contains(&format!("get {own}\n")) && log.contains(&format!("get {stored}\n")), "{log}");
}

/// A registry behind a token server of both forms. `given` counts its tokens; the newest is good.
async fn token_registry(
    answer: impl Fn(&Seen, usize) -> Response<common::Body> + Send + Sync + 'static,
) -> (Server, Arc<AtomicUsize>) {
    let given = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&given);
    let server = Server::start(move |seen, before| {
        let host = seen.header("host").unwrap().to_owned();
        let answer = if seen.path == "/token" {
            let number = count.fetch_add(1, Ordering::SeqCst) + 1;
            let name = if seen.method == Method::POST { "access_token" } else { "token" };
            Response::new(full(format!(r#"{{"{name}":"token-{number}","expires_in":300}}"#)))
        } else if seen.header("authorization")
            == Some(&format!("Bearer token-{}", count.load(Ordering::SeqCst)))
        {
            answer(&seen, before)
        } else {
            challenge(&format!(r#"Bearer realm="http://{host}/token",service="the service""#))
        };
        async move { answer }
    })
    .await;
    (server, given)
}

fn tokens_asked(server: &Server) -> Vec<Seen> {
    server.requests().into_iter().filter(|seen| seen.path == "/token").collect()
}

#[tokio::test]
async fn an_identity_token_is_changed_into_an_access_token() {
    let (manifest, _) = image(&noise(10));
    let (server, _) = token_registry(move |_, _| {
        Response::builder()
            .header("content-type", media_type::OCI_MANIFEST)
            .body(full(manifest.clone()))
            .unwrap()
    })
    .await;
    let client = with(&server.host(), Credential::IdentityToken("refresh+me".to_owned()));
    client.manifest(&reference(&server)).await.unwrap();
    let asked = tokens_asked(&server);
    assert_eq!(asked.len(), 1);
    assert_eq!((&asked[0].method, asked[0].query.as_str()), (&Method::POST, ""));
    assert_eq!(asked[0].header("content-type"), Some("application/x-www-form-urlencoded"));
    assert!(asked[0].header("authorization").is_none());
    let form: HashMap<String, String> = url::form_urlencoded::parse(&asked[0].body).into_owned().collect();
    for (key, value) in [
        ("grant_type", "refresh_token"),
        ("refresh_token", "refresh+me"),
        ("service", "the service"),
        ("scope", "repository:team/app:pull"),
        ("client_id", "pantala"),
    ] {
        assert_eq!(form.get(key).map(String::as_str), Some(value), "{key}");
    }
    assert_eq!(last_header(&server), "Bearer token-1");
}

#[tokio::test]
async fn a_registry_token_is_sent_as_it_is() {
    let server = any_name().await;
    let client = with(&server.host(), Credential::RegistryToken("made-elsewhere".to_owned()));
    client.manifest(&reference(&server)).await.unwrap();
    assert_eq!(last_header(&server), "Bearer made-elsewhere");
}

#[tokio::test]
async fn of_several_challenges_the_one_that_can_be_answered_is() {
    let (manifest, _) = image(&noise(10));
    let kinds: [&[&str]; 4] = [
        &["Basic realm=\"x\"", "BEARER"],
        &["BEARER", "Basic realm=\"x\""],
        &["Negotiate", "BEARER"],
        &["Basic realm=\"x\", BEARER"],
    ];
    for challenges in kinds {
        let manifest = manifest.clone();
        let server = Server::start(move |seen, _| {
            let bearer =
                format!("Bearer realm=\"http://{}/token\",service=\"s\"", seen.header("host").unwrap());
            let answer = match (seen.path.as_str(), seen.header("authorization")) {
                ("/token", _) => Response::new(full(r#"{"token":"good"}"#)),
                (_, Some("Bearer good")) => Response::new(full(manifest.clone())),
                _ => {
                    let mut answer = Response::builder().status(401);
                    for text in challenges {
                        answer = answer.header("www-authenticate", text.replace("BEARER", &bearer));
                    }
                    answer.body(full("")).unwrap()
                }
            };
            async move { answer }
        })
        .await;
        with(&server.host(), password()).manifest(&reference(&server)).await.unwrap();
        for seen in server.requests() {
            let header = seen.header("authorization").unwrap_or_default();
            assert!(seen.path == "/token" || !header.starts_with("Basic"), "{challenges:?}: {}", seen.path);
        }
    }
}

#[tokio::test]
async fn a_mount_asks_for_both_repositories_at_once() {
    let (server, _) = token_registry(|_, _| status(201)).await;
    let client = with(&server.host(), password());
    assert!(client.mount_blob(&reference(&server), &Digest::of(b"x"), "other/base").await.unwrap());
    let asked = tokens_asked(&server);
    assert_eq!(asked.len(), 1);
    let scopes: Vec<String> = url::form_urlencoded::parse(asked[0].query.as_bytes())
        .filter(|(key, _)| key == "scope")
        .map(|(_, value)| value.into_owned())
        .collect();
    assert_eq!(scopes, ["repository:team/app:pull,push", "repository:other/base:pull"]);
    assert_eq!(asked[0].header("authorization"), Some(basic("user:secret").as_str()));
}

/// A repository comes to be with the first push: until then, only who may push is told that it is empty.
#[tokio::test]
async fn a_repository_that_is_not_there_yet_is_asked_as_by_who_may_push() {
    let server = Server::start(|seen, _| {
        let host = seen.header("host").unwrap().to_owned();
        let answer = match (seen.path.as_str(), seen.header("authorization")) {
            ("/token", _) => {
                let push = seen.query("scope").is_some_and(|scope| scope.contains("push"));
                Response::new(full(if push { r#"{"token":"good"}"# } else { r#"{"token":"none"}"# }))
            }
            (_, Some("Bearer good")) => status(404),
            _ => challenge(&format!("Bearer realm=\"http://{host}/token\",service=\"s\"")),
        };
        async move { answer }
    })
    .await;
    let client = with(&server.host(), password());
    assert!(!client.blob_exists(&reference(&server), &Digest::of(b"x")).await.unwrap());
    assert!(client.pushed_manifest(&reference(&server)).await.unwrap().is_none());
}

/// The token is refused exactly when a pull that broke is resumed.
#[tokio::test]
async fn a_token_that_expires_within_a_pull_is_replaced() {
    let blob = noise(400_000);
    let bytes = blob.clone();
    let revoked = Arc::new(AtomicUsize::new(0));
    let revoke = Arc::clone(&revoked);
    let (server, given) = token_registry(move |seen, _| {
        let answer = serve_blob(seen, &bytes);
        // The first two bodies break, and their token is no longer good.
        if revoke.fetch_add(1, Ordering::SeqCst) < 2 {
            let start = seen.header("range").unwrap().trim_start_matches("bytes=");
            let start: usize = start.split('-').next().unwrap().parse().unwrap();
            let (head, _) = answer.into_parts();
            return Response::from_parts(head, broken(bytes.slice(start..start + 70_000)));
        }
        answer
    })
    .await;
    let client = with(&server.host(), password());
    let descriptor = Descriptor::new(media_type::OCI_LAYER_GZIP, Digest::of(&blob), blob.len() as u64);
    let mut stream = client.pull_blob(&reference(&server), &descriptor, Urgency::Background);
    let mut whole = Vec::new();
    while let Some(part) = stream.try_next().await.unwrap() {
        whole.extend_from_slice(&part);
        if revoked.load(Ordering::SeqCst) <= 2 {
            given.fetch_max(revoked.load(Ordering::SeqCst) * 10, Ordering::SeqCst);
        }
    }
    assert_eq!(whole, blob);
    assert_eq!(tokens_asked(&server).len(), 3);
    let ranges: Vec<_> =
        server.requests().iter().filter_map(|seen| seen.header("range").map(str::to_owned)).collect();
    assert!(ranges.iter().collect::<std::collections::BTreeSet<_>>().len() >= 3, "{ranges:?}");
}

#[tokio::test]
async fn a_token_server_that_refuses_says_whose_fault_it_is() {
    let server = Server::start(|seen, _| {
        let host = seen.header("host").unwrap().to_owned();
        let answer = match seen.path.as_str() {
            "/token" => status(401),
            _ => challenge(&format!("Bearer realm=\"http://{host}/token\",service=\"s\"")),
        };
        async move { answer }
    })
    .await;
    let error = with(&server.host(), password()).manifest(&reference(&server)).await.unwrap_err();
    assert_eq!(error.status(), Some(401));
    assert!(error.to_string().contains("user or password is wrong"), "{error}");
    let nobody = Client::new(ClientConfig::default()).unwrap();
    let error = nobody.manifest(&reference(&server)).await.unwrap_err();
    assert!(error.to_string().contains("there are no credentials"), "{error}");
}

/// Credentials are kept under the registry's name, and not under that of whom it sends us to.
#[tokio::test]
async fn a_token_server_elsewhere_is_not_where_to_log_in() {
    let tokens = Server::start(|_, _| async { status(401) }).await;
    let realm = tokens.host();
    let server = Server::start(move |_, _| {
        let answer = challenge(&format!("Bearer realm=\"http://{realm}/token\",service=\"s\""));
        async move { answer }
    })
    .await;
    let error =
        Client::new(ClientConfig::default()).unwrap().manifest(&reference(&server)).await.unwrap_err();
    let error = error.to_string();
    assert!(error.contains(&format!("http://{} answers 401", tokens.host())), "{error}");
    assert!(error.contains(&format!("`docker login {}`", server.host())), "{error}");
}

/// Whoever asked for a token first may give up before it comes.
#[tokio::test]
async fn a_token_that_nobody_waits_for_any_more_is_asked_for_anew() {
    let asked = Arc::new(tokio::sync::Notify::new());
    let told = Arc::clone(&asked);
    let count = Arc::new(AtomicUsize::new(0));
    let (manifest, _) = image(&noise(10));
    let server = Server::start(move |seen, _| {
        let (told, count, manifest) = (Arc::clone(&told), Arc::clone(&count), manifest.clone());
        async move {
            let host = seen.header("host").unwrap().to_owned();
            match (seen.path.as_str(), seen.header("authorization")) {
                ("/token", _) if count.fetch_add(1, Ordering::SeqCst) == 0 => {
                    told.notify_one();
                    std::future::pending().await
                }
                ("/token", _) => Response::new(full(r#"{"token":"good"}"#)),
                (_, Some("Bearer good")) => Response::new(full(manifest)),
                _ => challenge(&format!("Bearer realm=\"http://{host}/token\",service=\"s\"")),
            }
        }
    })
    .await;
    let (client, reference) = (Client::new(ClientConfig::default()).unwrap(), reference(&server));
    tokio::select! {
        _ = client.manifest(&reference) => panic!("there was no token"),
        () = asked.notified() => {}
    }
    client.manifest(&reference).await.unwrap();
    assert_eq!((tokens_asked(&server).len(), client.usage().retries), (2, 0));
}

/// A token server as the distribution project specifies it: it signs what it grants.
struct Signer {
    key: aws_lc_rs::signature::EcdsaKeyPair,
    certificate: rcgen::Certificate,
}

impl Signer {
    fn new() -> Self {
        let pair = rcgen::KeyPair::generate().unwrap();
        let certificate =
            rcgen::CertificateParams::new(vec!["signer".to_owned()]).unwrap().self_signed(&pair).unwrap();
        let signing = &aws_lc_rs::signature::ECDSA_P256_SHA256_FIXED_SIGNING;
        let key = aws_lc_rs::signature::EcdsaKeyPair::from_pkcs8(signing, &pair.serialize_der()).unwrap();
        Self { key, certificate }
    }

    /// Grants what is asked for; only `user` may push.
    fn token(&self, seen: &Seen) -> String {
        let owner = seen.header("authorization") == Some(&basic("user:secret"));
        let scopes = url::form_urlencoded::parse(seen.query.as_bytes()).filter(|(key, _)| key == "scope");
        let access: Vec<_> = scopes
            .map(|(_, scope)| {
                let (rest, actions) = scope.rsplit_once(':').unwrap();
                let (kind, name) = rest.split_once(':').unwrap();
                let actions: Vec<&str> =
                    actions.split(',').filter(|action| owner || *action == "pull").collect();
                serde_json::json!({"type": kind, "name": name, "actions": actions})
            })
            .collect();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let claims = serde_json::json!({
            "iss": "the issuer", "aud": seen.query("service").unwrap(), "sub": "", "jti": "1",
            "iat": now, "nbf": now - 10, "exp": now + 300, "access": access,
        });
        let head = serde_json::json!({"typ": "JWT", "alg": "ES256", "x5c": [STANDARD.encode(self.certificate.der())]});
        let text = [head, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string())).join(".");
        let signature = self.key.sign(&aws_lc_rs::rand::SystemRandom::new(), text.as_bytes()).unwrap();
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
    }
}

#[tokio::test]
async fn a_real_registry_with_a_token_server_is_pushed_to_pulled_from_and_mounted_within() {
    let signer = Signer::new();
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("signer.pem");
    std::fs::write(&bundle, signer.certificate.pem()).unwrap();
    let tokens = Server::start(move |seen, _| {
        let body = serde_json::json!({"token": signer.token(&seen), "expires_in": 300});
        async move { Response::new(full(body.to_string())) }
    })
    .await;
    let auth = format!(
        "auth:\n  token:\n    realm: http://{}/token\n    service: the registry\n    issuer: the issuer\n    rootcertbundle: {}\n",
        tokens.host(),
        bundle.display()
    );
    let Some(server) = RealRegistry::start_in(folder, auth) else { return };
    let reference: Reference = format!("{}/team/app:1", server.host).parse().unwrap();
    let owner = with(&server.host, password());
    owner.check_push(&reference).await.unwrap();
    let layer = noise((8 << 20) + 5);
    let (manifest, blobs) = image(&layer);
    for (digest, bytes) in &blobs {
        let bytes = bytes.clone();
        let make = move || futures::stream::iter([Ok(bytes.clone())]).boxed();
        owner.push_blob(&reference, digest, blobs[digest].len() as u64, &make, None).await.unwrap();
    }
    owner.push_manifest(&reference, media_type::OCI_MANIFEST, manifest.clone()).await.unwrap();

    let nobody = Client::new(ClientConfig::default()).unwrap();
    assert_eq!(nobody.manifest(&reference).await.unwrap().1, manifest);
    let origin = nobody.origin(&reference, &Digest::of(&layer), None);
    assert_eq!(origin.read(ByteRange::new(5, 10), Urgency::Blocking).await.unwrap(), layer.slice(5..10));
    let copy: Reference = format!("{}/team/copy:1", server.host).parse().unwrap();
    assert!(owner.mount_blob(&copy, &Digest::of(&layer), "team/app").await.unwrap());
    for error in [
        nobody.check_push(&reference).await.unwrap_err(),
        nobody
            .push_manifest(&reference, media_type::OCI_MANIFEST, Bytes::from_static(b"{}"))
            .await
            .unwrap_err(),
        nobody.begin_upload(&reference).await.unwrap_err(),
    ] {
        assert!(matches!(error.status(), Some(401 | 403)), "{error}");
        assert!(error.to_string().contains("docker login"), "{error}");
    }
    // Passwords go to the token server and nowhere else: the registry saw bearer tokens only.
    assert!(tokens.requests().iter().any(|seen| seen.header("authorization").is_some()));
}

/// Credentials as a cluster's secrets are: several that fit, of which some are wrong.
#[derive(Debug)]
struct Several(Vec<Credential>);

#[async_trait::async_trait]
impl registry::Keychain for Several {
    async fn find(&self, asked: &registry::Asked<'_>) -> Result<Vec<Credential>, registry::CredentialError> {
        assert_eq!(asked.repository, Some("team/app"));
        Ok(self.0.clone())
    }
}

fn several(names: &[&str]) -> Client {
    let named = |name: &&str| Credential::Password { username: (*name).to_owned(), password: "p".to_owned() };
    let credentials = CredentialSource::Keychain(Arc::new(Several(names.iter().map(named).collect())));
    Client::new(ClientConfig { credentials, ..ClientConfig::default() }).unwrap()
}

#[tokio::test]
async fn of_several_credentials_the_one_that_the_registry_takes_is_used() {
    let (manifest, _) = image(&noise(10));
    let server = Server::start(move |seen, _| {
        let answer = match seen.header("authorization") {
            Some(header) if header == basic("good:p") => Response::builder()
                .header("content-type", media_type::OCI_MANIFEST)
                .body(full(manifest.clone()))
                .unwrap(),
            // Whom it knows, and does not let in, is refused otherwise than whom it does not know.
            Some(header) if header == basic("known:p") => status(403),
            _ => challenge("Basic realm=\"t\""),
        };
        async move { answer }
    })
    .await;
    let client = several(&["wrong", "known", "wrong", "good", "other"]);
    client.manifest(&reference(&server)).await.unwrap();
    let sent = || -> Vec<String> {
        server
            .requests()
            .iter()
            .map(|seen| seen.header("authorization").unwrap_or_default().to_owned())
            .collect()
    };
    assert_eq!(sent(), [String::new(), basic("wrong:p"), basic("known:p"), basic("good:p")]);
    // What was taken is kept.
    client.manifest(&reference(&server)).await.unwrap();
    assert_eq!(sent().len(), 5);

    let before = sent().len();
    let many: Vec<String> = (0..50).map(|number| format!("u{number}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let error = several(&many).manifest(&reference(&server)).await.unwrap_err().to_string();
    assert!(error.contains("401"), "{error}");
    assert_eq!(sent().len() - before, 1 + 8, "nobody tries them all");
}

#[tokio::test]
async fn a_token_server_is_asked_by_the_next_name_if_it_refuses_one() {
    let (manifest, _) = image(&noise(10));
    let server = Server::start(move |seen, _| {
        let host = seen.header("host").unwrap().to_owned();
        let answer = match (seen.path.as_str(), seen.header("authorization")) {
            ("/token", Some(header)) if header == basic("good:p") => {
                Response::new(full(r#"{"token":"good"}"#))
            }
            // It lets somebody in who may not read this.
            ("/token", Some(header)) if header == basic("known:p") => {
                Response::new(full(r#"{"token":"none"}"#))
            }
            ("/token", _) => status(401),
            (_, Some("Bearer good")) => Response::builder()
                .header("content-type", media_type::OCI_MANIFEST)
                .body(full(manifest.clone()))
                .unwrap(),
            _ => challenge(&format!("Bearer realm=\"http://{host}/token\",service=\"s\"")),
        };
        async move { answer }
    })
    .await;
    several(&["wrong", "known", "other", "good"]).manifest(&reference(&server)).await.unwrap();
    let asked: Vec<String> =
        tokens_asked(&server).iter().map(|seen| seen.header("authorization").unwrap().to_owned()).collect();
    assert_eq!(asked, ["wrong:p", "known:p", "other:p", "good:p"].map(basic));
    let error = several(&["wrong", "other"]).manifest(&reference(&server)).await.unwrap_err().to_string();
    assert!(error.contains("401"), "{error}");
}
