//! A buffer that is filled and emptied many times without its bytes being zeroed every time.

use std::io::{self, Read};

/// Bytes in use at the front of memory that stays initialised.
#[derive(Default)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    len: usize,
}

impl Buffer {
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// The bytes in use.
    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    pub(super) fn into_vec(mut self) -> Vec<u8> {
        self.bytes.truncate(self.len);
        self.bytes
    }

    /// Keeps the first `len` bytes, and the memory.
    pub(super) fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    pub(super) fn extend(&mut self, bytes: &[u8]) {
        self.grow(bytes.len()).copy_from_slice(bytes);
    }

    /// Appends `count` bytes from `reader`.
    pub(super) fn read(&mut self, reader: &mut impl Read, count: usize) -> io::Result<()> {
        reader.read_exact(self.grow(count))
    }

    /// `count` more bytes, with whatever was there before.
    pub(super) fn grow(&mut self, count: usize) -> &mut [u8] {
        let start = self.len;
        self.len += count;
        if start == 0 && self.bytes.len() < self.len {
            // The system's own zeros: what is never written costs no memory.
            self.bytes = vec![0; self.len];
        } else if self.bytes.len() < self.len {
            self.bytes.resize(self.len, 0);
        }
        self.bytes.get_mut(start..self.len).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_there_before_does_not_shine_through() {
        let mut buffer = Buffer::default();
        buffer.extend(b"pantala");
        buffer.truncate(3);
        buffer.extend(b"da");
        buffer.read(&mut b"x!".as_slice(), 1).unwrap();
        assert_eq!((buffer.bytes(), buffer.len()), (b"pandax".as_slice(), 6));
        buffer.truncate(9);
        assert_eq!(buffer.len(), 6);
        assert!(buffer.read(&mut b"x".as_slice(), 2).is_err());
    }
}
