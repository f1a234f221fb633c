//! The end of a blob, asked for before its length is known: one request brings both, at most servers.

use bytes::{Bytes, BytesMut};
use content::{ByteRange, Tail, Urgency};
use http::{HeaderMap, Method, StatusCode};

use crate::answer::{next_chunk, status_error};
use crate::client::no_hosts;
use crate::error::RegistryError;
use crate::hosts::{Endpoint, Need};
use crate::origin::RegistryBlob;
use crate::ranges::{content_length, part_of, total_of_unsatisfied};
use crate::retry::{Patience, Retry};
use crate::transport::Response;
use crate::upstreams::name_of;

/// A blob up to this length that comes whole instead of its tail is read to its end: a second request
/// would cost more.
const WHOLE_IS_FINE: u64 = 256 << 10;

/// What asking for a tail brought.
pub(super) enum TailAnswer {
    Tail(Tail),
    Length(u64),
}

impl RegistryBlob {
    /// The tail at one host, or at least the length.
    async fn tail_at(
        &self,
        doing: &str,
        endpoint: &Endpoint,
        at_most: u64,
        patience: Patience,
    ) -> Result<TailAnswer, RegistryError> {
        let response = if at_most == 0 {
            return self.length_at(doing, endpoint, patience).await;
        } else {
            self.get(doing, endpoint, Some(&format!("bytes=-{at_most}")), patience).await
        };
        let response = match response {
            Ok(response) => response,
            // What servers say that know ranges, and not this form of them.
            Err(RegistryError::Status { status: 400 | 405 | 501, .. }) => {
                return self.length_at(doing, endpoint, patience).await;
            }
            Err(error) => return Err(error),
        };
        let corrupt = |reason: String| RegistryError::Corrupt {
            doing: doing.to_owned(),
            host: name_of(&endpoint.base),
            reason,
        };
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            return match total_of_unsatisfied(response.headers()) {
                Some(0) => {
                    self.learn(0).map_err(corrupt)?;
                    Ok(TailAnswer::Tail(Tail { len: 0, bytes: Bytes::new() }))
                }
                _ => self.length_at(doing, endpoint, patience).await,
            };
        }
        let part = part_of(response.status(), response.headers()).map_err(corrupt)?;
        if let Some(total) = part.total {
            self.learn(total).map_err(corrupt)?;
        }
        match (response.status(), part.total) {
            (StatusCode::OK, Some(total)) if total > at_most.max(WHOLE_IS_FINE) => {
                Ok(TailAnswer::Length(total))
            }
            (StatusCode::OK, _) => {
                self.whole_tail(doing, response, at_most, patience).await.map(TailAnswer::Tail)
            }
            (_, Some(total)) if part.range == ByteRange::new(total.saturating_sub(at_most), total) => {
                let bytes = read_exactly(doing, response, part.range.len(), patience).await?;
                Ok(TailAnswer::Tail(Tail { len: total, bytes }))
            }
            (_, Some(total)) => Ok(TailAnswer::Length(total)),
            (_, None) => self.length_at(doing, endpoint, patience).await,
        }
    }

    /// The end of a body that holds the whole blob, which may not say how long it is.
    async fn whole_tail(
        &self,
        doing: &str,
        mut response: Response,
        at_most: u64,
        patience: Patience,
    ) -> Result<Tail, RegistryError> {
        let at_most = usize::try_from(at_most).unwrap_or(usize::MAX);
        let mut len = 0;
        let mut end = BytesMut::new();
        while let Some(chunk) = next_chunk(doing, &mut response, patience.answer).await? {
            len += chunk.len() as u64;
            end.extend_from_slice(&chunk);
            if end.len() > at_most.saturating_mul(2).max(1 << 20) {
                let _ = end.split_to(end.len() - at_most);
            }
        }
        let host = name_of(response.url());
        self.learn(len).map_err(|reason| RegistryError::Corrupt { doing: doing.to_owned(), host, reason })?;
        let _ = end.split_to(end.len().saturating_sub(at_most));
        Ok(Tail { len, bytes: end.freeze() })
    }

    async fn length_at(
        &self,
        doing: &str,
        endpoint: &Endpoint,
        patience: Patience,
    ) -> Result<TailAnswer, RegistryError> {
        let response = self.ask(doing, endpoint, Method::HEAD, HeaderMap::new(), patience).await?;
        if response.status() != StatusCode::OK {
            return Err(status_error(doing, response).await);
        }
        let corrupt = |reason: String| RegistryError::Corrupt {
            doing: doing.to_owned(),
            host: name_of(response.url()),
            reason,
        };
        let length = content_length(response.headers()).map_err(corrupt)?;
        let length = length.ok_or_else(|| corrupt("no length of the blob".to_owned()))?;
        self.learn(length).map_err(corrupt)?;
        Ok(TailAnswer::Length(length))
    }

    /// The tail or the length, from whichever host gives it.
    pub(super) async fn tail_anywhere(&self, at_most: u64) -> Result<TailAnswer, RegistryError> {
        let doing = self.doing();
        let patience = self.client.inner.patience(Patience::of(Urgency::Blocking));
        let mut retry = Retry::new(patience);
        loop {
            let (doing, endpoints) = (doing.as_str(), self.endpoints(None)?);
            let ask =
                |endpoint: Endpoint| async move { self.tail_at(doing, &endpoint, at_most, patience).await };
            let error = match self.client.inner.race(&endpoints, patience.answer, ask).await {
                Ok(Some(answer)) => return Ok(answer),
                Ok(None) => no_hosts(&self.registry, Need::Pull),
                Err(error) => error,
            };
            retry.pause(self.client.inner.transport.counters(), error).await?;
        }
    }
}

async fn read_exactly(
    doing: &str,
    mut response: Response,
    len: u64,
    patience: Patience,
) -> Result<Bytes, RegistryError> {
    let mut bytes = BytesMut::new();
    while let Some(chunk) = next_chunk(doing, &mut response, patience.answer).await? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() as u64 > len {
            break;
        }
    }
    if bytes.len() as u64 == len {
        return Ok(bytes.freeze());
    }
    let reason = format!("a body of {} bytes instead of {len}", bytes.len());
    Err(RegistryError::Corrupt { doing: doing.to_owned(), host: name_of(response.url()), reason })
}
