//! A registry behind TLS and a password, and a machine that is nobody's node: `pantala snapshotter` alone, with a
//! containerd that has CRI.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use testkit::cage::Cage;
use testkit::containerd::{Containerd, ContainerdOptions, Version};
use testkit::cri::Cri;
use testkit::net::{Host, Network};
use testkit::node::Pantala;
use testkit::process::{Daemon, run, wait_until};

/// Where it listens.
const PORT: u16 = 5443;

/// Debian's `docker-registry`, which shows the files of another one to whoever knows the password.
pub struct Private {
    daemon: Option<Daemon>,
    host: Host,
    dir: PathBuf,
}

impl Private {
    /// The user.
    pub const USER: &str = "pod";
    /// The password, which must not be found anywhere.
    pub const PASSWORD: &str = "canary-secret-of-the-lab";

    /// Starts it on `host`, with the files of the registry in `behind`.
    pub fn start(host: &Host, dir: &Path, behind: &Path) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let path = |name: &str| dir.join(name);
        let subject = format!("subjectAltName=IP:{}", host.address());
        let mut openssl = Command::new("openssl");
        openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]);
        openssl.args(["-days", "2", "-subj", "/CN=private", "-addext", &subject]);
        openssl.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
        run(openssl.arg("-keyout").arg(path("key.pem")).arg("-out").arg(path("ca.pem")))?;
        let users = run(Command::new("htpasswd").args(["-Bbn", Self::USER, Self::PASSWORD]))?;
        fs::write(path("htpasswd"), users)?;
        fs::write(
            path("config.yml"),
            format!(
                "version: 0.1\nlog: {{level: warn}}\n\
                 storage:\n  filesystem: {{rootdirectory: {}}}\n  cache: {{blobdescriptor: inmemory}}\n\
                 auth:\n  htpasswd: {{realm: lab, path: {}}}\n\
                 http:\n  addr: 0.0.0.0:{PORT}\n  tls: {{certificate: {}, key: {}}}\n",
                behind.join("files").display(),
                path("htpasswd").display(),
                path("ca.pem").display(),
                path("key.pem").display(),
            ),
        )?;
        let mut private = Self { daemon: None, host: host.clone(), dir: dir.into() };
        private.start_again()?;
        Ok(private)
    }

    /// Starts it once more.
    pub fn start_again(&mut self) -> Result<()> {
        let mut command = self.host.command("docker-registry");
        command.arg("serve").arg(self.dir.join("config.yml")).env("OTEL_TRACES_EXPORTER", "none");
        let mut daemon = Daemon::start("private registry", &mut command, &self.dir.join("registry.log"))?;
        daemon.wait_for_address((self.host.address(), PORT).into())?;
        self.daemon = Some(daemon);
        Ok(())
    }

    /// Kills it.
    pub fn kill(&mut self) -> Result<()> {
        self.daemon.take().context("it does not run")?.kill()
    }

    /// `host:port` as it stands in references.
    pub fn name(&self) -> String {
        format!("{}:{PORT}", self.host.address())
    }

    /// Docker's configuration with the password; with another one, if it is wrong.
    pub fn docker_config(&self, path: &Path, password: &str) -> Result<()> {
        let login = serde_json::json!({"username": Self::USER, "password": password});
        Ok(fs::write(path, serde_json::json!({"auths": {self.name(): login}}).to_string())?)
    }

    /// Tells containerd's `certs.d` whom to trust.
    pub fn write_hosts(&self, certs_d: &Path) -> Result<()> {
        let folder = certs_d.join(self.name());
        fs::create_dir_all(&folder)?;
        let (url, ca) = (format!("https://{}", self.name()), self.dir.join("ca.pem").display().to_string());
        // 1.6 wants a host beside the server.
        let text = format!("server = {url:?}\nca = \"{ca}\"\n[host.{url:?}]\nca = \"{ca}\"\n");
        Ok(fs::write(folder.join("hosts.toml"), text)?)
    }
}

/// A host with the snapshotter and a containerd.
pub struct Alone {
    /// Ends first: it uses the snapshotter.
    pub containerd: Containerd,
    /// The snapshotter.
    pub daemon: Daemon,
    host: Host,
    dir: PathBuf,
    pantala: Pantala,
    runs: u32,
}

impl Alone {
    /// Starts both on a new host. `config` is the snapshotter's file; `sandbox_image` is asked for in plain HTTP, and is
    /// the image of pods.
    pub fn start(cage: &Cage, network: &Network, config: &str, sandbox_image: &str) -> Result<Self> {
        let host = network.host("machine")?;
        let dir = cage.dir().join("machine");
        fs::create_dir_all(dir.join("certs.d"))?;
        fs::write(dir.join("config.toml"), config)?;
        let pantala = Pantala::locate()?;
        let daemon = launch(&pantala, &host, &dir, 0)?;
        let registry = sandbox_image.split('/').next().unwrap_or_default();
        let options = ContainerdOptions {
            version: Version::Debian,
            sandbox_image: Some(sandbox_image.into()),
            plain_http: vec![registry.into()],
            ..ContainerdOptions::default()
        };
        let plugin = dir.join("snapshotter.sock");
        let containerd =
            Containerd::start_with(&host, &dir.join("containerd"), &cage.tag(), &plugin, &options)?;
        containerd.wait_for_plugin()?;
        Ok(Self { containerd, daemon, host, dir, pantala, runs: 0 })
    }

    /// Where the snapshotter keeps everything.
    pub fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    /// containerd's `certs.d`, read at each pull.
    pub fn certs_d(&self) -> PathBuf {
        self.dir.join("containerd/certs.d")
    }

    /// Docker's configuration of the snapshotter.
    pub fn docker_config(&self) -> PathBuf {
        docker_config(&self.dir)
    }

    /// CRI as a kubelet would ask it: images through the snapshotter.
    pub fn images(&self) -> Result<Cri> {
        Cri::connect(&self.dir.join("snapshotter.sock"), self.containerd.namespace())
    }

    /// Ends the snapshotter and all that would outlive it, and starts it again.
    pub fn restart(&mut self) -> Result<()> {
        let status = self.daemon.stop()?;
        ensure!(status.success(), "the snapshotter ended with {status}: {}", self.daemon.log_tail());
        self.runs += 1;
        self.daemon = launch(&self.pantala, &self.host, &self.dir, self.runs)?;
        self.containerd.wait_for_plugin()
    }

    /// All that the snapshotter has written to its logs.
    pub fn log(&self) -> Result<String> {
        let texts: std::io::Result<Vec<_>> = (0..=self.runs)
            .map(|run| fs::read_to_string(self.dir.join(format!("snapshotter{run}.log"))))
            .collect();
        Ok(texts?.concat())
    }

    /// How many layers were prepared lazily, and how many were not.
    pub fn prepared(&self) -> Result<(usize, usize)> {
        let log = self.log()?;
        let count = |value: &str| log.matches(&format!("\"remote-snapshot-prepared\":\"{value}\"")).count();
        Ok((count("true"), count("false")))
    }

    /// Waits until every mounted layer is here as a whole.
    pub fn wait_until_complete(&self) -> Result<()> {
        wait_until("the layers to be complete", Duration::from_mins(1), || {
            let mut command = self.pantala.on(&self.host);
            command.args(["status", "--output", "json", "--socket"]).arg(self.root().join("pantala.sock"));
            let status: serde_json::Value = serde_json::from_str(&run(&mut command).ok()?).ok()?;
            let layers = status["layers"].as_array()?;
            (!layers.is_empty() && layers.iter().all(|layer| layer["fetched"] == layer["size"])).then_some(())
        })
    }

    /// Pulls lazily as somebody who knows the password.
    pub fn rpull_as(&self, reference: &str, user: &str, password: &str) -> Result<()> {
        let mut command = self.containerd.ctr_remote();
        command.args(["images", "rpull", "--snapshotter", "stargz", "--user", &format!("{user}:{password}")]);
        command.arg("--hosts-dir").arg(self.certs_d());
        run(command.arg(reference)).map(drop)
    }
}

fn docker_config(dir: &Path) -> PathBuf {
    dir.join("docker.json")
}

fn launch(pantala: &Pantala, host: &Host, dir: &Path, number: u32) -> Result<Daemon> {
    let mut command = pantala.on(host);
    let address = dir.join("snapshotter.sock");
    command.args(["snapshotter", "--log-level", "debug", "--address"]).arg(&address);
    command.arg("--root").arg(dir.join("root")).arg("--config").arg(dir.join("config.toml"));
    command.arg("--docker-config").arg(docker_config(dir));
    command.arg("--containerd-address").arg(dir.join("containerd/sock"));
    if !docker_config(dir).exists() {
        fs::write(docker_config(dir), "{}")?;
    }
    let mut daemon =
        Daemon::start("snapshotter", &mut command, &dir.join(format!("snapshotter{number}.log")))?;
    daemon.wait_for_socket(&address)?;
    Ok(daemon)
}
