//! Mounting in two steps, and finding out what is mounted where.
//!
//! First the file system is made, then it is shown. In between it has its device number, and nobody can reach
//! it yet: that is when its descriptor is given away for keeping, under a name that a later process finds
//! again by what the mount table says. Nothing here asks the file system anything, since it may be one whose
//! server is dead.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount,
};

use crate::mountpoint::{mount_table, unescape};

/// How the mount table names our mounts.
const FS_TYPE: &str = "fuse.pantala";
/// KiB that the kernel reads ahead of a reader: the most that one request can carry. Through the protocol it
/// would be 128.
const READ_AHEAD: &str = "1024";

/// A file system that nobody can reach yet. Dropping it ends it.
pub(super) struct Detached {
    mount: OwnedFd,
    minor: u32,
}

/// Makes a file system whose requests `device` answers.
pub(super) fn create(device: BorrowedFd<'_>) -> io::Result<Detached> {
    let system = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let system = system.as_fd();
    let number = device.as_raw_fd().to_string();
    let strings = [
        ("source", "pantala"),
        ("subtype", "pantala"),
        ("fd", &number),
        ("rootmode", "40000"),
        ("user_id", "0"),
        ("group_id", "0"),
    ];
    for (key, value) in strings {
        fsconfig_set_string(system, key, value)?;
    }
    // `default_permissions`: the kernel checks the modes that we report, without asking.
    for flag in ["ro", "allow_other", "default_permissions"] {
        fsconfig_set_flag(system, flag)?;
    }
    fsconfig_create(system)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOATIME;
    let mount = fsmount(system, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    // The number is the kernel's own: no request is needed for it.
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let minor = rustix::fs::statx(&mount, "", flags, StatxFlags::empty())?.stx_dev_minor;
    Ok(Detached { mount, minor })
}

impl Detached {
    /// The minor part of its device number; the major one is 0.
    pub(super) const fn minor(&self) -> u32 {
        self.minor
    }

    /// Shows it at `path`.
    pub(super) fn show(self, path: &Path) -> io::Result<()> {
        let window = format!("/sys/class/bdi/0:{}/read_ahead_kb", self.minor);
        if let Err(error) = std::fs::write(&window, READ_AHEAD) {
            tracing::debug!(window, %error, "a mount reads ahead as little as the kernel likes");
        }
        Ok(move_mount(&self.mount, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
    }
}

/// The minor part of the device number of our mount at `path`; `None` if nothing or something else is there.
pub(super) fn shown_at(path: &Path) -> io::Result<Option<u32>> {
    // The table shows true paths. The last part is where the mount is, and is not looked at.
    let path = match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => parent.canonicalize()?.join(name),
        _ => path.to_owned(),
    };
    let table = mount_table()?;
    // Several may lie on one another: the last one is seen.
    Ok(table.lines().rev().filter_map(Line::parse).find(|line| line.point == path).and_then(Line::ours))
}

/// The minor parts of the device numbers of all our mounts.
pub(super) fn all_shown() -> io::Result<HashSet<u32>> {
    let table = mount_table()?;
    Ok(table.lines().filter_map(Line::parse).filter_map(Line::ours).collect())
}

struct Line<'a> {
    device: &'a str,
    point: PathBuf,
    kind: &'a str,
}

impl<'a> Line<'a> {
    /// `36 35 0:98 / /mnt rw,noatime shared:1 - type source options`
    fn parse(line: &'a str) -> Option<Self> {
        let (place, system) = line.split_once(" - ")?;
        let mut fields = place.split(' ').skip(2);
        let device = fields.next()?;
        let point = unescape(fields.nth(1)?);
        Some(Self { device, point, kind: system.split(' ').next()? })
    }

    fn ours(self) -> Option<u32> {
        let minor = self.device.strip_prefix("0:")?;
        (self.kind == FS_TYPE).then(|| minor.parse().ok()).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_table_is_read() {
        let text = "517 27 0:98 / /a\\040b rw,noatime shared:1 - fuse.pantala pantala ro,user_id=0";
        let line = Line::parse(text).unwrap();
        assert_eq!(line.point, Path::new("/a b"));
        assert_eq!(line.ours(), Some(98));
        let other = Line::parse("29 1 8:1 / /x rw - ext4 /dev/sda1 rw").unwrap();
        assert_eq!(other.ours(), None);
        assert!(Line::parse("rubbish").is_none());
    }
}
