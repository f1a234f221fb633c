//! One contender, running: a snapshotter of its own root, a containerd of its own, and the image mounted through both.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use testkit::containerd::{Containerd, Snapshotter, View};
use testkit::net::Host;
use testkit::node::{Pantala, mounts_below};
use testkit::process::{Daemon, run};

/// Who is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// containerd's own snapshotter: layers unpacked on ext4, overlayfs over them.
    Overlayfs,
    /// The real stargz-snapshotter 0.19.1.
    Stargz,
    /// Ours, `driver = "fuse"`.
    Fuse,
    /// Ours, `driver = "native"`.
    Native,
}

impl Who {
    /// As columns are headed.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Overlayfs => "overlayfs",
            Self::Stargz => "stargz",
            Self::Fuse => "fuse",
            Self::Native => "native",
        }
    }

    /// How its layers are reached through containerd.
    const fn plugin(self) -> Snapshotter {
        if matches!(self, Self::Overlayfs) { Snapshotter::Overlayfs } else { Snapshotter::Stargz }
    }
}

/// Where all of them run, and from which binaries.
#[derive(Debug)]
pub struct Lab {
    /// The one host: registry, snapshotters and containerds meet on its loopback.
    pub host: Host,
    /// Ours.
    pub pantala: Pantala,
    /// The real stargz-snapshotter.
    pub stargz: PathBuf,
    /// `host:port` of the registry.
    pub registry: String,
    /// For control groups.
    pub tag: String,
    /// Where everything is.
    pub dir: PathBuf,
}

/// A running contender.
#[derive(Debug)]
pub struct Side {
    /// Which.
    pub who: Who,
    dir: PathBuf,
    daemon: Option<Daemon>,
    containerd: Containerd,
    view: Option<View>,
}

/// Memory of a contender's processes, in bytes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Memory {
    /// What they have now: pages that several share are divided among them.
    pub now: u64,
    /// The most that they had: the sum of each one's anonymous pages, and once the pages of files.
    pub peak: u64,
}

impl Lab {
    /// Starts a contender with an empty root. `name` is new.
    pub fn start(&self, who: Who, name: &str) -> Result<Side> {
        let dir = self.dir.join(name);
        fs::create_dir_all(&dir)?;
        let socket = dir.join("plugin.sock");
        let daemon = if who == Who::Overlayfs {
            None
        } else {
            fs::write(dir.join("config.toml"), self.config(who))?;
            let mut command = self.command(who, &dir);
            let mut daemon = Daemon::start(who.name(), &mut command, &dir.join("snapshotter.log"))?;
            daemon.wait_for_socket(&socket)?;
            Some(daemon)
        };
        let containerd =
            Containerd::start(&self.host, &dir.join("c"), &format!("{}-{name}", self.tag), &socket)?;
        Ok(Side { who, dir, daemon, containerd, view: None })
    }

    fn command(&self, who: Who, dir: &Path) -> Command {
        let (socket, root, config) = (dir.join("plugin.sock"), dir.join("root"), dir.join("config.toml"));
        if who == Who::Stargz {
            let mut command = self.host.command(&self.stargz);
            command.arg("-address").arg(socket).arg("-root").arg(root).arg("-config").arg(config);
            return command;
        }
        let mut command = self.pantala.on(&self.host);
        command
            .arg("snapshotter")
            .arg("--address")
            .arg(socket)
            .arg("--root")
            .arg(root)
            .arg("--config")
            .arg(config);
        command.arg("--containerd-address").arg(dir.join("c/sock")).args(["--log-level", "warn"]);
        command
    }

    /// One file for all, but for two keys of ours: nothing is fetched that nobody reads. How full this machine's disk is
    /// must not count.
    fn config(&self, who: Who) -> String {
        let (driver, disk) = match who {
            Who::Overlayfs | Who::Stargz => (String::new(), ""),
            Who::Fuse | Who::Native => {
                (format!("driver = \"{}\"\n", who.name()), "[pantala.disk]\nkeep_free_percent = 0\n")
            }
        };
        let registry = &self.registry;
        format!(
            "{driver}noprefetch = true\nno_background_fetch = true\n{disk}\
             [[resolver.host.\"{registry}\".mirrors]]\nhost = \"{registry}\"\ninsecure = true\n"
        )
    }
}

impl Side {
    /// Pulls the image as its snapshotter does, and mounts it.
    pub fn pull(&mut self, reference: &str) -> Result<()> {
        match self.who {
            Who::Overlayfs => self.containerd.pull(reference, Snapshotter::Overlayfs)?,
            _ => self.containerd.rpull(reference)?,
        }
        if self.who != Who::Overlayfs {
            // A fallback to an ordinary pull would be measured as very fast.
            let lazy = mounts_below(&self.dir.join("root"))?;
            anyhow::ensure!(
                !lazy.is_empty(),
                "{} mounted nothing lazily: {}",
                self.who.name(),
                self.last_words()
            );
        }
        self.view = Some(self.containerd.view(reference, self.who.plugin())?);
        Ok(())
    }

    /// The image's root.
    pub fn root(&self) -> &Path {
        self.view.as_ref().map_or(Path::new("/nowhere"), View::path)
    }

    /// The end of the snapshotter's log.
    pub fn last_words(&self) -> String {
        self.daemon.as_ref().map(Daemon::log_tail).unwrap_or_default()
    }

    /// The processes of the snapshotter: those that were told its folder, and their children's children.
    fn processes(&self) -> Vec<u32> {
        let Some(daemon) = &self.daemon else { return Vec::new() };
        let exe = |pid: u32| fs::read_link(format!("/proc/{pid}/exe")).ok();
        let Some(program) = exe(daemon.pid()) else { return Vec::new() };
        let folder = self.dir.join("root").display().to_string();
        let numbers = fs::read_dir("/proc").into_iter().flatten().flatten();
        numbers
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|pid| exe(*pid).as_deref() == Some(&program))
            .filter(|pid| {
                let told = |file: &str| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
                let has = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).contains(&folder);
                *pid == daemon.pid() || has(told("cmdline")) || has(told("environ"))
            })
            .collect()
    }

    /// Memory of its processes.
    pub fn memory(&self) -> Memory {
        let mut memory = Memory::default();
        let mut files = 0;
        for pid in self.processes() {
            let of = |file: &str, key: &str| field(&format!("/proc/{pid}/{file}"), key).unwrap_or(0) * 1024;
            memory.now += of("smaps_rollup", "Pss:");
            let mapped = of("status", "RssFile:");
            memory.peak += of("status", "VmHWM:").saturating_sub(mapped);
            files = mapped.max(files);
        }
        memory.peak += files;
        memory
    }

    /// A line for each process: its command, and its memory by kind.
    pub fn memory_by_process(&self) -> String {
        let one = |pid: u32| {
            let told = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let told = String::from_utf8_lossy(&told).replace('\0', " ");
            let of = |key: &str| field(&format!("/proc/{pid}/status"), key).unwrap_or(0) / 1024;
            let kinds =
                ["RssAnon:", "RssFile:", "RssShmem:", "VmHWM:"].map(|key| format!("{key} {} MiB", of(key)));
            format!("  {}: {}", told.chars().take(80).collect::<String>(), kinds.join(", "))
        };
        self.processes().into_iter().map(one).collect::<Vec<_>>().join("\n")
    }

    /// Forgets the peak of its memory.
    pub fn forget_peak(&self) {
        for pid in self.processes() {
            // 5: the peak begins anew. It may have ended meanwhile.
            let _ = fs::write(format!("/proc/{pid}/clear_refs"), "5");
        }
    }

    /// Time on the cores that its processes have used, and how much of it in the kernel.
    pub fn cpu(&self) -> (Duration, Duration) {
        let ticks = |pid: u32| -> Option<(u64, u64)> {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            // The second field is a name in parentheses that may hold spaces. utime and stime are the 14th and 15th.
            let fields: Vec<_> = stat.rsplit_once(')')?.1.split_whitespace().collect();
            Some((fields[11].parse().ok()?, fields[12].parse().ok()?))
        };
        let sum = |all: (u64, u64), one: (u64, u64)| (all.0 + one.0, all.1 + one.1);
        let (user, system) = self.processes().into_iter().filter_map(ticks).fold((0, 0), sum);
        // Linux tells user space a hundredth of a second per tick on every architecture that we run on.
        (Duration::from_millis((user + system) * 10), Duration::from_millis(system * 10))
    }

    /// Bytes on disk below its root.
    pub fn disk(&self) -> Result<u64> {
        let mut all = 0;
        let mut folders = vec![self.dir.join("root")];
        let here = fs::metadata(&self.dir)?.dev();
        while let Some(folder) = folders.pop() {
            let Ok(entries) = fs::read_dir(&folder) else { continue };
            for entry in entries.flatten() {
                let Ok(metadata) = fs::symlink_metadata(entry.path()) else { continue };
                // What is mounted there is not on this disk.
                if metadata.dev() == here {
                    all += metadata.blocks() * 512;
                    if metadata.is_dir() {
                        folders.push(entry.path());
                    }
                }
            }
        }
        Ok(all)
    }

    /// Files that the kernel asks before reading: an event can only come from one of them.
    pub fn marks(&self) -> u64 {
        let marks = |pid: u32| -> u64 {
            let files = fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten();
            let count =
                |text: String| text.lines().filter(|line| line.starts_with("fanotify ino:")).count() as u64;
            files.filter_map(|file| fs::read_to_string(file.path()).ok()).map(count).max().unwrap_or(0)
        };
        self.processes().into_iter().map(marks).max().unwrap_or(0)
    }

    /// Takes everything away.
    pub fn end(mut self) -> Result<()> {
        if let Some(view) = self.view.take() {
            self.containerd.close(&view)?;
        }
        if let Some(mut daemon) = self.daemon.take() {
            daemon.stop().with_context(|| format!("{} does not end", self.who.name()))?;
        }
        self.containerd.daemon().stop()?;
        for point in mounts_below(&self.dir)?.iter().rev() {
            run(Command::new("umount").args(["--lazy", point]))?;
        }
        fs::remove_dir_all(&self.dir).with_context(|| format!("cannot remove {}", self.dir.display()))
    }
}

/// A number after a word, in a file of `/proc`.
fn field(file: &str, key: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse().ok()
}
