//! What a connection is made with: whose certificates are trusted, and which one is shown.

use std::fmt;
use std::path::Path;

use crate::error::RegistryError;

/// The TLS of one host. The system's roots are trusted in any case.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Tls {
    /// Its certificates are not checked at all.
    pub skip_verify: bool,
    /// PEM: certificates of CAs that are trusted beside the system's, any number in each.
    pub roots: Vec<Vec<u8>>,
    /// PEM: the certificate (chain) that this client shows, and its private key.
    pub identity: Option<Vec<u8>>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The identity holds a private key.
        f.debug_struct("Tls")
            .field("skip_verify", &self.skip_verify)
            .field("roots", &self.roots.len())
            .field("identity", &self.identity.is_some())
            .finish()
    }
}

impl Tls {
    /// What lies in PEM files: CAs, a certificate to show, and its key if that is in a file of its own.
    ///
    /// # Errors
    /// The file that cannot be used, and why.
    pub fn from_files(
        ca: Option<&Path>,
        certificate: Option<&Path>,
        key: Option<&Path>,
        skip_verify: bool,
    ) -> Result<Self, String> {
        let read = |path: &Path| std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()));
        let is_named = |path: &&Path| !path.as_os_str().is_empty();
        let mut tls = Self { skip_verify, ..Self::default() };
        if let Some(path) = ca.filter(is_named) {
            let pem = read(path)?;
            certificates(&pem).map_err(|reason| format!("{}: {reason}", path.display()))?;
            tls.roots.push(pem);
        }
        if let Some(path) = certificate.filter(is_named) {
            let mut pem = read(path)?;
            if let Some(key) = key.filter(is_named).filter(|key| *key != path) {
                pem.push(b'\n');
                pem.extend(read(key)?);
            }
            identity(&pem).map_err(|reason| format!("{}: {reason}", path.display()))?;
            tls.identity = Some(pem);
        }
        Ok(tls)
    }

    /// For another host that the same people run: their CAs are trusted, and nothing else is carried over.
    pub(crate) fn for_neighbours(&self) -> Self {
        Self { roots: self.roots.clone(), ..Self::default() }
    }

    /// The additional roots, read.
    ///
    /// # Errors
    /// That one of them holds no certificate.
    pub(crate) fn certificates(&self) -> Result<Vec<reqwest::Certificate>, RegistryError> {
        let mut found = Vec::new();
        for pem in &self.roots {
            found.extend(certificates(pem).map_err(RegistryError::Setup)?);
        }
        Ok(found)
    }

    /// The certificate to show, read.
    ///
    /// # Errors
    /// That it is none.
    pub(crate) fn shown(&self) -> Result<Option<reqwest::Identity>, RegistryError> {
        self.identity.as_deref().map(identity).transpose().map_err(RegistryError::Setup)
    }
}

/// The certificates of a PEM file.
pub(crate) fn certificates(pem: &[u8]) -> Result<Vec<reqwest::Certificate>, String> {
    // The library reports a damaged block only when a connection is made.
    if !pem.windows(BEGIN.len()).any(|window| window == BEGIN) {
        return Err("an additional CA file holds no PEM certificates".to_owned());
    }
    reqwest::Certificate::from_pem_bundle(pem)
        .map_err(|error| format!("an additional CA file holds no PEM certificates: {error}"))
}

/// A certificate with its key.
pub(crate) fn identity(pem: &[u8]) -> Result<reqwest::Identity, String> {
    reqwest::Identity::from_pem(pem)
        .map_err(|_| "a client certificate needs a PEM certificate and its unencrypted PEM key".to_owned())
}

const BEGIN: &[u8] = b"-----BEGIN CERTIFICATE-----";
