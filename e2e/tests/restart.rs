//! A node that is killed in the middle of a read comes back with what it had.

use std::time::Duration;

use e2e::{big_file_image, cluster_with, layer_bytes_sent, sum_line};
use testkit::cage::{self, Needs};
use testkit::cluster::ClusterOptions;
use testkit::containerd::Snapshotter;
use testkit::net::Shape;
use testkit::process::wait_until;

#[test]
fn killed_in_the_middle_of_a_read_it_comes_back_with_its_cache() {
    cage::test(Needs::Containers, |cage| {
        const LEN: usize = 24_000_000;
        let (image, sum) = big_file_image(6, LEN)?;
        let options = ClusterOptions {
            seed: false,
            snapshotter_extra: "no_background_fetch = true".into(),
            ..ClusterOptions::default()
        };
        let mut cluster = cluster_with(cage, &image, options)?;
        let lazy = cluster.reference("lab:esgz");
        // Slow enough that the read is still going on when it is interrupted.
        cluster.shape(Shape::mbit(40))?;

        let machine = &mut cluster.machines[0];
        machine.containerd.rpull(&lazy)?;
        let reading = ["/bin/sh", "-c", "/bin/sha256sum /big; exec /bin/sleep 1000"];
        machine.containerd.run_detached(&lazy, Snapshotter::Stargz, &reading)?;
        let node_has = |node: &testkit::node::Node| node.sources().ok().map(|sources| sources.origin);
        let half = LEN as u64 / 2;
        wait_until("half of the file", Duration::from_mins(1), || {
            node_has(&machine.node).filter(|bytes| *bytes >= half)
        })?;
        machine.node.daemon().kill()?;
        let sent_before = layer_bytes_sent(&cluster, "esgz")?;
        assert!(sent_before < LEN as u64, "the read was over before the node was killed");

        cluster.registry.meter.reset();
        cluster.registry_host.unshape()?;
        let machine = &mut cluster.machines[0];
        machine.node.start_again()?;
        machine.containerd.wait_for_plugin()?;
        let printed = machine.containerd.run(&lazy, Snapshotter::Stargz, &["/bin/sha256sum", "/big"])?;
        assert_eq!(printed.stdout, sum_line(&sum));
        // What had arrived is not fetched again. What was on its way, or on its way to disk, may be: some chunks of 4 MiB.
        let sent_after = layer_bytes_sent(&cluster, "esgz")?;
        let allowed = LEN as u64 + 2 * (4 << 20) - half;
        assert!(sent_after <= allowed, "{sent_before} bytes before, {sent_after} after");
        Ok(())
    });
}

#[test]
fn stopped_and_started_it_needs_no_registry_for_what_it_has() {
    cage::test(Needs::Containers, |cage| {
        let (image, sum) = big_file_image(7, 3_000_000)?;
        let options = ClusterOptions { seed: false, ..ClusterOptions::default() };
        let mut cluster = cluster_with(cage, &image, options)?;
        let lazy = cluster.reference("lab:esgz");
        let machine = &mut cluster.machines[0];
        machine.containerd.rpull(&lazy)?;
        machine.node.wait_until_complete(Duration::from_mins(1))?;
        machine.node.stop()?;
        cluster.registry.meter.behave(testkit::meter::Behaviour::Status(503));
        machine.node.start_again()?;
        machine.containerd.wait_for_plugin()?;
        let printed = machine.containerd.run(&lazy, Snapshotter::Stargz, &["/bin/sha256sum", "/big"])?;
        assert_eq!(printed.stdout, sum_line(&sum));
        Ok(())
    });
}
