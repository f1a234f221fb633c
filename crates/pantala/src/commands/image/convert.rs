//! `pantala image convert`.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use convert::{ConvertError, ConvertOptions, Platforms, Prefetch};
use estargz::{Format, TocPlace};
use tokio_util::sync::CancellationToken;

use super::stop::{Stopped, stop_on_signal};
use super::{places, print, progress};
use crate::cli::{ConvertArgs, Dialect};

/// Longest list or record that is read, in bytes.
const MAX_LIST: u64 = 256 << 20;

/// `pantala image convert`.
pub async fn convert(args: ConvertArgs) -> anyhow::Result<()> {
    let places = places(&args.places)?;
    let options = options(&args, None)?;
    options.check()?;
    let signal = stop_on_signal(std::slice::from_ref(&options.stop))?;
    let progress = progress(args.output);
    let (source, target) = (&args.source, &args.destination);
    let converted = convert::convert(&places, source, target, &options, &*progress).await;
    // Bars are taken down before anything else is said.
    drop(progress);
    match (converted, signal.get()) {
        (Ok(report), _) => print(args.output, &report),
        (Err(ConvertError::Interrupted), Some(signal)) => {
            Err(Stopped::new(*signal, &args.destination).into())
        }
        (Err(error), _) => Err(error.into()),
    }
}

/// Which images of an index the flags name.
pub fn platforms(args: &ConvertArgs) -> Platforms {
    match (args.platform.as_slice(), args.all_platforms) {
        ([], false) => Platforms::Present,
        ([], true) => Platforms::All,
        (wanted, _) => Platforms::Only(wanted.to_vec()),
    }
}

/// What the flags ask for. The files of `record` come before those of the flags.
pub fn options(args: &ConvertArgs, record: Option<&str>) -> anyhow::Result<ConvertOptions> {
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
    if let Some(record) = record {
        prefetch.add_record(record)?;
    }
    if let Some(path) = &args.estargz_record_in {
        let text = read_list(path, "--estargz-record-in")?;
        prefetch.add_record(&text).with_context(|| format!("--estargz-record-in {}", path.display()))?;
    }
    if let Some(path) = &args.prefetch_list {
        let text = read_list(path, "--prefetch-list")?;
        prefetch.add_list(&text).with_context(|| format!("--prefetch-list {}", path.display()))?;
    }
    Ok(ConvertOptions {
        platforms: platforms(args),
        layer,
        prefetch,
        reuse: args.reuse,
        force: args.force,
        verbatim: false,
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
