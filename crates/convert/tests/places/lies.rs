//! Places that do not hold what they say.

use std::path::PathBuf;

use ::registry::media_type;
use content::{Digest, ReadErrorKind, Urgency};
use convert::PlaceError;

use crate::common::{Desk, TAG, collect, descriptor, place, sample};

fn blob(desk: &Desk, digest: &Digest) -> PathBuf {
    desk.path("ours/blobs/sha256").join(digest.hex())
}

#[tokio::test]
async fn a_layout_that_lies_is_found_out() {
    let desk = Desk::new();
    let image = sample(&[2_000_000, 10]);
    image.put(&*desk.target(&desk.oci("ours", TAG)).await).await;
    let source = desk.source(&desk.oci("ours", TAG)).await;
    let layer = &image.layers[0].0;
    let path = blob(&desk, &layer.digest);
    let whole = std::fs::read(&path).unwrap();
    let mut bent = whole.clone();
    *bent.last_mut().unwrap() ^= 1;
    let fails = async |bytes: Option<&[u8]>, wanted: ReadErrorKind| {
        std::fs::remove_file(&path).unwrap();
        if let Some(bytes) = bytes {
            std::fs::write(&path, bytes).unwrap();
        }
        let error = collect(source.stream(layer, Urgency::Prefetch)).await.unwrap_err();
        assert_eq!(error.kind(), wanted, "{error}");
        assert!(error.to_string().contains(&layer.digest.to_string()) && !error.to_string().contains('\n'));
        std::fs::write(&path, &whole).unwrap();
    };
    fails(Some(&bent), ReadErrorKind::Corrupt).await;
    fails(Some(&whole[1..]), ReadErrorKind::Corrupt).await;
    fails(Some(&[]), ReadErrorKind::Corrupt).await;
    fails(None, ReadErrorKind::NotFound).await;
    std::fs::write(blob(&desk, &image.config.0.digest), b"{}").unwrap();
    let error = source.document(&image.config.0, 1 << 20).await.unwrap_err();
    assert!(matches!(error, PlaceError::Damaged { .. }), "{error}");
    let long = image.manifest.0.clone();
    assert!(source.document(&long, long.size - 1).await.unwrap_err().to_string().contains("more than"));
    // A link that does not have the digest is not taken over.
    std::fs::write(&path, &bent).unwrap();
    let target = desk.target(&desk.oci("other", TAG)).await;
    target.check().await.unwrap();
    assert!(!target.adopt(&*source, layer).await.unwrap());
    assert!(!target.has(layer).await.unwrap());
    std::fs::remove_file(blob(&desk, &image.manifest.0.digest)).unwrap();
    let error = source.root().await.unwrap_err();
    assert!(error.is_not_found() && error.to_string().contains("is incomplete"), "{error}");
}

/// Whoever may write to a file may change it after it was compared.
#[tokio::test]
async fn a_file_that_others_may_write_to_is_not_linked() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    let desk = Desk::new();
    let image = sample(&[1000]);
    image.put(&*desk.target(&desk.oci("ours", TAG)).await).await;
    let source = desk.source(&desk.oci("ours", TAG)).await;
    let layer = &image.layers[0].0;
    let path = blob(&desk, &layer.digest);
    for (mode, linked) in [(0o666, false), (0o620, false), (0o644, true)] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let target = desk.target(&desk.oci("other", TAG)).await;
        target.check().await.unwrap();
        assert_eq!(target.adopt(&*source, layer).await.unwrap(), linked, "{mode:o}");
        target.abandon().await;
    }
    // Somebody else's. Only root can make it so.
    if std::fs::metadata(&path).unwrap().uid() == 0 {
        std::os::unix::fs::chown(&path, Some(65_534), None).unwrap();
        let target = desk.target(&desk.oci("other", TAG)).await;
        assert!(!target.adopt(&*source, layer).await.unwrap());
    }
}

#[tokio::test]
async fn a_damaged_document_is_written_anew() {
    let desk = Desk::new();
    let image = sample(&[1000]);
    let at = desk.oci("ours", TAG);
    image.put(&*desk.target(&at).await).await;
    for digest in [image.config.0.digest, image.manifest.0.digest] {
        let path = blob(&desk, &digest);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[0] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
    }
    image.put(&*desk.target(&at).await).await;
    image.is_at(&*desk.source(&at).await).await;
}

/// A layout whose index cannot be changed gets no blobs either.
#[tokio::test]
async fn a_layout_that_cannot_be_added_to_stays_as_it_is() {
    let desk = Desk::new();
    std::fs::create_dir(desk.path("ours")).unwrap();
    std::fs::write(desk.path("ours/index.json"), "{").unwrap();
    let target = desk.target(&desk.oci("ours", TAG)).await;
    let image = sample(&[1000]);
    target.check().await.unwrap();
    image.put_blobs(&*target).await;
    let error = target.name(&image.manifest.0, image.manifest.1.clone()).await.unwrap_err();
    assert!(error.to_string().contains("index.json"), "{error}");
    target.abandon().await;
    let left: Vec<_> =
        std::fs::read_dir(desk.path("ours")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["index.json"]);
}

#[tokio::test]
async fn an_index_with_paths_for_digests_leads_nowhere() {
    let desk = Desk::new();
    sample(&[10]).put(&*desk.target(&desk.oci("ours", TAG)).await).await;
    let path = desk.path("ours/index.json");
    for digest in ["sha256:../../../../etc/passwd", "md5:00", "", "sha256:00"] {
        let index = serde_json::json!({
            "schemaVersion": 2,
            "manifests": [{"mediaType": media_type::OCI_MANIFEST, "digest": digest, "size": 3}],
        });
        std::fs::write(&path, index.to_string()).unwrap();
        let error = desk.places.source(&desk.oci("ours", TAG)).await.unwrap_err();
        assert!(matches!(error, PlaceError::Malformed { .. }), "{error}");
    }
    std::fs::write(&path, "{").unwrap();
    assert!(desk.places.source(&desk.oci("ours", TAG)).await.unwrap_err().to_string().contains("index.json"));
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
    assert!(
        desk.places
            .source(&desk.oci("ours", TAG))
            .await
            .unwrap_err()
            .to_string()
            .contains("no file of at most")
    );
}

#[tokio::test]
async fn an_archive_that_is_cut_off_is_an_error() {
    let desk = Desk::new();
    let image = sample(&[100_000]);
    let archive = desk.path("whole.tar");
    image.put(&*desk.target(&place(&format!("oci-archive:{}", archive.display()))).await).await;
    let whole = std::fs::read(&archive).unwrap();
    let cut = desk.path("cut.tar");
    for end in (0..whole.len() - 2048).step_by(whole.len() / 37) {
        std::fs::write(&cut, &whole[..end]).unwrap();
        let error = desk.places.source(&place(&format!("oci-archive:{}", cut.display()))).await.unwrap_err();
        assert!(!error.to_string().contains('\n'), "{error}");
    }
    std::fs::write(&cut, [7; 4096]).unwrap();
    for kind in ["oci-archive", "docker-archive"] {
        let error = desk.places.source(&place(&format!("{kind}:{}", cut.display()))).await.unwrap_err();
        assert!(error.to_string().contains("checksum"), "{error}");
    }
}

#[tokio::test]
async fn a_docker_archive_that_lies_is_found_out() {
    let desk = Desk::new();
    let image = sample(&[1000]);
    let write = |files: &[(&str, &[u8])]| {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, bytes) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            tar.append_data(&mut header, name, *bytes).unwrap();
        }
        std::fs::write(desk.path("a.tar"), tar.into_inner().unwrap()).unwrap();
    };
    let at = place(&format!("docker-archive:{}", desk.path("a.tar").display()));
    let list = br#"[{"Config":"config","Layers":["layer"]}]"#.as_slice();
    let config = &image.config.1[..];
    for (files, says) in [
        ([("x", list), ("config", config)].as_slice(), "no manifest.json"),
        (&[("manifest.json", list), ("config", config)], "\"layer\", which the archive lacks"),
        (&[("manifest.json", list), ("layer", b"x")], "\"config\", which the archive lacks"),
        (&[("manifest.json", list), ("layer", b"x"), ("config", b"{}")], "rootfs"),
        (&[("manifest.json", br#"[{"Config":"config"}]"#), ("config", config)], "names 0 layers, the config"),
        (&[("manifest.json", b"[]")], "no such image"),
    ] {
        write(files);
        let error = desk.places.source(&at).await.unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    // Not the bytes that the config claims.
    write(&[("manifest.json", list), ("layer", &[0; 1024]), ("config", config)]);
    let source = desk.source(&at).await;
    let claimed = ::registry::Descriptor::new(media_type::OCI_LAYER, image.layers[0].1, 1024);
    let error = collect(source.stream(&claimed, Urgency::Prefetch)).await.unwrap_err();
    assert_eq!(error.kind(), ReadErrorKind::Corrupt, "{error}");
    let unknown = descriptor("x", b"unknown");
    assert!(source.ranges(&unknown).await.is_err_and(|error| error.is_not_found()));
}
