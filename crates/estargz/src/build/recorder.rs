//! Reading a tar and keeping what was read, byte for byte.
//!
//! The tar reader says what an entry is, and forgets what stands between entries: padding that is not zero, the
//! end marker, what comes behind it. A layer that shall keep its diffID needs all of it.

use std::cell::{Cell, RefCell};
use std::io::{self, Read};

/// Passes on what it reads, and keeps a copy unless it is paused. The reader on top of it must not read ahead.
pub(super) struct Recorder<R> {
    inner: RefCell<R>,
    kept: RefCell<Vec<u8>>,
    paused: Cell<bool>,
}

impl<R: Read> Recorder<R> {
    pub(super) fn new(inner: R) -> Self {
        Self { inner: RefCell::new(inner), kept: RefCell::new(Vec::new()), paused: Cell::new(false) }
    }

    /// What was read since the last call.
    pub(super) fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.kept.borrow_mut())
    }

    /// Keeps nothing of what `read` reads.
    pub(super) fn pause<T>(&self, read: impl FnOnce() -> T) -> T {
        self.paused.set(true);
        let value = read();
        self.paused.set(false);
        value
    }

    /// Reads and keeps up to `most` bytes. Answers how many: 0 at the end of the stream.
    pub(super) fn read_on(&self, most: usize) -> io::Result<usize> {
        let mut inner = self.inner.borrow_mut();
        (&mut *inner).take(most as u64).read_to_end(&mut self.kept.borrow_mut())
    }
}

impl<R: Read> Read for &Recorder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.borrow_mut().read(buffer)?;
        if !self.paused.get() {
            self.kept.borrow_mut().extend_from_slice(buffer.get(..count).unwrap_or_default());
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_while_paused_is_not_kept() {
        let recorder = Recorder::new(b"headDATApadding and the rest".as_slice());
        let mut four = [0; 4];
        (&mut &recorder).read_exact(&mut four).unwrap();
        assert_eq!(recorder.take(), b"head");
        recorder.pause(|| (&mut &recorder).read_exact(&mut four)).unwrap();
        assert_eq!(&four, b"DATA");
        (&mut &recorder).read_exact(&mut [0; 7]).unwrap();
        assert_eq!(recorder.read_on(5).unwrap(), 5);
        assert_eq!(recorder.take(), b"padding and ");
        assert_eq!(recorder.read_on(100).unwrap(), 8);
        assert_eq!(recorder.read_on(100).unwrap(), 0);
        assert_eq!(recorder.take(), b"the rest");
    }
}
