//! A request from `/dev/fuse`: refused, or made of its own bytes and of all of them.
#![no_main]

use lazyfs::fuzzing::{Malformed, Operation, Request};
use libfuzzer_sys::fuzz_target;

fn number(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn check(bytes: &[u8]) {
    let named = bytes.len() >= 24;
    let request = match Request::parse(bytes) {
        Ok(request) => request,
        Err(Malformed { unique }) => {
            assert_eq!(
                unique,
                number(bytes, 8).filter(|_| named),
                "an error answers the request that it is about"
            );
            return;
        }
    };
    assert_eq!((Some(request.unique), Some(request.node)), (number(bytes, 8), number(bytes, 16)));
    if let Operation::Lookup { name } | Operation::GetXattr { name, .. } = request.operation {
        assert!(!name.contains(&0));
        assert!(bytes.windows(name.len() + 1).any(|part| part.strip_suffix(&[0]) == Some(name)));
    }
    // A length that is not that of the bytes is never believed.
    let longer = [bytes, &[0]].concat();
    assert!(Request::parse(&longer).is_err());
    assert!(Request::parse(&bytes[..bytes.len() - 1]).is_err());
}

fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    // With its true length, so that the body is looked at.
    let mut framed = bytes.to_vec();
    if let Some(len) = framed.get_mut(..4) {
        len.copy_from_slice(&(bytes.len() as u32).to_ne_bytes());
        check(&framed);
    }
});
