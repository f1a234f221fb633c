//! What the fuzz targets (`fuzz/`) reach of this crate: both ends of an enrolment, whose decoders are no part
//! of the interface. Somebody who knows the join token can say anything under a right MAC, so that is said.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use proto::cluster::{EnrollRequest, EnrollResponse};

use crate::credentials::Place;
use crate::enroll::{EnrollError, accept_response, request_for};
use crate::{Authority, AuthorityError, EnrollRefused, JoinToken, NodeKey, TokenError};

/// Where the node of a [`Stage`] is.
const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// An authority and a node that wants its certificate.
pub struct Stage {
    authority: Authority,
    place: Place,
}

/// Why there is no stage.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// No authority.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// No token.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// No key or no request.
    #[error(transparent)]
    Enroll(#[from] EnrollError),
}

impl Stage {
    /// A new one, whose authority is in `dir`.
    ///
    /// # Errors
    /// [`StageError`].
    pub fn new(dir: &Path) -> Result<Self, StageError> {
        let token: JoinToken = "a token of 16 or more".parse()?;
        let place = Place {
            scheduler: "stage".to_owned(),
            token,
            key: NodeKey::generate().map_err(EnrollError::from)?,
            advertise: HERE,
            dir: dir.to_owned(),
        };
        Ok(Self { authority: Authority::load_or_create(dir)?, place })
    }

    /// What an honest node asks.
    ///
    /// # Errors
    /// That its key cannot be used.
    pub fn request(&self) -> Result<EnrollRequest, StageError> {
        Ok(request_for(&self.place.token, &self.place.key, HERE)?)
    }

    /// The request under a right MAC, whatever is in it.
    #[must_use]
    pub fn sealed_request(&self, request: EnrollRequest) -> EnrollRequest {
        EnrollRequest { mac: self.place.token.request_mac(&request.nonce, &request.csr).to_vec(), ..request }
    }

    /// The answer under a right MAC, whatever is in it.
    #[must_use]
    pub fn sealed_response(&self, nonce: &[u8], response: EnrollResponse) -> EnrollResponse {
        let mac = self.place.token.response_mac(nonce, &response.certificate, &response.authority);
        EnrollResponse { mac: mac.to_vec(), ..response }
    }

    /// The scheduler's end.
    ///
    /// # Errors
    /// [`EnrollRefused`].
    pub fn enroll(&self, request: &EnrollRequest) -> Result<EnrollResponse, EnrollRefused> {
        self.authority.enroll(&self.place.token, request, HERE)
    }

    /// The node's end.
    ///
    /// # Errors
    /// [`EnrollError`]: the answer is not taken.
    pub fn accept(&self, nonce: &[u8], response: EnrollResponse) -> Result<(), EnrollError> {
        accept_response(&self.place, nonce, response).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_honest_enrolment_works_on_the_stage() {
        let dir = tempfile::tempdir().unwrap();
        let stage = Stage::new(dir.path()).unwrap();
        let request = stage.request().unwrap();
        let nonce = request.nonce.clone();
        assert_eq!(stage.sealed_request(request.clone()), request);
        let response = stage.enroll(&request).unwrap();
        assert_eq!(stage.sealed_response(&nonce, response.clone()), response);
        stage.accept(&nonce, response).unwrap();
    }
}
