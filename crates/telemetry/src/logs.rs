//! Setting up the log.

use std::io::IsTerminal;
use std::str::FromStr;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
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
    #[error("unknown log level {0:?}: use error, warn, info, debug or trace")]
    Level(String),
    /// A log was set up before in this process.
    #[error("the log of this process is already set up")]
    Twice,
}

/// Sends the records of this process to standard error.
///
/// `level` is a word of logrus (`warning`, `fatal`, `panic` too) or of tracing, or a filter of
/// `tracing-subscriber` (`info,swarm=debug`). Dependencies stay quiet below `warn`, unless named.
///
/// # Errors
/// [`LogsError::Level`] for a word that is neither, [`LogsError::Twice`] on a second call.
pub fn init_logs(level: &str, format: LogFormat) -> Result<(), LogsError> {
    let registry = tracing_subscriber::registry().with(filter(level)?);
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
    .map_err(|_| LogsError::Twice)
}

/// Whether [`init_logs`] would take `level`.
///
/// # Errors
/// [`LogsError::Level`] if not.
pub fn check_level(level: &str) -> Result<(), LogsError> {
    filter(level).map(|_| ())
}

/// The crates whose records `level` is meant for.
const OURS: [&str; 13] = [
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
];

fn filter(level: &str) -> Result<EnvFilter, LogsError> {
    let unknown = || LogsError::Level(level.chars().take(60).collect());
    let word = match level {
        "warning" => "warn",
        "fatal" | "panic" => "error",
        other => other,
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
        for level in ["info", "warning", "fatal", "debug", "info,swarm=debug"] {
            assert!(filter(level).is_ok(), "{level}");
        }
    }

    #[test]
    fn a_misspelt_level_is_an_error_that_lists_the_levels() {
        let error = filter("verbos").unwrap_err().to_string();
        assert!(error.contains("verbos") && error.contains("debug"), "{error}");
    }
}
