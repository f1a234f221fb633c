//! A control group of a lab's own: what a service manager puts a service into, and kills as one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::process::wait_until;

/// A control group (version 2) at the top of the hierarchy. Its processes are killed, and it goes, when it is dropped.
#[derive(Debug)]
pub struct Group {
    path: PathBuf,
}

/// Where the hierarchy of version 2 is mounted.
pub fn hierarchy() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let mut mounts = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let found = mounts.find(|words| words.get(2) == Some(&"cgroup2"));
    let found = found.and_then(|words| words.get(1).map(PathBuf::from));
    found.context("control groups of version 2 are mounted nowhere")
}

impl Group {
    /// Makes one; `name` must be free.
    pub fn new(name: &str) -> Result<Self> {
        let path = hierarchy()?.join(name);
        fs::create_dir(&path).with_context(|| format!("making the control group {}", path.display()))?;
        Ok(Self { path })
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `command`, as a member.
    pub fn member(&self, command: &Command) -> Command {
        let mut member = Command::new("sh");
        member.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(self.path.join("cgroup.procs"));
        member.arg(command.get_program()).args(command.get_args());
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => member.env(key, value),
                None => member.env_remove(key),
            };
        }
        member
    }

    /// Its processes.
    pub fn members(&self) -> Result<Vec<u32>> {
        let text = fs::read_to_string(self.path.join("cgroup.procs"))?;
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
    }

    /// Kills all of them at once.
    pub fn kill(&self) -> Result<()> {
        fs::write(self.path.join("cgroup.kill"), "1")?;
        wait_until("the end of a control group", Duration::from_secs(10), || {
            let events = fs::read_to_string(self.path.join("cgroup.events")).ok()?;
            events.contains("populated 0").then_some(())
        })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = self.kill();
        let _ = fs::remove_dir(&self.path);
    }
}
