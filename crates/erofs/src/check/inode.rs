//! An inode with everything that stands behind it.

use super::{CheckError, Fault};
use crate::disk::{
    BLOCK, FileType, INODE, LINK_MAX, Layout, RawInode, SLOT, Superblock, array, decode_device, position,
};
use crate::tree::{Kind, Node};
use crate::xattr::{self, Xattr};

use super::content;

/// A run of bytes of the image: start and length.
pub(super) type Bytes = (u64, u64);

/// An inode that is right in itself.
pub(super) struct Found<'a> {
    pub(super) raw: RawInode,
    pub(super) kind: Kind<'a>,
    /// Each with the bytes of its entry, if it is a shared one.
    pub(super) xattrs: Vec<(Xattr<'a>, Option<Bytes>)>,
    /// Content of a directory or symbolic link: whole blocks, and the end behind the inode.
    pub(super) content: (&'a [u8], &'a [u8]),
    /// What is claimed of the image.
    pub(super) claims: [Bytes; 3],
}

impl<'a> Found<'a> {
    pub(super) const fn node(&self) -> Node<'a> {
        let RawInode { mode, uid, gid, mtime, mtime_nanos, .. } = self.raw;
        Node { kind: self.kind, mode: mode & 0o7777, uid, gid, mtime, mtime_nanos }
    }
}

/// `len` bytes of the image.
pub(super) fn slice(image: &[u8], start: u64, len: u64) -> Result<&[u8], Fault> {
    let end = start.checked_add(len).ok_or(Fault::Outside)?;
    image.get(position(start)..position(end)).ok_or(Fault::Outside)
}

/// Reads the inode of a number. Whether it agrees with others is not known yet.
pub(super) fn read<'a>(image: &'a [u8], nid: u64, superblock: &Superblock) -> Result<Found<'a>, CheckError> {
    read_inode(image, nid, superblock).map_err(|fault| CheckError::Inode { nid, fault })
}

fn read_inode<'a>(image: &'a [u8], nid: u64, superblock: &Superblock) -> Result<Found<'a>, Fault> {
    let at = nid.checked_mul(SLOT).ok_or(Fault::Outside)?;
    let record = array(slice(image, at, INODE)?, 0).ok_or(Fault::Outside)?;
    let raw = RawInode::decode(&record).ok_or(Fault::Record)?;
    let file_type = FileType::from_mode(raw.mode).ok_or(Fault::Record)?;
    if i64::try_from(raw.size).is_err() {
        return Err(Fault::Size);
    }
    let body = xattr::body_len(raw.xattr_units);
    let xattrs = content::xattrs(image, slice(image, at + INODE, body)?, superblock.xattr_block)?;
    let behind = at + INODE + body;

    let mut claims = [(at, INODE + body), (0, 0), (0, 0)];
    let mut content: (&[u8], &[u8]) = (&[], &[]);
    let kind = match file_type {
        FileType::Directory | FileType::Symlink => {
            let place = Placed::of(&raw, behind)?;
            content =
                (slice(image, place.blocks.0, place.blocks.1)?, slice(image, place.tail.0, place.tail.1)?);
            // A block is its owner's to the end.
            claims = [claims[0], (place.blocks.0, place.blocks.1.next_multiple_of(BLOCK)), place.tail];
            if file_type == FileType::Directory { Kind::Directory } else { Kind::Symlink(target(content)?) }
        }
        FileType::Regular => {
            let (address, indexes) = content::chunks(image, &raw, behind, superblock.data_blocks)?;
            claims[1] = indexes;
            Kind::Regular { size: raw.size, address }
        }
        other => {
            let device = decode_device(raw.union);
            let kind = match other {
                FileType::CharDevice => Kind::CharDevice(device.0, device.1),
                FileType::BlockDevice => Kind::BlockDevice(device.0, device.1),
                FileType::Fifo => Kind::Fifo,
                _ => Kind::Socket,
            };
            let is_device = matches!(other, FileType::CharDevice | FileType::BlockDevice);
            if raw.layout != Layout::Plain || raw.union != 0 && !is_device {
                return Err(Fault::Record);
            }
            if raw.size != 0 {
                return Err(Fault::Size);
            }
            kind
        }
    };
    Ok(Found { raw, kind, xattrs, content, claims })
}

/// Where the content of a directory or symbolic link is.
struct Placed {
    blocks: Bytes,
    tail: Bytes,
}

impl Placed {
    /// Only that place which the writer chooses is right.
    fn of(raw: &RawInode, behind: u64) -> Result<Self, Fault> {
        let last = raw.size % BLOCK;
        let head = INODE + xattr::body_len(raw.xattr_units);
        let may_be_inline = last != 0 && head + last <= BLOCK;
        let (full, tail) = match raw.layout {
            Layout::Inline if may_be_inline => (raw.size - last, last),
            Layout::Plain if !may_be_inline => (raw.size, 0),
            _ => return Err(Fault::Content),
        };
        let crosses = tail > 0 && behind / BLOCK != (behind + tail - 1) / BLOCK;
        if crosses || (full == 0) != (raw.union == 0) {
            return Err(Fault::Content);
        }
        Ok(Self { blocks: (u64::from(raw.union) * BLOCK, full), tail: (behind, tail) })
    }
}

/// Where a symbolic link leads. Its target is less than a block, so it is in one place or in the other.
fn target<'a>((block, tail): (&'a [u8], &'a [u8])) -> Result<&'a [u8], Fault> {
    let target = if block.is_empty() { tail } else { block };
    let is_target = (1..=LINK_MAX).contains(&target.len()) && !target.contains(&0);
    if is_target && (block.is_empty() || tail.is_empty()) { Ok(target) } else { Err(Fault::Link) }
}
