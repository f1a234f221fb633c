//! What a layer store keeps about a layer, and what becomes of it when it is damaged; tables of contents that are kept
//! in another image.

// Clippy exempts test functions from these lints, and not their helpers.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::cast_possible_truncation)]

mod common;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use common::{Blob, CHUNK, Source, Tar, blob, blob_of, noise, on_demand, quick};
use content::{Digest, ReadError, ReadErrorKind, Urgency};
use estargz::{Options, TocPlace};
use futures::FutureExt as _;
use lazyfs::{ExternalToc, Layer, LayerError, LayerSpec, Layers, OpaqueXattr};

struct Store {
    place: tempfile::TempDir,
    layers: Arc<Layers>,
}

impl Store {
    fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        let layers = Layers::open(place.path(), &quick()).unwrap();
        Self { place, layers }
    }

    /// The same folder, as the next process finds it.
    async fn again(self) -> Self {
        self.layers.shutdown().await;
        let layers = Layers::open(self.place.path(), &quick()).unwrap();
        Self { layers, ..self }
    }

    fn file(&self, blob: &Blob, name: &str) -> PathBuf {
        self.place.path().join(blob.built.toc_digest.hex()).join(name)
    }
}

fn two_files() -> (Vec<u8>, Vec<u8>) {
    let content = noise(9, 3 * CHUNK + 5);
    (Tar::new().file("d/a", 0o644, &content).file("b", 0o600, b"small").finish(), content)
}

async fn read(layer: &Layer, name: &str) -> Vec<u8> {
    let file = layer.toc().unwrap().find(name.as_bytes()).unwrap();
    layer.read(file, 0, u32::MAX, Urgency::Blocking).await.unwrap().to_vec()
}

fn flip(path: &PathBuf, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    let at = at % bytes.len();
    bytes[at] ^= 0x20;
    std::fs::write(path, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_opens_without_its_json_and_without_its_source() {
    let (tar, content) = two_files();
    let blob = blob(&tar, CHUNK as u32);
    let source = Source::new(&blob);
    let store = Store::new();
    let layer = store.layers.layer(on_demand(&blob, &source)).await.unwrap();
    assert_eq!(read(&layer, "d/a").await, content);
    let image = layer.metadata_image(OpaqueXattr::Trusted).unwrap();
    drop(layer);
    let store = store.again().await;
    std::fs::remove_file(store.file(&blob, "toc.json")).unwrap();
    std::fs::remove_file(store.file(&blob, "layer.json")).unwrap();
    let opened = source.opened.load(Ordering::Relaxed);
    let layer = store.layers.layer(on_demand(&blob, &source)).await.unwrap();
    assert_eq!(layer.status().fetched, content.len() as u64);
    assert_eq!(read(&layer, "d/a").await, content);
    assert!(layer.metadata_image(OpaqueXattr::Trusted).unwrap() == image);
    assert_eq!(source.opened.load(Ordering::Relaxed), opened, "what is here needs no source");
    assert_eq!(read(&layer, "b").await, b"small");
    store.layers.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_index_is_made_again_and_a_damaged_table_is_fetched_again() {
    let (tar, content) = two_files();
    let blob = blob(&tar, CHUNK as u32);
    let source = Source::new(&blob);
    let mut store = Store::new();
    let layer = store.layers.layer(on_demand(&blob, &source)).await.unwrap();
    assert_eq!(read(&layer, "d/a").await, content);
    drop(layer);
    let good = std::fs::read(store.file(&blob, "index")).unwrap();
    for at in [0, 9, 50, 400, good.len() - 1] {
        store = store.again().await;
        flip(&store.file(&blob, "index"), at);
        let opened = source.opened.load(Ordering::Relaxed);
        let layer = store.layers.layer(on_demand(&blob, &source)).await.unwrap();
        assert_eq!(read(&layer, "d/a").await, content);
        assert_eq!(source.opened.load(Ordering::Relaxed), opened, "the table on disk says it all");
        assert!(std::fs::read(store.file(&blob, "index")).unwrap() == good, "byte {at}");
    }
    // From a version before this one, and from a folder in which the table is damaged too.
    store = store.again().await;
    std::fs::remove_file(store.file(&blob, "index")).unwrap();
    drop(store.layers.layer(on_demand(&blob, &source)).await.unwrap());
    store = store.again().await;
    flip(&store.file(&blob, "index"), 20);
    flip(&store.file(&blob, "toc.json"), 20);
    let opened = source.opened.load(Ordering::Relaxed);
    let layer = store.layers.layer(on_demand(&blob, &source)).await.unwrap();
    assert_eq!(source.opened.load(Ordering::Relaxed), opened + 1);
    assert_eq!(layer.status().fetched, content.len() as u64, "the data is still there");
    assert_eq!(read(&layer, "d/a").await, content);
    store.layers.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_image_is_written_once_and_again_if_it_is_damaged() {
    let (tar, _) = two_files();
    let blob = blob(&tar, CHUNK as u32);
    let source = Source::new(&blob);
    let mut store = Store::new();
    let mut written = Vec::new();
    for damage in [false, false, true, false] {
        let layer = store.layers.layer(on_demand(&blob, &source)).await.unwrap();
        let path = store.file(&blob, "erofs-t.img");
        assert_eq!(layer.folder(), path.parent().unwrap());
        layer.metadata_file(OpaqueXattr::Trusted).unwrap();
        let inode = |path| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).unwrap());
        let first = inode(&path);
        layer.metadata_file(OpaqueXattr::Trusted).unwrap();
        assert_eq!(inode(&path), first);
        written.push(first);
        let bytes = std::fs::read(&path).unwrap();
        let image = layer.metadata_image(OpaqueXattr::Trusted).unwrap();
        assert!(bytes.starts_with(&image) && bytes.len() == image.len() + 4096);
        assert!(!store.file(&blob, "erofs-u.img").exists());
        drop(layer);
        store = store.again().await;
        if damage {
            flip(&path, 5000);
        }
    }
    assert_eq!(written[0], written[1]);
    assert_eq!(written[1], written[2]);
    assert_ne!(written[2], written[3], "the damaged image was used");
    store.layers.shutdown().await;
}

/// A hook that gives `layer`.
#[allow(clippy::unnecessary_wraps)] // as the specification has it
fn gives(layer: Result<Vec<u8>, ReadErrorKind>) -> Option<ExternalToc> {
    Some(Arc::new(move || {
        let layer = layer.clone().map(Into::into).map_err(|kind| ReadError::origin(kind, "of the image"));
        std::future::ready(layer).boxed()
    }))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_in_another_image_is_fetched_from_there_and_checked() {
    let (tar, content) = two_files();
    let options =
        |chunk_size| Options { chunk_size, level: Some(1), toc: TocPlace::External, ..Options::default() };
    let blob = blob_of(&tar, &options(CHUNK as u32));
    let estargz::BuiltToc::External { json } = &blob.built.toc else { panic!("{:?}", blob.built.toc) };
    let source = Source::new(&blob);
    let store = Store::new();
    let with = |external_toc| LayerSpec { external_toc, ..on_demand(&blob, &source) };
    let toc_layer = |json: &[u8]| estargz::toc_layer(json, 1).unwrap().bytes;
    let open = async |external_toc| store.layers.layer(with(external_toc)).await.map(drop).unwrap_err();
    // The table of another blob is a good one, and not this one's.
    let other = blob_of(&tar, &options(3000));
    let estargz::BuiltToc::External { json: other } = &other.built.toc else {
        panic!("{:?}", other.built.toc)
    };
    let error = open(gives(Ok(toc_layer(other)))).await;
    assert!(
        matches!(error, LayerError::TocDigest { expected, found, .. }
            if expected == blob.built.toc_digest && found == Digest::of(other)),
        "{error}"
    );
    assert!(matches!(open(gives(Err(ReadErrorKind::NotFound))).await, LayerError::Read { .. }));
    assert!(matches!(open(gives(Ok(b"no layer at all".to_vec()))).await, LayerError::NotLazy { .. }));
    assert!(matches!(open(None).await, LayerError::NotLazy { .. }));
    assert_eq!(std::fs::read_dir(store.place.path()).unwrap().count(), 0, "nothing is kept of it");
    let layer = store.layers.layer(with(gives(Ok(toc_layer(json))))).await.unwrap();
    assert_eq!(read(&layer, "d/a").await, content);
    drop(layer);
    // From disk, and nobody is asked.
    let store = store.again().await;
    let layer = store.layers.layer(with(None)).await.unwrap();
    assert_eq!(read(&layer, "b").await, b"small");
    store.layers.shutdown().await;
}
