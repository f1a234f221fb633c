//! The `Range` header, read as nginx reads it.
//!
//! One satisfiable range gives a part; several give the whole content, which a server may always answer;
//! none gives 416. A unit other than bytes is as if there were no header.

use content::ByteRange;

/// What to send of a content.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wanted {
    /// All of it, with 200.
    Whole,
    /// A part of it, with 206.
    Part(ByteRange),
    /// Nothing: 416.
    Unsatisfiable,
}

/// More ranges than this in one header are an attack, not a request.
const MAX_RANGES: usize = 64;

/// Reads the header for a content of `len` bytes.
pub fn wanted(header: Option<&str>, len: u64) -> Wanted {
    let Some(ranges) = header.and_then(after_unit) else { return Wanted::Whole };
    let mut satisfiable = Vec::new();
    for (number, text) in ranges.split(',').enumerate() {
        if number >= MAX_RANGES {
            return Wanted::Whole;
        }
        match one(text.trim_matches([' ', '\t']), len) {
            Some(range) if !range.is_empty() => satisfiable.push(range),
            Some(_) => {}
            None => return Wanted::Unsatisfiable,
        }
    }
    match satisfiable.as_slice() {
        // Every range of an empty content is all of it.
        _ if len == 0 => Wanted::Whole,
        [] => Wanted::Unsatisfiable,
        [range] => Wanted::Part(*range),
        _ => Wanted::Whole,
    }
}

fn after_unit(header: &str) -> Option<&str> {
    let (unit, ranges) = header.split_once('=')?;
    unit.trim().eq_ignore_ascii_case("bytes").then_some(ranges)
}

/// One range, cut at the end of the content; empty if it lies outside. `None` if it is no range.
fn one(text: &str, len: u64) -> Option<ByteRange> {
    let (first, last) = text.split_once('-')?;
    match (first, last) {
        ("", "") => None,
        ("", suffix) => Some(ByteRange::new(len.saturating_sub(number(suffix)?), len)),
        (first, "") => Some(ByteRange::new(number(first)?, len)),
        (first, last) => Some(ByteRange::new(number(first)?, number(last)?.saturating_add(1).min(len))),
    }
}

/// Digits only: no sign, no blanks. A number too large for 64 bits is beyond every content.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_are_read_as_nginx_reads_them() {
        let part = |start, end| Wanted::Part(ByteRange::new(start, end));
        for (header, expected) in [
            ("bytes=0-0", part(0, 1)),
            ("bytes=0-9", part(0, 10)),
            ("bytes=0-99", part(0, 10)),
            ("bytes=5-", part(5, 10)),
            ("bytes=-3", part(7, 10)),
            ("bytes=-99", part(0, 10)),
            ("Bytes=2-3", part(2, 4)),
            ("bytes= 2-3", part(2, 4)),
            ("bytes=0-99999999999999999999999", part(0, 10)),
            ("bytes=10-", Wanted::Unsatisfiable),
            ("bytes=10-12", Wanted::Unsatisfiable),
            ("bytes=-0", Wanted::Unsatisfiable),
            ("bytes=5-4", Wanted::Unsatisfiable),
            ("bytes=", Wanted::Unsatisfiable),
            ("bytes=a-b", Wanted::Unsatisfiable),
            ("bytes=+1-2", Wanted::Unsatisfiable),
            ("bytes=0-1,3-4", Wanted::Whole),
            ("bytes=0-1,99-", part(0, 2)),
            ("items=0-1", Wanted::Whole),
            ("nonsense", Wanted::Whole),
        ] {
            assert_eq!(wanted(Some(header), 10), expected, "{header}");
        }
        assert_eq!(wanted(None, 10), Wanted::Whole);
        assert_eq!(wanted(Some("bytes=0-"), 0), Wanted::Whole);
    }

    proptest! {
        #[test]
        fn no_header_leads_outside_the_content(header in "(bytes=)?[0-9,\\- ]{0,24}", len in 0u64..1000) {
            if let Wanted::Part(range) = wanted(Some(&header), len) {
                prop_assert!(!range.is_empty() && range.end <= len, "{header}: {range}");
            }
        }
    }
}
