//! From the root through all directories, breadth first as the writer goes.

use std::collections::BTreeSet;

use super::account::Account;
use super::inode::{self, Bytes, Found};
use super::{CheckError, Fault, content};
use crate::disk::{BLOCK, FileType, SLOT, Superblock, position};
use crate::tree::Kind;

/// An inode that was met.
struct Met {
    nid: u64,
    /// The directory in which it was met first.
    parent: u64,
    file_type: FileType,
    /// Names that it says it has, and those that were met.
    said: u32,
    links: u32,
}

/// Sums over the image.
#[derive(Default)]
pub(super) struct Totals {
    pub(super) inodes: u64,
    pub(super) names: u64,
    pub(super) file_bytes: u64,
}

struct Walk<'a, 'b> {
    image: &'a [u8],
    superblock: &'b Superblock,
    account: &'b mut Account<'a>,
    met: Vec<Met>,
    /// For each possible inode its position in `met`, plus 1.
    positions: Vec<u32>,
    /// Bytes of shared attributes that are used.
    shared: BTreeSet<Bytes>,
    totals: Totals,
}

pub(super) fn walk<'a>(
    image: &'a [u8],
    superblock: &Superblock,
    account: &mut Account<'a>,
) -> Result<Totals, CheckError> {
    let positions = vec![0; position(image.len() as u64 / SLOT)];
    let (met, shared, totals) = (Vec::new(), BTreeSet::new(), Totals::default());
    let mut walk = Walk { image, superblock, account, met, positions, shared, totals };
    let root = u64::from(superblock.root);
    let fault = |nid, fault| CheckError::Inode { nid, fault };
    walk.meet(root, root)?;
    if walk.met.first().is_none_or(|root| root.file_type != FileType::Directory) {
        return Err(fault(root, Fault::RootKind));
    }
    let mut next = 0;
    while let Some(met) = walk.met.get(next) {
        if met.file_type == FileType::Directory {
            let (nid, parent) = (met.nid, met.parent);
            walk.list(nid, parent, next)?;
        }
        next += 1;
    }
    if let Some(met) = walk.met.iter().find(|met| met.said != met.links) {
        return Err(fault(met.nid, Fault::Links));
    }
    walk.totals.inodes = walk.met.len() as u64;
    let (found, said) = (walk.totals.inodes, superblock.inodes);
    if found != said {
        return Err(CheckError::Inodes { found, said });
    }
    let area = u64::from(superblock.xattr_block) * BLOCK;
    if walk.shared.first().map_or(0, |(start, _)| *start) != area {
        return Err(CheckError::SharedXattrs);
    }
    for (start, len) in walk.shared {
        walk.account.claim(start, len);
    }
    Ok(walk.totals)
}

impl<'a> Walk<'a, '_> {
    /// Meets an inode under one more name. The type that it has.
    fn meet(&mut self, nid: u64, parent: u64) -> Result<FileType, CheckError> {
        let fault = |fault| CheckError::Inode { nid, fault };
        let slot = self.positions.get_mut(position(nid)).ok_or(fault(Fault::Outside))?;
        if let Some(met) = slot.checked_sub(1).and_then(|at| self.met.get_mut(at as usize)) {
            if met.file_type == FileType::Directory {
                return Err(fault(Fault::DirectoryTwice));
            }
            met.links = met.links.saturating_add(1);
            return Ok(met.file_type);
        }
        let found = inode::read(self.image, nid, self.superblock)?;
        let file_type = FileType::of(&found.kind);
        let links = if file_type == FileType::Directory { 2 } else { 1 };
        self.met.push(Met { nid, parent, file_type, said: found.raw.links, links });
        let number = u32::try_from(self.met.len()).map_err(|_| fault(Fault::Number))?;
        *slot = number;
        if found.raw.number != number {
            return Err(fault(Fault::Number));
        }
        self.claim(nid, &found)?;
        Ok(file_type)
    }

    fn claim(&mut self, nid: u64, found: &Found<'a>) -> Result<(), CheckError> {
        for (start, len) in found.claims {
            self.account.claim(start, len);
        }
        self.shared.extend(found.xattrs.iter().filter_map(|(_, shared)| *shared));
        if content::padding(self.image, found).iter().any(|byte| *byte != 0) {
            return Err(CheckError::Inode { nid, fault: Fault::Content });
        }
        if let Kind::Regular { size, address } = found.kind
            && size > 0
        {
            self.account.claim_data(address / BLOCK, size.div_ceil(BLOCK), nid);
            self.totals.file_bytes = self.totals.file_bytes.saturating_add(size);
        }
        Ok(())
    }

    /// Meets what a directory names.
    fn list(&mut self, nid: u64, parent: u64, at: usize) -> Result<(), CheckError> {
        let fault = |fault| CheckError::Inode { nid, fault };
        let found = inode::read(self.image, nid, self.superblock)?;
        let entries = content::entries(&found).map_err(fault)?;
        let mut dots = 0;
        for entry in entries {
            let expected = match entry.name {
                b"." => Some(nid),
                b".." => Some(parent),
                _ => None,
            };
            let file_type = if let Some(expected) = expected {
                dots += 1;
                if entry.inode != expected {
                    return Err(fault(Fault::Dots));
                }
                FileType::Directory
            } else {
                self.totals.names += 1;
                let file_type = self.meet(entry.inode, nid)?;
                if file_type == FileType::Directory
                    && let Some(met) = self.met.get_mut(at)
                {
                    met.links = met.links.saturating_add(1);
                }
                file_type
            };
            if entry.file_type != file_type {
                return Err(CheckError::Inode { nid: entry.inode, fault: Fault::Type });
            }
        }
        if dots == 2 { Ok(()) } else { Err(fault(Fault::Dots)) }
    }
}
