//! containerd's `hosts.toml`: one directory per registry, `certs.d/<host>/hosts.toml`.
//!
//! The registry's own place (`server`), the hosts that are asked before it, in the order of the file, and for
//! each what it may be asked for, whom it trusts and what it is shown. A registry with a port is found under
//! `host:port` and `host_port_`; `_default` holds for all that have no directory. A directory without a
//! `hosts.toml`, or with an empty one, is Docker's older form: `*.crt` are CAs, `*.cert` and `*.key` are pairs
//! to show.
//!
//! Three differences from containerd: everything is read at once, so that a mistake is told at the start and
//! with its file, and not at the first pull from there; one client certificate per host is shown, the first;
//! and a host's headers are for it alone, not for its token server.

use std::path::{Path, PathBuf};

use http::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use toml::{Table, Value};
use url::Url;

use crate::hosts::{Capabilities, Hosts, HostsConfig, Mirror};
use crate::reference::canonical_registry;
use crate::tls::{self, Tls};

/// A file longer than this is none of these.
const MAX_FILE: u64 = 1 << 20;
/// The directory for registries that have none.
const DEFAULT: &str = "_default";
/// What a section may hold. `dial_timeout` is read by nobody here: a connection has five seconds.
const KEYS: [&str; 7] =
    ["capabilities", "ca", "client", "skip_verify", "header", "override_path", "dial_timeout"];

/// Why a directory of `hosts.toml` files cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostsError {
    /// It cannot be read.
    #[error("reading {0}: {1}")]
    Read(PathBuf, String),
    /// It is not what it should be.
    #[error("{0}: {1}")]
    Wrong(PathBuf, String),
}

impl HostsConfig {
    /// Reads every registry's directory below `directory` (containerd has it at `/etc/containerd/certs.d`).
    ///
    /// # Errors
    /// The file that cannot be used, and why.
    pub fn load_certs_d(directory: &Path) -> Result<Self, HostsError> {
        let failed = |error: std::io::Error| HostsError::Read(directory.to_owned(), error.to_string());
        let mut config = Self::new();
        let mut folders: Vec<PathBuf> = Vec::new();
        for entry in std::fs::read_dir(directory).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.is_dir() {
                folders.push(path);
            }
        }
        // `host_port_` comes first and wins over `host:port`, as with containerd.
        folders.sort_unstable_by_key(|path| {
            (!path.as_os_str().as_encoded_bytes().ends_with(b"_"), path.clone())
        });
        let mut seen = std::collections::BTreeSet::new();
        for folder in folders {
            let Some(name) = folder.file_name().and_then(|name| name.to_str()) else { continue };
            let registry = registry_of(name);
            if !seen.insert(canonical_registry(&registry)) {
                continue;
            }
            let hosts = read_folder(&folder)?;
            if registry == DEFAULT { config.set_default(hosts) } else { config.insert(&registry, hosts) }
        }
        Ok(config)
    }
}

/// `r.example_5000_` is `r.example:5000`.
fn registry_of(folder: &str) -> String {
    let port = folder.strip_suffix('_').and_then(|rest| rest.rsplit_once('_'));
    match port {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => format!("{host}:{port}"),
        _ => folder.to_owned(),
    }
}

fn read_folder(folder: &Path) -> Result<Hosts, HostsError> {
    let file = folder.join("hosts.toml");
    let text = if file.exists() { read(&file)? } else { Vec::new() };
    if text.is_empty() {
        return legacy(folder);
    }
    let text =
        String::from_utf8(text).map_err(|_| HostsError::Wrong(file.clone(), "it is not UTF-8".into()))?;
    parse(&text, &file, folder)
}

fn read(file: &Path) -> Result<Vec<u8>, HostsError> {
    let failed = |error: std::io::Error| HostsError::Read(file.to_owned(), error.to_string());
    if std::fs::metadata(file).map_err(failed)?.len() > MAX_FILE {
        return Err(HostsError::Wrong(file.to_owned(), "it is too long".to_owned()));
    }
    std::fs::read(file).map_err(failed)
}

fn parse(text: &str, file: &Path, folder: &Path) -> Result<Hosts, HostsError> {
    let wrong = |reason: String| HostsError::Wrong(file.to_owned(), reason);
    let mut table: Table =
        toml::from_str(text).map_err(|error| wrong(error.to_string().trim().to_owned()))?;
    let hosts = table.remove("host");
    let server = match table.remove("server") {
        Some(Value::String(server)) => host_url(&server).map_err(wrong)?,
        Some(other) => return Err(wrong(format!("server is {}, and should be a text", other.type_str()))),
        None => String::new(),
    };
    let settings = |section: &str, table: Table| {
        read_section(table, section, file, folder).map_err(|reason| wrong(format!("{section}: {reason}")))
    };
    let mut server = Mirror { host: server, ..settings("server", table)? };
    if server.host.is_empty() {
        // What can be asked for, and where, is said of a place that is named.
        (server.capabilities, server.override_path) = (Capabilities::ALL, false);
    }
    let mut mirrors = Vec::new();
    match hosts {
        Some(Value::Table(hosts)) => {
            for (host, section) in hosts {
                let name = format!("host.{host:?}");
                let Value::Table(section) = section else {
                    return Err(wrong(format!("{name} is no section")));
                };
                let url = host_url(&host).map_err(wrong)?;
                mirrors.push(Mirror { host: url, ..settings(&name, section)? });
            }
        }
        Some(_) => return Err(wrong("host is no section".to_owned())),
        None => {}
    }
    Ok(Hosts { mirrors, server: Some(server) })
}

/// A host as the file has it, with its scheme.
fn host_url(host: &str) -> Result<String, String> {
    let whole = if host.contains("://") { host.to_owned() } else { format!("https://{host}") };
    // What stands before an @ may be a password.
    let shown = host.rsplit_once('@').map_or(host, |(_, host)| host);
    let wrong = || format!("{shown:?} is no host: write it like https://mirror.example:5000");
    let url = Url::parse(&whole).map_err(|_| wrong())?;
    let plain = url.username().is_empty() && url.password().is_none();
    if matches!(url.scheme(), "http" | "https") && url.has_host() && plain { Ok(whole) } else { Err(wrong()) }
}

/// A text, or several.
#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn list(self) -> Vec<String> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

/// A file with certificate and key, several of those, or pairs of files.
#[derive(Deserialize)]
#[serde(untagged)]
enum Shown {
    One(String),
    Many(Vec<OneOrMany>),
}

fn read_section(mut table: Table, section: &str, file: &Path, folder: &Path) -> Result<Mirror, String> {
    for key in table.keys().filter(|key| !KEYS.contains(&key.as_str())) {
        tracing::warn!(file = %file.display(), section, key, "a setting that is not known is passed over");
    }
    let capabilities = match take::<Vec<String>>(&mut table, "capabilities", "a list of texts")? {
        Some(names) if !names.is_empty() => read_capabilities(&names)?,
        _ => Capabilities::ALL,
    };
    let mut roots = Vec::new();
    for ca in take::<OneOrMany>(&mut table, "ca", "a path or a list of them")?
        .map_or_else(Vec::new, OneOrMany::list)
    {
        let pem = pem(&ca, folder)?;
        tls::certificates(&pem).map_err(|reason| format!("ca {}: {reason}", short(&ca)))?;
        roots.push(pem);
    }
    let skip_verify = take(&mut table, "skip_verify", "true or false")?.unwrap_or(false);
    let override_path = take(&mut table, "override_path", "true or false")?.unwrap_or(false);
    let identity = match take::<Shown>(&mut table, "client", "a path, or a list of paths or pairs of them")? {
        Some(Shown::One(one)) => read_identity(&[one], folder)?,
        Some(Shown::Many(mut many)) if !many.is_empty() => {
            if many.len() > 1 {
                tracing::warn!(file = %file.display(), section, "only the first of its client certificates is shown");
            }
            read_identity(&many.remove(0).list(), folder)?
        }
        _ => None,
    };
    let mut headers = HeaderMap::new();
    let listed =
        take::<std::collections::BTreeMap<String, OneOrMany>>(&mut table, "header", "a section of texts")?;
    for (name, values) in listed.unwrap_or_default() {
        let header = HeaderName::try_from(&name).map_err(|_| format!("{name:?} is no header's name"))?;
        for value in values.list() {
            let mut value = HeaderValue::try_from(value)
                .map_err(|_| format!("the header {name} has a value that none can have"))?;
            // It may well be a token.
            value.set_sensitive(true);
            headers.append(header.clone(), value);
        }
    }
    let tls = Tls { skip_verify, roots, identity };
    Ok(Mirror { headers, capabilities, override_path, tls, ..Mirror::default() })
}

fn take<T: serde::de::DeserializeOwned>(
    table: &mut Table,
    key: &str,
    what: &str,
) -> Result<Option<T>, String> {
    let value = table.remove(key);
    value.map(|value| value.try_into().map_err(|_| format!("{key} should be {what}"))).transpose()
}

fn read_capabilities(names: &[String]) -> Result<Capabilities, String> {
    let mut read = Capabilities { pull: false, resolve: false, push: false };
    for name in names {
        match name.to_ascii_lowercase().as_str() {
            "pull" => read.pull = true,
            "resolve" => read.resolve = true,
            "push" => read.push = true,
            // A newer containerd's, for what is asked of the registry itself here.
            "referrers" => {}
            _ => return Err(format!("{name:?} is no capability: there are pull, resolve and push")),
        }
    }
    Ok(read)
}

/// The contents of a PEM file, or the text itself if it is PEM already.
fn pem(text: &str, folder: &Path) -> Result<Vec<u8>, String> {
    if text.contains("-----BEGIN ") {
        return Ok(text.as_bytes().to_vec());
    }
    read(&folder.join(text)).map_err(|error| error.to_string())
}

/// One file with everything, or a certificate's and a key's.
fn read_identity(files: &[String], folder: &Path) -> Result<Option<Vec<u8>>, String> {
    let mut whole = Vec::new();
    // An empty second path means that the first file holds the key as well.
    for file in files.iter().filter(|file| !file.is_empty()) {
        whole.extend(pem(file, folder)?);
        whole.push(b'\n');
    }
    if whole.is_empty() {
        return Ok(None);
    }
    tls::identity(&whole)
        .map_err(|reason| format!("client {}: {reason}", files.first().map_or("", |file| short(file))))?;
    Ok(Some(whole))
}

/// Of inline PEM, which holds keys, nothing is repeated.
fn short(text: &str) -> &str {
    if text.contains("-----BEGIN ") { "(inline)" } else { text }
}

/// Docker's older form.
fn legacy(folder: &Path) -> Result<Hosts, HostsError> {
    let failed = |error: std::io::Error| HostsError::Read(folder.to_owned(), error.to_string());
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        files.push(entry.map_err(failed)?.path());
    }
    files.sort_unstable();
    let mut tls = Tls::default();
    for file in files {
        let wrong = |reason| HostsError::Wrong(file.clone(), reason);
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => {
                let pem = read(&file)?;
                tls::certificates(&pem).map_err(wrong)?;
                tls.roots.push(pem);
            }
            Some("cert") if tls.identity.is_none() => {
                let mut pem = read(&file)?;
                let key = file.with_extension("key");
                // Without one, the file holds the key as well.
                if key.exists() {
                    pem.push(b'\n');
                    pem.extend(read(&key)?);
                }
                tls::identity(&pem).map_err(wrong)?;
                tls.identity = Some(pem);
            }
            _ => {}
        }
    }
    let server = Mirror { capabilities: Capabilities::ALL, tls, ..Mirror::default() };
    Ok(Hosts { mirrors: Vec::new(), server: Some(server) })
}
