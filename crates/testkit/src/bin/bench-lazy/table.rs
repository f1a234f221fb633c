//! What was measured, what is promised, and both as tables.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::side::Who;
use crate::side::Who::{Fuse, Native, Overlayfs, Stargz};

/// What is measured, in the order of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Measure {
    /// From the pull's begin until the image is mounted.
    Pull,
    /// Requests for blobs until then, for each layer.
    PullRequests,
    /// A small file that nobody has read: open, read, close.
    SmallCold,
    /// 50 reads of 4 KiB, here and there in a file that nobody has read, one after another.
    RandomCold,
    /// What the registry sent for them.
    RandomBytes,
    /// The same, of the compressed bytes of the touched chunks.
    RandomOver,
    /// What the disk has more after them, of the inflated bytes of the touched chunks.
    RandomDisk,
    /// The first 4 KiB of the large file that nobody has read.
    FirstCold,
    /// All of that file, from its beginning to its end.
    SequentialCold,
    /// Time on the cores that the snapshotter used for it.
    SequentialCpu,
    /// How much of that in the kernel.
    SequentialKernel,
    /// The snapshotter's memory at its peak, from the small files on.
    ColdPeak,
    /// The large file again.
    SequentialWarm,
    /// The small files again.
    SmallWarm,
    /// Attributes, a second or more after they were asked for.
    Stat,
    /// Every folder listed, and the attributes of everything.
    Walk,
    /// Time on the cores that the snapshotter used for all four.
    WarmCpu,
    /// Files of complete layers before which the kernel still asks: where there is none, there are no events.
    Marks,
    /// The large file from disk.
    SequentialDropped,
    /// A small file from disk.
    SmallDropped,
    /// The snapshotter's memory with many mounted layers.
    Crowd,
    /// And when everything in them was listed.
    CrowdWalked,
}

impl Measure {
    const fn name(self) -> (&'static str, &'static str) {
        match self {
            Self::Pull => ("pull and mount", "ms"),
            Self::PullRequests => ("blob requests per layer until then", ""),
            Self::SmallCold => ("small file, cold", "µs"),
            Self::RandomCold => ("50 random reads of 4 KiB, cold", "ms"),
            Self::RandomBytes => ("  bytes from the registry", "MB"),
            Self::RandomOver => ("  of the touched chunks", ""),
            Self::RandomDisk => ("  on disk, of the touched chunks", ""),
            Self::FirstCold => ("first 4 KiB of 300 MB, cold", "ms"),
            Self::SequentialCold => ("all 300 MB, cold", "MB/s"),
            Self::SequentialCpu | Self::WarmCpu => ("  the snapshotter's core time", "s"),
            Self::SequentialKernel => ("  of it in the kernel", "s"),
            Self::ColdPeak => ("memory, peak of the cold run", "MB"),
            Self::SequentialWarm => ("300 MB, warm", "MB/s"),
            Self::SmallWarm => ("small file, warm", "µs"),
            Self::Stat => ("stat, warm, after a second", "µs"),
            Self::Walk => ("walk of the tree, after a second", "ms"),
            Self::Marks => ("fanotify marks, complete layers", ""),
            Self::SequentialDropped => ("300 MB, caches dropped", "MB/s"),
            Self::SmallDropped => ("small file, caches dropped", "µs"),
            Self::Crowd => ("memory, 20 layers of 10,000 files", "MB"),
            Self::CrowdWalked => ("  after a walk through all", "MB"),
        }
    }

    /// Whether more is better.
    const fn is_rate(self) -> bool {
        matches!(self, Self::SequentialCold | Self::SequentialWarm | Self::SequentialDropped)
    }
}

/// Everything that was measured.
#[derive(Debug, Default)]
pub struct Report {
    figures: BTreeMap<(Measure, Who), Vec<f64>>,
}

/// A promise: a figure of ours, by itself or of a peer's.
#[derive(Debug, Clone, Copy)]
struct Promise {
    who: Who,
    measure: Measure,
    /// Of whose figure.
    of: Option<Who>,
    /// At most, or for a rate at least.
    bound: f64,
    /// Marked *pending* in `SPECIFICATION.md`: told, and no failure.
    pending: bool,
}

impl Promise {
    /// A goal that is not reached yet.
    const fn pending(self) -> Self {
        Self { pending: true, ..self }
    }
}

/// What became of a promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Kept,
    /// Not reached, and not promised yet.
    Pending,
    Broken,
}

impl Verdict {
    const fn word(self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::Pending => "pending",
            Self::Broken => "BROKEN",
        }
    }
}

/// Ours, the measure, the peer, the bound.
const fn promise(who: Who, measure: Measure, of: Option<Who>, bound: f64) -> Promise {
    Promise { who, measure, of, bound, pending: false }
}

/// What `SPECIFICATION.md` says. Of times and bytes at most so much of the peer's, of rates at least so much: where a
/// specification says "0.9 of overlayfs" of something that is measured as a time, that is `1 / 0.9` of its time.
fn promises() -> Vec<Promise> {
    let mut list = Vec::new();
    for who in [Fuse, Native] {
        list.extend([
            promise(who, Measure::SequentialCold, Some(Stargz), 6.0),
            promise(who, Measure::FirstCold, Some(Stargz), 1.0 / 3.0),
            promise(who, Measure::RandomCold, Some(Stargz), 1.0 / 3.0),
            promise(who, Measure::RandomOver, None, 1.1),
            promise(who, Measure::RandomDisk, None, 1.05),
            promise(who, Measure::SmallCold, Some(Stargz), 0.67),
            promise(who, Measure::ColdPeak, None, 100.0),
            promise(who, Measure::Crowd, None, 40.0).pending(),
        ]);
    }
    list.extend([
        promise(Fuse, Measure::SequentialWarm, Some(Stargz), 2.0).pending(),
        promise(Fuse, Measure::SmallWarm, Some(Stargz), 0.5),
        promise(Fuse, Measure::Stat, Some(Stargz), 0.2),
        promise(Native, Measure::SequentialWarm, Some(Overlayfs), 0.98),
        promise(Native, Measure::SequentialDropped, Some(Overlayfs), 0.9).pending(),
        promise(Native, Measure::SmallWarm, Some(Overlayfs), 1.0 / 0.77),
        promise(Native, Measure::Stat, Some(Overlayfs), 1.0 / 0.9),
        promise(Native, Measure::Walk, Some(Overlayfs), 1.0 / 0.9),
        promise(Native, Measure::Marks, None, 0.0),
    ]);
    list
}

impl Report {
    /// One more figure.
    pub fn add(&mut self, measure: Measure, who: Who, figure: f64) {
        self.figures.entry((measure, who)).or_default().push(figure);
    }

    fn median(&self, measure: Measure, who: Who) -> Option<f64> {
        let mut figures = self.figures.get(&(measure, who))?.clone();
        figures.sort_by(f64::total_cmp);
        figures.get(figures.len() / 2).copied()
    }

    /// How far the figures of one measure lie apart: the middle half of them, of their median.
    fn spread(&self, measure: Measure, who: Who) -> Option<f64> {
        let mut figures = self.figures.get(&(measure, who))?.clone();
        figures.sort_by(f64::total_cmp);
        let quarter = figures.len() / 4;
        let (low, high) = (figures.get(quarter)?, figures.get(figures.len() - 1 - quarter)?);
        let middle = self.median(measure, who)?;
        (figures.len() > 2 && middle > 0.0).then(|| (high - low) / middle)
    }

    fn measures(&self) -> Vec<Measure> {
        let mut all: Vec<_> = self.figures.keys().map(|(measure, _)| *measure).collect();
        all.dedup();
        all
    }

    /// Name, unit, and a cell for each contender: the median, and how far the figures lie apart.
    fn rows(&self) -> Vec<[String; 6]> {
        let row = |measure: Measure| {
            let (name, unit) = measure.name();
            let cell = |who: Who| {
                let Some(figure) = self.median(measure, who) else { return "-".to_owned() };
                let spread = self.spread(measure, who).filter(|spread| *spread >= 0.005);
                let spread = spread.map_or(String::new(), |spread| format!(" ±{:.0}%", spread * 50.0));
                format!("{}{spread}", short(figure))
            };
            [name.into(), unit.into(), cell(Overlayfs), cell(Stargz), cell(Fuse), cell(Native)]
        };
        self.measures().into_iter().map(row).collect()
    }

    /// Each promise that can be judged: driver, measure, what was reached, what is promised, what became of it.
    fn judged(&self) -> Vec<(String, String, String, Verdict)> {
        let judge = |promise: Promise| {
            let ours = self.median(promise.measure, promise.who)?;
            let (reached, of) = match promise.of {
                Some(peer) => (ours / self.median(promise.measure, peer)?, format!(" × {}", peer.name())),
                None => (ours, format!(" {}", promise.measure.name().1)),
            };
            let (kept, sign) = if promise.measure.is_rate() {
                (reached >= promise.bound, '≥')
            } else {
                (reached <= promise.bound, '≤')
            };
            let verdict = match (kept, promise.pending) {
                (true, _) => Verdict::Kept,
                (false, true) => Verdict::Pending,
                (false, false) => Verdict::Broken,
            };
            let name = format!("{}: {}", promise.who.name(), promise.measure.name().0.trim());
            let bound = format!("{sign} {:.3}", promise.bound);
            let bound = bound.trim_end_matches('0').trim_end_matches('.');
            Some((name, format!("{reached:.3}"), format!("{bound}{}", of.trim_end()), verdict))
        };
        promises().into_iter().filter_map(judge).collect()
    }

    /// For a terminal.
    pub fn text(&self) -> String {
        let mut text = format!("\n{}\n", "median ± half of the middle half's width");
        let head = ["", "", "overlayfs", "stargz", "fuse", "native"].map(str::to_owned);
        for [name, unit, cells @ ..] in [head].iter().chain(&self.rows()) {
            let _ = write!(text, "{name:<36}{unit:<5}");
            for cell in cells {
                let _ = write!(text, "{cell:>16}");
            }
            text.push('\n');
        }
        text.push('\n');
        for (name, reached, bound, verdict) in self.judged() {
            let _ = writeln!(text, "{name:<52}{reached:>9}  {bound:<20}{}", verdict.word());
        }
        text
    }

    /// For a file.
    pub fn markdown(&self) -> String {
        let mut text = String::from(
            "| measure | unit | overlayfs | stargz | fuse | native |\n|---|---|---|---|---|---|\n",
        );
        for row in self.rows() {
            let _ = writeln!(text, "| {} |", row.map(|cell| cell.trim().to_owned()).join(" | "));
        }
        text += "\n| promise | reached | promised | |\n|---|---|---|---|\n";
        for (name, reached, bound, verdict) in self.judged() {
            let _ = writeln!(text, "| {name} | {reached} | {bound} | {} |", verdict.word());
        }
        text
    }

    /// What was promised and not kept.
    pub fn broken(&self) -> Vec<String> {
        let broken = self.judged().into_iter().filter(|(.., verdict)| *verdict == Verdict::Broken);
        broken.map(|(name, reached, bound, _)| format!("{name}: {reached}, promised {bound}")).collect()
    }
}

/// Three digits that mean something.
fn short(figure: f64) -> String {
    match figure {
        figure if figure >= 100.0 => format!("{figure:.0}"),
        figure if figure >= 10.0 => format!("{figure:.1}"),
        figure => format!("{figure:.2}"),
    }
}
