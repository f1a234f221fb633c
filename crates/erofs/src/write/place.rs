//! The second pass: where everything goes.
//!
//! Inodes follow each other from behind the superblock on, each with its attributes and its inline end or its chunk
//! indexes, at multiples of 32 bytes. An inline end must lie within one block: if it would not, the inode moves to the
//! next block; if it never can, there is none and the content has a block more.

use super::{Plan, WriteError};
use crate::disk::{BLOCK, Chunks, FIRST_INODE, FileType, INDEX, INODE, SLOT};
use crate::error::Problem;
use crate::tree::Tree;
use crate::xattr;

/// The parts of the image, in blocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places {
    /// Where the shared attributes begin: the end of the inodes.
    pub(super) shared: u32,
    /// Where the blocks of directories and symbolic links begin.
    pub(super) content: u32,
    /// Where the image ends.
    pub(super) end: u32,
}

pub(super) fn place<T: Tree>(plan: &mut Plan<'_>, tree: &T) -> Result<Places, WriteError> {
    let (mut free, mut blocks) = (FIRST_INODE, 0u64);
    let mut xattrs = Vec::new();
    for position in 0..plan.items.len() {
        let Some(&(mut item)) = plan.items.get(position) else { break };
        xattr::collect(tree.xattrs(item.number), &mut xattrs).map_err(|_| WriteError::Changed)?;
        let body = plan.pool.body_len(&xattrs);
        if xattr::units(body).is_none() {
            let position = u32::try_from(position).unwrap_or(u32::MAX);
            return Err(plan.error(tree, position, Problem::XattrsTooLarge(body)));
        }
        let head = INODE + body;

        let (mut tail, mut full) = (0, 0);
        match item.file_type {
            FileType::Directory | FileType::Symlink => {
                let last = item.size % BLOCK;
                item.is_inline = last != 0 && head + last <= BLOCK;
                if item.is_inline {
                    (tail, full) = (last, item.size / BLOCK);
                    if !is_within_block(free + head, tail) {
                        free = free.next_multiple_of(BLOCK);
                    }
                } else {
                    full = item.size.div_ceil(BLOCK);
                }
            }
            FileType::Regular if item.size > 0 => {
                tail = head.next_multiple_of(INDEX) - head + Chunks::of(item.size).count * INDEX;
            }
            _ => {}
        }
        item.nid = number(free / SLOT)?;
        item.xattrs = number(body)?;
        item.block = if full == 0 { 0 } else { number(blocks)? };
        blocks += full;
        free = (free + head + tail).next_multiple_of(SLOT);
        if let Some(place) = plan.items.get_mut(position) {
            *place = item;
        }
    }
    let shared = free.div_ceil(BLOCK);
    let content = shared + plan.pool.len().div_ceil(BLOCK);
    Ok(Places { shared: number(shared)?, content: number(content)?, end: number(content + blocks)? })
}

/// Whether `len` bytes from `start` on, at least one, lie in one block.
fn is_within_block(start: u64, len: u64) -> bool {
    start / BLOCK == (start + len - 1) / BLOCK
}

/// A number of 32 bits. That of an inode is the first to be too large.
fn number(value: u64) -> Result<u32, WriteError> {
    u32::try_from(value).map_err(|_| WriteError::TooLarge)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn borders_of_blocks() {
        assert!(is_within_block(0, 4096));
        assert!(!is_within_block(1, 4096));
        assert!(is_within_block(4095, 1));
        assert!(!is_within_block(4095, 2));
        assert!(is_within_block(4096, 1));
    }
}
