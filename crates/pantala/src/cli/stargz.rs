//! The command line of `containerd-stargz-grpc`, stargz-snapshotter's daemon, for when this program is called by that
//! name: a unit file that was written for it works with a symbolic link in its place.
//!
//! Its flags are those of Go's `flag` package: one dash or two, `-name value` or `-name=value`, and everything behind the
//! first word that is no flag is not looked at.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::{RegistryArgs, SnapshotterArgs, log_level};

/// The name.
pub const NAME: &str = "containerd-stargz-grpc";

/// What such a command line asks for.
#[derive(Debug)]
pub enum Asked {
    /// To serve.
    Serve(Box<SnapshotterArgs>),
    /// Its version.
    Version,
    /// Its flags.
    Help,
    /// Something else: what is wrong.
    Wrong(String),
}

/// The flags that take a value, for help: name, value, default, meaning. The last two are ours.
const FLAGS: [(&str, &str, &str, &str); 6] = [
    ("address", "SOCK", snapshotter::DEFAULT_ADDRESS, "socket that containerd connects to"),
    ("config", "FILE", snapshotter::DEFAULT_CONFIG, "configuration; the default one may be missing"),
    ("log-level", "LEVEL", "info", "trace, debug, info, warn, error, fatal or panic"),
    ("root", "DIR", snapshotter::DEFAULT_ROOT, "where snapshots, layers and the database are kept"),
    ("containerd-address", "SOCK", "the configuration's", "socket of containerd"),
    ("driver", "DRIVER", "the configuration's, else auto", "auto, native or fuse"),
];

/// Reads the command line `arguments`, its program's name first; `None` if that is not [`NAME`].
pub fn asked(arguments: impl IntoIterator<Item = OsString>) -> Option<Asked> {
    let mut arguments = arguments.into_iter();
    let name = PathBuf::from(arguments.next()?);
    (name.file_name()? == NAME).then(|| read(arguments).unwrap_or_else(Asked::Wrong))
}

fn read(mut arguments: impl Iterator<Item = OsString>) -> Result<Asked, String> {
    let mut args = SnapshotterArgs {
        address: snapshotter::DEFAULT_ADDRESS.into(),
        root: snapshotter::DEFAULT_ROOT.into(),
        config: None,
        driver: None,
        log_level: "info".into(),
        containerd_address: None,
        no_keeper: false,
        registries: RegistryArgs::default(),
        hosts_dir: None,
    };
    while let Some(argument) = arguments.next() {
        let Some(flag) =
            argument.to_str().filter(|text| text.len() > 1).and_then(|text| text.strip_prefix('-'))
        else {
            break;
        };
        let flag = flag.strip_prefix('-').unwrap_or(flag);
        if flag.is_empty() {
            break;
        }
        let (name, given) = flag.split_once('=').map_or((flag, None), |(name, value)| (name, Some(value)));
        match name {
            "h" | "help" => return Ok(Asked::Help),
            "version" if truth(name, given)? => return Ok(Asked::Version),
            // Of older versions: descriptors always outlive the daemon here.
            "version" | "detach-fuse-manager" => {
                truth(name, given)?;
                continue;
            }
            "no-keeper" => {
                args.no_keeper = truth(name, given)?;
                continue;
            }
            _ if FLAGS.iter().all(|(known, ..)| *known != name) => {
                return Err(format!("flag provided but not defined: -{name}"));
            }
            _ => {}
        }
        let value = match given {
            Some(value) => OsString::from(value),
            None => arguments.next().ok_or_else(|| format!("flag needs an argument: -{name}"))?,
        };
        let word = || value.to_str().ok_or_else(|| format!("invalid value for flag -{name}"));
        let wrong = |error: &dyn std::fmt::Display| format!("invalid value for flag -{name}: {error}");
        match name {
            "address" => args.address = value.into(),
            "config" => args.config = (!value.is_empty()).then(|| value.clone().into()),
            "root" => args.root = value.into(),
            "containerd-address" => args.containerd_address = Some(value.into()),
            "driver" => args.driver = Some(word()?.parse().map_err(|error| wrong(&error))?),
            _ => args.log_level = log_level(word()?).map_err(|error| wrong(&error))?,
        }
    }
    Ok(Asked::Serve(Box::new(args)))
}

/// A flag without a value is true; the words are those that Go takes.
fn truth(name: &str, given: Option<&str>) -> Result<bool, String> {
    match given {
        None | Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
        Some(other) => Err(format!("invalid boolean value {other:?} for -{name}")),
    }
}

/// The line that `-version` prints: its second word is the version.
pub fn version() -> String {
    format!("{NAME} v{} pantala\n", env!("CARGO_PKG_VERSION"))
}

/// The flags.
pub fn help() -> String {
    use std::fmt::Write as _;
    let mut text = format!("Usage of {NAME} (this is pantala; `pantala snapshotter` is the same):\n");
    for (name, value, default, meaning) in FLAGS {
        let _ = writeln!(text, "  -{name} {value}\n    \t{meaning} (default {default})");
    }
    text.push_str("  -no-keeper\n    \tserve in this very process: mounted layers break when it dies\n");
    text.push_str("  -version\n    \tprint the version\n");
    text
}

/// Whether `path` is where the configuration lies if nobody says otherwise. A unit file that names it means the default.
pub fn is_default_config(path: &Path) -> bool {
    path == Path::new(snapshotter::DEFAULT_CONFIG)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked_of(line: &str) -> Asked {
        asked(line.split(' ').map(OsString::from)).unwrap()
    }

    fn served(line: &str) -> SnapshotterArgs {
        match asked_of(line) {
            Asked::Serve(args) => *args,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn the_line_of_upstreams_unit_file_is_understood() {
        let line = "/usr/local/bin/containerd-stargz-grpc --log-level=debug \
                    --config=/etc/containerd-stargz-grpc/config.toml";
        let args = served(line);
        assert_eq!(args.log_level, "debug");
        assert!(is_default_config(&args.config.unwrap()));
        assert_eq!(args.root, Path::new(snapshotter::DEFAULT_ROOT));
        assert_eq!(args.address, Path::new(snapshotter::DEFAULT_ADDRESS));
    }

    #[test]
    fn flags_are_gos() {
        let args = served(
            "containerd-stargz-grpc -root /r --address=/a.sock -log-level WARN -no-keeper=1 rest -root /no",
        );
        assert_eq!((args.root.to_str(), args.address.to_str()), (Some("/r"), Some("/a.sock")));
        assert!(args.no_keeper && args.config.is_none());
        assert!(matches!(asked_of("x/containerd-stargz-grpc -version"), Asked::Version));
        assert!(matches!(asked_of("containerd-stargz-grpc --version=false"), Asked::Serve(_)));
        assert!(matches!(asked_of("containerd-stargz-grpc -h"), Asked::Help));
        for line in ["-roots /r", "-root", "-log-level loud", "-version=maybe", "-driver none"] {
            assert!(matches!(asked_of(&format!("containerd-stargz-grpc {line}")), Asked::Wrong(_)), "{line}");
        }
        assert!(asked(["pantala", "-version"].map(OsString::from)).is_none());
    }
}
