//! `pantala snapshotter`: lazy mounts straight from registries, in place of stargz-snapshotter.

use std::sync::Arc;

use content::DirectOpener;

use super::daemon_log;
use crate::cli::SnapshotterArgs;
use crate::node::{Registries, notify_systemd};
use crate::ports;
use crate::supervised::Succession;

/// Runs until a signal.
pub async fn run(args: SnapshotterArgs) -> anyhow::Result<()> {
    daemon_log(&args.log_level)?;
    let mut config = load(args.config.as_deref())?;
    config.driver = args.driver.unwrap_or(config.driver);
    if let Some(address) = args.containerd_address {
        config.containerd_address = address;
    }
    let registries = Registries { hosts: config.hosts.clone(), ..Registries::default() };
    let client = registries.own_client()?;
    let shutdown = ports::shutdown_on_signal()?;
    snapshotter::check_host()?;
    let Succession { keep, hand_over } = Succession::prepare(&args.root, &shutdown).await?;
    let options =
        snapshotter::ServeOptions { address: args.address, root: args.root, config, keep, hand_over };
    let running = snapshotter::start(options, Arc::new(DirectOpener), client, shutdown).await?;
    notify_systemd("READY=1");
    running.stopped().await?;
    Ok(())
}

/// The file that was named must be there; the default one may be missing.
pub fn load(path: Option<&std::path::Path>) -> anyhow::Result<snapshotter::Config> {
    Ok(match path {
        Some(path) => snapshotter::Config::load(path)?,
        None => snapshotter::Config::load_default()?,
    })
}
