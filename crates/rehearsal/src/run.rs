//! A container, from its start to the moment when it has run for long enough.

use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::error::RehearsalError;
use crate::options::Options;
use crate::stage::Bundle;

/// How long a program may take to end when it is asked to. What it writes elsewhere may matter to its owner.
const ORDERLY: Duration = Duration::from_secs(3);
/// How long the last words of a program may take to get here when it has ended.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How long runc may take for what it does in milliseconds.
const RUNC: Duration = Duration::from_secs(10);
/// Most of runc's own log that is read, in bytes.
const MOST_LOG: usize = 64 << 10;

/// Why a rehearsal ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// Its time was over.
    Period,
    /// The line came.
    Line,
    /// Whoever watched had seen enough.
    Enough,
    /// The program ended, with this code.
    Exited(i32),
}

/// Runs the container of `bundle`. Answers when and why it had run for long enough; then nothing of it is left.
pub(crate) async fn run(bundle: &Bundle, options: &Options) -> Result<(Instant, Ending), RehearsalError> {
    let runc = Runc { program: &options.runc, bundle, id: unique() };
    let mut child = runc.start(options)?;
    let line = CancellationToken::new();
    let copies = copies(&mut child, options, &line);
    let period = async {
        match options.until.period {
            Some(period) => tokio::time::sleep(period).await,
            None => std::future::pending().await,
        }
    };
    let ending = tokio::select! {
        biased;
        () = options.abort.cancelled() => Err(RehearsalError::Interrupted),
        () = line.cancelled() => Ok(Ending::Line),
        () = options.until.enough.cancelled() => Ok(Ending::Enough),
        ended = child.wait() => Ok(Ending::Exited(ended.ok().and_then(|status| status.code()).unwrap_or(-1))),
        () = period => Ok(Ending::Period),
    };
    let end = Instant::now();
    if !matches!(ending, Ok(Ending::Exited(_))) {
        runc.stop(&mut child).await;
    }
    for copy in copies {
        // Somebody that the program left behind may hold its output open.
        if let Ok(Err(error)) = tokio::time::timeout(LAST_WORDS, copy).await {
            tracing::debug!(%error, "copying the container's output");
        }
    }
    runc.delete().await;
    // The needed line may be the last: then it came, though the program ended first.
    let ending = match ending? {
        Ending::Exited(code) => match runc.complaint() {
            Some(reason) if code != 0 => return Err(RehearsalError::Start(reason)),
            _ if line.is_cancelled() => Ending::Line,
            _ => Ending::Exited(code),
        },
        other => other,
    };
    Ok((end, ending))
}

/// One container of runc.
struct Runc<'a> {
    program: &'a Path,
    bundle: &'a Bundle,
    id: String,
}

impl Runc<'_> {
    fn command(&self) -> Command {
        let mut command = Command::new(self.program);
        command.arg("--root").arg(&self.bundle.state);
        command.args(["--log-format", "json", "--log"]).arg(&self.bundle.log);
        command
    }

    fn start(&self, options: &Options) -> Result<Child, RehearsalError> {
        let mut command = self.command();
        command.args(["run", "--bundle"]).arg(&self.bundle.dir).arg(&self.id);
        let attached = options.terminal || options.interactive;
        command.stdin(if attached { Stdio::inherit() } else { Stdio::null() });
        if !options.terminal {
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
        }
        if !attached {
            // Ctrl-C is for us: runc would pass it on, and the container's end would be in the record.
            command.process_group(0);
        }
        command
            .spawn()
            .map_err(|source| RehearsalError::NoRunc { program: self.program.display().to_string(), source })
    }

    async fn order(&self, words: &[&str]) {
        let mut command = self.command();
        command.args(words).arg(&self.id).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.kill_on_drop(true);
        match tokio::time::timeout(RUNC, command.status()).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::debug!(%error, ?words, "runc"),
            Err(_) => tracing::warn!(?words, "runc does not answer"),
        }
    }

    /// Ends the container: asked at first.
    async fn stop(&self, child: &mut Child) {
        for (word, patience) in [("TERM", ORDERLY), ("KILL", RUNC)] {
            let mut command = self.command();
            command
                .args(["kill", &self.id, word])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            command.kill_on_drop(true);
            if let Ok(Err(error)) = tokio::time::timeout(RUNC, command.status()).await {
                tracing::debug!(%error, word, "runc kill");
            }
            if tokio::time::timeout(patience, child.wait()).await.is_ok() {
                return;
            }
        }
        // runc itself hangs: what it holds goes with `delete`.
        if let Err(error) = child.kill().await {
            tracing::warn!(%error, "runc could not be ended");
        }
    }

    /// Removes what is left: control groups, state, and the container itself if it lives.
    async fn delete(&self) {
        self.order(&["delete", "--force"]).await;
    }

    /// What runc said was wrong.
    fn complaint(&self) -> Option<String> {
        #[derive(Deserialize)]
        struct Line {
            level: String,
            msg: String,
        }
        let bytes = std::fs::read(&self.bundle.log).ok()?;
        let text = String::from_utf8_lossy(bytes.get(..MOST_LOG.min(bytes.len()))?).into_owned();
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok());
        let wrong = lines.rev().find(|line| line.level == "error" || line.level == "fatal")?;
        let text = wrong.msg.trim_start_matches("runc run failed: ");
        Some(text.chars().filter(|c| !c.is_control()).take(400).collect())
    }
}

/// Passes the container's output on, and looks for the line in it.
fn copies(child: &mut Child, options: &Options, found: &CancellationToken) -> Vec<JoinHandle<()>> {
    let needle: Arc<[u8]> = options.until.line.clone().unwrap_or_default().into_bytes().into();
    let mut copies = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        let watch = Watch::new(Arc::clone(&needle), found.clone());
        copies.push(if options.quiet {
            tokio::spawn(copy(stdout, std::io::stderr(), watch))
        } else {
            tokio::spawn(copy(stdout, std::io::stdout(), watch))
        });
    }
    if let Some(stderr) = child.stderr.take() {
        copies.push(tokio::spawn(copy(stderr, std::io::stderr(), Watch::new(needle, found.clone()))));
    }
    copies
}

async fn copy(mut from: impl AsyncRead + Unpin + Send, mut to: impl Write + Send, mut watch: Watch) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(count) = from.read(&mut buffer).await {
        if count == 0 {
            break;
        }
        let part = buffer.get(..count).unwrap_or_default();
        // Nobody may be listening; the container goes on all the same.
        let _ = to.write_all(part).and_then(|()| to.flush());
        watch.look(part);
    }
}

/// Looks for a text in a stream of bytes. A line that has it has it whole.
struct Watch {
    needle: Arc<[u8]>,
    /// The end of what came before, shorter than the needle.
    before: Vec<u8>,
    found: CancellationToken,
}

impl Watch {
    fn new(needle: Arc<[u8]>, found: CancellationToken) -> Self {
        Self { needle, before: Vec::new(), found }
    }

    fn look(&mut self, part: &[u8]) {
        if self.needle.is_empty() {
            return;
        }
        self.before.extend_from_slice(part);
        if self.before.windows(self.needle.len()).any(|window| *window == *self.needle) {
            self.found.cancel();
        }
        let keep = self.needle.len().saturating_sub(1);
        let drop = self.before.len().saturating_sub(keep);
        self.before.drain(..drop);
    }
}

/// A name that no other container has.
fn unique() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("pantala-{}-{}", std::process::id(), now.as_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_found_however_the_stream_is_cut() {
        let text = b"starting\nready to serve\n";
        for cut in 0..text.len() {
            let found = CancellationToken::new();
            let mut watch = Watch::new(Arc::from(&b"to serve"[..]), found.clone());
            watch.look(&text[..cut]);
            watch.look(&text[cut..]);
            assert!(found.is_cancelled(), "cut at {cut}");
        }
        let found = CancellationToken::new();
        let mut watch = Watch::new(Arc::from(&b"to serve"[..]), found.clone());
        watch.look(b"to ser");
        watch.look(b"\nve");
        assert!(!found.is_cancelled());
        let mut nothing = Watch::new(Arc::from(&b""[..]), found.clone());
        nothing.look(text);
        assert!(!found.is_cancelled());
    }
}
