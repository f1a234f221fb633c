//! What a caller can choose, and what of it fits together.

use std::fmt;
use std::num::NonZeroUsize;
use std::str::FromStr;
use std::thread;

use super::BuildError;
use super::codec::Codec;
use super::pipeline::Plan;
use crate::toc::TocLimits;

/// Bytes of a file per chunk, as other tools have it: small enough to read at one go, large enough to
/// compress well.
pub const DEFAULT_CHUNK_SIZE: u32 = 4 << 20;

/// Level of gzip, as other tools have it.
pub const DEFAULT_LEVEL: u8 = 9;

/// Level of zstd, as zstd itself has it.
pub const DEFAULT_ZSTD_LEVEL: u8 = 3;

/// Least size of a member beyond which a reader would have to inflate far too much for a small file.
const MAX_MIN_CHUNK_SIZE: u32 = 16 << 20;

/// More workers than this would need gigabytes for members under way.
const MAX_WORKERS: usize = 16;

/// How a layer is laid out.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Format {
    /// gzip members, TOC and footer of stargz-snapshotter.
    #[default]
    Estargz,
    /// zstd frames, with the TOC that stargz-snapshotter and nerdctl read.
    ZstdChunked,
    /// zstd frames, with the TOC and the tar-split data that podman, buildah and skopeo read.
    ZstdChunkedPodman,
}

impl Format {
    /// Media type of such a layer.
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::Estargz => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::ZstdChunked | Self::ZstdChunkedPodman => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Estargz => "estargz",
            Self::ZstdChunked => "zstd:chunked",
            Self::ZstdChunkedPodman => "zstd:chunked (podman)",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A text that names no format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no layer format: there are estargz, zstd:chunked and \"zstd:chunked (podman)\"")]
pub struct FormatError(String);

impl FromStr for Format {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        [Self::Estargz, Self::ZstdChunked, Self::ZstdChunkedPodman]
            .into_iter()
            .find(|format| format.name() == text)
            .ok_or_else(|| FormatError(text.chars().take(80).collect()))
    }
}

/// Where the TOC of an eStargz layer is kept.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum TocPlace {
    /// In the blob, as its last tar entry.
    #[default]
    Inside,
    /// In an image of its own. The blob is then a compressed tar without a file too many.
    External,
}

/// How a layer is built.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// How the layer is laid out.
    pub format: Format,
    /// Bytes of a file per chunk; 0 for [`DEFAULT_CHUNK_SIZE`].
    pub chunk_size: u32,
    /// Compressed bytes that a gzip member holds at least: small files share one. 0: every file begins a
    /// member. Smaller members stand before a landmark, at the end, and where some megabytes of the layer
    /// compress to less.
    pub min_chunk_size: u32,
    /// 1 (fast) to 12 (small) for gzip, 1 to 22 for zstd; `None` for [`DEFAULT_LEVEL`] or
    /// [`DEFAULT_ZSTD_LEVEL`].
    pub level: Option<u8>,
    /// Where the TOC goes.
    pub toc: TocPlace,
    /// Every byte of the tar is kept, so that the layer has the diffID that it had. There is no landmark
    /// then, and an eStargz TOC must be [`TocPlace::External`]. [`Format::ZstdChunkedPodman`] always does it.
    pub keep_diff_id: bool,
    /// Threads that compress; `None` for one per core. Has no influence on the result.
    pub workers: Option<NonZeroUsize>,
}

impl Options {
    /// Whether the tar's bytes are passed on as they are.
    pub(super) fn is_raw(&self) -> bool {
        self.keep_diff_id || self.format == Format::ZstdChunkedPodman
    }

    /// Bytes of a file per chunk.
    pub(super) const fn chunk_len(&self) -> usize {
        (if self.chunk_size == 0 { DEFAULT_CHUNK_SIZE } else { self.chunk_size }) as usize
    }

    /// Number of threads that compress.
    pub(super) fn worker_count(&self) -> usize {
        self.workers
            .or_else(|| thread::available_parallelism().ok())
            .map_or(1, NonZeroUsize::get)
            .min(MAX_WORKERS)
    }

    /// Whether the TOC is a tar entry, which then ends the tar as well.
    pub(super) fn has_toc_entry(&self) -> bool {
        self.format == Format::Estargz && self.toc == TocPlace::Inside
    }

    /// How the blob is made of the tar.
    pub(super) fn plan(&self, codec: Codec) -> Plan {
        Plan { codec, workers: self.worker_count(), least: self.min_chunk_size as usize }
    }

    /// What compresses the layer, if the options fit together.
    pub(super) fn codec(&self) -> Result<Codec, BuildError> {
        if self.chunk_len() as u64 > u64::from(TocLimits::default().chunk_bytes) {
            return Err(BuildError::Options("the chunk size is larger than 256 MiB"));
        }
        if self.min_chunk_size > MAX_MIN_CHUNK_SIZE {
            return Err(BuildError::Options("the minimal chunk size is larger than 16 MiB"));
        }
        if self.format == Format::Estargz {
            let level = self.level.unwrap_or(DEFAULT_LEVEL);
            if !(1..=12).contains(&level) {
                return Err(BuildError::Options("the compression level of gzip must be between 1 and 12"));
            }
            if self.keep_diff_id && self.toc == TocPlace::Inside {
                return Err(BuildError::Options(
                    "an estargz layer can keep its diffID only with an external table of contents",
                ));
            }
            return Ok(Codec::Gzip { level });
        }
        let level = self.level.unwrap_or(DEFAULT_ZSTD_LEVEL);
        if !(1..=22).contains(&level) {
            return Err(BuildError::Options("the compression level of zstd must be between 1 and 22"));
        }
        if self.toc == TocPlace::External {
            return Err(BuildError::Options("zstd:chunked layers have no external table of contents"));
        }
        if self.min_chunk_size > 0 {
            return Err(BuildError::Options("zstd:chunked layers have no minimal chunk size"));
        }
        Ok(Codec::Zstd { level })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_read_as_they_are_written() {
        for format in [Format::Estargz, Format::ZstdChunked, Format::ZstdChunkedPodman] {
            assert_eq!(format.to_string().parse(), Ok(format));
        }
        assert!("zstd".parse::<Format>().unwrap_err().to_string().starts_with("\"zstd\" is no layer format"));
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let zstd = Options { format: Format::ZstdChunked, ..Options::default() };
        for (options, part) in [
            (Options { chunk_size: u32::MAX, ..Options::default() }, "256 MiB"),
            (Options { min_chunk_size: u32::MAX, ..Options::default() }, "16 MiB"),
            (Options { level: Some(13), ..Options::default() }, "between 1 and 12"),
            (Options { level: Some(0), ..zstd.clone() }, "between 1 and 22"),
            (Options { keep_diff_id: true, ..Options::default() }, "external"),
            (Options { toc: TocPlace::External, ..zstd.clone() }, "external"),
            (Options { min_chunk_size: 1, ..zstd.clone() }, "minimal"),
        ] {
            let error = options.codec().map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(part), "{error:?} does not say {part:?}");
        }
        assert_eq!(Options::default().codec().unwrap(), Codec::Gzip { level: 9 });
        assert_eq!(zstd.codec().unwrap(), Codec::Zstd { level: 3 });
        assert!(Options { level: Some(22), keep_diff_id: true, ..zstd }.codec().is_ok());
    }
}
