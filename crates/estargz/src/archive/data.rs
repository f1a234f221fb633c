//! The content of an entry: what the archive holds of it, and zeros for the holes of a sparse file.

use std::io::{self, Read};
use std::ops::Range;

use super::Reader;
use super::sparse::Map;

/// Holes of a sparse file that the current part of the archive leaves.
#[derive(Default)]
pub(super) struct Content {
    /// Bytes of it in the stream that nobody has read.
    pub(super) stored: u64,
    /// The file's parts, if it is sparse.
    sparse: Option<Sparse>,
}

/// How far a sparse file has been read.
struct Sparse {
    parts: std::vec::IntoIter<Range<u64>>,
    /// The part that is being read, or the hole before it.
    part: Range<u64>,
    position: u64,
    size: u64,
}

/// What stands next in a content.
enum Next {
    /// So many bytes of the stream.
    Stored(u64),
    /// So many zeros.
    Zeros(u64),
}

impl Content {
    /// `stored` bytes as they are.
    pub(super) const fn plain(stored: u64) -> Self {
        Self { stored, sparse: None }
    }

    /// `stored` bytes, which are the parts of a sparse file.
    pub(super) fn sparse(stored: u64, map: Map) -> Self {
        let sparse = Sparse { parts: map.parts.into_iter(), part: 0..0, position: 0, size: map.size };
        Self { stored, sparse: Some(sparse) }
    }

    fn next(&mut self) -> Next {
        let Some(sparse) = &mut self.sparse else { return Next::Stored(self.stored) };
        while sparse.position >= sparse.part.end {
            match sparse.parts.next() {
                Some(part) => sparse.part = part,
                None => return Next::Zeros(sparse.size.saturating_sub(sparse.position)),
            }
        }
        match sparse.part.start.checked_sub(sparse.position) {
            Some(hole) if hole > 0 => Next::Zeros(hole),
            _ => Next::Stored(sparse.part.end - sparse.position),
        }
    }

    fn advance(&mut self, count: u64) {
        if let Some(sparse) = &mut self.sparse {
            sparse.position = sparse.position.saturating_add(count);
        }
    }
}

/// The content of an entry. Ends with the entry; a stream that ends earlier is an error, never a short file.
pub struct Data<'a, R>(pub(super) &'a mut Reader<R>);

impl<R: Read> Read for Data<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let limit = |len: u64| usize::try_from(len).unwrap_or(usize::MAX).min(buffer.len());
        match self.0.content.next() {
            Next::Zeros(len) => {
                let count = limit(len);
                buffer.get_mut(..count).unwrap_or_default().fill(0);
                self.0.content.advance(count as u64);
                Ok(count)
            }
            Next::Stored(len) => {
                let want = limit(len);
                let Some(part) = buffer.get_mut(..want).filter(|part| !part.is_empty()) else { return Ok(0) };
                let count = self.0.stream.read(part)?;
                if count == 0 {
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, self.0.truncated().to_string()));
                }
                self.0.content.stored = self.0.content.stored.saturating_sub(count as u64);
                self.0.content.advance(count as u64);
                Ok(count)
            }
        }
    }
}

/// A stream that knows how much of it was read.
pub(super) struct Counted<R> {
    pub(super) inner: R,
    pub(super) position: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.position = self.position.saturating_add(count as u64);
        Ok(count)
    }
}
