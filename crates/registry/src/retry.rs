//! How long, and how often, a request is tried again.
//!
//! Waits double from [`FIRST_WAIT`] up to [`LONGEST_WAIT`], each shortened by a random part so that nodes
//! that failed together do not come back together. A registry that names a time (`Retry-After`) is given
//! it. All of it ends at a deadline that depends on who waits; progress moves the deadline.

use std::time::{Duration, SystemTime};

use content::Urgency;
use http::HeaderMap;
use tokio::time::Instant;

use crate::error::RegistryError;
use crate::transport::Counters;

/// The first wait: long enough for a restarted process to listen again.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// No wait is longer, unless the registry asks for it.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// Wrong answers in a row after which nothing more is expected.
const MAX_WRONG: u32 = 3;

/// What a user says about trying again. The time that each kind of request has is a bound in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retries {
    /// Attempts after the first one, as long as none gets anywhere; `None` for as many as there is time for.
    pub most: Option<u32>,
    /// The first pause.
    pub first_wait: Option<Duration>,
    /// The longest pause.
    pub longest_wait: Option<Duration>,
}

/// The bounds of one kind of request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// For the head of an answer, and between two parts of its body.
    pub answer: Duration,
    /// Without any progress, over all attempts.
    pub total: Duration,
    /// How many attempts in a row may find nobody to talk to.
    pub unreachable: u32,
    pub retries: Retries,
}

impl Patience {
    /// Both times in seconds.
    const fn new(answer: u64, total: u64, unreachable: u32) -> Self {
        let retries = Retries { most: None, first_wait: None, longest_wait: None };
        let (answer, total) = (Duration::from_secs(answer), Duration::from_secs(total));
        Self { answer, total, unreachable, retries }
    }

    /// A process that sleeps in a read is told soon; what nobody waits for may take its time.
    pub(crate) const fn of(urgency: Urgency) -> Self {
        let (answer, total) = match urgency {
            Urgency::Blocking => (5, 20),
            Urgency::Prefetch => (15, 60),
            Urgency::Background => (30, 120),
        };
        Self::new(answer, total, u32::MAX)
    }

    /// An upload that has begun: the registry was there, and what was sent is worth waiting for a restart.
    pub(crate) const fn upload() -> Self {
        Self::new(30, 120, u32::MAX)
    }

    /// Manifests, tokens, the beginnings of uploads: somebody at a terminal, or containerd with its own time limit. A registry
    /// that is not there is told within seconds.
    pub(crate) const fn control() -> Self {
        Self::new(30, 60, 4)
    }
}

/// The state of one request that may be tried again.
#[derive(Debug)]
pub(crate) struct Retry {
    deadline: Instant,
    total: Duration,
    wait: Duration,
    unreachable: u32,
    unreachable_limit: u32,
    /// Answers in a row that were wrong. Waiting mends a broken host, not a wrong one.
    wrong: u32,
    /// No wait is longer: who has little time looks often.
    longest: Duration,
    /// The first wait, also after progress.
    first: Duration,
    /// Attempts in a row that got nowhere, and how many may.
    attempts: u32,
    most: u32,
}

impl Retry {
    pub(crate) fn new(patience: Patience) -> Self {
        let longest = (patience.total / 20).clamp(FIRST_WAIT * 4, LONGEST_WAIT);
        let longest = patience.retries.longest_wait.map_or(longest, |limit| limit.min(longest));
        let first = patience.retries.first_wait.unwrap_or(FIRST_WAIT).min(longest);
        Self {
            deadline: Instant::now() + patience.total,
            total: patience.total,
            wait: first,
            unreachable: 0,
            unreachable_limit: patience.unreachable,
            wrong: 0,
            longest,
            first,
            attempts: 0,
            most: patience.retries.most.unwrap_or(u32::MAX),
        }
    }

    /// Bytes arrived: the clock starts anew.
    pub(crate) fn progressed(&mut self) {
        self.deadline = Instant::now() + self.total;
        self.wait = self.first;
        self.wrong = 0;
        self.unreachable = 0;
        self.attempts = 0;
    }

    /// Waits until the next attempt after `error`.
    ///
    /// # Errors
    /// `error` itself, if another attempt is of no use or comes too late.
    pub(crate) async fn pause(
        &mut self,
        counters: &Counters,
        error: RegistryError,
    ) -> Result<(), RegistryError> {
        match error {
            RegistryError::Corrupt { .. } => self.wrong += 1,
            RegistryError::Connect { .. } => self.unreachable += 1,
            _ => {}
        }
        self.attempts = self.attempts.saturating_add(1);
        let spent =
            self.wrong > MAX_WRONG || self.unreachable >= self.unreachable_limit || self.attempts > self.most;
        if spent || !error.is_transient() {
            return Err(error);
        }
        let Some(wait) = self.next(error.retry_after(), Instant::now()) else { return Err(error) };
        counters.retried();
        tokio::time::sleep(wait).await;
        Ok(())
    }

    /// How long to wait before the next attempt; `None` if there must not be one.
    fn next(&mut self, asked_for: Option<Duration>, now: Instant) -> Option<Duration> {
        let wait = match asked_for {
            Some(asked_for) => asked_for.max(FIRST_WAIT),
            None => self.wait.mul_f64(rand::random_range(0.5..=1.0)),
        };
        self.wait = (self.wait * 2).min(self.longest);
        // An hour or an age: a time that no clock has is beyond the deadline too.
        now.checked_add(wait).filter(|then| *then < self.deadline).map(|_| wait)
    }
}

/// The wait that an answer asks for: seconds, or a date.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(http::header::RETRY_AFTER)?.to_str().ok()?.trim();
    match text.parse::<u64>() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => parse_http_date(text)?.duration_since(SystemTime::now()).ok(),
    }
}

/// As they stand in a date of RFC 9110.
const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// `Sun, 06 Nov 1994 08:49:37 GMT`, the one date form that RFC 9110 lets servers send.
fn parse_http_date(text: &str) -> Option<SystemTime> {
    let mut words = text.split_once(", ")?.1.split(' ');
    let day: u64 = words.next()?.parse().ok().filter(|day| *day <= 31)?;
    let month = words.next()?;
    let year: u64 = words.next()?.parse().ok().filter(|year| (1970..10_000).contains(year))?;
    let mut clock = words.next()?.split(':').map(|part| part.parse::<u64>().ok());
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let month = MONTHS.iter().position(|name| *name == month)? as u64 + 1;
    // Days since 1970-01-01 in the proleptic Gregorian calendar, counted in years that start in March.
    let (shifted_year, shifted_month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = shifted_year / 4 - shifted_year / 100 + shifted_year / 400;
    let days = (shifted_year * 365 + leap_days + (153 * shifted_month + 2) / 5 + day).checked_sub(719_469)?;
    let seconds = ((days * 24 + hour) * 60 + minute) * 60 + second;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_read() {
        let seconds =
            |text| parse_http_date(text).unwrap().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        assert_eq!(seconds("Sun, 06 Nov 1994 08:49:37 GMT"), 784_111_777);
        assert_eq!(seconds("Thu, 01 Jan 1970 00:00:00 GMT"), 0);
        assert_eq!(seconds("Thu, 29 Feb 2024 12:00:00 GMT"), 1_709_208_000);
        assert!(parse_http_date("yesterday").is_none());
        for odd in [
            "Sun, 18446744073709551615 Nov 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 18446744073709551615:49:37 GMT",
            "Sun, 06 Nov 1994 08:49:18446744073709551615 GMT",
            "Sun, 32 Nov 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 24:00:00 GMT",
        ] {
            assert!(parse_http_date(odd).is_none(), "{odd}");
        }
    }

    /// More seconds than a clock has.
    #[test]
    fn a_wait_without_an_end_is_not_waited() {
        let mut headers = HeaderMap::new();
        headers.insert(http::header::RETRY_AFTER, http::HeaderValue::from(u64::MAX));
        let asked_for = retry_after(&headers);
        assert_eq!(asked_for, Some(Duration::from_secs(u64::MAX)));
        assert!(Retry::new(Patience::control()).next(asked_for, Instant::now()).is_none());
    }

    #[test]
    fn attempts_end_at_the_deadline_and_progress_moves_it() {
        let patience = Patience::new(10, 10, 1);
        let mut retry = Retry::new(patience);
        let mut now = Instant::now();
        assert!(retry.next(Some(Duration::from_secs(11)), now).is_none());
        let start = now;
        while let Some(wait) = retry.next(None, now) {
            now += wait;
        }
        assert!(now - start < Duration::from_secs(10), "waited {:?}", now - start);
        let mut retry = Retry::new(patience);
        retry.wrong = MAX_WRONG;
        retry.progressed();
        assert_eq!((retry.wrong, retry.wait), (0, FIRST_WAIT));
    }

    #[tokio::test]
    async fn a_users_bounds_are_kept() {
        let retries = Retries {
            most: Some(2),
            first_wait: Some(Duration::from_millis(30)),
            longest_wait: Some(Duration::from_millis(40)),
        };
        let mut retry = Retry::new(Patience { retries, ..Patience::new(10, 10, u32::MAX) });
        let error = || RegistryError::Timeout {
            doing: String::new(),
            host: String::new(),
            after: Duration::from_secs(1),
        };
        let counters = Counters::default();
        let start = Instant::now();
        assert!(
            retry.pause(&counters, error()).await.is_ok() && retry.pause(&counters, error()).await.is_ok()
        );
        assert!(start.elapsed() >= Duration::from_millis(15 + 20), "{:?}", start.elapsed());
        assert!(retry.pause(&counters, error()).await.is_err());
        retry.progressed();
        assert!(retry.pause(&counters, error()).await.is_ok(), "progress counts");
    }
}
