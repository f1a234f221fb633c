use super::*;

fn open(dir: &Path) -> Arc<Meta> {
    Arc::new(Meta::open(&dir.join("metadata.db"), 0).unwrap())
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
}

fn source(text: &str) -> LayerSource {
    LayerSource {
        reference: "registry.example/a:1".into(),
        layer: Digest::of(text.as_bytes()),
        toc: Digest::of(format!("toc of {text}").as_bytes()),
        prefetch: None,
        local: false,
    }
}

fn chain(target: &str) -> Labels {
    labels(&[(labels::SNAPSHOT_REF, target)])
}

/// An active snapshot, committed as `name`.
fn committed(meta: &Arc<Meta>, name: &str, parent: &str) {
    let key = format!("key of {name}");
    meta.create(Kind::Active, &key, parent, Labels::new(), meta.reserve().id()).unwrap();
    meta.commit(name, &key, "", Labels::new(), Usage::default()).unwrap();
}

#[test]
fn what_was_answered_survives_a_death_without_goodbye() {
    let dir = tempfile::tempdir().unwrap();
    let meta = open(dir.path());
    committed(&meta, "base", "");
    let id = meta.reserve().id();
    meta.create(Kind::Active, "run", "base", labels(&[("a", "b")]), id).unwrap();
    meta.commit_slot("c1", "base", chain("c1"), source("l1"), meta.reserve().id()).unwrap();
    meta.remove("run").unwrap();
    let before = meta.list(&Filter::parse(&[]).unwrap());

    // A copy of the file as it lies there now is what a killed process leaves.
    let other = tempfile::tempdir().unwrap();
    std::fs::copy(dir.path().join("metadata.db"), other.path().join("metadata.db")).unwrap();
    let after = open(other.path());
    assert_eq!(after.list(&Filter::parse(&[]).unwrap()), before);
    assert_eq!(after.get("c1").unwrap().source, Some(source("l1")));
    assert!(after.reserve().id() > id, "a directory's number was used twice");
}

#[test]
fn a_second_process_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let _first = open(dir.path());
    let second = Meta::open(&dir.path().join("metadata.db"), 0);
    assert!(matches!(second, Err(MetaError::InUse { .. })));
}

#[test]
fn names_kinds_and_parents_keep_their_rules() {
    let dir = tempfile::tempdir().unwrap();
    let meta = open(dir.path());
    let create =
        |kind, key: &str, parent: &str| meta.create(kind, key, parent, Labels::new(), meta.reserve().id());
    create(Kind::Active, "a", "").unwrap();
    assert!(matches!(create(Kind::Active, "a", ""), Err(MetaError::Exists(_))));
    assert!(matches!(create(Kind::Active, "b", "a"), Err(MetaError::ParentNotCommitted(_))));
    assert!(matches!(create(Kind::Active, "b", "none"), Err(MetaError::ParentNotFound(_))));
    assert!(matches!(create(Kind::Active, "", ""), Err(MetaError::Invalid(_))));

    let commit =
        |name: &str, key: &str, parent: &str| meta.commit(name, key, parent, Labels::new(), Usage::default());
    assert!(matches!(commit("base", "none", ""), Err(MetaError::NotFound(_))));
    assert!(matches!(commit("base", "a", "elsewhere"), Err(MetaError::Rebase { .. })));
    commit("base", "a", "").unwrap();
    assert!(matches!(meta.get("a"), Err(MetaError::NotFound(_))));
    create(Kind::Active, "a", "base").unwrap();
    assert!(matches!(commit("base", "a", ""), Err(MetaError::Exists(_))));
    create(Kind::View, "v", "base").unwrap();
    assert!(matches!(commit("other", "v", ""), Err(MetaError::NotActive(_))));
    commit("top", "a", "base").unwrap();

    let error = meta.remove("base").unwrap_err();
    assert!(matches!(error, MetaError::HasChild(_)) && error.to_string().contains("remove"));
    assert_eq!(meta.ancestors("top").unwrap().len(), 1);
    meta.remove("top").unwrap();
    meta.remove("v").unwrap();
    meta.remove("base").unwrap();
    assert!(matches!(meta.remove("base"), Err(MetaError::NotFound(_))));
}

#[test]
fn an_update_changes_labels_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let meta = open(dir.path());
    meta.create(Kind::Active, "a", "", labels(&[("l1", "1"), ("l2", "2"), ("l3", "3")]), 1).unwrap();
    let made = meta.get("a").unwrap();
    assert_eq!(made.created, made.updated);

    let mask = UpdateMask::Fields(vec!["labels.l1".into(), "labels.l2".into()]);
    let row = meta.update("a", labels(&[("l1", "new"), ("l3", "ignored")]), &mask).unwrap();
    assert_eq!(row.labels, labels(&[("l1", "new"), ("l3", "3")]));
    assert!(row.updated > row.created && row.created == made.created);

    let row = meta.update("a", labels(&[("x", "y")]), &UpdateMask::Fields(vec!["labels".into()])).unwrap();
    assert_eq!(row.labels, labels(&[("x", "y")]));
    let row = meta.update("a", Labels::new(), &UpdateMask::All).unwrap();
    assert!(row.labels.is_empty());
    let parent = UpdateMask::Fields(vec!["parent".into()]);
    assert!(matches!(meta.update("a", Labels::new(), &parent), Err(MetaError::Immutable { .. })));
    assert!(matches!(meta.update("b", Labels::new(), &UpdateMask::All), Err(MetaError::NotFound(_))));
}

#[test]
fn one_chain_id_has_a_slot_for_each_parent() {
    let dir = tempfile::tempdir().unwrap();
    let meta = open(dir.path());
    committed(&meta, "default/2/c0", "");
    committed(&meta, "other/2/c0", "");
    let commit = |parent: &str| {
        meta.commit_slot("c1", parent, chain("c1"), source("l1"), meta.reserve().id()).unwrap()
    };
    assert_eq!(commit("default/2/c0"), SlotCommit::New("c1".into()));
    let SlotCommit::New(second) = commit("other/2/c0") else { panic!("the other parent's slot was taken") };
    assert!(second.starts_with("c1@"), "{second}");
    assert_eq!(commit("default/2/c0"), SlotCommit::Existing("c1".into()));
    assert_eq!(commit("other/2/c0"), SlotCommit::Existing(second.clone()));

    // This is how containerd looks for it.
    let text = r#"labels."containerd.io/snapshot.ref"==c1,parent=="other/2/c0""#;
    let found = meta.list(&Filter::parse(&[text.to_owned()]).unwrap());
    assert_eq!(found.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), [second.as_str()]);
}

#[test]
fn another_images_bytes_never_share_a_slot() {
    let dir = tempfile::tempdir().unwrap();
    let meta = open(dir.path());
    meta.commit_slot("c0", "", chain("c0"), source("liar"), meta.reserve().id()).unwrap();
    assert_eq!(meta.slot("c0", "", &source("victim")), Slot::Other("c0".into()));
    let second = meta.commit_slot("c0", "", chain("c0"), source("victim"), meta.reserve().id());
    assert!(matches!(second, Err(MetaError::Exists(_))));

    // The true layer digest with another table of contents is another content as well.
    let crafted = LayerSource { toc: Digest::of(b"crafted"), ..source("liar") };
    assert_eq!(meta.slot("c0", "", &crafted), Slot::Other("c0".into()));
}

#[test]
fn what_containerd_verified_is_listed_first() {
    let dir = tempfile::tempdir().unwrap();
    let meta = open(dir.path());
    meta.commit_slot("c0", "", chain("c0"), source("lazy"), meta.reserve().id()).unwrap();
    meta.create(Kind::Active, "k", "", Labels::new(), meta.reserve().id()).unwrap();
    meta.commit("z/2/c0", "k", "", chain("c0"), Usage::default()).unwrap();
    let found = meta.list(&Filter::parse(&["labels.\"containerd.io/snapshot.ref\"==c0".into()]).unwrap());
    assert_eq!(found.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["z/2/c0", "c0"]);
    assert_eq!(meta.slot("c0", "", &source("lazy")), Slot::Same("z/2/c0".into()));
}

#[test]
fn directories_in_the_making_are_no_orphans() {
    let dir = tempfile::tempdir().unwrap();
    let meta = open(dir.path());
    let reservation = meta.reserve();
    let id = reservation.id();
    assert!(meta.orphans([id]).is_empty());
    drop(reservation);
    assert_eq!(meta.orphans([id]), [id]);
    meta.create(Kind::Active, "a", "", Labels::new(), id).unwrap();
    assert!(meta.orphans([id]).is_empty());
}
