//! `WWW-Authenticate`: any header is read, and a challenge that is written out is read back.
#![no_main]

use http::HeaderMap;
use http::header::{HeaderValue, WWW_AUTHENTICATE};
use libfuzzer_sys::fuzz_target;
use registry::fuzzing::{Challenge, strongest};

fn quote(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"")
}

fn write(challenge: &Challenge) -> String {
    let Challenge::Bearer { realm, service, scope } = challenge else { return "Basic".to_owned() };
    let mut text = format!("Bearer realm=\"{}\"", quote(realm));
    for (key, value) in [("service", service), ("scope", scope)] {
        if let Some(value) = value {
            text += &format!(",{key}=\"{}\"", quote(value));
        }
    }
    text
}

fuzz_target!(|bytes: &[u8]| {
    let mut headers = HeaderMap::new();
    for line in bytes.split(|byte| *byte == b'\n') {
        if let Ok(value) = HeaderValue::from_bytes(line) {
            headers.append(WWW_AUTHENTICATE, value);
        }
    }
    let Some(challenge) = strongest(&headers) else { return };
    let text = write(&challenge);
    let again = HeaderMap::from_iter([(WWW_AUTHENTICATE, text.parse().expect("it came from a header"))]);
    assert_eq!(strongest(&again), Some(challenge.clone()), "{text}");
    // A token is preferred, whatever stands before it.
    if matches!(challenge, Challenge::Bearer { .. }) {
        let both = format!("Basic realm=\"x\", {text}").parse().expect("it came from a header");
        assert_eq!(strongest(&HeaderMap::from_iter([(WWW_AUTHENTICATE, both)])), Some(challenge));
    }
});
