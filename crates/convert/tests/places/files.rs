//! Layouts and archives, ours and others'.

use std::path::Path;

use ::registry::{Manifest, media_type};
use anyhow::ensure;
use bytes::Bytes;
use content::{Digest, Urgency};
use convert::{Containerd, Place};
use futures::future::join_all;
use serde_json::Value;
use testkit::cage::{self, Needs};

use crate::common::{Copied, Desk, TAG, collect, copy, descriptor, gzip, place, places, run, sample};

/// A layout that umoci made: two layers, two tags.
fn umoci_layout(desk: &Desk) -> bool {
    let layout = desk.path("umoci");
    let image = format!("{}:{TAG}", layout.display());
    let file = desk.path("file");
    std::fs::write(&file, "good day\n").unwrap();
    let file = file.to_str().unwrap();
    run("umoci", &["init", "--layout", layout.to_str().unwrap()])
        && run("umoci", &["new", "--image", &image])
        && run("umoci", &["insert", "--image", &image, file, "/one"])
        && run("umoci", &["insert", "--image", &image, file, "/two"])
        && run("umoci", &["tag", "--image", &image, "second"])
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[tokio::test]
async fn what_is_written_is_read_back() {
    let desk = Desk::new();
    let image = sample(&[3_000_000, 10]);
    for text in ["oci:{}/new/deep:1.0", "oci:{}/bare", "oci-archive:{}/a.tar:1.0", "oci-archive:{}/b.tar"] {
        let place = place(&text.replace("{}", desk.dir.path().to_str().unwrap()));
        let target = desk.target(&place).await;
        assert!(target.current().await.unwrap().is_none());
        image.put(&*target).await;
        image.is_at(&*desk.source(&place).await).await;
        let again = desk.target(&place).await;
        assert_eq!(again.current().await.unwrap().unwrap(), image.manifest);
        assert_eq!(again.manifest(&image.manifest.0).await.unwrap(), Some(image.manifest.1.clone()));
        assert!(again.manifest(&descriptor("x", b"x")).await.unwrap().is_none());
        assert!(again.has(&image.layers[0].0).await.unwrap());
        assert!(!again.has(&descriptor("x", b"x")).await.unwrap());
        again.abandon().await;
        image.is_at(&*desk.source(&place).await).await;
    }
    assert_eq!(desk.names(), ["a.tar", "b.tar", "bare", "new", "tmp"]);
    assert_eq!(std::fs::read_dir(desk.path("tmp")).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(desk.path("bare")).unwrap().count(), 3, "blobs, index.json, oci-layout");
}

#[tokio::test]
async fn others_read_what_is_written() {
    let desk = Desk::new();
    let image = sample(&[100_000, 10]);
    let dir = desk.dir.path().to_str().unwrap();
    image.put(&*desk.target(&desk.oci("ours", TAG)).await).await;
    image.put(&*desk.target(&place(&format!("oci-archive:{dir}/ours.tar:{TAG}"))).await).await;
    let read = run("umoci", &["stat", "--image", &format!("{dir}/ours:{TAG}")])
        && run("skopeo", &["inspect", &format!("oci:{dir}/ours:{TAG}")])
        && run("skopeo", &["copy", &format!("oci:{dir}/ours:{TAG}"), &format!("dir:{dir}/one")])
        && run("skopeo", &["copy", &format!("oci-archive:{dir}/ours.tar:{TAG}"), &format!("dir:{dir}/two")]);
    if read {
        for copy in ["one", "two"] {
            let manifest = std::fs::read(desk.path(copy).join("manifest.json")).unwrap();
            assert_eq!(manifest, image.manifest.1);
        }
    }
}

#[tokio::test]
async fn layouts_of_others_are_read_and_added_to() {
    let desk = Desk::new();
    if !umoci_layout(&desk) {
        return;
    }
    let from = desk.source(&desk.oci("umoci", TAG)).await;
    let archive = place(&format!("oci-archive:{}/copy.tar:x", desk.dir.path().display()));
    let copied = copy(&*from, &*desk.target(&archive).await).await.unwrap();
    assert_eq!(copied, Copied { moved: 3, ..Copied::default() });
    let linked = copy(&*from, &*desk.target(&desk.oci("linked", "x")).await).await.unwrap();
    assert_eq!(linked, Copied { adopted: 3, ..Copied::default() });
    // The new tag stands beside those of umoci, and umoci reads it.
    let image = sample(&[10]);
    image.put(&*desk.target(&desk.oci("umoci", "ours")).await).await;
    let umoci = desk.path("umoci");
    assert!(run("umoci", &["stat", "--image", &format!("{}:ours", umoci.display())]));
    let again = copy(&*from, &*desk.target(&desk.oci("umoci", "third")).await).await.unwrap();
    assert_eq!(again, Copied { there: 3, ..Copied::default() });
    let root = from.root().await.unwrap();
    for (layout, tag) in [("umoci", TAG), ("umoci", "second"), ("umoci", "third"), ("linked", "x")] {
        assert_eq!(desk.source(&desk.oci(layout, tag)).await.root().await.unwrap().0.digest, root.0.digest);
    }
    assert_eq!(desk.source(&archive).await.root().await.unwrap().1, root.1);
    let all = desk.source(&place(&format!("oci:{}", umoci.display()))).await.root().await.unwrap_err();
    assert!(all.to_string().ends_with("holds 4 images: name one of them, 1.0, second, ours, third"), "{all}");
    let none = desk.source(&desk.oci("umoci", "none")).await.root().await.unwrap_err();
    assert!(none.is_not_found() && none.to_string().contains("there is 1.0, second"), "{none}");
}

#[tokio::test]
async fn docker_archives_are_read_plain_and_compressed_as_a_whole() {
    let desk = Desk::new();
    let image = sample(&[2_000_000, 10]);
    image.put(&*desk.target(&desk.oci("ours", TAG)).await).await;
    let file = desk.path("saved.tar");
    let (dir, saved) = (desk.dir.path().display(), file.display());
    if !run(
        "skopeo",
        &["copy", &format!("oci:{dir}/ours:{TAG}"), &format!("docker-archive:{saved}:r.example/a:1")],
    ) {
        return;
    }
    std::fs::write(desk.path("saved.tar.gz"), gzip(&std::fs::read(&file).unwrap())).unwrap();
    let mut roots = Vec::new();
    for text in [
        format!("docker-archive:{saved}"),
        format!("docker-archive:{saved}:r.example/a:1"),
        format!("docker-archive:{saved}:@0"),
        format!("docker-archive:{saved}.gz"),
    ] {
        let source = desk.source(&place(&text)).await;
        let (root, bytes) = source.root().await.unwrap();
        let manifest: Manifest = serde_json::from_slice(&bytes).unwrap();
        source.document(&manifest.config, 1 << 20).await.unwrap();
        for (layer, (_, diff_id, _)) in manifest.layers.iter().zip(&image.layers) {
            assert_eq!((layer.media_type.as_str(), &layer.digest), (media_type::OCI_LAYER, diff_id));
            assert_eq!(
                Digest::of(&collect(source.stream(layer, Urgency::Prefetch)).await.unwrap()),
                *diff_id
            );
        }
        roots.push(root.digest);
    }
    assert!(roots.iter().all(|root| *root == roots[0]));
    let other =
        desk.places.source(&place(&format!("docker-archive:{saved}:r.example/b:1"))).await.unwrap_err();
    assert!(other.to_string().contains("there is r.example/a:1"), "{other}");
    let wrong = desk.places.source(&place(&format!("oci-archive:{saved}"))).await.unwrap_err();
    assert!(wrong.to_string().contains("write docker-archive: before"), "{wrong}");
    let written = desk.places.target(&place("docker-archive:new.tar")).await.unwrap_err();
    assert!(written.to_string().contains("oci-archive:"), "{written}");
}

/// As `docker save` of before and after its change to OCI writes it.
#[tokio::test]
async fn docker_archives_with_links_compressed_layers_and_layouts_are_read() {
    let desk = Desk::new();
    let image = sample(&[1000, 2000]);
    let mut tar = tar::Builder::new(Vec::new());
    let add = |tar: &mut tar::Builder<Vec<u8>>, name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, name, bytes).unwrap();
    };
    add(&mut tar, "a/layer.tar", &image.layers[0].2);
    let mut link = tar::Header::new_gnu();
    link.set_entry_type(tar::EntryType::Symlink);
    link.set_size(0);
    tar.append_link(&mut link, "b/layer.tar", "../c/layer.tar").unwrap();
    add(&mut tar, "c/layer.tar", &image.layers[1].2);
    add(&mut tar, "config.json", &image.config.1);
    let list =
        br#"[{"Config":"config.json","RepoTags":["python:3"],"Layers":["a/layer.tar","b/layer.tar"]}]"#;
    add(&mut tar, "manifest.json", list);
    let old = desk.path("old.tar");
    std::fs::write(&old, tar.into_inner().unwrap()).unwrap();
    for reference in ["", ":python:3", ":docker.io/library/python:3"] {
        let source = desk.source(&place(&format!("docker-archive:{}{reference}", old.display()))).await;
        let manifest: Manifest = serde_json::from_slice(&source.root().await.unwrap().1).unwrap();
        for (layer, (ours, _, bytes)) in manifest.layers.iter().zip(&image.layers) {
            assert_eq!(layer, ours);
            assert_eq!(collect(source.stream(layer, Urgency::Prefetch)).await.unwrap(), &bytes[..]);
        }
    }
    let archive = place(&format!("oci-archive:{}:latest", desk.path("new.tar").display()));
    image.put(&*desk.target(&archive).await).await;
    let new = format!("docker-archive:{}", desk.path("new.tar").display());
    image.is_at(&*desk.source(&place(&new)).await).await;
}

#[tokio::test]
async fn names_are_found_in_indexes_within_indexes() {
    let desk = Desk::new();
    let image = sample(&[10]);
    let target = desk.target(&desk.oci("deep", "flat")).await;
    target.check().await.unwrap();
    image.put_blobs(&*target).await;
    target.put_manifest(&image.manifest.0, image.manifest.1.clone()).await.unwrap();
    let mut entry = image.manifest.0.clone();
    entry.annotations = Some([("org.opencontainers.image.ref.name".to_owned(), "inner".to_owned())].into());
    let index = serde_json::json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [entry],
    });
    let index = Bytes::from(index.to_string());
    target.name(&descriptor(media_type::OCI_INDEX, &index), index.clone()).await.unwrap();
    image.is_at(&*desk.source(&desk.oci("deep", "inner")).await).await;
    assert_eq!(desk.source(&desk.oci("deep", "flat")).await.root().await.unwrap().1, index);
    // An index.json that is itself the index of an image for several machines.
    let path = desk.path("deep/index.json");
    let mut top = json(&path);
    let mut entry = serde_json::to_value(&image.manifest.0).unwrap();
    let mut entries = Vec::new();
    for architecture in ["amd64", "arm64"] {
        entry["platform"] = serde_json::json!({"os": "linux", "architecture": architecture});
        entries.push(entry.clone());
    }
    top["manifests"] = entries.into();
    std::fs::write(&path, top.to_string()).unwrap();
    let (root, bytes) =
        desk.source(&place(&format!("oci:{}", desk.path("deep").display()))).await.root().await.unwrap();
    assert_eq!((root.media_type.as_str(), root.digest), (media_type::OCI_INDEX, Digest::of(&bytes)));
}

#[tokio::test]
async fn what_is_given_up_leaves_nothing() {
    let desk = Desk::new();
    let image = sample(&[3_000_000, 10]);
    let dir = desk.dir.path().display();
    for text in [format!("oci:{dir}/new/deep:1"), format!("oci-archive:{dir}/new.tar:1")] {
        let place = place(&text);
        let target = desk.target(&place).await;
        target.check().await.unwrap();
        image.put_blobs(&*target).await;
        let mut half = target.begin().await.unwrap();
        half.write(image.layers[0].2.clone()).await.unwrap();
        let mut wrong = target.begin().await.unwrap();
        wrong.write(image.layers[0].2.slice(1..)).await.unwrap();
        let error = wrong.commit(&image.layers[0].0, None).await.unwrap_err();
        assert!(error.to_string().contains("were announced"), "{error}");
        let sibling = target.sibling("-esgztoc").await.unwrap();
        sibling.name(&image.manifest.0, image.manifest.1.clone()).await.unwrap();
        drop(half);
        target.abandon().await;
        assert_eq!(desk.names(), ["tmp"], "{place}");
        // Nobody said that it was given up.
        let target = desk.target(&place).await;
        image.put_blobs(&*target).await;
        drop(target);
        assert_eq!(desk.names(), ["tmp"], "{place}");
    }
    assert_eq!(std::fs::read_dir(desk.path("tmp")).unwrap().count(), 0);
    // An archive that stands is whole until the new one is.
    let place = place(&format!("oci-archive:{dir}/new.tar:1"));
    image.put(&*desk.target(&place).await).await;
    let other = sample(&[77]);
    let target = desk.target(&place).await;
    other.put_blobs(&*target).await;
    image.is_at(&*desk.source(&place).await).await;
    target.name(&other.manifest.0, other.manifest.1.clone()).await.unwrap();
    target.abandon().await;
    other.is_at(&*desk.source(&place).await).await;
}

#[tokio::test]
async fn siblings_get_their_names_with_their_image() {
    let desk = Desk::new();
    let (image, beside) = (sample(&[10, 20]), sample(&[30]));
    let dir = desk.dir.path().display();
    for text in [format!("oci:{dir}/new:1"), format!("oci-archive:{dir}/new.tar:1")] {
        let place = place(&text);
        let target = desk.target(&place).await;
        let sibling = target.sibling("-esgztoc").await.unwrap();
        beside.put(&*sibling).await;
        if let Ok(early) = desk.places.source(&place).await {
            assert!(early.sibling("-esgztoc").await.unwrap().is_none());
        }
        image.put(&*target).await;
        let source = desk.source(&place).await;
        image.is_at(&*source).await;
        let found = source.sibling("-esgztoc").await.unwrap().unwrap();
        assert_eq!(found.place().to_string(), format!("{text}-esgztoc"));
        beside.is_at(&*found).await;
        assert!(source.sibling("-none").await.unwrap().is_none());
    }
    let unnamed = desk.target(&place(&format!("oci:{dir}/new"))).await;
    assert!(unnamed.sibling("-esgztoc").await.unwrap_err().to_string().contains("add a tag"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn writers_that_race_to_one_layout_lose_nothing() {
    let desk = Desk::new();
    let images: Vec<_> = (1..=8_usize).map(|n| sample(&[100, n * 1000])).collect();
    let writers = images.iter().enumerate().map(|(at, image)| {
        let place = desk.oci("shared", &format!("t{at}"));
        let desk = &desk;
        async move { image.put(&*desk.target(&place).await).await }
    });
    join_all(writers).await;
    // And two for the same name: one of them has it, whole.
    let same = desk.oci("shared", "same");
    let (left, right) = (desk.target(&same).await, desk.target(&same).await);
    tokio::join!(images[0].put(&*left), images[1].put(&*right));
    for (at, image) in images.iter().enumerate() {
        image.is_at(&*desk.source(&desk.oci("shared", &format!("t{at}"))).await).await;
    }
    let root = desk.source(&same).await.root().await.unwrap().0.digest;
    assert!([images[0].manifest.0.digest, images[1].manifest.0.digest].contains(&root));
    assert_eq!(json(&desk.path("shared/index.json"))["manifests"].as_array().unwrap().len(), 9);
    assert_eq!(std::fs::read_dir(desk.path("shared")).unwrap().count(), 3);
}

#[tokio::test]
async fn what_a_killed_writer_left_is_removed_by_the_next() {
    let desk = Desk::new();
    let image = sample(&[10]);
    image.put(&*desk.target(&desk.oci("layout", "a")).await).await;
    let left = desk.path("layout/.pantala-left");
    std::fs::create_dir(&left).unwrap();
    std::fs::write(left.join("0.part"), "half").unwrap();
    let alive = desk.target(&desk.oci("layout", "b")).await;
    alive.check().await.unwrap();
    assert!(!left.exists());
    let count = || std::fs::read_dir(desk.path("layout")).unwrap().count();
    assert_eq!(count(), 4);
    // Who is alive keeps what it has.
    image.put(&*desk.target(&desk.oci("layout", "c")).await).await;
    assert_eq!(count(), 4);
    image.put(&*alive).await;
    assert_eq!(count(), 3);
}

#[tokio::test]
async fn directories_that_are_no_layouts_are_left_alone() {
    let desk = Desk::new();
    let home = desk.path("home");
    std::fs::create_dir(&home).unwrap();
    std::fs::write(home.join("letter"), "dear").unwrap();
    let error = desk.target(&desk.oci("home", "a")).await.check().await.unwrap_err();
    assert!(error.to_string().contains("is no OCI layout"), "{error}");
    assert_eq!(std::fs::read_dir(&home).unwrap().count(), 1);
    let error = desk.places.source(&desk.oci("home", "a")).await.unwrap_err();
    assert!(error.to_string().contains("no index.json"), "{error}");
    let file = Place::OciArchive { file: home, tag: None };
    assert!(desk.target(&file).await.check().await.is_err());
    assert!(desk.places.source(&file).await.unwrap_err().to_string().contains("is no file"));
    let none = place("oci-archive:/nowhere/at/all.tar");
    assert!(desk.target(&none).await.check().await.is_err());
}

#[test]
fn a_full_disk_is_told_and_leaves_nothing() {
    cage::test(Needs::Network, |cage| {
        let small = cage.dir().join("small");
        std::fs::create_dir(&small)?;
        ensure!(
            run("mount", &["-t", "tmpfs", "-o", "size=2m", "small", small.to_str().unwrap()]),
            "no mount"
        );
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(full(&small));
        ensure!(run("umount", &[small.to_str().unwrap()]), "no umount");
        Ok(())
    });
}

async fn full(small: &Path) {
    let desk = Desk::new();
    let image = sample(&[3_000_000]);
    let (layer, _, bytes) = &image.layers[0];
    for text in ["oci:{}/new:1", "oci-archive:{}/new.tar:1"] {
        let place = place(&text.replace("{}", small.to_str().unwrap()));
        let target = desk.target(&place).await;
        target.check().await.unwrap();
        let mut writer = target.begin().await.unwrap();
        let written = writer.write(bytes.clone()).await;
        let error = match written {
            Ok(()) => writer.commit(layer, None).await.unwrap_err(),
            Err(error) => error,
        };
        assert!(error.to_string().contains("free some space"), "{error}");
        target.abandon().await;
        assert_eq!(std::fs::read_dir(small).unwrap().count(), 0, "{place}");
    }
    // Where blobs are kept that are under way.
    let places = places(small, Containerd::default());
    let target = places.target(&place("127.0.0.1:1/team/app:1")).await.unwrap();
    let mut writer = target.begin().await.unwrap();
    let error = writer.write(bytes.clone()).await.unwrap_err();
    assert!(error.to_string().contains("TMPDIR"), "{error}");
    writer.abort().await;
    target.abandon().await;
}
