//! A table of contents: whatever is accepted is a tree whose every part can be walked.
#![no_main]

use estargz::{Kind, ROOT, Toc, TocLimits};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|json: &[u8]| {
    let limits = TocLimits { entries: 10_000, ..TocLimits::default() };
    let Ok(toc) = Toc::parse(json, 1 << 40, &limits) else { return };
    let mut names = 0_u64;
    let mut links = 0_u64;
    for inode in toc.inodes() {
        assert!(toc.inode(inode.parent()).is_some_and(|parent| parent.kind() == Kind::Directory));
        assert!(inode.nlink() > 0);
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
        for chunk in inode.chunks() {
            assert_eq!((chunk.inode, chunk.file_offset), (inode.number(), at));
            assert!(chunk.blob.start > 0 && !chunk.blob.is_empty() && chunk.blob.end <= toc.payload_end());
            at += u64::from(chunk.len);
        }
        assert!(inode.kind() != Kind::Regular || at == inode.size());
    }
    let directories = toc.inodes().filter(|inode| inode.kind() == Kind::Directory).count() as u64;
    assert_eq!(names, links + directories - 1, "every inode but the root has its names");
    assert_eq!(toc.inode(ROOT).map(|root| root.kind()), Some(Kind::Directory));
});
