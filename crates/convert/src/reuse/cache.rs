//! The local index of converted layers: one small JSON file for each source and recipe.
//!
//! It holds no bytes of layers, only what they became and where they were pushed to. A file that cannot be
//! read, or is of another version, counts as none and is written anew; it is replaced by renaming, so that
//! nobody ever sees half of one. All of it can be deleted at any time and costs only time.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use content::{Digest, Hasher};
use serde::{Deserialize, Serialize};

use super::Found;
use crate::layer::{OPTIONS_ANNOTATION, SOURCE_ANNOTATION};
use crate::place::Place;

/// Form of a file. Goes up when it changes.
const VERSION: u32 = 1;

/// Places that an entry names at most, the latest first.
const MOST_PLACES: usize = 4;

/// No entry of ours is larger, in bytes.
const MAX_FILE: u64 = 64 << 10;

/// Files at most; beyond, the oldest quarter goes. One has about a kilobyte.
const MOST_FILES: usize = 16 << 10;

/// The local index.
#[derive(Clone, Debug)]
pub(crate) struct Cache {
    dir: PathBuf,
}

/// A layer that was made before, and where it went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Entry {
    version: u32,
    source: Digest,
    options: String,
    /// What it became.
    #[serde(flatten)]
    pub(crate) found: Found,
    /// The places that it was brought to, as a person writes them.
    pub(crate) places: Vec<String>,
}

impl Cache {
    /// The index in `dir`, which need not exist.
    pub(crate) fn new(dir: &Path) -> Self {
        Self { dir: dir.join("layers") }
    }

    /// What the layer `source` became by the recipe `options`.
    pub(crate) async fn get(&self, source: Digest, options: &str) -> Option<Entry> {
        let (path, options) = (self.path(source, options), options.to_owned());
        let read = tokio::task::spawn_blocking(move || read(&path, source, &options));
        read.await.ok().flatten()
    }

    /// Remembers what a layer became. That it cannot be remembered is no failure.
    pub(crate) async fn put(&self, source: Digest, options: &str, found: Found, place: &Place) {
        let path = self.path(source, options);
        let mut entry = Entry {
            version: VERSION,
            source,
            options: options.to_owned(),
            found,
            places: vec![place.to_string()],
        };
        let dir = self.dir.clone();
        let written = tokio::task::spawn_blocking(move || {
            if let Some(before) = read(&path, entry.source, &entry.options)
                && before.found == entry.found
            {
                let others = before.places.into_iter().filter(|place| Some(place) != entry.places.first());
                let others: Vec<String> = others.take(MOST_PLACES - 1).collect();
                entry.places.extend(others);
            }
            fs::create_dir_all(&dir)?;
            prune(&dir)?;
            write(&dir, &path, &entry)
        });
        if let Ok(Err(error)) = written.await {
            tracing::debug!(dir = %self.dir.display(), %error, "a converted layer is not remembered");
        }
    }

    fn path(&self, source: Digest, options: &str) -> PathBuf {
        let mut hasher = Hasher::new();
        hasher.update(source.as_bytes());
        hasher.update(options.as_bytes());
        self.dir.join(format!("{}.json", hasher.finish().hex()))
    }
}

/// The entry in `path`, if it is one for this source and recipe.
fn read(path: &Path, source: Digest, options: &str) -> Option<Entry> {
    if fs::metadata(path).ok()?.len() > MAX_FILE {
        return None;
    }
    let entry: Entry = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    let says = |key: &str, value: &str| entry.found.descriptor.annotation(key) == Some(value);
    let right = entry.version == VERSION
        && entry.source == source
        && entry.options == options
        && says(SOURCE_ANNOTATION, &source.to_string())
        && says(OPTIONS_ANNOTATION, options);
    right.then_some(entry)
}

fn write(dir: &Path, path: &Path, entry: &Entry) -> io::Result<()> {
    let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(dir)?;
    serde_json::to_writer(&mut file, entry)?;
    file.flush()?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

/// Deletes the oldest files if there are too many.
fn prune(dir: &Path) -> io::Result<()> {
    let files: Vec<fs::DirEntry> = fs::read_dir(dir)?.collect::<io::Result<_>>()?;
    if files.len() < MOST_FILES {
        return Ok(());
    }
    let age =
        |file: &fs::DirEntry| file.metadata().and_then(|it| it.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    let mut aged: Vec<(SystemTime, PathBuf)> = files.iter().map(|file| (age(file), file.path())).collect();
    aged.sort();
    for (_, path) in aged.into_iter().take(MOST_FILES / 4) {
        // Another conversion may have been faster.
        let _ = fs::remove_file(path);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use registry::Descriptor;

    use super::*;

    fn found(source: Digest, options: &str) -> Found {
        let mut descriptor = Descriptor::new("x", Digest::of(b"made"), 4);
        let pairs = [(SOURCE_ANNOTATION, source.to_string()), (OPTIONS_ANNOTATION, options.to_owned())];
        descriptor.annotations = Some(pairs.map(|(key, value)| (key.to_owned(), value)).into());
        Found { descriptor, diff_id: Digest::of(b"diff") }
    }

    #[tokio::test]
    async fn what_was_put_is_found_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(&dir.path().join("not/there/yet"));
        let (source, options) = (Digest::of(b"source"), "v1");
        assert_eq!(cache.get(source, options).await, None);
        for place in ["r.example/a:1", "r.example/b:1", "r.example/a:1"] {
            cache.put(source, options, found(source, options), &place.parse().unwrap()).await;
        }
        let entry = cache.get(source, options).await.unwrap();
        assert_eq!(entry.found, found(source, options));
        assert_eq!(entry.places, ["r.example/a:1", "r.example/b:1"]);
        assert_eq!(cache.get(source, "v2").await, None);
        assert_eq!(cache.get(Digest::of(b"other"), options).await, None);
    }

    #[tokio::test]
    async fn a_damaged_entry_counts_as_none_and_is_written_anew() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path());
        let (source, options) = (Digest::of(b"source"), "v1");
        let place: Place = "r.example/a:1".parse().unwrap();
        cache.put(source, options, found(source, options), &place).await;
        let path = cache.path(source, options);
        let good = fs::read_to_string(&path).unwrap();
        let other = found(Digest::of(b"other"), options);
        let stolen = serde_json::to_string(&other.descriptor).unwrap();
        let own = serde_json::to_string(&found(source, options).descriptor).unwrap();
        for bad in [
            good[..good.len() / 2].to_owned(),
            good.replace("\"version\":1", "\"version\":2"),
            good.replace(own.trim_matches(['{', '}']), stolen.trim_matches(['{', '}'])),
            String::new(),
            "x".repeat(100_000),
        ] {
            assert_ne!(bad, good);
            fs::write(&path, bad).unwrap();
            assert_eq!(cache.get(source, options).await, None);
        }
        cache.put(source, options, found(source, options), &place).await;
        assert_eq!(fs::read_to_string(&path).unwrap(), good);
        assert_eq!(fs::read_dir(dir.path().join("layers")).unwrap().count(), 1, "a half file was left");
    }
}
