//! A layer shown by one of the drivers, and those who look at it.

#![allow(dead_code)] // each test binary uses its part

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use lazyfs::keeper::KeepHere;
use lazyfs::mounter::{Driver, DriverChoice, Mount, Mounter, MounterOptions};
use lazyfs::{Layer, LayerSpec, Layers, LayersOptions, MountOptions, OpaqueXattr};
use rustix::mount::{MountFlags, UnmountFlags};

use crate::common::{Blob, Source, off, on_demand, quick};

/// On disk, as the build is: EROFS shows no file of a tmpfs, and fanotify asks nobody for one.
pub fn parent() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

/// Says that a test, or a part of it, does not run; in CI that is a failure.
pub fn skip(reason: &str) {
    assert!(std::env::var_os("PANTALA_E2E").is_none_or(|value| value != "require"), "not skipped: {reason}");
    eprintln!("SKIPPED: {reason}");
}

/// The drivers that work here.
pub fn drivers() -> Vec<DriverChoice> {
    if !rustix::process::geteuid().is_root() {
        skip("mounting needs root");
        return Vec::new();
    }
    if Command::new("python3").arg("--version").output().is_err() {
        skip("python3 is not installed: the readers are written in it");
        return Vec::new();
    }
    let mut drivers = Vec::new();
    if Path::new("/dev/fuse").exists() {
        drivers.push(DriverChoice::Fuse);
    } else {
        skip("there is no /dev/fuse");
    }
    let scratch = tempfile::tempdir_in(parent()).unwrap();
    match lazyfs::probe(&scratch.path().join("scratch")) {
        Ok(()) => drivers.push(DriverChoice::Native),
        Err(error) => skip(&format!("the native driver does not work here: {error}")),
    }
    let only = std::env::var("LAZYFS_TEST_DRIVER").ok();
    drivers.retain(|driver| only.as_deref().is_none_or(|only| only.parse() == Ok(*driver)));
    drivers
}

/// Something mounted by a test, until it ends however it ends.
pub struct At(pub PathBuf);

impl Drop for At {
    fn drop(&mut self) {
        let unmounted = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
        assert!(unmounted.is_ok() || std::thread::panicking(), "{unmounted:?}");
    }
}

/// A store, and a driver to show its layers.
pub struct Stand {
    pub folder: tempfile::TempDir,
    pub layers: Arc<Layers>,
    pub mounter: Arc<Mounter>,
}

/// A mounted layer.
pub struct Shown {
    pub layer: Arc<Layer>,
    pub mount: Mount,
    pub root: PathBuf,
}

impl Stand {
    pub async fn new(choice: DriverChoice) -> Self {
        Self::with(choice, &quick()).await
    }

    pub async fn with(choice: DriverChoice, options: &LayersOptions) -> Self {
        let folder = tempfile::tempdir_in(parent()).unwrap();
        let layers = Layers::open(folder.path().join("store"), options).unwrap();
        let keep = Arc::new(KeepHere::default());
        let scratch = folder.path().join("scratch");
        let mounter = Mounter::start(MounterOptions { choice, keep, scratch }).await.unwrap();
        let wanted = if choice == DriverChoice::Native { Driver::Native } else { Driver::Fuse };
        assert_eq!(mounter.driver(), wanted, "the driver that was forced");
        Self { folder, layers, mounter }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub async fn show(&self, blob: &Blob, name: &str, opaque: OpaqueXattr) -> Shown {
        self.show_spec(on_demand(blob, &Source::new(blob)), name, opaque).await
    }

    pub async fn show_spec(&self, spec: LayerSpec, name: &str, opaque_xattr: OpaqueXattr) -> Shown {
        let layer = self.layers.layer(spec).await.unwrap();
        let root = self.path(name);
        std::fs::create_dir(&root).unwrap();
        let options = MountOptions { opaque_xattr, ..MountOptions::default() };
        let mount = self.mounter.mount(Arc::clone(&layer), &root, &options).await.unwrap();
        assert_eq!(mount.driver(), self.mounter.driver(), "another driver had to help");
        Shown { layer, mount, root }
    }

    pub async fn end(self) {
        self.layers.shutdown().await;
    }
}

impl Shown {
    pub async fn end(self) {
        self.mount.unmount().await.unwrap();
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!table.contains(self.root.to_str().unwrap()), "still mounted");
    }
}

/// An overlay of these layers, the uppermost first, that can be written to.
pub fn overlay(stand: &Stand, name: &str, lower: &[&Path], flags: &str) -> At {
    let at = |part: &str| stand.path(&format!("{name}-{part}"));
    for part in ["upper", "work", "merged"] {
        std::fs::create_dir(at(part)).unwrap();
    }
    let lower: Vec<_> = lower.iter().map(|path| path.display().to_string()).collect();
    let options = format!(
        "lowerdir={},upperdir={},workdir={}{flags}",
        lower.join(":"),
        at("upper").display(),
        at("work").display()
    );
    let options = std::ffi::CString::new(options).unwrap();
    rustix::mount::mount("overlay", at("merged"), "overlay", MountFlags::empty(), options.as_c_str())
        .unwrap();
    At(at("merged"))
}

/// Runs a program in a process of its own, and not for ever: somebody who waits for an answer that never comes
/// would keep the mount, and the test, from ending.
pub async fn outside(mut command: Command) -> Output {
    off(move || {
        let mut limited = Command::new("timeout");
        limited.args(["-s", "KILL", "60"]).arg(command.get_program()).args(command.get_args());
        if let Some(dir) = command.get_current_dir() {
            limited.current_dir(dir);
        }
        command = limited;
        command.output().unwrap()
    })
    .await
}

/// One of the readers beside this file.
pub fn reader(script: &str) -> Command {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance").join(script);
    let mut command = Command::new("python3");
    // No compiled modules beside the sources.
    command.arg("-B").arg(script);
    command
}

/// Runs a reader that must be content.
pub async fn is_content(what: &str, command: Command) {
    let output = outside(command).await;
    let said = [output.stdout.as_slice(), output.stderr.as_slice()].map(String::from_utf8_lossy).concat();
    assert!(output.status.success(), "{what}: {}\n{said}", output.status);
}

/// Compares a mounted tree with one on disk. `options` is JSON, see `same.py`.
pub async fn assert_same(what: &str, ours: &Path, theirs: &Path, options: &serde_json::Value) {
    let mut command = reader("same.py");
    command.arg(ours).arg(theirs).arg(options.to_string());
    is_content(what, command).await;
}

/// Makes the kernel forget pages and names.
pub fn drop_caches() {
    std::fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
}
