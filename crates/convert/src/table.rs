//! What a conversion did, for people.

use std::fmt;

use crate::report::ConvertReport;

/// Bytes with three significant digits, in powers of 1024: `1.25 MiB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = count as f64;
    let mut unit = "B";
    for next in UNITS {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    let decimals = match value {
        _ if unit == "B" => 0,
        value if value < 10.0 => 2,
        value if value < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.decimals$} {unit}")
}

/// The first digits of a digest: enough to find it again.
pub(crate) fn short(digest: &content::Digest) -> String {
    digest.hex().chars().take(12).collect()
}

impl fmt::Display for ConvertReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for image in &self.images {
            writeln!(f, "{}  {}", image.platform, image.digest)?;
            for layer in &image.layers {
                writeln!(
                    f,
                    "  {:9}  {} -> {}  {:>9} -> {:>9}  {:>7.1} s",
                    layer.outcome.as_str(),
                    short(&layer.source_digest),
                    short(&layer.digest),
                    bytes(layer.source_size),
                    bytes(layer.size),
                    layer.seconds
                )?;
            }
        }
        if let Some(digest) = &self.toc_image {
            writeln!(f, "tables of contents  {digest}")?;
        }
        let percent = self.bytes as f64 / self.source_bytes.max(1) as f64 * 100.0;
        let (source, now) = (bytes(self.source_bytes), bytes(self.bytes));
        write!(f, "{}@{}\n{source} -> {now} ({percent:.1} %)", self.destination, self.digest)?;
        writeln!(f, " in {:.1} s", self.seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn sizes_are_short_and_true() {
        let shown: Vec<String> =
            [0, 1023, 1024, 1_310_720, 52_428_800, 1 << 40, u64::MAX].map(bytes).to_vec();
        assert_eq!(shown, ["0 B", "1023 B", "1.00 KiB", "1.25 MiB", "50.0 MiB", "1.00 TiB", "16384 PiB"]);
    }
}
