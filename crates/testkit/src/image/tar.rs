//! Layers from a list of entries: everything that a tar can say, said in a line.

use std::io;

use anyhow::{Context, Result};
use tar::{Builder, EntryType, Header};

/// One entry of a layer, in the order in which it will stand there.
#[derive(Debug, Clone)]
pub struct Entry {
    path: String,
    kind: EntryType,
    data: Vec<u8>,
    link: Option<String>,
    mode: u32,
    owner: (u64, u64),
    mtime: u64,
    device: (u32, u32),
    records: Vec<(String, Vec<u8>)>,
}

impl Entry {
    fn new(path: &str, kind: EntryType, mode: u32) -> Self {
        Self {
            path: path.into(),
            kind,
            data: Vec::new(),
            link: None,
            mode,
            owner: (0, 0),
            // 2026-01-01, so that a clock's "now" in its place is noticed.
            mtime: 1_767_225_600,
            device: (0, 0),
            records: Vec::new(),
        }
    }

    /// A regular file, mode 644, owned by root.
    pub fn file(path: &str, data: impl Into<Vec<u8>>) -> Self {
        Self { data: data.into(), ..Self::new(path, EntryType::Regular, 0o644) }
    }

    /// A folder, mode 755.
    pub fn dir(path: &str) -> Self {
        Self::new(path, EntryType::Directory, 0o755)
    }

    /// A symbolic link.
    pub fn symlink(path: &str, target: &str) -> Self {
        Self { link: Some(target.into()), ..Self::new(path, EntryType::Symlink, 0o777) }
    }

    /// Another name of a file that stands earlier in the layer.
    pub fn hardlink(path: &str, target: &str) -> Self {
        Self { link: Some(target.into()), ..Self::new(path, EntryType::Link, 0o644) }
    }

    /// A character device.
    pub fn char_device(path: &str, major: u32, minor: u32) -> Self {
        Self { device: (major, minor), ..Self::new(path, EntryType::Char, 0o666) }
    }

    /// A block device.
    pub fn block_device(path: &str, major: u32, minor: u32) -> Self {
        Self { device: (major, minor), ..Self::new(path, EntryType::Block, 0o660) }
    }

    /// A named pipe.
    pub fn fifo(path: &str) -> Self {
        Self::new(path, EntryType::Fifo, 0o600)
    }

    /// Hides `path` of the layers below.
    pub fn whiteout(path: &str) -> Self {
        let (folder, name) = path.rsplit_once('/').map_or(("", path), |(folder, name)| (folder, name));
        let separator = if folder.is_empty() { "" } else { "/" };
        Self::file(&format!("{folder}{separator}.wh.{name}"), "")
    }

    /// Hides everything in the folder `path` of the layers below.
    pub fn opaque(path: &str) -> Self {
        Self::file(&format!("{path}/.wh..wh..opq"), "")
    }

    /// With other permissions (set-user-ID and the like included).
    #[must_use]
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    /// With another owner.
    #[must_use]
    pub fn owner(mut self, uid: u64, gid: u64) -> Self {
        self.owner = (uid, gid);
        self
    }

    /// With another time of modification, in seconds since 1970.
    #[must_use]
    pub fn mtime(mut self, seconds: u64) -> Self {
        self.mtime = seconds;
        self
    }

    /// With an extended attribute.
    #[must_use]
    pub fn xattr(self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        self.record(&xattr_record(name), value)
    }

    /// With a PAX record before it, whatever that may say.
    #[must_use]
    pub fn record(mut self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        self.records.push((name.into(), value.into()));
        self
    }

    /// A regular file of `len` bytes with holes, as `tar --format=posix --sparse` writes it (PAX sparse 1.0): `parts`
    /// are what stands between the holes, each at its offset.
    pub fn sparse(path: &str, len: u64, parts: &[(u64, &[u8])]) -> Self {
        // The map comes first: how many parts, then offset and length of each, a number a line, to a whole block.
        let mut data = format!("{}\n", parts.len()).into_bytes();
        for (offset, bytes) in parts {
            data.extend_from_slice(format!("{offset}\n{}\n", bytes.len()).as_bytes());
        }
        data.resize(data.len().next_multiple_of(512), 0);
        for (_, bytes) in parts {
            data.extend_from_slice(bytes);
        }
        let (folder, name) = path.rsplit_once('/').unwrap_or((".", path));
        Self::file(&format!("{folder}/GNUSparseFile.0/{name}"), data)
            .record("GNU.sparse.major", "1")
            .record("GNU.sparse.minor", "0")
            .record("GNU.sparse.name", path)
            .record("GNU.sparse.realsize", len.to_string())
    }
}

/// The name of the PAX record for an extended attribute.
pub(super) fn xattr_record(name: &str) -> String {
    format!("SCHILY.xattr.{name}")
}

/// A tar of `entries`.
pub fn layer(entries: &[Entry]) -> Result<Vec<u8>> {
    let mut builder = Builder::new(Vec::new());
    for entry in entries {
        append(&mut builder, entry).with_context(|| format!("tar entry {}", entry.path))?;
    }
    Ok(builder.into_inner()?)
}

/// Writes one entry, its PAX records before it.
pub(super) fn append<W: io::Write>(builder: &mut Builder<W>, entry: &Entry) -> Result<()> {
    let mut header = Header::new_ustar();
    header.set_entry_type(entry.kind);
    header.set_mode(entry.mode);
    header.set_uid(entry.owner.0);
    header.set_gid(entry.owner.1);
    header.set_mtime(entry.mtime);
    header.set_size(entry.data.len() as u64);
    if matches!(entry.kind, EntryType::Char | EntryType::Block) {
        header.set_device_major(entry.device.0)?;
        header.set_device_minor(entry.device.1)?;
    }
    append_with(builder, header, &entry.path, entry.link.as_deref(), &entry.records, entry.data.as_slice())
}

/// Writes an entry from its header. Long names go into PAX records by the builder.
pub(super) fn append_with<W: io::Write>(
    builder: &mut Builder<W>,
    mut header: Header,
    path: &str,
    link: Option<&str>,
    records: &[(String, Vec<u8>)],
    data: impl io::Read,
) -> Result<()> {
    if !records.is_empty() {
        builder
            .append_pax_extensions(records.iter().map(|(name, value)| (name.as_str(), value.as_slice())))?;
    }
    match link {
        Some(link) => builder.append_link(&mut header, path, link)?,
        None => builder.append_data(&mut header, path, data)?,
    }
    Ok(())
}
