//! The end of a layer, where its table of contents is.

use bytes::Bytes;
use content::{BlobSource, ByteRange, ReadError, Urgency};
use estargz::{TailError, TailState, open_tail};

/// How much of a layer's end is read at first: the TOC of some four thousand files.
const TAIL: u64 = 256 * 1024;

/// What stands at the end of a blob, and what it cost to see it.
pub(crate) struct End {
    pub(crate) state: Result<TailState, TailError>,
    /// Bytes that were fetched.
    pub(crate) fetched: u64,
    /// Requests that brought those.
    pub(crate) requests: u64,
}

/// Reads the end of a blob up to its TOC. What is here already is not fetched again.
pub(crate) async fn read_end(blob: &dyn BlobSource) -> Result<End, ReadError> {
    let len = blob.len();
    let mut from = len.saturating_sub(TAIL);
    let mut tail = blob.read(ByteRange::new(from, len), Urgency::Blocking).await?;
    let mut requests = 1;
    loop {
        let state = open_tail(&tail, len);
        match state {
            Ok(TailState::NeedMore { from: earlier }) if earlier < from => {
                let more = blob.read(ByteRange::new(earlier, from), Urgency::Blocking).await?;
                tail = Bytes::from([more, tail].concat());
                from = earlier;
                requests += 1;
            }
            state => return Ok(End { state, fetched: len - from, requests }),
        }
    }
}
