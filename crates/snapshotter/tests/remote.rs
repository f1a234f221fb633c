//! Lazy layers through the metadata half: what containerd is told, what lies on disk, what survives.

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::{Lab, Mounted, code, is_root, labels, lazy};
use content::Digest;
use proto::containerd::snapshots::Kind;
use tonic::Code;

fn adoption_filter(chain: &str, parent: &str) -> String {
    format!("labels.\"containerd.io/snapshot.ref\"=={chain},parent==\"{parent}\"")
}

#[tokio::test]
async fn a_lazy_layer_is_committed_mounted_and_found_by_containerds_filter() {
    if !is_root() {
        return;
    }
    let mut lab = Lab::start().await;
    let error = lab.client.prepare_with("default/1/extract c0", "", lazy("c0", "l0")).await.unwrap_err();
    assert_eq!(error.code(), Code::AlreadyExists);
    assert!(error.message().contains("target snapshot c0"), "{error}");
    assert_eq!(code(lab.client.prepare_with("k1", "c0", lazy("c1", "l1")).await), Code::AlreadyExists);

    let (found, _) = lab.client.list(&[&adoption_filter("c0", "")]).await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].name.as_str(), found[0].kind()), ("c0", Kind::Committed));
    assert_eq!(found[0].labels["containerd.io/snapshot/remote"], "remote snapshot");
    assert!(found[0].labels.contains_key("containerd.io/snapshot/stargz/toc.digest"));
    assert!(!found[0].labels.contains_key("containerd.io/snapshot/remote/urls"), "it was empty");
    assert_eq!(code(lab.client.stat("default/1/extract c0").await), Code::NotFound);
    assert_eq!(lab.client.usage("c0").await.unwrap().size, 0);

    std::fs::create_dir_all(lab.layers.files.join(Digest::of(b"l0").hex())).unwrap();
    let mounts = lab.client.prepare("run", "c1").await.unwrap();
    assert_eq!(mounts, lab.client.mounts("run").await.unwrap());
    assert_eq!(lab.mount_points().len(), 2);
    let layers = lab.handle.layers();
    assert!(layers.iter().all(|layer| layer.mounted && layer.driver == "fake" && layer.fetched == 2));
    assert_eq!(lab.handle.source_of("c0").unwrap().unwrap().layer, Digest::of(b"l0"));
    lab.stop().await;
    assert!(lab.mount_points().is_empty() && !lab.socket().exists());
}

#[tokio::test]
async fn ordinary_layers_are_the_way_out() {
    if !is_root() {
        return;
    }
    let mut lab = Lab::start().await;
    // No table of contents; no image; another layer's parent is missing; the registry is gone.
    let mut plain = lazy("c0", "l0");
    plain.remove("containerd.io/snapshot/stargz/toc.digest");
    lab.client.prepare_with("k0", "", plain).await.unwrap();
    lab.client.prepare_with("k1", "", labels(&[(common::REF, "c1")])).await.unwrap();
    let mut orphan = lazy("c2", "l2");
    orphan.insert("containerd.io/snapshot/parent-chain-id".into(), "c1".into());
    lab.client.prepare_with("k2", "", orphan).await.unwrap();
    assert_eq!(lab.layers.opened.load(Ordering::SeqCst), 0);
    lab.layers.broken.store(true, Ordering::SeqCst);
    lab.client.prepare_with("k3", "", lazy("c3", "l3")).await.unwrap();
    assert_eq!(lab.client.stat("k3").await.unwrap().kind(), Kind::Active);

    // What containerd unpacked is proven: a lazy request for the same chain gets it.
    lab.client.commit_with("default/2/c3", "k3", lazy("c3", "l3")).await.unwrap();
    assert_eq!(code(lab.client.prepare_with("k4", "", lazy("c3", "l3")).await), Code::AlreadyExists);
    assert_eq!(lab.client.names(&[&adoption_filter("c3", "")]).await, ["default/2/c3"]);
    lab.stop().await;
}

#[tokio::test]
async fn a_lazy_layer_above_an_ordinary_one_has_a_slot_in_each_namespace() {
    if !is_root() {
        return;
    }
    let mut lab = Lab::start().await;
    for namespace in ["default", "other"] {
        let (key, base) = (format!("{namespace}/1/k"), format!("{namespace}/2/c0"));
        lab.client.prepare(&key, "").await.unwrap();
        lab.client.commit(&base, &key).await.unwrap();
        let key = format!("{namespace}/3/k");
        assert_eq!(code(lab.client.prepare_with(&key, &base, lazy("c1", "l1")).await), Code::AlreadyExists);
        let found = lab.client.names(&[&adoption_filter("c1", &base)]).await;
        assert_eq!(found.len(), 1, "{namespace}: {found:?}");
        assert_eq!(lab.client.stat(&found[0]).await.unwrap().parent, base);
    }
    lab.stop().await;
}

/// Trap 11: containerd 2.2 leaves the parent out where the configuration promises `rebase`, and no label says so.
#[tokio::test]
async fn without_a_parent_only_the_lowest_layer_is_lazy() {
    if !is_root() {
        return;
    }
    let mut lab = Lab::start().await;
    *lab.layers.image.lock().unwrap() = vec!["l0", "l1"];
    let asked = |chain: &str, layer: &str| {
        let mut labels = lazy(chain, layer);
        let manifest = Digest::of(b"manifest").to_string();
        labels.insert("containerd.io/snapshot/cri.manifest-digest".into(), manifest);
        labels
    };
    assert_eq!(code(lab.client.prepare_with("k0", "", asked("c0", "l0")).await), Code::AlreadyExists);
    lab.client.prepare_with("k1", "", asked("c1", "l1")).await.unwrap();
    let refused = lab.client.rebase("default/1/c1", "k1", "c0").await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("rebase"), "{refused}");
    assert_eq!(code(lab.client.prepare_with("k2", "c0", asked("c1", "l1")).await), Code::AlreadyExists);

    // Where no manifest is to be had, nobody is suspected.
    lab.layers.image.lock().unwrap().clear();
    assert_eq!(code(lab.client.prepare_with("k3", "", asked("c3", "l3")).await), Code::AlreadyExists);
    lab.stop().await;
}

#[tokio::test]
async fn another_images_claim_on_a_chain_is_unpacked_apart() {
    if !is_root() {
        return;
    }
    let mut lab = Lab::start().await;
    assert_eq!(code(lab.client.prepare_with("liar", "", lazy("c0", "lie")).await), Code::AlreadyExists);
    let mounts = lab.client.prepare_with("victim", "", lazy("c0", "truth")).await.unwrap();
    assert_eq!(mounts[0].r#type, "bind");
    let mut crafted = lazy("c0", "lie");
    crafted.insert("containerd.io/snapshot/stargz/toc.digest".into(), Digest::of(b"other").to_string());
    lab.client.prepare_with("victim 2", "", crafted).await.unwrap();
    lab.client.remove("victim 2").await.unwrap();

    // Once unpacked and verified, it is what the next one finds first.
    lab.client.commit_with("other/2/c0", "victim", lazy("c0", "truth")).await.unwrap();
    assert_eq!(lab.client.names(&[&adoption_filter("c0", "")]).await, ["other/2/c0", "c0"]);
    lab.stop().await;
}

#[tokio::test]
async fn two_prepares_of_one_target_are_both_right() {
    if !is_root() {
        return;
    }
    let mut lab = Lab::start().await;
    lab.layers.held.store(true, Ordering::SeqCst);
    let calls: Vec<_> = (0..4)
        .map(|number| {
            let client = lab.client.clone();
            tokio::spawn(
                async move { client.prepare_with(&format!("k{number}"), "", lazy("c0", "l0")).await },
            )
        })
        .collect();
    lab.layers.waiting.acquire_many(4).await.unwrap().forget();
    lab.layers.gate.add_permits(4);
    for call in calls {
        assert_eq!(code(call.await.unwrap()), Code::AlreadyExists);
    }
    assert_eq!(lab.client.names(&[]).await, ["c0"]);
    lab.client.cleanup().await.unwrap();
    assert_eq!((lab.mount_points().len(), lab.directories().len()), (1, 1));
    lab.stop().await;
}

#[tokio::test]
async fn a_cancelled_prepare_leaves_nothing_and_the_next_one_is_fine() {
    if !is_root() {
        return;
    }
    let mut lab = Lab::start().await;
    lab.layers.held.store(true, Ordering::SeqCst);
    let client = lab.client.clone();
    let call = tokio::spawn(async move { client.prepare_with("k", "", lazy("c0", "l0")).await });
    lab.layers.waiting.acquire().await.unwrap().forget();
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    // A call on the same connection, answered: the cancellation was seen before it.
    assert_eq!(code(lab.client.stat("k").await), Code::NotFound);
    lab.layers.held.store(false, Ordering::SeqCst);
    lab.layers.gate.add_permits(1);
    assert_eq!(code(lab.client.prepare_with("k", "", lazy("c0", "l0")).await), Code::AlreadyExists);
    lab.client.cleanup().await.unwrap();
    assert_eq!((lab.client.names(&[]).await.len(), lab.directories().len()), (1, 1));
    lab.stop().await;
}

#[tokio::test]
async fn a_slow_registry_costs_the_bound_and_no_more() {
    if !is_root() {
        return;
    }
    let mut lab = Lab::with_wait(Duration::from_millis(50)).await;
    lab.layers.held.store(true, Ordering::SeqCst);
    lab.client.prepare_with("k", "", lazy("c0", "l0")).await.unwrap();
    // Others were served meanwhile and are now.
    lab.client.remove("k").await.unwrap();
    lab.stop().await;
}

#[tokio::test]
async fn a_restart_brings_every_layer_back() {
    if !is_root() {
        return;
    }
    let mut lab = Lab::start().await;
    for (key, parent, chain) in [("a", "", "c0"), ("b", "c0", "c1"), ("c", "c1", "c2")] {
        assert_eq!(code(lab.client.prepare_with(key, parent, lazy(chain, chain)).await), Code::AlreadyExists);
    }
    let mounts = lab.client.prepare("run", "c2").await.unwrap();
    lab.restart().await;
    assert_eq!(lab.mount_points().len(), 3);
    assert_eq!(lab.client.mounts("run").await.unwrap(), mounts);

    // One that cannot be brought back does not keep the others down.
    lab.layers.broken.store(true, Ordering::SeqCst);
    lab.restart().await;
    assert_eq!(lab.client.names(&[]).await.len(), 4);
    let error = lab.client.mounts("run").await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    assert!(error.message().contains("unavailable") && error.message().contains("layer"), "{error}");
    assert_eq!(code(lab.client.prepare("run 2", "c2").await), Code::Unavailable);
    assert_eq!(code(lab.client.stat("run 2").await), Code::NotFound);

    lab.layers.broken.store(false, Ordering::SeqCst);
    assert_eq!(lab.client.mounts("run").await.unwrap(), mounts);
    lab.stop().await;
}

#[tokio::test]
async fn a_mount_that_vanished_is_made_anew() {
    if !is_root() {
        return;
    }
    let mut lab = Lab::start().await;
    std::fs::create_dir_all(lab.layers.files.join(Digest::of(b"l0").hex())).unwrap();
    std::fs::write(lab.layers.files.join(Digest::of(b"l0").hex()).join("f"), "lazy").unwrap();
    assert_eq!(code(lab.client.prepare_with("k", "", lazy("c0", "l0")).await), Code::AlreadyExists);
    let points = lab.mount_points();
    rustix::mount::unmount(&points[0], rustix::mount::UnmountFlags::DETACH).unwrap();
    let mounts = lab.client.prepare("run", "c0").await.unwrap();
    assert_eq!(lab.mount_points(), points);
    let mounted = Mounted::new(&mounts, &lab.dir.path().join("mnt"));
    assert_eq!(std::fs::read_to_string(mounted.0.join("f")).unwrap(), "lazy");

    // Removed while it is in use: who uses it keeps it.
    lab.client.remove("run").await.unwrap();
    lab.client.remove("c0").await.unwrap();
    lab.client.cleanup().await.unwrap();
    assert_eq!(std::fs::read_to_string(mounted.0.join("f")).unwrap(), "lazy");
    assert!(lab.directories().is_empty());
    assert!(lab.layers.kept.lock().unwrap().is_empty());
    drop(mounted);
    lab.stop().await;
}

#[tokio::test]
async fn what_no_snapshot_owns_goes_at_start() {
    if !is_root() {
        return;
    }
    let mut lab = Lab::start().await;
    assert_eq!(code(lab.client.prepare_with("k", "", lazy("c0", "l0")).await), Code::AlreadyExists);
    lab.stop().await;
    // What a process leaves that was killed between a mount and its commit.
    let orphan = lab.root().join("snapshots/77");
    std::fs::create_dir_all(orphan.join("fs")).unwrap();
    let none = rustix::mount::MountFlags::empty();
    rustix::mount::mount("dead", orphan.join("fs"), "tmpfs", none, None).unwrap();
    lab.restart().await;
    assert!(!orphan.exists());
    assert_eq!(lab.mount_points().len(), 1);
    lab.client.prepare("next", "").await.unwrap();
    assert!(lab.directories().contains(&"78".to_owned()), "{:?}", lab.directories());
    lab.stop().await;
}

#[tokio::test]
async fn a_second_snapshotter_is_told_who_is_there() {
    let mut lab = Lab::start().await;
    let start = |socket: std::path::PathBuf, root: std::path::PathBuf| async move {
        let limits =
            snapshotter::Limits { prepare_wait: Duration::from_secs(1), resolved_for: Duration::ZERO };
        let none = |_: &snapshotter::Overlay| Err(snapshotter::LayerError("not reached".into()));
        let stop = tokio_util::sync::CancellationToken::new();
        snapshotter::start_with(&socket, &root, limits, none, stop).await.err().unwrap().to_string()
    };
    let same_root = start(lab.dir.path().join("other.sock"), lab.root()).await;
    assert!(same_root.contains("in use by another process"), "{same_root}");
    lab.stop().await;
    drop(Arc::clone(&lab.layers));
}

/// Waits until so many layers were opened, and sees that no more are.
async fn opened(lab: &Lab, count: usize) {
    for _ in 0..400 {
        if lab.layers.opened.load(Ordering::SeqCst) >= count {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(lab.layers.opened.load(Ordering::SeqCst), count);
}

#[tokio::test]
async fn the_first_layer_of_an_image_has_all_of_them_opened() {
    if !is_root() {
        return;
    }
    let mut lab = Lab::start().await;
    *lab.layers.image.lock().unwrap() = vec!["l0", "l1", "l2"];
    assert_eq!(code(lab.client.prepare_with("k0", "", lazy("c0", "l0")).await), Code::AlreadyExists);
    opened(&lab, 3).await;
    // What is mounted is opened by its own request too; the manifest is asked for once.
    assert_eq!(code(lab.client.prepare_with("k1", "c0", lazy("c1", "l1")).await), Code::AlreadyExists);
    assert_eq!(code(lab.client.prepare_with("k2", "c1", lazy("c2", "l2")).await), Code::AlreadyExists);
    opened(&lab, 5).await;
    assert_eq!(lab.layers.manifests.load(Ordering::SeqCst), 1);
    let started = std::time::Instant::now();
    lab.stop().await;
    assert!(started.elapsed() < Duration::from_secs(5), "what is held open was waited for");
}

#[tokio::test]
async fn an_image_without_a_manifest_and_layers_that_fail_harm_nobody() {
    if !is_root() {
        return;
    }
    let mut lab = Lab::start().await;
    // Nobody has the manifest.
    assert_eq!(code(lab.client.prepare_with("k0", "", lazy("c0", "l0")).await), Code::AlreadyExists);
    opened(&lab, 1).await;
    assert_eq!(lab.layers.manifests.load(Ordering::SeqCst), 1);
    // The neighbours of another image cannot be opened, and do not hold its layer up.
    *lab.layers.image.lock().unwrap() = vec!["l3", "l4", "l5"];
    lab.layers.held.store(true, Ordering::SeqCst);
    let mut other = lazy("c3", "l3");
    other.insert("containerd.io/snapshot/cri.image-ref".into(), "registry.example/other:1".into());
    let client = lab.client.clone();
    let preparing = tokio::spawn(async move { client.prepare_with("k3", "c0", other).await });
    lab.layers.waiting.acquire_many(3).await.unwrap().forget();
    lab.layers.held.store(false, Ordering::SeqCst);
    lab.layers.broken.store(true, Ordering::SeqCst);
    lab.layers.gate.add_permits(3);
    // Broken for all: an ordinary layer, as without neighbours.
    preparing.await.unwrap().unwrap();
    assert_eq!(lab.client.stat("k3").await.unwrap().kind(), Kind::Active);
    lab.stop().await;
}
