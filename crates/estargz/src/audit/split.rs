//! The tar-split data of containers/storage: everything of the tar that is not a file's content.
//!
//! Its readers put the tar together again from the files that they have and this data, to compare the result
//! with the diffID. It is a zstd frame of JSON documents, one after another: segments that are to be copied,
//! and files that are to be put in. Put together it must be the very tar that the blob inflates to.

use std::io::{self, BufReader, Read};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use content::{Digest, Hasher};
use serde::Deserialize;

use super::lie::Lie;
use super::listed::{Listed, Listing};
use super::members::Members;
use super::track::Track;
use super::walk::Stop;
use super::{AuditError, ReadAt};
use crate::build::tar_split::{Crc64, MAX_LEN};
use crate::footer::HiddenFrame;
use crate::path;

/// Longest part, as JSON: headers of one entry, or what stands behind the last.
const MAX_LINE: usize = 16 << 20;

/// A file's content is to be put in.
const FILE: u8 = 1;
/// Bytes that are to be copied.
const SEGMENT: u8 = 2;

#[derive(Deserialize)]
struct Part {
    #[serde(rename = "type")]
    kind: u8,
    #[serde(default)]
    name: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    payload: Option<String>,
}

#[derive(Deserialize)]
struct Pin {
    #[serde(default, rename = "tarSplitDigest")]
    tar_split_digest: Option<String>,
}

/// sha256 of the frame as it stands in the blob.
pub(super) fn digest(blob: &dyn ReadAt, frame: HiddenFrame) -> Result<Digest, Stop> {
    let mut reader = Frame { blob, at: frame.offset, left: frame.compressed_len, failed: false };
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match reader.read(&mut buffer).map_err(|error| Stop::Error(AuditError::Read(error)))? {
            0 => return Ok(hasher.finish()),
            count => hasher.update(buffer.get(..count).unwrap_or_default()),
        }
    }
}

/// Holds what the TOC says about the frame against what it is.
pub(super) fn check_pin(json: &[u8], found: Digest) -> Result<Option<Digest>, Stop> {
    let claimed = serde_json::from_slice::<Pin>(json).ok().and_then(|pin| pin.tar_split_digest);
    match claimed.filter(|claimed| *claimed != found.to_string()) {
        None => Ok(Some(found)),
        Some(claimed) => {
            let problem = format!("the data has the digest {found}, the table of contents says {claimed:?}");
            Err(Lie::TarSplit(problem.chars().take(300).collect()).into())
        }
    }
}

/// Compares what the frame gives with what `blob` inflates to.
pub(super) fn check(blob: &dyn ReadAt, len: u64, frame: HiddenFrame, listing: &Listing) -> Result<(), Stop> {
    if frame.len > MAX_LEN {
        return Err(lie(format!("it has more than {MAX_LEN} bytes")));
    }
    let track = Track::default();
    let mut tar = Members::new(blob, len, &track, false, &|_| ());
    let mut source = Frame { blob, at: frame.offset, left: frame.compressed_len, failed: false };
    let outcome = compare(&mut source, frame.len, &mut tar, &listing.entries);
    if source.failed || track.is_unreadable() {
        return Err(Stop::Error(AuditError::Read(io::Error::other("the blob cannot be read"))));
    }
    outcome.map_err(lie)
}

fn compare(
    source: &mut Frame<'_>,
    len: u64,
    tar: &mut Members<'_>,
    entries: &[Listed],
) -> Result<(), String> {
    // Their readers find a file's content by its name, and the checksum is easily forged.
    let mut files = entries.iter().filter(|entry| entry.size > 0);
    let text = |error: io::Error| error.to_string();
    let frame = zstd::stream::read::Decoder::with_buffer(BufReader::new(source)).map_err(text)?;
    let frame = BufReader::new(Lines { inner: frame.single_frame().take(len), len: 0 });
    let mut at = 0;
    let mut buffer = vec![0; 64 * 1024];
    for part in serde_json::Deserializer::from_reader(frame).into_iter::<Part>() {
        let part = part.map_err(|error| error.to_string())?;
        let bytes = BASE64.decode(part.payload.unwrap_or_default()).map_err(|_| "a part is no base64")?;
        match part.kind {
            SEGMENT => {
                for wanted in bytes.chunks(buffer.len()) {
                    let found = buffer.get_mut(..wanted.len()).unwrap_or_default();
                    tar.read_exact(found)
                        .map_err(|_| format!("it goes on behind the end of the tar, at {at}"))?;
                    if found != wanted {
                        return Err(format!("a segment at {at} has other bytes than the tar"));
                    }
                    at += wanted.len() as u64;
                }
            }
            FILE => {
                let name: String = part.name.chars().take(200).collect();
                let mut path = Vec::new();
                let is_path = path::clean(part.name.as_bytes(), &mut path).is_ok();
                if part.size > 0 && !(is_path && files.next().is_some_and(|file| file.path == path)) {
                    return Err(format!("the content of {name:?} does not stand at {at}"));
                }
                let checksum =
                    pass(tar, part.size, &mut buffer).map_err(|_| format!("the tar ends in {name:?}"))?;
                at += part.size;
                // An entry without content has no checksum.
                if bytes != checksum.to_be_bytes() && !(bytes.is_empty() && part.size == 0) {
                    return Err(format!("{name:?} has another checksum"));
                }
            }
            other => return Err(format!("there is no part of type {other}")),
        }
    }
    match io::copy(tar, &mut io::sink()).map_err(text)? {
        0 => Ok(()),
        more => Err(format!("the tar has {more} bytes more")),
    }
}

/// Reads `len` bytes of the tar; answers their checksum.
fn pass(tar: &mut Members<'_>, len: u64, buffer: &mut [u8]) -> io::Result<u64> {
    let mut crc = Crc64::new();
    let mut left = len;
    while left > 0 {
        let want = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let count = tar.read(buffer.get_mut(..want).unwrap_or_default())?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        crc.update(buffer.get(..count).unwrap_or_default());
        left -= count as u64;
    }
    Ok(crc.finish())
}

fn lie(problem: String) -> Stop {
    Lie::TarSplit(problem).into()
}

/// Refuses lines that are too long: each is in memory as a whole, and writers put a part in a line.
struct Lines<R> {
    inner: R,
    /// Bytes since the last line began.
    len: usize,
}

impl<R: Read> Read for Lines<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        let read = buffer.get(..count).unwrap_or_default();
        self.len = match read.iter().rposition(|byte| *byte == b'\n') {
            Some(end) => count - end,
            None => self.len + count,
        };
        if self.len > MAX_LINE {
            return Err(io::Error::other("a part of it is larger than 16 MiB"));
        }
        Ok(count)
    }
}

/// The frame's bytes in the blob.
struct Frame<'a> {
    blob: &'a dyn ReadAt,
    at: u64,
    left: u64,
    failed: bool,
}

impl Read for Frame<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let part = buffer.get_mut(..want).unwrap_or_default();
        self.blob.read_exact_at(part, self.at).inspect_err(|_| self.failed = true)?;
        self.at += want as u64;
        self.left -= want as u64;
        Ok(want)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::list_toc;

    /// What is said about tar-split data of these lines and a tar.
    fn problem(lines: &[String], tar: &[u8]) -> Option<String> {
        let frame = zstd::encode_all(lines.concat().as_bytes(), 3).unwrap();
        let len = lines.concat().len() as u64;
        let frame = frame.as_slice();
        let mut source = Frame { blob: &frame, at: 0, left: frame.len() as u64, failed: false };
        let track = Track::default();
        let json =
            r#"{"version":1,"entries":[{"type":"dir","name":"d"},{"type":"reg","name":"x","size":7}]}"#;
        let entries = list_toc(json.as_bytes()).unwrap().entries;
        let mut members = Members::new(&tar, tar.len() as u64, &track, false, &|_| ());
        compare(&mut source, len, &mut members, &entries).err()
    }

    fn segment(bytes: &[u8]) -> String {
        format!("{{\"type\":2,\"payload\":\"{}\",\"position\":0}}\n", BASE64.encode(bytes))
    }

    fn file(name: &str, content: &[u8]) -> String {
        let mut crc = Crc64::new();
        crc.update(content);
        let crc = BASE64.encode(crc.finish().to_be_bytes());
        format!("{{\"type\":1,\"name\":{name:?},\"size\":{},\"payload\":\"{crc}\"}}\n", content.len())
    }

    #[test]
    fn put_together_it_must_be_the_tar() {
        let tar = b"head pantala tail";
        let good = [segment(b"head "), file("x", b"pantala"), segment(b" tail")];
        assert_eq!(problem(&good, tar), None);
        for (lines, expected) in [
            (vec![segment(b"hea? ")], "a segment at 0 has other bytes than the tar"),
            (vec![segment(b"head "), file("x", b"pantale")], "\"x\" has another checksum"),
            (vec![segment(b"head "), file("y", b"pantala")], "the content of \"y\" does not stand at 5"),
            (vec![file("x", b"head pa"), file("x", b"n")], "the content of \"x\" does not stand at 7"),
            (good[..2].to_vec(), "the tar has 5 bytes more"),
            ([good.as_slice(), &[segment(b"!")]].concat(), "it goes on behind the end of the tar, at 17"),
            (vec![file("x", &[0; 18])], "the tar ends in \"x\""),
            (vec!["{\"type\":3}".to_owned()], "there is no part of type 3"),
            (vec!["{\"type\":2,\"payload\":\"!\"}".to_owned()], "a part is no base64"),
        ] {
            assert_eq!(problem(&lines, tar).unwrap(), expected);
        }
        assert!(problem(&["[".to_owned()], tar).is_some());
        // A bomb: a small frame with a part that would fill the memory.
        let bomb = format!("{{\"type\":2,\"payload\":\"{}\"}}", "A".repeat(MAX_LINE));
        let found = problem(&[bomb], tar).unwrap();
        assert!(found.starts_with("a part of it is larger than 16 MiB"), "{found}");
    }

    #[test]
    fn the_toc_pins_the_frame() {
        let found = Digest::of(b"frame");
        let json = |digest: &str| format!("{{\"tarSplitDigest\":\"{digest}\"}}").into_bytes();
        assert!(matches!(check_pin(&json(&found.to_string()), found), Ok(Some(digest)) if digest == found));
        assert!(check_pin(&json("sha256:00"), found).is_err());
        assert!(check_pin(b"{}", found).is_ok());
    }
}
