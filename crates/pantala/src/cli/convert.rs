//! The flags of `pantala image convert`, and those of `ctr-remote image convert` under their own names.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use convert::{Place, PlatformSpec};

use super::{Output, PlaceArgs};
use crate::config::units::Bytes;

/// Smaller chunks than a piece of the swarm only make the table of contents longer.
const MIN_CHUNK: u64 = 64 << 10;
/// What readers of the format accept at most, `estargz::TocLimits`.
const MAX_CHUNK: u64 = 256 << 20;
/// Beyond that a reader would have to inflate far too much for a small file.
const MAX_MIN_CHUNK: u64 = 16 << 20;

/// Who is to read a zstd:chunked layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Dialect {
    /// stargz-snapshotter, nerdctl and pantala.
    Stargz,
    /// podman, buildah and skopeo.
    Podman,
}

/// `pantala image convert`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pantala image convert docker.io/library/python:3.11 registry.example/python:3.11-esgz
  pantala image convert --platform linux/arm64 --level 6 SRC DST
  pantala image convert --plain-http 10.0.0.2:5000 10.0.0.2:5000/app:1 10.0.0.2:5000/app:1-esgz
  pantala image convert containerd:docker.io/library/redis:7 oci:/srv/layouts/redis:7
  pantala image convert --zstdchunked=podman oci-archive:app.tar registry.example/app:1-zstd

  # The files that a start reads, first in their layers
  printf '%s\\n' usr/bin/python3 'usr/lib/python3/**' |
    pantala image convert --prefetch-list - SRC DST

An image is REF (at a registry), oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:REF] (to read
alone), containerd:REF or containerd://NAMESPACE/REF.

The same image and options give the same bytes on every machine. Layers that were converted before are found
at DST, or by the index in $PANTALA_CACHE [default: ~/.cache/pantala], and not converted again. Credentials
are those of `docker login`. Progress goes to standard error: bars on a terminal, else a line as each layer
begins and ends; nothing with --output json, which puts warnings into the report.

Ended by Ctrl-C (exit code 130) or SIGTERM (143), DST is what it was. The flags of `ctr-remote image convert`
are understood as well, --estargz-compression-level and its like.")]
pub struct ConvertArgs {
    /// Image to read
    #[arg(value_name = "SRC")]
    pub source: Place,
    /// Name that the converted image gets
    #[arg(value_name = "DST")]
    pub destination: Place,

    /// Make eStargz layers, gzip that every tool can unpack; the default
    #[arg(long, conflicts_with = "zstdchunked", help_heading = "Layers")]
    pub estargz: bool,
    /// Make zstd:chunked layers: smaller, and faster to unpack. For stargz-snapshotter, or =podman
    #[arg(
        long,
        value_enum,
        value_name = "READER",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "stargz",
        help_heading = "Layers"
    )]
    pub zstdchunked: Option<Dialect>,
    /// Compression, 1 (fast) to 12 (small) for eStargz, to 22 for zstd:chunked [default: 9, or 3 for zstd:chunked]
    #[arg(
        long,
        aliases = ["estargz-compression-level", "zstdchunked-compression-level"],
        value_name = "LEVEL",
        value_parser = clap::value_parser!(u8).range(1..=22),
        help_heading = "Layers"
    )]
    pub level: Option<u8>,
    /// Most bytes of a file that are fetched and verified as one, 64Ki to 256Mi [default: 4Mi]
    #[arg(
        long,
        aliases = ["estargz-chunk-size", "zstdchunked-chunk-size"],
        value_name = "SIZE",
        value_parser = chunk_size,
        help_heading = "Layers"
    )]
    pub chunk_size: Option<u32>,
    /// Let small files share a gzip member of so many compressed bytes, up to 16Mi: a smaller layer, slower
    /// to read from
    #[arg(
        long,
        alias = "estargz-min-chunk-size",
        value_name = "SIZE",
        value_parser = min_chunk_size,
        help_heading = "Layers"
    )]
    pub min_chunk_size: Option<u32>,
    /// Keep tables of contents in an image of their own, DST-esgztoc
    #[arg(long, alias = "estargz-external-toc", help_heading = "Layers")]
    pub external_toc: bool,
    /// Keep every byte of the tar, and with it diffIDs and config: snapshots are shared with the original's.
    /// eStargz needs --external-toc for it
    #[arg(long, alias = "estargz-keep-diff-id", help_heading = "Layers")]
    pub keep_diff_id: bool,
    /// Keep a layer that the format cannot hold as it is, with a warning
    #[arg(long, help_heading = "Layers")]
    pub skip_unconvertible: bool,

    /// Put files first that a start reads: paths or globs, one per line; - for standard input
    #[arg(long, value_name = "FILE", help_heading = "Prefetch")]
    pub prefetch_list: Option<PathBuf>,
    /// Put files first as `ctr-remote image optimize --record-out` recorded them
    #[arg(long, aliases = ["zstdchunked-record-in", "record-in"], value_name = "FILE", help_heading = "Prefetch")]
    pub estargz_record_in: Option<PathBuf>,
    /// Keep layers whose files are in such an order already, whatever it is
    #[arg(long, help_heading = "Prefetch")]
    pub reuse: bool,

    /// Only this platform, os/arch[/variant], as in linux/arm64; may be repeated. One alone gives a manifest
    /// without an index [default: all that SRC has]
    #[arg(long, value_name = "PLATFORM", value_delimiter = ',', help_heading = "Image")]
    pub platform: Vec<PlatformSpec>,
    /// All platforms; one that SRC names and does not have is an error
    #[arg(long, conflicts_with = "platform", help_heading = "Image")]
    pub all_platforms: bool,
    /// Write OCI media types; always so
    #[arg(long, help_heading = "Image")]
    pub oci: bool,

    /// Layers to convert at once; each more takes some 60 MiB [default: by cores and memory]
    #[arg(long, short, value_name = "N")]
    pub jobs: Option<NonZeroUsize>,
    /// Convert all layers, also those that were converted before
    #[arg(long)]
    pub force: bool,
    /// Form of the report: table (for people) or json (for programs)
    #[arg(long, value_enum, value_name = "FORM", default_value_t = Output::Table, hide_possible_values = true)]
    pub output: Output,
    /// How places are reached.
    #[command(flatten)]
    pub places: PlaceArgs,
}

/// 0 is the default, as in other tools.
fn chunk_size(text: &str) -> Result<u32, String> {
    let bytes: Bytes = text.parse()?;
    match u32::try_from(bytes.0) {
        Ok(size) if size == 0 || (MIN_CHUNK..=MAX_CHUNK).contains(&bytes.0) => Ok(size),
        _ => Err("write a size from 64Ki to 256Mi".to_owned()),
    }
}

fn min_chunk_size(text: &str) -> Result<u32, String> {
    let bytes: Bytes = text.parse()?;
    match u32::try_from(bytes.0) {
        Ok(size) if bytes.0 <= MAX_MIN_CHUNK => Ok(size),
        _ => Err("write a size up to 16Mi".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command, ImageCommand};

    fn parse(flags: &[&str]) -> Result<ConvertArgs, String> {
        let args = [&["pantala", "image", "convert"], flags, &["r.example/a", "r.example/b"]].concat();
        match Cli::try_parse_from(args).map_err(|error| error.to_string())?.command {
            Command::Image(ImageCommand::Convert(args)) => Ok(*args),
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn sizes_are_checked_before_anything_runs() {
        assert_eq!(chunk_size("1Mi"), Ok(1 << 20));
        assert_eq!(chunk_size("256Mi"), Ok(256 << 20));
        assert_eq!(chunk_size("0"), Ok(0));
        for wrong in ["1", "1Ki", "8Gi", "x"] {
            assert!(chunk_size(wrong).is_err(), "{wrong}");
        }
        assert_eq!(MAX_CHUNK, u64::from(estargz::TocLimits::default().chunk_bytes));
        assert_eq!(min_chunk_size("50000"), Ok(50_000));
        assert!(min_chunk_size("17Mi").is_err());
    }

    #[test]
    fn the_flags_of_ctr_remote_mean_the_same() {
        let line = "--estargz --oci --all-platforms --estargz-record-in r.json --estargz-compression-level 6 \
                    --estargz-chunk-size 0 --estargz-min-chunk-size 50000 --estargz-external-toc -n k8s.io -a /x.sock";
        let args = parse(&line.split_whitespace().collect::<Vec<_>>()).unwrap();
        assert_eq!((args.level, args.chunk_size, args.min_chunk_size), (Some(6), Some(0), Some(50_000)));
        assert!(args.external_toc && args.all_platforms && args.oci && args.estargz);
        assert_eq!(args.estargz_record_in, Some("r.json".into()));
        assert_eq!(
            (args.places.namespace.as_str(), args.places.address.to_str()),
            ("k8s.io", Some("/x.sock"))
        );
        let line = "--zstdchunked --zstdchunked-compression-level 19 --zstdchunked-record-in r.json \
                    --zstdchunked-chunk-size 1Mi --estargz-keep-diff-id";
        let args = parse(&line.split_whitespace().collect::<Vec<_>>()).unwrap();
        assert_eq!((args.zstdchunked, args.level), (Some(Dialect::Stargz), Some(19)));
        assert!(args.keep_diff_id);
        assert_eq!(parse(&["--zstdchunked=podman"]).unwrap().zstdchunked, Some(Dialect::Podman));
    }

    #[test]
    fn platforms_are_repeated_or_joined() {
        for flags in [
            &["--platform", "linux/amd64", "--platform", "linux/arm64"][..],
            &["--platform=linux/amd64,linux/arm64"],
        ] {
            assert_eq!(parse(flags).unwrap().platform.len(), 2, "{flags:?}");
        }
        assert!(parse(&["--platform", "linux/amd64", "--all-platforms"]).is_err());
        assert!(parse(&["--estargz", "--zstdchunked"]).is_err());
        assert!(parse(&["--level", "0"]).is_err());
        assert!(parse(&["--jobs", "0"]).is_err());
    }
}
