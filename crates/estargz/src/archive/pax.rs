//! PAX records: `<length> <key>=<value>\n`, the length counting the whole record.

use std::collections::BTreeMap;

use super::ArchiveError;

/// What the records of one extended header say about the entry behind it.
#[derive(Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) user: Option<Vec<u8>>,
    pub(super) group: Option<Vec<u8>>,
    pub(super) size: Option<i64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) mtime: Option<i64>,
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// One of GNU tar's ways to store a sparse file.
    pub(super) sparse: bool,
}

/// The one prefix for extended attributes that containerd reads.
const XATTR: &[u8] = b"SCHILY.xattr.";

impl Pax {
    /// Reads the records in `data`. `name` is the header's own, for messages.
    pub(super) fn parse(data: &[u8], name: &str) -> Result<Self, ArchiveError> {
        let mut pax = Self::default();
        let mut rest = data;
        while !rest.is_empty() {
            let (key, value, tail) = split_record(rest)
                .ok_or_else(|| ArchiveError::Pax { name: name.to_owned(), problem: "a record is cut off" })?;
            pax.apply(key, value).map_err(|problem| ArchiveError::Pax { name: name.to_owned(), problem })?;
            rest = tail;
        }
        Ok(pax)
    }

    fn apply(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        if let Some(xattr) = key.strip_prefix(XATTR) {
            self.xattrs.insert(xattr.to_vec(), value.to_vec());
            return Ok(());
        }
        if key.starts_with(b"GNU.sparse.") {
            self.sparse = true;
            return Ok(());
        }
        // An empty value takes an earlier record back.
        let text = (!value.is_empty()).then(|| value.to_vec());
        match key {
            b"path" | b"linkpath" | b"uname" | b"gname" if value.contains(&0) => {
                return Err("a name has a NUL byte");
            }
            b"path" => self.path = text,
            b"linkpath" => self.link = text,
            b"uname" => self.user = text,
            b"gname" => self.group = text,
            b"size" => self.size = number(value, "size is no number")?,
            b"uid" => self.uid = number(value, "uid is no number")?,
            b"gid" => self.gid = number(value, "gid is no number")?,
            b"mtime" => self.mtime = if value.is_empty() { None } else { Some(seconds(value)?) },
            _ => {}
        }
        Ok(())
    }
}

/// The first record of `data`: key, value, and what follows.
fn split_record(data: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = data.iter().take(20).position(|byte| *byte == b' ')?;
    let len: usize = decimal(data.get(..space)?)?;
    let record = data.get(space + 1..len)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some((record.get(..equals)?, record.get(equals + 1..)?, data.get(len..)?))
}

/// Digits alone: `str::parse` would take a plus sign as well.
fn decimal<T: std::str::FromStr>(digits: &[u8]) -> Option<T> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn number<T: std::str::FromStr>(value: &[u8], problem: &'static str) -> Result<Option<T>, &'static str> {
    if value.is_empty() { Ok(None) } else { decimal(value).map(Some).ok_or(problem) }
}

/// Seconds since 1970 with a fraction, rounded down: what `stat` shows as seconds.
fn seconds(value: &[u8]) -> Result<i64, &'static str> {
    const PROBLEM: &str = "mtime is no number";
    let (negative, value) = match value.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, value),
    };
    let mut parts = value.splitn(2, |byte| *byte == b'.');
    let whole: i64 = decimal(parts.next().unwrap_or_default()).ok_or(PROBLEM)?;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err(PROBLEM);
    }
    let below = i64::from(fraction.iter().any(|digit| *digit != b'0'));
    Ok(if negative { -whole - below } else { whole })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_rounded_down() {
        assert_eq!(seconds(b"1600000000.7"), Ok(1_600_000_000));
        assert_eq!(seconds(b"-86400"), Ok(-86400));
        assert_eq!(seconds(b"-1.5"), Ok(-2));
        assert_eq!(seconds(b"-1.000"), Ok(-1));
        for bad in ["", "-", "1e3", "+1", "1.x", ".5", "99999999999999999999"] {
            assert!(seconds(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_value_may_hold_anything() {
        let record = b"SCHILY.xattr.user.x=\0\n=\xff\n";
        let data = [format!("{} ", record.len() + 3).as_bytes(), record, b"12 path=abc\n"].concat();
        let pax = Pax::parse(&data, "x").unwrap();
        assert_eq!(pax.xattrs.get(b"user.x".as_slice()).unwrap(), b"\0\n=\xff");
        assert_eq!(pax.path.unwrap(), b"abc");
    }

    #[test]
    fn malformed_records_are_errors() {
        for bad in
            ["5 a=b", "0 a=b\n", "99 a=b\n", "7 ab\n\n\n", "x a=b\n", "+6 a=b\n", "11 size=-1\n", "9 uid=x\n"]
        {
            assert!(Pax::parse(bad.as_bytes(), "x").is_err(), "{bad:?}");
        }
    }
}
