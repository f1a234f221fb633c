//! Labels of a snapshot: what is taken for a lazy layer says what the labels say.
#![no_main]

use libfuzzer_sys::fuzz_target;
use snapshotter::fuzzing::{
    DIFF_ID, LayerRequest, MAX_LABEL_BYTES, PARENT_CHAIN_ID, PREFETCH, TOC_DIGEST, clean,
};

const KEYS: [&str; 8] = [
    "containerd.io/snapshot/cri.image-ref",
    "containerd.io/snapshot/cri.layer-digest",
    "containerd.io/snapshot/remote/stargz.reference",
    "containerd.io/snapshot/remote/stargz.digest",
    TOC_DIGEST,
    PREFETCH,
    PARENT_CHAIN_ID,
    DIFF_ID,
];

// Lines of `digit value`; a line that begins otherwise is a label of its own. A `#` stands for a digest.
fuzz_target!(|text: &str| {
    let digest = format!("sha256:{}", "ab".repeat(32));
    let lines: Vec<(String, String)> = text
        .lines()
        .map(|line| {
            let (key, value) = line.split_once(' ').unwrap_or((line, ""));
            let key = key.parse().ok().and_then(|at: usize| KEYS.get(at)).unwrap_or(&key);
            ((*key).to_owned(), value.replace('#', &digest))
        })
        .collect();
    let Ok(labels) = clean(lines.clone()) else {
        assert!(lines.iter().any(|(key, value)| key.len() + value.len() > MAX_LABEL_BYTES));
        return;
    };
    assert!(
        labels.iter().all(|(key, value)| !value.is_empty() && lines.contains(&(key.clone(), value.clone())))
    );
    assert_eq!(clean(labels.clone()), Ok(labels.clone()));
    for (target, parent) in [(digest.as_str(), ""), ("c1", "c0"), ("", "")] {
        if let LayerRequest::Lazy(source) = LayerRequest::from_labels(&labels, target, parent) {
            assert_eq!(labels.get(TOC_DIGEST), Some(&source.toc.to_string()));
            assert!(labels.values().any(|value| *value == source.layer.to_string()));
            assert!(labels.values().any(|value| *value == source.reference) && !source.reference.is_empty());
            assert!(source.prefetch.is_none_or(|bytes| labels[PREFETCH].parse() == Ok(bytes)));
            assert!(!parent.is_empty() || !labels.contains_key(PARENT_CHAIN_ID), "it would lose its parent");
        }
    }
});
