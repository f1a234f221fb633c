//! Docker's `config.json`: where `docker login` and its helpers keep what they know. Kubernetes' image pull secrets
//! are the same file inside an object.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use tokio::io::AsyncWriteExt;

use super::{Asked, Credential, CredentialError};
use crate::reference::{DOCKER_HUB, canonical_registry};

/// The name that Docker's tools keep the credentials of Docker Hub under.
const HUB_SERVER: &str = "https://index.docker.io/v1/";
/// A credential helper may ask a cloud's API.
const HELPER_TIMEOUT: Duration = Duration::from_secs(15);
/// A configuration file longer than this is not one.
const MAX_CONFIG: u64 = 4 << 20;

/// What the file (`None`: the usual one) knows.
pub(super) async fn from_file(
    path: Option<PathBuf>,
    asked: &Asked<'_>,
) -> Result<Vec<Credential>, CredentialError> {
    let Some(path) = path.or_else(default_config) else { return Ok(Vec::new()) };
    match read_config(&path).await? {
        Some(config) => config.find(&path, asked).await,
        None => Ok(Vec::new()),
    }
}

/// The `auths` of a Docker configuration that came from elsewhere: an image pull secret. No helper is ever run for it.
#[derive(Clone, Default)]
pub struct DockerAuths(HashMap<String, Credential>);

impl fmt::Debug for DockerAuths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DockerAuths({} hidden)", self.0.len())
    }
}

impl DockerAuths {
    /// Reads `{"auths": {…}}`. Entries that hold nothing are left out. `name` is for messages.
    ///
    /// # Errors
    /// That it is none.
    pub fn parse(json: &[u8], name: &str) -> Result<Self, CredentialError> {
        let path = Path::new(name);
        let config: DockerConfig = serde_json::from_slice(json)
            // What the parser says could quote a secret.
            .map_err(|_| CredentialError::Parse(path.to_owned(), "it is not JSON of that form".to_owned()))?;
        let mut found = HashMap::new();
        for (server, entry) in config.auths {
            if let Some(credential) = entry.credential(path)? {
                found.insert(server, credential);
            }
        }
        Ok(Self(found))
    }

    /// Those that fit, the best first.
    pub fn find(&self, asked: &Asked<'_>) -> Vec<Credential> {
        Self::find_in([self], asked)
    }

    /// Those that fit in any of `all`, the best first.
    pub fn find_in<'a>(all: impl IntoIterator<Item = &'a Self>, asked: &Asked<'_>) -> Vec<Credential> {
        let host = canonical_registry(asked.registry);
        let mut found: Vec<Credential> = Vec::new();
        for credential in entries_of(all.into_iter().flat_map(|auths| &auths.0), &host, asked.repository) {
            if !found.contains(credential) {
                found.push(credential.clone());
            }
        }
        found
    }
}

/// The parts of Docker's `config.json` that are read.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct DockerConfig {
    auths: HashMap<String, AuthEntry>,
    cred_helpers: HashMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AuthEntry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

impl fmt::Debug for AuthEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuthEntry(hidden)")
    }
}

impl DockerConfig {
    async fn find(&self, path: &Path, asked: &Asked<'_>) -> Result<Vec<Credential>, CredentialError> {
        let registry = canonical_registry(asked.registry);
        let named = entries_of(&self.cred_helpers, &registry, asked.repository).first().copied();
        if let Some(helper) = named.or(self.creds_store.as_ref()) {
            let found = ask_helper(helper, &registry).await?;
            // Docker looks into the file when the store knows nothing, and so do we.
            if let Some(found) = found {
                return Ok(vec![found]);
            }
        }
        let mut found = Vec::new();
        for entry in entries_of(&self.auths, &registry, asked.repository) {
            found.extend(entry.credential(path)?);
        }
        Ok(found)
    }
}

impl AuthEntry {
    fn credential(&self, path: &Path) -> Result<Option<Credential>, CredentialError> {
        if !self.registrytoken.is_empty() {
            return Ok(Some(Credential::RegistryToken(self.registrytoken.clone())));
        }
        if !self.identitytoken.is_empty() {
            return Ok(Some(Credential::IdentityToken(self.identitytoken.clone())));
        }
        let (username, password) = if self.auth.is_empty() {
            (self.username.clone(), self.password.clone())
        } else {
            let wrong = || {
                let reason = "an entry's auth is not base64 of user:password".to_owned();
                CredentialError::Parse(path.to_owned(), reason)
            };
            let bytes = STANDARD.decode(self.auth.trim()).map_err(|_| wrong())?;
            let text = String::from_utf8(bytes).map_err(|_| wrong())?;
            let (username, password) = text.split_once(':').ok_or_else(wrong)?;
            (username.to_owned(), password.trim_end_matches('\0').to_owned())
        };
        Ok((!username.is_empty()).then_some(Credential::Password { username, password }))
    }
}

/// `https://host/v1/`, `host`, `host:port` as the registry that it means, and what stands behind.
fn split_server(server: &str) -> (String, &str) {
    let bare = server.split_once("://").map_or(server, |(_, rest)| rest);
    let (host, path) = bare.split_once('/').unwrap_or((bare, ""));
    let path = path.trim_end_matches('/');
    (canonical_registry(host), if matches!(path, "v1" | "v2") { "" } else { path })
}

/// Whether `pattern`, in which a `*` stands for a part of one label as in Kubernetes' pull secrets, means `host`.
fn is_host(pattern: &str, host: &str) -> bool {
    if !pattern.contains('*') {
        return pattern == host;
    }
    let (patterns, hosts) = (pattern.split('.'), host.split('.'));
    patterns.clone().count() == hosts.clone().count()
        && patterns.zip(hosts).all(|(pattern, label)| match pattern.split_once('*') {
            None => pattern == label,
            Some((before, after)) => {
                label.len() >= before.len() + after.len()
                    && label.starts_with(before)
                    && label.ends_with(after)
            }
        })
}

/// What `entries` hold for `repository` at `registry`: the entry for the longest part of its name first, which may be
/// the whole registry's. If there is none for any part, those for other parts of the registry: `docker login` by
/// browser leaves two more entries below the Hub's, and podman keeps some for parts of a registry.
pub(super) fn entries_of<'a, T>(
    entries: impl IntoIterator<Item = (&'a String, &'a T)>,
    registry: &str,
    repository: Option<&str>,
) -> Vec<&'a T> {
    let mut found: Vec<_> = entries
        .into_iter()
        .filter_map(|(server, entry)| {
            let (host, path) = split_server(server);
            is_host(&host, registry).then_some((path, server, entry))
        })
        .collect();
    let fits = |path: &str| {
        path.is_empty()
            || repository.is_some_and(|name| {
                name.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            })
    };
    if found.iter().any(|(path, _, _)| fits(path)) {
        found.retain(|(path, _, _)| fits(path));
    }
    found.sort_by_key(|(path, server, _)| (std::cmp::Reverse(path.len()), server.contains('*'), *server));
    found.into_iter().map(|(_, _, entry)| entry).collect()
}

fn default_config() -> Option<PathBuf> {
    let folder = std::env::var_os("DOCKER_CONFIG")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".docker")))?;
    Some(folder.join("config.json"))
}

async fn read_config(path: &Path) -> Result<Option<DockerConfig>, CredentialError> {
    let failed = |error: std::io::Error| CredentialError::Read(path.to_owned(), error.to_string());
    match tokio::fs::metadata(path).await {
        Ok(found) if found.len() > MAX_CONFIG => {
            return Err(CredentialError::Parse(path.to_owned(), "it is too long".to_owned()));
        }
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    }
    let text = tokio::fs::read(path).await.map_err(failed)?;
    let parsed = serde_json::from_slice(&text);
    parsed.map(Some).map_err(|error| CredentialError::Parse(path.to_owned(), error.to_string()))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: String,
}

/// Docker's protocol of credential helpers: the server's name on standard input, JSON on standard output.
async fn ask_helper(helper: &str, registry: &str) -> Result<Option<Credential>, CredentialError> {
    let failed = |reason: String| CredentialError::Helper(helper.to_owned(), reason);
    if !helper.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) {
        return Err(failed("its name is not a plain word".to_owned()));
    }
    let server = if registry == DOCKER_HUB { HUB_SERVER } else { registry };
    let mut child = tokio::process::Command::new(format!("docker-credential-{helper}"))
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(format!("{error}; is it installed and in PATH?")))?;
    let exchange = async {
        if let Some(mut stdin) = child.stdin.take() {
            // A helper that does not read its input still answers.
            let _ = stdin.write_all(server.as_bytes()).await;
        }
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(HELPER_TIMEOUT, exchange)
        .await
        .map_err(|_| failed(format!("no answer within {} s", HELPER_TIMEOUT.as_secs())))?
        .map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stdout);
        if said.contains("credentials not found") {
            return Ok(None);
        }
        return Err(failed(said.trim().chars().take(200).collect()));
    }
    let answer: HelperAnswer =
        serde_json::from_slice(&output.stdout).map_err(|_| failed("its answer is not JSON".to_owned()))?;
    Ok(match (answer.username.as_str(), answer.secret) {
        (_, secret) if secret.is_empty() => None,
        ("<token>", secret) => Some(Credential::IdentityToken(secret)),
        (username, password) => Some(Credential::Password { username: username.to_owned(), password }),
    })
}
