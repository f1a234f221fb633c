//! stargz-snapshotter's `config.toml`.
//!
//! People bring the file they have. Every key that stargz-snapshotter knows is known here: some are
//! followed; those that Pantala makes pointless are accepted, each with one warning that says why; those
//! that would switch verification off are refused. A key that nobody knows is an error that tells the line
//! and the nearest known key, because a misspelt key that is ignored is worse than none.

mod disk;
mod error;
mod hosts;
mod keychains;
mod keys;

use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use lazyfs::mounter::{DriverChoice, UnknownDriver};
use registry::{ClientConfig, HostsConfig, Retries};
use serde::Deserialize;

pub use error::ConfigError;
pub use keychains::{CriKeychainConfig, KeychainsConfig, KubeKeychainConfig};

/// Where stargz-snapshotter listens unless told otherwise.
pub const DEFAULT_ADDRESS: &str = "/run/containerd-stargz-grpc/containerd-stargz-grpc.sock";
/// Where it keeps its state.
pub const DEFAULT_ROOT: &str = "/var/lib/containerd-stargz-grpc";
/// Where its configuration lies.
pub const DEFAULT_CONFIG: &str = "/etc/containerd-stargz-grpc/config.toml";

/// Longest wait of a `Prepare` for the network. While one waits, containerd's garbage collection waits, and
/// with it every other change on the node. What is too late goes on in the background, and the next pull finds it;
/// this one falls back, and containerd downloads the layer and all above it.
const MAX_PREPARE_WAIT: Duration = Duration::from_secs(2);

/// Longest wait of a read, unless the file says otherwise. Upstream's 300 s are more than a pod's probes wait.
const DEFAULT_READ_DEADLINE: Duration = Duration::from_mins(1);

/// stargz-snapshotter's default for keeping what it resolved.
const DEFAULT_RESOLVED_FOR: Duration = Duration::from_mins(2);

/// stargz-snapshotter's default for one request, in seconds.
const DEFAULT_REQUEST_TIMEOUT: i64 = 30;

/// stargz-snapshotter's default for how long a source that answered is believed to answer, in seconds.
const DEFAULT_VALID_INTERVAL: i64 = 60;

/// More layers than this are not fetched in the background at once, whatever the file says.
const MAX_BACKGROUND: usize = 64;

/// containerd's usual socket.
const CONTAINERD: &str = "/run/containerd/containerd.sock";

/// Which way the kernel asks for the bytes of lazy layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// The best that this machine can do.
    #[default]
    Auto,
    /// EROFS, filled through fanotify. An error if this machine cannot.
    Native,
    /// FUSE.
    Fuse,
}

impl From<Driver> for DriverChoice {
    fn from(driver: Driver) -> Self {
        match driver {
            Driver::Auto => Self::Auto,
            Driver::Native => Self::Native,
            Driver::Fuse => Self::Fuse,
        }
    }
}

impl FromStr for Driver {
    type Err = UnknownDriver;

    fn from_str(text: &str) -> Result<Self, UnknownDriver> {
        Ok(match text.parse()? {
            DriverChoice::Auto => Self::Auto,
            DriverChoice::Native => Self::Native,
            DriverChoice::Fuse => Self::Fuse,
        })
    }
}

/// What the snapshotter does.
#[derive(Debug, Clone)]
pub struct Config {
    /// Which way the kernel asks.
    pub driver: Driver,
    /// Whether what a start needs is fetched ahead.
    pub prefetch: bool,
    /// Bytes to fetch ahead if neither the layer nor the client says how many.
    pub prefetch_size: u64,
    /// Whether the rest of a layer is fetched when nobody waits for anything.
    pub background_fetch: bool,
    /// How long `Prepare` waits for the network.
    pub prepare_wait: Duration,
    /// Longest time that a read in a container waits for its bytes before it gets an I/O error.
    pub read_deadline: Duration,
    /// How long the layers of an image are held open after one of them was named.
    pub resolved_for: Duration,
    /// Most bytes that lazy layers may take on disk; `None` for as many as `keep_free` leaves.
    pub disk_budget: Option<u64>,
    /// Percent of the file system that they leave to others; `None` for the default.
    pub keep_free: Option<u8>,
    /// Layers that are fetched in the background at once; `None` for the default.
    pub background_layers: Option<usize>,
    /// Before a container starts, the source of a layer that is not all here is asked whether it still answers, if it
    /// was not heard of for so long. Zero: always.
    pub check_after: Duration,
    /// Mirrors, and how hosts are connected with.
    pub hosts: HostsConfig,
    /// Longest time for the head of one answer of a registry; `None` leaves it to the urgency of the read.
    pub request_timeout: Option<Duration>,
    /// How often requests are tried again.
    pub retries: Retries,
    /// In whose name registries are asked, beside Docker's configuration.
    pub keychains: KeychainsConfig,
    /// containerd's own socket.
    pub containerd_address: PathBuf,
    /// The namespace in which CRI keeps its images.
    pub cri_namespace: String,
    /// Whether layers are mounted lazily only if their diffIDs are proven.
    pub require_diffid_proof: bool,
    /// Where metrics are served: an address with its port, or the path of a Unix socket. Nowhere, if empty.
    pub metrics_address: Option<String>,
    /// Whether no metrics are to be counted.
    pub no_prometheus: bool,
    /// Where upstream serves its profiles.
    pub debug_address: Option<String>,
    /// Whether the first access to each file is logged.
    pub log_file_access: bool,
    /// Whether upstream would run its second process.
    pub fuse_manager: bool,
    /// Keys that do nothing here.
    pub warnings: Vec<Warning>,
}

/// A known key that does nothing here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// The line, from 1.
    pub line: usize,
    /// The key with its tables, joined by dots.
    pub key: String,
    /// Why it does nothing.
    pub reason: &'static str,
}

impl Default for Config {
    fn default() -> Self {
        Self::of(&File::default())
    }
}

impl Config {
    /// Reads the file at `path`, which somebody named: it must be there.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| ConfigError::Read { path: path.to_owned(), error })?;
        Self::parse(&text, path)
    }

    /// Reads the file at the usual place, or takes the defaults if there is none.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub fn load_default() -> Result<Self, ConfigError> {
        match Self::load(Path::new(DEFAULT_CONFIG)) {
            Err(ConfigError::Read { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
                Ok(Self::default())
            }
            other => other,
        }
    }

    /// Adds the hosts that containerd's `hosts.toml` files below `directories` tell (`:` between several), for registries
    /// that have none here. Of two directories the first counts.
    ///
    /// # Errors
    /// The file that cannot be used, and why.
    pub fn add_hosts_dir(&mut self, directories: &str) -> Result<(), registry::HostsError> {
        hosts::add_directories(&mut self.hosts, directories)
    }

    /// Tells a client of registries what the file says about hosts, time limits and retries.
    pub fn apply(&self, client: &mut ClientConfig) {
        client.hosts = self.hosts.clone();
        client.request_timeout = self.request_timeout;
        client.retries = self.retries;
    }

    /// What needs no more than its value to be read.
    fn of(file: &File) -> Self {
        let own = &file.pantala;
        let containerd =
            [&file.containerd_address, &file.cri_containerd_address].into_iter().flatten().next();
        Self {
            driver: file.driver,
            prefetch: !file.noprefetch,
            prefetch_size: u64::try_from(file.prefetch_size).unwrap_or(0),
            background_fetch: !file.no_background_fetch,
            prepare_wait: file.prepare_wait(),
            read_deadline: file.blob.read_deadline(),
            resolved_for: file.resolved_for(),
            disk_budget: None,
            keep_free: None,
            background_layers: usize::try_from(file.max_concurrency)
                .ok()
                .filter(|number| *number > 0)
                .map(|number| number.min(MAX_BACKGROUND)),
            check_after: file.blob.check_after(),
            hosts: HostsConfig::default(),
            request_timeout: seconds(file.resolver.request_timeout_sec),
            retries: file.blob.retries(),
            keychains: KeychainsConfig::default(),
            containerd_address: containerd.cloned().unwrap_or_else(|| PathBuf::from(CONTAINERD)),
            cri_namespace: file.cri_containerd_namespace.clone().unwrap_or_else(|| "k8s.io".into()),
            require_diffid_proof: own.require_diffid_proof,
            metrics_address: given(&file.metrics_address),
            no_prometheus: file.no_prometheus,
            debug_address: given(&file.debug_address),
            log_file_access: file.log_file_access,
            fuse_manager: file.fuse_manager.enable,
            warnings: Vec::new(),
        }
    }

    /// Reads a configuration. `path` is for messages.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let warnings = keys::check(text, path)?;
        let file: File = toml::from_str(text)
            .map_err(|error| ConfigError::Syntax { path: path.to_owned(), message: error.to_string() })?;
        let wrong =
            |key: String| move |message: String| ConfigError::Value { path: path.to_owned(), key, message };
        let mut config = Self::of(&file);
        config.hosts =
            hosts::read(&file.resolver, &file.registry).map_err(|(key, message)| wrong(key)(message))?;
        config.keychains = keychains::read(&file).map_err(|(key, message)| wrong(key)(message))?;
        config.disk_budget = file.pantala.disk.budget().map_err(wrong("pantala.disk.budget".to_owned()))?;
        let keep_free = file.pantala.disk.keep_free();
        config.keep_free = keep_free.map_err(wrong("pantala.disk.keep_free_percent".to_owned()))?;
        config.warnings = warnings;
        Ok(config)
    }
}

/// The keys that are followed. The others were looked at before.
#[derive(Deserialize)]
#[serde(default)]
struct File {
    driver: Driver,
    containerd_address: Option<PathBuf>,
    cri_containerd_address: Option<PathBuf>,
    cri_containerd_namespace: Option<String>,
    noprefetch: bool,
    prefetch_size: i64,
    no_background_fetch: bool,
    max_concurrency: i64,
    resolve_result_entry_ttl_sec: i64,
    metrics_address: String,
    debug_address: String,
    no_prometheus: bool,
    log_file_access: bool,
    resolver: hosts::ResolverTable,
    registry: hosts::RegistryTable,
    blob: BlobTable,
    kubeconfig_keychain: keychains::KubeTable,
    cri_keychain: keychains::CriTable,
    cri_keychain_image_service_path: Option<PathBuf>,
    cri_listen_path: Option<PathBuf>,
    fuse_manager: ManagerTable,
    pantala: OwnTable,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ManagerTable {
    enable: bool,
}

/// What upstream does not have.
#[derive(Deserialize, Default)]
#[serde(default)]
struct OwnTable {
    disk: disk::DiskTable,
    require_diffid_proof: bool,
    credentials_lifetime: Option<keychains::Span>,
}

#[derive(Deserialize)]
#[serde(default)]
struct BlobTable {
    fetching_timeout_sec: i64,
    valid_interval: i64,
    check_always: bool,
    max_retries: i64,
    min_wait_msec: i64,
    max_wait_msec: i64,
}

impl Default for BlobTable {
    fn default() -> Self {
        Self {
            fetching_timeout_sec: 0,
            valid_interval: DEFAULT_VALID_INTERVAL,
            check_always: false,
            max_retries: 0,
            min_wait_msec: 0,
            max_wait_msec: 0,
        }
    }
}

impl BlobTable {
    fn read_deadline(&self) -> Duration {
        seconds(self.fetching_timeout_sec).unwrap_or(DEFAULT_READ_DEADLINE)
    }

    fn check_after(&self) -> Duration {
        if self.check_always {
            return Duration::ZERO;
        }
        // As upstream, zero is the default.
        seconds(self.valid_interval).or_else(|| seconds(DEFAULT_VALID_INTERVAL)).unwrap_or_default()
    }

    fn retries(&self) -> Retries {
        let positive = |number: i64| u64::try_from(number).ok().filter(|number| *number > 0);
        Retries {
            most: positive(self.max_retries).map(|number| u32::try_from(number).unwrap_or(u32::MAX)),
            first_wait: positive(self.min_wait_msec).map(Duration::from_millis),
            longest_wait: positive(self.max_wait_msec).map(Duration::from_millis),
        }
    }
}

impl Default for File {
    fn default() -> Self {
        Self {
            driver: Driver::Auto,
            containerd_address: None,
            cri_containerd_address: None,
            cri_containerd_namespace: None,
            noprefetch: false,
            prefetch_size: 0,
            no_background_fetch: false,
            max_concurrency: 0,
            resolve_result_entry_ttl_sec: 0,
            metrics_address: String::new(),
            debug_address: String::new(),
            no_prometheus: false,
            log_file_access: false,
            resolver: hosts::ResolverTable::default(),
            registry: hosts::RegistryTable::default(),
            blob: BlobTable::default(),
            kubeconfig_keychain: keychains::KubeTable::default(),
            cri_keychain: keychains::CriTable::default(),
            cri_keychain_image_service_path: None,
            cri_listen_path: None,
            fuse_manager: ManagerTable::default(),
            pantala: OwnTable::default(),
        }
    }
}

impl File {
    /// As upstream, zero is the default.
    fn resolved_for(&self) -> Duration {
        seconds(self.resolve_result_entry_ttl_sec).unwrap_or(DEFAULT_RESOLVED_FOR)
    }

    /// Zero and less mean "no limit" upstream; a `Prepare` has one always.
    fn prepare_wait(&self) -> Duration {
        seconds(self.resolver.request_timeout_sec).map_or(MAX_PREPARE_WAIT, |wait| wait.min(MAX_PREPARE_WAIT))
    }
}

/// A text that says something.
fn given(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

fn seconds(number: i64) -> Option<Duration> {
    u64::try_from(number).ok().filter(|number| *number > 0).map(Duration::from_secs)
}

#[cfg(test)]
mod tests;
