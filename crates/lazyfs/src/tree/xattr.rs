//! Which of an image's extended attributes are shown.
//!
//! Left out are those by which an image could speak to overlayfs; those in `trusted.`, which containerd never applies;
//! and those that no file would have if the layer were unpacked: of a name space that Linux does not know, larger than
//! disk file systems take them, in `user.` on what is neither file nor directory, an access control list that the
//! kernel could not read, more than one inode can have.

use estargz::{Inode, Kind};

/// Bytes of the names that one inode's attributes can have together, each with a NUL: `XATTR_LIST_MAX`.
const NAMES: usize = 65_536;
/// Bytes that one inode's attributes can take in EROFS: 65,534 units of 4.
const ENTRIES: usize = 262_136;

/// Of the attributes that the image gives an inode, those that it may give.
pub(super) fn wanted(inode: Inode<'_>) -> impl Iterator<Item = (&[u8], &[u8])> {
    inode.xattrs().filter(|(name, _)| !name.starts_with(b"trusted.") && !name.starts_with(b"user.overlay."))
}

/// Whether a file of this kind can have the attribute.
pub(super) fn is_possible(kind: Kind, name: &[u8], value: &[u8]) -> bool {
    let is_known = erofs::check_xattr(name, value).is_ok();
    let fits = match name {
        b"system.posix_acl_access" => kind != Kind::Symlink && is_acl(value),
        b"system.posix_acl_default" => kind == Kind::Directory && is_acl(value),
        _ => matches!(kind, Kind::Regular | Kind::Directory) || !name.starts_with(b"user."),
    };
    is_known && fits
}

/// Whether the kernel reads it as an access control list: version 2, then entries of a tag, permissions, and a number
/// for the tags that have one (`include/uapi/linux/posix_acl_xattr.h`).
fn is_acl(value: &[u8]) -> bool {
    let Some(([2, 0, 0, 0], entries)) = value.split_first_chunk() else { return false };
    let (entries, rest) = entries.as_chunks::<8>();
    let is_entry = |entry: &[u8; 8]| match *entry {
        [0x02 | 0x08, 0, _, _, id @ ..] => id != [0xFF; 4],
        [0x01 | 0x04 | 0x10 | 0x20, 0, ..] => true,
        _ => false,
    };
    rest.is_empty() && !entries.is_empty() && entries.iter().all(is_entry)
}

/// What is left for the attributes of an inode.
pub(super) struct Room {
    names: usize,
    entries: usize,
}

impl Room {
    /// All that an inode has.
    pub(super) const fn new() -> Self {
        Self { names: NAMES, entries: ENTRIES }
    }

    /// Takes what an attribute needs, if there is enough.
    pub(super) fn take(&mut self, name: &[u8], value: &[u8]) -> bool {
        // 4 bytes before the name, whose prefix EROFS does not store: counted all the same, for simplicity.
        let (name_len, entry_len) = (name.len() + 1, (4 + name.len() + value.len()).next_multiple_of(4));
        match (self.names.checked_sub(name_len), self.entries.checked_sub(entry_len)) {
            (Some(names), Some(entries)) => {
                *self = Self { names, entries };
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_that_no_file_can_have_are_known() {
        use Kind::{BlockDevice, CharDevice, Directory, Fifo, Regular, Symlink};
        let all = [Directory, Regular, Symlink, CharDevice, BlockDevice, Fifo];
        let acl = b"system.posix_acl_access".as_slice();
        let good = [2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 4, 0, 232, 3, 0, 0];
        let no_id = [2, 0, 0, 0, 2, 0, 4, 0, 255, 255, 255, 255];
        let unknown_tag = [2, 0, 0, 0, 3, 0, 4, 0, 0, 0, 0, 0];
        let more = vec![0; 65_536];
        let (_, most) = more.split_first().unwrap();
        let rows: [(&[u8], &[u8], &[Kind]); 14] = [
            (b"user.x", b"1", &[Directory, Regular]),
            (b"security.x", b"", &all),
            (b"security.x", most, &all),
            (b"security.x", &more, &[]),
            (b"user.", b"1", &[]),
            (b"nameless", b"1", &[]),
            (b"system.other", b"1", &[]),
            (acl, &good, &[Directory, Regular, CharDevice, BlockDevice, Fifo]),
            (b"system.posix_acl_default", &good, &[Directory]),
            (acl, b"", &[]),
            (acl, &[2, 0, 0, 0], &[]),
            (acl, good.split_last().unwrap().1, &[]),
            (acl, &no_id, &[]),
            (acl, &unknown_tag, &[]),
        ];
        for (name, value, kinds) in rows {
            for kind in all {
                let name_text = name.escape_ascii();
                assert_eq!(is_possible(kind, name, value), kinds.contains(&kind), "{kind:?} {name_text}");
            }
        }
    }
}
