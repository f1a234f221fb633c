//! A keeper in a thread of its own: what it keeps, whom it lets in, when it ends.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lazyfs::keeper::{Keep, Keeper, ServeOptions, serve};

fn keeper(root: &Path, grace: Duration) -> JoinHandle<io::Result<()>> {
    let root = root.to_owned();
    let options = ServeOptions { root: root.clone(), grace };
    let thread = std::thread::spawn(move || serve(options));
    wait(|| root.join("keeper.sock").exists());
    thread
}

fn wait(mut done: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < until, "waited in vain");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A connected client; the socket may be bound and not listening yet.
fn connect(root: &Path) -> std::sync::Arc<Keeper> {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        match Keeper::connect(root) {
            Ok(keeper) => return keeper,
            Err(error) if error.kind() == ErrorKind::ConnectionRefused && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// Both ends of a pipe: the first sees when the second is held by nobody.
fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC | rustix::pipe::PipeFlags::NONBLOCK).unwrap()
}

fn is_held(reader: &OwnedFd) -> bool {
    rustix::io::read(reader, &mut [0; 1]) == Err(rustix::io::Errno::AGAIN)
}

#[test]
fn what_is_given_outlives_the_worker_and_is_closed_when_it_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let thread = keeper(dir.path(), Duration::from_secs(1));
    let worker = connect(dir.path());
    let (reader, writer) = pipe();
    worker.keep("fuse-1-a", writer.as_fd()).unwrap();
    drop(writer);
    worker.keep("x", reader.as_fd()).unwrap();
    drop(worker);
    assert!(is_held(&reader), "the keeper has it");

    let next = connect(dir.path());
    assert_eq!(next.names().unwrap(), ["fuse-1-a", "x"]);
    let got = next.get("fuse-1-a").unwrap().unwrap();
    rustix::io::write(&got, b"!").unwrap();
    assert_eq!(rustix::io::read(&reader, &mut [0; 1]), Ok(1));
    drop(got);
    assert!(next.get("y").unwrap().is_none());
    let status = next.status().unwrap();
    assert!(status.worker && !status.refusing && status.kept == 2, "{status:?}");
    next.forget("fuse-1-a").unwrap();
    next.forget("never").unwrap();
    assert!(!is_held(&reader), "nobody has it any more");
    next.forget("x").unwrap();
    drop(next);
    // Nothing is kept, and nobody comes.
    thread.join().unwrap().unwrap();
    assert!(!dir.path().join("keeper.sock").exists());
}

#[test]
fn names_that_are_none_are_refused_before_they_are_sent() {
    let dir = tempfile::tempdir().unwrap();
    let thread = keeper(dir.path(), Duration::from_millis(200));
    let worker = connect(dir.path());
    for name in ["", "a/b", "a b", &"x".repeat(201)] {
        let error = worker.keep(name, thread_fd().as_fd()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
    drop(worker);
    thread.join().unwrap().unwrap();
}

fn thread_fd() -> OwnedFd {
    pipe().0
}

#[test]
fn many_descriptors_are_listed_and_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let thread = keeper(dir.path(), Duration::from_millis(300));
    let worker = connect(dir.path());
    let fd = thread_fd();
    let names: Vec<_> = (0..300).map(|number| format!("{}-{number:03}", "n".repeat(150))).collect();
    for name in &names {
        worker.keep(name, fd.as_fd()).unwrap();
    }
    drop(worker);
    let next = connect(dir.path());
    assert_eq!(next.names().unwrap(), names);
    for name in &names {
        next.forget(name).unwrap();
    }
    drop(next);
    thread.join().unwrap().unwrap();
}

/// A program that only holds a root's socket, as a worker of another process would.
#[test]
fn a_second_keeper_leaves_the_first_alone_and_a_stale_socket_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("keeper.sock"), b"left by a crash").unwrap();
    let first = keeper(dir.path(), Duration::from_millis(500));
    let worker = connect(dir.path());
    // Answers at once: another one has the lock.
    serve(ServeOptions { root: dir.path().into(), grace: Duration::from_mins(1) }).unwrap();
    worker.keep("a", thread_fd().as_fd()).unwrap();
    worker.forget("a").unwrap();
    drop(worker);
    first.join().unwrap().unwrap();
}

#[test]
fn rubbish_is_answered_or_cut_off_and_hurts_nobody() {
    use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
    let dir = tempfile::tempdir().unwrap();
    let thread = keeper(dir.path(), Duration::from_millis(300));
    let worker = connect(dir.path());
    worker.keep("a", thread_fd().as_fd()).unwrap();
    let open = || {
        let kind = SocketType::SEQPACKET;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
        let address = SocketAddrUnix::new(dir.path().join("keeper.sock")).unwrap();
        rustix::net::connect(&socket, &address).unwrap();
        socket
    };
    let say = |socket: &OwnedFd, bytes: &[u8]| {
        rustix::net::send(socket, bytes, SendFlags::NOSIGNAL).unwrap();
        let mut answer = [0; 64];
        let (len, _) = rustix::net::recv(socket, &mut answer, rustix::net::RecvFlags::empty()).unwrap();
        answer[..len].to_vec()
    };
    let socket = open();
    let refused = |errno: i32| [&[1, 5][..], &errno.to_le_bytes()].concat();
    assert_eq!(say(&socket, &[1, 3, b'a']), refused(1), "before it said what it is");
    assert_eq!(say(&socket, &[9, 1, b'w']), refused(93), "another version");
    assert_eq!(say(&socket, &[1, 77]), refused(95), "an unknown code");
    assert_eq!(say(&socket, &[1, 1]), refused(22));
    assert_eq!(say(&socket, &[1, 1, b'v']), [1, 1]);
    assert_eq!(say(&socket, &[1, 1, b'v']), refused(114), "twice");
    assert_eq!(say(&socket, &[1, 2, b'z']), refused(9), "without a descriptor");
    assert_eq!(say(&socket, &[1, 6]), refused(16), "no end while a worker is there");
    // Too long: cut off.
    rustix::net::send(&socket, &vec![1; 9000], SendFlags::NOSIGNAL).unwrap();
    assert_eq!(rustix::net::recv(&socket, &mut [0; 8], rustix::net::RecvFlags::empty()).unwrap().0, 0);
    // A crowd: the worker is heard all the same.
    let crowd: Vec<_> = (0..40).map(|_| open()).collect();
    worker.keep("b", thread_fd().as_fd()).unwrap();
    drop(crowd);
    worker.forget("a").unwrap();
    worker.forget("b").unwrap();
    drop((worker, socket));
    thread.join().unwrap().unwrap();
}

/// Whether the program can be had that this crate is part of: other tests of the same build make it.
fn program() -> Option<PathBuf> {
    let tests = std::env::current_exe().unwrap();
    let found = tests.ancestors().nth(2).map(|dir| dir.join("pantala")).filter(|path| path.is_file());
    found.filter(|path| {
        let mut help = Command::new(path);
        help.args(["keeper", "--help"]).stdout(Stdio::null()).stderr(Stdio::null());
        help.status().is_ok_and(|status| status.success())
    })
}

#[test]
fn a_keeper_that_is_killed_is_replaced_and_has_everything_again() {
    let Some(program) = program() else {
        eprintln!("skipped: there is no program `pantala` to be the keeper (cargo build -p pantala)");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let arguments = ["keeper", "--root"].map(Into::into).into_iter().chain([dir.path().into()]);
    let arguments = arguments.chain(["--grace", "1"].map(Into::into)).collect();
    let launch = lazyfs::keeper::Launch { program, arguments };
    let worker = Keeper::start_with(dir.path(), launch).unwrap();
    let (reader, writer) = pipe();
    worker.keep("a", writer.as_fd()).unwrap();
    drop(writer);
    let first = worker.status().unwrap().pid;
    let pid = rustix::process::Pid::from_raw(i32::try_from(first).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    // Asked at once, and it answers: through the next one.
    worker.keep("b", reader.as_fd()).unwrap();
    let status = worker.status().unwrap();
    assert_ne!(status.pid, first);
    assert_eq!(status.kept, 2);
    // And once more, with nobody asking: the thread sees it.
    let pid = rustix::process::Pid::from_raw(i32::try_from(status.pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    wait(|| rustix::process::test_kill_process(pid).is_err());
    wait(|| worker.status().is_ok_and(|now| now.pid != status.pid && now.kept == 2));
    drop(worker);
    assert!(is_held(&reader), "the keeper has it, alone");
    let next = connect(dir.path());
    assert_eq!(next.names().unwrap(), ["a", "b"]);
    next.forget("a").unwrap();
    next.forget("b").unwrap();
    drop(next);
    wait(|| !dir.path().join("keeper.sock").exists());
}

/// Answers what a fresh FUSE connection asks first, and gives what is asked next to `take`.
fn shake_hands(device: &OwnedFd) {
    let mut request = vec![0; 1 << 16];
    let len = rustix::io::read(device, &mut request).unwrap();
    assert!(len >= 56 && request[4..8] == 26_u32.to_ne_bytes(), "INIT");
    let mut reply = vec![0; 16 + 64];
    reply[..4].copy_from_slice(&80_u32.to_ne_bytes());
    reply[8..16].copy_from_slice(&request[8..16]);
    // Major and minor version, and the longest write.
    reply[16..20].copy_from_slice(&7_u32.to_ne_bytes());
    reply[20..24].copy_from_slice(&31_u32.to_ne_bytes());
    reply[36..40].copy_from_slice(&4096_u32.to_ne_bytes());
    rustix::io::write(device, &reply).unwrap();
}

/// A mount, taken away whatever happens.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

fn mount_fuse(at: &Path) -> Option<(OwnedFd, Mounted)> {
    use std::os::fd::AsRawFd as _;
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC;
    let device = rustix::fs::open("/dev/fuse", flags, rustix::fs::Mode::empty()).ok()?;
    let data = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
    let data = std::ffi::CString::new(data).unwrap();
    let flags = rustix::mount::MountFlags::RDONLY;
    rustix::mount::mount("test", at, "fuse.test", flags, data.as_c_str()).ok()?;
    Some((device, Mounted(at.to_owned())))
}

#[test]
fn without_a_worker_readers_get_an_error_and_the_next_worker_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("mount");
    std::fs::create_dir(&at).unwrap();
    let Some((device, mounted)) = mount_fuse(&at) else {
        assert!(std::env::var_os("PANTALA_E2E").is_none_or(|value| value != "require"));
        eprintln!("skipped: nothing can be mounted here");
        return;
    };
    shake_hands(&device);
    let thread = keeper(dir.path(), Duration::from_millis(400));
    let worker = connect(dir.path());
    worker.keep("fuse-0-test", device.as_fd()).unwrap();

    // One asks, the worker takes the question and is gone.
    let look = || {
        Command::new("stat").arg(at.join("x")).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    let mut first = look();
    let mut request = vec![0; 1 << 16];
    rustix::io::read(&device, &mut request).unwrap();
    drop((worker, device));
    // Another one asks when there is no worker.
    let mut second = look();
    wait(|| first.try_wait().unwrap().is_some());
    wait(|| second.try_wait().unwrap().is_some());
    assert!(!first.wait().unwrap().success() && !second.wait().unwrap().success());

    // The next worker is asked again: nothing was closed.
    let next = connect(dir.path());
    assert!(!next.status().unwrap().refusing);
    let device = next.get("fuse-0-test").unwrap().expect("kept");
    let mut third = look();
    rustix::io::read(&device, &mut request).unwrap();
    assert!(third.try_wait().unwrap().is_none(), "it waits for the worker");
    drop((next, device));
    wait(|| third.try_wait().unwrap().is_some());
    // Nothing is mounted any more: the keeper sees it, and has nothing to do.
    drop(mounted);
    thread.join().unwrap().unwrap();
}
