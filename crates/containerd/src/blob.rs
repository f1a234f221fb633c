//! Blobs: what is known of one, and the whole of a small one.

use bytes::{Bytes, BytesMut};
use content::Digest;
use proto::containerd::content::{Info, InfoRequest, ReadContentRequest};

use crate::{Client, Error, is_not_found};

impl Client {
    /// What is known of a blob, if this namespace has it.
    ///
    /// # Errors
    /// That containerd does not answer.
    pub async fn info(&self, digest: &str) -> Result<Option<Info>, Error> {
        match self.content().info(self.request(InfoRequest { digest: digest.to_owned() })?).await {
            Ok(answer) => Ok(answer.into_inner().info),
            Err(status) if is_not_found(&status) => Ok(None),
            Err(status) => Err(self.error(format!("looking for {digest}"), &status)),
        }
    }

    /// A whole small document of at most `limit` bytes, if this namespace has it. Its sha256 is compared; a
    /// digest of another algorithm is believed, since containerd compared it when the blob came.
    ///
    /// # Errors
    /// That containerd does not answer, or that the document is longer or another one.
    pub async fn document(&self, digest: &str, limit: u64) -> Result<Option<Bytes>, Error> {
        let doing = || format!("reading {digest}");
        let request = ReadContentRequest { digest: digest.to_owned(), offset: 0, size: 0 };
        let mut pieces = match self.content().read(self.request(request)?).await {
            Ok(pieces) => pieces.into_inner(),
            Err(status) if is_not_found(&status) => return Ok(None),
            Err(status) => return Err(self.error(doing(), &status)),
        };
        let mut bytes = BytesMut::new();
        loop {
            match pieces.message().await {
                Ok(Some(piece)) => bytes.extend_from_slice(&piece.data),
                Ok(None) => break,
                // containerd finds out only now that it has not got it.
                Err(status) if is_not_found(&status) => return Ok(None),
                Err(status) => return Err(self.error(doing(), &status)),
            }
            if bytes.len() as u64 > limit {
                return Err(self.malformed(doing(), format!("it has more than {limit} bytes")));
            }
        }
        let bytes = bytes.freeze();
        match digest.parse::<Digest>() {
            Ok(expected) if Digest::of(&bytes) != expected => {
                Err(self.malformed(doing(), format!("its bytes have the digest {}", Digest::of(&bytes))))
            }
            _ => Ok(Some(bytes)),
        }
    }
}
