//! The `Range` of a caller: a part lies inside the content, and asking for just that part gives it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use proxy::fuzzing::{Wanted, wanted};

fuzz_target!(|input: (u64, &str)| {
    let (len, header) = input;
    for len in [len, len % 100, 0, 1, u64::MAX] {
        for header in [header, &format!("bytes={header}")] {
            match wanted(Some(header), len) {
                Wanted::Part(range) => {
                    assert!(!range.is_empty() && range.end <= len, "{header}: {range} of {len}");
                    let exact = format!("bytes={}-{}", range.start, range.end - 1);
                    assert_eq!(wanted(Some(&exact), len), Wanted::Part(range), "{exact}");
                }
                Wanted::Unsatisfiable => assert!(header.contains('=')),
                Wanted::Whole => {}
            }
        }
    }
});
