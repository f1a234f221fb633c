//! What manifests, indexes and configs say, as far as it makes a claim.
//!
//! They are somebody else's bytes: whatever does not fit is no image, and containerd would not run it either.

use content::Digest;
use serde::Deserialize;

use super::judge::chain_id;
use crate::labels::TOC_DIGEST;

/// Longest manifest, index or config that is read, in bytes: what registries take.
pub const MAX_DOCUMENT: u64 = 8 << 20;
/// Most layers of an image, and most manifests of an index. overlayfs has a limit of some hundred.
const MAX_ENTRIES: usize = 4096;

/// A manifest, or an index of some.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// An image for one machine.
    Manifest {
        /// The digest of its config.
        config: String,
        /// Its layers, lowest first: digest, table of contents, and whether the media type is a layer's.
        layers: Vec<NamedLayer>,
    },
    /// Images for several machines.
    Index(Vec<Child>),
}

/// A layer as a manifest names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedLayer {
    /// The digest of its blob.
    pub digest: String,
    /// The digest of its table of contents.
    pub toc: Option<String>,
    /// Whether its media type says that it is one.
    pub is_layer: bool,
}

/// A manifest as an index names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Child {
    /// Its digest.
    pub digest: String,
    /// How well it fits this machine.
    pub fit: Fit,
}

/// How well a platform fits this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fit {
    /// It is this machine's, or nobody says.
    Ours,
    /// This machine can run it.
    Compatible,
    /// It cannot, unless somebody insists.
    Foreign,
}

#[derive(Deserialize)]
struct Either {
    config: Option<Named>,
    #[serde(default)]
    layers: Vec<Named>,
    manifests: Option<Vec<Named>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Named {
    #[serde(default)]
    media_type: String,
    digest: String,
    #[serde(default)]
    annotations: Option<std::collections::BTreeMap<String, String>>,
    #[serde(default)]
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
}

#[derive(Deserialize)]
struct Config {
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<Digest>,
}

fn fit(platform: Option<&Platform>) -> Fit {
    let Some(platform) = platform else { return Fit::Ours };
    let (ours, compatible) = match std::env::consts::ARCH {
        "x86_64" => ("amd64", "386"),
        "aarch64" => ("arm64", "arm"),
        other => (other, ""),
    };
    match (platform.os.as_str(), platform.architecture.as_str()) {
        ("linux" | "", architecture) if architecture == ours || architecture.is_empty() => Fit::Ours,
        ("linux" | "", architecture) if architecture == compatible => Fit::Compatible,
        _ => Fit::Foreign,
    }
}

impl Document {
    /// Reads a manifest or an index; `None` if it is neither.
    pub fn parse(json: &[u8]) -> Option<Self> {
        let either: Either = serde_json::from_slice(json).ok()?;
        if let Some(manifests) = either.manifests {
            let child = |named: Named| Child { fit: fit(named.platform.as_ref()), digest: named.digest };
            return Some(Self::Index(manifests.into_iter().take(MAX_ENTRIES).map(child).collect()));
        }
        let layer = |named: Named| NamedLayer {
            is_layer: is_layer(&named.media_type),
            toc: named.annotations.and_then(|mut annotations| annotations.remove(TOC_DIGEST)),
            digest: named.digest,
        };
        let layers = either.layers.into_iter().take(MAX_ENTRIES).map(layer).collect();
        Some(Self::Manifest { config: either.config?.digest, layers })
    }
}

/// What containerd takes for a layer.
fn is_layer(media_type: &str) -> bool {
    media_type.starts_with("application/vnd.oci.image.layer.")
        || media_type.starts_with("application/vnd.docker.image.rootfs.")
}

/// The chain IDs of a config, lowest first; `None` if it is none.
pub fn chains(config: &[u8]) -> Option<Vec<String>> {
    let config: Config = serde_json::from_slice(config).ok()?;
    let mut chains: Vec<String> = Vec::new();
    for diff_id in config.rootfs.diff_ids.iter().take(MAX_ENTRIES) {
        let chain = chain_id(chains.last().map(String::as_str), diff_id);
        chains.push(chain);
    }
    Some(chains)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_names_layers_and_their_tables_of_contents() {
        let json = serde_json::json!({
            "config": {"digest": "sha256:c", "mediaType": "x"},
            "layers": [
                {"digest": "sha256:a", "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                 "annotations": {(TOC_DIGEST): "sha256:t"}},
                {"digest": "sha256:b", "mediaType": "application/x-attestation"},
            ],
        });
        let Some(Document::Manifest { config, layers }) = Document::parse(json.to_string().as_bytes()) else {
            panic!("no manifest")
        };
        assert_eq!(config, "sha256:c");
        assert_eq!((layers[0].toc.as_deref(), layers[0].is_layer), (Some("sha256:t"), true));
        assert_eq!((layers[1].toc.as_deref(), layers[1].is_layer), (None, false));
    }

    #[test]
    fn an_index_tells_which_of_its_images_run_here() {
        let platform = |os: &str, architecture: &str| serde_json::json!({"digest": "sha256:m", "platform": {"os": os, "architecture": architecture}});
        let ours = if std::env::consts::ARCH == "x86_64" { "amd64" } else { "arm64" };
        let json = serde_json::json!({"manifests": [
            platform("linux", ours), platform("linux", "s390x"), platform("unknown", "unknown"),
            {"digest": "sha256:n"},
        ]});
        let Some(Document::Index(children)) = Document::parse(json.to_string().as_bytes()) else {
            panic!("no index")
        };
        let fits: Vec<Fit> = children.iter().map(|child| child.fit).collect();
        assert_eq!(fits, [Fit::Ours, Fit::Foreign, Fit::Foreign, Fit::Ours]);
    }

    #[test]
    fn a_config_names_a_chain() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let json = serde_json::json!({"rootfs": {"type": "layers", "diff_ids": [a, b]}}).to_string();
        let found = chains(json.as_bytes()).unwrap();
        assert_eq!(found, [a.to_string(), chain_id(Some(&a.to_string()), &b)]);
        assert_eq!(chains(b"{}"), None);
        assert_eq!(Document::parse(b"[]"), None);
        assert_eq!(Document::parse(b"{}"), None);
    }
}
