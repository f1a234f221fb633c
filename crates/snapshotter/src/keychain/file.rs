//! The file in which credentials survive a restart: JSON, mode 0600, replaced as a whole.
//!
//! It is not encrypted: a key beside it would be read by whoever reads it. What protects it is that only root can, and
//! that its contents expire. A file that others can read, or that somebody else owns, is not believed: who can write
//! credentials chooses in whose name this machine asks.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use serde::{Deserialize, Serialize};

/// A file longer than this is not ours.
const MAX: u64 = 8 << 20;
/// The form of the file.
const VERSION: u32 = 1;

/// What is in it.
#[derive(Serialize, Deserialize)]
pub(super) struct Kept {
    version: u32,
    pub(super) entries: Vec<KeptEntry>,
}

/// One credential. Of the secrets, one pair or one token is there.
#[derive(Serialize, Deserialize, Clone)]
pub(super) struct KeptEntry {
    /// The registry that is shown it.
    pub(super) host: String,
    pub(super) repository: String,
    /// Seconds since 1970, when a pull last brought it.
    pub(super) at: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) password: Option<(String, String)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) identity_token: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) registry_token: Option<String>,
}

/// Reads it; nothing, if it is not there.
pub(super) fn read(path: &Path) -> io::Result<Vec<KeptEntry>> {
    let wrong = |reason: &str| io::Error::new(io::ErrorKind::InvalidData, reason.to_owned());
    let no_links = i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or(0);
    let file = match OpenOptions::new().read(true).custom_flags(no_links).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let stat = file.metadata()?;
    let own = rustix::process::geteuid().as_raw();
    if !stat.is_file() || stat.uid() != own || stat.mode() & 0o077 != 0 {
        return Err(wrong("others than its owner can read or write it"));
    }
    if stat.len() > MAX {
        return Err(wrong("it is too long"));
    }
    let mut text = Vec::new();
    file.take(MAX).read_to_end(&mut text)?;
    // What the parser says could quote a secret.
    let kept: Kept = serde_json::from_slice(&text).map_err(|_| wrong("it is not of that form"))?;
    if kept.version != VERSION {
        return Err(wrong("it is of another version"));
    }
    Ok(kept.entries)
}

/// Writes it anew: whoever dies in the middle leaves the old one.
pub(super) fn write(path: &Path, entries: Vec<KeptEntry>) -> io::Result<()> {
    let draft = path.with_extension("new");
    match std::fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let text = serde_json::to_vec(&Kept { version: VERSION, entries }).map_err(io::Error::other)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    file.write_all(&text)?;
    file.sync_all()?;
    drop(file);
    std::fs::rename(&draft, path)?;
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn entry() -> KeptEntry {
        KeptEntry {
            host: "r.example".into(),
            repository: "a".into(),
            at: 7,
            password: Some(("u".into(), "p".into())),
            identity_token: None,
            registry_token: None,
        }
    }

    #[test]
    fn only_its_owner_can_read_it_and_nothing_else_is_believed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("credentials.json");
        assert!(read(&path).unwrap().is_empty());
        write(&path, vec![entry()]).unwrap();
        write(&path, vec![entry(), entry()]).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(read(&path).unwrap().len(), 2);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no draft stays");

        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(read(&path).is_err());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&path, r#"{"version":1,"entries":["canary"]}"#).unwrap();
        let error = read(&path).err().unwrap().to_string();
        assert!(!error.contains("canary"), "{error}");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(read(&link).is_err());
    }
}
