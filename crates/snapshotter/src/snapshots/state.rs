//! A file for each mounted layer that says how much of it is here: `<root>/state/<layer digest>.json`.
//!
//! stargz-snapshotter shows the same text inside of each layer, as `/.stargz-snapshotter/<layer digest>.json`, and the
//! driver `fuse` does so too. EROFS cannot: what it shows is written once, every name in it is listed, and a file that
//! changes would have to be mounted over it, where containers and their image's digest would see it. So there is one place
//! outside, for both drivers, with the same keys and about as fresh.

use std::collections::{HashMap, HashSet};
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use content::Digest;

use super::Snapshots;

/// How old a text may be.
const EVERY: Duration = Duration::from_secs(1);

/// What was written last, by layer.
#[derive(Default)]
struct Written(HashMap<Digest, Vec<u8>>);

impl Written {
    /// Makes the files in `dir` say what `now` says, and takes away those of layers that are not in it.
    fn update(&mut self, dir: &Path, now: Vec<(Digest, Vec<u8>)>) -> io::Result<()> {
        let mut current = HashSet::new();
        for (layer, text) in now {
            // A layer that is mounted twice is one layer.
            if !current.insert(layer) || self.0.get(&layer) == Some(&text) {
                continue;
            }
            replace(&file(dir, layer), &text)?;
            self.0.insert(layer, text);
        }
        let gone: Vec<Digest> = self.0.keys().filter(|layer| !current.contains(*layer)).copied().collect();
        for layer in gone {
            self.0.remove(&layer);
            match fs::remove_file(file(dir, layer)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

fn file(dir: &Path, layer: Digest) -> PathBuf {
    dir.join(format!("{layer}.json"))
}

/// Whole or not at all; who reads it while it is replaced has the old text. It need not survive a crash.
fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let draft = path.with_extension("new");
    let _leftover = fs::remove_file(&draft);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o400).open(&draft)?;
    file.write_all(text)?;
    file.write_all(b"\n")?;
    fs::rename(&draft, path)
}

/// An empty directory, whatever a process before left there.
fn clear(dir: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        other => return other,
    }
    for entry in fs::read_dir(dir)?.flatten() {
        fs::remove_file(entry.path())?;
    }
    Ok(())
}

impl Snapshots {
    /// Keeps the files up to date until the end, in a task of its own.
    pub fn show_states(self: &Arc<Self>) {
        let (this, stop) = (Arc::clone(self), self.stop.clone());
        let dir = self.dirs.states();
        self.tasks.spawn(async move {
            let mut written = None;
            while stop.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_some() {
                let (this, dir) = (Arc::clone(&this), dir.clone());
                let before = written.take();
                let work = tokio::task::spawn_blocking(move || {
                    let mut written = match before {
                        Some(written) => written,
                        None => clear(&dir).map(|()| Written::default())?,
                    };
                    written.update(&dir, this.states())?;
                    Ok::<_, io::Error>(written)
                });
                match work.await {
                    Ok(Ok(now)) => written = Some(now),
                    // A full disk, say. They are made anew then, from the beginning.
                    Ok(Err(error)) => {
                        tracing::debug!(%error, "the files that tell the state of layers cannot be written");
                    }
                    Err(_) => return,
                }
            }
        });
    }

    fn states(&self) -> Vec<(Digest, Vec<u8>)> {
        let lazy = self.meta.lazy();
        let state = |id, layer: Digest| {
            let mounted = self.table.get(id)?;
            let (status, _) = mounted.layer.numbers()?;
            Some((layer, status.state_json(layer)))
        };
        lazy.iter().filter_map(|(_, row)| state(row.id, row.source.as_ref()?.layer)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_file_says_what_is_now_and_goes_with_its_layer() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("state");
        clear(&dir).unwrap();
        fs::write(dir.join("old.json"), "x").unwrap();
        clear(&dir).unwrap();
        let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
        let mut written = Written::default();
        written
            .update(&dir, vec![(one, b"{}".to_vec()), (one, b"{}".to_vec()), (two, b"{2}".to_vec())])
            .unwrap();
        assert_eq!(fs::read_to_string(file(&dir, two)).unwrap(), "{2}\n");
        assert_eq!(fs::metadata(file(&dir, one)).unwrap().permissions().mode() & 0o777, 0o400);
        written.update(&dir, vec![(one, b"{3}".to_vec())]).unwrap();
        assert_eq!(fs::read_to_string(file(&dir, one)).unwrap(), "{3}\n");
        let names: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(names, [file(&dir, one)]);
    }
}
