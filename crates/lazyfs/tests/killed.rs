//! A node that is killed while it fills a layer: whatever is there afterwards is right.

// Clippy exempts test functions from these lints, and not their helpers.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation)]

mod common;

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use common::{Blob, Mood, Source, Tar, blob, noise, on_demand, quick};
use content::Urgency;
use lazyfs::{Layers, LayersOptions};

const CHUNK: usize = 16 * 1024;
const FILES: u64 = 200;

fn layer_blob() -> Blob {
    let mut tar = Tar::new();
    for number in 0..FILES {
        tar.file(&number.to_string(), 0o644, &noise(number + 1, CHUNK * 2));
    }
    blob(&tar.finish(), CHUNK as u32)
}

fn options() -> LayersOptions {
    LayersOptions { flush_after: Duration::ZERO, ..quick() }
}

/// The process that is killed: reads files one after another and says so.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by the other test"]
async fn child() {
    let Some(folder) = std::env::var_os("LAZYFS_TEST_FOLDER") else { return };
    let blob = layer_blob();
    let layers = Layers::open(Path::new(&folder), &options()).unwrap();
    let layer = layers.layer(on_demand(&blob, &Source::new(&blob))).await.unwrap();
    for number in 0..FILES {
        let inode = layer.toc().unwrap().find(number.to_string().as_bytes()).unwrap();
        layer.read(inode, 0, u32::MAX, Urgency::Blocking).await.unwrap();
        println!("read {number}");
        std::io::stdout().flush().unwrap();
    }
    std::future::pending::<()>().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_kill_every_chunk_is_right_or_absent() {
    let blob = layer_blob();
    let mut kept = 0;
    for files in [1, 2, 3, 5, 20, 70, 150, 199] {
        let folder = tempfile::tempdir().unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "child", "--nocapture"])
            .env("LAZYFS_TEST_FOLDER", folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let seen = lines.map(Result::unwrap).find(|line| line.ends_with(&format!("read {files}")));
        assert!(seen.is_some(), "the child did not read file {files}");
        child.kill().unwrap();
        child.wait().unwrap();

        let source = Source::new(&blob);
        source.set(Mood::Dead);
        let layers = Layers::open(folder.path(), &options()).unwrap();
        let layer = layers.layer(on_demand(&blob, &source)).await.unwrap();
        kept += layer.status().fetched;
        for number in 0..FILES {
            let inode = layer.toc().unwrap().find(number.to_string().as_bytes()).unwrap();
            for at in [0, CHUNK as u64] {
                if let Ok(bytes) = Arc::clone(&layer).read(inode, at, CHUNK as u32, Urgency::Background).await
                {
                    assert_eq!(bytes, noise(number + 1, CHUNK * 2)[at as usize..][..CHUNK]);
                }
            }
        }
        layers.shutdown().await;
    }
    assert!(kept > 0, "nothing ever survived a kill");
}
