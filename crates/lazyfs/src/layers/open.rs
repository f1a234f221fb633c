//! Opening a layer: from its folder, or from the last bytes of its blob.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use content::{BlobSource, ByteRange, Digest, Fault, OpenBlob, ReadError, ReadErrorKind, Urgency};
use estargz::{BlobKind, TailState, Toc, TocLimits, open_tail};
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use super::{LayerSpec, Prefetch};
use crate::engine::Engine;
use crate::error::LayerError;
use crate::fill::{Fill, replace};
use crate::layer::{Core, Layer, Parts};
use crate::layout::Layout;
use crate::source::Sources;

/// How much of a blob's end is asked for: footer and TOC of some 8,000 files, at 64 bytes each.
pub const TAIL: u64 = 512 * 1024;

/// What the TOC does not say about its blob.
#[derive(Serialize, Deserialize)]
struct About {
    layer: Digest,
    blob_len: u64,
    toc_offset: u64,
}

/// The layer's description, from wherever it came.
struct Description {
    about: About,
    toc: Toc,
    source: Option<Arc<dyn BlobSource>>,
}

/// Opens a layer in `folder`.
pub(super) async fn open(
    engine: Arc<Engine>,
    folder: PathBuf,
    spec: LayerSpec,
) -> Result<Arc<Layer>, LayerError> {
    let known = {
        let (folder, spec) = (folder.clone(), spec.clone());
        blocking(move || Ok(from_disk(&folder, &spec))).await?
    };
    let description = match known {
        Some(known) => known,
        None => from_source(&folder, &spec).await?,
    };
    let (prefetch, background) = (spec.prefetch, spec.background);
    let core = blocking(move || assemble(engine, &folder, &spec, description)).await?;
    let layer = Layer::hold(core);
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
) -> Result<Arc<Core>, LayerError> {
    let Description { about, toc, source } = description;
    let layout = Layout::new(&toc);
    let zeros = (0..).zip(toc.chunks()).filter(|(_, chunk)| chunk.is_zeros()).map(|(number, _)| number);
    let fill = Fill::open(folder, spec.toc_digest, toc.chunk_count() as usize, layout.len(), zeros)
        .map_err(LayerError::disk("opening", folder))?;
    let sources = Sources::new(spec.layer_digest, Arc::clone(&spec.open), about.blob_len, source);
    Ok(Core::new(Parts {
        toc_digest: spec.toc_digest,
        layer_digest: spec.layer_digest,
        blob_len: about.blob_len,
        toc,
        layout,
        fill,
        sources,
        engine,
    }))
}

/// The description that is in the folder, if it is whole.
fn from_disk(folder: &Path, spec: &LayerSpec) -> Option<Description> {
    let about: About = serde_json::from_slice(&std::fs::read(folder.join("layer.json")).ok()?).ok()?;
    let json = std::fs::read(folder.join("toc.json")).ok()?;
    if Digest::of(&json) != spec.toc_digest {
        tracing::warn!(folder = %folder.display(), "the stored table of contents is damaged, fetching it again");
        return None;
    }
    match Toc::parse(&json, about.toc_offset, &TocLimits::default()) {
        Ok(toc) => Some(Description { about, toc, source: None }),
        Err(error) => {
            tracing::warn!(folder = %folder.display(), %error, "the stored table of contents is damaged, fetching it again");
            None
        }
    }
}

/// Fetches the description and keeps it.
async fn from_source(folder: &Path, spec: &LayerSpec) -> Result<Description, LayerError> {
    let layer = spec.layer_digest;
    let read_failed = |source| LayerError::Read { layer, source };
    let OpenBlob { source, tail } = (spec.open)().await.map_err(read_failed)?;
    let blob_len = source.len();
    let mut tail = if let Some(tail) = tail {
        tail
    } else {
        let last = ByteRange::new(blob_len.saturating_sub(TAIL), blob_len);
        source.read(last, Urgency::Blocking).await.map_err(read_failed)?
    };
    // The second tail is as long as the footer wants it; a third would be a blob that contradicts itself.
    for _ in 0..2 {
        let (state, bytes) = {
            let bytes = tail.clone();
            blocking(move || {
                let state = open_tail(&bytes, blob_len)
                    .map_err(|error| LayerError::NotLazy { layer, reason: error.to_string() })?;
                Ok((state, bytes))
            })
            .await?
        };
        match state {
            TailState::NeedMore { from } => {
                let start = blob_len.saturating_sub(bytes.len() as u64);
                let missing = ByteRange::new(from, start);
                let more = source.read(missing, Urgency::Blocking).await.map_err(read_failed)?;
                tail = [more.as_ref(), bytes.as_ref()].concat().into();
            }
            TailState::External { .. } => {
                let reason = "its table of contents is kept in a separate image, which is not looked up yet; \
                              convert the image again without an external table of contents";
                return Err(LayerError::NotLazy { layer, reason: reason.into() });
            }
            TailState::Toc { kind: BlobKind::Legacy, .. } => {
                let reason =
                    "it is a legacy stargz blob, whose files cannot be verified; convert the image again";
                return Err(LayerError::NotLazy { layer, reason: reason.into() });
            }
            TailState::Toc { json, toc_offset, digest, .. } => {
                if digest != spec.toc_digest {
                    return Err(LayerError::TocDigest { layer, expected: spec.toc_digest, found: digest });
                }
                let folder = folder.to_owned();
                return blocking(move || {
                    let toc = Toc::parse(&json, toc_offset, &TocLimits::default())
                        .map_err(|source| LayerError::Toc { layer, source: Arc::new(source) })?;
                    let about = About { layer, blob_len, toc_offset };
                    keep(&folder, &json, &about).map_err(LayerError::disk("writing", folder))?;
                    Ok(Description { about, toc, source: Some(source) })
                })
                .await;
            }
        }
    }
    let reason = "its footer asks for more than the whole tail";
    let source = ReadError::new(Fault::Origin, ReadErrorKind::Corrupt, reason);
    Err(LayerError::Read { layer, source })
}

/// Writes the description, the part that makes it valid last.
fn keep(folder: &Path, json: &[u8], about: &About) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let folder: OwnedFd =
        rustix::fs::open(folder, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    replace(&folder, "toc.json", json)?;
    replace(&folder, "layer.json", &serde_json::to_vec(about)?)
}
