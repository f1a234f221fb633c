//! What the machine must give for lazy mounts, looked at before the first client is answered.
//!
//! Without this look the snapshotter would start anywhere, and the first container would fail with what
//! `mount` said. Everything that is missing is told at once, each with what to do about it.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::io::Errno;

/// The kernel's door for file systems in user space.
const FUSE: &str = "/dev/fuse";
/// Its device number, from the kernel's list of devices: a misc device, minor 229.
const FUSE_NUMBER: (u32, u32) = (10, 229);
/// The first release of Linux that tells of reads before they happen.
const NATIVE: (u32, u32) = (6, 14);
/// Number of the capability that mounts need, from `linux/capability.h`.
const CAP_SYS_ADMIN: u32 = 21;

/// What the machine, or whoever started this process, does not give.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this machine cannot mount layers here: {0}")]
pub struct HostError(String);

/// Looks whether this process may mount, and whether there is FUSE or a kernel that may do without: whether that
/// really can is tried later, since it needs a directory. Needs none itself. Blocks shortly.
///
/// # Errors
/// All that is missing, and what to do about it.
pub fn check_host() -> Result<(), HostError> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let fuse = if may_be_native(&release) { None } else { fuse(Path::new(FUSE)) };
    told(&[capability(&status), fuse])
}

/// Looks whether an overlay can be mounted whose files lie in `root`, which must exist: `tried` is what a
/// trial said.
///
/// # Errors
/// Why not, and what to do about it.
pub(crate) fn check_overlay(root: &Path, tried: Result<(), Errno>) -> Result<(), HostError> {
    told(&[tried.err().map(|error| overlay(root, error))])
}

fn told(missing: &[Option<String>]) -> Result<(), HostError> {
    let mut text = String::new();
    for reason in missing.iter().flatten() {
        let _ = write!(text, "{}{reason}", if text.is_empty() { "" } else { "; and " });
    }
    if text.is_empty() { Ok(()) } else { Err(HostError(text)) }
}

fn capability(status: &str) -> Option<String> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    let effective = u64::from_str_radix(line.trim(), 16).ok()?;
    (effective >> CAP_SYS_ADMIN & 1 == 0).then(|| {
        "the capability CAP_SYS_ADMIN is missing, which mounting needs: run it as root (systemd: drop \
         CapabilityBoundingSet; in a container: --privileged, or --cap-add SYS_ADMIN --device /dev/fuse)"
            .to_owned()
    })
}

/// Whether a kernel of this release may show layers without FUSE.
fn may_be_native(release: &str) -> bool {
    let mut numbers =
        release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(NATIVE.0), Some(NATIVE.1))
}

fn fuse(device: &Path) -> Option<String> {
    let name = device.display();
    let error = match OpenOptions::new().read(true).write(true).open(device) {
        Ok(opened) if is_fuse(&opened) => return None,
        Ok(_) => {
            return Some(format!("{name} is not the FUSE device: make it with `mknod {name} c 10 229`"));
        }
        Err(error) => error,
    };
    Some(match (error.kind(), error.raw_os_error().map(Errno::from_raw_os_error)) {
        (ErrorKind::NotFound, _) | (_, Some(Errno::NODEV | Errno::NXIO)) => format!(
            "{name} is missing: load the kernel module with `modprobe fuse` (in a container: --device {name})"
        ),
        (ErrorKind::PermissionDenied, _) => format!(
            "{name} may not be opened by this process: run it as root (in a container: --device {name})"
        ),
        _ => format!("{name} cannot be opened: {error}"),
    })
}

fn is_fuse(opened: &File) -> bool {
    let number = |stat: &fs::Metadata| (rustix::fs::major(stat.rdev()), rustix::fs::minor(stat.rdev()));
    opened.metadata().is_ok_and(|stat| stat.file_type().is_char_device() && number(&stat) == FUSE_NUMBER)
}

fn overlay(root: &Path, error: Errno) -> String {
    let root = root.display();
    match error {
        Errno::NODEV => {
            "the kernel has no overlayfs: load it with `modprobe overlay`, or use a kernel that has it"
                .to_owned()
        }
        Errno::INVAL | Errno::OPNOTSUPP => format!(
            "overlayfs cannot keep its files in {root}: choose a root on ext4, xfs or btrfs (not on NFS, and not \
             inside of another overlay, as a container's own file system is)"
        ),
        Errno::PERM | Errno::ACCESS => format!(
            "overlayfs may not be mounted in {root}: run as root, and look whether AppArmor, SELinux or seccomp \
             forbids mounting"
        ),
        Errno::NOSPC => format!("there is no room in {root}: free some, or choose another root"),
        error => format!("a trial mount of overlayfs in {root} failed: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_capability_is_named() {
        assert_eq!(capability("Name:\tx\nCapEff:\t000001ffffffffff\n"), None);
        let text = capability("CapEff:\t000001ffffdfffff\n").unwrap();
        assert!(text.contains("CAP_SYS_ADMIN") && text.contains("run it as root"), "{text}");
    }

    #[test]
    fn a_missing_or_wrong_device_is_named_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let missing = fuse(&dir.path().join("fuse")).unwrap();
        assert!(missing.contains("modprobe fuse"), "{missing}");
        let wrong = fuse(Path::new("/dev/null")).unwrap();
        assert!(wrong.contains("mknod"), "{wrong}");
    }

    #[test]
    fn only_a_new_kernel_may_do_without_fuse() {
        assert!(may_be_native("6.14.0-rc1") && may_be_native("6.18.44-x") && may_be_native("7.0"));
        assert!(!may_be_native("6.13.9") && !may_be_native("5.15.0-91-generic") && !may_be_native("odd"));
    }

    #[test]
    fn all_that_is_missing_is_told_at_once() {
        let error = told(&[Some("a".into()), None, Some("b".into())]).unwrap_err().to_string();
        assert_eq!(error, "this machine cannot mount layers here: a; and b");
        assert!(told(&[None, None]).is_ok());
        let error = check_overlay(Path::new("/r"), Err(Errno::INVAL)).unwrap_err().to_string();
        assert!(error.contains("choose a root on ext4"), "{error}");
    }
}
