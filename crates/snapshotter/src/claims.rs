//! A layer that lies never reaches another image.
//!
//! containerd names a layer by its chain ID: a hash of what the layers *shall* inflate to, as the image's config says.
//! An ordinary pull inflates and compares; a lazy one does not. So an image could name the chain of a popular base,
//! bring layers of its own, and whoever pulls the true image later, onto the snapshot that is there already, would run
//! on the liar's files. containerd tells the snapshotter nothing of that second pull.
//!
//! Therefore what lies in a lazy snapshot is a *slot's* present content, known by (layer digest, digest of its table
//! of contents), and:
//!
//! * before a root file system is handed out, containerd is asked ([`book`]) which images stand on that chain. If each
//!   names, layer by layer, what lies in the slots, all is well, at the price of one listing ([`judge`]);
//! * otherwise the bytes decide ([`proof`]): the candidate that is what the chain says goes into the slot
//!   (`snapshots/exchange.rs`), for all images at once. One that cannot be mounted as it is, an ordinary layer, is
//!   copied into something that can. None: nothing is handed out;
//! * the same begins earlier, with every image that containerd takes in ([`watch`]), so that it is done by then;
//! * what containerd unpacked itself it has compared itself.
//!
//! containerd is found by who calls ([`peer`]). Its snapshots API is never called.

mod book;
mod document;
mod judge;
mod local;
mod peer;
mod proof;
mod watch;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use containerd::Error;
use telemetry::metrics::{Exposition, Kind};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use book::{Claimant, claims_of, standing_on};
pub use document::{Document, chains};
pub use judge::{Candidate, Claim, Fact, Ruling, Slot, judge};
pub use local::open as open_copy;
pub use proof::{Copied, Proof};
pub use watch::images;

use crate::layer::LayerBackend;
use crate::meta::Meta;
use book::Book;
use peer::Locator;
use proof::Prover;

/// How long the list of images may take. containerd answers in some milliseconds or is in trouble.
const LISTING: Duration = Duration::from_secs(5);

/// What is wanted of the comparison.
#[derive(Debug, Clone)]
pub struct ClaimOptions {
    /// containerd's socket, if the process that calls does not tell.
    pub containerd_address: PathBuf,
    /// The namespace of images that CRI pulls.
    pub cri_namespace: String,
    /// Whether only layers that were hashed whole are mounted lazily.
    pub require_proof: bool,
    /// How long a container's start waits for a proof before it is told to try again.
    pub wait: Duration,
}

/// How often what happened, since the start.
#[derive(Debug, Default)]
pub struct Counters {
    /// Slots of which images claim different things.
    pub conflicts: AtomicU64,
    /// Slots whose content was exchanged for what was proven.
    pub exchanged: AtomicU64,
    /// Starts that were refused.
    pub refused: AtomicU64,
}

impl Counters {
    pub(crate) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// Compares claims.
pub struct Claims {
    options: ClaimOptions,
    locator: Arc<Locator>,
    book: Book,
    prover: Arc<Prover>,
    counters: Counters,
}

impl Claims {
    /// Proofs read through `backend`, are kept in `meta`, and run in `tasks` until `stop`; blobs lie in `scratch`
    /// meanwhile.
    pub fn new(
        options: ClaimOptions,
        backend: Arc<dyn LayerBackend>,
        meta: Arc<Meta>,
        scratch: PathBuf,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        let locator = Arc::new(Locator::new(options.containerd_address.clone()));
        let prover = Arc::new(Prover::new(backend, meta, scratch, tasks, stop));
        Self { options, locator, book: Book::default(), prover, counters: Counters::default() }
    }

    /// What is wanted.
    pub fn options(&self) -> &ClaimOptions {
        &self.options
    }

    /// Where containerd is.
    pub fn locator(&self) -> &Arc<Locator> {
        &self.locator
    }

    /// How often what happened.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Proves layers.
    pub fn prover(&self) -> &Arc<Prover> {
        &self.prover
    }

    /// All images of a namespace of containerd.
    ///
    /// # Errors
    /// That containerd does not answer.
    pub async fn claimants(&self, namespace: &str) -> Result<Vec<Claimant>, Error> {
        let listed = tokio::time::timeout(LISTING, async {
            let client = self.locator.client().await?.in_namespace(namespace);
            self.book.claimants(&client).await
        });
        let listed = listed.await.unwrap_or_else(|_| {
            let address = self.locator.configured().to_owned();
            Err(Error::Unreachable { address, reason: "it does not answer in time".to_owned() })
        });
        if listed.is_err() {
            self.locator.lost();
        }
        listed
    }

    /// Adds what is counted to the page that Prometheus reads.
    pub(crate) fn write_metrics(&self, page: &mut Exposition) {
        let Counters { conflicts, exchanged, refused } = &self.counters;
        for (name, help, counter) in [
            ("pantala_claims_conflicts_total", "Slots of which images claim different layers.", conflicts),
            (
                "pantala_claims_exchanged_total",
                "Slots whose layer was exchanged for the true one.",
                exchanged,
            ),
            ("pantala_claims_refused_total", "Starts refused because nobody could be believed.", refused),
        ] {
            page.family(name, Kind::Counter, help).sample(&[], counter.load(Ordering::Relaxed));
        }
    }

    /// The namespaces of containerd.
    ///
    /// # Errors
    /// That containerd does not answer.
    pub async fn namespaces(&self) -> Result<Vec<String>, Error> {
        self.locator.client().await?.namespaces().await
    }
}

/// The namespace in a key of containerd's: `<namespace>/<counter>/<key>`. Other callers have other keys.
pub fn namespace_of(key: &str) -> Option<&str> {
    let (namespace, rest) = key.split_once('/')?;
    let (counter, _) = rest.split_once('/')?;
    (!namespace.is_empty() && counter.parse::<u64>().is_ok()).then_some(namespace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containerds_keys_tell_the_namespace() {
        assert_eq!(namespace_of("k8s.io/9/abc"), Some("k8s.io"));
        assert_eq!(namespace_of("default/12/extract-1/2 sha256:c"), Some("default"));
        assert_eq!(namespace_of("run"), None);
        assert_eq!(namespace_of("a/b/c"), None);
        assert_eq!(namespace_of("/1/c"), None);
    }
}
