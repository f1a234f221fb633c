//! Layers that the kernel shows by itself: every byte against the tar, and what becomes of readers when the process
//! that answers them is killed.
//!
//! Whoever reads is another process: this one answers.

// Clippy exempts test functions from these lints, and not their helpers.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation, clippy::panic)]

mod common;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, IntoRawFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::tree::{assert_same_tree, unpack};
use common::{Blob, CHUNK, Mood, Source, Tar, blob, everything, noise, off, on_demand, quick};
use lazyfs::fuzzing::{Native, NativeMount};
use lazyfs::keeper::{Keep, KeepHere};
use lazyfs::{Layer, LayerSpec, Layers, LayersOptions, OpaqueXattr};

/// Whether layers can be mounted natively here; says why not.
fn can_mount() -> bool {
    let folder = tempfile::tempdir().unwrap();
    let why = if rustix::process::geteuid().is_root() {
        match lazyfs::probe(folder.path()) {
            Ok(()) => return true,
            Err(error) => error.to_string(),
        }
    } else {
        "mounting needs root".to_owned()
    };
    assert!(std::env::var_os("PANTALA_E2E").is_none_or(|value| value != "require"), "{why}");
    eprintln!("SKIPPED: {why}");
    false
}

struct Mounted {
    native: Arc<Native>,
    layers: Arc<Layers>,
    layer: Arc<Layer>,
    mount: NativeMount,
    keep: Arc<dyn Keep>,
    root: PathBuf,
    folder: tempfile::TempDir,
}

impl Mounted {
    async fn new(spec: LayerSpec, options: LayersOptions) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let keep: Arc<dyn Keep> = Arc::new(KeepHere::default());
        let native = Native::start(Arc::clone(&keep)).unwrap();
        let layers = Layers::open_with(folder.path().join("store"), &options, Arc::clone(&keep)).unwrap();
        let layer = layers.layer(spec).await.unwrap();
        let root = folder.path().join("root");
        std::fs::create_dir(&root).unwrap();
        let mount = native.mount(Arc::clone(&layer), &root, OpaqueXattr::Trusted).await.unwrap();
        Self { native, layers, layer, mount, keep, root, folder }
    }

    async fn end(self) {
        self.mount.unmount().await.unwrap();
        // The kernel takes its time where others drop its caches.
        let until = Instant::now() + Duration::from_secs(10);
        while self.mount.is_alive() {
            assert!(Instant::now() < until, "something still shows the layer");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        drop(self.mount);
        drop(self.layer);
        self.native.leave().await;
        let kept = self.keep.names().unwrap();
        assert!(kept.is_empty() || others_mount(), "what nobody needs is forgotten, not {kept:?}");
        self.layers.shutdown().await;
    }
}

/// One of the ignored tests of this binary, as a process of its own.
fn this(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--ignored", "--exact", test, "--nocapture", "--test-threads=1"]);
    command.stdin(Stdio::null());
    command
}

#[test]
#[ignore = "run by another test"]
fn compare() {
    let Some(ours) = std::env::var_os("LAZYFS_TEST_OURS") else { return };
    let theirs = std::env::var_os("LAZYFS_TEST_THEIRS").unwrap();
    assert_same_tree(Path::new(&ours), Path::new(&theirs));
}

/// Runs a command; its output if it succeeds.
fn run(command: &mut Command) -> Result<Vec<u8>, String> {
    let output = command.stdin(Stdio::null()).output().unwrap();
    if output.status.success() {
        Ok(output.stdout)
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

fn cat(path: PathBuf) -> impl Future<Output = Result<Vec<u8>, String>> {
    off(move || run(Command::new("cat").arg(path)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mounted_layer_is_the_unpacked_tar() {
    if !can_mount() {
        return;
    }
    let tar = everything();
    let blob = blob(&tar, CHUNK as u32);
    let source = Source::new(&blob);
    let mounted = Mounted::new(on_demand(&blob, &source), quick()).await;
    let unpacked = tempfile::tempdir().unwrap();
    unpack(&tar, unpacked.path());
    for turn in 0..2 {
        let (ours, theirs) = (mounted.root.clone(), unpacked.path().to_owned());
        let status = off(move || {
            this("compare").env("LAZYFS_TEST_OURS", ours).env("LAZYFS_TEST_THEIRS", theirs).status().unwrap()
        });
        assert!(status.await.success(), "turn {turn}");
        // From memory, and from the disk.
        std::fs::write("/proc/sys/vm/drop_caches", b"1").unwrap();
    }
    assert!(mounted.layer.is_complete());
    // Durable at last, and then nobody is asked.
    let until = Instant::now() + Duration::from_secs(10);
    while mounted.keep.names().unwrap().iter().any(|name| name.starts_with("data-")) {
        assert!(Instant::now() < until, "the guard was never taken off");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let before = mounted.native.events();
    std::fs::write("/proc/sys/vm/drop_caches", b"1").unwrap();
    let all = cat(mounted.root.join(format!("sizes/{}", 3 * CHUNK))).await.unwrap();
    assert_eq!(all, noise(3 * CHUNK as u64, 3 * CHUNK));
    assert_eq!(mounted.native.events(), before, "the kernel asks though all is there");
    mounted.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_had_is_an_error_and_can_be_had_later() {
    if !can_mount() {
        return;
    }
    let content = noise(1, 10 * CHUNK);
    let blob = blob(&Tar::new().file("file", 0o644, &content).finish(), CHUNK as u32);
    let source = Source::new(&blob);
    let mounted = Mounted::new(on_demand(&blob, &source), quick()).await;
    for mood in [Mood::Dead, Mood::Liar] {
        source.set(mood);
        let error = cat(mounted.root.join("file")).await.unwrap_err();
        assert!(error.contains("Input/output error"), "{error}");
    }
    source.set(Mood::Honest);
    assert_eq!(cat(mounted.root.join("file")).await.unwrap(), content);
    mounted.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_chunk_is_in_nobodys_way() {
    if !can_mount() {
        return;
    }
    let mut tar = Tar::new();
    for number in 0..8u64 {
        tar.file(&number.to_string(), 0o644, &noise(number + 1, 2 << 20));
    }
    let blob = blob(&tar.finish(), 1 << 20);
    let source = Source::new(&blob);
    let mounted = Mounted::new(on_demand(&blob, &source), quick()).await;
    assert_eq!(cat(mounted.root.join("0")).await.unwrap(), noise(1, 2 << 20));
    source.close_gate();
    let readers: Vec<_> =
        (1..8).map(|number| tokio::spawn(cat(mounted.root.join(number.to_string())))).collect();
    source.until(|traffic| traffic.under_way >= 7).await;
    std::fs::write("/proc/sys/vm/drop_caches", b"1").unwrap();
    assert_eq!(
        cat(mounted.root.join("0")).await.unwrap(),
        noise(1, 2 << 20),
        "what is there is read past the others"
    );
    source.open_gate();
    for (number, reader) in (1u64..).zip(readers) {
        assert_eq!(reader.await.unwrap().unwrap(), noise(number + 1, 2 << 20));
    }
    mounted.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unmounted_layer_is_served_as_long_as_it_is_open() {
    if !can_mount() {
        return;
    }
    let content = noise(1, 64 * CHUNK);
    let blob = blob(&Tar::new().file("file", 0o644, &content).finish(), CHUNK as u32);
    let source = Source::new(&blob);
    let mounted = Mounted::new(on_demand(&blob, &source), quick()).await;
    // Opens the file, says so, and reads it when told to.
    let mut reader = Command::new("sh")
        .args(["-c", "exec 3<\"$0\"; echo open; read go; cat <&3"])
        .arg(mounted.root.join("file"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut opened = [0; 5];
    reader.stdout.as_mut().unwrap().read_exact(&mut opened).unwrap();
    mounted.mount.unmount().await.unwrap();
    assert!(mounted.mount.is_alive());
    let Mounted { native, layers, layer, mount, keep, folder, .. } = mounted;
    drop((mount, layer));
    tokio::time::sleep(Duration::from_millis(700)).await;
    reader.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    let output = off(move || reader.wait_with_output().unwrap()).await;
    assert!(output.status.success() && output.stdout == content);
    let until = Instant::now() + Duration::from_secs(5);
    while !layers.all().is_empty() {
        assert!(Instant::now() < until, "the layer is held though nobody reads it");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    native.leave().await;
    assert_eq!(keep.names().unwrap(), Vec::<String>::new());
    layers.shutdown().await;
    drop(folder);
}

// ---- A process that is killed while it answers, and the next one -------------------------------------------------

const FILES: u64 = 8;
const FILE: usize = 1 << 20;

fn content_of(layer: u64, file: u64) -> Vec<u8> {
    noise(layer * 1000 + file + 1, FILE)
}

fn layer_blob(layer: u64) -> Blob {
    let mut tar = Tar::new();
    for file in 0..FILES {
        tar.file(&file.to_string(), 0o644, &content_of(layer, file));
    }
    blob(&tar.finish(), CHUNK as u32)
}

/// Keeps descriptors in the process that runs the test, for those that are killed: they ask over a socket, and fetch
/// and give descriptors by their numbers.
#[derive(Debug)]
struct Remote(PathBuf);

impl Remote {
    fn ask(&self, request: &str) -> std::io::Result<String> {
        let mut socket = UnixStream::connect(&self.0)?;
        socket.write_all(format!("{request}\n").as_bytes())?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        Ok(answer.trim().to_owned())
    }
}

fn steal(pid: u32, number: i32) -> std::io::Result<OwnedFd> {
    use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
    let process = pidfd_open(Pid::from_raw(pid.cast_signed()).unwrap(), PidfdFlags::empty())?;
    Ok(pidfd_getfd(process, number, PidfdGetfdFlags::empty())?)
}

impl Keep for Remote {
    fn names(&self) -> std::io::Result<Vec<String>> {
        Ok(self.ask("names")?.split_whitespace().map(str::to_owned).collect())
    }

    fn get(&self, name: &str) -> std::io::Result<Option<OwnedFd>> {
        let answer = self.ask(&format!("get {name}"))?;
        let mut words = answer.split_whitespace();
        let (Some(pid), Some(number)) = (words.next(), words.next()) else { return Ok(None) };
        steal(pid.parse().unwrap(), number.parse().unwrap()).map(Some)
    }

    fn keep(&self, name: &str, descriptor: BorrowedFd<'_>) -> std::io::Result<()> {
        let request = format!("keep {name} {} {}", std::process::id(), descriptor.as_raw_fd());
        assert_eq!(self.ask(&request)?, "kept");
        Ok(())
    }

    fn forget(&self, name: &str) -> std::io::Result<()> {
        self.ask(&format!("forget {name}")).map(drop)
    }
}

/// Serves [`Remote`] from `keep`, until the process ends.
fn serve_remote(path: &Path, keep: Arc<KeepHere>) {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let mut socket = socket.unwrap();
            let mut request = String::new();
            // Whoever is killed while it asks has asked nothing.
            if BufReader::new(&socket).read_line(&mut request).is_err() {
                continue;
            }
            let words: Vec<&str> = request.split_whitespace().collect();
            let answer = match words.as_slice() {
                ["names"] => keep.names().unwrap().join(" "),
                ["get", name] => match keep.get(name).unwrap() {
                    // Lives on under this number until the answer was used.
                    Some(fd) => format!("{} {}", std::process::id(), fd.into_raw_fd()),
                    None => String::new(),
                },
                ["keep", name, pid, number] => {
                    match steal(pid.parse().unwrap(), number.parse().unwrap()) {
                        Ok(fd) => keep.keep(name, fd.as_fd()).unwrap(),
                        Err(_) => continue,
                    }
                    "kept".to_owned()
                }
                ["forget", name] => {
                    keep.forget(name).unwrap();
                    String::new()
                }
                _ => continue,
            };
            let _ = socket.write_all(answer.as_bytes());
        }
    });
}

/// A source that takes its time, so that there is always something unanswered.
struct Slow(Arc<dyn content::BlobSource>);

#[async_trait::async_trait]
impl content::BlobSource for Slow {
    fn id(&self) -> &content::ContentId {
        self.0.id()
    }

    fn len(&self) -> u64 {
        self.0.len()
    }

    async fn read_traced(
        &self,
        range: content::ByteRange,
        urgency: content::Urgency,
    ) -> Result<(bytes::Bytes, content::Provenance), content::ReadError> {
        tokio::time::sleep(Duration::from_millis(range.start / 4096 % 40)).await;
        self.0.read_traced(range, urgency).await
    }

    fn stream(self: Arc<Self>, range: content::ByteRange, urgency: content::Urgency) -> content::ByteStream {
        content::stream_by_reads(self, range, urgency, 8 << 20, 1)
    }
}

/// The process that is killed: shows as many layers as it is told, and answers.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by another test"]
async fn serve() {
    let Some(folder) = std::env::var_os("LAZYFS_TEST_FOLDER").map(PathBuf::from) else { return };
    let layers_wanted: u64 = std::env::var("LAZYFS_TEST_LAYERS").unwrap().parse().unwrap();
    let is_last = std::env::var_os("LAZYFS_TEST_LAST").is_some();
    let keep: Arc<dyn Keep> = Arc::new(Remote(folder.join("keep")));
    let native = Native::start(Arc::clone(&keep)).unwrap();
    let options = LayersOptions { flush_after: Duration::from_millis(200), ..quick() };
    let layers = Layers::open_with(folder.join("store"), &options, keep).unwrap();
    let mut mounts = Vec::new();
    for number in 0..layers_wanted {
        let blob = layer_blob(number);
        let source = Source::new(&blob);
        let opener = source.opener();
        let open: lazyfs::OpenSource = Arc::new(move || {
            let opening = opener();
            Box::pin(async move {
                let blob = opening.await?;
                Ok(content::OpenBlob { source: Arc::new(Slow(blob.source)), tail: blob.tail })
            })
        });
        let layer = layers.layer(LayerSpec { open, ..on_demand(&blob, &source) }).await.unwrap();
        let root = folder.join(format!("root-{number}"));
        let before = native.take_over(Arc::clone(&layer), &root, OpaqueXattr::Trusted).await.unwrap();
        let mount = if let Some(mount) = before {
            mount
        } else {
            println!("mounting {number}");
            native.mount(layer, &root, OpaqueXattr::Trusted).await.unwrap()
        };
        mounts.push(mount);
    }
    println!("ready {}", native.adopted());
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    if !is_last {
        native.hand_over().await;
        drop(mounts);
        return;
    }
    for mount in &mounts {
        mount.unmount().await.unwrap();
    }
    drop(mounts);
    native.leave().await;
    layers.shutdown().await;
    println!("left");
}

/// Reads at random places and compares every byte, until it is told to end. Prints its longest wait.
#[test]
#[ignore = "run by another test"]
fn read_at_random() {
    let Some(folder) = std::env::var_os("LAZYFS_TEST_FOLDER").map(PathBuf::from) else { return };
    let layers: u64 = std::env::var("LAZYFS_TEST_LAYERS").unwrap().parse().unwrap();
    let contents: Vec<Vec<Vec<u8>>> =
        (0..layers).map(|layer| (0..FILES).map(|file| content_of(layer, file)).collect()).collect();
    let stop = folder.join("stop");
    let (mut longest, mut reads) = (Duration::ZERO, 0u64);
    let mut random = u64::from(std::process::id()).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    while !stop.exists() && folder.exists() {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let (layer, file) = (random % layers, (random >> 16) % FILES);
        let at = (random >> 24) as usize % FILE;
        let len = if random >> 60 == 0 { 300_000 } else { 5000 }.min(FILE - at);
        let path = folder.join(format!("root-{layer}/{file}"));
        let Ok(file_there) = std::fs::File::open(&path) else {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        };
        let begun = Instant::now();
        let mut bytes = vec![0; len];
        file_there
            .read_exact_at(&mut bytes, at as u64)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        longest = longest.max(begun.elapsed());
        assert!(
            bytes == contents[layer as usize][file as usize][at..at + len],
            "wrong bytes in {} at {at}",
            path.display()
        );
        reads += 1;
        if (random >> 58).is_multiple_of(4) {
            let _ = rustix::fs::fadvise(&file_there, 0, None, rustix::fs::Advice::DontNeed);
        }
    }
    println!("{reads} reads, longest {} ms", longest.as_millis());
}

/// Takes away what a failed test leaves.
struct Cleaner(PathBuf, u64);

impl Drop for Cleaner {
    fn drop(&mut self) {
        let _ = std::fs::write(self.0.join("stop"), b"");
        for layer in 0..self.1 {
            let root = self.0.join(format!("root-{layer}"));
            while rustix::mount::unmount(&root, rustix::mount::UnmountFlags::DETACH).is_ok() {}
        }
    }
}

#[test]
fn killed_in_the_midst_of_events_no_reader_sees_a_wrong_byte() {
    if !can_mount() {
        return;
    }
    let generations: u64 = std::env::var("PANTALA_CRASHES").map_or(12, |crashes| crashes.parse().unwrap());
    let layers_of = |generation: u64| 1 + generation / 2;
    let folder = tempfile::tempdir().unwrap();
    let keep = Arc::new(KeepHere::default());
    serve_remote(&folder.path().join("keep"), Arc::clone(&keep));
    let all = layers_of(generations);
    for layer in 0..all {
        std::fs::create_dir(folder.path().join(format!("root-{layer}"))).unwrap();
    }
    let _cleaner = Cleaner(folder.path().to_owned(), all);
    let start = |test: &str, layers: u64| {
        let mut command = this(test);
        command.env("LAZYFS_TEST_FOLDER", folder.path()).env("LAZYFS_TEST_LAYERS", layers.to_string());
        command
    };
    let ready = |child: &mut Child| {
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut mounted = 0;
        loop {
            let mut line = String::new();
            assert!(lines.read_line(&mut line).unwrap() > 0, "the process that serves ended");
            mounted += u64::from(line.contains("mounting "));
            if let Some((_, adopted)) = line.split_once("ready ") {
                return (mounted, adopted.trim().parse::<usize>().unwrap(), lines);
            }
        }
    };
    let readers: Vec<Child> =
        (0..5).map(|_| start("read_at_random", all).stdout(Stdio::piped()).spawn().unwrap()).collect();
    let (mut mounted, mut adopted) = (0, 0);
    for generation in 0..generations {
        let mut child = start("serve", layers_of(generation));
        let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let ready = ready(&mut child);
        mounted += ready.0;
        adopted += ready.1;
        std::thread::sleep(Duration::from_millis(generation * 37 % 150));
        if generation % 4 == 3 {
            // Or it goes by itself, in the midst of things all the same.
            child.stdin.take().unwrap().write_all(b"hand over\n").unwrap();
            assert!(child.wait().unwrap().success());
        } else {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
    let mut last = start("serve", all);
    let mut last =
        last.env("LAZYFS_TEST_LAST", "1").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (also_mounted, also_adopted, _stdout) = ready(&mut last);
    mounted += also_mounted;
    adopted += also_adopted;
    std::thread::sleep(Duration::from_millis(300));
    std::fs::write(folder.path().join("stop"), b"").unwrap();
    for reader in readers {
        let output = reader.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        eprintln!("{}", text.lines().find(|line| line.contains("longest")).unwrap_or(&text));
        assert!(output.status.success());
    }
    last.stdin.take().unwrap().write_all(b"leave\n").unwrap();
    assert!(last.wait().unwrap().success());
    assert_eq!(mounted, all, "each layer was mounted once");
    eprintln!("{adopted} events had no answer when their process was killed");
    assert!(adopted > 0, "nobody was ever waiting");
    // A process that was killed while it mounted left a superblock of which no more is known than that it may be any
    // of those that came later; and other tests have theirs.
    let kept = keep.names().unwrap();
    assert!(kept.is_empty() || others_mount(), "{kept:?}");
}

fn others_mount() -> bool {
    let listing = std::fs::read_dir("/sys/class/bdi").unwrap();
    listing.flatten().any(|entry| entry.file_name().as_encoded_bytes().starts_with(b"erofs-"))
}

/// Prints what an event costs whose bytes are there, and how fast a file is read whose bytes are not.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "for people, with --nocapture"]
async fn speed() {
    if !can_mount() {
        return;
    }
    let content = noise(1, 64 << 20);
    let blob = blob(&Tar::new().file("big", 0o644, &content).file("never", 0o644, b"read").finish(), 4 << 20);
    let source = Source::new(&blob);
    let mounted = Mounted::new(on_demand(&blob, &source), quick()).await;
    let script = "
import os, sys, time, random
path = sys.argv[1]
fd = os.open(path, os.O_RDONLY)
begun = time.time()
while os.read(fd, 1 << 20): pass
print('cold: %.0f MB/s' % (64 * 1.048576 / (time.time() - begun)))
os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
pages = random.sample(range(16384), 4000)
begun = time.time()
for page in pages: os.pread(fd, 4096, page * 4096)
print('event: %.1f us' % ((time.time() - begun) / 4000 * 1e6))
begun = time.time()
for page in pages: os.pread(fd, 4096, page * 4096)
print('cached: %.1f us' % ((time.time() - begun) / 4000 * 1e6))
os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_NORMAL)
os.lseek(fd, 0, 0)
begun = time.time()
while os.read(fd, 1 << 20): pass
print('present, sequential: %.0f MB/s' % (64 * 1.048576 / (time.time() - begun)))
";
    let path = mounted.root.join("big");
    let said = off(move || run(Command::new("python3").args(["-c", script]).arg(path))).await.unwrap();
    eprint!("{}", String::from_utf8_lossy(&said));
    eprintln!("{} events", mounted.native.events());
    mounted.end().await;
}
