//! Where a layer's compressed bytes can be read: one or more places, opened when first needed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use content::{BlobSource, ByteRange, Digest, OpenBlob, ReadError, ReadErrorKind, Urgency};
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::sync::OnceCell;
use tokio::time::Instant;

/// Opens the blob of a layer. Called when bytes are needed and at most once at a time; again after a failure.
pub type OpenSource = Arc<dyn Fn() -> BoxFuture<'static, Result<OpenBlob, ReadError>> + Send + Sync>;

/// Fetches all bytes of the layer that holds a blob's table of contents in another image: a compressed tar of the one file
/// `stargz.index.json`, a few megabytes. What it gives is checked against the digest that the manifest pins.
pub type ExternalToc = Arc<dyn Fn() -> BoxFuture<'static, Result<Bytes, ReadError>> + Send + Sync>;

/// How many places one layer remembers. Images that share a layer each bring one.
const MOST: usize = 4;
/// How long one place may be silent, with all the hosts that it knows, before the next is asked too.
const ELSEWHERE: Duration = Duration::from_millis(1200);
/// How long a place that failed is asked after the others.
const ASIDE: Duration = Duration::from_secs(10);

/// The places that a layer was offered, in the order in which they are tried.
pub(crate) struct Sources {
    slots: Mutex<Vec<Arc<Slot>>>,
    /// Set as soon as one place told it: all must agree.
    blob_len: AtomicU64,
    unit: AtomicU64,
}

struct Slot {
    layer: Digest,
    open: OpenSource,
    opened: Mutex<Arc<OnceCell<Arc<dyn BlobSource>>>>,
    /// Until when it is asked last.
    aside: Mutex<Option<Instant>>,
}

/// An opened place.
pub(crate) struct Opened {
    pub(crate) source: Arc<dyn BlobSource>,
    slot: Arc<Slot>,
    cell: Arc<OnceCell<Arc<dyn BlobSource>>>,
}

impl Sources {
    /// One place; `source` if it was opened already.
    pub(crate) fn new(
        layer: Digest,
        open: OpenSource,
        blob_len: u64,
        source: Option<Arc<dyn BlobSource>>,
    ) -> Self {
        let unit = source.as_ref().map_or(1, |source| source.unit().max(1));
        let opened = Mutex::new(Arc::new(OnceCell::new_with(source)));
        let slot = Arc::new(Slot { layer, open, opened, aside: Mutex::default() });
        Self { slots: Mutex::new(vec![slot]), blob_len: blob_len.into(), unit: unit.into() }
    }

    /// Remembers another place. A newer one for the same blob replaces the older (its credentials may have
    /// expired) but is not opened before it is needed.
    pub(crate) fn offer(&self, layer: Digest, open: &OpenSource) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.iter().any(|slot| Arc::ptr_eq(&slot.open, open)) {
            return;
        }
        let open = Arc::clone(open);
        let slot = Arc::new(Slot { layer, open, opened: Mutex::default(), aside: Mutex::default() });
        let closed =
            |slot: &Arc<Slot>| !slot.opened.lock().unwrap_or_else(PoisonError::into_inner).initialized();
        if let Some(old) = slots.iter_mut().find(|old| old.layer == layer && closed(old)) {
            *old = slot;
        } else {
            slots.push(slot);
            if slots.len() > MOST {
                slots.remove(0);
            }
        }
    }

    /// How many times a failed read is worth trying: every place once, and a lone place twice, since
    /// behind it there may be several holders of the same bytes.
    pub(crate) fn attempts(&self) -> usize {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).len().max(2)
    }

    /// Bytes come in multiples of so many, as far as is known without opening anything.
    pub(crate) fn unit(&self) -> u64 {
        self.unit.load(Ordering::Relaxed)
    }

    /// The places in the order of the `attempt`th try. Who failed a short time ago is last.
    fn order(&self, attempt: usize) -> Vec<Arc<Slot>> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if slots.len() > 1 {
            let now = Instant::now();
            slots.sort_by_cached_key(|slot| slot.is_aside(now));
            let turn = attempt % slots.len();
            slots.rotate_left(turn);
        }
        slots
    }

    /// The place for the `attempt`th try, opened.
    pub(crate) async fn get(&self, attempt: usize) -> Result<Opened, ReadError> {
        let slot = self.order(attempt).into_iter().next();
        let slot = slot.ok_or_else(|| ReadError::local(ReadErrorKind::Other, "the layer has no source"))?;
        self.open(slot).await
    }

    async fn open(&self, slot: Arc<Slot>) -> Result<Opened, ReadError> {
        let cell = Arc::clone(&slot.opened.lock().unwrap_or_else(PoisonError::into_inner));
        let source =
            cell.get_or_try_init(|| async { (slot.open)().await.map(|blob| blob.source) }).await?.clone();
        let expected = self.blob_len.load(Ordering::Relaxed);
        if source.len() != expected {
            let message = format!("the source has {} bytes where the layer has {expected}", source.len());
            return Err(ReadError::origin(ReadErrorKind::Corrupt, message));
        }
        self.unit.store(source.unit().max(1), Ordering::Relaxed);
        Ok(Opened { source, slot, cell })
    }

    /// Reads `range` for somebody who waits. A place that is silent for too long has company by the next one, and
    /// whoever answers first counts.
    pub(crate) async fn read(
        &self,
        attempt: usize,
        range: ByteRange,
        urgency: Urgency,
    ) -> Result<(Bytes, Opened), ReadError> {
        let mut waiting = self.order(attempt).into_iter();
        let mut running = FuturesUnordered::new();
        let mut failed = ReadError::local(ReadErrorKind::Other, "the layer has no source");
        let mut silent: Vec<(Arc<Slot>, Instant)> = Vec::new();
        loop {
            if let Some(slot) = waiting.next() {
                silent.push((Arc::clone(&slot), Instant::now()));
                running.push(async move {
                    let opened = self.open(Arc::clone(&slot)).await.map_err(|error| (error, slot, None))?;
                    match opened.source.read(range, urgency).await {
                        Ok(bytes) => Ok((bytes, opened)),
                        Err(error) => Err((error, Arc::clone(&opened.slot), Some(opened))),
                    }
                });
            }
            let is_last = waiting.len() == 0;
            let patience = async {
                if is_last {
                    std::future::pending::<()>().await;
                }
                tokio::time::sleep(ELSEWHERE).await;
            };
            tokio::select! {
                answered = running.next() => match answered {
                    None => return Err(failed),
                    Some(Ok((bytes, opened))) => {
                        opened.slot.put_aside(false);
                        for (slot, since) in silent {
                            if since.elapsed() >= ELSEWHERE && !Arc::ptr_eq(&slot, &opened.slot) {
                                slot.put_aside(true);
                            }
                        }
                        return Ok((bytes, opened));
                    }
                    Some(Err((error, slot, opened))) => {
                        slot.put_aside(true);
                        silent.retain(|(other, _)| !Arc::ptr_eq(other, &slot));
                        if let Some(opened) = opened {
                            opened.failed(&error);
                        }
                        failed = error;
                    }
                },
                () = patience => {}
            }
        }
    }
}

impl Slot {
    fn is_aside(&self, now: Instant) -> bool {
        self.aside.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|until| until > now)
    }

    /// It failed, or it answered.
    fn put_aside(&self, failed: bool) {
        let until = failed.then(|| Instant::now() + ASIDE);
        *self.aside.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }
}

impl Opened {
    /// It sent wrong bytes: other places are asked first for a while.
    pub(crate) fn lied(&self) {
        self.slot.put_aside(true);
    }

    /// What failed with `error`. If trying again cannot help (expired credentials, a blob that is gone) the opened
    /// source is forgotten, and the next need opens it again: new token, new address. Anything else it mends by
    /// itself, and opening costs a request.
    pub(crate) fn failed(&self, error: &ReadError) {
        self.slot.put_aside(true);
        if error.is_transient() {
            return;
        }
        let mut opened = self.slot.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if Arc::ptr_eq(&opened, &self.cell) {
            *opened = Arc::default();
        }
    }
}
