//! PAX records: `<length> <key>=<value>\n`, the length counting the whole record.
//!
//! Whatever is malformed is an error and never skipped: a reader that skips sees another archive than one
//! that does not. Rules where the standard leaves room are those of Go's reader, because every container
//! engine unpacks layers with it: the last of several records with one key counts, an empty value of a field
//! leaves the header's own in force, and global headers are not applied.

use std::collections::BTreeMap;

use super::sparse::SparseRecords;
use super::{ArchiveError, Timestamp};

/// What the records of one extended header say about the entry behind it.
#[derive(Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) user: Option<Vec<u8>>,
    pub(super) group: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) mtime: Option<Timestamp>,
    pub(super) atime: Option<Timestamp>,
    pub(super) ctime: Option<Timestamp>,
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// What GNU tar says of a sparse file.
    pub(super) sparse: SparseRecords,
    /// The records themselves.
    pub(super) data: Vec<u8>,
}

/// The one prefix for extended attributes that container engines read.
const XATTR: &[u8] = b"SCHILY.xattr.";

/// Where GNU tar describes sparse files.
pub(super) const SPARSE: &[u8] = b"GNU.sparse.";

impl Pax {
    /// Reads the records in `data`. `name` is the header's own, for messages.
    pub(super) fn parse(data: Vec<u8>, name: &str) -> Result<Self, ArchiveError> {
        let mut pax = Self::default();
        each_record(&data, |key, value| pax.apply(key, value)).map_err(|problem| error(name, problem))?;
        pax.data = data;
        Ok(pax)
    }

    fn apply(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        if let Some(xattr) = key.strip_prefix(XATTR) {
            if xattr.is_empty() {
                return Err("an extended attribute has no name");
            }
            self.xattrs.insert(xattr.to_vec(), value.to_vec());
            return Ok(());
        }
        if let Some(key) = key.strip_prefix(SPARSE) {
            return self.sparse.apply(key, value);
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
            // A larger number no file system could hold.
            b"size" => {
                let size: Option<i64> = number(value, "size is no number")?;
                self.size = size.map(i64::unsigned_abs);
            }
            b"uid" => self.uid = number(value, "uid is no number")?,
            b"gid" => self.gid = number(value, "gid is no number")?,
            b"mtime" => self.mtime = time(value, "mtime is no number")?,
            b"atime" => self.atime = time(value, "atime is no number")?,
            b"ctime" => self.ctime = time(value, "ctime is no number")?,
            _ => {}
        }
        Ok(())
    }
}

/// Checks a global header. Go's reader passes it over, and what it says of owners and times is passed over
/// here as well. Records that move the bytes behind them are refused: GNU tar would follow them.
pub(super) fn check_global(data: &[u8], name: &str) -> Result<(), ArchiveError> {
    Pax::parse(data.to_vec(), name)?;
    each_record(data, |key, _| match key {
        b"path" | b"linkpath" | b"size" => Err("a global header names or measures the entries behind it"),
        _ if key.starts_with(SPARSE) => Err("a global header makes the entries behind it sparse"),
        _ => Ok(()),
    })
    .map_err(|problem| error(name, problem))
}

fn error(name: &str, problem: &'static str) -> ArchiveError {
    ArchiveError::Pax { name: name.to_owned(), problem }
}

/// Calls `apply` with key and value of each record.
pub(super) fn each_record(
    data: &[u8],
    mut apply: impl FnMut(&[u8], &[u8]) -> Result<(), &'static str>,
) -> Result<(), &'static str> {
    let mut rest = data;
    while !rest.is_empty() {
        let (key, value, tail) = split_record(rest).ok_or("a record is cut off")?;
        if key.is_empty() || key.contains(&0) {
            return Err("a record has no key, or one with a NUL byte");
        }
        apply(key, value)?;
        rest = tail;
    }
    Ok(())
}

/// The first record of `data`: key, value, and what follows.
fn split_record(data: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = data.iter().take(20).position(|byte| *byte == b' ')?;
    let len: usize = decimal(data.get(..space)?)?;
    let record = data.get(space + 1..len)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some((record.get(..equals)?, record.get(equals + 1..)?, data.get(len..)?))
}

/// Appends a record.
pub(super) fn push_record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    // A blank, the equals sign and the line's end.
    let rest = key.len() + value.len() + 3;
    // Its own digits count as well, and may add one.
    let digits = |number: usize| number.to_string().len();
    let mut len = rest + digits(rest);
    len = rest + digits(len);
    out.extend_from_slice(len.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

/// Digits alone: `str::parse` would take a plus sign as well.
pub(super) fn decimal<T: std::str::FromStr>(digits: &[u8]) -> Option<T> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn number<T: std::str::FromStr>(value: &[u8], problem: &'static str) -> Result<Option<T>, &'static str> {
    if value.is_empty() { Ok(None) } else { decimal(value).map(Some).ok_or(problem) }
}

fn time(value: &[u8], problem: &'static str) -> Result<Option<Timestamp>, &'static str> {
    if value.is_empty() { Ok(None) } else { timestamp(value).map(Some).ok_or(problem) }
}

/// Seconds since 1970 with a fraction, of which nine digits count. Rounded down, as kernels count time:
/// -1.5 is half a second after second -2.
fn timestamp(value: &[u8]) -> Option<Timestamp> {
    let (negative, value) = match value.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, value),
    };
    let mut parts = value.splitn(2, |byte| *byte == b'.');
    let whole: i64 = decimal(parts.next()?)?;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = fraction.iter().chain(std::iter::repeat(&b'0')).take(9);
    let nanos = digits.fold(0, |nanos, digit| nanos * 10 + u32::from(digit - b'0'));
    Some(match (negative, nanos) {
        (false, _) => Timestamp { seconds: whole, nanos },
        (true, 0) => Timestamp { seconds: -whole, nanos },
        (true, _) => Timestamp { seconds: -whole - 1, nanos: 1_000_000_000 - nanos },
    })
}

/// A time as a record has it.
pub(super) fn decimal_time(time: Timestamp) -> String {
    let Timestamp { seconds, nanos } = time;
    if nanos == 0 {
        return seconds.to_string();
    }
    let (sign, whole, nanos) = if seconds < 0 {
        ("-", (seconds + 1).unsigned_abs(), 1_000_000_000 - nanos)
    } else {
        ("", seconds.unsigned_abs(), nanos)
    };
    let fraction = format!("{nanos:09}");
    format!("{sign}{whole}.{}", fraction.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_rounded_down_and_the_fraction_is_kept() {
        let read = |text: &str| timestamp(text.as_bytes()).map(|time| (time.seconds, time.nanos));
        assert_eq!(read("1600000000.7"), Some((1_600_000_000, 700_000_000)));
        assert_eq!(read("0"), Some((0, 0)));
        assert_eq!(read("0.999999999999"), Some((0, 999_999_999)), "never rounded up");
        assert_eq!(read("-86400"), Some((-86400, 0)));
        assert_eq!(read("-1.5"), Some((-2, 500_000_000)));
        assert_eq!(read("-0.25"), Some((-1, 750_000_000)));
        assert_eq!(read("-1.000"), Some((-1, 0)));
        assert_eq!(read("-9223372036854775807.1"), Some((i64::MIN, 900_000_000)));
        for bad in ["", "-", "1e3", "+1", "1.x", ".5", "--1", "1.-5", "99999999999999999999"] {
            assert_eq!(read(bad), None, "{bad}");
        }
        for text in ["1600000000.7", "0", "-86400", "-1.5", "-0.25", "0.000000001"] {
            assert_eq!(decimal_time(timestamp(text.as_bytes()).unwrap()), text);
        }
    }

    #[test]
    fn a_value_may_hold_anything() {
        let mut data = Vec::new();
        push_record(&mut data, b"SCHILY.xattr.user.x", b"\0\n=\xff");
        push_record(&mut data, b"SCHILY.xattr.user.empty", b"");
        push_record(&mut data, b"LIBARCHIVE.xattr.user.y", b"eA==");
        push_record(&mut data, b"SCHILY.acl.access", b"user::rwx");
        push_record(&mut data, b"path", b"abc");
        let pax = Pax::parse(data, "x").unwrap();
        let xattrs: Vec<_> = pax.xattrs.iter().map(|(name, value)| (&name[..], &value[..])).collect();
        assert_eq!(xattrs, [(b"user.empty".as_slice(), b"".as_slice()), (b"user.x", b"\0\n=\xff")]);
        assert_eq!(pax.path.unwrap(), b"abc");
    }

    #[test]
    fn records_count_their_own_length() {
        for len in [0, 1, 5, 85, 86, 87, 88, 89, 90, 980, 985, 990, 9_985, 9_990, 99_990] {
            let mut data = Vec::new();
            push_record(&mut data, b"path", &vec![b'x'; len]);
            push_record(&mut data, b"k", b"v");
            let (key, value, rest) = split_record(&data).unwrap();
            assert_eq!((key, value.len(), rest), (b"path".as_slice(), len, b"6 k=v\n".as_slice()));
        }
    }

    #[test]
    fn malformed_records_are_errors() {
        for bad in [
            "5 a=b",
            "0 a=b\n",
            "99 a=b\n",
            "7 ab\n\n\n",
            "x a=b\n",
            "+6 a=b\n",
            "-6 a=b\n",
            // Padding is not data.
            "6 a=b\n\0\0",
            "6 a=b\n\n",
        ] {
            assert!(Pax::parse(bad.as_bytes().to_vec(), "x").is_err(), "{bad:?}");
        }
        assert!(Pax::parse(b"6 a=b\n".to_vec(), "x").is_ok());
        for (key, value, problem) in [
            ("size", "-1", "size"),
            ("size", "+1", "size"),
            ("size", "9223372036854775808", "size"),
            ("uid", "x", "uid"),
            ("gid", "4294967296", "gid"),
            ("mtime", "1e3", "mtime"),
            ("atime", "abc", "atime"),
            ("ctime", "1.2.3", "ctime"),
            ("path", "a\0b", "NUL"),
            ("", "b", "no key"),
            ("a\0b", "c", "no key"),
            ("SCHILY.xattr.", "x", "no name"),
        ] {
            let mut data = Vec::new();
            push_record(&mut data, key.as_bytes(), value.as_bytes());
            let error = Pax::parse(data, "x").map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(problem), "{key:?}={value:?}: {error}");
        }
    }

    #[test]
    fn the_last_record_counts_and_an_empty_one_takes_it_back() {
        let read = |text: &str| Pax::parse(text.as_bytes().to_vec(), "x").unwrap();
        assert_eq!(read("10 path=a\n10 path=b\n").path.unwrap(), b"b");
        assert_eq!(read("10 path=a\n8 path=\n").path, None);
        assert_eq!(read("10 size=5\n8 size=\n").size, None);
    }

    #[test]
    fn a_global_header_moves_no_bytes() {
        let check = |key: &str, value: &str| {
            let mut data = Vec::new();
            push_record(&mut data, key.as_bytes(), value.as_bytes());
            check_global(&data, "x").map_err(|error| error.to_string())
        };
        for (key, value) in [("size", "5"), ("path", "a"), ("linkpath", "a"), ("GNU.sparse.major", "1")] {
            let error = check(key, value).unwrap_err();
            assert!(error.contains("a global header"), "{key}: {error}");
        }
        // What is not applied must be well-formed all the same.
        assert!(check("uid", "x").is_err());
        assert!(check("uid", "5").is_ok() && check("comment", "a").is_ok());
    }
}
