//! What was read, in the order of first touch.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::time::Instant;

use content::Digest;
use serde::Serialize;

/// What one layer was asked for.
#[derive(Debug)]
pub(crate) struct LayerTouches {
    /// Counted from 0, the lowest.
    pub(crate) index: usize,
    pub(crate) touches: Vec<lazyfs::Touch>,
}

/// A file that was read; as a line of JSON what `ctr-remote image optimize --record-out` writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// Its path, without a leading slash.
    pub path: String,
    /// Digest of the manifest of the image that ran.
    pub manifest_digest: String,
    /// In which layer it is, counted from 0, the lowest.
    pub layer_index: usize,
}

/// The files that a container read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// In the order of their first touch.
    pub entries: Vec<Entry>,
    /// Chunks that were touched.
    pub chunks: usize,
    /// Bytes of files in these.
    pub bytes: u64,
    /// Files that were left out because their names are no text.
    pub left_out: usize,
}

impl Record {
    pub(crate) fn new(manifest: Digest, layers: Vec<LayerTouches>) -> Self {
        let mut all: Vec<(Instant, usize, lazyfs::Touch)> = layers
            .into_iter()
            .flat_map(|layer| layer.touches.into_iter().map(move |touch| (touch.at, layer.index, touch)))
            .collect();
        // Within a layer the order is that of the touches already; across layers the clock tells.
        all.sort_by_key(|(at, _, _)| *at);
        let mut record = Self { chunks: all.len(), ..Self::default() };
        let mut seen = HashSet::new();
        for (_, layer_index, touch) in all {
            record.bytes = record.bytes.saturating_add(touch.range.len());
            if !seen.insert((layer_index, touch.inode)) {
                continue;
            }
            match String::from_utf8(touch.path) {
                Ok(path) => {
                    record.entries.push(Entry { path, manifest_digest: manifest.to_string(), layer_index });
                }
                Err(_) => record.left_out += 1,
            }
        }
        record
    }

    /// As lines of JSON.
    pub fn to_lines(&self) -> String {
        let mut text = String::new();
        for entry in &self.entries {
            // Neither can fail: three fields of text and numbers, into a String.
            let _ = writeln!(text, "{}", serde_json::to_string(entry).unwrap_or_default());
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use content::ByteRange;

    use super::*;

    #[test]
    fn files_of_all_layers_are_in_the_order_of_their_first_touch() {
        let start = Instant::now();
        let touch = |ms: u64, path: &str, inode: u32, chunk: u32| lazyfs::Touch {
            at: start + Duration::from_millis(ms),
            path: path.into(),
            inode,
            chunk,
            range: ByteRange::new(0, 10),
        };
        let manifest = Digest::of(b"manifest");
        let record = Record::new(
            manifest,
            vec![
                LayerTouches {
                    index: 0,
                    touches: vec![touch(5, "lib/b", 3, 0), touch(6, "lib/a", 2, 1), touch(9, "lib/b", 3, 2)],
                },
                LayerTouches { index: 2, touches: vec![touch(1, "etc/passwd", 3, 0), touch(7, "app", 4, 1)] },
            ],
        );
        let order: Vec<(&str, usize)> =
            record.entries.iter().map(|entry| (entry.path.as_str(), entry.layer_index)).collect();
        assert_eq!(order, [("etc/passwd", 2), ("lib/b", 0), ("lib/a", 0), ("app", 2)]);
        assert_eq!((record.chunks, record.bytes, record.left_out), (5, 50, 0));
        let first = format!(r#"{{"path":"etc/passwd","manifestDigest":"{manifest}","layerIndex":2}}"#);
        assert_eq!(record.to_lines().lines().next(), Some(first.as_str()));
        assert_eq!(record.to_lines().lines().count(), 4);
    }

    #[test]
    fn a_name_that_is_no_text_is_counted() {
        let touch = lazyfs::Touch {
            at: Instant::now(),
            path: vec![0xe9],
            inode: 2,
            chunk: 0,
            range: ByteRange::new(0, 1),
        };
        let record = Record::new(Digest::of(b""), vec![LayerTouches { index: 0, touches: vec![touch] }]);
        assert_eq!((record.entries.len(), record.left_out), (0, 1));
    }
}
