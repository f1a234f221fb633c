//! What a program from a layer may do, and who may read what: through overlayfs, as a container has it.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use lazyfs::OpaqueXattr;

use crate::common::tree::unpack;
use crate::common::{Tar, blob};
use crate::shown::{Stand, drivers, is_content, outside, overlay, parent, reader, skip};

/// A program that needs nothing else, as the machine has one: the dynamic loader's own helper.
const STATIC: &str = "/sbin/ldconfig";
const ID: &str = "/usr/bin/id";

/// The owner may read and write, user 1000 may read, everybody else nothing.
fn acl() -> Vec<u8> {
    let entries =
        [(1u8, 6u8, u32::MAX), (2, 4, 1000), (4, 0, u32::MAX), (16, 4, u32::MAX), (32, 0, u32::MAX)];
    let entry = |(tag, may, id): (u8, u8, u32)| [[tag, 0, may, 0], id.to_le_bytes()].concat();
    [vec![2, 0, 0, 0], entries.map(entry).concat()].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_run_and_their_bits_count() {
    let (Ok(program), Ok(id)) = (std::fs::read(STATIC), std::fs::read(ID)) else {
        return skip("there is no /sbin/ldconfig or /usr/bin/id here");
    };
    let mut tar = Tar::new();
    tar.dir("bin", 0o755).file("bin/static", 0o755, &program).file("bin/not", 0o644, &program);
    tar.file("bin/script", 0o755, b"#!/bin/sh\necho from a script\n");
    tar.owned("bin/as1234", 0o4755, 1234, 1235, 1, &id).owned("bin/group1235", 0o2755, 1234, 1235, 1, &id);
    tar.owned("secret", 0o640, 0, 1235, 1, b"secret");
    // cap_dac_override, permitted and effective: whoever runs it reads everything.
    let capability = [1, 0, 0, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let cat = std::fs::read("/bin/cat").unwrap();
    tar.attributed("bin/capable", 0o755, &[("security.capability", &capability)], &cat);
    tar.attributed("granted", 0o640, &[("system.posix_acl_access", &acl())], b"granted");
    let tar = tar.finish();
    // The same on a disk, so that it is known what is right.
    let unpacked = tempfile::tempdir_in(parent()).unwrap();
    unpack(&tar, unpacked.path());
    world_may_enter(unpacked.path());
    let mut check = reader("allowed.py");
    check.arg(unpacked.path());
    is_content("on a disk", check).await;
    let blob = blob(&tar, 100_000);
    for driver in drivers() {
        let stand = Stand::new(driver).await;
        let shown = stand.show(&blob, "root", OpaqueXattr::Trusted).await;
        let below = stand.path("below");
        std::fs::create_dir(&below).unwrap();
        let merged = overlay(&stand, "over", &[&shown.root, &below], "");
        world_may_enter(stand.folder.path());
        let mut check = reader("allowed.py");
        check.arg(&merged.0);
        is_content(&format!("{driver:?}"), check).await;
        // A view of a single layer is a bind mount of it, without an overlay on top.
        let output = outside(Command::new(shown.root.join("bin/static"))).await;
        assert!(output.status.success(), "{driver:?}: {output:?}");
        copied_up(&merged.0).await;
        drop(merged);
        shown.end().await;
        stand.end().await;
    }
}

/// Folders of tests are for us alone, and here others come.
fn world_may_enter(folder: &Path) {
    std::fs::set_permissions(folder, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
}

/// Writing to a file of the layer copies it with all that it has.
async fn copied_up(merged: &Path) {
    let program = merged.join("bin/as1234");
    let before = std::fs::symlink_metadata(&program).unwrap();
    let mut touch = Command::new("chown");
    touch.args(["-h", "--from=1234", "1234:1235"]).arg(&program);
    assert!(outside(touch).await.status.success());
    let mut append = Command::new("setfattr");
    append.args(["-n", "user.new", "-v", "1"]).arg(merged.join("granted"));
    // `attr` may not be installed; a plain change of mode copies up as well.
    if Command::new("setfattr").arg("--version").output().is_ok() {
        assert!(outside(append).await.status.success());
    }
    let after = std::fs::symlink_metadata(&program).unwrap();
    assert_eq!((before.uid(), before.size(), before.mtime()), (after.uid(), after.size(), after.mtime()));
    assert!(std::fs::metadata(merged.join("granted")).unwrap().len() == 7);
}
