//! The third pass: the bytes.

use super::place::Places;
use super::{Item, Options, Plan, WriteError};
use crate::directory::{self, Entry};
use crate::disk::{
    BLOCK, Chunks, FileType, INDEX, INODE, Layout, RawInode, SLOT, Superblock, encode_device, position, put,
    seal,
};
use crate::tree::{Kind, Tree};
use crate::xattr;

pub(super) fn emit<T: Tree>(
    plan: &Plan<'_>,
    places: &Places,
    tree: &T,
    options: &Options,
) -> Result<Vec<u8>, WriteError> {
    let mut image = Image::new(u64::from(places.end) * BLOCK)?;
    let mut bytes = Vec::new(); // used for one inode after another
    for (item, running) in plan.items.iter().zip(1u32..) {
        emit_inode(plan, places, tree, item, running, &mut bytes, &mut image)?;
    }
    let has_shared = plan.pool.len() > 0;
    if has_shared {
        bytes.clear();
        plan.pool.encode(&mut bytes);
        image.put(u64::from(places.shared) * BLOCK, &bytes)?;
    }
    let superblock = Superblock {
        root: root_number(plan)?,
        inodes: plan.items.len() as u64,
        blocks: places.end,
        xattr_block: if has_shared { places.shared } else { 0 },
        uuid: options.uuid,
        data_blocks: u32::try_from(options.data_len / BLOCK)
            .map_err(|_| WriteError::DataLength(options.data_len))?,
    };
    if seal(&mut image.0, &superblock) { Ok(image.0) } else { Err(WriteError::Changed) }
}

/// The root is placed first: in block 0, or, if its inline end does not fit there, at the beginning of block 1.
fn root_number(plan: &Plan<'_>) -> Result<u16, WriteError> {
    plan.items.first().and_then(|root| u16::try_from(root.nid).ok()).ok_or(WriteError::Changed)
}

fn emit_inode<T: Tree>(
    plan: &Plan<'_>,
    places: &Places,
    tree: &T,
    item: &Item,
    running: u32,
    bytes: &mut Vec<u8>,
    image: &mut Image,
) -> Result<(), WriteError> {
    let node = tree.node(item.number).ok_or(WriteError::Changed)?;
    let at = u64::from(item.nid) * SLOT;

    let mut xattrs = Vec::new();
    xattr::collect(tree.xattrs(item.number), &mut xattrs).map_err(|_| WriteError::Changed)?;
    bytes.clear();
    plan.pool.encode_body(&xattrs, bytes);
    unchanged(bytes.len() as u64 == u64::from(item.xattrs))?;
    image.put(at + INODE, bytes)?;

    let behind = at + INODE + u64::from(item.xattrs);
    let first_block = places.content.saturating_add(item.block);
    let (layout, union) = match node.kind {
        Kind::Regular { size: 0, .. } | Kind::Fifo | Kind::Socket => (Layout::Plain, 0),
        Kind::Regular { address, .. } => {
            let chunks = Chunks::of(item.size);
            for n in 0..chunks.count {
                let block =
                    u32::try_from(chunks.block(address / BLOCK, n)).map_err(|_| WriteError::Changed)?;
                image.put(behind.next_multiple_of(INDEX) + n * INDEX, &Chunks::index(block))?;
            }
            (Layout::Chunks, chunks.format())
        }
        Kind::CharDevice(major, minor) | Kind::BlockDevice(major, minor) => {
            (Layout::Plain, encode_device(major, minor).ok_or(WriteError::Changed)?)
        }
        Kind::Directory => {
            bytes.clear();
            list(plan, tree, item, bytes)?;
            emit_content(item, bytes, behind, first_block, image)?
        }
        Kind::Symlink(target) => emit_content(item, target, behind, first_block, image)?,
    };
    unchanged(FileType::of(&node.kind) == item.file_type)?;
    let inode = RawInode {
        layout,
        xattr_units: xattr::units(u64::from(item.xattrs)).ok_or(WriteError::Changed)?,
        mode: item.file_type.mode() | (node.mode & 0o7777),
        size: item.size,
        union,
        number: running,
        uid: node.uid,
        gid: node.gid,
        mtime: node.mtime,
        mtime_nanos: node.mtime_nanos,
        links: item.links,
    };
    image.put(at, &inode.encode())
}

/// Puts the content of a directory or symbolic link where it was placed.
fn emit_content(
    item: &Item,
    content: &[u8],
    behind: u64,
    first_block: u32,
    image: &mut Image,
) -> Result<(Layout, u32), WriteError> {
    unchanged(content.len() as u64 == item.size)?;
    let full = if item.is_inline { item.size / BLOCK * BLOCK } else { item.size };
    let (blocks, tail) = content.split_at_checked(position(full)).ok_or(WriteError::Changed)?;
    image.put(u64::from(first_block) * BLOCK, blocks)?;
    image.put(behind, tail)?;
    let layout = if item.is_inline { Layout::Inline } else { Layout::Plain };
    Ok((layout, if blocks.is_empty() { 0 } else { first_block }))
}

/// The content of a directory.
fn list<T: Tree>(plan: &Plan<'_>, tree: &T, item: &Item, bytes: &mut Vec<u8>) -> Result<(), WriteError> {
    let parent = plan.item(item.parent).ok_or(WriteError::Changed)?;
    let mut entries = vec![
        Entry { name: b".", inode: u64::from(item.nid), file_type: FileType::Directory },
        Entry { name: b"..", inode: u64::from(parent.nid), file_type: FileType::Directory },
    ];
    for (name, number) in tree.children(item.number) {
        let child =
            plan.position(number).and_then(|position| plan.item(position)).ok_or(WriteError::Changed)?;
        entries.push(Entry { name, inode: u64::from(child.nid), file_type: child.file_type });
    }
    entries.sort_unstable_by_key(|entry| entry.name);
    directory::encode(&entries, bytes);
    Ok(())
}

fn unchanged(is_so: bool) -> Result<(), WriteError> {
    if is_so { Ok(()) } else { Err(WriteError::Changed) }
}

/// An image that begins as zeros.
struct Image(Vec<u8>);

impl Image {
    fn new(len: u64) -> Result<Self, WriteError> {
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(position(len)).map_err(|_| WriteError::Memory(len))?;
        bytes.resize(position(len), 0);
        Ok(Self(bytes))
    }

    fn put(&mut self, at: u64, bytes: &[u8]) -> Result<(), WriteError> {
        unchanged(bytes.is_empty() || put(&mut self.0, position(at), bytes))
    }
}
