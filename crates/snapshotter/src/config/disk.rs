//! `[pantala.disk]`: how much of the disk lazy layers may take. Upstream has no such keys, so they stand in a table of
//! our own.
//!
//! ```toml
//! [pantala.disk]
//! # Most that the layer store may take: a number of bytes, or one with K M G T (powers of 1000) or
//! # Ki Mi Gi Ti (powers of 1024), with or without a trailing B. Absent: as much as keep_free_percent leaves.
//! budget = "200GiB"
//! # Percent of the file system that the store leaves to others. Absent: 18, which is before a kubelet begins
//! # to delete images and to evict pods (85 % used). 0: it does not look.
//! keep_free_percent = 18
//! ```
//!
//! Near either limit (90 % of the budget) nothing is fetched that nobody waits for, and layers that no mount needs are
//! deleted, the longest unused first, until there is room again (80 %). At the limit itself (for the free
//! part: a tenth of it) containers read on, and what they read is not kept.

use serde::Deserialize;

/// The table.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct DiskTable {
    pub(super) budget: Option<Size>,
    pub(super) keep_free_percent: Option<i64>,
}

/// A number of bytes as people write it.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Size {
    Bytes(i64),
    Text(String),
}

impl DiskTable {
    /// Bytes, if there is a budget.
    pub(super) fn budget(&self) -> Result<Option<u64>, String> {
        let bytes = match &self.budget {
            None => return Ok(None),
            Some(Size::Bytes(bytes)) => u64::try_from(*bytes).ok(),
            Some(Size::Text(text)) => parse(text),
        };
        match bytes {
            Some(bytes) if bytes > 0 => Ok(Some(bytes)),
            _ => Err("a budget is a number of bytes above 0, written as 200GiB, 500G or 1000000".into()),
        }
    }

    /// Percent; `None` for the default.
    pub(super) fn keep_free(&self) -> Result<Option<u8>, String> {
        let Some(percent) = self.keep_free_percent else { return Ok(None) };
        match u8::try_from(percent) {
            Ok(percent @ 0..=99) => Ok(Some(percent)),
            _ => Err("write a number of percent from 0 to 99".into()),
        }
    }
}

fn parse(text: &str) -> Option<u64> {
    let text = text.trim();
    let (number, unit) =
        text.split_at_checked(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))?;
    let unit = unit.trim();
    let factor: u64 = match unit.strip_suffix('B').unwrap_or(unit) {
        "" => 1,
        "K" => 1000,
        "M" => 1000_u64.pow(2),
        "G" => 1000_u64.pow(3),
        "T" => 1000_u64.pow(4),
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("200GiB", Some(200 << 30)),
            ("500G", Some(500_000_000_000)),
            (" 7 MB", Some(7_000_000)),
            ("12", Some(12)),
            ("1Ti", Some(1 << 40)),
            ("GiB", None),
            ("-1", None),
            ("1.5G", None),
            ("20 %", None),
            ("99999999999Ti", None),
        ] {
            assert_eq!(parse(text), bytes, "{text}");
        }
    }
}
