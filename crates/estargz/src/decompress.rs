//! Layers as registries have them: gzip of one or many members, zstd, or plain tar. The first bytes tell.

use std::io::{self, BufRead, BufReader, Read};

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

/// Reads what a layer inflates to.
pub enum Decompressor<R: Read> {
    /// gzip, all members.
    Gzip(Box<flate2::bufread::MultiGzDecoder<BufReader<R>>>),
    /// zstd, all frames.
    Zstd(zstd::stream::read::Decoder<'static, BufReader<R>>),
    /// As it is.
    Plain(BufReader<R>),
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
pub fn decompress<R: Read>(reader: R) -> io::Result<Decompressor<R>> {
    let mut reader = BufReader::with_capacity(128 * 1024, reader);
    Ok(match Compression::sniff(reader.fill_buf()?) {
        Compression::Gzip => Decompressor::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(reader))),
        Compression::Zstd => Decompressor::Zstd(zstd::stream::read::Decoder::with_buffer(reader)?),
        Compression::None => Decompressor::Plain(reader),
    })
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
