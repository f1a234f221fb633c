//! The tree of processes: supervisor, worker and keeper, whichever of them dies; and a service manager that stores
//! descriptors.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::io::{ErrorKind, Read as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lazyfs::keeper::{Keep, Keeper};
use rustix::process::{Pid, Signal, kill_process};

const LIMIT: Duration = Duration::from_secs(30);

fn wait<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + LIMIT;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a snapshotter can run here; says why not.
fn can_mount() -> bool {
    match snapshotter::check_host() {
        Ok(()) => true,
        Err(error) => {
            assert!(std::env::var_os("PANTALA_E2E").is_none_or(|value| value != "require"), "{error}");
            eprintln!("skipped: {error}");
            false
        }
    }
}

struct Tree {
    child: Child,
    dir: PathBuf,
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(pid) = keeper(&self.dir.join("root")) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

fn command(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pantala"));
    command.arg("snapshotter").arg("--root").arg(dir.join("root")).arg("--address").arg(dir.join("s.sock"));
    command.args(["--config", "/dev/null"]).stdin(Stdio::null());
    command.stderr(std::fs::File::options().create(true).append(true).open(dir.join("log")).unwrap());
    command.env_remove("NOTIFY_SOCKET").env_remove("JOURNAL_STREAM");
    command
}

impl Tree {
    fn start(dir: &Path, command: &mut Command) -> Self {
        let tree = Self { child: command.spawn().unwrap(), dir: dir.into() };
        tree.wait_ready();
        tree
    }

    fn wait_ready(&self) {
        wait("the socket", || UnixStream::connect(self.dir.join("s.sock")).ok());
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn worker(&self) -> Pid {
        let id = self.child.id();
        wait("a worker", || {
            let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).ok()?;
            Pid::from_raw(children.split_whitespace().next()?.parse().ok()?)
        })
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// Asks it to end, and waits.
    fn stop(&mut self) -> i32 {
        kill_process(self.pid(), Signal::TERM).unwrap();
        let status = wait("the end", || self.child.try_wait().unwrap());
        status.code().unwrap_or(-1)
    }
}

/// The keeper's process, by its command line.
fn keeper(root: &Path) -> Option<Pid> {
    std::fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let line = std::fs::read(entry.path().join("cmdline")).ok()?;
        let words: Vec<_> = line.split(|byte| *byte == 0).collect();
        let is_it = words.get(1) == Some(&&b"keeper"[..])
            && words.get(3) == Some(&root.as_os_str().as_encoded_bytes());
        is_it.then(|| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?))?
    })
}

fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC | rustix::pipe::PipeFlags::NONBLOCK).unwrap()
}

fn is_held(reader: &OwnedFd) -> bool {
    rustix::io::read(reader, &mut [0; 1]) == Err(rustix::io::Errno::AGAIN)
}

#[test]
fn whoever_dies_is_replaced_and_a_stop_leaves_nothing() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let mut tree = Tree::start(dir.path(), &mut command(dir.path()));
    let first = tree.worker();
    assert!(keeper(&root).is_some());
    kill_process(first, Signal::KILL).unwrap();
    wait("another worker", || (tree.worker() != first).then_some(()));
    tree.wait_ready();
    assert!(tree.log().contains("it is started again"), "{}", tree.log());

    // The supervisor takes its worker with it; the next one waits until that is gone.
    let last = tree.worker();
    tree.child.kill().unwrap();
    tree.child.wait().unwrap();
    wait("the worker's end", || rustix::process::test_kill_process(last).err());
    tree.child = command(dir.path()).spawn().unwrap();
    tree.wait_ready();

    // In place: the same process, another worker.
    let before = tree.worker();
    kill_process(tree.pid(), Signal::HUP).unwrap();
    wait("the next worker", || (tree.worker() != before).then_some(()));
    wait("its socket", || tree.log().contains("handing over").then_some(()));
    tree.wait_ready();

    assert_eq!(tree.stop(), 0, "{}", tree.log());
    wait("the keeper's end", || keeper(&root).is_none().then_some(()));
    assert!(!root.join("keeper.sock").exists());
}

#[test]
fn a_mistake_looks_the_same_with_a_supervisor() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.toml");
    std::fs::write(&config, "no_such_key = 1\n").unwrap();
    let run = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pantala"));
        command.arg("snapshotter").arg("--root").arg(dir.path().join("root")).arg("--config").arg(&config);
        command.args(more).output().unwrap()
    };
    let (with, without) = (run(&[]), run(&["--no-keeper"]));
    assert_eq!(with.status.code(), Some(1));
    assert_eq!(with.status, without.status);
    assert_eq!(String::from_utf8_lossy(&with.stderr), String::from_utf8_lossy(&without.stderr));
    assert!(!dir.path().join("root").exists(), "a mistake makes no directories");
}

#[test]
fn two_services_cannot_have_one_root() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut tree = Tree::start(dir.path(), &mut command(dir.path()));
    let mut second = Command::new(env!("CARGO_BIN_EXE_pantala"));
    second.arg("snapshotter").arg("--root").arg(dir.path().join("root"));
    second.arg("--address").arg(dir.path().join("t.sock")).args(["--config", "/dev/null"]);
    let mut second = second.stderr(Stdio::piped()).spawn().unwrap();
    let mut told = String::new();
    second.stderr.take().unwrap().read_to_string(&mut told).unwrap();
    assert!(!second.wait().unwrap().success());
    assert!(told.contains("another"), "{told}");
    // The first one is as it was.
    tree.wait_ready();
    assert_eq!(tree.stop(), 0, "{}", tree.log());
}

/// A service manager that stores descriptors, as systemd does.
struct Manager {
    socket: OwnedFd,
    path: PathBuf,
}

impl Manager {
    fn new(dir: &Path) -> Self {
        use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
        let path = dir.join("notify");
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None);
        let socket = socket.unwrap();
        rustix::net::bind(&socket, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        rustix::net::sockopt::set_socket_timeout(&socket, rustix::net::sockopt::Timeout::Recv, Some(LIMIT))
            .unwrap();
        Self { socket, path }
    }

    /// Waits for a message that has `line`; answers what came with it.
    fn wait_for(&self, line: &str) -> Option<OwnedFd> {
        use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
        loop {
            let mut bytes = [0; 4096];
            let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut parts = [std::io::IoSliceMut::new(&mut bytes)];
            let got = rustix::net::recvmsg(&self.socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)
                .unwrap();
            let mut fds = control.drain().filter_map(|part| match part {
                RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
                _ => None,
            });
            let fd = fds.next();
            let text = String::from_utf8_lossy(&bytes[..got.bytes]).into_owned();
            if text.lines().any(|one| one == line) {
                return fd;
            }
        }
    }
}

#[test]
fn the_service_manager_holds_what_is_kept_over_the_death_of_all() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    std::fs::create_dir_all(&root).unwrap();
    let manager = Manager::new(dir.path());

    // A keeper and a worker; then both are gone, without having been told.
    let mut alone = Command::new(env!("CARGO_BIN_EXE_pantala"));
    alone.args(["keeper", "--foreground", "--root"]).arg(&root).env("NOTIFY_SOCKET", &manager.path);
    let mut alone = alone.stderr(Stdio::null()).spawn().unwrap();
    let worker = wait("the keeper", || Keeper::connect(&root).ok());
    let (reader, writer) = pipe();
    worker.keep("something", writer.as_fd()).unwrap();
    drop(writer);
    let stored = manager.wait_for("FDNAME=something").expect("a descriptor came along");
    alone.kill().unwrap();
    alone.wait().unwrap();
    drop(worker);
    assert!(is_held(&reader), "the service manager has it");

    // All is started anew, and given back what was stored.
    let script = "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=something exec \"$@\"";
    let plain = command(dir.path());
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", script, "sh"]).arg(plain.get_program()).args(plain.get_args());
    shell.stdin(Stdio::from(stored)).stderr(std::fs::File::create(dir.path().join("log")).unwrap());
    shell.env("NOTIFY_SOCKET", &manager.path).env_remove("JOURNAL_STREAM");
    let mut tree = Tree::start(dir.path(), &mut shell);
    // It holds the descriptor that it passed.
    drop(shell);
    let main = format!("MAINPID={}", tree.child.id());
    manager.wait_for(&main);
    manager.wait_for("READY=1");
    let before = tree.worker();
    kill_process(tree.pid(), Signal::HUP).unwrap();
    manager.wait_for("RELOADING=1");
    manager.wait_for("READY=1");
    assert_ne!(tree.worker(), before);
    assert_eq!(tree.stop(), 0, "{}", tree.log());
    // Something is kept: the keeper stays.
    assert!(is_held(&reader));
    let next = wait("the keeper", || match Keeper::connect(&root) {
        Ok(keeper) => Some(keeper),
        Err(error) if error.kind() == ErrorKind::ResourceBusy => None,
        Err(error) => panic!("{error}"),
    });
    assert_eq!(next.names().unwrap(), ["something"]);
    next.forget("something").unwrap();
    manager.wait_for("FDSTOREREMOVE=1");
    assert!(!is_held(&reader), "nobody holds it");
}
