//! A node's first word: it proves the join token and gets a certificate.
//!
//! The node does not know the scheduler's certificate yet, so the connection is encrypted but its other end
//! is unknown. That is enough: neither side tells the token, the request is worthless to anybody who cannot
//! be seen at the node's address, and the answer carries a MAC over the request's random nonce.

use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use proto::cluster::scheduler_client::SchedulerClient;
use proto::cluster::{EnrollRequest, EnrollResponse};
use rcgen::{CertificateParams, SanType};
use rustls::pki_types::CertificateDer;
use tonic::Code;

use crate::authority::NONCE_LEN;
use crate::credentials::{Credentials, Material, Place};
use crate::files::FileError;
use crate::security::{self, SecurityError};
use crate::tls::{self, TlsSetupError};
use crate::{JoinToken, KeyError, NodeKey};

/// Longest wait for the scheduler's answer.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// Why a node has no certificate.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    /// The scheduler cannot be reached, or does not answer as one.
    #[error("cannot enrol with the scheduler at {scheduler}: {reason}")]
    Unreachable {
        /// The scheduler as configured.
        scheduler: String,
        /// What happened.
        reason: String,
    },
    /// The scheduler said no, in these words.
    #[error("{0}")]
    Refused(String),
    /// The answer is not of somebody who knows the token.
    #[error(
        "join token refused: the scheduler at {0} does not prove that it knows the token: \
         it has another one (security.joinToken or PANTALA_JOIN_TOKEN), or it is not the scheduler"
    )]
    NotProved(String),
    /// The certificate does not say what was asked for.
    #[error("the scheduler at {0} sent a certificate for another key or address")]
    WrongCertificate(String),
    /// The node's own key does not work.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The request could not be made.
    #[error("cannot make a certificate request: {0}")]
    Request(#[from] rcgen::Error),
    /// TLS could not be set up.
    #[error(transparent)]
    Tls(#[from] TlsSetupError),
    /// The certificate could not be kept.
    #[error("cannot keep the certificate: {0}")]
    Keep(#[from] FileError),
    /// The process is shutting down.
    #[error("enrolment was cancelled")]
    Cancelled,
}

/// A certificate for `key` at the address `advertise`: the one kept in `dir` while it is good, otherwise a
/// new one from the `scheduler` (`host:port`), kept there with mode 0600.
///
/// # Errors
/// [`EnrollError`], whose text says what to do.
pub async fn enroll(
    scheduler: &str,
    token: &JoinToken,
    key: &NodeKey,
    advertise: IpAddr,
    dir: &Path,
) -> Result<Credentials, EnrollError> {
    Credentials::obtain(Place {
        scheduler: scheduler.to_owned(),
        token: token.clone(),
        key: key.duplicate()?,
        advertise: advertise.to_canonical(),
        dir: dir.to_owned(),
    })
    .await
}

/// Asks the scheduler, whatever is kept on disk.
pub(crate) async fn request_certificate(place: &Place) -> Result<Material, EnrollError> {
    let request = request_for(&place.token, &place.key, place.advertise)?;
    let nonce = request.nonce.clone();
    let response = ask(place, request).await?;
    accept_response(place, &nonce, response)
}

async fn ask(place: &Place, request: EnrollRequest) -> Result<EnrollResponse, EnrollError> {
    let unreachable =
        |reason: String| EnrollError::Unreachable { scheduler: place.scheduler.clone(), reason };
    let config = std::sync::Arc::new(tls::unverified_client_config()?);
    let stream = security::dial_scheduler(&place.scheduler, Some(place.advertise), config)
        .await
        .map_err(|error| match error {
            SecurityError::Handshake { .. } => unreachable(format!(
                "{error} (it is no scheduler, or one with security.insecure: then its nodes must be insecure as well)"
            )),
            // The kernel has no way from our own address to the scheduler's.
            SecurityError::Connect { source, .. }
                if matches!(source.kind(), ErrorKind::InvalidInput | ErrorKind::AddrNotAvailable) =>
            {
                unreachable(format!(
                    "{source}: no connection can leave from host.advertiseIP {} to there",
                    place.advertise
                ))
            }
            other => unreachable(other.to_string()),
        })?;
    let channel = security::one_connection(stream).await.map_err(unreachable)?;
    let mut client = SchedulerClient::new(channel);
    match tokio::time::timeout(ANSWER_TIME, client.enroll(request)).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(match status.code() {
            Code::PermissionDenied | Code::InvalidArgument | Code::FailedPrecondition | Code::Internal => {
                EnrollError::Refused(printable(status.message()))
            }
            Code::Unimplemented => unreachable("what listens there is no scheduler of Pantala".to_owned()),
            _ => unreachable(printable(status.message())),
        }),
        Err(_) => Err(unreachable("no answer in time".to_owned())),
    }
}

/// A request for a certificate, and its proof.
pub(crate) fn request_for(
    token: &JoinToken,
    key: &NodeKey,
    advertise: IpAddr,
) -> Result<EnrollRequest, EnrollError> {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::IpAddress(advertise)];
    let csr = params.serialize_request(&key.certificate_key()?)?.der().to_vec();
    let nonce = rand::random::<[u8; NONCE_LEN]>().to_vec();
    let mac = token.request_mac(&nonce, &csr).to_vec();
    Ok(EnrollRequest { csr, nonce, mac })
}

pub(crate) fn accept_response(
    place: &Place,
    nonce: &[u8],
    response: EnrollResponse,
) -> Result<Material, EnrollError> {
    let EnrollResponse { certificate, authority, mac } = response;
    if !place.token.accepts_response(&mac, nonce, &certificate, &authority) {
        return Err(EnrollError::NotProved(place.scheduler.clone()));
    }
    let material =
        Material::new(CertificateDer::from(certificate), CertificateDer::from(authority), &place.key)?;
    if !material.is_valid(&place.key, place.advertise, std::time::SystemTime::now()) {
        return Err(EnrollError::WrongCertificate(place.scheduler.clone()));
    }
    Ok(material)
}

/// Text of somebody unknown: one line, of bounded length, fit for a log.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(400).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Authority;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn place(dir: &Path) -> Place {
        Place {
            scheduler: "test".to_owned(),
            token: "a token of 16 or more".parse().unwrap(),
            key: NodeKey::generate().unwrap(),
            advertise: HERE,
            dir: dir.to_owned(),
        }
    }

    #[test]
    fn only_the_answer_to_this_request_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::load_or_create(dir.path()).unwrap();
        let place = place(dir.path());
        let first = request_for(&place.token, &place.key, HERE).unwrap();
        let answer = authority.enroll(&place.token, &first, HERE).unwrap();
        accept_response(&place, &first.nonce, answer.clone()).unwrap();

        let second = request_for(&place.token, &place.key, HERE).unwrap();
        let replayed = accept_response(&place, &second.nonce, answer.clone());
        assert!(matches!(replayed, Err(EnrollError::NotProved(_))), "a replayed answer was taken");

        let mut forged = answer;
        forged.authority =
            Authority::load_or_create(tempfile::tempdir().unwrap().path()).unwrap().certificate().to_vec();
        assert!(matches!(accept_response(&place, &first.nonce, forged), Err(EnrollError::NotProved(_))));
    }

    #[test]
    fn a_certificate_for_another_key_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::load_or_create(dir.path()).unwrap();
        let place = place(dir.path());
        let other = NodeKey::generate().unwrap();
        let request = request_for(&place.token, &other, HERE).unwrap();
        let answer = authority.enroll(&place.token, &request, HERE).unwrap();
        // rustls itself refuses a certificate that does not fit the key.
        assert!(accept_response(&place, &request.nonce, answer).is_err());
    }

    #[test]
    fn strange_text_is_made_fit_for_a_log() {
        assert_eq!(printable("a\nb\u{1b}[31m"), "ab[31m");
        assert_eq!(printable(&"x".repeat(1000)).len(), 400);
    }
}
