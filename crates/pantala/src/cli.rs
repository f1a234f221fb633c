//! The command line: names, flags, defaults and help, and nothing else.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use registry::Reference;

mod convert;
mod look;
mod optimize;
mod places;
mod pull;
pub mod stargz;

pub use self::convert::{ConvertArgs, Dialect};
pub use look::{DiffArgs, InspectArgs, TocDigestArgs, VerifyArgs};
pub use optimize::{OptimizeArgs, RunArgs};
pub use places::PlaceArgs;
pub use pull::PullArgs;

/// Starts containers before their image has arrived, and fetches every byte from the registry once.
#[derive(Debug, Parser)]
#[command(name = "pantala", version, propagate_version = true, arg_required_else_help = true)]
#[command(after_help = "Examples:
  # Everything on one machine: scheduler, seed, proxy and snapshotter
  pantala up

  # Make an image lazy, straight from registry to registry
  pantala image convert docker.io/library/python:3.11 registry.example/python:3.11-esgz

  # A cluster: one scheduler, one node per machine
  pantala scheduler --config scheduler.yaml
  pantala node --config node.yaml --snapshotter /etc/containerd-stargz-grpc/config.toml

  # What is mounted, and where its bytes came from
  pantala status")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Pull, convert, inspect, verify and compare images
    #[command(subcommand, arg_required_else_help = true)]
    #[command(after_help = "Examples:
  pantala image pull registry.example/python:3.11-esgz
  pantala image convert docker.io/library/python:3.11 registry.example/python:3.11-esgz
  pantala image inspect registry.example/python:3.11-esgz
  pantala image verify registry.example/python:3.11-esgz")]
    Image(ImageCommand),
    /// Run the snapshotter alone: lazy mounts for containerd, straight from registries
    Snapshotter(SnapshotterArgs),
    /// Run a scheduler: who has what, and who may ask the registry
    Scheduler(SchedulerArgs),
    /// Run a node: peer, proxy and registry mirror, and with --snapshotter lazy mounts
    Node(NodeArgs),
    /// Run scheduler, seed, proxy and snapshotter on this machine with one command
    Up(UpArgs),
    /// Show nodes, mounted layers, and where bytes came from
    Status(StatusArgs),
    /// Hold what mounted layers need while the process that serves them is replaced; started by itself
    #[command(hide = true)]
    Keeper(KeeperArgs),
    /// Print a completion script for a shell
    #[command(after_help = "Examples:
  pantala completion bash > /usr/share/bash-completion/completions/pantala
  source <(pantala completion bash)    # this shell only")]
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// Form of what is written to standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For a person.
    Table,
    /// For a program.
    Json,
}

/// How registries are reached.
#[derive(Debug, Default, Args)]
pub struct RegistryArgs {
    /// Registry host[:port] that speaks plain HTTP; may be repeated. One on loopback needs no mention
    #[arg(long, value_name = "HOST", value_parser = plain_host)]
    pub plain_http: Vec<String>,
    /// Docker's config.json with credentials [default: the one in $DOCKER_CONFIG, else in ~/.docker]
    #[arg(long, value_name = "FILE")]
    pub docker_config: Option<PathBuf>,
}

/// Commands on images.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Pull an image into containerd, its layers mounted before their bytes are here
    #[command(visible_alias = "rpull")]
    Pull(Box<PullArgs>),
    /// Convert an image to eStargz or zstd:chunked, from place to place
    Convert(Box<ConvertArgs>),
    /// Run an image once, and convert it with the files that it read in front
    Optimize(Box<OptimizeArgs>),
    /// Show the layers of an image: kind, chunks, landmarks, sizes, and what a start would fetch
    Inspect(Box<InspectArgs>),
    /// Check whether an image tells the truth: every digest, every chunk, every tar header
    Verify(Box<VerifyArgs>),
    /// Print the digest of each layer's table of contents
    TocDigest(Box<TocDigestArgs>),
    /// Show what differs between two images, as file systems and in their configs
    Diff(Box<DiffArgs>),
}

/// `pantala snapshotter`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  # In place of containerd-stargz-grpc, with its files and its socket
  pantala snapshotter
  pantala snapshotter --address /run/p.sock --root /var/lib/p --config /etc/p.toml
  # Mirrors, CAs and client certificates where containerd has them
  pantala snapshotter --hosts-dir /etc/containerd/certs.d
  # A unit file that was written for stargz-snapshotter, with its own flags
  ln -s /usr/bin/pantala /usr/local/bin/containerd-stargz-grpc

It needs root, and Linux 6.14 or /dev/fuse. containerd's side, in /etc/containerd/config.toml:
  [proxy_plugins.stargz]
    type = \"snapshot\"
    address = \"/run/containerd-stargz-grpc/containerd-stargz-grpc.sock\"")]
pub struct SnapshotterArgs {
    /// Socket that containerd connects to
    #[arg(long, value_name = "SOCK", default_value = snapshotter::DEFAULT_ADDRESS)]
    pub address: PathBuf,
    /// Where snapshots, layers and the database are kept
    #[arg(long, value_name = "DIR", default_value = snapshotter::DEFAULT_ROOT)]
    pub root: PathBuf,
    /// Configuration in stargz-snapshotter's keys [default: /etc/containerd-stargz-grpc/config.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// How the kernel asks for bytes of lazy layers: auto, native (EROFS, Linux 6.14) or fuse [default: what the
    /// configuration says, else auto]
    #[arg(long, value_name = "DRIVER")]
    pub driver: Option<snapshotter::Driver>,
    /// Log level: trace, debug, info, warn, error, fatal or panic
    #[arg(long, value_name = "LEVEL", default_value = "info", value_parser = log_level)]
    pub log_level: String,
    /// Socket of containerd [default: /run/containerd/containerd.sock]
    #[arg(long, value_name = "SOCK")]
    pub containerd_address: Option<PathBuf>,
    /// How registries are reached.
    #[command(flatten)]
    pub registries: RegistryArgs,
    /// Directories of containerd's hosts.toml files, as in its config_path: mirrors, CAs and client certificates of
    /// registries that the configuration does not list
    #[arg(long, value_name = "DIR[:DIR]")]
    pub hosts_dir: Option<String>,
    /// Serve in this very process: nothing starts it again, and mounted layers break when it dies
    #[arg(long)]
    pub no_keeper: bool,
}

/// `pantala keeper`.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  pantala keeper --root /var/lib/containerd-stargz-grpc")]
pub struct KeeperArgs {
    /// The snapshotter's root
    #[arg(long, value_name = "DIR")]
    pub root: PathBuf,
    /// Seconds without a snapshotter after which reads of absent bytes are errors
    #[arg(long, env = "PANTALA_KEEPER_GRACE", value_name = "SECONDS", default_value_t = lazyfs::keeper::GRACE.as_secs())]
    pub grace: u64,
    /// Do not detach from whoever started it
    #[arg(long)]
    pub foreground: bool,
}

/// `pantala scheduler`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pantala scheduler --config scheduler.yaml

scheduler.yaml:
  server: {advertiseIP: 10.0.0.3, port: 8002, dataDir: /var/lib/pantala/scheduler}
  security: {joinToken: \"<openssl rand -hex 32>\"}    # or $PANTALA_JOIN_TOKEN")]
pub struct SchedulerArgs {
    /// Configuration file
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Log level: error, warn, info, debug or trace [default: info, or debug if the file says verbose]
    #[arg(long, value_name = "LEVEL", value_parser = log_level)]
    pub log_level: Option<String>,
}

/// `pantala node`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pantala node --config node.yaml
  pantala node --config node.yaml --seed
  # With lazy mounts, read through the swarm
  pantala node --config node.yaml --snapshotter /etc/containerd-stargz-grpc/config.toml

node.yaml:
  scheduler: {netAddrs: [{type: tcp, addr: 10.0.0.3:8002}]}
  host: {advertiseIP: 10.0.0.4}
  security: {joinToken: \"<the scheduler's>\"}    # or $PANTALA_JOIN_TOKEN
  proxy: {registryMirror: {url: https://index.docker.io, dynamic: true}}

Ports, each with its key: pieces 65002 (upload.tcpListen.port), proxy and registry mirror 65001
(proxy.tcpListen.port), health 40901 (health.tcpListen.port).")]
pub struct NodeArgs {
    /// Configuration file, in the keys of Dragonfly's dfdaemon
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Be a seed peer: read from registries for others
    #[arg(long)]
    pub seed: bool,
    /// Also run the snapshotter with this config.toml; its layers are read through the swarm
    #[arg(long, value_name = "FILE")]
    pub snapshotter: Option<PathBuf>,
    /// How the kernel asks for bytes of lazy layers: auto, native (EROFS, Linux 6.14) or fuse [default: what the
    /// configuration says, else auto]
    #[arg(long, value_name = "DRIVER", requires = "snapshotter")]
    pub driver: Option<snapshotter::Driver>,
    /// Socket of the snapshotter, for containerd
    #[arg(long, value_name = "SOCK", default_value = snapshotter::DEFAULT_ADDRESS)]
    pub snapshotter_address: PathBuf,
    /// Where the snapshotter keeps snapshots, layers and its database
    #[arg(long, value_name = "DIR", default_value = snapshotter::DEFAULT_ROOT)]
    pub snapshotter_root: PathBuf,
    /// Docker's config.json with credentials [default: the one in $DOCKER_CONFIG, else in ~/.docker]
    #[arg(long, value_name = "FILE")]
    pub docker_config: Option<PathBuf>,
    /// Log level: error, warn, info, debug or trace [default: info, or debug if the file says verbose]
    #[arg(long, value_name = "LEVEL", value_parser = log_level)]
    pub log_level: Option<String>,
    /// Serve in this very process: nothing starts it again, and mounted layers break when it dies
    #[arg(long)]
    pub no_keeper: bool,
}

/// `pantala up`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pantala up
  pantala up --root /srv/pantala --plain-http 10.0.0.2:5000
  pantala up --advertise-ip 10.0.0.4    # other machines may join

It needs root, and Linux 6.14 or /dev/fuse. containerd's side, in /etc/containerd/config.toml:
  [proxy_plugins.stargz]
    type = \"snapshot\"
    address = \"/var/lib/pantala/snapshotter.sock\"")]
pub struct UpArgs {
    /// Everything is kept below this directory
    #[arg(long, value_name = "DIR", default_value = "/var/lib/pantala")]
    pub root: PathBuf,
    /// Address under which other machines reach this one
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    pub advertise_ip: IpAddr,
    /// Snapshotter's configuration in stargz-snapshotter's keys [default: none]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// How the kernel asks for bytes of lazy layers: auto, native (EROFS, Linux 6.14) or fuse [default: what the
    /// configuration says, else auto]
    #[arg(long, value_name = "DRIVER")]
    pub driver: Option<snapshotter::Driver>,
    /// Socket of the snapshotter, for containerd [default: snapshotter.sock in the root]
    #[arg(long, value_name = "SOCK")]
    pub address: Option<PathBuf>,
    /// Port of the proxy
    #[arg(long, value_name = "PORT", default_value_t = crate::config::node::ports::PROXY)]
    pub proxy_port: u16,
    /// Port of the scheduler
    #[arg(long, value_name = "PORT", default_value_t = crate::config::scheduler::DEFAULT_PORT)]
    pub scheduler_port: u16,
    /// Port on which pieces are served
    #[arg(long, value_name = "PORT", default_value_t = crate::config::node::ports::PIECES)]
    pub piece_port: u16,
    /// Port of the health answers
    #[arg(long, value_name = "PORT", default_value_t = crate::config::node::ports::HEALTH)]
    pub health_port: u16,
    /// Registry behind the mirror, http:// or https://
    #[arg(long, value_name = "URL", value_parser = registry_url, default_value = "https://index.docker.io")]
    pub registry: String,
    /// How registries are reached.
    #[command(flatten)]
    pub registries: RegistryArgs,
    /// Log level: error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", default_value = "info", value_parser = log_level)]
    pub log_level: String,
    /// Serve in this very process: nothing starts it again, and mounted layers break when it dies
    #[arg(long)]
    pub no_keeper: bool,
}

/// `pantala status`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pantala status
  pantala status --socket /var/lib/containerd-stargz-grpc/pantala.sock --output json")]
pub struct StatusArgs {
    /// Socket of the service: pantala.sock in the dataDir of a node, in the root of `pantala up` or of a snapshotter
    /// [default: the first that answers of those at the default places]
    #[arg(long, value_name = "SOCK")]
    pub socket: Option<PathBuf>,
    /// Form of the output: table (for people) or json (for programs)
    #[arg(long, value_enum, value_name = "FORM", default_value_t = Output::Table, hide_possible_values = true)]
    pub output: Output,
}

/// A level that the log knows.
fn log_level(text: &str) -> Result<String, telemetry::LogsError> {
    telemetry::check_level(text).map(|()| text.to_owned())
}

/// `host[:port]`, also if it was copied with its scheme.
fn plain_host(text: &str) -> Result<String, String> {
    let host = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
    // The checks of a reference are those of a host.
    match Reference::new(host, "host") {
        Ok(reference) => Ok(reference.registry().to_owned()),
        Err(_) => Err("write it as host or host:port, as in 10.0.0.2:5000".to_owned()),
    }
}

fn registry_url(text: &str) -> Result<String, String> {
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    match host.map(|host| Reference::new(host.trim_end_matches('/'), "host")) {
        Some(Ok(_)) => Ok(text.to_owned()),
        _ => Err("write it as https://host[:port], or http:// if it speaks plain HTTP".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn values_are_checked_before_anything_runs() {
        assert_eq!(plain_host("http://10.0.0.2:5000/"), Ok("10.0.0.2:5000".into()));
        assert!(plain_host("a b").is_err());
        assert!(registry_url("https://index.docker.io").is_ok());
        assert!(registry_url("foo").is_err());
        assert!(log_level("verbos").is_err());
    }

    /// Every command that does something shows how, or a user has to guess.
    #[test]
    fn every_subcommand_has_an_example() {
        fn check(command: &clap::Command) {
            for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
                if sub.has_subcommands() {
                    check(sub);
                    continue;
                }
                let help = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.contains("Example"), "{} shows no example", sub.get_name());
            }
        }
        check(&Cli::command());
    }
}
