//! What containerd and its snapshotter are told by labels.
//!
//! Of the two families of names that lazy snapshotters know, these are the ones of CRI and of containerd's
//! transfer service: they also carry the manifest's digest.

use std::collections::HashMap;

use content::Digest;
use registry::{Descriptor, Manifest, Reference};

/// containerd's limit for key and value of a label together, in bytes.
const MOST: usize = 4096;
/// What a layer's annotations must begin with to become labels of its snapshot.
const INHERITED: &str = "containerd.io/snapshot/";
/// The chain ID of the snapshot that is wanted: asks for a lazy mount.
pub(super) const TARGET: &str = "containerd.io/snapshot.ref";
/// Digest of a layer's table of contents.
pub(super) const TOC_DIGEST: &str = "containerd.io/snapshot/stargz/toc.digest";
const IMAGE_REF: &str = "containerd.io/snapshot/cri.image-ref";
const LAYER_DIGEST: &str = "containerd.io/snapshot/cri.layer-digest";
const IMAGE_LAYERS: &str = "containerd.io/snapshot/cri.image-layers";
const MANIFEST_DIGEST: &str = "containerd.io/snapshot/cri.manifest-digest";
const PREFETCH: &str = "containerd.io/snapshot/remote/stargz.prefetch";
const URLS: &str = "containerd.io/snapshot/remote/urls";
/// What begins labels that keep the blob that they name.
const REFERS: &str = "containerd.io/gc.ref.content.";

/// Bytes that `ctr-remote` lets a snapshotter prefetch of a layer without landmark.
pub(super) const PREFETCH_DEFAULT: u64 = 10 << 20;

/// What a snapshotter is told of the layer at `at`, whose snapshot shall be `chain`.
pub(super) fn of_layer(
    reference: &Reference,
    manifest_digest: &Digest,
    manifest: &Manifest,
    at: usize,
    chain: &Digest,
    prefetch: u64,
) -> HashMap<String, String> {
    let mut labels = HashMap::new();
    let Some(layer) = manifest.layers.get(at) else { return labels };
    // The image's own words come first: none of them may replace ours.
    let annotations = layer.annotations.iter().flatten();
    let inherited = annotations
        .filter(|(key, value)| key.starts_with(INHERITED) && key.len() + value.len() <= MOST)
        .map(|(key, value)| (key.clone(), value.clone()));
    labels.extend(inherited);
    labels.extend(
        [
            (TARGET, chain.to_string()),
            (IMAGE_REF, reference.to_string()),
            (LAYER_DIGEST, layer.digest.to_string()),
            (MANIFEST_DIGEST, manifest_digest.to_string()),
            (IMAGE_LAYERS, following(IMAGE_LAYERS, manifest.layers.get(at..).unwrap_or_default())),
        ]
        .map(|(key, value)| (key.to_owned(), value)),
    );
    if prefetch > 0 {
        labels.insert(PREFETCH.to_owned(), prefetch.to_string());
    }
    for (key, layer) in std::iter::once((URLS.to_owned(), layer)).chain(
        manifest
            .layers
            .iter()
            .skip(at)
            .enumerate()
            .map(|(number, layer)| (format!("{URLS}.{number}"), layer)),
    ) {
        let urls = layer.urls.as_deref().unwrap_or_default().join(",");
        if !urls.is_empty() && key.len() + urls.len() <= MOST {
            labels.insert(key, urls);
        }
    }
    labels
}

/// Digests of these layers, as many as a label holds.
fn following(key: &str, layers: &[Descriptor]) -> String {
    let mut list = String::new();
    for layer in layers {
        let digest = layer.digest.to_string();
        if key.len() + list.len() + 1 + digest.len() > MOST {
            break;
        }
        if !list.is_empty() {
            list.push(',');
        }
        list.push_str(&digest);
    }
    list
}

/// Labels by which a manifest keeps what it names. Layers that are never fetched are named all the same: what
/// is not there needs no keeping.
pub(super) fn of_manifest(manifest: &Manifest) -> HashMap<String, String> {
    let layers = manifest.layers.iter().enumerate();
    let layers = layers.map(|(at, layer)| (format!("{REFERS}l.{at}"), layer.digest.to_string()));
    let config = (format!("{REFERS}config"), manifest.config.digest.to_string());
    std::iter::once(config).chain(layers).collect()
}

/// The label by which an index keeps the one manifest that was pulled.
pub(super) fn of_index(place: usize, manifest: &Digest) -> HashMap<String, String> {
    HashMap::from([(format!("{REFERS}m.{place}"), manifest.to_string())])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(layers: usize) -> Manifest {
        let layer = |at: usize| {
            let mut layer = Descriptor::new("layer", Digest::of(&at.to_le_bytes()), 1);
            let annotations = [
                (TOC_DIGEST, "toc"),
                (IMAGE_REF, "another image"),
                ("containerd.io/snapshot.ref", "another chain"),
                ("org.example", "elsewhere"),
            ];
            layer.annotations =
                Some(annotations.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
            layer
        };
        Manifest {
            schema_version: 2,
            media_type: None,
            config: Descriptor::new("config", Digest::of(b"config"), 1),
            layers: (0..layers).map(layer).collect(),
            annotations: None,
            rest: serde_json::Map::new(),
        }
    }

    #[test]
    fn a_snapshotter_is_told_image_and_layer_and_the_image_cannot_say_otherwise() {
        let reference: Reference = "r.example/a:1".parse().unwrap();
        let (manifest, digest, chain) = (manifest(3), Digest::of(b"manifest"), Digest::of(b"chain"));
        let labels = of_layer(&reference, &digest, &manifest, 1, &chain, 5);
        let layers: Vec<String> = manifest.layers.iter().map(|layer| layer.digest.to_string()).collect();
        let expected = [
            (TARGET, chain.to_string()),
            (IMAGE_REF, "r.example/a:1".to_owned()),
            (LAYER_DIGEST, layers[1].clone()),
            (IMAGE_LAYERS, layers[1..].join(",")),
            (MANIFEST_DIGEST, digest.to_string()),
            (TOC_DIGEST, "toc".to_owned()),
            (PREFETCH, "5".to_owned()),
        ];
        assert_eq!(labels, HashMap::from(expected.map(|(key, value)| (key.to_owned(), value))));
        assert!(!of_layer(&reference, &digest, &manifest, 1, &chain, 0).contains_key(PREFETCH));
    }

    #[test]
    fn the_list_of_layers_is_cut_to_what_a_label_holds() {
        let reference: Reference = "r.example/a:1".parse().unwrap();
        let (manifest, digest) = (manifest(200), Digest::of(b""));
        let labels = of_layer(&reference, &digest, &manifest, 0, &digest, 0);
        let list = &labels[IMAGE_LAYERS];
        assert!(list.len() + IMAGE_LAYERS.len() <= MOST && list.len() > MOST - 150, "{}", list.len());
        assert!(list.split(',').all(|digest| digest.parse::<Digest>().is_ok()), "{list}");
    }

    #[test]
    fn urls_are_told_by_their_place_in_the_list() {
        let reference: Reference = "r.example/a:1".parse().unwrap();
        let (mut manifest, digest) = (manifest(3), Digest::of(b""));
        manifest.layers[2].urls = Some(vec!["https://a".to_owned(), "https://b".to_owned()]);
        let labels = of_layer(&reference, &digest, &manifest, 1, &digest, 0);
        let urls: Vec<_> = labels.iter().filter(|(key, _)| key.starts_with(URLS)).collect();
        assert_eq!(urls, [(&format!("{URLS}.1"), &"https://a,https://b".to_owned())]);
    }
}
