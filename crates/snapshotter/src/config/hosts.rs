//! Where registries are asked: `[resolver.host]` with its mirrors, containerd's `hosts.toml` below
//! `[resolver] config_path`, and the `[registry]` table of the built-in plugin, which is CRI's.
//!
//! What `[resolver.host]` says of a registry counts; then `[registry.mirrors]`; then `hosts.toml`.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use http::{HeaderName, HeaderValue};
use registry::{HostsConfig, HostsError, Mirror, Tls};
use serde::Deserialize;

use super::keychains::AuthTable;
use super::{DEFAULT_REQUEST_TIMEOUT, seconds};

/// A key, and what is wrong with it.
pub(super) type Wrong = (String, String);

/// `[resolver]`.
#[derive(Deserialize)]
#[serde(default)]
pub(super) struct ResolverTable {
    pub(super) request_timeout_sec: i64,
    config_path: String,
    host: BTreeMap<String, HostTable>,
}

impl Default for ResolverTable {
    fn default() -> Self {
        Self {
            request_timeout_sec: DEFAULT_REQUEST_TIMEOUT,
            config_path: String::new(),
            host: BTreeMap::new(),
        }
    }
}

/// `[registry]`, as CRI has it.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct RegistryTable {
    config_path: String,
    mirrors: BTreeMap<String, EndpointsTable>,
    pub(super) configs: BTreeMap<String, ConfigTable>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct EndpointsTable {
    endpoint: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct ConfigTable {
    pub(super) auth: Option<AuthTable>,
    tls: Option<TlsTable>,
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
    #[serde(default)]
    tls: Option<TlsTable>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct TlsTable {
    ca_file: Option<PathBuf>,
    cert_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
    insecure_skip_verify: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// All that a file says of hosts.
pub(super) fn read(resolver: &ResolverTable, plugin: &RegistryTable) -> Result<HostsConfig, Wrong> {
    let mut hosts = HostsConfig::default();
    for (registry, host) in &resolver.host {
        for mirror in &host.mirrors {
            let key = || format!("resolver.host.{registry:?}.mirrors");
            hosts.add(registry, mirror.read().map_err(|message| (key(), message))?);
        }
    }
    let mut endpoints = HostsConfig::default();
    for (registry, mirror) in &plugin.mirrors {
        for endpoint in &mirror.endpoint {
            endpoints.add(registry, Mirror { host: endpoint.clone(), ..Mirror::default() });
        }
    }
    hosts.merge(endpoints);
    for (key, directories) in
        [("resolver.config_path", &resolver.config_path), ("registry.config_path", &plugin.config_path)]
    {
        add_directories(&mut hosts, directories).map_err(|error| (key.to_owned(), error.to_string()))?;
    }
    for (host, config) in &plugin.configs {
        if let Some(tls) = &config.tls {
            let key = || format!("registry.configs.{host:?}.tls");
            hosts.secure(host, &tls.read().map_err(|message| (key(), message))?);
        }
    }
    Ok(hosts)
}

/// Adds what `hosts.toml` files say of registries that are not listed yet.
pub(super) fn add_directories(hosts: &mut HostsConfig, directories: &str) -> Result<(), HostsError> {
    for directory in directories.split(':').map(str::trim).filter(|directory| !directory.is_empty()) {
        hosts.merge(HostsConfig::load_certs_d(Path::new(directory))?);
    }
    Ok(())
}

/// Credentials that stand in the file itself.
pub(super) fn fixed(plugin: &RegistryTable) -> Result<HashMap<String, registry::Credential>, Wrong> {
    let mut found = HashMap::new();
    for (host, config) in &plugin.configs {
        let Some(auth) = &config.auth else { continue };
        let wrong = |message| (format!("registry.configs.{host:?}.auth"), message);
        if let Some(credential) = auth.read().map_err(wrong)? {
            found.insert(host.clone(), credential);
        }
    }
    Ok(found)
}

impl TlsTable {
    fn read(&self) -> Result<Tls, String> {
        Tls::from_files(
            self.ca_file.as_deref(),
            self.cert_file.as_deref(),
            self.key_file.as_deref(),
            self.insecure_skip_verify,
        )
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
        if let Some(tls) = &self.tls {
            mirror.tls = tls.read()?;
            // Whoever configures certificates means HTTPS, on this machine too.
            if !self.insecure && !mirror.host.contains("://") && mirror.tls != Tls::default() {
                mirror.host = format!("https://{}", mirror.host);
            }
        }
        for (name, values) in &self.header {
            let values = match values {
                OneOrMany::One(value) => std::slice::from_ref(value),
                OneOrMany::Many(values) => values,
            };
            let name: HeaderName =
                name.parse().map_err(|_| format!("{name:?} cannot be the name of a header"))?;
            for value in values {
                // The value is not shown: it may be a secret.
                let mut value = HeaderValue::from_str(value)
                    .map_err(|_| format!("the value of header {name} has characters that cannot be"))?;
                value.set_sensitive(true);
                mirror.headers.append(name.clone(), value);
            }
        }
        Ok(mirror)
    }
}
