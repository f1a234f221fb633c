//! Layers with one of everything that a tar can say, and everything that an upper layer can do to a lower one.

use anyhow::Result;

use super::{Entry, layer};

/// Three tars, from the bottom up. `noise` is what the file of several chunks holds.
pub fn one_of_everything(noise: Vec<u8>) -> Result<Vec<Vec<u8>>> {
    let folder = "a-name-of-a-folder-that-no-header-of-a-tar-has-room-for/";
    let deep: Vec<_> = (1..=4).map(|depth| Entry::dir(&folder.repeat(depth))).collect();
    let mut lower = vec![
        Entry::dir("etc/").mode(0o711).mtime(1),
        Entry::file("etc/empty", ""),
        Entry::file("etc/small", "a few bytes\n").mode(0o600).owner(1000, 2000).mtime(1_000_000_000),
        Entry::file("etc/at-time-zero", "1970").mtime(0),
        Entry::file("etc/set-user-id", "#!").mode(0o4755),
        Entry::file("etc/high-owner", "x").owner(4_000_000, 2_097_151),
        Entry::file("etc/with-attributes", "x").xattr("user.colour", "blue").xattr("user.empty", ""),
        Entry::file("etc/with-admin-attribute", "x").xattr("trusted.secret", "never applied"),
        Entry::file("etc/ping", "x").xattr(
            "security.capability",
            [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0].to_vec(),
        ),
        Entry::dir("tmp/").mode(0o1777),
        Entry::file("several-chunks", noise),
        Entry::file("zeros", vec![0; 5_000_000]),
        Entry::symlink("relative", "etc/small"),
        Entry::symlink("absolute", "/etc/small"),
        Entry::symlink("dangling", &"nowhere/".repeat(20)),
        // A tar repeats a file's attributes with each of its names.
        Entry::hardlink("etc/other-name", "etc/small").mode(0o600).owner(1000, 2000).mtime(1_000_000_000),
        Entry::hardlink("third-name", "etc/small").mode(0o600).owner(1000, 2000).mtime(1_000_000_000),
        Entry::dir("dev/"),
        Entry::char_device("dev/null", 1, 3),
        Entry::block_device("dev/disk", 259, 70_000),
        Entry::fifo("dev/pipe"),
        Entry::dir("grüße/"),
        Entry::file("grüße/こんにちは", "names are bytes\n"),
        Entry::dir("replaced/"),
        Entry::file("replaced/old", "old"),
        Entry::file("file-to-folder", "a file"),
        Entry::dir("folder-to-file/"),
        Entry::file("folder-to-file/inside", "x"),
        Entry::dir("partly/"),
        Entry::file("partly/stays", "stays"),
        Entry::file("partly/goes", "goes"),
        Entry::file("changed", "before"),
    ];
    lower.extend(deep);
    lower.push(Entry::file(&format!("{}deep", folder.repeat(4)), "far down\n"));
    let lower = layer(&lower)?;
    let upper = layer(&[
        Entry::dir("partly/"),
        Entry::whiteout("partly/goes"),
        Entry::dir("replaced/"),
        Entry::opaque("replaced"),
        Entry::file("replaced/new", "new"),
        Entry::whiteout("file-to-folder"),
        Entry::dir("file-to-folder/"),
        Entry::file("file-to-folder/inside", "a folder now"),
        Entry::whiteout("folder-to-file"),
        Entry::file("folder-to-file", "a file now"),
        Entry::file("changed", "after").mode(0o640),
        Entry::dir("etc/").mode(0o755).mtime(2),
    ])?;
    // A layer that only takes away.
    let last = layer(&[
        Entry::dir("partly/"),
        Entry::whiteout("partly/nothing-of-that-name"),
        Entry::whiteout("zeros"),
    ])?;
    Ok(vec![lower, upper, last])
}

/// A layer with what other converters get wrong: a time with a fraction, which is cut and not rounded, and a file with
/// holes as PAX says it.
pub fn often_mistaken() -> Result<Vec<u8>> {
    layer(&[
        Entry::dir("odd/"),
        Entry::file("odd/half-a-second", "x").mtime(1_600_000_000).record("mtime", "1600000000.7"),
        Entry::sparse(
            "odd/holes",
            3_000_000,
            &[(0, b"head"), (1_000_001, b"middle"), (2_999_990, b"ten bytes.")],
        ),
    ])
}
