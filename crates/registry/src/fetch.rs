//! The bytes of one range as they arrive, over as many requests as it takes.

use std::pin::pin;

use bytes::Bytes;
use content::{ByteRange, Urgency};
use futures::future::Either;
use http::StatusCode;
use tokio::time::Instant;

use crate::answer::next_chunk;
use crate::client::no_hosts;
use crate::error::RegistryError;
use crate::hosts::{Endpoint, Need};
use crate::origin::{RegistryBlob, is_page};
use crate::ranges::{part_of, total_of_unsatisfied};
use crate::retry::{Patience, Retry};
use crate::transport::Response;
use crate::upstreams::name_of;

/// A range that is being fetched. `rest` shrinks as bytes are given out.
pub(crate) struct Fetch {
    rest: ByteRange,
    patience: Patience,
    retry: Retry,
    body: Option<Body>,
}

/// The answer that is being read.
struct Body {
    response: Response,
    endpoint: Endpoint,
    /// Bytes before the range: of a server that ignored it.
    skip: u64,
    /// Bytes of the range that this answer holds.
    left: u64,
}

/// What came of waiting for the next part of a body.
enum Part {
    Came(Result<Option<Bytes>, RegistryError>),
    /// Another answer, for what is left.
    Elsewhere(Box<Body>),
}

impl Fetch {
    pub(crate) fn new(blob: &RegistryBlob, range: ByteRange, urgency: Urgency) -> Self {
        let patience = blob.client().inner.patience(Patience::of(urgency));
        Self { rest: range, patience, retry: Retry::new(patience), body: None }
    }

    /// The next bytes; `None` after the last.
    pub(crate) async fn next(&mut self, blob: &RegistryBlob) -> Result<Option<Bytes>, RegistryError> {
        let doing = blob.doing();
        while !self.rest.is_empty() {
            let mut body = match self.body.take() {
                Some(body) => body,
                None => self.open(blob, &doing, None).await?,
            };
            let part = match self.part(blob, &doing, &mut body).await? {
                Part::Came(part) => part,
                Part::Elsewhere(other) => {
                    self.body = Some(*other);
                    continue;
                }
            };
            let error = match part {
                Ok(Some(chunk)) => {
                    let bytes = body.take(chunk);
                    let part = ByteRange::at(self.rest.start, bytes.len() as u64);
                    blob.served(part, &body.endpoint);
                    if body.left > 0 {
                        self.body = Some(body);
                    }
                    if bytes.is_empty() {
                        continue;
                    }
                    self.rest.start = part.end;
                    self.retry.progressed();
                    return Ok(Some(bytes));
                }
                Ok(None) => RegistryError::Corrupt {
                    doing: doing.clone(),
                    host: name_of(body.response.url()),
                    reason: format!("a body that ends {} bytes early", body.skip + body.left),
                },
                Err(error) => error,
            };
            let inner = &blob.client().inner;
            inner.aside.failed(&body.endpoint, Instant::now());
            self.retry.pause(inner.transport.counters(), error).await?;
        }
        self.body = None;
        Ok(None)
    }

    /// The next part of a body. If it does not come soon, the rest is asked for elsewhere as well, and what
    /// comes first is taken: a frozen host is not waited for, and a slow one is not cut off.
    async fn part(&self, blob: &RegistryBlob, doing: &str, body: &mut Body) -> Result<Part, RegistryError> {
        let endpoint = body.endpoint.clone();
        let mut part = pin!(next_chunk(doing, &mut body.response, self.patience.answer));
        let soon = tokio::time::timeout(self.patience.answer / 5, &mut part).await;
        if let Ok(came) = soon {
            return Ok(Part::Came(came));
        }
        let inner = &blob.client().inner;
        inner.transport.counters().hedged();
        let other = pin!(self.open_once(blob, doing, Some(&endpoint)));
        match futures::future::select(part, other).await {
            Either::Left((came, _)) => Ok(Part::Came(came)),
            Either::Right((Ok(other), _)) => {
                inner.aside.failed(&endpoint, Instant::now());
                Ok(Part::Elsewhere(Box::new(other)))
            }
            Either::Right((Err(_), part)) => Ok(Part::Came(part.await)),
        }
    }

    /// An answer that holds the next bytes, from whichever host gives one.
    async fn open(
        &mut self,
        blob: &RegistryBlob,
        doing: &str,
        silent: Option<&Endpoint>,
    ) -> Result<Body, RegistryError> {
        loop {
            match self.open_once(blob, doing, silent).await {
                Ok(body) => return Ok(body),
                Err(error) => self.retry.pause(blob.client().inner.transport.counters(), error).await?,
            }
        }
    }

    /// The same, if one of them gives it now.
    async fn open_once(
        &self,
        blob: &RegistryBlob,
        doing: &str,
        silent: Option<&Endpoint>,
    ) -> Result<Body, RegistryError> {
        let inner = &blob.client().inner;
        let endpoints = blob.endpoints(silent)?;
        let ask = |endpoint: Endpoint| async move {
            let opened = self.open_at(blob, doing, endpoint.clone()).await;
            if matches!(opened, Err(RegistryError::Corrupt { .. })) {
                inner.aside.failed(&endpoint, Instant::now());
            }
            opened
        };
        let opened = inner.race(&endpoints, self.patience.answer, ask).await?;
        opened.ok_or_else(|| no_hosts(blob.registry(), Need::Pull))
    }

    async fn open_at(
        &self,
        blob: &RegistryBlob,
        doing: &str,
        endpoint: Endpoint,
    ) -> Result<Body, RegistryError> {
        let header = format!("bytes={}-{}", self.rest.start, self.rest.end - 1);
        let response = blob.get(doing, &endpoint, Some(&header), self.patience).await?;
        let host = name_of(response.url());
        let corrupt = |reason: String| RegistryError::Corrupt { doing: doing.to_owned(), host, reason };
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            let has = total_of_unsatisfied(response.headers());
            let has = has.map_or_else(|| "fewer".to_owned(), |total| format!("only {total}"));
            return Err(corrupt(format!("that it has {has} bytes, when asked for {}", self.rest)));
        }
        if is_page(response.headers()) {
            return Err(corrupt("a web page".to_owned()));
        }
        let part = match part_of(response.status(), response.headers()) {
            Ok(part) => part,
            Err(reason) => return Err(corrupt(reason)),
        };
        if let Some(Err(reason)) = part.total.map(|total| blob.learn(total)) {
            return Err(corrupt(reason));
        }
        // A 206 must begin where it was asked to; a 200 begins at 0 and is read up to there.
        let misplaced =
            response.status() == StatusCode::PARTIAL_CONTENT && part.range.start != self.rest.start;
        let useful = part.range.intersect(&self.rest);
        if misplaced || useful.is_empty() {
            return Err(corrupt(format!("the bytes {} when asked for {}", part.range, self.rest)));
        }
        let skip = self.rest.start - part.range.start;
        Ok(Body { response, endpoint, skip, left: useful.len() })
    }
}

impl Body {
    /// The part of `chunk` that belongs to the range.
    fn take(&mut self, mut chunk: Bytes) -> Bytes {
        let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(chunk.len());
        self.skip -= skipped as u64;
        let mut bytes = chunk.split_off(skipped);
        bytes.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.left -= bytes.len() as u64;
        bytes
    }
}
