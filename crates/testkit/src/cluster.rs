//! All of it put together: a registry behind its meter, a scheduler, a seed, and nodes with a containerd each.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;

use crate::cage::Cage;
use crate::containerd::{Containerd, ContainerdOptions, Version};
use crate::http;
use crate::image;
use crate::meter::MeterOptions;
use crate::net::{Host, Network, Shape};
use crate::node::{Node, NodeConfig, Pantala, SCHEDULER_PORT, snapshotter_socket};
use crate::process::Daemon;
use crate::registry::Registry;

/// What a cluster is made of.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// How many nodes with a containerd.
    pub nodes: usize,
    /// Whether there is a seed.
    pub seed: bool,
    /// The secret of the cluster; `None` is `insecure`.
    pub join_token: Option<String>,
    /// The round trip to the registry.
    pub round_trip: Duration,
    /// The nodes' containerds. Their registry is known to them.
    pub containerd: ContainerdOptions,
    /// Their versions in turn; none: all as `containerd` says.
    pub versions: Vec<Version>,
    /// Whether they speak CRI. The registry then has the pods' own image as `lab:pause`.
    pub cri: bool,
    /// More keys for each node's YAML file, whole lines.
    pub node_extra: String,
    /// More keys for each snapshotter's TOML file.
    pub snapshotter_extra: String,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self {
            nodes: 1,
            seed: true,
            join_token: Some("a-secret-of-this-lab".into()),
            round_trip: Duration::ZERO,
            containerd: ContainerdOptions::default(),
            versions: Vec::new(),
            cri: false,
            node_extra: String::new(),
            snapshotter_extra: String::new(),
        }
    }
}

/// A host with a node and a containerd.
#[derive(Debug)]
pub struct Machine {
    /// Ends first: it uses the node's snapshotter.
    pub containerd: Containerd,
    /// Peer, proxy and snapshotter.
    pub node: Node,
    /// Where both run.
    pub host: Host,
}

/// The whole lab. Fields end in the order in which they stand here.
#[derive(Debug)]
pub struct Cluster {
    /// The nodes.
    pub machines: Vec<Machine>,
    /// The seed, if there is one.
    pub seed: Option<Node>,
    /// The scheduler, once the nodes are started.
    pub scheduler: Option<Daemon>,
    /// The registry.
    pub registry: Registry,
    /// The registry's host: what an administrator would run from outside of the cluster runs here.
    pub registry_host: Host,
    /// The bridge, for more hosts.
    pub network: Network,
    scheduler_host: Option<Host>,
    pantala: Pantala,
    options: ClusterOptions,
    dir: PathBuf,
    tag: String,
}

/// One layer, as a manifest describes it.
#[derive(Debug, Clone, Deserialize)]
pub struct LayerDescriptor {
    /// The blob's digest.
    pub digest: String,
    /// The blob's length.
    pub size: u64,
    /// What else is said of it; an eStargz layer's TOC digest among it.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

impl LayerDescriptor {
    fn deserialize_all(manifest: &Value) -> Result<Vec<Self>> {
        Vec::deserialize(&manifest["layers"]).context("a manifest without layers")
    }
}

impl Cluster {
    /// Starts a registry only: images can be put in and converted before the cluster is there.
    pub fn registry_only(cage: &Cage, pantala: &Pantala, options: ClusterOptions) -> Result<Self> {
        let network = Network::new(cage)?;
        let registry_host = network.host("registry")?;
        let round_trip = options.round_trip;
        let registry =
            Registry::start(&registry_host, &cage.dir().join("registry"), MeterOptions { round_trip })?;
        if options.cri {
            image::pause()?.push(registry.back(), "lab", "pause")?;
        }
        Ok(Self {
            machines: Vec::new(),
            seed: None,
            scheduler: None,
            registry,
            registry_host,
            network,
            scheduler_host: None,
            pantala: pantala.clone(),
            options,
            dir: cage.dir().into(),
            tag: cage.tag(),
        })
    }

    /// Starts everything.
    pub fn start(cage: &Cage, pantala: &Pantala, options: ClusterOptions) -> Result<Self> {
        let mut cluster = Self::registry_only(cage, pantala, options)?;
        cluster.start_nodes()?;
        Ok(cluster)
    }

    /// Starts scheduler, seed and nodes.
    pub fn start_nodes(&mut self) -> Result<()> {
        self.scheduler_host = Some(self.network.host("sched")?);
        self.start_scheduler()?;
        if self.options.seed {
            let host = self.network.host("seed")?;
            let config = NodeConfig { seed: true, snapshotter: false, ..self.node_config() };
            self.seed = Some(Node::start(&self.pantala, &host, &self.dir.join("seed"), config)?);
        }
        for number in 1..=self.options.nodes {
            let name = format!("node{number}");
            let host = self.network.host(&name)?;
            let dir = self.dir.join(&name);
            let node = Node::start(&self.pantala, &host, &dir, self.node_config())?;
            let plugin = snapshotter_socket(&dir);
            let mut options = self.options.containerd.clone();
            options.plain_http.push(self.registry.name());
            if self.options.cri {
                options.sandbox_image = Some(self.reference("lab:pause"));
            }
            if let Some(version) = self.options.versions.iter().cycle().nth(number - 1) {
                options.version = *version;
            }
            let dir = dir.join("containerd");
            let containerd = Containerd::start_with(&host, &dir, &self.tag, &plugin, &options)?;
            self.machines.push(Machine { containerd, node, host });
        }
        Ok(())
    }

    /// Starts the scheduler, again if it was there, always with the state that is on its disk.
    pub fn start_scheduler(&mut self) -> Result<()> {
        let Some(host) = &self.scheduler_host else { return Ok(()) };
        let dir = self.dir.join("sched");
        self.scheduler = Some(self.pantala.scheduler(host, &dir, self.options.join_token.as_deref())?);
        Ok(())
    }

    /// Limits every link of the cluster, the registry's too.
    pub fn shape(&self, shape: Shape) -> Result<()> {
        let hosts = self.machines.iter().map(|machine| &machine.host);
        for host in hosts.chain(self.seed.iter().map(Node::host)).chain([&self.registry_host]) {
            host.shape(shape)?;
        }
        Ok(())
    }

    /// The name of an image in the cluster's registry.
    pub fn reference(&self, repository_and_tag: &str) -> String {
        format!("{}/{repository_and_tag}", self.registry.name())
    }

    /// Converts an image of the registry, as a user would, on the registry's host. The registry is reached by its back
    /// door: what a conversion reads is not counted.
    pub fn convert(&self, from: &str, to: &str) -> Result<String> {
        let back = self.registry.back().to_string();
        let (from, to) = (format!("{back}/{from}"), format!("{back}/{to}"));
        self.pantala.run(&self.registry_host, &["image", "convert", "--plain-http", &back, &from, &to])
    }

    /// The manifest of an image in the cluster's registry; of an index its first.
    pub fn manifest(&self, repository: &str, tag: &str) -> Result<Value> {
        let accept = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json";
        let get = |reference: &str| -> Result<Value> {
            let path = format!("/v2/{repository}/manifests/{reference}");
            let response = http::get(self.registry.back(), &path, &[("accept", accept)])?.success()?;
            Ok(serde_json::from_slice(&response.body)?)
        };
        let manifest = get(tag)?;
        match manifest["manifests"][0]["digest"].as_str() {
            Some(digest) => get(digest),
            None => Ok(manifest),
        }
    }

    /// The layers of an image in the cluster's registry, from the bottom up.
    pub fn layers(&self, repository: &str, tag: &str) -> Result<Vec<LayerDescriptor>> {
        LayerDescriptor::deserialize_all(&self.manifest(repository, tag)?)
    }

    fn node_config(&self) -> NodeConfig {
        NodeConfig {
            registry: self.registry.name(),
            scheduler: self
                .scheduler_host
                .as_ref()
                .map(|host| SocketAddr::from((host.address(), SCHEDULER_PORT))),
            join_token: self.options.join_token.clone(),
            seed: false,
            snapshotter: true,
            extra: self.options.node_extra.clone(),
            snapshotter_extra: self.options.snapshotter_extra.clone(),
        }
    }
}
