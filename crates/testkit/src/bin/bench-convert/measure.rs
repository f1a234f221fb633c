//! What a conversion costs: time on the clock, time on the cores, memory.

use std::fs;
use std::io::{self, Read};
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Between two looks at a process's peak memory. The kernel keeps the peak, so only what grows in the last moment is lost.
const LOOK: Duration = Duration::from_millis(20);

/// What one run cost.
#[derive(Debug, Clone, Copy, Default)]
pub struct Figures {
    /// From start to end.
    pub wall: Duration,
    /// Time on all cores, of the converter alone.
    pub cpu: Duration,
    /// Peak of the resident memory, in bytes.
    pub peak_memory: u64,
    /// Bytes of the layer that was made.
    pub size: u64,
}

/// Runs a command to its end.
pub fn measure(command: &mut Command) -> Result<Figures> {
    let cpu_before = children_cpu()?;
    let start = Instant::now();
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let status_file = format!("/proc/{}/status", child.id());
    let (done, finished) = channel::<()>();
    let watcher = std::thread::spawn(move || {
        let mut peak = 0;
        while finished.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
            // A process that has just ended has no memory any more.
            peak = fs::read_to_string(&status_file).ok().and_then(|text| high_water(&text)).unwrap_or(peak);
        }
        peak
    });
    let output = child.wait_with_output()?;
    let wall = start.elapsed();
    drop(done);
    let peak_memory = watcher.join().expect("the watcher does not panic");
    if !output.status.success() {
        bail!(
            "{}: {}: {}",
            command.get_program().display(),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(Figures { wall, cpu: children_cpu()?.saturating_sub(cpu_before), peak_memory, size: 0 })
}

/// `VmHWM` of a process's status, in bytes.
fn high_water(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// Time on the cores of all processes that this one has waited for.
fn children_cpu() -> Result<Duration> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    // The second field is a name in parentheses that may hold spaces. cutime and cstime are the 16th and 17th.
    let fields: Vec<_> = stat.rsplit_once(')').context("no stat")?.1.split_whitespace().collect();
    let ticks = fields[13].parse::<u64>()? + fields[14].parse::<u64>()?;
    // Linux tells user space a hundredth of a second per tick on every architecture that we run on.
    Ok(Duration::from_millis(ticks * 10))
}

/// A layer's tar: its bytes and its entries.
#[derive(Debug, Clone, Copy)]
pub struct TarSize {
    /// All of it.
    pub bytes: u64,
    /// Files, folders and whatever else has a name.
    pub entries: u64,
}

impl TarSize {
    /// Of a gzipped layer.
    pub fn of(gzip: &[u8]) -> Result<Self> {
        let mut reader = Counted { inner: flate2::read::MultiGzDecoder::new(gzip), bytes: 0 };
        let entries = tar::Archive::new(&mut reader).entries()?.count() as u64;
        io::copy(&mut reader, &mut io::sink())?;
        Ok(Self { bytes: reader.bytes, entries })
    }
}

struct Counted<R> {
    inner: R,
    bytes: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.inner.read(buffer)?;
        self.bytes += len as u64;
        Ok(len)
    }
}
