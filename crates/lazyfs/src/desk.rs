//! One thread for the work that takes memory in proportion to a layer: reading its JSON, making its index, writing its
//! metadata image.
//!
//! A node that pulls an image opens twenty layers at once. Twenty tables taken apart at the same time are
//! hundreds of megabytes at the peak, and an allocator keeps what each of so many threads had. Here they are
//! taken apart one after another, each in what the last one left.

use std::sync::OnceLock;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::memory;

/// When no table came for so long, the pull is over.
const QUIET: Duration = Duration::from_millis(300);

type Job = Box<dyn FnOnce() + Send>;

/// Hands over a job; gives it back if there is no such thread.
fn hand_over(job: Job) -> Result<(), Job> {
    static DESK: OnceLock<Option<Sender<Job>>> = OnceLock::new();
    let desk = DESK.get_or_init(|| {
        let (sender, jobs) = channel::<Job>();
        let work = move || {
            loop {
                let job = match jobs.recv_timeout(QUIET) {
                    Ok(job) => job,
                    Err(RecvTimeoutError::Timeout) => {
                        memory::call_turn();
                        memory::at_rest();
                        let Ok(job) = jobs.recv() else { return };
                        job
                    }
                    Err(RecvTimeoutError::Disconnected) => return,
                };
                // Whoever waits for a job that panics is told that it was dropped.
                let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
            }
        };
        std::thread::Builder::new().name("tables".into()).spawn(work).ok().map(|_| sender)
    });
    match desk {
        Some(desk) => desk.send(job).map_err(|error| error.0),
        None => Err(job),
    }
}

/// Does `work` there. `None` if it panicked.
pub(crate) async fn at_desk<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (done, result) = oneshot::channel();
    let job = Box::new(move || drop(done.send(work())));
    if let Err(job) = hand_over(job) {
        tokio::task::spawn_blocking(job);
    }
    result.await.ok()
}

/// Does `work` there and waits for it with this thread. `None` if it panicked.
pub(crate) fn at_desk_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (done, result) = channel();
    let job = Box::new(move || drop(done.send(work())));
    if let Err(job) = hand_over(job) {
        job();
    }
    result.recv().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn jobs_are_done_one_after_another_and_a_panic_ends_none_but_its_own() {
        let thread = || std::thread::current().id();
        let first = at_desk(thread).await.unwrap();
        assert_eq!(at_desk(|| panic!("on purpose")).await, None::<()>);
        assert_eq!(at_desk_blocking(thread), Some(first));
        assert_ne!(first, thread());
    }
}
