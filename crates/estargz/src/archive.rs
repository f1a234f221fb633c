//! Reading tar streams: V7, ustar, PAX, GNU and star, as container tools write them.
//!
//! A tar is a row of 512-byte headers, each followed by its data padded to 512 bytes. What a header has no
//! room for stands in entries before it: PAX records (`x`) or GNU long names (`L`, `K`). The reader folds
//! those into the entry that they describe and keeps the raw header blocks, so that a writer can pass them on
//! unchanged.
//!
//! Two readers that see different trees in one archive are a security hole: what was checked is not what
//! runs. Wherever the formats leave room, this reader sees what Go's sees, with which every container engine
//! unpacks layers; and what Go, GNU tar and others read differently is an error if no tool writes it.
//!
//! The end is where the data of the last entry ends. A stream that stops in the padding behind it, or without
//! the two blocks of zeros, is whole: some tools write layers like that (`umoci insert` does), and containerd
//! takes them. Data that is cut short, or half a header, is an error.
//!
//! Sparse files are expanded as they are read, and their headers rewritten ([`Entry::rewritten`]): layers
//! cannot hold them, and containerd refuses the old kind.

use std::fmt::Write as _;
use std::io::{self, Read};

mod data;
mod entry;
mod error;
mod expand;
mod header;
mod pax;
mod rewrite;
mod sparse;

pub use data::Data;
use data::{Content, Counted};
pub use entry::{Entry, EntryKind, Timestamp};
pub use error::ArchiveError;
use header::{Dialect, Extensions, Header};
use pax::Pax;
pub use sparse::{SparseError, SparseProblem};

/// Size of a tar block in bytes.
pub const BLOCK: usize = 512;

/// Largest PAX header, GNU long name or sparse map that is read, in bytes: far beyond what any path and
/// xattrs need, and what Go's reader takes.
const MAX_EXTENSION: u64 = 1 << 20;

/// Reads a tar stream entry by entry.
pub struct Reader<R> {
    stream: Counted<R>,
    /// What is left of the current entry's data.
    content: Content,
    /// Bytes of padding behind that data.
    padding: u64,
    /// The current entry, for messages.
    current: String,
    /// Bytes of holes that sparse files may still have.
    holes_left: u64,
    ended: bool,
}

impl<R: Read> Reader<R> {
    /// A reader at the beginning of `inner`, or where the headers of an entry begin.
    pub fn new(inner: R) -> Self {
        Self {
            stream: Counted { inner, position: 0 },
            content: Content::default(),
            padding: 0,
            current: String::new(),
            holes_left: sparse::MAX_HOLES,
            ended: false,
        }
    }

    /// The next entry. Data of the one before that was not read is skipped. `None` at the end marker, or at
    /// a stream that ends in the padding of an entry or where a header could begin.
    ///
    /// # Errors
    /// [`ArchiveError`]; the reader is of no use afterwards.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, ArchiveError> {
        if self.ended {
            return Ok(None);
        }
        self.skip_data()?;
        if !self.skip_padding()? {
            self.ended = true;
            return Ok(None);
        }
        let position = self.stream.position;
        let mut extensions = Extensions::default();
        loop {
            let block = self.read_block()?;
            let Some(block) = block.filter(|block| *block != [0; BLOCK]) else {
                return self.end(&extensions, block.is_some());
            };
            let header = Header::new(&block, &self.current)?;
            extensions.raw.extend_from_slice(&block);
            match header.type_flag() {
                b'x' | b'g' | b'L' | b'K' => self.extend(&header, &mut extensions)?,
                _ => return self.describe(header, extensions, position).map(Some),
            }
        }
    }

    /// The content of the current entry, as far as it has not been read: as many bytes as its `size` says,
    /// with zeros for the holes of a sparse file.
    pub fn data(&mut self) -> Data<'_, R> {
        Data(self)
    }

    /// The stream below, wherever it stands.
    pub fn into_inner(self) -> R {
        self.stream.inner
    }

    /// The stream ends, or the end marker begins.
    fn end(&mut self, extensions: &Extensions, marked: bool) -> Result<Option<Entry>, ArchiveError> {
        self.ended = true;
        if extensions.any() {
            return Err(self.truncated());
        }
        if marked && self.read_block()?.is_some_and(|block| block != [0; BLOCK]) {
            return Err(ArchiveError::EndMarker(self.current.clone()));
        }
        Ok(None)
    }

    /// Reads an extension header.
    fn extend(&mut self, header: &Header, extensions: &mut Extensions) -> Result<(), ArchiveError> {
        let name = header.raw_path();
        let data = self.extension(header, &mut extensions.raw)?;
        let ambiguous = |problem| Err(ArchiveError::Ambiguous { name: name.clone(), problem });
        match header.type_flag() {
            b'x' if extensions.pax.is_some() => ambiguous("two PAX headers for one entry"),
            b'x' => {
                extensions.pax = Some(Pax::parse(data, &name)?);
                Ok(())
            }
            b'g' if extensions.any() => ambiguous("a global header between an entry and its extensions"),
            b'g' => {
                pax::check_global(&data, &name)?;
                extensions.global = extensions.raw.len();
                Ok(())
            }
            flag => {
                let (slot, problem) = if flag == b'L' {
                    (&mut extensions.long_path, "two GNU long names for one entry")
                } else {
                    (&mut extensions.long_link, "two GNU long link targets for one entry")
                };
                if slot.is_some() {
                    return ambiguous(problem);
                }
                *slot = Some(until_nul(data)).filter(|name| !name.is_empty());
                Ok(())
            }
        }
    }

    /// The entry that `header` and its extensions describe. The stream then stands before its data.
    fn describe(
        &mut self,
        header: Header,
        extensions: Extensions,
        position: u64,
    ) -> Result<Entry, ArchiveError> {
        let block = header.block;
        let old_sparse = header.type_flag() == b'S';
        let gnu = header.dialect() == Dialect::Gnu;
        let global = extensions.global;
        let (mut entry, pax, stored) = header.into_entry(extensions, position)?;
        self.current = entry.display_path();
        self.padding = padding(stored);
        self.content = Content::plain(stored);
        if old_sparse || pax.sparse.any() {
            let map =
                if old_sparse { self.old_map(&block, gnu, &pax)? } else { self.pax_map(&pax, entry.kind)? };
            entry.raw.truncate(global);
            self.expand(&mut entry, map, &pax)?;
        }
        Ok(entry)
    }

    /// Reads the data of an extension header, and keeps it with its padding in `raw`.
    fn extension(&mut self, header: &Header, raw: &mut Vec<u8>) -> Result<Vec<u8>, ArchiveError> {
        let size = header.size()?;
        if size > MAX_EXTENSION || raw.len() as u64 > MAX_EXTENSION {
            return Err(ArchiveError::LongExtension(header.raw_path()));
        }
        let mut data = Vec::new();
        let padded = size + padding(size);
        if (&mut self.stream).take(padded).read_to_end(&mut data)? as u64 != padded {
            return Err(self.truncated());
        }
        raw.extend_from_slice(&data);
        data.truncate(usize::try_from(size).unwrap_or(0));
        Ok(data)
    }

    /// One block; `None` at the end of the stream.
    fn read_block(&mut self) -> Result<Option<[u8; BLOCK]>, ArchiveError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while let Some(rest) = block.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.stream.read(rest) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(self.truncated()),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Some(block))
    }

    /// Skips data that nobody read. All of it must be there.
    fn skip_data(&mut self) -> Result<(), ArchiveError> {
        let len = std::mem::take(&mut self.content).stored;
        let skipped = io::copy(&mut (&mut self.stream).take(len), &mut io::sink())?;
        if skipped == len { Ok(()) } else { Err(self.truncated()) }
    }

    /// Skips what stands behind the data. `false` if the stream ends before that does.
    fn skip_padding(&mut self) -> Result<bool, ArchiveError> {
        let len = std::mem::take(&mut self.padding);
        Ok(io::copy(&mut (&mut self.stream).take(len), &mut io::sink())? == len)
    }

    fn truncated(&self) -> ArchiveError {
        ArchiveError::Truncated(self.current.clone())
    }
}

/// How many zeros stand behind `size` bytes of data.
pub const fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

fn until_nul(mut text: Vec<u8>) -> Vec<u8> {
    if let Some(end) = text.iter().position(|byte| *byte == 0) {
        text.truncate(end);
    }
    text
}

/// A path for a message, to stand between quotes: at most 200 characters of it, bytes that are no UTF-8 as
/// `\xe9`, and what a terminal would obey escaped.
pub(crate) fn display(path: &[u8]) -> String {
    let mut text = String::new();
    for chunk in path.utf8_chunks() {
        for shown in chunk.valid().chars() {
            text.extend(shown.escape_debug());
        }
        for byte in chunk.invalid() {
            // Writing to a string cannot fail.
            let _ = write!(text, "\\x{byte:02x}");
        }
        if text.len() > 4 * 200 {
            break;
        }
    }
    if text.chars().count() > 200 { text.chars().take(199).chain(['…']).collect() } else { text }
}

#[cfg(test)]
mod tests;
