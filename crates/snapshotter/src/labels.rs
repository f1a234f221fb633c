//! The labels that carry meaning, and what a request for a lazy layer says through them.
//!
//! containerd itself knows nothing of lazy layers. A client that does adds labels to `Prepare`: which chain
//! the snapshot is for, which image and blob it comes from, and the digest of the blob's table of contents
//! (a copy of the manifest's annotation). Two families of names are in use; CRI's is asked first.

use std::collections::BTreeMap;

use content::Digest;
use serde::{Deserialize, Serialize};

/// Labels of a snapshot, in the order of their keys.
pub type Labels = BTreeMap<String, String>;

/// Chain ID of the layer that the snapshot shall hold. Its presence asks for a lazy mount.
pub const SNAPSHOT_REF: &str = "containerd.io/snapshot.ref";
/// Marks a committed snapshot whose files are not (all) on this machine.
pub const REMOTE: &str = "containerd.io/snapshot/remote";
/// Value of [`REMOTE`], as stargz-snapshotter writes it.
pub const REMOTE_VALUE: &str = "remote snapshot";
/// Digest of the layer's table of contents.
pub const TOC_DIGEST: &str = "containerd.io/snapshot/stargz/toc.digest";
/// How many bytes to prefetch if the layer has no landmark.
pub const PREFETCH: &str = "containerd.io/snapshot/remote/stargz.prefetch";
/// Chain ID of the layer below, when containerd unpacks layers in parallel (2.4).
pub const PARENT_CHAIN_ID: &str = "containerd.io/snapshot/parent-chain-id";
/// The layer's own diffID (containerd 2.4). The lowest layer's chain ID is its diffID.
pub const DIFF_ID: &str = "containerd.io/snapshot/diff-id";

/// Digest of the image's manifest, if the client is CRI.
pub const MANIFEST_DIGEST: &str = "containerd.io/snapshot/cri.manifest-digest";

/// Names of image reference and layer digest: CRI's first, then those of `ctr-remote`.
const IMAGE_LABELS: [(&str, &str); 2] = [
    ("containerd.io/snapshot/cri.image-ref", "containerd.io/snapshot/cri.layer-digest"),
    ("containerd.io/snapshot/remote/stargz.reference", "containerd.io/snapshot/remote/stargz.digest"),
];

/// Longest key and value of a label together, in bytes: containerd's own limit.
pub const MAX_LABEL_BYTES: usize = 4096;

/// Why labels cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// One label is longer than containerd allows.
    #[error(
        "label {key:?}: key and value are {len} bytes, more than the {MAX_LABEL_BYTES} that containerd allows"
    )]
    TooLong {
        /// The label's key, cut to a readable length.
        key: String,
        /// Bytes of key and value.
        len: usize,
    },
}

/// Where a lazy layer's bytes come from, and what they must be: enough to mount it again after a restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerSource {
    /// The image reference as the client wrote it.
    pub reference: String,
    /// The digest that the image's manifest gives the layer's blob.
    pub layer: Digest,
    /// The digest of the table of contents: it pins every byte that a container can see.
    pub toc: Digest,
    /// Bytes to prefetch if the layer has no landmark, as the client asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefetch: Option<u64>,
    /// Whether its bytes are a copy on this machine, made of the whole blob after that was hashed, with a table of
    /// contents of our own. See [`crate::claims`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub local: bool,
}

impl LayerSource {
    /// Whether both show the same files. The registry may differ: the table of contents pins the content.
    pub fn same_content(&self, other: &Self) -> bool {
        (self.layer, self.toc) == (other.layer, other.toc)
    }
}

/// What the labels of a `Prepare` with [`SNAPSHOT_REF`] amount to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LayerRequest {
    /// A layer that can be mounted lazily.
    Lazy(LayerSource),
    /// An ordinary layer. The reason is for the log.
    Ordinary(&'static str),
    /// The labels contradict themselves.
    Wrong(String),
}

impl LayerRequest {
    /// Reads the labels of a `Prepare` for the chain `target`, on top of `parent` (empty: of nothing).
    pub fn from_labels(labels: &Labels, target: &str, parent: &str) -> Self {
        let get = |key: &str| labels.get(key).filter(|value| !value.is_empty());
        let image = IMAGE_LABELS.iter().find_map(|(reference, layer)| Some((get(reference)?, get(layer)?)));
        let Some((reference, layer)) = image else {
            return Self::Ordinary("the client does not tell the image");
        };
        let Some(toc) = get(TOC_DIGEST) else {
            return Self::Ordinary("the layer has no table of contents: the image was not converted");
        };
        // Clients that unpack in parallel leave the parent out and tell it at the end. A lazy layer is
        // committed at once, so it would stay without its parent, and the image would lose its lower layers.
        let is_lowest = get(PARENT_CHAIN_ID).is_none() && get(DIFF_ID).is_none_or(|diff| diff == target);
        if parent.is_empty() && !is_lowest {
            return Self::Ordinary("the client unpacks in parallel and does not tell the parent");
        }
        let (layer, toc) = match (layer.parse::<Digest>(), toc.parse::<Digest>()) {
            (Ok(layer), Ok(toc)) => (layer, toc),
            (Err(error), _) | (_, Err(error)) => return Self::Wrong(error.to_string()),
        };
        let prefetch = get(PREFETCH).and_then(|bytes| bytes.parse().ok());
        Self::Lazy(LayerSource { reference: reference.clone(), layer, toc, prefetch, local: false })
    }
}

/// Drops labels without a value, as containerd does: setting one to nothing is deleting it.
///
/// # Errors
/// [`LabelError::TooLong`].
pub fn clean(labels: impl IntoIterator<Item = (String, String)>) -> Result<Labels, LabelError> {
    labels
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(key, value)| {
            let len = key.len() + value.len();
            if len > MAX_LABEL_BYTES {
                return Err(LabelError::TooLong { key: key.chars().take(80).collect(), len });
            }
            Ok((key, value))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
    }

    fn digest(text: &str) -> String {
        Digest::of(text.as_bytes()).to_string()
    }

    #[test]
    fn both_families_of_names_are_read_and_cri_wins() {
        let (cri, remote, toc) = (digest("cri"), digest("remote"), digest("toc"));
        let mut all = labels(&[
            ("containerd.io/snapshot/remote/stargz.reference", "registry.example/a:1"),
            ("containerd.io/snapshot/remote/stargz.digest", &remote),
            (TOC_DIGEST, &toc),
            (PREFETCH, "10485760"),
        ]);
        let LayerRequest::Lazy(source) = LayerRequest::from_labels(&all, "c0", "") else {
            panic!("not lazy")
        };
        assert_eq!((source.reference.as_str(), source.layer.to_string()), ("registry.example/a:1", remote));
        assert_eq!(source.prefetch, Some(10_485_760));

        all.extend(labels(&[
            ("containerd.io/snapshot/cri.image-ref", "registry.example/b:1"),
            ("containerd.io/snapshot/cri.layer-digest", &cri),
        ]));
        let LayerRequest::Lazy(source) = LayerRequest::from_labels(&all, "c0", "") else {
            panic!("not lazy")
        };
        assert_eq!((source.reference.as_str(), source.layer.to_string()), ("registry.example/b:1", cri));
    }

    #[test]
    fn without_table_of_contents_or_image_a_layer_is_ordinary() {
        let none = labels(&[(SNAPSHOT_REF, "c0")]);
        assert!(matches!(LayerRequest::from_labels(&none, "c0", ""), LayerRequest::Ordinary(_)));
        let plain = labels(&[
            ("containerd.io/snapshot/cri.image-ref", "a"),
            ("containerd.io/snapshot/cri.layer-digest", &digest("l")),
        ]);
        assert!(matches!(LayerRequest::from_labels(&plain, "c0", ""), LayerRequest::Ordinary(_)));
    }

    #[test]
    fn a_digest_that_is_none_is_no_lazy_layer() {
        let wrong = labels(&[
            ("containerd.io/snapshot/cri.image-ref", "a"),
            ("containerd.io/snapshot/cri.layer-digest", "sha256:../../etc"),
            (TOC_DIGEST, &digest("t")),
        ]);
        assert!(matches!(LayerRequest::from_labels(&wrong, "c0", ""), LayerRequest::Wrong(_)));
    }

    #[test]
    fn a_layer_that_lost_its_parent_is_not_lazy() {
        let base = labels(&[
            ("containerd.io/snapshot/cri.image-ref", "a"),
            ("containerd.io/snapshot/cri.layer-digest", &digest("l")),
            (TOC_DIGEST, &digest("t")),
        ]);
        for (key, value, parent, lazy) in [
            (PARENT_CHAIN_ID, "c0", "", false),
            (PARENT_CHAIN_ID, "c0", "c0", true),
            (PARENT_CHAIN_ID, "", "", true),
            (DIFF_ID, "c1", "", true),
            (DIFF_ID, "other", "", false),
            (DIFF_ID, "other", "c0", true),
        ] {
            let mut all = base.clone();
            all.insert(key.into(), value.into());
            let request = LayerRequest::from_labels(&all, "c1", parent);
            assert_eq!(matches!(request, LayerRequest::Lazy(_)), lazy, "{key}={value} parent={parent}");
        }
    }

    #[test]
    fn labels_are_bounded_and_empty_ones_dropped() {
        let pair = |len: usize| [("k".to_owned(), "v".repeat(len))];
        assert_eq!(clean(pair(MAX_LABEL_BYTES - 1)).unwrap().len(), 1);
        assert!(clean(pair(MAX_LABEL_BYTES)).is_err());
        assert!(clean(pair(0)).unwrap().is_empty());
    }
}
