//! What an image pull secret holds, and who it is for.
#![no_main]

use libfuzzer_sys::fuzz_target;
use registry::{Asked, DockerAuths};

fuzz_target!(|json: &[u8]| {
    if let Ok(auths) = DockerAuths::parse(json, "a secret") {
        for (registry, repository) in [("docker.io", Some("library/a")), ("r.example:5000", None)] {
            let all = auths.find(&Asked { registry, repository });
            assert_eq!(all, auths.find(&Asked { registry, repository }), "another order each time");
        }
    }
});
