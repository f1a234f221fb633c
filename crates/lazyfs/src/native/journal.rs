//! What is unanswered, in memory that outlives the process that answers.
//!
//! The kernel gives an event once. Whoever dies after that and before the answer would leave a reader waiting for ever,
//! so the event is *noted* before anything else is done, and with no instant in between: the kernel writes
//! events straight into this memory. A batch is then put down event by event into *slots*, together with the file
//! that it is about, and the buffer is cleared. An event's slot is cleared after its answer, and the number of its
//! descriptor given back after that; so a number stands for one unanswered event at a time, and what a slot says is
//! unanswered or was answered just now, which the kernel forgives.
//!
//! The same memory says which superblocks show which layer.
//!
//! ```text
//! page 0          magic, version, sequence, superblocks ever used
//! READERS pages   what the kernel writes, a page per thread
//! SLOTS × 6       state and number, device, inode, offset, count, sequence
//! SUPERBLOCKS × 7 state and opaque attribute, st_dev, bdi, TOC digest
//! ```
//!
//! All words are 64 bits of this machine. Nothing in it is believed further than that: a number that is no event's is
//! an answer that the kernel refuses.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use content::{ByteRange, Digest};

use super::event::{EVENT, Events};
use super::sys::Shared;
use crate::tree::OpaqueXattr;

const MAGIC: u64 = u64::from_ne_bytes(*b"PANTJRNL");
const VERSION: u64 = 1;
const PAGE: usize = 512;
/// Threads that read events.
pub(crate) const READERS: usize = 4;
/// Events that one read takes at most: they fit into a page.
pub(crate) const BATCH: usize = 64;
/// Events that may be unanswered. When there are more, the kernel's queue holds them.
pub(crate) const SLOTS: usize = 8192;
const SLOT: usize = 6;
/// Superblocks that may be alive.
const SUPERBLOCKS: usize = 32 * 1024;
const SUPERBLOCK: usize = 7;

const BUFFERS_AT: usize = PAGE;
const SLOTS_AT: usize = BUFFERS_AT + READERS * PAGE;
const SUPERBLOCKS_AT: usize = SLOTS_AT + SLOTS * SLOT;
const WORDS: usize = SUPERBLOCKS_AT + SUPERBLOCKS * SUPERBLOCK;

const _: () = assert!(BATCH * EVENT <= PAGE * 8);

/// Words of the first page.
const AT_MAGIC: usize = 0;
const AT_VERSION: usize = 1;
const AT_SEQUENCE: usize = 2;
const AT_USED: usize = 3;

/// States of a slot, in the upper half of its first word.
const KNOWN: u64 = 1;
const UNKNOWN: u64 = 2;

/// An unanswered event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Noted {
    /// The number that the answer names.
    pub(crate) fd: RawFd,
    /// Device and inode of the file; `None` if whoever read the event died before it knew.
    pub(crate) file: Option<(u64, u64)>,
    /// Bytes of the file.
    pub(crate) range: ByteRange,
    /// Ascends with age, from old to new.
    pub(crate) sequence: u64,
}

/// A superblock that shows a layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Superblock {
    pub(crate) toc: Digest,
    pub(crate) opaque: OpaqueXattr,
    /// `st_dev` of its files; 0 as long as the mount is being made.
    pub(crate) dev: u64,
    /// The number of its `/sys/class/bdi/erofs-N`, as [`super::superblock::is_alive`] understands it.
    pub(crate) bdi: u64,
}

/// The journal.
#[derive(Debug)]
pub(crate) struct Journal {
    memory: Shared,
    /// Held while superblocks are put down.
    superblocks: Mutex<()>,
    /// Sequence of the first event that this process reads.
    first: u64,
}

impl Journal {
    /// Makes the journal's descriptor.
    pub(crate) fn create() -> io::Result<OwnedFd> {
        let fd = Shared::create(WORDS)?;
        let memory = Shared::map(std::os::fd::AsFd::as_fd(&fd), WORDS)?;
        let journal = Self { memory, superblocks: Mutex::default(), first: 0 };
        journal.set(AT_VERSION, VERSION);
        journal.set(AT_MAGIC, MAGIC);
        Ok(fd)
    }

    /// Opens what [`Journal::create`] made.
    pub(crate) fn open(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let mut journal = Self { memory: Shared::map(fd, WORDS)?, superblocks: Mutex::default(), first: 0 };
        if journal.get(AT_MAGIC) != MAGIC || journal.get(AT_VERSION) != VERSION {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a journal of this version"));
        }
        journal.first = journal.get(AT_SEQUENCE);
        Ok(journal)
    }

    /// Sequence from which on events were read by this process.
    pub(crate) fn first(&self) -> u64 {
        self.first
    }

    /// Keeps what is written for every event in memory.
    pub(crate) fn pin(&self) -> io::Result<()> {
        self.memory.pin(SUPERBLOCKS_AT)
    }

    fn word(&self, at: usize) -> Option<&AtomicU64> {
        self.memory.words().get(at)
    }

    fn get(&self, at: usize) -> u64 {
        self.word(at).map_or(0, |word| word.load(Ordering::Acquire))
    }

    fn set(&self, at: usize, value: u64) {
        if let Some(word) = self.word(at) {
            word.store(value, Ordering::Release);
        }
    }

    /// Lets the kernel write at most `most` events into the buffer of a thread. Returns a copy of what it wrote.
    /// Until [`Journal::clear`] these events are noted there.
    pub(crate) fn read(
        &self,
        group: RawFd,
        reader: usize,
        most: usize,
        copy: &mut Vec<u8>,
    ) -> io::Result<()> {
        copy.clear();
        let words = most.min(BATCH) * EVENT / 8;
        let read = self.memory.read_into(group, buffer(reader), words)?;
        self.copy_out(reader, read, copy);
        Ok(())
    }

    fn copy_out(&self, reader: usize, len: usize, copy: &mut Vec<u8>) {
        let at = buffer(reader);
        let words = self.memory.words().get(at..at + len.div_ceil(8).min(PAGE)).unwrap_or_default();
        copy.extend(words.iter().flat_map(|word| word.load(Ordering::Acquire).to_ne_bytes()));
        copy.truncate(len);
    }

    /// Forgets the first `len` bytes of a thread's buffer: the events are in slots.
    pub(crate) fn clear(&self, reader: usize, len: usize) {
        // From the front: without its first word a buffer is empty.
        for at in 0..len.div_ceil(8).min(PAGE) {
            self.set(buffer(reader) + at, 0);
        }
    }

    /// Puts an event down in a free slot. Its sequence is given here, and the event with it returned.
    pub(crate) fn note(&self, slot: u32, mut event: Noted) -> Noted {
        event.sequence = self.word(AT_SEQUENCE).map_or(0, |word| word.fetch_add(1, Ordering::AcqRel));
        let at = slot_at(slot);
        let (dev, ino) = event.file.unwrap_or_default();
        self.set(at + 1, dev);
        self.set(at + 2, ino);
        self.set(at + 3, event.range.start);
        self.set(at + 4, event.range.len());
        self.set(at + 5, event.sequence);
        let state = if event.file.is_some() { KNOWN } else { UNKNOWN };
        self.set(at, state << 32 | u64::from(event.fd.cast_unsigned()));
        event
    }

    /// The event in a slot.
    pub(crate) fn noted(&self, slot: u32) -> Option<Noted> {
        let at = slot_at(slot);
        let first = self.get(at);
        let file = match first >> 32 {
            KNOWN => Some((self.get(at + 1), self.get(at + 2))),
            UNKNOWN => None,
            _ => return None,
        };
        let fd = u32::try_from(first & u64::from(u32::MAX)).ok()?.cast_signed();
        let range = ByteRange::at(self.get(at + 3), self.get(at + 4));
        Some(Noted { fd, file, range, sequence: self.get(at + 5) })
    }

    /// Empties a slot: its event is answered.
    pub(crate) fn answered(&self, slot: u32) {
        self.set(slot_at(slot), 0);
    }

    /// What the process before left: every unanswered event in a slot, from old to new. Events that it had read and not
    /// put down yet are put down now. For before anything is read.
    pub(crate) fn recover(&mut self) -> Vec<(u32, Noted)> {
        let slots = 0..u32::try_from(SLOTS).unwrap_or(0);
        let mut unanswered: Vec<(u32, Noted)> =
            slots.clone().filter_map(|slot| Some((slot, self.noted(slot)?))).collect();
        let numbers: BTreeSet<RawFd> = unanswered.iter().map(|(_, noted)| noted.fd).collect();
        let mut free = slots.filter(|slot| self.noted(*slot).is_none());
        let mut copy = Vec::new();
        for reader in 0..READERS {
            copy.clear();
            self.copy_out(reader, PAGE * 8, &mut copy);
            // What is in a slot already died between that and the clearing of the buffer.
            let fresh = Events::new(&copy).filter(|event| event.fd >= 0 && !numbers.contains(&event.fd));
            for event in fresh {
                let Some(slot) = free.next() else { break };
                let noted = Noted { fd: event.fd, file: None, range: event.range, sequence: 0 };
                unanswered.push((slot, self.note(slot, noted)));
            }
            self.clear(reader, PAGE * 8);
        }
        self.first = self.get(AT_SEQUENCE);
        unanswered.sort_by_key(|(_, noted)| noted.sequence);
        unanswered
    }

    /// Puts a superblock down. `None` if there are too many.
    pub(crate) fn note_superblock(&self, superblock: &Superblock) -> Option<usize> {
        let _one_at_a_time = self.superblocks.lock().unwrap_or_else(PoisonError::into_inner);
        let used = self.used();
        let number = (0..used).find(|number| self.get(superblock_at(*number)) == 0).unwrap_or(used);
        if number >= SUPERBLOCKS {
            return None;
        }
        let at = superblock_at(number);
        self.set(at + 1, superblock.dev);
        self.set(at + 2, superblock.bdi);
        for (word, bytes) in superblock.toc.as_bytes().chunks_exact(8).enumerate() {
            self.set(at + 3 + word, bytes.first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes)));
        }
        self.set(at, 1 + u64::from(superblock.opaque == OpaqueXattr::User));
        self.set(AT_USED, used.max(number + 1) as u64);
        Some(number)
    }

    /// Says where a superblock that was noted before its mount is now.
    pub(crate) fn mounted(&self, number: usize, dev: u64, bdi: u64) {
        let at = superblock_at(number);
        self.set(at + 2, bdi);
        self.set(at + 1, dev);
    }

    /// Forgets a superblock.
    pub(crate) fn forget_superblock(&self, number: usize) {
        self.set(superblock_at(number), 0);
    }

    /// All superblocks.
    pub(crate) fn superblocks(&self) -> Vec<(usize, Superblock)> {
        (0..self.used()).filter_map(|number| Some((number, self.superblock(number)?))).collect()
    }

    fn superblock(&self, number: usize) -> Option<Superblock> {
        let at = superblock_at(number);
        let opaque = match self.get(at) {
            1 => OpaqueXattr::Trusted,
            2 => OpaqueXattr::User,
            _ => return None,
        };
        let mut toc = [0; 32];
        for (word, bytes) in toc.chunks_exact_mut(8).enumerate() {
            bytes.copy_from_slice(&self.get(at + 3 + word).to_ne_bytes());
        }
        Some(Superblock {
            toc: Digest::from_bytes(toc),
            opaque,
            dev: self.get(at + 1),
            bdi: self.get(at + 2),
        })
    }

    fn used(&self) -> usize {
        usize::try_from(self.get(AT_USED)).unwrap_or(0).min(SUPERBLOCKS)
    }
}

fn buffer(reader: usize) -> usize {
    BUFFERS_AT + reader.min(READERS - 1) * PAGE
}

fn slot_at(slot: u32) -> usize {
    SLOTS_AT + (slot as usize).min(SLOTS - 1) * SLOT
}

fn superblock_at(number: usize) -> usize {
    SUPERBLOCKS_AT + number.min(SUPERBLOCKS - 1) * SUPERBLOCK
}
