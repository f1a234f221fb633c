//! What the demo tells: a table, a file, and which promises were kept.

use std::fmt::Write as _;

use serde::Serialize;
use serde_json::json;
use testkit::node::Sources;

use crate::flow::mb;

/// The most that the first lazy start may move before its output, as a share of the image.
const FIRST_START_SHARE: f64 = 0.25;
/// The most that the second and third node together may add to the registry's bytes.
const LATER_NODES_SHARE: f64 = 0.02;

/// The last words.
pub const HOW_TO_GO_ON: &str = "
How to go on:
  target/release/pantala up --help          everything on this machine, one command
  target/release/pantala image convert --help
  docs/demo.md                              what was just shown, explained
  README.md                                 a cluster of your own in a minute
";

/// Everything that was measured.
#[derive(Debug)]
pub struct Report {
    /// Bytes of the converted image's layers.
    pub image_bytes: u64,
    /// Bytes of the original image's layers.
    pub original_bytes: u64,
    /// One after another.
    pub nodes: Vec<Start>,
    /// The registry's part in those.
    pub origin: Origin,
    /// The registry's bytes when the first node was complete.
    pub first_node_bytes: u64,
    /// The ordinary way.
    pub eager: Eager,
    /// A fresh image on all nodes at once.
    pub fresh: Vec<Start>,
    /// The registry's part in that.
    pub fresh_origin: Origin,
    /// Bytes of the fresh image's layers.
    pub fresh_bytes: u64,
}

/// One lazy start on one node.
#[derive(Debug, Serialize)]
pub struct Start {
    /// The node.
    pub name: String,
    /// From the start of the pull to the first line of output.
    pub ready_ms: u64,
    /// Of that, the pull.
    pub pull_ms: u64,
    /// What the container printed.
    pub stdout: String,
    /// Where the node's bytes came from until then.
    pub bytes: Sources,
    /// Bytes that came down the node's link until then, headers, manifests and messages included: the kernel's count.
    pub link_bytes: u64,
    /// Blob bytes that the registry sent, to whomever, until then.
    pub registry_bytes: u64,
    /// Blob requests that it answered, whosever, until then.
    pub registry_requests: u64,
    /// A larger program in a second container, from its start to its first line.
    pub program_ms: u64,
    /// What that printed.
    pub program_stdout: String,
}

/// The registry's part.
#[derive(Debug, Serialize)]
pub struct Origin {
    /// Blob bytes that it sent.
    pub bytes: u64,
    /// Blob requests that it answered.
    pub blob_requests: u64,
    /// Blob bytes that it sent at least once.
    pub unique_bytes: u64,
}

/// The ordinary way: pull, unpack, run.
#[derive(Debug, Serialize)]
pub struct Eager {
    /// From the start of the pull to the first line of output.
    pub ready_ms: u64,
    /// Blob bytes that the registry sent.
    pub bytes: u64,
    /// What the container printed.
    pub stdout: String,
    /// The larger program, afterwards.
    pub program_ms: u64,
}

impl Report {
    /// For a person.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let _ = writeln!(
            text,
            "\nA Python image, {} as an ordinary one, {} converted, over 200 Mbit/s and 20 ms.\n\
             Times are from the start of the pull to the container's first line of output.\n",
            mb(self.original_bytes),
            mb(self.image_bytes)
        );
        let mut rows = vec![
            ["", "python3 -V", "program", "fetched", "of image", "registry", "requests", "seed", "peers"]
                .map(str::to_owned)
                .to_vec(),
            vec![
                "ordinary pull".into(),
                seconds(self.eager.ready_ms),
                seconds(self.eager.program_ms),
                mb(self.eager.bytes),
                percent(self.eager.bytes, self.original_bytes),
                mb(self.eager.bytes),
            ],
        ];
        for start in &self.nodes {
            rows.push(start.row(&format!("{} lazy", start.name), self.image_bytes));
        }
        for start in &self.fresh {
            rows.push(start.row(&format!("{} fresh image", start.name), self.fresh_bytes));
        }
        text += &columns(&rows);
        let _ = writeln!(
            text,
            "\nThe registry sent each byte of the first image {:.3} times ({} in {} requests), of the fresh one, asked for by \
             all nodes at once, {:.3} times ({} in {}).\nAfter the first node was complete the other two added {} ({}).",
            ratio(self.origin.bytes, self.origin.unique_bytes),
            mb(self.origin.bytes),
            self.origin.blob_requests,
            ratio(self.fresh_origin.bytes, self.fresh_origin.unique_bytes),
            mb(self.fresh_origin.bytes),
            self.fresh_origin.blob_requests,
            mb(self.later_bytes()),
            percent(self.later_bytes(), self.first_node_bytes)
        );
        text
    }

    /// For a program.
    pub fn json(&self) -> String {
        let value = json!({
            "image_bytes": self.image_bytes,
            "nodes": self.nodes,
            "origin": self.origin,
            "eager": self.eager,
            "original_bytes": self.original_bytes,
            "later_nodes_bytes": self.later_bytes(),
            "fresh": {"image_bytes": self.fresh_bytes, "nodes": self.fresh, "origin": self.fresh_origin},
        });
        format!("{value:#}\n")
    }

    /// What the project promises and this run did not keep, a sentence each.
    pub fn broken_promises(&self) -> Vec<String> {
        let mut broken = Vec::new();
        let mut check = |kept: bool, sentence: String| {
            if !kept {
                broken.push(sentence);
            }
        };
        check(
            self.eager.stdout.starts_with("Python 3."),
            format!("the ordinary pull printed {:?}", self.eager.stdout),
        );
        for start in self.nodes.iter().chain(&self.fresh) {
            let Start { name, stdout, program_stdout, .. } = start;
            check(stdout.starts_with("Python 3."), format!("{name} printed {stdout:?} for python3 -V"));
            check(
                program_stdout.starts_with(testkit::image::python::PROGRAM_SAYS),
                format!("{name} printed {program_stdout:?} for the program"),
            );
        }
        for start in &self.nodes {
            check(
                start.ready_ms < self.eager.ready_ms,
                format!(
                    "{} was ready after {} ms, an ordinary pull after {}",
                    start.name, start.ready_ms, self.eager.ready_ms
                ),
            );
        }
        if let Some(first) = self.nodes.first() {
            let moved = first.bytes.fetched();
            check(
                ratio(moved, self.image_bytes) <= FIRST_START_SHARE,
                format!(
                    "the first lazy start moved {} of the image, promised are 25 %",
                    percent(moved, self.image_bytes)
                ),
            );
        }
        check(
            ratio(self.later_bytes(), self.first_node_bytes) <= LATER_NODES_SHARE,
            format!(
                "the later nodes added {} to the registry's bytes, promised are 2 %",
                percent(self.later_bytes(), self.first_node_bytes)
            ),
        );
        broken
    }

    fn later_bytes(&self) -> u64 {
        self.origin.bytes - self.first_node_bytes
    }
}

impl Start {
    fn row(&self, title: &str, image_bytes: u64) -> Vec<String> {
        let fetched = self.bytes.fetched();
        vec![
            title.into(),
            seconds(self.ready_ms),
            seconds(self.program_ms),
            mb(fetched),
            percent(fetched, image_bytes),
            mb(self.registry_bytes),
            self.registry_requests.to_string(),
            mb(self.bytes.seed),
            mb(self.bytes.peer),
        ]
    }
}

fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(String::len).max().unwrap_or(0);
    let widths: Vec<_> = (0..count).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            // Names to the left, figures to the right.
            let _ =
                if column == 0 { write!(line, "{cell:<width$}") } else { write!(line, "  {cell:>width$}") };
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

fn seconds(ms: u64) -> String {
    format!("{:.2} s", ms as f64 / 1000.0)
}

fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}

fn percent(part: u64, whole: u64) -> String {
    format!("{:.1} %", ratio(part, whole) * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(name: &str, ready_ms: u64, fetched: u64) -> Start {
        Start {
            name: name.into(),
            ready_ms,
            pull_ms: ready_ms / 2,
            stdout: "Python 3.11.2".into(),
            bytes: Sources { origin: fetched, ..Sources::default() },
            link_bytes: fetched,
            registry_bytes: fetched,
            registry_requests: 7,
            program_ms: 200,
            program_stdout: "pantala demo: it runs".into(),
        }
    }

    fn report() -> Report {
        Report {
            image_bytes: 100_000_000,
            original_bytes: 95_000_000,
            nodes: vec![start("node1", 900, 10_000_000), start("node2", 500, 9_000_000)],
            origin: Origin { bytes: 101_000_000, blob_requests: 80, unique_bytes: 100_000_000 },
            first_node_bytes: 100_000_000,
            eager: Eager {
                ready_ms: 5000,
                bytes: 95_000_000,
                stdout: "Python 3.11.2".into(),
                program_ms: 100,
            },
            fresh: vec![start("node1", 1000, 9_000_000)],
            fresh_origin: Origin { bytes: 100_000_000, blob_requests: 90, unique_bytes: 100_000_000 },
            fresh_bytes: 100_000_000,
        }
    }

    #[test]
    fn kept_promises_are_not_complained_about() {
        assert_eq!(report().broken_promises(), Vec::<String>::new());
    }

    #[test]
    fn each_broken_promise_is_named() {
        type Break = fn(&mut Report);
        let cases: [(Break, &str); 5] = [
            (|report| report.nodes[1].stdout = "sh: not found".into(), "node2 printed \"sh: not found\""),
            (|report| report.fresh[0].program_stdout.clear(), "node1 printed \"\" for the program"),
            (
                |report| report.nodes[1].ready_ms = 6000,
                "node2 was ready after 6000 ms, an ordinary pull after 5000",
            ),
            (|report| report.nodes[0].bytes.origin = 26_000_000, "moved 26.0 % of the image"),
            (|report| report.origin.bytes = 103_000_000, "added 3.0 %"),
        ];
        for (spoil, sentence) in cases {
            let mut report = report();
            spoil(&mut report);
            let broken = report.broken_promises();
            assert!(broken.len() == 1 && broken[0].contains(sentence), "{sentence:?}: {broken:?}");
        }
    }

    #[test]
    fn the_file_has_the_promised_shape() {
        let value: serde_json::Value = serde_json::from_str(&report().json()).unwrap();
        assert_eq!(value["image_bytes"], 100_000_000);
        let node = &value["nodes"][0];
        assert_eq!((&node["name"], &node["ready_ms"]), (&json!("node1"), &json!(900)));
        assert_eq!(node["bytes"], json!({"store": 0, "peer": 0, "seed": 0, "origin": 10_000_000}));
        assert_eq!(value["origin"]["unique_bytes"], 100_000_000);
        assert_eq!(value["origin"]["blob_requests"], 80);
        assert_eq!(
            (&value["eager"]["ready_ms"], &value["eager"]["bytes"]),
            (&json!(5000), &json!(95_000_000))
        );
        assert!(report().table().contains("node2 lazy"), "{}", report().table());
    }
}
