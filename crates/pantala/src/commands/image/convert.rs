//! `pantala image convert`.

use std::fmt;
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, ensure};
use convert::{Bars, ConvertError, ConvertOptions, Lines, Place, Platforms, Prefetch, Progress, Silent};
use estargz::{Format, TocPlace};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{places, print};
use crate::cli::{ConvertArgs, Dialect, Output};

/// Longest list or record that is read, in bytes.
const MAX_LIST: u64 = 256 << 20;

/// `pantala image convert`.
pub async fn convert(args: ConvertArgs) -> anyhow::Result<()> {
    let places = places(&args.places)?;
    let options = options(&args)?;
    options.check()?;
    let signal = stop_on_signal(options.stop.clone())?;
    let progress: Box<dyn Progress> = match args.output {
        Output::Json => Box::new(Silent),
        Output::Table if std::io::stderr().is_terminal() => Box::new(Bars::default()),
        Output::Table => Box::new(Lines),
    };
    let (source, target) = (&args.source, &args.destination);
    let converted = convert::convert(&places, source, target, &options, &*progress).await;
    // Bars are taken down before anything else is said.
    drop(progress);
    match (converted, signal.get()) {
        (Ok(report), _) => print(args.output, &report),
        (Err(ConvertError::Interrupted), Some(signal)) => {
            Err(Stopped { signal: *signal, target: args.destination }.into())
        }
        (Err(error), _) => Err(error.into()),
    }
}

/// The user, or a supervisor, wanted no more.
#[derive(Debug)]
pub struct Stopped {
    signal: Signal,
    target: Place,
}

impl Stopped {
    /// As shells have it: 128 and the signal's number.
    pub const fn exit_code(&self) -> u8 {
        self.signal.exit_code()
    }
}

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stopped by {}: {} is what it was before", self.signal.name(), self.target)
    }
}

impl std::error::Error for Stopped {}

#[derive(Debug, Clone, Copy)]
enum Signal {
    Hangup,
    Interrupt,
    Terminate,
}

impl Signal {
    const fn name(self) -> &'static str {
        match self {
            Self::Hangup => "SIGHUP",
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
        }
    }

    const fn exit_code(self) -> u8 {
        match self {
            Self::Hangup => 129,
            Self::Interrupt => 130,
            Self::Terminate => 143,
        }
    }
}

/// Cancels `stop` with the first signal, and tells which it was. A second one ends the process at once.
fn stop_on_signal(stop: CancellationToken) -> anyhow::Result<std::sync::Arc<OnceLock<Signal>>> {
    let watch = |kind, name| signal(kind).with_context(|| format!("cannot watch {name}"));
    let mut hangup = watch(SignalKind::hangup(), "SIGHUP")?;
    let mut interrupt = watch(SignalKind::interrupt(), "SIGINT")?;
    let mut terminate = watch(SignalKind::terminate(), "SIGTERM")?;
    let heard = std::sync::Arc::new(OnceLock::new());
    let first = std::sync::Arc::clone(&heard);
    // Lives as long as the process: it is the one that hears the second signal.
    tokio::spawn(async move {
        loop {
            let signal = tokio::select! {
                _ = hangup.recv() => Signal::Hangup,
                _ = interrupt.recv() => Signal::Interrupt,
                _ = terminate.recv() => Signal::Terminate,
            };
            if first.set(signal).is_err() {
                std::process::exit(i32::from(signal.exit_code()));
            }
            stop.cancel();
        }
    });
    Ok(heard)
}

fn options(args: &ConvertArgs) -> anyhow::Result<ConvertOptions> {
    let platforms = match (args.platform.as_slice(), args.all_platforms) {
        ([], false) => Platforms::Present,
        ([], true) => Platforms::All,
        (wanted, _) => Platforms::Only(wanted.to_vec()),
    };
    let layer = estargz::Options {
        format: match args.zstdchunked {
            None => Format::Estargz,
            Some(Dialect::Stargz) => Format::ZstdChunked,
            Some(Dialect::Podman) => Format::ZstdChunkedPodman,
        },
        chunk_size: args.chunk_size.unwrap_or(0),
        min_chunk_size: args.min_chunk_size.unwrap_or(0),
        level: args.level,
        toc: if args.external_toc { TocPlace::External } else { TocPlace::Inside },
        keep_diff_id: args.keep_diff_id,
        workers: None,
    };
    let mut prefetch = Prefetch::default();
    if let Some(path) = &args.estargz_record_in {
        let text = read_list(path, "--estargz-record-in")?;
        prefetch.add_record(&text).with_context(|| format!("--estargz-record-in {}", path.display()))?;
    }
    if let Some(path) = &args.prefetch_list {
        let text = read_list(path, "--prefetch-list")?;
        prefetch.add_list(&text).with_context(|| format!("--prefetch-list {}", path.display()))?;
    }
    Ok(ConvertOptions {
        platforms,
        layer,
        prefetch,
        reuse: args.reuse,
        force: args.force,
        skip_unconvertible: args.skip_unconvertible,
        jobs: args.jobs,
        cache: cache_dir(|name| std::env::var_os(name).map(PathBuf::from)),
        stop: CancellationToken::new(),
    })
}

/// The text of a file, or of standard input for `-`.
fn read_list(path: &Path, flag: &str) -> anyhow::Result<String> {
    let mut text = String::new();
    let read = if path.as_os_str() == "-" {
        std::io::stdin().take(MAX_LIST + 1).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(MAX_LIST + 1).read_to_string(&mut text))
    };
    read.with_context(|| format!("{flag} {} cannot be read", path.display()))?;
    ensure!(text.len() as u64 <= MAX_LIST, "{flag} {} has more than 256 MiB", path.display());
    Ok(text)
}

/// Where the index of converted layers is: `$PANTALA_CACHE`, or the user's cache directory. An empty variable
/// means none.
fn cache_dir(var: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    if let Some(own) = var("PANTALA_CACHE") {
        return (!own.as_os_str().is_empty()).then_some(own);
    }
    let absolute = |name| var(name).filter(|dir| dir.is_absolute());
    let user = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")));
    user.map(|dir| dir.join("pantala"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_is_where_users_keep_such_things() {
        let with = |pairs: &[(&str, &str)]| {
            cache_dir(|name| {
                pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| PathBuf::from(value))
            })
        };
        assert_eq!(with(&[("HOME", "/home/u")]), Some("/home/u/.cache/pantala".into()));
        assert_eq!(with(&[("HOME", "/home/u"), ("XDG_CACHE_HOME", "/c")]), Some("/c/pantala".into()));
        assert_eq!(
            with(&[("HOME", "/home/u"), ("XDG_CACHE_HOME", "c")]),
            Some("/home/u/.cache/pantala".into())
        );
        assert_eq!(with(&[("HOME", "/home/u"), ("PANTALA_CACHE", "/p")]), Some("/p".into()));
        assert_eq!(with(&[("HOME", "/home/u"), ("PANTALA_CACHE", "")]), None);
        assert_eq!(with(&[]), None);
    }
}
