//! Memory that was freed goes back to the system when the rush is over.
//!
//! An allocator keeps what it was given back, for a while and for each thread, because fresh memory is slow. What a pull
//! or a cold start leaves is several times what the service needs afterwards, and nobody asks the allocator again
//! when nothing happens. So there are *turns*: one is called when nothing has been fetched or opened for a moment, and
//! each thread that knows of turns cleans up its own part once, when it has nothing to do.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

static TURN: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static DONE: Cell<u64> = const { Cell::new(0) };
}

/// Calls a turn: the rush is over.
pub(crate) fn call_turn() {
    TURN.fetch_add(1, Ordering::Relaxed);
}

/// Cleans up this thread's part, if a turn was called since it last did. For threads that are about to sleep: costs next
/// to nothing if there is nothing to do, else some time for each page of memory.
pub fn at_rest() {
    let turn = TURN.load(Ordering::Relaxed);
    // A thread that is ending has no part any more.
    if DONE.try_with(|done| done.replace(turn)).is_ok_and(|done| done != turn) {
        give_back();
    }
}

/// There is no safe call for it. But before an allocator refuses a request it looks for what it can do without, and
/// this one (mimalloc's `mi_malloc_generic`) gives back everything unused of the thread and of its arenas. Any other
/// refuses as well: more than half of the address space is wanted.
fn give_back() {
    let refused = Vec::<u8>::new().try_reserve_exact(isize::MAX.cast_unsigned());
    std::hint::black_box(refused).ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_cleans_up_once_a_turn() {
        at_rest();
        let before = DONE.get();
        call_turn();
        at_rest();
        assert!(DONE.get() > before);
    }
}
