//! Reading tar streams: ustar, PAX and GNU, as container tools write them.
//!
//! A tar is a row of 512-byte headers, each followed by its data padded to 512 bytes. What a header has no
//! room for stands in entries before it: PAX records (`x`) or GNU long names (`L`, `K`). The reader folds
//! those into the entry that they describe and keeps the raw header blocks, so that a writer can pass them on
//! unchanged.
//!
//! The end is where the data of the last entry ends. A stream that stops in the padding behind it, or without
//! the two blocks of zeros, is whole: some tools write layers like that (`umoci insert` does), and containerd
//! takes them. Data that is cut short, or half a header, is an error.
//!
//! Sparse files are refused: their data is not their content, and containerd refuses them too.

use std::io::{self, Read};

mod header;
mod pax;

use header::Header;
pub use header::{Entry, EntryKind};
use pax::Pax;

/// Size of a tar block in bytes.
pub const BLOCK: usize = 512;

/// Largest PAX header or GNU long name that is read, in bytes: far beyond what any path and xattrs need.
const MAX_EXTENSION: u64 = 1 << 20;

/// Why a tar stream could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The stream below failed.
    #[error("reading the tar stream: {0}")]
    Io(#[from] io::Error),
    /// The stream ends inside an entry.
    #[error("the tar stream ends in the middle of {0:?}")]
    Truncated(String),
    /// A header whose checksum is wrong.
    #[error("this is not a tar stream, or it is damaged: wrong checksum of the header after {0:?}")]
    Checksum(String),
    /// A field that is no number, or too large a one.
    #[error("tar entry {name:?}: {field} is not a number that fits")]
    Number {
        /// Path of the entry, as far as it is known.
        name: String,
        /// The field.
        field: &'static str,
    },
    /// A PAX header that cannot be read.
    #[error("tar entry {name:?}: malformed PAX header: {problem}")]
    Pax {
        /// Path of the entry, as far as it is known.
        name: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// A PAX header or long name beyond 1 MiB.
    #[error("tar entry {0:?}: extended header is larger than 1 MiB")]
    LongExtension(String),
    /// A sparse file.
    #[error("tar entry {0:?} is a sparse file, which layers cannot hold; store the file in full")]
    Sparse(String),
    /// A type of entry that layers cannot hold.
    #[error("tar entry {name:?} has type {kind:?}, which layers cannot hold")]
    Unsupported {
        /// Path of the entry.
        name: String,
        /// The type byte.
        kind: char,
    },
}

/// Reads a tar stream entry by entry.
pub struct Reader<R> {
    inner: R,
    /// Bytes of the current entry's data that nobody has read.
    data_left: u64,
    /// Zeros behind that data.
    padding: u64,
    /// The current entry, for messages.
    current: String,
    ended: bool,
}

impl<R: Read> Reader<R> {
    /// A reader at the beginning of `inner`.
    pub fn new(inner: R) -> Self {
        Self { inner, data_left: 0, padding: 0, current: String::new(), ended: false }
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
        let mut raw = Vec::with_capacity(BLOCK);
        let mut pax = None;
        let mut long_path = None;
        let mut long_link = None;
        loop {
            let Some(block) = self.read_block()? else {
                self.ended = true;
                return if raw.is_empty() { Ok(None) } else { Err(self.truncated()) };
            };
            if block == [0; BLOCK] {
                self.ended = true;
                return if raw.is_empty() { Ok(None) } else { Err(self.truncated()) };
            }
            let header = Header::new(&block, &self.current)?;
            raw.extend_from_slice(&block);
            match header.type_flag() {
                b'x' => pax = Some(Pax::parse(&self.extension(&header, &mut raw)?, &header.raw_path())?),
                b'L' => long_path = Some(until_nul(self.extension(&header, &mut raw)?)),
                b'K' => long_link = Some(until_nul(self.extension(&header, &mut raw)?)),
                // Global records (git writes a comment) describe no entry; Go's reader ignores them as well.
                b'g' => {
                    self.extension(&header, &mut raw)?;
                }
                _ => {
                    let entry = header.into_entry(raw, pax.unwrap_or_default(), long_path, long_link)?;
                    self.current = entry.display_path();
                    self.data_left = entry.size;
                    self.padding = padding(entry.size);
                    return Ok(Some(entry));
                }
            }
        }
    }

    /// The data of the current entry, as far as it has not been read.
    pub fn data(&mut self) -> Data<'_, R> {
        Data(self)
    }

    /// The stream below, wherever it stands.
    pub fn into_inner(self) -> R {
        self.inner
    }

    /// Reads the data of an extension header, and keeps it with its padding in `raw`.
    fn extension(&mut self, header: &Header, raw: &mut Vec<u8>) -> Result<Vec<u8>, ArchiveError> {
        let size = header.size()?;
        if size > MAX_EXTENSION || raw.len() as u64 > MAX_EXTENSION {
            return Err(ArchiveError::LongExtension(header.raw_path()));
        }
        let mut data = Vec::new();
        let padded = size + padding(size);
        if (&mut self.inner).take(padded).read_to_end(&mut data)? as u64 != padded {
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
            match self.inner.read(rest) {
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
        let len = std::mem::take(&mut self.data_left);
        let skipped = io::copy(&mut (&mut self.inner).take(len), &mut io::sink())?;
        if skipped == len { Ok(()) } else { Err(self.truncated()) }
    }

    /// Skips what stands behind the data. `false` if the stream ends before that does.
    fn skip_padding(&mut self) -> Result<bool, ArchiveError> {
        let len = std::mem::take(&mut self.padding);
        Ok(io::copy(&mut (&mut self.inner).take(len), &mut io::sink())? == len)
    }

    fn truncated(&self) -> ArchiveError {
        ArchiveError::Truncated(self.current.clone())
    }
}

/// The data of an entry. Ends with the entry; a stream that ends earlier is an error, never a short file.
pub struct Data<'a, R>(&'a mut Reader<R>);

impl<R: Read> Read for Data<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.0.data_left).unwrap_or(usize::MAX).min(buffer.len());
        let Some(part) = buffer.get_mut(..want).filter(|part| !part.is_empty()) else { return Ok(0) };
        let count = self.0.inner.read(part)?;
        if count == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, self.0.truncated().to_string()));
        }
        self.0.data_left = self.0.data_left.saturating_sub(count as u64);
        Ok(count)
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

/// A path for a message: readable, and at most 200 characters of it.
pub(crate) fn display(path: &[u8]) -> String {
    String::from_utf8_lossy(path).chars().take(200).collect()
}

#[cfg(test)]
mod tests;
