//! The verifier of EROFS images: a right image, changed in any places, is refused, or is one that can be walked and
//! whose every answer fits the others.
#![no_main]

use std::sync::LazyLock;

use erofs::{Checked, Kind, Node, Options, Tree, check, write};
use libfuzzer_sys::fuzz_target;

const DATA_LEN: u64 = 64 * 4096;
/// Each change is a place, 3 bytes, and what stands there, 1 byte.
const CHANGE: usize = 4;

/// Two directories, one larger than a block, with all kinds of nodes and with shared attributes.
struct Small;

static NAMES: LazyLock<Vec<String>> = LazyLock::new(|| (0..64).map(|n| format!("{n:0100}")).collect());

impl Tree for Small {
    fn bound(&self) -> u32 {
        64
    }

    fn root(&self) -> u32 {
        0
    }

    fn node(&self, number: u32) -> Option<Node<'_>> {
        let kind = match number % 8 {
            _ if number < 2 => Kind::Directory,
            0 => Kind::Symlink(b"target"),
            1 => Kind::CharDevice(0, 0),
            2 => Kind::BlockDevice(259, 300),
            3 => Kind::Fifo,
            4 => Kind::Socket,
            5 => Kind::Regular { size: 0, address: 0 },
            _ => Kind::Regular { size: 4000, address: u64::from(number) * 4096 },
        };
        Some(Node { kind, mode: 0o644, uid: number, gid: 0, mtime: 0, mtime_nanos: 0 })
    }

    fn children(&self, number: u32) -> impl Iterator<Item = (&[u8], u32)> {
        let children = if number == 0 { 1..10 } else { 8..64 };
        children.map(|child| (NAMES[child as usize].as_bytes(), child))
    }

    fn xattrs(&self, number: u32) -> impl Iterator<Item = (&[u8], &[u8])> {
        let own = (&b"trusted.own"[..], NAMES[number as usize].as_bytes());
        let shared = (&b"user.shared"[..], &b"the same value"[..]);
        [own, shared].into_iter().skip(number as usize % 3)
    }
}

static IMAGE: LazyLock<Vec<u8>> =
    LazyLock::new(|| write(&Small, &Options { data_len: DATA_LEN, uuid: [0; 16] }).unwrap());

/// CRC-32C of block 0, so that changes there are looked at too.
fn seal(image: &mut [u8]) {
    image[1028..1032].fill(0);
    let bit = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0x82F6_3B78 } else { crc >> 1 };
    let sum = image[1024..4096].iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), bit));
    image[1028..1032].copy_from_slice(&sum.to_le_bytes());
}

fn walk(image: &Checked<'_>, directory: u64, names: &mut u64) {
    for (name, nid) in image.children(directory) {
        *names += 1;
        assert!((1..=255).contains(&name.len()) && !name.contains(&0) && !name.contains(&b'/'));
        assert!(image.links(nid).is_some_and(|links| links > 0));
        assert!(image.xattrs(nid).iter().all(|(name, value)| erofs::check_xattr(name, value).is_ok()));
        match image.node(nid).unwrap().kind {
            Kind::Directory => walk(image, nid, names),
            Kind::Regular { size, address } => assert!(size == 0 || address + size <= DATA_LEN),
            Kind::Symlink(target) => assert!((1..=4095).contains(&target.len())),
            _ => {}
        }
    }
}

fuzz_target!(|changes: &[u8]| {
    let mut image = IMAGE.clone();
    for change in changes.chunks_exact(CHANGE) {
        let at = usize::from(change[0]) << 16 | usize::from(change[1]) << 8 | usize::from(change[2]);
        let at = at % image.len();
        image[at] = change[3];
    }
    seal(&mut image);
    let Ok(checked) = check(&image, DATA_LEN) else {
        assert!(changes.len() >= CHANGE, "the writer's own image is refused");
        return;
    };
    let mut names = 0;
    walk(&checked, checked.root(), &mut names);
    assert_eq!(names, checked.names());
});
