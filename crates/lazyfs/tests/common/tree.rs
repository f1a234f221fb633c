//! Trees of files, compared by everything that a container could notice.

use std::collections::HashMap;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Unpacks a tar with the system's tar.
pub fn unpack(tar: &[u8], to: &Path) {
    let mut child = std::process::Command::new("tar")
        .args([
            "-x",
            "-p",
            "--same-owner",
            "--delay-directory-restore",
            "--numeric-owner",
            "--xattrs",
            "--xattrs-include=*",
            "-C",
        ])
        .arg(to)
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(tar).unwrap();
    assert!(child.wait().unwrap().success());
}

/// All that a tree shows, one line per name, then the bytes of its files.
pub fn describe(root: &Path) -> Vec<(PathBuf, String, Vec<u8>)> {
    let mut all = Vec::new();
    let mut first_names = HashMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let mut names: Vec<_> =
            std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        names.sort();
        names.push(folder.clone());
        for path in names {
            let data = std::fs::symlink_metadata(&path).unwrap();
            let kind = data.file_type();
            if kind.is_dir() && path != folder {
                folders.push(path);
                continue;
            }
            let mut line = format!("{:o} {}:{} dev {}", data.mode(), data.uid(), data.gid(), data.rdev());
            if path != root {
                line += &format!(" mtime {}", data.mtime());
            }
            if !kind.is_dir() {
                line += &format!(" links {} size {}", data.nlink(), data.size());
            } else if path != root {
                line += &format!(" links {}", data.nlink());
            }
            if kind.is_symlink() {
                line += &format!(" -> {}", std::fs::read_link(&path).unwrap().display());
            }
            for (name, value) in xattrs(&path) {
                line += &format!(" {name}={value:?}");
            }
            let content = if kind.is_file() { std::fs::read(&path).unwrap() } else { Vec::new() };
            let name = path.strip_prefix(root).unwrap().to_owned();
            let file = (data.dev(), data.ino());
            let first: &mut PathBuf = first_names.entry(file).or_insert_with(|| name.clone());
            *first = name.clone().min(std::mem::take(first));
            all.push((name, line, content, file));
        }
    }
    all.sort();
    let with_links = all.into_iter().map(|(name, mut line, content, file)| {
        if first_names[&file] != name {
            line += &format!(" same file as {}", first_names[&file].display());
        }
        (name, line, content)
    });
    with_links.collect()
}

pub fn xattrs(path: &Path) -> Vec<(String, Vec<u8>)> {
    let mut names = vec![0; 65536];
    let len = rustix::fs::llistxattr(path, names.as_mut_slice()).unwrap();
    let mut all: Vec<_> = names[..len]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let name = String::from_utf8(name.to_vec()).unwrap();
            let mut value = vec![0; 65536];
            let len = rustix::fs::lgetxattr(path, name.as_str(), value.as_mut_slice()).unwrap();
            value.truncate(len);
            (name, value)
        })
        .collect();
    all.sort();
    all
}

/// Compares two trees.
pub fn assert_same_tree(ours: &Path, theirs: &Path) {
    let (ours, theirs) = (describe(ours), describe(theirs));
    for (a, b) in ours.iter().zip(&theirs) {
        assert_eq!((&a.0, &a.1), (&b.0, &b.1), "attributes differ");
        assert!(a.2 == b.2, "content of {} differs", a.0.display());
    }
    assert_eq!(ours.len(), theirs.len());
}
