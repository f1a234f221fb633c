//! Events from a fanotify group: read without reaching beyond their bytes, and not one more than there is room for.
#![no_main]

use lazyfs::fuzzing::Events;
use libfuzzer_sys::fuzz_target;

/// Bytes of an event that says nothing of a range.
const SHORTEST: usize = 24;

fuzz_target!(|bytes: &[u8]| {
    let events: Vec<_> = Events::new(bytes).collect();
    assert!(events.len() <= bytes.len() / SHORTEST);
    for event in &events {
        assert!(event.range.start <= event.range.end);
        assert!(bytes.windows(4).any(|window| window == event.fd.to_ne_bytes()));
    }
    // What was read of a beginning is read of the whole.
    let half = Events::new(&bytes[..bytes.len() / 2]).collect::<Vec<_>>();
    assert_eq!(events.get(..half.len()), Some(half.as_slice()));
});
