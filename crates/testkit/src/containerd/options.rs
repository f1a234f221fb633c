//! Which containerd, and its configuration file: in the words of 1.6 (`version = 2`), and in those of 2.x (`version = 3`).

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::image::{self, architecture};

/// Which containerd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Version {
    /// Debian 12's own, 1.6: always there.
    #[default]
    Debian,
    /// 2.2, if `bench/peers/build` has built it.
    V2_2,
    /// 2.4, if `bench/peers/build` has built it.
    V2_4,
}

impl Version {
    /// All that are to be had on this machine, the oldest first. Says which one is not.
    pub fn all() -> Vec<Self> {
        let there = [Self::Debian, Self::V2_2, Self::V2_4].into_iter();
        there
            .filter(|version| {
                let missing = version.missing();
                if let Some(reason) = &missing {
                    println!("without containerd {}: {reason}", version.name());
                }
                missing.is_none()
            })
            .collect()
    }

    /// What people call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Debian => "1.6",
            Self::V2_2 => "2.2",
            Self::V2_4 => "2.4",
        }
    }

    /// Whether it has the transfer service, and the newer words of the configuration.
    pub const fn is_2(self) -> bool {
        !matches!(self, Self::Debian)
    }

    /// Where its programs are, if not where all programs are.
    pub fn folder(self) -> Option<PathBuf> {
        self.is_2().then(|| image::cache().join(format!("peers/containerd-{}", self.name())))
    }

    /// Why it is not to be had, if it is not.
    pub fn missing(self) -> Option<String> {
        let folder = self.folder()?;
        let absent = ["containerd", "ctr", "containerd-shim-runc-v2"]
            .iter()
            .any(|program| !folder.join(program).is_file());
        absent.then(|| "it is not built (make peers)".into())
    }
}

/// What is wanted of a containerd.
#[derive(Debug, Clone, Default)]
pub struct ContainerdOptions {
    /// Which one.
    pub version: Version,
    /// The image of the pods' own containers. Without one there is no CRI.
    pub sandbox_image: Option<String>,
    /// Registries that are asked in plain HTTP, `host:port`; by CRI alone, others are told on their command lines.
    pub plain_http: Vec<String>,
    /// What the configuration says that the snapshotter can, and it does not: `rebase`, say.
    pub capabilities: Vec<String>,
}

impl ContainerdOptions {
    /// This version, and all else as usual.
    pub fn of(version: Version) -> Self {
        Self { version, ..Self::default() }
    }

    /// The text of the configuration file; writes the `hosts.toml` files below `dir`.
    pub(super) fn config(&self, dir: &Path, plugin: &Path) -> String {
        let show = |name: &str| dir.join(name).display().to_string();
        let mut disabled = vec![
            "io.containerd.snapshotter.v1.aufs",
            "io.containerd.snapshotter.v1.blockfile",
            "io.containerd.snapshotter.v1.btrfs",
            "io.containerd.snapshotter.v1.devmapper",
            "io.containerd.snapshotter.v1.erofs",
            "io.containerd.snapshotter.v1.zfs",
            "io.containerd.nri.v1.nri",
        ];
        if self.sandbox_image.is_none() {
            disabled.extend([
                "io.containerd.grpc.v1.cri",
                "io.containerd.cri.v1.images",
                "io.containerd.cri.v1.runtime",
                "io.containerd.podsandbox.controller.v1.podsandbox",
            ]);
        }
        let mut text = format!(
            "version = {version}\nroot = {root:?}\nstate = {state:?}\ndisabled_plugins = {disabled:?}\n\n\
             [grpc]\n  address = {socket:?}\n\n\
             [plugins.\"io.containerd.internal.v1.opt\"]\n  path = {opt:?}\n\n\
             [proxy_plugins.stargz]\n  type = \"snapshot\"\n  address = {plugin:?}\n",
            version = if self.version.is_2() { 3 } else { 2 },
            root = show("root"),
            state = show("state"),
            socket = show("sock"),
            opt = show("opt"),
            plugin = plugin.display().to_string(),
        );
        if !self.capabilities.is_empty() {
            let _ = writeln!(text, "  capabilities = {:?}", self.capabilities);
        }
        if self.version.is_2() {
            text += "  [proxy_plugins.stargz.exports]\n    enable_remote_snapshot_annotations = \"true\"\n";
            // The service unpacks for the first that fits what the client names.
            text += "\n[plugins.\"io.containerd.transfer.v1.local\"]\n  max_concurrent_unpacks = 4\n";
            for snapshotter in ["overlayfs", "stargz"] {
                let _ = write!(
                    text,
                    "  [[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]\n    \
                     platform = \"linux/{}\"\n    snapshotter = {snapshotter:?}\n",
                    architecture()
                );
            }
        }
        if let Some(sandbox_image) = &self.sandbox_image {
            let hosts = self.write_hosts(&dir.join("certs.d"));
            let words = if self.version.is_2() { cri_of_2 } else { cri_of_1_6 };
            text += &words(sandbox_image, &hosts, &show("cni"));
        }
        text
    }

    /// `hosts.toml` for each registry; answers the folder.
    fn write_hosts(&self, dir: &Path) -> String {
        for registry in &self.plain_http {
            let folder = dir.join(registry);
            std::fs::create_dir_all(&folder).expect("a folder for hosts.toml");
            // 1.6 wants a host beside the server.
            let text = format!("server = \"http://{registry}\"\n[host.\"http://{registry}\"]\n");
            std::fs::write(folder.join("hosts.toml"), text).expect("hosts.toml");
        }
        dir.display().to_string()
    }
}

// Root in a lab may lack the right to give a process a better OOM score than its own: pods would not start.

fn cri_of_1_6(sandbox_image: &str, hosts: &str, cni: &str) -> String {
    format!(
        r#"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = {sandbox_image:?}
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "stargz"
    disable_snapshot_annotations = false
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = {hosts:?}
  [plugins."io.containerd.grpc.v1.cri".cni]
    conf_dir = {cni:?}
    bin_dir = {cni:?}
"#,
    )
}

fn cri_of_2(sandbox_image: &str, hosts: &str, cni: &str) -> String {
    format!(
        r#"
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "stargz"
  disable_snapshot_annotations = false
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = {sandbox_image:?}
  [plugins."io.containerd.cri.v1.images".registry]
    config_path = {hosts:?}
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.cri.v1.runtime".cni]
    conf_dir = {cni:?}
    bin_dirs = [{cni:?}]
"#,
    )
}
