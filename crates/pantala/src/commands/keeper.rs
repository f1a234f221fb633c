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
    leave_pod();
    let root = args.root.clone();
    keeper::serve(keeper::ServeOptions { root: args.root, grace: Duration::from_secs(args.grace) })
        .with_context(|| format!("the keeper of {}", root.display()))
}

/// Leaves the control groups of a pod: its end kills whoever is in them. Works where the machine's own
/// `/sys/fs/cgroup` is mounted, and only there.
fn leave_pod() {
    let Ok(groups) = std::fs::read_to_string("/proc/self/cgroup") else { return };
    // hierarchy:controllers:path; version 2 has no controllers, and one hierarchy.
    for line in groups.lines().filter(|line| line.contains("kubepods")) {
        let controllers = line.split(':').nth(1).unwrap_or_default();
        let name = controllers.strip_prefix("name=").unwrap_or(controllers);
        let group = std::path::Path::new("/sys/fs/cgroup").join(name).join("pantala-keeper");
        let left = std::fs::create_dir_all(&group)
            .and_then(|()| std::fs::write(group.join("cgroup.procs"), std::process::id().to_string()));
        if let Err(error) = left {
            tracing::warn!(%error, "the keeper dies with this pod, and mounted layers with it");
        }
    }
}
