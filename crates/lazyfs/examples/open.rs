//! How long a node takes to open, and mount, many layers whose tables of contents are on disk.
//!
//! ```text
//! open prepare DIR LAYERS FILES         writes the layers: nothing but tables, whose files are nowhere
//! open run DIR [none|image|fuse|native] [drop]
//!                                       opens all of them; reads their metadata images, or mounts them; `drop` begins
//!                                       with an empty page cache
//! ```
//!
//! `run` prints one line of JSON: layers, files, milliseconds until all are open, until all are mounted, and memory of
//! the process in KiB (`VmHWM`, `VmRSS`, and `RssAnon`, which is what it has for itself).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    missing_docs
)]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use content::{Digest, ReadError, ReadErrorKind};
use futures::StreamExt as _;
use lazyfs::keeper::KeepHere;
use lazyfs::mounter::{DriverChoice, Mounter, MounterOptions};
use lazyfs::{Layer, LayerSpec, Layers, LayersOptions, MountOptions, OpaqueXattr, Prefetch};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["prepare", dir, layers, files] => {
            prepare(Path::new(dir), layers.parse().unwrap(), files.parse().unwrap());
        }
        ["run", dir, ref rest @ ..] => {
            if rest.contains(&"drop") {
                rustix::fs::sync();
                std::fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
            }
            let how = rest.first().copied().filter(|how| *how != "drop").unwrap_or("none");
            run(Path::new(dir), how);
        }
        _ => {
            eprintln!("usage: open prepare DIR LAYERS FILES | open run DIR [none|image|fuse|native] [drop]");
            std::process::exit(2);
        }
    }
}

/// A table of `files` files, 20 in a directory, of 1 KB to 60 KB.
fn table(layer: usize, files: usize) -> String {
    let mut json = String::from(r#"{"version":1,"entries":["#);
    let mut offset = 1000;
    for file in 0..files {
        let directory = format!("usr/lib/package-{}/part-{}", file / 200, file / 20 % 10);
        if file % 20 == 0 {
            write!(json, r#"{{"name":"{directory}/","type":"dir","mode":493}},"#).unwrap();
        }
        let size = 1000 + file * 7919 % 60_000;
        let digest = Digest::of(format!("{layer} {file}").as_bytes());
        write!(
            json,
            r#"{{"name":"{directory}/module_{file}.py","type":"reg","size":{size},"mode":420,"modtime":"2024-01-01T00:00:00Z","offset":{offset},"digest":"{digest}","chunkDigest":"{digest}"}},"#
        )
        .unwrap();
        offset += size / 3 + 100;
    }
    json.truncate(json.len() - 1);
    json.push_str("]}");
    json
}

fn prepare(dir: &Path, layers: usize, files: usize) {
    let folder = dir.join("layers");
    for layer in 0..layers {
        let json = table(layer, files);
        let place = folder.join(Digest::of(json.as_bytes()).hex());
        std::fs::create_dir_all(&place).unwrap();
        std::fs::write(place.join("toc.json"), json).unwrap();
        let about = serde_json::json!({
            "layer": Digest::of(format!("{layer}").as_bytes()), "blob_len": 1_u64 << 40, "toc_offset": (1_u64 << 40) - 51,
        });
        std::fs::write(place.join("layer.json"), about.to_string()).unwrap();
    }
    // As after the first use: indexes and images are there.
    let began = Instant::now();
    runtime().block_on(async {
        let store = store(dir);
        for toc in tables(dir) {
            let layer = open(&store, toc).await;
            tokio::task::spawn_blocking(move || layer.metadata_file(OpaqueXattr::Trusted).map(drop))
                .await
                .unwrap()
                .unwrap();
        }
        store.shutdown().await;
    });
    println!("{}", serde_json::json!({"prepared": layers, "first_use_ms": ms(began.elapsed())}));
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap()
}

fn tables(dir: &Path) -> Vec<Digest> {
    let names = std::fs::read_dir(dir.join("layers")).unwrap().flatten();
    names.filter_map(|entry| format!("sha256:{}", entry.file_name().to_str()?).parse().ok()).collect()
}

fn store(dir: &Path) -> Arc<Layers> {
    // A store that throws nothing away, however full the disk.
    let options = LayersOptions { keep_free: 0, ..LayersOptions::default() };
    Layers::open(dir.join("layers"), &options).unwrap()
}

async fn open(store: &Layers, toc_digest: Digest) -> Arc<Layer> {
    let nowhere = || Err(ReadError::origin(ReadErrorKind::NotFound, "there is no blob"));
    let spec = LayerSpec {
        toc_digest,
        layer_digest: toc_digest,
        open: Arc::new(move || Box::pin(async move { nowhere() })),
        external_toc: None,
        prefetch: Prefetch { enabled: false, size: 0 },
        background: false,
    };
    store.layer(spec).await.unwrap()
}

fn run(dir: &Path, how: &str) {
    let began = Instant::now();
    runtime().block_on(async {
        let store = store(dir);
        let tables = tables(dir);
        let count = tables.len();
        let opening = futures::stream::iter(tables).map(|toc| open(&store, toc)).buffer_unordered(8);
        let layers: Vec<Arc<Layer>> = opening.collect().await;
        let opened = began.elapsed();
        let choice = match how {
            "fuse" => Some(DriverChoice::Fuse),
            "native" => Some(DriverChoice::Native),
            _ => None,
        };
        let mut mounts = Vec::new();
        if let Some(choice) = choice {
            let options =
                MounterOptions { choice, keep: Arc::new(KeepHere::default()), scratch: dir.join("scratch") };
            let mounter = Mounter::start(options).await.unwrap();
            let places: Vec<PathBuf> = (0..count).map(|number| dir.join(format!("mnt/{number}"))).collect();
            for place in &places {
                std::fs::create_dir_all(place).unwrap();
            }
            let options = MountOptions::default();
            let (mounter, options) = (&mounter, &options);
            let mounting = futures::stream::iter(layers.iter().zip(&places))
                .map(
                    |(layer, at)| async move { mounter.mount(Arc::clone(layer), at, options).await.unwrap() },
                )
                .buffer_unordered(8);
            mounts = mounting.collect().await;
        } else if how == "image" {
            let reading = futures::stream::iter(layers.iter().cloned())
                .map(|layer| {
                    tokio::task::spawn_blocking(move || layer.metadata_file(OpaqueXattr::Trusted).unwrap())
                })
                .buffer_unordered(8);
            let images: Vec<_> = reading.collect().await;
            assert!(images.iter().all(Result::is_ok));
        }
        let mounted = began.elapsed();
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let memory = |name: &str| -> u64 {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        let line = serde_json::json!({
            "how": how, "layers": count, "opened_ms": ms(opened), "all_ms": ms(mounted),
            "hwm_kib": memory("VmHWM"), "rss_kib": memory("VmRSS"), "anon_kib": memory("RssAnon"),
        });
        println!("{line}");
        for mount in &mounts {
            mount.unmount().await.unwrap();
        }
        drop((mounts, layers));
        store.shutdown().await;
    });
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap()
}
