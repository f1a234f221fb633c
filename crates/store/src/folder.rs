//! The folder of one content: its header, and how a folder comes and goes.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use content::{ContentId, Digest, Locator};
use serde::{Deserialize, Serialize};

use crate::StoreError;

/// Version of the layout. Another one is another store: the folder is removed and fetched again.
const LAYOUT: u32 = 1;

const HEAD: &str = "head.json";

/// What is known of a content as a whole. Small, rewritten by rename.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Head {
    /// Version of the layout.
    layout: u32,
    /// The content's name; must be that of the folder.
    pub id: ContentId,
    /// Length in bytes.
    pub len: u64,
    /// Bytes per piece.
    pub piece_size: u32,
    /// Where another node finds it.
    pub locator: Option<Locator>,
    /// The digest that the whole must have.
    pub expected: Option<Digest>,
    /// Whether the whole was hashed and has that digest.
    pub verified: bool,
}

impl Head {
    pub(crate) fn new(id: ContentId, len: u64, piece_size: u32) -> Self {
        Self { layout: LAYOUT, id, len, piece_size, locator: None, expected: None, verified: false }
    }
}

/// Reads the header of `folder`; `None` if it is not a content of this layout.
pub(crate) fn read_head(folder: &Path, piece_size: u32) -> Option<Head> {
    let name: ContentId = folder.file_name()?.to_str()?.parse().ok()?;
    let head: Head = serde_json::from_slice(&fs::read(folder.join(HEAD)).ok()?).ok()?;
    (head.layout == LAYOUT && head.id == name && head.piece_size == piece_size).then_some(head)
}

/// Writes the header beside the old one and renames it over: a reader sees the one or the other.
pub(crate) fn write_head(folder: &Path, head: &Head) -> Result<(), StoreError> {
    let path = folder.join(HEAD);
    let new = folder.join("head.json.new");
    let doing = "write";
    let text =
        serde_json::to_vec(head).map_err(std::io::Error::other).map_err(StoreError::io(doing, &path))?;
    let mut file = File::create(&new).map_err(StoreError::io(doing, &new))?;
    file.write_all(&text).map_err(StoreError::io(doing, &new))?;
    fs::rename(&new, &path).map_err(StoreError::io(doing, &path))
}

/// Makes the folder of a new content. The header comes last: without it the folder is no content.
pub(crate) fn create(folder: &Path, head: &Head, map_len: u64) -> Result<(), StoreError> {
    fs::create_dir_all(folder).map_err(StoreError::io("create", folder))?;
    for (name, len) in [("data", head.len), ("map", map_len)] {
        let path = folder.join(name);
        let file = File::create(&path).map_err(StoreError::io("create", &path))?;
        file.set_len(len).map_err(StoreError::io("set the length of", &path))?;
    }
    write_head(folder, head)
}

/// The two files of a content, open.
#[derive(Debug)]
pub(crate) struct Files {
    pub data: File,
    pub map: File,
}

pub(crate) fn open(folder: &Path) -> Result<Files, StoreError> {
    let open = |name: &str| {
        let path = folder.join(name);
        OpenOptions::new().read(true).write(true).open(&path).map_err(StoreError::io("open", &path))
    };
    Ok(Files { data: open("data")?, map: open("map")? })
}

/// Takes a folder out of sight by rename and returns where it is now, to be removed without haste.
pub(crate) fn hide(folder: &Path, number: u64) -> Result<PathBuf, StoreError> {
    let hidden = folder.with_file_name(format!("trash.{}.{number}", std::process::id()));
    fs::rename(folder, &hidden).map_err(StoreError::io("remove", folder))?;
    Ok(hidden)
}

/// Removes a folder that nobody sees any more. Failure costs space until the next start, so it is only logged.
pub(crate) fn remove(folder: &Path) {
    if let Err(error) = fs::remove_dir_all(folder) {
        tracing::warn!(path = %folder.display(), %error, "cannot remove a folder of the store");
    }
}
