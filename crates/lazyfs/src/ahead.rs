//! Readahead: what a reader will want next, guessed from what it wanted so far.
//!
//! The data file holds files in the order in which they lie in the blob, so "further on in the data file"
//! means the rest of a large file and the neighbours of a small one alike: one rule crosses chunk and file
//! borders. A read that goes on where an earlier one stopped belongs to its stream. As much as a stream has
//! read is fetched ahead of it (more once it has read [`SURE`]), so that the window doubles as long as the guess is
//! right, up to [`MAX_WINDOW`]. A read that goes on nowhere starts a new stream, and until that has read
//! [`MIN_WINDOW`] nothing is fetched: random readers pay nothing. Whoever reads a large file to its end has
//! said little about the files behind it, so that beyond the file the window is [`MAX_BEYOND`] at most, and less if
//! such guesses were wrong so far.

use content::ByteRange;

/// Distinct streams that are followed. Two per core of a small node, and few enough to scan per read.
const STREAMS: usize = 8;
/// How far from the end of a stream a read may begin. The kernel's readahead sends several reads of
/// 128 KiB at once, in any order; small neighbours are padded to 4 KiB each.
const SLACK: u64 = 256 * 1024;
/// What a stream must have read before anything is fetched for it: two of the kernel's reads.
const MIN_WINDOW: u64 = 256 * 1024;
/// Largest window: at 200 Mbit/s and threefold compression about half a second.
const MAX_WINDOW: u64 = 32 * 1024 * 1024;
/// Whoever has read so much in order goes on: from here on the window grows twice as fast, so that a few chunks of the
/// usual 4 MiB are under way before the reader has to wait for the next.
const SURE: u64 = 4 * 1024 * 1024;
/// How far a window reaches beyond the end of the file that is being read.
const MAX_BEYOND: u64 = 1024 * 1024;

#[derive(Clone, Copy)]
struct Stream {
    start: u64,
    end: u64,
    /// Up to here everything was asked for already.
    asked: u64,
}

/// The streams of one layer, the latest last.
#[derive(Default)]
pub(crate) struct Ahead(Vec<Stream>);

impl Ahead {
    /// Notes that bytes `read` of the data file are wanted, of a file that ends at `file_end`, and says which
    /// bytes are likely to be next, at most `beyond` of them behind the file. Each byte is named once per stream.
    pub(crate) fn observe(&mut self, read: ByteRange, file_end: u64, beyond: u64) -> Option<ByteRange> {
        let near = |stream: &Stream| {
            read.start <= stream.end.saturating_add(SLACK) && read.end.saturating_add(SLACK) >= stream.end
        };
        let Some(at) = self.0.iter().rposition(near) else {
            if self.0.len() == STREAMS {
                self.0.remove(0);
            }
            self.0.push(Stream { start: read.start, end: read.end, asked: read.end });
            return None;
        };
        let mut stream = self.0.remove(at);
        let mut next = None;
        if read.end > stream.end {
            stream.end = read.end;
            let read_so_far = stream.end.saturating_sub(stream.start);
            let window = read_so_far.saturating_add(read_so_far.saturating_sub(SURE)).min(MAX_WINDOW);
            let limit = file_end.saturating_add(beyond.min(MAX_BEYOND));
            let end = read.end.saturating_add(window).min(limit);
            let wanted = ByteRange::new(stream.asked.max(read.end), end);
            // Asking by halves of the window keeps requests large.
            let is_worth_it = wanted.len() >= window / 2 || (end == limit && !wanted.is_empty());
            if window >= MIN_WINDOW && is_worth_it {
                stream.asked = wanted.end;
                next = Some(wanted);
            }
        }
        self.0.push(stream);
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_random_reader_gets_no_readahead() {
        let mut ahead = Ahead::default();
        for at in [50, 10, 30, 90, 70, 20, 60, 80, 40, 0] {
            assert_eq!(ahead.observe(ByteRange::at(at << 30, 131_072), u64::MAX, MAX_BEYOND), None);
        }
    }

    #[test]
    fn a_sequential_reader_is_ahead_of_itself_and_nothing_is_named_twice() {
        let mut ahead = Ahead::default();
        let mut named = content::RangeSet::new();
        let step = 131_072;
        for at in (0..64u64 << 20).step_by(step) {
            if let Some(next) = ahead.observe(ByteRange::at(at, step as u64), 64 << 20, MAX_BEYOND) {
                assert!(named.intersect(next).is_empty(), "{next} was named twice");
                named.insert(next);
            }
        }
        assert!(named.contains(ByteRange::new(4 << 20, 65 << 20)), "{named:?}");
        assert!(!named.contains(ByteRange::at(65 << 20, 1)), "fetched far beyond the file: {named:?}");
    }

    #[test]
    fn two_readers_at_once_do_not_disturb_each_other() {
        let mut ahead = Ahead::default();
        let mut named = 0;
        for at in (0..8u64 << 20).step_by(131_072) {
            named += usize::from(ahead.observe(ByteRange::at(at, 131_072), u64::MAX, MAX_BEYOND).is_some());
            named += usize::from(
                ahead.observe(ByteRange::at((1 << 40) + at, 131_072), u64::MAX, MAX_BEYOND).is_some(),
            );
        }
        assert!(named > 4);
        assert!(ahead.0.len() == 2);
    }

    #[test]
    fn reads_that_arrive_out_of_order_are_one_stream() {
        let mut ahead = Ahead::default();
        for at in [1u64, 0, 3, 2, 5, 4] {
            ahead.observe(ByteRange::at(at * 131_072, 131_072), u64::MAX, MAX_BEYOND);
        }
        assert_eq!(ahead.0.len(), 1);
    }
}
