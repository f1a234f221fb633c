//! `pantala scheduler`.

use anyhow::Context;
use scheduler::{SchedulerConfig, SchedulerSecurity};

use super::{daemon_log, warn_all};
use crate::cli::SchedulerArgs;
use crate::config::{self, scheduler::SchedulerFile};
use crate::ports;

/// Runs until a signal.
pub async fn run(args: SchedulerArgs) -> anyhow::Result<()> {
    let file: SchedulerFile = config::load(&args.config, "scheduler")?;
    let level = if file.verbose { "debug" } else { "info" };
    daemon_log(args.log_level.as_deref().unwrap_or(level))?;
    warn_all(&args.config, file.warnings());
    let security = match file.security.token().with_context(|| args.config.display().to_string())? {
        Some(token) => SchedulerSecurity::Token(token),
        None => SchedulerSecurity::Insecure,
    };
    let data_dir = &file.server.data_dir;
    std::fs::create_dir_all(data_dir)
        .with_context(|| format!("cannot create server.dataDir {}", data_dir.display()))?;
    let address = (file.server.listen_ip, file.server.port).into();
    let listener = ports::bind(address, "the scheduler", "server.port")?;
    let shutdown = ports::shutdown_on_signal()?;
    tracing::info!(%address, advertise = ?file.server.advertise_ip, "scheduler listens");
    scheduler::serve(listener, SchedulerConfig { data_dir: data_dir.clone(), security }, shutdown).await?;
    Ok(())
}
