//! The flags of the commands that look at images: inspect, verify, toc-digest, diff.

use clap::Args;
use convert::{Aspect, Place, PlatformSpec};

use super::{Output, PlaceArgs};

/// `pantala image inspect`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pantala image inspect registry.example/python:3.11-esgz
  pantala image inspect --platform linux/arm64 docker.io/library/python:3.11
  pantala image inspect --files --layer 2 oci:/srv/layouts/redis:7
  pantala image inspect --output json containerd:docker.io/library/redis:7 | jq '.platforms[0].layers'

Of each layer only the end is read, where its table of contents is. What \"a start fetches\" are
those ends, and what lies before a layer's landmark; of a layer that cannot be mounted lazily it is
the whole. In a listing, P marks what is fetched ahead, + extended attributes, and the number before
the P counts a file's chunks.

An image is REF (at a registry), oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:REF],
containerd:REF or containerd://NAMESPACE/REF.

Exit codes: 0 it was shown, 1 it could not be read.")]
pub struct InspectArgs {
    /// Image to look at
    #[arg(value_name = "REF")]
    pub image: Place,
    /// Only this platform, os/arch[/variant], as in linux/arm64 [default: all that the image has]
    #[arg(long, value_name = "PLATFORM")]
    pub platform: Option<PlatformSpec>,
    /// List the files of the layers that have a table of contents
    #[arg(long)]
    pub files: bool,
    /// Only this layer, counted from 1, the lowest
    #[arg(long, value_name = "N")]
    pub layer: Option<usize>,
    /// Form of the report: table (for people) or json (for programs)
    #[arg(long, value_enum, value_name = "FORM", default_value_t = Output::Table, hide_possible_values = true)]
    pub output: Output,
    /// How places are reached.
    #[command(flatten)]
    pub places: PlaceArgs,
}

/// `pantala image verify`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pantala image verify registry.example/python:3.11-esgz
  pantala image verify --require-lazy --platform linux/amd64 registry.example/python:3.11-esgz
  pantala image verify --output json oci-archive:app.tar | jq '.platforms[].layers[] | select(.lie)'

Every layer is read whole, once, into an unnamed file in $TMPDIR. Compared are: the digest and size
of each blob; the config's diffIDs; the table of contents with the digest that the manifest pins, and
with every header of the tar; every chunk, inflated from its own offset; the annotations of estargz
and zstd:chunked. The first lie of each layer is told. An ordinary layer has no table of contents;
its digests are compared.

An image is REF (at a registry), oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:REF],
containerd:REF or containerd://NAMESPACE/REF.

Exit codes: 0 it tells the truth, 1 it lies, 2 it could not be read.")]
pub struct VerifyArgs {
    /// Image to verify
    #[arg(value_name = "REF")]
    pub image: Place,
    /// Only this platform, os/arch[/variant], as in linux/arm64 [default: all that the image has]
    #[arg(long, value_name = "PLATFORM")]
    pub platform: Option<PlatformSpec>,
    /// A layer that cannot be mounted lazily is a lie too
    #[arg(long)]
    pub require_lazy: bool,
    /// Form of the report: table (for people) or json (for programs)
    #[arg(long, value_enum, value_name = "FORM", default_value_t = Output::Table, hide_possible_values = true)]
    pub output: Output,
    /// How places are reached.
    #[command(flatten)]
    pub places: PlaceArgs,
}

/// `pantala image toc-digest`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pantala image toc-digest registry.example/python:3.11-esgz
  pantala image toc-digest --layer 1 oci:/srv/layouts/redis:7
  pantala image toc-digest --output json containerd:docker.io/library/redis:7

Prints a line for each layer: its digest, and the sha256 of its table of contents, or - if it has
none. The table itself is read, not the annotation that pins it. With --layer, that one digest alone.

An image is REF (at a registry), oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:REF],
containerd:REF or containerd://NAMESPACE/REF.

Exit codes: 0 they were printed, 1 the image could not be read, or the layer of --layer has no table
of contents.")]
pub struct TocDigestArgs {
    /// Image to look at
    #[arg(value_name = "REF")]
    pub image: Place,
    /// Only this layer, counted from 1, the lowest
    #[arg(long, value_name = "N")]
    pub layer: Option<usize>,
    /// This platform, os/arch[/variant], as in linux/arm64 [default: the only one, or this machine's]
    #[arg(long, value_name = "PLATFORM")]
    pub platform: Option<PlatformSpec>,
    /// Form of the report: table (for people) or json (for programs)
    #[arg(long, value_enum, value_name = "FORM", default_value_t = Output::Table, hide_possible_values = true)]
    pub output: Output,
    /// How places are reached.
    #[command(flatten)]
    pub places: PlaceArgs,
}

/// `pantala image diff`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pantala image diff docker.io/library/python:3.11 registry.example/python:3.11-esgz
  pantala image diff --ignore mtime,config containerd:app:1 containerd:app:2
  pantala image diff --content-only --output json oci:a oci:b | jq '.changes[].path'

Compared are the two file systems that a container would see, however they are cut into layers, and
the two configs. A line for each difference: A only the second image has it, D only the first has it,
M it differs, and in what, the first image's value first. Files are compared by digest: that of the
table of contents where the manifest pins one, without fetching any file; ordinary layers are read.
The files that a format adds to a layer are no part of the image.

An image is REF (at a registry), oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:REF],
containerd:REF or containerd://NAMESPACE/REF.

Exit codes: 0 nothing differs, 1 something does, 2 an image could not be read.")]
pub struct DiffArgs {
    /// First image
    #[arg(value_name = "A")]
    pub a: Place,
    /// Second image
    #[arg(value_name = "B")]
    pub b: Place,
    /// What does not count: mode, owner, mtime, content, link, xattrs, device, nlink, config; comma-separated
    #[arg(long, value_name = "WHAT", value_delimiter = ',')]
    pub ignore: Vec<Aspect>,
    /// Compare names, types, content and link targets alone
    #[arg(long)]
    pub content_only: bool,
    /// Read every layer whole and believe no table of contents
    #[arg(long)]
    pub read_all: bool,
    /// This platform, os/arch[/variant], as in linux/arm64 [default: the only one, or this machine's]
    #[arg(long, value_name = "PLATFORM")]
    pub platform: Option<PlatformSpec>,
    /// Form of the report: table (for people) or json (for programs)
    #[arg(long, value_enum, value_name = "FORM", default_value_t = Output::Table, hide_possible_values = true)]
    pub output: Output,
    /// How places are reached.
    #[command(flatten)]
    pub places: PlaceArgs,
}
