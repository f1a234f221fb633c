//! Names of content, and how far each can be trusted.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Digest, Hasher};

/// What a [`ContentId`] was made from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum ContentKind {
    /// A blob that a registry *says* has a digest. Nobody hashed it whole yet, so another registry's
    /// bytes under the same digest are another content.
    Claimed,
    /// A blob whose bytes were hashed whole: the digest alone names it, whoever served it.
    Proven,
    /// Anything else that has a URL.
    Url,
}

/// The name of an immutable byte string.
///
/// Fixed length and hexadecimal in its text form (`claimed-…`, `proven-…`, `url-…`), so that it can be
/// used as a file name and never carries a path from the network.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContentId {
    kind: ContentKind,
    hash: [u8; 32],
}

/// A text that is not a content name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a content name: expected claimed-, proven- or url- and 64 hexadecimal digits")]
pub struct ContentIdError;

impl ContentId {
    /// The blob that `registry` (a canonical host, with its port if it has one) serves under `digest`.
    pub fn claimed(registry: &str, digest: &Digest) -> Self {
        Self { kind: ContentKind::Claimed, hash: hash_parts(&[registry.as_bytes(), digest.as_bytes()]) }
    }

    /// The blob whose whole content was seen to have `digest`.
    pub fn proven(digest: &Digest) -> Self {
        Self { kind: ContentKind::Proven, hash: *digest.as_bytes() }
    }

    /// Content named by a URL and whatever else tells its variants apart (filtered query, tag,
    /// application, validators). The parts are joined unambiguously.
    pub fn url(parts: &[&str]) -> Self {
        let parts: Vec<&[u8]> = parts.iter().map(|part| part.as_bytes()).collect();
        Self { kind: ContentKind::Url, hash: hash_parts(&parts) }
    }

    /// What the name was made from.
    pub const fn kind(&self) -> ContentKind {
        self.kind
    }

    /// The 32 bytes that, with the kind, are the name.
    pub const fn hash(&self) -> &[u8; 32] {
        &self.hash
    }
}

/// Each part is preceded by its length: no two lists of parts have the same hash input.
fn hash_parts(parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    *hasher.finish().as_bytes()
}

impl fmt::Display for ContentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            ContentKind::Claimed => "claimed",
            ContentKind::Proven => "proven",
            ContentKind::Url => "url",
        };
        write!(f, "{kind}-{}", hex::encode(self.hash))
    }
}

impl fmt::Debug for ContentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ContentId {
    type Err = ContentIdError;

    fn from_str(text: &str) -> Result<Self, ContentIdError> {
        let (kind, digits) = text.split_once('-').ok_or(ContentIdError)?;
        let kind = match kind {
            "claimed" => ContentKind::Claimed,
            "proven" => ContentKind::Proven,
            "url" => ContentKind::Url,
            _ => return Err(ContentIdError),
        };
        if digits.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(ContentIdError);
        }
        let mut hash = [0; 32];
        hex::decode_to_slice(digits, &mut hash).map_err(|_| ContentIdError)?;
        Ok(Self { kind, hash })
    }
}

impl Serialize for ContentId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ContentId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_bound_to_its_registry() {
        let digest = Digest::of(b"layer");
        let honest = ContentId::claimed("registry.example", &digest);
        assert_ne!(honest, ContentId::claimed("evil.example", &digest));
        assert_ne!(honest, ContentId::proven(&digest));
    }

    #[test]
    fn parts_are_joined_unambiguously() {
        assert_ne!(ContentId::url(&["ab", "c"]), ContentId::url(&["a", "bc"]));
        assert_ne!(ContentId::url(&["ab"]), ContentId::url(&["ab", ""]));
    }

    #[test]
    fn text_is_read_back_and_nothing_else_is() {
        let id = ContentId::claimed("registry.example", &Digest::of(b"layer"));
        assert_eq!(id.to_string().parse::<ContentId>().unwrap(), id);
        for bad in ["", "claimed-", "claimed-00", "proven-../../etc/passwd", "other-00", "CLAIMED-00"] {
            assert!(bad.parse::<ContentId>().is_err(), "{bad} was taken for a content name");
        }
    }
}
