//! The journal, and what a process finds that comes after one that was killed at the worst of moments.

#![allow(clippy::cast_possible_truncation)] // pages have numbers, and numbers bytes

use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use content::{
    BlobSource, ByteRange, ByteStream, ContentId, Digest, OpenBlob, Provenance, ReadError, Urgency,
};
use estargz::Built;

use super::desk::Desk;
use super::event::Events;
use super::journal::{Journal, Noted, READERS, Superblock};
use super::sys::{self, Verdict};
use super::{GROUP, JOURNAL, Native, superblock};
use crate::keeper::{Keep, KeepHere};
use crate::{Layer, LayerSpec, Layers, LayersOptions, OpaqueXattr, Prefetch};

fn journal() -> (OwnedFd, Journal) {
    let fd = Journal::create().unwrap();
    let journal = Journal::open(fd.as_fd()).unwrap();
    (fd, journal)
}

fn noted(fd: i32, at: u64) -> Noted {
    Noted { fd, file: Some((8, 9)), range: ByteRange::at(at, 4096), sequence: 0 }
}

#[test]
fn the_next_process_finds_what_is_unanswered_in_the_order_in_which_it_came() {
    let (fd, journal) = journal();
    for (slot, number) in [(5u32, 50), (3, 30), (4000, 40), (7, 70)] {
        let noted = journal.note(slot, noted(number, u64::from(slot) * 4096));
        assert_eq!(journal.noted(slot), Some(noted));
    }
    journal.answered(3);
    let unknown = journal.note(8, Noted { file: None, ..noted(80, 0) });
    let mut next = Journal::open(fd.as_fd()).unwrap();
    let left = next.recover();
    assert_eq!(
        left.iter().map(|(slot, noted)| (*slot, noted.fd)).collect::<Vec<_>>(),
        [(5, 50), (4000, 40), (7, 70), (8, 80)]
    );
    assert_eq!(left[3].1, unknown);
    assert_eq!(left[1].1.range, ByteRange::at(4000 * 4096, 4096));
    assert!(left.iter().all(|(_, noted)| noted.sequence < next.first()));
    assert!(next.note(3, noted(1, 1)).sequence >= next.first());
}

/// What the kernel does when it is asked for events.
fn write_events(journal: &Journal, reader: usize, events: &[(i32, u64)]) {
    let mut bytes = Vec::new();
    for (fd, offset) in events {
        bytes.extend(super::event::tests::encoded(*fd, 1, *offset, 4096));
    }
    let (from, to) = rustix::pipe::pipe().unwrap();
    rustix::io::write(&to, &bytes).unwrap();
    let mut copy = Vec::new();
    journal.read(from.as_raw_fd(), reader, events.len(), &mut copy).unwrap();
    assert_eq!(copy, bytes);
}

#[test]
fn an_event_that_was_read_and_not_put_down_is_not_lost() {
    for reader in 0..READERS {
        let (fd, journal) = journal();
        write_events(&journal, reader, &[(5, 4096), (6, 8192), (7, 0)]);
        // Killed after the first of them was put down.
        journal.note(0, noted(5, 4096));
        let mut next = Journal::open(fd.as_fd()).unwrap();
        let left = next.recover();
        let numbers: Vec<_> =
            left.iter().map(|(_, noted)| (noted.fd, noted.file.is_some(), noted.range.start)).collect();
        assert_eq!(numbers, [(5, true, 4096), (6, false, 8192), (7, false, 0)]);
        // And killed again before it did anything.
        let mut third = Journal::open(fd.as_fd()).unwrap();
        assert_eq!(third.recover(), left);
    }
}

#[test]
fn a_cleared_buffer_holds_nothing() {
    let (_fd, mut journal) = journal();
    write_events(&journal, 1, &[(5, 4096), (6, 8192)]);
    journal.clear(1, 96);
    assert_eq!(journal.recover(), []);
}

#[test]
fn superblocks_are_remembered_and_forgotten() {
    let (fd, journal) = journal();
    let toc = |number: u32| Digest::of(&number.to_le_bytes());
    for number in 0..2000u32 {
        let opaque = if number % 2 == 0 { OpaqueXattr::Trusted } else { OpaqueXattr::User };
        let superblock = Superblock { toc: toc(number), opaque, dev: 0, bdi: 7 };
        assert_eq!(journal.note_superblock(&superblock), Some(number as usize));
        if number % 3 == 0 {
            journal.mounted(number as usize, 1000 + u64::from(number), 2000 + u64::from(number));
        }
    }
    journal.forget_superblock(77);
    let next = Journal::open(fd.as_fd()).unwrap();
    let all = next.superblocks();
    assert_eq!(all.len(), 1999);
    assert_eq!(all[3].1, Superblock { toc: toc(3), opaque: OpaqueXattr::User, dev: 1003, bdi: 2003 });
    assert_eq!(all[4].1, Superblock { toc: toc(4), opaque: OpaqueXattr::Trusted, dev: 0, bdi: 7 });
    let again = Superblock { toc: toc(0), opaque: OpaqueXattr::Trusted, dev: 0, bdi: 1 };
    assert_eq!(next.note_superblock(&again), Some(77), "free places are used again");
}

#[test]
fn another_memory_is_no_journal() {
    let file = tempfile::tempfile().unwrap();
    assert!(Journal::open(file.as_fd()).is_err());
    let (fd, _) = journal();
    let mut word = [0; 8];
    rustix::io::pread(&fd, &mut word, 8).unwrap();
    rustix::io::pwrite(&fd, &(u64::from_ne_bytes(word) + 1).to_ne_bytes(), 8).unwrap();
    assert!(Journal::open(fd.as_fd()).is_err(), "another version");
    assert!(rustix::fs::ftruncate(&fd, 0).is_err(), "nobody can make it shorter");
}

// ---- with the kernel ---------------------------------------------------------------------------------------------

fn can_mount() -> bool {
    let folder = tempfile::tempdir().unwrap();
    match super::probe(folder.path()) {
        Ok(()) => true,
        Err(error) => {
            assert!(std::env::var_os("PANTALA_E2E").is_none_or(|value| value != "require"), "{error}");
            eprintln!("SKIPPED: {error}");
            false
        }
    }
}

const PAGES: usize = 64;

fn page(number: usize) -> Vec<u8> {
    (0..4096).map(|at| (number * 31 + at * 7 + at / 256) as u8 | 1).collect()
}

fn content() -> Vec<u8> {
    (0..PAGES).flat_map(page).collect()
}

struct Source(ContentId, bytes::Bytes);

#[async_trait::async_trait]
impl BlobSource for Source {
    fn id(&self) -> &ContentId {
        &self.0
    }

    fn len(&self) -> u64 {
        self.1.len() as u64
    }

    async fn read_traced(
        &self,
        range: ByteRange,
        _: Urgency,
    ) -> Result<(bytes::Bytes, Provenance), ReadError> {
        Ok((self.1.slice(range.start as usize..range.end as usize), Provenance::Origin))
    }

    fn stream(self: Arc<Self>, range: ByteRange, urgency: Urgency) -> ByteStream {
        content::stream_by_reads(self, range, urgency, 8 << 20, 1)
    }
}

fn spec() -> (Built, LayerSpec) {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size((PAGES * 4096) as u64);
    header.set_mode(0o644);
    header.set_mtime(1);
    tar.append_data(&mut header, "file", content().as_slice()).unwrap();
    let mut blob = Vec::new();
    let options = estargz::Options { chunk_size: 4096, level: Some(1), ..estargz::Options::default() };
    let built = estargz::build(tar.into_inner().unwrap().as_slice(), &mut blob, &options).unwrap();
    let source = Arc::new(Source(ContentId::proven(&built.digest), blob.into()));
    let open: crate::OpenSource = Arc::new(move || {
        let source = Arc::clone(&source);
        Box::pin(async move { Ok(OpenBlob { tail: None, source }) })
    });
    let spec = LayerSpec {
        toc_digest: built.toc_digest,
        layer_digest: built.digest,
        open,
        prefetch: Prefetch { enabled: false, size: 0 },
        background: false,
        external_toc: None,
    };
    (built, spec)
}

/// A layer that is mounted, and a group that nobody reads: as after a kill.
struct Orphaned {
    keep: Arc<KeepHere>,
    group: OwnedFd,
    journal: Journal,
    layers: Arc<Layers>,
    layer: Arc<Layer>,
    folder: tempfile::TempDir,
}

impl Orphaned {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let keep = Arc::new(KeepHere::default());
        let group = sys::fanotify_init().unwrap();
        let fd = Journal::create().unwrap();
        let journal = Journal::open(fd.as_fd()).unwrap();
        keep.keep(GROUP, group.as_fd()).unwrap();
        keep.keep(JOURNAL, fd.as_fd()).unwrap();
        let options = LayersOptions { read_deadline: Duration::from_secs(10), ..LayersOptions::default() };
        let layers = Layers::open_with(folder.path().join("store"), &options, keep.clone()).unwrap();
        let layer = layers.layer(spec().1).await.unwrap();
        keep.keep(&crate::fill::kept_name(&layer.toc_digest()), layer.core().data()).unwrap();
        sys::fanotify_mark(group.as_fd(), layer.core().data(), true).unwrap();
        let root = folder.path().join("root");
        std::fs::create_dir(&root).unwrap();
        let image = layer.metadata_file(OpaqueXattr::Trusted).unwrap();
        let mut number = None;
        let toc = layer.toc_digest();
        let mounted = superblock::mount(&image, layer.core().data(), &root, |bdi| {
            number = journal.note_superblock(&Superblock { toc, opaque: OpaqueXattr::Trusted, dev: 0, bdi });
            Ok(())
        });
        let mounted = mounted.unwrap();
        journal.mounted(number.unwrap(), mounted.dev, mounted.number);
        Self { keep, group, journal, layers, layer, folder }
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    /// A process that reads one page.
    fn reader(&self, page: usize) -> Child {
        Command::new("dd")
            .arg(format!("if={}", self.root().join("file").display()))
            .args(["bs=4096", "count=1", "status=none", &format!("skip={page}")])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// Takes the event of a reader, as the process before would have, and returns the number of its descriptor.
    fn take(&self) -> i32 {
        let until = Instant::now() + Duration::from_secs(5);
        let mut copy = Vec::new();
        while self.journal.read(self.group.as_raw_fd(), 0, 1, &mut copy).is_err() {
            assert!(Instant::now() < until, "no event came");
            std::thread::sleep(Duration::from_millis(5));
        }
        Events::new(&copy).next().unwrap().fd
    }

    async fn end(self, native: Arc<Native>) {
        crate::mountpoint::detach(&self.root()).unwrap();
        drop(self.layer);
        tokio::time::sleep(Duration::from_millis(50)).await;
        native.leave().await;
        assert_eq!(self.keep.names().unwrap(), Vec::<String>::new());
        self.layers.shutdown().await;
    }
}

async fn output(child: Child) -> (bool, Vec<u8>) {
    let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap();
    (output.status.success(), output.stdout)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_whose_file_nobody_knows_is_answered_with_the_right_bytes() {
    if !can_mount() {
        return;
    }
    let orphaned = Orphaned::new().await;
    let reader = orphaned.reader(7);
    let root = orphaned.root();
    // Killed between the kernel's write into the buffer and the first look at it.
    // Its table of descriptors goes with it.
    sys::close(tokio::task::block_in_place(|| orphaned.take()));
    let native = Native::start(orphaned.keep.clone()).unwrap();
    assert_eq!(native.adopted(), 1);
    assert_eq!(native.kept_layers(), [orphaned.layer.toc_digest()]);
    let mount =
        native.take_over(Arc::clone(&orphaned.layer), &root, OpaqueXattr::Trusted).await.unwrap().unwrap();
    assert_eq!(output(reader).await, (true, page(7)));
    assert_eq!(native.kept_layers(), []);
    assert_eq!(output(orphaned.reader(9)).await, (true, page(9)));
    mount.unmount().await.unwrap();
    drop(mount);
    orphaned.end(native).await;
}

#[test]
fn two_events_with_one_number_each_get_their_own_bytes() {
    if !can_mount() {
        return;
    }
    // Alone in its process: nobody else may take or give up numbers.
    let alone = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "native::tests::two_events_with_one_number", "--test-threads=1"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&alone.stdout);
    assert!(alone.status.success() && said.contains("1 passed"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by the test before"]
async fn two_events_with_one_number() {
    let orphaned = Orphaned::new().await;
    let first = orphaned.reader(3);
    let number = tokio::task::block_in_place(|| orphaned.take());
    let mut journal = Journal::open(orphaned.keep.get(JOURNAL).unwrap().unwrap().as_fd()).unwrap();
    let (slot, event) = journal.recover()[0];
    let old = journal.note(slot, Noted { file: None, ..event });
    assert_eq!(old.fd, number);
    // Something else of the next process has the number already (here it is the descriptor itself), and gives it up
    // later.
    let (desk, left) = Desk::new(orphaned.group.try_clone().unwrap(), journal);
    assert_eq!(left.len(), 1);
    let second = orphaned.reader(40);
    let mut copy = Vec::new();
    let until = Instant::now() + Duration::from_secs(5);
    // Numbers below may be free too: the event must get this one.
    let mut fillers = Vec::new();
    loop {
        let filler = File::open("/dev/null").unwrap();
        if filler.as_raw_fd() >= old.fd {
            break;
        }
        fillers.push(filler);
    }
    sys::close(old.fd);
    while desk.journal().read(desk.group().as_raw_fd(), 0, 1, &mut copy).is_err() {
        assert!(Instant::now() < until, "no event came");
        std::thread::sleep(Duration::from_millis(5));
    }
    let event = Events::new(&copy).next().unwrap();
    let mut stash = Vec::new();
    desk.take_slots(&mut stash, 1);
    let young = stash[0];
    desk.note(young, Noted { fd: event.fd, file: None, range: event.range, sequence: 0 });
    desk.journal().clear(0, copy.len());
    assert_eq!(event.fd, old.fd, "the kernel gave another number");
    // The younger is ready first. If its answer went to the elder, that would see a hole.
    orphaned.layer.core().fill_range(event.range, Urgency::Blocking).await.unwrap();
    desk.answer(young, Verdict::Allow);
    assert!(desk.journal().noted(young).is_some(), "answered before its elder");
    std::thread::sleep(Duration::from_millis(50));
    orphaned.layer.core().fill_range(old.range, Urgency::Blocking).await.unwrap();
    desk.answer(slot, Verdict::Allow);
    assert_eq!(output(first).await, (true, page(3)));
    assert_eq!(output(second).await, (true, page(40)));
    assert_eq!(desk.journal().noted(young), None);
    drop((desk, fillers));
    let native = Native::start(orphaned.keep.clone()).unwrap();
    native.serve(&orphaned.layer).unwrap();
    orphaned.end(native).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn as_long_as_nobody_serves_the_keeper_refuses() {
    if !can_mount() {
        return;
    }
    let orphaned = Orphaned::new().await;
    let (taken, waiting) = (orphaned.reader(1), orphaned.reader(40));
    // Its table of descriptors goes with it.
    sys::close(tokio::task::block_in_place(|| orphaned.take()));
    std::thread::sleep(Duration::from_millis(100));
    let journal = orphaned.keep.get(JOURNAL).unwrap().unwrap();
    super::refuse_unanswered(orphaned.group.as_fd(), journal.as_fd()).unwrap();
    // The rest of a reader's readahead is asked for again, page by page.
    let refusing = async {
        loop {
            super::refuse_new(orphaned.group.as_fd()).unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        () = refusing => {}
        (taken, waiting) = async { (output(taken).await, output(waiting).await) } => {
            assert!(!taken.0 && !waiting.0);
        }
    }
    let native = Native::start(orphaned.keep.clone()).unwrap();
    native.serve(&orphaned.layer).unwrap();
    assert_eq!(output(orphaned.reader(1)).await, (true, page(1)), "nothing of the refusal stays");
    orphaned.end(native).await;
}
