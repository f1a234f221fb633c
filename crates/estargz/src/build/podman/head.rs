//! What a TOC entry says before it comes to its content: all of it stands in the tar's headers.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::PodmanProblem;
use crate::archive::{Entry, Timestamp};
use crate::build::DescribeProblem;
use crate::build::describe::{kind, text};
use crate::toc::json::quote;

/// The beginning of an entry's JSON object.
pub(super) struct Head {
    pub(super) name: String,
    pub(super) json: Vec<u8>,
}

/// Renders all fields up to the extended attributes, as Go does: in the order of its structure, without those
/// that are zero, and without the brace at the end.
pub(super) fn render(entry: &Entry) -> Result<Head, DescribeProblem> {
    let name = text(&entry.path, "name")?;
    let mut object = Object(b"{".to_vec());
    object.text("type", kind(entry.kind));
    object.text("name", &name);
    let link = text(&entry.link, "link target")?;
    if !link.is_empty() {
        object.text("linkName", &link);
    }
    object.number("mode", entry.header_mode);
    object.number("size", entry.size);
    object.number("uid", entry.uid);
    object.number("gid", entry.gid);
    let mtime = Timestamp { seconds: entry.mtime, nanos: entry.mtime_nanos };
    object.text("modtime", &rfc3339(mtime)?);
    for (key, time) in [("accesstime", entry.atime), ("changetime", entry.ctime)] {
        if let Some(time) = time {
            object.text(key, &rfc3339(time)?);
        }
    }
    object.number("devMajor", entry.header_device.0);
    object.number("devMinor", entry.header_device.1);
    for (at, (key, value)) in entry.xattrs.iter().enumerate() {
        if at == 0 {
            object.key("xattrs");
            object.0.push(b'{');
        } else {
            object.0.push(b',');
        }
        quote(&mut object.0, &text(key, "extended attribute's name")?);
        object.0.push(b':');
        quote(&mut object.0, &BASE64.encode(value));
    }
    if !entry.xattrs.is_empty() {
        object.0.push(b'}');
    }
    Ok(Head { name, json: object.0 })
}

/// A JSON object that is being written.
pub(super) struct Object(pub(super) Vec<u8>);

impl Object {
    fn key(&mut self, key: &str) {
        if self.0.last() != Some(&b'{') {
            self.0.push(b',');
        }
        quote(&mut self.0, key);
        self.0.push(b':');
    }

    pub(super) fn text(&mut self, key: &str, value: &str) {
        self.key(key);
        quote(&mut self.0, value);
    }

    /// A number, unless it is 0.
    pub(super) fn number(&mut self, key: &str, number: impl Into<i128>) {
        let number = number.into();
        if number != 0 {
            self.key(key);
            self.0.extend_from_slice(number.to_string().as_bytes());
        }
    }
}

fn rfc3339(time: Timestamp) -> Result<String, PodmanProblem> {
    let nanos = i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos);
    OffsetDateTime::from_unix_timestamp_nanos(nanos)
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .ok_or(PodmanProblem::Time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_keep_their_fraction() {
        let text = |seconds, nanos| rfc3339(Timestamp { seconds, nanos });
        assert_eq!(text(0, 0).unwrap(), "1970-01-01T00:00:00Z");
        assert_eq!(text(1_600_000_000, 750_000_000).unwrap(), "2020-09-13T12:26:40.75Z");
        assert_eq!(text(-2, 999_999_999).unwrap(), "1969-12-31T23:59:58.999999999Z");
        assert_eq!(text(253_402_300_799, 999_999_999).unwrap(), "9999-12-31T23:59:59.999999999Z");
        assert_eq!(text(253_402_300_800, 0), Err(PodmanProblem::Time));
        assert_eq!(text(-62_167_219_201, 0), Err(PodmanProblem::Time));
        assert_eq!(text(i64::MIN, 0), Err(PodmanProblem::Time));
    }
}
