//! A table of contents, of either schema: whatever is accepted is a tree whose every part can be walked.
#![no_main]

use content::ByteRange;
use estargz::{Kind, NO_DIGEST, ROOT, Toc, TocLimits};
use libfuzzer_sys::fuzz_target;

const PAYLOAD_END: u64 = 1 << 40;

fuzz_target!(|json: &[u8]| {
    let limits = TocLimits { entries: 10_000, ..TocLimits::default() };
    let unverified = Toc::parse(json, PAYLOAD_END, &TocLimits { unverified: true, ..limits });
    let Ok(toc) = Toc::parse(json, PAYLOAD_END, &limits) else { return };
    assert!(unverified.is_ok_and(|other| other.chunk_count() == toc.chunk_count()));
    let mut names = 0_u64;
    let mut links = 0_u64;
    for inode in toc.inodes() {
        assert!(toc.inode(inode.parent()).is_some_and(|parent| parent.kind() == Kind::Directory));
        assert!(inode.nlink() > 0 && inode.mode() <= 0o7777);
        let owners = [inode.user(), inode.group()];
        assert!(owners.into_iter().flatten().all(|name| !name.is_empty()));
        for (name, child) in inode.children() {
            assert!(!name.is_empty() && name.len() <= 255 && name != b"." && name != b"..");
            assert!(!name.contains(&b'/') && !name.contains(&0));
            assert_eq!(toc.lookup(inode.number(), name), Some(child));
            names += 1;
        }
        if inode.kind() != Kind::Directory {
            links += u64::from(inode.nlink());
        }
        let mut at = 0;
        for (number, chunk) in inode.chunk_numbers().zip(inode.chunks()) {
            assert_eq!((chunk.inode, chunk.file_offset), (inode.number(), at));
            assert!(chunk.blob.end <= PAYLOAD_END && chunk.len > 0);
            assert!(chunk.is_zeros() || (chunk.blob.start > 0 && chunk.digest != NO_DIGEST));
            let covered = toc.chunks_of(inode.number(), ByteRange::at(at, 1));
            assert_eq!(covered, number..number + 1);
            at += u64::from(chunk.len);
        }
        assert!(inode.kind() != Kind::Regular || at == inode.size());
        assert_eq!(toc.chunks_of(inode.number(), ByteRange::new(0, u64::MAX)), inode.chunk_numbers());
        let is_one = inode.chunks().len() == 1 && inode.chunks().all(|chunk| !chunk.is_zeros());
        assert!(!is_one || inode.digest() == inode.chunks().next().map(|chunk| chunk.digest));
    }
    let directories = toc.inodes().filter(|inode| inode.kind() == Kind::Directory).count() as u64;
    assert_eq!(names, links + directories - 1, "every inode but the root has its names");
    assert_eq!(toc.inode(ROOT).map(|root| root.kind()), Some(Kind::Directory));
});
