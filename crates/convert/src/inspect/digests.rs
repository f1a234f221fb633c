//! The TOC digest of each layer, as it is and not as an annotation claims.

use std::fmt;

use content::Digest;
use serde::Serialize;

use super::error::LookError;
use super::find::{ExternalTocs, Found, find_toc};
use super::image::one_image;
use super::{LayerKind, pin};
use crate::place::ImageSource;
use crate::platform::PlatformSpec;

/// A layer and its TOC digest.
#[derive(Clone, Debug, Serialize)]
pub struct LayerToc {
    /// Number of the layer, from 1, the lowest.
    pub number: usize,
    /// Digest of the blob.
    pub digest: Digest,
    /// What it is.
    pub kind: LayerKind,
    /// sha256 of its TOC; `None` if it has none that can be read.
    pub toc_digest: Option<Digest>,
    /// Whether the manifest pins this TOC.
    pub pinned: bool,
    /// Why there is none, or why it is not pinned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// The TOC digests of an image.
#[derive(Clone, Debug, Serialize)]
pub struct TocDigests {
    /// The name.
    pub reference: String,
    /// `linux/amd64`.
    pub platform: String,
    /// The layers, lowest first.
    pub layers: Vec<LayerToc>,
}

/// Finds the TOC digest of every layer of an image, or of the layer with the number `only`.
///
/// # Errors
/// [`LookError`].
pub async fn toc_digests(
    source: &dyn ImageSource,
    platform: Option<&PlatformSpec>,
    only: Option<usize>,
) -> Result<TocDigests, LookError> {
    let image = one_image(source, platform).await?;
    let all = &image.manifest.layers;
    if let Some(wanted) = only.filter(|wanted| !(1..=all.len()).contains(wanted)) {
        let reference = source.place().to_string();
        return Err(LookError::NoLayer { reference, wanted, layers: all.len() });
    }
    let external = ExternalTocs::new(source);
    let mut layers = Vec::new();
    for (number, layer) in (1..).zip(all).filter(|(number, _)| only.is_none_or(|only| only == *number)) {
        let kind = LayerKind::ordinary(&layer.media_type);
        let mut report =
            LayerToc { number, digest: layer.digest, kind, toc_digest: None, pinned: false, problem: None };
        if !matches!(kind, LayerKind::Foreign | LayerKind::Other) {
            match find_toc(source, layer, &external).await? {
                Found::Nothing => {}
                Found::Broken(problem) => report.problem = Some(problem),
                Found::Toc(found) => {
                    report.kind = found.kind.into();
                    report.toc_digest = Some(found.digest);
                    report.problem = pin(layer, &found).err();
                    report.pinned = report.problem.is_none();
                }
            }
        }
        layers.push(report);
    }
    Ok(TocDigests { reference: source.place().to_string(), platform: image.platform, layers })
}

/// One line for each layer: its digest and that of its TOC, or `-`.
impl fmt::Display for TocDigests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.layers.iter().try_for_each(|layer| match layer.toc_digest {
            Some(toc) => writeln!(f, "{} {toc}", layer.digest),
            None => writeln!(f, "{} -", layer.digest),
        })
    }
}
