//! Looking into an image without pulling it: manifests, and of each layer its last bytes.

use std::fmt;

use bytes::Bytes;
use content::{ByteRange, Digest, Urgency};
use estargz::footer::FooterError;
use estargz::{
    Kind, Landmark, TOC_DIGEST_ANNOTATION, TailError, TailState, Toc, TocLimits,
    UNCOMPRESSED_SIZE_ANNOTATION, open_tail,
};
use futures::stream::{self, StreamExt, TryStreamExt};
use registry::{Client, Descriptor, Index, Manifest, Reference, media_type};
use serde::Serialize;
use serde_json::Value;

use crate::convert::{document, pick, platform_of, platforms, read_config};
use crate::error::ConvertError;
use crate::platform::{self, PlatformSpec};

/// How much of a layer's end is fetched at first: the TOC of some four thousand files.
const TAIL: u64 = 256 * 1024;

/// Layers that are looked into at once.
const AT_ONCE: usize = 8;

/// What a layer is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub enum LayerKind {
    /// It can be mounted lazily.
    #[serde(rename = "estargz")]
    Estargz,
    /// zstd:chunked.
    #[serde(rename = "zstd:chunked")]
    ZstdChunked,
    /// An ordinary layer.
    #[serde(rename = "plain")]
    Plain,
    /// It looks like eStargz and is not usable as such; `problem` says why.
    #[serde(rename = "broken")]
    Broken,
    /// Its blob is kept elsewhere.
    #[serde(rename = "foreign")]
    Foreign,
}

impl fmt::Display for LayerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Estargz => "estargz",
            Self::ZstdChunked => "zstd:chunked",
            Self::Plain => "plain",
            Self::Broken => "broken",
            Self::Foreign => "foreign",
        })
    }
}

/// A layer. What only a TOC tells is there for eStargz layers alone.
#[derive(Clone, Debug, Serialize)]
pub struct LayerReport {
    /// Digest of the blob.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// Its bytes.
    pub size: u64,
    /// What it is.
    pub kind: LayerKind,
    /// Why it cannot be mounted lazily though it looks like it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// The TOC digest by which the manifest pins the TOC. Without it nothing is mounted lazily.
    pub toc_digest: Option<Digest>,
    /// Inodes of the layer.
    pub entries: Option<u64>,
    /// Regular files among them.
    pub files: Option<u64>,
    /// Chunks of those.
    pub chunks: Option<u64>,
    /// `prefetch`, `no-prefetch` or `none`.
    pub landmark: Option<&'static str>,
    /// Bytes of the blob that a mount fetches ahead.
    pub prefetch_bytes: Option<u64>,
    /// Bytes of the inflated blob, if the manifest says so.
    pub uncompressed_size: Option<u64>,
    /// Bytes of all regular files.
    pub file_bytes: Option<u64>,
}

/// The image of one platform.
#[derive(Clone, Debug, Serialize)]
pub struct PlatformReport {
    /// `linux/amd64`; `unknown/unknown` for what an index says about its images.
    pub platform: String,
    /// Digest of the manifest.
    pub digest: Digest,
    /// Media type of the manifest.
    pub media_type: String,
    /// Bytes of all layers.
    pub size: u64,
    /// Whether every layer can be mounted lazily.
    pub lazy: bool,
    /// The layers, lowest first.
    pub layers: Vec<LayerReport>,
}

/// An image.
#[derive(Clone, Debug, Serialize)]
pub struct ImageReport {
    /// The reference.
    pub reference: String,
    /// Digest of what it stands for: a manifest or an index.
    pub digest: Digest,
    /// Media type of that.
    pub media_type: String,
    /// Its platforms.
    pub platforms: Vec<PlatformReport>,
}

/// Looks into the image `reference`: all of it, or one platform.
///
/// # Errors
/// [`ConvertError`]. A layer that is broken is told in the report.
pub async fn inspect(
    client: &Client,
    reference: &Reference,
    platform: Option<&PlatformSpec>,
) -> Result<ImageReport, ConvertError> {
    let (top, bytes) = client.manifest(reference).await?;
    let inspector = Inspector { client, reference };
    let mut reports = Vec::new();
    if media_type::is_index(&top.media_type) {
        let index: Index = document("index", top.digest, &bytes)?;
        let wanted: Vec<&Descriptor> = match platform {
            None => index.manifests.iter().collect(),
            Some(wanted) => vec![pick(&index, wanted).ok_or_else(|| ConvertError::Platform {
                reference: reference.to_string(),
                wanted: wanted.to_string(),
                available: platforms(&index),
            })?],
        };
        for descriptor in wanted {
            let at = reference.clone().with_digest(descriptor.digest);
            let (_, bytes) = client.manifest(&at).await?;
            reports.push(inspector.manifest(descriptor, &bytes).await?);
        }
    } else {
        reports.push(inspector.manifest(&top, &bytes).await?);
    }
    Ok(ImageReport {
        reference: reference.to_string(),
        digest: top.digest,
        media_type: top.media_type,
        platforms: reports,
    })
}

struct Inspector<'a> {
    client: &'a Client,
    reference: &'a Reference,
}

impl Inspector<'_> {
    async fn manifest(&self, descriptor: &Descriptor, bytes: &Bytes) -> Result<PlatformReport, ConvertError> {
        if !media_type::is_manifest(&descriptor.media_type) {
            return Err(ConvertError::NotAnImage {
                reference: self.reference.to_string(),
                media_type: descriptor.media_type.clone(),
            });
        }
        let manifest: Manifest = document("manifest", descriptor.digest, bytes)?;
        let platform = match &descriptor.platform {
            Some(platform) => platform::display(platform),
            None => self.platform_of(&manifest).await?,
        };
        // Made by a loop: a closure over references would keep this from being spawned as a task.
        let mut work = Vec::with_capacity(manifest.layers.len());
        for layer in &manifest.layers {
            work.push(self.layer(layer));
        }
        let layers: Vec<LayerReport> = stream::iter(work).buffered(AT_ONCE).try_collect().await?;
        Ok(PlatformReport {
            platform,
            digest: descriptor.digest,
            media_type: descriptor.media_type.clone(),
            size: layers.iter().map(|layer| layer.size).sum(),
            lazy: layers.iter().all(|layer| layer.kind == LayerKind::Estargz && layer.toc_digest.is_some()),
            layers,
        })
    }

    /// A manifest that stands alone says nothing of its platform; its config does.
    async fn platform_of(&self, manifest: &Manifest) -> Result<String, ConvertError> {
        let bytes = read_config(self.client, self.reference, &manifest.config).await?;
        let config: Value = document("config", manifest.config.digest, &bytes)?;
        Ok(platform_of(&config).as_ref().map_or_else(|| "unknown".to_owned(), platform::display))
    }

    async fn layer(&self, layer: &Descriptor) -> Result<LayerReport, ConvertError> {
        let number = |key: &str| layer.annotation(key).and_then(|text| text.parse().ok());
        let mut report = LayerReport {
            digest: layer.digest,
            media_type: layer.media_type.clone(),
            size: layer.size,
            kind: LayerKind::Plain,
            problem: None,
            toc_digest: layer.annotation(TOC_DIGEST_ANNOTATION).and_then(|text| text.parse().ok()),
            entries: None,
            files: None,
            chunks: None,
            landmark: None,
            prefetch_bytes: None,
            uncompressed_size: number(UNCOMPRESSED_SIZE_ANNOTATION),
            file_bytes: None,
        };
        if media_type::is_foreign(&layer.media_type) {
            report.kind = LayerKind::Foreign;
            return Ok(report);
        }
        match self.toc(layer).await? {
            Ok(toc) => describe(&mut report, &toc),
            Err(TailError::Footer(FooterError::Absent | FooterError::Short(_))) => {
                if report.toc_digest.is_some() {
                    report.kind = LayerKind::Broken;
                    report.problem =
                        Some("the manifest promises a table of contents, the blob has none".into());
                }
            }
            Err(TailError::Footer(FooterError::ZstdChunked)) => report.kind = LayerKind::ZstdChunked,
            Err(problem) => {
                report.kind = LayerKind::Broken;
                report.problem = Some(problem.to_string());
            }
        }
        Ok(report)
    }

    /// The TOC's JSON and where it begins, or why there is none.
    async fn toc(&self, layer: &Descriptor) -> Result<Result<Found, TailError>, ConvertError> {
        let failed = |reason| ConvertError::Read { digest: layer.digest, reason };
        let origin = self.client.origin(self.reference, &layer.digest, Some(layer.size));
        let tail = origin.tail(TAIL.min(layer.size).max(1)).await.map_err(failed)?;
        let mut state = open_tail(&tail.bytes, tail.len);
        if let Ok(TailState::NeedMore { from }) = state {
            let range = ByteRange::new(from, tail.len);
            let bytes = origin.read(range, Urgency::Blocking).await.map_err(failed)?;
            state = open_tail(&bytes, tail.len);
        }
        Ok(match state {
            Ok(TailState::Toc { json, toc_offset, .. }) => Ok((json, toc_offset)),
            Ok(TailState::NeedMore { .. }) => Err(TailError::Footer(FooterError::Absent)),
            Err(error) => Err(error),
        })
    }
}

/// JSON of a TOC, and where in the blob it begins.
type Found = (Vec<u8>, u64);

fn describe(report: &mut LayerReport, (json, toc_offset): &Found) {
    report.kind = LayerKind::Broken;
    let toc = match Toc::parse(json, *toc_offset, &TocLimits::default()) {
        Ok(toc) => toc,
        Err(error) => {
            report.problem = Some(error.to_string());
            return;
        }
    };
    if let Some(pinned) = report.toc_digest.filter(|pinned| *pinned != toc.digest()) {
        report.problem =
            Some(format!("the table of contents is {}, the manifest promises {pinned}", toc.digest()));
        return;
    }
    report.kind = LayerKind::Estargz;
    let files = toc.inodes().filter(|inode| inode.kind() == Kind::Regular).count();
    report.entries = Some(u64::from(toc.inode_count()));
    report.files = Some(files as u64);
    report.chunks = Some(u64::from(toc.chunk_count()));
    report.file_bytes = Some(toc.file_bytes());
    let (landmark, prefetch) = match toc.landmark() {
        Landmark::Absent => ("none", 0),
        Landmark::NoPrefetch => ("no-prefetch", 0),
        Landmark::Prefetch(end) => ("prefetch", end),
    };
    report.landmark = Some(landmark);
    report.prefetch_bytes = Some(prefetch);
}
