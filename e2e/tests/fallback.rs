//! What is not eStargz is not lazy, and works.

use e2e::{big_file_image, cluster_with, push_mixed, sum_line};
use testkit::cage::{self, Needs};
use testkit::cluster::ClusterOptions;
use testkit::containerd::Snapshotter;

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
        push_mixed(&cluster)?;

        let reference = cluster.reference("lab:mixed");
        let containerd = &cluster.machines[0].containerd;
        containerd.rpull(&reference)?;
        let program = ["/bin/sh", "-c", "/bin/cat /between; /bin/sha256sum /big"];
        let printed = containerd.run(&reference, Snapshotter::Stargz, &program)?;
        assert_eq!(printed.stdout, format!("ordinary\n{}", sum_line(&sum)));
        Ok(())
    });
}
