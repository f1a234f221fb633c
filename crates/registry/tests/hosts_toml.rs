//! `hosts.toml` as containerd has it, read from disk and obeyed on the wire.

// Clippy exempts test functions from these lints, and not their helpers.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::cast_possible_truncation)]

mod common;
#[path = "common/tls.rs"]
mod tls;
#[path = "common/uploads.rs"]
mod uploads;

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use common::{Server, full, image, noise, serve_blob, status};
use content::{ByteRange, Digest, Urgency};
use futures::StreamExt;
use http::{Method, Response};
use registry::{Client, ClientConfig, HostsConfig, Reference, media_type};
use tls::Authority;
use uploads::Uploads;

fn write(folder: &Path, file: &str, text: &str) {
    let path = folder.join(file);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

fn client(folder: &Path) -> Client {
    let hosts = HostsConfig::load_certs_d(folder).unwrap();
    Client::new(ClientConfig { hosts, ..ClientConfig::default() }).unwrap()
}

/// A registry with one image and its blobs.
fn content(layer: &Bytes) -> impl Fn(&common::Seen) -> Response<common::Body> + Send + Sync + use<> {
    let (manifest, blobs) = image(layer);
    move |seen| {
        if seen.path.contains("/manifests/") {
            let answer = Response::builder().header("content-type", media_type::OCI_MANIFEST);
            return answer.body(full(manifest.clone())).unwrap();
        }
        let name = seen.path.rsplit('/').next().unwrap();
        let blob = name.parse().ok().and_then(|digest: Digest| blobs.get(&digest));
        blob.map_or_else(|| status(404), |blob| serve_blob(seen, blob))
    }
}

async fn serve(layer: &Bytes) -> Server {
    let answer = content(layer);
    Server::start(move |seen, _| {
        let answer = answer(&seen);
        async move { answer }
    })
    .await
}

async fn read(client: &Client, reference: &Reference, layer: &Bytes) -> Result<Bytes, content::ReadError> {
    let origin = client.origin(reference, &Digest::of(layer), Some(layer.len() as u64));
    origin.read(ByteRange::new(0, 10), Urgency::Blocking).await
}

#[tokio::test]
async fn hosts_are_asked_in_the_order_of_the_file_for_what_they_can_do() {
    let layer = noise(1000);
    let (tags, blobs, registry) = (serve(&layer).await, serve(&layer).await, serve(&layer).await);
    let folder = tempfile::tempdir().unwrap();
    // Not in the order of the alphabet, whichever ports they got.
    let text = format!(
        "server = \"http://{}\"\n[host.\"http://{}/z\"]\ncapabilities = [\"resolve\"]\n\
         [host.\"http://{}/a/v2\"]\ncapabilities = [\"pull\"]\n[host.\"http://{}/a/v2\".header]\nX-Canary = [\"one\", \"two\"]\n",
        registry.host(),
        tags.host(),
        blobs.host(),
        blobs.host()
    );
    write(folder.path(), "r.example_5000_/hosts.toml", &text);
    write(folder.path(), "r.example:5000/hosts.toml", "server = \"http://127.0.0.1:1\"");
    let client = client(folder.path());
    let reference: Reference = "r.example:5000/team/app:1".parse().unwrap();
    let (descriptor, _) = client.manifest(&reference).await.unwrap();
    assert_eq!(read(&client, &reference, &layer).await.unwrap(), layer.slice(..10));
    client.manifest(&reference.clone().with_digest(descriptor.digest)).await.unwrap();

    let paths = |server: &Server| -> Vec<String> {
        server.requests().iter().map(|seen| format!("{}?{}", seen.path, seen.query)).collect()
    };
    assert_eq!(paths(&tags), ["/z/v2/team/app/manifests/1?ns=r.example%3A5000"]);
    let digest = Digest::of(&layer);
    assert_eq!(
        paths(&blobs),
        [
            format!("/a/v2/team/app/blobs/{digest}?ns=r.example%3A5000"),
            format!("/a/v2/team/app/manifests/{}?ns=r.example%3A5000", descriptor.digest)
        ]
    );
    let headers = blobs.requests()[0].headers.get_all("x-canary").iter().cloned().collect::<Vec<_>>();
    assert_eq!(headers, ["one", "two"]);
    assert!(registry.requests().is_empty());
    // What the mirrors do not have is asked of the server of the file, under the registry's name.
    assert_eq!(client.head_blob(&reference, &digest).await.unwrap(), Some(1000));
    assert_eq!(paths(&registry), [format!("/v2/team/app/blobs/{digest}?ns=r.example%3A5000")]);
    assert!(registry.requests()[0].header("x-canary").is_none());
}

#[tokio::test]
async fn the_default_holds_for_registries_without_a_directory_and_paths_are_overridden() {
    let layer = noise(1000);
    let (mirror, own) = (serve(&layer).await, serve(&layer).await);
    let folder = tempfile::tempdir().unwrap();
    let text = format!("[host.\"http://{}/proxy\"]\noverride_path = true\n", mirror.host());
    write(folder.path(), "_default/hosts.toml", &text);
    write(folder.path(), "listed.example/hosts.toml", &format!("server = \"http://{}\"", own.host()));
    let client = client(folder.path());
    for (registry, is_default) in [("any.example", true), ("listed.example", false)] {
        let before = (mirror.requests().len(), own.requests().len());
        client.manifest(&format!("{registry}/team/app:1").parse().unwrap()).await.unwrap();
        let after = (mirror.requests().len(), own.requests().len());
        assert_eq!(
            after,
            (before.0 + usize::from(is_default), before.1 + usize::from(!is_default)),
            "{registry}"
        );
    }
    assert_eq!(mirror.requests()[0].path, "/proxy/team/app/manifests/1");
    assert_eq!(mirror.requests()[0].query, "ns=any.example");
}

#[tokio::test]
async fn what_is_pushed_goes_to_the_host_that_takes_it() {
    let uploads = Uploads::default();
    let store = uploads.clone();
    let pushed = Server::start(move |seen, _| {
        let answer = if seen.path.contains("/manifests/") { status(201) } else { store.answer(&seen) };
        async move { answer }
    })
    .await;
    let layer = noise(1000);
    let cache = serve(&layer).await;
    let folder = tempfile::tempdir().unwrap();
    let text = format!(
        "server = \"http://127.0.0.1:1\"\n[host.\"http://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n\
         [host.\"http://{}\"]\ncapabilities = [\"push\"]\n",
        cache.host(),
        pushed.host()
    );
    write(folder.path(), "r.example/hosts.toml", &text);
    let client = client(folder.path());
    let reference: Reference = "r.example/team/app:1".parse().unwrap();
    let (manifest, blobs) = image(&layer);
    for (digest, bytes) in &blobs {
        let bytes = bytes.clone();
        let make = move || futures::stream::iter([Ok(bytes.clone())]).boxed();
        client.push_blob(&reference, digest, blobs[digest].len() as u64, &make, None).await.unwrap();
    }
    client.push_manifest(&reference, media_type::OCI_MANIFEST, manifest).await.unwrap();
    assert_eq!(uploads.blob(&Digest::of(&layer)).unwrap(), layer);
    assert!(
        pushed
            .requests()
            .iter()
            .any(|seen| seen.method == Method::PUT && seen.path.ends_with("/manifests/1"))
    );
    assert!(cache.requests().is_empty());
}

#[tokio::test]
async fn certificates_are_checked_and_shown_as_the_file_says() {
    let (servers, clients) = (Authority::new(), Authority::new());
    let layer = noise(1000);
    let answer = Arc::new(content(&layer));
    let config = servers.server("127.0.0.1", Some((&clients, true)));
    let server = tls::start(config, move |seen, _| {
        let answer = answer(&seen);
        async move { answer }
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = clients.sign("somebody");
    let at = |file: &str| format!("r.example/{file}");
    write(folder.path(), &at("ca.pem"), &servers.pem());
    write(folder.path(), &at("client.pem"), &certificate.pem());
    write(folder.path(), &at("client.key"), &key.serialize_pem());
    write(folder.path(), &at("both.pem"), &format!("{}{}", certificate.pem(), key.serialize_pem()));
    let reference: Reference = "r.example/team/app:1".parse().unwrap();
    let inline = format!("ca = '''{}'''", servers.pem());
    for (settings, works) in [
        ("ca = \"ca.pem\"\nclient = [[\"client.pem\", \"client.key\"]]", true),
        ("ca = [\"ca.pem\"]\nclient = \"both.pem\"", true),
        ("ca = [\"ca.pem\"]\nclient = [\"both.pem\"]", true),
        ("skip_verify = true\nclient = [[\"both.pem\", \"\"]]", true),
        (&format!("{inline}\nclient = \"both.pem\""), true),
        ("ca = \"ca.pem\"", false),
        ("client = \"both.pem\"", false),
    ] {
        let text = format!("[host.\"https://{}\"]\n{settings}\n", server.host());
        // The registry itself is nowhere.
        write(folder.path(), &at("hosts.toml"), &format!("server = \"http://127.0.0.1:1\"\n{text}"));
        let before = server.requests().len();
        let manifest = client(folder.path()).manifest(&reference).await;
        assert_eq!(manifest.is_ok(), works, "{settings}: {manifest:?}");
        assert_eq!(server.requests().len() > before, works, "{settings}");
        // And so for the registry itself.
        let text = format!("server = \"https://{}\"\n{settings}\n", server.host());
        write(folder.path(), &at("hosts.toml"), &text);
        let manifest = client(folder.path()).manifest(&reference).await;
        assert_eq!(manifest.is_ok(), works, "{settings}: {manifest:?}");
    }
    // Docker's older form. The directory is the registry's own name.
    let (host, folder) = (server.host(), tempfile::tempdir().unwrap());
    let at = |file: &str| format!("{host}/{file}");
    write(folder.path(), &at("ca.crt"), &servers.pem());
    write(folder.path(), &at("client.cert"), &certificate.pem());
    write(folder.path(), &at("client.key"), &key.serialize_pem());
    let hosts = HostsConfig::load_certs_d(folder.path()).unwrap();
    let reference: Reference = format!("{host}/team/app:1").parse().unwrap();
    let client = Client::new(ClientConfig { hosts, ..ClientConfig::default() }).unwrap();
    assert_eq!(read(&client, &reference, &layer).await.unwrap(), layer.slice(..10));
    assert!(server.requests().iter().all(|seen| seen.identified));
}

#[tokio::test]
async fn a_certificate_is_not_shown_to_whom_a_host_redirects_to() {
    let (authority, clients) = (Authority::new(), Authority::new());
    let layer = noise(1000);
    let answer = content(&layer);
    // It would like to see one, and takes none.
    let config = authority.server("127.0.0.1", Some((&clients, false)));
    let storage = tls::start(config, move |seen, _| {
        let answer = answer(&seen);
        async move { answer }
    })
    .await;
    let target = storage.host();
    let config = authority.server("127.0.0.1", Some((&clients, true)));
    let server = tls::start(config, move |seen, _| {
        let target = format!("https://{target}{}", seen.path);
        async move { Response::builder().status(307).header("location", target).body(full("")).unwrap() }
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = clients.sign("somebody");
    write(folder.path(), "r.example/both.pem", &format!("{}{}", certificate.pem(), key.serialize_pem()));
    let text = format!("server = \"https://{}\"\nskip_verify = true\nclient = \"both.pem\"\n", server.host());
    write(folder.path(), "r.example/hosts.toml", &text);
    let reference: Reference = "r.example/team/app:1".parse().unwrap();
    let hosts = HostsConfig::load_certs_d(folder.path()).unwrap();
    // Neither the wish to skip checks nor the certificate goes along.
    let strict = Client::new(ClientConfig { hosts: hosts.clone(), ..ClientConfig::default() }).unwrap();
    assert!(read(&strict, &reference, &layer).await.is_err());
    assert!(storage.requests().is_empty());
    let extra_roots = vec![authority.pem().into_bytes()];
    let trusting = Client::new(ClientConfig { hosts, extra_roots, ..ClientConfig::default() }).unwrap();
    assert_eq!(read(&trusting, &reference, &layer).await.unwrap(), layer.slice(..10));
    assert!(server.requests().iter().all(|seen| seen.identified));
    assert!(!storage.requests().is_empty() && storage.requests().iter().all(|seen| !seen.identified));
}

/// containerd takes the first directory that there is, whatever is in it.
#[test]
fn a_directory_without_a_file_is_a_registry_without_mirrors() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "_default/hosts.toml", "[host.\"m.example\"]");
    write(folder.path(), "bare.example/readme", "no hosts.toml here");
    write(folder.path(), "empty.example/hosts.toml", "");
    write(folder.path(), "empty.example/ca.crt", &Authority::new().pem());
    // Nobody asks for Docker Hub under this name.
    write(folder.path(), "registry-1.docker.io/hosts.toml", "[host.\"wrong.example\"]");
    write(folder.path(), "docker.io/hosts.toml", "[host.\"right.example\"]");
    let hosts = HostsConfig::load_certs_d(folder.path()).unwrap();
    assert_eq!(hosts.mirrors("any.example").len(), 1);
    assert!(hosts.mirrors("bare.example").is_empty() && hosts.mirrors("empty.example").is_empty());
    assert!(format!("{hosts:?}").contains("roots: 1"), "{hosts:?}");
    assert_eq!(hosts.mirrors("docker.io")[0].host, "https://right.example");
}

#[test]
fn capabilities_are_read_as_containerd_reads_them() {
    let folder = tempfile::tempdir().unwrap();
    let text = "[host.\"a.example\"]\ncapabilities = []\n[host.\"b.example\"]\ncapabilities = [\"Pull\"]\n";
    write(folder.path(), "r.example/hosts.toml", text);
    let hosts = HostsConfig::load_certs_d(folder.path()).unwrap();
    let can: Vec<_> = hosts.mirrors("r.example").iter().map(|mirror| mirror.capabilities).collect();
    assert_eq!(can[0], registry::Capabilities::ALL, "none listed is as none said");
    assert_eq!((can[1].pull, can[1].resolve, can[1].push), (true, false, false));
}

/// Without a `server`, the file says nothing of what the registry itself can do; with one, it does.
#[tokio::test]
async fn what_the_registry_itself_can_do_is_said_with_its_place() {
    let server = serve(&noise(1000)).await;
    let folder = tempfile::tempdir().unwrap();
    write(
        folder.path(),
        &format!("{}/hosts.toml", server.host()),
        "capabilities = [\"push\"]\noverride_path = true",
    );
    let itself: Reference = format!("{}/team/app:1", server.host()).parse().unwrap();
    client(folder.path()).manifest(&itself).await.unwrap();
    assert_eq!(server.requests()[0].path, "/v2/team/app/manifests/1");

    let text = format!("server = \"http://{}\"\ncapabilities = [\"pull\", \"resolve\"]", server.host());
    write(folder.path(), "r.example/hosts.toml", &text);
    let before = server.requests().len();
    let error = client(folder.path()).check_push(&"r.example/team/app:1".parse().unwrap()).await.unwrap_err();
    assert!(error.to_string().contains("push") && error.to_string().contains("hosts.toml"), "{error}");
    assert_eq!(server.requests().len(), before);
}

/// A mirror with a path of its own keeps the repository under another name, which only it can tell.
#[tokio::test]
async fn a_token_is_also_for_what_the_mirror_asks_for() {
    let layer = noise(1000);
    let answer = content(&layer);
    let mirror = Server::start(move |seen, _| {
        let host = seen.header("host").unwrap().to_owned();
        let answer = match (seen.path.as_str(), seen.header("authorization")) {
            ("/token", _) => {
                let good = seen.query.contains("proxy%2Fteam%2Fapp%3Apull");
                Response::new(full(if good { r#"{"token":"good"}"# } else { r#"{"token":"useless"}"# }))
            }
            (_, Some("Bearer good")) => answer(&seen),
            _ => {
                let scope = "repository:proxy/team/app:pull";
                let text = format!("Bearer realm=\"http://{host}/token\",service=\"s\",scope=\"{scope}\"");
                Response::builder().status(401).header("www-authenticate", text).body(full("")).unwrap()
            }
        };
        async move { answer }
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let text = format!(
        "server = \"http://127.0.0.1:1\"\n[host.\"http://{}/v2/proxy\"]\noverride_path = true\n",
        mirror.host()
    );
    write(folder.path(), "r.example/hosts.toml", &text);
    client(folder.path()).manifest(&"r.example/team/app:1".parse().unwrap()).await.unwrap();
    let token = mirror.requests().into_iter().find(|seen| seen.path == "/token").unwrap();
    assert_eq!(
        token.query,
        "service=s&scope=repository%3Ateam%2Fapp%3Apull&scope=repository%3Aproxy%2Fteam%2Fapp%3Apull"
    );
}

#[test]
fn mistakes_are_told_with_their_file() {
    for (text, reason) in [
        ("server = 5", "server is integer"),
        ("server = \"ftp://r.example\"", "write it like https://mirror.example:5000"),
        ("server = \"https://user:hunter2@r.example\"", "write it like"),
        ("[host.\"https://\"]", "write it like"),
        ("host = 1", "host is no section"),
        ("[host]\nx = 1", "is no section"),
        ("[host.\"m.example\"]\ncapabilities = [\"fly\"]", "\"fly\" is no capability"),
        ("[host.\"m.example\"]\ncapabilities = \"pull\"", "a list of texts"),
        ("[host.\"m.example\"]\nca = \"none.pem\"", "none.pem"),
        ("[host.\"m.example\"]\nca = \"hosts.toml\"", "no PEM certificates"),
        ("[host.\"m.example\"]\nclient = \"hosts.toml\"", "unencrypted PEM key"),
        ("skip_verify = 1", "true or false"),
        ("[host.\"m.example\".header]\n\"a b\" = \"x\"", "no header's name"),
        ("[host.\"m.example\".header]\na = \"x\\ny\"", "a value that none can have"),
        ("server = ", "hosts.toml"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "r.example/hosts.toml", text);
        let error = HostsConfig::load_certs_d(folder.path()).unwrap_err().to_string();
        assert!(error.contains("r.example/hosts.toml") && error.contains(reason), "{text}: {error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
    let missing = HostsConfig::load_certs_d(Path::new("/nonexistent/certs.d")).unwrap_err();
    assert!(missing.to_string().contains("/nonexistent/certs.d"), "{missing}");
}

/// The examples of containerd's documentation, and what it lets pass.
#[test]
fn usual_files_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let text = r#"
        server = "https://docker.io"
        unknown = "passed over"
        [host."https://public-mirror.example"]
          capabilities = ["pull"]
          dial_timeout = "1s"
        [host."https://docker-mirror.internal"]
          capabilities = ["pull", "resolve", "push"]
          [host."https://docker-mirror.internal".header]
            authorization = "Bearer canary"
        [host."https://another.example:5000"]
        [host."bare.example"]
    "#;
    write(folder.path(), "docker.io/hosts.toml", text);
    let hosts = HostsConfig::load_certs_d(folder.path()).unwrap();
    let found: Vec<&str> =
        hosts.mirrors("index.docker.io").iter().map(|mirror| mirror.host.as_str()).collect();
    assert_eq!(
        found,
        [
            "https://public-mirror.example",
            "https://docker-mirror.internal",
            "https://another.example:5000",
            "https://bare.example"
        ]
    );
    let can: Vec<_> = hosts.mirrors("docker.io").iter().map(|mirror| mirror.capabilities).collect();
    assert_eq!((can[0].pull, can[0].resolve, can[0].push), (true, false, false));
    assert_eq!(can[2], registry::Capabilities::ALL);
    assert!(!format!("{hosts:?}").contains("canary"));
    assert!(hosts.mirrors("other.example").is_empty());
}
