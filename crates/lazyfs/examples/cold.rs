//! How fast a cold file arrives: a registry on loopback, a layer mounted by FUSE, and another process that reads.
//!
//! ```text
//! cold [--mib 300] [--kind mixed|noise|text] [--random 50]
//! ```
//!
//! Prints, in milliseconds and MB/s: the first 4 KiB, the whole file in order, random reads of 4 KiB of a file
//! that is cold again, and what was asked of the registry for each. Needs root and `docker-registry`.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    missing_docs
)]

use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use content::{ContentOpener as _, DirectOpener};
use lazyfs::{LayerSpec, Layers, LayersOptions, MountOptions, OpenSource, Prefetch, TAIL};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.get(1).is_some_and(|word| word == "read") {
        return read(Path::new(&arguments[2]), &arguments[3], arguments[4].parse().unwrap());
    }
    let value = |name: &str, default: &str| {
        let at = arguments.iter().position(|word| word == name);
        at.and_then(|at| arguments.get(at + 1)).map_or(default.to_owned(), Clone::clone)
    };
    let mib: usize = value("--mib", "300").parse().unwrap();
    let kind = value("--kind", "mixed");
    let random: usize = value("--random", "50").parse().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(measure(mib, &kind, random));
}

/// The part of another process.
fn read(path: &Path, how: &str, count: usize) {
    let file = std::fs::File::open(path).unwrap();
    let len = file.metadata().unwrap().len();
    let mut buffer = vec![0; 1 << 20];
    let started = Instant::now();
    match how {
        "first" => {
            file.read_exact_at(&mut buffer[..4096], 0).unwrap();
            println!("first 4 KiB: {:.1} ms", started.elapsed().as_secs_f64() * 1e3);
        }
        "all" => {
            let mut file = file;
            let mut total = 0;
            loop {
                match file.read(&mut buffer).unwrap() {
                    0 => break,
                    read => total += read,
                }
            }
            let seconds = started.elapsed().as_secs_f64();
            println!("in order: {:.0} MB/s ({seconds:.2} s)", total as f64 / 1e6 / seconds);
        }
        _ => {
            let mut state = 0x9e37_79b9_7f4a_7c15_u64;
            let mut worst = Duration::ZERO;
            for _ in 0..count {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let at = (state >> 20) % (len / 4096) * 4096;
                let one = Instant::now();
                file.read_exact_at(&mut buffer[..4096], at).unwrap();
                worst = worst.max(one.elapsed());
            }
            let each = started.elapsed().as_secs_f64() * 1e3 / count as f64;
            println!("random 4 KiB: {each:.1} ms each, worst {:.1} ms", worst.as_secs_f64() * 1e3);
        }
    }
}

/// `mixed`: of every 64 bytes 16 repeat; gzip makes some 70 % of it. `noise`: nothing to gain. `text`: a third.
fn content(kind: &str, len: usize) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252_u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut data = Vec::with_capacity(len + 64);
    let words: Vec<Vec<u8>> = (0..4096)
        .map(|_| (0..3 + next() % 9).map(|_| b'a' + (next() % 26) as u8).chain([b' ']).collect())
        .collect();
    while data.len() < len {
        match kind {
            "noise" => data.extend_from_slice(&next().to_le_bytes()),
            "text" => data.extend_from_slice(&words[(next() % 4096) as usize]),
            _ => {
                for _ in 0..6 {
                    data.extend_from_slice(&next().to_le_bytes());
                }
                data.extend_from_slice(b"the same 16 byte");
            }
        }
    }
    data.truncate(len);
    data
}

struct Registry {
    child: Child,
    host: String,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A registry that has `blob` in the repository `test`: its files are written where it looks for them.
fn registry(folder: &Path, digest: &content::Digest, blob: &[u8]) -> Registry {
    let root = folder.join("data/docker/registry/v2");
    let hex = digest.hex();
    let data = root.join(format!("blobs/sha256/{}/{hex}", &hex[..2]));
    std::fs::create_dir_all(&data).unwrap();
    std::fs::write(data.join("data"), blob).unwrap();
    let link = root.join(format!("repositories/test/_layers/sha256/{hex}"));
    std::fs::create_dir_all(&link).unwrap();
    std::fs::write(link.join("link"), digest.to_string()).unwrap();
    let config = format!(
        "version: 0.1\nlog:\n  level: info\n  formatter: json\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:0\n",
        folder.join("data").display()
    );
    let path = folder.join("config.yml");
    std::fs::write(&path, config).unwrap();
    let mut child = Command::new("docker-registry")
        .args(["serve".as_ref(), path.as_os_str()])
        .env("OTEL_TRACES_EXPORTER", "none")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let host = loop {
        let line = lines.next().unwrap().unwrap();
        if let Some((_, rest)) = line.split_once("listening on ") {
            break rest.chars().take_while(|c| c.is_ascii_digit() || matches!(c, '.' | ':')).collect();
        }
    };
    std::thread::spawn(move || lines.for_each(drop));
    Registry { child, host }
}

fn proc_line(file: &str, key: &str) -> u64 {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or(0)
}

/// User and system time of a process, in milliseconds.
fn cpu(pid: u32) -> (u64, u64) {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let rest = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    let words: Vec<&str> = rest.split_whitespace().collect();
    let ticks = |at: usize| words.get(at).and_then(|word| word.parse::<u64>().ok()).unwrap_or(0) * 10;
    (ticks(11), ticks(12))
}

async fn measure(mib: usize, kind: &str, random: usize) {
    let folder = tempfile::tempdir().unwrap();
    let data = content(kind, mib << 20);
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(data.len() as u64);
    tar.append_data(&mut header, "large", data.as_slice()).unwrap();
    let tar = tar.into_inner().unwrap();
    drop(data);
    let mut blob = Vec::new();
    let options = estargz::Options { chunk_size: 4 << 20, ..estargz::Options::default() };
    let built = estargz::build(tar.as_slice(), &mut blob, &options).unwrap();
    println!("{kind}: {mib} MiB, compressed {:.1} MB", blob.len() as f64 / 1e6);
    drop(tar);
    let registry = registry(folder.path(), &built.digest, &blob);
    drop(blob);
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let client = registry::Client::new(registry::ClientConfig::default()).unwrap();
    let reference: registry::Reference = format!("{}/test:latest", registry.host).parse().unwrap();
    let (opener, digest) = (client.clone(), built.digest);
    let open: OpenSource = Arc::new(move || {
        let origin = opener.origin(&reference, &digest, None);
        Box::pin(async move { DirectOpener.open(origin, TAIL).await })
    });
    for how in ["first", "all", "random"] {
        let store = folder.path().join(how);
        let layers = Layers::open(&store, &LayersOptions::default()).unwrap();
        let spec = LayerSpec {
            toc_digest: built.toc_digest,
            layer_digest: built.digest,
            open: Arc::clone(&open),
            external_toc: None,
            prefetch: Prefetch { enabled: false, size: 0 },
            background: false,
        };
        let opened = Instant::now();
        let layer = layers.layer(spec).await.unwrap();
        let opened = opened.elapsed().as_secs_f64() * 1e3;
        let at = folder.path().join(format!("{how}.mount"));
        std::fs::create_dir(&at).unwrap();
        let mount = lazyfs::mount(Arc::clone(&layer), &at, &MountOptions::default()).await.unwrap();
        let (before, used) = (client.usage(), cpu(std::process::id()));
        let theirs = cpu(registry.child.id());
        reader(&at.join("large"), how, random).await;
        let (after, now, then) = (client.usage(), cpu(std::process::id()), cpu(registry.child.id()));
        println!(
            "  opened in {opened:.1} ms, {} requests, {:.1} MB; cpu here {}+{} ms, registry {}+{} ms; peak {} MB",
            after.requests - before.requests,
            (after.bytes - before.bytes) as f64 / 1e6,
            now.0 - used.0,
            now.1 - used.1,
            then.0 - theirs.0,
            then.1 - theirs.1,
            proc_line("/proc/self/status", "VmHWM") / 1024
        );
        mount.unmount().await.unwrap();
        drop((mount, layer));
        layers.shutdown().await;
    }
}

async fn reader(path: &PathBuf, how: &str, count: usize) {
    let this = std::env::current_exe().unwrap();
    let mut command = Command::new(this);
    command.arg("read").arg(path).arg(how).arg(count.to_string());
    tokio::task::spawn_blocking(move || command.status()).await.unwrap().unwrap();
}
