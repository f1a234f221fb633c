//! The thread that takes events.
//!
//! It answers at once where the bytes are there, and hands everything else on: nothing that takes time is done
//! here, so no chunk, however slow, is in the way of another event.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Inner;
use super::event::Events;
use super::journal::{BATCH, Noted};
use super::sys::{self, Verdict};

/// Takes events until told to stop; `bell` wakes it.
pub(super) fn listen(inner: &Arc<Inner>, reader: usize, bell: &OwnedFd) {
    // Without this thread every reader would wait for ever: better a new process.
    let _alive = AbortOnPanic;
    let _runtime = inner.runtime.enter();
    let desk = &inner.desk;
    let group = desk.group().as_raw_fd();
    let mut stash: Vec<u32> = Vec::with_capacity(BATCH);
    let mut copy = Vec::new();
    while !desk.stopping.load(Ordering::Acquire) {
        desk.take_slots(&mut stash, BATCH);
        if stash.is_empty() {
            continue;
        }
        match desk.journal().read(group, reader, stash.len(), &mut copy) {
            Ok(()) => take(inner, reader, &copy, &mut stash),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if let Err(error) = sys::wait(group, bell.as_raw_fd(), -1) {
                    complain(&error);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => complain(&error),
        }
    }
}

fn complain(error: &io::Error) {
    tracing::error!(%error, "events cannot be read");
    std::thread::sleep(Duration::from_millis(100));
}

fn take(inner: &Arc<Inner>, reader: usize, bytes: &[u8], stash: &mut Vec<u32>) {
    let desk = &inner.desk;
    let mut taken: Vec<(u32, Noted)> = Vec::new();
    for event in Events::new(bytes).filter(|event| event.fd >= 0) {
        // As many were read as there were slots.
        let Some(slot) = stash.pop() else { break };
        let noted =
            Noted { fd: event.fd, file: sys::identity(event.fd).ok(), range: event.range, sequence: 0 };
        taken.push((slot, desk.note(slot, noted)));
    }
    desk.journal().clear(reader, bytes.len());
    desk.events.fetch_add(taken.len() as u64, Ordering::Relaxed);
    for (slot, event) in taken {
        if event.range.is_empty() {
            // Somebody cuts the file: nothing is read.
            desk.answer(slot, Verdict::Allow);
        } else {
            inner.serve_event(slot, &event);
        }
    }
}

struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}
