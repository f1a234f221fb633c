//! What the `native` driver needs of a full disk: see `reserve.rs`.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::Bytes;
use content::{ByteRange, ReadError, ReadErrorKind};

use super::Core;
use crate::reserve::{Lease, Refused};

impl Core {
    /// Sees to it that the store has a reserve for a full disk. To be called before the layer is shown by a driver
    /// that can only give what lies in the data file. Blocks.
    pub(crate) fn hold_reserve(&self) {
        if let Err(error) = self.engine.reserve.hold(self.engine.options.reserve) {
            tracing::warn!(%error, "no room for the reserve of the layer store: if the disk stays full, reads of absent bytes fail");
        }
    }

    /// Gives a verified chunk that could not be kept a place in the data file, as long as the lease is held and a
    /// while longer. Waits for one to become free.
    ///
    /// # Errors
    /// [`ReadErrorKind::NoSpace`]: that there is none before the deadline.
    pub(crate) async fn lend(self: &Arc<Self>, number: u32, bytes: Bytes) -> Result<Lease, ReadError> {
        let deadline = Instant::now() + self.engine.options.read_deadline;
        loop {
            let (layer, bytes) = (Arc::clone(self), bytes.clone());
            let lent = tokio::task::spawn_blocking(move || layer.lend_now(number, &bytes)).await;
            match lent.map_err(|error| ReadError::local(ReadErrorKind::Other, error.to_string()))? {
                Ok(lease) => return Ok(lease),
                Err(Refused::Never(error)) => return Err(error.into()),
                Err(Refused::Wait(rest)) => {
                    if Instant::now() + rest > deadline {
                        return Err(ReadError::local(
                            ReadErrorKind::NoSpace,
                            "the disk is full, and the reserve is in use",
                        ));
                    }
                    tokio::time::sleep(rest).await;
                }
            }
        }
    }

    fn lend_now(&self, number: u32, bytes: &[u8]) -> Result<Lease, Refused> {
        let missing = || Refused::Never(std::io::Error::other("the chunk has no place in the data file"));
        let start = self.index.start(number).ok_or_else(missing)?;
        let end = start.saturating_add(bytes.len() as u64);
        // The next one begins right here, or on a later page: then the rest of this page is nobody's.
        let next = self.index.start(number.saturating_add(1)).unwrap_or(self.index.data_len());
        let end = end.next_multiple_of(4096).min(next).max(end);
        self.engine.reserve.lend(&self.fill, (self.toc_digest, number), ByteRange::new(start, end), bytes)
    }

    /// The chunk's place, if it is lent already.
    pub(crate) fn lease(&self, number: u32) -> Option<Lease> {
        self.engine.reserve.lease((self.toc_digest, number))
    }

    /// Notes that an event was answered whose bytes are `range` of the data file: the kernel has its own copy of
    /// them soon, so after the next flush the data file's need not be in memory.
    pub(crate) fn answered(&self, range: ByteRange) {
        self.fill.given(range);
    }

    /// Keeps a lent chunk for good.
    pub(crate) fn keep_lent(&self, number: u32) {
        if self.fill.adopt(number as usize)
            && let Some(chunk) = self.index.chunk(number)
        {
            self.fetched_bytes.fetch_add(u64::from(chunk.len), Ordering::Relaxed);
            self.engine.wrote.notify_one();
        }
    }

    /// The data file and its map.
    pub(crate) fn fill(&self) -> &Arc<crate::fill::Fill> {
        &self.fill
    }

    /// sha256 of the layer's table of contents.
    pub(crate) fn toc_digest(&self) -> content::Digest {
        self.toc_digest
    }
}
