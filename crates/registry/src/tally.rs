//! Which hosts were asked, and how often that went well: whether a mirror is used shows here.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Hosts that are told apart; a node asks a handful. What lies beyond is counted together.
const MOST: usize = 64;
/// The name of those.
const OTHERS: &str = "others";

/// What was asked of one host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostAsked {
    /// Host and port.
    pub host: String,
    /// Whether it was asked in a registry's place.
    pub mirror: bool,
    /// Requests that it answered: with less than 500, and with anything but 429.
    pub answered: u64,
    /// Those that it did not.
    pub failed: u64,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Tally(Mutex<HashMap<(String, bool), (u64, u64)>>);

impl Tally {
    /// A host was asked.
    pub(crate) fn note(&self, host: String, mirror: bool, answered: bool) {
        let mut hosts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (host, mirror);
        let key =
            if hosts.len() < MOST || hosts.contains_key(&key) { key } else { (OTHERS.to_owned(), mirror) };
        let (well, badly) = hosts.entry(key).or_default();
        *(if answered { well } else { badly }) += 1;
    }

    /// By name.
    pub(crate) fn all(&self) -> Vec<HostAsked> {
        let hosts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = hosts.iter().map(|((host, mirror), (answered, failed))| HostAsked {
            host: host.clone(),
            mirror: *mirror,
            answered: *answered,
            failed: *failed,
        });
        let mut asked: Vec<HostAsked> = asked.collect();
        asked.sort_by(|a, b| (&a.host, a.mirror).cmp(&(&b.host, b.mirror)));
        asked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_told_apart_up_to_a_bound() {
        let tally = Tally::default();
        for number in 0..100 {
            tally.note(format!("h{number}"), true, number % 2 == 0);
        }
        tally.note("h1".into(), true, true);
        let all = tally.all();
        assert_eq!(all.len(), MOST + 1);
        let of = |name: &str| {
            all.iter().find(|asked| asked.host == name).map(|asked| (asked.answered, asked.failed))
        };
        assert_eq!(of("h1"), Some((1, 1)));
        assert_eq!(of(OTHERS), Some((18, 18)));
    }
}
