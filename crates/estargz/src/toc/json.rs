//! Writing a TOC as Go's `json.MarshalIndent` does: tab indent, fields in a fixed order, zero values left
//! out, `<`, `>`, `&` and the line separators escaped. Other tools read any JSON; people compare.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::ops::Range;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use content::Digest;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// What RFC 3339 can write: years 1 to 9999.
const TIMES: Range<i64> = -62_135_596_800..253_402_300_800;

/// Place of a digest that is not known yet, and is set when the file has been read to its end.
#[derive(Debug)]
pub(crate) struct DigestSlot(usize);

/// Length of a digest in text form.
const DIGEST_LEN: usize = 71;

/// An entry, all but where its bytes lie.
#[derive(Clone, Debug, Default)]
pub(crate) struct JsonEntry {
    pub(crate) name: String,
    pub(crate) kind: &'static str,
    pub(crate) size: u64,
    /// `None` for chunks, which have no attributes.
    pub(crate) mtime: Option<i64>,
    pub(crate) link: String,
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) user: Option<String>,
    pub(crate) group: Option<String>,
    pub(crate) device: (u32, u32),
    pub(crate) xattrs: BTreeMap<String, Vec<u8>>,
    /// A regular file: it has a digest, even if it is empty.
    pub(crate) has_digest: bool,
    pub(crate) chunk_offset: u64,
    /// 0 if the chunk reaches to the end of a file of one chunk.
    pub(crate) chunk_size: u64,
}

/// Where the bytes of an entry lie.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    /// Where in the blob the member begins.
    pub(crate) offset: u64,
    /// Where the bytes begin in what the member inflates to.
    pub(crate) inner: u64,
    pub(crate) digest: Digest,
}

/// Collects the entries of a TOC.
pub(crate) struct TocWriter {
    /// Room for what goes before the JSON, and the JSON: at the end it is in memory once.
    json: Vec<u8>,
    is_empty: bool,
}

impl TocWriter {
    /// Begins a TOC, with `front` bytes left free before it.
    pub(crate) fn new(front: usize) -> Self {
        let mut json = vec![0; front];
        json.extend_from_slice(b"{\n\t\"version\": 1,\n\t\"entries\": [");
        Self { json, is_empty: true }
    }

    /// Adds an entry. The slot is for the file's digest, if it has one.
    pub(crate) fn push(&mut self, entry: &JsonEntry, place: Option<Place>) -> Option<DigestSlot> {
        if !self.is_empty {
            self.json.push(b',');
        }
        self.is_empty = false;
        self.json.extend_from_slice(b"\n\t\t{\n\t\t\t\"name\": ");
        quote(&mut self.json, &entry.name);
        self.text("type", entry.kind);
        self.number("size", entry.size);
        if let Some(mtime) = entry.mtime.filter(|mtime| *mtime != 0) {
            self.text("modtime", &rfc3339(mtime));
        }
        if !entry.link.is_empty() {
            self.text("linkName", &entry.link);
        }
        self.number("mode", u64::from(entry.mode));
        self.number("uid", u64::from(entry.uid));
        self.number("gid", u64::from(entry.gid));
        if let Some(user) = &entry.user {
            self.text("userName", user);
        }
        if let Some(group) = &entry.group {
            self.text("groupName", group);
        }
        self.number("offset", place.map_or(0, |place| place.offset));
        self.number("innerOffset", place.map_or(0, |place| place.inner));
        self.number("devMajor", u64::from(entry.device.0));
        self.number("devMinor", u64::from(entry.device.1));
        if !entry.xattrs.is_empty() {
            self.xattrs(&entry.xattrs);
        }
        let slot = entry.has_digest.then(|| {
            self.text("digest", &Digest::of(b"").to_string());
            // Without the closing quote.
            DigestSlot(self.json.len() - 1 - DIGEST_LEN)
        });
        self.number("chunkOffset", entry.chunk_offset);
        self.number("chunkSize", entry.chunk_size);
        if let Some(place) = place {
            self.text("chunkDigest", &place.digest.to_string());
        }
        self.json.extend_from_slice(b"\n\t\t}");
        slot
    }

    /// Fills a slot.
    pub(crate) fn set_digest(&mut self, slot: &DigestSlot, digest: &Digest) {
        if let Some(place) = self.json.get_mut(slot.0..slot.0 + DIGEST_LEN) {
            place.copy_from_slice(digest.to_string().as_bytes());
        }
    }

    /// The bytes left free, and the JSON behind them.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.json.extend_from_slice(if self.is_empty { b"]\n}" } else { b"\n\t]\n}" });
        self.json
    }

    fn key(&mut self, key: &str) {
        self.json.extend_from_slice(b",\n\t\t\t\"");
        self.json.extend_from_slice(key.as_bytes());
        self.json.extend_from_slice(b"\": ");
    }

    fn text(&mut self, key: &str, value: &str) {
        self.key(key);
        quote(&mut self.json, value);
    }

    fn number(&mut self, key: &str, value: u64) {
        if value != 0 {
            self.key(key);
            self.json.extend_from_slice(value.to_string().as_bytes());
        }
    }

    fn xattrs(&mut self, xattrs: &BTreeMap<String, Vec<u8>>) {
        self.key("xattrs");
        for (index, (name, value)) in xattrs.iter().enumerate() {
            self.json.extend_from_slice(if index == 0 { b"{\n\t\t\t\t" } else { b",\n\t\t\t\t" });
            quote(&mut self.json, name);
            self.json.extend_from_slice(b": \"");
            self.json.extend_from_slice(BASE64.encode(value).as_bytes());
            self.json.push(b'"');
        }
        self.json.extend_from_slice(b"\n\t\t\t}");
    }
}

fn rfc3339(seconds: i64) -> String {
    let seconds = seconds.clamp(TIMES.start, TIMES.end - 1);
    OffsetDateTime::from_unix_timestamp(seconds)
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_default()
}

/// Writes `text` as Go does: see the module's page.
pub(crate) fn quote(json: &mut Vec<u8>, text: &str) {
    json.push(b'"');
    for character in text.chars() {
        match character {
            '"' => json.extend_from_slice(b"\\\""),
            '\\' => json.extend_from_slice(b"\\\\"),
            '\n' => json.extend_from_slice(b"\\n"),
            '\r' => json.extend_from_slice(b"\\r"),
            '\t' => json.extend_from_slice(b"\\t"),
            '\0'..='\x1f' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                // Writing to a vector does not fail.
                let _ = write!(json, "\\u{:04x}", u32::from(character));
            }
            _ => {
                let mut buffer = [0; 4];
                json.extend_from_slice(character.encode_utf8(&mut buffer).as_bytes());
            }
        }
    }
    json.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_toc_looks_as_go_writes_it() {
        let mut writer = TocWriter::new(0);
        let entry = JsonEntry {
            name: "a<&>\"\u{2028}é\u{1}".into(),
            kind: "reg",
            size: 3,
            mtime: Some(1_600_000_000),
            mode: 0o644,
            uid: 1000,
            user: Some("me".into()),
            xattrs: [("user.x".to_owned(), vec![1, 2])].into(),
            has_digest: true,
            ..JsonEntry::default()
        };
        let place = Place { offset: 77, inner: 5, digest: Digest::of(b"abc") };
        let slot = writer.push(&entry, Some(place)).unwrap();
        writer.push(
            &JsonEntry { name: "d/".into(), kind: "dir", mtime: Some(0), ..JsonEntry::default() },
            None,
        );
        writer.set_digest(&slot, &Digest::of(b"abc"));
        let digest = Digest::of(b"abc");
        let expected = format!(
            "{{\n\t\"version\": 1,\n\t\"entries\": [\n\t\t{{\n\t\t\t\"name\": \"a\\u003c\\u0026\\u003e\\\"\\u2028é\\u0001\",\n\
             \t\t\t\"type\": \"reg\",\n\t\t\t\"size\": 3,\n\t\t\t\"modtime\": \"2020-09-13T12:26:40Z\",\n\
             \t\t\t\"mode\": 420,\n\t\t\t\"uid\": 1000,\n\t\t\t\"userName\": \"me\",\n\t\t\t\"offset\": 77,\n\t\t\t\"innerOffset\": 5,\n\
             \t\t\t\"xattrs\": {{\n\t\t\t\t\"user.x\": \"AQI=\"\n\t\t\t}},\n\t\t\t\"digest\": \"{digest}\",\n\
             \t\t\t\"chunkDigest\": \"{digest}\"\n\t\t}},\n\t\t{{\n\t\t\t\"name\": \"d/\",\n\t\t\t\"type\": \"dir\"\n\t\t}}\n\t]\n}}"
        );
        assert_eq!(String::from_utf8(writer.finish()).unwrap(), expected);
    }

    #[test]
    fn times_beyond_what_can_be_written_are_brought_near() {
        assert_eq!(rfc3339(i64::MAX), "9999-12-31T23:59:59Z");
        assert_eq!(rfc3339(i64::MIN), "0001-01-01T00:00:00Z");
        assert_eq!(rfc3339(-86400), "1969-12-31T00:00:00Z");
    }
}
