//! One containerd per host, with folders of its own, and the two clients that drive it.
//!
//! It is Debian's containerd 1.6, or a newer one where it was built, as an administrator would configure it:
//! `proxy_plugins.stargz` at the socket of the snapshotter under test, everything that the lab does not use switched off.
//! `ctr` pulls and runs; `ctr-remote` (package stargz-snapshotter) pulls lazily, as nerdctl does, with the labels that a
//! lazy snapshotter needs; [`Cri`] asks as the kubelet does.

mod options;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use content::Digest;
use serde_json::Value;

use crate::cri::Cri;
use crate::net::Host;
use crate::process::{Daemon, Printed, READY_LIMIT, run, run_timed, wait_until};

pub use options::{ContainerdOptions, Version};

/// Which snapshotter holds an image's layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Snapshotter {
    /// containerd's own: layers are unpacked before anything starts.
    Overlayfs,
    /// The one under test, behind the plugin's socket.
    Stargz,
}

impl Snapshotter {
    /// The name in containerd's configuration and on command lines.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Overlayfs => "overlayfs",
            Self::Stargz => "stargz",
        }
    }
}

/// An image's file system, mounted read only.
#[derive(Debug)]
pub struct View {
    name: String,
    snapshotter: Snapshotter,
    path: PathBuf,
}

impl View {
    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// A running containerd. Ends when dropped; its containers end with the cage at the latest.
#[derive(Debug)]
pub struct Containerd {
    daemon: Option<Daemon>,
    host: Host,
    dir: PathBuf,
    namespace: String,
    version: Version,
    /// The number of the next container or view: names are not used twice, whatever the namespace.
    next: Arc<AtomicU32>,
}

impl Containerd {
    /// Starts Debian's containerd on `host` with everything below `dir`, without CRI. `tag` ([`crate::cage::Cage::tag`])
    /// keeps the names of its control groups apart from other labs'. `plugin` is the socket of the snapshotter under test.
    pub fn start(host: &Host, dir: &Path, tag: &str, plugin: &Path) -> Result<Self> {
        Self::start_with(host, dir, tag, plugin, &ContainerdOptions::default())
    }

    /// The same with another containerd, or other settings.
    pub fn start_with(
        host: &Host,
        dir: &Path,
        tag: &str,
        plugin: &Path,
        options: &ContainerdOptions,
    ) -> Result<Self> {
        fs::create_dir_all(dir)?;
        fs::write(dir.join("config.toml"), options.config(dir, plugin))?;
        let mut containerd = Self {
            daemon: None,
            host: host.clone(),
            dir: dir.into(),
            namespace: format!("{tag}-{}", host.name()),
            version: options.version,
            next: Arc::default(),
        };
        containerd.start_daemon()?;
        Ok(containerd)
    }

    fn start_daemon(&mut self) -> Result<()> {
        let mut command = self.command("containerd");
        command.args(["--log-level", "warn", "--config"]).arg(self.dir.join("config.toml"));
        let mut daemon = Daemon::start("containerd", &mut command, &self.dir.join("log"))?;
        daemon.wait_for_socket(&self.socket())?;
        self.daemon = Some(daemon);
        Ok(())
    }

    /// A program of this containerd's own version, on this host.
    fn command(&self, program: &str) -> Command {
        let mut command = self.host.command(program);
        if let Some(folder) = self.version.folder() {
            let mut path = folder.into_os_string();
            path.push(":");
            path.push(std::env::var_os("PATH").unwrap_or_default());
            command.env("PATH", path);
        }
        command
    }

    /// Which one it is.
    pub const fn version(&self) -> Version {
        self.version
    }

    /// The same containerd, as it is seen from another of its namespaces: other images, other names of snapshots. Must not
    /// be told to restart.
    #[must_use]
    pub fn seen_from(&self, namespace: &str) -> Self {
        Self {
            daemon: None,
            host: self.host.clone(),
            dir: self.dir.clone(),
            namespace: namespace.into(),
            version: self.version,
            next: Arc::clone(&self.next),
        }
    }

    /// Asks over CRI, if it was switched on.
    pub fn cri(&self) -> Result<Cri> {
        Cri::connect(&self.socket(), &self.namespace)
    }

    /// Kills containerd and starts it again. Containers go on meanwhile.
    pub fn restart(&mut self) -> Result<()> {
        self.daemon().kill()?;
        self.start_daemon()
    }

    /// The process.
    pub fn daemon(&mut self) -> &mut Daemon {
        self.daemon.as_mut().expect("started in the constructor")
    }

    /// The socket of its API.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("sock")
    }

    /// Where it runs.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// containerd's own namespace that everything of this lab is in.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// `ctr`, on this host and for this containerd.
    pub fn ctr(&self) -> Command {
        self.client("ctr")
    }

    /// `ctr-remote`, on this host and for this containerd.
    pub fn ctr_remote(&self) -> Command {
        self.client("ctr-remote")
    }

    fn client(&self, program: &str) -> Command {
        let mut command = self.command(program);
        command.arg("-a").arg(self.socket()).args(["-n", &self.namespace]);
        command
    }

    /// Pulls as `ctr` does. Version 2 lets the transfer service do it, which knows of lazy layers; before that nothing is
    /// lazy, whichever the snapshotter.
    pub fn pull(&self, reference: &str, snapshotter: Snapshotter) -> Result<()> {
        let mut command = self.ctr();
        command.args(["images", "pull", "--plain-http", "--snapshotter", snapshotter.name(), reference]);
        run(&mut command).map(drop)
    }

    /// Pulls as a client does that unpacks by itself and knows of nothing lazy: the snapshotter sees no label at all.
    pub fn pull_by_client(&self, reference: &str, snapshotter: Snapshotter) -> Result<()> {
        let mut command = self.ctr();
        command.args(["images", "pull", "--plain-http", "--snapshotter", snapshotter.name()]);
        if self.version.is_2() {
            command.arg("--local");
        }
        run(command.arg(reference)).map(drop)
    }

    /// Pulls as `ctr` does, asking the hosts that `hosts_dir` names (`<dir>/<registry>/hosts.toml`).
    pub fn pull_by_hosts(&self, reference: &str, hosts_dir: &Path, snapshotter: Snapshotter) -> Result<()> {
        let mut command = self.ctr();
        command.args(["images", "pull", "--snapshotter", snapshotter.name(), "--hosts-dir"]);
        run(command.arg(hosts_dir).arg(reference)).map(drop)
    }

    /// Pulls lazily: layers are mounted, not fetched, where the snapshotter can.
    pub fn rpull(&self, reference: &str) -> Result<()> {
        let mut command = self.ctr_remote();
        command.args([
            "images",
            "rpull",
            "--plain-http",
            "--snapshotter",
            Snapshotter::Stargz.name(),
            reference,
        ]);
        run(&mut command).map(drop)
    }

    /// Runs a program in a new container, to its end, and removes the container.
    pub fn run(&self, reference: &str, snapshotter: Snapshotter, program: &[&str]) -> Result<Printed> {
        let mut command = self.ctr();
        command.arg("run").args(["--rm", "--snapshotter", snapshotter.name()]);
        command.arg("--runc-root").arg(self.dir.join("runc"));
        command.args([reference, &self.new_name()]).args(program);
        run_timed(&mut command)
    }

    /// Starts a program in a new container and leaves it running; answers the container's name.
    pub fn run_detached(
        &self,
        reference: &str,
        snapshotter: Snapshotter,
        program: &[&str],
    ) -> Result<String> {
        let name = self.new_name();
        let mut command = self.ctr();
        command.arg("run").args(["--detach", "--snapshotter", snapshotter.name()]);
        command.arg("--runc-root").arg(self.dir.join("runc"));
        run(command.args([reference, &name]).args(program))?;
        Ok(name)
    }

    /// Runs a program inside a running container, to its end.
    pub fn exec(&self, container: &str, program: &[&str]) -> Result<Printed> {
        let mut command = self.ctr();
        command.args(["tasks", "exec", "--exec-id", &self.new_name(), container]).args(program);
        run_timed(&mut command)
    }

    /// Kills a running container and removes it.
    pub fn remove(&self, container: &str) -> Result<()> {
        run(self.ctr().args(["tasks", "rm", "--force", container]))?;
        run(self.ctr().args(["containers", "rm", container])).map(drop)
    }

    /// Mounts an image's file system, read only, and shows it to `look`.
    pub fn with_image<T>(
        &self,
        reference: &str,
        snapshotter: Snapshotter,
        look: impl FnOnce(&Path) -> Result<T>,
    ) -> Result<T> {
        let view = self.view(reference, snapshotter)?;
        let looked = look(view.path());
        self.close(&view)?;
        looked
    }

    /// Mounts an image's file system, read only, until it is [closed](Self::close).
    pub fn view(&self, reference: &str, snapshotter: Snapshotter) -> Result<View> {
        // `ctr images mount` would do, if containerd 1.6's did not ignore which snapshotter it is told to use.
        let view = View { name: self.new_name(), snapshotter, path: PathBuf::new() };
        let view = View { path: self.dir.join(&view.name), ..view };
        fs::create_dir_all(&view.path)?;
        let chain = self.chain_id(reference)?;
        // Nothing refers to it before it has its label: a collection that is due, after a pull say, takes it away.
        wait_until("a view that stays", READY_LIMIT, || {
            self.snapshot(snapshotter, &["view", &view.name, &chain]).ok()?;
            self.snapshot(snapshotter, &["label", &view.name, "containerd.io/gc.root=lab"]).ok()
        })?;
        let mounts = self.snapshot(snapshotter, &["mounts", &view.path.display().to_string(), &view.name])?;
        // A line for each mount, as one would type it.
        run(Command::new("sh").args(["-e", "-c", &mounts]))?;
        Ok(view)
    }

    /// Takes a view away.
    pub fn close(&self, view: &View) -> Result<()> {
        run(Command::new("umount").arg(&view.path))?;
        self.snapshot(view.snapshotter, &["rm", &view.name]).map(drop)
    }

    fn snapshot(&self, snapshotter: Snapshotter, arguments: &[&str]) -> Result<String> {
        run(self.ctr().args(["snapshots", "--snapshotter", snapshotter.name()]).args(arguments))
    }

    /// A document of containerd's content store.
    fn document(&self, digest: &str) -> Result<Value> {
        Ok(serde_json::from_str(&run(self.ctr().args(["content", "get", digest]))?)?)
    }

    /// The manifest of an image; of an index its first.
    pub fn manifest(&self, reference: &str) -> Result<Value> {
        let list = run(self.ctr().args(["images", "ls", &format!("name=={reference}")]))?;
        // REF TYPE DIGEST …
        let digest = list.lines().nth(1).and_then(|line| line.split_whitespace().nth(2));
        let manifest =
            self.document(digest.with_context(|| format!("containerd has no image {reference}"))?)?;
        match manifest["manifests"][0]["digest"].as_str() {
            Some(digest) => self.document(digest),
            None => Ok(manifest),
        }
    }

    /// The digests of an image's unpacked layers, as its configuration names them.
    pub fn diff_ids(&self, reference: &str) -> Result<Vec<String>> {
        let manifest = self.manifest(reference)?;
        let config = manifest["config"]["digest"].as_str().context("a manifest without a config")?;
        let config = self.document(config)?;
        let diff_ids = config["rootfs"]["diff_ids"].as_array().context("a config without layers")?;
        Ok(diff_ids.iter().filter_map(Value::as_str).map(str::to_owned).collect())
    }

    /// The name of an image's topmost snapshot.
    fn chain_id(&self, reference: &str) -> Result<String> {
        let mut diff_ids = self.diff_ids(reference)?.into_iter();
        let lowest = diff_ids.next().context("an image without layers")?;
        Ok(diff_ids
            .fold(lowest, |chain, layer| Digest::of(format!("{chain} {layer}").as_bytes()).to_string()))
    }

    /// Takes in the images of an archive, as `ctr images import` does: unpacked, or their content alone.
    pub fn import(&self, archive: &Path, unpack: bool) -> Result<()> {
        let mut command = self.ctr();
        command.args(["images", "import"]);
        if !unpack {
            command.arg("--no-unpack");
        }
        run(command.arg(archive)).map(drop)
    }

    /// Removes an image and, at once, everything that only it needed.
    pub fn remove_image(&self, reference: &str) -> Result<()> {
        run(self.ctr().args(["images", "rm", "--sync", reference])).map(drop)
    }

    /// The snapshots that a snapshotter lists, as `ctr` prints them.
    pub fn snapshots(&self, snapshotter: Snapshotter) -> Result<Vec<String>> {
        let text = run(self.ctr().args(["snapshots", "--snapshotter", snapshotter.name(), "ls"]))?;
        Ok(text.lines().skip(1).map(str::to_owned).collect())
    }

    /// Waits until containerd has found the snapshotter again: it looks for one that was gone every few seconds only.
    pub fn wait_for_plugin(&self) -> Result<()> {
        wait_until("containerd to find its snapshotter again", READY_LIMIT, || {
            self.snapshots(Snapshotter::Stargz).ok()
        })
        .map(drop)
    }

    fn new_name(&self) -> String {
        format!("c{}", self.next.fetch_add(1, Ordering::Relaxed) + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cage::{self, Needs};
    use crate::image::{Entry, Image, layer, programs};
    use crate::meter::MeterOptions;
    use crate::net::Network;
    use crate::node::mounts_below;
    use crate::registry::Registry;

    #[test]
    fn an_ordinary_image_is_pulled_and_run() {
        cage::test(Needs::Containers, |cage| {
            let network = Network::new(cage)?;
            let registry = Registry::start(
                &network.host("registry")?,
                &cage.dir().join("registry"),
                MeterOptions::default(),
            )?;
            let host = network.host("node1")?;
            let plugin = cage.dir().join("none.sock");
            let mut containerd = Containerd::start(&host, &cage.dir().join("c"), &cage.tag(), &plugin)?;
            let image = Image::new(&[
                layer(&programs(&["sh", "cat", "sleep"])?)?,
                layer(&[Entry::file("greeting", "good day\n")])?,
            ]);
            image.push(registry.back(), "lab/sh", "1")?;

            let reference = format!("{}/lab/sh:1", registry.name());
            containerd.pull(&reference, Snapshotter::Overlayfs)?;
            assert_eq!(registry.meter.counts().blob_bytes() - image.config.len() as u64, image.layer_bytes());
            let program = ["/bin/sh", "-c", "/bin/cat /greeting; echo $0", "again"];
            assert_eq!(
                containerd.run(&reference, Snapshotter::Overlayfs, &program)?.stdout,
                "good day\nagain\n"
            );

            let running =
                containerd.run_detached(&reference, Snapshotter::Overlayfs, &["/bin/sleep", "1000"])?;
            assert_eq!(containerd.exec(&running, &["/bin/cat", "/greeting"])?.stdout, "good day\n");
            containerd.remove(&running)?;

            containerd.with_image(&reference, Snapshotter::Overlayfs, |root| {
                assert_eq!(fs::read_to_string(root.join("greeting"))?, "good day\n");
                Ok(())
            })?;
            assert_eq!(containerd.snapshots(Snapshotter::Overlayfs)?.len(), 2);
            containerd.remove_image(&reference)?;
            assert_eq!(containerd.snapshots(Snapshotter::Overlayfs)?, Vec::<String>::new());
            containerd.daemon().stop()?;
            assert_eq!(mounts_below(cage.dir())?, Vec::<String>::new());
            Ok(())
        });
    }
}
