//! The snapshots of an image, from the lowest layer to the top.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use content::Digest;
use proto::containerd::types::Mount;
use registry::{Descriptor, media_type};

use super::report::{PulledAs, PulledLayer};
use super::{Pulling, labels};
use crate::error::ConvertError;
use crate::place::{PlaceError, Prepared};
use crate::progress::LayerProgress;
use crate::table;

/// How often a snapshot is asked for that is said to exist and cannot be found; as often as containerd asks.
const TRIES: usize = 3;
/// containerd's label for the digest of a layer when inflated.
const UNCOMPRESSED: &str = "containerd.io/uncompressed";

/// A layer whose turn has come.
struct Turn {
    at: usize,
    layer: Descriptor,
    diff_id: Digest,
    /// Name of the snapshot below; empty for the lowest layer.
    parent: String,
    chain: Digest,
    started: Instant,
    progress: Arc<dyn LayerProgress>,
}

/// The names of the snapshots of layers with these diffIDs, as OCI defines them.
fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Option<Digest> = None;
    let next = |diff_id: &Digest| {
        let id = match chain {
            None => *diff_id,
            Some(below) => Digest::of(format!("{below} {diff_id}").as_bytes()),
        };
        chain = Some(id);
        id
    };
    diff_ids.iter().map(next).collect()
}

impl Pulling<'_> {
    /// Makes all snapshots, each on top of the one before.
    pub(super) async fn all_layers(&mut self) -> Result<Vec<PulledLayer>, ConvertError> {
        let image = &self.wanted.image;
        let (layers, diff_ids) = (image.manifest.layers.clone(), image.diff_ids.clone());
        let (mut done, mut parent) = (Vec::with_capacity(layers.len()), String::new());
        let mut shown = HashMap::new();
        for (at, ((layer, diff_id), chain)) in
            layers.iter().zip(&diff_ids).zip(chain_ids(&diff_ids)).enumerate()
        {
            let progress = shown.remove(&at).unwrap_or_else(|| self.show(layer));
            let turn = Turn {
                at,
                layer: layer.clone(),
                diff_id: *diff_id,
                parent: std::mem::replace(&mut parent, chain.to_string()),
                chain,
                started: Instant::now(),
                progress,
            };
            let pulled = self.layer(&turn, &mut shown).await?;
            turn.progress.done(pulled.outcome.as_str(), layer.size);
            done.push(pulled);
        }
        Ok(done)
    }

    fn show(&self, layer: &Descriptor) -> Arc<dyn LayerProgress> {
        self.progress.layer(&table::short(&layer.digest), layer.size)
    }

    async fn layer(
        &mut self,
        turn: &Turn,
        shown: &mut HashMap<usize, Arc<dyn LayerProgress>>,
    ) -> Result<PulledLayer, ConvertError> {
        let name = turn.chain.to_string();
        if let Some(found) = self.shelf.stat(&name).await? {
            self.compare(turn, &found);
            return Ok(turn.pulled(PulledAs::Present, 0));
        }
        let image = &self.wanted.image;
        let (manifest, digest) = (&image.manifest, &image.descriptor.digest);
        let prefetch = self.options.prefetch;
        let labels = labels::of_layer(self.reference, digest, manifest, turn.at, &turn.chain, prefetch);
        for _ in 0..TRIES {
            let key = format!("extract-{} {name}", unique());
            *self.active() = Some(key.clone());
            match self.shelf.prepare(&key, &turn.parent, labels.clone()).await? {
                Prepared::Empty(mounts) => return self.fill(turn, &key, mounts, labels, shown).await,
                Prepared::Exists => {
                    *self.active() = None;
                    if let Some(found) = self.shelf.stat(&name).await? {
                        self.compare(turn, &found);
                        return Ok(turn.pulled(PulledAs::Lazy, 0));
                    }
                }
            }
        }
        Err(ConvertError::Place(PlaceError::Unsupported {
            place: format!("the snapshotter {}", self.options.snapshotter),
            reason: format!("says that it has the snapshot {name}, and nobody finds it: see its log"),
        }))
    }

    /// Makes an ordinary layer.
    async fn fill(
        &mut self,
        turn: &Turn,
        key: &str,
        mounts: Vec<Mount>,
        labels: HashMap<String, String>,
        shown: &mut HashMap<usize, Arc<dyn LayerProgress>>,
    ) -> Result<PulledLayer, ConvertError> {
        if media_type::is_foreign(&turn.layer.media_type) {
            let (digest, media_type) = (turn.layer.digest, turn.layer.media_type.clone());
            return Err(ConvertError::LayerType { digest, media_type });
        }
        let could = could_be_lazy(&turn.layer);
        if could {
            self.warn(format!(
                "layer {} is fetched whole, though it can be mounted lazily: the log of the snapshotter {} tells why",
                table::short(&turn.layer.digest),
                self.options.snapshotter
            ));
        }
        self.fetches.start(turn.at, &turn.layer, &turn.progress);
        self.fetch_ahead(turn.at, could, shown);
        let fetched = self.fetches.wait(turn.at).await?;
        let found = self.shelf.apply(&turn.layer, mounts).await?;
        let (digest, claimed) = (turn.layer.digest, turn.diff_id);
        if found != claimed {
            return Err(ConvertError::DiffId { digest, claimed, found });
        }
        if !self.shelf.commit(&turn.chain.to_string(), key, labels).await? {
            // Somebody else made the same meanwhile.
            self.shelf.remove(key).await?;
        }
        *self.active() = None;
        self.shelf.label(&digest, HashMap::from([(UNCOMPRESSED.to_owned(), claimed.to_string())])).await?;
        Ok(turn.pulled(PulledAs::Unpacked, fetched))
    }

    /// Begins to fetch layers above that will not be mounted lazily: those that cannot be, and all if this one
    /// could and was not.
    fn fetch_ahead(&mut self, at: usize, all: bool, shown: &mut HashMap<usize, Arc<dyn LayerProgress>>) {
        let above: Vec<(usize, Descriptor)> =
            self.wanted.image.manifest.layers.iter().cloned().enumerate().skip(at + 1).collect();
        for (at, layer) in above {
            if shown.contains_key(&at)
                || media_type::is_foreign(&layer.media_type)
                || (could_be_lazy(&layer) && !all)
            {
                continue;
            }
            let progress = self.show(&layer);
            self.fetches.start(at, &layer, &progress);
            shown.insert(at, progress);
        }
    }

    /// Tells if the snapshot that is there was made of another table of contents than the image names.
    fn compare(&mut self, turn: &Turn, found: &HashMap<String, String>) {
        let (named, made_of) = (turn.layer.annotation(labels::TOC_DIGEST), found.get(labels::TOC_DIGEST));
        if let (Some(named), Some(made_of)) = (named, made_of)
            && named != made_of
        {
            self.warn(format!(
                "layer {} is mounted with another table of contents ({made_of}) than this image names ({named}): \
                 the snapshotter finds out at the start of a container which of the two is true",
                table::short(&turn.layer.digest)
            ));
        }
    }
}

impl Turn {
    fn pulled(&self, outcome: PulledAs, fetched: u64) -> PulledLayer {
        PulledLayer {
            outcome,
            digest: self.layer.digest,
            size: self.layer.size,
            diff_id: self.diff_id,
            chain_id: self.chain,
            fetched,
            seconds: self.started.elapsed().as_secs_f64(),
        }
    }
}

/// Whether the manifest says that the layer has a table of contents.
fn could_be_lazy(layer: &Descriptor) -> bool {
    layer.annotation(labels::TOC_DIGEST).is_some()
}

/// A part of a key that nobody else uses.
fn unique() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{}-{}", now.as_nanos(), std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_named_by_all_layers_below() {
        let [a, b, c] = [b"a", b"b", b"c"].map(|text| Digest::of(text));
        let ab = Digest::of(format!("{a} {b}").as_bytes());
        let abc = Digest::of(format!("{ab} {c}").as_bytes());
        assert_eq!(chain_ids(&[a, b, c]), [a, ab, abc]);
        assert_eq!(chain_ids(&[]), []);
    }
}
