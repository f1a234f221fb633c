//! The kernel, and erofs-utils, look at our images. Root only; elsewhere the reason is printed.

// Helpers of tests: a tree that cannot be built must stop them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod common;

use std::ffi::CString;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::process::Command;

use common::model::{Model, ROOT, What};
use common::mounted::{self, Stage, compare, path_of, skip};
use common::random;
use proptest::prelude::*;
use rustix::mount::{MountFlags, UnmountFlags};

/// Sizes at which something changes: blocks, chunk sizes, more bytes than 32 bits count, more than one chunk.
#[test]
fn files_of_every_size() {
    mounted::test(|| {
        let mut model = Model::new();
        let sizes = [
            0,
            1,
            4095,
            4096,
            4097,
            8191,
            8192,
            8193,
            65_536,
            65_537,
            (1 << 32) - 1,
            1 << 32,
            (1 << 32) + 1,
            5 << 30,
        ];
        for size in sizes {
            model.file(ROOT, format!("{size}"), size);
        }
        // A chunk begins at any block, however large it is.
        model.file(ROOT, "one", 1);
        model.file(ROOT, "8 TiB and 5 bytes", (8 << 40) + 5);
        let stage = compare(&model);

        let Some(extents) = stage.tool("dump.erofs", &["--path=/8193", "-e"]) else {
            return skip("dump.erofs is not installed (package erofs-utils)");
        };
        let extents = extents.unwrap();
        let What::Regular { address, .. } = model.nodes[8].what else { panic!() };
        // One chunk, of which three blocks are used.
        let row =
            format!("0..   12288 |   12288 : {address:>10}..{:>10} |   12288  # device 1", address + 12_288);
        assert!(extents.contains(&row), "{row}: {extents}");
    });
}

/// The largest data file that there can be, and a file in its last block.
#[test]
fn the_last_block_that_has_a_number() {
    mounted::test(|| {
        let mut model = Model::new();
        model.data_len = (16 << 40) - 8192; // what ext4 can have, and what 32 bits can number, is 16 TiB - 4 KiB
        model.file(ROOT, "last", 4000);
        assert_eq!(model.data_len, erofs::MAX_DATA);
        compare(&model);
    });
}

/// Directories that fill blocks exactly, or by one byte not; inline ends that fit their block exactly, or not.
#[test]
fn directories_and_links_at_the_borders_of_blocks() {
    mounted::test(|| {
        let mut model = Model::new();
        let file = model.file(ROOT, "file", 10);
        // `.` and `..` take 27 bytes, 15 names of 242 bytes 3810: 259 are left, of which 12 are the last entry.
        for last in [246, 247, 248] {
            for blocks in [1, 2] {
                let directory = model.directory(ROOT, format!("{last}, {blocks}"));
                for n in 0..16 {
                    let len = if n < 15 { 242 } else { last };
                    model.link(directory, format!("a{n:0width$}", width = len - 1), file);
                }
                // 15 names of 244 bytes are 3840, and 256 are left.
                for n in (0..16).filter(|_| blocks == 2) {
                    let len = if n < 15 { 244 } else { last - 3 };
                    model.link(directory, format!("b{n:0width$}", width = len - 1), file);
                }
            }
        }
        // Content of nearly a block, with and without attributes that push it out of the inode's block.
        for xattr in [0, 1, 100, 4000] {
            for len in (1..40).map(|n| n * 97).chain(3900..3910).chain([4000, 4031, 4032, 4033, 4094, 4095]) {
                let link = model.symlink(ROOT, format!("link {xattr} {len}"), vec![b'l'; len]);
                if xattr > 0 {
                    model.xattr(link, "trusted.x", vec![b'v'; xattr]);
                }
            }
        }
        let stage = compare(&model);
        let mount = stage.mount(true).unwrap();
        // Of 248, another one goes over the border: the longest has most zeros and is sorted first.
        let sizes = [("246, 1", 4095), ("247, 1", 4096), ("248, 1", 4096 + 12 + 242), ("247, 2", 8192)];
        for (name, size) in sizes {
            assert_eq!(fs::metadata(path_of(&mount).join(name)).unwrap().len(), size, "{name}");
        }
    });
}

/// The root is the only inode that has to be near the beginning. Its names may not fit behind the superblock.
#[test]
fn roots_of_every_size() {
    mounted::test(|| {
        // `.` and `..` take 27 bytes, a name of 255 takes 267.
        let cases: &[(usize, &[usize], u64, u64)] = &[
            (10, &[43], 2752, 40),
            (10, &[44], 2753, 128),
            (15, &[], 4032, 128),
            (14, &[100, 144], 4033, 40),
        ];
        for (long, others, size, nid) in cases {
            let mut model = Model::new();
            for n in 0..*long {
                model.add(ROOT, format!("{n:0255}"), What::Fifo);
            }
            for len in *others {
                model.add(ROOT, vec![b'x'; *len], What::Fifo);
            }
            let stage = compare(&model);
            let root = fs::metadata(path_of(&stage.mount(true).unwrap())).unwrap();
            assert_eq!((root.len(), root.ino()), (*size, *nid));
        }
    });
}

#[test]
fn names_of_every_byte_and_length() {
    mounted::test(|| {
        let mut model = Model::new();
        let all = model.directory(ROOT, "all");
        for byte in (1..=255u8).filter(|byte| !matches!(byte, b'/' | b'.')) {
            model.add(all, [byte], What::Fifo);
        }
        for len in 1..=255 {
            model.directory(ROOT, vec![b'n'; len]);
            model.add(all, vec![0xFF; len], What::Socket);
        }
        // 0xFF has two names there: once as a byte, once as a length.
        let What::Directory(children) = &mut model.at(all).what else { panic!() };
        children.dedup_by(|one, other| one.0 == other.0);
        children.sort();
        children.dedup_by(|one, other| one.0 == other.0);
        compare(&model);
    });
}

#[test]
fn attributes_links_and_devices() {
    mounted::test(|| {
        let mut model = Model::new();
        // What overlayfs wants to see.
        model.xattr(ROOT, "trusted.overlay.opaque", "y");
        let opaque = model.directory(ROOT, "opaque");
        model.xattr(opaque, "trusted.overlay.opaque", "y");
        model.xattr(opaque, "user.overlay.opaque", "y");
        let whiteout = model.add(ROOT, "whiteout", What::Char(0, 0));
        model.at(whiteout).mode = 0;

        let setuid = model.file(ROOT, "setuid", 5000);
        model.at(setuid).mode = 0o7777;
        (model.at(setuid).uid, model.at(setuid).gid) = (4_294_967_294, 4_294_967_294);
        for (name, mtime) in
            [("before 1970", -5), ("1970", 0), ("2300", 10_413_792_000), ("far", i64::from(u32::MAX) * 2)]
        {
            let file = model.file(ROOT, name, 1);
            model.at(file).mtime = mtime;
            model.at(file).nanos = (mtime.unsigned_abs() % 2) as u32 * 999_999_999;
        }
        model.add(ROOT, "console", What::Char(5, 1));
        model.add(ROOT, "largest", What::Char(4095, 1_048_575));
        model.add(ROOT, "disk", What::Block(259, 300));
        model.add(ROOT, "pipe", What::Fifo);
        model.add(ROOT, "socket", What::Socket);

        let linked = model.file(ROOT, "a first name", 4097);
        for n in 0..300 {
            model.link(opaque, format!("name {n}"), linked);
        }
        model.link(ROOT, "a pipe's second name", 13);
        for n in 0..100 {
            model.directory(opaque, format!("directory {n}"));
        }
        model.directory(opaque, "empty");

        let large = model.file(ROOT, "large attribute", 1);
        model.xattr(large, "user.large", vec![b'v'; 65_535]);
        model.xattr(large, "user.larger", vec![b'w'; 65_535]);
        model.xattr(large, "security.large", vec![b'x'; 65_535]);
        let many = model.directory(ROOT, "many attributes");
        for n in 0..500 {
            model.xattr(many, format!("user.{n}"), format!("{n}"));
        }
        let long = model.symlink(ROOT, "long name", "target");
        model.xattr(long, format!("trusted.{}", "x".repeat(247)), "");
        compare(&model);
    });
}

/// Values that several inodes have, over the borders of blocks, and more of them than one inode can share.
#[test]
fn shared_attributes() {
    mounted::test(|| {
        let mut model = Model::new();
        for n in 0..40 {
            let file = model.file(ROOT, format!("file {n}"), n);
            model.xattr(file, "security.selinux", "system_u:object_r:lib_t:s0");
            model.xattr(file, format!("user.group {}", n / 4), vec![b'g'; 1000]);
            model.xattr(file, "user.own", format!("{n}"));
        }
        for (name, count) in [("one", 254), ("two", 254), ("more", 255), ("most", 300)] {
            let directory = model.directory(ROOT, name);
            model.xattr(directory, "trusted.large", vec![b'l'; 65_535]);
            for n in 0..count {
                model.xattr(directory, format!("user.common {n}"), "the same value");
            }
        }
        let stage = compare(&model);
        // Four times the large one, less one that is shared.
        let len = fs::metadata(stage.image()).unwrap().len();
        assert!((3 << 16..4 << 16).contains(&len), "{len} bytes of image");
    });
}

#[test]
fn the_smallest_image() {
    mounted::test(|| {
        let stage = compare(&Model::new());
        assert_eq!(fs::metadata(stage.image()).unwrap().len(), 4096);
    });
}

#[test]
fn a_directory_of_100_000_names() {
    mounted::test(|| {
        let mut model = Model::new();
        let directory = model.directory(ROOT, "directory");
        for n in 0..100_000u64 {
            model.file(directory, format!("a name of usual length, {n}"), n % 3);
        }
        // As a whole by the kernel's listing, one in some by name, none that is not there.
        let stage = Stage::new(&model);
        if let Some(result) = stage.fsck() {
            result.unwrap();
        }
        let mount = stage.mount(true).unwrap();
        let path = path_of(&mount).join("directory");
        let mut names: Vec<_> =
            fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(names.is_sorted());
        names.dedup();
        assert_eq!(names.len(), 100_000);
        for n in (0..100_000u64).step_by(37).chain([99_999]) {
            let metadata = fs::metadata(path.join(format!("a name of usual length, {n}"))).unwrap();
            assert_eq!(metadata.len(), n % 3);
        }
        for name in ["", "a name of usual length, 100000", "zzz", "\u{1}", "a name of usual length, 5000x"] {
            assert!(name.is_empty() || !path.join(name).exists(), "{name}");
        }
    });
}

/// Program and libraries are mapped into memory, page by page.
#[test]
fn a_program_runs_from_the_data_file() {
    mounted::test(|| {
        let program = fs::read("/bin/cat").unwrap();
        let mut model = Model::new();
        model.file(ROOT, "before", 4097);
        let cat = model.file(ROOT, "cat", program.len() as u64);
        let What::Regular { address, .. } = model.nodes[cat as usize].what else { panic!() };
        let stage = Stage::new(&model);
        let data = File::options().write(true).open(stage.data()).unwrap();
        data.write_all_at(&program, address).unwrap();
        data.sync_all().unwrap();
        let mount = stage.mount(true).unwrap();
        // The child has not got the descriptor.
        let path = format!("/proc/{}/fd/{}/cat", std::process::id(), mount.as_raw_fd());
        let output = Command::new(path).arg("/proc/self/comm").output().unwrap();
        assert!(output.status.success());
        assert_eq!(output.stdout, b"cat\n");
    });
}

/// As `mount(2)` is given it: the path of the image, no loop device.
#[test]
fn the_old_way_of_mounting() {
    struct Mount(PathBuf);
    impl Drop for Mount {
        fn drop(&mut self) {
            rustix::mount::unmount(&self.0, UnmountFlags::DETACH).unwrap();
        }
    }
    mounted::test(|| {
        let mut model = Model::new();
        model.file(ROOT, "file", 4097);
        let stage = compare(&model);
        let target = stage.image().with_file_name("target");
        fs::create_dir(&target).unwrap();
        let device = CString::new(format!("device={}", stage.data().display())).unwrap();
        rustix::mount::mount(stage.image(), &target, "erofs", MountFlags::RDONLY, device.as_c_str()).unwrap();
        let mount = Mount(target);
        assert_eq!(fs::read(mount.0.join("file")).unwrap(), mounted::content_of(0, 4097));
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(
            mounts.lines().any(|line| line.starts_with(&format!("{} ", stage.image().display()))),
            "{mounts}"
        );
    });
}

/// A mount that was not told where the data are must not show the image's own bytes in their place.
#[test]
fn without_its_data_a_file_is_an_error() {
    mounted::test(|| {
        let mut model = Model::new();
        model.file(ROOT, "file", 4096);
        let stage = Stage::new(&model);
        let mount = stage.mount(false).unwrap();
        let mut bytes = Vec::new();
        let error = File::open(path_of(&mount).join("file")).unwrap().read_to_end(&mut bytes).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
    });
}

#[test]
fn random_trees() {
    mounted::test(|| {
        let config = ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() };
        proptest!(config, |(model in random::trees(60))| {
            compare(&model);
        });
    });
}
