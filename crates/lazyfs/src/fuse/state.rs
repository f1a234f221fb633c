//! `/.stargz-snapshotter/<layer digest>.json`: how much of the layer is here, for tests and people.
//!
//! The directory is in no listing, but can be looked up. Files are not opened here (the kernel was told
//! never to ask), so freshness comes from elsewhere: the kernel may not keep the attributes of this one
//! file. It asks for them before each read, and drops the pages when the time of change differs. What a
//! read answers is the text whose attributes were told last. The text is padded to a fixed length, so that
//! a reader whose numbers move meanwhile still reads a whole text.

use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use content::Digest;
use serde::Serialize;

use super::abi::{Attr, libc_mode};
use crate::layer::LayerStatus;

/// Name of the hidden directory.
pub(super) const DIRECTORY_NAME: &[u8] = b".stargz-snapshotter";
/// Its node number: beyond all inodes and whiteouts.
pub(super) const DIRECTORY: u64 = 1 << 33;
/// The file's.
pub(super) const FILE: u64 = DIRECTORY + 1;

/// Length of the text, if no error is longer.
const PADDED: usize = 512;

/// Keys and order as stock tools read them.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Text<'a> {
    error: &'a str,
    digest: Digest,
    size: u64,
    fetched_size: u64,
    fetched_percent: f64,
}

/// The state file of one mount.
pub(super) struct State {
    name: String,
    digest: Digest,
    told: Mutex<Told>,
}

#[derive(Default)]
struct Told {
    text: Vec<u8>,
    changed: (u64, u32),
}

impl State {
    pub(super) fn new(digest: Digest) -> Self {
        Self { name: format!("{digest}.json"), digest, told: Mutex::default() }
    }

    pub(super) fn name(&self) -> &[u8] {
        self.name.as_bytes()
    }

    pub(super) fn directory_attr() -> Attr {
        Attr { ino: DIRECTORY, size: 4096, mode: libc_mode::DIR | 0o500, nlink: 2, ..Attr::default() }
    }

    /// The file's attributes, for a text made of `status`.
    pub(super) fn file_attr(&self, status: &LayerStatus) -> Attr {
        let text = text(self.digest, status);
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.text != text {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            told.text = text;
            told.changed = (now.as_secs(), now.subsec_nanos());
        }
        Attr {
            ino: FILE,
            size: told.text.len() as u64,
            mtime: told.changed.0,
            mtimensec: told.changed.1,
            mode: libc_mode::FILE | 0o400,
            nlink: 1,
            ..Attr::default()
        }
    }

    /// Bytes of the text whose attributes were told last.
    pub(super) fn read(&self, offset: u64, size: u32) -> Vec<u8> {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(told.text.len());
        let to = from.saturating_add(size as usize).min(told.text.len());
        told.text.get(from..to).unwrap_or_default().to_vec()
    }
}

/// What the file says of a layer that is known by `digest`.
pub(crate) fn json(digest: Digest, status: &LayerStatus) -> Vec<u8> {
    let share =
        if status.complete || status.size == 0 { 1.0 } else { status.fetched as f64 / status.size as f64 };
    let text = Text {
        error: &status.error,
        digest,
        size: status.blob_len,
        fetched_size: status.blob_fetched(),
        fetched_percent: share * 100.0,
    };
    serde_json::to_vec(&text).unwrap_or_default()
}

fn text(digest: Digest, status: &LayerStatus) -> Vec<u8> {
    let mut text = json(digest, status);
    let padded = (text.len() + 1).next_multiple_of(PADDED);
    text.resize(padded - 1, b' ');
    text.push(b'\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(fetched: u64) -> LayerStatus {
        LayerStatus {
            toc_digest: Digest::of(b"toc"),
            layer_digest: Digest::of(b"layer"),
            blob_len: 1000,
            size: 4000,
            fetched,
            touched: 0,
            complete: fetched == 4000,
            error: String::new(),
        }
    }

    #[test]
    fn the_text_has_the_keys_that_stock_tools_read() {
        let state = State::new(Digest::of(b"layer"));
        assert_eq!(state.file_attr(&status(1000)).size, 512);
        let text: serde_json::Value = serde_json::from_slice(&state.read(0, 4096)).unwrap();
        assert_eq!(text["digest"], Digest::of(b"layer").to_string());
        assert_eq!((&text["size"], &text["fetchedSize"]), (&1000.into(), &250.into()));
        assert_eq!(text["fetchedPercent"], 25.0);
        assert_eq!(text["error"], "");
    }

    #[test]
    fn a_change_is_seen_in_the_time_and_only_then() {
        let state = State::new(Digest::of(b"layer"));
        let first = state.file_attr(&status(1));
        assert_eq!(state.file_attr(&status(1)), first);
        let second = state.file_attr(&status(4000));
        assert_ne!((second.mtime, second.mtimensec), (first.mtime, first.mtimensec));
        assert!(state.read(512, 10).is_empty());
    }
}
