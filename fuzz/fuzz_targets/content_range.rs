//! The head of an answer with a part of a blob: what is believed does not contradict itself.
#![no_main]

use http::header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderValue};
use http::{HeaderMap, StatusCode};
use libfuzzer_sys::fuzz_target;
use registry::fuzzing::{part_of, total_of_unsatisfied};

// The first line is Content-Range, the second Content-Length.
fuzz_target!(|bytes: &[u8]| {
    let mut headers = HeaderMap::new();
    for (name, line) in [CONTENT_RANGE, CONTENT_LENGTH].into_iter().zip(bytes.split(|byte| *byte == b'\n')) {
        if let Ok(value) = HeaderValue::from_bytes(line) {
            headers.insert(name, value);
        }
    }
    total_of_unsatisfied(&headers);
    let _ = part_of(StatusCode::OK, &headers);
    let Ok(part) = part_of(StatusCode::PARTIAL_CONTENT, &headers) else { return };
    let range = part.range;
    assert!(part.total.is_none_or(|total| range.end <= total));
    assert!(!range.is_empty() || part.total == Some(0), "an empty part of something");
    assert_eq!(total_of_unsatisfied(&headers), part.total);
    if let Some(length) = headers.get(CONTENT_LENGTH) {
        assert_eq!(length.to_str().ok().and_then(|text| text.trim().parse().ok()), Some(range.len()));
    }
    if !range.is_empty() {
        let total = part.total.map_or("*".to_owned(), |total| total.to_string());
        let text = format!("bytes {}-{}/{total}", range.start, range.end - 1);
        headers.insert(CONTENT_RANGE, text.parse().expect("digits"));
        assert_eq!(part_of(StatusCode::PARTIAL_CONTENT, &headers), Ok(part), "{text}");
    }
});
