//! The scheduler knows only what nodes tell it: killed and restarted empty, it costs nothing.

// Helpers of tests may fail as tests do.
#![allow(clippy::indexing_slicing)]

use std::time::Duration;

use e2e::{big_file_image, cluster_with, layer_bytes_sent, sum_line};
use testkit::cage::{self, Needs};
use testkit::cluster::{Cluster, ClusterOptions};
use testkit::containerd::Snapshotter;
use testkit::process::wait_until;

const LIMIT: Duration = Duration::from_mins(1);
const SUM: &[&str] = &["/bin/sha256sum", "/big"];

/// A cluster of two nodes, the first of which has the whole image.
fn warm(cage: &cage::Cage) -> anyhow::Result<(Cluster, String)> {
    let (image, sum) = big_file_image(8, 8_000_000)?;
    let cluster = cluster_with(cage, &image, ClusterOptions { nodes: 2, ..ClusterOptions::default() })?;
    let first = &cluster.machines[0];
    first.containerd.rpull(&cluster.reference("lab:esgz"))?;
    first.node.wait_until_complete(LIMIT)?;
    Ok((cluster, sum))
}

fn lazy_sum(cluster: &Cluster, machine: usize) -> anyhow::Result<String> {
    let (lazy, machine) = (cluster.reference("lab:esgz"), &cluster.machines[machine]);
    machine.containerd.rpull(&lazy)?;
    Ok(machine.containerd.run(&lazy, Snapshotter::Stargz, SUM)?.stdout)
}

#[test]
fn restarted_empty_it_costs_no_origin_byte() {
    cage::test(Needs::Containers, |cage| {
        let (mut cluster, sum) = warm(cage)?;
        cluster.scheduler.as_mut().unwrap().kill()?;
        wait_until("the nodes to notice", LIMIT, || (!sees_scheduler(&cluster)?).then_some(()))?;
        cluster.start_scheduler()?;
        wait_until("the nodes to come back", LIMIT, || sees_scheduler(&cluster)?.then_some(()))?;
        cluster.registry.meter.reset();
        assert_eq!(lazy_sum(&cluster, 1)?, sum_line(&sum));
        cluster.machines[1].node.wait_until_complete(LIMIT)?;
        assert_eq!(layer_bytes_sent(&cluster, "esgz")?, 0);
        Ok(())
    });
}

#[test]
fn without_it_containers_start() {
    cage::test(Needs::Containers, |cage| {
        let (mut cluster, sum) = warm(cage)?;
        cluster.scheduler.as_mut().unwrap().kill()?;
        assert_eq!(lazy_sum(&cluster, 1)?, sum_line(&sum));
        Ok(())
    });
}

/// Whether every node is connected; `None` while one does not answer.
fn sees_scheduler(cluster: &Cluster) -> Option<bool> {
    let states = cluster.machines.iter().map(|machine| machine.node.status().ok()?["scheduler"].as_bool());
    Some(states.collect::<Option<Vec<_>>>()?.into_iter().all(|connected| connected))
}
