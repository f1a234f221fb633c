//! Pieces of which tricks are made.

use std::io::{Read, Write as _};

use content::Digest;
use estargz::footer::{Footer, HiddenFrame, SKIPPABLE_MAGIC};
use serde_json::{Value, json};

pub const JSON: &[u8] = br#"{"version":1,"entries":[]}"#;

/// Where the payload of all tables here ends.
pub const PAYLOAD_END: u64 = 1000;

pub fn gzip(mut data: impl Read) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::copy(&mut data, &mut encoder).unwrap();
    encoder.finish().unwrap()
}

/// A frame of so many zeros that wants a window of `2^log` bytes.
pub fn zstd_with_window(log: u32, len: u64) -> Vec<u8> {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    encoder.set_parameter(zstd::zstd_safe::CParameter::WindowLog(log)).unwrap();
    std::io::copy(&mut std::io::repeat(0).take(len), &mut encoder).unwrap();
    encoder.finish().unwrap()
}

/// 10 GiB of zeros: a member of 64 MiB, over and over. 10 MB.
pub fn gzip_bomb() -> Vec<u8> {
    gzip(std::io::repeat(0).take(64 << 20)).repeat(160)
}

/// 10 GiB of zeros in a megabyte.
pub fn zstd_bomb() -> Vec<u8> {
    zstd_with_window(20, 64 << 20).repeat(160)
}

pub fn skippable(data: &[u8]) -> Vec<u8> {
    [&SKIPPABLE_MAGIC, u32::try_from(data.len()).unwrap().to_le_bytes().as_slice(), data].concat()
}

/// A tar header with these fields, written as they are given.
pub fn header(name: &str, kind: u8, size: &[u8]) -> Vec<u8> {
    let mut header = vec![0_u8; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..108].copy_from_slice(b"0000644\0");
    header[124..124 + size.len()].copy_from_slice(size);
    header[156] = kind;
    header[257..265].copy_from_slice(b"ustar\x0000");
    signed(header)
}

/// Sets the check sum.
pub fn signed(mut header: Vec<u8>) -> Vec<u8> {
    header[148..156].fill(b' ');
    let sum: u64 = header.iter().map(|byte| u64::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

pub fn octal(size: usize) -> Vec<u8> {
    format!("{size:011o}").into_bytes()
}

/// An entry with data, padded.
pub fn entry(name: &str, kind: u8, data: &[u8]) -> Vec<u8> {
    let mut bytes = [&header(name, kind, &octal(data.len())), data].concat();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// A link.
pub fn link(name: &str, kind: u8, target: &str) -> Vec<u8> {
    let mut bytes = header(name, kind, &octal(0));
    bytes[157..157 + target.len()].copy_from_slice(target.as_bytes());
    signed(bytes)
}

/// A PAX header with these records.
pub fn pax(records: &[(&str, &str)]) -> Vec<u8> {
    let mut data = String::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let len = (rest + 1..rest + 20).find(|len| len.to_string().len() + rest == *len).unwrap();
        data.extend([len.to_string().as_str(), " ", key, "=", value, "\n"]);
    }
    entry("pax", b'x', data.as_bytes())
}

/// The two blocks that end a tar.
pub fn end() -> Vec<u8> {
    vec![0; 1024]
}

/// The member that holds a TOC.
pub fn toc_member(json: &[u8]) -> Vec<u8> {
    gzip([entry(estargz::TOC_NAME, b'0', json), end()].concat().as_slice())
}

/// An eStargz blob of these parts. The footer says that the TOC begins behind the first `payload` of them.
pub fn blob(parts: &[&[u8]], payload: usize) -> Vec<u8> {
    let toc_offset = parts[..payload].iter().map(|part| part.len() as u64).sum();
    [parts.concat(), Footer::Estargz { toc_offset }.to_bytes()].concat()
}

/// A zstd:chunked blob: 10 bytes of payload, the skippable frame `hidden`, and a footer in which `change` may
/// lie.
pub fn zstd_blob(frame: &[u8], len: u64, change: impl FnOnce(&mut HiddenFrame)) -> Vec<u8> {
    let mut manifest = HiddenFrame { offset: 18, compressed_len: frame.len() as u64, len };
    change(&mut manifest);
    [vec![7; 10], skippable(frame), Footer::ZstdChunked(manifest).to_bytes()].concat()
}

pub fn digest() -> String {
    Digest::of(b"").to_string()
}

pub fn dir(name: &str) -> Value {
    json!({"name": name, "type": "dir", "mode": 0o755})
}

pub fn reg(name: &str, size: u64, offset: u64) -> Value {
    json!({"name": name, "type": "reg", "size": size, "offset": offset, "chunkDigest": digest()})
}

pub fn hardlink(name: &str, target: &str) -> Value {
    json!({"name": name, "type": "hardlink", "linkName": target})
}

pub fn with(mut entry: Value, changes: Value) -> Value {
    let Value::Object(changes) = changes else { panic!("changes of fields") };
    for (key, value) in changes {
        entry[key] = value;
    }
    entry
}

/// A document with these entries.
pub fn document(entries: &[Value]) -> Vec<u8> {
    serde_json::to_vec(&json!({"version": 1, "entries": entries})).unwrap()
}

/// A document of `count` entries that `write` writes.
pub fn many(count: u32, mut write: impl FnMut(u32) -> String) -> Vec<u8> {
    let mut json = br#"{"version":1,"entries":["#.to_vec();
    for at in 0..count {
        if at > 0 {
            json.push(b',');
        }
        json.write_all(write(at).as_bytes()).unwrap();
    }
    json.extend_from_slice(b"]}");
    json
}
