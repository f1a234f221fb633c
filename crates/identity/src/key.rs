//! The key that a node is, and the name that follows from it.

use std::fmt;
use std::path::Path;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use rustls::pki_types::PrivatePkcs8KeyDer;

use crate::files::{self, FileError};

/// The name of a node: the SHA-256 of its Ed25519 public key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId([u8; 32]);

impl NodeId {
    /// The name of the node whose public key this is.
    pub fn of(public_key: &[u8; 32]) -> Self {
        Self(*content::Digest::of(public_key).as_bytes())
    }

    /// A name whose 32 bytes are already known.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first 12 hexadecimal digits: enough for a person.
    pub fn short(&self) -> String {
        let mut text = hex::encode(self.0);
        text.truncate(12);
        text
    }
}

impl TryFrom<&[u8]> for NodeId {
    type Error = KeyError;

    fn try_from(bytes: &[u8]) -> Result<Self, KeyError> {
        bytes.try_into().map(Self).map_err(|_| KeyError::IdLength(bytes.len()))
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

/// Why there is no key, or no name.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// A node id is 32 bytes.
    #[error("a node id has 32 bytes, this one has {0}")]
    IdLength(usize),
    /// The key's file could not be read or written.
    #[error("node key: {0}")]
    File(#[from] FileError),
    /// The file holds something else.
    #[error("{} does not hold an Ed25519 key (PKCS#8): remove it and the node gets a new identity", .0.display())]
    NotAKey(std::path::PathBuf),
    /// The machine's random numbers failed, or the library refused its own key.
    #[error("cannot make an Ed25519 key")]
    Generate,
}

/// A node's Ed25519 key pair. Its `Debug` shows the public name alone.
pub struct NodeKey {
    pair: Ed25519KeyPair,
    pkcs8: Vec<u8>,
    public_key: [u8; 32],
}

impl NodeKey {
    /// A new key, known to nobody.
    ///
    /// # Errors
    /// [`KeyError::Generate`] if the machine has no random numbers.
    pub fn generate() -> Result<Self, KeyError> {
        let pair = Ed25519KeyPair::generate().map_err(|_| KeyError::Generate)?;
        let pkcs8 = pair.to_pkcs8v1().map_err(|_| KeyError::Generate)?;
        Self::from_pkcs8(pkcs8.as_ref()).ok_or(KeyError::Generate)
    }

    /// The key in the file at `path`; if there is no such file, a new key is made and kept there, mode 0600.
    ///
    /// # Errors
    /// If the file cannot be read or written, or holds something else.
    pub fn load_or_create(path: &Path) -> Result<Self, KeyError> {
        if let Some(bytes) = files::read(path)? {
            return Self::from_pkcs8(&bytes).ok_or_else(|| KeyError::NotAKey(path.to_owned()));
        }
        let key = Self::generate()?;
        files::write(path, &key.pkcs8)?;
        Ok(key)
    }

    fn from_pkcs8(bytes: &[u8]) -> Option<Self> {
        let pair = Ed25519KeyPair::from_pkcs8(bytes)
            .or_else(|_| Ed25519KeyPair::from_pkcs8_maybe_unchecked(bytes))
            .ok()?;
        let public_key = pair.public_key().as_ref().try_into().ok()?;
        Some(Self { pair, pkcs8: bytes.to_vec(), public_key })
    }

    /// The name of the node.
    pub fn id(&self) -> NodeId {
        NodeId::of(&self.public_key)
    }

    /// The public half.
    pub const fn public_key(&self) -> [u8; 32] {
        self.public_key
    }

    /// Signs `message`. Whoever signs must put a word of its own before the message, so that a signature
    /// for one purpose is none for another.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        let signature = self.pair.sign(message);
        let mut bytes = [0; 64];
        for (to, from) in bytes.iter_mut().zip(signature.as_ref()) {
            *to = *from;
        }
        bytes
    }

    /// A second copy, for an owner of its own.
    pub(crate) fn duplicate(&self) -> Result<Self, KeyError> {
        Self::from_pkcs8(&self.pkcs8).ok_or(KeyError::Generate)
    }

    /// For TLS.
    pub(crate) fn private_der(&self) -> PrivatePkcs8KeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.pkcs8.clone())
    }

    /// For certificate requests.
    pub(crate) fn certificate_key(&self) -> Result<rcgen::KeyPair, rcgen::Error> {
        rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&self.private_der(), &rcgen::PKCS_ED25519)
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeKey({:?})", self.id())
    }
}

/// Whether `signature` is `public_key`'s signature of `message`.
pub fn verify(public_key: &[u8; 32], message: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ED25519, public_key).verify(message, signature).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.key");
        let first = NodeKey::load_or_create(&path).unwrap();
        let second = NodeKey::load_or_create(&path).unwrap();
        assert_eq!(first.id(), second.id());
        assert_ne!(first.id(), NodeKey::generate().unwrap().id());
    }

    #[test]
    fn a_file_that_is_no_key_is_an_error_and_not_a_new_identity() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.key");
        std::fs::write(&path, b"nonsense").unwrap();
        let error = NodeKey::load_or_create(&path).unwrap_err();
        assert!(error.to_string().contains("node.key"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"nonsense");
    }

    #[test]
    fn a_signature_holds_for_its_message_and_key_alone() {
        let key = NodeKey::generate().unwrap();
        let signature = key.sign(b"word: message");
        assert!(verify(&key.public_key(), b"word: message", &signature));
        assert!(!verify(&key.public_key(), b"word: another", &signature));
        assert!(!verify(&NodeKey::generate().unwrap().public_key(), b"word: message", &signature));
        assert!(!verify(&key.public_key(), b"word: message", &signature[1..]));
        assert!(!verify(&[0xff; 32], b"word: message", &signature));
    }

    #[test]
    fn an_id_is_32_bytes_and_shows_as_hex() {
        let id = NodeId::from_bytes([0xab; 32]);
        assert_eq!(NodeId::try_from(&[0xab; 32][..]).unwrap(), id);
        assert!(NodeId::try_from(&[0xab; 31][..]).is_err());
        assert_eq!(id.to_string(), "ab".repeat(32));
        assert_eq!(id.short(), "abababababab");
    }

    #[test]
    fn debug_does_not_show_the_private_key() {
        let key = NodeKey::generate().unwrap();
        assert_eq!(format!("{key:?}"), format!("NodeKey({})", key.id().short()));
    }
}
