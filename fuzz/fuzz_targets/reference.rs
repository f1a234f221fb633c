//! Names of images: what is printed is read back, and nothing in it could leave its place in a URL.
#![no_main]

use libfuzzer_sys::fuzz_target;
use registry::{Reference, canonical_registry};

fuzz_target!(|text: &str| {
    let Ok(reference) = text.parse::<Reference>() else { return };
    let shown = reference.to_string();
    assert_eq!(shown.parse::<Reference>().as_ref(), Ok(&reference), "{shown}");
    assert_eq!(canonical_registry(reference.registry()), reference.registry());
    assert!(shown.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#%\\\"<>".contains(&byte)), "{shown}");
    assert!(reference.repository().split('/').all(|part| !part.is_empty() && part != "." && part != ".."));
    assert!(reference.tag().is_none_or(|tag| !tag.contains(['/', ':', '@'])));
});
