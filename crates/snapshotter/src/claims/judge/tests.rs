use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

fn digest(text: &str) -> Digest {
    Digest::of(text.as_bytes())
}

/// A blob of the model: its name is its digest's preimage, so that nobody can have two blobs of one digest.
fn layer(blob: u8) -> Digest {
    digest(&format!("blob {blob}"))
}

fn toc(number: u8) -> Digest {
    digest(&format!("toc {number}"))
}

/// The one diffID that the chain stands for.
fn truth() -> Digest {
    digest("truth")
}

fn source(blob: u8, table: u8) -> LayerSource {
    LayerSource {
        reference: "r.example/a".into(),
        layer: layer(blob),
        toc: toc(table),
        prefetch: None,
        local: false,
    }
}

fn claim(blob: u8, table: Option<u8>) -> Claim {
    Claim {
        layer: layer(blob).to_string(),
        toc: table.map(|table| toc(table).to_string()),
        references: vec!["r.example/b".into()],
    }
}

fn slot(holds: LayerSource) -> Slot {
    let below = Some(digest("below").to_string());
    Slot { chain: chain_id(below.as_deref(), &truth()), below, holds }
}

/// What a blob really is.
#[derive(Debug, Clone)]
struct Blob {
    true_diff_id: bool,
    toc: Option<u8>,
    can_be_had: bool,
}

fn known_of(blobs: &HashMap<Digest, Blob>, candidate: &Candidate) -> Known {
    let blob = &blobs[&candidate.layer];
    if !blob.can_be_had {
        return Known::Failed("gone".into());
    }
    let diff_id = if blob.true_diff_id { truth() } else { digest("other") };
    Known::Fact(Fact { diff_id: Some(diff_id), toc: blob.toc.map(toc), reference: "r.example/p".into() })
}

/// Judges until nothing is left to prove or to exchange.
fn settle(
    blobs: &HashMap<Digest, Blob>,
    mut at: Slot,
    claims: &[Claim],
    strict: bool,
    mut facts: HashMap<Digest, Known>,
) -> (Slot, Ruling) {
    for _ in 0..100 {
        let ruling = judge(&at, claims, strict, |candidate| {
            facts.get(&candidate.layer).cloned().unwrap_or(Known::Nothing)
        });
        match ruling {
            Ruling::Put(source) => at.holds = source,
            Ruling::Make { reference, layer } => {
                at.holds =
                    LayerSource { reference, layer, toc: digest("our own"), prefetch: None, local: true };
            }
            Ruling::Prove(candidates) => {
                assert!(!candidates.is_empty());
                assert!(candidates.iter().all(|one| !facts.contains_key(&one.layer)), "asked twice");
                facts.extend(candidates.iter().map(|one| (one.layer, known_of(blobs, one))));
            }
            end => return (at, end),
        }
    }
    panic!("it never ends");
}

fn blob() -> impl Strategy<Value = Blob> {
    (any::<bool>(), prop::option::of(0..3_u8), any::<bool>())
        .prop_map(|(true_diff_id, toc, can_be_had)| Blob { true_diff_id, toc, can_be_had })
}

fn is_true(blobs: &HashMap<Digest, Blob>, layer: Digest, seen_by: Digest) -> bool {
    let blob = &blobs[&layer];
    blob.true_diff_id && blob.toc.map(toc) == Some(seen_by)
}

proptest! {
    /// What is handed out is true, or all who claim the chain named exactly that.
    #[test]
    fn nobody_is_served_what_he_did_not_name_unless_it_is_true(
        kinds in prop::collection::vec(blob(), 4),
        held in (0..4_u8, 0..3_u8),
        claimed in prop::collection::vec((0..4_u8, prop::option::of(0..3_u8)), 0..4),
        strict in any::<bool>(),
        before in prop::collection::vec(any::<bool>(), 4),
    ) {
        let blobs: HashMap<_, _> =
            (0..4_u8).map(|number| (layer(number), kinds[usize::from(number)].clone())).collect();
        let facts = (0..4_u8)
            .filter(|number| before[usize::from(*number)])
            .map(|number| {
                let candidate = Candidate { layer: layer(number), toc: None, references: Vec::new() };
                (layer(number), known_of(&blobs, &candidate))
            })
            .collect();
        let claims: Vec<Claim> = claimed.iter().map(|(blob, table)| claim(*blob, *table)).collect();
        let (end, ruling) = settle(&blobs, slot(source(held.0, held.1)), &claims, strict, facts);
        let of_tar = end.holds.local && blobs[&end.holds.layer].true_diff_id;
        let right = of_tar || is_true(&blobs, end.holds.layer, end.holds.toc);
        let unanimous = claims.iter().all(|claim| end.agrees(claim));
        match ruling {
            Ruling::Keep => {
                prop_assert!(right || unanimous);
                prop_assert!(right || !strict);
            }
            Ruling::Refuse(reason) => {
                prop_assert!(!reason.is_empty());
                // Not if somebody's claim is true and can be had.
                for blob in claimed.iter().map(|(blob, _)| *blob).chain([held.0]) {
                    let Blob { true_diff_id, can_be_had, .. } = blobs[&layer(blob)];
                    prop_assert!(!true_diff_id || !can_be_had, "an honest image was refused");
                }
            }
            other => prop_assert!(false, "{other:?}"),
        }
    }
}

fn fact(diff_id: Digest, table: Option<u8>) -> Known {
    let (toc, reference) = (table.map(toc), "r.example/p".into());
    Known::Fact(Fact { diff_id: Some(diff_id), toc, reference })
}

#[test]
fn agreement_costs_nothing() {
    let at = slot(source(1, 1));
    let ask_nothing = |_: &Candidate| Known::Nothing;
    assert_eq!(judge(&at, &[], false, ask_nothing), Ruling::Keep);
    assert_eq!(judge(&at, &[claim(1, Some(1)), claim(1, Some(1))], false, ask_nothing), Ruling::Keep);
    assert!(matches!(judge(&at, &[claim(1, Some(1))], true, ask_nothing), Ruling::Prove(_)));
}

#[test]
fn the_true_layer_digest_with_another_table_of_contents_is_another_claim() {
    let at = slot(source(1, 2));
    let claims = [claim(1, Some(1))];
    let Ruling::Prove(candidates) = judge(&at, &claims, false, |_| Known::Nothing) else { panic!() };
    // The same blob, to be had from either of two places.
    assert_eq!(candidates.len(), 2);
    assert!(candidates.iter().all(|candidate| candidate.layer == layer(1)));
    let ruling = judge(&at, &claims, false, |_| fact(truth(), Some(1)));
    assert!(matches!(ruling, Ruling::Put(source) if source.toc == toc(1)));
}

#[test]
fn a_true_layer_that_cannot_be_mounted_as_it_is_is_copied() {
    let at = slot(source(1, 1));
    let claims = [claim(2, None)];
    let Ruling::Prove(candidates) = judge(&at, &claims, false, |_| Known::Nothing) else { panic!() };
    assert_eq!(candidates.len(), 2);
    let ruling = judge(&at, &claims, false, |candidate| match candidate.layer {
        found if found == layer(2) => fact(truth(), None),
        _ => fact(digest("other"), Some(1)),
    });
    assert_eq!(ruling, Ruling::Make { reference: "r.example/p".into(), layer: layer(2) });
    let held = LayerSource { layer: layer(2), toc: digest("our own"), local: true, ..source(1, 1) };
    assert_eq!(judge(&slot(held), &claims, true, |_| fact(truth(), None)), Ruling::Keep);
}

#[test]
fn a_layer_that_is_known_to_lie_is_refused_even_if_nobody_disagrees() {
    let at = slot(source(1, 1));
    let ruling = judge(&at, &[claim(1, Some(1))], false, |_| fact(digest("other"), Some(1)));
    assert!(matches!(ruling, Ruling::Refuse(reason) if reason.contains("does not inflate")));
}

#[test]
fn what_was_proven_stays_whatever_is_claimed() {
    let at = slot(source(1, 1));
    let claims =
        [claim(2, Some(2)), claim(3, None), Claim { layer: String::new(), toc: None, references: vec![] }];
    let ruling = judge(&at, &claims, true, |candidate| match candidate.layer {
        found if found == layer(1) => fact(truth(), Some(1)),
        _ => Known::Nothing,
    });
    assert_eq!(ruling, Ruling::Keep);
}

#[test]
fn digests_that_nobody_can_compare_are_a_conflict_and_no_candidate() {
    let at = slot(source(1, 1));
    let odd = Claim { layer: format!("sha512:{}", "0".repeat(128)), toc: None, references: vec![] };
    let Ruling::Prove(candidates) = judge(&at, &[odd], false, |_| Known::Nothing) else { panic!() };
    assert_eq!(candidates.len(), 1);
}

#[test]
fn chain_ids_are_containerds() {
    let (a, b) = (digest("a"), digest("b"));
    assert_eq!(chain_id(None, &a), a.to_string());
    let both = Digest::of(format!("{a} {b}").as_bytes()).to_string();
    assert_eq!(chain_id(Some(&a.to_string()), &b), both);
}
