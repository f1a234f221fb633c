//! Inflating a blob from end to end, with an eye on where its members begin.
//!
//! Every byte of the blob passes through here once: hashed as it is stored, inflated member by member (gzip)
//! or frame by frame (zstd), hashed again as it is inflated. What a TOC says about the place of a chunk,
//! "member at offset X, Y bytes into it", can be held against where that byte of the tar really was.

use std::io::{self, BufRead, Read};

use content::{Digest, Hasher};
use flate2::bufread::GzDecoder;
use zstd::stream::raw::{Decoder as ZstdDecoder, InBuffer, Operation, OutBuffer};

use super::ReadAt;
use super::track::{Start, Track};
use crate::decompress::Compression;

/// Bytes that are read at once.
const BUFFER: usize = 256 * 1024;

/// How far a blob may inflate. Deflate cannot go beyond 1032 times, zstd can; below 64 GiB nobody counts.
const MAX_RATIO: u64 = 1100;
const UNCOUNTED: u64 = 64 << 30;

/// The blob as it is stored, hashed as it passes.
struct Stored<'a> {
    blob: &'a dyn ReadAt,
    len: u64,
    track: &'a Track,
    progress: &'a dyn Fn(u64),
    /// Offset in the blob of `buffer`'s first byte.
    at: u64,
    buffer: Vec<u8>,
    used: usize,
    hasher: Hasher,
}

impl Stored<'_> {
    fn position(&self) -> u64 {
        self.at + self.used as u64
    }
}

impl BufRead for Stored<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.used >= self.buffer.len() {
            self.at += self.buffer.len() as u64;
            self.used = 0;
            let want = usize::try_from(self.len - self.at).unwrap_or(BUFFER).min(BUFFER);
            self.buffer.resize(want, 0);
            if let Err(error) = self.blob.read_exact_at(&mut self.buffer, self.at) {
                self.track.set_unreadable();
                return Err(error);
            }
            self.hasher.update(&self.buffer);
            (self.progress)(want as u64);
        }
        Ok(self.buffer.get(self.used..).unwrap_or_default())
    }

    fn consume(&mut self, count: usize) {
        self.used = (self.used + count).min(self.buffer.len());
    }
}

impl Read for Stored<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

/// What is under way.
enum State<'a> {
    Between(Stored<'a>),
    Gzip(Box<GzDecoder<Stored<'a>>>),
    Zstd(Stored<'a>),
    Plain(Stored<'a>),
    Failed,
}

/// Reads what a blob inflates to.
pub(super) struct Members<'a> {
    state: State<'a>,
    zstd: Option<ZstdDecoder<'static>>,
    compression: Option<Compression>,
    track: &'a Track,
    /// Members are remembered: there is a TOC to compare with.
    remembers: bool,
    /// The member under way gave a byte.
    gave: bool,
    limit: u64,
    hasher: Hasher,
}

/// What the blob was, known when all of it has been read.
pub(super) struct Whole {
    pub(super) digest: Digest,
    pub(super) diff_id: Digest,
    pub(super) compression: Compression,
}

impl<'a> Members<'a> {
    pub(super) fn new(
        blob: &'a dyn ReadAt,
        len: u64,
        track: &'a Track,
        remembers: bool,
        progress: &'a dyn Fn(u64),
    ) -> Self {
        let stored =
            Stored { blob, len, track, progress, at: 0, buffer: Vec::new(), used: 0, hasher: Hasher::new() };
        Self {
            state: State::Between(stored),
            zstd: None,
            compression: None,
            track,
            remembers,
            gave: false,
            limit: len.saturating_mul(MAX_RATIO).max(UNCOUNTED),
            hasher: Hasher::new(),
        }
    }

    /// Digests of everything. Only of use after the end was reached; `None` after a failure.
    pub(super) fn finish(self) -> Option<Whole> {
        let stored = match self.state {
            State::Between(stored) | State::Zstd(stored) | State::Plain(stored) => stored,
            State::Gzip(decoder) => decoder.into_inner(),
            State::Failed => return None,
        };
        Some(Whole {
            digest: stored.hasher.finish(),
            diff_id: self.hasher.finish(),
            compression: self.compression.unwrap_or(Compression::None),
        })
    }

    /// Begins the next member. `None` at the end of the blob.
    fn next(&mut self, mut stored: Stored<'a>) -> io::Result<Option<State<'a>>> {
        self.gave = false;
        self.track.set_member(stored.position());
        let mut start = [0; 4];
        let ahead = stored.fill_buf()?;
        if ahead.is_empty() {
            self.state = State::Between(stored);
            return Ok(None);
        }
        // A buffer may end inside of the four bytes; then they are fetched from the blob itself.
        if let Some(four) = ahead.first_chunk::<4>() {
            start = *four;
        } else {
            let (at, left) = (stored.position(), stored.len - stored.position());
            let part = start.get_mut(..usize::try_from(left).unwrap_or(4).min(4)).unwrap_or_default();
            stored.blob.read_exact_at(part, at).inspect_err(|_| self.track.set_unreadable())?;
        }
        let found = Compression::sniff(&start);
        if *self.compression.get_or_insert(found) != found {
            return Err(io::Error::other("what follows is compressed in another way, or not at all"));
        }
        Ok(Some(match found {
            Compression::Gzip => State::Gzip(Box::new(GzDecoder::new(stored))),
            Compression::None => State::Plain(stored),
            Compression::Zstd if start.first() == Some(&0x28) => {
                match &mut self.zstd {
                    Some(decoder) => decoder.reinit()?,
                    None => self.zstd = Some(ZstdDecoder::new()?),
                }
                State::Zstd(stored)
            }
            Compression::Zstd => {
                skip_frame(&mut stored)?;
                State::Between(stored)
            }
        }))
    }

    /// One step: some bytes, or the end of a member (0 and the state `Between`).
    fn step(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let state = match std::mem::replace(&mut self.state, State::Failed) {
            State::Between(stored) => match self.next(stored)? {
                None => return Ok(None),
                Some(state) => state,
            },
            state => state,
        };
        let (state, count) = match state {
            State::Gzip(mut decoder) => match decoder.read(buffer)? {
                0 => (State::Between(decoder.into_inner()), 0),
                count => (State::Gzip(decoder), count),
            },
            State::Zstd(mut stored) => {
                let (count, ended) = self.zstd_step(&mut stored, buffer)?;
                (if ended { State::Between(stored) } else { State::Zstd(stored) }, count)
            }
            State::Plain(mut stored) => match stored.read(buffer)? {
                0 => {
                    self.state = State::Plain(stored);
                    return Ok(None);
                }
                count => (State::Plain(stored), count),
            },
            other => (other, 0),
        };
        self.state = state;
        Ok(Some(count))
    }

    fn zstd_step(&mut self, stored: &mut Stored<'a>, buffer: &mut [u8]) -> io::Result<(usize, bool)> {
        let Some(decoder) = &mut self.zstd else { return Err(io::ErrorKind::InvalidData.into()) };
        let ahead = stored.fill_buf()?;
        let is_end = ahead.is_empty();
        let mut input = InBuffer::around(ahead);
        let mut output = OutBuffer::around(buffer);
        let hint = decoder.run(&mut input, &mut output)?;
        let (taken, count) = (input.pos(), output.pos());
        stored.consume(taken);
        if is_end && count == 0 && hint != 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok((count, hint == 0))
    }
}

impl Read for Members<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            let Some(count) = self.step(buffer)? else { return Ok(0) };
            if count == 0 {
                continue;
            }
            let at = self.track.inflated();
            if self.remembers && !self.gave {
                self.track.begin(Start { blob: self.track.member(), inflated: at })?;
            }
            self.gave = true;
            self.hasher.update(buffer.get(..count).unwrap_or_default());
            self.track.gave(count as u64);
            if at > self.limit {
                self.track.set_bomb();
                return Err(io::Error::other("it inflates beyond all measure"));
            }
            return Ok(count);
        }
    }
}

/// sha256 of a blob that could not be inflated to its end.
pub(super) fn hash(blob: &dyn ReadAt, len: u64) -> io::Result<Digest> {
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; BUFFER];
    let mut at = 0;
    while at < len {
        let want = usize::try_from(len - at).unwrap_or(BUFFER).min(BUFFER);
        let part = buffer.get_mut(..want).unwrap_or_default();
        blob.read_exact_at(part, at)?;
        hasher.update(part);
        at += want as u64;
    }
    Ok(hasher.finish())
}

/// Skips a zstd frame that holds no data: four bytes of magic, four of length, and so many more.
fn skip_frame(stored: &mut Stored<'_>) -> io::Result<()> {
    let mut head = [0; 8];
    stored.read_exact(&mut head)?;
    let len = head.last_chunk::<4>().map_or(0, |len| u64::from(u32::from_le_bytes(*len)));
    match io::copy(&mut stored.take(len), &mut io::sink())? {
        skipped if skipped == len => Ok(()),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn read(blob: &[u8]) -> (io::Result<Vec<u8>>, Vec<Start>) {
        let track = Track::default();
        let mut members = Members::new(&blob, blob.len() as u64, &track, true, &|_| ());
        let mut out = Vec::new();
        let outcome = members.read_to_end(&mut out).map(|_| out.clone());
        if outcome.is_ok() {
            let whole = members.finish().unwrap();
            assert_eq!((whole.digest, whole.diff_id), (Digest::of(blob), Digest::of(&out)));
        }
        let starts = track.starts();
        (outcome, starts)
    }

    #[test]
    fn members_are_told_apart_and_empty_ones_do_not_count() {
        let parts = [gzip(b"pan"), gzip(b""), gzip(b"tala")];
        let (data, starts) = read(&parts.concat());
        assert_eq!(data.unwrap(), b"pantala");
        let third = (parts[0].len() + parts[1].len()) as u64;
        assert_eq!(starts, [Start { blob: 0, inflated: 0 }, Start { blob: third, inflated: 3 }]);
    }

    #[test]
    fn frames_are_told_apart_and_skippable_ones_give_nothing() {
        let skippable = [0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 9, 9];
        let frame = |data: &[u8]| zstd::encode_all(data, 3).unwrap();
        let parts = [frame(b"pan"), skippable.to_vec(), frame(&vec![7; 1 << 20])];
        let (data, starts) = read(&parts.concat());
        assert_eq!(data.unwrap().len(), 3 + (1 << 20));
        let third = (parts[0].len() + skippable.len()) as u64;
        assert_eq!(starts, [Start { blob: 0, inflated: 0 }, Start { blob: third, inflated: 3 }]);
        assert_eq!(read(b"plain tar").0.unwrap(), b"plain tar");
    }

    #[test]
    fn what_is_cut_off_or_mixed_is_an_error() {
        let zstd = zstd::encode_all([7; 1000].as_slice(), 3).unwrap();
        for bad in [
            gzip(b"pantala")[..12].to_vec(),
            zstd[..zstd.len() - 1].to_vec(),
            [0x50, 0x2a, 0x4d, 0x18, 20, 0, 0, 0, 9, 9].to_vec(),
            [gzip(b"pan"), zstd].concat(),
            [gzip(b"pan"), b"x".to_vec()].concat(),
        ] {
            assert!(read(&bad).0.is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_bomb_is_not_read_to_its_end() {
        let bomb = zstd::encode_all(vec![0; 1 << 20].as_slice(), 3).unwrap();
        let (track, blob) = (Track::default(), bomb.as_slice());
        let mut members = Members::new(&blob, blob.len() as u64, &track, true, &|_| ());
        assert_eq!(members.limit, UNCOUNTED, "a small blob may inflate a good deal");
        members.limit = 1000;
        assert!(io::copy(&mut members, &mut io::sink()).is_err());
        assert!(track.is_bomb());
        assert!(track.inflated() < 1 << 20);
    }
}
