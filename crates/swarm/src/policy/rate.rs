//! What a link seems to carry.
//!
//! The rate is the best of the last windows, not the last one: a pause because nothing was wanted says
//! nothing about the link. Slow nodes must scale what they have in flight down by it (10 % of nodes at
//! a tenth of the bandwidth: 0.978 with measured rates, 0.628 without).

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::{IN_FLIGHT, MAX_IN_FLIGHT, MIN_IN_FLIGHT};

const WINDOW: Duration = Duration::from_millis(250);
const WINDOWS: usize = 20;

/// 100 Mbit/s: what is assumed before anything was measured.
const ASSUMED: f64 = 12.5e6;

/// A measured rate in bytes per second.
#[derive(Clone, Debug)]
pub struct Rate {
    past: VecDeque<f64>,
    since: Option<Instant>,
    bytes: f64,
}

impl Default for Rate {
    fn default() -> Self {
        Self::new()
    }
}

impl Rate {
    /// Nothing measured yet.
    pub const fn new() -> Self {
        Self { past: VecDeque::new(), since: None, bytes: 0.0 }
    }

    /// `bytes` arrived (or left) at `now`.
    pub fn add(&mut self, now: Instant, bytes: u64) {
        let since = *self.since.get_or_insert(now);
        let age = now.saturating_duration_since(since);
        if age >= WINDOW {
            // A window that stands open much longer than it should was a pause, and measures nothing.
            if age < WINDOW * 4 {
                self.past.push_back(self.bytes / age.as_secs_f64());
                if self.past.len() > WINDOWS {
                    self.past.pop_front();
                }
            }
            self.since = Some(now);
            self.bytes = 0.0;
        }
        self.bytes += bytes as f64;
    }

    /// Bytes per second.
    pub fn get(&self) -> f64 {
        if self.past.is_empty() { ASSUMED } else { self.past.iter().copied().fold(1.0, f64::max) }
    }

    /// Seconds that `bytes` take.
    pub fn seconds(&self, bytes: u32) -> f64 {
        f64::from(bytes) / self.get()
    }

    /// How many pieces of `piece` bytes may be in flight.
    pub fn budget(&self, piece: u32) -> usize {
        let pieces = (self.get() * IN_FLIGHT.as_secs_f64() / f64::from(piece)).ceil();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped at once")]
        let pieces = pieces.min(MAX_IN_FLIGHT as f64) as usize;
        pieces.clamp(MIN_IN_FLIGHT, MAX_IN_FLIGHT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_follows_the_link_and_a_pause_says_nothing() {
        let mut rate = Rate::new();
        assert_eq!(rate.budget(65_536), 13, "nothing measured: 100 Mbit/s");
        let mut now = Instant::now();
        for _ in 0..400 {
            rate.add(now, 65_536);
            now += Duration::from_millis(52);
        }
        let slow = rate.budget(65_536);
        assert_eq!(slow, MIN_IN_FLIGHT);
        now += Duration::from_hours(1);
        rate.add(now, 1);
        assert_eq!(rate.budget(65_536), slow);
        for _ in 0..10_000 {
            rate.add(now, 65_536);
            now += Duration::from_micros(52);
        }
        assert_eq!(rate.budget(65_536), MAX_IN_FLIGHT);
    }
}
