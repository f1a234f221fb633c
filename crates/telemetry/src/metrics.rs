//! Numbers that are counted as things happen, and the text in which Prometheus reads them.
//!
//! Nothing is registered anywhere: who counts owns its counters, and who is asked for metrics walks over what there is
//! and writes it down. So what belongs to a layer is gone with it, and the number of series is bounded by what lives.
//!
//! The text is Prometheus' version 0.0.4, by hand: the names that people's dashboards have were made by Go's client
//! (`stargz_fs_operation_count` is a counter without `_total`, a bucket is `le="1"`), and an OpenMetrics encoder would
//! write others.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The content type of [`Exposition::finish`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Zero.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// One more.
    pub fn increment(&self) {
        self.add(1);
    }

    /// So many more.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// How many there were.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How long things took: a histogram whose upper bounds are powers of two of a unit, from 1 on. `N` of them.
#[derive(Debug)]
pub struct Histogram<const N: usize> {
    unit: Duration,
    counts: [AtomicU64; N],
    longer: AtomicU64,
    nanoseconds: AtomicU64,
}

/// 1 to 16384 milliseconds.
pub type Milliseconds = Histogram<15>;
/// 1 to 1024 microseconds.
pub type Microseconds = Histogram<11>;

impl Default for Milliseconds {
    fn default() -> Self {
        Self::in_units_of(Duration::from_millis(1))
    }
}

impl Default for Microseconds {
    fn default() -> Self {
        Self::in_units_of(Duration::from_micros(1))
    }
}

impl<const N: usize> Histogram<N> {
    fn in_units_of(unit: Duration) -> Self {
        let counts = [const { AtomicU64::new(0) }; N];
        Self { unit, counts, longer: AtomicU64::new(0), nanoseconds: AtomicU64::new(0) }
    }

    /// Something took `duration`.
    pub fn observe(&self, duration: Duration) {
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let place =
            bounds().zip(&self.counts).find(|(bound, _)| self.unit.as_nanos() * bound >= duration.as_nanos());
        place.map_or(&self.longer, |(_, count)| count).fetch_add(1, Ordering::Relaxed);
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        let counts = self.counts.iter().chain([&self.longer]);
        counts.map(|count| count.load(Ordering::Relaxed)).sum()
    }
}

/// 1, 2, 4, …
fn bounds() -> impl Iterator<Item = u128> {
    (0..127).map(|power| 1_u128 << power)
}

/// What a family of series is, in Prometheus' words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Buckets.
    Histogram,
}

/// Metrics as a text.
#[derive(Debug, Default)]
pub struct Exposition(String);

impl Exposition {
    /// Begins a family: all its series are written before the next one begins.
    pub fn family<'a>(&'a mut self, name: &'a str, kind: Kind, help: &str) -> Family<'a> {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        Family { text: &mut self.0, name }
    }

    /// The text.
    pub fn finish(self) -> String {
        self.0
    }
}

/// One family of series.
#[derive(Debug)]
pub struct Family<'a> {
    text: &'a mut String,
    name: &'a str,
}

impl Family<'_> {
    /// Adds one series of a counter or gauge.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: u64) -> &mut Self {
        self.line("", labels, None, &value.to_string());
        self
    }

    /// Adds the series of one histogram. One that saw nothing is left out.
    pub fn histogram<const N: usize>(
        &mut self,
        labels: &[(&str, &str)],
        histogram: &Histogram<N>,
    ) -> &mut Self {
        let all = histogram.count();
        if all == 0 {
            return self;
        }
        let mut below = 0;
        for (bound, count) in bounds().zip(&histogram.counts) {
            below += count.load(Ordering::Relaxed);
            self.line("_bucket", labels, Some(&bound.to_string()), &below.to_string());
        }
        // What was counted meanwhile is in the buckets already, and no bucket may be larger than the whole.
        let all = all.max(below).to_string();
        let sum = histogram.nanoseconds.load(Ordering::Relaxed) as f64 / histogram.unit.as_nanos() as f64;
        self.line("_bucket", labels, Some("+Inf"), &all);
        self.line("_sum", labels, None, &sum.to_string());
        self.line("_count", labels, None, &all);
        self
    }

    fn line(&mut self, suffix: &str, labels: &[(&str, &str)], bound: Option<&str>, value: &str) {
        let _ = write!(self.text, "{}{suffix}", self.name);
        let labels = labels.iter().copied().chain(bound.map(|bound| ("le", bound)));
        let mut separator = '{';
        for (name, value) in labels {
            let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.text, "{separator}{name}=\"{value}\"");
            separator = ',';
        }
        let _ = writeln!(self.text, "{} {value}", if separator == ',' { "}" } else { "" });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_reads_as_gos_client_writes_it() {
        let took = Milliseconds::default();
        for duration in [
            Duration::from_micros(500),
            Duration::from_millis(2),
            Duration::from_millis(3),
            Duration::from_mins(1),
        ] {
            took.observe(duration);
        }
        let mut text = Exposition::default();
        text.family("x_milliseconds", Kind::Histogram, "How long\nit took.")
            .histogram(&[("layer", "a\"b\\")], &took)
            .histogram(&[("layer", "unseen")], &Milliseconds::default());
        let text = text.finish();
        let first = "# HELP x_milliseconds How long\\nit took.\n# TYPE x_milliseconds histogram\n\
                     x_milliseconds_bucket{layer=\"a\\\"b\\\\\",le=\"1\"} 1\n\
                     x_milliseconds_bucket{layer=\"a\\\"b\\\\\",le=\"2\"} 2\n\
                     x_milliseconds_bucket{layer=\"a\\\"b\\\\\",le=\"4\"} 3\n";
        assert!(text.starts_with(first), "{text}");
        let last = "le=\"16384\"} 3\nx_milliseconds_bucket{layer=\"a\\\"b\\\\\",le=\"+Inf\"} 4\n\
                    x_milliseconds_sum{layer=\"a\\\"b\\\\\"} 60005.5\nx_milliseconds_count{layer=\"a\\\"b\\\\\"} 4\n";
        assert!(text.ends_with(last), "{text}");
        assert!(!text.contains("unseen"));
    }

    #[test]
    fn a_counter_without_labels_has_no_braces() {
        let mut text = Exposition::default();
        text.family("n", Kind::Counter, "N.").sample(&[], 3).sample(&[("a", "b"), ("c", "d")], 4);
        assert!(text.finish().ends_with("\nn 3\nn{a=\"b\",c=\"d\"} 4\n"));
    }
}
