//! A message to or from the keeper: refused, or made of its own bytes and of all of them.
#![no_main]

use lazyfs::fuzzing::{KeeperReply, KeeperRequest};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(request) = KeeperRequest::decode(bytes) {
        assert_eq!(request.encode(), bytes);
    }
    if let Ok(reply) = KeeperReply::decode(bytes) {
        assert_eq!(reply.encode(), bytes);
    }
});
