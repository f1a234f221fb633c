//! One module per command. Each turns flags and files into the settings of a library, and waits for it.

pub mod image;
pub mod keeper;
pub mod node;
pub mod scheduler;
pub mod snapshotter;
pub mod status;
pub mod up;

use anyhow::Context;
use clap::CommandFactory;
use telemetry::LogFormat;

use crate::cli::Cli;

/// Prints the completion script for `shell`.
pub fn completion(shell: clap_complete::Shell) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "pantala", &mut script);
    crate::out::print(script)
}

/// Starts the log of a daemon: JSON, whether or not a terminal looks on, because scripts read it.
fn daemon_log(level: &str) -> anyhow::Result<()> {
    telemetry::init_logs(level, LogFormat::Json).context("cannot set up the log")
}

/// Logs each warning about the configuration once.
fn warn_all(file: &std::path::Path, warnings: Vec<String>) {
    for warning in warnings {
        tracing::warn!(file = %file.display(), "{warning}");
    }
}
