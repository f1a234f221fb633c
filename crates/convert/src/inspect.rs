//! Looking into an image without pulling it: manifests, and of each layer its last bytes.
//!
//! A layer's table of contents stands at its end, so a few hundred kilobytes tell everything about gigabytes:
//! which files there are, what a start would fetch, whether the table is the one that the manifest pins. No
//! blob is ever read whole; what only a whole reading tells is `verify`'s.

use std::fmt;

use content::Digest;
use estargz::audit::list_toc;
use estargz::{BlobKind, Landmark, TOC_DIGEST_ANNOTATION, Toc, TocLimits, UNCOMPRESSED_SIZE_ANNOTATION};
use futures::stream::{self, StreamExt, TryStreamExt};
use registry::{Descriptor, media_type};
use serde::Serialize;

use crate::place::ImageSource;
use crate::platform::PlatformSpec;

mod digests;
mod error;
mod files;
pub(crate) mod find;
pub(crate) mod image;
pub(crate) mod show;

pub use digests::{LayerToc, TocDigests, toc_digests};
pub use error::LookError;
pub use files::FileReport;
pub(crate) use files::kind_word;

use find::{ExternalTocs, Found, FoundToc, find_toc};
use image::{Image, images};

/// Layers that are looked into at once.
const AT_ONCE: usize = 8;

/// Annotations by which an image pins the compressed TOC of a zstd:chunked layer: stargz-snapshotter's, and
/// that of containers/storage.
const CHECKSUM_ANNOTATIONS: [&str; 2] =
    ["io.containers.zstd-chunked.manifest-checksum", "io.github.containers.zstd-chunked.manifest-checksum"];

/// What is looked for.
#[derive(Clone, Debug, Default)]
pub struct InspectOptions {
    /// This platform alone.
    pub platform: Option<PlatformSpec>,
    /// List the files.
    pub files: bool,
    /// Only this layer, counted from 1, the lowest.
    pub layer: Option<usize>,
}

/// What a layer is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub enum LayerKind {
    /// eStargz.
    #[serde(rename = "estargz")]
    Estargz,
    /// eStargz of the first generation, without digests: nobody mounts it.
    #[serde(rename = "legacy stargz")]
    Legacy,
    /// eStargz whose TOC is in another image.
    #[serde(rename = "estargz (external TOC)")]
    External,
    /// zstd:chunked of stargz-snapshotter.
    #[serde(rename = "zstd:chunked")]
    ZstdChunked,
    /// zstd:chunked of containers/storage.
    #[serde(rename = "zstd:chunked (podman)")]
    ZstdChunkedPodman,
    /// An ordinary layer, gzip.
    #[serde(rename = "gzip")]
    Gzip,
    /// An ordinary layer, zstd.
    #[serde(rename = "zstd")]
    Zstd,
    /// An ordinary layer, not compressed.
    #[serde(rename = "tar")]
    Tar,
    /// No layer of files at all.
    #[serde(rename = "other")]
    Other,
    /// It has a TOC, or claims to, that is not usable; `problem` says why.
    #[serde(rename = "broken")]
    Broken,
    /// Its blob is kept elsewhere.
    #[serde(rename = "foreign")]
    Foreign,
}

impl LayerKind {
    /// The name, for people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Estargz => "estargz",
            Self::Legacy => "legacy stargz",
            Self::External => "estargz (external TOC)",
            Self::ZstdChunked => "zstd:chunked",
            Self::ZstdChunkedPodman => "zstd:chunked (podman)",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Tar => "tar",
            Self::Other => "other",
            Self::Broken => "broken",
            Self::Foreign => "foreign",
        }
    }

    /// An ordinary layer of this media type.
    pub(crate) fn ordinary(media_type: &str) -> Self {
        if media_type::is_foreign(media_type) {
            Self::Foreign
        } else if media_type.ends_with("gzip") {
            Self::Gzip
        } else if media_type.ends_with("zstd") {
            Self::Zstd
        } else if media_type.rsplit('.').next() == Some("tar") {
            Self::Tar
        } else {
            Self::Other
        }
    }
}

impl From<BlobKind> for LayerKind {
    fn from(kind: BlobKind) -> Self {
        match kind {
            BlobKind::Estargz => Self::Estargz,
            BlobKind::Legacy => Self::Legacy,
            BlobKind::External => Self::External,
            BlobKind::ZstdChunked => Self::ZstdChunked,
            BlobKind::ZstdChunkedPodman => Self::ZstdChunkedPodman,
        }
    }
}

impl fmt::Display for LayerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What must be fetched before a container can start.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize)]
pub struct StartReport {
    /// Requests to the registry for layers: tails, tables of contents, prefetched ranges, whole layers.
    pub requests: u64,
    /// Bytes of layers that those bring.
    pub bytes: u64,
}

/// A layer. What only a TOC tells is there for layers that have one.
#[derive(Clone, Debug, Serialize)]
pub struct LayerReport {
    /// Number of the layer, from 1, the lowest.
    pub number: usize,
    /// Digest of the blob.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// Its bytes.
    pub size: u64,
    /// What it is.
    pub kind: LayerKind,
    /// Why it is not mounted lazily though it looks like it, or why its files cannot be listed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Whether it can be mounted lazily: it has a verifiable TOC, and the manifest pins that one.
    pub lazy: bool,
    /// The TOC digest by which the manifest pins the TOC.
    pub toc_digest: Option<Digest>,
    /// The digest of the TOC that is there.
    pub found_toc_digest: Option<Digest>,
    /// Bytes of the TOC's JSON.
    pub toc_bytes: Option<u64>,
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
    /// Bytes of the blob for one byte of its files, or of the inflated blob if nothing else is known.
    pub ratio: Option<f64>,
    /// What a start fetches of it.
    pub start: StartReport,
    /// The files, if they were asked for and there is a TOC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_list: Option<Vec<FileReport>>,
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
    /// What a start fetches; of layers that are not lazy that is the whole.
    pub start: StartReport,
    /// The layers, lowest first.
    pub layers: Vec<LayerReport>,
}

/// An image.
#[derive(Clone, Debug, Serialize)]
pub struct ImageReport {
    /// The name.
    pub reference: String,
    /// Digest of what it stands for: a manifest or an index.
    pub digest: Digest,
    /// Media type of that.
    pub media_type: String,
    /// Its platforms.
    pub platforms: Vec<PlatformReport>,
}

/// Looks into the image `source`.
///
/// # Errors
/// [`LookError`]. A layer that is broken is told in the report.
pub async fn inspect(source: &dyn ImageSource, options: &InspectOptions) -> Result<ImageReport, LookError> {
    let found = images(source, options.platform.as_ref()).await?;
    let inspector = Inspector { source, options, external: ExternalTocs::new(source) };
    let mut platforms = Vec::with_capacity(found.images.len());
    for image in &found.images {
        platforms.push(inspector.image(image).await?);
    }
    Ok(ImageReport {
        reference: source.place().to_string(),
        digest: found.root.digest,
        media_type: found.root.media_type,
        platforms,
    })
}

struct Inspector<'a> {
    source: &'a dyn ImageSource,
    options: &'a InspectOptions,
    external: ExternalTocs<'a>,
}

impl Inspector<'_> {
    async fn image(&self, image: &Image) -> Result<PlatformReport, LookError> {
        let all = &image.manifest.layers;
        if let Some(wanted) = self.options.layer.filter(|wanted| !(1..=all.len()).contains(wanted)) {
            let reference = self.source.place().to_string();
            return Err(LookError::NoLayer { reference, wanted, layers: all.len() });
        }
        // Made by a loop: a closure over references would keep this from being spawned as a task.
        let mut work = Vec::with_capacity(all.len());
        for (number, layer) in (1..).zip(all) {
            if self.options.layer.is_none_or(|wanted| wanted == number) {
                work.push(self.layer(number, layer));
            }
        }
        let layers: Vec<LayerReport> = stream::iter(work).buffered(AT_ONCE).try_collect().await?;
        let start = layers.iter().fold(StartReport::default(), |sum, layer| StartReport {
            requests: sum.requests + layer.start.requests,
            bytes: sum.bytes.saturating_add(layer.start.bytes),
        });
        Ok(PlatformReport {
            platform: image.platform.clone(),
            digest: image.descriptor.digest,
            media_type: image.descriptor.media_type.clone(),
            size: layers.iter().fold(0, |sum, layer| sum.saturating_add(layer.size)),
            lazy: layers.iter().all(|layer| layer.lazy),
            start,
            layers,
        })
    }

    async fn layer(&self, number: usize, layer: &Descriptor) -> Result<LayerReport, LookError> {
        let mut report = LayerReport::new(number, layer);
        if matches!(report.kind, LayerKind::Foreign | LayerKind::Other) {
            return Ok(report);
        }
        match find_toc(self.source, layer, &self.external).await? {
            Found::Nothing => {
                if report.toc_digest.is_some() {
                    report.broken("the manifest promises a table of contents, the blob has none");
                } else if self.options.files {
                    let note = "an ordinary layer: which files it has is not known before all of it is read";
                    report.problem = Some(note.to_owned());
                }
            }
            Found::Broken(problem) => report.broken(problem),
            Found::Toc(found) => report.describe(layer, &found, self.options.files),
        }
        Ok(report)
    }
}

impl LayerReport {
    fn new(number: usize, layer: &Descriptor) -> Self {
        let uncompressed_size =
            layer.annotation(UNCOMPRESSED_SIZE_ANNOTATION).and_then(|text| text.parse().ok());
        Self {
            number,
            digest: layer.digest,
            media_type: layer.media_type.clone(),
            size: layer.size,
            kind: LayerKind::ordinary(&layer.media_type),
            problem: None,
            lazy: false,
            toc_digest: layer.annotation(TOC_DIGEST_ANNOTATION).and_then(|text| text.parse().ok()),
            found_toc_digest: None,
            toc_bytes: None,
            entries: None,
            files: None,
            chunks: None,
            landmark: None,
            prefetch_bytes: None,
            uncompressed_size,
            file_bytes: None,
            ratio: ratio(layer.size, uncompressed_size),
            start: StartReport { requests: 1, bytes: layer.size },
            file_list: None,
        }
    }

    fn broken(&mut self, problem: impl Into<String>) {
        self.kind = LayerKind::Broken;
        self.problem = Some(problem.into());
    }

    fn describe(&mut self, layer: &Descriptor, found: &FoundToc, with_files: bool) {
        self.found_toc_digest = Some(found.digest);
        self.toc_bytes = Some(found.json.len() as u64);
        let limits = TocLimits { unverified: found.kind == BlobKind::Legacy, ..TocLimits::default() };
        let toc = match Toc::parse(&found.json, found.payload_end, &limits) {
            Ok(toc) => toc,
            Err(error) => return self.broken(error.to_string()),
        };
        self.kind = found.kind.into();
        let pin = pin(layer, found);
        self.lazy = pin.is_ok() && found.kind.is_verifiable();
        self.problem = match pin {
            Err(problem) => Some(problem),
            Ok(()) if !self.lazy => Some("its files have no digests: convert the image again".to_owned()),
            Ok(()) => None,
        };
        let (landmark, prefetch) = match toc.landmark() {
            Landmark::Absent => ("none", 0),
            Landmark::NoPrefetch => ("no-prefetch", 0),
            Landmark::Prefetch(end) => ("prefetch", end),
        };
        if self.lazy {
            self.start = StartReport {
                requests: found.requests + u64::from(prefetch > 0),
                bytes: found.fetched.saturating_add(prefetch),
            };
        }
        let files = toc.inodes().filter(|inode| inode.kind() == estargz::Kind::Regular).count();
        self.entries = Some(u64::from(toc.inode_count()));
        self.files = Some(files as u64);
        self.chunks = Some(u64::from(toc.chunk_count()));
        self.file_bytes = Some(toc.file_bytes());
        self.ratio = ratio(self.size, Some(toc.file_bytes()));
        self.landmark = Some(landmark);
        self.prefetch_bytes = Some(prefetch);
        if with_files {
            match list_toc(&found.json) {
                Ok(listing) => self.file_list = Some(files::report(&listing, prefetch)),
                Err(error) => self.problem = Some(error.to_string()),
            }
        }
    }
}

/// Whether the manifest pins this TOC, by its own digest or by that of its compressed form.
pub(crate) fn pin(layer: &Descriptor, found: &FoundToc) -> Result<(), String> {
    let toc = &found.digest;
    if let Some(pinned) = layer.annotation(TOC_DIGEST_ANNOTATION) {
        return if pinned == toc.to_string() {
            Ok(())
        } else {
            Err(format!("the table of contents is {toc}, the manifest pins {pinned:?}"))
        };
    }
    let checksum = CHECKSUM_ANNOTATIONS.iter().find_map(|key| layer.annotation(key));
    match (checksum, found.compressed_digest) {
        (Some(pinned), Some(compressed)) if pinned == compressed.to_string() => Ok(()),
        (Some(pinned), Some(compressed)) => {
            Err(format!("the compressed table of contents is {compressed}, the manifest pins {pinned:?}"))
        }
        _ => Err(format!(
            "the manifest does not pin its table of contents (annotation {TOC_DIGEST_ANNOTATION}), so nobody mounts it"
        )),
    }
}

fn ratio(size: u64, of: Option<u64>) -> Option<f64> {
    of.filter(|of| *of > 0).map(|of| (size as f64 / of as f64 * 1000.0).round() / 1000.0)
}
