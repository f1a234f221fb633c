//! Credentials that came with CRI's pulls.
//!
//! A kubelet has the secrets of a pod and shows them when it pulls, once. The layers are read later, for as long as
//! containers run. So what came with a pull is remembered for that repository of that registry: it is shown to nobody
//! else, and for no other repository.
//!
//! Two pods may pull one image by two secrets, and one of these may be wrong. So the last few of each repository are
//! kept beside each other, those of a pull that failed are forgotten, and only those of one that succeeded reach the
//! disk.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use proto::cri::AuthConfig;
use registry::{Asked, Credential, CredentialError, Keychain, Reference, canonical_registry};

use super::file::{self, KeptEntry};
use super::password_of;

/// Of one repository.
const MOST_OF_ONE: usize = 4;
/// Of all.
const MOST: usize = 2048;

/// Those that came with pulls.
pub(crate) struct PulledKeychain {
    entries: Mutex<Vec<Entry>>,
    /// Zero: they do not expire.
    lifetime: Duration,
    /// Nowhere, if they are not to survive.
    file: Option<PathBuf>,
    /// One writes at a time, and what it writes is the newest.
    writing: Mutex<()>,
}

struct Entry {
    host: String,
    repository: String,
    credential: Credential,
    /// Seconds since 1970.
    at: u64,
    /// Whether a pull succeeded with it.
    is_proven: bool,
}

impl fmt::Debug for PulledKeychain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PulledKeychain(hidden)")
    }
}

/// What one pull brought: forgotten again, unless the pull succeeds.
pub(crate) struct Pulled {
    keychain: Arc<PulledKeychain>,
    place: (String, String),
    credential: Credential,
    is_kept: bool,
}

impl PulledKeychain {
    /// Those that `file` has, as far as they are younger than `lifetime`.
    pub(super) fn open(file: Option<PathBuf>, lifetime: Duration) -> Self {
        let kept = file.as_deref().map_or_else(Vec::new, |path| {
            file::read(path).unwrap_or_else(|error| {
                tracing::warn!(file = %path.display(), %error, "kept credentials cannot be used: they come again with the next pulls");
                Vec::new()
            })
        });
        let mut entries: Vec<Entry> = kept.into_iter().filter_map(Entry::read).collect();
        entries.truncate(MOST);
        Self { entries: Mutex::new(entries), lifetime, file, writing: Mutex::default() }
    }

    /// Takes in what came with the pull of `image`. `None` if nothing did that can be used.
    pub(crate) fn remember(self: &Arc<Self>, image: &str, auth: &AuthConfig) -> Option<Pulled> {
        let image: Reference = image.parse().ok()?;
        let credential = credential_of(auth)?;
        // A secret for another host than the image's is for that one: a mirror.
        let host = match auth.server_address.as_str() {
            "" => image.registry().to_owned(),
            address => host_of(address),
        };
        let place = (host, image.repository().to_owned());
        let now = now();
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let is_expired = |entry: &Entry| self.is_expired(entry, now);
        entries.retain(|entry| !is_expired(entry));
        let known = entries.iter().position(|entry| entry.is_at(&place) && entry.credential == credential);
        // Who proved good stays so until the pull succeeds again or others push it out.
        let is_proven = known.is_some_and(|at| entries.remove(at).is_proven);
        entries.insert(
            0,
            Entry {
                host: place.0.clone(),
                repository: place.1.clone(),
                credential: credential.clone(),
                at: now,
                is_proven,
            },
        );
        let mut of_place = 0;
        entries.retain(|entry| {
            of_place += usize::from(entry.is_at(&place));
            !entry.is_at(&place) || of_place <= MOST_OF_ONE
        });
        entries.truncate(MOST);
        drop(entries);
        Some(Pulled { keychain: Arc::clone(self), place, credential, is_kept: false })
    }

    fn is_expired(&self, entry: &Entry, now: u64) -> bool {
        !self.lifetime.is_zero() && now.saturating_sub(entry.at) >= self.lifetime.as_secs()
    }

    /// Writes those that a pull succeeded with. Waits for the disk.
    fn persist(&self) {
        let Some(path) = &self.file else { return };
        let _one = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let now = now();
        let kept = {
            let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
            let good = entries.iter().filter(|entry| entry.is_proven && !self.is_expired(entry, now));
            good.map(Entry::kept).collect()
        };
        if let Err(error) = file::write(path, kept) {
            tracing::warn!(file = %path.display(), %error, "credentials cannot be kept: after a restart they are missing until the next pull");
        }
    }
}

impl Pulled {
    /// The pull succeeded. Returns when that is on disk.
    pub(crate) async fn keep(mut self) {
        self.is_kept = true;
        let now = now();
        {
            let mut entries = self.keychain.entries.lock().unwrap_or_else(PoisonError::into_inner);
            for entry in entries.iter_mut() {
                if entry.is_at(&self.place) && entry.credential == self.credential {
                    (entry.at, entry.is_proven) = (now, true);
                }
            }
        }
        let keychain = Arc::clone(&self.keychain);
        if tokio::task::spawn_blocking(move || keychain.persist()).await.is_err() {
            tracing::warn!("keeping credentials broke off");
        }
    }
}

impl Drop for Pulled {
    fn drop(&mut self) {
        if self.is_kept {
            return;
        }
        let mut entries = self.keychain.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.retain(|entry| {
            entry.is_proven || !entry.is_at(&self.place) || entry.credential != self.credential
        });
    }
}

#[async_trait]
impl Keychain for PulledKeychain {
    async fn find(&self, asked: &Asked<'_>) -> Result<Vec<Credential>, CredentialError> {
        let Some(repository) = asked.repository else { return Ok(Vec::new()) };
        let place = (canonical_registry(asked.registry), repository.to_owned());
        let now = now();
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let fit = entries.iter().filter(|entry| entry.is_at(&place) && !self.is_expired(entry, now));
        Ok(fit.map(|entry| entry.credential.clone()).collect())
    }
}

impl Entry {
    fn is_at(&self, place: &(String, String)) -> bool {
        self.host == place.0 && self.repository == place.1
    }

    fn read(kept: KeptEntry) -> Option<Self> {
        let KeptEntry { host, repository, at, password, identity_token, registry_token } = kept;
        let credential = password
            .map(|(username, password)| Credential::Password { username, password })
            .or_else(|| identity_token.map(Credential::IdentityToken))
            .or_else(|| registry_token.map(Credential::RegistryToken))?;
        Some(Self { host, repository, credential, at, is_proven: true })
    }

    fn kept(&self) -> KeptEntry {
        let mut kept = KeptEntry {
            host: self.host.clone(),
            repository: self.repository.clone(),
            at: self.at,
            password: None,
            identity_token: None,
            registry_token: None,
        };
        match self.credential.clone() {
            Credential::Password { username, password } => kept.password = Some((username, password)),
            Credential::IdentityToken(token) => kept.identity_token = Some(token),
            Credential::RegistryToken(token) => kept.registry_token = Some(token),
        }
        kept
    }
}

/// Which of the forms that CRI knows is there.
fn credential_of(auth: &AuthConfig) -> Option<Credential> {
    if !auth.registry_token.is_empty() {
        return Some(Credential::RegistryToken(auth.registry_token.clone()));
    }
    if !auth.identity_token.is_empty() {
        return Some(Credential::IdentityToken(auth.identity_token.clone()));
    }
    if !auth.username.is_empty() {
        return password_of(&auth.username, &auth.password, "").ok()?;
    }
    password_of("", "", &auth.auth).ok()?
}

/// `https://host:port/v1/` as the registry that it means.
fn host_of(address: &str) -> String {
    let bare = address.split_once("://").map_or(address, |(_, rest)| rest);
    canonical_registry(bare.split('/').next().unwrap_or(bare))
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auth(name: &str) -> AuthConfig {
        AuthConfig { username: name.into(), password: "p".into(), ..AuthConfig::default() }
    }

    async fn find(keychain: &PulledKeychain, registry: &str, repository: &str) -> Vec<String> {
        let found = keychain.find(&Asked { registry, repository: Some(repository) }).await.unwrap();
        let name = |credential| match credential {
            Credential::Password { username, .. } => username,
            Credential::IdentityToken(token) | Credential::RegistryToken(token) => token,
        };
        found.into_iter().map(name).collect()
    }

    #[tokio::test]
    async fn what_came_with_a_pull_is_for_that_repository_alone() {
        let keychain = Arc::new(PulledKeychain::open(None, Duration::ZERO));
        let _one = keychain.remember("r.example:5000/team/app:1", &auth("one"));
        let _hub = keychain.remember("busybox", &auth("hub"));
        let mirror = AuthConfig { server_address: "https://m.example/v2/".into(), ..auth("mirror") };
        let _mirror = keychain.remember("r.example:5000/team/app:2", &mirror);
        assert_eq!(find(&keychain, "r.example:5000", "team/app").await, ["one"]);
        assert_eq!(find(&keychain, "docker.io", "library/busybox").await, ["hub"]);
        assert_eq!(find(&keychain, "m.example", "team/app").await, ["mirror"]);
        for (registry, repository) in
            [("r.example:5000", "team/other"), ("r.example", "team/app"), ("m.example", "library/busybox")]
        {
            assert!(find(&keychain, registry, repository).await.is_empty(), "{registry} {repository}");
        }
        assert!(keychain.remember("r.example/a", &AuthConfig::default()).is_none());
        assert!(keychain.remember("not a reference", &auth("a")).is_none());
    }

    #[tokio::test]
    async fn a_failed_pull_takes_nothing_from_one_that_succeeded() {
        let keychain = Arc::new(PulledKeychain::open(None, Duration::ZERO));
        keychain.remember("r.example/a", &auth("good")).unwrap().keep().await;
        let bad = keychain.remember("r.example/a", &auth("bad")).unwrap();
        assert_eq!(find(&keychain, "r.example", "a").await, ["bad", "good"]);
        drop(bad);
        // The good ones again, and this time the registry was down.
        drop(keychain.remember("r.example/a", &auth("good")));
        assert_eq!(find(&keychain, "r.example", "a").await, ["good"]);
        for number in 0..20 {
            keychain.remember("r.example/a", &auth(&format!("u{number}"))).unwrap().keep().await;
        }
        assert_eq!(find(&keychain, "r.example", "a").await, ["u19", "u18", "u17", "u16"]);
        for number in 0..MOST {
            keychain.remember(&format!("r.example/b{number}"), &auth("u")).unwrap().keep().await;
        }
        assert_eq!(keychain.entries.lock().unwrap().len(), MOST);
    }

    #[tokio::test]
    async fn they_survive_a_restart_until_they_expire_and_failed_ones_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let file = Some(dir.path().join("credentials.json"));
        let hour = Duration::from_hours(1);
        let keychain = Arc::new(PulledKeychain::open(file.clone(), hour));
        let encoded = AuthConfig { auth: "dTpw".into(), ..AuthConfig::default() };
        keychain.remember("r.example/a", &encoded).unwrap().keep().await;
        let token = AuthConfig { identity_token: "t".into(), ..AuthConfig::default() };
        keychain.remember("r.example/b", &token).unwrap().keep().await;
        let _pending = keychain.remember("r.example/c", &auth("pending"));

        let keychain = Arc::new(PulledKeychain::open(file.clone(), hour));
        assert_eq!(find(&keychain, "r.example", "a").await, ["u"]);
        assert_eq!(find(&keychain, "r.example", "b").await, ["t"]);
        assert!(find(&keychain, "r.example", "c").await.is_empty());

        // An hour later.
        for entry in keychain.entries.lock().unwrap().iter_mut() {
            entry.at -= 3600;
        }
        assert!(find(&keychain, "r.example", "a").await.is_empty());
        keychain.remember("r.example/d", &auth("d")).unwrap().keep().await;
        let keychain = PulledKeychain::open(file, hour);
        assert_eq!(keychain.entries.lock().unwrap().len(), 1, "what expired is not on disk either");
    }
}
