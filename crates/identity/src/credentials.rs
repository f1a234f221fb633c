//! What a node shows and whom it trusts: its certificate, its key, the authority. Kept on disk, renewed
//! while in use.
//!
//! Streams that exist outlive a renewal; new ones take the new certificate. When the authority itself has
//! changed (the scheduler lost its directory), the same renewal brings the new one.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use rustls::client::WebPkiServerVerifier;
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, ServerConfig};

use crate::enroll::{self, EnrollError};
use crate::files;
use crate::tls::{self, Clients, TlsSetupError};
use crate::{JoinToken, NodeId, NodeKey};

/// A certificate with less than this before its end is renewed. Certificates last four days.
const RENEW_BEFORE_END: Duration = Duration::from_hours(3 * 24);
/// How often [`Credentials::keep_fresh`] looks, and so how soon it tries again after a failure.
const LOOK_EVERY: Duration = Duration::from_mins(10);

/// A node's certificate, its key, and the authority that it trusts.
pub struct Credentials {
    place: Place,
    current: RwLock<Arc<Material>>,
    renewing: AtomicBool,
}

/// All that enrolling (again) needs.
pub(crate) struct Place {
    pub(crate) scheduler: String,
    pub(crate) token: JoinToken,
    pub(crate) key: NodeKey,
    pub(crate) advertise: IpAddr,
    pub(crate) dir: PathBuf,
}

/// One certificate, ready for use.
pub(crate) struct Material {
    certificate: CertificateDer<'static>,
    authority: CertificateDer<'static>,
    verifier: Arc<WebPkiServerVerifier>,
    pub(crate) client: Arc<ClientConfig>,
    pub(crate) server: Arc<ServerConfig>,
}

impl Material {
    pub(crate) fn new(
        certificate: CertificateDer<'static>,
        authority: CertificateDer<'static>,
        key: &NodeKey,
    ) -> Result<Self, TlsSetupError> {
        let verifier = tls::server_verifier(&authority)?;
        let client = tls::client_config(Arc::clone(&verifier), certificate.clone(), key)?;
        let server = tls::server_config(&authority, certificate.clone(), key, Clients::Certified)?;
        Ok(Self { certificate, authority, verifier, client: Arc::new(client), server: Arc::new(server) })
    }

    pub(crate) fn is_valid(&self, key: &NodeKey, address: IpAddr, at: SystemTime) -> bool {
        tls::public_key_of(&self.certificate) == Some(key.public_key())
            && tls::is_valid(&self.verifier, &self.certificate, address, at)
    }

    /// The kept certificate, if it is still good for this key and address.
    fn load(place: &Place) -> Option<Self> {
        let read = |name: &str| match files::read(&place.dir.join(name)) {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::warn!(%error, "cannot use the kept certificate");
                None
            }
        };
        let certificate = CertificateDer::from(read(CERTIFICATE_FILE)?);
        let authority = CertificateDer::from(read(AUTHORITY_FILE)?);
        let material = Self::new(certificate, authority, &place.key).ok()?;
        material.is_valid(&place.key, place.advertise, SystemTime::now()).then_some(material)
    }

    fn store(&self, dir: &Path) -> Result<(), files::FileError> {
        // Between the two writes the pair does not verify, and a node that starts then enrols again.
        files::write(&dir.join(AUTHORITY_FILE), &self.authority)?;
        files::write(&dir.join(CERTIFICATE_FILE), &self.certificate)
    }
}

const CERTIFICATE_FILE: &str = "node.crt";
const AUTHORITY_FILE: &str = "cluster.crt";

impl Credentials {
    /// The kept credentials if they are still good, otherwise new ones.
    pub(crate) async fn obtain(place: Place) -> Result<Self, EnrollError> {
        let material = match Material::load(&place) {
            Some(material) => material,
            None => fetch(&place).await?,
        };
        Ok(Self::with(place, material))
    }

    pub(crate) fn with(place: Place, material: Material) -> Self {
        Self { place, current: RwLock::new(Arc::new(material)), renewing: AtomicBool::new(false) }
    }

    /// The name of the node.
    pub fn node(&self) -> NodeId {
        self.place.key.id()
    }

    /// The one address that the certificate vouches for.
    pub const fn address(&self) -> IpAddr {
        self.place.advertise
    }

    /// Whether the certificate holds at `at`.
    pub fn is_valid_at(&self, at: SystemTime) -> bool {
        self.material().is_valid(&self.place.key, self.place.advertise, at)
    }

    pub(crate) fn material(&self) -> Arc<Material> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Gets a new certificate from the scheduler, and whatever authority it has now. If a renewal is under
    /// way already, returns at once.
    ///
    /// # Errors
    /// As [`enroll`](crate::enroll); the old credentials stay.
    pub async fn renew(&self) -> Result<(), EnrollError> {
        if self.renewing.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        // Dropped with this future, too: a cancelled renewal does not block the next one.
        let _ended = Ended(&self.renewing);
        let material = fetch(&self.place).await?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(material);
        tracing::info!(node = self.node().short(), "certificate renewed");
        Ok(())
    }

    /// Renews the certificate whenever its end comes near. Ends never: its owner drops it.
    pub async fn keep_fresh(&self) {
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            if self.is_valid_at(SystemTime::now() + RENEW_BEFORE_END) {
                continue;
            }
            if let Err(error) = self.renew().await {
                tracing::warn!(%error, "cannot renew the certificate, trying again later");
            }
        }
    }
}

async fn fetch(place: &Place) -> Result<Material, EnrollError> {
    let material = enroll::request_certificate(place).await?;
    let dir = place.dir.clone();
    let stored = tokio::task::spawn_blocking(move || material.store(&dir).map(|()| material));
    Ok(stored.await.map_err(|_| EnrollError::Cancelled)??)
}

struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({} at {})", self.node().short(), self.place.advertise)
    }
}
