//! What was built, and what a manifest must say of it.

use std::collections::BTreeMap;

use content::Digest;

use crate::{TOC_DIGEST_ANNOTATION, UNCOMPRESSED_SIZE_ANNOTATION};

/// Prefixes of the zstd:chunked annotations: of stargz-snapshotter, and of containers/storage.
const STARGZ_PREFIX: &str = "io.containers.zstd-chunked.";
const PODMAN_PREFIX: &str = "io.github.containers.zstd-chunked.";

/// What was built.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Built {
    /// sha256 of the blob.
    pub digest: Digest,
    /// Bytes of the blob.
    pub size: u64,
    /// sha256 of what the blob inflates to: the layer's diffID. A TOC in the blob counts in eStargz alone.
    pub diff_id: Digest,
    /// sha256 of the TOC's JSON.
    pub toc_digest: Digest,
    /// Bytes that the blob inflates to.
    pub uncompressed_size: u64,
    /// Entries of the TOC that are not further chunks of a file; a landmark counts.
    pub entries: u64,
    /// Chunks of all files.
    pub chunks: u64,
    /// Where in the blob the compressed tar entries end: the TOC, or a footer, stands there.
    pub payload_end: u64,
    /// Where the TOC is.
    pub toc: BuiltToc,
}

/// Where the TOC of a built layer is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BuiltToc {
    /// In the blob, as a tar entry.
    Inside,
    /// Nowhere yet: it is to be stored in an image of its own.
    External {
        /// The TOC.
        json: Vec<u8>,
    },
    /// In the blob, in a skippable frame of zstd.
    Zstd {
        /// sha256 of the compressed TOC.
        manifest_checksum: Digest,
        /// Offset and length of the compressed TOC, length of the JSON, and 1, the kind of TOC.
        manifest_position: [u64; 4],
        /// Offset and length of the compressed tar-split data, and their length when inflated. Only
        /// containers/storage has such.
        tar_split_position: Option<[u64; 3]>,
        /// sha256 of the compressed tar-split data.
        tar_split_checksum: Option<Digest>,
    },
}

impl Built {
    /// The annotations that the layer's descriptor must carry, so that readers of its format find and
    /// trust its TOC.
    pub fn annotations(&self) -> BTreeMap<String, String> {
        let mut annotations =
            BTreeMap::from([(UNCOMPRESSED_SIZE_ANNOTATION.to_owned(), self.uncompressed_size.to_string())]);
        let mut put =
            |prefix: &str, key: &str, value: String| annotations.insert(format!("{prefix}{key}"), value);
        if let BuiltToc::Zstd {
            manifest_checksum,
            manifest_position,
            tar_split_position,
            tar_split_checksum,
        } = &self.toc
        {
            let prefix = if tar_split_position.is_some() { PODMAN_PREFIX } else { STARGZ_PREFIX };
            put(prefix, "manifest-checksum", manifest_checksum.to_string());
            put(prefix, "manifest-position", joined(manifest_position));
            if let Some(checksum) = tar_split_checksum {
                put(prefix, "tarsplit-checksum", checksum.to_string());
            }
            if let Some(position) = tar_split_position {
                put(prefix, "tarsplit-position", joined(position));
                // stargz-snapshotter would take it for a promise that it can mount the layer.
                return annotations;
            }
        }
        put("", TOC_DIGEST_ANNOTATION, self.toc_digest.to_string());
        annotations
    }
}

fn joined(numbers: &[u64]) -> String {
    numbers.iter().map(u64::to_string).collect::<Vec<_>>().join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn built(toc: BuiltToc) -> Built {
        let digest = Digest::of(b"x");
        Built {
            digest,
            size: 9,
            diff_id: digest,
            toc_digest: digest,
            uncompressed_size: 77,
            entries: 1,
            chunks: 1,
            payload_end: 5,
            toc,
        }
    }

    #[test]
    fn each_format_has_its_annotations() {
        let digest = Digest::of(b"x").to_string();
        let pairs = |toc| built(toc).annotations().into_iter().collect::<Vec<_>>();
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        for toc in [BuiltToc::Inside, BuiltToc::External { json: Vec::new() }] {
            assert_eq!(
                pairs(toc),
                [
                    pair("containerd.io/snapshot/stargz/toc.digest", &digest),
                    pair("io.containers.estargz.uncompressed-size", "77"),
                ]
            );
        }
        let zstd = |tar_split_position| BuiltToc::Zstd {
            manifest_checksum: Digest::of(b"x"),
            manifest_position: [1, 2, 3, 1],
            tar_split_position,
            tar_split_checksum: None,
        };
        assert_eq!(
            pairs(zstd(None)),
            [
                pair("containerd.io/snapshot/stargz/toc.digest", &digest),
                pair("io.containers.estargz.uncompressed-size", "77"),
                pair("io.containers.zstd-chunked.manifest-checksum", &digest),
                pair("io.containers.zstd-chunked.manifest-position", "1:2:3:1"),
            ]
        );
        assert_eq!(
            pairs(zstd(Some([4, 5, 6]))),
            [
                pair("io.containers.estargz.uncompressed-size", "77"),
                pair("io.github.containers.zstd-chunked.manifest-checksum", &digest),
                pair("io.github.containers.zstd-chunked.manifest-position", "1:2:3:1"),
                pair("io.github.containers.zstd-chunked.tarsplit-position", "4:5:6"),
            ]
        );
    }
}
