//! Stock containerd, with nothing but a `hosts.toml`, pulls an ordinary image through the node's proxy and the swarm.

use std::fs;

use e2e::{big_file_image, cluster_with, layer_bytes_sent, sum_line};
use testkit::cage::{self, Needs};
use testkit::cluster::ClusterOptions;
use testkit::containerd::Snapshotter;
use testkit::node::PROXY_PORT;

#[test]
fn an_ordinary_image_comes_through_the_proxy_once_per_cluster() {
    cage::test(Needs::Containers, |cage| {
        let (image, sum) = big_file_image(5, 8_000_000)?;
        let cluster = cluster_with(cage, &image, ClusterOptions { nodes: 2, ..ClusterOptions::default() })?;
        let registry = cluster.registry.name();
        let hosts = cage.dir().join("hosts");
        fs::create_dir_all(hosts.join(&registry))?;
        fs::write(
            hosts.join(&registry).join("hosts.toml"),
            format!(
                "server = \"http://{registry}\"\n\
                 [host.\"http://127.0.0.1:{PROXY_PORT}\"]\n\
                 capabilities = [\"pull\", \"resolve\"]\n\
                 [host.\"http://127.0.0.1:{PROXY_PORT}\".header]\n\
                 X-Dragonfly-Registry = [\"http://{registry}\"]\n"
            ),
        )?;

        let plain = cluster.reference("lab:plain");
        let layers: u64 = image.layer_bytes();
        for machine in &cluster.machines {
            machine.containerd.pull_by_hosts(&plain, &hosts, Snapshotter::Overlayfs)?;
            let printed =
                machine.containerd.run(&plain, Snapshotter::Overlayfs, &["/bin/sha256sum", "/big"])?;
            assert_eq!(printed.stdout, sum_line(&sum));
            let fetched = machine.node.sources()?.fetched();
            assert!(fetched >= layers, "{fetched} of {layers} bytes came through {}", machine.host.name());
            // The first pull read each byte once, the second none.
            assert_eq!(layer_bytes_sent(&cluster, "plain")?, layers);
        }
        Ok(())
    });
}
