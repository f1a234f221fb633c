//! What is not eStargz is not lazy, and works.

use e2e::{big_file_image, cluster_with, sum_line};
use testkit::cage::{self, Needs};
use testkit::cluster::ClusterOptions;
use testkit::containerd::Snapshotter;
use testkit::image::{Entry, Image, Layer, layer};

#[test]
fn an_ordinary_image_gets_overlay_layers() {
    cage::test(Needs::Containers, |cage| {
        let (image, sum) = big_file_image(3, 3_000_000)?;
        let mut cluster = cluster_with(cage, &image, ClusterOptions::default())?;
        let plain = cluster.reference("lab:plain");
        let containerd = &cluster.machines[0].containerd;
        containerd.rpull(&plain)?;
        let printed = containerd.run(&plain, Snapshotter::Stargz, &["/bin/sha256sum", "/big"])?;
        assert_eq!(printed.stdout, sum_line(&sum));
        let layers = cluster.machines[0].node.status()?["layers"].clone();
        assert_eq!(layers, serde_json::json!([]), "nothing is mounted lazily");

        containerd.remove_image(&plain)?;
        assert_eq!(containerd.snapshots(Snapshotter::Stargz)?, Vec::<String>::new());
        cluster.machines[0].containerd.daemon().stop()?;
        cluster.machines[0].node.stop()
    });
}

#[test]
fn lazy_layers_above_an_ordinary_one() {
    cage::test(Needs::Containers, |cage| {
        let (image, sum) = big_file_image(4, 3_000_000)?;
        let cluster = cluster_with(cage, &image, ClusterOptions::default())?;
        // The converted image with an ordinary layer between its own two.
        let mut mixed = cluster.manifest("lab", "esgz")?;
        let between = Layer::gzip(&layer(&[Entry::file("between", "ordinary\n")])?)?;
        let config_digest = mixed["config"]["digest"].as_str().unwrap().to_owned();
        let path = format!("/v2/lab/blobs/{config_digest}");
        let config = testkit::http::get(cluster.registry.back(), &path, &[])?.success()?.body;
        let mut config: serde_json::Value = serde_json::from_slice(&config)?;
        config["rootfs"]["diff_ids"].as_array_mut().unwrap().insert(1, between.diff_id.to_string().into());
        config.as_object_mut().unwrap().remove("history");
        mixed["layers"].as_array_mut().unwrap().insert(
            1,
            serde_json::json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "digest": between.digest.to_string(),
                "size": between.bytes.len(),
            }),
        );
        let config = config.to_string().into_bytes();
        mixed["config"]["digest"] = content::Digest::of(&config).to_string().into();
        mixed["config"]["size"] = config.len().into();
        let mixed = Image { layers: vec![between], config, manifest: mixed.to_string().into_bytes() };
        mixed.push(cluster.registry.back(), "lab", "mixed")?;

        let reference = cluster.reference("lab:mixed");
        let containerd = &cluster.machines[0].containerd;
        containerd.rpull(&reference)?;
        let program = ["/bin/sh", "-c", "/bin/cat /between; /bin/sha256sum /big"];
        let printed = containerd.run(&reference, Snapshotter::Stargz, &program)?;
        assert_eq!(printed.stdout, format!("ordinary\n{}", sum_line(&sum)));
        Ok(())
    });
}
