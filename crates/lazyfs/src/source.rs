//! Where a layer's compressed bytes can be read: one or more places, opened when first needed.

use std::sync::{Arc, Mutex, PoisonError};

use content::{BlobSource, Digest, OpenBlob, ReadError, ReadErrorKind};
use futures::future::BoxFuture;
use tokio::sync::OnceCell;

/// Opens the blob of a layer. Called when bytes are needed and at most once at a time; again after a failure.
pub type OpenSource = Arc<dyn Fn() -> BoxFuture<'static, Result<OpenBlob, ReadError>> + Send + Sync>;

/// How many places one layer remembers. Images that share a layer each bring one.
const MOST: usize = 4;

/// The places that a layer was offered, in the order in which they are tried.
pub(crate) struct Sources {
    slots: Mutex<Vec<Arc<Slot>>>,
    /// Set as soon as one place told it: all must agree.
    blob_len: std::sync::atomic::AtomicU64,
}

struct Slot {
    layer: Digest,
    open: OpenSource,
    opened: Mutex<Arc<OnceCell<Arc<dyn BlobSource>>>>,
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
        let cell = OnceCell::new_with(source);
        let slot = Arc::new(Slot { layer, open, opened: Mutex::new(Arc::new(cell)) });
        Self { slots: Mutex::new(vec![slot]), blob_len: blob_len.into() }
    }

    /// Remembers another place. A newer one for the same blob replaces the older (its credentials may have
    /// expired) but is not opened before it is needed.
    pub(crate) fn offer(&self, layer: Digest, open: &OpenSource) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.iter().any(|slot| Arc::ptr_eq(&slot.open, open)) {
            return;
        }
        let slot = Arc::new(Slot { layer, open: Arc::clone(open), opened: Mutex::default() });
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

    /// The place for the `attempt`th try, opened.
    pub(crate) async fn get(&self, attempt: usize) -> Result<Opened, ReadError> {
        let slot = {
            let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            attempt.checked_rem(slots.len()).and_then(|at| slots.get(at).cloned())
        };
        let slot = slot.ok_or_else(|| ReadError::local(ReadErrorKind::Other, "the layer has no source"))?;
        let cell = Arc::clone(&slot.opened.lock().unwrap_or_else(PoisonError::into_inner));
        let source =
            cell.get_or_try_init(|| async { (slot.open)().await.map(|blob| blob.source) }).await?.clone();
        let expected = self.blob_len.load(std::sync::atomic::Ordering::Relaxed);
        if source.len() != expected {
            let message = format!("the source has {} bytes where the layer has {expected}", source.len());
            return Err(ReadError::origin(ReadErrorKind::Corrupt, message));
        }
        Ok(Opened { source, slot, cell })
    }
}

impl Opened {
    /// Forgets the opened source, so that the next need opens it again: new token, new address, new peer.
    pub(crate) fn failed(&self) {
        let mut opened = self.slot.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if Arc::ptr_eq(&opened, &self.cell) {
            *opened = Arc::default();
        }
    }
}
