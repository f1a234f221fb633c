//! Processes of a lab: run to the end, or started as a daemon with a log, a readiness signal and an end.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// How long a daemon may take until it is ready, on a busy machine.
pub const READY_LIMIT: Duration = Duration::from_secs(30);
/// How long a daemon may take to end after SIGTERM, before it is killed.
const END_LIMIT: Duration = Duration::from_secs(10);
/// Between two looks at something that has no signal to wait for: somebody else's socket.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Runs a command to its end and answers what it printed. An error carries what it wrote to standard error.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", command.get_program().display()))?;
    if !output.status.success() {
        bail!("{}: {}: {}", line(command), output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command to its end, whichever that is; answers its status and both of its outputs, the errors last.
pub fn run_any(command: &mut Command) -> Result<(ExitStatus, String, String)> {
    let shown = line(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {shown}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((output.status, text(&output.stdout), text(&output.stderr)))
}

/// A command as one would type it.
fn line(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy()];
    words.extend(command.get_args().map(|word| word.to_string_lossy()));
    words.join(" ")
}

/// What a finished command printed, and when its first line came.
#[derive(Debug)]
pub struct Printed {
    /// Everything on standard output.
    pub stdout: String,
    /// When the first complete line was there; when it ended, if it printed none.
    pub first_line: Instant,
}

/// Runs a command to its end and notes when its first line of output appeared.
pub fn run_timed(command: &mut Command) -> Result<Printed> {
    let shown = line(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {shown}"))?;
    let mut stderr = child.stderr.take().expect("piped");
    let errors = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = std::io::Read::read_to_string(&mut stderr, &mut text);
        text
    });
    let mut reader = BufReader::new(child.stdout.take().expect("piped"));
    let mut stdout = String::new();
    reader.read_line(&mut stdout)?;
    let first_line = Instant::now();
    std::io::Read::read_to_string(&mut reader, &mut stdout)?;
    let status = child.wait()?;
    let errors = errors.join().unwrap_or_default();
    if !status.success() {
        bail!("{shown}: {status}: {}", errors.trim());
    }
    Ok(Printed { stdout, first_line })
}

/// Waits until `look` finds something, looking often. For what gives no signal; a daemon's log does, see
/// [`Daemon::wait_for_line`].
pub fn wait_until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        if Instant::now() > deadline {
            bail!("waited {limit:?} in vain for {what}");
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// A process that runs until it is told to end. Dropped, it ends.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    child: Child,
    log: Arc<Log>,
    copier: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Log {
    path: PathBuf,
    lines: Mutex<Lines>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Lines {
    lines: Vec<String>,
    ended: bool,
}

impl Daemon {
    /// Starts `command`; both of its outputs go, line by line, to the file `log`, which is extended.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        let (reader, writer) = std::io::pipe()?;
        let child = command
            .stdin(Stdio::null())
            .stdout(writer.try_clone()?)
            .stderr(writer)
            // Ctrl-C is for the lab, which ends its daemons in order.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {name}: {}", line(command)))?;
        // The command still holds its ends of the pipe: the log would never end.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut file = File::options().create(true).append(true).open(log)?;
        writeln!(file, "# {}", line(command))?;
        let log =
            Arc::new(Log { path: log.to_path_buf(), lines: Mutex::default(), changed: Condvar::default() });
        let copy = Arc::clone(&log);
        let copier = std::thread::spawn(move || copy.follow(BufReader::new(reader), file));
        Ok(Self { name: name.into(), child, log, copier: Some(copier) })
    }

    /// The name it was started under.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its resident memory in bytes, with that of its children: a service is a supervisor and a worker.
    pub fn memory(&self) -> Result<u64> {
        let mut total = 0;
        let mut left = vec![self.pid()];
        while let Some(pid) = left.pop() {
            let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) else { continue };
            let kib = status
                .lines()
                .find_map(|line| line.strip_prefix("VmRSS:"))
                .and_then(|rest| rest.split_whitespace().next())
                .context("no VmRSS")?;
            total += kib.parse::<u64>()? * 1024;
            left.extend(children(pid));
        }
        Ok(total)
    }

    /// The process that does the work: the supervisor's child, if it has one, else the process itself.
    pub fn worker(&self) -> u32 {
        children(self.pid()).first().copied().unwrap_or(self.pid())
    }

    /// Everything it has logged since it was started.
    pub fn log(&self) -> Vec<String> {
        self.log.lines.lock().unwrap().lines.clone()
    }

    /// Waits for a line of the log that contains `text`, and answers it.
    pub fn wait_for_line(&self, text: &str, limit: Duration) -> Result<String> {
        let deadline = Instant::now() + limit;
        let mut lines = self.log.lines.lock().unwrap();
        loop {
            if let Some(line) = lines.lines.iter().find(|line| line.contains(text)) {
                return Ok(line.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if lines.ended || left.is_zero() {
                bail!("{} never logged {text:?}; its log ends with:\n{}", self.name, tail(&lines.lines));
            }
            lines = self.log.changed.wait_timeout(lines, left).unwrap().0;
        }
    }

    /// Waits until the Unix socket `path` accepts.
    pub fn wait_for_socket(&mut self, path: &Path) -> Result<()> {
        self.wait_for(&path.display().to_string(), || UnixStream::connect(path).is_ok())
    }

    /// Waits until `address` accepts.
    pub fn wait_for_address(&mut self, address: SocketAddr) -> Result<()> {
        self.wait_for(&address.to_string(), || {
            TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
        })
    }

    /// Waits until `look` is true, or fails with the end of the log when the process ends before that.
    pub fn wait_for(&mut self, what: &str, mut look: impl FnMut() -> bool) -> Result<()> {
        let deadline = Instant::now() + READY_LIMIT;
        while !look() {
            if let Some(status) = self.child.try_wait()? {
                // Nothing more is coming: the copier ends by itself.
                self.copier.take().map(JoinHandle::join);
                bail!("{} ended ({status}) before {what} was ready:\n{}", self.name, self.log_tail());
            }
            if Instant::now() > deadline {
                bail!("{}: {what} was not ready after {READY_LIMIT:?}:\n{}", self.name, self.log_tail());
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        Ok(())
    }

    /// The last lines of the log.
    pub fn log_tail(&self) -> String {
        format!("{} (whole log: {})", tail(&self.log.lines.lock().unwrap().lines), self.log.path.display())
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Kills it, as a crash would (SIGKILL), and waits until it is gone.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(Pid::from_child(&self.child), signal)
            .with_context(|| format!("cannot signal {}", self.name))
    }

    /// Asks it to end (SIGTERM) and waits; killed when it does not. Answers how it ended.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        self.signal(Signal::TERM)?;
        let deadline = Instant::now() + END_LIMIT;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        self.kill()?;
        bail!("{} did not end within {END_LIMIT:?} of SIGTERM:\n{}", self.name, self.log_tail())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // A failed test wants its own error seen, not this one.
        let _ = self.stop();
    }
}

/// The children of a process, as far as its first thread made them.
fn children(pid: u32) -> Vec<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

impl Log {
    /// Copies lines to the file and into memory, until every process that holds the other end is gone.
    fn follow(&self, reader: BufReader<std::io::PipeReader>, mut file: File) {
        for line in reader.lines().map_while(Result::ok) {
            let _ = writeln!(file, "{line}");
            self.lines.lock().unwrap().lines.push(line);
            self.changed.notify_all();
        }
        self.lines.lock().unwrap().ended = true;
        self.changed.notify_all();
    }
}

fn tail(lines: &[String]) -> String {
    lines[lines.len().saturating_sub(25)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn daemon(script: &str) -> (tempfile::TempDir, Daemon) {
        let dir = tempfile::tempdir().unwrap();
        let daemon =
            Daemon::start("shell", Command::new("sh").args(["-c", script]), &dir.path().join("log")).unwrap();
        (dir, daemon)
    }

    #[test]
    fn a_line_in_the_log_is_a_signal() {
        let (dir, mut daemon) = daemon("echo starting; echo ready now >&2; exec sleep 100");
        assert_eq!(daemon.wait_for_line("ready", READY_LIMIT).unwrap(), "ready now");
        assert!(daemon.is_running());
        assert!(!daemon.stop().unwrap().success(), "ended by SIGTERM");
        let log = std::fs::read_to_string(dir.path().join("log")).unwrap();
        assert!(log.contains("starting\nready now\n"), "{log}");
    }

    #[test]
    fn an_early_end_is_told_with_the_log() {
        let (_dir, mut daemon) = daemon("echo the disk is full; exit 3");
        let error = daemon.wait_for("never", || false).unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.contains("the disk is full"), "{error}");
        let error = daemon.wait_for_line("never", READY_LIMIT).unwrap_err().to_string();
        assert!(error.contains("the disk is full"), "{error}");
    }

    #[test]
    fn the_first_line_has_its_own_time() {
        let printed = run_timed(Command::new("sh").args(["-c", "echo one; echo two"])).unwrap();
        assert_eq!(printed.stdout, "one\ntwo\n");
        let error = run_timed(Command::new("sh").args(["-c", "echo why >&2; exit 1"])).unwrap_err();
        assert!(error.to_string().ends_with(": why"), "{error}");
    }
}
