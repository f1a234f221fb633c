//! Layers as registries have them: gzip of one or many members, zstd, or plain tar. The first bytes tell.

use std::io::{self, BufRead, BufReader, Chain, Cursor, Read};

/// Largest zstd window: 128 MiB, which is what `zstd --ultra -22` and `zstd --long` use. A frame can ask for
/// 3.75 TiB.
pub(crate) const MAX_WINDOW_LOG: u32 = 27;

/// How a layer is compressed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Compression {
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
    /// Not at all.
    None,
}

impl Compression {
    /// What a stream that begins with `start` is compressed with. Four bytes are enough.
    pub fn sniff(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            // The second is a skippable frame, which zstd:chunked blobs may begin with.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::None,
        }
    }
}

/// A stream from its beginning, whose first bytes were looked at.
type Sniffed<R> = BufReader<Chain<Cursor<Vec<u8>>, R>>;

/// Reads what a layer inflates to.
pub enum Decompressor<R: Read> {
    /// gzip, all members.
    Gzip(Box<flate2::bufread::MultiGzDecoder<Sniffed<R>>>),
    /// zstd, all frames.
    Zstd(zstd::stream::read::Decoder<'static, Sniffed<R>>),
    /// As it is.
    Plain(Sniffed<R>),
}

impl<R: Read> Decompressor<R> {
    /// How the stream is compressed.
    pub const fn compression(&self) -> Compression {
        match self {
            Self::Gzip(_) => Compression::Gzip,
            Self::Zstd(_) => Compression::Zstd,
            Self::Plain(_) => Compression::None,
        }
    }
}

impl<R: Read> Read for Decompressor<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Gzip(inner) => inner.read(buffer),
            Self::Zstd(inner) => inner.read(buffer),
            Self::Plain(inner) => inner.read(buffer),
        }
    }
}

/// Inflates `reader`, however it is compressed. Memory is bounded: zstd windows beyond 128 MiB are refused.
///
/// # Errors
/// What reading the first bytes says.
pub fn decompress<R: Read>(mut reader: R) -> io::Result<Decompressor<R>> {
    // However few bytes a slow stream gives at first: four of them tell.
    let mut start = Vec::with_capacity(4);
    (&mut reader).take(4).read_to_end(&mut start)?;
    let compression = Compression::sniff(&start);
    let reader = BufReader::with_capacity(128 * 1024, Cursor::new(start).chain(reader));
    Ok(match compression {
        Compression::Gzip => Decompressor::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(reader))),
        Compression::Zstd => Decompressor::Zstd(zstd_reader(reader)?),
        Compression::None => Decompressor::Plain(reader),
    })
}

/// Reads what the zstd frames in `reader` inflate to.
pub(crate) fn zstd_reader<R: BufRead>(reader: R) -> io::Result<zstd::stream::read::Decoder<'static, R>> {
    let mut decoder = zstd::stream::read::Decoder::with_buffer(reader)?;
    decoder.window_log_max(MAX_WINDOW_LOG)?;
    Ok(decoder)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn inflate(bytes: &[u8]) -> (Compression, Vec<u8>) {
        let mut reader = decompress(bytes).unwrap();
        let mut out = Vec::new();
        reader.read_to_end(&mut out).unwrap();
        (reader.compression(), out)
    }

    #[test]
    fn a_slow_stream_is_the_same_stream() {
        struct Slow<'a>(&'a [u8]);
        impl Read for Slow<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                let one = buffer.len().min(1);
                self.0.read(&mut buffer[..one])
            }
        }
        let zstd = zstd::encode_all(b"pantala".as_slice(), 3).unwrap();
        let mut reader = decompress(Slow(&zstd)).unwrap();
        assert_eq!(reader.compression(), Compression::Zstd);
        let mut out = Vec::new();
        reader.read_to_end(&mut out).unwrap();
        assert_eq!(out, b"pantala");
    }

    #[test]
    fn many_members_and_frames_are_one_stream() {
        let gzip = |data: &[u8]| {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(data).unwrap();
            encoder.finish().unwrap()
        };
        assert_eq!(
            inflate(&[gzip(b"pan"), gzip(b""), gzip(b"tala")].concat()),
            (Compression::Gzip, b"pantala".to_vec())
        );
        let zstd = |data: &[u8]| zstd::encode_all(data, 3).unwrap();
        let skippable = [0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 9, 9];
        assert_eq!(
            inflate(&[skippable.as_slice(), &zstd(b"pan"), &zstd(b"tala")].concat()),
            (Compression::Zstd, b"pantala".to_vec())
        );
        assert_eq!(inflate(b"pantala"), (Compression::None, b"pantala".to_vec()));
        assert_eq!(inflate(b""), (Compression::None, Vec::new()));
    }
}
