//! containerd's own suite for snapshotters, case by case, over the real socket and with real mounts.
//!
//! Each test names its case, or its cases. All 21 are here but `CloseTwice`: there is nothing to close over gRPC. The suite
//! itself runs over the same socket where it was built (`containerds_own_suite_passes` of the end-to-end tests).

#![allow(clippy::unwrap_used, reason = "helpers of tests, which may stop where they fail")]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use common::{Lab, Mounted, code, is_root, labels};
use proto::containerd::snapshots::{Info, Kind};
use tonic::Code;

/// Prepares `key` on `parent`, lets `fill` change its files, commits it as `name`.
async fn layer(lab: &Lab, name: &str, parent: &str, fill: impl FnOnce(&Path)) {
    let key = format!("extract {name}");
    let mounts = lab.client.prepare(&key, parent).await.unwrap();
    let mounted = Mounted::new(&mounts, &lab.dir.path().join("mnt"));
    fill(&mounted.0);
    drop(mounted);
    lab.client.commit(name, &key).await.unwrap();
}

/// Shows a view of `parent`.
async fn look(lab: &Lab, parent: &str, at: &str) -> Mounted {
    let mounts = lab.client.view(&format!("view {at}"), parent).await.unwrap();
    Mounted::new(&mounts, &lab.dir.path().join(at))
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap()
}

/// `Basic`.
#[tokio::test]
async fn basic() {
    if !is_root() {
        return;
    }
    let mut lab = Lab::start().await;
    layer(&lab, "c1", "", |at| {
        fs::write(at.join("foo"), "foo\n").unwrap();
        fs::create_dir_all(at.join("a/b/c")).unwrap();
    })
    .await;
    let info = lab.client.stat("c1").await.unwrap();
    assert_eq!((info.kind(), info.parent.as_str()), (Kind::Committed, ""));
    layer(&lab, "c2", "c1", |at| {
        assert_eq!(read(at.join("foo")), "foo\n");
        fs::write(at.join("bar"), "bar\n").unwrap();
        fs::remove_file(at.join("foo")).unwrap();
        fs::remove_dir_all(at.join("a")).unwrap();
    })
    .await;
    assert_eq!(lab.client.stat("c2").await.unwrap().parent, "c1");
    let view = look(&lab, "c2", "v").await;
    assert_eq!(read(view.0.join("bar")), "bar\n");
    assert!(!view.0.join("foo").exists() && !view.0.join("a").exists());
    drop(view);

    assert_eq!(code(lab.client.remove("c1").await), Code::FailedPrecondition);
    lab.client.remove("view v").await.unwrap();
    lab.client.remove("c2").await.unwrap();
    lab.client.remove("c1").await.unwrap();
    lab.stop().await;
}

/// `StatActive` and `StatComitted`.
#[tokio::test]
async fn stat_active_and_committed() {
    let mut lab = Lab::start().await;
    lab.client.prepare("a", "").await.unwrap();
    let info = lab.client.stat("a").await.unwrap();
    assert_eq!((info.name.as_str(), info.parent.as_str(), info.kind()), ("a", "", Kind::Active));
    lab.client.commit("c", "a").await.unwrap();
    let info = lab.client.stat("c").await.unwrap();
    assert_eq!((info.name.as_str(), info.kind()), ("c", Kind::Committed));
    assert_eq!(code(lab.client.stat("a").await), Code::NotFound);
    assert_eq!(code(lab.client.mounts("c").await), Code::FailedPrecondition);
    lab.stop().await;
}

/// `TransitivityTest`.
#[tokio::test]
async fn transitivity() {
    let mut lab = Lab::start().await;
    for (name, parent) in [("c1", ""), ("c2", "c1")] {
        lab.client.prepare(&format!("k {name}"), parent).await.unwrap();
        lab.client.commit(name, &format!("k {name}")).await.unwrap();
    }
    lab.client.prepare("k", "c2").await.unwrap();
    assert_eq!(lab.client.stat("k").await.unwrap().parent, "c2");
    assert_eq!(lab.client.stat("c2").await.unwrap().parent, "c1");
    assert_eq!(lab.client.mounts("k").await.unwrap(), lab.client.mounts("k").await.unwrap());
    lab.stop().await;
}

/// `PreareViewFailingtest`.
#[tokio::test]
async fn prepare_view_failing() {
    let mut lab = Lab::start().await;
    lab.client.prepare("a", "").await.unwrap();
    assert_eq!(code(lab.client.prepare("b", "a").await), Code::InvalidArgument);
    assert_eq!(code(lab.client.view("b", "a").await), Code::InvalidArgument);
    assert_eq!(code(lab.client.prepare("b", "none").await), Code::NotFound);
    assert_eq!(code(lab.client.prepare("a", "").await), Code::AlreadyExists);
    assert_eq!(code(lab.client.view("a", "").await), Code::AlreadyExists);
    lab.client.commit("c", "a").await.unwrap();
    assert_eq!(code(lab.client.prepare("c", "").await), Code::AlreadyExists);
    lab.client.prepare("d", "").await.unwrap();
    assert_eq!(code(lab.client.commit("c", "d").await), Code::AlreadyExists);
    assert_eq!(code(lab.client.commit("e", "none").await), Code::NotFound);
    assert_eq!(code(lab.client.commit("e", "c").await), Code::FailedPrecondition);
    assert_eq!(lab.directories().len(), 2, "a refused call left a directory");
    lab.stop().await;
}

/// `Update`.
#[tokio::test]
async fn update() {
    let mut lab = Lab::start().await;
    let first = labels(&[("l1", "1"), ("l2", "2"), ("l3", "3")]);
    lab.client.prepare_with("a", "", first).await.unwrap();
    let made = lab.client.stat("a").await.unwrap();
    assert_eq!(made.created_at, made.updated_at);

    let info = lab.client.update("a", labels(&[("l1", "new")]), &["labels.l1", "labels.l2"]).await.unwrap();
    assert_eq!(info.labels, labels(&[("l1", "new"), ("l3", "3")]));
    assert_eq!((info.created_at, info.parent.as_str()), (made.created_at, ""));
    assert_ne!(info.updated_at, info.created_at);

    let info = lab.client.update("a", labels(&[("x", "y")]), &["labels"]).await.unwrap();
    assert_eq!(info.labels, labels(&[("x", "y")]));
    let info = lab.client.update("a", labels(&[("z", "1")]), &[]).await.unwrap();
    assert_eq!((info.labels, info.parent.as_str()), (labels(&[("z", "1")]), ""));
    assert_eq!(code(lab.client.update("a", labels(&[]), &["parent"]).await), Code::InvalidArgument);
    assert_eq!(code(lab.client.update("none", labels(&[]), &[]).await), Code::NotFound);
    let long = labels(&[("k", &"v".repeat(4096))]);
    assert_eq!(code(lab.client.update("a", long, &[]).await), Code::InvalidArgument);
    lab.stop().await;
}

/// `Remove`.
#[tokio::test]
async fn remove() {
    let mut lab = Lab::start().await;
    lab.client.prepare("k", "").await.unwrap();
    lab.client.commit("c", "k").await.unwrap();
    for round in 0..2 {
        lab.client.prepare("k", "c").await.unwrap();
        let error = lab.client.remove("c").await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition);
        assert!(error.message().contains("remove"), "{error}");
        lab.client.remove("k").await.unwrap();
        lab.client.view("k", "c").await.unwrap();
        lab.client.remove("k").await.unwrap();
        assert_eq!(code(lab.client.remove("k").await), Code::NotFound, "round {round}");
    }
    lab.client.remove("c").await.unwrap();
    lab.client.prepare("k", "").await.unwrap();
    lab.client.commit("c", "k").await.unwrap();
    lab.client.cleanup().await.unwrap();
    assert_eq!(lab.directories().len(), 1);
    lab.stop().await;
}

/// `Walk`.
#[tokio::test]
async fn walk() {
    let mut lab = Lab::start().await;
    let label = |name| labels(&[("containerd.io/test", name), ("containerd.io/gc.root", "now")]);
    lab.client.prepare("k", "").await.unwrap();
    lab.client.commit_with("base", "k", label("base")).await.unwrap();
    lab.client.prepare_with("active", "base", label("a")).await.unwrap();
    lab.client.view("view", "base").await.unwrap();
    for (filters, wanted) in [
        (&[] as &[&str], &["active", "base", "view"] as &[&str]),
        (&["kind==committed"], &["base"]),
        (&["kind==active"], &["active"]),
        (&["kind==view"], &["view"]),
        (&["parent==base"], &["active", "view"]),
        (&["name==base"], &["base"]),
        (&["labels.\"containerd.io/gc.root\""], &["active", "base"]),
        (&["labels.\"containerd.io/test\"==a,kind==active"], &["active"]),
        (&["labels.\"containerd.io/test\"~=^a", "kind==view"], &["active", "view"]),
        (&["parent!=base,kind!=active"], &["base"]),
    ] {
        assert_eq!(lab.client.names(filters).await, wanted, "{filters:?}");
    }
    assert_eq!(code(lab.client.list(&["kind=active"]).await), Code::InvalidArgument);
    lab.stop().await;
}

/// `StatInWalk`.
#[tokio::test]
async fn stat_in_walk_and_batches_of_a_hundred() {
    let mut lab = Lab::start().await;
    for number in 0..205 {
        lab.client.prepare(&format!("k{number:03}"), "").await.unwrap();
    }
    let (all, messages): (Vec<Info>, usize) = lab.client.list(&[]).await.unwrap();
    assert_eq!((all.len(), messages), (205, 3));
    for info in &all {
        assert_eq!(lab.client.stat(&info.name).await.unwrap(), *info);
    }
    lab.stop().await;
}

/// `LayerFileupdate`.
#[tokio::test]
async fn layer_file_update() {
    if !is_root() {
        return;
    }
    let mut lab = Lab::start().await;
    layer(&lab, "c1", "", |at| {
        fs::create_dir(at.join("etc")).unwrap();
        fs::write(at.join("etc/hosts"), "one").unwrap();
    })
    .await;
    layer(&lab, "c2", "c1", |at| fs::write(at.join("etc/hosts"), "two").unwrap()).await;
    layer(&lab, "c3", "c2", |at| fs::write(at.join("etc/new"), "new").unwrap()).await;
    let view = look(&lab, "c3", "v").await;
    assert_eq!((read(view.0.join("etc/hosts")), read(view.0.join("etc/new"))), ("two".into(), "new".into()));
    drop(view);
    lab.stop().await;
}

/// `RemoveDirectoryInLowerLayer` and `DeletedFilesInChildSnapshot`.
#[tokio::test]
async fn removals_in_lower_layers() {
    if !is_root() {
        return;
    }
    let mut lab = Lab::start().await;
    layer(&lab, "c1", "", |at| {
        fs::create_dir(at.join("d")).unwrap();
        fs::write(at.join("d/f"), "old").unwrap();
        fs::write(at.join("gone"), "x").unwrap();
    })
    .await;
    layer(&lab, "c2", "c1", |at| {
        fs::remove_dir_all(at.join("d")).unwrap();
        fs::create_dir(at.join("d")).unwrap();
        fs::remove_file(at.join("gone")).unwrap();
    })
    .await;
    layer(&lab, "c3", "c2", |at| fs::write(at.join("d/new"), "new").unwrap()).await;
    let view = look(&lab, "c3", "v").await;
    assert!(!view.0.join("d/f").exists() && !view.0.join("gone").exists());
    assert_eq!(read(view.0.join("d/new")), "new");
    drop(view);
    lab.stop().await;
}

/// `Chown` and `DirectoryPermissionOnCommit`.
#[tokio::test]
async fn owners_and_modes() {
    if !is_root() {
        return;
    }
    let mut lab = Lab::start().await;
    layer(&lab, "c1", "", |at| {
        fs::create_dir(at.join("d")).unwrap();
        fs::write(at.join("d/f"), "x").unwrap();
        fs::set_permissions(at.join("d"), fs::Permissions::from_mode(0o700)).unwrap();
        chown(at.join("d"), Some(1), Some(2)).unwrap();
    })
    .await;
    layer(&lab, "c2", "c1", |at| {
        chown(at.join("d/f"), Some(3), Some(4)).unwrap();
        fs::set_permissions(at.join("d"), fs::Permissions::from_mode(0o1777)).unwrap();
    })
    .await;
    let view = look(&lab, "c2", "v").await;
    let (dir, file) = (fs::metadata(view.0.join("d")).unwrap(), fs::metadata(view.0.join("d/f")).unwrap());
    assert_eq!((dir.uid(), dir.gid(), dir.mode() & 0o7777), (1, 2, 0o1777));
    assert_eq!((file.uid(), file.gid()), (3, 4));
    drop(view);
    lab.stop().await;
}

/// `RemoveIntermediateSnapshot`.
#[tokio::test]
async fn remove_intermediate_snapshot() {
    if !is_root() {
        return;
    }
    let mut lab = Lab::start().await;
    layer(&lab, "base", "", |at| fs::write(at.join("f"), "x").unwrap()).await;
    layer(&lab, "middle", "base", |_| ()).await;
    let mounts = lab.client.prepare("top", "middle").await.unwrap();
    assert_eq!(code(lab.client.remove("middle").await), Code::FailedPrecondition);
    let mounted = Mounted::new(&mounts, &lab.dir.path().join("mnt"));
    lab.client.remove("top").await.unwrap();
    lab.client.remove("middle").await.unwrap();
    assert_eq!(read(mounted.0.join("f")), "x");
    drop(mounted);
    lab.client.remove("base").await.unwrap();
    lab.client.cleanup().await.unwrap();
    assert!(lab.directories().is_empty());
    lab.stop().await;
}

/// `MoveFileFromLowerLayer` and `Rename`.
#[tokio::test]
async fn move_and_rename() {
    if !is_root() {
        return;
    }
    let mut lab = Lab::start().await;
    layer(&lab, "c1", "", |at| {
        fs::create_dir_all(at.join("dir1/a")).unwrap();
        fs::write(at.join("dir1/f1"), "f1").unwrap();
        fs::write(at.join("dir1/f2"), "f2").unwrap();
    })
    .await;
    layer(&lab, "c2", "c1", |at| {
        fs::rename(at.join("dir1/f1"), at.join("dir1/f3")).unwrap();
        fs::create_dir(at.join("dir2")).unwrap();
        fs::rename(at.join("dir1/f2"), at.join("dir2/f2")).unwrap();
        fs::rename(at.join("dir2"), at.join("dir3")).unwrap();
    })
    .await;
    let view = look(&lab, "c2", "v").await;
    assert_eq!((read(view.0.join("dir1/f3")), read(view.0.join("dir3/f2"))), ("f1".into(), "f2".into()));
    assert!(!view.0.join("dir1/f1").exists() && !view.0.join("dir2").exists());
    drop(view);
    lab.stop().await;
}

/// `ViewReadonly`.
#[tokio::test]
async fn view_readonly() {
    if !is_root() {
        return;
    }
    let mut lab = Lab::start().await;
    layer(&lab, "c1", "", |at| fs::write(at.join("f"), "x").unwrap()).await;
    layer(&lab, "c2", "c1", |_| ()).await;
    for (parent, at) in [("c1", "v1"), ("c2", "v2")] {
        let view = look(&lab, parent, at).await;
        assert!(fs::write(view.0.join("new"), "y").is_err() && fs::write(view.0.join("f"), "y").is_err());
    }
    lab.stop().await;
}

/// `RootPermission`.
#[tokio::test]
async fn root_permission() {
    if !is_root() {
        return;
    }
    let mut lab = Lab::start().await;
    let mounts = lab.client.prepare("a", "").await.unwrap();
    let mounted = Mounted::new(&mounts, &lab.dir.path().join("mnt"));
    assert_eq!(fs::metadata(&mounted.0).unwrap().mode() & 0o7777, 0o755);
    drop(mounted);
    lab.stop().await;
}

/// `128LayersMount`.
#[tokio::test]
async fn mount_of_128_layers() {
    if !is_root() {
        return;
    }
    let mut lab = Lab::start().await;
    let mut parent = String::new();
    for number in 1..=128 {
        let (name, key) = (format!("l{number}"), format!("k{number}"));
        let mounts = lab.client.prepare(&key, &parent).await.unwrap();
        // Written behind the mount: this test is about the last one.
        let options = &mounts[0].options;
        let upper = options.iter().find_map(|option| option.strip_prefix("upperdir="));
        fs::write(Path::new(upper.unwrap_or(&mounts[0].source)).join(&name), &name).unwrap();
        lab.client.commit(&name, &key).await.unwrap();
        parent = name;
    }
    let mut mounts = lab.client.prepare("top", &parent).await.unwrap();
    // One page of options is all that mount(2) takes. containerd changes into the common directory first;
    // so does this test.
    let snapshots = fs::canonicalize(lab.root().join("snapshots")).unwrap();
    let prefix = format!("{}/", snapshots.display());
    for option in &mut mounts[0].options {
        *option = option.replace(&prefix, "");
    }
    let length: usize = mounts[0].options.iter().map(|option| option.len() + 1).sum();
    assert!(length < 4096, "{length} bytes of options");
    let at = lab.dir.path().join("mnt");
    let script = format!(
        "cd {} && mkdir -p {at} && mount -t overlay overlay -o {} {at} && cat {at}/l1 {at}/l64 {at}/l128",
        snapshots.display(),
        mounts[0].options.join(","),
        at = at.display()
    );
    let output = std::process::Command::new("unshare").args(["-m", "sh", "-c", &script]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "l1l64l128", "{output:?}");
    lab.stop().await;
}

#[tokio::test]
async fn usage_counts_the_upper_directory_alone() {
    if !is_root() {
        return;
    }
    let mut lab = Lab::start().await;
    layer(&lab, "c1", "", |at| fs::write(at.join("f"), vec![1; 1 << 20]).unwrap()).await;
    let committed = lab.client.usage("c1").await.unwrap();
    assert!(committed.size >= 1 << 20 && committed.inodes == 2, "{committed:?}");
    lab.client.prepare("k", "c1").await.unwrap();
    let active = lab.client.usage("k").await.unwrap();
    assert!(active.size < 1 << 20 && active.inodes == 1, "{active:?}");
    assert_eq!(code(lab.client.usage("none").await), Code::NotFound);
    lab.stop().await;
}
