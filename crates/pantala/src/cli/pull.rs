//! The flags of `pantala image pull`; those of `ctr-remote images rpull` mean the same.

use clap::Args;
use convert::PlatformSpec;
use registry::Reference;

use super::{Output, PlaceArgs};
use crate::config::units::Bytes;

/// `pantala image pull`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pantala image pull registry.example/python:3.11-esgz
  ctr run --rm -t --snapshotter stargz registry.example/python:3.11-esgz py python3

  # For Kubernetes, whose images are in containerd's namespace k8s.io
  pantala image pull -n k8s.io registry.example/python:3.11-esgz

  # Through mirrors, as containerd has them
  pantala image pull --hosts-dir /etc/containerd/certs.d python:3.11

  # An ordinary image, unpacked as `ctr images pull` does
  pantala image pull --snapshotter overlayfs python:3.11

Layers that the snapshotter can mount lazily are not fetched; others are, and unpacked by containerd. The image
is there when this ends well. Ended by Ctrl-C (exit code 130) or SIGTERM (143), or by an error (1), nothing of it
stays. Credentials are those of `docker login`; the snapshotter has its own way to them, since it reads later and
for as long as the image is used.")]
pub struct PullArgs {
    /// Name of the image at its registry
    #[arg(value_name = "REF")]
    pub image: Reference,
    /// Name of the snapshotter in containerd's configuration
    #[arg(
        long,
        value_name = "NAME",
        env = "CONTAINERD_SNAPSHOTTER",
        hide_env_values = true,
        default_value = "stargz"
    )]
    pub snapshotter: String,
    /// Only the image for this platform, os/arch[/variant], as in linux/arm64 [default: this machine's]
    #[arg(long, value_name = "PLATFORM")]
    pub platform: Option<PlatformSpec>,
    /// How much of a layer the snapshotter fetches at once, from the layer's beginning, if the image does not say
    /// which files a start reads (landmark)
    #[arg(long, value_name = "SIZE", default_value = "10Mi")]
    pub prefetch: Bytes,
    /// Leave it to the snapshotter's configuration what is fetched at once
    #[arg(long, conflicts_with = "prefetch")]
    pub no_prefetch: bool,
    /// Labels are containerd's own; always so
    #[arg(long, hide = true)]
    pub use_containerd_labels: bool,
    /// Not supported
    #[arg(long, hide = true)]
    pub skip_content_verify: bool,
    /// Not supported
    #[arg(long, hide = true)]
    pub ipfs: bool,
    /// Form of the report: table (for people) or json (for programs)
    #[arg(long, value_enum, value_name = "FORM", default_value_t = Output::Table, hide_possible_values = true)]
    pub output: Output,
    /// How registry and containerd are reached.
    #[command(flatten)]
    pub places: PlaceArgs,
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command, ImageCommand};

    fn parse(line: &str) -> Result<PullArgs, String> {
        let args = ["pantala", "image"].into_iter().chain(line.split_whitespace());
        match Cli::try_parse_from(args).map_err(|error| error.to_string())?.command {
            Command::Image(ImageCommand::Pull(args)) => Ok(*args),
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn the_flags_of_ctr_remote_mean_the_same() {
        let args =
            parse("rpull --snapshotter other --use-containerd-labels -n k8s.io -a /x r.example/a:1").unwrap();
        assert_eq!((args.snapshotter.as_str(), args.places.namespace.as_str()), ("other", "k8s.io"));
        assert_eq!(args.image.to_string(), "r.example/a:1");
        assert_eq!(args.prefetch.0, 10 << 20);
        assert_eq!(parse("pull --prefetch 1Mi a").unwrap().prefetch.0, 1 << 20);
        assert!(parse("pull --prefetch 1Mi --no-prefetch a").is_err());
        assert!(parse("pull").is_err());
        assert!(parse("pull UPPER").is_err());
    }
}
