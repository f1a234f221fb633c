//! How often lazy containers ask a registry, and what they do when there is no room for the answer.

// Helpers of tests may fail as tests do.
#![allow(clippy::indexing_slicing)]

use std::process::Command;

use anyhow::{Context, Result, ensure};
use e2e::{base_layer, big_file_image, cluster_with, noise, sum_line};
use testkit::cage::{self, Cage, Needs};
use testkit::cluster::ClusterOptions;
use testkit::containerd::Snapshotter;
use testkit::image::{Entry, Image, layer};
use testkit::process::run;

fn options(driver: &str) -> ClusterOptions {
    ClusterOptions {
        seed: false,
        // Nothing is fetched behind the reader's back, so that what is counted was asked for.
        snapshotter_extra: format!("no_background_fetch = true\nnoprefetch = true\ndriver = \"{driver}\""),
        ..ClusterOptions::default()
    }
}

/// Reads of one cold range by eight processes of one container are one request, and no byte comes twice.
fn eight_readers(cage: &Cage, driver: &str) -> Result<()> {
    const LEN: usize = 3_000_000;
    let files = vec![Entry::file("one", noise(1, LEN)), Entry::file("other", noise(2, LEN))];
    let cluster = cluster_with(cage, &Image::new(&[base_layer()?, layer(&files)?]), options(driver))?;
    let (lazy, containerd) = (cluster.reference("lab:esgz"), &cluster.machines[0].containerd);
    containerd.rpull(&lazy)?;
    // The shell and the programs are here before it is counted.
    let warm = "/bin/sha256sum /bin/sha256sum; /bin/sleep 0; echo warm";
    containerd.run(&lazy, Snapshotter::Stargz, &["/bin/sh", "-c", warm])?;
    cluster.registry.meter.reset();
    let sums = "for i in 1 2 3 4 5 6 7 8; do /bin/sha256sum /one & done; wait";
    let printed = containerd.run(&lazy, Snapshotter::Stargz, &["/bin/sh", "-c", sums])?.stdout;
    let line = format!("{}  /one\n", content::Digest::of(&noise(1, LEN)).hex());
    assert_eq!(printed, line.repeat(8));
    let (layers, counts) = (cluster.layers("lab", "esgz")?, cluster.registry.meter.counts());
    let layer = &layers.last().context("no layers")?.digest;
    let (mut ranges, mut sent) = (Vec::new(), 0);
    for access in counts.blobs().filter(|access| access.blob() == Some(layer)) {
        ranges.push(access.range.clone().unwrap_or_default());
        sent += access.bytes;
    }
    println!("{driver}: {ranges:?}");
    // The file is the first of its layer, and one chunk. What comes behind it may be read ahead.
    let first = |range: &String| range.strip_prefix("bytes=")?.split('-').next()?.parse::<usize>().ok();
    let of_file = ranges.iter().filter_map(first).filter(|first| *first < LEN).count();
    ensure!(of_file == 1, "{driver}: {of_file} requests for one chunk: {ranges:?}");
    ensure!(sent == counts.unique[layer].len(), "{driver}: bytes came twice: {ranges:?}");
    Ok(())
}

#[test]
fn eight_readers_of_one_cold_range_are_one_request_with_fuse() {
    cage::test(Needs::Containers, |cage| eight_readers(cage, "fuse"));
}

#[test]
fn eight_readers_of_one_cold_range_are_one_request_with_native() {
    cage::test(Needs::Containers, |cage| eight_readers(cage, "native"));
}

/// The snapshotter's root is a file system that fills up before a container reads more than there is room for.
fn full_disk(cage: &Cage, driver: &str) -> Result<()> {
    let root = cage.dir().join("node1/snapshots");
    std::fs::create_dir_all(&root)?;
    let disk = cage.dir().join("disk");
    std::fs::File::create(&disk)?.set_len(400 << 20)?;
    run(Command::new("mkfs.ext4").arg("-q").arg("-F").arg(&disk)).context("making a small disk")?;
    run(Command::new("mount").args(["-o", "loop"]).arg(&disk).arg(&root))?;
    let (image, sum) = big_file_image(11, 90_000_000)?;
    let cluster = cluster_with(cage, &image, options(driver))?;
    let (lazy, containerd) = (cluster.reference("lab:esgz"), &cluster.machines[0].containerd);
    containerd.rpull(&lazy)?;
    // The shell runs already when the rest of the disk goes.
    containerd.run(&lazy, Snapshotter::Stargz, &["/bin/sha256sum", "/bin/sh"])?;
    let room = rustix::fs::statvfs(&root)?;
    let filler = (room.f_bavail * room.f_frsize).saturating_sub(16 << 20);
    run(Command::new("fallocate").args(["-l", &filler.to_string()]).arg(root.join("filler")))?;
    for turn in 0..2 {
        let printed = containerd.run(&lazy, Snapshotter::Stargz, &["/bin/sha256sum", "/big"]);
        let printed = printed.with_context(|| format!("{driver}: turn {turn}"))?;
        assert_eq!(printed.stdout, sum_line(&sum), "{driver}: turn {turn}");
    }
    Ok(())
}

#[test]
fn a_full_disk_keeps_nobody_from_reading_with_fuse() {
    cage::test(Needs::Containers, |cage| full_disk(cage, "fuse"));
}

#[test]
fn a_full_disk_keeps_nobody_from_reading_with_native() {
    cage::test(Needs::Containers, |cage| full_disk(cage, "native"));
}
