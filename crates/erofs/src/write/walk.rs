//! The first pass: everything is seen and checked once.

use super::{Item, Options, Plan};
use crate::directory;
use crate::disk::{BLOCK, FileType, LINK_MAX, encode_device};
use crate::error::{Problem, WriteError};
use crate::tree::{Kind, Node, Tree};
use crate::xattr::{self, Pool};

/// A file's blocks in the data file.
struct Extent {
    start: u64,
    blocks: u64,
    position: u32,
}

pub(super) fn walk<'a, T: Tree>(tree: &'a T, options: &Options) -> Result<Plan<'a>, WriteError> {
    let positions = vec![0; tree.bound() as usize];
    let mut plan = Plan { items: Vec::new(), positions, pool: Pool::default() };
    let mut extents = Vec::new();
    let (mut children, mut xattrs) = (Vec::new(), Vec::new());

    add(&mut plan, tree, tree.root(), 0)
        .and_then(|position| {
            let is_directory = plan.item(position).is_some_and(|item| item.file_type == FileType::Directory);
            if is_directory { Ok(()) } else { Err(Problem::RootKind) }
        })
        .map_err(|problem| WriteError::Entry { path: "/".into(), problem })?;

    let mut position = 0;
    while let Some(&item) = plan.item(position) {
        let node = tree.node(item.number).ok_or(WriteError::Changed)?;
        let checked = check(&node, options).and_then(|extent| {
            extents.extend(extent.map(|(start, blocks)| Extent { start, blocks, position }));
            xattr::collect(tree.xattrs(item.number), &mut xattrs)
        });
        checked.map_err(|problem| plan.error(tree, position, problem))?;
        plan.pool.count(&xattrs);
        if item.file_type == FileType::Directory {
            children.clear();
            children.extend(tree.children(item.number));
            list(&mut plan, tree, position, &mut children)?;
        }
        position = position.checked_add(1).ok_or(WriteError::TooLarge)?;
    }

    extents.sort_unstable_by_key(|extent| extent.start);
    let shared = extents.array_windows().find(|[one, next]| one.start + one.blocks > next.start);
    if let Some([_, next]) = shared {
        return Err(plan.error(tree, next.position, Problem::Overlap(next.start * BLOCK)));
    }
    plan.pool.settle();
    Ok(plan)
}

/// Takes a node into the plan, at its end, under its first name.
fn add<T: Tree>(plan: &mut Plan<'_>, tree: &T, number: u32, parent: u32) -> Result<u32, Problem> {
    let node = tree.node(number).ok_or(Problem::NoNode(number))?;
    let position = u32::try_from(plan.items.len()).map_err(|_| Problem::NoNode(number))?;
    let slot = plan.positions.get_mut(number as usize).ok_or(Problem::NoNode(number))?;
    *slot = position.checked_add(1).ok_or(Problem::NoNode(number))?;
    let file_type = FileType::of(&node.kind);
    let size = match node.kind {
        Kind::Regular { size, .. } => size,
        Kind::Symlink(target) => target.len() as u64,
        _ => 0,
    };
    // A directory is named by its own `.` too.
    let links = if file_type == FileType::Directory { 2 } else { 1 };
    let (is_inline, nid, xattrs, block) = (false, 0, 0, 0);
    plan.items.push(Item { number, parent, links, file_type, is_inline, size, nid, xattrs, block });
    Ok(position)
}

/// Checks what a node says of itself. The blocks of a file that has some.
fn check(node: &Node<'_>, options: &Options) -> Result<Option<(u64, u64)>, Problem> {
    if node.mtime_nanos >= crate::disk::SECOND {
        return Err(Problem::Nanoseconds(node.mtime_nanos));
    }
    if node.mode > 0o7777 {
        return Err(Problem::Mode(node.mode));
    }
    match node.kind {
        Kind::Regular { size: 0, .. } | Kind::Directory | Kind::Fifo | Kind::Socket => Ok(None),
        Kind::Regular { size, address } => {
            let (start, blocks) = (address / BLOCK, size.div_ceil(BLOCK));
            if !address.is_multiple_of(BLOCK) {
                Err(Problem::Address(address))
            } else if blocks > (options.data_len / BLOCK).saturating_sub(start) {
                Err(Problem::BeyondData { address, size })
            } else {
                Ok(Some((start, blocks)))
            }
        }
        Kind::Symlink(target) => {
            let is_target = (1..=LINK_MAX).contains(&target.len()) && !target.contains(&0);
            if is_target { Ok(None) } else { Err(Problem::Link) }
        }
        Kind::CharDevice(major, minor) | Kind::BlockDevice(major, minor) => {
            encode_device(major, minor).map(|_| None).ok_or(Problem::Device(major, minor))
        }
    }
}

/// Takes in the names of a directory.
fn list<T: Tree>(
    plan: &mut Plan<'_>,
    tree: &T,
    directory: u32,
    children: &mut Vec<(&[u8], u32)>,
) -> Result<(), WriteError> {
    children.sort_unstable();
    let mut previous = None;
    for &(name, number) in &*children {
        let twice = previous.replace(name) == Some(name);
        directory::check_name(name)
            .and(if twice { Err(Problem::NameTwice) } else { Ok(()) })
            .and_then(|()| link(plan, tree, number, directory))
            .map_err(|problem| {
                let parent = plan.path(tree, directory);
                let name = String::from_utf8_lossy(name);
                WriteError::Entry { path: format!("{}/{name}", parent.trim_end_matches('/')), problem }
            })?;
    }
    children.extend([(&b"."[..], 0), (b"..", 0)]);
    children.sort_unstable();
    if let Some(item) = plan.items.get_mut(directory as usize) {
        item.size = directory::size(children.iter().map(|(name, _)| *name));
    }
    Ok(())
}

/// Gives a node one name more, in `directory`.
fn link<T: Tree>(plan: &mut Plan<'_>, tree: &T, number: u32, directory: u32) -> Result<(), Problem> {
    if let Some(position) = plan.position(number) {
        let item = plan.items.get_mut(position as usize).ok_or(Problem::NoNode(number))?;
        if item.file_type == FileType::Directory {
            return Err(Problem::DirectoryTwice);
        }
        item.links = item.links.saturating_add(1);
        return Ok(());
    }
    let position = add(plan, tree, number, directory)?;
    let is_directory = plan.item(position).is_some_and(|item| item.file_type == FileType::Directory);
    if let Some(parent) = plan.items.get_mut(directory as usize).filter(|_| is_directory) {
        parent.links = parent.links.saturating_add(1);
    }
    Ok(())
}
