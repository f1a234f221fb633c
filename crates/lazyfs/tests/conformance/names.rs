//! Listings, and names that are not there.

use lazyfs::OpaqueXattr;
use serde_json::json;

use crate::common::tree::unpack;
use crate::common::{Tar, blob};
use crate::shown::{Stand, assert_same, drivers, is_content, overlay, parent, reader};

const MANY: usize = 12_000;

/// One directory with very many entries of very different lengths, and the same with removed ones among them.
fn large() -> Vec<u8> {
    let mut tar = Tar::new();
    tar.dir("large", 0o755)
        .dir("empty", 0o755)
        .dir("folders", 0o755)
        .dir("one", 0o755)
        .file("one/x", 0o644, b"");
    for number in 0..MANY {
        // In no order, so that whoever sorts must sort.
        let number = number * 7919 % MANY;
        tar.file(&format!("large/{number}-{}", "n".repeat(number * 31 % 240)), 0o644, b"");
    }
    for number in 0..300 {
        tar.dir(&format!("folders/{number}"), 0o755);
    }
    tar.finish()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_listing_is_complete_however_it_is_asked_for() {
    let tar = large();
    let blob = blob(&tar, 0);
    let unpacked = tempfile::tempdir_in(parent()).unwrap();
    unpack(&tar, unpacked.path());
    for driver in drivers() {
        let stand = Stand::new(driver).await;
        let shown = stand.show(&blob, "root", OpaqueXattr::Trusted).await;
        for folder in ["large", "folders", "empty", "one", ""] {
            let mut listing = reader("listing.py");
            listing.arg(shown.root.join(folder)).arg(unpacked.path().join(folder));
            is_content(&format!("{driver:?}: {folder}"), listing).await;
        }
        assert_same(
            &format!("{driver:?}"),
            &shown.root,
            unpacked.path(),
            &json!({"direct": driver_direct(driver)}),
        )
        .await;
        let below = stand.path("below");
        std::fs::create_dir(&below).unwrap();
        let merged = overlay(&stand, "over", &[&shown.root, &below], "");
        for folder in ["large", "folders", "empty", ""] {
            let mut listing = reader("listing.py");
            listing.arg(merged.0.join(folder)).arg(unpacked.path().join(folder));
            is_content(&format!("{driver:?} under overlayfs: {folder}"), listing).await;
        }
        drop(merged);
        shown.end().await;
        stand.end().await;
    }
}

fn driver_direct(driver: lazyfs::mounter::DriverChoice) -> bool {
    driver == lazyfs::mounter::DriverChoice::Fuse
}

/// Nobody can change anything, and nothing shows that is the format's own.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_cannot_be_had_and_nothing_can_be_changed() {
    let tar = || {
        let mut tar = Tar::new();
        tar.dir("d", 0o777).file("d/f", 0o666, b"content").symlink("d/l", "f").file("d/.wh.gone", 0, b"");
        tar
    };
    let without = blob(&tar().finish(), 0);
    let with = blob(&tar().xattrs("d/x", &[("user.x", b"1")], b"").finish(), 0);
    for driver in drivers() {
        let stand = Stand::new(driver).await;
        for (name, blob) in [("without", &without), ("with", &with)] {
            let shown = stand.show(blob, name, OpaqueXattr::Trusted).await;
            let mut check = reader("refused.py");
            check.arg(&shown.root);
            is_content(&format!("{driver:?} {name}"), check).await;
            shown.end().await;
        }
        stand.end().await;
    }
}
