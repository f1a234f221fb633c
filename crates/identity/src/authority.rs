//! The cluster's certificate authority: an Ed25519 key beside the scheduler that vouches for one thing,
//! *this key was seen at this address by somebody who knows the join token*.
//!
//! From a request it takes the key and the claimed address and nothing else. The claimed address must be the
//! observed one: were it copied into the certificate unseen, the token would make anybody anyone. The
//! authority can be lost: nodes notice that the scheduler's certificate is not of the authority that they
//! know, and enrol again.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use proto::cluster::{EnrollRequest, EnrollResponse};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};

use crate::files::{self, FileError};
use crate::tls::{self, SCHEDULER_NAME, TlsSetupError};
use crate::{JoinToken, KeyError, NodeId, NodeKey};

/// How long a certificate holds: nodes renew daily, so a scheduler may be away over a long weekend.
const CERTIFICATE_LIFE: Duration = Duration::from_hours(4 * 24);
/// How long the authority itself holds.
const AUTHORITY_LIFE: Duration = Duration::from_hours(10 * 365 * 24);
/// Certificates begin in the past, for machines whose clock is behind.
const CLOCK_SKEW: Duration = Duration::from_hours(1);
/// Bytes of a nonce.
pub(crate) const NONCE_LEN: usize = 32;
/// A certificate request of ours has about 250 bytes.
const MAX_REQUEST: usize = 4096;

/// The certificate authority of a cluster.
pub struct Authority {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// Its files could not be read or written.
    #[error("certificate authority: {0}")]
    File(#[from] FileError),
    /// Its key could not be made or used.
    #[error("certificate authority: {0}")]
    Key(#[from] KeyError),
    /// Its files do not belong together, or are none.
    #[error(
        "certificate authority in {0}: authority.key and authority.crt do not fit together; \
         remove both and every node enrols again"
    )]
    Broken(String),
    /// A certificate could not be made.
    #[error("certificate authority: cannot make a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// TLS does not take what was made.
    #[error("certificate authority: {0}")]
    Tls(#[from] TlsSetupError),
}

/// Why a node gets no certificate. The text is for the person who runs the node.
#[derive(Debug, thiserror::Error)]
pub enum EnrollRefused {
    /// The MAC does not fit the token.
    #[error(
        "join token refused: this node and the scheduler do not have the same token \
         (security.joinToken or PANTALA_JOIN_TOKEN)"
    )]
    Token,
    /// The request is not one.
    #[error("enrolment refused: the certificate request cannot be used: {0}")]
    Malformed(&'static str),
    /// The node is not seen where it says it is.
    #[error(
        "enrolment refused: this node says that it is at {claimed}, but its connection comes from {observed}: \
         set host.advertiseIP to {observed}, or to an address that the node's connections can leave from"
    )]
    Address {
        /// What the request says.
        claimed: IpAddr,
        /// Where the connection came from.
        observed: IpAddr,
    },
    /// The certificate could not be made.
    #[error("enrolment failed: the scheduler cannot make a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
}

impl From<EnrollRefused> for tonic::Status {
    fn from(refused: EnrollRefused) -> Self {
        let text = refused.to_string();
        match refused {
            EnrollRefused::Token => Self::permission_denied(text),
            EnrollRefused::Malformed(_) => Self::invalid_argument(text),
            EnrollRefused::Address { .. } => Self::failed_precondition(text),
            EnrollRefused::Certificate(_) => Self::internal(text),
        }
    }
}

impl Authority {
    /// The authority whose key and certificate are in `dir`; if there are none, new ones, kept there with
    /// mode 0600.
    ///
    /// # Errors
    /// If the files cannot be read or written, or do not belong together.
    pub fn load_or_create(dir: &Path) -> Result<Self, AuthorityError> {
        let key_path = dir.join("authority.key");
        let certificate_path = dir.join("authority.crt");
        if let (Some(_), Some(certificate)) = (files::read(&key_path)?, files::read(&certificate_path)?) {
            let key = NodeKey::load_or_create(&key_path)?;
            let certificate = CertificateDer::from(certificate);
            if tls::public_key_of(&certificate) != Some(key.public_key()) {
                return Err(AuthorityError::Broken(dir.display().to_string()));
            }
            let issuer = Issuer::from_ca_cert_der(&certificate, key.certificate_key()?)?;
            return Ok(Self { certificate, issuer });
        }
        let key = NodeKey::load_or_create(&key_path)?;
        let authority = Self::create(&key)?;
        files::write(&certificate_path, &authority.certificate)?;
        tracing::info!(authority = key.id().short(), dir = %dir.display(), "made a certificate authority");
        Ok(authority)
    }

    fn create(key: &NodeKey) -> Result<Self, AuthorityError> {
        let mut params = lasting(SystemTime::now(), AUTHORITY_LIFE);
        // The name carries the key's: two authorities of one cluster in succession have two names.
        params.distinguished_name = common_name(&format!("pantala authority {}", key.id().short()));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let pair = key.certificate_key()?;
        let certificate = params.self_signed(&pair)?.der().clone();
        Ok(Self { certificate, issuer: Issuer::new(params, pair) })
    }

    /// The authority's own certificate: what every node trusts.
    pub(crate) const fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Answers a request for a certificate by a node whose connection comes from `observed`.
    ///
    /// # Errors
    /// [`EnrollRefused`]; as a [`tonic::Status`] it carries the same text.
    pub fn enroll(
        &self,
        token: &JoinToken,
        request: &EnrollRequest,
        observed: IpAddr,
    ) -> Result<EnrollResponse, EnrollRefused> {
        if request.nonce.len() != NONCE_LEN {
            return Err(EnrollRefused::Malformed("its nonce does not have 32 bytes"));
        }
        if request.csr.len() > MAX_REQUEST {
            return Err(EnrollRefused::Malformed("it is too long"));
        }
        // The token first: whoever does not know it gets no further word out of us, and no parser.
        if !token.accepts_request(&request.mac, &request.nonce, &request.csr) {
            return Err(EnrollRefused::Token);
        }
        // Checks the request's signature by the key that it names, too.
        let csr = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(
            request.csr.as_slice(),
        ))
        .map_err(|_| EnrollRefused::Malformed("it is not a signed PKCS#10 request"))?;
        let public_key =
            ed25519_of(&csr.public_key).ok_or(EnrollRefused::Malformed("its key is not an Ed25519 key"))?;
        let [SanType::IpAddress(claimed)] = csr.params.subject_alt_names.as_slice() else {
            return Err(EnrollRefused::Malformed("it must name exactly one address"));
        };
        let (claimed, observed) = (claimed.to_canonical(), observed.to_canonical());
        if claimed != observed {
            return Err(EnrollRefused::Address { claimed, observed });
        }
        let certificate = self.issue(&public_key, observed, SystemTime::now(), CERTIFICATE_LIFE)?;
        let mac = token.response_mac(&request.nonce, &certificate, &self.certificate).to_vec();
        Ok(EnrollResponse { certificate: certificate.to_vec(), authority: self.certificate.to_vec(), mac })
    }

    /// A node's certificate that begins at `from`.
    pub(crate) fn issue(
        &self,
        public_key: &[u8; 32],
        address: IpAddr,
        from: SystemTime,
        life: Duration,
    ) -> Result<CertificateDer<'static>, rcgen::Error> {
        let mut params = lasting(from, life);
        params.distinguished_name = common_name(&NodeId::of(public_key).to_string());
        params.subject_alt_names = vec![SanType::IpAddress(address)];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params, public_key)
    }

    /// The scheduler's own certificate. It carries no address, so it is no node's.
    pub(crate) fn issue_scheduler(
        &self,
        public_key: &[u8; 32],
    ) -> Result<CertificateDer<'static>, rcgen::Error> {
        let mut params = lasting(SystemTime::now(), CERTIFICATE_LIFE);
        params.distinguished_name = common_name(SCHEDULER_NAME);
        params.subject_alt_names = vec![SanType::DnsName(SCHEDULER_NAME.try_into()?)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(params, public_key)
    }

    fn sign(
        &self,
        mut params: CertificateParams,
        public_key: &[u8; 32],
    ) -> Result<CertificateDer<'static>, rcgen::Error> {
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        Ok(params.signed_by(&Ed25519Public(*public_key), &self.issuer)?.der().clone())
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authority")
    }
}

fn lasting(from: SystemTime, life: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = (from - CLOCK_SKEW).into();
    params.not_after = (from + life).into();
    params
}

fn common_name(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

fn ed25519_of(key: &rcgen::PublicKey) -> Option<[u8; 32]> {
    (key.algorithm() == &rcgen::PKCS_ED25519).then(|| key.der_bytes().try_into().ok()).flatten()
}

struct Ed25519Public([u8; 32]);

impl PublicKeyData for Ed25519Public {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ED25519
    }
}

#[cfg(test)]
mod tests {
    use rustls::client::danger::ServerCertVerifier as _;
    use rustls::pki_types::UnixTime;

    use super::*;
    use crate::enroll::request_for;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn token(text: &str) -> JoinToken {
        text.parse().unwrap()
    }

    fn authority() -> Authority {
        Authority::create(&NodeKey::generate().unwrap()).unwrap()
    }

    fn request(token: &JoinToken, address: IpAddr) -> EnrollRequest {
        request_for(token, &NodeKey::generate().unwrap(), address).unwrap()
    }

    #[test]
    fn the_authority_is_made_once_and_kept_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let first = Authority::load_or_create(dir.path()).unwrap();
        let second = Authority::load_or_create(dir.path()).unwrap();
        assert_eq!(first.certificate, second.certificate);
        for name in ["authority.key", "authority.crt"] {
            let mode = std::fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        // What the reloaded authority issues is valid under the first one's certificate.
        let key = NodeKey::generate().unwrap();
        let issued = second.issue(&key.public_key(), HERE, SystemTime::now(), CERTIFICATE_LIFE).unwrap();
        let verifier = tls::server_verifier(&first.certificate).unwrap();
        assert!(tls::is_valid(&verifier, &issued, HERE, SystemTime::now()));
        assert_eq!(tls::public_key_of(&issued), Some(key.public_key()));
    }

    #[test]
    fn files_that_do_not_belong_together_are_an_error() {
        let dir = tempfile::tempdir().unwrap();
        Authority::load_or_create(dir.path()).unwrap();
        std::fs::remove_file(dir.path().join("authority.key")).unwrap();
        NodeKey::load_or_create(&dir.path().join("authority.key")).unwrap();
        let error = Authority::load_or_create(dir.path()).unwrap_err();
        assert!(error.to_string().contains("remove both"), "{error}");
    }

    #[test]
    fn a_certificate_holds_for_its_address_and_its_days() {
        let authority = authority();
        let token = token("a token of 16 or more");
        let response = authority.enroll(&token, &request(&token, HERE), HERE).unwrap();
        let certificate = CertificateDer::from(response.certificate);
        let verifier = tls::server_verifier(&authority.certificate).unwrap();
        let now = SystemTime::now();
        assert!(tls::is_valid(&verifier, &certificate, HERE, now));
        assert!(tls::is_valid(&verifier, &certificate, HERE, now + Duration::from_hours(24)));
        assert!(!tls::is_valid(&verifier, &certificate, HERE, now + Duration::from_hours(8 * 24)));
        assert!(!tls::is_valid(&verifier, &certificate, "127.0.0.2".parse().unwrap(), now));
        let another = tls::server_verifier(&self::authority().certificate).unwrap();
        assert!(!tls::is_valid(&another, &certificate, HERE, now));
    }

    #[test]
    fn a_request_for_another_address_is_refused_and_says_what_to_set() {
        let token = token("a token of 16 or more");
        let error = authority()
            .enroll(&token, &request(&token, "10.0.0.1".parse().unwrap()), "10.0.0.9".parse().unwrap())
            .unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, EnrollRefused::Address { .. }), "{text}");
        assert!(text.contains("10.0.0.1") && text.contains("set host.advertiseIP to 10.0.0.9"), "{text}");
    }

    #[test]
    fn an_ipv4_connection_seen_through_an_ipv6_socket_is_the_same_address() {
        let token = token("a token of 16 or more");
        let observed = "::ffff:10.0.0.1".parse().unwrap();
        authority().enroll(&token, &request(&token, "10.0.0.1".parse().unwrap()), observed).unwrap();
    }

    #[test]
    fn a_wrong_token_a_changed_request_and_rubbish_are_refused() {
        let authority = authority();
        let (token, other) = (token("a token of 16 or more"), token("another token of 16"));
        let refused = authority.enroll(&token, &request(&other, HERE), HERE).unwrap_err();
        assert!(matches!(refused, EnrollRefused::Token));
        assert!(refused.to_string().starts_with("join token refused: "));

        let mut changed = request(&token, HERE);
        changed.csr.push(0);
        assert!(matches!(authority.enroll(&token, &changed, HERE), Err(EnrollRefused::Token)));

        let mut rubbish = request(&token, HERE);
        rubbish.csr = b"rubbish".to_vec();
        rubbish.mac = token.request_mac(&rubbish.nonce, &rubbish.csr).to_vec();
        assert!(matches!(authority.enroll(&token, &rubbish, HERE), Err(EnrollRefused::Malformed(_))));

        let mut short = request(&token, HERE);
        short.nonce.pop();
        assert!(matches!(authority.enroll(&token, &short, HERE), Err(EnrollRefused::Malformed(_))));
    }

    #[test]
    fn nothing_but_key_and_address_is_taken_from_a_request() {
        let (authority, token) = (authority(), token("a token of 16 or more"));
        let key = NodeKey::generate().unwrap();
        let pair = key.certificate_key().unwrap();
        for sans in [
            vec![],
            vec![SanType::DnsName(SCHEDULER_NAME.try_into().unwrap())],
            vec![SanType::IpAddress(HERE), SanType::DnsName(SCHEDULER_NAME.try_into().unwrap())],
            vec![SanType::IpAddress(HERE), SanType::IpAddress("10.0.0.1".parse().unwrap())],
        ] {
            let mut params = CertificateParams::default();
            params.subject_alt_names = sans;
            let csr = params.serialize_request(&pair).unwrap().der().to_vec();
            let nonce = vec![7; NONCE_LEN];
            let mac = token.request_mac(&nonce, &csr).to_vec();
            let refused = authority.enroll(&token, &EnrollRequest { csr, nonce, mac }, HERE).unwrap_err();
            assert!(matches!(refused, EnrollRefused::Malformed(_)), "{refused}");
        }
        // Asking to be an authority gets an ordinary certificate, which can issue nothing.
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::IpAddress(HERE)];
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let csr = params.serialize_request(&pair).unwrap().der().to_vec();
        let nonce = vec![7; NONCE_LEN];
        let mac = token.request_mac(&nonce, &csr).to_vec();
        let response = authority.enroll(&token, &EnrollRequest { csr, nonce, mac }, HERE).unwrap();
        let certificate = CertificateDer::from(response.certificate);
        let verifier = tls::server_verifier(&authority.certificate).unwrap();
        assert!(tls::is_valid(&verifier, &certificate, HERE, SystemTime::now()));

        let mut forger_params = CertificateParams::default();
        forger_params.distinguished_name = common_name(&key.id().to_string());
        let forger = Authority { certificate: certificate.clone(), issuer: Issuer::new(forger_params, pair) };
        let leaf = forger.issue(&key.public_key(), HERE, SystemTime::now(), CERTIFICATE_LIFE).unwrap();
        let chain = verifier.verify_server_cert(&leaf, &[certificate], &HERE.into(), &[], UnixTime::now());
        assert!(chain.is_err(), "a node's certificate issued another");
    }
}
