//! Row 4 of the acceptance invariants: a container starts as long as the origin or a mirror answers, and does not when
//! neither does, unless everything is here.

// Helpers of tests may fail as tests do.
#![allow(clippy::indexing_slicing)]

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::private::{Alone, Private};
use e2e::{big_file_image, sum_line};
use testkit::cage::{self, Cage, Needs};
use testkit::cluster::{Cluster, ClusterOptions};
use testkit::containerd::Snapshotter;
use testkit::image::pause;
use testkit::meter::Behaviour;
use testkit::node::Pantala;

const LEN: usize = 5_000_000;

/// Three images, none of which has anything in common with the others; the sums of their files.
fn images(cluster: &Cluster) -> Result<Vec<String>> {
    pause()?.push(cluster.registry.back(), "lab", "pause")?;
    (0..3_u64)
        .map(|number| {
            let (image, sum) = big_file_image(40 + number, LEN)?;
            image.push(cluster.registry.back(), "lab", &format!("plain{number}"))?;
            cluster.convert(&format!("lab:plain{number}"), &format!("lab:esgz{number}"))?;
            Ok(sum)
        })
        .collect()
}

fn blocked(cage: &Cage) -> Result<()> {
    let options = ClusterOptions { nodes: 0, seed: false, ..ClusterOptions::default() };
    let cluster = Cluster::registry_only(cage, &Pantala::locate()?, options)?;
    let sums = images(&cluster)?;
    let host = cluster.network.host("private")?;
    let mut private = Private::start(&host, &cage.dir().join("private"), &cage.dir().join("registry"))?;
    let certs_d = cage.dir().join("machine/containerd/certs.d");
    private.write_hosts(&certs_d)?;
    // Upstream's own test is configured so. The CA is hosts.toml's for containerd, and the mirror's own server's here.
    let config = format!(
        "no_background_fetch = true\nnoprefetch = true\n[blob]\ncheck_always = true\nmax_retries = 1\n\
         [[resolver.host.{origin:?}.mirrors]]\nhost = {mirror:?}\ninsecure = true\n\
         [registry.configs.{origin:?}.tls]\nca_file = \"{ca}\"\n",
        origin = private.name(),
        mirror = cluster.registry.name(),
        ca = cage.dir().join("private/ca.pem").display(),
    );
    let alone = Alone::start(cage, &cluster.network, &config, &cluster.reference("lab:pause"))?;
    private.docker_config(&alone.docker_config(), Private::PASSWORD)?;
    let image = |number: usize| format!("{}/lab:esgz{number}", private.name());
    for number in 0..3 {
        alone.rpull_as(&image(number), Private::USER, Private::PASSWORD)?;
    }
    ensure!(alone.prepared()?.1 == 0, "{:?}", alone.prepared()?);
    let names: Vec<String> = (0..3).map(image).collect();
    let run = |number: usize| {
        alone.containerd.run(&names[number], Snapshotter::Stargz, &["/bin/sha256sum", "/big"])
    };

    private.kill()?;
    ensure!(run(0).context("through the mirror")?.stdout == sum_line(&sums[0]));

    private.start_again()?;
    cluster.registry.meter.behave(Behaviour::Status(503));
    ensure!(run(1).context("through the origin")?.stdout == sum_line(&sums[1]));

    private.kill()?;
    let begun = Instant::now();
    let error = format!("{:#}", run(2).err().context("a container started that nobody has the bytes of")?);
    ensure!(error.contains("unavailable"), "{error}");
    println!("refused after {:?}: {error}", begun.elapsed());

    // Nobody says no: the mirror's cable is out.
    cluster.registry.meter.behave(Behaviour::Honest);
    cluster.registry_host.plug(false)?;
    let begun = Instant::now();
    ensure!(run(2).is_err(), "a container started though nobody answers");
    println!("refused by silence after {:?}", begun.elapsed());
    ensure!(begun.elapsed() < Duration::from_secs(20), "silence was waited for {:?}", begun.elapsed());
    cluster.registry_host.plug(true)?;
    ensure!(run(2).context("the mirror is back")?.stdout == sum_line(&sums[2]));
    Ok(())
}

#[allow(clippy::redundant_closure, reason = "the cage knows the test by its closure")]
#[test]
fn a_container_starts_while_mirror_or_origin_answers_and_not_when_neither_does() {
    cage::test(Needs::Containers, |cage| blocked(cage));
}

#[test]
fn a_container_whose_layers_are_all_here_needs_nobody() {
    cage::test(Needs::Containers, |cage| {
        let options = ClusterOptions { nodes: 0, seed: false, ..ClusterOptions::default() };
        let cluster = Cluster::registry_only(cage, &Pantala::locate()?, options)?;
        let sums = images(&cluster)?;
        let config = format!(
            "[pantala.disk]\nkeep_free_percent = 0\n[blob]\ncheck_always = true\n[[resolver.host.{name:?}.mirrors]]\nhost = {name:?}\ninsecure = true\n",
            name = cluster.registry.name()
        );
        let alone = Alone::start(cage, &cluster.network, &config, &cluster.reference("lab:pause"))?;
        let image = cluster.reference("lab:esgz0");
        alone.containerd.rpull(&image)?;
        alone.wait_until_complete()?;
        cluster.registry.meter.behave(Behaviour::Status(503));
        cluster.registry.meter.reset();
        let printed = alone.containerd.run(&image, Snapshotter::Stargz, &["/bin/sha256sum", "/big"])?;
        assert_eq!(printed.stdout, sum_line(&sums[0]));
        assert_eq!(cluster.registry.meter.counts().accesses.len(), 0, "nobody was asked");
        Ok(())
    });
}
