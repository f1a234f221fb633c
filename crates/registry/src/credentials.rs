//! Whose name a registry is asked in.
//!
//! Docker's `config.json` is read anew each time credentials are needed, because tools rewrite it while
//! daemons run (ECR's tokens live twelve hours). Secrets are never printed: their `Debug` says so.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use tokio::io::AsyncWriteExt;

use crate::reference::{DOCKER_HUB, canonical_registry};

/// The name that Docker's tools keep the credentials of Docker Hub under.
const HUB_SERVER: &str = "https://index.docker.io/v1/";
/// A credential helper may ask a cloud's API.
const HELPER_TIMEOUT: Duration = Duration::from_secs(15);
/// A configuration file longer than this is not one.
const MAX_CONFIG: u64 = 4 << 20;

/// Where credentials come from.
#[derive(Clone, Debug, Default)]
pub enum CredentialSource {
    /// There are none.
    #[default]
    Anonymous,
    /// Docker's `config.json` with its `auths`, `credHelpers` and `credsStore`: the given file, else
    /// `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`. A missing file holds none.
    DockerConfig(Option<PathBuf>),
    /// By registry host.
    Static(HashMap<String, Credential>),
}

/// What proves who asks.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// A user and a password (or access token in its place).
    Password {
        /// The user.
        username: String,
        /// The password.
        password: String,
    },
    /// A refresh token of OAuth2.
    IdentityToken(String),
    /// A bearer token that is sent as it is.
    RegistryToken(String),
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credential(hidden)")
    }
}

/// Why configured credentials cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// The file is there and cannot be read.
    #[error("reading {0}: {1}")]
    Read(PathBuf, String),
    /// The file is not what it should be.
    #[error("{0} is no Docker configuration: {1}")]
    Parse(PathBuf, String),
    /// The helper does not do its work.
    #[error("the credential helper docker-credential-{0} failed: {1}")]
    Helper(String, String),
}

impl CredentialSource {
    /// The credentials for `registry` (`host[:port]`), if there are any.
    pub(crate) async fn lookup(&self, registry: &str) -> Result<Option<Credential>, CredentialError> {
        match self {
            Self::Anonymous => Ok(None),
            Self::Static(map) => Ok(entries_of(map, &canonical_registry(registry)).first().copied().cloned()),
            Self::DockerConfig(path) => {
                let Some(path) = path.clone().or_else(default_config) else { return Ok(None) };
                match read_config(&path).await? {
                    Some(config) => config.lookup(&path, &canonical_registry(registry)).await,
                    None => Ok(None),
                }
            }
        }
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
    async fn lookup(&self, path: &Path, registry: &str) -> Result<Option<Credential>, CredentialError> {
        let named = entries_of(&self.cred_helpers, registry).first().copied();
        if let Some(helper) = named.or(self.creds_store.as_ref()) {
            let found = ask_helper(helper, registry).await?;
            // Docker looks into the file when the store knows nothing, and so do we.
            if found.is_some() {
                return Ok(found);
            }
        }
        for entry in entries_of(&self.auths, registry) {
            if let Some(credential) = entry.credential(path)? {
                return Ok(Some(credential));
            }
        }
        Ok(None)
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

/// `https://host/v1/`, `host`, `host:port` as the registry that it means.
fn server_host(server: &str) -> String {
    let bare = server.split_once("://").map_or(server, |(_, rest)| rest);
    canonical_registry(bare.split('/').next().unwrap_or(bare))
}

/// What `map` holds for `registry`, and what it holds for all of it first: `docker login` by browser leaves
/// two more entries below the Hub's, and podman keeps some for parts of a registry.
fn entries_of<'a, T>(map: &'a HashMap<String, T>, registry: &str) -> Vec<&'a T> {
    let mut found: Vec<_> = map.iter().filter(|(server, _)| server_host(server) == registry).collect();
    found.sort_by_key(|(server, _)| {
        let bare = server.split_once("://").map_or(server.as_str(), |(_, rest)| rest);
        let path = bare.split_once('/').map_or("", |(_, path)| path.trim_end_matches('/'));
        (!matches!(path, "" | "v1" | "v2"), *server)
    });
    found.into_iter().map(|(_, entry)| entry).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn password(username: &str, password: &str) -> Credential {
        Credential::Password { username: username.to_owned(), password: password.to_owned() }
    }

    async fn lookup(config: &str, registry: &str) -> Result<Option<Credential>, CredentialError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        std::fs::write(&path, config).unwrap();
        CredentialSource::DockerConfig(Some(path)).lookup(registry).await
    }

    #[tokio::test]
    async fn entries_are_found_under_all_spellings_of_a_registry() {
        let config = format!(
            r#"{{"auths": {{"https://index.docker.io/v1/": {{"auth": "{}"}},
                            "r.example:5000": {{"username": "u", "password": "p:w"}},
                            "https://old.example/v1/": {{"identitytoken": "t"}}}}}}"#,
            STANDARD.encode("hub:se:cret")
        );
        assert_eq!(lookup(&config, "docker.io").await.unwrap(), Some(password("hub", "se:cret")));
        assert_eq!(lookup(&config, "r.example:5000").await.unwrap(), Some(password("u", "p:w")));
        assert_eq!(lookup(&config, "r.example").await.unwrap(), None);
        assert_eq!(
            lookup(&config, "old.example").await.unwrap(),
            Some(Credential::IdentityToken("t".to_owned()))
        );
    }

    /// A login by browser leaves three entries that are all of one host, and podman keeps some for parts of one.
    #[tokio::test]
    async fn of_several_entries_the_one_for_the_whole_host_is_taken() {
        let entry = |key: &str| format!(r#""{key}": {{"auth": "{}"}}"#, STANDARD.encode(format!("u:{key}")));
        let config = format!(
            r#"{{"auths": {{{}, {}, {}, {}, {}, "empty.example": {{}}, {}}}}}"#,
            entry("https://index.docker.io/v1/access-token"),
            entry("https://index.docker.io/v1/"),
            entry("https://index.docker.io/v1/refresh-token"),
            entry("r.example/team"),
            entry("r.example"),
            entry("https://empty.example/v2/"),
        );
        // The order of a map is another one each time.
        for _ in 0..20 {
            for (registry, key) in [
                ("docker.io", "https://index.docker.io/v1/"),
                ("r.example", "r.example"),
                ("empty.example", "https://empty.example/v2/"),
            ] {
                assert_eq!(lookup(&config, registry).await.unwrap(), Some(password("u", key)), "{registry}");
            }
        }
    }

    #[tokio::test]
    async fn a_missing_file_is_nobody_and_a_broken_one_is_an_error() {
        let missing = CredentialSource::DockerConfig(Some("/nonexistent/config.json".into()));
        assert_eq!(missing.lookup("docker.io").await.unwrap(), None);
        assert!(matches!(lookup("{", "docker.io").await, Err(CredentialError::Parse(..))));
        let bad = r#"{"auths": {"r.example": {"auth": "!!"}}}"#;
        assert!(matches!(lookup(bad, "r.example").await, Err(CredentialError::Parse(..))));
    }

    #[tokio::test]
    async fn a_helper_is_a_plain_word_and_its_absence_is_told() {
        let error = lookup(r#"{"credsStore": "../../bin/sh"}"#, "r.example").await.unwrap_err();
        assert!(error.to_string().contains("plain word"), "{error}");
        let error =
            lookup(r#"{"credHelpers": {"r.example": "pantala-none"}}"#, "r.example").await.unwrap_err();
        assert!(error.to_string().contains("installed"), "{error}");
    }

    #[test]
    fn secrets_are_not_printed() {
        let text = format!("{:?}", password("user", "canary"));
        assert!(!text.contains("canary") && !text.contains("user"), "{text}");
    }
}
