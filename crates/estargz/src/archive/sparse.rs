//! Sparse files: which parts of a file the archive holds, the rest being zeros.
//!
//! GNU tar has written that in four ways. The old one, type `S`, keeps a table of offsets and lengths in the
//! header and in extension blocks behind it. PAX 0.0 repeats two records for each part, PAX 0.1 has one
//! record with a list, and PAX 1.0 puts the list in decimal lines before the data itself. In all of them the
//! data of the parts follows without gaps.
//!
//! A map must be in order, without overlap, within the file's size, and must account for every byte of the
//! data. Its length is bounded, and so is what the holes of all files of an archive may add up to: a few
//! hundred bytes can promise exabytes of zeros.

use std::ops::Range;

use super::header::number;
use super::pax::decimal;
use super::{BLOCK, MAX_EXTENSION};

/// Most parts of one file: what fits 1 MiB in the densest of the four ways.
const MAX_PARTS: usize = 1 << 18;

/// Most bytes of holes in one archive: 16 GiB. The `lastlog` of a user with id 50 million is that large;
/// beyond that a layer is a bomb, meant or not.
pub(super) const MAX_HOLES: u64 = 16 << 30;

/// A sparse file that cannot be expanded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("tar entry \"{name}\" is a sparse file that cannot be expanded: {problem}")]
pub struct SparseError {
    /// Path of the entry, as far as it is known.
    pub name: String,
    /// Why.
    pub problem: SparseProblem,
}

/// Why a sparse file cannot be expanded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SparseProblem {
    /// A number of the map is none, or does not fit.
    #[error("its map has a number that is none, or that does not fit")]
    Number,
    /// Parts overlap, or stand in the wrong order.
    #[error("the parts in its map overlap or are out of order")]
    Order,
    /// A part lies beyond the end.
    #[error("its map has a part beyond the end of the file")]
    Beyond,
    /// The parts are not the data.
    #[error("the parts in its map do not add up to the data that is there")]
    Data,
    /// The map has too many parts.
    #[error("its map is longer than 1 MiB or has more than 262144 parts")]
    Long,
    /// What must be known is missing or said twice.
    #[error("its size or map is missing, or given twice")]
    Incomplete,
    /// A way to store it that is not known.
    #[error("it is stored in an unknown format; known are old GNU and PAX 0.0, 0.1 and 1.0")]
    Unknown,
    /// Only a regular file can be sparse.
    #[error("it is no regular file")]
    Kind,
    /// The holes are larger than a layer may have.
    #[error("the holes of this layer's sparse files would take more than 16 GiB")]
    Bomb,
}

/// Which parts of a file the archive holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Map {
    /// In order, without overlap; may be empty ranges.
    pub(super) parts: Vec<Range<u64>>,
    /// Size of the file.
    pub(super) size: u64,
}

impl Map {
    /// Checks what an archive says. `data` is how many bytes the parts must add up to.
    fn new(parts: Vec<(u64, u64)>, size: u64, data: u64) -> Result<Self, SparseProblem> {
        // A size is a signed number everywhere.
        if i64::try_from(size).is_err() {
            return Err(SparseProblem::Number);
        }
        let mut end = 0;
        let mut held = 0_u64;
        let mut checked = Vec::with_capacity(parts.len());
        for (offset, len) in parts {
            let part_end = offset.checked_add(len).ok_or(SparseProblem::Number)?;
            if part_end > size {
                return Err(SparseProblem::Beyond);
            }
            if offset < end {
                return Err(SparseProblem::Order);
            }
            end = part_end;
            // No overflow: the parts do not overlap and lie within the size.
            held = held.saturating_add(len);
            checked.push(offset..part_end);
        }
        if held == data { Ok(Self { parts: checked, size }) } else { Err(SparseProblem::Data) }
    }

    /// Bytes of the file that the archive does not hold.
    pub(super) fn holes(&self) -> u64 {
        let held: u64 = self.parts.iter().map(|part| part.end - part.start).sum();
        self.size - held
    }
}

/// The records `GNU.sparse.*` of one extended header.
#[derive(Default)]
pub(super) struct SparseRecords {
    any: bool,
    major: Option<u64>,
    minor: Option<u64>,
    size: Option<u64>,
    real_size: Option<u64>,
    count: Option<u64>,
    list: Option<Vec<u64>>,
    pairs: Vec<u64>,
    /// The file's name, where `path` is made up for readers that know nothing of this.
    pub(super) name: Option<Vec<u8>>,
}

/// Where a map stands.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In the records: the parts.
    Records(Vec<(u64, u64)>),
    /// In front of the data.
    Data,
}

impl SparseRecords {
    /// Takes a record; `key` is without the prefix.
    pub(super) fn apply(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        const PROBLEM: &str = "a record of a sparse file is no number";
        self.any = true;
        let number = || decimal::<u64>(value).ok_or(PROBLEM);
        match key {
            b"major" => self.major = Some(number()?),
            b"minor" => self.minor = Some(number()?),
            b"size" => self.size = Some(number()?),
            b"realsize" => self.real_size = Some(number()?),
            b"numblocks" => self.count = Some(number()?),
            b"name" if value.is_empty() || value.contains(&0) => return Err("a name has a NUL byte"),
            b"name" => self.name = Some(value.to_vec()),
            b"map" => {
                let numbers = value.split(|byte| *byte == b',').filter(|_| !value.is_empty());
                self.list = Some(numbers.map(decimal).collect::<Option<_>>().ok_or(PROBLEM)?);
            }
            b"offset" if self.pairs.len().is_multiple_of(2) => self.pairs.push(number()?),
            b"numbytes" if !self.pairs.len().is_multiple_of(2) => self.pairs.push(number()?),
            b"offset" | b"numbytes" => return Err("the parts of a sparse file are out of order"),
            _ => return Err("an unknown record of a sparse file"),
        }
        Ok(())
    }

    /// Whether there was any of these records.
    pub(super) const fn any(&self) -> bool {
        self.any
    }

    /// Size of the file and where its map stands.
    pub(super) fn resolve(&self) -> Result<(u64, Place), SparseProblem> {
        let size = match (self.size, self.real_size) {
            (Some(size), None) | (None, Some(size)) => size,
            (Some(a), Some(b)) if a == b => a,
            _ => return Err(SparseProblem::Incomplete),
        };
        match (self.major, self.minor) {
            (Some(1), Some(0)) if self.list.is_none() && self.pairs.is_empty() => Ok((size, Place::Data)),
            (Some(1), Some(0)) => Err(SparseProblem::Incomplete),
            (Some(0), Some(0 | 1)) | (None, None) => {
                let numbers = match &self.list {
                    Some(list) if self.pairs.is_empty() => list,
                    Some(_) => return Err(SparseProblem::Incomplete),
                    None => &self.pairs,
                };
                // A count alone, without any parts, is a file that is one hole.
                let count = self.count.ok_or(SparseProblem::Incomplete)?;
                if Some(numbers.len() as u64) != count.checked_mul(2) {
                    return Err(SparseProblem::Incomplete);
                }
                Ok((size, Place::Records(pairs(numbers)?)))
            }
            _ => Err(SparseProblem::Unknown),
        }
    }
}

fn pairs(numbers: &[u64]) -> Result<Vec<(u64, u64)>, SparseProblem> {
    let (pairs, rest) = numbers.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(SparseProblem::Incomplete);
    }
    if pairs.len() > MAX_PARTS {
        return Err(SparseProblem::Long);
    }
    Ok(pairs.iter().map(|[offset, len]| (*offset, *len)).collect())
}

/// Gathers a map, wherever it stands, and checks it.
pub(super) struct MapReader {
    parts: Vec<(u64, u64)>,
    bytes: u64,
}

/// A block of a map, and what comes next.
pub(super) enum More {
    /// The map is complete.
    No,
    /// It goes on in the next block.
    Yes,
}

/// One entry of an old GNU table: offset and length in 12 bytes each.
const SLOT: usize = 24;
/// Where the table stands in a header, and whether there is an extension block.
const HEADER_TABLE: Range<usize> = 386..482;
const HEADER_EXTENDED: usize = 482;
/// Size of the file, in a header of type `S`.
pub(super) const REAL_SIZE: Range<usize> = 483..495;
/// The same in an extension block.
const BLOCK_TABLE: Range<usize> = 0..504;
const BLOCK_EXTENDED: usize = 504;

impl MapReader {
    pub(super) const fn new() -> Self {
        Self { parts: Vec::new(), bytes: 0 }
    }

    pub(super) fn records(parts: Vec<(u64, u64)>) -> Self {
        Self { parts, bytes: 0 }
    }

    /// Reads the table in a header of type `S`.
    pub(super) fn old_header(&mut self, block: &[u8; BLOCK]) -> Result<More, SparseProblem> {
        self.table(block, HEADER_TABLE, HEADER_EXTENDED)
    }

    /// Reads the table in an extension block.
    pub(super) fn old_block(&mut self, block: &[u8; BLOCK]) -> Result<More, SparseProblem> {
        self.bytes += BLOCK as u64;
        if self.bytes > MAX_EXTENSION {
            return Err(SparseProblem::Long);
        }
        self.table(block, BLOCK_TABLE, BLOCK_EXTENDED)
    }

    fn table(
        &mut self,
        block: &[u8; BLOCK],
        table: Range<usize>,
        extended: usize,
    ) -> Result<More, SparseProblem> {
        let table = block.get(table).unwrap_or_default();
        for slot in table.chunks_exact(SLOT) {
            let (offset, len) = slot.split_at(SLOT / 2);
            // Readers stop at the first empty offset, or at the first empty length. Both or none, then.
            match (offset.first(), len.first()) {
                (Some(0), Some(0)) => break,
                (Some(0), _) | (_, Some(0)) => return Err(SparseProblem::Number),
                _ => {}
            }
            let parse = |field| number(field).and_then(|number| u64::try_from(number).ok());
            let offset = parse(offset).ok_or(SparseProblem::Number)?;
            let len = parse(len).ok_or(SparseProblem::Number)?;
            self.parts.push((offset, len));
        }
        Ok(if block.get(extended).is_some_and(|flag| *flag != 0) { More::Yes } else { More::No })
    }

    /// The checked map.
    pub(super) fn finish(self, size: u64, data: u64) -> Result<Map, SparseProblem> {
        Map::new(self.parts, size, data)
    }
}

/// Gathers the map of PAX 1.0: decimal lines, first how many parts there are, then offset and length of
/// each, padded to whole blocks.
pub(super) struct TextMap {
    text: Vec<u8>,
    lines: u64,
    /// How many lines there must be, when the first is known.
    want: Option<u64>,
}

impl TextMap {
    pub(super) const fn new() -> Self {
        Self { text: Vec::new(), lines: 0, want: None }
    }

    pub(super) fn block(&mut self, block: &[u8; BLOCK]) -> Result<More, SparseProblem> {
        if self.text.len() as u64 >= MAX_EXTENSION {
            return Err(SparseProblem::Long);
        }
        self.text.extend_from_slice(block);
        self.lines += block.iter().map(|byte| u64::from(*byte == b'\n')).sum::<u64>();
        if self.want.is_none() {
            // The first line is in the first block, or it is no number.
            let first = block.split(|byte| *byte == b'\n').next().filter(|line| line.len() < BLOCK);
            let count: u64 = first.and_then(decimal).ok_or(SparseProblem::Number)?;
            let lines = count.checked_mul(2).and_then(|lines| lines.checked_add(1));
            self.want = Some(lines.ok_or(SparseProblem::Number)?);
        }
        Ok(if self.want.is_some_and(|want| self.lines >= want) { More::No } else { More::Yes })
    }

    pub(super) fn parts(&self) -> Result<Vec<(u64, u64)>, SparseProblem> {
        let lines = usize::try_from(self.want.unwrap_or(0)).unwrap_or(usize::MAX);
        let numbers = self.text.split(|byte| *byte == b'\n').take(lines).skip(1);
        pairs(&numbers.map(decimal).collect::<Option<Vec<_>>>().ok_or(SparseProblem::Number)?)
    }
}
