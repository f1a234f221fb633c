//! Whether a layer can be mounted lazily already. What the manifest promises is held against the blob's own
//! end, so that no layer is kept that a mount would refuse.

use content::Digest;
use estargz::{BlobKind, Format, Landmark, TOC_DIGEST_ANNOTATION, TailState, Toc, TocLimits, TocPlace};
use registry::Descriptor;

use crate::error::ConvertError;
use crate::place::ImageSource;
use crate::tail::read_end;

/// Annotation by which containers/storage pins a TOC.
const PODMAN_CHECKSUM: &str = "io.github.containers.zstd-chunked.manifest-checksum";

/// A layer with a TOC that its manifest pins.
pub(super) struct Lazy {
    pub(super) kind: BlobKind,
    /// Whether a landmark says which files come first. Not known if the TOC is kept elsewhere.
    pub(super) landmark: bool,
}

/// The kind of blob that the options make.
pub(super) const fn wished(options: &estargz::Options) -> BlobKind {
    match (options.format, options.toc) {
        (Format::Estargz, TocPlace::Inside) => BlobKind::Estargz,
        (Format::Estargz, TocPlace::External) => BlobKind::External,
        (Format::ZstdChunked, _) => BlobKind::ZstdChunked,
        (Format::ZstdChunkedPodman, _) => BlobKind::ZstdChunkedPodman,
    }
}

/// Looks at the end of `layer`. `None` if it cannot be mounted lazily: nothing is pinned, there is no TOC, or
/// another one than the manifest promises.
pub(super) async fn probe(
    source: &dyn ImageSource,
    layer: &Descriptor,
) -> Result<Option<Lazy>, ConvertError> {
    let pinned = layer.annotation(TOC_DIGEST_ANNOTATION);
    let podman = layer.annotation(PODMAN_CHECKSUM);
    if (pinned.is_none() && podman.is_none()) || layer.size == 0 {
        return Ok(None);
    }
    let blob = source.ranges(layer).await?;
    let end = read_end(&*blob).await;
    let state = match end.map_err(|reason| ConvertError::Read { digest: layer.digest, reason })?.state {
        Ok(state) => state,
        Err(reason) => {
            tracing::debug!(layer = %layer.digest, %reason, "converting a layer that only claims to be lazy");
            return Ok(None);
        }
    };
    Ok(match state {
        TailState::Toc { json, toc_offset, digest, compressed_digest, kind } => {
            let held = match kind {
                BlobKind::ZstdChunkedPodman => {
                    podman == compressed_digest.map(|it| it.to_string()).as_deref()
                }
                _ => pinned == Some(digest.to_string().as_str()),
            };
            held.then(|| Lazy { kind, landmark: landmark(&json, toc_offset) })
        }
        TailState::External { .. } => Some(Lazy { kind: BlobKind::External, landmark: false }),
        TailState::NeedMore { .. } => None,
    })
}

/// The pinned digest of the TOC that `layer` has in itself, if it can be mounted with that alone.
pub(crate) async fn mountable_toc(
    source: &dyn ImageSource,
    layer: &Descriptor,
) -> Result<Option<Digest>, ConvertError> {
    let Some(pinned) = layer.annotation(TOC_DIGEST_ANNOTATION).and_then(|text| text.parse().ok()) else {
        return Ok(None);
    };
    let lazy = probe(source, layer).await?;
    let inside = |lazy: &Lazy| matches!(lazy.kind, BlobKind::Estargz | BlobKind::ZstdChunked);
    Ok(lazy.filter(inside).map(|_| pinned))
}

/// Whether the TOC has a landmark behind files that come first.
pub(super) fn landmark(json: &[u8], payload_end: u64) -> bool {
    let toc = Toc::parse(json, payload_end, &TocLimits::default());
    toc.is_ok_and(|toc| matches!(toc.landmark(), Landmark::Prefetch(_)))
}
