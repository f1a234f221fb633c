//! Writing an image, in three passes over the tree.
//!
//! 1. *Walk* (`write/walk.rs`): breadth first, everything is checked, names are counted, extended attributes that
//!    several inodes have are found.
//! 2. *Place* (`write/place.rs`): every inode gets its place, and with it its number.
//! 3. *Emit* (`write/emit.rs`): bytes are put where they belong in an image of zeros.
//!
//! Between the passes 40 bytes are kept per inode, 4 per number of the caller's, and where shared attributes are;
//! names and targets are asked for again.

use crate::disk::{BLOCK, FileType, MAX_DATA};
use crate::error::{Problem, WriteError};
use crate::tree::Tree;
use crate::xattr::Pool;

mod emit;
mod place;
mod walk;

/// What the tree does not say.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Options {
    /// Length of the data file: a multiple of [`BLOCK`], at most [`MAX_DATA`].
    pub data_len: u64,
    /// Told by `dump.erofs` and `blkid`. Means nothing to the kernel.
    pub uuid: [u8; 16],
}

/// Makes the image of a tree. It depends on nothing but the arguments; in which order the tree gives children and
/// attributes does not matter.
///
/// # Errors
/// [`WriteError`]. Nothing is left out or changed so that it fits.
pub fn write<T: Tree>(tree: &T, options: &Options) -> Result<Vec<u8>, WriteError> {
    if !options.data_len.is_multiple_of(BLOCK) || options.data_len > MAX_DATA {
        return Err(WriteError::DataLength(options.data_len));
    }
    let mut plan = walk::walk(tree, options)?;
    let places = place::place(&mut plan, tree)?;
    emit::emit(&plan, &places, tree, options)
}

/// An inode, as far as it is known.
#[derive(Clone, Copy, Debug)]
struct Item {
    /// The caller's number.
    number: u32,
    /// Position in the plan of the directory in which it was first seen; the root's is its own.
    parent: u32,
    /// Number of names; of a directory also `.` and the `..` of each directory in it.
    links: u32,
    file_type: FileType,
    /// Whether the last, partial block stands behind the inode.
    is_inline: bool,
    /// Bytes.
    size: u64,
    /// Number of the inode in the image: its place there, in units of 32 bytes.
    nid: u32,
    /// Bytes of its extended attributes.
    xattrs: u32,
    /// First of its blocks, counted from the first block after inodes and shared attributes. Directories and
    /// symbolic links only.
    block: u32,
}

/// What the walk found.
struct Plan<'a> {
    /// Breadth first, the root first.
    items: Vec<Item>,
    /// For each of the caller's numbers the position in `items`, plus 1; 0 if it has not been seen.
    positions: Vec<u32>,
    pool: Pool<'a>,
}

impl Plan<'_> {
    fn item(&self, position: u32) -> Option<&Item> {
        self.items.get(position as usize)
    }

    /// Position of the node that the caller calls `number`.
    fn position(&self, number: u32) -> Option<u32> {
        self.positions.get(number as usize)?.checked_sub(1)
    }

    /// An error that names an item.
    fn error<T: Tree>(&self, tree: &T, position: u32, problem: Problem) -> WriteError {
        WriteError::Entry { path: self.path(tree, position), problem }
    }

    /// The path of an item, from the directory in which it was first seen.
    fn path<T: Tree>(&self, tree: &T, position: u32) -> String {
        let mut names = Vec::new();
        let mut at = position;
        while let Some(item) = self.item(at).filter(|item| item.parent != at) {
            let parent = self.item(item.parent).map_or(u32::MAX, |parent| parent.number);
            let name = tree.children(parent).find(|(_, number)| *number == item.number);
            names.push(name.map_or("?".into(), |(name, _)| String::from_utf8_lossy(name).into_owned()));
            at = item.parent; // always before its children
        }
        names.reverse();
        format!("/{}", names.join("/"))
    }
}
