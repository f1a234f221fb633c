//! The kernel's view of an image.
//!
//! The mount is never attached anywhere: it is reached through its descriptor, and gone with it, however the test
//! ends. There is no loop device.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirEntryExt, FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use erofs::BLOCK;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen,
};

use super::model::{Model, ROOT, What};

/// Blocks at the beginning of a file that have content; of larger files, the last one has some too.
const HEAD: u64 = 16;

/// Why this machine cannot mount an image, if it cannot.
pub fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root: mounts an EROFS image".into());
    }
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    // It may be a module that is loaded by the first mount.
    let is_known =
        known.split_whitespace().any(|name| name == "erofs") || fsopen("erofs", FsOpenFlags::empty()).is_ok();
    if !is_known {
        return Some("this kernel has no EROFS".into());
    }
    let stage = Stage::new(&Model::new());
    match stage.mount(true) {
        Err(Errno::NOTBLK) => {
            Some(format!("cannot mount an EROFS image from a file in {}", parent().display()))
        }
        _ => None,
    }
}

/// Runs a test where images can be mounted; elsewhere prints why not. `PANTALA_E2E=require` makes that a failure.
pub fn test(body: impl FnOnce()) {
    match missing() {
        Some(reason) => skip(&reason),
        None => body(),
    }
}

pub fn skip(reason: &str) {
    assert!(std::env::var_os("PANTALA_E2E").is_none_or(|value| value != "require"), "not skipped: {reason}");
    println!("skipped: {reason}");
}

/// On disk, as the build is: the kernel mounts no file of a tmpfs.
fn parent() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

/// The byte at a place of the data file, where there is content.
fn content(at: u64) -> u8 {
    (at / 8 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes()[usize::try_from(at % 8).unwrap()]
}

/// Content of the data file.
pub fn content_of(start: u64, len: u64) -> Vec<u8> {
    (start..start + len).map(content).collect()
}

/// An image and its data file.
pub struct Stage {
    dir: tempfile::TempDir,
}

impl Stage {
    /// Writes the image, and known content into a sparse data file.
    pub fn new(model: &Model) -> Self {
        let stage = Self { dir: tempfile::tempdir_in(parent()).unwrap() };
        fs::write(stage.image(), super::image(model)).unwrap();
        let data = File::create(stage.data()).unwrap();
        data.set_len(model.data_len).unwrap();
        for node in &model.nodes {
            if let What::Regular { size, address } = node.what {
                for (start, len) in pieces(size) {
                    data.write_all_at(&content_of(address + start, len), address + start).unwrap();
                }
            }
        }
        stage
    }

    pub fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Mounts it, with or without telling where the data are.
    pub fn mount(&self, with_data: bool) -> Result<OwnedFd, Errno> {
        let context = fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(context.as_fd(), "source", self.image())?;
        if with_data {
            fsconfig_set_string(context.as_fd(), "device", self.data())?;
        }
        fsconfig_set_flag(context.as_fd(), "ro")?;
        fsconfig_create(context.as_fd())?;
        let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NODEV;
        fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    }

    /// What `fsck.erofs` says to the image; `None` where it is not installed.
    pub fn fsck(&self) -> Option<Result<(), String>> {
        self.tool("fsck.erofs", &[]).map(|result| result.map(drop))
    }

    /// Runs one of erofs-utils; `None` where they are not installed.
    pub fn tool(&self, name: &str, arguments: &[&str]) -> Option<Result<String, String>> {
        let device = [OsStr::new("--device="), self.data().as_os_str()].map(OsStr::as_bytes).concat();
        let output =
            Command::new(name).arg(OsStr::from_bytes(&device)).args(arguments).arg(self.image()).output();
        let output = match output {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            output => output.unwrap(),
        };
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        Some(if output.status.success() {
            Ok(text)
        } else {
            Err(format!("{name}: {}: {text}", output.status))
        })
    }
}

/// A path that leads through a descriptor.
pub fn path_of(fd: &impl AsRawFd) -> PathBuf {
    format!("/proc/self/fd/{}/.", fd.as_raw_fd()).into()
}

/// Mounts a model and compares all that can be seen with what was described; lets `fsck.erofs` look too.
pub fn compare(model: &Model) -> Stage {
    let stage = Stage::new(model);
    match stage.fsck() {
        Some(result) => result.unwrap(),
        None => skip("fsck.erofs is not installed (package erofs-utils)"),
    }
    let mount = stage.mount(true).unwrap();
    let mut comparison = Comparison { model, links: model.links(), inodes: HashMap::new() };
    let root =
        rustix::fs::openat(CWD, path_of(&mount), OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
    comparison.node(ROOT, &path_of(&root));
    comparison.directory(ROOT, &root);
    stage
}

struct Comparison<'a> {
    model: &'a Model,
    links: Vec<u32>,
    /// Which inode a node turned out to be.
    inodes: HashMap<u64, u32>,
}

impl Comparison<'_> {
    fn directory(&mut self, number: u32, directory: &OwnedFd) {
        let What::Directory(children) = &self.model.nodes[number as usize].what else { unreachable!() };
        let mut children = children.clone();
        children.sort();
        let here = path_of(directory);
        let entries: Vec<_> = fs::read_dir(&here).unwrap().map(Result::unwrap).collect();
        let names: Vec<_> = entries.iter().map(|entry| entry.file_name().as_bytes().to_vec()).collect();
        let expected: Vec<_> = children.iter().map(|(name, _)| name.clone()).collect();
        assert_eq!(names, expected, "names in {}", here.display());
        assert!(!here.join("no such name").exists());

        for (entry, (name, child)) in entries.iter().zip(&children) {
            let path = here.join(OsStr::from_bytes(name));
            let metadata = self.node(*child, &path);
            assert_eq!(entry.file_type().unwrap(), metadata.file_type());
            assert_eq!(entry.ino(), metadata.ino());
            if metadata.is_dir() {
                let flags = OFlags::PATH | OFlags::DIRECTORY;
                let below = rustix::fs::openat(directory, name.as_slice(), flags, Mode::empty()).unwrap();
                let above = fs::metadata(path_of(&below).join("..")).unwrap();
                assert_eq!(above.ino(), fs::metadata(&here).unwrap().ino());
                self.directory(*child, &below);
            }
        }
    }

    /// Compares everything but the names in it.
    fn node(&mut self, number: u32, path: &Path) -> Metadata {
        let node = &self.model.nodes[number as usize];
        let seen = fs::symlink_metadata(path).unwrap();
        assert_eq!(*self.inodes.entry(seen.ino()).or_insert(number), number, "one inode, one node");
        let kind = seen.file_type();
        let is_right = match &node.what {
            What::Directory(_) => kind.is_dir(),
            What::Regular { .. } => kind.is_file(),
            What::Symlink(_) => kind.is_symlink(),
            What::Char(..) => kind.is_char_device(),
            What::Block(..) => kind.is_block_device(),
            What::Fifo => kind.is_fifo(),
            What::Socket => kind.is_socket(),
        };
        assert!(is_right, "{node:?} is shown as {kind:?}");
        assert_eq!(seen.mode() & 0o7777, u32::from(node.mode), "{node:?}");
        assert_eq!((seen.uid(), seen.gid()), (node.uid, node.gid), "{node:?}");
        let times = [
            (seen.mtime(), seen.mtime_nsec()),
            (seen.atime(), seen.atime_nsec()),
            (seen.ctime(), seen.ctime_nsec()),
        ];
        assert_eq!(times, [(node.mtime, i64::from(node.nanos)); 3], "{node:?}");
        assert_eq!(seen.nlink(), u64::from(self.links[number as usize]), "{node:?}");
        match &node.what {
            What::Regular { size, address } => {
                assert_eq!(seen.size(), *size);
                compare_content(&File::open(path).unwrap(), *size, *address);
            }
            What::Symlink(target) => {
                assert_eq!(seen.size(), target.len() as u64);
                assert_eq!(fs::read_link(path).unwrap().as_os_str().as_bytes(), target);
            }
            What::Char(major, minor) | What::Block(major, minor) => {
                assert_eq!(seen.rdev(), rustix::fs::makedev(*major, *minor));
            }
            _ => {}
        }
        self.xattrs(number, path);
        seen
    }

    fn xattrs(&self, number: u32, path: &Path) {
        let node = &self.model.nodes[number as usize];
        let mut buffer = vec![0; 1 << 16];
        let len = rustix::fs::llistxattr(path, &mut buffer[..]).unwrap();
        let mut names: Vec<_> = buffer[..len].split(|byte| *byte == 0).map(<[u8]>::to_vec).collect();
        names.pop();
        names.sort();
        let mut expected = node.xattrs.clone();
        expected.sort();
        assert_eq!(names, expected.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>(), "{node:?}");
        for (name, value) in expected {
            let seen = rustix::fs::lgetxattr(path, name.as_slice(), &mut buffer[..]);
            // Linux lets nobody read `user.` of what is neither file nor directory.
            if name.starts_with(b"user.") && !matches!(node.what, What::Directory(_) | What::Regular { .. }) {
                assert_eq!(seen, Err(Errno::NODATA));
            } else {
                assert_eq!(&buffer[..seen.unwrap()], value);
            }
        }
    }
}

/// The parts of a file that have content in the data file.
fn pieces(size: u64) -> Vec<(u64, u64)> {
    let head = (0, size.min(HEAD * BLOCK));
    let last = size.saturating_sub(1) / BLOCK * BLOCK;
    if size > HEAD * BLOCK { vec![head, (last, size - last)] } else { vec![head] }
}

fn compare_content(file: &File, size: u64, address: u64) {
    for (start, len) in pieces(size) {
        let mut seen = vec![0; usize::try_from(len).unwrap()];
        file.read_exact_at(&mut seen, start).unwrap();
        assert!(seen == content_of(address + start, len), "{len} bytes from {start} of {size}");
    }
    assert_eq!(file.read_at(&mut [0; 8], size).unwrap(), 0, "the end of {size}");
}
