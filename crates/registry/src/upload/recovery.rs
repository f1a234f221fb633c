//! The way back after a failure: how much the registry holds, and what to do about what it has lost.

use http::header::RANGE;
use http::{HeaderValue, Method};

use crate::answer::status_error;
use crate::ask::Ask;
use crate::error::RegistryError;
use crate::push::ask;
use crate::retry::Retry;
use crate::upload::{Upload, UploadError};

/// A registry that loses more of one upload than this often will lose the next one too.
const MAX_LOST: u32 = 5;

/// What the registry holds of a session.
pub(super) enum Held {
    Bytes(u64),
    /// It does not know the session, with its words.
    Nothing(RegistryError),
}

impl Upload {
    /// Asks how much of the session the registry holds.
    pub(super) async fn held(&mut self) -> Result<Held, RegistryError> {
        let (url, trust) = self.at.clone();
        let auth = self.auth();
        let mut retry = Retry::new(self.patience());
        let answer = loop {
            let question = Ask { trust, ..ask(&self.doing, &self.endpoint, Method::GET, url.clone(), &auth) };
            let error = match self.client.inner.ask(question).await {
                Ok(answer) if answer.status().is_success() => break answer,
                Ok(refused) => status_error(&self.doing, refused).await,
                Err(error) => error,
            };
            // A registry that cannot tell is as good as one that does not know.
            if is_gone(&error) || matches!(error.status(), Some(405 | 501)) {
                return Ok(Held::Nothing(error));
            }
            retry.pause(self.client.inner.transport.counters(), error).await?;
        };
        self.move_to(&answer)?;
        match answer.headers().get(RANGE) {
            Some(value) => Ok(Held::Bytes(self.read_range(value)?)),
            None => Ok(Held::Nothing(self.corrupt("no word on how much of the upload it has".to_owned()))),
        }
    }

    /// Goes on where the registry is, if what is missing there is still at hand.
    pub(super) async fn catch_up(&mut self) -> Result<(), UploadError> {
        let held = self.held().await?;
        self.go_on(held).await
    }

    pub(super) async fn go_on(&mut self, held: Held) -> Result<(), UploadError> {
        match held {
            Held::Bytes(held) if held >= self.position && held <= self.position + self.waiting.len => {
                self.waiting.release(held - self.position);
                self.position = held;
                Ok(())
            }
            Held::Bytes(held) => {
                let reason = format!("that it holds {held} bytes, after it acknowledged {}", self.position);
                Err(self.lost(self.corrupt(reason)))
            }
            Held::Nothing(reason) => self.start_over(reason).await,
        }
    }

    /// The session is lost. With everything at hand a new one takes its place; else the caller has to know.
    pub(super) async fn start_over(&mut self, reason: RegistryError) -> Result<(), UploadError> {
        match self.lost(reason) {
            UploadError::Lost(reason) if self.position == 0 => Ok(self.reopen(&reason).await?),
            error => Err(error),
        }
    }

    /// Counts a loss. One too many is a failure.
    fn lost(&mut self, reason: RegistryError) -> UploadError {
        self.lost += 1;
        if self.lost > MAX_LOST { UploadError::Failed(reason) } else { UploadError::Lost(reason) }
    }

    pub(super) async fn reopen(&mut self, reason: &RegistryError) -> Result<(), RegistryError> {
        tracing::debug!(%reason, position = self.position, "the upload is begun anew");
        let (doing, reference) = (&self.doing, &self.reference);
        let opened =
            self.client.open_session(doing, reference, &self.endpoint, &self.auth, self.patience()).await;
        (self.at, self.chunk) = opened?;
        self.position = 0;
        Ok(())
    }

    /// `0-9` means ten bytes; `0-0` is also what registries say that hold none.
    pub(super) fn read_range(&self, value: &HeaderValue) -> Result<u64, RegistryError> {
        let text = value.to_str().unwrap_or_default().trim();
        let span = text.strip_prefix("bytes=").unwrap_or(text);
        let last = span.strip_prefix("0-").and_then(|last| last.parse::<u64>().ok());
        match last.and_then(|last| last.checked_add(1)) {
            Some(1) => Ok(self.position.min(1)),
            Some(held) => Ok(held),
            None => Err(self.corrupt(format!("the Range {text:?} of an upload"))),
        }
    }
}

/// Whether the registry does not know the session (any more), or not in this state.
pub(super) fn is_gone(error: &RegistryError) -> bool {
    match error {
        RegistryError::Status { status: 404 | 410, .. } => true,
        RegistryError::Status { status: 400 | 416, detail, .. } => detail.starts_with("BLOB_UPLOAD_"),
        _ => false,
    }
}
