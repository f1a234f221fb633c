//! How often lazy containers ask a registry, and what they do when there is no room for the answer.

// Helpers of tests may fail as tests do.
#![allow(clippy::indexing_slicing)]

use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use content::{ByteRange, RangeSet};
use e2e::alone::{Alone, mirrors};
use e2e::{base_layer, big_file_image, cluster_with, noise, sum_line};
use estargz::{TailState, Toc, TocLimits};
use testkit::cage::{self, Cage, Needs};
use testkit::cluster::{Cluster, ClusterOptions, LayerDescriptor};
use testkit::containerd::{Containerd, Snapshotter};
use testkit::image::{Entry, Image, layer};
use testkit::node::Pantala;
use testkit::process::run;

/// What is asked for of a blob's end, to find its table of contents in it.
const TAIL: u64 = 512 << 10;

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

/// What the registry sends for a started container is what it touches: 1.1 times the compressed chunks, and the TOCs.
fn bytes_of_a_start(cage: &Cage, driver: &str) -> Result<()> {
    // Files of many sizes, so that neighbours of what is read could come along.
    let mut files = vec![Entry::dir("data")];
    for (number, len) in (0..).zip([100, 3000, 40_000, 9_000_000, 200_000, 70_000, 6_000_000, 500, 120_000]) {
        files.push(Entry::file(&format!("data/{number}"), noise(number, len)));
    }
    let cluster = cluster_with(cage, &Image::new(&[base_layer()?, layer(&files)?]), options(driver))?;
    let lazy = cluster.reference("lab:esgz");
    let program = "/bin/sha256sum /data/1 /data/5; /bin/head -c 100 /data/3 > /dev/null; /bin/ls /data";
    let start = |containerd: &Containerd| -> Result<()> {
        containerd.rpull(&lazy)?;
        containerd.run(&lazy, Snapshotter::Stargz, &["/bin/sh", "-c", program]).map(drop)
    };
    // A node says what was touched; it fetches whole pieces, so that others can have them too.
    start(&cluster.machines[0].containerd)?;
    let status = cluster.machines[0].node.status()?;
    let by_pieces = cluster.registry.meter.reset().blob_bytes();

    let name = cluster.registry.name();
    let config = options(driver).snapshotter_extra + "\n" + &mirrors(&name, &[&name]);
    let (host, dir) = (cluster.network.host("alone")?, cage.dir().join("alone"));
    let alone = Alone::start(cage, &Pantala::locate()?, &host, &dir, &config)?;
    start(&alone.containerd)?;
    let counts = cluster.registry.meter.counts();

    let layers = cluster.layers("lab", "esgz")?;
    let (mut touched, mut tocs) = (0, 0);
    for (layer, read) in layers.iter().zip([None, Some([("data/1", 0), ("data/5", 0), ("data/3", 100)])]) {
        let blob = Blob::read(&cluster, layer)?;
        tocs += blob.toc_len;
        touched += if let Some(files) = read {
            blob.touched(&files)?
        } else {
            // Nearly all of it: what is compressed is taken to be as much smaller everywhere.
            let shown = status["layers"].as_array().context("no layers")?;
            let shown = shown.iter().find(|shown| shown["digest"] == layer.digest.as_str());
            let shown = shown.with_context(|| format!("no layer {} in {status}", layer.digest))?;
            let number = |key: &str| shown[key].as_u64().context("no number");
            blob.compressed() * number("touched")? / number("size")?
        };
        let sent = counts.unique.get(&layer.digest).map_or(0, RangeSet::len);
        println!("{driver}: {sent} bytes of a layer; until now {touched} touched, {tocs} of TOCs");
    }
    let is_layer = |digest: &str| layers.iter().any(|layer| layer.digest == digest);
    let sent = counts.bytes_of(is_layer);
    // A TOC is asked for before anybody knows how long it is; what comes with it is not asked for as a chunk.
    let ends = u64::try_from(layers.len())? * TAIL;
    let mut of_ends = 0;
    let end = |range: &Option<String>| range.as_ref().is_some_and(|range| range.starts_with("bytes=-"));
    for access in counts.blobs().filter(|access| access.blob().is_some_and(is_layer) && end(&access.range)) {
        of_ends += access.bytes;
    }
    println!(
        "{driver}: {sent} bytes, {of_ends} of them ends of blobs; {touched} were touched, {tocs} are TOCs"
    );
    println!("{driver}: {by_pieces} bytes where nodes share pieces");
    ensure!(of_ends <= ends.max(tocs), "{driver}: {of_ends} bytes for tables of contents");
    let (sent, most) = (sent - of_ends, touched * 11 / 10);
    ensure!(sent <= most, "{driver}: {sent} bytes of chunks were sent, where {most} would do");
    // Pieces have 64 KiB, and there are two for each end of what is read.
    let most = most + ends + 64 * 1024 * 2 * 16;
    ensure!(by_pieces <= most, "{driver}: {by_pieces} bytes were sent, where {most} would do");
    alone.containerd.remove_image(&lazy)
}

/// A blob, and where its chunks lie.
struct Blob {
    toc: Toc,
    /// Bytes behind the last chunk: TOC and footer.
    toc_len: u64,
}

impl Blob {
    fn read(cluster: &Cluster, layer: &LayerDescriptor) -> Result<Self> {
        let path = format!("/v2/lab/blobs/{}", layer.digest);
        let blob = testkit::http::get(cluster.registry.back(), &path, &[])?.success()?.body;
        let len = blob.len() as u64;
        let TailState::Toc { json, toc_offset, .. } = estargz::open_tail(&blob, len)? else {
            bail!("no table of contents in {}", layer.digest)
        };
        let toc = Toc::parse(&json, toc_offset, &TocLimits::default())?;
        Ok(Self { toc, toc_len: len - toc_offset })
    }

    /// Compressed bytes of all chunks.
    fn compressed(&self) -> u64 {
        let mut all = RangeSet::default();
        self.toc.chunks().for_each(|chunk| all.insert(chunk.blob));
        all.len()
    }

    /// Compressed bytes of the chunks of the first bytes of some files; 0 is all of a file.
    fn touched(&self, files: &[(&str, u64)]) -> Result<u64> {
        let mut touched = RangeSet::default();
        for (path, len) in files {
            let inode = self.toc.find(path.as_bytes()).with_context(|| format!("no {path}"))?;
            let len = if *len == 0 { u64::MAX } else { *len };
            for number in self.toc.chunks_of(inode, ByteRange::new(0, len)) {
                touched.insert(self.toc.chunk(number).context("no such chunk")?.blob);
            }
        }
        Ok(touched.len())
    }
}

#[test]
fn a_started_container_costs_the_registry_what_it_touches_with_fuse() {
    cage::test(Needs::Containers, |cage| bytes_of_a_start(cage, "fuse"));
}

#[test]
fn a_started_container_costs_the_registry_what_it_touches_with_native() {
    cage::test(Needs::Containers, |cage| bytes_of_a_start(cage, "native"));
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
