//! `pantala keeper`: what every other process of a snapshotter may die without.

use std::time::Duration;

use anyhow::Context;
use lazyfs::keeper;

use super::daemon_log;
use crate::cli::KeeperArgs;

/// Runs until there is nothing to keep. Must be called while the process has one thread.
pub fn run(args: KeeperArgs) -> anyhow::Result<()> {
    if !args.foreground {
        keeper::detach().context("the keeper cannot detach")?;
    }
    daemon_log("info")?;
    // The last to be killed when memory is short: it needs little, and everything hangs on it.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
    // A stopped service, a pod's end: whoever kills a control group kills all in it.
    keeper::leave();
    let root = args.root.clone();
    keeper::serve(keeper::ServeOptions { root: args.root, grace: Duration::from_secs(args.grace) })
        .with_context(|| format!("the keeper of {}", root.display()))
}
