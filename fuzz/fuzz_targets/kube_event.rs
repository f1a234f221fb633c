//! A line of a watch, or a page of a list, as an API server sends it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use snapshotter::fuzzing::fuzz_event;

fuzz_target!(|line: &[u8]| fuzz_event(line));
