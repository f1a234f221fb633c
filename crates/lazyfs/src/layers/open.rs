//! Opening a layer: from its folder, or from the last bytes of its blob.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use content::{BlobSource, ByteRange, Digest, Fault, OpenBlob, ReadError, ReadErrorKind, Urgency};
use estargz::{BlobKind, TailState, Toc, TocLimits, open_tail, read_toc_layer};
use rustix::fs::{Mode, OFlags};

use super::{LayerSpec, Prefetch};
use crate::desk::at_desk;
use crate::engine::Engine;
use crate::error::LayerError;
use crate::fill::{Fill, replace};
use crate::index::{About, Index, stored_toc};
use crate::layer::{Core, Layer, Parts};
use crate::numbers::Numbers;
use crate::source::Sources;

/// How much of a blob's end is asked for: footer and TOC of some 8,000 files, at 64 bytes each.
pub const TAIL: u64 = 512 * 1024;

/// The layer's description, from wherever it came.
struct Description {
    index: Index,
    source: Option<Arc<dyn BlobSource>>,
}

/// Opens a layer in `folder`.
pub(super) async fn open(
    engine: Arc<Engine>,
    folder: PathBuf,
    spec: LayerSpec,
) -> Result<Arc<Layer>, LayerError> {
    let numbers = Numbers::new(&engine.totals);
    let description = if let Some(known) = from_disk(&folder, &spec).await? {
        engine.totals.opened_from_disk.increment();
        known
    } else {
        let found = from_source(&folder, &spec, &numbers).await?;
        engine.totals.opened_from_source.increment();
        found
    };
    let (prefetch, background) = (spec.prefetch, spec.background);
    let core = blocking(move || assemble(engine, &folder, &spec, description, numbers)).await?;
    let layer = Layer::hold(core);
    layer.core().engine_is_busy();
    begin(&layer, prefetch, background);
    Ok(layer)
}

/// Starts what is fetched though nobody waits for it.
pub(super) fn begin(layer: &Layer, prefetch: Prefetch, background: bool) {
    let core = layer.core();
    core.start_prefetch(prefetch);
    if background && !core.is_complete() {
        // A container is about to start from it.
        core.stir();
        core.wants_everything();
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LayerError> + Send + 'static,
) -> Result<T, LayerError> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(LayerError::Stopped))
}

fn assemble(
    engine: Arc<Engine>,
    folder: &Path,
    spec: &LayerSpec,
    description: Description,
    numbers: Numbers,
) -> Result<Arc<Core>, LayerError> {
    let Description { index, source } = description;
    let blob_len = index.about().blob_len;
    let shape = (spec.toc_digest, index.chunk_count() as usize, index.data_len());
    let fill = Fill::open(engine.means(), folder, shape, index.zeros())
        .map_err(LayerError::disk("opening", folder))?;
    let sources = Sources::new(spec.layer_digest, Arc::clone(&spec.open), blob_len, source);
    Ok(Core::new(Parts {
        folder: folder.to_owned(),
        toc_digest: spec.toc_digest,
        layer_digest: spec.layer_digest,
        blob_len,
        index,
        fill,
        sources,
        engine,
        numbers,
    }))
}

/// The description that is in the folder, if it is whole: the index, or what it is made from.
async fn from_disk(folder: &Path, spec: &LayerSpec) -> Result<Option<Description>, LayerError> {
    let (place, toc) = (folder.to_owned(), spec.toc_digest);
    let damage = match blocking(move || Ok(Index::open(&place, &toc))).await? {
        Ok(Some(index)) => return Ok(Some(Description { index, source: None })),
        Ok(None) => "there was none".to_owned(),
        Err(error) => error.to_string(),
    };
    let place = folder.to_owned();
    at_desk(move || made_again(&place, &toc, &damage)).await.ok_or(LayerError::Stopped)
}

fn made_again(folder: &Path, toc: &Digest, damage: &str) -> Option<Description> {
    let place = folder.display();
    let about: About = serde_json::from_slice(&std::fs::read(folder.join("layer.json")).ok()?).ok()?;
    match stored_toc(folder, toc, &about).and_then(|toc| Index::make(folder, &toc, &about)) {
        Ok(index) => {
            tracing::info!(folder = %place, why = damage, "the index of a layer was made again from its table of contents");
            Some(Description { index, source: None })
        }
        Err(error) => {
            tracing::warn!(folder = %place, %error, "the stored table of contents is damaged, fetching it again");
            None
        }
    }
}

/// Fetches the description and keeps it.
async fn from_source(folder: &Path, spec: &LayerSpec, numbers: &Numbers) -> Result<Description, LayerError> {
    let layer = spec.layer_digest;
    let read_failed = |source| LayerError::Read { layer, source };
    let began = Instant::now();
    let OpenBlob { source, tail } = (spec.open)().await.map_err(read_failed)?;
    let blob_len = source.len();
    let mut tail = if let Some(tail) = tail {
        tail
    } else {
        let last = ByteRange::new(blob_len.saturating_sub(TAIL), blob_len);
        source.read(last, Urgency::Blocking).await.map_err(read_failed)?
    };
    numbers.footer.observe(began.elapsed());
    numbers.heard();
    // The second tail is as long as the footer wants it; a third would be a blob that contradicts itself.
    for _ in 0..2 {
        let began = Instant::now();
        let next = {
            let (folder, spec) = (folder.to_owned(), spec.clone());
            let (tail, source) = (tail.clone(), Arc::clone(&source));
            at_desk(move || look(&folder, &spec, &tail, source)).await.unwrap_or(Err(LayerError::Stopped))?
        };
        numbers.parse.observe(began.elapsed());
        match next {
            Next::More(from) => {
                let began = Instant::now();
                let start = blob_len.saturating_sub(tail.len() as u64);
                let missing = ByteRange::new(from, start);
                let more = source.read(missing, Urgency::Blocking).await.map_err(read_failed)?;
                numbers.toc.observe(began.elapsed());
                tail = [more.as_ref(), tail.as_ref()].concat().into();
            }
            Next::Elsewhere(payload_end) => return external(folder, spec, payload_end, source).await,
            Next::Here(description) => return Ok(*description),
        }
    }
    let reason = "its footer asks for more than the whole tail";
    let source = ReadError::new(Fault::Origin, ReadErrorKind::Corrupt, reason);
    Err(LayerError::Read { layer, source })
}

/// What a tail leads to.
enum Next {
    /// More of the blob, from here on.
    More(u64),
    /// A table in another image, of a payload that ends here.
    Elsewhere(u64),
    Here(Box<Description>),
}

/// Looks at a tail, and keeps the table that is there.
fn look(
    folder: &Path,
    spec: &LayerSpec,
    tail: &[u8],
    source: Arc<dyn BlobSource>,
) -> Result<Next, LayerError> {
    let layer = spec.layer_digest;
    let not_lazy = |reason: String| LayerError::NotLazy { layer, reason };
    match open_tail(tail, source.len()).map_err(|error| not_lazy(error.to_string()))? {
        TailState::NeedMore { from } => Ok(Next::More(from)),
        TailState::External { payload_end } => Ok(Next::Elsewhere(payload_end)),
        TailState::Toc { kind: BlobKind::Legacy, .. } => {
            let reason =
                "it is a legacy stargz blob, whose files cannot be verified; convert the image again";
            Err(not_lazy(reason.into()))
        }
        TailState::Toc { json, toc_offset, digest, .. } => {
            described(folder, spec, &json, digest, toc_offset, source).map(|it| Next::Here(Box::new(it)))
        }
    }
}

/// Checks the JSON of a table, and keeps it and what follows from it.
fn described(
    folder: &Path,
    spec: &LayerSpec,
    json: &[u8],
    found: Digest,
    toc_offset: u64,
    source: Arc<dyn BlobSource>,
) -> Result<Description, LayerError> {
    let (layer, expected) = (spec.layer_digest, spec.toc_digest);
    if found != expected {
        return Err(LayerError::TocDigest { layer, expected, found });
    }
    let toc = Toc::parse(json, toc_offset, &TocLimits::default())
        .map_err(|source| LayerError::Toc { layer, source: Arc::new(source) })?;
    let about = About { layer, blob_len: source.len(), toc_offset };
    let index = keep(folder, json, &about)
        .and_then(|()| Index::make(folder, &toc, &about))
        .map_err(LayerError::disk("writing", folder))?;
    Ok(Description { index, source: Some(source) })
}

/// The description of a blob whose table is kept in another image.
async fn external(
    folder: &Path,
    spec: &LayerSpec,
    payload_end: u64,
    source: Arc<dyn BlobSource>,
) -> Result<Description, LayerError> {
    let layer = spec.layer_digest;
    let Some(open) = &spec.external_toc else {
        let reason = "its table of contents is kept in a separate image, which is not looked up here; \
                      convert the image again without an external table of contents";
        return Err(LayerError::NotLazy { layer, reason: reason.into() });
    };
    let bytes = open().await.map_err(|source| LayerError::Read { layer, source })?;
    let (folder, spec) = (folder.to_owned(), spec.clone());
    let work = move || {
        let json = read_toc_layer(&bytes)
            .map_err(|error| LayerError::NotLazy { layer, reason: error.to_string() })?;
        described(&folder, &spec, &json, Digest::of(&json), payload_end, source)
    };
    at_desk(work).await.unwrap_or(Err(LayerError::Stopped))
}

/// Writes the description, the part that makes it valid last.
fn keep(folder: &Path, json: &[u8], about: &About) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let folder: OwnedFd =
        rustix::fs::open(folder, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    replace(&folder, "toc.json", json)?;
    replace(&folder, "layer.json", &serde_json::to_vec(about)?)
}
