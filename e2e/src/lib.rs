//! End-to-end tests live in `tests/`: real containerd, real registry, real processes of `pantala`, one caged lab
//! ([`testkit::cage`]) per test. What several of them need stands here.

// Test support: a lab that cannot be built must stop the test at once, with the place where it happened.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::missing_errors_doc)]

use anyhow::{Context, Result};
use content::Digest;
use rand::{Rng, SeedableRng};
use testkit::cage::Cage;
use testkit::cluster::{Cluster, ClusterOptions};
use testkit::image::{Entry, Image, Layer, layer, programs};
use testkit::node::Pantala;

pub mod alone;
pub mod conversions;
pub mod deaths;
pub mod private;

/// The annotation in which a manifest names the digest of an eStargz layer's TOC.
pub const TOC_DIGEST: &str = "containerd.io/snapshot/stargz/toc.digest";

/// Bytes that no compressor can shorten, the same for the same `seed`.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    rand::rngs::SmallRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

/// A layer with a shell and the few programs that tests run in containers.
pub fn base_layer() -> Result<Vec<u8>> {
    layer(&programs(&["sh", "cat", "head", "sleep", "sha256sum", "ls"])?)
}

/// A shell, and `/big`: `len` bytes of noise in a layer of their own. Answers the sum of `/big` in hexadecimal.
pub fn big_file_image(seed: u64, len: usize) -> Result<(Image, String)> {
    let big = noise(seed, len);
    let sum = Digest::of(&big).hex();
    Ok((Image::new(&[base_layer()?, layer(&[Entry::file("big", big)])?]), sum))
}

/// A cluster whose registry has `image` as `lab:plain`, and converted as `lab:esgz`.
pub fn cluster_with(cage: &Cage, image: &Image, options: ClusterOptions) -> Result<Cluster> {
    let mut cluster = Cluster::registry_only(cage, &Pantala::locate()?, options)?;
    image.push(cluster.registry.back(), "lab", "plain")?;
    cluster.convert("lab:plain", "lab:esgz")?;
    cluster.start_nodes()?;
    cluster.registry.meter.reset();
    Ok(cluster)
}

/// Bytes of layers of `lab:<tag>` that the registry has sent since the last reset: its manifests and configurations
/// are the clients' own affair.
pub fn layer_bytes_sent(cluster: &Cluster, tag: &str) -> Result<u64> {
    let layers = cluster.layers("lab", tag)?;
    let is_layer = |digest: &str| layers.iter().any(|layer| layer.digest == digest);
    Ok(cluster.registry.meter.counts().bytes_of(is_layer))
}

/// What a container prints that sums `/big`.
pub fn sum_line(sum: &str) -> String {
    format!("{sum}  /big\n")
}

/// Pushes `lab:mixed`: `lab:esgz` with an ordinary layer above its lowest one, which holds the file `/between`.
pub fn push_mixed(cluster: &Cluster) -> Result<()> {
    let mut manifest = cluster.manifest("lab", "esgz")?;
    let between = Layer::gzip(&layer(&[Entry::file("between", "ordinary\n")])?)?;
    let digest = manifest["config"]["digest"].as_str().context("a manifest without a config")?;
    let path = format!("/v2/lab/blobs/{digest}");
    let config = testkit::http::get(cluster.registry.back(), &path, &[])?.success()?.body;
    let mut config: serde_json::Value = serde_json::from_slice(&config)?;
    let diff_ids = config["rootfs"]["diff_ids"].as_array_mut().context("no diffIDs")?;
    diff_ids.insert(1, between.diff_id.to_string().into());
    config.as_object_mut().context("no config")?.remove("history");
    manifest["layers"].as_array_mut().context("no layers")?.insert(
        1,
        serde_json::json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
            "digest": between.digest.to_string(),
            "size": between.bytes.len(),
        }),
    );
    let config = config.to_string().into_bytes();
    manifest["config"]["digest"] = Digest::of(&config).to_string().into();
    manifest["config"]["size"] = config.len().into();
    let mixed = Image { layers: vec![between], config, manifest: manifest.to_string().into_bytes() };
    mixed.push(cluster.registry.back(), "lab", "mixed")
}
