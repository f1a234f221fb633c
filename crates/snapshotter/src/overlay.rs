//! How a snapshot is mounted: the answer of `Prepare`, `View` and `Mounts`.
//!
//! A snapshot without parents is its own directory, bound. A view of one layer is that layer, bound read
//! only. Anything else is an overlay; options come in the order of stargz-snapshotter, because people
//! compare mount tables.

use std::path::Path;

use proto::containerd::types::Mount;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::dirs::Dirs;
use crate::meta::Kind;

/// What this kernel wants to be told with every overlay.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overlay {
    options: Vec<String>,
    user_xattr: bool,
}

impl Overlay {
    /// Finds out. `scratch` is a directory for a trial mount, needed only inside a user namespace. Blocks.
    pub fn probe(scratch: &Path) -> Self {
        let mut options = Vec::new();
        // Distributions can switch these on for every overlay. They tie an upper directory to its exact
        // lower ones, or leave only a note of a file in it: then it cannot be committed as a layer.
        for (parameter, option) in
            [("index", "index=off"), ("redirect_dir", "redirect_dir=off"), ("metacopy", "metacopy=off")]
        {
            let value = std::fs::read_to_string(format!("/sys/module/overlay/parameters/{parameter}"));
            if value.is_ok_and(|value| value.starts_with('Y')) {
                options.push(option.to_owned());
            }
        }
        Self { options, user_xattr: in_user_namespace() && trial(scratch, ",userxattr").is_ok() }
    }

    /// Whether an overlay as [`Overlay::mounts`] describes them can be mounted, with its files in `scratch`.
    /// Blocks.
    pub(crate) fn try_mount(&self, scratch: &Path) -> Result<(), Errno> {
        trial(scratch, if self.user_xattr { ",userxattr" } else { "" })
    }

    /// Whether overlayfs here keeps its notes in `user.overlay.*` instead of `trusted.overlay.*`. What a
    /// lazy layer shows of opaque directories must agree.
    pub const fn uses_user_xattr(&self) -> bool {
        self.user_xattr
    }

    /// The mounts of snapshot `id` on top of `parents`, the uppermost first.
    pub fn mounts(&self, dirs: &Dirs, kind: Kind, id: u64, parents: &[u64]) -> Vec<Mount> {
        let writable = kind == Kind::Active;
        let bind = |id| {
            let options = vec![if writable { "rw" } else { "ro" }.to_owned(), "rbind".to_owned()];
            Mount { r#type: "bind".into(), source: path(&dirs.fs(id)), target: String::new(), options }
        };
        match parents {
            [] => return vec![bind(id)],
            [parent] if !writable => return vec![bind(*parent)],
            _ => {}
        }
        let mut options = Vec::new();
        if writable {
            options.push(format!("workdir={}", path(&dirs.work(id))));
            options.push(format!("upperdir={}", path(&dirs.fs(id))));
        }
        let lower: Vec<String> = parents.iter().map(|parent| path(&dirs.fs(*parent))).collect();
        options.push(format!("lowerdir={}", lower.join(":")));
        if self.user_xattr {
            options.push("userxattr".into());
        }
        options.extend(self.options.iter().cloned());
        vec![Mount { r#type: "overlay".into(), source: "overlay".into(), target: String::new(), options }]
    }
}

fn path(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// The first user namespace maps all ids to themselves.
fn in_user_namespace() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().ne(["0", "0", "4294967295"])
}

/// Mounts an overlay below `scratch` with `more` options, and undoes it.
fn trial(scratch: &Path, more: &str) -> Result<(), Errno> {
    let dir = |name: &str| scratch.join(name);
    let [lower, upper, work, merged] = ["lower", "upper", "work", "merged"].map(dir);
    for dir in [&lower, &upper, &work, &merged] {
        std::fs::create_dir_all(dir).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    }
    let options =
        format!("lowerdir={},upperdir={},workdir={}{more}", lower.display(), upper.display(), work.display());
    let options = std::ffi::CString::new(options).map_err(|_| Errno::INVAL)?;
    let tried = mount("overlay", &merged, "overlay", MountFlags::empty(), options.as_c_str());
    if tried.is_ok() {
        // A mount that stays is a harmless empty directory.
        let _result = unmount(&merged, UnmountFlags::DETACH);
    }
    // As are directories.
    let _result = std::fs::remove_dir_all(scratch);
    tried
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_what_people_know() {
        let root = tempfile::tempdir().unwrap();
        let dirs = Dirs::create(root.path()).unwrap();
        let at = path(&dirs.snapshots());
        let overlay = Overlay::default();
        let told = |kind, parents: &[u64]| {
            let mounts = overlay.mounts(&dirs, kind, 9, parents);
            assert_eq!(mounts.len(), 1);
            (
                mounts[0].r#type.clone(),
                mounts[0].source.replace(&at, "S"),
                mounts[0].options.join(",").replace(&at, "S"),
            )
        };
        let texts = |(a, b, c): (String, String, String)| format!("{a} {b} {c}");
        assert_eq!(texts(told(Kind::Active, &[])), "bind S/9/fs rw,rbind");
        assert_eq!(texts(told(Kind::View, &[])), "bind S/9/fs ro,rbind");
        assert_eq!(texts(told(Kind::View, &[1])), "bind S/1/fs ro,rbind");
        assert_eq!(
            texts(told(Kind::Active, &[1])),
            "overlay overlay workdir=S/9/work,upperdir=S/9/fs,lowerdir=S/1/fs"
        );
        assert_eq!(texts(told(Kind::View, &[2, 1])), "overlay overlay lowerdir=S/2/fs:S/1/fs");
    }

    #[test]
    fn user_attributes_are_asked_for_where_needed() {
        let root = tempfile::tempdir().unwrap();
        let dirs = Dirs::create(root.path()).unwrap();
        let overlay = Overlay { options: vec!["index=off".into()], user_xattr: true };
        let options = &overlay.mounts(&dirs, Kind::View, 9, &[2, 1])[0].options;
        assert_eq!(options[1..], ["userxattr", "index=off"]);
    }

    #[test]
    fn the_trial_mount_is_undone() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root to mount");
            return;
        }
        let root = tempfile::tempdir().unwrap();
        let scratch = root.path().join("probe");
        trial(&scratch, "").unwrap();
        assert!(!scratch.exists());
    }
}
