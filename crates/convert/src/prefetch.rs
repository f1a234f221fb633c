//! Which files a start of the container reads first, and in which order.
//!
//! Two forms are read. A *list* has one path or pattern per line ([`Glob`]), for people. A *record* is what
//! `ctr-remote image optimize --record-out` writes: JSON lines with the path, the digest of the manifest of
//! the image that ran, and the index of the layer.
//!
//! A record is taken for its paths and their order: every layer that has such a file puts it first. Layers of
//! the image that ran are not the layers of another platform, nor those of the image when it was converted
//! before, and an image that is converted again with the same record must stay the same.

use std::collections::HashMap;
use std::sync::Arc;

use content::{Digest, Hasher};
use serde::Deserialize;

mod glob;

pub use glob::{Glob, GlobError};

/// Longest list or record that is taken, in entries: ranks are kept in memory.
const MAX_ENTRIES: usize = 1 << 20;

/// Why a list or record could not be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PrefetchError {
    /// A line of a list is no pattern.
    #[error("line {line}: {reason}")]
    Glob {
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        reason: GlobError,
    },
    /// A line of a record is no entry.
    #[error(
        "line {line} is no entry of a record as `ctr-remote image optimize --record-out` writes it: {reason}"
    )]
    Record {
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// There are too many entries.
    #[error("there are more than {MAX_ENTRIES} entries")]
    TooMany,
}

/// Files to be put first, most urgent first.
#[derive(Clone, Debug, Default)]
pub struct Prefetch {
    entries: Vec<Pattern>,
}

#[derive(Clone, Debug)]
enum Pattern {
    Exact(String),
    Glob(Glob),
}

/// A line of a record. Other fields are of no use here.
#[derive(Deserialize)]
struct Recorded {
    path: String,
}

impl Prefetch {
    /// Whether there is nothing to be put first.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Appends a list: a path or pattern per line; empty lines and those that begin with `#` are left out.
    ///
    /// # Errors
    /// [`PrefetchError`] with the line.
    pub fn add_list(&mut self, text: &str) -> Result<(), PrefetchError> {
        for (at, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let glob = Glob::new(line).map_err(|reason| PrefetchError::Glob { line: at + 1, reason })?;
            let pattern = glob.exact().map_or_else(|| Pattern::Glob(glob.clone()), Pattern::Exact);
            self.push(pattern)?;
        }
        Ok(())
    }

    /// Appends a record.
    ///
    /// # Errors
    /// [`PrefetchError`] with the line.
    pub fn add_record(&mut self, text: &str) -> Result<(), PrefetchError> {
        for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let wrong = |reason: String| PrefetchError::Record { line: at + 1, reason };
            let recorded: Recorded = serde_json::from_str(line).map_err(|error| wrong(error.to_string()))?;
            self.push(Pattern::Exact(clean(&recorded.path)))?;
        }
        Ok(())
    }

    fn push(&mut self, entry: Pattern) -> Result<(), PrefetchError> {
        if self.entries.len() >= MAX_ENTRIES {
            return Err(PrefetchError::TooMany);
        }
        self.entries.push(entry);
        Ok(())
    }

    /// The order of files; `None` if nothing comes first.
    pub(crate) fn ranks(&self) -> Option<Arc<Ranks>> {
        (!self.is_empty()).then(|| Arc::new(Ranks::new(&self.entries)))
    }
}

/// The path as the layer format cleans it: no leading `/` or `./`.
fn clean(path: &str) -> String {
    let parts = path.split('/').filter(|part| !part.is_empty() && *part != ".");
    parts.collect::<Vec<_>>().join("/")
}

/// The order in which the files of a layer are wanted.
#[derive(Debug)]
pub(crate) struct Ranks {
    exact: HashMap<Vec<u8>, u32>,
    globs: Vec<(u32, Glob)>,
    digest: Digest,
}

impl Ranks {
    fn new(patterns: &[Pattern]) -> Self {
        let (mut exact, mut globs, mut hasher) = (HashMap::new(), Vec::new(), Hasher::new());
        for (rank, pattern) in patterns.iter().enumerate() {
            let rank = u32::try_from(rank).unwrap_or(u32::MAX);
            let (tag, text) = match pattern {
                Pattern::Exact(path) => {
                    // Who is named twice is wanted when named first.
                    exact.entry(path.clone().into_bytes()).or_insert(rank);
                    (b'p', path.as_str())
                }
                Pattern::Glob(glob) => {
                    globs.push((rank, glob.clone()));
                    (b'g', glob.as_str())
                }
            };
            hasher.update(&[tag]);
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
        Self { exact, globs, digest: hasher.finish() }
    }

    /// When `path` is wanted, smallest first; `None` for what is not named.
    pub(crate) fn rank(&self, path: &[u8]) -> Option<u32> {
        let exact = self.exact.get(path).copied();
        let glob = self.globs.iter().take_while(|(rank, _)| exact.is_none_or(|exact| *rank < exact));
        let glob = glob.into_iter().find(|(_, glob)| glob.matches(path)).map(|(rank, _)| *rank);
        glob.or(exact)
    }

    /// Names this order: the same patterns in the same order have the same digest.
    pub(crate) fn digest(&self) -> Digest {
        self.digest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranks(list: &str) -> Arc<Ranks> {
        let mut prefetch = Prefetch::default();
        prefetch.add_list(list).unwrap();
        prefetch.ranks().unwrap()
    }

    #[test]
    fn the_first_line_that_fits_gives_the_rank() {
        let ranks = ranks("# start\n/usr/bin/python3\n\nusr/lib/**/*.so\nusr/lib/a/b.so\n./etc/passwd\n");
        for (path, rank) in [
            ("usr/bin/python3", Some(0)),
            ("usr/lib/x.so", Some(1)),
            ("usr/lib/a/b.so", Some(1)),
            ("etc/passwd", Some(3)),
            ("etc/group", None),
        ] {
            assert_eq!(ranks.rank(path.as_bytes()), rank, "{path}");
        }
    }

    #[test]
    fn a_name_before_a_pattern_keeps_its_rank() {
        let ranks = ranks("b.so\n*.so\nb.so\n");
        assert_eq!((ranks.rank(b"b.so"), ranks.rank(b"a.so")), (Some(0), Some(1)));
    }

    #[test]
    fn a_record_is_an_order_of_paths() {
        let mut prefetch = Prefetch::default();
        assert!(prefetch.ranks().is_none());
        prefetch
            .add_record(
                "{\"path\":\"/a\",\"manifestDigest\":\"sha256:x\",\"layerIndex\":1}\n\n{\"path\":\"b*\"}\n",
            )
            .unwrap();
        let ranks = prefetch.ranks().unwrap();
        assert_eq!(["a", "b*", "bc"].map(|path| ranks.rank(path.as_bytes())), [Some(0), Some(1), None]);
    }

    #[test]
    fn other_orders_have_other_names() {
        assert_eq!(ranks("a\nb").digest(), ranks("/a\n# x\nb\n").digest());
        for other in ["b\na", "ab", "a\nb*", "a\nb\nc"] {
            assert_ne!(ranks("a\nb").digest(), ranks(other).digest(), "{other}");
        }
    }

    #[test]
    fn a_wrong_line_is_told_by_its_number() {
        let mut prefetch = Prefetch::default();
        let told = prefetch.add_record("{\"path\":\"a\"}\nusr/bin\n").unwrap_err().to_string();
        assert!(told.starts_with("line 2 is no entry"), "{told}");
        let told = prefetch.add_list("a\n[b\n").unwrap_err().to_string();
        assert!(told.starts_with("line 2: "), "{told}");
    }
}
