//! The cluster's image pull secrets: `kubernetes.io/dockerconfigjson` of all namespaces, listed once and watched.
//!
//! This is what upstream does, and its price is the same: the node reads every such secret of the cluster. Nothing of
//! it is written to disk; after a restart it is listed again. A kubeconfig that is not there yet is waited for, and an
//! API server that is away is asked again and again, with growing pauses: what is known stays known meanwhile.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use registry::{Asked, Credential, CredentialError, DockerAuths, Keychain};
use serde::Deserialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::kubeconfig::{Access, AccessError};

/// The type of the secrets, and where they hold what they hold.
const TYPE: &str = "kubernetes.io/dockerconfigjson";
const DATA: &str = ".dockerconfigjson";
/// Secrets that are kept. A cluster has some in each namespace.
const MOST: usize = 8192;
/// Secrets in one answer of a list, each up to 1.4 MB.
const PAGE: u32 = 20;
/// The longest page, and the longest line of a watch.
const MAX_PAGE: usize = 48 << 20;
const MAX_LINE: usize = 4 << 20;
/// Pages of one list: more than [`MOST`] needs.
const MAX_PAGES: usize = MOST / PAGE as usize + 1;
/// For one page.
const PAGE_TIMEOUT: Duration = Duration::from_secs(30);
/// A watch is ended by the server after this time, and by us a little later.
const WATCH: Duration = Duration::from_mins(5);
const WATCH_GRACE: Duration = Duration::from_secs(30);
/// Pauses after failures.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_mins(1);
/// How long after the start of the process lookups wait for the first list: a pull just after a restart must not find
/// nothing.
const FIRST_LIST: Duration = Duration::from_secs(3);

/// The secrets.
pub(super) struct KubeKeychain {
    kubeconfig: Option<PathBuf>,
    secrets: Mutex<HashMap<Key, DockerAuths>>,
    listed: watch::Sender<bool>,
    /// Until when a lookup waits for the first list.
    wait_until: Instant,
}

/// Namespace and name.
type Key = (String, String);

impl fmt::Debug for KubeKeychain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KubeKeychain(hidden)")
    }
}

/// Why a conversation with the API server ended.
#[derive(Debug, thiserror::Error)]
enum WatchError {
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error("cannot talk to {0}: {1}")]
    Http(String, String),
    #[error("{0} answers {1}{2}")]
    Status(String, u16, &'static str),
    #[error("{0} does not end an answer within its time")]
    Slow(String),
    #[error("{0} answers what is no list of secrets")]
    Corrupt(String),
    /// What was known is too old to be gone on with.
    #[error("the list is out of date")]
    Gone,
}

#[derive(Deserialize)]
struct List {
    metadata: ListMetadata,
    #[serde(default)]
    items: Vec<Secret>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ListMetadata {
    resource_version: String,
    #[serde(rename = "continue")]
    next: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Secret {
    metadata: Metadata,
    r#type: String,
    data: Option<HashMap<String, String>>,
    /// Of an error in place of a secret.
    code: u16,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    name: String,
    namespace: String,
    resource_version: String,
}

#[derive(Deserialize)]
struct Event {
    r#type: String,
    object: Secret,
}

impl Secret {
    fn key(&self) -> Key {
        (self.metadata.namespace.clone(), self.metadata.name.clone())
    }

    /// What it holds; nothing, if it is of another kind or broken, which is its owner's affair.
    fn auths(&self) -> Option<DockerAuths> {
        let encoded = self.data.as_ref().filter(|_| self.r#type == TYPE)?.get(DATA)?;
        let json = STANDARD.decode(encoded).ok()?;
        let name = format!("secret {}/{}", self.metadata.namespace, self.metadata.name);
        match DockerAuths::parse(&json, &name) {
            Ok(auths) => Some(auths),
            Err(error) => {
                tracing::debug!(%error, "an image pull secret cannot be used");
                None
            }
        }
    }
}

impl KubeKeychain {
    /// Asks nobody before [`KubeKeychain::watch`].
    pub(super) fn new(kubeconfig: Option<PathBuf>) -> Self {
        let (listed, wait_until) = (watch::Sender::new(false), Instant::now() + FIRST_LIST);
        Self { kubeconfig, secrets: Mutex::default(), listed, wait_until }
    }

    /// Keeps the secrets up to date until `stop`.
    pub(super) async fn watch(&self, stop: &CancellationToken) {
        let mut pause = FIRST_PAUSE;
        let mut version = None;
        loop {
            let turn = stop.run_until_cancelled(self.turn(&mut version)).await;
            let Some(turn) = turn else { return };
            match turn {
                Ok(()) => pause = FIRST_PAUSE,
                Err(WatchError::Gone) => version = None,
                Err(error) => {
                    tracing::warn!(%error, again_in = pause.as_secs(), "the cluster's image pull secrets cannot be watched");
                    version = None;
                    // Not all nodes at once.
                    let part = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                    let wait = pause.mul_f64(0.5 + f64::from(part.subsec_nanos() % 1000) / 2000.0);
                    if stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
                        return;
                    }
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    /// Lists if need be, then watches until the server ends it.
    async fn turn(&self, version: &mut Option<String>) -> Result<(), WatchError> {
        let access = Access::load(self.kubeconfig.as_deref()).await?;
        let from = match version.take() {
            Some(version) => version,
            None => self.list(&access).await?,
        };
        *version = Some(self.follow(&access, from).await?);
        Ok(())
    }

    /// Takes in all of them; answers the version that they are of.
    async fn list(&self, access: &Access) -> Result<String, WatchError> {
        let mut found = HashMap::new();
        let mut next = String::new();
        let mut version = String::new();
        for _ in 0..MAX_PAGES {
            let mut query = vec![("fieldSelector", format!("type={TYPE}")), ("limit", PAGE.to_string())];
            if !next.is_empty() {
                query.push(("continue", next.clone()));
            }
            let page = async {
                let mut response = access.get(&query).await?;
                let mut bytes = Vec::new();
                while let Some(part) = response.chunk().await.map_err(|error| access.failed(&error))? {
                    if bytes.len().saturating_add(part.len()) > MAX_PAGE {
                        return Err(WatchError::Corrupt(access.name()));
                    }
                    bytes.extend_from_slice(&part);
                }
                Ok(bytes)
            };
            let bytes = tokio::time::timeout(PAGE_TIMEOUT, page).await;
            let bytes = bytes.map_err(|_| WatchError::Slow(access.name()))??;
            // What the parser says could quote a secret.
            let list: List =
                serde_json::from_slice(&bytes).map_err(|_| WatchError::Corrupt(access.name()))?;
            for secret in &list.items {
                if let Some(auths) = secret.auths().filter(|_| found.len() < MOST) {
                    found.insert(secret.key(), auths);
                }
            }
            version = list.metadata.resource_version;
            next = list.metadata.next;
            if next.is_empty() {
                break;
            }
        }
        tracing::info!(secrets = found.len(), "the cluster's image pull secrets are known");
        *self.secrets.lock().unwrap_or_else(PoisonError::into_inner) = found;
        self.listed.send_replace(true);
        Ok(version)
    }

    /// Follows changes from `version` on until the server ends that; answers the last version.
    async fn follow(&self, access: &Access, mut version: String) -> Result<String, WatchError> {
        let query = [
            ("fieldSelector", format!("type={TYPE}")),
            ("watch", "1".to_owned()),
            ("allowWatchBookmarks", "true".to_owned()),
            ("timeoutSeconds", WATCH.as_secs().to_string()),
            ("resourceVersion", version.clone()),
        ];
        let mut response = access.get(&query).await?;
        let ends = tokio::time::Instant::now() + WATCH + WATCH_GRACE;
        let mut buffer = Vec::new();
        loop {
            let part = tokio::time::timeout_at(ends, response.chunk()).await;
            let part = part.map_err(|_| WatchError::Slow(access.name()))?;
            let Some(part) = part.map_err(|error| access.failed(&error))? else { return Ok(version) };
            buffer.extend_from_slice(&part);
            while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = buffer.drain(..=end).collect();
                if let Some(newer) = self.event(&line).map_err(|error| error.at(access))? {
                    version = newer;
                }
            }
            if buffer.len() > MAX_LINE {
                return Err(WatchError::Corrupt(access.name()));
            }
        }
    }

    /// Takes in one line of a watch; answers the version that it leads to.
    fn event(&self, line: &[u8]) -> Result<Option<String>, WatchError> {
        if line.iter().all(u8::is_ascii_whitespace) {
            return Ok(None);
        }
        let Event { r#type, object } =
            serde_json::from_slice(line).map_err(|_| WatchError::Corrupt(String::new()))?;
        let mut secrets = self.secrets.lock().unwrap_or_else(PoisonError::into_inner);
        match r#type.as_str() {
            "ADDED" | "MODIFIED" => {
                let key = object.key();
                match object.auths() {
                    Some(auths) if secrets.len() < MOST || secrets.contains_key(&key) => {
                        secrets.insert(key, auths);
                    }
                    _ => {
                        secrets.remove(&key);
                    }
                }
            }
            "DELETED" => {
                secrets.remove(&object.key());
            }
            "BOOKMARK" => {}
            "ERROR" if object.code == 410 => return Err(WatchError::Gone),
            "ERROR" => return Err(WatchError::Status(String::new(), object.code, "")),
            _ => return Ok(None),
        }
        Ok(Some(object.metadata.resource_version).filter(|version| !version.is_empty()))
    }
}

impl WatchError {
    /// Says whose answer it was.
    fn at(self, access: &Access) -> Self {
        match self {
            Self::Corrupt(_) => Self::Corrupt(access.name()),
            Self::Status(_, status, hint) => Self::Status(access.name(), status, hint),
            other => other,
        }
    }
}

impl Access {
    fn name(&self) -> String {
        self.server.origin().ascii_serialization()
    }

    fn failed(&self, error: &reqwest::Error) -> WatchError {
        // The outermost repeats the URL; the innermost says what happened.
        let mut cause: &(dyn std::error::Error + 'static) = error;
        while let Some(inner) = cause.source() {
            cause = inner;
        }
        WatchError::Http(self.name(), cause.to_string())
    }

    async fn get(&self, query: &[(&str, String)]) -> Result<reqwest::Response, WatchError> {
        let mut url = self.server.clone();
        url.set_path(&format!("{}/api/v1/secrets", url.path().trim_end_matches('/')));
        url.query_pairs_mut().extend_pairs(query);
        let call = self.client.get(url).headers(self.headers.clone()).send();
        let answered = tokio::time::timeout(PAGE_TIMEOUT, call).await;
        let response =
            answered.map_err(|_| WatchError::Slow(self.name()))?.map_err(|error| self.failed(&error))?;
        match response.status().as_u16() {
            200 => Ok(response),
            410 => Err(WatchError::Gone),
            status @ (401 | 403) => Err(WatchError::Status(
                self.name(),
                status,
                ": the kubeconfig's user must be allowed to list and watch secrets in all namespaces",
            )),
            status => Err(WatchError::Status(self.name(), status, "")),
        }
    }
}

#[async_trait]
impl Keychain for KubeKeychain {
    async fn find(&self, asked: &Asked<'_>) -> Result<Vec<Credential>, CredentialError> {
        let left = self.wait_until.saturating_duration_since(Instant::now());
        if !left.is_zero() {
            let mut listed = self.listed.subscribe();
            let _ = tokio::time::timeout(left, listed.wait_for(|listed| *listed)).await;
        }
        let secrets = self.secrets.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(DockerAuths::find_in(secrets.values(), asked))
    }
}

/// For the fuzz target.
#[doc(hidden)]
pub fn fuzz_event(line: &[u8]) {
    let keychain = KubeKeychain::new(None);
    let _ = keychain.event(line);
    let _ = serde_json::from_slice::<List>(line);
}

#[cfg(test)]
mod tests;
