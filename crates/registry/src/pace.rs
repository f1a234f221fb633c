//! How fast hosts answer, and when a second question is worth its cost.
//!
//! Of each host the last answers are remembered: how long their heads took. A host that is silent for longer than
//! nearly all of them is *hedged*: another one is asked too (or the same one over a new connection), and whoever
//! answers first is read. Hedges pay from a budget that requests fill, so that a host whose answers merely vary
//! is not asked twice as much. Without a budget, a host that is silent for much longer is still not waited for alone.
//!
//! Two questions may also be asked because the first host lied: who sent wrong bytes of a blob is asked last for it.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use content::Digest;
use tokio::time::Instant;

/// Answers that are remembered of a host.
const REMEMBERED: usize = 64;
/// Fewer answers than this say nothing about the next.
const ENOUGH: usize = 8;
/// Hosts that are remembered.
const HOSTS: usize = 256;
/// A hedge is sent no sooner, however fast a host was so far: a pause of its garbage collector is no failure.
const SOONEST: Duration = Duration::from_millis(150);
/// And no later, if there is a budget: a frozen host with another beside it costs a reader a second.
const LATEST: Duration = Duration::from_secs(1);
/// In thousandths of a hedge: what a request brings (so that hedges are at most 5 % of them), what is there in the
/// beginning, and the most that is saved.
const PER_REQUEST: u32 = 50;
const AT_FIRST: u32 = 4_000;
const SAVED: u32 = 8_000;
const HEDGE: u32 = 1_000;
/// A host that lost so many races in a row does not answer.
const LOSSES: u32 = 3;
/// How long a host that lied about a blob is asked last for it.
const DISTRUST: Duration = Duration::from_mins(5);
/// Lies that are remembered.
const LIES: usize = 1024;

/// What is known of all hosts.
#[derive(Debug)]
pub(crate) struct Pace(Mutex<State>);

#[derive(Debug)]
struct State {
    hosts: HashMap<String, Host>,
    budget: u32,
    lies: HashMap<(String, Digest), Instant>,
}

#[derive(Debug, Default)]
struct Host {
    /// Milliseconds.
    heads: VecDeque<u32>,
    losses: u32,
}

impl Default for Pace {
    fn default() -> Self {
        let state = State { hosts: HashMap::new(), budget: AT_FIRST, lies: HashMap::new() };
        Self(Mutex::new(state))
    }
}

impl Pace {
    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn with_host<T>(&self, host: &str, work: impl FnOnce(&mut Host) -> T) -> T {
        self.with(|state| {
            if state.hosts.len() >= HOSTS && !state.hosts.contains_key(host) {
                state.hosts.clear();
            }
            work(state.hosts.entry(host.to_owned()).or_default())
        })
    }

    /// A request is made that somebody waits for, and that is no hedge.
    pub(crate) fn asked(&self) {
        self.with(|state| state.budget = (state.budget + PER_REQUEST).min(SAVED));
    }

    /// Takes a hedge from the budget, if there is one.
    pub(crate) fn may_hedge(&self) -> bool {
        self.with(|state| {
            let left = state.budget.checked_sub(HEDGE);
            state.budget = left.unwrap_or(state.budget);
            left.is_some()
        })
    }

    /// The head of an answer of `host` took so long.
    pub(crate) fn answered(&self, host: &str, after: Duration) {
        let after = u32::try_from(after.as_millis()).unwrap_or(u32::MAX);
        self.with_host(host, |host| {
            host.losses = 0;
            host.heads.push_back(after);
            if host.heads.len() > REMEMBERED {
                host.heads.pop_front();
            }
        });
    }

    /// Another host answered while this one was silent. Whether that happened too often.
    pub(crate) fn lost(&self, host: &str, after: Duration) -> bool {
        let after = u32::try_from(after.as_millis()).unwrap_or(u32::MAX);
        self.with_host(host, |host| {
            // It would have taken longer: counted for what is known.
            host.heads.push_back(after);
            if host.heads.len() > REMEMBERED {
                host.heads.pop_front();
            }
            host.losses += 1;
            host.losses >= LOSSES
        })
    }

    /// How long `host` may be silent before a hedge is sent: what nearly all of its answers took, and a quarter more.
    pub(crate) fn hedge_after(&self, host: &str) -> Duration {
        self.slow(host).map_or(LATEST, |slow| (slow * 5 / 4).clamp(SOONEST, LATEST))
    }

    /// How long `host` may be silent before somebody else is asked whatever the budget says.
    pub(crate) fn give_up_after(&self, host: &str, answer: Duration) -> Duration {
        // A registry whose usual answer takes a second is slow and not dead.
        let slow = self.slow(host).map_or(Duration::ZERO, |slow| slow * 2);
        slow.clamp(answer / 5, answer)
    }

    /// The 95th percentile of what the last answers took.
    fn slow(&self, host: &str) -> Option<Duration> {
        let mut heads: Vec<u32> =
            self.with(|state| state.hosts.get(host).map(|host| host.heads.iter().copied().collect()))?;
        if heads.len() < ENOUGH {
            return None;
        }
        let at = heads.len() * 19 / 20;
        let (_, slow, _) = heads.select_nth_unstable(at);
        Some(Duration::from_millis((*slow).into()))
    }

    /// `host` sent wrong bytes of a blob.
    pub(crate) fn lied(&self, host: &str, blob: Digest) {
        let now = Instant::now();
        self.with(|state| {
            if state.lies.len() >= LIES {
                state.lies.retain(|_, until| *until > now);
            }
            if state.lies.len() < LIES {
                state.lies.insert((host.to_owned(), blob), now + DISTRUST);
            }
        });
    }

    /// Whether `host` sent wrong bytes of a blob a short time ago.
    pub(crate) fn has_lied(&self, host: &str, blob: Digest) -> bool {
        let now = Instant::now();
        self.with(|state| {
            !state.lies.is_empty()
                && state.lies.get(&(host.to_owned(), blob)).is_some_and(|until| *until > now)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hedge_waits_for_what_the_host_usually_takes() {
        let pace = Pace::default();
        assert_eq!(pace.hedge_after("a"), LATEST);
        for _ in 0..20 {
            pace.answered("a", Duration::from_millis(2));
        }
        assert_eq!(pace.hedge_after("a"), SOONEST);
        for _ in 0..64 {
            pace.answered("a", Duration::from_millis(400));
        }
        assert_eq!(pace.hedge_after("a"), Duration::from_millis(500));
        let answer = Duration::from_secs(5);
        assert_eq!(pace.give_up_after("a", answer), Duration::from_secs(1));
        for _ in 0..64 {
            pace.answered("a", Duration::from_mins(1));
        }
        assert_eq!((pace.hedge_after("a"), pace.give_up_after("a", answer)), (LATEST, answer));
    }

    #[test]
    fn hedges_are_one_in_twenty_once_the_first_are_spent() {
        let pace = Pace::default();
        let mut hedges = 0;
        for _ in 0..10_000 {
            pace.asked();
            hedges += u32::from(pace.may_hedge());
        }
        assert!((500..=505).contains(&hedges), "{hedges}");
    }

    #[test]
    fn a_host_that_always_loses_does_not_answer() {
        let pace = Pace::default();
        let short = Duration::from_millis(150);
        assert!(!pace.lost("a", short) && !pace.lost("a", short) && pace.lost("a", short));
        pace.answered("a", short);
        assert!(!pace.lost("a", short));
    }
}
