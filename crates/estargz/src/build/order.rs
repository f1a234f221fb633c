//! The order of a layer whose first files are those that a start needs.
//!
//! A first pass reads the headers and keeps the names. The order is then known: files with a rank, each behind
//! what it needs, that is its parent directories, the file that it is a hard link to, and what removes all of
//! them from the layers below. A second pass takes those from wherever they stand, adds the landmark, and goes through the archive once more for the rest.

use std::collections::HashMap;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::rc::Rc;

use super::cut::{Cutter, clean, failure};
use super::room::Room;
use super::{BuildError, DescribeProblem, is_reserved};
use crate::archive::{ArchiveError, Entry, EntryKind, Reader, display};
use crate::whiteout::WHITEOUT_PREFIX;
use crate::{NO_PREFETCH_LANDMARK, PREFETCH_LANDMARK, path};

/// Bytes that are read at one go where the archive is read from one end to the other.
const READ_AHEAD: usize = 256 * 1024;

/// What is kept of an entry.
struct Item {
    /// Its clean path.
    path: Rc<[u8]>,
    /// Where its headers begin, counted from the archive's beginning.
    position: u64,
    /// The entry that it is a hard link to.
    target: Option<usize>,
    is_directory: bool,
    /// It is written, or need not be: a later entry has its path.
    done: bool,
}

/// The entries of an archive.
struct Items {
    all: Vec<Item>,
    /// The last entry of each path.
    by_path: HashMap<Rc<[u8]>, usize>,
    /// The last entry of a path that was no directory, where a directory came after it.
    emptied: HashMap<Rc<[u8]>, usize>,
    room: Room,
}

/// Gives the entries of `tar` to `cutter` in their order, and a landmark.
pub(super) fn cut<R: Read + Seek>(
    mut tar: R,
    cutter: &mut Cutter<'_>,
    rank: &mut dyn FnMut(&[u8]) -> Option<u32>,
) -> Result<(), BuildError> {
    let start = tar.stream_position().map_err(ArchiveError::from)?;
    let mut items = Items::read(BufReader::with_capacity(READ_AHEAD, &mut tar))?;
    let wanted = items.wanted(rank);
    for number in &wanted {
        let Some(item) = items.all.get(*number) else { continue };
        let from = start.saturating_add(item.position);
        tar.seek(SeekFrom::Start(from)).map_err(ArchiveError::from)?;
        let mut archive = Reader::new(&mut tar);
        let entry = archive.next_entry()?.ok_or_else(changed)?;
        if clean(&entry)? != *item.path {
            return Err(changed());
        }
        cutter.entry(&entry, &mut archive.data())?;
    }
    cutter.landmark(if wanted.is_empty() { NO_PREFETCH_LANDMARK } else { PREFETCH_LANDMARK })?;
    for number in wanted {
        items.finish(number);
    }
    tar.seek(SeekFrom::Start(start)).map_err(ArchiveError::from)?;
    let mut archive = Reader::new(BufReader::with_capacity(READ_AHEAD, &mut tar));
    let mut rest = items.all.iter().filter(|item| !item.done).peekable();
    while let Some(entry) = archive.next_entry()? {
        if rest.next_if(|item| item.position == entry.position).is_some() {
            cutter.entry(&entry, &mut archive.data())?;
        }
    }
    if rest.next().is_some() { Err(changed()) } else { Ok(()) }
}

fn changed() -> BuildError {
    ArchiveError::Io(io::Error::other("the tar is another one than before: it changed while it was read"))
        .into()
}

impl Items {
    /// The first pass.
    fn read(tar: impl Read) -> Result<Self, BuildError> {
        let mut found =
            Self { all: Vec::new(), by_path: HashMap::new(), emptied: HashMap::new(), room: Room::default() };
        let mut archive = Reader::new(tar);
        while let Some(entry) = archive.next_entry()? {
            found.add(&entry)?;
        }
        found.drop_emptied();
        found.check_links()?;
        Ok(found)
    }

    /// Drops what lay below a directory that was something else in between: unpacking removes it.
    fn drop_emptied(&mut self) {
        if self.emptied.is_empty() {
            return;
        }
        for (number, item) in self.all.iter_mut().enumerate() {
            let slashes = item.path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
            let mut above = slashes.filter_map(|end| self.emptied.get(item.path.get(..end)?));
            item.done |= above.any(|since| number < *since);
        }
    }

    /// Refuses a link to an entry that a later one replaces: it would become a link to that one.
    fn check_links(&self) -> Result<(), BuildError> {
        let is_done = |number: usize| self.all.get(number).is_some_and(|item| item.done);
        match self.all.iter().find(|item| !item.done && item.target.is_some_and(is_done)) {
            Some(link) => {
                Err(BuildError::Entry { name: display(&link.path), problem: DescribeProblem::Replaced })
            }
            None => Ok(()),
        }
    }

    fn add(&mut self, entry: &Entry) -> Result<(), BuildError> {
        let path: Rc<[u8]> = clean(entry)?.into();
        if is_reserved(&path) {
            return Ok(());
        }
        self.room.take_bytes(path.len())?;
        let target = if entry.kind == EntryKind::Hardlink { self.target(entry)? } else { None };
        let number = self.all.len();
        let is_directory = entry.kind == EntryKind::Directory;
        let (position, done) = (entry.position, false);
        self.all.push(Item { path: Rc::clone(&path), position, target, is_directory, done });
        if let Some(earlier) = self.by_path.insert(Rc::clone(&path), number) {
            self.finish(earlier);
            if is_directory && self.all.get(earlier).is_some_and(|item| !item.is_directory) {
                self.emptied.insert(path, earlier);
            }
        }
        Ok(())
    }

    /// The entry that `entry` is a link to; `None` if there is none, which the finished TOC's reader tells.
    fn target(&self, entry: &Entry) -> Result<Option<usize>, BuildError> {
        let mut target = Vec::new();
        path::clean(&entry.link, &mut target).map_err(|problem| failure(entry, problem.into()))?;
        Ok(self.by_path.get(target.as_slice()).copied())
    }

    fn finish(&mut self, number: usize) {
        if let Some(item) = self.all.get_mut(number) {
            item.done = true;
        }
    }

    /// The entries that come before the landmark, in their order.
    fn wanted(&self, rank: &mut dyn FnMut(&[u8]) -> Option<u32>) -> Vec<usize> {
        let mut ranked: Vec<(u32, usize)> = (0..)
            .zip(&self.all)
            .filter(|(_, item)| !item.done)
            .filter_map(|(number, item)| Some((rank(&item.path)?, number)))
            .collect();
        ranked.sort_unstable();
        let mut order = Order { items: self, taken: vec![false; self.all.len()], wanted: Vec::new() };
        for (_, number) in ranked {
            order.take_with_targets(number);
        }
        order.wanted
    }
}

/// The order as it comes about.
struct Order<'a> {
    items: &'a Items,
    taken: Vec<bool>,
    wanted: Vec<usize>,
}

impl Order<'_> {
    /// Takes the entry, and before it what it is a link to, which may be a link as well.
    fn take_with_targets(&mut self, number: usize) {
        let mut chain = vec![number];
        // A target stands before its link, so this ends. What was taken has its targets before it.
        while let Some(target) =
            chain.last().and_then(|last| self.items.all.get(*last)).and_then(|item| item.target)
            && self.taken.get(target) == Some(&false)
        {
            chain.push(target);
        }
        for number in chain.into_iter().rev() {
            self.take_with_parents(number);
        }
    }

    fn take_with_parents(&mut self, number: usize) {
        let items = self.items;
        let Some(item) = items.all.get(number) else { return };
        let slashes = item.path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        // The root is a parent too: its path is empty.
        for end in std::iter::once(0).chain(slashes) {
            let parent = item.path.get(..end).unwrap_or_default();
            self.take_whiteout(parent, number);
            if let Some(parent) = items.by_path.get(parent) {
                self.take(*parent);
            }
        }
        self.take_whiteout(&item.path, number);
        self.take(number);
    }

    /// Takes the entry that removes `path` from the layers below, if it stands before entry `number`: behind
    /// it, most tools would take it for the removal of what this layer has there.
    fn take_whiteout(&mut self, path: &[u8], number: usize) {
        let at = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        let (directory, name) = path.split_at(at);
        let whiteout = [directory, WHITEOUT_PREFIX, name].concat();
        if let Some(whiteout) = self.items.by_path.get(whiteout.as_slice()).filter(|found| **found < number) {
            self.take(*whiteout);
        }
    }

    fn take(&mut self, number: usize) {
        if let Some(taken) = self.taken.get_mut(number)
            && !std::mem::replace(taken, true)
            && self.items.all.get(number).is_some_and(|item| !item.done)
        {
            self.wanted.push(number);
        }
    }
}
