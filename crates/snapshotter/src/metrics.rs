//! What the snapshotter counts, and the page on which Prometheus reads it: `docs/metrics.md` lists every name.
//!
//! Names that begin with `stargz_fs_` are stargz-snapshotter's, with its labels; they are written down from the layers
//! that are mounted at that moment, so that a layer that is removed takes its series with it. Names that begin with
//! `pantala_` are ours: totals, which never fall, with few and fixed labels.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use content::Digest;
use lazyfs::{LayerStatus, Numbers};
use serde::{Deserialize, Serialize};
use telemetry::metrics::{Counter, Exposition, Histogram, Kind, Milliseconds};

/// Fallbacks that are remembered for people.
const RECENT: usize = 32;
/// How long the text of one of them may be.
const LONGEST_ERROR: usize = 1000;

/// Why a layer was not mounted lazily.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The image is not made for it: no digest of a table of contents.
    Ordinary,
    /// The client's labels contradict themselves.
    Labels,
    /// Another image's bytes are committed for the same chain of layers.
    OtherClaim,
    /// It was never hashed whole, and the configuration wants that.
    Unproven,
    /// No table of contents arrived in time.
    Timeout,
    /// No table of contents can be had, or it is not the one that the manifest names.
    Open,
    /// It could not be mounted, or not be committed.
    Mount,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Ordinary,
        Self::Labels,
        Self::OtherClaim,
        Self::Unproven,
        Self::Timeout,
        Self::Open,
        Self::Mount,
    ];

    /// Its name as a label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ordinary => "ordinary",
            Self::Labels => "labels",
            Self::OtherClaim => "other_claim",
            Self::Unproven => "unproven",
            Self::Timeout => "timeout",
            Self::Open => "open",
            Self::Mount => "mount",
        }
    }
}

/// A layer that was not mounted lazily though its image asked for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fallback {
    /// Seconds since 1970 (UTC).
    pub at: u64,
    /// Why.
    pub reason: Reason,
    /// The image, as the client wrote it; empty if it did not say.
    pub image: String,
    /// The layer's blob; empty if it is not known.
    pub layer: String,
    /// The whole story.
    pub error: String,
}

/// What is counted of all snapshots together.
#[derive(Debug, Default)]
pub struct Metrics {
    prepared: Counter,
    fallbacks: [Counter; Reason::ALL.len()],
    unavailable: Counter,
    /// How long a container's start waited for the layers below it.
    waits: Milliseconds,
    recent: Mutex<VecDeque<Fallback>>,
}

impl Metrics {
    /// A layer is mounted lazily.
    pub fn prepared(&self) {
        self.prepared.increment();
    }

    /// A layer is not mounted lazily. Ordinary ones are counted and no more.
    pub fn fallback(&self, reason: Reason, image: &str, layer: Option<Digest>, error: &str) {
        if let Some((_, counter)) = Reason::ALL.iter().zip(&self.fallbacks).find(|(each, _)| **each == reason)
        {
            counter.increment();
        }
        if reason == Reason::Ordinary {
            return;
        }
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.len() >= RECENT {
            recent.pop_front();
        }
        recent.push_back(Fallback {
            at: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            reason,
            image: image.chars().take(LONGEST_ERROR).collect(),
            layer: layer.map(|digest| digest.to_string()).unwrap_or_default(),
            error: error.chars().take(LONGEST_ERROR).collect(),
        });
    }

    /// The layers below a snapshot were looked at before its mounts were answered; `fine` if all were there.
    pub fn looked(&self, took: Duration, fine: bool) {
        self.waits.observe(took);
        if !fine {
            self.unavailable.increment();
        }
    }

    /// How many there were, by reason; those that never happened too.
    pub fn fallbacks(&self) -> Vec<(Reason, u64)> {
        Reason::ALL.into_iter().zip(self.fallbacks.iter().map(Counter::get)).collect()
    }

    /// The last ones that were no ordinary images, the newest last.
    pub fn recent_fallbacks(&self) -> Vec<Fallback> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Writes them down.
    pub(crate) fn write(&self, page: &mut Exposition) {
        page.family(
            "pantala_lazy_snapshots_prepared_total",
            Kind::Counter,
            "Snapshots that were mounted lazily.",
        )
        .sample(&[], self.prepared.get());
        let mut family = page.family(
            "pantala_fallbacks_total",
            Kind::Counter,
            "Layers that were left to containerd to download and unpack, by the reason.",
        );
        for (reason, count) in self.fallbacks() {
            family.sample(&[("reason", reason.name())], count);
        }
        page.family(
            "pantala_unavailable_total",
            Kind::Counter,
            "Starts of containers that were refused because a lazy layer did not answer.",
        )
        .sample(&[], self.unavailable.get());
    }
}

/// A mounted layer, as it is when the page is written.
pub(crate) struct Shown<'a> {
    /// Where it is mounted.
    pub(crate) at: &'a Path,
    /// The digest that the image's manifest gives its blob.
    pub(crate) layer: Digest,
    /// How the kernel asks for its bytes.
    pub(crate) driver: &'static str,
    pub(crate) status: LayerStatus,
    pub(crate) numbers: &'a Numbers,
}

/// What stargz-snapshotter puts where no layer is meant: the digest of nothing.
fn no_layer() -> String {
    Digest::of(b"").to_string()
}

/// A number of a layer that is mounted somewhere.
type Collected = fn(&Shown<'_>) -> u64;

/// Writes the series that belong to layers. One that is mounted at several places counts once where the label is `layer`.
pub(crate) fn write_layers(page: &mut Exposition, shown: &[Shown<'_>], metrics: &Metrics) {
    let mut seen = std::collections::HashSet::new();
    let layers: Vec<(String, &Numbers)> = shown
        .iter()
        .filter(|shown| seen.insert(shown.layer))
        .map(|shown| (shown.layer.to_string(), shown.numbers))
        .collect();

    let help = "Latency in milliseconds of what is done for a layer, by kind and layer.";
    let mut family = page.family("stargz_fs_operation_duration_milliseconds", Kind::Histogram, help);
    for (layer, numbers) in &layers {
        let kinds: [(&str, &Milliseconds); 5] = [
            ("mount", &numbers.mount),
            ("remote_registry_get", &numbers.get),
            ("stargz_footer_get", &numbers.footer),
            ("stargz_toc_get", &numbers.toc),
            ("stargz_toc_json_deserialize", &numbers.parse),
        ];
        for (kind, histogram) in kinds {
            family.histogram(&by(kind, layer), histogram);
        }
    }
    family.histogram(&by("all_prefetches_completed", &no_layer()), &metrics.waits);

    let help = "Latency in microseconds of what is done for a layer, by kind and layer.";
    let mut family = page.family("stargz_fs_operation_duration_microseconds", Kind::Histogram, help);
    for (layer, numbers) in &layers {
        family.histogram(&by("node_readdir", layer), &numbers.readdir);
        family.histogram(&by("read_on_demand", layer), &numbers.read);
    }

    let help = "How often something was done for a layer, by kind and layer.";
    let mut family = page.family("stargz_fs_operation_count", Kind::Counter, help);
    for (layer, numbers) in &layers {
        family.sample(&by("on_demand_read_access_count", layer), Histogram::count(&numbers.read));
        family.sample(&by("on_demand_remote_registry_fetch_count", layer), numbers.fetches.get());
    }

    let help = "Bytes that were moved for the readers of a layer, by kind and layer.";
    let mut family = page.family("stargz_fs_bytes_served", Kind::Gauge, help);
    for (layer, numbers) in &layers {
        family.sample(&by("on_demand_bytes_served", layer), numbers.served.get());
        family.sample(&by("on_demand_bytes_fetched", layer), numbers.fetched.get());
    }

    let collected: [(&str, Kind, &str, Collected); 5] = [
        (
            "stargz_fs_layer_fetched_size_bytes",
            Kind::Counter,
            "Bytes of the layer's blob that are on this machine.",
            |shown| shown.status.blob_fetched(),
        ),
        (
            "stargz_fs_layer_prefetch_size_bytes",
            Kind::Counter,
            "Bytes of the layer that were fetched before anybody asked for them.",
            |shown| shown.numbers.prefetched.get(),
        ),
        ("stargz_fs_layer_size_bytes", Kind::Counter, "Bytes of the layer's blob.", |shown| {
            shown.status.blob_len
        }),
        (
            "pantala_layer_files_bytes",
            Kind::Gauge,
            "Bytes of all files of the layer, uncompressed.",
            |shown| shown.status.size,
        ),
        (
            "pantala_layer_touched_bytes",
            Kind::Gauge,
            "Bytes of those that a reader asked for since the layer was opened.",
            |shown| shown.status.touched,
        ),
    ];
    for (name, kind, help, value) in collected {
        let mut family = page.family(name, kind, help);
        for shown in shown {
            let (digest, at) = (shown.layer.to_string(), shown.at.to_string_lossy());
            family.sample(&[("digest", &digest), ("mountpoint", &at)], value(shown));
        }
    }

    let mut family =
        page.family("pantala_mounted_layers", Kind::Gauge, "Lazy layers that are mounted, by driver.");
    for driver in ["native", "fuse"] {
        let count = shown.iter().filter(|shown| shown.driver == driver).count();
        family.sample(&[("driver", driver)], count as u64);
    }
}

fn by<'a>(kind: &'a str, layer: &'a str) -> [(&'a str, &'a str); 2] {
    [("operation_type", kind), ("layer", layer)]
}

/// Writes what is counted of all layers together.
pub(crate) fn write_totals(page: &mut Exposition, totals: &lazyfs::Totals) {
    let mut family = page.family(
        "pantala_layer_opens_total",
        Kind::Counter,
        "Layers that were opened, by where their table of contents came from.",
    );
    family.sample(&[("from", "disk")], totals.opened_from_disk.get());
    family.sample(&[("from", "source")], totals.opened_from_source.get());
    let (reads, hits) = (totals.reads.get(), totals.hits.get());
    let mut family = page.family(
        "pantala_reads_total",
        Kind::Counter,
        "Reads that the kernel asked for, by whether all of their bytes were here.",
    );
    family.sample(&[("answered", "from_disk")], hits);
    family.sample(&[("answered", "after_fetching")], reads.saturating_sub(hits));
    page.family("pantala_read_bytes_total", Kind::Counter, "Bytes that those were answered with.")
        .sample(&[], totals.served.get());
    page.family(
        "pantala_awaited_chunks_total",
        Kind::Counter,
        "Chunks that were fetched while a reader waited.",
    )
    .sample(&[], totals.fetches.get());
    page.family(
        "pantala_verification_failures_total",
        Kind::Counter,
        "Bytes that were not what the image says, and went nowhere.",
    )
    .sample(&[("what", "chunk")], totals.wrong.get());
}

/// Writes which hosts were asked.
pub(crate) fn write_hosts(page: &mut Exposition, hosts: &[registry::HostAsked]) {
    let mut family = page.family(
        "pantala_registry_requests_total",
        Kind::Counter,
        "Requests at registries, by host, by whether it is a mirror, and by whether it answered.",
    );
    for asked in hosts {
        let role = if asked.mirror { "mirror" } else { "origin" };
        for (outcome, count) in [("answered", asked.answered), ("failed", asked.failed)] {
            family.sample(&[("host", &asked.host), ("role", role), ("outcome", outcome)], count);
        }
    }
}

/// Writes what every exporter says of its own process.
pub(crate) fn write_process(page: &mut Exposition) {
    page.family("pantala_build_info", Kind::Gauge, "Always 1; the version is the label.")
        .sample(&[("version", env!("CARGO_PKG_VERSION"))], 1);
    let Some(process) = Process::read() else { return };
    page.family("process_resident_memory_bytes", Kind::Gauge, "Resident memory size in bytes.")
        .sample(&[], process.resident);
    page.family(
        "process_cpu_seconds_total",
        Kind::Counter,
        "Total user and system CPU time spent in seconds.",
    )
    .sample(&[], process.cpu_seconds);
    page.family("process_open_fds", Kind::Gauge, "Number of open file descriptors.")
        .sample(&[], process.descriptors);
}

struct Process {
    resident: u64,
    cpu_seconds: u64,
    descriptors: u64,
}

impl Process {
    /// From `/proc/self`, as proc(5) describes it.
    fn read() -> Option<Self> {
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        // Behind the name, which may have blanks and brackets: field 3 and so on.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let field = |number: usize| fields.get(number.checked_sub(3)?)?.parse::<u64>().ok();
        let ticks = rustix::param::clock_ticks_per_second().max(1);
        let resident = field(24)?.saturating_mul(rustix::param::page_size() as u64);
        let cpu_seconds = field(14)?.saturating_add(field(15)?) / ticks;
        let descriptors = std::fs::read_dir("/proc/self/fd").ok()?.count() as u64;
        Some(Self { resident, cpu_seconds, descriptors })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(layer: Digest) -> LayerStatus {
        LayerStatus {
            toc_digest: Digest::of(b"toc"),
            layer_digest: layer,
            blob_len: 1000,
            size: 4000,
            fetched: 2000,
            touched: 1000,
            complete: false,
            error: String::new(),
        }
    }

    fn page(layers: &[(&Path, Digest, &Numbers)]) -> String {
        let shown: Vec<Shown<'_>> = layers
            .iter()
            .map(|(at, layer, numbers)| Shown {
                at,
                layer: *layer,
                driver: "fuse",
                status: status(*layer),
                numbers,
            })
            .collect();
        let mut page = Exposition::default();
        write_layers(&mut page, &shown, &Metrics::default());
        page.finish()
    }

    #[test]
    fn a_layer_has_the_series_of_stargz_snapshotter_and_takes_them_with_it() {
        let numbers = Numbers::default();
        numbers.mounted(Duration::from_millis(3));
        let layer = Digest::of(b"layer");
        let text = page(&[(Path::new("/a/fs"), layer, &numbers), (Path::new("/b/fs"), layer, &numbers)]);
        for line in [
            format!(
                "stargz_fs_operation_duration_milliseconds_bucket{{operation_type=\"mount\",layer=\"{layer}\",le=\"4\"}} 1"
            ),
            format!(
                "stargz_fs_operation_count{{operation_type=\"on_demand_read_access_count\",layer=\"{layer}\"}} 0"
            ),
            format!(
                "stargz_fs_bytes_served{{operation_type=\"on_demand_bytes_served\",layer=\"{layer}\"}} 0"
            ),
            format!("stargz_fs_layer_fetched_size_bytes{{digest=\"{layer}\",mountpoint=\"/a/fs\"}} 500"),
            format!("stargz_fs_layer_size_bytes{{digest=\"{layer}\",mountpoint=\"/b/fs\"}} 1000"),
            "pantala_mounted_layers{driver=\"fuse\"} 2".into(),
        ] {
            assert_eq!(text.lines().filter(|have| **have == line).count(), 1, "{line}\n{text}");
        }
        assert!(!page(&[]).contains(&layer.to_string()));
    }

    #[test]
    fn fallbacks_are_counted_by_a_fixed_set_of_reasons_and_the_last_are_remembered() {
        let metrics = Metrics::default();
        metrics.fallback(Reason::Ordinary, "", None, "no table of contents");
        for number in 0..100 {
            metrics.fallback(Reason::Timeout, &format!("image{number}"), None, &"x".repeat(5000));
        }
        let recent = metrics.recent_fallbacks();
        assert_eq!(recent.len(), RECENT);
        assert_eq!(recent.last().unwrap().image, "image99");
        assert_eq!(recent.last().unwrap().error.len(), LONGEST_ERROR);
        let mut page = Exposition::default();
        metrics.write(&mut page);
        let text = page.finish();
        assert!(text.contains("pantala_fallbacks_total{reason=\"ordinary\"} 1\n"), "{text}");
        assert!(text.contains("pantala_fallbacks_total{reason=\"timeout\"} 100\n"), "{text}");
        assert!(text.contains("pantala_fallbacks_total{reason=\"other_claim\"} 0\n"), "{text}");
    }
}
