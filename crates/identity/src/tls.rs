//! TLS as the cluster speaks it: version 1.3, one provider, certificates of one authority.
//!
//! Sessions are never resumed. A resumed session would skip the certificate, and with it the certificate's
//! end; and streams live long here, so that nothing would be gained.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};

use crate::NodeKey;

/// The name in the scheduler's certificate. It is no DNS name, so that the certificate does not depend on
/// how a node was told to reach the scheduler; the authority gives it to the scheduler alone.
pub const SCHEDULER_NAME: &str = "scheduler.pantala";

/// DER of a `SubjectPublicKeyInfo` that holds an Ed25519 key, up to the key itself (RFC 8410, section 4).
const ED25519_SPKI: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// A certificate or key that TLS cannot be set up with.
#[derive(Debug, thiserror::Error)]
pub enum TlsSetupError {
    /// rustls refuses it.
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The certificate cannot serve as the cluster's authority.
    #[error("cannot use the cluster's authority: {0}")]
    Authority(#[from] rustls::server::VerifierBuilderError),
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn roots(authority: &CertificateDer<'static>) -> Result<Arc<RootCertStore>, TlsSetupError> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.clone())?;
    Ok(Arc::new(roots))
}

/// Verifies servers (and, for [`is_valid`], anybody) against the authority.
pub(crate) fn server_verifier(
    authority: &CertificateDer<'static>,
) -> Result<Arc<WebPkiServerVerifier>, TlsSetupError> {
    Ok(WebPkiServerVerifier::builder_with_provider(roots(authority)?, provider()).build()?)
}

/// Whether the authority's word for (`certificate`, `address`) holds at `at`.
pub(crate) fn is_valid(
    verifier: &WebPkiServerVerifier,
    certificate: &CertificateDer<'_>,
    address: IpAddr,
    at: SystemTime,
) -> bool {
    let since_epoch = at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let name = ServerName::from(address);
    verifier.verify_server_cert(certificate, &[], &name, &[], UnixTime::since_unix_epoch(since_epoch)).is_ok()
}

/// A client that shows its certificate and takes servers of the authority alone.
pub(crate) fn client_config(
    verifier: Arc<WebPkiServerVerifier>,
    certificate: CertificateDer<'static>,
    key: &NodeKey,
) -> Result<ClientConfig, TlsSetupError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        // Not dangerous: it is webpki's own verifier, shared instead of built twice.
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(vec![certificate], PrivateKeyDer::Pkcs8(key.private_der()))?;
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// A client that takes any server: only for a request whose answer proves itself.
pub(crate) fn unverified_client_config() -> Result<ClientConfig, TlsSetupError> {
    let provider = provider();
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Whom a server lets in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Clients {
    /// Only clients with a certificate.
    Certified,
    /// Also clients that show none. A bad certificate is refused all the same.
    AlsoUnknown,
}

/// A server of the authority.
pub(crate) fn server_config(
    authority: &CertificateDer<'static>,
    certificate: CertificateDer<'static>,
    key: &NodeKey,
    clients: Clients,
) -> Result<ServerConfig, TlsSetupError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(authority)?, provider());
    let verifier = match clients {
        Clients::Certified => verifier,
        Clients::AlsoUnknown => verifier.allow_unauthenticated(),
    };
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier.build()?)
        .with_single_cert(vec![certificate], PrivateKeyDer::Pkcs8(key.private_der()))?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// The Ed25519 key in a certificate, if that is what the certificate holds.
pub(crate) fn public_key_of(certificate: &CertificateDer<'_>) -> Option<[u8; 32]> {
    let spki = ParsedCertificate::try_from(certificate).ok()?.subject_public_key_info();
    spki.strip_prefix(&ED25519_SPKI)?.try_into().ok()
}

/// Takes every certificate, but still wants the server to hold that certificate's key.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
