//! What is promised, and the tables.

use std::fmt::Write as _;
use std::process::Command;
use std::time::Duration;

use crate::Sizes;
use crate::measure::{Figures, TarSize};

/// Time on the clock, of `ctr-remote`'s.
const TIME: f64 = 0.2;
/// Bytes of the layer, of `ctr-remote`'s.
const SIZE: f64 = 1.01;
/// Peak of the resident memory, in MiB, whatever the layer's size.
const MEMORY_MIB: u64 = 256;
/// How much memory each entry may take, in bytes: its place in the table of contents, which is written at the end. The
/// bytes of a layer take none.
const BYTES_PER_ENTRY: u64 = 1536;

/// One converter with its flags.
#[derive(Debug)]
pub struct Contender {
    /// What it is called in the tables.
    pub name: String,
    /// The command, without the two names at its end.
    pub command: Command,
    /// Whether it is ours.
    pub ours: bool,
    /// The command as one would type it.
    typed: String,
    /// Whether it makes zstd:chunked.
    zstd: bool,
}

impl Contender {
    /// A converter of others.
    pub fn new(name: &str, program: &str, flags: &[&str], command: Command) -> Self {
        let zstd = flags.iter().any(|flag| flag.contains("zstdchunked"));
        let typed = [&[program], flags].concat().join(" ");
        Self { name: name.into(), command, ours: false, typed, zstd }
    }

    /// It is our own.
    pub fn ours(self) -> Self {
        Self { ours: true, ..self }
    }
}

/// Everything that was measured.
#[derive(Debug)]
pub struct Report {
    /// Of the layers.
    pub sizes: Sizes,
    /// A layer's tar, and the peak of our memory.
    pub memory: Vec<(TarSize, u64)>,
    rows: Vec<(Contender, Vec<Figures>)>,
}

impl Report {
    /// Nothing measured yet.
    pub fn new(sizes: Sizes) -> Self {
        Self { sizes, memory: Vec::new(), rows: Vec::new() }
    }

    /// One more run of a contender.
    pub fn add(&mut self, contender: Contender, figures: Figures) {
        match self.rows.iter_mut().find(|(known, _)| known.name == contender.name) {
            Some((_, runs)) => runs.push(figures),
            None => self.rows.push((contender, vec![figures])),
        }
    }

    /// The row that others are compared with: `ctr-remote` of the same format.
    fn reference(&self, zstd: bool) -> Option<Figures> {
        let theirs = self.rows.iter().find(|(contender, _)| !contender.ours && contender.zstd == zstd);
        theirs.map(|(_, runs)| median(runs))
    }

    /// A line for each contender: name, seconds, core seconds, MiB of memory, MB of the layer, and the two ratios.
    fn lines(&self) -> Vec<[String; 7]> {
        let line = |(contender, runs): &(Contender, Vec<Figures>)| {
            let figures = median(runs);
            let ratio = |of: fn(Figures) -> f64| match self.reference(contender.zstd) {
                Some(theirs) => format!("{:.3}", of(figures) / of(theirs)),
                None => "-".into(),
            };
            [
                contender.name.clone(),
                format!("{:.1}", figures.wall.as_secs_f64()),
                format!("{:.1}", figures.cpu.as_secs_f64()),
                format!("{:.1}", figures.size as f64 / 1e6),
                (figures.peak_memory >> 20).to_string(),
                ratio(|figures| figures.wall.as_secs_f64()),
                ratio(|figures| figures.size as f64),
            ]
        };
        self.rows.iter().map(line).collect()
    }

    const HEAD: [&'static str; 7] =
        ["converter", "wall s", "core s", "layer MB", "memory MiB", "time ratio", "size ratio"];

    /// For a terminal.
    pub fn text(&self) -> String {
        let mut text = format!("\n{}\n\n", self.what());
        let head = Self::HEAD.map(str::to_owned);
        for line in [head].iter().chain(&self.lines()) {
            let [name, rest @ ..] = line;
            let _ = write!(text, "{name:<46}");
            for word in rest {
                let _ = write!(text, "{word:>12}");
            }
            text.push('\n');
        }
        text.push('\n');
        for (size, memory) in &self.memory {
            let (mb, mib) = (size.bytes / 1_000_000, memory >> 20);
            let entries = size.entries;
            let _ = writeln!(
                text,
                "pantala, a layer of {mb:>5} MB with {entries:>6} entries: {mib:>4} MiB at most"
            );
        }
        text
    }

    /// For a file.
    pub fn markdown(&self) -> String {
        let mut text = format!("{}\n\n", self.what());
        let row = |words: &[String]| format!("| {} |\n", words.join(" | "));
        text += &row(&Self::HEAD.map(str::to_owned));
        text += "|---|---|---|---|---|---|---|\n";
        for line in self.lines() {
            text += &row(&line);
        }
        text += "\nThe commands, each with SRC and DST, names in the same containerd:\n\n";
        for (contender, _) in &self.rows {
            let _ = writeln!(text, "* {}: `{}`", contender.name, contender.typed);
        }
        text += "\n| tar of the layer, MB | entries | peak memory of pantala, MiB |\n|---|---|---|\n";
        for (size, memory) in &self.memory {
            let _ = writeln!(text, "| {} | {} | {} |", size.bytes / 1_000_000, size.entries, memory >> 20);
        }
        text
    }

    fn what(&self) -> String {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        format!(
            "One layer, a Debian with Python, compilers and tools: a tar of {} MB, gzipped {} MB. {cores} cores; from \
             a local containerd to the same.",
            self.sizes.large.bytes / 1_000_000,
            self.sizes.compressed / 1_000_000
        )
    }

    /// What was promised and not kept.
    pub fn broken_promises(&self, alone: bool) -> Vec<String> {
        let mut broken = Vec::new();
        for (contender, runs) in self.rows.iter().filter(|(contender, _)| contender.ours) {
            let figures = median(runs);
            let Some(theirs) = self.reference(contender.zstd).filter(|_| !alone && !contender.zstd) else {
                continue;
            };
            let time = figures.wall.as_secs_f64() / theirs.wall.as_secs_f64();
            if time > TIME {
                broken.push(format!("{}: {time:.3} of ctr-remote's time, promised {TIME}", contender.name));
            }
            let size = figures.size as f64 / theirs.size as f64;
            if size > SIZE {
                broken.push(format!("{}: {size:.3} of ctr-remote's size, promised {SIZE}", contender.name));
            }
        }
        if let Some(most) = self.memory.iter().map(|(_, memory)| memory >> 20).max()
            && most > MEMORY_MIB
        {
            broken.push(format!("{most} MiB of memory, promised {MEMORY_MIB}"));
        }
        if let [(small, least), .., (huge, most)] = self.memory.as_slice() {
            let growth = most.saturating_sub(*least) / huge.entries.saturating_sub(small.entries).max(1);
            if growth > BYTES_PER_ENTRY {
                broken.push(format!("{growth} bytes of memory per entry, promised {BYTES_PER_ENTRY}"));
            }
        }
        broken
    }
}

/// The run with the median time.
fn median(runs: &[Figures]) -> Figures {
    let mut sorted = runs.to_vec();
    sorted.sort_by_key(|figures| figures.wall);
    sorted.get(sorted.len() / 2).copied().unwrap_or(Figures { wall: Duration::ZERO, ..Figures::default() })
}
