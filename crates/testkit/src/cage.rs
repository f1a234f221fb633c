//! One lab, one set of namespaces.
//!
//! containerd, shims, runc, FUSE and network namespaces all leave something behind when they are killed: mounts,
//! sockets, processes that belong to nobody. Cleaning up after each by hand works until a test is killed. So a
//! lab runs in a *cage*: the program starts itself again inside new mount, PID and network namespaces with an
//! empty `/run`. When the first process of the cage ends, for whatever reason, the kernel kills all others and
//! takes mounts and links away. What the kernel does not know, the folder on disk and the control groups, the
//! outside removes, then and, for cages that were killed from outside, when the next one starts.
//!
//! ```text
//! cargo test ── test binary ── setpriv --pdeathsig ── unshare ── sh (PID 1, collects orphans)
//!                (waits)                                          └── the same test binary, the same test, caged
//! ```
//!
//! Inside, names and addresses can be the same in every lab: no other lab can see them.

use std::ffi::OsString;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::image::{self, python};

/// Tells a process that it is inside: the folder that is the cage's own.
const ENVIRONMENT: &str = "PANTALA_CAGE";
/// When set to `require`, a test that would be skipped fails instead: for machines that must run everything.
const REQUIRE: &str = "PANTALA_E2E";
/// Folders of cages are `<PREFIX><pid>`, so that the next cage knows whose they were. Not below `/tmp`, which
/// may be memory, and short, because a Unix socket's path has 107 bytes.
const PREFIX: &str = "pantala-lab-";
/// Where they are.
const PARENT: &str = "/var/tmp";
/// How many lines of each log a failed test shows.
const LOG_LINES: usize = 40;
/// A caged test that runs longer hangs.
const TEST_LIMIT: Duration = Duration::from_mins(5);

/// Makes the new namespaces habitable, runs the program, and stays as PID 1 to collect orphans.
const FIRST_PROCESS: &str = r#"
mount -t tmpfs -o mode=755 cage /run && mkdir -p /run/netns /run/lock && ip link set lo up || exit 125
"$0" "$@"
exit $?
"#;

/// What is known inside a cage.
#[derive(Debug, Clone)]
pub struct Cage {
    dir: PathBuf,
}

impl Cage {
    /// The cage that this process is in, if it is in one.
    pub fn current() -> Option<Self> {
        std::env::var_os(ENVIRONMENT).map(|dir| Self { dir: dir.into() })
    }

    /// The cage's own folder, on disk, removed afterwards.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A word that is different in each cage, for the few names that namespaces do not separate: control groups.
    pub fn tag(&self) -> String {
        self.dir.file_name().expect("a cage's folder has a name").to_string_lossy().into_owned()
    }
}

/// What a lab needs from the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Root and network namespaces.
    Network,
    /// Also `docker-registry`.
    Registry,
    /// Also containerd, runc, FUSE and `ctr-remote`.
    Containers,
    /// Also `skopeo` and `umoci`.
    Tools,
    /// Also the real Python image, which is made, outside, if it is not in the cache: `debootstrap`, and Debian's packages.
    Python,
}

impl Needs {
    /// What this machine lacks, in words that say what to do.
    pub fn missing(self) -> Option<String> {
        if !rustix::process::geteuid().is_root() {
            return Some("needs root: namespaces and mounts".into());
        }
        let mut programs = vec!["unshare", "setpriv", "nsenter", "ip", "tc"];
        if self != Self::Network {
            programs.push("docker-registry");
        }
        if matches!(self, Self::Tools | Self::Python) {
            programs.extend(["skopeo", "umoci"]);
        }
        if self == Self::Python {
            programs.push("debootstrap");
        }
        if !matches!(self, Self::Network | Self::Registry) {
            programs.extend(["containerd", "ctr", "runc", "ctr-remote"]);
            if !Path::new("/dev/fuse").exists() {
                return Some("needs /dev/fuse (modprobe fuse)".into());
            }
        }
        let absent: Vec<_> = programs.into_iter().filter(|name| find_program(name).is_none()).collect();
        (!absent.is_empty())
            .then(|| format!("needs {} (scripts/setup.sh test installs them)", absent.join(", ")))
    }

    /// Makes what must be made where the machine's own network is.
    fn prepare(self) -> Result<()> {
        if self == Self::Python {
            python::image(&image::cache(), &|line| println!("{line}"))?;
        }
        Ok(())
    }
}

/// Where in `PATH` a program is; the folders of administration are always searched.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    folders.extend(["/usr/sbin", "/sbin"].map(PathBuf::from));
    folders.into_iter().map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// Runs `body` in a cage, as the whole of the `#[test]` function that calls this.
///
/// Outside, the test binary is started again for this one test. Inside, `body` runs. Where the machine lacks
/// what the lab needs, the reason is printed and the test passes, unless `PANTALA_E2E=require`.
pub fn test<F: FnOnce(&Cage) -> Result<()>>(needs: Needs, body: F) {
    if let Some(cage) = Cage::current() {
        // A panic is a failure like any other: either way the daemons' last words are worth reading.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| body(&cage)));
        if !matches!(result, Ok(Ok(()))) {
            print_logs(cage.dir());
        }
        match result {
            Ok(Ok(())) => return,
            Ok(Err(error)) => panic!("{error:?}"),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
    let missing = needs.missing().or_else(|| needs.prepare().err().map(|error| format!("{error:#}")));
    if let Some(reason) = missing {
        assert!(std::env::var_os(REQUIRE).is_none_or(|value| value != "require"), "not skipped: {reason}");
        println!("skipped: {reason}");
        return;
    }
    // `crate::module::name::{{closure}}`: libtest knows the test by what is between.
    let full = std::any::type_name::<F>();
    let name = full.trim_end_matches("::{{closure}}").split_once("::").expect("a test has a path").1;
    let arguments = ["--exact", name, "--nocapture", "--include-ignored", "--test-threads=1"];
    let (status, output) = run(&arguments.map(OsString::from), &Output::Collected, TEST_LIMIT).unwrap();
    print!("{output}");
    assert!(status.success(), "caged {name}: {status}");
    assert!(output.contains("1 passed"), "caged {name} did not run: is its name right?");
}

/// Prints the end of every log below a folder: files named `log` or `….log`.
fn print_logs(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let is_log = name == "log" || path.extension().is_some_and(|extension| extension == "log");
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            print_logs(&path);
        } else if kind.is_file() && is_log {
            let text = fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<_> = text.lines().collect();
            println!("--- {}", path.display());
            println!("{}", lines[lines.len().saturating_sub(LOG_LINES)..].join("\n"));
        }
    }
}

/// The `main` of a program called `name`: `outside` first does what needs the machine's own network, then the same
/// program runs once more in a cage, as `inside`. The exit code is the caged one's.
pub fn main(
    name: &str,
    outside: impl FnOnce() -> Result<()>,
    inside: impl FnOnce(&Cage) -> Result<ExitCode>,
) -> ExitCode {
    let result = match Cage::current() {
        Some(cage) => inside(&cage),
        None => again(outside),
    };
    result.unwrap_or_else(|error| {
        eprintln!("{name}: {error:#}");
        ExitCode::FAILURE
    })
}

fn again(outside: impl FnOnce() -> Result<()>) -> Result<ExitCode> {
    if let Some(reason) = Needs::Containers.missing() {
        bail!("{reason}");
    }
    outside()?;
    let again: Vec<_> = std::env::args_os().skip(1).collect();
    let status = run_self(&again)?;
    Ok(ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1)))
}

/// Runs this program again, caged, with `arguments`, on this process's own terminal.
pub fn run_self(arguments: &[OsString]) -> Result<ExitStatus> {
    // A day is no limit, but no special case either.
    Ok(run(arguments, &Output::Inherited, Duration::from_hours(24))?.0)
}

#[derive(PartialEq, Eq)]
enum Output {
    Inherited,
    Collected,
}

/// Two tests of one process run at once: the process's number alone is not unique.
static NEXT: AtomicU32 = AtomicU32::new(0);

fn run(arguments: &[OsString], output: &Output, limit: Duration) -> Result<(ExitStatus, String)> {
    clean_leftovers();
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let dir = Path::new(PARENT).join(format!("{PREFIX}{}-{number}", std::process::id()));
    fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;

    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "--", "unshare", "--mount", "--pid", "--net", "--fork"])
        .args(["--kill-child=KILL", "--mount-proc", "--", "sh", "-c", FIRST_PROCESS])
        .arg(std::env::current_exe()?)
        .args(arguments)
        .env(ENVIRONMENT, &dir)
        // An error's own backtrace ends in libtest and says nothing.
        .env("RUST_LIB_BACKTRACE", "0")
        .env("PATH", path_with_administration());
    let log = dir.join("output");
    if *output == Output::Collected {
        let file = fs::File::create(&log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    }
    let result = wait(&mut command, limit);
    let text = fs::read_to_string(&log).unwrap_or_default();
    remove(&dir);
    Ok((result.with_context(|| format!("caged process failed; its output:\n{text}"))?, text))
}

/// Waits for the caged process, at most `limit`; then it is killed, and everything in the cage with it.
fn wait(command: &mut Command, limit: Duration) -> Result<ExitStatus> {
    let mut child = command.spawn().context("cannot start setpriv (package util-linux)")?;
    let (done, finished) = std::sync::mpsc::channel::<()>();
    let pid = rustix::process::Pid::from_child(&child);
    let watchdog = std::thread::spawn(move || {
        let late = finished.recv_timeout(limit) == Err(std::sync::mpsc::RecvTimeoutError::Timeout);
        if late {
            // The child is not waited for before `done` is dropped, so the number is still its own.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        late
    });
    // Must not reap: the watchdog may still use the number.
    rustix::process::waitid(
        rustix::process::WaitId::Pid(pid),
        rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT,
    )?;
    drop(done);
    let late = watchdog.join().expect("the watchdog does not panic");
    let status = child.wait()?;
    if late {
        bail!("it did not end within {limit:?}");
    }
    if status.signal().is_some() {
        bail!("it was killed: {status}");
    }
    Ok(status)
}

fn path_with_administration() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    path
}

/// Removes the folder and control groups of a cage whose processes are gone.
fn remove(dir: &Path) {
    if let Some(name) = dir.file_name().and_then(|name| name.to_str()) {
        remove_cgroups(name);
    }
    // The kernel lets go of the cage's mounts a moment after its last process.
    let deadline = Instant::now() + Duration::from_secs(5);
    while let Err(error) = fs::remove_dir_all(dir) {
        if error.kind() == std::io::ErrorKind::NotFound || Instant::now() > deadline {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Removes what cages left whose outside was killed.
fn clean_leftovers() {
    for entry in fs::read_dir(PARENT).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(owner) = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()) else { continue };
        if !Path::new("/proc").join(owner).exists() {
            remove(&entry.path());
        }
    }
}

/// Control groups that runc made for containers of a cage: below `/sys/fs/cgroup` (version 2) or each controller's
/// folder there (version 1), named by containerd's namespace, which begins with the cage's tag.
fn remove_cgroups(tag: &str) {
    let root = Path::new("/sys/fs/cgroup");
    let controllers = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    for folder in controllers.filter(|path| path.is_dir()).chain([root.to_path_buf()]).collect::<Vec<_>>() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(tag) {
                remove_cgroup(&entry.path());
            }
        }
    }
}

/// A control group is removed by `rmdir`, its children first; its files are the kernel's.
fn remove_cgroup(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_cgroup(&entry.path());
        }
    }
    let _ = fs::remove_dir(dir);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cage_has_its_own_run_and_its_own_process_numbers() {
        test(Needs::Network, |cage| {
            assert!(cage.dir().is_dir());
            assert!(std::process::id() < 50, "process numbers start anew");
            assert!(fs::read_dir("/run/netns")?.next().is_none());
            Ok(())
        });
    }

    #[test]
    fn a_failure_inside_is_a_failure_outside_and_leaves_nothing() {
        if Cage::current().is_none() && Needs::Network.missing().is_some() {
            return;
        }
        let before = labs_of_this_process();
        let caged = std::panic::catch_unwind(|| {
            test(Needs::Network, |cage| {
                // A process that would outlive everybody.
                Command::new("setsid").args(["sleep", "1000"]).spawn()?;
                fs::write(cage.dir().join("file"), "x")?;
                bail!("meant to fail")
            });
        });
        if let Some(cage) = Cage::current() {
            // Inside: pass the failure on.
            assert!(cage.dir().exists());
            std::panic::resume_unwind(caged.unwrap_err());
        }
        assert!(caged.is_err());
        assert!(labs_of_this_process().difference(&before).next().is_none());
    }

    fn labs_of_this_process() -> std::collections::BTreeSet<String> {
        // Other tests of this process have cages too: only what ends with the failing test's file counts.
        let mine = format!("{PREFIX}{}-", std::process::id());
        fs::read_dir(PARENT)
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.path().join("file").exists())
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| name.starts_with(&mine))
            .collect()
    }
}
