//! Who is believed: a pure function of what lies in a slot, what images say must lie there, and what is known.
//!
//! An image says of each of its layers: this blob, with this table of contents, inflates to that diffID. The chain
//! ID stands for the last part and is containerd's name for the slot; so two images that name the same chain agree on
//! it, and one of them may lie about the first part. As long as all name what lies there, nobody is served anything
//! that is not his own. When they differ, only the bytes themselves can tell: a blob that was hashed whole is a
//! [`Fact`], and a fact either fits the chain or does not.

use content::Digest;
use serde::{Deserialize, Serialize};

use crate::labels::LayerSource;

/// What is known for ever of a blob of this digest, since somebody hashed all of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    /// The digest of what it inflates to; `None` if it is no layer.
    pub diff_id: Option<Digest>,
    /// The digest of its table of contents, if it has one that says the same as its tar does.
    pub toc: Option<Digest>,
    /// The image by whose name the bytes were had.
    pub reference: String,
}

/// What a committed lazy snapshot is: a place in a chain, and what lies there now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// The chain ID that ends here.
    pub chain: String,
    /// The chain ID that ends below; `None` for the lowest layer.
    pub below: Option<String>,
    /// What lies there.
    pub holds: LayerSource,
}

/// What an image says must lie in a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The digest of the blob, as the manifest writes it; empty if the manifest names none.
    pub layer: String,
    /// The digest of the table of contents, as the manifest writes it.
    pub toc: Option<String>,
    /// Images that say so, by names under which their blobs can be asked for; may be empty.
    pub references: Vec<String>,
}

/// Something that may be true of a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The blob.
    pub layer: Digest,
    /// Its table of contents, if it can be mounted lazily.
    pub toc: Option<Digest>,
    /// Where to ask for it.
    pub references: Vec<String>,
}

/// What is known of a candidate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known {
    /// Nobody looked yet.
    Nothing,
    /// Its blob was hashed.
    Fact(Fact),
    /// Somebody tried a moment ago and could not have the bytes, or not those.
    Failed(String),
}

/// What is to be done about a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ruling {
    /// What lies there is right, or everybody agrees on it.
    Keep,
    /// This is true, and what lies there need not be.
    Put(LayerSource),
    /// This blob is true as it would be unpacked, and there is no table of contents that says the same: a copy with one
    /// of our own is to be put there.
    Make {
        /// The image by whose name the bytes were had.
        reference: String,
        /// The blob.
        layer: Digest,
    },
    /// Only the bytes of these can tell.
    Prove(Vec<Candidate>),
    /// Nothing that can be mounted is known to be true. Tells why.
    Refuse(String),
}

/// The chain ID of a layer on top of another.
pub fn chain_id(below: Option<&str>, diff_id: &Digest) -> String {
    below.map_or_else(
        || diff_id.to_string(),
        |below| Digest::of(format!("{below} {diff_id}").as_bytes()).to_string(),
    )
}

impl Slot {
    /// Whether a blob of which this is known makes this chain of the one below.
    pub fn fits(&self, fact: &Fact) -> bool {
        fact.diff_id.is_some_and(|diff_id| chain_id(self.below.as_deref(), &diff_id) == self.chain)
    }

    /// Whether a blob of which this is known, seen through this table of contents, is what the chain stands for.
    fn shows(&self, toc: &Digest, fact: &Fact) -> bool {
        self.fits(fact) && fact.toc.as_ref() == Some(toc)
    }

    /// Whether what lies here is what the chain stands for; `fact` is about its blob.
    pub fn is_proven(&self, fact: &Fact) -> bool {
        if self.holds.local { self.fits(fact) } else { self.shows(&self.holds.toc, fact) }
    }

    fn agrees(&self, claim: &Claim) -> bool {
        claim.layer == self.holds.layer.to_string()
            && claim.toc.as_deref() == Some(self.holds.toc.to_string().as_str())
    }

    fn held(&self) -> Candidate {
        Candidate {
            layer: self.holds.layer,
            toc: Some(self.holds.toc),
            references: vec![self.holds.reference.clone()],
        }
    }
}

impl Claim {
    /// What could be looked at, if the manifest names digests that can be compared.
    fn candidate(&self) -> Option<Candidate> {
        let layer = self.layer.parse().ok()?;
        let toc = self.toc.as_ref().map(|toc| toc.parse()).transpose().ok()?;
        Some(Candidate { layer, toc, references: self.references.clone() })
    }
}

/// Decides about `slot`, given what images claim of it. `strict`: agreement is not enough, only proof is.
pub fn judge(slot: &Slot, claims: &[Claim], strict: bool, known: impl Fn(&Candidate) -> Known) -> Ruling {
    let held = slot.held();
    let of_held = known(&held);
    if let Known::Fact(fact) = &of_held
        && slot.is_proven(fact)
    {
        return Ruling::Keep;
    }
    if claims.iter().all(|claim| slot.agrees(claim)) {
        return match of_held {
            // Everybody says so, and it is false: whoever claims it would never have got through an ordinary pull.
            Known::Fact(fact) if !slot.fits(&fact) => {
                Ruling::Refuse(format!("layer {} does not inflate to what its image says", held.layer))
            }
            _ if !strict => Ruling::Keep,
            Known::Nothing => Ruling::Prove(vec![held]),
            Known::Fact(Fact { reference, toc: Some(toc), .. }) => {
                Ruling::Put(LayerSource { reference, toc, ..slot.holds.clone() })
            }
            Known::Fact(Fact { reference, .. }) => Ruling::Make { reference, layer: held.layer },
            Known::Failed(error) => {
                Ruling::Refuse(format!("layer {} cannot be verified: {error}", held.layer))
            }
        };
    }
    let (mut unknown, mut reasons, mut unpacked) = (Vec::new(), Vec::new(), None);
    let others = claims.iter().filter(|claim| !slot.agrees(claim)).filter_map(Claim::candidate);
    for candidate in std::iter::once(held).chain(others) {
        let layer = candidate.layer;
        let known = known(&candidate);
        let fits = matches!(&known, Known::Fact(fact) if slot.fits(fact));
        match (known, candidate.toc) {
            (Known::Fact(fact), Some(toc)) if slot.shows(&toc, &fact) => {
                let (reference, prefetch) = (fact.reference, slot.holds.prefetch);
                return Ruling::Put(LayerSource { reference, layer, toc, prefetch, local: false });
            }
            (Known::Fact(Fact { reference, toc: Some(toc), .. }), _) if fits => {
                // Its manifest does not name the table of contents that it has.
                let prefetch = slot.holds.prefetch;
                unpacked = Some(Ruling::Put(LayerSource { reference, layer, toc, prefetch, local: false }));
            }
            (Known::Fact(Fact { reference, .. }), _) if fits => {
                unpacked = unpacked.or(Some(Ruling::Make { reference, layer }));
            }
            (Known::Fact(_), _) => reasons.push(format!("layer {layer} is not what its image says of it")),
            (Known::Failed(error), _) => reasons.push(format!("layer {layer} cannot be verified: {error}")),
            (Known::Nothing, _) => unknown.push(candidate),
        }
    }
    match unpacked {
        _ if !unknown.is_empty() => Ruling::Prove(unknown),
        Some(true_one) => true_one,
        None => Ruling::Refuse(reasons.join("; ")),
    }
}

#[cfg(test)]
#[path = "judge/tests.rs"]
mod tests;
