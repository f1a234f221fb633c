//! Whole conversions against a real registry (`docker-registry`), started by each test on a port of its own.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking, and its helpers do as well"
)]

mod common;

use common::{
    Image, Registry, Stored, check, fast, open, outcomes, place, places, run, simple, tar_of, two_platforms,
};
use content::Digest;
use convert::{ConvertOptions, Outcome, Platforms, Silent, convert};
use estargz::BlobKind;
use registry::media_type;
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn all_platforms_are_converted_and_converting_again_changes_nothing() {
    let registry = Registry::start();
    let (source, destination) = (registry.name("app:1"), registry.name("other/app:1-esgz"));
    two_platforms().push(&source).await;
    // As a task of its own, as the binary may run it.
    let (from, to) = (source.clone(), destination.clone());
    let report = tokio::spawn(async move { run(&from, &to, &fast()).await }).await.unwrap().unwrap();

    let (before, after) = (open(&source).await, open(&destination).await);
    let (old_index, new_index) = (before.index(), after.index());
    assert_eq!(new_index.manifests.len(), 3);
    assert_eq!(new_index.manifests[2], old_index.manifests[2], "an attestation is copied as it is");
    assert_eq!((report.copied, report.images.len()), (1, 2));
    for (old, new) in old_index.manifests.iter().zip(&new_index.manifests).take(2) {
        assert_eq!(new.platform, old.platform);
        let manifest = before.manifest_at(old).await;
        let config = before.config(&manifest).await;
        check(&after, &after.manifest_at(new).await, &manifest, &config, BlobKind::Estargz).await;
    }
    let attestation = after.manifest_at(&new_index.manifests[2]).await;
    assert_eq!(after.blob(&attestation.layers[0]).await, b"{}");
    let shared = report.images.iter().map(|image| image.layers[0].digest).collect::<Vec<_>>();
    assert_eq!(shared[0], shared[1], "a layer that platforms share stays shared");
    assert!(report.to_string().contains("linux/arm64"));
    assert_eq!(registry.open_uploads(), 0);

    let again = registry.name("again:2");
    let second = run(&destination, &again, &fast()).await.unwrap();
    assert_eq!(second.digest, report.digest);
    assert_eq!(outcomes(&second), [(Outcome::Kept, 6)].into());

    let forced = ConvertOptions { force: true, ..fast() };
    let third = run(&destination, &again, &forced).await.unwrap();
    assert_eq!(third.digest, report.digest, "the same layers are made of converted ones");
    assert_eq!(outcomes(&third), [(Outcome::Converted, 6)].into());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_platform_becomes_a_manifest_and_several_an_index() {
    let registry = Registry::start();
    let source = registry.name("app");
    two_platforms().push(&source).await;
    let only = |platforms: &[&str]| {
        let platforms = platforms.iter().map(|text| text.parse().unwrap()).collect();
        ConvertOptions { platforms: Platforms::Only(platforms), ..fast() }
    };
    let destination = registry.name("app:arm");
    let report = run(&source, &destination, &only(&["linux/arm64"])).await.unwrap();
    let manifest = open(&destination).await.manifest();
    assert_eq!(manifest.layers.len(), 3);
    assert_eq!(report.images[0].platform, "linux/arm64");

    let both = registry.name("app:both");
    run(&source, &both, &only(&["linux/arm64", "linux/amd64"])).await.unwrap();
    let index = open(&both).await.index();
    assert_eq!(index.manifests.len(), 3, "both and what is said about one of them");
    assert_eq!(index.manifests[0].platform.as_ref().unwrap().architecture, "amd64");
    assert_eq!(index.manifests[1].digest, report.digest);

    let error = run(&source, &destination, &only(&["linux/s390x"])).await.unwrap_err();
    let told = error.to_string();
    assert!(told.ends_with("has nothing for linux/s390x; it has linux/amd64, linux/arm64"), "{told}");
    let error = run(&destination, &source, &only(&["linux/s390x"])).await.unwrap_err();
    assert!(error.to_string().ends_with("it has linux/arm64"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_config_that_lies_about_a_layer_is_refused() {
    let registry = Registry::start();
    let mut image = Image::default();
    let evil = (tar_of(&[("a", b"evil")]), Stored::DockerGzip);
    image.claiming("amd64", &[evil], &[Digest::of(&tar_of(&[("a", b"good")]))]);
    image.push(&registry.name("liar")).await;
    let error = run(&registry.name("liar"), &registry.name("victim"), &fast()).await.unwrap_err();
    assert!(error.to_string().contains("the image is damaged or lies"), "{error}");
    assert!(!registry.has("victim").await);
    assert_eq!(registry.open_uploads(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_layer_never_becomes_an_image() {
    let registry = Registry::start();
    let source = registry.name("app");
    simple().push(&source).await;
    let manifest = open(&source).await.manifest();
    // The last layer is plain: a flipped byte of a file's content breaks no format.
    let file = registry.blob_file(&manifest.layers[2].digest);
    let good = std::fs::read(&file).unwrap();
    let mut flipped = good.clone();
    flipped[512] ^= 1;
    for bad in [&flipped, &good[..good.len() - 1024]] {
        std::fs::write(&file, bad).unwrap();
        let error = run(&source, &registry.name("new"), &fast()).await.unwrap_err();
        assert!(error.to_string().contains(&manifest.layers[2].digest.to_string()), "{error}");
        assert!(!registry.has("new").await);
        assert_eq!(registry.open_uploads(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_say_what_to_do() {
    let registry = Registry::start();
    let good = registry.name("app");
    simple().push(&good).await;
    let to = registry.name("new");

    let error = run(&registry.name("nothing:here"), &to, &fast()).await.unwrap_err();
    assert!(error.to_string().contains("check the repository and the tag or digest"), "{error}");

    let mut elsewhere = places();
    elsewhere.temporary = "/nonexistent".into();
    let error = convert(&elsewhere, &place(&good), &place(&to), &fast(), &Silent).await.unwrap_err();
    assert!(error.to_string().contains("/nonexistent"), "{error}");

    let digest = format!("{to}@{}", Digest::of(b""));
    let error = run(&good, &digest, &fast()).await.unwrap_err();
    assert!(error.to_string().ends_with("give it a tag instead"), "{error}");

    let error = run(&good, "docker-archive:x.tar", &fast()).await.unwrap_err();
    assert!(error.to_string().contains("oci-archive:"), "{error}");

    let mut chart = Image::default();
    let config = chart.blob("application/vnd.cncf.helm.config.v1+json", "{}");
    chart.document(&json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "layers": [], "config": config,
    }));
    let at = registry.name("app:chart");
    chart.push(&at).await;
    let error = run(&at, &to, &fast()).await.unwrap_err();
    assert!(error.to_string().contains("is not an image"), "{error}");
}

/// Two that convert to one name at once, from the same and from different images.
#[tokio::test(flavor = "multi_thread")]
async fn racing_converters_leave_one_whole_image() {
    let registry = Registry::start();
    let (one, two, to) = (registry.name("one"), registry.name("two"), registry.name("to"));
    simple().push(&one).await;
    two_platforms().push(&two).await;
    let (first, second) = tokio::join!(async { run(&one, &to, &fast()).await.unwrap().digest }, async {
        run(&one, &to, &fast()).await.unwrap().digest
    },);
    assert_eq!(first, second);
    let (first, second) = tokio::join!(async { run(&one, &to, &fast()).await.unwrap().digest }, async {
        run(&two, &to, &fast()).await.unwrap().digest
    },);
    let after = open(&to).await;
    assert!([first, second].contains(&after.root.digest));
    let mut manifests = Vec::new();
    if media_type::is_index(&after.root.media_type) {
        for descriptor in after.index().manifests {
            manifests.push(after.manifest_at(&descriptor).await);
        }
    } else {
        manifests.push(after.manifest());
    }
    for layer in manifests.iter().flat_map(|manifest| &manifest.layers) {
        assert_eq!(after.blob(layer).await.len() as u64, layer.size);
    }
    assert_eq!(registry.open_uploads(), 0);
}
