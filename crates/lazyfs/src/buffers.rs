//! Large buffers, used again.
//!
//! A chunk passes through two of them: compressed, and inflated. Fresh memory costs a page fault and a cleared page
//! for each 4 KiB, which is a fifth of the work of fetching a chunk. So buffers come back here, as many as are needed at
//! once and no more; when nothing has been fetched for a moment they are given up.

use std::sync::{Arc, Mutex, PoisonError};

/// Buffers that are kept: a compressed one for each prefetch and an inflated one for each of two processors.
const KEPT: usize = 6;
/// Of at most so many bytes: the usual chunk of 4 MiB with what stands behind it.
const LARGEST: usize = 5 << 20;

/// The buffers that nobody uses now.
#[derive(Clone, Default)]
pub(crate) struct Buffers(Arc<Mutex<Vec<Vec<u8>>>>);

/// A buffer that comes back when it is dropped.
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    home: Buffers,
}

impl Buffers {
    fn all(&self) -> std::sync::MutexGuard<'_, Vec<Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A buffer with anything in it, perhaps nothing.
    pub(crate) fn take(&self) -> Buffer {
        Buffer { bytes: self.all().pop().unwrap_or_default(), home: self.clone() }
    }

    /// Gives up what nobody uses.
    pub(crate) fn clear(&self) {
        let buffers = std::mem::take(&mut *self.all());
        drop(buffers);
    }
}

impl Buffer {
    /// The vector itself.
    pub(crate) fn vec(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.bytes.capacity() == 0 || self.bytes.capacity() > LARGEST {
            return;
        }
        let mut all = self.home.all();
        if all.len() < KEPT {
            all.push(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back_and_neither_many_nor_huge_ones_stay() {
        let buffers = Buffers::default();
        let mut first = buffers.take();
        first.vec().resize(1000, 7);
        let place = first.as_ref().as_ptr();
        drop(first);
        let again = buffers.take();
        assert_eq!(again.as_ref().as_ptr(), place);
        let mut many: Vec<Buffer> = (0..KEPT + 5).map(|_| buffers.take()).collect();
        for buffer in &mut many {
            buffer.vec().reserve(10);
        }
        drop(many);
        assert_eq!(buffers.all().len(), KEPT);
        buffers.clear();
        let mut huge = buffers.take();
        huge.vec().reserve(LARGEST + 1);
        drop(huge);
        assert!(buffers.all().is_empty());
    }
}
