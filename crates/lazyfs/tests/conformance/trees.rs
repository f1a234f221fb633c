//! Whole trees, in every format.

use lazyfs::OpaqueXattr;
use lazyfs::mounter::DriverChoice;
use serde_json::json;

use crate::common::formats::formats;
use crate::common::tree::unpack;
use crate::common::{CHUNK, Tar, blob_of, everything, noise};
use crate::shown::{Stand, assert_same, drivers, drop_caches, parent};

/// What [`everything`] has not.
fn more() -> Vec<u8> {
    let mut tar = Tar::new();
    tar.dir("links", 0o755).dir("odd", 0o755).dir("zeros", 0o755).dir("ids", 0o755);
    tar.symlink("links/longest", &"t/".repeat(2047)).symlink("links/slash", "/").symlink("links/dot", ".");
    tar.file(&format!("odd/{}", "n".repeat(255)), 0o644, b"255 bytes");
    tar.file("odd/ leading and trailing ", 0o644, b"blanks").file("odd/tab\tand\rreturn", 0o644, b"control");
    tar.file("odd/-rf", 0o644, b"dash").file("odd/...", 0o644, b"dots").file(
        "odd/.wh",
        0o644,
        b"no whiteout",
    );
    // All that a table of contents can name: its JSON holds text and nothing else.
    for odd in
        ['\u{1}', '\u{7f}', '\u{80}', '\u{e9}', '\u{202e}', '\u{fffd}', '\u{ffff}', '\u{10ffff}', '"', '\\']
    {
        tar.file(&format!("odd/char {odd}."), 0o644, odd.to_string().as_bytes());
    }
    tar.file("zeros/page", 0o644, &[0; 4096]).file("zeros/many", 0o644, &vec![0; 5 * CHUNK + 9]);
    let mut mixed = noise(1, 6 * CHUNK + 100);
    mixed[CHUNK..3 * CHUNK].fill(0);
    tar.file("zeros/mixed", 0o644, &mixed);
    let mut ends = vec![0; 4 * CHUNK + 1];
    ends[0] = 1;
    ends[4 * CHUNK] = 2;
    tar.file("zeros/ends", 0o644, &ends);
    for id in [1, 65_534, 65_536, 2_097_151] {
        tar.owned(&format!("ids/{id}"), 0o604, id, id + 1 - id % 2, 1_700_000_000 + id, b"owned");
    }
    // The largest that a header's twelve octal digits hold, and the first after 32 bits of any kind.
    for time in [0, 1, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 0x1_0000_0000, 0o77_777_777_777] {
        tar.owned(&format!("ids/time {time}"), 0o644, 0, 0, time, b"");
    }
    for mode in [0o0000, 0o0111, 0o1777, 0o2755, 0o4755, 0o6711, 0o7777] {
        tar.file(&format!("ids/mode {mode:o}"), mode, b"#!/bin/true\n")
            .dir(&format!("ids/dir {mode:o}"), mode);
    }
    tar.device("odd/char", tar::EntryType::Char, 4095, 1_048_575);
    tar.device("odd/block", tar::EntryType::Block, 7, 255).fifo("odd/fifo");
    tar.file("odd/first", 0o600, &noise(9, 9000)).hardlink("links/second", "odd/first");
    tar.hardlink("ids/third", "links/second");
    tar.finish()
}

async fn same_in_every_format(driver: DriverChoice, tar: &[u8], seed: u64) {
    let unpacked = tempfile::tempdir_in(parent()).unwrap();
    unpack(tar, unpacked.path());
    let stand = Stand::new(driver).await;
    for (number, (format, options)) in (0u64..).zip(formats()) {
        let what = format!("{driver:?}, {format}");
        let shown =
            stand.show(&blob_of(tar, &options), &format!("root {number}"), OpaqueXattr::Trusted).await;
        let options =
            |turn| json!({"seed": seed + number * 10 + turn, "direct": driver == DriverChoice::Fuse});
        // From the source, by two readers at once; and again, from the kernel's caches or from the disk.
        let (ours, theirs) = (&shown.root, unpacked.path());
        let (first, second) = (options(1), options(2));
        tokio::join!(assert_same(&what, ours, theirs, &first), assert_same(&what, ours, theirs, &second));
        assert!(shown.layer.is_complete(), "{what}: everything was read");
        if number % 3 == 0 {
            drop_caches();
        }
        assert_same(&what, ours, theirs, &options(3)).await;
        shown.end().await;
    }
    stand.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_of_every_format_is_the_unpacked_tar() {
    for driver in drivers() {
        same_in_every_format(driver, &more(), 100).await;
    }
}

/// A clock that stands before 1970: GNU tar writes the number in base 256, and so does everybody who can.
#[tokio::test(flavor = "multi_thread")]
async fn times_before_1970_are_times() {
    let mut tar = Tar::new();
    let mut raw = tar.owned("old", 0o644, 0, 0, 0, b"").owned("epoch", 0o644, 0, 0, 0, b"").finish();
    let header = &mut raw[..512];
    header[136..148].fill(0xff);
    header[140..148].copy_from_slice(&(-86_401i64).to_be_bytes());
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().copied().map(u32::from).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let unpacked = tempfile::tempdir_in(parent()).unwrap();
    unpack(&raw, unpacked.path());
    assert_eq!(
        std::os::unix::fs::MetadataExt::mtime(&unpacked.path().join("old").metadata().unwrap()),
        -86_401
    );
    for driver in drivers() {
        let stand = Stand::new(driver).await;
        let direct = json!({"direct": driver == DriverChoice::Fuse});
        for (number, (format, options)) in formats().into_iter().enumerate() {
            let shown =
                stand.show(&blob_of(&raw, &options), &format!("{number}"), OpaqueXattr::Trusted).await;
            assert_same(&format!("{driver:?}, {format}"), &shown.root, unpacked.path(), &direct).await;
            shown.end().await;
        }
        stand.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_with_every_kind_of_entry_is_the_unpacked_tar() {
    let tar = everything();
    let unpacked = tempfile::tempdir_in(parent()).unwrap();
    unpack(&tar, unpacked.path());
    for driver in drivers() {
        let stand = Stand::new(driver).await;
        let (_, options) = &formats()[3];
        let shown = stand.show(&blob_of(&tar, options), "root", OpaqueXattr::Trusted).await;
        let direct = json!({"direct": driver == DriverChoice::Fuse});
        assert_same(&format!("{driver:?}"), &shown.root, unpacked.path(), &direct).await;
        shown.end().await;
        stand.end().await;
    }
}
