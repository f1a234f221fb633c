//! Who uses a layer, and what ends when nobody does.
//!
//! Mounts and whoever opened the layer hold a [`Layer`]; the work under way holds the [`Core`] behind it.
//! So the last user is known when it goes, and with it goes everything that was fetched though nobody waits:
//! the background fetch, the prefetch and the readahead give up where they are. What they brought stays, and
//! the folder can be deleted at once. Who opens the layer again goes on from there, with the same core if
//! some of the work has not noticed yet.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use content::{ByteRange, Digest, ReadError, Urgency};
use estargz::Toc;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Core, LayerStatus};
use crate::error::LayerError;
use crate::numbers::Numbers;
use crate::source::OpenSource;
use crate::tree::OpaqueXattr;

/// A lazily filled layer. Shared by all mounts of the same table of contents; when the last of them and
/// whoever else holds it are gone, nothing more is fetched for it.
pub struct Layer {
    /// Before the core: what ends may be the last that holds it.
    _used: DropGuard,
    core: Arc<Core>,
}

impl Layer {
    /// The one user's part of `core`: the part before it is gone, or about to go.
    pub(crate) fn hold(core: Arc<Core>) -> Arc<Self> {
        let unused = CancellationToken::new();
        *core.unused.lock().unwrap_or_else(PoisonError::into_inner) = unused.clone();
        core.cursor.store(0, Ordering::Relaxed);
        Arc::new(Self { _used: unused.drop_guard(), core })
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// The layer's numbers.
    pub fn status(&self) -> LayerStatus {
        self.core.status()
    }

    /// sha256 of its table of contents.
    pub fn toc_digest(&self) -> Digest {
        self.core.toc_digest
    }

    /// Digest of its blob, as the manifest that opened it first names it.
    pub fn layer_digest(&self) -> Digest {
        self.core.layer_digest()
    }

    /// Its table of contents, without the chunks. It is in memory as long as somebody holds it; if nobody does, this
    /// reads a few megabytes and is not for the threads of a runtime.
    ///
    /// # Errors
    /// [`LayerError::Damaged`].
    pub fn toc(&self) -> Result<Arc<Toc>, LayerError> {
        self.core.tree()
    }

    /// Whether every chunk is here.
    pub fn is_complete(&self) -> bool {
        self.core.is_complete()
    }

    /// The EROFS image that describes this layer: its files' bytes are in the layer's data file, and opaque
    /// directories are marked by `opaque`.
    ///
    /// It depends on the table of contents alone, not on what is here already, and is the same every time. Takes
    /// processor time in proportion to the number of files: not for the threads of a runtime.
    ///
    /// # Errors
    /// [`LayerError::Metadata`]: the layer is too large for EROFS. FUSE can still show it.
    pub fn metadata_image(&self, opaque: OpaqueXattr) -> Result<Vec<u8>, LayerError> {
        self.core.metadata_image(opaque)
    }

    /// The same image as a file in the layer's [folder](Self::folder), written if it is not there yet and checked if
    /// this process did not look at it before. Behind it stands a block more, which says that it is whole.
    ///
    /// Reads or writes all of the image: not for the threads of a runtime.
    ///
    /// # Errors
    /// [`LayerError::Metadata`], or that the file cannot be written.
    pub fn metadata_file(&self, opaque: OpaqueXattr) -> Result<File, LayerError> {
        self.core.metadata_file(opaque)
    }

    /// Where the layer is on disk: `data` and its metadata images are in there.
    pub fn folder(&self) -> &Path {
        self.core.folder()
    }

    /// How many chunks were inflated since it was opened: however many readers wait for one, it is once.
    pub fn inflated(&self) -> u64 {
        self.core.inflated.load(Ordering::Relaxed)
    }

    /// What is counted of it.
    pub fn numbers(&self) -> &Numbers {
        &self.core.numbers
    }

    /// Waits until the prefetch has ended, well or badly. At once if there is none.
    pub async fn prefetched(&self) {
        // The sender lives as long as `self`.
        let _ = self.core.prefetched.subscribe().wait_for(|done| *done).await;
    }

    /// Another place where the same bytes can be had, for when the first does not answer.
    pub fn offer_source(&self, layer_digest: Digest, open: &OpenSource) {
        self.core.sources.offer(layer_digest, open);
    }

    /// Fetches the first chunk that is not here, if there is one, as if somebody waited for it: the proof that its bytes can
    /// still be had. Takes as long as a read; whoever has less time drops it.
    ///
    /// # Errors
    /// Why they cannot.
    pub async fn try_absent(&self) -> Result<(), ReadError> {
        let core = &self.core;
        let absent = (0..).map_while(|number| core.index.chunk(number).map(|chunk| (number, chunk)));
        let mut absent = absent.filter(|(number, _)| !core.fill.has(*number as usize));
        let Some((number, chunk)) = absent.next() else { return Ok(()) };
        let Some(start) = core.index.start(number) else { return Ok(()) };
        let range = ByteRange::at(start, u64::from(chunk.len));
        core.fill_range(range, Urgency::Blocking).await.map(|_| ())
    }

    /// Reads `len` bytes of a file from `offset` on; fewer at its end.
    ///
    /// # Errors
    /// That `inode` is no regular file, or why the bytes could not be had before the deadline.
    pub async fn read(
        &self,
        inode: u32,
        offset: u64,
        len: u32,
        urgency: Urgency,
    ) -> Result<Bytes, ReadError> {
        self.core.read(inode, offset, len, urgency).await
    }
}

impl Core {
    /// Is cancelled when whoever uses the layer now does not any more.
    pub(crate) fn unused(&self) -> CancellationToken {
        self.unused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What ends a fetch of this urgency: nothing, if a reader waits. It holds the layer as long as it does,
    /// and its bytes are nearly here.
    pub(super) fn ends(&self, urgency: Urgency) -> CancellationToken {
        if urgency == Urgency::Blocking { CancellationToken::new() } else { self.unused() }
    }
}
