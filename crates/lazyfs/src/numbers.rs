//! What is counted of a layer: what it cost to open, what its readers asked for, and what that took.
//!
//! The numbers belong to the layer: whoever shows them asks the layers that there are, and those of a layer that is gone
//! are gone with it. The same moments are written to the log, in the words that users of stargz-snapshotter search for.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use content::Digest;
use telemetry::metrics::{Counter, Microseconds, Milliseconds};

/// What is counted of all layers of a store together, from when this process opened it: unlike the numbers of its layers
/// it never falls.
#[derive(Debug, Default)]
pub struct Totals {
    /// Layers whose table of contents was on disk.
    pub opened_from_disk: Counter,
    /// Layers whose table of contents was fetched.
    pub opened_from_source: Counter,
    /// Reads that the kernel asked us for.
    pub reads: Counter,
    /// Those of them that found everything here.
    pub hits: Counter,
    /// Bytes that reads were answered with.
    pub served: Counter,
    /// Chunks that were fetched because a reader waited.
    pub fetches: Counter,
    /// Chunks whose bytes were not what the table of contents says. They went nowhere.
    pub wrong: Counter,
}

/// The numbers of one layer, from when this process opened it.
#[derive(Debug, Default)]
pub struct Numbers {
    /// From being named to being mounted, for each mount.
    pub mount: Milliseconds,
    /// Requests at the source.
    pub get: Milliseconds,
    /// The request that brought the end of the blob, with the footer; none if the table was on disk.
    pub footer: Milliseconds,
    /// Further requests for the table of contents, if the end did not hold all of it.
    pub toc: Milliseconds,
    /// Reading the table's text, and making the index.
    pub parse: Milliseconds,
    /// Listings of directories, through FUSE.
    pub readdir: Microseconds,
    /// Reads that the kernel asked us for.
    pub read: Microseconds,
    /// Bytes of those.
    pub served: Counter,
    /// Reads that found everything here.
    pub hits: Counter,
    /// Chunks that were fetched because a reader waited.
    pub fetches: Counter,
    /// Their bytes, inflated.
    pub fetched: Counter,
    /// Bytes of chunks that were fetched before anybody asked, because the image or the client said so.
    pub prefetched: Counter,
    /// Chunks whose bytes were not what the table of contents says. They went nowhere.
    pub wrong: Counter,
    moments: Mutex<Moments>,
    totals: Arc<Totals>,
}

#[derive(Debug, Default)]
struct Moments {
    heard: Option<Instant>,
    mounted: Option<Instant>,
    waited: Option<Instant>,
    downloaded: Option<Instant>,
    background: Option<Instant>,
}

impl Numbers {
    pub(crate) fn new(totals: &Arc<Totals>) -> Self {
        Self { totals: Arc::clone(totals), ..Self::default() }
    }

    fn moments<T>(&self, look: impl FnOnce(&mut Moments) -> T) -> T {
        look(&mut self.moments.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The source gave bytes, whoever had them.
    pub(crate) fn heard(&self) {
        self.moments(|moments| moments.heard = Some(Instant::now()));
    }

    /// How long ago the source last gave bytes; `None` if it has not since the layer was opened.
    pub fn heard_ago(&self) -> Option<Duration> {
        self.moments(|moments| moments.heard).map(|heard| heard.elapsed())
    }

    /// It was mounted, and that took so long.
    pub fn mounted(&self, took: Duration) {
        self.mount.observe(took);
        self.moments(|moments| moments.mounted = Some(Instant::now()));
    }

    /// A read that began then was answered with so many bytes.
    pub(crate) fn served(&self, began: Instant, bytes: u64) {
        self.read.observe(began.elapsed());
        self.served.add(bytes);
        self.totals.reads.increment();
        self.totals.served.add(bytes);
    }

    /// The same, and nothing had to be fetched.
    pub(crate) fn hit(&self, began: Instant, bytes: u64) {
        self.hits.increment();
        self.totals.hits.increment();
        self.served(began, bytes);
    }

    /// A chunk was not what it should be.
    pub(crate) fn is_wrong(&self) {
        self.wrong.increment();
        self.totals.wrong.increment();
    }

    /// A chunk arrived for which a reader waited.
    pub(crate) fn arrived_for_reader(&self, len: u64) {
        self.fetches.increment();
        self.totals.fetches.increment();
        self.fetched.add(len);
        self.moments(|moments| moments.waited = Some(Instant::now()));
    }

    /// Bytes arrived for which nobody waited.
    pub(crate) fn arrived_for_nobody(&self) {
        self.moments(|moments| moments.downloaded = Some(Instant::now()));
    }

    /// The background fetch takes a step.
    pub(crate) fn background_begins(&self) {
        self.moments(|moments| _ = moments.background.get_or_insert_with(Instant::now));
    }

    /// The background fetch has brought everything: that, and how long readers had to wait after the mount, is logged once.
    pub(crate) fn background_ended(&self, layer: Digest) {
        let (began, wait) = self.moments(|moments| {
            let wait =
                moments.mounted.zip(moments.waited).map(|(from, to)| to.saturating_duration_since(from));
            (moments.background.take(), wait)
        });
        let Some(began) = began else { return };
        latency("background_fetch_total", layer, began.elapsed());
        if let Some(wait) = wait.filter(|wait| !wait.is_zero()) {
            latency("mount_layer_to_last_on_demand_fetch", layer, wait);
        }
    }

    /// The prefetch that began then has ended.
    pub(crate) fn prefetch_ended(&self, layer: Digest, began: Instant) {
        let took = began.elapsed();
        let downloaded = self.moments(|moments| moments.downloaded);
        let download = downloaded.map_or(Duration::ZERO, |at| at.saturating_duration_since(began));
        // Chunks are inflated while the next ones arrive: the rest of the time is what only inflating took.
        latency("prefetch_download", layer, download);
        latency("prefetch_decompress", layer, took.saturating_sub(download));
        tracing::debug!(
            metrics = "latency",
            operation = "prefetch_total",
            layer_sha = %layer,
            "value={} milliseconds; prefetch_size={} bytes",
            milliseconds(took),
            self.prefetched.get()
        );
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// The record that scripts search for.
fn latency(operation: &str, layer: Digest, took: Duration) {
    tracing::debug!(metrics = "latency", operation, layer_sha = %layer, "value={} milliseconds", milliseconds(took));
}
