//! A folder as a layer: what `docker build` does with the upper folder of an overlay.
//!
//! An overlay marks a removed name with the character device 0:0 and a replaced folder with an attribute; a layer
//! says the same with files named `.wh.…`. Everything else is written as it is, names sorted, times cut to seconds.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{major, minor};
use tar::{Builder, EntryType, Header};

use super::tar::{Entry, append, append_with, xattr_record};
use crate::tree::xattrs;

/// Writes everything below `dir` as a tar. Of the paths in `skip`, relative to
/// `dir`, files are left out and folders are written empty.
pub fn tar_of_tree<W: io::Write>(dir: &Path, skip: &[&str], out: W) -> Result<W> {
    let mut builder = Builder::new(out);
    let mut seen = HashMap::new();
    walk(dir, "", skip, &mut seen, &mut builder)?;
    Ok(builder.into_inner()?)
}

fn walk<W: io::Write>(
    dir: &Path,
    prefix: &str,
    skip: &[&str],
    seen: &mut HashMap<(u64, u64), String>,
    builder: &mut Builder<W>,
) -> Result<()> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        names.push(entry?.file_name().into_string().ok().context("a file name is not UTF-8")?);
    }
    names.sort();
    for name in names {
        let path = format!("{prefix}{name}");
        let file = dir.join(&name);
        let metadata = fs::symlink_metadata(&file)?;
        let skipped = skip.contains(&path.as_str());
        if skipped && !metadata.is_dir() {
            continue;
        }
        write(&file, &path, &metadata, seen, builder).with_context(|| format!("cannot write {path}"))?;
        if metadata.is_dir() && !skipped {
            walk(&file, &format!("{path}/"), skip, seen, builder)?;
        }
    }
    Ok(())
}

fn write<W: io::Write>(
    file: &Path,
    path: &str,
    metadata: &Metadata,
    seen: &mut HashMap<(u64, u64), String>,
    builder: &mut Builder<W>,
) -> Result<()> {
    let kind = metadata.file_type();
    if kind.is_char_device() && metadata.rdev() == 0 {
        return append(builder, &Entry::whiteout(path));
    }
    if kind.is_socket() {
        // No layer has one: it belongs to a process.
        return Ok(());
    }
    let mut attributes = xattrs(file)?;
    let opaque = attributes.iter().any(|(name, value)| name == "trusted.overlay.opaque" && value == b"y");
    attributes.retain(|(name, _)| !name.starts_with("trusted.overlay."));
    for (name, _) in &mut attributes {
        *name = xattr_record(name);
    }

    let mut header = Header::new_ustar();
    header.set_mode(metadata.mode() & 0o7777);
    header.set_uid(u64::from(metadata.uid()));
    header.set_gid(u64::from(metadata.gid()));
    header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or(0));
    header.set_size(0);

    if kind.is_file() && metadata.nlink() > 1 {
        if let Some(first) = seen.get(&(metadata.dev(), metadata.ino())) {
            header.set_entry_type(EntryType::Link);
            return append_with(builder, header, path, Some(first), &[], io::empty());
        }
        seen.insert((metadata.dev(), metadata.ino()), path.to_owned());
    }
    if kind.is_symlink() {
        let target = fs::read_link(file)?;
        header.set_entry_type(EntryType::Symlink);
        return append_with(builder, header, path, target.to_str(), &attributes, io::empty());
    }
    if kind.is_file() {
        header.set_entry_type(EntryType::Regular);
        header.set_size(metadata.len());
        return append_with(builder, header, path, None, &attributes, File::open(file)?);
    }
    if kind.is_dir() {
        header.set_entry_type(EntryType::Directory);
        append_with(builder, header, &format!("{path}/"), None, &attributes, io::empty())?;
        return if opaque { append(builder, &Entry::opaque(path)) } else { Ok(()) };
    }
    if kind.is_fifo() {
        header.set_entry_type(EntryType::Fifo);
    } else {
        header.set_entry_type(if kind.is_block_device() { EntryType::Block } else { EntryType::Char });
        header.set_device_major(major(metadata.rdev()))?;
        header.set_device_minor(minor(metadata.rdev()))?;
    }
    append_with(builder, header, path, None, &attributes, io::empty())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

    use super::*;

    #[test]
    fn an_overlays_marks_become_whiteouts_and_links_stay_links() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("a/b")).unwrap();
        fs::write(at("a/file"), "data").unwrap();
        fs::set_permissions(at("a/file"), fs::Permissions::from_mode(0o4711)).unwrap();
        fs::hard_link(at("a/file"), at("other")).unwrap();
        symlink("a/file", at("link")).unwrap();
        fs::create_dir(at("cache")).unwrap();
        fs::write(at("cache/litter"), "x").unwrap();
        let mut expected = vec![
            ("a/".to_owned(), EntryType::Directory),
            ("a/b/".to_owned(), EntryType::Directory),
            ("a/file".to_owned(), EntryType::Regular),
            ("cache/".to_owned(), EntryType::Directory),
            ("link".to_owned(), EntryType::Symlink),
            ("other".to_owned(), EntryType::Link),
        ];
        if rustix::process::geteuid().is_root() {
            let nothing = makedev(0, 0);
            mknodat(CWD, at("a/gone"), FileType::CharacterDevice, Mode::empty(), nothing).unwrap();
            expected.insert(3, ("a/.wh.gone".into(), EntryType::Regular));
        }
        let tar = tar_of_tree(dir.path(), &["cache"], Vec::new()).unwrap();
        let mut archive = tar::Archive::new(tar.as_slice());
        let seen: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                if entry.path().unwrap().as_os_str() == "a/file" {
                    assert_eq!((entry.header().mode().unwrap(), entry.size()), (0o4711, 4));
                }
                (entry.path().unwrap().display().to_string(), entry.header().entry_type())
            })
            .collect();
        assert_eq!(seen, expected);
    }
}
