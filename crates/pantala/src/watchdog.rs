//! systemd's watchdog (`WatchdogSec=`): a service that does not say in time that it lives is started again.
//!
//! The worker speaks, since it is the one that can hang; the service manager takes it for the supervisor's word.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// How often to speak: three times within what systemd allows. `None` if nobody listens, or the word is for another process.
fn interval(microseconds: Option<&str>, process: Option<&str>, ours: &[u32]) -> Option<Duration> {
    let limit = Duration::from_micros(microseconds?.parse().ok().filter(|limit| *limit > 0)?);
    let meant = process.is_none_or(|process| process.parse().is_ok_and(|process| ours.contains(&process)));
    meant.then(|| limit / 3)
}

/// Says that this process lives, until `stop`, if the service manager wants to hear it.
pub async fn keep_telling(stop: CancellationToken) {
    let variable = |name: &str| std::env::var(name).ok();
    let supervisor = variable(lazyfs::keeper::WORKER).and_then(|text| text.parse().ok());
    let ours: Vec<u32> = [std::process::id()].into_iter().chain(supervisor).collect();
    let (limit, process) = (variable("WATCHDOG_USEC"), variable("WATCHDOG_PID"));
    let Some(interval) = interval(limit.as_deref(), process.as_deref(), &ours) else { return };
    loop {
        // A message on a local socket; it may wait for the service manager, and then so may the next one.
        let told = tokio::task::spawn_blocking(|| crate::node::notify_systemd("WATCHDOG=1"));
        if told.await.is_err() || stop.run_until_cancelled(tokio::time::sleep(interval)).await.is_none() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_is_meant_speaks_and_in_time() {
        let third = Some(Duration::from_secs(10));
        assert_eq!(interval(Some("30000000"), None, &[5]), third);
        assert_eq!(interval(Some("30000000"), Some("7"), &[5, 7]), third);
        assert_eq!(interval(Some("30000000"), Some("8"), &[5, 7]), None);
        assert_eq!(interval(Some("0"), None, &[5]), None);
        assert_eq!(interval(None, Some("5"), &[5]), None);
    }
}
