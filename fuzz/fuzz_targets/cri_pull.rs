//! A `PullImage` on its way to containerd: whatever a caller sends is read or left alone.
#![no_main]

use libfuzzer_sys::fuzz_target;
use snapshotter::fuzzing::fuzz_pull_request;

fuzz_target!(|body: &[u8]| fuzz_pull_request(body));
