//! Whole conversions against a real registry (`docker-registry`), started by each test on a port of its own.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking, and its helpers do as well"
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use bytes::Bytes;
use content::{Digest, Urgency};
use convert::{ConvertOptions, ImageReport, LayerKind, Outcome, Silent, convert, inspect};
use estargz::{TOC_DIGEST_ANNOTATION, UNCOMPRESSED_SIZE_ANNOTATION};
use futures::{StreamExt, TryStreamExt};
use registry::{Client, ClientConfig, Descriptor, Index, Manifest, Reference, media_type};
use serde_json::{Value, json};

/// A registry that ends with the test.
struct Registry {
    process: Child,
    address: String,
    dir: tempfile::TempDir,
    client: Client,
}

impl Registry {
    fn start() -> Self {
        // Others may have done so already.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let config = json!({
            "version": "0.1",
            "log": {"accesslog": {"disabled": true}},
            "storage": {"filesystem": {"rootdirectory": dir.path()}, "cache": {}},
            "http": {"addr": "127.0.0.1:0"},
        });
        let file = dir.path().join("config.yml");
        // JSON is YAML.
        std::fs::write(&file, config.to_string()).unwrap();
        let mut process = Command::new("docker-registry")
            .arg("serve")
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("docker-registry is needed: run scripts/setup.sh");
        let mut log = BufReader::new(process.stderr.take().unwrap());
        let address = loop {
            let mut line = String::new();
            assert!(log.read_line(&mut line).unwrap() > 0, "docker-registry ended before it listened");
            if let Some((_, rest)) = line.split_once("listening on ") {
                break rest.chars().take_while(|c| c.is_ascii_digit() || ".:".contains(*c)).collect();
            }
        };
        // The pipe must not fill up.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        let client = Client::new(ClientConfig::default()).unwrap();
        Self { process, address, dir, client }
    }

    fn reference(&self, name: &str) -> Reference {
        format!("{}/{name}", self.address).parse().unwrap()
    }

    async fn push(&self, at: &Reference, media_type: &str, bytes: impl Into<Bytes>) -> Descriptor {
        let bytes = bytes.into();
        let descriptor = Descriptor::new(media_type, Digest::of(&bytes), bytes.len() as u64);
        let stream = move || futures::stream::iter([Ok(bytes.clone())]).boxed();
        self.client.push_blob(at, &descriptor.digest, descriptor.size, &stream, None).await.unwrap();
        descriptor
    }

    async fn push_json(&self, at: &Reference, document: &Value) -> Descriptor {
        let bytes = Bytes::from(document.to_string());
        let media_type = document["mediaType"].as_str().unwrap();
        let digest = self.client.push_manifest(at, media_type, bytes.clone()).await.unwrap();
        Descriptor::new(media_type, digest, bytes.len() as u64)
    }

    async fn blob(&self, at: &Reference, descriptor: &Descriptor) -> Vec<u8> {
        let parts: Vec<Bytes> =
            self.client.pull_blob(at, descriptor, Urgency::Blocking).try_collect().await.unwrap();
        parts.concat()
    }

    async fn get<T: serde::de::DeserializeOwned>(&self, at: &Reference) -> T {
        serde_json::from_slice(&self.client.manifest(at).await.unwrap().1).unwrap()
    }

    fn blob_file(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.dir.path().join("docker/registry/v2/blobs/sha256").join(&hex[..2]).join(&hex).join("data")
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A tar of files, each a path and its content.
fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_mtime(1_600_000_000);
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, path, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn gunzip(bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    flate2::read::MultiGzDecoder::new(bytes).read_to_end(&mut plain).unwrap();
    plain
}

fn noise(len: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    (0..len).map(|_| next()).collect()
}

/// The image of one platform: Docker's types, a gzip, a zstd and a plain layer, a comment in the history.
async fn push_image(registry: &Registry, at: &Reference, architecture: &str) -> Descriptor {
    let base = tar_of(&[("etc/os", b"base"), ("bin/big", &noise(9_000_000))]);
    let middle = tar_of(&[("usr/lib/x", architecture.as_bytes()), ("usr/.wh.y", b"")]);
    let top = tar_of(&[("app", b"#!/bin/sh")]);
    let config = json!({
        "architecture": architecture, "os": "linux", "created": "2020-01-01T00:00:00Z",
        "config": {"Env": ["A=b"], "Cmd": ["/app"]},
        "rootfs": {"type": "layers", "diff_ids": [Digest::of(&base), Digest::of(&middle), Digest::of(&top)]},
        "history": [{"created_by": "one"}, {"created_by": "ENV", "empty_layer": true}, {"created_by": "two"}, {"created_by": "three"}],
    });
    let layers = [
        registry.push(at, media_type::DOCKER_LAYER_GZIP, gzip(&base)).await,
        registry.push(at, media_type::OCI_LAYER_ZSTD, zstd::encode_all(middle.as_slice(), 3).unwrap()).await,
        registry.push(at, media_type::OCI_LAYER, top).await,
    ];
    let config = registry.push(at, media_type::DOCKER_CONFIG, config.to_string()).await;
    let manifest = json!({
        "schemaVersion": 2, "mediaType": media_type::DOCKER_MANIFEST, "config": config, "layers": layers,
        "annotations": {"org.example.kept": "yes"},
    });
    let at = at.clone().with_digest(Digest::of(manifest.to_string().as_bytes()));
    registry.push_json(&at, &manifest).await
}

/// Both platforms and an attestation, under `at`.
async fn push_index(registry: &Registry, at: &Reference) -> Index {
    let mut manifests = Vec::new();
    for architecture in ["amd64", "arm64"] {
        let mut descriptor = json!(push_image(registry, at, architecture).await);
        descriptor["platform"] = json!({"architecture": architecture, "os": "linux"});
        manifests.push(descriptor);
    }
    let statement = registry.push(at, "application/vnd.in-toto+json", "{}").await;
    let config = registry.push(at, media_type::OCI_CONFIG, r#"{"rootfs":{}}"#).await;
    let attestation = json!({"schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "config": config, "layers": [statement]});
    let by_digest = at.clone().with_digest(Digest::of(attestation.to_string().as_bytes()));
    let mut descriptor = json!(registry.push_json(&by_digest, &attestation).await);
    descriptor["platform"] = json!({"architecture": "unknown", "os": "unknown"});
    descriptor["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest"});
    manifests.push(descriptor);
    let index = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": manifests});
    registry.push_json(at, &index).await;
    serde_json::from_value(index).unwrap()
}

/// Everything that lazy mounts and ordinary pulls rely on.
async fn check_image(registry: &Registry, at: &Reference, source: &Manifest, source_config: &Value) {
    let manifest: Manifest = registry.get(at).await;
    assert_eq!(manifest.media_type.as_deref(), Some(media_type::OCI_MANIFEST));
    assert_eq!(manifest.annotations, source.annotations);
    assert_eq!(manifest.config.media_type, media_type::OCI_CONFIG);
    let config: Value = serde_json::from_slice(&registry.blob(at, &manifest.config).await).unwrap();
    let mut expected = source_config.clone();
    expected["rootfs"]["diff_ids"] = config["rootfs"]["diff_ids"].clone();
    assert_eq!(config, expected, "only the diffIDs may change");
    assert_eq!(manifest.layers.len(), source.layers.len());
    for (layer, diff_id) in manifest.layers.iter().zip(config["rootfs"]["diff_ids"].as_array().unwrap()) {
        assert_eq!(layer.media_type, media_type::OCI_LAYER_GZIP);
        let blob = registry.blob(at, layer).await;
        let plain = gunzip(&blob);
        assert_eq!(json!(Digest::of(&plain)), *diff_id);
        assert_eq!(layer.annotation(UNCOMPRESSED_SIZE_ANNOTATION), Some(plain.len().to_string().as_str()));
        let estargz::TailState::Toc { digest, .. } = estargz::open_tail(&blob, layer.size).unwrap() else {
            panic!("the whole blob was given");
        };
        assert_eq!(layer.annotation(TOC_DIGEST_ANNOTATION), Some(digest.to_string().as_str()));
    }
}

async fn config_of(registry: &Registry, at: &Reference, manifest: &Manifest) -> Value {
    serde_json::from_slice(&registry.blob(at, &manifest.config).await).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn all_platforms_are_converted_and_converting_again_changes_nothing() {
    let registry = Registry::start();
    let source = registry.reference("app:1");
    let before = push_index(&registry, &source).await;
    let destination = registry.reference("other/app:1-esgz");
    let options = ConvertOptions { level: 1, ..ConvertOptions::default() };
    // As a task of its own, as the binary may run it.
    let (client, from, to, how) =
        (registry.client.clone(), source.clone(), destination.clone(), options.clone());
    let task = tokio::spawn(async move { convert(&client, &from, &to, &how, &Silent).await });
    let report = task.await.unwrap().unwrap();

    let after: Index = registry.get(&destination).await;
    assert_eq!(after.manifests.len(), 3);
    assert_eq!(after.manifests[2], before.manifests[2], "an attestation is copied as it is");
    assert_eq!((report.copied, report.images.len()), (1, 2));
    for (old, new) in before.manifests.iter().zip(&after.manifests).take(2) {
        assert_eq!(new.platform, old.platform);
        let at = source.clone().with_digest(old.digest);
        let manifest: Manifest = registry.get(&at).await;
        let config = config_of(&registry, &at, &manifest).await;
        check_image(&registry, &destination.clone().with_digest(new.digest), &manifest, &config).await;
    }
    let attestation: Manifest =
        registry.get(&destination.clone().with_digest(after.manifests[2].digest)).await;
    assert_eq!(registry.blob(&destination, &attestation.layers[0]).await, b"{}");
    let shared = report.images.iter().map(|image| image.layers[0].digest).collect::<Vec<_>>();
    assert_eq!(shared[0], shared[1], "a layer that platforms share stays shared");
    assert!(report.to_string().contains("linux/arm64"));

    let again = registry.reference("again:2");
    let second = convert(&registry.client, &destination, &again, &options, &Silent).await.unwrap();
    assert_eq!(second.digest, report.digest);
    assert!(second.images.iter().flat_map(|image| &image.layers).all(|layer| layer.outcome == Outcome::Kept));

    let forced = ConvertOptions { force: true, ..options };
    let third = convert(&registry.client, &destination, &again, &forced, &Silent).await.unwrap();
    assert_eq!(third.digest, report.digest, "the same layers are made of converted ones");
    assert!(third.images[0].layers.iter().all(|layer| layer.outcome == Outcome::Converted));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_platform_becomes_a_single_manifest_and_can_be_looked_into() {
    let registry = Registry::start();
    let source = registry.reference("app");
    push_index(&registry, &source).await;
    let destination = registry.reference("app:arm");
    let options = ConvertOptions {
        level: 1,
        platform: Some("linux/arm64".parse().unwrap()),
        ..ConvertOptions::default()
    };
    let report = convert(&registry.client, &source, &destination, &options, &Silent).await.unwrap();
    let manifest: Manifest = registry.get(&destination).await;
    assert_eq!(manifest.layers.len(), 3);
    assert_eq!(report.images[0].platform, "linux/arm64");

    let (client, at) = (registry.client.clone(), destination.clone());
    let task = tokio::spawn(async move { inspect(&client, &at, None).await });
    let image: ImageReport = task.await.unwrap().unwrap();
    assert_eq!(image.platforms.len(), 1);
    let platform = &image.platforms[0];
    assert_eq!(platform.platform, "linux/arm64");
    assert!(platform.lazy);
    let base = &platform.layers[0];
    assert_eq!((base.kind, base.files, base.chunks), (LayerKind::Estargz, Some(2), Some(4)));
    assert_eq!((base.landmark, base.prefetch_bytes), (Some("no-prefetch"), Some(0)));
    assert_eq!(base.file_bytes, Some(9_000_004));
    assert!(image.to_string().contains("mounts lazily"), "{image}");
    assert_eq!(json!(image)["platforms"][0]["layers"][0]["kind"], "estargz");

    let original = inspect(&registry.client, &source, None).await.unwrap();
    assert_eq!(original.platforms.len(), 3);
    assert!(original.platforms.iter().flat_map(|it| &it.layers).all(|layer| layer.kind == LayerKind::Plain));

    let wrong = Some("linux/s390x".parse().unwrap());
    let options = ConvertOptions { platform: wrong, ..options };
    let error = convert(&registry.client, &source, &destination, &options, &Silent).await.unwrap_err();
    assert!(
        error.to_string().ends_with("has nothing for linux/s390x; it has linux/amd64, linux/arm64"),
        "{error}"
    );
    let error = convert(&registry.client, &destination, &source, &options, &Silent).await.unwrap_err();
    assert!(error.to_string().ends_with("it has linux/arm64"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_config_that_lies_about_a_layer_is_refused() {
    let registry = Registry::start();
    let source = registry.reference("liar");
    let layer = registry.push(&source, media_type::OCI_LAYER_GZIP, gzip(&tar_of(&[("a", b"evil")]))).await;
    let claimed = Digest::of(&tar_of(&[("a", b"good")]));
    let config =
        json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [claimed]}});
    let config = registry.push(&source, media_type::OCI_CONFIG, config.to_string()).await;
    let manifest = json!({"schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "config": config, "layers": [layer]});
    registry.push_json(&source, &manifest).await;
    let destination = registry.reference("victim");
    let error = convert(&registry.client, &source, &destination, &ConvertOptions::default(), &Silent).await;
    assert!(error.unwrap_err().to_string().contains("the image is damaged or lies"));
    assert_eq!(registry.client.manifest(&destination).await.unwrap_err().status(), Some(404));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_layer_never_becomes_an_image() {
    let registry = Registry::start();
    let source = registry.reference("app");
    let descriptor = push_image(&registry, &source, "amd64").await;
    let source = source.with_digest(descriptor.digest);
    let manifest: Manifest = registry.get(&source).await;
    // The last layer is plain: a flipped byte of a file's content breaks no format.
    let file = registry.blob_file(&manifest.layers[2].digest);
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[512] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let destination = registry.reference("new");
    let error = convert(&registry.client, &source, &destination, &ConvertOptions::default(), &Silent)
        .await
        .unwrap_err();
    assert!(error.to_string().contains(&manifest.layers[2].digest.to_string()), "{error}");
    assert_eq!(registry.client.manifest(&destination).await.unwrap_err().status(), Some(404));
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_say_what_to_do() {
    let registry = Registry::start();
    let client = &registry.client;
    let options = ConvertOptions::default();
    let good = registry.reference("app");
    push_index(&registry, &good).await;
    let to = registry.reference("new");

    let error =
        convert(client, &registry.reference("nothing:here"), &to, &options, &Silent).await.unwrap_err();
    assert!(error.to_string().contains("check the repository and the tag or digest"), "{error}");

    let dir = ConvertOptions { temporary: Path::new("/nonexistent").to_owned(), ..options.clone() };
    let error = convert(client, &good, &to, &dir, &Silent).await.unwrap_err();
    assert!(error.to_string().contains("/nonexistent"), "{error}");
    assert!(error.to_string().contains("TMPDIR"), "{error}");

    let digest = to.clone().with_digest(Digest::of(b""));
    let error = convert(client, &good, &digest, &options, &Silent).await.unwrap_err();
    assert!(error.to_string().ends_with("give it a tag instead"), "{error}");

    let chart = json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "layers": [],
        "config": registry.push(&good, "application/vnd.cncf.helm.config.v1+json", "{}").await,
    });
    let at = registry.reference("app:chart");
    registry.push_json(&at, &chart).await;
    let error = convert(client, &at, &to, &options, &Silent).await.unwrap_err();
    assert!(error.to_string().contains("is not an image"), "{error}");
}
