//! What a layer's descriptor says about its blob, held against the blob.

use std::collections::BTreeMap;

use content::Digest;

use super::lie::Lie;
use crate::footer::{Footer, HiddenFrame};
use crate::{TOC_DIGEST_ANNOTATION, UNCOMPRESSED_SIZE_ANNOTATION};

/// Prefixes of zstd:chunked annotations: stargz-snapshotter's and containers/storage's.
const ZSTD_PREFIXES: [&str; 2] = ["io.containers.zstd-chunked.", "io.github.containers.zstd-chunked."];

/// What the blob's end says.
pub(super) struct Found {
    pub(super) footer: Option<Footer>,
    pub(super) toc_digest: Option<Digest>,
    /// sha256 of the zstd frame that holds the TOC.
    pub(super) compressed_digest: Option<Digest>,
    /// sha256 of the zstd frame that holds the tar-split data.
    pub(super) tar_split_digest: Option<Digest>,
}

/// The first annotation that promises a TOC.
pub(super) fn promise(annotations: &BTreeMap<String, String>) -> Option<String> {
    let is_promise = |key: &str| {
        key == TOC_DIGEST_ANNOTATION
            || ZSTD_PREFIXES.iter().any(|prefix| {
                key.strip_prefix(prefix)
                    .is_some_and(|rest| rest == "manifest-checksum" || rest == "manifest-position")
            })
    };
    annotations.keys().find(|key| is_promise(key)).cloned()
}

/// Everything that the end of the blob decides.
pub(super) fn check(annotations: &BTreeMap<String, String>, found: &Found) -> Result<(), Lie> {
    if let (Some(claimed), Some(toc_digest)) = (annotations.get(TOC_DIGEST_ANNOTATION), found.toc_digest) {
        let annotation = || differs(TOC_DIGEST_ANNOTATION, claimed, &toc_digest);
        let claimed: Digest = claimed.parse().map_err(|_| annotation())?;
        if claimed != toc_digest {
            return Err(Lie::TocDigest { claimed, found: toc_digest });
        }
    }
    let (manifest, tar_split) = match found.footer {
        Some(Footer::ZstdChunked(manifest)) => (Some(manifest), None),
        Some(Footer::ZstdChunkedPodman { manifest, tar_split }) => (Some(manifest), Some(tar_split)),
        _ => (None, None),
    };
    for prefix in ZSTD_PREFIXES {
        let position =
            |frame: HiddenFrame| format!("{}:{}:{}", frame.offset, frame.compressed_len, frame.len);
        for (key, truth) in [
            ("manifest-checksum", found.compressed_digest.map(|digest| digest.to_string())),
            ("manifest-position", manifest.map(|frame| position(frame) + ":1")),
            ("tarsplit-checksum", found.tar_split_digest.map(|digest| digest.to_string())),
            ("tarsplit-position", tar_split.map(position)),
        ] {
            let key = format!("{prefix}{key}");
            let Some(claimed) = annotations.get(&key) else { continue };
            match truth {
                Some(truth) if *claimed == truth => {}
                Some(truth) => return Err(differs(&key, claimed, &truth)),
                None => return Err(differs(&key, claimed, &"nothing of the kind")),
            }
        }
    }
    Ok(())
}

/// What only inflating the whole blob decides.
pub(super) fn check_size(annotations: &BTreeMap<String, String>, inflated: u64) -> Result<(), Lie> {
    match annotations.get(UNCOMPRESSED_SIZE_ANNOTATION) {
        Some(claimed) if *claimed != inflated.to_string() => {
            Err(differs(UNCOMPRESSED_SIZE_ANNOTATION, claimed, &inflated))
        }
        _ => Ok(()),
    }
}

fn differs(key: &str, claimed: &str, found: &dyn std::fmt::Display) -> Lie {
    Lie::Annotation {
        key: key.to_owned(),
        claimed: claimed.chars().take(100).collect(),
        found: found.to_string(),
    }
}
