//! Wrong bytes never reach a reader, whoever they come from.

use e2e::{big_file_image, cluster_with, sum_line};
use testkit::cage::{self, Needs};
use testkit::cluster::ClusterOptions;
use testkit::containerd::Snapshotter;
use testkit::meter::Behaviour;

const SUM: &[&str] = &["/bin/sha256sum", "/big"];

/// The first node reads its bytes from a registry that flips bits. From then on it holds, signs and serves what is
/// wrong, and no digest of a piece can tell: only the layer's own table of contents.
#[test]
fn a_node_that_serves_flipped_bytes_is_found_out_and_nobody_sees_a_wrong_byte() {
    cage::test(Needs::Containers, |cage| {
        let (image, sum) = big_file_image(9, 3_000_000)?;
        let options = ClusterOptions {
            nodes: 2,
            seed: false,
            snapshotter_extra: "no_background_fetch = true".into(),
            ..ClusterOptions::default()
        };
        let cluster = cluster_with(cage, &image, options)?;
        let lazy = cluster.reference("lab:esgz");
        let [first, second] = &cluster.machines[..] else { panic!("two machines were asked for") };

        first.containerd.rpull(&lazy)?;
        // What the programs need is here already: only the file comes wrong.
        first.containerd.run(&lazy, Snapshotter::Stargz, &["/bin/sha256sum", "/bin/sh"])?;
        cluster.registry.meter.reset();
        cluster.registry.meter.behave(Behaviour::Flip);
        let wrong = first.containerd.run(&lazy, Snapshotter::Stargz, SUM);
        assert!(wrong.is_err(), "a read of wrong bytes succeeded: {wrong:?}");
        assert!(cluster.registry.meter.counts().blob_requests() > 0, "the registry was not asked");

        cluster.registry.meter.behave(Behaviour::Honest);
        second.containerd.rpull(&lazy)?;
        let printed = second.containerd.run(&lazy, Snapshotter::Stargz, SUM)?;
        assert_eq!(printed.stdout, sum_line(&sum));
        Ok(())
    });
}
