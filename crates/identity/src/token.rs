//! The join token: a shared secret that is proved and never told.
//!
//! Both ends derive a key from the token and exchange keyed BLAKE3 MACs over what they say. A listener, or a
//! server that only pretends to be the scheduler, learns nothing but MACs, and its own words are refused for
//! want of one. (It could try guesses against a MAC, so a token must be random: 16 characters are the least
//! that is accepted, 32 are better.)

use std::fmt;
use std::str::FromStr;

/// Fewest characters of a token. 16 random characters of base 64 are 96 bits.
const MIN_CHARS: usize = 16;
/// Separates this use of the secret from every other.
const KEY_CONTEXT: &str = "pantala 2026 join token v1";

/// A join token. Only the key derived from it is kept, and neither `Debug` nor anything else shows it.
#[derive(Clone)]
pub struct JoinToken {
    key: [u8; 32],
}

/// Why a text is not a join token. Never quotes the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Too short to withstand guessing.
    #[error(
        "the join token has {0} characters and needs at least {MIN_CHARS}: make one with `openssl rand -hex 24`"
    )]
    TooShort(usize),
}

impl FromStr for JoinToken {
    type Err = TokenError;

    /// White space around the token (the line end of a secret's file) does not belong to it.
    fn from_str(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        let chars = text.chars().count();
        if chars < MIN_CHARS {
            return Err(TokenError::TooShort(chars));
        }
        Ok(Self { key: blake3::derive_key(KEY_CONTEXT, text.as_bytes()) })
    }
}

impl JoinToken {
    /// The MAC of a request for a certificate.
    pub(crate) fn request_mac(&self, nonce: &[u8], csr: &[u8]) -> [u8; 32] {
        *self.mac(&[b"request", nonce, csr]).as_bytes()
    }

    /// The MAC of the answer. It covers the request's nonce, so an old answer is no answer.
    pub(crate) fn response_mac(&self, nonce: &[u8], certificate: &[u8], authority: &[u8]) -> [u8; 32] {
        *self.mac(&[b"response", nonce, certificate, authority]).as_bytes()
    }

    /// Whether `mac` is the MAC of this request.
    pub(crate) fn accepts_request(&self, mac: &[u8], nonce: &[u8], csr: &[u8]) -> bool {
        same(&self.request_mac(nonce, csr), mac)
    }

    /// Whether `mac` is the MAC of this answer.
    pub(crate) fn accepts_response(
        &self,
        mac: &[u8],
        nonce: &[u8],
        certificate: &[u8],
        authority: &[u8],
    ) -> bool {
        same(&self.response_mac(nonce, certificate, authority), mac)
    }

    /// Every part is preceded by its length, so that no two lists of parts have one text.
    fn mac(&self, parts: &[&[u8]]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        for part in parts {
            hasher.update(&(part.len() as u64).to_be_bytes());
            hasher.update(part);
        }
        hasher.finalize()
    }
}

/// Compares in constant time, as `blake3::Hash` promises.
fn same(expected: &[u8; 32], mac: &[u8]) -> bool {
    <[u8; 32]>::try_from(mac)
        .is_ok_and(|mac| blake3::Hash::from_bytes(*expected) == blake3::Hash::from_bytes(mac))
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinToken(hidden)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CANARY: &str = "canary-canary-canary";

    #[test]
    fn a_short_token_is_refused_without_being_quoted() {
        let error = "tooshort-canary".parse::<JoinToken>().unwrap_err();
        assert_eq!(error, TokenError::TooShort(15));
        assert!(!error.to_string().contains("canary"));
    }

    #[test]
    fn debug_hides_token_and_key() {
        let token: JoinToken = CANARY.parse().unwrap();
        let shown = format!("{token:?} {token:#?}");
        assert!(!shown.contains("canary"));
        assert!(!shown.contains(&hex::encode(token.key)));
    }

    #[test]
    fn space_around_a_token_does_not_count() {
        let (a, b): (JoinToken, JoinToken) =
            (CANARY.parse().unwrap(), format!(" {CANARY}\n").parse().unwrap());
        assert_eq!(a.key, b.key);
    }

    #[test]
    fn a_mac_is_for_one_direction_one_nonce_and_one_split() {
        let token: JoinToken = CANARY.parse().unwrap();
        let mac = token.request_mac(b"nonce", b"csr");
        assert!(token.accepts_request(&mac, b"nonce", b"csr"));
        assert!(!token.accepts_request(&mac, b"noncec", b"sr"));
        assert!(!token.accepts_request(&mac, b"other", b"csr"));
        assert!(!token.accepts_request(&mac[..31], b"nonce", b"csr"));
        assert!(!token.accepts_request(b"", b"nonce", b"csr"));
        assert!(!token.accepts_response(&mac, b"nonce", b"csr", b""));
        let other: JoinToken = "another-token-of-20c".parse().unwrap();
        assert!(!other.accepts_request(&mac, b"nonce", b"csr"));
    }
}
