//! In whose name registries are asked, beside Docker's configuration.
//!
//! * `keychain/pulled.rs`: what came with CRI's pulls, kept over restarts in a file that only root can read
//!   (`keychain/file.rs`).
//! * `keychain/kube.rs`: the cluster's image pull secrets, watched with `keychain/kubeconfig.rs`'s access.
//!
//! The order is upstream's: Docker's configuration, the cluster's secrets, CRI. Each source may know several credentials
//! for one repository; the registry tells which of them is good (`registry::CredentialSource`).

mod file;
mod kube;
mod kubeconfig;
mod pulled;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use registry::{Credential, CredentialSource};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::KeychainsConfig;
pub(crate) use pulled::PulledKeychain;

#[doc(hidden)]
pub use kube::fuzz_event;
#[doc(hidden)]
pub use kubeconfig::fuzz_kubeconfig;

/// Where credentials that came with pulls are kept, below the snapshotter's root.
const FILE: &str = "credentials.json";

/// All of them. Cheap to clone. Made before the client of registries, which asks them, and given to the snapshotter,
/// which feeds them.
#[derive(Clone, Debug)]
pub struct Keychains {
    fixed: HashMap<String, Credential>,
    kube: Option<Arc<kube::KubeKeychain>>,
    pulled: Option<Arc<PulledKeychain>>,
}

impl Keychains {
    /// As `config` says; what earlier pulls brought is read from below `root`, the snapshotter's.
    pub fn open(config: &KeychainsConfig, root: &Path) -> Self {
        let pulled = config.cri.as_ref().map(|_| {
            let file = (!config.lifetime.is_zero()).then(|| root.join(FILE));
            Arc::new(PulledKeychain::open(file, config.lifetime))
        });
        let kube =
            config.kube.as_ref().map(|kube| Arc::new(kube::KubeKeychain::new(kube.kubeconfig.clone())));
        Self { fixed: config.fixed.clone(), kube, pulled }
    }

    /// What a client of registries asks, behind Docker's configuration.
    pub fn sources(&self) -> Vec<CredentialSource> {
        let mut sources = Vec::new();
        if !self.fixed.is_empty() {
            sources.push(CredentialSource::Static(self.fixed.clone()));
        }
        if let Some(kube) = &self.kube {
            sources.push(CredentialSource::Keychain(Arc::clone(kube) as Arc<dyn registry::Keychain>));
        }
        if let Some(pulled) = &self.pulled {
            sources.push(CredentialSource::Keychain(Arc::clone(pulled) as Arc<dyn registry::Keychain>));
        }
        sources
    }

    /// What CRI's pulls bring goes here.
    pub(crate) fn pulled(&self) -> Option<&Arc<PulledKeychain>> {
        self.pulled.as_ref()
    }

    /// Begins to watch what must be watched, in `tasks`, until `stop`.
    pub(crate) fn start(&self, tasks: &TaskTracker, stop: &CancellationToken) {
        if let Some(kube) = &self.kube {
            let (kube, stop) = (Arc::clone(kube), stop.clone());
            tasks.spawn(async move { kube.watch(&stop).await });
        }
    }
}

/// What stands there is not base64 of `user:password`.
pub(crate) struct NoPair;

/// A user and a password as configurations and CRI write them: apart, or joined in base64. `None` if nothing is said.
pub(crate) fn password_of(username: &str, password: &str, auth: &str) -> Result<Option<Credential>, NoPair> {
    let (username, password) = if auth.is_empty() {
        (username.to_owned(), password.to_owned())
    } else {
        let bytes = STANDARD.decode(auth.trim()).map_err(|_| NoPair)?;
        let text = String::from_utf8(bytes).map_err(|_| NoPair)?;
        let (username, password) = text.split_once(':').ok_or(NoPair)?;
        (username.to_owned(), password.trim_end_matches('\0').to_owned())
    };
    Ok((!username.is_empty()).then_some(Credential::Password { username, password }))
}
