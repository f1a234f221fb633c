//! A set of chunk numbers that only grows while it is used, readable without a lock.

use std::sync::atomic::{AtomicU64, Ordering};

/// One bit per chunk. Setting publishes everything written before; testing sees it.
pub(crate) struct Bitmap {
    words: Vec<AtomicU64>,
    len: usize,
}

impl Bitmap {
    /// `len` bits, none set.
    pub(crate) fn new(len: usize) -> Self {
        Self { words: (0..len.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(), len }
    }

    /// Reads what [`Bitmap::to_bytes`] made. Bits beyond `len` are ignored, missing bytes are zero.
    pub(crate) fn from_bytes(len: usize, bytes: &[u8]) -> Self {
        let bitmap = Self::new(len);
        for bit in 0..len {
            if bytes.get(bit / 8).is_some_and(|byte| byte >> (bit % 8) & 1 == 1) {
                bitmap.set(bit);
            }
        }
        bitmap
    }

    /// The bits as bytes, lowest bit first.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> =
            self.words.iter().flat_map(|word| word.load(Ordering::Acquire).to_le_bytes()).collect();
        bytes.truncate(self.len.div_ceil(8));
        bytes
    }

    /// Whether `bit` is set. A bit that does not exist is not.
    pub(crate) fn get(&self, bit: usize) -> bool {
        self.words.get(bit / 64).is_some_and(|word| word.load(Ordering::Acquire) >> (bit % 64) & 1 == 1)
    }

    /// Sets `bit`, and says whether it was not set before.
    pub(crate) fn set(&self, bit: usize) -> bool {
        if bit >= self.len {
            return false;
        }
        let mask = 1 << (bit % 64);
        self.words.get(bit / 64).is_some_and(|word| word.fetch_or(mask, Ordering::AcqRel) & mask == 0)
    }

    /// Clears `bit`, and says whether it was set before.
    pub(crate) fn clear(&self, bit: usize) -> bool {
        let mask = 1 << (bit % 64);
        self.words.get(bit / 64).is_some_and(|word| word.fetch_and(!mask, Ordering::AcqRel) & mask != 0)
    }

    /// Sets every bit that is set in `bytes`, which [`Bitmap::to_bytes`] made of as many bits.
    pub(crate) fn merge(&self, bytes: &[u8]) {
        for (word, bytes) in self.words.iter().zip(bytes.chunks(8)) {
            let mut bits = [0; 8];
            if let Some(bits) = bits.get_mut(..bytes.len()) {
                bits.copy_from_slice(bytes);
            }
            word.fetch_or(u64::from_le_bytes(bits), Ordering::AcqRel);
        }
    }

    /// Whether every bit is set.
    pub(crate) fn is_full(&self) -> bool {
        let set: u32 = self.words.iter().map(|word| word.load(Ordering::Acquire).count_ones()).sum();
        set as usize == self.len
    }

    /// The bits that are set, ascending.
    pub(crate) fn ones(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.len).filter(|bit| self.get(*bit))
    }

    /// Number of bits.
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_survive_the_way_through_bytes() {
        for len in [0, 1, 7, 8, 9, 63, 64, 65, 1000] {
            let bitmap = Bitmap::new(len);
            for bit in (0..len).step_by(3) {
                assert!(bitmap.set(bit));
                assert!(!bitmap.set(bit));
            }
            let bytes = bitmap.to_bytes();
            assert_eq!(bytes.len(), len.div_ceil(8));
            let again = Bitmap::from_bytes(len, &bytes);
            assert!(again.ones().eq((0..len).step_by(3)));
        }
    }

    #[test]
    fn bits_that_do_not_exist_are_never_set() {
        let bitmap = Bitmap::from_bytes(3, &[0xff, 0xff]);
        assert_eq!(bitmap.ones().count(), 3);
        assert!(!bitmap.set(3));
        assert!(!bitmap.get(3) && !bitmap.get(100_000));
    }
}
