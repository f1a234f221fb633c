//! A lazily mounted image is, to whoever looks, the unpacked image.

// Helpers of tests may fail as tests do.
#![allow(clippy::indexing_slicing)]

use anyhow::{Context, Result};
use e2e::conversions::{everything, ordinary};
use e2e::{TOC_DIGEST, base_layer, cluster_with, noise};
use testkit::cage::{self, Needs};
use testkit::cluster::{Cluster, ClusterOptions};
use testkit::containerd::Snapshotter;
use testkit::image::{Entry, Image, layer};
use testkit::process::run;
use testkit::tree;

/// Compares what a lazy mount of `tag` shows with the unpacked original.
fn assert_same_as_unpacked(cluster: &Cluster, tag: &str) -> Result<()> {
    let (plain, lazy) = (cluster.reference("lab:plain"), cluster.reference(&format!("lab:{tag}")));
    let containerd = &cluster.machines[0].containerd;
    containerd.pull(&plain, Snapshotter::Overlayfs)?;
    let mut expected = containerd.with_image(&plain, Snapshotter::Overlayfs, tree::read)?;
    containerd.rpull(&lazy)?;
    let seen = containerd.with_image(&lazy, Snapshotter::Stargz, tree::read)?;
    // No layer says when the root itself was made: containerd takes the clock's word.
    expected.get_mut("").context("no root")?.mtime = seen[""].mtime;
    let differences = tree::differences(&expected, &seen);
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    assert!(expected.len() > 40, "the image has {} names only", expected.len());
    Ok(())
}

/// How many layers the node's log says were mounted lazily.
fn lazily_prepared(cluster: &mut Cluster) -> usize {
    let log = cluster.machines[0].node.daemon().log();
    let is_record = |line: &&String| {
        line.contains(r#""msg":"prepared remote snapshot""#)
            && line.contains(r#""remote-snapshot-prepared":"true""#)
    };
    log.iter().filter(is_record).count()
}

#[test]
fn the_file_system_seen_lazily_is_the_unpacked_one() {
    cage::test(Needs::Containers, |cage| {
        let mut cluster = cluster_with(cage, &everything()?, ClusterOptions::default())?;
        assert_same_as_unpacked(&cluster, "esgz")?;
        assert_eq!(lazily_prepared(&mut cluster), 5);
        Ok(())
    });
}

#[test]
fn the_pull_itself_moves_no_file() {
    cage::test(Needs::Containers, |cage| {
        let image = Image::new(&[base_layer()?, layer(&[Entry::file("big", noise(2, 50_000_000))])?]);
        // Nothing is fetched behind the reader's back, so that what is counted was asked for.
        let options = ClusterOptions {
            snapshotter_extra: "no_background_fetch = true".into(),
            ..ClusterOptions::default()
        };
        let cluster = cluster_with(cage, &image, options)?;
        let lazy = cluster.reference("lab:esgz");
        let containerd = &cluster.machines[0].containerd;
        containerd.rpull(&lazy)?;
        let printed = containerd.run(&lazy, Snapshotter::Stargz, &["/bin/sh", "-c", "echo alive"])?;
        assert_eq!(printed.stdout, "alive\n");
        let sent = e2e::layer_bytes_sent(&cluster, "esgz")?;
        assert!(sent < 5_000_000, "{sent} bytes of layers were sent to start a shell");
        Ok(())
    });
}

#[test]
fn toc_digests_are_what_ctr_remote_computes() {
    cage::test(Needs::Containers, |cage| {
        let cluster = cluster_with(cage, &everything()?, ClusterOptions::default())?;
        let containerd = &cluster.machines[0].containerd;
        containerd.pull(&cluster.reference("lab:esgz"), Snapshotter::Overlayfs)?;
        let layers = cluster.layers("lab", "esgz")?;
        assert_eq!(layers.len(), 5);
        for layer in layers {
            let computed = run(containerd.ctr_remote().args(["images", "get-toc-digest", &layer.digest]))?;
            let annotated = layer.annotations.get(TOC_DIGEST).context("no annotation")?;
            assert_eq!(computed.trim(), annotated);
        }
        Ok(())
    });
}

#[test]
fn an_image_that_ctr_remote_converted_mounts_lazily() {
    cage::test(Needs::Containers, |cage| {
        let mut cluster = cluster_with(cage, &Image::new(&ordinary()?), ClusterOptions::default())?;
        let (plain, theirs) = (cluster.reference("lab:plain"), cluster.reference("lab:theirs"));
        // On another host's containerd, so that the node's has nothing of it.
        let host = cluster.network.host("theirs")?;
        let dir = cage.dir().join("theirs");
        let converter = testkit::containerd::Containerd::start(&host, &dir, &cage.tag(), &dir.join("none"))?;
        converter.pull(&plain, Snapshotter::Overlayfs)?;
        run(converter.ctr_remote().args(["images", "convert", "--estargz", "--oci", &plain, &theirs]))?;
        run(converter.ctr().args(["images", "push", "--plain-http", &theirs]))?;
        assert_same_as_unpacked(&cluster, "theirs")?;
        assert_eq!(lazily_prepared(&mut cluster), 4);
        Ok(())
    });
}
