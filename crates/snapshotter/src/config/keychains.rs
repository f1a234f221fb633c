//! In whose name registries are asked: `[kubeconfig_keychain]`, `[cri_keychain]`, `[registry.configs]`, and how long
//! what came by CRI is kept.
//!
//! ```toml
//! [pantala]
//! # How long credentials that came with a pull are good for, also over restarts: a number of seconds, or one with
//! # s, m, h or d. 0: they are kept in memory only, for as long as this process lives.
//! credentials_lifetime = "7d"
//! ```

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use registry::Credential;
use serde::Deserialize;

use super::hosts::{self, Wrong};
use super::{File, given};
use crate::keychain::password_of;

/// How long credentials that came with a pull are kept: a layer that is not all here after a week is one that is
/// hardly read, and cloud registries' own tokens live for hours.
const DEFAULT_LIFETIME: Duration = Duration::from_hours(7 * 24);

/// In whose name registries are asked, beside Docker's configuration.
#[derive(Debug, Clone)]
pub struct KeychainsConfig {
    /// By the cluster's image pull secrets.
    pub kube: Option<KubeKeychainConfig>,
    /// By what comes with CRI's pulls.
    pub cri: Option<CriKeychainConfig>,
    /// By what stands in the file itself: by registry host.
    pub fixed: HashMap<String, Credential>,
    /// How long what came with a pull is good for; zero: until this process ends.
    pub lifetime: Duration,
}

/// Image pull secrets of a cluster.
#[derive(Debug, Clone, Default)]
pub struct KubeKeychainConfig {
    /// How the cluster is reached; `None` for `$KUBECONFIG`, `~/.kube/config`, or a pod's service account.
    pub kubeconfig: Option<PathBuf>,
}

/// CRI's image service, passed on to containerd.
#[derive(Debug, Clone, Default)]
pub struct CriKeychainConfig {
    /// The socket of containerd's image service; `None` for containerd's own.
    pub image_service: Option<PathBuf>,
    /// A socket of its own, beside the snapshotter's.
    pub listen: Option<PathBuf>,
}

impl Default for KeychainsConfig {
    fn default() -> Self {
        Self { kube: None, cri: None, fixed: HashMap::new(), lifetime: DEFAULT_LIFETIME }
    }
}

/// `[kubeconfig_keychain]`.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct KubeTable {
    enable_keychain: bool,
    kubeconfig_path: String,
}

/// `[cri_keychain]`.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct CriTable {
    enable_keychain: bool,
    image_service_path: String,
    listen_path: String,
}

/// `auth` of `[registry.configs]`.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct AuthTable {
    username: String,
    password: String,
    auth: String,
    identitytoken: String,
}

impl AuthTable {
    pub(super) fn read(&self) -> Result<Option<Credential>, String> {
        if !self.identitytoken.is_empty() {
            return Ok(Some(Credential::IdentityToken(self.identitytoken.clone())));
        }
        password_of(&self.username, &self.password, &self.auth)
            .map_err(|_| "auth is not base64 of user:password".to_owned())
    }
}

/// A time as people write it.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Span {
    Seconds(i64),
    Text(String),
}

impl Span {
    fn read(&self) -> Result<Duration, String> {
        let read = match self {
            Self::Seconds(seconds) => u64::try_from(*seconds).ok(),
            Self::Text(text) => parse(text.trim()),
        };
        read.map(Duration::from_secs)
            .ok_or_else(|| "a time is a number of seconds, or written as 90s, 30m, 12h or 7d".to_owned())
    }
}

fn parse(text: &str) -> Option<u64> {
    let (number, unit) =
        text.split_at_checked(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))?;
    let factor: u64 = match unit.trim() {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

/// All that a file says of them.
pub(super) fn read(file: &File) -> Result<KeychainsConfig, Wrong> {
    let path = |text: &str| given(text).map(PathBuf::from);
    let (kube, cri) = (&file.kubeconfig_keychain, &file.cri_keychain);
    let wrong = |message| ("pantala.credentials_lifetime".to_owned(), message);
    let lifetime = file.pantala.credentials_lifetime.as_ref().map(Span::read).transpose().map_err(wrong)?;
    Ok(KeychainsConfig {
        kube: kube.enable_keychain.then(|| KubeKeychainConfig { kubeconfig: path(&kube.kubeconfig_path) }),
        cri: cri.enable_keychain.then(|| CriKeychainConfig {
            image_service: path(&cri.image_service_path)
                .or_else(|| file.cri_keychain_image_service_path.clone()),
            listen: path(&cri.listen_path).or_else(|| file.cri_listen_path.clone()),
        }),
        fixed: hosts::fixed(&file.registry)?,
        lifetime: lifetime.unwrap_or(DEFAULT_LIFETIME),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        for (text, seconds) in [
            ("7d", Some(7 * 24 * 3600)),
            ("12 h", Some(12 * 3600)),
            ("90", Some(90)),
            ("0", Some(0)),
            ("d", None),
            ("-1h", None),
            ("1w", None),
            ("99999999999999999999h", None),
        ] {
            assert_eq!(parse(text), seconds, "{text}");
        }
    }
}
