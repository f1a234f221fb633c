//! Looking at images in OCI layouts that are made by code: what inspect shows, what verify believes, what
//! toc-digest prints and what diff finds.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking, and its helpers do as well"
)]

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use content::Digest;
use convert::{
    Aspect, ChangeKind, Containerd, DiffOptions, DiffReport, ImageSource, InspectOptions, LayerKind, Place,
    Places, Unwatched, Verdict, VerifyOptions, VerifyReport, diff, inspect, toc_digests, verify,
};
use estargz::{
    Built, BuiltToc, Format, Options, TOC_DIGEST_ANNOTATION, TocPlace, build, build_ordered, toc_layer,
};
use registry::{Client, ClientConfig, Descriptor, media_type};
use serde_json::{Value, json};
use tar::EntryType;

/// A layer and what the image says of it.
#[derive(Clone)]
struct Layer {
    blob: Vec<u8>,
    media_type: &'static str,
    diff_id: Digest,
    annotations: BTreeMap<String, String>,
    external: Option<Vec<u8>>,
}

impl Layer {
    fn plain(tar: &[u8]) -> Self {
        Self {
            blob: tar.to_vec(),
            media_type: media_type::OCI_LAYER,
            diff_id: Digest::of(tar),
            annotations: BTreeMap::new(),
            external: None,
        }
    }

    fn gzip(tar: &[u8]) -> Self {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(tar).unwrap();
        let blob = encoder.finish().unwrap();
        Self { blob, media_type: media_type::OCI_LAYER_GZIP, ..Self::plain(tar) }
    }

    fn of((blob, built): (Vec<u8>, Built), format: Format) -> Self {
        let annotations = built.annotations();
        let external = match built.toc {
            BuiltToc::External { json } => Some(json),
            _ => None,
        };
        Self { blob, media_type: format.media_type(), diff_id: built.diff_id, annotations, external }
    }

    fn lazy(tar: &[u8], options: &Options) -> Self {
        let mut blob = Vec::new();
        let built = build(tar, &mut blob, options).unwrap();
        Self::of((blob, built), options.format)
    }

    /// The file `first` is prefetched.
    fn ordered(tar: &[u8], first: &str) -> Self {
        let mut blob = Vec::new();
        let mut rank = |path: &[u8]| (path == first.as_bytes()).then_some(0);
        let options = Options::default();
        let built = build_ordered(std::io::Cursor::new(tar), &mut blob, &options, &mut rank).unwrap();
        Self::of((blob, built), options.format)
    }
}

/// An OCI layout.
struct Layout {
    dir: tempfile::TempDir,
    names: Vec<Value>,
}

impl Layout {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("blobs/sha256")).unwrap();
        std::fs::write(dir.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Self { dir, names: Vec::new() }
    }

    fn blob(&self, media_type: &str, bytes: &[u8]) -> Descriptor {
        let digest = Digest::of(bytes);
        std::fs::write(self.dir.path().join("blobs/sha256").join(digest.hex()), bytes).unwrap();
        Descriptor::new(media_type, digest, bytes.len() as u64)
    }

    /// A manifest with its config.
    fn manifest(&self, layers: &[Layer], config: &Value, architecture: &str) -> Descriptor {
        let diff_ids: Vec<Digest> = layers.iter().map(|layer| layer.diff_id).collect();
        let config = json!({"architecture": architecture, "os": "linux", "config": config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let config = self.blob(media_type::OCI_CONFIG, config.to_string().as_bytes());
        let layers: Vec<Descriptor> = layers
            .iter()
            .map(|layer| {
                let mut descriptor = self.blob(layer.media_type, &layer.blob);
                descriptor.annotations = Some(layer.annotations.clone());
                descriptor
            })
            .collect();
        let manifest = json!({"schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "config": config,
            "layers": layers});
        self.blob(media_type::OCI_MANIFEST, manifest.to_string().as_bytes())
    }

    fn name(&mut self, tag: &str, descriptor: &Descriptor) {
        let mut descriptor = serde_json::to_value(descriptor).unwrap();
        descriptor["annotations"]["org.opencontainers.image.ref.name"] = json!(tag);
        self.names.push(descriptor);
        let index = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": self.names});
        std::fs::write(self.dir.path().join("index.json"), index.to_string()).unwrap();
    }

    fn image(&mut self, tag: &str, layers: &[Layer]) {
        self.image_with(tag, layers, &json!({"Env": ["A=1"]}));
    }

    fn image_with(&mut self, tag: &str, layers: &[Layer], config: &Value) {
        let manifest = self.manifest(layers, config, "amd64");
        self.name(tag, &manifest);
        self.toc_image(tag, layers);
    }

    /// The image beside it, if a layer needs it.
    fn toc_image(&mut self, tag: &str, layers: &[Layer]) {
        let mut tocs = Vec::new();
        for layer in layers {
            let Some(json) = &layer.external else { continue };
            let mut descriptor = self.blob(media_type::OCI_LAYER_GZIP, &toc_layer(json, 6).unwrap().bytes);
            let of = (
                "containerd.io/snapshot/stargz/layer.digest".to_owned(),
                Digest::of(&layer.blob).to_string(),
            );
            descriptor.annotations = Some([of].into());
            tocs.push(descriptor);
        }
        if !tocs.is_empty() {
            let config = self.blob(media_type::OCI_CONFIG, b"{}");
            let manifest = json!({"schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "config": config,
                "layers": tocs});
            let manifest = self.blob(media_type::OCI_MANIFEST, manifest.to_string().as_bytes());
            self.name(&format!("{tag}-esgztoc"), &manifest);
        }
    }

    async fn source(&self, tag: &str) -> Arc<dyn ImageSource> {
        // Others may have done so already.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let places = Places {
            client: Client::new(ClientConfig::default()).unwrap(),
            containerd: Containerd::default(),
            temporary: std::env::temp_dir(),
        };
        let place = Place::OciLayout { dir: self.dir.path().to_owned(), tag: Some(tag.to_owned()) };
        places.source(&place).await.unwrap()
    }

    async fn verify(&self, tag: &str, require_lazy: bool) -> VerifyReport {
        let options = VerifyOptions { platform: None, require_lazy, temporary: self.dir.path().to_owned() };
        verify(&*self.source(tag).await, &options, &Unwatched).await.unwrap()
    }

    async fn diff(&self, a: &str, b: &str, options: &DiffOptions) -> DiffReport {
        diff(&*self.source(a).await, &*self.source(b).await, options).await.unwrap()
    }
}

struct Tar(tar::Builder<Vec<u8>>);

impl Tar {
    fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn add(mut self, kind: EntryType, path: &str, mode: u32, link: &str, data: &[u8]) -> Self {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_mtime(1_600_000_000);
        header.set_size(data.len() as u64);
        header.set_username("root").unwrap();
        if link.is_empty() {
            self.0.append_data(&mut header, path, data).unwrap();
        } else {
            self.0.append_link(&mut header, path, link).unwrap();
        }
        self
    }

    fn dir(self, path: &str) -> Self {
        self.add(EntryType::Directory, path, 0o755, "", b"")
    }

    fn file(self, path: &str, data: &[u8]) -> Self {
        self.add(EntryType::Regular, path, 0o644, "", data)
    }

    fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

fn base() -> Vec<u8> {
    let large: Vec<u8> = (0..300_000_u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    Tar::new()
        .dir("bin/")
        .file("bin/sh", &large)
        .add(EntryType::Regular, "bin/su", 0o4755, "", b"root")
        .add(EntryType::Link, "bin/dash", 0o644, "bin/sh", b"")
        .add(EntryType::Symlink, "lib", 0o777, "usr/lib", b"")
        .dir("etc/")
        .file("etc/passwd", b"root")
        .file("etc/shadow", b"*")
        .bytes()
}

fn upper() -> Vec<u8> {
    Tar::new().dir("etc/").file("etc/.wh.shadow", b"").file("etc/new", b"new").bytes()
}

/// What the two make together, in one layer.
fn flat() -> Vec<u8> {
    let large: Vec<u8> = (0..300_000_u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    Tar::new()
        .dir("etc/")
        .file("etc/new", b"new")
        .file("etc/passwd", b"root")
        .dir("bin/")
        .file("bin/dash", &large)
        .add(EntryType::Link, "bin/sh", 0o644, "bin/dash", b"")
        .add(EntryType::Regular, "bin/su", 0o4755, "", b"root")
        .add(EntryType::Symlink, "lib", 0o777, "usr/lib", b"")
        .bytes()
}

fn small_chunks(format: Format, toc: TocPlace) -> Options {
    Options { format, toc, chunk_size: 65536, ..Options::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn inspect_tells_every_kind_of_layer_apart() {
    let mut layout = Layout::new();
    let unpinned = Layer { annotations: BTreeMap::new(), ..Layer::lazy(&upper(), &Options::default()) };
    let layers = [
        Layer::ordered(&base(), "etc/passwd"),
        Layer::lazy(&base(), &small_chunks(Format::Estargz, TocPlace::External)),
        Layer::lazy(&base(), &small_chunks(Format::ZstdChunked, TocPlace::Inside)),
        Layer::lazy(&base(), &small_chunks(Format::ZstdChunkedPodman, TocPlace::Inside)),
        Layer::gzip(&upper()),
        unpinned,
    ];
    layout.image("all", &layers);
    let source = layout.source("all").await;
    // As a task of its own, as a server may run it.
    let task = tokio::spawn(async move {
        inspect(&*source, &InspectOptions { files: true, ..InspectOptions::default() }).await
    });
    let report = task.await.unwrap().unwrap();
    let found = &report.platforms[0].layers;
    let kinds: Vec<LayerKind> = found.iter().map(|layer| layer.kind).collect();
    assert_eq!(
        kinds,
        [
            LayerKind::Estargz,
            LayerKind::External,
            LayerKind::ZstdChunked,
            LayerKind::ZstdChunkedPodman,
            LayerKind::Gzip,
            LayerKind::Estargz
        ]
    );
    assert_eq!(
        found.iter().map(|layer| layer.lazy).collect::<Vec<_>>(),
        [true, true, true, true, false, false]
    );
    assert!(found[5].problem.as_ref().unwrap().contains("does not pin"));
    assert_eq!((found[1].chunks, found[2].chunks), (Some(8), Some(8)));

    let prefetched = found[0].prefetch_bytes.unwrap();
    assert!(prefetched > 0 && prefetched < found[0].size / 2, "{prefetched}");
    assert_eq!(found[0].landmark, Some("prefetch"));
    assert_eq!(found[4].start.bytes, found[4].size, "an ordinary layer is fetched whole");
    // Tail and prefetch; tail and the TOC beside it; a tail each; two whole layers.
    let requests: Vec<u64> = found.iter().map(|layer| layer.start.requests).collect();
    assert_eq!(requests, [2, 2, 1, 1, 1, 1]);

    let files = found[0].file_list.as_ref().unwrap();
    let shown: Vec<(&str, bool)> = files.iter().map(|file| (file.path.as_str(), file.prefetched)).collect();
    assert_eq!(&shown[..3], [("etc", false), ("etc/passwd", true), ("bin", false)]);
    let su = files.iter().find(|file| file.path == "bin/su").unwrap();
    assert_eq!(
        (su.mode, su.size, su.user.as_deref(), su.digest),
        (0o4755, 4, Some("root"), Some(Digest::of(b"root")))
    );

    let text = report.to_string();
    for part in
        ["zstd:chunked (podman)", "estargz (external TOC)", "-rwsr-xr-x", "link to bin/sh", "lib -> usr/lib"]
    {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    let json = json!(report);
    assert_eq!(json["platforms"][0]["layers"][1]["kind"], "estargz (external TOC)");
    assert_eq!(json["platforms"][0]["start"]["requests"], 8);

    let one = InspectOptions { layer: Some(2), ..InspectOptions::default() };
    let one = inspect(&*layout.source("all").await, &one).await.unwrap();
    assert_eq!(one.platforms[0].layers.iter().map(|layer| layer.number).collect::<Vec<_>>(), [2]);
    let none = InspectOptions { layer: Some(7), ..InspectOptions::default() };
    let error = inspect(&*layout.source("all").await, &none).await.unwrap_err().to_string();
    assert!(error.ends_with("has 6"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn toc_digests_are_those_of_the_tables_and_not_of_the_annotations() {
    let mut layout = Layout::new();
    let mut liar = Layer::lazy(&upper(), &Options::default());
    let truth = liar.annotations[TOC_DIGEST_ANNOTATION].clone();
    liar.annotations.insert(TOC_DIGEST_ANNOTATION.to_owned(), Digest::of(b"other").to_string());
    let layers = [
        Layer::gzip(&base()),
        liar,
        Layer::lazy(&base(), &small_chunks(Format::Estargz, TocPlace::External)),
    ];
    layout.image("x", &layers);
    let report = toc_digests(&*layout.source("x").await, None, None).await.unwrap();
    let digests: Vec<Option<String>> =
        report.layers.iter().map(|layer| layer.toc_digest.map(|digest| digest.to_string())).collect();
    let external = layers[2].annotations[TOC_DIGEST_ANNOTATION].clone();
    assert_eq!(digests, [None, Some(truth.clone()), Some(external)]);
    assert_eq!(report.layers.iter().map(|layer| layer.pinned).collect::<Vec<_>>(), [false, false, true]);
    assert!(report.to_string().lines().nth(1).unwrap().ends_with(&truth));
}

#[tokio::test(flavor = "multi_thread")]
async fn images_of_every_kind_are_true() {
    let mut layout = Layout::new();
    let layers = [
        Layer::ordered(&base(), "etc/passwd"),
        Layer::lazy(&base(), &small_chunks(Format::Estargz, TocPlace::External)),
        Layer::lazy(&base(), &Options { min_chunk_size: 50_000, ..Options::default() }),
        Layer::lazy(&base(), &small_chunks(Format::ZstdChunked, TocPlace::Inside)),
        Layer::lazy(&base(), &small_chunks(Format::ZstdChunkedPodman, TocPlace::Inside)),
        Layer::gzip(&upper()),
        Layer::plain(&upper()),
    ];
    layout.image("all", &layers);
    let report = layout.verify("all", false).await;
    assert!(report.truthful, "{report}");
    let verdicts: Vec<Verdict> = report.platforms[0].layers.iter().map(|layer| layer.verdict).collect();
    assert_eq!(verdicts, [[Verdict::True; 5].as_slice(), &[Verdict::Ordinary; 2]].concat());
    assert!(report.to_string().contains("ordinary layer, no table of contents"));
    assert!(report.to_string().ends_with("it tells the truth\n"));

    let strict = layout.verify("all", true).await;
    let lies: Vec<bool> = strict.platforms[0].layers.iter().map(|layer| layer.lie.is_some()).collect();
    assert_eq!(lies, [false, false, false, false, false, true, true]);
    assert!(!strict.truthful);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_lie_of_each_layer_is_told() {
    let mut layout = Layout::new();
    let honest = Layer::lazy(&base(), &Options::default());
    let wrong_diff_id = Layer { diff_id: Digest::of(b"other"), ..Layer::gzip(&base()) };
    let mut wrong_pin = honest.clone();
    wrong_pin.annotations.insert(TOC_DIGEST_ANNOTATION.to_owned(), Digest::of(b"other").to_string());
    let lost_toc =
        Layer { external: None, ..Layer::lazy(&upper(), &small_chunks(Format::Estargz, TocPlace::External)) };
    layout.image("liar", &[honest.clone(), wrong_diff_id, wrong_pin, lost_toc]);
    let report = layout.verify("liar", false).await;
    let lies: Vec<Option<&str>> = report.platforms[0]
        .layers
        .iter()
        .map(|layer| layer.lie.as_ref().map(|lie| lie.kind.as_str()))
        .collect();
    assert_eq!(lies, [None, Some("diff-id"), Some("toc-digest"), Some("toc-missing")]);
    assert!(report.to_string().ends_with("it does not tell the truth: 3 lies\n"), "{report}");

    // A blob whose bytes are others.
    let file = layout.dir.path().join("blobs/sha256").join(Digest::of(&honest.blob).hex());
    let mut bytes = honest.blob.clone();
    bytes[100] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let report = layout.verify("liar", false).await;
    assert_eq!(report.platforms[0].layers[0].lie.as_ref().unwrap().kind, "digest", "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_that_contradict_each_other_are_told() {
    let mut layout = Layout::new();
    let layer = Layer::gzip(&base());
    let mut manifest = layout.manifest(std::slice::from_ref(&layer), &json!({}), "arm64");
    manifest.platform =
        Some(serde_json::from_value(json!({"os": "linux", "architecture": "amd64"})).unwrap());
    let index = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [manifest]});
    let index = layout.blob(media_type::OCI_INDEX, index.to_string().as_bytes());
    layout.name("x", &index);
    let report = layout.verify("x", false).await;
    assert_eq!(
        report.platforms[0].problems,
        ["the config is one for linux/arm64, the index says linux/amd64"]
    );

    let config = json!({"architecture": "amd64", "os": "linux", "rootfs": {"diff_ids": [layer.diff_id, layer.diff_id]}});
    let config = layout.blob(media_type::OCI_CONFIG, config.to_string().as_bytes());
    let layers = [layout.blob(layer.media_type, &layer.blob)];
    let manifest = json!({"schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "config": config, "layers": layers});
    let manifest = layout.blob(media_type::OCI_MANIFEST, manifest.to_string().as_bytes());
    layout.name("y", &manifest);
    let report = layout.verify("y", false).await;
    assert_eq!(report.platforms[0].problems, ["the config names 2 layers, the manifest 1"]);
    assert!(!report.truthful);
}

/// An attestation in an index is no image, and need not be lazy.
#[tokio::test(flavor = "multi_thread")]
async fn an_attestation_is_read_and_nothing_more_is_asked_of_it() {
    let mut layout = Layout::new();
    let mut image = layout.manifest(&[Layer::lazy(&base(), &Options::default())], &json!({}), "amd64");
    image.platform = Some(serde_json::from_value(json!({"os": "linux", "architecture": "amd64"})).unwrap());
    let statement = Layer { media_type: "application/vnd.in-toto+json", ..Layer::plain(b"{}") };
    let mut attestation = layout.manifest(&[statement], &json!({}), "unknown");
    let unknown = json!({"os": "unknown", "architecture": "unknown"});
    attestation.platform = Some(serde_json::from_value(unknown).unwrap());
    let index =
        json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [image, attestation]});
    let index = layout.blob(media_type::OCI_INDEX, index.to_string().as_bytes());
    layout.name("x", &index);
    let report = layout.verify("x", true).await;
    assert!(report.truthful, "{report}");
    assert_eq!(report.platforms[1].layers[0].verdict, Verdict::Unread);
    let kinds = inspect(&*layout.source("x").await, &InspectOptions::default()).await.unwrap();
    assert_eq!(kinds.platforms[1].layers[0].kind, LayerKind::Other);
    // The one image in it is meant.
    assert!(layout.diff("x", "x", &DiffOptions::default()).await.equal);
}

#[tokio::test(flavor = "multi_thread")]
async fn how_an_image_is_cut_and_packed_makes_no_difference() {
    let mut layout = Layout::new();
    layout.image("plain", &[Layer::gzip(&base()), Layer::plain(&upper())]);
    layout.image("flat", &[Layer::gzip(&flat())]);
    for (tag, options) in [
        ("esgz", small_chunks(Format::Estargz, TocPlace::Inside)),
        ("external", small_chunks(Format::Estargz, TocPlace::External)),
        ("zstd", small_chunks(Format::ZstdChunked, TocPlace::Inside)),
        ("podman", small_chunks(Format::ZstdChunkedPodman, TocPlace::Inside)),
    ] {
        layout.image(tag, &[Layer::lazy(&base(), &options), Layer::lazy(&upper(), &options)]);
        for read_all in [false, true] {
            let options = DiffOptions { read_all, ..DiffOptions::default() };
            let report = layout.diff("plain", tag, &options).await;
            assert!(report.equal, "{tag}, {read_all}: {report}");
            assert_eq!(report.to_string(), "");
            assert_eq!(report.a.entries, Some(9), "with the root");
        }
    }
    let report = layout.diff("flat", "esgz", &DiffOptions::default()).await;
    assert!(report.equal, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_differs_is_told_with_its_name() {
    let mut layout = Layout::new();
    let changed = Tar::new()
        .add(EntryType::Regular, "bin/su", 0o755, "", b"user")
        .file(".wh.lib", b"")
        .file("tmp/x", b"")
        .bytes();
    let lazy = |tar: &[u8]| Layer::lazy(tar, &Options::default());
    layout.image("a", &[lazy(&base())]);
    layout.image_with("b", &[lazy(&base()), lazy(&changed)], &json!({"Env": ["A=2"], "Cmd": ["sh"]}));
    let report = layout.diff("a", "b", &DiffOptions::default()).await;
    let lines: Vec<String> = report.changes.iter().map(ToString::to_string).collect();
    assert_eq!(lines, ["M bin/su (mode 4755→0755, content)", "D lib", "A tmp", "A tmp/x"]);
    assert_eq!(report.changes[1].change, ChangeKind::Deleted);
    let config: Vec<String> = report.config.iter().map(ToString::to_string).collect();
    assert_eq!(config, [r#"A config.Cmd (["sh"])"#, r#"M config.Env.A ("1"→"2")"#]);
    assert!(!report.equal);

    let ignore = [Aspect::Config, Aspect::Mode].into();
    let report = layout.diff("a", "b", &DiffOptions { ignore, ..DiffOptions::default() }).await;
    assert_eq!(report.changes[0].to_string(), "M bin/su (content)");
    assert!(report.config.is_empty());
    assert!(layout.diff("a", "a", &DiffOptions::default()).await.equal);
}

/// A table of contents that is not pinned is not asked.
#[tokio::test(flavor = "multi_thread")]
async fn diff_believes_pinned_tables_alone() {
    let mut layout = Layout::new();
    let honest = Layer::lazy(&base(), &Options::default());
    // Another layer's pin: the table is not the one that the manifest promises.
    let mut other = Layer::lazy(&upper(), &Options::default());
    other.annotations.clone_from(&honest.annotations);
    layout.image("a", &[honest.clone(), Layer::gzip(&upper())]);
    layout.image("b", &[honest, other]);
    let report = layout.diff("a", "b", &DiffOptions::default()).await;
    assert!(report.equal, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_cannot_be_compared_is_an_error_that_names_the_layer() {
    let mut layout = Layout::new();
    layout.image("a", &[Layer::gzip(&base())]);
    layout.image(
        "b",
        &[Layer::plain(b"this is no tar, and it is long enough to be told so. ".repeat(20).as_slice())],
    );
    let (a, b) = (layout.source("a").await, layout.source("b").await);
    let error = diff(&*a, &*b, &DiffOptions::default()).await.unwrap_err().to_string();
    assert!(error.starts_with("layer sha256:") && error.contains("not a tar stream"), "{error}");
    assert!(Path::new(layout.dir.path()).exists());
}
