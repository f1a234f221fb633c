//! Three layers under overlayfs, against what a runtime makes of the same tars on a disk.

use std::path::{Path, PathBuf};
use std::process::Command;

use lazyfs::OpaqueXattr;
use lazyfs::mounter::DriverChoice;
use serde_json::json;

use crate::common::formats::formats;
use crate::common::tree::unpack;
use crate::common::{CHUNK, Tar, blob_of, noise};
use crate::shown::{Stand, assert_same, drivers, overlay, parent};

/// From the lowest to the uppermost, and all that they can do to each other.
fn layers() -> Vec<Vec<u8>> {
    let mut low = Tar::new();
    low.dir("etc", 0o755).file("etc/gone", 0o644, b"low").file("etc/kept", 0o644, &noise(1, 3 * CHUNK + 1));
    low.dir("opaque", 0o755).dir("opaque/old", 0o755).file("opaque/old/deep", 0o644, b"low");
    low.file("opaque/theirs", 0o644, b"low").dir("both", 0o755).file("both/x", 0o644, b"low");
    low.file("top", 0o644, b"low").file("becomes-dir", 0o644, b"low").dir("becomes-file", 0o755);
    low.file("becomes-file/inside", 0o644, b"low").symlink("link", "etc/kept").dir("usr", 0o755);
    low.file("usr/one", 0o644, b"low").hardlink("usr/other", "usr/one").dir("again", 0o700);
    low.file("again/a", 0o644, b"low").device("null", tar::EntryType::Char, 1, 3).fifo("pipe");
    let mut middle = Tar::new();
    middle.dir("etc", 0o711).file("etc/.wh.gone", 0, b"").file("etc/new", 0o644, b"new");
    middle.dir("opaque", 0o750).file("opaque/.wh..wh..opq", 0, b"").file("opaque/mine", 0o644, b"mine");
    middle.dir("both", 0o755).file("both/.wh.x", 0, b"").file("both/x", 0o644, &noise(2, CHUNK + 1));
    middle.file(".wh.top", 0, b"").file(".wh..wh.plnk", 0, b"hidden").file(".wh.never-was", 0, b"");
    middle.dir("becomes-dir", 0o755).file("becomes-dir/inside", 0o644, b"middle");
    middle.file("becomes-file", 0o644, b"middle").file("link", 0o644, b"was a link").file(
        ".wh.again",
        0,
        b"",
    );
    middle.xattrs("attributes", &[("user.fine", b"1"), ("user.overlay.origin", b"y")], b"a");
    let mut high = Tar::new();
    high.dir("opaque", 0o755).dir("opaque/old", 0o700).file("opaque/old/fresh", 0o600, b"high");
    high.file("opaque/.wh.mine", 0, b"").dir("again", 0o755).file("again/b", 0o644, &noise(3, 5000));
    high.file("top", 0o4755, b"back").dir("becomes-dir", 0o755).file("becomes-dir/.wh..wh..opq", 0, b"");
    high.file("becomes-dir/other", 0o644, b"high").dir("etc", 0o700);
    high.file(".wh.null", 0, b"").file("etc/kept2", 0o644, &noise(4, 2 * CHUNK));
    vec![low.finish(), middle.finish(), high.finish()]
}

/// Applies layers one after another, as the image specification says.
fn merge(layers: &[Vec<u8>], to: &Path) {
    for (number, tar) in layers.iter().enumerate() {
        let apart = tempfile::tempdir_in(parent()).unwrap();
        unpack(tar, apart.path());
        for (path, name) in names(apart.path()) {
            let target = to.join(&path);
            let Some(removed) = name.strip_prefix(".wh.") else {
                let is_dir = apart.path().join(&path).symlink_metadata().unwrap().is_dir();
                if target.symlink_metadata().is_ok_and(|old| old.is_dir() != is_dir || !is_dir) {
                    remove(&target);
                }
                continue;
            };
            let folder = target.parent().unwrap().to_owned();
            match removed {
                ".wh..opq" => names(&folder).into_iter().for_each(|(path, _)| remove(&folder.join(path))),
                _ if removed.starts_with(".wh.") => {}
                // What the layer itself has under the name is unpacked after this.
                _ => remove(&folder.join(removed)),
            }
        }
        let file = to.join(format!("../layer{number}.tar"));
        std::fs::write(&file, tar).unwrap();
        let options =
            ["-x", "-p", "--same-owner", "--numeric-owner", "--xattrs", "--xattrs-include=user.fine"];
        let mut tar = Command::new("tar");
        tar.args(options)
            .args(["--delay-directory-restore", "--exclude=.wh.*", "-C"])
            .arg(to)
            .arg("-f")
            .arg(file);
        assert!(tar.status().unwrap().success());
    }
}

fn remove(path: &Path) {
    match path.symlink_metadata() {
        Ok(data) if data.is_dir() => std::fs::remove_dir_all(path).unwrap(),
        Ok(_) => std::fs::remove_file(path).unwrap(),
        Err(_) => {}
    }
}

/// All names below a folder, folders before what is in them.
fn names(root: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let Ok(listing) = std::fs::read_dir(&folder) else { continue };
        for entry in listing.map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            }
            let path = entry.path().strip_prefix(root).unwrap().to_owned();
            found.push((path, entry.file_name().into_string().unwrap()));
        }
    }
    found
}

async fn stacked(driver: DriverChoice, opaque: OpaqueXattr, flags: &str, tars: &[Vec<u8>], expected: &Path) {
    let stand = Stand::new(driver).await;
    // How a directory is marked has nothing to do with the format: the second way for each third.
    let step = if opaque == OpaqueXattr::User { 3 } else { 1 };
    for (number, (format, options)) in (0u64..).zip(formats()).step_by(step) {
        let what = format!("{driver:?}, {opaque:?}, {format}");
        let mut shown = Vec::new();
        for (place, tar) in tars.iter().enumerate() {
            shown.push(stand.show(&blob_of(tar, &options), &format!("{number}-{place}"), opaque).await);
        }
        let lower: Vec<_> = shown.iter().rev().map(|layer| layer.root.as_path()).collect();
        let merged = overlay(&stand, &format!("over{number}"), &lower, flags);
        let options = json!({"overlay": true, "seed": number});
        assert_same(&what, &merged.0, expected, &options).await;
        // A second overlay of the same layers, as a second container.
        let other = overlay(&stand, &format!("other{number}"), &lower, flags);
        std::fs::write(merged.0.join("both/x"), b"changed").unwrap();
        std::fs::write(merged.0.join("etc/gone"), b"here again").unwrap();
        std::fs::remove_file(merged.0.join("etc/kept")).unwrap();
        std::fs::remove_dir_all(merged.0.join("opaque")).unwrap();
        assert_same(&what, &other.0, expected, &options).await;
        drop((merged, other));
        for layer in shown {
            layer.end().await;
        }
    }
    stand.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_layers_under_overlayfs_are_the_unpacked_image() {
    let folder = tempfile::tempdir_in(parent()).unwrap();
    let expected = folder.path().join("expected");
    std::fs::create_dir(&expected).unwrap();
    std::fs::set_permissions(&expected, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let tars = layers();
    merge(&tars, &expected);
    for driver in drivers() {
        for (opaque, flags) in [(OpaqueXattr::Trusted, ""), (OpaqueXattr::User, ",userxattr")] {
            stacked(driver, opaque, flags, &tars, &expected).await;
        }
    }
}
