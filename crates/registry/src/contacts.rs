//! When a repository's blobs were last read, and a cheap way to find out whether they still can be.
//!
//! A container whose layers are not all here is better not started than stuck in its first read. So before it starts,
//! the places that have the bytes are asked, unless one of them answered a short time ago: with one byte of one blob,
//! at all hosts if need be. An image's layers lie in one repository behind the same hosts and need the same
//! credentials; those that are checked at once share the first one's answer.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use content::{Digest, Urgency};
use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};
use tokio::time::Instant;

use crate::ask::Auth;
use crate::client::{Client, no_hosts};
use crate::error::RegistryError;
use crate::hosts::{Endpoint, Need};
use crate::origin::{Asker, RegistryBlob};
use crate::reference::Reference;
use crate::retry::{Patience, Retry};
use crate::transport::Trust;

/// Repositories that are remembered. More than have running containers on one machine.
const MOST: usize = 4096;
/// How long a check goes on trying while hosts fail in a way that passes. Somebody waits for a container.
const CHECK: Duration = Duration::from_secs(4);
/// How many times in a row a check may find nobody to talk to: a restarting registry is given another moment.
const UNREACHABLE: u32 = 2;

/// Registry and repository.
type Key = (String, String);
type Check = BoxFuture<'static, Result<(), RegistryError>>;

/// When each repository's blobs were last read in this client's own name.
#[derive(Default)]
pub(crate) struct Contacts {
    last: Mutex<HashMap<Key, Instant>>,
    /// They belong to those who wait for them.
    checks: Mutex<HashMap<Key, WeakShared<Check>>>,
}

impl Contacts {
    /// A blob of `repository` was answered for.
    pub(crate) fn note(&self, registry: &str, repository: &str) {
        let now = Instant::now();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.len() >= MOST
            && let Some(oldest) = last.iter().min_by_key(|(_, at)| **at).map(|(key, _)| key.clone())
        {
            last.remove(&oldest);
        }
        last.insert((registry.to_owned(), repository.to_owned()), now);
    }

    fn is_younger(&self, key: &Key, age: Duration) -> bool {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.get(key).is_some_and(|at| at.elapsed() < age)
    }

    /// The check that is under way, or the one that `start` makes; and whether it was there.
    fn check(&self, key: &Key, start: impl FnOnce() -> Check) -> (Shared<Check>, bool) {
        let mut checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(check) = checks.get(key).and_then(WeakShared::upgrade) {
            return (check, true);
        }
        checks.retain(|_, check| check.upgrade().is_some());
        let check = start().shared();
        if let Some(weak) = check.downgrade() {
            checks.insert(key.clone(), weak);
        }
        (check, false)
    }
}

impl Client {
    /// Makes sure that blobs of the repository of `reference` can be read: at once if one was within `age`, else by
    /// asking for one byte of the blob `digest`, at mirrors and the registry as a read would. Ends within seconds.
    ///
    /// # Errors
    /// Why nobody gives it.
    pub async fn check_blob(
        &self,
        reference: &Reference,
        digest: &Digest,
        age: Duration,
    ) -> Result<(), RegistryError> {
        let contacts = &self.inner.contacts;
        let key = (reference.registry().to_owned(), reference.repository().to_owned());
        if contacts.is_younger(&key, age) {
            return Ok(());
        }
        let ask = || ask_for_a_byte(self.clone(), reference.clone(), *digest).boxed();
        let (check, joined) = contacts.check(&key, ask);
        match check.await {
            // It was about another blob.
            Err(_) if joined => ask().await,
            checked => checked,
        }
    }
}

async fn ask_for_a_byte(client: Client, reference: Reference, digest: Digest) -> Result<(), RegistryError> {
    let registry = reference.registry();
    let asker = Asker { auth: Auth::pull(reference.repository()), trust: Trust::Configured, mirrors: true };
    let base = client.inner.base(registry);
    let blob = RegistryBlob::new(client.clone(), registry, base, reference.repository(), digest, None, asker);
    let usual = client.inner.patience(Patience::of(Urgency::Blocking));
    let patience = Patience { total: CHECK.min(usual.total), unreachable: UNREACHABLE, ..usual };
    let mut retry = Retry::new(patience);
    loop {
        let doing = format!("looking whether {digest} of {registry}/{} can be had", reference.repository());
        let endpoints = blob.endpoints(None)?;
        let ask = |endpoint: Endpoint| {
            let (blob, doing) = (&blob, &doing);
            async move { blob.get(doing, &endpoint, Some("bytes=0-0"), patience).await.map(|_| ()) }
        };
        let error = match client.inner.race(&endpoints, patience.answer, ask).await {
            Ok(Some(())) => return Ok(()),
            Ok(None) => no_hosts(registry, Need::Pull),
            Err(error) => error,
        };
        retry.pause(client.inner.transport.counters(), error).await?;
    }
}

impl std::fmt::Debug for Contacts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Contacts")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_contact_ages_and_no_more_than_so_many_are_remembered() {
        let contacts = Contacts::default();
        let key = |number: usize| ("r.example".to_owned(), format!("a{number}"));
        contacts.note("r.example", "a0");
        assert!(contacts.is_younger(&key(0), Duration::from_mins(1)));
        assert!(!contacts.is_younger(&key(0), Duration::ZERO), "no interval: always asked");
        std::thread::sleep(Duration::from_millis(2));
        assert!(!contacts.is_younger(&key(0), Duration::from_millis(1)));
        for number in 1..=MOST {
            contacts.note("r.example", &format!("a{number}"));
        }
        assert_eq!(contacts.last.lock().unwrap().len(), MOST);
        assert!(contacts.is_younger(&key(MOST), Duration::from_mins(1)));
    }
}
