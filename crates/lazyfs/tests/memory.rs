//! What a layer costs in memory. In a program of its own, because all of its allocations are counted.

// Clippy exempts test functions from these lints, and not their helpers.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod common;

use common::{Source, Tar, blob, on_demand, quick};
use lazyfs::{Layers, OpaqueXattr};
use peak_alloc::PeakAlloc;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

const FILES: usize = 10_000;

#[tokio::test]
async fn a_file_costs_less_than_150_bytes_and_next_to_nothing_if_the_kernel_has_its_name() {
    let mut tar = Tar::new();
    for number in 0..FILES {
        let name = format!("usr/lib/package-{}/module_{number}.py", number / 40);
        tar.file(&name, 0o644, format!("content of {number}").as_bytes());
    }
    let blob = blob(&tar.finish(), 0);
    let source = Source::new(&blob);
    let folder = tempfile::tempdir().unwrap();
    let layers = Layers::open(folder.path(), &quick()).unwrap();
    let layer = layers.layer(on_demand(&blob, &source)).await.unwrap();
    drop(layer.metadata_file(OpaqueXattr::Trusted).unwrap());
    drop(layer);
    layers.shutdown().await;

    let layers = Layers::open(folder.path(), &quick()).unwrap();
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    let layer = layers.layer(on_demand(&blob, &source)).await.unwrap();
    drop(layer.metadata_file(OpaqueXattr::Trusted).unwrap());
    let peak = MEMORY.peak_usage() - before;
    let native = MEMORY.current_usage() - before;
    let tree = layer.toc().unwrap();
    let fuse = MEMORY.current_usage() - before;
    eprintln!("for {FILES} files: {native} bytes, at the most {peak}; with their names {fuse}");
    assert!(native < 8 * FILES, "without names: {native}");
    assert!(peak < 60 * FILES, "while it is opened and its image checked: {peak}");
    assert!(fuse < 150 * FILES, "with names: {fuse}");
    drop(tree);
    assert!(MEMORY.current_usage() - before < 8 * FILES, "names go with who needs them");
    layers.shutdown().await;
}
