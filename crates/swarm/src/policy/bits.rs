//! A bitmap of pieces.

/// A set of piece numbers below a fixed limit, one bit each.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bits {
    words: Vec<u64>,
    len: u32,
}

impl Bits {
    /// The empty set below `len`.
    pub fn new(len: u32) -> Self {
        Self { words: vec![0; len.div_ceil(64) as usize], len }
    }

    /// Whether `piece` is in it.
    pub fn has(&self, piece: u32) -> bool {
        self.words.get(piece as usize / 64).is_some_and(|word| word >> (piece % 64) & 1 == 1)
    }

    /// Adds `piece`; `true` if it is new. Beyond the limit nothing happens.
    pub fn set(&mut self, piece: u32) -> bool {
        if piece >= self.len {
            return false;
        }
        let Some(word) = self.words.get_mut(piece as usize / 64) else { return false };
        let bit = 1 << (piece % 64);
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    /// Takes `piece` away; `true` if it was there.
    pub fn clear(&mut self, piece: u32) -> bool {
        let Some(word) = self.words.get_mut(piece as usize / 64) else { return false };
        let bit = 1 << (piece % 64);
        let was = *word & bit != 0;
        *word &= !bit;
        was
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// Everything in it, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        ones(self.words.iter().copied())
    }

    /// Everything that is in both, ascending.
    pub fn both<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = u32> + 'a {
        ones(self.words.iter().zip(&other.words).map(|(a, b)| a & b))
    }
}

fn ones(words: impl Iterator<Item = u64>) -> impl Iterator<Item = u32> {
    words.zip(0_u32..).flat_map(|(word, at)| {
        let mut rest = word;
        std::iter::from_fn(move || {
            let bit = rest.trailing_zeros();
            (rest != 0).then(|| {
                rest &= rest - 1;
                at * 64 + bit
            })
        })
    })
}
