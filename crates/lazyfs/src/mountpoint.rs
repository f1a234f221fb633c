//! Places where layers are mounted.

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::UnmountFlags;

/// Takes away what is mounted at `path`; that nothing is there is no error. Who has files open there keeps them.
pub(crate) fn detach(path: &Path) -> io::Result<()> {
    match rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// What is mounted, in the order in which it was: a line each.
pub(crate) fn mount_table() -> io::Result<String> {
    std::fs::read_to_string("/proc/self/mountinfo")
}

/// Where anything is mounted, in the order in which it was: what covers another comes after it. Nothing that is mounted
/// is asked.
///
/// # Errors
/// That the mount table cannot be read.
pub fn mount_points() -> io::Result<Vec<PathBuf>> {
    Ok(mount_table()?.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape).collect())
}

/// A path as the mount table writes it: space, tab, newline and backslash are three octal digits.
pub(crate) fn unescape(text: &str) -> PathBuf {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (escaped, plain)| text.replace(escaped, plain))
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_table_tells_paths_of_all_kinds() {
        assert_eq!(unescape("/a\\040b\\134c"), Path::new("/a b\\c"));
        assert!(mount_points().unwrap().contains(&PathBuf::from("/")));
    }
}
