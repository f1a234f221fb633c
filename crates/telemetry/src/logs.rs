//! Setting up the log.

use std::io::IsTerminal;
use std::str::FromStr;
use std::sync::{Mutex, OnceLock, PoisonError};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::Registry;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

use crate::json::JsonFormat;

/// How a record is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogFormat {
    /// One JSON object per line, with logrus' keys.
    Json,
    /// For a person.
    Text,
}

impl LogFormat {
    /// Text if standard error is a terminal, JSON otherwise.
    pub fn detect() -> Self {
        if std::io::stderr().is_terminal() { Self::Text } else { Self::Json }
    }
}

/// Why the log could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogsError {
    /// The level is not one that we know.
    #[error("unknown log level {0:?}: use trace, debug, info, warn, error, fatal or panic")]
    Level(String),
    /// There is no log in this process whose level could be set.
    #[error("the log of this process is not set up")]
    None,
    /// A log was set up before in this process.
    #[error("the log of this process is already set up")]
    Twice,
}

/// The level as it was said, and the way to change it.
struct Current {
    level: Mutex<String>,
    handle: reload::Handle<EnvFilter, Registry>,
}

static CURRENT: OnceLock<Current> = OnceLock::new();

/// Sends the records of this process to standard error.
///
/// `level` is a word of logrus (`warning`, `fatal`, `panic` too, in letters of any size) or of tracing, or a filter of
/// `tracing-subscriber` (`info,swarm=debug`). Dependencies stay quiet below `warn`, unless named.
///
/// # Errors
/// [`LogsError::Level`] for a word that is neither, [`LogsError::Twice`] on a second call.
pub fn init_logs(level: &str, format: LogFormat) -> Result<(), LogsError> {
    let (filter, handle) = reload::Layer::new(filter(level)?);
    let registry = tracing_subscriber::registry().with(filter);
    match format {
        LogFormat::Json => {
            let layer =
                tracing_subscriber::fmt::layer().event_format(JsonFormat).with_writer(std::io::stderr);
            registry.with(layer).try_init()
        }
        LogFormat::Text => {
            let ansi = std::io::stderr().is_terminal();
            let layer = tracing_subscriber::fmt::layer().with_target(false).with_ansi(ansi);
            registry.with(layer.with_writer(std::io::stderr)).try_init()
        }
    }
    .map_err(|_| LogsError::Twice)?;
    let _first = CURRENT.set(Current { level: Mutex::new(level.to_owned()), handle });
    Ok(())
}

/// The level that was set last; empty if there is no log.
pub fn log_level() -> String {
    CURRENT.get().map_or_else(String::new, |current| {
        current.level.lock().unwrap_or_else(PoisonError::into_inner).clone()
    })
}

/// Changes what is logged from now on. `level` is as for [`init_logs`].
///
/// # Errors
/// [`LogsError::Level`] for a word that is none, [`LogsError::None`] before [`init_logs`].
pub fn set_log_level(level: &str) -> Result<(), LogsError> {
    let filter = filter(level)?;
    let current = CURRENT.get().ok_or(LogsError::None)?;
    current.handle.reload(filter).map_err(|_| LogsError::None)?;
    level.clone_into(&mut current.level.lock().unwrap_or_else(PoisonError::into_inner));
    Ok(())
}

/// Whether [`init_logs`] would take `level`.
///
/// # Errors
/// [`LogsError::Level`] if not.
pub fn check_level(level: &str) -> Result<(), LogsError> {
    filter(level).map(|_| ())
}

/// The crates whose records `level` is meant for.
const OURS: [&str; 14] = [
    "pantala",
    "content",
    "telemetry",
    "identity",
    "estargz",
    "registry",
    "store",
    "swarm",
    "scheduler",
    "lazyfs",
    "snapshotter",
    "proxy",
    "convert",
    "containerd",
];

fn filter(level: &str) -> Result<EnvFilter, LogsError> {
    let unknown = || LogsError::Level(level.chars().take(60).collect());
    let lower = level.to_ascii_lowercase();
    let word = match lower.as_str() {
        "warning" => "warn",
        "fatal" | "panic" => "error",
        word if tracing::Level::from_str(word).is_ok() => word,
        _ => level,
    };
    if tracing::Level::from_str(word).is_ok() {
        let ours = OURS.map(|name| format!("{name}={word}")).join(",");
        return EnvFilter::try_new(format!("warn,{ours}")).map_err(|_| unknown());
    }
    if !word.contains(['=', ',']) {
        return Err(unknown());
    }
    EnvFilter::try_new(word).map_err(|_| unknown())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_logrus_and_filters_are_taken() {
        for level in ["info", "warning", "fatal", "debug", "INFO", "Warning", "trace", "info,swarm=debug"] {
            assert!(filter(level).is_ok(), "{level}");
        }
    }

    #[test]
    fn a_misspelt_level_is_an_error_that_lists_the_levels() {
        let error = filter("verbos").unwrap_err().to_string();
        assert!(error.contains("verbos") && error.contains("debug"), "{error}");
    }
}
