//! Servers with certificates.
// Clippy exempts test functions from these lints, and not their helpers; each test file uses its part.
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

use std::future::Future;
use std::sync::Arc;

use http::Response;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

use crate::common::{Body, Seen, Server};

/// A server that speaks TLS.
pub async fn start<F, R>(tls: ServerConfig, answer: F) -> Server
where
    F: Fn(Seen, usize) -> R + Send + Sync + 'static,
    R: Future<Output = Response<Body>> + Send + 'static,
{
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let handshake = move |tcp| {
        let accepting = acceptor.accept(tcp);
        async move {
            let stream = accepting.await.ok()?;
            let identified = stream.get_ref().1.peer_certificates().is_some();
            Some((stream, identified))
        }
    };
    Server::start_with(handshake, answer).await
}

/// A CA of its own, and what it signed.
pub struct Authority {
    issuer: rcgen::CertifiedIssuer<'static, rcgen::KeyPair>,
}

impl Authority {
    pub fn new() -> Self {
        // Building a client installs the provider that servers use as well.
        let _ = registry::Client::new(registry::ClientConfig::default()).unwrap();
        let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        parameters.distinguished_name.push(rcgen::DnType::CommonName, "test authority");
        let key = rcgen::KeyPair::generate().unwrap();
        Self { issuer: rcgen::CertifiedIssuer::self_signed(parameters, key).unwrap() }
    }

    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// Certificate and key for `name`.
    pub fn sign(&self, name: &str) -> (rcgen::Certificate, rcgen::KeyPair) {
        let key = rcgen::KeyPair::generate().unwrap();
        let parameters = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        (parameters.signed_by(&key, &self.issuer).unwrap(), key)
    }

    /// A server called `name`; with `clients`, it asks for a certificate that `clients` signed, and demands
    /// it if `strict`.
    pub fn server(&self, name: &str, clients: Option<(&Self, bool)>) -> ServerConfig {
        let (certificate, key) = self.sign(name);
        let builder = match clients {
            None => ServerConfig::builder().with_no_client_auth(),
            Some((clients, strict)) => {
                let mut roots = tokio_rustls::rustls::RootCertStore::empty();
                roots.add(clients.issuer.der().clone()).unwrap();
                let verifier = tokio_rustls::rustls::server::WebPkiClientVerifier::builder(Arc::new(roots));
                let verifier = if strict { verifier } else { verifier.allow_unauthenticated() };
                ServerConfig::builder().with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let key = key.serialize_der().try_into().unwrap();
        builder.with_single_cert(vec![certificate.der().clone()], key).unwrap()
    }
}
