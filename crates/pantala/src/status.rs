//! What a node tells about itself: the shape that `pantala status --output json` prints.

use serde::{Deserialize, Serialize};

/// Everything `pantala status` shows.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Status {
    /// Version of the node that answered.
    pub version: String,
    /// Its name.
    pub hostname: String,
    /// Seconds since it started.
    pub uptime_seconds: u64,
    /// Whether a scheduler is connected.
    pub scheduler: bool,
    /// Bytes by where they came from.
    pub bytes: BySource,
    /// Bytes sent to other nodes.
    pub uploaded: u64,
    /// Bytes of pieces on disk.
    pub stored: u64,
    /// Nodes that this one exchanges pieces with.
    pub neighbours: u64,
    /// Layers mounted here.
    pub layers: Vec<LayerLine>,
    /// Nodes of the cluster, as the scheduler sees them.
    pub nodes: Vec<NodeLine>,
}

/// Bytes by where they came from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BySource {
    /// Read from this node's own disk.
    pub store: u64,
    /// Received from other nodes.
    pub peer: u64,
    /// Received from seed peers.
    pub seed: u64,
    /// Read at registries.
    pub origin: u64,
}

/// A mounted layer.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct LayerLine {
    /// Where it is mounted.
    pub mountpoint: String,
    /// Digest of its blob.
    pub digest: String,
    /// The image that it was prepared for.
    pub image: String,
    /// Bytes of all its files.
    pub size: u64,
    /// Of those, present on disk.
    pub fetched: u64,
    /// Of those, asked for by a reader.
    pub touched: u64,
    /// Kernel driver.
    pub driver: String,
}

/// A node of the cluster.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct NodeLine {
    /// Its name.
    pub hostname: String,
    /// Where it serves pieces.
    pub address: String,
    /// Whether it is a seed peer.
    pub seed: bool,
    /// Contents of which it has at least one piece.
    pub contents: u64,
    /// Bytes of those.
    pub bytes: u64,
}

/// The table for a person.
pub fn table(status: &Status) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    let scheduler = if status.scheduler { "connected" } else { "not connected" };
    let _ = writeln!(
        text,
        "{} (pantala {}), up {}, scheduler {scheduler}, {} neighbours",
        status.hostname,
        status.version,
        duration(status.uptime_seconds),
        status.neighbours
    );
    let bytes = status.bytes;
    let _ = writeln!(
        text,
        "bytes from: store {}, peers {}, seeds {}, registries {}; sent to peers {}; kept on disk {}\n",
        size(bytes.store),
        size(bytes.peer),
        size(bytes.seed),
        size(bytes.origin),
        size(status.uploaded),
        size(status.stored)
    );
    let mut rows = vec![["NODE", "ADDRESS", "ROLE", "CONTENTS", "BYTES", ""].map(String::from).to_vec()];
    for node in &status.nodes {
        let role = if node.seed { "seed" } else { "peer" };
        rows.push(vec![
            node.hostname.clone(),
            node.address.clone(),
            role.into(),
            node.contents.to_string(),
            size(node.bytes),
            String::new(),
        ]);
    }
    text.push_str(&columns(&rows));
    text.push('\n');
    let mut rows =
        vec![["LAYER", "IMAGE", "SIZE", "FETCHED", "TOUCHED", "DRIVER"].map(String::from).to_vec()];
    for layer in &status.layers {
        rows.push(vec![
            layer.digest.strip_prefix("sha256:").unwrap_or(&layer.digest).chars().take(12).collect(),
            layer.image.clone(),
            size(layer.size),
            share(layer.fetched, layer.size),
            share(layer.touched, layer.size),
            layer.driver.clone(),
        ]);
    }
    if status.layers.is_empty() {
        text.push_str("no layer is mounted\n");
    } else {
        text.push_str(&columns(&rows));
    }
    text
}

/// Left-aligned columns, two spaces apart.
pub fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..count)
        .map(|i| rows.iter().filter_map(|row| row.get(i)).map(|cell| cell.chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in rows {
        let line: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(line.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// Bytes for a person: `12.3 MiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = "B";
    for next in UNITS {
        unit = next;
        if value < 1024.0 {
            break;
        }
        if next != "TiB" {
            value /= 1024.0;
        }
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") }
}

fn share(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "-".into();
    }
    format!("{} ({:.0} %)", size(part), part as f64 * 100.0 / whole as f64)
}

fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_for_a_person() {
        for (bytes, text) in
            [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1_572_864, "1.5 MiB"), (3 << 40, "3.0 TiB")]
        {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn the_table_names_nodes_and_layers() {
        let status = Status {
            hostname: "alpha".into(),
            layers: vec![LayerLine {
                digest: format!("sha256:{}", "ab".repeat(32)),
                size: 200,
                fetched: 50,
                ..LayerLine::default()
            }],
            nodes: vec![NodeLine { hostname: "beta".into(), seed: true, ..NodeLine::default() }],
            ..Status::default()
        };
        let text = table(&status);
        assert!(text.contains("beta") && text.contains("seed"), "{text}");
        assert!(text.contains("abababababab") && text.contains("50 B (25 %)"), "{text}");
    }
}
