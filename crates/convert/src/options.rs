//! How an image is converted, and the name of a way to convert a layer.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

use estargz::{DEFAULT_CHUNK_SIZE, DEFAULT_LEVEL, DEFAULT_ZSTD_LEVEL, Format, TocPlace};
use tokio_util::sync::CancellationToken;

use crate::error::ConvertError;
use crate::platform::PlatformSpec;
use crate::prefetch::{Prefetch, Ranks};

/// Goes up when the same input and options give other bytes than before, so that layers of an older Pantala
/// are not taken for what this one would make.
const LAYER_VERSION: u32 = 1;

/// Which images of an index are converted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Platforms {
    /// All that the source has. A layout, an archive or containerd often holds an index whole and only some
    /// of its images: the others are left out, with a warning.
    #[default]
    Present,
    /// All; one that is not there is an error.
    All,
    /// These. One alone becomes a manifest without an index, several an index of no more than them.
    Only(Vec<PlatformSpec>),
}

/// How an image is converted.
#[derive(Clone, Debug, Default)]
pub struct ConvertOptions {
    /// Which images of an index.
    pub platforms: Platforms,
    /// How each layer is built. Its number of workers is chosen here if it is not given.
    pub layer: estargz::Options,
    /// Files that come first in their layers.
    pub prefetch: Prefetch,
    /// With files to come first: keep layers that have such an order already, whatever it is.
    pub reuse: bool,
    /// Convert layers again that need not be, and look for none that were converted before.
    pub force: bool,
    /// Keep every layer as it is: a copy.
    pub verbatim: bool,
    /// Keep a layer that cannot be converted as it is, instead of failing.
    pub skip_unconvertible: bool,
    /// Layers that are converted at once; `None` for as many as memory and cores allow.
    pub jobs: Option<NonZeroUsize>,
    /// Directory of the index of layers that were converted before; `None` for none.
    pub cache: Option<PathBuf>,
    /// Cancelled when the conversion is not wanted any more: it ends with [`ConvertError::Interrupted`],
    /// and nothing half written is left.
    pub stop: CancellationToken,
}

impl ConvertOptions {
    /// Whether the options fit together.
    ///
    /// # Errors
    /// [`ConvertError::Options`] with what does not.
    pub fn check(&self) -> Result<(), ConvertError> {
        let layer = &self.layer;
        let gzip = layer.format == Format::Estargz;
        let problem = if !gzip && layer.toc == TocPlace::External {
            "an external table of contents exists for estargz alone: leave out --external-toc or --zstdchunked"
        } else if !gzip && layer.min_chunk_size > 0 {
            "--min-chunk-size exists for estargz alone: leave it out, or --zstdchunked"
        } else if gzip && layer.keep_diff_id && layer.toc == TocPlace::Inside {
            "an estargz layer can keep its diffID only if its table of contents is elsewhere: add --external-toc"
        } else if layer.keep_diff_id && !self.prefetch.is_empty() {
            "--keep-diff-id keeps the order of files: leave it out to put some of them first"
        } else if layer.format == Format::ZstdChunkedPodman && !self.prefetch.is_empty() {
            "zstd:chunked of podman keeps the order of files: use --zstdchunked to put some of them first"
        } else if layer.level.is_some_and(|level| level == 0 || level > if gzip { 12 } else { 22 }) {
            "the level must be from 1 to 12 for estargz, from 1 to 22 for zstd:chunked"
        } else {
            return Ok(());
        };
        Err(ConvertError::Options(problem))
    }
}

/// How one layer is made. Two layers that were made of the same source by recipes with the same
/// [`Recipe::name`] are the same, byte for byte.
#[derive(Clone, Debug)]
pub(crate) struct Recipe {
    pub(crate) layer: estargz::Options,
    pub(crate) ranks: Option<Arc<Ranks>>,
}

impl Recipe {
    /// What the options ask for.
    pub(crate) fn new(options: &ConvertOptions) -> Self {
        Self { layer: options.layer.clone(), ranks: options.prefetch.ranks() }
    }

    /// Whether the layer keeps the diffID that it has.
    pub(crate) fn keeps_diff_id(&self) -> bool {
        self.layer.keep_diff_id || self.layer.format == Format::ZstdChunkedPodman
    }

    /// All that has an influence on the bytes, as text; it becomes an annotation and part of the index's key.
    pub(crate) fn name(&self) -> String {
        use std::fmt::Write as _;

        let estargz::Options { format, chunk_size, min_chunk_size, level, toc, keep_diff_id, workers: _ } =
            self.layer;
        let default_level = if format == Format::Estargz { DEFAULT_LEVEL } else { DEFAULT_ZSTD_LEVEL };
        let chunk_size = if chunk_size == 0 { DEFAULT_CHUNK_SIZE } else { chunk_size };
        let level = level.unwrap_or(default_level);
        let mut name = format!("v{LAYER_VERSION} {format} level={level} chunk={chunk_size}");
        // Writing to a String cannot fail.
        if min_chunk_size > 0 {
            let _ = write!(name, " min-chunk={min_chunk_size}");
        }
        if toc == TocPlace::External {
            name.push_str(" external-toc");
        }
        if keep_diff_id {
            name.push_str(" keep-diff-id");
        }
        if let Some(ranks) = &self.ranks {
            let _ = write!(name, " order={}", ranks.digest().hex());
        }
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(layer: estargz::Options) -> ConvertOptions {
        ConvertOptions { layer, ..ConvertOptions::default() }
    }

    #[test]
    fn what_does_not_fit_together_says_what_to_leave_out() {
        use estargz::Options;
        let zstd = || Options { format: Format::ZstdChunked, ..Options::default() };
        let mut prefetch = Prefetch::default();
        prefetch.add_list("a").unwrap();
        let raw = Options { toc: TocPlace::External, keep_diff_id: true, ..Options::default() };
        for (options, word) in [
            (with(Options { toc: TocPlace::External, ..zstd() }), "--external-toc"),
            (with(Options { min_chunk_size: 1, ..zstd() }), "--min-chunk-size"),
            (with(Options { keep_diff_id: true, ..Options::default() }), "--external-toc"),
            (with(Options { level: Some(13), ..Options::default() }), "1 to 12"),
            (with(Options { level: Some(23), ..zstd() }), "1 to 22"),
            (ConvertOptions { prefetch: prefetch.clone(), ..with(raw.clone()) }, "--keep-diff-id"),
        ] {
            let told = options.check().unwrap_err().to_string();
            assert!(told.contains(word), "{told:?} does not say {word:?}");
        }
        for good in
            [Options::default(), zstd(), raw, Options { keep_diff_id: true, level: Some(22), ..zstd() }]
        {
            with(good).check().unwrap();
        }
    }

    #[test]
    fn a_recipe_is_named_by_what_changes_bytes_and_by_nothing_else() {
        use estargz::Options;
        let recipe = |layer| Recipe { layer, ranks: None };
        let plain = recipe(Options::default()).name();
        assert_eq!(plain, "v1 estargz level=9 chunk=4194304");
        for same in [
            Options { level: Some(9), ..Options::default() },
            Options { chunk_size: DEFAULT_CHUNK_SIZE, ..Options::default() },
            Options { workers: NonZeroUsize::new(3), ..Options::default() },
        ] {
            assert_eq!(recipe(same).name(), plain);
        }
        let mut prefetch = Prefetch::default();
        prefetch.add_list("a").unwrap();
        let ranks = prefetch.ranks();
        let mut names = vec![plain, Recipe { layer: Options::default(), ranks }.name()];
        for other in [
            Options { level: Some(8), ..Options::default() },
            Options { chunk_size: 1 << 20, ..Options::default() },
            Options { min_chunk_size: 1, ..Options::default() },
            Options { toc: TocPlace::External, ..Options::default() },
            Options { toc: TocPlace::External, keep_diff_id: true, ..Options::default() },
            Options { format: Format::ZstdChunked, ..Options::default() },
            Options { format: Format::ZstdChunkedPodman, ..Options::default() },
        ] {
            names.push(recipe(other).name());
        }
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count, "{names:?}");
    }
}
