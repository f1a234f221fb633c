//! A small image, and a copy of images that uses all that a target can.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use ::registry::{Client, ClientConfig, Descriptor, Index, Manifest, media_type};
use bytes::Bytes;
use content::{ByteStream, Digest, Urgency};
use convert::{Containerd, ImageSource, ImageTarget, Place, PlaceError, Places};
use futures::TryStreamExt as _;
use serde_json::json;

/// The tag of the sample.
pub const TAG: &str = "1.0";

pub fn places(temporary: &Path, containerd: Containerd) -> Places {
    // Others may have done so already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let client = Client::new(ClientConfig::default()).unwrap();
    Places { client, containerd, temporary: temporary.to_owned() }
}

/// A directory for a test, and places with temporary files in it.
pub struct Desk {
    pub dir: tempfile::TempDir,
    pub places: Places,
}

impl Desk {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let temporary = dir.path().join("tmp");
        std::fs::create_dir(&temporary).unwrap();
        let places = places(&temporary, Containerd::default());
        Self { dir, places }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn oci(&self, name: &str, tag: &str) -> Place {
        place(&format!("oci:{}:{tag}", self.path(name).display()))
    }

    pub async fn source(&self, place: &Place) -> Arc<dyn ImageSource> {
        self.places.source(place).await.unwrap()
    }

    pub async fn target(&self, place: &Place) -> Arc<dyn ImageTarget> {
        self.places.target(place).await.unwrap()
    }

    /// Names of all files below the desk, without what is temporary.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(self.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

pub fn place(text: &str) -> Place {
    text.parse().unwrap()
}

/// Runs a program; `false` if this machine has none of that name.
pub fn run(program: &str, arguments: &[&str]) -> bool {
    let output = match Command::new(program).args(arguments).output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            assert!(std::env::var_os("PANTALA_E2E").is_none_or(|v| v != "require"), "{program} is missing");
            println!("skipped: needs {program} (scripts/setup.sh test installs it)");
            return false;
        }
        Err(error) => panic!("{program}: {error}"),
    };
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    true
}

pub fn descriptor(media_type: &str, bytes: &[u8]) -> Descriptor {
    Descriptor::new(media_type, Digest::of(bytes), bytes.len() as u64)
}

/// An image in memory.
pub struct Sample {
    pub layers: Vec<(Descriptor, Digest, Bytes)>,
    pub config: (Descriptor, Bytes),
    pub manifest: (Descriptor, Bytes),
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Bytes that do not compress.
pub fn noise(seed: u32, len: usize) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    (0..len).map(|_| next()).collect()
}

/// An image whose layers have a file of so many bytes each.
pub fn sample(sizes: &[usize]) -> Sample {
    let layers: Vec<_> = sizes
        .iter()
        .enumerate()
        .map(|(at, size)| {
            let mut builder = tar::Builder::new(Vec::new());
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o644);
            header.set_size(*size as u64);
            let content = noise(u32::try_from(at).unwrap() + 7, *size);
            builder.append_data(&mut header, format!("file{at}"), content.as_slice()).unwrap();
            let tar = builder.into_inner().unwrap();
            let blob = gzip(&tar);
            (descriptor(media_type::OCI_LAYER_GZIP, &blob), Digest::of(&tar), Bytes::from(blob))
        })
        .collect();
    let diff_ids: Vec<_> = layers.iter().map(|(_, diff_id, _)| diff_id).collect();
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": sizes.iter().map(|size| json!({"created": "2026-01-01T00:00:00Z", "created_by": format!("{size} bytes")})).collect::<Vec<_>>(),
    });
    let config = Bytes::from(config.to_string());
    let config = (descriptor(media_type::OCI_CONFIG, &config), config);
    let manifest = json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "config": config.0,
        "layers": layers.iter().map(|(layer, ..)| layer).collect::<Vec<_>>(),
        "annotations": {"org.example.note": "kept"},
    });
    let manifest = Bytes::from(manifest.to_string());
    Sample { layers, config, manifest: (descriptor(media_type::OCI_MANIFEST, &manifest), manifest) }
}

impl Sample {
    pub async fn put_blobs(&self, target: &dyn ImageTarget) {
        for (layer, diff_id, bytes) in &self.layers {
            let mut writer = target.begin().await.unwrap();
            for part in bytes.chunks(100_000) {
                writer.write(Bytes::copy_from_slice(part)).await.unwrap();
            }
            writer.commit(layer, Some(diff_id)).await.unwrap();
        }
        target.put_blob(&self.config.0, self.config.1.clone()).await.unwrap();
    }

    pub async fn put(&self, target: &dyn ImageTarget) {
        target.check().await.unwrap();
        self.put_blobs(target).await;
        target.name(&self.manifest.0, self.manifest.1.clone()).await.unwrap();
    }

    pub async fn is_at(&self, source: &dyn ImageSource) {
        let (root, bytes) = source.root().await.unwrap();
        assert_eq!((root.digest, &bytes), (self.manifest.0.digest, &self.manifest.1));
        assert_eq!(source.document(&self.config.0, 1 << 20).await.unwrap(), self.config.1);
        for (layer, _, bytes) in &self.layers {
            assert_eq!(collect(source.stream(layer, Urgency::Prefetch)).await.unwrap(), &bytes[..]);
            let ranges = source.ranges(layer).await.unwrap();
            let range = content::ByteRange::new(3, layer.size.min(1_500_000) - 1);
            let wanted = bytes.slice(3..usize::try_from(range.end).unwrap());
            assert_eq!(ranges.read(range, Urgency::Blocking).await.unwrap(), wanted);
        }
    }
}

pub async fn collect(stream: ByteStream) -> Result<Vec<u8>, content::ReadError> {
    let all = stream.try_fold(Vec::new(), |mut all, chunk| async move {
        all.extend_from_slice(&chunk);
        Ok(all)
    });
    all.await
}

/// What became of the blobs of a copy.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Copied {
    pub there: usize,
    pub adopted: usize,
    pub moved: usize,
}

/// Copies an image; all of it, or the manifests of an index that are there.
pub async fn copy(source: &dyn ImageSource, target: &dyn ImageTarget) -> Result<Copied, PlaceError> {
    let mut copied = Copied::default();
    target.check().await?;
    let (root, bytes) = source.root().await?;
    if media_type::is_index(&root.media_type) {
        let index: Index = serde_json::from_slice(&bytes).unwrap();
        for entry in &index.manifests {
            let manifest = match source.manifest(entry).await {
                Ok(manifest) => manifest,
                Err(error) if error.is_not_found() => continue,
                Err(error) => return Err(error),
            };
            copy_blobs(source, target, &manifest, &mut copied).await?;
            target.put_manifest(entry, manifest).await?;
        }
    } else {
        copy_blobs(source, target, &bytes, &mut copied).await?;
    }
    target.name(&root, bytes).await?;
    Ok(copied)
}

async fn copy_blobs(
    source: &dyn ImageSource,
    target: &dyn ImageTarget,
    manifest: &[u8],
    copied: &mut Copied,
) -> Result<(), PlaceError> {
    let manifest: Manifest = serde_json::from_slice(manifest).unwrap();
    for blob in manifest.layers.iter().chain([&manifest.config]) {
        if target.has(blob).await? {
            copied.there += 1;
        } else if target.adopt(source, blob).await? {
            copied.adopted += 1;
        } else {
            let mut stream = source.stream(blob, Urgency::Prefetch);
            let mut writer = target.begin().await?;
            while let Some(bytes) = stream.try_next().await.map_err(|reason| PlaceError::Read {
                place: source.place().to_string(),
                digest: blob.digest,
                reason,
            })? {
                writer.write(bytes).await?;
            }
            writer.commit(blob, None).await?;
            copied.moved += 1;
        }
    }
    Ok(())
}
