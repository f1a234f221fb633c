//! Who may read what: the registry's word, remembered for minutes.
//!
//! A blob in the cluster's cache is served to a caller only after the registry has accepted that caller's
//! own credentials (or their absence) for that blob in that repository. Two things are such a word: a
//! manifest that the registry gave for these credentials lists the blob, or the registry answered a `HEAD`
//! for it. Everything else is "no".
//!
//! Grants are keyed by a hash over registry, repository, digest and the exact `Authorization` header, so
//! that no secret is kept. Callers that ask for the same grant at the same time share one question.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use content::Digest;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use http::HeaderValue;
use sha2::{Digest as _, Sha256};

/// How long a word is good. Credentials that are withdrawn keep working for at most twice this time.
const LIFE: Duration = Duration::from_mins(2);
/// Grants kept in one generation: with two generations less than 10 MB.
const MAX_GRANTS: usize = 32_768;

/// Who wants what.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Key([u8; 32]);

impl Key {
    pub(crate) fn new(
        registry: &str,
        repository: &str,
        digest: &Digest,
        authorization: Option<&HeaderValue>,
    ) -> Self {
        let mut hasher = Sha256::new();
        // The absence of credentials is a credential like any other, and not the same as an empty one.
        let present: &[u8] = if authorization.is_some() { b"1" } else { b"0" };
        let secret = authorization.map(HeaderValue::as_bytes).unwrap_or_default();
        for part in [registry.as_bytes(), repository.as_bytes(), digest.as_bytes(), present, secret] {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        Self(hasher.finalize().into())
    }
}

/// The registry's word: the blob may be read, and perhaps how long it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Grant {
    pub size: Option<u64>,
}

/// The answer to a question for a grant: `None` if the registry does not give it.
pub(crate) type Asked = Shared<BoxFuture<'static, Option<Grant>>>;

/// The grants at hand.
#[derive(Default)]
pub(crate) struct Grants {
    generations: Mutex<Generations>,
    asking: Mutex<HashMap<Key, Asked>>,
}

/// Grants go with their generation: nothing is searched for the oldest.
#[derive(Default)]
struct Generations {
    young: HashMap<Key, Grant>,
    old: HashMap<Key, Grant>,
    since: Option<Instant>,
}

impl Generations {
    fn turn(&mut self, now: Instant) {
        let age = self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        if age >= LIFE * 2 {
            self.young.clear();
            self.old.clear();
            self.since = Some(now);
        } else if age >= LIFE || self.young.len() >= MAX_GRANTS {
            self.old = std::mem::take(&mut self.young);
            self.since = Some(now);
        }
        self.since.get_or_insert(now);
    }
}

impl Grants {
    pub(crate) fn give(&self, key: Key, grant: Grant, now: Instant) {
        let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        generations.turn(now);
        generations.young.insert(key, grant);
    }

    pub(crate) fn get(&self, key: &Key, now: Instant) -> Option<Grant> {
        let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        generations.turn(now);
        generations.young.get(key).or_else(|| generations.old.get(key)).copied()
    }

    pub(crate) fn take_back(&self, key: &Key) {
        let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        generations.young.remove(key);
        generations.old.remove(key);
    }

    /// The question for `key` that is under way, or the one that `ask` makes.
    pub(crate) fn question(
        &self,
        key: Key,
        ask: impl FnOnce() -> BoxFuture<'static, Option<Grant>>,
    ) -> Asked {
        let mut asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        asking.entry(key).or_insert_with(|| ask().shared()).clone()
    }

    /// The question for `key` was answered.
    pub(crate) fn answered(&self, key: &Key) {
        self.asking.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(authorization: Option<&'static str>) -> Key {
        let header = authorization.map(HeaderValue::from_static);
        Key::new("r.example", "team/app", &Digest::of(b"blob"), header.as_ref())
    }

    #[test]
    fn a_grant_is_for_one_caller_one_blob_and_some_minutes() {
        let grants = Grants::default();
        let start = Instant::now();
        let grant = Grant { size: Some(1) };
        grants.give(key(Some("Bearer a")), grant, start);
        assert_eq!(grants.get(&key(Some("Bearer a")), start), Some(grant));
        assert_eq!(grants.get(&key(Some("Bearer b")), start), None);
        assert_eq!(grants.get(&key(None), start), None);
        assert_eq!(grants.get(&key(Some("")), start), None);
        let other = Key::new("r.example", "team/other", &Digest::of(b"blob"), None);
        assert_eq!(grants.get(&other, start), None);
        assert_eq!(grants.get(&key(Some("Bearer a")), start + LIFE), Some(grant));
        assert_eq!(grants.get(&key(Some("Bearer a")), start + LIFE * 2), None);
        assert_eq!(grants.get(&key(Some("Bearer a")), start + LIFE * 5), None);
    }

    #[test]
    fn a_grant_is_taken_back_and_their_number_is_bounded() {
        let grants = Grants::default();
        let now = Instant::now();
        grants.give(key(None), Grant { size: None }, now);
        grants.take_back(&key(None));
        assert_eq!(grants.get(&key(None), now), None);
        for number in 0..MAX_GRANTS * 3 {
            let digest = Digest::of(&number.to_le_bytes());
            grants.give(Key::new("r", "a", &digest, None), Grant { size: None }, now);
        }
        let generations = grants.generations.lock().unwrap();
        assert!(generations.young.len() + generations.old.len() <= MAX_GRANTS * 2);
    }
}
