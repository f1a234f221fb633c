//! What a node, or a snapshotter alone, tells about itself: the shape that `pantala status --output json` prints.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

/// Fallbacks that the table tells; the JSON has more.
const SHOWN_FALLBACKS: usize = 5;

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
    /// Whether there is no node, but a snapshotter that reads at registries by itself.
    #[serde(default)]
    pub alone: bool,
    /// The snapshotter, if there is one.
    #[serde(default)]
    pub snapshotter: Option<SnapshotterLine>,
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

/// What the snapshotter did.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct SnapshotterLine {
    /// The socket that containerd knows.
    pub address: String,
    /// Layers that were left to containerd to download and unpack, by the reason.
    pub fallbacks: BTreeMap<String, u64>,
    /// The last of them that were no ordinary images, the newest last.
    pub recent_fallbacks: Vec<snapshotter::Fallback>,
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
    /// Kernel driver; empty if the layer is not mounted now.
    pub driver: String,
    /// Where absent bytes come from: `registry`, `swarm`, or `disk` if there are none.
    #[serde(default)]
    pub source: String,
    /// Digest of its table of contents.
    #[serde(default)]
    pub toc: String,
    /// The snapshot's name.
    #[serde(default)]
    pub snapshot: String,
    /// What stargz-snapshotter shows in `.stargz-snapshotter/<layer digest>.json` of the layer.
    #[serde(default)]
    pub state: Option<serde_json::Value>,
}

impl LayerLine {
    /// The line of `layer`, whose absent bytes come from `source`.
    pub fn of(layer: snapshotter::MountedLayer, source: &str) -> Self {
        let is_whole = layer.mounted && layer.fetched == layer.size;
        Self {
            mountpoint: layer.mountpoint.display().to_string(),
            digest: layer.layer.to_string(),
            image: layer.image,
            size: layer.size,
            fetched: layer.fetched,
            touched: layer.touched,
            driver: layer.driver.to_owned(),
            source: if is_whole { "disk" } else { source }.to_owned(),
            toc: layer.toc.to_string(),
            snapshot: layer.name,
            state: layer.state,
        }
    }
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
    let mut text = String::new();
    if status.alone {
        snapshotter_head(&mut text, status);
    } else {
        node_head(&mut text, status);
    }
    if status.layers.is_empty() {
        text.push_str("no layer is mounted\n");
    } else {
        text.push_str(&layers(&status.layers));
    }
    if let Some(snapshotter) = &status.snapshotter {
        fallbacks(&mut text, snapshotter);
    }
    text
}

fn snapshotter_head(text: &mut String, status: &Status) {
    let address = status.snapshotter.as_ref().map_or("", |snapshotter| snapshotter.address.as_str());
    let up = duration(status.uptime_seconds);
    let _ = writeln!(
        text,
        "{} (pantala {}), up {up}, snapshotter on {address}: reads at registries by itself\n",
        status.hostname, status.version
    );
}

fn node_head(text: &mut String, status: &Status) {
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
    let mut rows = vec![["NODE", "ADDRESS", "ROLE", "CONTENTS", "BYTES"].map(String::from).to_vec()];
    for node in &status.nodes {
        let role = if node.seed { "seed" } else { "peer" };
        rows.push(vec![
            node.hostname.clone(),
            node.address.clone(),
            role.into(),
            node.contents.to_string(),
            size(node.bytes),
        ]);
    }
    text.push_str(&columns(&rows));
    text.push('\n');
}

/// One line for each layer, those of an image together.
fn layers(layers: &[LayerLine]) -> String {
    let head = ["LAYER", "IMAGE", "SIZE", "FETCHED", "TOUCHED", "DRIVER", "SOURCE"];
    let mut rows = vec![head.map(String::from).to_vec()];
    let mut sorted: Vec<&LayerLine> = layers.iter().collect();
    sorted.sort_by(|a, b| (&a.image, &a.mountpoint).cmp(&(&b.image, &b.mountpoint)));
    for layer in sorted {
        rows.push(vec![
            short(&layer.digest),
            layer.image.clone(),
            size(layer.size),
            share(layer.fetched, layer.size),
            share(layer.touched, layer.size),
            if layer.driver.is_empty() { "not mounted".into() } else { layer.driver.clone() },
            layer.source.clone(),
        ]);
    }
    let whole = |part: fn(&LayerLine) -> u64| layers.iter().map(part).fold(0, u64::saturating_add);
    let all = whole(|layer| layer.size);
    if layers.len() > 1 {
        rows.push(vec![
            format!("{} layers", layers.len()),
            String::new(),
            size(all),
            share(whole(|layer| layer.fetched), all),
            share(whole(|layer| layer.touched), all),
        ]);
    }
    columns(&rows)
}

fn fallbacks(text: &mut String, snapshotter: &SnapshotterLine) {
    let happened: Vec<_> = snapshotter
        .fallbacks
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(reason, count)| format!("{count} {}", reason.replace('_', " ")))
        .collect();
    if !happened.is_empty() {
        let _ = writeln!(text, "\nlayers left to containerd: {}", happened.join(", "));
    }
    for fallback in snapshotter.recent_fallbacks.iter().rev().take(SHOWN_FALLBACKS) {
        let image = if fallback.image.is_empty() { "an image" } else { &fallback.image };
        let _ = writeln!(text, "  {image} {}: {}", short(&fallback.layer), fallback.error);
    }
}

fn short(digest: &str) -> String {
    digest.strip_prefix("sha256:").unwrap_or(digest).chars().take(12).collect()
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

    #[test]
    fn a_snapshotter_alone_tells_its_layers_and_why_others_are_not_among_them() {
        let line = |image: &str| LayerLine {
            digest: format!("sha256:{}", "ab".repeat(32)),
            image: image.into(),
            size: 200,
            fetched: 100,
            source: "registry".into(),
            driver: "fuse".into(),
            ..LayerLine::default()
        };
        let fallback = snapshotter::Fallback {
            at: 1,
            reason: snapshotter::Reason::Timeout,
            image: "r/slow:1".into(),
            layer: format!("sha256:{}", "cd".repeat(32)),
            error: "no table of contents within 10 s".into(),
        };
        let status = Status {
            alone: true,
            layers: vec![line("r/b:1"), line("r/a:1")],
            snapshotter: Some(SnapshotterLine {
                address: "/run/s.sock".into(),
                fallbacks: [("timeout".to_owned(), 1), ("mount".to_owned(), 0)].into(),
                recent_fallbacks: vec![fallback],
            }),
            ..Status::default()
        };
        let text = table(&status);
        assert!(text.contains("/run/s.sock") && !text.contains("scheduler"), "{text}");
        assert!(text.find("r/a:1") < text.find("r/b:1") && text.contains("200 B (50 %)"), "{text}");
        assert!(text.contains("left to containerd: 1 timeout\n"), "{text}");
        assert!(text.contains("r/slow:1 cdcdcdcdcdcd: no table"), "{text}");
    }
}
