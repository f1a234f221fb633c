//! Which images there are, and what they claim: read from containerd.
//!
//! Only the list of images is asked for each time. What an image stands for is named by digest and never changes, so
//! it is read once and kept (bounded). Of an index containerd has some manifests and not others: which, is asked
//! again when the image's record changed, and always for those that this machine would run and that are missing.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use containerd::{Client, Error, Image};
use futures::StreamExt;
use registry::Reference;

use super::document::{self, Document, Fit, MAX_DOCUMENT, NamedLayer};
use super::judge::Claim;

/// Manifests, indexes and configs that are remembered. A node has some hundred images.
const REMEMBERED: usize = 8192;
/// Documents that are asked for at once.
const AT_ONCE: usize = 16;
/// Names that are kept of those who make the same claim.
const NAMES: usize = 4;

/// What one manifest claims: its chain IDs, lowest first, and its layers.
#[derive(Debug, PartialEq, Eq)]
pub struct Shape {
    chains: Vec<String>,
    layers: Vec<NamedLayer>,
}

impl Shape {
    fn new(chains: Vec<String>, mut layers: Vec<NamedLayer>) -> Self {
        if layers.len() != chains.len() {
            // What else a manifest may carry beside layers: containerd skips it as well.
            layers.retain(|layer| layer.is_layer);
        }
        Self { chains, layers }
    }

    /// Whether a container of this image stands on the chain `top`.
    fn ends_with(&self, top: &str) -> bool {
        self.chains.last().is_some_and(|chain| chain == top)
    }

    /// Where in it the chain ID stands.
    fn position(&self, chain: &str) -> Option<usize> {
        self.chains.iter().position(|one| one == chain)
    }
}

/// An image of containerd with what it claims.
#[derive(Debug, Clone)]
pub struct Claimant {
    /// Its name.
    pub name: String,
    /// The name under which a registry has it.
    reference: Option<String>,
    shape: Arc<Shape>,
}

impl Claimant {
    /// The chain IDs of its layers, lowest first.
    pub fn chains(&self) -> &[String] {
        &self.shape.chains
    }
}

/// What is remembered of a digest.
#[derive(Clone)]
enum Kept {
    Shape(Arc<Shape>),
    /// The manifests of an index.
    Index(Arc<Vec<document::Child>>),
    /// Neither: containerd makes no container of it.
    Nothing,
}

/// The images of containerd, and what they claim.
#[derive(Default)]
pub struct Book {
    kept: Mutex<HashMap<String, Kept>>,
    /// Foreign manifests that were missing when a record was of this age.
    missing: Mutex<HashMap<String, (i64, i32)>>,
}

impl Book {
    fn kept(&self, digest: &str) -> Option<Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).get(digest).cloned()
    }

    fn keep(&self, digest: &str, what: &Kept) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= REMEMBERED {
            kept.clear(); // everything can be read again
        }
        kept.insert(digest.to_owned(), what.clone());
    }

    /// All images of the namespace of `client`.
    ///
    /// # Errors
    /// That containerd does not answer. An image that cannot be read is none: no container can be made of it.
    pub async fn claimants(&self, client: &Client) -> Result<Vec<Claimant>, Error> {
        let images = client.list_images(&[]).await?;
        let read = futures::stream::iter(images)
            .map(|image| async move { self.shapes(client, &image).await.map(|shapes| (image, shapes)) })
            .buffer_unordered(AT_ONCE);
        let read: Vec<_> = read.collect().await;
        let mut claimants = Vec::with_capacity(read.len());
        for one in read {
            let (image, shapes) = one?;
            let reference = reference(&image.name);
            claimants.extend(shapes.into_iter().map(|shape| Claimant {
                name: image.name.clone(),
                reference: reference.clone(),
                shape,
            }));
        }
        Ok(claimants)
    }

    /// What the manifests of one image claim, as far as containerd has them.
    async fn shapes(&self, client: &Client, image: &Image) -> Result<Vec<Arc<Shape>>, Error> {
        let children = match self.look(client, &image.digest).await? {
            None | Some(Kept::Nothing) => return Ok(Vec::new()),
            Some(Kept::Shape(shape)) => return Ok(vec![shape]),
            Some(Kept::Index(children)) => children,
        };
        let best = children.iter().map(|child| child.fit).min().unwrap_or(Fit::Foreign);
        let mut shapes = Vec::new();
        for child in children.iter() {
            let key = format!("{} {}", client.namespace(), child.digest);
            let is_likely = child.fit == best && best != Fit::Foreign;
            if !is_likely && self.was_missing(&key, image.updated) {
                continue;
            }
            match self.look(client, &child.digest).await? {
                Some(Kept::Shape(shape)) => shapes.push(shape),
                Some(_) => {}
                None => self.is_missing(key, image.updated),
            }
        }
        Ok(shapes)
    }

    fn was_missing(&self, key: &str, age: (i64, i32)) -> bool {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner).get(key) == Some(&age)
    }

    fn is_missing(&self, key: String, age: (i64, i32)) {
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        if missing.len() >= REMEMBERED {
            missing.clear();
        }
        missing.insert(key, age);
    }

    /// What lies under a digest: `None` if containerd does not have all of it.
    async fn look(&self, client: &Client, digest: &str) -> Result<Option<Kept>, Error> {
        if let Some(kept) = self.kept(digest) {
            return Ok(Some(kept));
        }
        let Some(bytes) = read(client, digest).await? else { return Ok(None) };
        let kept = match Document::parse(&bytes) {
            None => Kept::Nothing,
            Some(Document::Index(children)) => Kept::Index(Arc::new(children)),
            Some(Document::Manifest { config, layers }) => {
                let Some(bytes) = read(client, &config).await? else { return Ok(None) };
                match document::chains(&bytes) {
                    Some(chains) => Kept::Shape(Arc::new(Shape::new(chains, layers))),
                    None => Kept::Nothing,
                }
            }
        };
        self.keep(digest, &kept);
        Ok(Some(kept))
    }
}

/// A document; an unreadable one is as good as a missing one, since containerd could not use it either.
async fn read(client: &Client, digest: &str) -> Result<Option<bytes::Bytes>, Error> {
    match client.document(digest, MAX_DOCUMENT).await {
        Err(Error::Malformed { reason, .. }) => {
            tracing::debug!(digest, reason, "a document of an image cannot be read");
            Ok(None)
        }
        other => other,
    }
}

/// The name by which a registry may have the image; CRI also keeps it under the digest of its config.
fn reference(name: &str) -> Option<String> {
    (!name.starts_with("sha256:") && name.parse::<Reference>().is_ok()).then(|| name.to_owned())
}

/// Those whose containers stand on the chain `top`; if there are none, those who have it further down.
pub fn standing_on<'a>(claimants: &'a [Claimant], top: &str) -> Vec<&'a Claimant> {
    let exact: Vec<_> = claimants.iter().filter(|one| one.shape.ends_with(top)).collect();
    if !exact.is_empty() {
        return exact;
    }
    claimants.iter().filter(|one| one.shape.position(top).is_some()).collect()
}

/// What `claimants` say must lie where the chain ID `chain` ends, each claim once.
pub fn claims_of(claimants: &[&Claimant], chain: &str) -> Vec<Claim> {
    let mut claims: Vec<Claim> = Vec::new();
    let mut seen: HashSet<&str> = HashSet::new();
    for one in claimants {
        let Some(at) = one.shape.position(chain) else { continue };
        let named = one.shape.layers.get(at);
        let layer = named.map_or(String::new(), |layer| layer.digest.clone());
        let toc = named.and_then(|layer| layer.toc.clone());
        let found = claims.iter().position(|claim| claim.layer == layer && claim.toc == toc);
        let at = found.unwrap_or(claims.len());
        if found.is_none() {
            claims.push(Claim { layer, toc, references: Vec::new() });
        }
        let Some(claim) = claims.get_mut(at) else { continue };
        if let Some(reference) = &one.reference
            && claim.references.len() < NAMES
            && seen.insert(reference)
        {
            claim.references.push(reference.clone());
        }
    }
    claims
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claimant(name: &str, chains: &[&str], layers: &[(&str, Option<&str>)]) -> Claimant {
        let layers = layers.iter().map(|(digest, toc)| NamedLayer {
            digest: (*digest).to_owned(),
            toc: toc.map(str::to_owned),
            is_layer: *digest != "attestation",
        });
        let chains = chains.iter().map(ToString::to_string).collect();
        let shape = Arc::new(Shape::new(chains, layers.collect()));
        Claimant { name: name.to_owned(), reference: reference(name), shape }
    }

    #[test]
    fn who_stands_on_a_chain_is_asked_before_who_goes_through_it() {
        let short = claimant("r.example/short:1", &["c0"], &[("l0", None)]);
        let long = claimant("r.example/long:1", &["c0", "c1"], &[("l0", Some("t0")), ("l1", None)]);
        let all = [short, long];
        assert_eq!(standing_on(&all, "c0").len(), 1);
        assert_eq!(standing_on(&all, "c1")[0].name, "r.example/long:1");
        assert!(standing_on(&all, "c2").is_empty());
        let alone = &all[1..];
        assert_eq!(standing_on(alone, "c0").len(), 1);
    }

    #[test]
    fn the_same_claim_of_several_is_one_with_several_names() {
        let images = [
            claimant("r.example/a:1", &["c0"], &[("l0", Some("t0"))]),
            claimant("r.example/b:1", &["c0"], &[("l0", Some("t0"))]),
            claimant(&format!("sha256:{}", "0".repeat(64)), &["c0"], &[("l0", Some("t0"))]),
            claimant("r.example/liar:1", &["c0"], &[("l0", Some("t1"))]),
            claimant("r.example/short:1", &["c0"], &[]),
        ];
        let claims = claims_of(&images.iter().collect::<Vec<_>>(), "c0");
        assert_eq!(claims.len(), 3);
        assert_eq!(claims[0].references, ["r.example/a:1", "r.example/b:1"]);
        assert_eq!(claims[1].toc.as_deref(), Some("t1"));
        assert_eq!(claims[2].layer, "", "a manifest that names too few layers agrees with nobody");
    }

    #[test]
    fn what_is_no_layer_does_not_shift_the_layers() {
        let image = claimant("r.example/a:1", &["c0"], &[("attestation", None), ("l0", None)]);
        assert_eq!(claims_of(&[&image], "c0")[0].layer, "l0");
    }
}
