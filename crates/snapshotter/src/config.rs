//! stargz-snapshotter's `config.toml`.
//!
//! People bring the file they have. Every key that stargz-snapshotter knows is known here: some are
//! followed; those that Pantala makes pointless are accepted, each with one warning that says why; those
//! that would switch verification off are refused. A key that nobody knows is an error that tells the line
//! and the nearest known key, because a misspelt key that is ignored is worse than none.

mod disk;
mod keys;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use lazyfs::mounter::{DriverChoice, UnknownDriver};
use registry::{HostsConfig, Mirror};
use serde::Deserialize;

/// Where stargz-snapshotter listens unless told otherwise.
pub const DEFAULT_ADDRESS: &str = "/run/containerd-stargz-grpc/containerd-stargz-grpc.sock";
/// Where it keeps its state.
pub const DEFAULT_ROOT: &str = "/var/lib/containerd-stargz-grpc";
/// Where its configuration lies.
pub const DEFAULT_CONFIG: &str = "/etc/containerd-stargz-grpc/config.toml";

/// Longest wait of a `Prepare` for the network. While one waits, containerd's garbage collection waits, and
/// with it every other change on the node. Falling back costs more than some seconds: containerd then
/// downloads this layer and all above it.
const MAX_PREPARE_WAIT: Duration = Duration::from_secs(10);

/// Longest wait of a read, unless the file says otherwise. Upstream's 300 s are more than a pod's probes wait.
const DEFAULT_READ_DEADLINE: Duration = Duration::from_mins(1);

/// stargz-snapshotter's default for keeping what it resolved.
const DEFAULT_RESOLVED_FOR: Duration = Duration::from_mins(2);

/// stargz-snapshotter's default for one request, in seconds.
const DEFAULT_REQUEST_TIMEOUT: i64 = 30;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error(
        "cannot read the snapshotter's configuration {path}: {error}; name a file in stargz-snapshotter's keys, or leave \
         it out for the defaults"
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// It is not TOML, or a value has the wrong type. The message tells the line.
    #[error("{path}: {message}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        message: String,
    },
    /// A key that nobody knows.
    #[error("{path}, line {line}: unknown key {key}{}", .nearest.map_or("; remove it".to_owned(), |key| format!(" (did you mean {key}?)")))]
    Unknown {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The key with its tables, joined by dots.
        key: String,
        /// The known key that looks most like it.
        nearest: Option<&'static str>,
    },
    /// A key that would switch verification off.
    #[error(
        "{path}, line {line}: {key} = true is refused: every byte is checked against the digest in the \
         image's manifest before a container sees it. Remove the key; images without such digests run as \
         ordinary layers"
    )]
    Unverified {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The key.
        key: String,
    },
    /// A value that cannot be followed.
    #[error("{path}: {key}: {message}")]
    Value {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What is wrong with it.
        message: String,
    },
}

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
    /// Mirrors.
    pub hosts: HostsConfig,
    /// containerd's own socket.
    pub containerd_address: PathBuf,
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
        let file = File::default();
        Self {
            driver: Driver::Auto,
            prefetch: true,
            prefetch_size: 0,
            background_fetch: true,
            prepare_wait: file.prepare_wait(),
            read_deadline: file.blob.read_deadline(),
            resolved_for: file.resolved_for(),
            disk_budget: None,
            keep_free: None,
            hosts: HostsConfig::default(),
            containerd_address: file.containerd_address,
            warnings: Vec::new(),
        }
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
        let mut hosts = HostsConfig::default();
        for (registry, host) in &file.resolver.host {
            for mirror in &host.mirrors {
                let key = format!("resolver.host.{registry:?}.mirrors");
                hosts.add(registry, mirror.read().map_err(wrong(key))?);
            }
        }
        Ok(Self {
            driver: file.driver,
            prefetch: !file.noprefetch,
            prefetch_size: u64::try_from(file.prefetch_size).unwrap_or(0),
            background_fetch: !file.no_background_fetch,
            prepare_wait: file.prepare_wait(),
            read_deadline: file.blob.read_deadline(),
            resolved_for: file.resolved_for(),
            disk_budget: file.pantala.disk.budget().map_err(wrong("pantala.disk.budget".to_owned()))?,
            keep_free: file
                .pantala
                .disk
                .keep_free()
                .map_err(wrong("pantala.disk.keep_free_percent".to_owned()))?,
            hosts,
            containerd_address: file.containerd_address,
            warnings,
        })
    }
}

/// The keys that are followed. The others were looked at before.
#[derive(Deserialize)]
#[serde(default)]
struct File {
    driver: Driver,
    containerd_address: PathBuf,
    noprefetch: bool,
    prefetch_size: i64,
    no_background_fetch: bool,
    resolve_result_entry_ttl_sec: i64,
    resolver: ResolverTable,
    blob: BlobTable,
    pantala: OwnTable,
}

/// What upstream does not have.
#[derive(Deserialize, Default)]
#[serde(default)]
struct OwnTable {
    disk: disk::DiskTable,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct BlobTable {
    fetching_timeout_sec: i64,
}

impl BlobTable {
    fn read_deadline(&self) -> Duration {
        seconds(self.fetching_timeout_sec).unwrap_or(DEFAULT_READ_DEADLINE)
    }
}

#[derive(Deserialize)]
#[serde(default)]
struct ResolverTable {
    request_timeout_sec: i64,
    host: BTreeMap<String, HostTable>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct HostTable {
    mirrors: Vec<MirrorTable>,
}

#[derive(Deserialize)]
struct MirrorTable {
    host: String,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    request_timeout_sec: i64,
    #[serde(default)]
    header: BTreeMap<String, OneOrMany>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl Default for File {
    fn default() -> Self {
        Self {
            driver: Driver::Auto,
            containerd_address: PathBuf::from("/run/containerd/containerd.sock"),
            noprefetch: false,
            prefetch_size: 0,
            no_background_fetch: false,
            resolve_result_entry_ttl_sec: 0,
            resolver: ResolverTable::default(),
            blob: BlobTable::default(),
            pantala: OwnTable::default(),
        }
    }
}

impl Default for ResolverTable {
    fn default() -> Self {
        Self { request_timeout_sec: DEFAULT_REQUEST_TIMEOUT, host: BTreeMap::new() }
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

impl MirrorTable {
    fn read(&self) -> Result<Mirror, String> {
        if self.host.is_empty() {
            return Err("a mirror needs a host".into());
        }
        let mut mirror = Mirror {
            host: self.host.clone(),
            insecure: self.insecure,
            request_timeout: seconds(self.request_timeout_sec),
            ..Mirror::default()
        };
        for (name, values) in &self.header {
            let values = match values {
                OneOrMany::One(value) => std::slice::from_ref(value),
                OneOrMany::Many(values) => values,
            };
            let name: HeaderName =
                name.parse().map_err(|_| format!("{name:?} cannot be the name of a header"))?;
            for value in values {
                // The value is not shown: it may be a secret.
                let value = HeaderValue::from_str(value)
                    .map_err(|_| format!("the value of header {name} has characters that cannot be"))?;
                mirror.headers.append(name.clone(), value);
            }
        }
        Ok(mirror)
    }
}

fn seconds(number: i64) -> Option<Duration> {
    u64::try_from(number).ok().filter(|number| *number > 0).map(Duration::from_secs)
}

#[cfg(test)]
mod tests;
