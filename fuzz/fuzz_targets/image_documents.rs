//! Manifests, indexes and configs that the snapshotter reads from containerd: whatever they are, they make a bounded
//! claim or none.
#![no_main]

use libfuzzer_sys::fuzz_target;
use snapshotter::fuzzing::{Document, chains};

fuzz_target!(|json: &[u8]| {
    if let Some(document) = Document::parse(json) {
        assert_eq!(Document::parse(json), Some(document));
    }
    if let Some(chains) = chains(json) {
        // The lowest chain ID is a diffID, each other one a digest of its own.
        assert!(chains.iter().all(|chain| chain.starts_with("sha256:") && chain.len() == 71));
        let mut unique = chains.clone();
        unique.sort();
        unique.dedup();
        assert_eq!(unique.len(), chains.len());
    }
});
