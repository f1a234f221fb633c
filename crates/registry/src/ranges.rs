//! What a server says about the part of a blob that it sends.

use content::ByteRange;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE};
use http::{HeaderMap, StatusCode};

/// The part of the blob that a body holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Part {
    /// The bytes that the body holds; open-ended (`u64::MAX`) if the server did not say.
    pub range: ByteRange,
    /// The length of the blob, if the server said.
    pub total: Option<u64>,
}

/// Reads the head of a 200 or 206 answer.
///
/// # Errors
/// What is wrong with it.
pub fn part_of(status: StatusCode, headers: &HeaderMap) -> Result<Part, String> {
    if let Some(encoding) = headers.get(CONTENT_ENCODING).filter(|encoding| *encoding != "identity") {
        return Err(format!("the blob in the encoding {encoding:?}, which was not asked for"));
    }
    let length = content_length(headers)?;
    if status == StatusCode::OK {
        let range = ByteRange::new(0, length.unwrap_or(u64::MAX));
        return Ok(Part { range, total: length });
    }
    let text = headers.get(CONTENT_RANGE).ok_or("a part without Content-Range")?;
    let text = text.to_str().map_err(|_| "an unreadable Content-Range")?;
    let wrong = || format!("the Content-Range {text:?}");
    let (span, total) = content_range(text).ok_or_else(wrong)?;
    let range = span.ok_or_else(wrong)?;
    if total.is_some_and(|total| range.end > total) {
        return Err(wrong());
    }
    if length.is_some_and(|length| length != range.len()) {
        return Err(format!("the Content-Range {text:?} with a body of {} bytes", length.unwrap_or(0)));
    }
    Ok(Part { range, total })
}

/// The blob's length from the head of a 416 answer (`bytes */123`).
pub fn total_of_unsatisfied(headers: &HeaderMap) -> Option<u64> {
    content_range(headers.get(CONTENT_RANGE)?.to_str().ok()?)?.1
}

/// The number in `Content-Length`.
pub(crate) fn content_length(headers: &HeaderMap) -> Result<Option<u64>, String> {
    let Some(value) = headers.get(CONTENT_LENGTH) else { return Ok(None) };
    let number = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    number.map(Some).ok_or_else(|| format!("the Content-Length {value:?}"))
}

/// `bytes 0-4/10`, `bytes 0-4/*`, `bytes */10`.
fn content_range(text: &str) -> Option<(Option<ByteRange>, Option<u64>)> {
    let (span, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let total = if total == "*" { None } else { Some(total.parse::<u64>().ok()?) };
    if span == "*" {
        return Some((None, total));
    }
    // What Go's registries say of any range of an empty blob.
    if span == "0--1" && total == Some(0) {
        return Some((Some(ByteRange::new(0, 0)), total));
    }
    let (first, last) = span.split_once('-')?;
    let (first, last) = (first.parse::<u64>().ok()?, last.parse::<u64>().ok()?);
    let end = last.checked_add(1).filter(|end| *end > first)?;
    Some((Some(ByteRange::new(first, end)), total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_are_read_and_nonsense_is_not() {
        let span = |start, end| Some(ByteRange::new(start, end));
        for (text, expected) in [
            ("bytes 0-4/10", Some((span(0, 5), Some(10)))),
            ("bytes 5-5/*", Some((span(5, 6), None))),
            ("bytes */10", Some((None, Some(10)))),
            ("bytes 0--1/0", Some((span(0, 0), Some(0)))),
            ("bytes 0--1/5", None),
            ("bytes 5-4/10", None),
            ("bytes 0-18446744073709551615/*", None),
            ("bytes -5/10", None),
            ("items 0-4/10", None),
            ("bytes 0-4", None),
            ("", None),
        ] {
            assert_eq!(content_range(text), expected, "{text}");
        }
    }

    #[test]
    fn heads_that_contradict_themselves_are_refused() {
        let head = |pairs: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.insert(*name, http::HeaderValue::from_static(value));
            }
            headers
        };
        let part = |pairs| part_of(StatusCode::PARTIAL_CONTENT, &head(pairs));
        assert!(part(&[("content-range", "bytes 0-4/10"), ("content-length", "5")]).is_ok());
        assert!(part(&[("content-range", "bytes 0-4/10"), ("content-length", "6")]).is_err());
        assert!(part(&[("content-range", "bytes 0-14/10")]).is_err());
        assert!(part(&[("content-range", "bytes */10")]).is_err());
        assert!(part(&[]).is_err());
        let whole = part_of(StatusCode::OK, &head(&[("content-encoding", "gzip")]));
        assert!(whole.is_err());
    }
}
