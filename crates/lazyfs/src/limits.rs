//! How many descriptors this process may have.

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Sees to it that this process may have `wanted` descriptors: raises what it may have at present, and the most that it
/// may raise that to if the system allows. `None` for no limit.
///
/// # Errors
/// That neither can be raised; then there are fewer.
pub(crate) fn open_files(wanted: u64) -> (Option<u64>, Result<(), Errno>) {
    let now = getrlimit(Resource::Nofile);
    let enough = |limit: Option<u64>| limit.is_none_or(|limit| limit >= wanted);
    let mut raised = Ok(());
    if !enough(now.current) {
        let maximum = if enough(now.maximum) { now.maximum } else { Some(wanted) };
        let higher = Rlimit { current: Some(wanted), maximum };
        let highest = Rlimit { current: now.maximum, maximum: now.maximum };
        raised = setrlimit(Resource::Nofile, higher).or_else(|_| setrlimit(Resource::Nofile, highest));
    }
    (getrlimit(Resource::Nofile).current, raised)
}
