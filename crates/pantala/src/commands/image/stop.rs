//! Commands that a signal ends, with everything put away.

use std::fmt;
use std::sync::{Arc, OnceLock};

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The user, or a supervisor, wanted no more.
#[derive(Debug)]
pub struct Stopped {
    signal: Signal,
    target: String,
}

impl Stopped {
    /// The signal, and what is as it was.
    pub fn new(signal: Signal, target: &impl fmt::Display) -> Self {
        Self { signal, target: target.to_string() }
    }

    /// As shells have it: 128 and the signal's number.
    pub const fn exit_code(&self) -> u8 {
        self.signal.exit_code()
    }
}

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stopped by {}: {} is what it was before", self.signal.name(), self.target)
    }
}

impl std::error::Error for Stopped {}

/// A signal that means "no more".
#[derive(Debug, Clone, Copy)]
pub enum Signal {
    /// SIGHUP.
    Hangup,
    /// SIGINT.
    Interrupt,
    /// SIGTERM.
    Terminate,
}

impl Signal {
    const fn name(self) -> &'static str {
        match self {
            Self::Hangup => "SIGHUP",
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
        }
    }

    const fn exit_code(self) -> u8 {
        match self {
            Self::Hangup => 129,
            Self::Interrupt => 130,
            Self::Terminate => 143,
        }
    }
}

/// Cancels one of `tokens` with each signal, the first that is not cancelled yet, and tells which signal cancelled
/// the last of them. The next one ends the process at once.
pub fn stop_on_signal(tokens: &[CancellationToken]) -> anyhow::Result<Arc<OnceLock<Signal>>> {
    let watch = |kind, name| signal(kind).with_context(|| format!("cannot watch {name}"));
    let mut hangup = watch(SignalKind::hangup(), "SIGHUP")?;
    let mut interrupt = watch(SignalKind::interrupt(), "SIGINT")?;
    let mut terminate = watch(SignalKind::terminate(), "SIGTERM")?;
    let heard = Arc::new(OnceLock::new());
    let last = Arc::clone(&heard);
    let tokens = tokens.to_vec();
    // Lives as long as the process: it is the one that hears the last signal.
    tokio::spawn(async move {
        loop {
            let signal = tokio::select! {
                _ = hangup.recv() => Signal::Hangup,
                _ = interrupt.recv() => Signal::Interrupt,
                _ = terminate.recv() => Signal::Terminate,
            };
            let mut left = tokens.iter().filter(|token| !token.is_cancelled());
            let Some(token) = left.next() else { std::process::exit(i32::from(signal.exit_code())) };
            if left.next().is_none() {
                // Set nowhere else, and once.
                let _ = last.set(signal);
            }
            token.cancel();
        }
    });
    Ok(heard)
}
