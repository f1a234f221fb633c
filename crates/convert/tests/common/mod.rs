//! A registry for each test, images made by hand, and what every converted image must be.

#![allow(dead_code, reason = "no test needs all of it")]

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use bytes::Bytes;
use content::{Digest, Urgency};
use convert::{
    ConvertError, ConvertOptions, ConvertReport, ImageSource, Outcome, Place, Places, Silent, convert,
};
use estargz::{BlobKind, TOC_DIGEST_ANNOTATION, TailState, UNCOMPRESSED_SIZE_ANNOTATION};
use futures::{StreamExt, TryStreamExt};
use registry::{Client, ClientConfig, Descriptor, Index, Manifest, Reference, media_type};
use serde_json::{Value, json};

/// What is reached without any configuration.
pub fn places() -> Places {
    // Others may have done so already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    Places {
        client: Client::new(ClientConfig::default()).unwrap(),
        containerd: convert::Containerd::default(),
        temporary: std::env::temp_dir(),
    }
}

/// Converts from one text to another.
pub async fn run(from: &str, to: &str, options: &ConvertOptions) -> Result<ConvertReport, ConvertError> {
    convert(&places(), &place(from), &place(to), options, &Silent).await
}

pub fn place(text: &str) -> Place {
    text.parse().unwrap()
}

/// Options that take little time.
pub fn fast() -> ConvertOptions {
    let layer = estargz::Options { level: Some(1), ..estargz::Options::default() };
    ConvertOptions { layer, ..ConvertOptions::default() }
}

/// A registry that ends with the test.
pub struct Registry {
    process: Child,
    pub address: String,
    dir: tempfile::TempDir,
}

impl Registry {
    pub fn start() -> Self {
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
        Self { process, address, dir }
    }

    /// The image `name` in words.
    pub fn name(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    pub fn blob_file(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.dir.path().join("docker/registry/v2/blobs/sha256").join(&hex[..2]).join(&hex).join("data")
    }

    /// Uploads that were begun and neither ended nor taken back. What the registry itself forgets when it
    /// takes one back has no `startedat`.
    pub fn open_uploads(&self) -> usize {
        fn count(dir: &Path) -> usize {
            let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
            let paths = entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
            paths
                .map(|path| match path.file_name().unwrap().to_str().unwrap() {
                    "_uploads" => files(&path).iter().filter(|file| file.ends_with("startedat")).count(),
                    _ => count(&path),
                })
                .sum()
        }
        count(&self.dir.path().join("docker/registry/v2/repositories"))
    }

    /// Whether something has the name.
    pub async fn has(&self, name: &str) -> bool {
        match places().client.manifest(&self.name(name).parse().unwrap()).await {
            Ok(_) => true,
            Err(error) => {
                assert_eq!(error.status(), Some(404), "{error}");
                false
            }
        }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// How a layer is stored.
#[derive(Clone, Copy)]
pub enum Stored {
    DockerGzip,
    Zstd,
    Plain,
}

/// An image in memory: its blobs and manifests.
#[derive(Clone, Default)]
pub struct Image {
    blobs: BTreeMap<String, (Digest, Bytes)>,
    manifests: Vec<(Descriptor, Bytes)>,
}

impl Image {
    pub fn blob(&mut self, media_type: &str, bytes: impl Into<Bytes>) -> Descriptor {
        let bytes = bytes.into();
        let descriptor = Descriptor::new(media_type, Digest::of(&bytes), bytes.len() as u64);
        self.blobs.insert(descriptor.digest.hex(), (descriptor.digest, bytes));
        descriptor
    }

    /// The last one that is added is the root.
    pub fn document(&mut self, document: &Value) -> Descriptor {
        let bytes = Bytes::from(document.to_string());
        let media_type = document["mediaType"].as_str().unwrap();
        let descriptor = Descriptor::new(media_type, Digest::of(&bytes), bytes.len() as u64);
        self.manifests.push((descriptor.clone(), bytes));
        descriptor
    }

    /// The image of one platform.
    pub fn platform(&mut self, architecture: &str, layers: &[(Vec<u8>, Stored)]) -> Descriptor {
        let diff_ids: Vec<Digest> = layers.iter().map(|(tar, _)| Digest::of(tar)).collect();
        self.claiming(architecture, layers, &diff_ids)
    }

    /// The same, whose config claims `diff_ids`.
    pub fn claiming(
        &mut self,
        architecture: &str,
        layers: &[(Vec<u8>, Stored)],
        diff_ids: &[Digest],
    ) -> Descriptor {
        let config = json!({
            "architecture": architecture, "os": "linux", "created": "2020-01-01T00:00:00Z",
            "config": {"Env": ["A=b"], "Cmd": ["/app"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": [{"created_by": "one"}, {"created_by": "ENV", "empty_layer": true}],
        });
        let mut descriptors = Vec::new();
        for (tar, stored) in layers {
            descriptors.push(match stored {
                Stored::DockerGzip => self.blob(media_type::DOCKER_LAYER_GZIP, gzip(tar)),
                Stored::Zstd => {
                    self.blob(media_type::OCI_LAYER_ZSTD, zstd::encode_all(tar.as_slice(), 3).unwrap())
                }
                Stored::Plain => self.blob(media_type::OCI_LAYER, tar.clone()),
            });
        }
        let config = self.blob(media_type::DOCKER_CONFIG, config.to_string());
        self.document(&json!({
            "schemaVersion": 2, "mediaType": media_type::DOCKER_MANIFEST, "config": config, "layers": descriptors,
            "annotations": {"org.example.kept": "yes"},
        }))
    }

    /// An index of images, and of something said about the first of them.
    pub fn index(&mut self, images: &[(&str, Descriptor)]) -> Descriptor {
        let mut manifests = Vec::new();
        for (architecture, descriptor) in images {
            let mut descriptor = json!(descriptor);
            descriptor["platform"] = json!({"architecture": architecture, "os": "linux"});
            manifests.push(descriptor);
        }
        let statement = self.blob("application/vnd.in-toto+json", "{}");
        let config = self.blob(media_type::OCI_CONFIG, r#"{"rootfs":{}}"#);
        let mut descriptor = json!(self.document(&json!({
            "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "config": config, "layers": [statement],
        })));
        descriptor["platform"] = json!({"architecture": "unknown", "os": "unknown"});
        descriptor["annotations"] = json!({
            "vnd.docker.reference.type": "attestation-manifest",
            "vnd.docker.reference.digest": images[0].1.digest,
        });
        manifests.push(descriptor);
        self.document(
            &json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": manifests}),
        )
    }

    pub fn root(&self) -> &Descriptor {
        &self.manifests.last().unwrap().0
    }

    /// Puts the image into a registry.
    pub async fn push(&self, name: &str) {
        let client = places().client;
        let at: Reference = name.parse().unwrap();
        for (digest, bytes) in self.blobs.values() {
            let stream = || futures::stream::iter([Ok(bytes.clone())]).boxed();
            client.push_blob(&at, digest, bytes.len() as u64, &stream, None).await.unwrap();
        }
        for (descriptor, bytes) in &self.manifests {
            let by_digest = at.clone().with_digest(descriptor.digest);
            client.push_manifest(&by_digest, &descriptor.media_type, bytes.clone()).await.unwrap();
        }
        let (root, bytes) = self.manifests.last().unwrap();
        client.push_manifest(&at, &root.media_type, bytes.clone()).await.unwrap();
    }

    /// Writes the image as a layout, without the manifests of `left_out`, and answers its name.
    pub fn layout_without(&self, dir: &Path, tag: &str, left_out: &[Digest]) -> String {
        let blobs = dir.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).unwrap();
        for (digest, bytes) in self.blobs.values() {
            std::fs::write(blobs.join(digest.hex()), bytes).unwrap();
        }
        for (descriptor, bytes) in &self.manifests {
            if !left_out.contains(&descriptor.digest) {
                std::fs::write(blobs.join(descriptor.digest.hex()), bytes).unwrap();
            }
        }
        let mut root = json!(self.root());
        root["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        let index = json!({"schemaVersion": 2, "manifests": [root]});
        std::fs::write(dir.join("index.json"), index.to_string()).unwrap();
        std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        format!("oci:{}:{tag}", dir.display())
    }

    pub fn layout(&self, dir: &Path, tag: &str) -> String {
        self.layout_without(dir, tag, &[])
    }
}

/// A tar of files, each a path and its content.
pub fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
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

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// What a blob inflates to, as tools that know nothing of chunks have it.
pub fn inflate(bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    if bytes.starts_with(&[0x1f, 0x8b]) {
        flate2::read::MultiGzDecoder::new(bytes).read_to_end(&mut plain).unwrap();
    } else {
        zstd::stream::read::Decoder::new(bytes).unwrap().read_to_end(&mut plain).unwrap();
    }
    plain
}

/// Bytes that no compressor makes smaller, always the same.
pub fn noise(len: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    (0..len).map(|_| next()).collect()
}

/// Three layers in three forms; the first has 9 MB.
pub fn three_layers(architecture: &str) -> Vec<(Vec<u8>, Stored)> {
    vec![
        (tar_of(&[("etc/os", b"base"), ("bin/big", &noise(9_000_000))]), Stored::DockerGzip),
        (tar_of(&[("usr/lib/x", architecture.as_bytes()), ("usr/.wh.y", b"")]), Stored::Zstd),
        (tar_of(&[("app", b"#!/bin/sh")]), Stored::Plain),
    ]
}

/// One platform, three layers.
pub fn simple() -> Image {
    let mut image = Image::default();
    image.platform("amd64", &three_layers("amd64"));
    image
}

/// Two platforms that share their first and last layer, and an attestation.
pub fn two_platforms() -> Image {
    let mut image = Image::default();
    let images: Vec<(&str, Descriptor)> = ["amd64", "arm64"]
        .into_iter()
        .map(|architecture| (architecture, image.platform(architecture, &three_layers(architecture))))
        .collect();
    image.index(&images);
    image
}

/// An image to look at.
pub struct Opened {
    pub source: Arc<dyn ImageSource>,
    pub root: Descriptor,
    pub bytes: Bytes,
}

pub async fn open(name: &str) -> Opened {
    let source = places().source(&place(name)).await.unwrap();
    let (root, bytes) = source.root().await.unwrap();
    Opened { source, root, bytes }
}

impl Opened {
    pub fn index(&self) -> Index {
        serde_json::from_slice(&self.bytes).unwrap()
    }

    pub fn manifest(&self) -> Manifest {
        serde_json::from_slice(&self.bytes).unwrap()
    }

    pub async fn manifest_at(&self, descriptor: &Descriptor) -> Manifest {
        serde_json::from_slice(&self.source.manifest(descriptor).await.unwrap()).unwrap()
    }

    pub async fn config(&self, manifest: &Manifest) -> Value {
        serde_json::from_slice(&self.source.document(&manifest.config, 1 << 20).await.unwrap()).unwrap()
    }

    pub async fn blob(&self, descriptor: &Descriptor) -> Vec<u8> {
        let parts: Vec<Bytes> =
            self.source.stream(descriptor, Urgency::Blocking).try_collect().await.unwrap();
        parts.concat()
    }
}

/// Everything that lazy mounts and ordinary pulls rely on.
pub async fn check(
    after: &Opened,
    manifest: &Manifest,
    before: &Manifest,
    before_config: &Value,
    kind: BlobKind,
) {
    assert_eq!(manifest.media_type.as_deref(), Some(media_type::OCI_MANIFEST));
    assert_eq!(manifest.annotations, before.annotations);
    assert_eq!(manifest.config.media_type, media_type::OCI_CONFIG);
    let config = after.config(manifest).await;
    let mut expected = before_config.clone();
    expected["rootfs"]["diff_ids"] = config["rootfs"]["diff_ids"].clone();
    assert_eq!(config, expected, "only the diffIDs may change");
    assert_eq!(manifest.layers.len(), before.layers.len());
    for (layer, diff_id) in manifest.layers.iter().zip(config["rootfs"]["diff_ids"].as_array().unwrap()) {
        let blob = after.blob(layer).await;
        let plain = inflate(&blob);
        assert_eq!(json!(Digest::of(&plain)), *diff_id);
        assert_eq!(layer.annotation(UNCOMPRESSED_SIZE_ANNOTATION), Some(plain.len().to_string().as_str()));
        check_toc(layer, &blob, kind);
    }
}

fn check_toc(layer: &Descriptor, blob: &[u8], kind: BlobKind) {
    let gzip = matches!(kind, BlobKind::Estargz | BlobKind::External);
    let media_type = if gzip { media_type::OCI_LAYER_GZIP } else { media_type::OCI_LAYER_ZSTD };
    assert_eq!(layer.media_type, media_type);
    match estargz::open_tail(blob, layer.size).unwrap() {
        TailState::Toc { digest, compressed_digest, kind: found, .. } => {
            assert_eq!(found, kind);
            if kind == BlobKind::ZstdChunkedPodman {
                let pinned = layer.annotation("io.github.containers.zstd-chunked.manifest-checksum");
                assert_eq!(pinned, Some(compressed_digest.unwrap().to_string().as_str()));
                assert_eq!(layer.annotation(TOC_DIGEST_ANNOTATION), None);
            } else {
                assert_eq!(layer.annotation(TOC_DIGEST_ANNOTATION), Some(digest.to_string().as_str()));
            }
        }
        TailState::External { .. } => assert_eq!(kind, BlobKind::External),
        TailState::NeedMore { .. } => panic!("the whole blob was given"),
    }
}

/// How often each outcome occurs.
pub fn outcomes(report: &ConvertReport) -> HashMap<Outcome, usize> {
    let mut counts = HashMap::new();
    for layer in report.images.iter().flat_map(|image| &image.layers) {
        *counts.entry(layer.outcome).or_default() += 1;
    }
    counts
}

/// All files below a directory, hidden ones too.
pub fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { todo.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    found
}
