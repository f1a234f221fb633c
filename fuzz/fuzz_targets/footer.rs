//! The very last bytes of a blob: whatever is taken for a footer is written as such again.
#![no_main]

use estargz::footer::{Footer, MAX_LEN};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|tail: &[u8]| {
    let Ok(footer) = Footer::parse(tail) else { return };
    let bytes = footer.to_bytes();
    assert!(bytes.len() == footer.len() && footer.len() <= MAX_LEN && footer.len() <= tail.len());
    assert_eq!(Footer::parse(&bytes), Ok(footer));
    // Hexadecimal digits have two forms, nothing else has.
    assert!(tail[tail.len() - bytes.len()..].eq_ignore_ascii_case(&bytes));
});
