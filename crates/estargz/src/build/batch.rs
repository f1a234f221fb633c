//! A batch: some sections of the tar that one worker compresses at one go.
//!
//! A section is what begins with a chunk of a file, or with headers where no chunk comes first, and ends where
//! the next section begins. Every section becomes a member of the blob, or several of them one, if members
//! have a least size.

use std::io;

use content::Digest;

use super::buffer::Buffer;
use super::codec::Compressor;

/// A part of the tar.
#[derive(Clone, Copy, Debug)]
struct Section {
    /// Where in the batch it begins.
    start: usize,
    /// How many of its bytes, from the first, are a chunk of a file.
    payload: usize,
    /// It does not share a member with what comes before.
    fresh: bool,
}

/// Where a section came to stand among the compressed bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packed {
    /// Where its member begins and ends.
    pub(super) member: (usize, usize),
    /// Where it begins in what the member inflates to.
    pub(super) inner: usize,
    /// sha256 of its payload.
    pub(super) digest: Digest,
}

/// Sections, and what became of them. `M` is what the index wants to be told of each, in its turn.
pub(super) struct Batch<M> {
    /// Its place among the batches.
    pub(super) number: u64,
    pub(super) data: Buffer,
    sections: Vec<Section>,
    /// No payload stands in it since a member must have begun.
    headers_only: bool,
    /// With the number of the section that each belongs to.
    pub(super) marks: Vec<(usize, M)>,
    pub(super) compressed: Buffer,
    packed: Vec<Packed>,
}

impl<M> Batch<M> {
    pub(super) fn new() -> Self {
        Self {
            number: 0,
            data: Buffer::default(),
            sections: Vec::new(),
            headers_only: true,
            marks: Vec::new(),
            compressed: Buffer::default(),
            packed: Vec::new(),
        }
    }

    /// Empties it, and keeps the memory.
    pub(super) fn clear(&mut self) {
        self.data.truncate(0);
        self.sections.clear();
        self.headers_only = true;
        self.marks.clear();
        self.compressed.truncate(0);
        self.packed.clear();
    }

    /// Begins a section.
    pub(super) fn begin(&mut self, fresh: bool) {
        self.headers_only |= fresh;
        self.sections.push(Section { start: self.data.len(), payload: 0, fresh });
    }

    /// Makes all that stands in the section its payload. Headers without payload before it do not share its
    /// member: readers look for the next member where a payload begins one.
    pub(super) fn set_payload(&mut self) {
        let end = self.data.len();
        if let Some(section) = self.sections.last_mut() {
            section.payload = end - section.start;
            section.fresh |= self.headers_only;
            self.headers_only = false;
        }
    }

    pub(super) fn mark(&mut self, mark: M) {
        self.marks.push((self.sections.len().saturating_sub(1), mark));
    }

    /// Bytes in the last section beyond its payload; `None` if there is no section.
    pub(super) fn beyond_payload(&self) -> Option<usize> {
        self.sections.last().map(|section| self.data.len() - section.start - section.payload)
    }

    /// Where section `number` came to stand, and its payload. `None` if it has no payload.
    pub(super) fn chunk(&self, number: usize) -> Option<(Packed, &[u8])> {
        let section = self.sections.get(number).filter(|section| section.payload > 0)?;
        let payload = self.data.bytes().get(section.start..section.start + section.payload)?;
        Some((*self.packed.get(number)?, payload))
    }

    /// Compresses every section, as members of at least `least` bytes; 0: a member each.
    pub(super) fn compress(&mut self, compressor: &mut Compressor, least: usize) -> io::Result<()> {
        let mut first = 0;
        while first < self.sections.len() {
            // Up to where another member must begin.
            let end = self
                .sections
                .iter()
                .enumerate()
                .skip(first + 1)
                .find(|(_, section)| section.fresh || least == 0)
                .map_or(self.sections.len(), |(number, _)| number);
            self.compress_run(compressor, least, first, end)?;
            first = end;
        }
        Ok(())
    }

    /// Compresses the sections from `first` up to `end`. Each member takes as many as it needs to get `least`
    /// bytes; how many that are is guessed, tried, and guessed better.
    fn compress_run(
        &mut self,
        compressor: &mut Compressor,
        least: usize,
        mut first: usize,
        end: usize,
    ) -> io::Result<()> {
        let mut before = None;
        // Inflated bytes that a member needs, in the light of the members before.
        let mut enough = least.saturating_mul(2);
        while first < end {
            let mut next = self.take(first, end, enough);
            let len = loop {
                let len = self.member(compressor, first, next)?;
                if len >= least || next == end {
                    break len;
                }
                let inflated = self.start(next) - self.start(first);
                enough = scaled(inflated, least, len).max(inflated + inflated / 8);
                next = self.take(first, end, enough).max(next + 1);
            };
            if let Some(before) = before.filter(|_| len < least) {
                // The rest is too small for a member of its own.
                self.member(compressor, before, next)?;
            } else {
                enough = scaled(self.start(next) - self.start(first), least, len);
            }
            before = Some(first);
            first = next;
        }
        Ok(())
    }

    /// The first section behind `first` so that at least `enough` bytes stand between them, or `end`.
    fn take(&self, first: usize, end: usize, enough: usize) -> usize {
        let wanted = self.start(first).saturating_add(enough);
        (first + 1..end).find(|number| self.start(*number) >= wanted).unwrap_or(end)
    }

    fn start(&self, section: usize) -> usize {
        self.sections.get(section).map_or(self.data.len(), |section| section.start)
    }

    /// Makes the sections from `first` up to `next` the last member, in place of any that they stood in.
    /// Answers its length.
    fn member(&mut self, compressor: &mut Compressor, first: usize, next: usize) -> io::Result<usize> {
        if let Some(packed) = self.packed.get(first) {
            self.compressed.truncate(packed.member.0);
        }
        let (start, end) = (self.start(first), self.start(next));
        let at = self.compressed.len();
        let data = self.data.bytes();
        compressor.compress(data.get(start..end).unwrap_or_default(), &mut self.compressed)?;
        let member = (at, self.compressed.len());
        for number in first..next {
            let Some(section) = self.sections.get(number) else { continue };
            let inner = section.start - start;
            if let Some(packed) = self.packed.get_mut(number) {
                (packed.member, packed.inner) = (member, inner);
                continue;
            }
            let payload = data.get(section.start..section.start + section.payload).unwrap_or_default();
            self.packed.push(Packed { member, inner, digest: Digest::of(payload) });
        }
        Ok(member.1 - member.0)
    }
}

/// Inflated bytes that a member of `least` bytes needs if `inflated` bytes became `len`, and some more.
fn scaled(inflated: usize, least: usize, len: usize) -> usize {
    let exact = inflated.saturating_mul(least) / len.max(1);
    exact.saturating_add(exact / 16)
}
