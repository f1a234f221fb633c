//! One test for each lie that the kernel, or `fsck.erofs`, would believe: the verifier does not.

// Helpers of tests: a tree that cannot be built must stop them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod common;

use common::model::{Model, ROOT, What};
use common::{find, image, reseal};
use erofs::{CheckError, Fault, check};

/// An image that can be tampered with. All of its directories have their content behind the inode.
struct Forgery {
    image: Vec<u8>,
    data_len: u64,
}

impl Forgery {
    fn new() -> Self {
        let mut model = Model::new();
        let file = model.file(ROOT, "file", 5000);
        model.file(ROOT, "next", 4096);
        model.file(ROOT, "huge", (8 << 40) + 5);
        model.file(ROOT, "empty", 0);
        let directory = model.directory(ROOT, "directory");
        model.link(directory, "bbbb", file);
        model.symlink(directory, "cccc", "target");
        model.directory(directory, "nested");
        model.add(ROOT, "pipe", What::Fifo);
        model.directory(ROOT, "zone");
        for name in ["one", "two"] {
            let labelled = model.file(ROOT, name, 1);
            model.xattr(labelled, "security.selinux", "system_u:object_r:lib_t:s0");
            model.xattr(labelled, "user.own", name);
        }
        Self { image: image(&model), data_len: model.data_len }
    }

    /// Where the inode of a path is in the image.
    fn inode(&self, path: &str) -> usize {
        let checked = check(&self.image, self.data_len).unwrap();
        usize::try_from(find(&checked, path) * 32).unwrap()
    }

    fn nid(&self, path: &str) -> u64 {
        self.inode(path) as u64 / 32
    }

    /// Where the entry of a name is. The directory has no attributes.
    fn entry(&self, directory: &str, name: &str) -> usize {
        let content = self.inode(directory) + 64;
        let word = |at: usize| usize::from(u16::from_le_bytes([self.image[at], self.image[at + 1]]));
        let entries = (0..word(content + 8) / 12).map(|n| content + n * 12);
        entries
            .into_iter()
            .find(|at| self.image[content + word(at + 8)..].starts_with(name.as_bytes()))
            .unwrap()
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.image[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// The only place where some bytes are.
    fn place(&self, bytes: &[u8]) -> usize {
        let mut places = self.image.windows(bytes.len()).enumerate().filter(|(_, window)| *window == bytes);
        let (at, _) = places.next().unwrap();
        assert!(places.next().is_none(), "{bytes:?} is there twice");
        at
    }

    fn error(&mut self) -> CheckError {
        reseal(&mut self.image);
        check(&self.image, self.data_len).expect_err("the lie is believed")
    }
}

/// Tampers with the inode of `path` at `offset`, and says what is found.
#[track_caller]
fn inode_lie(path: &str, offset: usize, bytes: &[u8], fault: Fault) {
    let mut forgery = Forgery::new();
    let nid = forgery.nid(path);
    forgery.put(forgery.inode(path) + offset, bytes);
    assert_eq!(forgery.error(), CheckError::Inode { nid, fault }, "{path} at {offset}");
}

#[test]
fn names_out_of_order_or_there_twice() {
    for other in [b"dddd", b"cccc"] {
        let mut forgery = Forgery::new();
        let nid = forgery.nid("directory");
        forgery.put(forgery.place(b"bbbbcccc"), other);
        assert_eq!(forgery.error(), CheckError::Inode { nid, fault: Fault::Order });
    }
}

#[test]
fn names_with_a_nul_or_a_slash() {
    for byte in [0, b'/'] {
        let mut forgery = Forgery::new();
        let nid = forgery.nid("directory");
        let at = forgery.place(b"bbbbcccc");
        forgery.put(at + 1, &[byte]);
        assert_eq!(forgery.error(), CheckError::Inode { nid, fault: Fault::Directory });
    }
}

#[test]
fn dots_that_lead_elsewhere() {
    for name in ["..", "."] {
        let mut forgery = Forgery::new();
        let (nid, other) = (forgery.nid("directory"), forgery.nid("directory/nested"));
        // `.` is sorted first, so the second match is not looked for.
        forgery.put(forgery.entry("directory", name), &other.to_le_bytes());
        assert_eq!(forgery.error(), CheckError::Inode { nid, fault: Fault::Dots });
    }
}

#[test]
fn a_wrong_type_in_a_directory() {
    let mut forgery = Forgery::new();
    let nid = forgery.nid("pipe");
    let at = forgery.entry("", "pipe");
    forgery.put(at + 10, &[6]);
    assert_eq!(forgery.error(), CheckError::Inode { nid, fault: Fault::Type });
}

#[test]
fn directories_with_two_names_and_circles() {
    for path in ["directory", "", "zone"] {
        let mut forgery = Forgery::new();
        let nid = forgery.nid(path);
        // The symbolic link becomes a second name.
        let at = forgery.entry("directory", "cccc");
        forgery.put(at, &nid.to_le_bytes());
        forgery.put(at + 10, &[2]);
        assert_eq!(forgery.error(), CheckError::Inode { nid, fault: Fault::DirectoryTwice }, "{path}");
    }
}

#[test]
fn entries_that_lead_nowhere() {
    for nid in [u64::MAX, 1 << 32, 1 << 60, 0, 4000] {
        let mut forgery = Forgery::new();
        let at = forgery.entry("", "pipe");
        forgery.put(at, &nid.to_le_bytes());
        let error = forgery.error();
        assert!(matches!(error, CheckError::Inode { nid: found, .. } if found == nid), "{nid}: {error}");
    }
}

#[test]
fn chunks_of_another_device_or_at_another_place() {
    let index = |device: u16, block: u32| {
        let device = device.to_le_bytes();
        let block = block.to_le_bytes();
        [0, 0, device[0], device[1], block[0], block[1], block[2], block[3]]
    };
    // The kernel takes 0, and with one device 2 too, for the image itself.
    inode_lie("file", 64, &index(0, 0), Fault::ChunkIndex);
    inode_lie("file", 64, &index(2, 0), Fault::ChunkIndex);
    inode_lie("file", 64, &index(3, 0), Fault::ChunkIndex);
    inode_lie("file", 64, &[1], Fault::ChunkIndex);
    inode_lie("file", 64, &index(1, u32::MAX), Fault::BeyondData); // a hole
    inode_lie("huge", 64, &index(1, 4), Fault::ChunkIndex); // the second is not where the first goes on
    inode_lie("huge", 72, &index(1, u32::MAX), Fault::ChunkIndex);
    inode_lie("next", 64, &index(1, 1), Fault::DataTwice);
    inode_lie("one", 96, &[0; 8], Fault::ChunkIndex); // behind 28 bytes of attributes and 4 of padding
}

#[test]
fn sizes_that_do_not_fit() {
    let size = |size: u64| size.to_le_bytes();
    // More chunks than there are indexes: the kernel takes what follows for indexes.
    inode_lie("huge", 8, &size((16 << 40) + 1), Fault::BeyondData);
    inode_lie("file", 8, &size(4096), Fault::ChunkFormat);
    inode_lie("file", 8, &size(8193), Fault::ChunkFormat);
    inode_lie("empty", 8, &size(1), Fault::ChunkFormat);
    inode_lie("file", 8, &size(1 << 63), Fault::Size);
    inode_lie("pipe", 8, &size(1), Fault::Size);
    inode_lie("directory", 8, &size(0), Fault::Content);
    inode_lie("directory", 8, &size(26), Fault::Directory);
    inode_lie("directory", 8, &size(4096), Fault::Content);
    inode_lie("directory/cccc", 8, &size(0), Fault::Content);
    inode_lie("directory/cccc", 8, &size(8), Fault::Link);
}

#[test]
fn records_with_other_fields() {
    inode_lie("file", 0, &[1], Fault::ChunkFormat); // plain: the kernel would show zeros
    inode_lie("file", 0, &[0x19], Fault::Record);
    inode_lie("file", 6, &[1], Fault::Record);
    inode_lie("file", 16, &[0x61], Fault::ChunkFormat); // 48 bits
    inode_lie("file", 16, &[0x22], Fault::ChunkFormat); // larger than need be
    inode_lie("file", 5, &[0xF0], Fault::Record);
    inode_lie("file", 20, &[99], Fault::Number);
    inode_lie("file", 40, &1_000_000_000u32.to_le_bytes(), Fault::Record);
    inode_lie("file", 44, &[1], Fault::Links);
    inode_lie("directory", 44, &[2], Fault::Links);
    inode_lie("file", 48, &[1], Fault::Record);
    inode_lie("pipe", 16, &[1], Fault::Record);
    inode_lie("directory", 16, &[1], Fault::Content);
    inode_lie("directory/cccc", 64, b"tar\0et", Fault::Link);
    inode_lie("", 4, &[0xED, 0x11], Fault::Record); // a pipe for a root
}

#[test]
fn attributes_that_are_malformed() {
    // Header, one shared place, then `user.own`.
    inode_lie("one", 2, &[1, 0], Fault::Xattr); // a header alone
    inode_lie("one", 64, &[1], Fault::Xattr); // a filter
    inode_lie("one", 68, &[2], Fault::Outside); // more shared ones: an entry is taken for a place
    inode_lie("one", 76, &[255; 4], Fault::Outside);
    inode_lie("one", 76, &[1], Fault::Xattr);
    inode_lie("one", 81, &[5], Fault::Xattr); // an unknown prefix: the kernel hides it
    inode_lie("one", 82, &[255; 2], Fault::Xattr);
    inode_lie("one", 80, &[255], Fault::Xattr);

    let mut forgery = Forgery::new();
    forgery.put(1024 + 44, &[0; 4]);
    assert!(matches!(forgery.error(), CheckError::Inode { fault: Fault::Xattr, .. }));
}

#[test]
fn what_the_superblock_says() {
    let cases: &[(usize, &[u8], CheckError)] = &[
        (0, &[0], CheckError::Superblock(1024)),
        (8, &[7], CheckError::Superblock(1032)),
        (12, &[9], CheckError::Superblock(1036)),
        (80, &[8], CheckError::Superblock(1104)),
        (86, &[2], CheckError::Superblock(1110)),
        (90, &[1], CheckError::Superblock(1114)),
        (196, &[0], CheckError::Superblock(1220)),
        (16, &[11], CheckError::Inodes { found: 12, said: 11 }),
        (192, &[0; 4], CheckError::DataLength(0)),
        (14, &[0xFF, 0xFF], CheckError::Inode { nid: 0xFFFF, fault: Fault::Outside }),
    ];
    for (at, bytes, error) in cases {
        let mut forgery = Forgery::new();
        forgery.put(1024 + at, bytes);
        assert_eq!(forgery.error(), *error, "byte {at}");
    }

    let Forgery { mut image, data_len } = Forgery::new();
    assert_eq!(check(&image, 0).unwrap_err(), CheckError::DataLength(data_len));
    image[1300] ^= 1;
    assert_eq!(check(&image, data_len).unwrap_err(), CheckError::Checksum);
}

#[test]
fn images_cut_short_or_with_more_in_them() {
    let Forgery { image, data_len } = Forgery::new();
    for len in [0, 1, 1024, 4095, image.len() - 1, image.len() - 4096, image.len() + 4096] {
        let mut image = image.clone();
        image.resize(len, 0);
        assert_eq!(check(&image, data_len).unwrap_err(), CheckError::Length(len as u64));
    }
    let mut forgery = Forgery::new();
    let last = forgery.image.len() - 1;
    forgery.put(last, &[1]);
    assert_eq!(forgery.error(), CheckError::Stray(last as u64));
    forgery.put(last, &[0]);
    forgery.put(0, &[1]);
    assert_eq!(forgery.error(), CheckError::Stray(0));
}

/// The padding of a directory's block could hide a name that the kernel takes up to the first NUL.
#[test]
fn what_hides_behind_the_names_of_a_block() {
    let mut model = Model::new();
    for n in 0..40 {
        model.add(ROOT, format!("{n:0200}"), What::Fifo);
    }
    let mut image = image(&model);
    let end = image.len();
    let names = image[end - 8192..].iter().position(|byte| *byte == b'0').unwrap();
    let padding =
        end - 8192 + names + image[end - 8192 + names..].iter().position(|byte| *byte == 0).unwrap();
    image[padding + 1] = b'x';
    let nid = check(&common::image(&model), 0).unwrap().root();
    assert_eq!(check(&image, 0).unwrap_err(), CheckError::Inode { nid, fault: Fault::Directory });
}
