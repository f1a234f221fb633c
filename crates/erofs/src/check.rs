//! Reading an image back, and believing nothing.
//!
//! The kernel takes what it is given; `fsck.erofs` finds some of what is wrong. [`check`] accepts only images that
//! [`crate::write`] could have made: it walks the tree from the root, takes every record apart strictly
//! (`check/inode.rs`, `check/content.rs`), and keeps account (`check/account.rs`) of
//!
//! * the bytes of the image: none belongs to two records, and those that belong to none are zeros;
//! * the blocks of the data file: none belongs to two files;
//! * names: a directory has one, and every other inode as many as it says.
//!
//! What passed can be read through [`Checked`], which is for tests and for people: the kernel reads mounted images.

use crate::disk::{BLOCK, Superblock, sealed};
use crate::tree::{Kind, Node};

mod account;
mod content;
mod inode;
mod walk;

use account::Account;
use inode::Found;

/// What is wrong with an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// Some of it lies outside of the image.
    #[error("it reaches beyond the image")]
    Outside,
    /// A byte of the record, or its layout, mode or type, is none that is written.
    #[error("its record is malformed")]
    Record,
    /// Its size is none that its type can have.
    #[error("its size is impossible")]
    Size,
    /// The number for 32-bit programs is not the position in the tree.
    #[error("its running number is wrong")]
    Number,
    /// Its content is not where it would be put.
    #[error("its content is in the wrong place, or crosses a block where it must not")]
    Content,
    /// A symbolic link that leads nowhere a link can lead.
    #[error("its target is empty, too long, or has a NUL byte")]
    Link,
    /// A chunk of another size than the file needs, or bits of other formats.
    #[error("the size of its chunks is wrong")]
    ChunkFormat,
    /// An index that names another device than the data file, or another block than the file's next.
    #[error("a chunk index is wrong")]
    ChunkIndex,
    /// The content ends after the data file.
    #[error("its content ends after the data file")]
    BeyondData,
    /// Another file has the same blocks.
    #[error("its content shares blocks with another file")]
    DataTwice,
    /// The header, an entry or a place of an extended attribute is wrong.
    #[error("its extended attributes are malformed")]
    Xattr,
    /// Two extended attributes of one name.
    #[error("it has two extended attributes of one name")]
    XattrTwice,
    /// The entries of a block are not as they are written.
    #[error("a block of the directory is malformed")]
    Directory,
    /// Names are not in order, or there is one twice.
    #[error("the names of the directory are not in order")]
    Order,
    /// `.` or `..` is missing or leads elsewhere.
    #[error("\".\" or \"..\" of the directory is wrong")]
    Dots,
    /// The directory says another type than the inode.
    #[error("the directory that names it says another type")]
    Type,
    /// It is a directory and has a second name.
    #[error("it is a directory and has a second name")]
    DirectoryTwice,
    /// It is the root and no directory.
    #[error("it is the root and no directory")]
    RootKind,
    /// The number of names is wrong.
    #[error("it does not have as many names as it says")]
    Links,
}

/// Why an image is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    /// Not a whole number of blocks, none, or another number than the superblock says.
    #[error("the EROFS image has a length of {0} bytes, which cannot be")]
    Length(u64),
    /// A byte of the superblock or of the device slot that is not written so.
    #[error("byte {0} of the EROFS image's superblock is not as Pantala writes it")]
    Superblock(u64),
    /// Block 0 was changed.
    #[error("the checksum of the EROFS image is wrong")]
    Checksum,
    /// The image was written for a data file of another length.
    #[error("the EROFS image is for a data file of {0} bytes")]
    DataLength(u64),
    /// More or fewer inodes than the superblock says.
    #[error("the EROFS image has {found} inodes and says {said}")]
    Inodes {
        /// How many the tree has.
        found: u64,
        /// How many the superblock says.
        said: u64,
    },
    /// An inode is wrong.
    #[error("inode {nid} of the EROFS image: {fault}")]
    Inode {
        /// Its number.
        nid: u64,
        /// What is wrong.
        fault: Fault,
    },
    /// The shared extended attributes are not where the superblock says, or none is used.
    #[error("the EROFS image says a wrong place for its shared extended attributes")]
    SharedXattrs,
    /// Two records share a byte.
    #[error("two records of the EROFS image share byte {0}")]
    Twice(u64),
    /// A byte that no record has is not zero.
    #[error("byte {0} of the EROFS image belongs to nothing and is not zero")]
    Stray(u64),
}

/// An image that is right.
#[derive(Debug)]
pub struct Checked<'a> {
    image: &'a [u8],
    superblock: Superblock,
    inodes: u64,
    names: u64,
    file_bytes: u64,
}

/// Checks an image whose data file has `data_len` bytes.
///
/// Takes memory in proportion to the image, whatever the image says.
///
/// # Errors
/// [`CheckError`]: the first thing that is wrong.
pub fn check(image: &[u8], data_len: u64) -> Result<Checked<'_>, CheckError> {
    let len = image.len() as u64;
    let blocks = u32::try_from(len / BLOCK).ok().filter(|blocks| *blocks > 0 && len.is_multiple_of(BLOCK));
    let blocks = blocks.ok_or(CheckError::Length(len))?;
    let superblock = Superblock::decode(image).map_err(|at| CheckError::Superblock(at as u64))?;
    if superblock.blocks != blocks {
        return Err(CheckError::Length(len));
    }
    if !sealed(image) {
        return Err(CheckError::Checksum);
    }
    let said = u64::from(superblock.data_blocks) * BLOCK;
    if said != data_len {
        return Err(CheckError::DataLength(said));
    }
    let mut account = Account::new(image);
    let totals = walk::walk(image, &superblock, &mut account)?;
    account.settle()?;
    Ok(Checked {
        image,
        superblock,
        inodes: totals.inodes,
        names: totals.names,
        file_bytes: totals.file_bytes,
    })
}

impl<'a> Checked<'a> {
    /// Number of the root's inode.
    pub fn root(&self) -> u64 {
        u64::from(self.superblock.root)
    }

    /// The UUID that the image was written with.
    pub const fn uuid(&self) -> [u8; 16] {
        self.superblock.uuid
    }

    /// Number of inodes.
    pub const fn inodes(&self) -> u64 {
        self.inodes
    }

    /// Number of names in all directories, `.` and `..` left out.
    pub const fn names(&self) -> u64 {
        self.names
    }

    /// Bytes of all regular files.
    pub const fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    fn found(&self, nid: u64) -> Option<Found<'a>> {
        inode::read(self.image, nid, &self.superblock).ok()
    }

    /// The inode of a number that the root or a directory gave.
    pub fn node(&self, nid: u64) -> Option<Node<'a>> {
        self.found(nid).map(|found| found.node())
    }

    /// Number of names of an inode, as `stat` tells it.
    pub fn links(&self, nid: u64) -> Option<u32> {
        self.found(nid).map(|found| found.raw.links)
    }

    /// Names and inodes in a directory, `.` and `..` left out, in order. Empty if it is none.
    pub fn children(&self, nid: u64) -> Vec<(&'a [u8], u64)> {
        let found = self.found(nid).filter(|found| found.kind == Kind::Directory);
        let entries = found.and_then(|found| content::entries(&found).ok()).unwrap_or_default();
        let named = entries.into_iter().filter(|entry| !matches!(entry.name, b"." | b".."));
        named.map(|entry| (entry.name, entry.inode)).collect()
    }

    /// Names, with their prefix, and values of an inode's extended attributes.
    pub fn xattrs(&self, nid: u64) -> Vec<(Vec<u8>, &'a [u8])> {
        let xattrs = self.found(nid).map(|found| found.xattrs).unwrap_or_default();
        xattrs.iter().map(|(xattr, _)| (xattr.name(), xattr.value)).collect()
    }
}
