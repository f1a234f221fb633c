//! Whether this machine can do it, found out by doing it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use erofs::{Kind, Node, Options, Tree};

use super::event::{EVENT, Events};
use super::superblock;
use super::sys::{self, Verdict};

/// Why this machine cannot show layers natively.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {source}")]
pub struct ProbeError {
    /// Which step of the probe failed.
    pub step: &'static str,
    /// What the system said.
    pub source: io::Error,
}

const PAGE: u64 = 4096;
/// How long the kernel may take for an event.
const PATIENCE: Duration = Duration::from_secs(5);

fn at(step: &'static str) -> impl FnOnce(io::Error) -> ProbeError {
    move |source| ProbeError { step, source }
}

/// Tries the whole mechanism once, in `scratch`, a directory on the file system of the layer store that is made if
/// it is not there: mounts two files of a page each, both holes, fills the first when it is read, and refuses the second.
/// Blocks for some milliseconds.
///
/// # Errors
/// The step that failed.
pub fn probe(scratch: &Path) -> Result<(), ProbeError> {
    let step = "making a directory for a trial of the native driver";
    std::fs::create_dir_all(scratch).map_err(at(step))?;
    let folder = scratch.join(format!("native-{}", std::process::id()));
    // Another process had this number, and was killed here.
    clean(&folder);
    std::fs::create_dir_all(folder.join("mount")).map_err(at(step))?;
    let result = attempt(&folder);
    clean(&folder);
    result
}

fn clean(folder: &Path) {
    let _ = crate::mountpoint::detach(&folder.join("mount"));
    let _ = std::fs::remove_dir_all(folder);
}

fn attempt(folder: &Path) -> Result<(), ProbeError> {
    let group = sys::fanotify_init()
        .map_err(at("opening a fanotify group for events before access (needs CAP_SYS_ADMIN)"))?;
    let writing = "writing files for a trial of the native driver";
    let open = |name: &str| {
        File::options().read(true).write(true).create(true).truncate(true).open(folder.join(name))
    };
    let data = open("data").map_err(at(writing))?;
    data.set_len(2 * PAGE).map_err(at(writing))?;
    let image = erofs::write(&TwoPages, &Options { data_len: 2 * PAGE, uuid: *b"pantala's probe " });
    let image = image.map_err(|error| at(writing)(io::Error::other(error)))?;
    let file = open("image").map_err(at(writing))?;
    file.write_all_at(&image, 0).map_err(at(writing))?;
    drop(file);
    let image = File::open(folder.join("image")).map_err(at(writing))?;

    sys::fanotify_mark(group.as_fd(), data.as_fd(), true).map_err(at(
        "asking for events before access (needs Linux 6.14, and the layer store on ext4, xfs or btrfs)",
    ))?;
    let mount = folder.join("mount");
    superblock::mount(&image, data.as_fd(), &mount, |_| Ok(()))
        .map_err(at("mounting EROFS from a file (needs Linux 6.12 with EROFS_FS_BACKED_BY_FILE)"))?;

    // A thread of its own reads: this one answers. When the group is closed, it is let go in any case.
    let reader = std::thread::Builder::new().name("native-probe".into()).spawn(move || {
        let first = std::fs::read(mount.join("filled"))?;
        Ok::<_, io::Error>((first, std::fs::read(mount.join("refused"))))
    });
    let reader = reader.map_err(at("starting a thread"))?;
    let served = serve(&group, &data, || reader.is_finished());
    drop(group);
    let read = reader.join().unwrap_or_else(|_| Err(io::Error::other("the reader panicked")));
    served?;
    let (first, second) = read.map_err(at("reading a page that was filled"))?;
    if first != PATTERN {
        return Err(at("reading a page that was filled")(io::Error::other("wrong bytes")));
    }
    match second {
        Err(_) => Ok(()),
        Ok(_) => Err(at("refusing a page")(io::Error::other("it was shown all the same"))),
    }
}

const PATTERN: [u8; 4096] = [0xa5; 4096];

/// Fills the first page when it is wanted and refuses what is wanted without it.
fn serve(group: &std::os::fd::OwnedFd, data: &File, done: impl Fn() -> bool) -> Result<(), ProbeError> {
    let waiting = "waiting for an event before access (needs FANOTIFY_ACCESS_PERMISSIONS)";
    let mut filled = false;
    let begun = Instant::now();
    while !done() {
        if begun.elapsed() > PATIENCE {
            return Err(at(waiting)(io::ErrorKind::TimedOut.into()));
        }
        let (ready, _) = sys::wait(group.as_raw_fd(), -1, 10).map_err(at(waiting))?;
        if !ready {
            continue;
        }
        let mut buffer = [0; EVENT];
        let read = sys::read(group.as_raw_fd(), &mut buffer).map_err(at(waiting))?;
        for event in Events::new(buffer.get(..read).unwrap_or_default()) {
            let verdict = if event.range.start == 0 {
                data.write_all_at(&PATTERN, 0).map_err(at("filling a page that somebody waits for"))?;
                filled = true;
                Verdict::Allow
            } else {
                Verdict::Refuse
            };
            let answered = sys::respond(group.as_raw_fd(), event.fd, verdict);
            sys::close(event.fd);
            answered.map_err(at("answering an event (needs Linux 6.14)"))?;
        }
    }
    if filled { Ok(()) } else { Err(at(waiting)(io::Error::other("a hole was read and no event came"))) }
}

/// A directory with two files of a page each.
struct TwoPages;

const ROOT: u32 = 0;

impl Tree for TwoPages {
    fn bound(&self) -> u32 {
        3
    }

    fn root(&self) -> u32 {
        ROOT
    }

    fn node(&self, number: u32) -> Option<Node<'_>> {
        let (kind, mode) = match number {
            ROOT => (Kind::Directory, 0o755),
            1 | 2 => (Kind::Regular { size: PAGE, address: u64::from(number - 1) * PAGE }, 0o444),
            _ => return None,
        };
        Some(Node { kind, mode, uid: 0, gid: 0, mtime: 0, mtime_nanos: 0 })
    }

    fn children(&self, number: u32) -> impl Iterator<Item = (&[u8], u32)> {
        let files: [(&[u8], u32); 2] = [(b"filled", 1), (b"refused", 2)];
        files.into_iter().filter(move |_| number == ROOT)
    }

    fn xattrs(&self, _: u32) -> impl Iterator<Item = (&[u8], &[u8])> {
        std::iter::empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_can_is_found_out_and_nothing_stays_behind() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: mounting needs root");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        match probe(folder.path()) {
            Ok(()) => {}
            Err(error) if std::env::var_os("PANTALA_E2E").is_none_or(|value| value != "require") => {
                eprintln!("SKIPPED: the native driver does not work here: {error}");
            }
            Err(error) => panic!("{error}"),
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_system_that_cannot_is_named() {
        if !rustix::process::geteuid().is_root() || !Path::new("/dev/shm").exists() {
            eprintln!("SKIPPED: needs root and /dev/shm");
            return;
        }
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        assert!(probe(folder.path()).is_err(), "tmpfs raises no events");
    }
}
