//! What layers become: formats, orders, those that cannot be converted. From layout to layout, without a network.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking, and its helpers do as well"
)]

mod common;

use common::{
    Image, Stored, check, fast, files, inflate, open, outcomes, run, simple, tar_of, two_platforms,
};
use content::Digest;
use convert::{ConvertOptions, Outcome, Platforms, Prefetch};
use estargz::{
    BlobKind, Format, NO_PREFETCH_LANDMARK, Options, PREFETCH_LANDMARK, TOC_DIGEST_ANNOTATION, TocPlace,
};
use registry::{Descriptor, media_type};

fn with(layer: &Options) -> ConvertOptions {
    ConvertOptions { layer: Options { level: Some(1), ..layer.clone() }, ..ConvertOptions::default() }
}

/// The names of a layer's files in the order of its tar.
fn names(blob: &[u8]) -> Vec<String> {
    let plain = inflate(blob);
    let mut archive = tar::Archive::new(plain.as_slice());
    let entries = archive.entries().unwrap();
    entries.map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_format_holds_the_same_image() {
    let dir = tempfile::tempdir().unwrap();
    let source = simple().layout(&dir.path().join("in"), "app");
    let external = Options { toc: TocPlace::External, ..Options::default() };
    let zstd = Options { format: Format::ZstdChunked, ..Options::default() };
    let mut digests = Vec::new();
    for (at, (layer, kind)) in [
        (Options::default(), BlobKind::Estargz),
        (Options { chunk_size: 1 << 20, ..Options::default() }, BlobKind::Estargz),
        (Options { min_chunk_size: 50_000, ..Options::default() }, BlobKind::Estargz),
        (external.clone(), BlobKind::External),
        (Options { keep_diff_id: true, ..external }, BlobKind::External),
        (zstd.clone(), BlobKind::ZstdChunked),
        (Options { keep_diff_id: true, ..zstd }, BlobKind::ZstdChunked),
        (Options { format: Format::ZstdChunkedPodman, ..Options::default() }, BlobKind::ZstdChunkedPodman),
    ]
    .into_iter()
    .enumerate()
    {
        let to = format!("oci:{}:app", dir.path().join(at.to_string()).display());
        let report = run(&source, &to, &with(&layer)).await.unwrap();
        let (before, after) = (open(&source).await, open(&to).await);
        let (old, new) = (before.manifest(), after.manifest());
        let config = before.config(&old).await;
        check(&after, &new, &old, &config, kind).await;
        let kept = layer.keep_diff_id || layer.format == Format::ZstdChunkedPodman;
        assert_eq!(new.config.digest == old.config.digest, kept, "{layer:?}");
        assert_eq!(report.toc_image.is_some(), layer.toc == TocPlace::External);
        digests.push(report.digest);

        let again = format!("oci:{}:app", dir.path().join(format!("{at}-again")).display());
        let second = run(&to, &again, &with(&layer)).await.unwrap();
        assert_eq!(second.digest, report.digest, "{layer:?}");
        assert_eq!(outcomes(&second), [(Outcome::Kept, 3)].into(), "{layer:?}");
        assert_eq!(second.toc_image, report.toc_image);
        let third = run(&to, &again, &ConvertOptions { force: true, ..with(&layer) }).await.unwrap();
        assert_eq!(third.digest, report.digest, "{layer:?}");
        assert_eq!(third.toc_image, report.toc_image);
    }
    let count = digests.len();
    digests.sort();
    digests.dedup();
    assert_eq!(digests.len(), count);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_toc_image_has_the_toc_of_every_layer_of_every_platform() {
    let dir = tempfile::tempdir().unwrap();
    let source = two_platforms().layout(&dir.path().join("in"), "app");
    let to = format!("oci:{}:app", dir.path().join("out").display());
    let options = with(&Options { toc: TocPlace::External, ..Options::default() });
    let report = run(&source, &to, &options).await.unwrap();
    let tocs = open(&format!("{to}-esgztoc")).await;
    assert_eq!(Some(tocs.root.digest), report.toc_image);
    let (manifest, after) = (tocs.manifest(), open(&to).await);
    let owners: Vec<&str> = manifest
        .layers
        .iter()
        .map(|layer| layer.annotation("containerd.io/snapshot/stargz/layer.digest").unwrap())
        .collect();
    assert!(owners.is_sorted(), "{owners:?}");
    let mut layers: Vec<Descriptor> = Vec::new();
    for image in after.index().manifests.iter().take(2) {
        layers.extend(after.manifest_at(image).await.layers);
    }
    for layer in &layers {
        let at = owners.iter().position(|owner| *owner == layer.digest.to_string()).unwrap();
        let json = estargz::read_toc_layer(&tocs.blob(&manifest.layers[at]).await).unwrap();
        assert_eq!(layer.annotation(TOC_DIGEST_ANNOTATION), Some(Digest::of(&json).to_string().as_str()));
    }
    assert_eq!(owners.len(), 4, "two layers are shared");
    // A layer whose TOC is lost is no lazy layer: it is converted again.
    std::fs::remove_file(dir.path().join("out/blobs/sha256").join(tocs.root.digest.hex())).unwrap();
    let lost = format!("oci:{}:app", dir.path().join("lost").display());
    let result = run(&to, &lost, &options).await;
    assert!(result.is_err() || outcomes(&result.unwrap()).contains_key(&Outcome::Converted));
}

fn order() -> Image {
    let mut image = Image::default();
    let base = tar_of(&[("a", b"1"), ("usr/lib/b", b"2"), ("usr/lib/c", b"3"), ("d", b"4")]);
    let top = tar_of(&[("d", b"5"), ("e", b"6")]);
    image.platform("amd64", &[(base, Stored::DockerGzip), (top, Stored::Plain)]);
    image
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_start_reads_comes_first() {
    let dir = tempfile::tempdir().unwrap();
    let image = order();
    let source = image.layout(&dir.path().join("in"), "app");
    let line = |path: &str, index: usize| {
        format!(r#"{{"path":"{path}","manifestDigest":"{}","layerIndex":{index}}}"#, image.root().digest)
    };
    let mut recorded = Prefetch::default();
    recorded.add_record(&[line("usr/lib/c", 0), line("d", 1), line("a", 0)].join("\n")).unwrap();
    let mut listed = Prefetch::default();
    listed.add_list("# what runs first\nusr/lib/*\nnot/there\n").unwrap();

    let mut made = Vec::new();
    for (at, (prefetch, base, top)) in [
        (recorded, vec!["usr/lib/c", "d", "a", PREFETCH_LANDMARK], vec!["d", PREFETCH_LANDMARK]),
        (listed.clone(), vec!["usr/lib/b", "usr/lib/c", PREFETCH_LANDMARK], vec![NO_PREFETCH_LANDMARK]),
    ]
    .into_iter()
    .enumerate()
    {
        let options = ConvertOptions { prefetch, ..fast() };
        let to = format!("oci:{}:app", dir.path().join(at.to_string()).display());
        let report = run(&source, &to, &options).await.unwrap();
        let after = open(&to).await;
        for (layer, expected) in after.manifest().layers.iter().zip([base, top]) {
            let names = names(&after.blob(layer).await);
            assert_eq!(names[..expected.len()], expected[..], "{names:?}");
        }
        let again = format!("oci:{}:app", dir.path().join(format!("{at}-again")).display());
        let second = run(&to, &again, &options).await.unwrap();
        assert_eq!(second.digest, report.digest);
        assert_eq!(outcomes(&second), [(Outcome::Kept, 2)].into());
        let third = run(&to, &again, &ConvertOptions { force: true, ..options.clone() }).await.unwrap();
        assert_eq!(third.digest, report.digest, "an order that is there already is kept");
        made.push((to, report.digest));
    }
    // Another order for a layer that has one: made anew, unless what is there shall do.
    let other = ConvertOptions { prefetch: listed, ..fast() };
    let to = format!("oci:{}:app", dir.path().join("other").display());
    let anew = run(&made[0].0, &to, &other).await.unwrap();
    assert_eq!(outcomes(&anew), [(Outcome::Converted, 2)].into());
    let reusing = ConvertOptions { reuse: true, force: false, ..other };
    let to = format!("oci:{}:app", dir.path().join("reusing").display());
    let reused = run(&made[0].0, &to, &reusing).await.unwrap();
    assert_eq!(outcomes(&reused), [(Outcome::Kept, 2)].into());
    assert_eq!(reused.digest, made[0].1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_cannot_be_converted_stays_as_it_is_if_that_is_wished() {
    let dir = tempfile::tempdir().unwrap();
    let mut strange = tar_of(&[("caf?", b"1")]);
    // A name in Latin-1, and the header's checksum for it.
    strange[3] = 0xe9;
    let sum: u32 = strange[..512]
        .iter()
        .enumerate()
        .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) })
        .sum();
    strange[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut image = Image::default();
    image.platform("amd64", &[(tar_of(&[("a", b"1")]), Stored::DockerGzip), (strange, Stored::DockerGzip)]);
    let source = image.layout(&dir.path().join("in"), "app");
    let out = dir.path().join("out");
    let to = format!("oci:{}:app", out.display());
    let error = run(&source, &to, &fast()).await.unwrap_err();
    assert!(error.to_string().contains("caf"), "{error}");
    assert!(
        !out.exists() || files(&out).iter().all(|path| !path.ends_with("index.json")),
        "{:?}",
        files(&out)
    );

    let options = ConvertOptions { skip_unconvertible: true, ..fast() };
    let report = run(&source, &to, &options).await.unwrap();
    assert_eq!(outcomes(&report), [(Outcome::Converted, 1), (Outcome::Unconvertible, 1)].into());
    assert!(report.warnings[0].contains("caf"), "{:?}", report.warnings);
    let (before, after) = (open(&source).await.manifest(), open(&to).await.manifest());
    assert_eq!(after.layers[1].digest, before.layers[1].digest);
    assert_eq!(after.layers[1].media_type, media_type::OCI_LAYER_GZIP);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_a_layout_lacks_is_left_out_or_missed() {
    let dir = tempfile::tempdir().unwrap();
    let image = two_platforms();
    let whole = image.layout(&dir.path().join("whole"), "app");
    let arm = open(&whole).await.index().manifests[1].digest;
    let source = image.layout_without(&dir.path().join("in"), "app", &[arm]);
    let to = format!("oci:{}:app", dir.path().join("out").display());
    let report = run(&source, &to, &fast()).await.unwrap();
    assert_eq!((report.images.len(), report.copied), (1, 1));
    assert!(report.warnings[0].starts_with("linux/arm64 is left out"), "{:?}", report.warnings);
    assert_eq!(open(&to).await.index().manifests.len(), 2);
    let all = ConvertOptions { platforms: Platforms::All, ..fast() };
    let error = run(&source, &to, &all).await.unwrap_err();
    assert!(error.to_string().contains(&arm.to_string()), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_only_claims_to_be_lazy_is_converted() {
    let dir = tempfile::tempdir().unwrap();
    let source = simple().layout(&dir.path().join("in"), "app");
    let to = format!("oci:{}:app", dir.path().join("out").display());
    let report = run(&source, &to, &fast()).await.unwrap();
    // The same image, with another TOC digest in one descriptor and an ordinary layer that has one.
    let opened = open(&to).await;
    let mut manifest = opened.manifest();
    let annotations = manifest.layers[0].annotations.as_mut().unwrap();
    annotations.insert(TOC_DIGEST_ANNOTATION.to_owned(), Digest::of(b"other").to_string());
    let mut image = Image::default();
    for layer in &manifest.layers {
        image.blob(&layer.media_type, opened.blob(layer).await);
    }
    let config = opened.source.document(&manifest.config, 1 << 20).await.unwrap();
    image.blob(media_type::OCI_CONFIG, config);
    image.document(&serde_json::to_value(&manifest).unwrap());
    let liar = image.layout(&dir.path().join("liar"), "app");
    let honest = format!("oci:{}:app", dir.path().join("honest").display());
    let second = run(&liar, &honest, &fast()).await.unwrap();
    assert_eq!(outcomes(&second), [(Outcome::Converted, 1), (Outcome::Kept, 2)].into());
    let (first, second) = (&report.images[0].layers[0], &second.images[0].layers[0]);
    assert_eq!((first.digest, first.toc_digest), (second.digest, second.toc_digest));
}
