//! Whole blobs, hashed as they pass.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use content::{ByteRange, ByteStream, Digest, Hasher, ReadError, ReadErrorKind, Urgency};
use futures::{StreamExt, TryStreamExt};

use crate::ask::Auth;
use crate::client::Client;
use crate::manifest::Descriptor;
use crate::reference::Reference;

impl Client {
    /// Streams a whole blob. The stream ends with an error if the bytes do not have the descriptor's digest
    /// and size: whoever uses them before the end must be able to take that back.
    pub fn pull_blob(&self, reference: &Reference, descriptor: &Descriptor, urgency: Urgency) -> ByteStream {
        let origin = self.origin(reference, &descriptor.digest, Some(descriptor.size));
        let bytes = origin.stream(ByteRange::new(0, descriptor.size), urgency);
        let what =
            format!("pulling {} of {}/{}", descriptor.digest, reference.registry(), reference.repository());
        verified(bytes, descriptor.digest, what)
    }

    /// Reads a whole small blob, such as an image's config, into memory.
    ///
    /// # Errors
    /// That it is longer than `limit` bytes, cannot be read, or is not what its digest says.
    pub async fn pull_bytes(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        limit: u64,
    ) -> Result<Bytes, ReadError> {
        if descriptor.size > limit {
            let message = format!("{} has {} bytes, more than {limit}", descriptor.digest, descriptor.size);
            return Err(ReadError::origin(ReadErrorKind::Other, message));
        }
        let stream = self.pull_blob(reference, descriptor, Urgency::Blocking);
        let whole = stream.try_fold(BytesMut::new(), |mut whole, chunk| async move {
            whole.extend_from_slice(&chunk);
            Ok(whole)
        });
        Ok(whole.await?.freeze())
    }

    /// Whether the registry itself (no mirror) has the blob in this repository, and its length.
    ///
    /// # Errors
    /// What the registry answered, other than that it does not have it.
    pub async fn head_blob(
        &self,
        reference: &Reference,
        digest: &Digest,
    ) -> Result<Option<u64>, crate::RegistryError> {
        let auth = Auth::pull(reference.repository());
        self.head(reference, &format!("blobs/{digest}"), "looking for a blob in", &auth).await
    }
}

/// Hashes what passes, and ends with an error if the digest is another one.
fn verified(bytes: ByteStream, expected: Digest, what: String) -> ByteStream {
    let state = (bytes, Some(Hasher::new()), Arc::<str>::from(what));
    futures::stream::try_unfold(state, move |(mut bytes, mut hasher, what)| async move {
        if let Some(chunk) = bytes.try_next().await? {
            if let Some(hasher) = &mut hasher {
                hasher.update(&chunk);
            }
            return Ok(Some((chunk, (bytes, hasher, what))));
        }
        match hasher.take().map(Hasher::finish) {
            Some(found) if found != expected => {
                let message = format!("{what}: the bytes have the digest {found}");
                Err(ReadError::origin(ReadErrorKind::Corrupt, message))
            }
            _ => Ok(None),
        }
    })
    .boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn pull(parts: &[&'static str], digest: Digest) -> Vec<Result<Bytes, ReadError>> {
        let parts: Vec<Result<Bytes, ReadError>> =
            parts.iter().map(|part| Ok(Bytes::from_static(part.as_bytes()))).collect();
        verified(futures::stream::iter(parts).boxed(), digest, "testing".to_owned()).collect().await
    }

    #[tokio::test]
    async fn a_stream_of_wrong_bytes_ends_with_an_error() {
        let good = pull(&["pan", "tala"], Digest::of(b"pantala")).await;
        assert!(good.iter().all(Result::is_ok));
        let bad = pull(&["pan", "tale"], Digest::of(b"pantala")).await;
        assert_eq!(bad.last().unwrap().as_ref().unwrap_err().kind(), ReadErrorKind::Corrupt);
    }
}
