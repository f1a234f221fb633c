//! Before a root file system is handed out: do all who claim its chain mean what lies there?
//!
//! See [`crate::claims`]. Here claims meet slots: those below a container, those of an image that was just pulled, or
//! all of them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::future::select_all;
use tokio::time::Instant;

use super::{SnapshotError, Snapshots};
use crate::claims::{
    Candidate, Claim, Claimant, Claims, Copied, Counters, Proof, Ruling, Slot, claims_of, images,
    namespace_of, standing_on,
};
use crate::cri::PullGuard;
use crate::labels::{LayerSource, SNAPSHOT_REF};
use crate::meta::Record;

/// How long a pull waits for proofs. Nobody gives a pull a deadline; this one is for a registry that hangs.
const PULL_WAIT: Duration = Duration::from_mins(5);
/// Most rounds of judging and exchanging. Each settles something; one or two are usual.
const ROUNDS: usize = 64;

/// What to do where nobody can be believed.
const REMEDY: &str = "remove the image that lies and pull the other again";
/// What to do where containerd is not found.
const NAME_IT: &str =
    "name its socket as containerd_address in the snapshotter's configuration, or by --containerd-address";

/// A lazy snapshot as a slot.
struct Placed {
    name: String,
    row: Arc<Record>,
    slot: Slot,
}

/// Which slots are looked at, and whose claims count.
enum Scope<'a> {
    /// Those below a container that stands on this snapshot; the images that stand on it.
    Container(&'a str),
    /// Those of an image; all that share one.
    Image(&'a str),
    /// All slots, all images.
    Everything,
}

/// How a comparison ended.
enum Settled {
    Agreed,
    /// Proofs are under way.
    Pending(String),
    Refused(String),
}

/// The chain ID that ends with a snapshot. A lazy one was committed for it; the name of another is containerd's.
fn chain_of(name: &str, row: &Record) -> String {
    let label = row.labels.get(SNAPSHOT_REF).filter(|chain| !chain.is_empty());
    let named = namespace_of(name).and_then(|_| name.splitn(3, '/').nth(2));
    match (row.source.is_some(), label, named) {
        (true, Some(label), _) | (false, Some(label), None) => label.clone(),
        (_, _, Some(named)) => named.to_owned(),
        _ => name.to_owned(),
    }
}

fn placed(name: &str, row: &Arc<Record>, below: Option<(&str, &Record)>) -> Option<Placed> {
    let slot = Slot {
        chain: chain_of(name, row),
        below: below.map(|(name, row)| chain_of(name, row)),
        holds: row.source.clone()?,
    };
    Some(Placed { name: name.to_owned(), row: Arc::clone(row), slot })
}

impl Snapshots {
    /// Whether the root file system `key` may be made on top of `parent`. Costs nothing if no lazy layer is below, one
    /// listing of images if nobody disagrees.
    ///
    /// # Errors
    /// [`SnapshotError::Disputed`].
    pub(super) async fn check_claims(self: &Arc<Self>, key: &str, parent: &str) -> Result<(), SnapshotError> {
        let (Some(claims), Some(namespace)) = (&self.claims, namespace_of(key)) else { return Ok(()) };
        if parent.is_empty() {
            return Ok(());
        }
        let until = Instant::now() + claims.options().wait;
        let reason = match self.settle(claims, namespace, &Scope::Container(parent), until).await? {
            Settled::Agreed => return Ok(()),
            Settled::Pending(reason) => {
                format!("{reason}; layers are being verified, try again in a moment")
            }
            Settled::Refused(reason) => reason,
        };
        Counters::count(&claims.counters().refused);
        tracing::warn!(key, parent, reason, "a root file system is not handed out");
        Err(SnapshotError::Disputed { parent: parent.to_owned(), reason })
    }

    /// Compares the claims of an image that was just pulled with what lies on its chain, and waits for proofs.
    ///
    /// # Errors
    /// [`SnapshotError::Disputed`] if a container of it could not be started.
    pub async fn check_image(self: &Arc<Self>, namespace: &str, image: &str) -> Result<(), SnapshotError> {
        let Some(claims) = &self.claims else { return Ok(()) };
        let until = Instant::now() + PULL_WAIT;
        match self.settle(claims, namespace, &Scope::Image(image), until).await? {
            Settled::Agreed => Ok(()),
            Settled::Pending(reason) | Settled::Refused(reason) => {
                Err(SnapshotError::Disputed { parent: image.to_owned(), reason })
            }
        }
    }

    /// Objects when CRI pulled an image of which no container could be started.
    pub fn guard(self: &Arc<Self>) -> Option<Arc<dyn PullGuard>> {
        self.claims.as_ref()?;
        Some(Arc::new(Guard(Arc::clone(self))))
    }

    /// Listens to what images containerd takes in, and settles what they disagree on before somebody waits.
    pub fn watch_images(self: &Arc<Self>) {
        let Some(claims) = self.claims.clone() else { return };
        let this = Arc::clone(self);
        let watching = async move {
            let mut changes = images(Arc::clone(claims.locator()));
            let mut proven = claims.prover().finished();
            // Where something is being proven.
            let mut open = BTreeSet::new();
            loop {
                let namespaces = tokio::select! {
                    change = changes.next() => match change {
                        Some(Some(namespace)) => vec![namespace],
                        Some(None) => claims.namespaces().await.unwrap_or_default(),
                        None => return,
                    },
                    changed = proven.changed(), if !open.is_empty() => {
                        if changed.is_err() { return }
                        open.iter().cloned().collect()
                    }
                };
                for namespace in namespaces {
                    let now = Instant::now();
                    match this.settle(&claims, &namespace, &Scope::Everything, now).await {
                        Ok(Settled::Pending(_)) => open.insert(namespace),
                        Ok(Settled::Agreed) => open.remove(&namespace),
                        Ok(Settled::Refused(reason)) => {
                            tracing::warn!(namespace, reason, "no container of some image can be started");
                            open.remove(&namespace)
                        }
                        Err(error) => {
                            tracing::warn!(namespace, %error, "images cannot be compared");
                            open.remove(&namespace)
                        }
                    };
                }
            }
        };
        self.tasks.spawn(self.stop.clone().run_until_cancelled_owned(watching));
    }

    /// An image that is being pulled claims the chain of the slot `name` with other bytes: settles that in the
    /// background. What was asked for is prepared apart meanwhile.
    pub(super) fn dispute(self: &Arc<Self>, name: &str, wanted: &LayerSource) {
        let Some(claims) = self.claims.clone() else { return };
        let Ok(Some(placed)) = self.placed(name) else { return };
        let claim = Claim {
            layer: wanted.layer.to_string(),
            toc: Some(wanted.toc.to_string()),
            references: vec![wanted.reference.clone()],
        };
        let this = Arc::clone(self);
        let settling = async move {
            let until = Instant::now() + PULL_WAIT;
            for _ in 0..ROUNDS {
                let Ok(Some(placed)) = this.placed(&placed.name) else { return };
                let mut judged = judge(&claims, vec![(placed, vec![claim.clone()])]).await;
                let Some((placed, ruling)) = judged.pop() else { return };
                match ruling {
                    Ruling::Put(source) => {
                        if let Err(error) = this.exchange(&placed.name, Arc::clone(&placed.row), source).await
                        {
                            tracing::warn!(%error, "a verified layer cannot be mounted");
                            return;
                        }
                    }
                    Ruling::Prove(candidates) => {
                        let waiting = begin(&claims, &placed, &candidates);
                        if !one_of(waiting, until).await {
                            return;
                        }
                    }
                    Ruling::Keep | Ruling::Make { .. } | Ruling::Refuse(_) => return,
                }
            }
        };
        self.tasks.spawn(self.stop.clone().run_until_cancelled_owned(settling));
    }

    /// What is known of a layer that is to be mounted lazily for the chain `target` on top of `parent`: `Ok(true)` if
    /// it was proven to be that, `Err` if it was proven not to be.
    pub(super) async fn is_proven(
        &self,
        target: &str,
        parent: &str,
        source: &LayerSource,
    ) -> Result<bool, String> {
        let below = if parent.is_empty() { None } else { self.meta.get(parent).ok() };
        let below = below.map(|row| chain_of(parent, &row));
        let slot = Slot { chain: target.to_owned(), below, holds: source.clone() };
        let layer = source.layer;
        let known = self.blocking(move |meta, _| Ok(meta.fact(&layer)?)).await;
        match known {
            Ok(Some(fact)) if slot.is_proven(&fact) => Ok(true),
            Ok(Some(fact)) if !slot.fits(&fact) => {
                Err(format!("layer {layer} is known not to inflate to what its image says"))
            }
            _ => Ok(false),
        }
    }

    /// Whether only proven layers are mounted lazily.
    pub(super) fn requires_proof(&self) -> bool {
        self.claims.as_ref().is_some_and(|claims| claims.options().require_proof)
    }

    /// Whether what lies in the snapshot `name` was proven to be the chain `target` on top of `parent`.
    pub(super) async fn holds_truth(&self, name: &str, target: &str, parent: &str) -> bool {
        let Ok(row) = self.meta.get(name) else { return false };
        let Some(source) = &row.source else { return true };
        self.is_proven(target, parent, source).await == Ok(true)
    }

    /// Begins to prove a layer that is wanted lazily.
    pub(super) fn begin_proof(&self, source: &LayerSource) {
        if let Some(claims) = &self.claims {
            let references = vec![source.reference.clone()];
            drop(claims.prover().start(&Candidate {
                layer: source.layer,
                toc: Some(source.toc),
                references,
            }));
        }
    }

    fn placed(&self, name: &str) -> Result<Option<Placed>, SnapshotError> {
        let row = self.meta.get(name)?;
        let below = if row.parent.is_empty() { None } else { Some(self.meta.get(&row.parent)?) };
        let below = below.as_ref().map(|below| (row.parent.as_str(), below.as_ref()));
        Ok(placed(name, &row, below))
    }

    /// The slots of a scope, and the chain ID that a container stands on.
    fn slots(&self, scope: &Scope<'_>) -> Result<(Vec<Placed>, Option<String>), SnapshotError> {
        let Scope::Container(parent) = scope else {
            let lazy = self.meta.lazy();
            // One may be removed meanwhile.
            let slots = lazy.iter().filter_map(|(name, _)| self.placed(name).ok().flatten());
            return Ok((slots.collect(), None));
        };
        let mut rows = vec![((*parent).to_owned(), self.meta.get(parent)?)];
        rows.extend(self.meta.ancestors(parent)?);
        let top = rows.first().map(|(name, row)| chain_of(name, row));
        let belows = rows.iter().skip(1).map(|(name, row)| Some((name.as_str(), row.as_ref())));
        let slots =
            rows.iter().zip(belows.chain([None])).filter_map(|((name, row), below)| placed(name, row, below));
        Ok((slots.collect(), top))
    }

    /// Judges, exchanges and proves until nothing is left to do, or `until`.
    async fn settle(
        self: &Arc<Self>,
        claims: &Arc<Claims>,
        namespace: &str,
        scope: &Scope<'_>,
        until: Instant,
    ) -> Result<Settled, SnapshotError> {
        let patient = until > Instant::now();
        let mut last = "it is not settled which image tells the truth".to_owned();
        for _ in 0..ROUNDS {
            let (slots, top) = self.slots(scope)?;
            if slots.is_empty() {
                return Ok(Settled::Agreed);
            }
            let claimants = match claims.claimants(namespace).await {
                Ok(claimants) => claimants,
                Err(error) => {
                    // Without images nothing but proof counts.
                    let slots = slots.into_iter().map(|placed| (placed, Vec::new())).collect();
                    let judged = judge_strictly(claims, slots).await;
                    if judged.iter().all(|(_, ruling)| *ruling == Ruling::Keep) {
                        return Ok(Settled::Agreed);
                    }
                    return Ok(Settled::Refused(format!(
                        "containerd cannot be asked which images claim these layers: {error}; {NAME_IT}"
                    )));
                }
            };
            let disputed = with_claims(slots, top.as_deref(), scope, &claimants);
            let (mut waiting, mut refused, mut changed) = (Vec::new(), None, false);
            for (placed, ruling) in judge(claims, disputed).await {
                match ruling {
                    Ruling::Keep => {}
                    Ruling::Put(source) => {
                        self.exchange(&placed.name, Arc::clone(&placed.row), source).await?;
                        changed = true;
                    }
                    Ruling::Prove(candidates) => {
                        last = format!("images claim different layers for chain {}", placed.slot.chain);
                        waiting.extend(begin(claims, &placed, &candidates));
                    }
                    Ruling::Make { reference, layer } => match claims.prover().copy(&layer, &reference) {
                        Copied::Made(toc) => {
                            let source = LayerSource { reference, layer, toc, prefetch: None, local: true };
                            self.exchange(&placed.name, Arc::clone(&placed.row), source).await?;
                            changed = true;
                        }
                        Copied::Working(proof) => {
                            last =
                                format!("layer {layer} is being copied, since it cannot be mounted as it is");
                            waiting.push(proof);
                        }
                        Copied::Failed(error) => {
                            refused = Some(format!("layer {layer} cannot be mounted: {error}"));
                        }
                    },
                    Ruling::Refuse(reason) => {
                        refused = Some(format!(
                            "images claim different layers for chain {}, and none can be verified: {reason}; {REMEDY}",
                            placed.slot.chain
                        ));
                    }
                }
            }
            match (refused, waiting.is_empty(), changed) {
                (Some(reason), true, _) => return Ok(Settled::Refused(reason)),
                (Some(reason), false, _) if !matches!(scope, Scope::Everything) => {
                    return Ok(Settled::Refused(reason));
                }
                (None, true, false) => return Ok(Settled::Agreed),
                (None, true, true) => {}
                (_, false, _) => {
                    if !patient || !one_of(waiting, until).await {
                        return Ok(Settled::Pending(last));
                    }
                }
            }
        }
        Ok(Settled::Pending(last))
    }
}

struct Guard(Arc<Snapshots>);

#[async_trait]
impl PullGuard for Guard {
    async fn pulled(&self, image: &str, resolved: &str) -> Result<(), String> {
        let Some(claims) = &self.0.claims else { return Ok(()) };
        let namespace = &claims.options().cri_namespace;
        // By either name: the record of one of them names the layers.
        for name in [image, resolved] {
            self.0.check_image(namespace, name).await.map_err(|error| error.to_string())?;
        }
        Ok(())
    }
}

/// Which claims count for which slot.
fn with_claims(
    slots: Vec<Placed>,
    top: Option<&str>,
    scope: &Scope<'_>,
    claimants: &[Claimant],
) -> Vec<(Placed, Vec<Claim>)> {
    let who: Vec<&Claimant> = match top {
        Some(top) => standing_on(claimants, top),
        None => claimants.iter().collect(),
    };
    let on_image = |placed: &Placed| match scope {
        Scope::Image(image) => {
            let mut named = claimants.iter().filter(|one| one.name == *image);
            named.any(|one| one.chains().contains(&placed.slot.chain))
        }
        _ => true,
    };
    let counted = slots.into_iter().filter(on_image).map(|placed| {
        let claims = claims_of(&who, &placed.slot.chain);
        (placed, claims)
    });
    // A slot that nobody claims is left to whoever comes: a layer of an image that was removed, say.
    counted.filter(|(_, claims)| top.is_some() || !claims.is_empty()).collect()
}

async fn judge(claims: &Arc<Claims>, slots: Vec<(Placed, Vec<Claim>)>) -> Vec<(Placed, Ruling)> {
    let strict = claims.options().require_proof;
    judge_with(claims, slots, strict).await
}

async fn judge_strictly(claims: &Arc<Claims>, slots: Vec<(Placed, Vec<Claim>)>) -> Vec<(Placed, Ruling)> {
    judge_with(claims, slots, true).await
}

async fn judge_with(
    claims: &Arc<Claims>,
    slots: Vec<(Placed, Vec<Claim>)>,
    strict: bool,
) -> Vec<(Placed, Ruling)> {
    let prover = Arc::clone(claims.prover());
    let judging = tokio::task::spawn_blocking(move || {
        let judged = slots.into_iter().map(|(placed, claims)| {
            let ruling =
                crate::claims::judge(&placed.slot, &claims, strict, |candidate| prover.known(candidate));
            (placed, ruling)
        });
        judged.collect()
    });
    // It ends with this process alone.
    judging.await.unwrap_or_default()
}

/// Begins to prove candidates for a slot.
fn begin(claims: &Claims, placed: &Placed, candidates: &[Candidate]) -> Vec<Proof> {
    let mut proofs = Vec::new();
    let mut is_new = false;
    for candidate in candidates {
        for (proof, begun) in claims.prover().start(candidate) {
            is_new |= begun;
            proofs.push(proof);
        }
    }
    if is_new {
        Counters::count(&claims.counters().conflicts);
        let layers: Vec<String> = candidates
            .iter()
            .map(|one| format!("{} of {}", one.layer, one.references.join(" and ")))
            .collect();
        tracing::warn!(
            snapshot = placed.name,
            chain = placed.slot.chain,
            layers = layers.join(", "),
            "it is claimed of different layers that they are one: hashing them to see who lies"
        );
    }
    proofs
}

/// Waits until one of the proofs ends. `false` if none does in time.
async fn one_of(proofs: Vec<Proof>, until: Instant) -> bool {
    let ends: Vec<_> = proofs
        .into_iter()
        .map(|mut proof| Box::pin(async move { drop(proof.wait_for(Option::is_some).await) }))
        .collect();
    !ends.is_empty() && tokio::time::timeout_at(until, select_all(ends)).await.is_ok()
}
