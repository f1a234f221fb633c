//! What a manifest says of a layer after the conversion.

use content::Digest;
use estargz::{TOC_DIGEST_ANNOTATION, UNCOMPRESSED_SIZE_ANNOTATION};
use registry::{Descriptor, media_type};

use crate::report::{ConvertedLayer, Outcome};
use crate::toc_image::TocPart;

/// Annotation with the digest of the layer that a layer was made of. By it, and the next one, a layer that
/// was converted before is found again.
pub(crate) const SOURCE_ANNOTATION: &str = "io.pantala.source.digest";

/// Annotation with the name of the recipe by which the layer was made.
pub(crate) const OPTIONS_ANNOTATION: &str = "io.pantala.options";

/// Annotations that describe the bytes of a blob, and no others.
const OF_BYTES: [&str; 5] = [
    "io.github.containers.zstd-chunked.",
    "io.containers.zstd-chunked.",
    "io.pantala.",
    TOC_DIGEST_ANNOTATION,
    UNCOMPRESSED_SIZE_ANNOTATION,
];

/// A layer at its destination.
#[derive(Clone, Debug)]
pub(crate) struct Done {
    pub(crate) report: ConvertedLayer,
    /// The media type, in OCI's words.
    pub(crate) media_type: String,
    /// What it became; `None` if it is the blob that it was.
    pub(crate) made: Option<Made>,
    /// What the source's config must say, if the layer was inflated.
    pub(crate) source_diff_id: Option<Digest>,
    /// Its part of the TOC image.
    pub(crate) toc: Option<TocPart>,
}

/// A blob in place of another.
#[derive(Clone, Debug)]
pub(crate) struct Made {
    /// The blob, with all annotations that are true of its bytes.
    pub(crate) descriptor: Descriptor,
    /// What the image's config must say.
    pub(crate) diff_id: Digest,
}

impl Done {
    /// The descriptor for a manifest whose own one was `before`: all that is said there of the layer, and
    /// nothing that was true of its old bytes alone.
    pub(crate) fn descriptor(&self, before: &Descriptor) -> Descriptor {
        let Some(made) = &self.made else {
            return Descriptor { media_type: self.media_type.clone(), ..before.clone() };
        };
        let mut annotations = before.annotations.clone().unwrap_or_default();
        annotations.retain(|key, _| !is_of_bytes(key));
        annotations.extend(made.descriptor.annotations.clone().unwrap_or_default());
        let mut rest = before.rest.clone();
        // The old bytes themselves, which small blobs may carry along.
        rest.remove("data");
        Descriptor {
            annotations: Some(annotations),
            rest,
            platform: before.platform.clone(),
            ..made.descriptor.clone()
        }
    }
}

/// Whether an annotation describes the bytes of the blob rather than what it is good for.
pub(crate) fn is_of_bytes(key: &str) -> bool {
    OF_BYTES.iter().any(|prefix| key.starts_with(prefix))
}

impl ConvertedLayer {
    /// Takes over what a descriptor tells of its layer.
    pub(crate) fn describe(&mut self, descriptor: &Descriptor) {
        self.toc_digest = descriptor.annotation(TOC_DIGEST_ANNOTATION).and_then(|text| text.parse().ok());
        if self.outcome != Outcome::Foreign {
            self.uncompressed_size =
                descriptor.annotation(UNCOMPRESSED_SIZE_ANNOTATION).and_then(|text| text.parse().ok());
        }
    }
}

/// The media type in OCI's words; `None` for what is no tar.
pub(crate) fn oci_layer(media_type: &str) -> Option<&'static str> {
    let kind = media_type
        .strip_prefix("application/vnd.oci.image.layer.v1.tar")
        .or_else(|| media_type.strip_prefix("application/vnd.docker.image.rootfs.diff.tar"))?;
    match kind {
        "" => Some(media_type::OCI_LAYER),
        "+gzip" | ".gzip" => Some(media_type::OCI_LAYER_GZIP),
        "+zstd" | ".zstd" => Some(media_type::OCI_LAYER_ZSTD),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_types_become_oci_types() {
        for (media_type, oci) in [
            (media_type::DOCKER_LAYER_GZIP, Some(media_type::OCI_LAYER_GZIP)),
            (media_type::OCI_LAYER_ZSTD, Some(media_type::OCI_LAYER_ZSTD)),
            (media_type::OCI_LAYER, Some(media_type::OCI_LAYER)),
            ("application/vnd.docker.image.rootfs.diff.tar", Some(media_type::OCI_LAYER)),
            ("application/vnd.in-toto+json", None),
            ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", None),
        ] {
            assert_eq!(oci_layer(media_type), oci, "{media_type}");
        }
    }

    #[test]
    fn a_new_layer_keeps_what_was_said_of_the_old_one_and_forgets_what_its_bytes_were() {
        let mut before = Descriptor::new(media_type::OCI_LAYER_ZSTD, Digest::of(b"old"), 3);
        let annotation = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        before.annotations = Some(
            [
                annotation("org.example.note", "kept"),
                annotation("io.github.containers.zstd-chunked.manifest-position", "1:2:3:1"),
                annotation(OPTIONS_ANNOTATION, "stale"),
                annotation(UNCOMPRESSED_SIZE_ANNOTATION, "9"),
                annotation(TOC_DIGEST_ANNOTATION, "stale"),
            ]
            .into(),
        );
        before.rest.insert("data".into(), "b2xk".into());
        before.rest.insert("artifactType".into(), "x".into());
        let mut descriptor = Descriptor::new(media_type::OCI_LAYER_GZIP, Digest::of(b"new"), 9);
        descriptor.annotations = Some([annotation(TOC_DIGEST_ANNOTATION, "fresh")].into());
        let report = ConvertedLayer {
            outcome: Outcome::Converted,
            source_digest: before.digest,
            source_size: before.size,
            digest: descriptor.digest,
            size: descriptor.size,
            toc_digest: None,
            uncompressed_size: None,
            entries: None,
            seconds: 0.0,
        };
        let media_type = descriptor.media_type.clone();
        let made = Some(Made { descriptor, diff_id: Digest::of(b"tar") });
        let mut done = Done { report, media_type, made, source_diff_id: None, toc: None };
        let after = done.descriptor(&before);
        assert_eq!((after.digest, after.size), (Digest::of(b"new"), 9));
        assert_eq!(after.annotation(TOC_DIGEST_ANNOTATION), Some("fresh"));
        assert_eq!(after.annotation("org.example.note"), Some("kept"));
        assert_eq!(after.annotations.unwrap().len(), 2);
        assert_eq!(after.rest.keys().collect::<Vec<_>>(), ["artifactType"]);

        done.made = None;
        let kept = done.descriptor(&before);
        assert_eq!(kept, Descriptor { media_type: media_type::OCI_LAYER_GZIP.into(), ..before });
    }
}
