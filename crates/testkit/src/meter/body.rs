//! Bodies of answers on their way: late, counted as they leave, and as wrong as the meter was told to make them.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use content::ByteRange;
use http::{HeaderMap, Method, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::{Body, Frame};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{Access, Answer, Behaviour, Ledger, State, text};

/// Frames that are on the way at the same time. A frame is 8 KiB and more, so at 10 ms this is at least 1.6 Gbit/s.
const ON_THE_WAY: usize = 256;

/// A body whose frames are each half a round trip late, as far as they are honest, and are counted as they leave.
pub(super) fn measured<B>(mut body: B, entry: Entry, behaviour: Behaviour) -> UnsyncBoxBody<Bytes, io::Error>
where
    B: Body<Data = Bytes, Error = io::Error> + Send + Unpin + 'static,
{
    if body.is_end_stream() {
        return Empty::new().map_err(|never| match never {}).boxed_unsync();
    }
    let delay = entry.state.round_trip / 2;
    let (line, arriving) = mpsc::channel(ON_THE_WAY);
    // Frames are taken in while earlier ones are still on the way. Ends with the body, or when nobody listens.
    tokio::spawn(async move {
        while let Some(frame) = body.frame().await {
            if line.send((Instant::now() + delay, frame)).await.is_err() {
                return;
            }
        }
    });
    let stream = futures::stream::unfold(Some((arriving, entry)), move |state| async move {
        let (mut arriving, mut entry) = state?;
        match behaviour {
            Behaviour::Stall => std::future::pending().await,
            Behaviour::CutAfter(limit) if entry.passed >= limit => {
                // hyper throws away what it has not written yet when a body fails: let it write first.
                tokio::task::yield_now().await;
                return Some((Err(io::Error::other("cut, as the meter was told")), None));
            }
            _ => {}
        }
        if matches!(behaviour, Behaviour::Short(limit) if entry.passed >= limit) {
            return None;
        }
        let (due, frame) = arriving.recv().await?;
        tokio::time::sleep_until(due).await;
        let mut data = match frame.map(Frame::into_data) {
            Ok(Ok(data)) => data,
            Ok(Err(trailers)) => return Some((Ok(trailers), Some((arriving, entry)))),
            Err(error) => return Some((Err(error), None)),
        };
        match behaviour {
            Behaviour::Flip if !data.is_empty() => {
                let mut wrong = data.to_vec();
                wrong[0] ^= 1;
                data = wrong.into();
            }
            Behaviour::CutAfter(limit) | Behaviour::Short(limit) if limit >= entry.passed => {
                data.truncate(usize::try_from(limit - entry.passed).unwrap_or(usize::MAX));
            }
            _ => {}
        }
        entry.add(data.len() as u64);
        Some((Ok(Frame::data(data)), Some((arriving, entry))))
    });
    StreamBody::new(stream).boxed_unsync()
}

/// The place in the ledger where one answer's bytes are counted.
pub(super) struct Entry {
    state: Arc<State>,
    access: Access,
    /// Number of resets when it was entered, and its place among the accesses since then.
    entered: (u64, usize),
    /// Where in the blob the next byte is.
    offset: u64,
    /// Bytes of this answer that have left.
    passed: u64,
}

impl Entry {
    pub(super) fn new(state: Arc<State>, access: Access, offset: u64) -> Self {
        let entered = state.ledger.lock().unwrap().enter(&access);
        Self { state, access, entered, offset, passed: 0 }
    }

    fn add(&mut self, bytes: u64) {
        let mut ledger = self.state.ledger.lock().unwrap();
        if ledger.resets != self.entered.0 {
            self.entered = ledger.enter(&self.access);
        }
        ledger.counts.accesses[self.entered.1].bytes += bytes;
        if let Some(digest) = self.access.blob().filter(|_| self.access.method == Method::GET) {
            let unique = ledger.counts.unique.entry(digest.to_owned()).or_default();
            unique.insert(ByteRange::at(self.offset, bytes));
        }
        self.offset += bytes;
        self.passed += bytes;
    }
}

impl Ledger {
    fn enter(&mut self, access: &Access) -> (u64, usize) {
        self.counts.accesses.push(access.clone());
        (self.resets, self.counts.accesses.len() - 1)
    }
}

/// Makes an answer that begins at `offset` of a blob say that the blob has `len` bytes; answers how many it now has.
pub(super) fn shorten(response: &mut Answer, offset: u64, len: u64) -> u64 {
    let announced = text(response.headers(), header::CONTENT_LENGTH).and_then(|text| text.parse().ok());
    let left = len.saturating_sub(offset).min(announced.unwrap_or(u64::MAX));
    if response.status() == StatusCode::PARTIAL_CONTENT && left == 0 {
        *response = Response::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
        *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
    } else if response.status() == StatusCode::PARTIAL_CONTENT {
        let range = format!("bytes {offset}-{}/{len}", offset + left - 1);
        response.headers_mut().insert(header::CONTENT_RANGE, range.parse().expect("a field"));
    }
    response.headers_mut().insert(header::CONTENT_LENGTH, left.into());
    left
}

/// The first byte of a partial answer: `bytes 100-199/5000`.
pub(super) fn range_start(headers: &HeaderMap) -> u64 {
    text(headers, header::CONTENT_RANGE)
        .and_then(|value| value.strip_prefix("bytes ")?.split('-').next()?.parse().ok())
        .unwrap_or(0)
}
