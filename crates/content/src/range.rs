//! Half-open byte ranges and sets of them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Bytes `start..end` of a content; `end` is not included.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ByteRange {
    /// First byte.
    pub start: u64,
    /// The byte after the last.
    pub end: u64,
}

impl ByteRange {
    /// Bytes `start..end`. A range that would end before it starts is empty at `start`.
    pub const fn new(start: u64, end: u64) -> Self {
        Self { start, end: if end < start { start } else { end } }
    }

    /// `len` bytes from `start`, cut at the largest offset that exists.
    pub const fn at(start: u64, len: u64) -> Self {
        Self { start, end: start.saturating_add(len) }
    }

    /// Number of bytes.
    pub const fn len(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// Whether there is no byte in it.
    pub const fn is_empty(&self) -> bool {
        self.end <= self.start
    }

    /// Whether every byte of `other` is in `self`.
    pub const fn contains(&self, other: &Self) -> bool {
        other.is_empty() || (self.start <= other.start && other.end <= self.end)
    }

    /// The bytes that both have; empty if there are none.
    #[must_use]
    pub fn intersect(&self, other: &Self) -> Self {
        Self::new(self.start.max(other.start), self.end.min(other.end))
    }
}

impl fmt::Debug for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A set of bytes (or pieces), kept as sorted ranges that neither touch nor overlap.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RangeSet(Vec<ByteRange>);

impl RangeSet {
    /// The empty set.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds `range`.
    pub fn insert(&mut self, range: ByteRange) {
        if range.is_empty() {
            return;
        }
        // Everything that touches `range` becomes one range with it.
        let first = self.0.partition_point(|have| have.end < range.start);
        let last = self.0.partition_point(|have| have.start <= range.end);
        let start =
            self.0.get(first).filter(|_| first < last).map_or(range.start, |r| r.start.min(range.start));
        let end = last
            .checked_sub(1)
            .filter(|&i| i >= first)
            .and_then(|i| self.0.get(i))
            .map_or(range.end, |r| r.end.max(range.end));
        self.0.splice(first..last, [ByteRange::new(start, end)]);
    }

    /// Takes `range` away.
    pub fn remove(&mut self, range: ByteRange) {
        if range.is_empty() {
            return;
        }
        let first = self.0.partition_point(|have| have.end <= range.start);
        let last = self.0.partition_point(|have| have.start < range.end);
        let rest: Vec<ByteRange> = self
            .0
            .get(first..last)
            .unwrap_or_default()
            .iter()
            .flat_map(|have| [ByteRange::new(have.start, range.start), ByteRange::new(range.end, have.end)])
            .filter(|part| !part.is_empty())
            .collect();
        self.0.splice(first..last, rest);
    }

    /// Adds all of `other`.
    pub fn extend(&mut self, other: &Self) {
        for range in &other.0 {
            self.insert(*range);
        }
    }

    /// The ranges, ascending.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = ByteRange> + '_ {
        self.0.iter().copied()
    }

    /// Number of bytes in the set.
    pub fn len(&self) -> u64 {
        self.0.iter().map(ByteRange::len).sum()
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether every byte of `range` is in the set.
    pub fn contains(&self, range: ByteRange) -> bool {
        if range.is_empty() {
            return true;
        }
        let at = self.0.partition_point(|have| have.end <= range.start);
        self.0.get(at).is_some_and(|have| have.contains(&range))
    }

    /// The parts of `range` that are not in the set.
    #[must_use]
    pub fn missing(&self, range: ByteRange) -> Self {
        let mut rest = Self::new();
        rest.insert(range);
        for have in &self.0 {
            rest.remove(*have);
        }
        rest
    }

    /// The parts of `range` that are in the set.
    #[must_use]
    pub fn intersect(&self, range: ByteRange) -> Self {
        Self(self.0.iter().map(|have| have.intersect(&range)).filter(|part| !part.is_empty()).collect())
    }
}

impl FromIterator<ByteRange> for RangeSet {
    fn from_iter<I: IntoIterator<Item = ByteRange>>(ranges: I) -> Self {
        let mut set = Self::new();
        for range in ranges {
            set.insert(range);
        }
        set
    }
}

impl fmt::Debug for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.0).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn bytes_of(set: &RangeSet) -> BTreeSet<u64> {
        set.iter().flat_map(|range| range.start..range.end).collect()
    }

    fn is_canonical(set: &RangeSet) -> bool {
        set.0.windows(2).all(|pair| pair[0].end < pair[1].start) && set.0.iter().all(|r| !r.is_empty())
    }

    #[test]
    fn touching_ranges_become_one() {
        let set: RangeSet =
            [ByteRange::new(0, 4), ByteRange::new(8, 12), ByteRange::new(4, 8)].into_iter().collect();
        assert_eq!(set.iter().collect::<Vec<_>>(), [ByteRange::new(0, 12)]);
    }

    proptest! {
        /// The model is a set of single bytes; every operation must agree with it.
        #[test]
        fn a_range_set_is_a_set_of_bytes(ops in prop::collection::vec((any::<bool>(), 0u64..64, 0u64..16), 0..40), probe in (0u64..64, 0u64..16)) {
            let mut set = RangeSet::new();
            let mut model = BTreeSet::new();
            for (add, start, len) in ops {
                let range = ByteRange::at(start, len);
                if add {
                    set.insert(range);
                    model.extend(range.start..range.end);
                } else {
                    set.remove(range);
                    model.retain(|byte| !(range.start..range.end).contains(byte));
                }
                prop_assert!(is_canonical(&set), "{set:?}");
                prop_assert_eq!(&bytes_of(&set), &model);
                prop_assert_eq!(set.len(), model.len() as u64);
            }
            let range = ByteRange::at(probe.0, probe.1);
            let inside: BTreeSet<u64> = (range.start..range.end).filter(|b| model.contains(b)).collect();
            prop_assert_eq!(set.contains(range), inside.len() as u64 == range.len());
            prop_assert_eq!(bytes_of(&set.intersect(range)), inside.clone());
            let outside: BTreeSet<u64> = (range.start..range.end).filter(|b| !model.contains(b)).collect();
            prop_assert_eq!(bytes_of(&set.missing(range)), outside);
        }
    }
}
