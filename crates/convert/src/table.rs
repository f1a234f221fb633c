//! Reports for people.

use std::fmt;

use crate::inspect::{ImageReport, LayerReport, PlatformReport};
use crate::report::ConvertReport;

/// Bytes with three significant digits, in powers of 1024: `1.25 MiB`.
fn bytes(count: u64) -> String {
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

fn or_dash<T: fmt::Display>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

fn short(digest: &content::Digest) -> String {
    digest.hex().chars().take(12).collect()
}

impl fmt::Display for ImageReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.reference)?;
        writeln!(f, "  {}  {}", self.digest, self.media_type)?;
        self.platforms.iter().try_for_each(|platform| platform.fmt(f))
    }
}

impl fmt::Display for PlatformReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lazy = if self.lazy { "mounts lazily" } else { "is pulled before it starts" };
        writeln!(f)?;
        let (platform, layers) = (&self.platform, self.layers.len());
        writeln!(f, "{platform}  {}  {layers} layers, {}, {lazy}", short(&self.digest), bytes(self.size))?;
        writeln!(
            f,
            "  {:12}  {:>9}  {:12}  {:>9}  {:>8}  {:>8}  {:>8}  {:11}  {:>9}",
            "LAYER", "SIZE", "KIND", "INFLATED", "ENTRIES", "FILES", "CHUNKS", "LANDMARK", "PREFETCH"
        )?;
        self.layers.iter().try_for_each(|layer| layer.fmt(f))
    }
}

impl fmt::Display for LayerReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "  {:12}  {:>9}  {:12}  {:>9}  {:>8}  {:>8}  {:>8}  {:11}  {:>9}",
            short(&self.digest),
            bytes(self.size),
            self.kind,
            or_dash(self.uncompressed_size.or(self.file_bytes).map(bytes)),
            or_dash(self.entries),
            or_dash(self.files),
            or_dash(self.chunks),
            or_dash(self.landmark),
            or_dash(self.prefetch_bytes.map(bytes)),
        )?;
        self.problem.iter().try_for_each(|problem| writeln!(f, "  {:12}  {problem}", ""))
    }
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
