//! A lab for conversions: a registry behind its meter, a host where `pantala image convert` runs, and a containerd on
//! it that takes the results the ordinary way.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use testkit::cage::Cage;
use testkit::cluster::{Cluster, ClusterOptions, LayerDescriptor};
use testkit::containerd::{Containerd, Snapshotter};
use testkit::image::{Image, often_mistaken, one_of_everything};
use testkit::net::Host;
use testkit::node::Pantala;
use testkit::process::{run, run_any};
use testkit::tree::{self, Tree};

use crate::{TOC_DIGEST, base_layer, noise};

/// Files in the root that an eStargz layer adds for readers of the format, and an ordinary pull unpacks like any other.
const ADDED: &[&str] = &["stargz.index.json", ".no.prefetch.landmark", ".prefetch.landmark"];

/// What `pantala` answered.
#[derive(Debug)]
pub struct Answer {
    /// Whether it ended with 0.
    pub success: bool,
    /// How it ended, in words.
    pub status: String,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Answer {
    /// It must have failed, by itself, with one line that has all of `words` in it and no panic.
    pub fn assert_failed(&self, words: &[&str]) {
        assert!(!self.success, "it succeeded: {self:?}");
        assert!(self.status.starts_with("exit status: "), "it was killed: {self:?}");
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        let errors: Vec<_> = self.stderr.lines().filter(|line| line.starts_with("pantala: ")).collect();
        assert_eq!(errors.len(), 1, "one line of error is wanted: {}", self.stderr);
        for word in words {
            assert!(errors[0].contains(word), "no {word:?} in {:?}", errors[0]);
        }
    }
}

/// The lab.
#[derive(Debug)]
pub struct Lab {
    /// Ends first.
    containerd: Option<Containerd>,
    /// The registry and the network.
    pub cluster: Cluster,
    /// Where conversions run.
    pub host: Host,
    /// Files of the lab.
    pub dir: PathBuf,
    pantala: Pantala,
}

impl Lab {
    /// Starts all of it.
    pub fn start(cage: &Cage) -> Result<Self> {
        let mut lab = Self::registry(cage)?;
        let dir = cage.dir().join("builder");
        lab.containerd = Some(Containerd::start(&lab.host, &dir, &cage.tag(), &dir.join("none"))?);
        Ok(lab)
    }

    /// Starts it without containerd.
    pub fn registry(cage: &Cage) -> Result<Self> {
        let pantala = Pantala::locate()?;
        let cluster = Cluster::registry_only(cage, &pantala, ClusterOptions::default())?;
        let host = cluster.network.host("builder")?;
        Ok(Self { containerd: None, cluster, host, dir: cage.dir().into(), pantala })
    }

    /// Takes results, and is a place itself.
    pub fn containerd(&self) -> &Containerd {
        self.containerd.as_ref().expect("a lab with containerd")
    }

    /// Puts an image into the registry without being counted.
    pub fn push(&self, image: &Image, tag: &str) -> Result<()> {
        image.push(self.cluster.registry.back(), "lab", tag)
    }

    /// The name of `lab:<tag>` in the registry, through the meter.
    pub fn reference(&self, tag: &str) -> String {
        self.cluster.reference(&format!("lab:{tag}"))
    }

    /// A file of the lab, as it is written in places.
    pub fn file(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    /// `pantala image <command>` with what it needs to reach this lab's places.
    pub fn command(&self, command: &str) -> Command {
        let mut line = self.pantala.on(&self.host);
        line.args(["image", command, "--plain-http", &self.cluster.registry.name()]);
        if let Some(containerd) = &self.containerd {
            line.args(["-n", containerd.namespace(), "-a"]).arg(containerd.socket());
        }
        line.env("TMPDIR", &self.dir).env("DOCKER_CONFIG", self.dir.join("docker"));
        line
    }

    /// Runs it to its end, whichever that is.
    pub fn ask(&self, command: &str, arguments: &[&str]) -> Result<Answer> {
        answer(self.command(command).args(arguments))
    }

    /// Converts; answers the report.
    pub fn convert(&self, flags: &[&str], from: &str, to: &str) -> Result<Value> {
        let mut line = self.command("convert");
        let report = run(line.args(["--output", "json"]).args(flags).args([from, to]))?;
        serde_json::from_str(&report).with_context(|| format!("the report of a conversion: {report}"))
    }

    /// The file system that containerd's overlayfs has unpacked of an image that it has.
    pub fn unpacked(&self, name: &str) -> Result<Tree> {
        self.containerd().with_image(name, Snapshotter::Overlayfs, tree::read)
    }

    /// The same of an image that it pulls first, as `ctr images pull` does.
    pub fn pulled(&self, name: &str) -> Result<Tree> {
        self.containerd().pull(name, Snapshotter::Overlayfs)?;
        self.unpacked(name)
    }

    /// What upstream's reader computes of each layer that containerd holds must be what the manifest says.
    pub fn assert_toc_digests(&self, name: &str) -> Result<()> {
        let manifest = self.containerd().manifest(name)?;
        let layers = layers(&manifest)?;
        ensure!(!layers.is_empty(), "{name} has no layers");
        for layer in layers {
            let mut program = self.containerd().ctr_remote();
            program.args(["images", "get-toc-digest"]);
            if layer.annotations.contains_key("io.containers.zstd-chunked.manifest-checksum") {
                program.arg("--zstdchunked");
            }
            let computed = run(program.arg(&layer.digest))?;
            let annotated = layer.annotations.get(TOC_DIGEST).context("no annotation")?;
            assert_eq!(computed.trim(), annotated, "{name}, layer {}", layer.digest);
        }
        Ok(())
    }
}

/// Runs a command of `pantala` to its end, whichever that is.
pub fn answer(command: &mut Command) -> Result<Answer> {
    let (status, stdout, stderr) = run_any(command)?;
    Ok(Answer { success: status.success(), status: status.to_string(), stdout, stderr })
}

/// The layers of a manifest, from the bottom up.
pub fn layers(manifest: &Value) -> Result<Vec<LayerDescriptor>> {
    serde_json::from_value(manifest["layers"].clone()).context("a manifest without layers")
}

/// Tars of a shell and, on top of it, one of everything: four layers.
pub fn ordinary() -> Result<Vec<Vec<u8>>> {
    let mut tars = vec![base_layer()?];
    tars.extend(one_of_everything(noise(1, 9_000_000))?);
    Ok(tars)
}

/// The same, and a fifth with what other converters get wrong.
pub fn everything() -> Result<Image> {
    let mut tars = ordinary()?;
    tars.push(often_mistaken()?);
    Ok(Image::new(&tars))
}

/// Two file systems must be the same but for what the format adds.
pub fn assert_same_files(expected: &Tree, seen: &Tree, what: &str) {
    let bare = |tree: &Tree| -> Tree {
        let mut bare: BTreeMap<_, _> = tree.clone();
        bare.retain(|path, _| !ADDED.contains(&path.as_str()));
        // No layer says when the root itself was made: containerd takes the clock's word.
        if let Some(root) = bare.get_mut("") {
            root.mtime = 0;
        }
        bare
    };
    let (expected, seen) = (bare(expected), bare(seen));
    assert!(expected.len() > 15, "{what}: only {} names", expected.len());
    let differences = tree::differences(&expected, &seen);
    assert!(differences.is_empty(), "{what}:\n{}", differences.join("\n"));
}

/// Names below a folder of files that somebody may have left, for an error that says which.
pub fn names_in(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// `skopeo copy` between places of the lab.
pub fn skopeo_copy(host: &Host, from: &str, to: &str) -> Result<()> {
    let mut command = host.command("skopeo");
    command.args([
        "--insecure-policy",
        "copy",
        "--quiet",
        "--src-tls-verify=false",
        "--dest-tls-verify=false",
    ]);
    run(command.args([from, to])).map(drop)
}
