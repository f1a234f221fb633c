//! tar-split data: all of a tar but its files' content, from which and from the files the very same tar can be
//! put together again.
//!
//! It is a row of JSON objects, one a line, numbered from 0. Type 2 is a run of bytes as they stand in the tar
//! (headers, padding, what ends it), base64; type 1 is a file's content, by name, size and CRC-64. An entry
//! without content has an object of type 1 too. Each run but the last begins with the padding of the file
//! before it and holds the headers of exactly one entry: readers of containers/storage count on that.

use std::io::{self, Write as _};
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::toc::json::quote;

/// Bytes of tar-split data beyond which nobody reads or writes it: those of a layer of more than a million
/// files.
pub(crate) const MAX_LEN: u64 = 1 << 30;

/// Highest level of zstd whose window a reader with modest memory takes.
const MAX_LEVEL: u8 = 19;

/// Writes tar-split data into a zstd frame in memory. Errors are kept until the end.
pub(super) struct TarSplit {
    encoder: io::Result<zstd::stream::write::Encoder<'static, Vec<u8>>>,
    position: u64,
    /// Bytes of JSON.
    len: u64,
    line: Vec<u8>,
}

impl TarSplit {
    /// `level` is one of zstd.
    pub(super) fn new(level: u8) -> Self {
        let encoder = zstd::stream::write::Encoder::new(Vec::new(), level.min(MAX_LEVEL).into());
        Self { encoder, position: 0, len: 0, line: Vec::new() }
    }

    /// Bytes as they stand in the tar.
    pub(super) fn segment(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.line.extend_from_slice(b"{\"type\":2,\"payload\":\"");
            self.line.extend_from_slice(BASE64.encode(bytes).as_bytes());
            self.line.push(b'"');
            self.end_line();
        }
    }

    /// An entry: its name and, if it has content, how much and with which checksum.
    pub(super) fn file(&mut self, name: &str, content: Option<(u64, u64)>) {
        self.line.extend_from_slice(b"{\"type\":1");
        if !name.is_empty() {
            self.line.extend_from_slice(b",\"name\":");
            quote(&mut self.line, name);
        }
        if let Some((size, crc)) = content {
            let crc = BASE64.encode(crc.to_be_bytes());
            self.line.extend_from_slice(format!(",\"size\":{size},\"payload\":\"{crc}\"").as_bytes());
        } else {
            self.line.extend_from_slice(b",\"payload\":null");
        }
        self.end_line();
    }

    fn end_line(&mut self) {
        self.line.extend_from_slice(format!(",\"position\":{}}}\n", self.position).as_bytes());
        self.position += 1;
        self.len += self.line.len() as u64;
        if let Ok(encoder) = &mut self.encoder
            && let Err(error) = encoder.write_all(&self.line)
        {
            self.encoder = Err(error);
        }
        self.line.clear();
    }

    /// The zstd frame, and how many bytes it inflates to.
    pub(super) fn finish(self) -> io::Result<(Vec<u8>, u64)> {
        Ok((self.encoder?.finish()?, self.len))
    }
}

/// The reversed polynomial of ISO 3309, without its highest term.
const POLYNOMIAL: u64 = 0xd800_0000_0000_0000;

/// `[n][byte]`: what `byte` does to the checksum when `n` bytes have come after it.
static TABLES: LazyLock<[[u64; 256]; 8]> = LazyLock::new(|| {
    let first: [u64; 256] = std::array::from_fn(|byte| {
        (0..8).fold(byte as u64, |crc, _| if crc & 1 == 1 { (crc >> 1) ^ POLYNOMIAL } else { crc >> 1 })
    });
    let mut table = first;
    std::array::from_fn(|later| {
        if later > 0 {
            table = table.map(|crc| (crc >> 8) ^ lookup(&first, crc));
        }
        table
    })
});

fn lookup(table: &[u64; 256], crc: u64) -> u64 {
    let [byte, ..] = crc.to_le_bytes();
    table.get(usize::from(byte)).copied().unwrap_or(0)
}

/// CRC-64 of ISO 3309, eight bytes at a time.
#[derive(Clone, Copy)]
pub(crate) struct Crc64(u64);

impl Crc64 {
    pub(crate) const fn new() -> Self {
        Self(u64::MAX)
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        let [one, two, three, four, five, six, seven, eight] = &*TABLES;
        let (words, rest) = bytes.as_chunks::<8>();
        let mut crc = self.0;
        for word in words {
            let mixed = crc ^ u64::from_le_bytes(*word);
            crc = lookup(eight, mixed)
                ^ lookup(seven, mixed >> 8)
                ^ lookup(six, mixed >> 16)
                ^ lookup(five, mixed >> 24)
                ^ lookup(four, mixed >> 32)
                ^ lookup(three, mixed >> 40)
                ^ lookup(two, mixed >> 48)
                ^ lookup(one, mixed >> 56);
        }
        self.0 = rest.iter().fold(crc, |crc, byte| (crc >> 8) ^ lookup(one, crc ^ u64::from(*byte)));
    }

    pub(crate) const fn finish(self) -> u64 {
        !self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crc(bytes: &[u8]) -> u64 {
        let mut crc = Crc64::new();
        crc.update(bytes);
        crc.finish()
    }

    #[test]
    fn the_checksum_is_the_one_of_iso_3309() {
        // The check value of CRC-64/GO-ISO.
        assert_eq!(crc(b"123456789"), 0xb909_56c7_75a4_1001);
        assert_eq!(crc(b""), 0);
        let bytes: Vec<u8> = (0..=255).cycle().take(1000).collect();
        for cut in [0, 1, 7, 8, 9, 500, 999] {
            let mut parts = Crc64::new();
            parts.update(&bytes[..cut]);
            parts.update(&bytes[cut..]);
            assert_eq!(parts.finish(), crc(&bytes), "cut at {cut}");
        }
    }

    #[test]
    fn lines_look_as_go_writes_them() {
        let mut split = TarSplit::new(3);
        split.segment(b"\0\xff");
        split.segment(b"");
        split.file("a<b", Some((5, crc(b"hello"))));
        split.file("", None);
        let (frame, len) = split.finish().unwrap();
        let lines = zstd::decode_all(frame.as_slice()).unwrap();
        assert_eq!(lines.len() as u64, len);
        let crc = BASE64.encode(crc(b"hello").to_be_bytes());
        let expected = format!(
            "{{\"type\":2,\"payload\":\"AP8=\",\"position\":0}}\n\
             {{\"type\":1,\"name\":\"a\\u003cb\",\"size\":5,\"payload\":\"{crc}\",\"position\":1}}\n\
             {{\"type\":1,\"payload\":null,\"position\":2}}\n"
        );
        assert_eq!(String::from_utf8(lines).unwrap(), expected);
    }
}
